//! The steps of a start, in their order.
//!
//! Lock the directory (with the lease, if there is one; until then follow the journal that the holder ships); inspect
//! it; compare it with the head in the state store; where it is older or empty, replace it by the shipped journal; open
//! it, replacing its content if a restore was accepted; load the keys that seal and sign; write the first head of this
//! term. Nothing is served before the last step.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use stage0_backplane::{Backplane, PutError, Revision, StateStore};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::{BuildError, Keystore};
use crate::admin::new_key::NewKeys;
use crate::admin::rules::whole_seconds;
use crate::admin::{AdminService, announce, bootstrap, writer};
use crate::config::KeystoreConfig;
use crate::hash::Hasher;
use crate::head::live_keys::{self, Lister};
use crate::head::{self, DirectoryState, Head, HeadStored, HeadWriter, Mismatch, listed_accounts};
use crate::health::Health;
use crate::last_used::LastUsed;
use crate::lease::tenure::{Loss, Tenure};
use crate::lease::{self, AcquireError, Lease};
use crate::plans::Plans;
use crate::records::RETRY_DELAY;
use crate::restore::{self, Known, Restored};
use crate::seal::{self, Sealer};
use crate::server::admission::Admission;
use crate::server::callers::{Callers, ProvenKeys};
use crate::server::handlers::{Handlers, MAX_ACCEPTANCES};
use crate::server::permits::Permits;
use crate::server::verify::Verifier;
use crate::shipping::follower::{FollowError, Follower};
use crate::shipping::shipper::Shipper;
use crate::signer::{self, Signer};
use crate::sources::{Clock, random};
use crate::store::lock::LockedDirectory;
use crate::store::snapshot::{Snapshot, StoreId};
use crate::store::{DurableStore, InspectedDirectory, OpenError};

pub(super) struct Start {
    pub(super) config: KeystoreConfig,
    pub(super) backplane: Backplane,
    pub(super) health: Health,
    pub(super) clock: Clock,
    pub(super) plans: Plans,
}

/// A directory that is locked, and what was followed until then.
pub(super) struct Locked {
    directory: LockedDirectory,
    /// `None` without a lease.
    follower: Option<Follower>,
}

/// A directory, and why it is not the newest, if it is not.
struct Compared {
    found: InspectedDirectory,
    why: Option<Mismatch>,
    /// Why the shipped journal did not help.
    not_taken: Option<FollowError>,
}

struct Opened {
    admin: AdminService,
    hasher: Arc<Hasher>,
    sealer: Arc<Sealer>,
    signer: Arc<Signer>,
    last_used: LastUsed,
    new_operator_key: bool,
}

impl Start {
    fn state_store(&self) -> &Arc<dyn StateStore> {
        &self.backplane.state_store
    }

    pub(super) async fn lock(&self) -> Result<(Option<Lease>, Locked), BuildError> {
        let dir = self.config.data_dir.clone();
        let Some(times) = self.config.lease else {
            let directory = blocking(move || Ok(LockedDirectory::take(&dir)?)).await?;
            return Ok((None, Locked { directory, follower: None }));
        };
        let mut follower = Follower::new(Arc::clone(self.state_store()), self.config.clone());
        let acquired = tokio::select! {
            biased;
            acquired = lease::acquire(self.state_store(), &dir, times, &self.health) => acquired,
            never = follower.run(&self.health) => match never {},
        };
        let (lease, directory) = acquired.map_err(|error| match error {
            AcquireError::Random(error) => BuildError::Random(error),
            AcquireError::Open(error) => BuildError::Open(error),
            AcquireError::WentBack => BuildError::StateStoreWentBack,
            AcquireError::Cancelled(error) => BuildError::Thread(std::io::Error::other(error)),
        })?;
        self.health.set_opening();
        Ok((Some(lease), Locked { directory, follower: Some(follower) }))
    }

    /// Returns a keystore without its lease, once the first head of its term is in the state store.
    pub(super) async fn open(self, lease: Option<&Lease>, locked: Locked) -> Result<Keystore, BuildError> {
        let tenure = lease.map_or_else(Tenure::unlimited, |lease| lease.tenure.clone());
        let Locked { directory, follower } = locked;
        let found = blocking(move || Ok(InspectedDirectory::inspect(directory)?)).await?;
        let known = self.retry(&tenure, || head::read(self.state_store())).await?;
        let head = known.map(|(head, _)| head);
        let Compared { found, why, not_taken } = self.take_over(found, head.as_ref(), follower, &tenure).await?;
        found.refuse_lost()?;
        let (restoring, mut restored) = match why {
            None => {
                if self.config.accept_restore {
                    tracing::warn!("--accept-restore is not needed: the data is the newest; start without it");
                }
                (None, None)
            }
            Some(why) if self.config.accept_restore => {
                let (snapshot, done) = self.restore(&found, head.as_ref(), why, &tenure).await?;
                (snapshot, Some(done))
            }
            Some(why) => {
                let not_taken = not_taken.map(|error| format!(" (not taken over: {error})")).unwrap_or_default();
                let (dir, why) = (found.directory.dir.clone(), format!("{why}{not_taken}"));
                return Err(OpenError::Outdated { dir, why }.into());
            }
        };
        let (config, clock, plans, own) = (self.config.clone(), Arc::clone(&self.clock), self.plans, tenure.clone());
        let is_restored = restored.is_some();
        let opened = blocking(move || {
            let now = whole_seconds(clock());
            let mut durable = found.open(StoreId::from_random(random()?), now, own)?;
            if let Some(snapshot) = restoring {
                durable.replace(&snapshot)?;
            }
            open(&config, durable, (clock, plans), is_restored)
        });
        let mut opened = opened.await?;
        let dir = self.config.data_dir.clone();
        if let Some(restored) = &mut restored {
            restored.new_operator_key = opened.new_operator_key;
            // Their lists in the state store must become empty, because their keys are gone.
            opened.admin.durable.changes.add(restored.vanished.iter().cloned().collect());
            log_restored(restored);
        }
        let term = lease.map_or_else(|| head.map_or(1, |head| head.term.saturating_add(1)), |lease| lease.term);
        let (head, stored) = self.first_head(&opened, term, known, &tenure).await?;
        let store_id = opened.admin.durable.changes.position().store_id.to_hex();
        self.backplane.requests.serve_in_term(term, &store_id);
        let now = (self.clock)();
        let opened = blocking(move || {
            opened.admin.durable.record_head_kept()?;
            head::expect(&dir, now).map_err(|error| OpenError::Directory(dir, error))?;
            Ok(opened)
        });
        self.keystore(opened.await?, tenure, (head, stored), restored)
    }

    /// Compares the directory with the head. One that is older or empty gets the journal that the last keystore
    /// shipped, unless the operator wants the older state.
    async fn take_over(
        &self,
        found: InspectedDirectory,
        head: Option<&Head>,
        follower: Option<Follower>,
        tenure: &Tenure,
    ) -> Result<Compared, BuildError> {
        let failed = |dir: &Path, error| BuildError::Open(OpenError::Directory(dir.to_owned(), error));
        let compared = compare_with_head(&found, head, self.config.accept_restore);
        let why = compared.map_err(|error| failed(&found.directory.dir, error))?;
        let (Some(Mismatch::Empty { .. } | Mismatch::Older { .. }), Some(head), Some(mut follower)) =
            (why, head, follower.filter(|_| !self.config.accept_restore))
        else {
            return Ok(Compared { found, why, not_taken: None });
        };
        let journal = loop {
            match follower.journal(head).await {
                Ok(journal) => break journal,
                Err(FollowError::Read(error)) => self.wait_out(&error, tenure).await?,
                Err(error) => return Ok(Compared { found, why, not_taken: Some(error) }),
            }
        };
        if let Some(own) = found.snapshot().map(|snapshot| snapshot.position)
            && journal.replay.trail.iter().any(|(at, digest)| *at == own.sequence && *digest != own.digest)
        {
            let why = Some(Mismatch::Different { at: own.sequence });
            return Ok(Compared { found, why, not_taken: None });
        }
        let now = whole_seconds((self.clock)());
        let found = blocking(move || Ok(found.replace(journal, now)?)).await?;
        let compared = compare_with_head(&found, Some(head), false);
        let why = compared.map_err(|error| failed(&found.directory.dir, error))?;
        Ok(Compared { found, why, not_taken: None })
    }

    /// The content that replaces the directory's, `None` if it is empty, and a report of the differences.
    async fn restore(
        &self,
        found: &InspectedDirectory,
        head: Option<&Head>,
        why: Mismatch,
        tenure: &Tenure,
    ) -> Result<(Option<Snapshot>, Restored), BuildError> {
        let empty = Snapshot::of(StoreId::from_random(random()?), 0, Vec::new());
        let empty = empty.map_err(|error| BuildError::StateStore(error.to_string()))?;
        let snapshot = found.snapshot().unwrap_or(&empty);
        let mut known = Known { newest: head.map_or(0, |head| head.position.sequence), ..Known::default() };
        known.accounts = self.retry(tenure, || listed_accounts::read_all(self.state_store())).await?;
        let accounts: BTreeSet<_> = snapshot.accounts().chain(&known.accounts).cloned().collect();
        for account in accounts {
            let list = self.retry(tenure, || live_keys::read(self.state_store(), &account)).await?;
            known.lists.extend(list.map(|(list, _)| (account, list)));
        }
        let new_id = StoreId::from_random(random()?);
        let restored = restore::restored(snapshot, &known, (new_id, why, whole_seconds((self.clock)())));
        let (snapshot, done) = restored.map_err(|error| BuildError::StateStore(error.to_string()))?;
        Ok((found.snapshot().map(|_| snapshot), done))
    }

    /// Writes the first head of this term. From then on this directory is the one that is believed.
    async fn first_head(
        &self,
        opened: &Opened,
        term: u64,
        known: Option<(Head, Revision)>,
        tenure: &Tenure,
    ) -> Result<(HeadWriter, HeadStored), BuildError> {
        let (admin, revision) = (&opened.admin, known.map(|(_, revision)| revision));
        loop {
            let shipper = match self.shipper(opened, known.as_ref().map(|(head, _)| head), tenure).await {
                Ok(shipper) => shipper,
                Err(error) => {
                    self.wait_out(&error, tenure).await?;
                    continue;
                }
            };
            let lister = Lister::new(admin.store().clone(), Arc::clone(&self.clock), term, tenure.clone());
            let (state_store, changes) = (Arc::clone(self.state_store()), admin.durable.changes.clone());
            let shared = (tenure.clone(), self.health.clone());
            match HeadWriter::start(state_store, changes, (lister, shipper), term, revision, shared).await {
                Ok(started) => return Ok(started),
                // Another keystore wrote it since it was read.
                Err(PutError::Conflict) => return Err(BuildError::StateStore("another keystore uses it".to_owned())),
                Err(PutError::Failed(error)) => self.wait_out(&error.to_string(), tenure).await?,
            }
        }
    }

    /// Where several keystores may run, the journal is shipped. In one process it would be on the same disk.
    async fn shipper(&self, opened: &Opened, head: Option<&Head>, tenure: &Tenure) -> Result<Option<Shipper>, String> {
        if self.config.lease.is_none() {
            return Ok(None);
        }
        let sealer = opened.sealer.journal_sealer().map_err(|error| error.to_string())?;
        let (store, changes) = (Arc::clone(self.state_store()), opened.admin.durable.changes.clone());
        Shipper::attach((store, sealer, tenure.clone()), &self.config.data_dir, changes, head).await.map(Some)
    }

    async fn retry<T, Reading>(&self, tenure: &Tenure, read: impl Fn() -> Reading) -> Result<T, BuildError>
    where
        Reading: Future<Output = Result<T, String>>,
    {
        loop {
            match read().await {
                Ok(found) => return Ok(found),
                Err(error) => self.wait_out(&error, tenure).await?,
            }
        }
    }

    /// A state store may start later or be out of reach for a while. Within one process waiting cannot help.
    async fn wait_out(&self, error: &str, tenure: &Tenure) -> Result<(), BuildError> {
        match tenure.loss() {
            Some(Loss::WentBack) => return Err(BuildError::StateStoreWentBack),
            None if self.config.lease.is_some() => {}
            None | Some(Loss::TakenOver) => return Err(BuildError::StateStore(error.to_owned())),
        }
        self.health.set_waiting(&format!("the state store does not answer: {error}"));
        sleep(RETRY_DELAY).await;
        Ok(())
    }

    fn keystore(
        self,
        opened: Opened,
        tenure: Tenure,
        (head, stored): (HeadWriter, HeadStored),
        restored: Option<Restored>,
    ) -> Result<Keystore, BuildError> {
        let Self { config, backplane, health, clock, plans } = self;
        let Opened { admin, hasher, sealer, signer, last_used, new_operator_key: _ } = opened;
        let (store, precheck) = (admin.store().clone(), admin.precheck());
        let (writable, disk_low) = (Arc::clone(&admin.durable.writable), Arc::clone(&admin.durable.reserve.low));
        health.watch(Arc::clone(&writable), Arc::clone(&disk_low), Arc::clone(&admin.rolled_back));
        let (writer, thread) = writer::start(admin).map_err(BuildError::Thread)?;
        let pool = (config.workers(), config.hash_queue);
        let new_keys = NewKeys::new(Arc::clone(&hasher));
        let proven = ProvenKeys::new(&random()?);
        let verifier = Arc::new(Verifier::new(store.clone(), hasher, Arc::clone(&clock), plans, pool, proven));
        let (callers, permits) = (Callers::new(Arc::clone(&verifier)), Arc::new(Permits::new(&random()?)));
        let (announcer, retry) = announce::announcer(backplane.clone());
        let handlers = Handlers {
            store,
            precheck,
            admission: Arc::new(Admission::default()),
            new_keys,
            acceptances: Semaphore::new(MAX_ACCEPTANCES),
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
        let handlers = Arc::new(handlers);
        Ok(Keystore { backplane, handlers, retry, thread, health, tenure, lease: None, head, restored })
    }
}

/// Why a directory is not the newest, if it is not. `restored` means that the operator says it is a backup.
fn compare_with_head(
    found: &InspectedDirectory,
    head: Option<&Head>,
    restored: bool,
) -> std::io::Result<Option<Mismatch>> {
    // A first start that ended before anything was stored leaves nothing to restore.
    let is_restored = restored && found.snapshot().is_some_and(|snapshot| !snapshot.is_empty());
    let state = DirectoryState {
        position: found.snapshot().map(|snapshot| snapshot.position),
        digest_at: &|sequence| found.digest_at(sequence),
        lacks_journal: found.lacks_journal(),
        expects_head: found.records_head() || head::is_expected(&found.directory.dir)?,
        is_restored,
    };
    Ok(head::compare(&state, head).err())
}

fn log_restored(restored: &Restored) {
    let Restored { why, kept, revoked, unknown, vanished, disabled, invitations, unlisted, .. } = restored;
    let Restored { proposals, new_operator_key, .. } = restored;
    tracing::error!(
        why,
        kept,
        new_operator_key,
        invitations,
        proposals,
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
    mut durable: DurableStore,
    (clock, plans): (Clock, Plans),
    is_restored: bool,
) -> Result<Opened, BuildError> {
    let hasher = Arc::new(Hasher::new(config.hash_cost, random()?)?);
    let now = whole_seconds(clock());
    // Before the operator's key: if a file has to be restored first, no new key must appear beside it.
    let sealer = seal::sealer(config, &durable.store)
        .map_err(|error| BuildError::Prepare("open its webhook secrets", Box::new(error)))?;
    let signer =
        signer::signer(config, &mut durable, now).map_err(|error| BuildError::Prepare("sign", Box::new(error)))?;
    let sealer = Arc::new(sealer);
    let mut admin = AdminService::new(durable, Arc::clone(&sealer), clock, plans)
        .map_err(|error| BuildError::Prepare("count its keys", Box::new(error)))?;
    let bootstrap = |error| BuildError::Prepare("make the operator's first key", Box::new(error));
    let dir = &config.data_dir;
    let new_operator_key = bootstrap::operator_if_needed(&mut admin, &hasher, dir, is_restored).map_err(bootstrap)?;
    if let Some(copy) = &config.operator_key_copy {
        bootstrap::copy_operator_key(dir, copy).map_err(bootstrap)?;
    }
    let last_used = LastUsed::open(dir, admin.store());
    Ok(Opened { admin, hasher, sealer, signer: Arc::new(signer), last_used, new_operator_key })
}
