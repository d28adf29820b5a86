//! The behaviour of a backplane, once for all implementations; then the failures that only NATS has.
//!
//! Every behaviour in `requests` and `notices` runs on the embedded bus and on a real nats-server, with separate
//! connections for clients and servers; those in `log`, `log_reading`, `state_store` and `counters` also on a file, and
//! on three servers that replicate each stream. The others kill, freeze, forbid, fill disks and cut the power. Writers
//! that are killed are this binary again, in a mode set by an environment variable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod auth;
mod cluster;
mod counters;
mod crash;
mod disk_full;
mod failures;
mod log;
mod log_failures;
mod log_reading;
mod malformed;
mod metrics;
mod notices;
mod power_cut;
mod refusals;
mod releases;
mod requests;
mod roles;
mod sealing;
mod settled;
mod state_store;
mod streams;
mod sync;
mod witness;
mod writing;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use settled::Replicas;
use stage0_backplane::embedded::Bus;
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{Backplane, RequestError, RequestStream};
use stage0_contract::{Notice, Request, TestMessage};
use tempfile::TempDir;

/// Runs each behaviour on every implementation.
macro_rules! on_every_backplane {
    ($($behaviour:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(crate::Stage::embedded()).await; })*
        }
        mod nats {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(crate::Stage::nats().await).await; })*
        }
    };
}
use on_every_backplane;

/// Runs each behaviour on every implementation of stored data: in memory, in a file, on one server of NATS, on three.
macro_rules! on_every_store {
    ($($behaviour:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(crate::Stage::embedded()).await; })*
        }
        mod file {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(crate::Stage::file()).await; })*
        }
        mod nats {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(crate::Stage::nats().await).await; })*
        }
        mod replicated {
            $(#[tokio::test] async fn $behaviour() {
                if let Some(stage) = crate::Stage::replicated().await {
                    super::$behaviour(stage).await;
                }
            })*
        }
    };
}
use on_every_store;

/// Longer than anything here takes, so that a stuck test ends.
const PATIENT: Duration = Duration::from_secs(30);

/// The server or the bus that the connections share.
enum Stage {
    Embedded(Bus),
    File { bus: Bus, _directory: TempDir },
    Nats(NatsServer),
    Replicated(Replicas),
}

impl Stage {
    fn embedded() -> Self {
        Self::Embedded(Bus::new())
    }

    fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::File { bus: Bus::open(directory.path()).unwrap(), _directory: directory }
    }

    async fn nats() -> Self {
        Self::Nats(NatsServer::start().await)
    }

    /// None where no cluster can be started, which is reported.
    async fn replicated() -> Option<Self> {
        Some(Self::Replicated(Replicas::start().await?))
    }

    /// Another connection.
    async fn connect(&self) -> Backplane {
        match self {
            Self::Embedded(bus) | Self::File { bus, .. } => bus.connect(),
            Self::Nats(server) => Backplane::connect(&server.config("suite")).await.unwrap(),
            Self::Replicated(replicas) => replicas.connect().await,
        }
    }

    /// Another connection, with a log and a state store.
    async fn recorder(&self) -> Backplane {
        match self {
            Self::Embedded(bus) | Self::File { bus, .. } => bus.connect(),
            Self::Nats(server) => writing::recorder(server).await.backplane(),
            Self::Replicated(replicas) => replicas.recorder().await,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Echo {
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Echoed {
    text: String,
}

impl TestMessage for Echo {}

impl Request for Echo {
    const SUBJECT: &'static str = "echo";
    type Reply = Echoed;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    number: usize,
}

impl TestMessage for Changed {}

impl Notice for Changed {
    const SUBJECT: &'static str = "notice.changed";
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Moved {}

impl TestMessage for Moved {}

impl Notice for Moved {
    const SUBJECT: &'static str = "notice.moved";
}

fn echo(text: &str) -> Echo {
    Echo { text: text.to_owned() }
}

async fn ask(backplane: &Backplane, text: impl ToString, within: Duration) -> Result<String, RequestError> {
    backplane.requests.request(&echo(&text.to_string()), within).await.map(|reply| reply.text)
}

/// Sends a request in a task of its own.
fn ask_aside(
    backplane: &Backplane,
    text: &(impl ToString + ?Sized),
    within: Duration,
) -> tokio::task::JoinHandle<Result<String, RequestError>> {
    let (backplane, request) = (backplane.clone(), echo(&text.to_string()));
    tokio::spawn(async move { backplane.requests.request(&request, within).await.map(|reply| reply.text) })
}

/// Replies with the request's text until the queue ends; returns how many.
async fn answer_all(mut inbox: RequestStream<Echo>) -> usize {
    let mut answered = 0;
    while let Some(request) = inbox.next().await {
        let text = request.request.text.clone();
        request.answer(&Echoed { text }).await;
        answered += 1;
    }
    answered
}
