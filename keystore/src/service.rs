//! The running keystore: built from settings, served until told to stop.
//!
//! Owns the order of starting (settings, hash, files, sealing and signing keys, operator's key, then questions) and of stopping: take no
//! more, finish what is in hand, tell what is untold, close the files. When it cannot start, the error says which part and nothing was
//! served.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stage0_backplane::{Backplane, ServeError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::announce::{self, Retry};
use crate::bootstrap;
use crate::config::{ConfigError, KeystoreConfig};
use crate::counter::Counter;
use crate::hash::{HashError, Hasher};
use crate::image::Lineage;
use crate::manage::{self, Clock, Desk};
use crate::metrics;
use crate::new_key::NewKeys;
use crate::plans::{Plans, PlansError};
use crate::questions;
use crate::rules::whole_seconds;
use crate::seal::{self, Sealer};
use crate::signer::{self, Signer};
use crate::vault::{OpenError, Vault};
use crate::verify::Verifier;
use crate::writer::{self, WriterThread};

/// A keystore that is open and ready to serve.
pub struct Keystore {
    backplane: Backplane,
    counter: Arc<Counter>,
    retry: Retry,
    thread: WriterThread,
}

/// A keystore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Settings are wrong.
    #[error("the keystore's settings are wrong")]
    Config(#[from] ConfigError),
    /// The plans are.
    #[error("the plans are wrong")]
    Plans(#[from] PlansError),
    /// The data directory cannot be opened.
    #[error("the keystore cannot open its data")]
    Open(#[from] OpenError),
    /// Argon2 does not work here.
    #[error("the keystore cannot hash keys")]
    Hash(#[from] HashError),
    /// The operating system gives no random bytes.
    #[error("there is no randomness")]
    Random(#[from] getrandom::Error),
    /// The secrets of webhook endpoints cannot be opened; what it says is what to do.
    #[error("the keystore cannot open its webhook secrets")]
    Secrets(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no key to sign with.
    #[error("the keystore cannot sign")]
    Signing(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is in the store cannot be counted.
    #[error("the keystore cannot count its keys")]
    Count(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operator's first key cannot be made.
    #[error("the keystore cannot make the operator's first key")]
    Bootstrap(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No thread, or it died while opening.
    #[error("the keystore's writer cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Keystore {
    /// Opens the data directory, repairing what can be proven, and makes the operator's key if there is nothing yet.
    pub async fn build(config: KeystoreConfig, backplane: Backplane) -> Result<Self, BuildError> {
        Self::build_at(config, backplane, Arc::new(jiff::Timestamp::now)).await
    }

    /// As [`Keystore::build`], with a clock.
    pub(crate) async fn build_at(
        config: KeystoreConfig,
        backplane: Backplane,
        clock: Clock,
    ) -> Result<Self, BuildError> {
        metrics::describe();
        stage0_backplane::clock::start();
        config.validate()?;
        let plans = config.plans.map_or_else(Plans::built_in, Ok)?;
        let (opening, their_clock) = (config.clone(), Arc::clone(&clock));
        let opened = tokio::task::spawn_blocking(move || open(&opening, their_clock, plans)).await;
        let opened = opened.map_err(|error| BuildError::Thread(std::io::Error::other(error)))??;
        let Opened { desk, hasher, sealer, signer } = opened;
        let (store, writable, judge) = (desk.store().clone(), desk.vault().writable(), desk.judge());
        let (writer, thread) = writer::start(desk).map_err(BuildError::Thread)?;
        let pool = (config.workers(), config.hash_queue);
        let new_keys = NewKeys::new(Arc::clone(&hasher));
        let verifier = Verifier::new(store.clone(), hasher, Arc::clone(&clock), plans, pool);
        let (announcer, retry) = announce::announcer(backplane.clone());
        let verifier = Arc::new(verifier);
        let admission = Arc::new(Admission::default());
        let counter =
            Counter { store, judge, admission, new_keys, verifier, writer, writable, announcer, sealer, signer, clock };
        Ok(Self { backplane, counter: Arc::new(counter), retry, thread })
    }

    /// Tells whether changes can be stored, at any time.
    pub fn writable(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let writable = Arc::clone(&self.counter.writable);
        move || writable.load(Ordering::Acquire)
    }

    /// Serves until `stop` resolves, then finishes what is in hand and closes the files.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { backplane, counter, retry, thread } = self;
        let stopping = CancellationToken::new();
        let loops = TaskTracker::new();
        let served = questions::serve_all(&backplane, &counter, &stopping, &loops).await;
        let untold = CancellationToken::new();
        let retrying = tokio::spawn(retry.run(untold.clone()));
        if served.is_ok() {
            tracing::info!("keystore serves");
            stop.await;
        }
        stopping.cancel();
        loops.close();
        loops.wait().await;
        drop(counter);
        untold.cancel();
        if retrying.await.is_err() {
            tracing::error!("the retry of notices panicked");
        }
        thread.finished().await;
        tracing::info!("keystore stopped");
        served
    }
}

struct Opened {
    desk: Desk,
    hasher: Arc<Hasher>,
    sealer: Arc<Sealer>,
    signer: Arc<Signer>,
}

fn open(config: &KeystoreConfig, clock: Clock, plans: Plans) -> Result<Opened, BuildError> {
    let hasher = Arc::new(Hasher::new(config.hash_cost, manage::random()?)?);
    let now = whole_seconds(clock());
    let mut vault = Vault::open(&config.data_dir, Lineage::from_random(manage::random()?), now)?;
    // Before the operator's key: who must restore a file first shall not find a new key beside it.
    let sealer = seal::sealer(config, vault.store()).map_err(|error| BuildError::Secrets(Box::new(error)))?;
    let signer = signer::signer(config, &mut vault, now).map_err(|error| BuildError::Signing(Box::new(error)))?;
    let sealer = Arc::new(sealer);
    let mut desk =
        Desk::new(vault, Arc::clone(&sealer), clock, plans).map_err(|error| BuildError::Count(Box::new(error)))?;
    let operator = bootstrap::operator_if_empty(&mut desk, &hasher, &config.data_dir);
    operator.map_err(|error| BuildError::Bootstrap(Box::new(error)))?;
    if let Some(copy) = &config.operator_key_copy {
        let copied = bootstrap::copy_operator_key(&config.data_dir, copy);
        copied.map_err(|error| BuildError::Bootstrap(Box::new(error)))?;
    }
    Ok(Opened { desk, hasher, sealer, signer: Arc::new(signer) })
}
