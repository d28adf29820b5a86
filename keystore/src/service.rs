//! The keystore as a service: built from settings, then served until stopped.
//!
//! A stop takes no more requests, finishes those in flight, publishes the notices that are unsent, closes the files,
//! writes the last head and releases the lease. A keystore that waits says why in its [`Health`]; one that loses its
//! lease ends.

use std::future::Future;
use std::sync::Arc;

use stage0_backplane::{Backplane, ServeError};
use stage0_contract::KeyChanged;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::announce::{Changed, Retry};
use crate::admin::writer;
use crate::config::{ConfigError, KeystoreConfig};
use crate::hash::HashError;
use crate::head::HeadWriter;
use crate::health::Health;
use crate::lease::Lease;
use crate::lease::tenure::{Loss, Tenure};
use crate::plans::{Plans, PlansError};
use crate::restore::Restored;
use crate::server::handlers::Handlers;
use crate::sources::Clock;
use crate::store::OpenError;
use crate::{metrics, server};

mod start;

use start::Start;

/// A keystore that is open and ready to serve.
pub struct Keystore {
    backplane: Backplane,
    handlers: Arc<Handlers>,
    retry: Retry,
    thread: std::thread::JoinHandle<()>,
    health: Health,
    tenure: Tenure,
    lease: Option<Lease>,
    head: HeadWriter,
    restored: Option<Restored>,
}

/// A keystore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Settings are wrong.
    #[error("the keystore's settings are wrong")]
    Config(#[from] ConfigError),
    /// The file of plans is wrong.
    #[error("the plans are wrong")]
    Plans(#[from] PlansError),
    /// The data directory cannot be opened.
    #[error("the keystore cannot open its data")]
    Open(#[from] OpenError),
    /// Argon2 failed, for example for lack of memory.
    #[error("the keystore cannot hash keys")]
    Hash(#[from] HashError),
    /// The operating system gives no random bytes.
    #[error("there is no randomness")]
    Random(#[from] getrandom::Error),
    /// A step after the opening of the data failed; the source says what to do.
    #[error("the keystore cannot {0}")]
    Prepare(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The state store does not answer, in a process where waiting cannot help.
    #[error("the keystore cannot ask the state store how new its data must be: {0}")]
    StateStore(String),
    /// The state store went back to an earlier state while this keystore waited.
    #[error("{}", WENT_BACK)]
    StateStoreWentBack,
    /// A thread cannot be started, or it panicked while opening the data.
    #[error("the keystore's writer cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A running keystore cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot receive requests.
    #[error("the keystore cannot be asked")]
    Serve(#[from] ServeError),
    /// Another keystore holds the lease.
    #[error("the keystore lost its lease: another keystore serves; start again to stand by")]
    LeaseLost,
    /// The records in the state store are not those that it wrote last.
    #[error("{}", WENT_BACK)]
    StateStoreWentBack,
}

const WENT_BACK: &str = "the state store is not as this keystore left it: it was put back to an earlier state, or this \
                         machine was reverted or copied; start the keystore again: it compares its data with the \
                         state store then";

impl Keystore {
    /// Waits for the lease, opens the data and repairs it if necessary. `health` reports the state from now on.
    pub async fn build(config: KeystoreConfig, backplane: Backplane, health: Health) -> Result<Self, BuildError> {
        metrics::describe();
        stage0_backplane::clock::start();
        config.validate()?;
        let plans = config.plans.map_or_else(Plans::built_in, Ok)?;
        let clock: Clock = Arc::new(jiff::Timestamp::now);
        let start = Start { config, backplane, health, clock, plans };
        let (lease, locked) = start.lock().await?;
        match start.open(lease.as_ref(), locked).await {
            Ok(keystore) => Ok(Self { lease, ..keystore }),
            Err(error) => {
                if let Some(lease) = lease {
                    lease.release().await;
                }
                Err(error)
            }
        }
    }

    /// What was done to a directory that was restored from a backup.
    pub fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// Serves until `stop` resolves or the lease is lost, then finishes requests in flight and closes the files.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { backplane, handlers, retry, thread, health, tenure, lease, head, restored: _ } = self;
        let stopping = CancellationToken::new();
        let loops = TaskTracker::new();
        let served = server::serve_all(&backplane, &handlers, &stopping, &loops).await;
        let stop_notices = CancellationToken::new();
        let notices = tokio::spawn(retry.run(stop_notices.clone()));
        let stop_head = CancellationToken::new();
        let head = tokio::spawn(head.run(stop_head.clone()));
        let mut ended = served.map_err(RunError::from);
        if ended.is_ok() {
            // Covers changes that an earlier keystore stored without a notice, and keys that a restore revoked.
            handlers.announcer.announce(Changed::Key(KeyChanged::Any {})).await;
            loops.spawn(Arc::clone(&handlers).maintain_reserve(stopping.clone()));
            health.set_serving();
            tracing::info!("keystore serves");
            tokio::select! {
                () = stop => {}
                loss = tenure.lost() => ended = Err(match loss {
                    Loss::TakenOver => RunError::LeaseLost,
                    Loss::WentBack => RunError::StateStoreWentBack,
                }),
            }
        }
        stopping.cancel();
        loops.close();
        loops.wait().await;
        drop(handlers);
        stop_notices.cancel();
        finished(notices, "the retry of notices").await;
        writer::finished(thread).await;
        stop_head.cancel();
        finished(head, "the writer of the head").await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        tracing::info!("keystore stopped");
        ended
    }
}

async fn finished(task: JoinHandle<()>, what: &'static str) {
    if task.await.is_err() {
        tracing::error!(what, "task panicked");
    }
}
