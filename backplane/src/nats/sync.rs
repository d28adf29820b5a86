//! Does the server sync each message to disk before it acknowledges it, and can it still write? Only its monitor says so.
//!
//! Asked at start, after each reconnect, and every few seconds: the mode cannot change without the server starting again. What
//! cannot be asked after a reconnect is not believed. Without a monitor's address nothing is verified, and that is said. A stream that
//! met a full disk answers everything but appends until its server starts again, and one at its limit until there is room: readiness asks
//! for both, and remembers for some seconds what an append was told.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::redirect;
use tokio::time::{Instant, timeout, timeout_at};

use super::monitor::JetStreamState;

const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A monitor may start a moment after its server.
const ASK_AGAIN_AFTER_TROUBLE: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// For so long an append that found no room says that the next will not either. Longer, and a process that gets no traffic while it is
/// not ready would never find out.
const REFUSAL_HOLDS: Duration = Duration::from_secs(5);

/// What is known of the server's sync mode, and how it is found out.
#[derive(Debug, Clone, Default)]
pub struct SyncMode {
    /// `http://host:port` of every server's monitor; none: it is not verified.
    pub monitors: Vec<String>,
    /// The operator takes the risk by name: a server that syncs rarely is used all the same.
    pub dangerous_relaxed: bool,
}

/// The last that was heard.
#[derive(Debug)]
pub(super) struct SyncWatch {
    mode: SyncMode,
    /// None: there is nobody to ask.
    client: Option<reqwest::Client>,
    last: Mutex<Option<Known>>,
    /// When an append found no room, and in which words.
    refused: Mutex<Option<(Instant, String)>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Known {
    connects: u64,
    at: Instant,
    outcome: Result<(), String>,
}

impl SyncWatch {
    /// Fails when there can be no HTTP client.
    pub(super) fn new(mode: SyncMode) -> Result<Self, String> {
        let client = if mode.monitors.is_empty() {
            None
        } else {
            let client = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build();
            Some(client.map_err(|error| format!("no HTTP client for its monitor: {error}"))?)
        };
        Ok(Self {
            mode,
            client,
            last: Mutex::default(),
            refused: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// `Ok` when an append on this connection may be believed.
    pub(super) async fn check(&self, connects: u64, deadline: Instant) -> Result<(), String> {
        let Some(client) = self.client.as_ref().filter(|_| !self.mode.dangerous_relaxed) else { return Ok(()) };
        let known = self.known(connects);
        if let Some(known) = known.as_ref().filter(|known| known.is_fresh()) {
            return known.outcome.clone();
        }
        let was_good = known.is_some_and(|known| known.outcome.is_ok());
        let asked = async {
            // One asks for all. Those who know that it was well need not wait for that.
            let _turn = match self.asking.try_lock() {
                Ok(turn) => turn,
                Err(_) if was_good => return Ok(()),
                Err(_) => self.asking.lock().await,
            };
            match self.known(connects).filter(Known::is_fresh) {
                Some(known) => known.outcome,
                None => self.learn(client, connects, was_good).await,
            }
        };
        let late = "the sync mode of nats is not verified: there was no time to ask its monitor";
        timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(late.to_owned()))
    }

    /// What an operator should know; or why nothing can be appended to this stream, when every server says so.
    pub(super) async fn remarks(&self, stream: &str, deadline: Instant) -> Result<Vec<String>, String> {
        let mut remarks = Vec::new();
        if self.mode.dangerous_relaxed {
            let risk = "audit: relaxed sync was asked for: a power cut may lose decisions that were answered";
            remarks.push(risk.to_owned());
        } else if self.mode.monitors.is_empty() {
            remarks.push("audit: sync mode not verified".to_owned());
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, why)) = refused.filter(|(at, _)| at.elapsed() < REFUSAL_HOLDS) {
            return Err(format!("an append found no room: {why}"));
        }
        if let Some(client) = &self.client {
            let asked = self.mode.monitors.iter().map(|monitor| trouble(client, monitor, stream));
            // One that does not answer is no reason: that is judged elsewhere.
            let errors: Vec<_> = timeout_at(deadline, join_all(asked)).await.into_iter().flatten().flatten().collect();
            if !errors.is_empty() && errors.len() == self.mode.monitors.len() {
                return Err(errors.join("; "));
            }
            remarks.extend(errors);
        }
        Ok(remarks)
    }

    /// What an append was told: none, that it is stored; or why there was no room for it.
    pub(super) fn appended(&self, refusal: Option<String>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = refusal.map(|why| (Instant::now(), why));
    }

    async fn learn(&self, client: &reqwest::Client, connects: u64, was_good: bool) -> Result<(), String> {
        let outcome = match timeout(ANSWER_WITHIN, self.ask_all(client)).await {
            Ok(Ok(outcome)) => outcome,
            // The server that we are still connected to has not started anew: what it said holds.
            Ok(Err(_)) | Err(_) if was_good => Ok(()),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("the sync mode of nats is not verified: its monitor does not answer".to_owned()),
        };
        let known = Known { connects, at: Instant::now(), outcome: outcome.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        outcome
    }

    /// On this connection.
    fn known(&self, connects: u64) -> Option<Known> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|known| known.connects == connects)
    }

    /// The inner error is what a server said, the outer that one could not be asked.
    async fn ask_all(&self, client: &reqwest::Client) -> Result<Result<(), String>, String> {
        for monitor in &self.mode.monitors {
            if !ask(client, monitor).await? {
                return Ok(Err(format!(
                    "nats at {monitor} does not sync each message: set `sync_interval: always` in its `jetstream` block, or take the risk with --dangerous-relaxed-sync"
                )));
            }
        }
        Ok(Ok(()))
    }
}

impl Known {
    fn is_fresh(&self) -> bool {
        let holds = if self.outcome.is_ok() { ASK_AGAIN_AFTER } else { ASK_AGAIN_AFTER_TROUBLE };
        self.at.elapsed() < holds
    }
}

async fn ask(client: &reqwest::Client, monitor: &str) -> Result<bool, String> {
    let said = JetStreamState::ask(client, monitor).await;
    let said = said.map_err(|why| format!("the sync mode of nats is not verified: its monitor at {monitor} {why}"))?;
    if said.enabled {
        Ok(said.sync_always)
    } else {
        Err(format!("what answers at {monitor} is no monitor of nats with JetStream"))
    }
}

/// Why a server will not store what is appended to this stream.
async fn trouble(client: &reqwest::Client, monitor: &str, stream: &str) -> Option<String> {
    match write_error(client, monitor, stream).await {
        Some(error) => Some(error),
        None => {
            let said = JetStreamState::ask(client, monitor).await.ok().filter(JetStreamState::is_full)?;
            let (taken, most) = (said.taken, said.most.unwrap_or(said.taken));
            Some(format!(
                "nats at {monitor} has no room: {taken} of {most} bytes are taken; raise `max_file` or let decisions expire"
            ))
        }
    }
}

/// That a server can no longer write this stream; `/healthz` says why until it starts again.
async fn write_error(client: &reqwest::Client, monitor: &str, stream: &str) -> Option<String> {
    let answer = client.get(format!("{}/healthz", monitor.trim_end_matches('/'))).send().await.ok()?;
    let text = answer.text().await.ok()?;
    let ours = text.contains(&format!("{stream}'")) && text.contains("write error");
    ours.then(|| format!("nats at {monitor} cannot write `{stream}`; make room and start it again: {text}"))
}
