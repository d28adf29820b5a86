//! The running keystore: built from settings, served until told to stop.
//!
//! Owns the order of starting (settings, lease, files, what the state store knows of them, sealing and signing keys,
//! operator's key, head, then questions) and of stopping: take no more, finish what is in hand, tell what is untold,
//! close the files, release the lease. A keystore that waits says why in its [`Health`]. When it cannot start, the
//! error says which part and nothing was served; one that loses its lease ends.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use stage0_backplane::{Backplane, Ledger, PutError, Revision, ServeError};
use stage0_contract::KeyChanged;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::announce::{self, Changed, Retry};
use crate::bootstrap;
use crate::callers::{Callers, ProvenKeys};
use crate::config::{ConfigError, KeystoreConfig};
use crate::counter::Counter;
use crate::hash::{HashError, Hasher};
use crate::head::{self, Head, HeadStored, HeadWriter, Held, Mismatch};
use crate::health::Health;
use crate::image::Lineage;
use crate::last_used::LastUsed;
use crate::lease::{self, AcquireError, Lease, Loss, RETRY_DELAY, Tenure};
use crate::listed_accounts;
use crate::live_keys::{self, Lister};
use crate::lock::LockedDirectory;
use crate::manage::{self, Clock, Desk};
use crate::metrics;
use crate::new_key::NewKeys;
use crate::permits::Permits;
use crate::plans::{Plans, PlansError};
use crate::questions;
use crate::restore::{self, Known, Restored};
use crate::rules::whole_seconds;
use crate::seal::{self, Sealer};
use crate::signer::{self, Signer};
use crate::vault::{Found, OpenError, Vault};
use crate::verify::Verifier;
use crate::writer::{self, WriterThread};

/// A keystore that is open and ready to serve.
pub struct Keystore {
    backplane: Backplane,
    counter: Arc<Counter>,
    retry: Retry,
    thread: WriterThread,
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
    /// The state store cannot be asked, and nobody else may be waited for.
    #[error("the keystore cannot ask the state store how new its data must be: {0}")]
    StateStore(String),
    /// An earlier state of the state store came back while this keystore waited.
    #[error("{}", WENT_BACK)]
    StateStoreWentBack,
    /// No thread, or it died while opening.
    #[error("the keystore's writer cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A keystore served, and cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It never did.
    #[error("the keystore cannot be asked")]
    Serve(#[from] ServeError),
    /// Another one has its lease.
    #[error("the keystore lost its lease: another keystore serves; start again to stand by")]
    LeaseLost,
    /// What the state store has of it is not what it wrote last.
    #[error("{}", WENT_BACK)]
    StateStoreWentBack,
}

const WENT_BACK: &str = "the state store is not as this keystore left it: it was put back to an earlier state, or this \
                         machine was reverted or copied; start the keystore again: it compares its data with the \
                         state store then";

impl Keystore {
    /// Waits for the lease where it needs one, opens the data directory, repairing what can be proven, and makes the
    /// operator's key if there is nothing yet. `health` says how it is from now on.
    pub async fn build(config: KeystoreConfig, backplane: Backplane, health: Health) -> Result<Self, BuildError> {
        Self::build_at(config, backplane, health, Arc::new(jiff::Timestamp::now)).await
    }

    /// As [`Keystore::build`], with a clock.
    pub(crate) async fn build_at(
        config: KeystoreConfig,
        backplane: Backplane,
        health: Health,
        clock: Clock,
    ) -> Result<Self, BuildError> {
        metrics::describe();
        stage0_backplane::clock::start();
        config.validate()?;
        let plans = config.plans.map_or_else(Plans::built_in, Ok)?;
        let start = Start { config, backplane, health, clock, plans };
        let (lease, directory) = start.lock().await?;
        match start.open(lease.as_ref(), directory).await {
            Ok(ready) => start.finish(lease, ready),
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

    /// Serves until `stop` resolves or the lease is lost, then finishes what is in hand and closes the files.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { backplane, counter, retry, thread, health, tenure, lease, head, restored: _ } = self;
        let stopping = CancellationToken::new();
        let loops = TaskTracker::new();
        let served = questions::serve_all(&backplane, &counter, &stopping, &loops).await;
        let (untold, unwritten) = (CancellationToken::new(), CancellationToken::new());
        let retrying = tokio::spawn(retry.run(untold.clone()));
        let writing = tokio::spawn(head.run(unwritten.clone()));
        let mut ended = served.map_err(RunError::from);
        if ended.is_ok() {
            // What an earlier keystore stored and could not tell, and what a restore revoked.
            counter.announcer.announce(Changed::Key(KeyChanged::Any {})).await;
            loops.spawn(Arc::clone(&counter).tend_reserve(stopping.clone()));
            health.serves();
            tracing::info!("keystore serves");
            tokio::select! {
                () = stop => {}
                loss = tenure.lost() => ended = Err(match loss {
                    Loss::Followed => RunError::LeaseLost,
                    Loss::WentBack => RunError::StateStoreWentBack,
                }),
            }
        }
        stopping.cancel();
        loops.close();
        loops.wait().await;
        drop(counter);
        untold.cancel();
        finished(retrying, "the retry of notices").await;
        thread.finished().await;
        unwritten.cancel();
        finished(writing, "the writer of the head").await;
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

/// What a start needs from beginning to end.
struct Start {
    config: KeystoreConfig,
    backplane: Backplane,
    health: Health,
    clock: Clock,
    plans: Plans,
}

/// Everything is open.
struct Ready {
    opened: Opened,
    tenure: Tenure,
    head: HeadWriter,
    stored: HeadStored,
    restored: Option<Restored>,
}

struct Opened {
    desk: Desk,
    hasher: Arc<Hasher>,
    sealer: Arc<Sealer>,
    signer: Arc<Signer>,
    last_used: LastUsed,
    new_operator_key: bool,
}

impl Start {
    fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.backplane.ledger
    }

    async fn lock(&self) -> Result<(Option<Lease>, LockedDirectory), BuildError> {
        let dir = self.config.data_dir.clone();
        let Some(times) = self.config.lease else {
            let directory = blocking(move || Ok(LockedDirectory::take(&dir)?)).await?;
            return Ok((None, directory));
        };
        let acquired = lease::acquire(self.ledger(), &dir, times, &self.health).await;
        let (lease, directory) = acquired.map_err(|error| match error {
            AcquireError::Random(error) => BuildError::Random(error),
            AcquireError::Open(error) => BuildError::Open(error),
            AcquireError::WentBack => BuildError::StateStoreWentBack,
            AcquireError::Cancelled(error) => BuildError::Thread(std::io::Error::other(error)),
        })?;
        self.health.opens();
        Ok((Some(lease), directory))
    }

    async fn open(&self, lease: Option<&Lease>, directory: LockedDirectory) -> Result<Ready, BuildError> {
        let tenure = lease.map_or_else(Tenure::for_life, |lease| lease.tenure.clone());
        let found = blocking(move || Ok(Found::look(directory)?)).await?;
        let known = loop {
            match head::read(self.ledger()).await {
                Ok(known) => break known,
                Err(error) => self.wait_out(&error, &tenure).await?,
            }
        };
        let head = known.map(|(head, _)| head);
        let judged = judge(&found, head.as_ref(), self.config.accept_restore);
        let why = judged.map_err(|error| OpenError::Directory(found.dir().to_owned(), error))?;
        let (restoring, mut restored) = match why {
            None => {
                if self.config.accept_restore {
                    tracing::warn!("--accept-restore is not needed: the data is the newest; start without it");
                }
                (None, None)
            }
            Some(why) if self.config.accept_restore => {
                let (image, done) = self.restore(&found, head.as_ref(), why, &tenure).await?;
                (image, Some(done))
            }
            Some(why) => {
                let (dir, why) = (found.dir().to_owned(), why.to_string());
                return Err(OpenError::Outdated { dir, why }.into());
            }
        };
        let (config, clock, plans, own) = (self.config.clone(), Arc::clone(&self.clock), self.plans, tenure.clone());
        let is_restored = restored.is_some();
        let opened = blocking(move || {
            let now = whole_seconds(clock());
            let mut vault = found.open(Lineage::from_random(manage::random()?), now, own)?;
            if let Some(image) = restoring {
                vault.replace(&image)?;
            }
            open(&config, vault, (clock, plans), is_restored)
        });
        let mut opened = opened.await?;
        let dir = self.config.data_dir.clone();
        if let Some(restored) = &mut restored {
            restored.new_operator_key = opened.new_operator_key;
            // Their keys are dead from now on, and are listed as such.
            opened.desk.vault().changes().add(restored.vanished.iter().cloned().collect());
            say(restored);
        }
        let term = lease.map_or_else(|| head.map_or(1, |head| head.term.saturating_add(1)), |lease| lease.term);
        let (head, stored) = self.first_head(&opened.desk, term, known.map(|(_, revision)| revision), &tenure).await?;
        let lineage = String::from(opened.desk.vault().changes().position().lineage);
        self.backplane.requests.serve_in_term(term, &lineage);
        let now = (self.clock)();
        let opened = blocking(move || {
            opened.desk.say_head()?;
            head::remember(&dir, now).map_err(|error| OpenError::Directory(dir, error))?;
            Ok(opened)
        });
        let opened = opened.await?;
        Ok(Ready { opened, tenure, head, stored, restored })
    }

    /// The directory's image from now on, none where it is empty; and what that changes.
    async fn restore(
        &self,
        found: &Found,
        head: Option<&Head>,
        why: Mismatch,
        tenure: &Tenure,
    ) -> Result<(Option<crate::image::Image>, Restored), BuildError> {
        let empty = crate::image::Image::of(Lineage::from_random(manage::random()?), 0, Vec::new());
        let empty = empty.map_err(|error| BuildError::StateStore(error.to_string()))?;
        let image = found.image().unwrap_or(&empty);
        let mut known = Known { newest: head.map_or(0, |head| head.position.sequence), ..Known::default() };
        known.accounts = loop {
            match listed_accounts::read_all(self.ledger()).await {
                Ok(accounts) => break accounts,
                Err(error) => self.wait_out(&error, tenure).await?,
            }
        };
        let accounts: BTreeSet<_> = image.accounts().chain(&known.accounts).cloned().collect();
        for account in accounts {
            let list = loop {
                match live_keys::read(self.ledger(), &account).await {
                    Ok(list) => break list,
                    Err(error) => self.wait_out(&error, tenure).await?,
                }
            };
            known.lists.extend(list.map(|list| (account, list)));
        }
        let fresh = Lineage::from_random(manage::random()?);
        let restored = restore::restored(image, &known, (fresh, why, whole_seconds((self.clock)())));
        let (image, done) = restored.map_err(|error| BuildError::StateStore(error.to_string()))?;
        Ok((found.image().map(|_| image), done))
    }

    /// The head of this term: from here on the directory is the one that is believed.
    async fn first_head(
        &self,
        desk: &Desk,
        term: u64,
        revision: Option<Revision>,
        tenure: &Tenure,
    ) -> Result<(HeadWriter, HeadStored), BuildError> {
        loop {
            let lister = Lister::new(desk.store().clone(), Arc::clone(&self.clock), term, tenure.clone());
            let (ledger, changes) = (Arc::clone(self.ledger()), desk.vault().changes().clone());
            let shared = (tenure.clone(), self.health.clone());
            match HeadWriter::start(ledger, changes, lister, term, revision, shared).await {
                Ok(started) => return Ok(started),
                // Somebody else wrote it since it was read.
                Err(PutError::Conflict) => return Err(BuildError::StateStore("another keystore uses it".to_owned())),
                Err(PutError::Failed(error)) => self.wait_out(&error, tenure).await?,
            }
        }
    }

    /// The state store may come later than the keystore, or be away for a while; in one process it is there or broken.
    async fn wait_out(&self, error: &str, tenure: &Tenure) -> Result<(), BuildError> {
        match tenure.loss() {
            Some(Loss::WentBack) => return Err(BuildError::StateStoreWentBack),
            None if self.config.lease.is_some() => {}
            None | Some(Loss::Followed) => return Err(BuildError::StateStore(error.to_owned())),
        }
        self.health.waits(&format!("the state store does not answer: {error}"));
        sleep(RETRY_DELAY).await;
        Ok(())
    }

    fn finish(self, lease: Option<Lease>, ready: Ready) -> Result<Keystore, BuildError> {
        let Self { config, backplane, health, clock, plans } = self;
        let Ready { opened, tenure, head, stored, restored } = ready;
        let Opened { desk, hasher, sealer, signer, last_used, new_operator_key: _ } = opened;
        let (store, writable, judge) = (desk.store().clone(), desk.vault().writable(), desk.judge());
        let disk_low = desk.vault().disk_low();
        health.watch(Arc::clone(&writable), Arc::clone(&disk_low), desk.rolled_back());
        let (writer, thread) = writer::start(desk).map_err(BuildError::Thread)?;
        let pool = (config.workers(), config.hash_queue);
        let new_keys = NewKeys::new(Arc::clone(&hasher));
        let proven = ProvenKeys::new(&manage::random()?);
        let verifier = Arc::new(Verifier::new(store.clone(), hasher, Arc::clone(&clock), plans, pool, proven));
        let (callers, permits) = (Callers::new(Arc::clone(&verifier)), Arc::new(Permits::new(&manage::random()?)));
        let (announcer, retry) = announce::announcer(backplane.clone());
        let counter = Counter {
            store,
            judge,
            admission: Arc::new(Admission::default()),
            new_keys,
            verifier,
            callers,
            permits,
            sealing_key: backplane.requests.sealing_key(),
            writer,
            writable,
            disk_low,
            announcer,
            last_used: Arc::new(last_used),
            sealer,
            signer,
            clock,
            tenure: tenure.clone(),
            head: stored,
        };
        let counter = Arc::new(counter);
        Ok(Keystore { backplane, counter, retry, thread, health, tenure, lease, head, restored })
    }
}

/// Why a directory is not the newest; none: it is. `restored`: an operator says that it is a backup.
fn judge(found: &Found, head: Option<&Head>, restored: bool) -> std::io::Result<Option<Mismatch>> {
    let held = Held {
        position: found.image().map(|image| image.position),
        digest_at: &|sequence| found.digest_at(sequence),
        lacks_journal: found.lacks_journal(),
        remembers: found.says_head() || head::is_remembered(found.dir())?,
    };
    // Where a first start ended before anything was stored, there is nothing to restore.
    let restored = restored && found.image().is_some_and(|image| !image.is_empty());
    let judged = if restored { head::judge_restored(&held, head) } else { head::judge(&held, head) };
    Ok(judged.err())
}

/// A person should read it, and find it again.
fn say(restored: &Restored) {
    let Restored { why, kept, revoked, unknown, vanished, disabled, unlisted, new_operator_key } = restored;
    tracing::error!(
        why,
        kept,
        new_operator_key,
        unlisted = unlisted.len(),
        revoked = ?revoked,
        unknown = ?unknown,
        vanished = ?vanished,
        disabled = ?disabled,
        "data directory was restored from a backup"
    );
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| BuildError::Thread(std::io::Error::other(error)))?
}

fn open(
    config: &KeystoreConfig,
    mut vault: Vault,
    (clock, plans): (Clock, Plans),
    is_restored: bool,
) -> Result<Opened, BuildError> {
    let hasher = Arc::new(Hasher::new(config.hash_cost, manage::random()?)?);
    let now = whole_seconds(clock());
    // Before the operator's key: who must restore a file first shall not find a new key beside it.
    let sealer = seal::sealer(config, vault.store()).map_err(|error| BuildError::Secrets(Box::new(error)))?;
    let signer = signer::signer(config, &mut vault, now).map_err(|error| BuildError::Signing(Box::new(error)))?;
    let sealer = Arc::new(sealer);
    let mut desk =
        Desk::new(vault, Arc::clone(&sealer), clock, plans).map_err(|error| BuildError::Count(Box::new(error)))?;
    let bootstrap = |error| BuildError::Bootstrap(Box::new(error));
    let new_operator_key = if is_restored {
        bootstrap::operator_if_none_lives(&mut desk, &hasher, &config.data_dir).map_err(bootstrap)?
    } else {
        bootstrap::operator_if_empty(&mut desk, &hasher, &config.data_dir).map_err(bootstrap)?;
        false
    };
    if let Some(copy) = &config.operator_key_copy {
        bootstrap::copy_operator_key(&config.data_dir, copy).map_err(bootstrap)?;
    }
    let last_used = LastUsed::open(&config.data_dir, desk.store());
    Ok(Opened { desk, hasher, sealer, signer: Arc::new(signer), last_used, new_operator_key })
}
