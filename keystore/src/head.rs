//! How new the data directory must be: its newest position, kept outside of it in the state store.
//!
//! The record `keystore.head` names the directory, its newest acknowledged change and the keystore's term. A change is
//! acknowledged once the head includes it. If the state store fails it is acknowledged after half a second without: a
//! revocation must not wait for that. With a lease it also names the shipped journal, which has a change before the
//! head does ([`shipping`](crate::shipping)). A directory records that it has a head, in a file of its own and in
//! journal and store ([`trail`](crate::store::trail)), so that a head that disappears is noticed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stage0_backplane::{PutError, Revision, StateStore};
use stage0_contract::KEYSTORE_RECORDS;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::errors::chain;
use crate::health::Health;
use crate::lease::tenure::{Loss, Tenure};
use crate::records::{self, MAX_REPLICA_LAG, RETRY_DELAY, went_back};
use crate::shipping::Shipped;
use crate::shipping::shipper::Shipper;
use crate::store::changes::Changes;
use crate::store::disk;
use crate::store::snapshot::{Digest, Position};

pub(crate) mod listed_accounts;
pub(crate) mod live_keys;

use live_keys::Lister;

/// After this time a change is acknowledged without the state store, if the last write there has failed.
const HEAD_TIMEOUT: Duration = Duration::from_millis(500);
/// After this time a change is acknowledged whatever the state store does.
const MAX_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Without changes the head is checked at this interval: the state store may go back between two lease renewals.
const HEAD_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// In the data directory; it says that the state store has a head.
const EXPECTED_FILE: &str = "state-store.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    #[serde(flatten)]
    pub(crate) position: Position,
    pub(crate) term: u64,
    /// `None` where it is not shipped: in one process, by an earlier version, or because it could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) journal: Option<Shipped>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error(
        "its files end at change {found}, and the state store knows of {known}: they are older than what was \
         acknowledged"
    )]
    Older { found: u64, known: u64 },
    #[error("at change {at} its files have other content than the state store knows of")]
    Different { at: u64 },
    #[error("its files are not those of the keystore that served last, which ended at change {known}")]
    Foreign { known: u64 },
    #[error("it holds nothing, and the state store knows of {known} changes")]
    Empty { known: u64 },
    #[error(
        "its files end at change {found} and say nothing of change {known}, the newest that the state store knows of: \
         they may be those of another copy that went on by itself"
    )]
    Unproven { found: u64, known: u64 },
    #[error("the journal is missing, and nothing outside of the directory tells how new the store is")]
    JournalMissing,
    #[error("the state store has lost its record of how new these files must be")]
    HeadLost,
    #[error("the state store has no record of how new these files must be")]
    NoHead,
}

pub(crate) struct DirectoryState<'a> {
    pub(crate) position: Option<Position>,
    /// The digest of the content after an earlier change, as far as it is known.
    pub(crate) digest_at: &'a dyn Fn(u64) -> Option<Digest>,
    pub(crate) lacks_journal: bool,
    /// Whether its files say that a head was written for it.
    pub(crate) expects_head: bool,
    /// The operator says that it was restored from a backup.
    pub(crate) is_restored: bool,
}

/// Checks that a directory is as new as the head or newer: its last change may not have reached the state store.
pub(crate) fn compare(state: &DirectoryState<'_>, head: Option<&Head>) -> Result<(), Mismatch> {
    match (state.position, head.map(|head| head.position)) {
        (_, None) if state.expects_head => Err(Mismatch::HeadLost),
        (None, None) => Ok(()),
        (None, Some(known)) => Err(Mismatch::Empty { known: known.sequence }),
        (Some(_), None) if state.lacks_journal => Err(Mismatch::JournalMissing),
        (Some(_), None) if state.is_restored => Err(Mismatch::NoHead),
        // The first start of a version with heads. Directories written since then say that they have one.
        (Some(_), None) => Ok(()),
        (Some(found), Some(known)) if found.store_id != known.store_id => {
            Err(Mismatch::Foreign { known: known.sequence })
        }
        (Some(found), Some(known)) if found.sequence < known.sequence => {
            Err(Mismatch::Older { found: found.sequence, known: known.sequence })
        }
        (Some(found), Some(known)) => {
            let then =
                if found.sequence == known.sequence { Some(found.digest) } else { (state.digest_at)(known.sequence) };
            match then {
                Some(digest) if digest == known.digest => Ok(()),
                Some(_) => Err(Mismatch::Different { at: known.sequence }),
                None => Err(Mismatch::Unproven { found: found.sequence, known: known.sequence }),
            }
        }
    }
}

pub(crate) fn is_expected(dir: &Path) -> std::io::Result<bool> {
    dir.join(EXPECTED_FILE).try_exists()
}

pub(crate) fn expect(dir: &Path, now: jiff::Timestamp) -> std::io::Result<()> {
    if is_expected(dir)? {
        return Ok(());
    }
    disk::replace(dir, EXPECTED_FILE, format!("{{\"head_kept_since\":\"{now}\"}}\n").as_bytes())
}

#[derive(Debug, Clone)]
pub(crate) struct HeadStored {
    changes: Changes,
    stored: watch::Receiver<Stored>,
}

/// What became of the last write of the head.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    sequence: u64,
    fails: bool,
}

impl HeadStored {
    /// Resolves when the newest change is in the state store, or when that fails and [`HEAD_TIMEOUT`] has passed.
    pub(crate) async fn wait(&self) {
        let newest = self.changes.position().sequence;
        let (mut stored, mut fails) = (self.stored.clone(), self.stored.clone());
        let failed = async {
            sleep(HEAD_TIMEOUT).await;
            // A state store that is slow is waited for: a change that it does not have would be lost with this machine.
            drop(fails.wait_for(|stored| stored.fails).await);
        };
        let waited = async {
            tokio::select! {
                biased;
                _ = stored.wait_for(|stored| stored.sequence >= newest) => {}
                () = failed => {}
            }
        };
        // Stored in time or not, the change stands, and the head writer goes on trying.
        drop(timeout(MAX_HEAD_TIMEOUT, waited).await);
    }
}

/// The task that writes the head, and before it what is shipped and the lists of active keys.
pub(crate) struct HeadWriter {
    state_store: Arc<dyn StateStore>,
    changes: Changes,
    lister: Lister,
    /// `None` where nothing is shipped.
    shipper: Option<Shipper>,
    head: Head,
    is_stored: bool,
    revision: Option<Revision>,
    tenure: Tenure,
    health: Health,
    stored: watch::Sender<Stored>,
}

impl HeadWriter {
    pub(crate) async fn start(
        state_store: Arc<dyn StateStore>,
        changes: Changes,
        (lister, shipper): (Lister, Option<Shipper>),
        term: u64,
        revision: Option<Revision>,
        (tenure, health): (Tenure, Health),
    ) -> Result<(Self, HeadStored), PutError> {
        let head = Head { position: changes.position(), term, journal: None };
        let (stored, is_stored) = watch::channel(Stored::default());
        let (own, is_written) = (changes.clone(), false);
        let shared = (tenure, health);
        let mut writer = Self {
            state_store,
            changes: own,
            lister,
            shipper,
            head,
            is_stored: is_written,
            revision,
            tenure: shared.0,
            health: shared.1,
            stored,
        };
        let position = match &mut writer.shipper {
            Some(shipper) => shipper.begin().await.map_err(|why| PutError::Failed(why.into()))?,
            None => head.position,
        };
        writer.put(Head { position, journal: writer.shipped(), ..head }).await?;
        writer.remark(None);
        Ok((writer, HeadStored { changes, stored: is_stored }))
    }

    /// Runs until stopped. Then a change that is not stored yet gets one more attempt.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut moved = self.changes.position.subscribe();
        moved.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = moved.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    while let Err(error) = self.store_newest().await {
                        self.stored.send_modify(|stored| stored.fails = true);
                        self.remark(Some(format!("the state store does not have the newest change: {error}")));
                        if stop.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
                            return;
                        }
                    }
                    self.remark(None);
                    // A flood of changes must not keep a new copy from being shipped.
                    if self.ships_copy() {
                        if stop.run_until_cancelled(self.ship_copy()).await.is_none() {
                            break;
                        }
                        self.name_copy().await;
                    }
                }
                () = self.do_next(), if !self.lister.is_done || self.ships_copy() => self.name_copy().await,
                () = sleep(HEAD_CHECK_INTERVAL) => self.check().await,
            }
        }
        if let Err(error) = self.store_newest().await {
            tracing::warn!(error, "the newest change is not in the state store; the next start writes it");
        }
    }

    fn shipped(&self) -> Option<Shipped> {
        self.shipper.as_ref().and_then(Shipper::shipped)
    }

    fn names_copy(&self) -> bool {
        self.shipped().map(|shipped| shipped.copy) == self.head.journal.map(|named| named.copy)
    }

    fn ships_copy(&self) -> bool {
        !self.names_copy() || self.shipper.as_ref().is_some_and(Shipper::has_work)
    }

    /// Does a part of the work that no change waits for. May be dropped at any moment.
    async fn do_next(&mut self) {
        if self.lister.is_done {
            return self.ship_copy().await;
        }
        if let Err(error) = self.lister.list_next(&self.state_store).await {
            self.remark(Some(format!("live keys are not listed in the state store yet: {error}")));
            sleep(RETRY_DELAY).await;
        } else if self.lister.is_done {
            self.remark(None);
        }
    }

    /// INVARIANT: the copy that the head names is not touched before the head names another one.
    async fn ship_copy(&mut self) {
        if !self.names_copy() {
            return;
        }
        let Some(shipper) = &mut self.shipper else { return };
        let Err(error) = shipper.step().await else { return };
        let is_reported = shipper.fault().is_some();
        self.remark((!is_reported).then(|| format!("the journal is not shipped as a whole yet: {error}")));
        sleep(RETRY_DELAY).await;
    }

    /// Lets the head name a copy that was begun and is whole now. Not to be dropped: it writes lists too.
    async fn name_copy(&mut self) {
        if self.names_copy() {
            return;
        }
        let Err(error) = self.store_newest().await else { return self.remark(None) };
        self.remark(Some(format!("the state store does not have the newest copy: {error}")));
        sleep(RETRY_DELAY).await;
    }

    /// Reports what went wrong, or else what goes wrong all the time.
    fn remark(&self, error: Option<String>) {
        let not_shipped = || {
            let why = self.shipper.as_ref().and_then(Shipper::fault)?;
            Some(format!("the journal is not shipped, so a lost machine takes its newest changes with it: {why}"))
        };
        self.health.set_remark(error.or_else(not_shipped));
    }

    async fn store_newest(&mut self) -> Result<(), String> {
        // Shipped first: from the moment that the head has a change, it survives this machine.
        let position = match &mut self.shipper {
            Some(shipper) => shipper.ship().await?,
            None => self.changes.position(),
        };
        let (accounts, journal) = (self.changes.take(), self.shipped());
        if position == self.head.position && journal == self.head.journal && accounts.is_empty() {
            return Ok(());
        }
        for account in &accounts {
            if let Err(error) = self.lister.list(&self.state_store, account).await {
                self.changes.add(accounts);
                return Err(error);
            }
        }
        self.put(Head { position, journal, ..self.head }).await.map_err(|error| chain(&error))
    }

    /// Writes the head. `self.head` changes only when the write is acknowledged, so a failed write is tried again.
    async fn put(&mut self, head: Head) -> Result<(), PutError> {
        if !self.tenure.is_valid() {
            return Err(PutError::Failed("the lease is over".into()));
        }
        loop {
            match records::put(&self.state_store, &key(), &head, self.revision).await {
                Ok(revision) => {
                    self.revision = Some(revision);
                    (self.head, self.is_stored) = (head, true);
                    self.changes.acknowledged(head.position);
                    self.stored.send_replace(Stored { sequence: head.position.sequence, fails: false });
                    return Ok(());
                }
                Err(PutError::Conflict) => {
                    let found = self.find().await.map_err(|why| PutError::Failed(why.into()))?;
                    if let Some((found, _)) = &found
                        && *found != head
                        && !self.may_have_written(found)
                    {
                        self.give_up_lease(found);
                        return Err(PutError::Conflict);
                    }
                    // The state store lost its records, or this is our own head whose acknowledgement was lost.
                    if found.is_none() {
                        self.lister.start_over();
                    }
                    self.revision = found.map(|(_, revision)| revision);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Checks that the state store still has the head, and writes it again if it is gone.
    async fn check(&mut self) {
        let since = Instant::now();
        loop {
            match self.find().await {
                Ok(None) => {
                    self.lister.start_over();
                    self.revision = None;
                    if let Err(error) = self.put(self.head).await {
                        tracing::warn!(error = %chain(&error), "the head is gone and cannot be written again yet");
                    }
                    return;
                }
                Ok(Some((found, _))) if !self.may_have_written(&found) => {
                    if since.elapsed() >= MAX_REPLICA_LAG {
                        return self.give_up_lease(&found);
                    }
                }
                // A state store that cannot be reached is reported by the renewal of the lease.
                Ok(Some(_)) | Err(_) => return,
            }
            sleep(RETRY_DELAY).await;
        }
    }

    async fn find(&self) -> Result<Option<(Head, Revision)>, String> {
        let found = read(&self.state_store).await;
        if found.is_err() && went_back(&self.state_store, &key()).await {
            tracing::error!("the state store went back to an earlier state: its head is older than this keystore's");
            self.tenure.lose(Loss::WentBack);
        }
        found
    }

    /// Whether this keystore wrote it: the head that was acknowledged last, or one that was tried since.
    fn may_have_written(&self, found: &Head) -> bool {
        let Head { position, term, .. } = *found;
        let own = self.is_stored && term == self.head.term && position.store_id == self.head.position.store_id;
        own && self.changes.trail().digest_at(position.sequence) == Some(position.digest)
    }

    /// Gives the lease up for a head of another keystore. The first head of a term may still find an earlier one.
    fn give_up_lease(&self, found: &Head) {
        let (term, own_term) = (found.term, self.head.term);
        if term > own_term {
            tracing::error!(term, own_term, "another keystore has written the head: it took over");
            self.tenure.lose(Loss::TakenOver);
        } else if self.is_stored || term == own_term {
            tracing::error!(
                term,
                own_term,
                "the head is not the one that this keystore wrote last: the state store or this machine was put back \
                 to an earlier state, or this process was copied"
            );
            self.tenure.lose(Loss::WentBack);
        }
    }
}

pub(crate) fn key() -> String {
    format!("{KEYSTORE_RECORDS}.head")
}

pub(crate) async fn read(state_store: &Arc<dyn StateStore>) -> Result<Option<(Head, Revision)>, String> {
    records::get(state_store, &key()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Record;
    use crate::store::record::tests::{account, key as key_record};
    use crate::store::snapshot::{Snapshot, StoreId};

    fn position(store_id: u8, changes: u64) -> Position {
        let mut snapshot =
            Snapshot::of(StoreId::from_random([store_id; 16]), 0, vec![Record::Account(account("a"))]).unwrap();
        for change in 0..changes {
            snapshot.apply(vec![Record::Key(key_record(&format!("k{change}"), "a", &[]))]).unwrap();
        }
        snapshot.position
    }

    fn state(position: Option<Position>) -> DirectoryState<'static> {
        DirectoryState { position, digest_at: &|_| None, lacks_journal: false, expects_head: true, is_restored: false }
    }

    #[test]
    fn a_directory_that_is_as_new_as_the_head_or_newer_is_accepted() {
        let head = Head { position: position(1, 5), term: 1, journal: None };
        assert_eq!(compare(&state(Some(position(1, 5))), Some(&head)), Ok(()));
        let known = |at| (at == 5).then(|| position(1, 5).digest);
        for changes in [6, 7] {
            let newer = DirectoryState { digest_at: &known, ..state(Some(position(1, changes))) };
            assert_eq!(compare(&newer, Some(&head)), Ok(()), "the last changes did not reach the head");
        }
        let missing = DirectoryState { lacks_journal: true, ..state(Some(position(1, 5))) };
        assert_eq!(compare(&missing, Some(&head)), Ok(()), "the head proves how new the store is");
    }

    #[test]
    fn an_older_different_foreign_or_empty_directory_is_refused() {
        let head = Head { position: position(1, 5), term: 1, journal: None };
        let refused = |position| compare(&state(position), Some(&head)).unwrap_err();
        assert_eq!(refused(Some(position(1, 4))), Mismatch::Older { found: 4, known: 5 });
        assert_eq!(refused(Some(position(2, 9))), Mismatch::Foreign { known: 5 });
        assert_eq!(refused(None), Mismatch::Empty { known: 5 });
        let other = Position { digest: Digest::default(), ..position(1, 5) };
        assert_eq!(refused(Some(other)), Mismatch::Different { at: 5 });
        let forked = |at| (at == 5).then(Digest::default);
        let newer = DirectoryState { digest_at: &forked, ..state(Some(position(1, 7))) };
        assert_eq!(compare(&newer, Some(&head)), Err(Mismatch::Different { at: 5 }));
        assert_eq!(refused(Some(position(1, 7))), Mismatch::Unproven { found: 7, known: 5 }, "perhaps another fork");
    }

    #[test]
    fn without_a_head_only_a_directory_that_never_had_one_starts() {
        let upgraded =
            |lacks_journal| DirectoryState { lacks_journal, expects_head: false, ..state(Some(position(1, 5))) };
        assert_eq!(compare(&upgraded(false), None), Ok(()));
        assert_eq!(compare(&upgraded(true), None), Err(Mismatch::JournalMissing));
        assert_eq!(compare(&state(Some(position(1, 5))), None), Err(Mismatch::HeadLost));
        assert_eq!(compare(&state(None), None), Err(Mismatch::HeadLost), "it was emptied, and so was the state store");
        let first = DirectoryState { expects_head: false, ..state(None) };
        assert_eq!(compare(&first, None), Ok(()), "a first start");
    }

    #[test]
    fn an_accepted_restore_is_believed_where_there_is_no_head() {
        let restored = |position| DirectoryState { is_restored: true, ..state(position) };
        let upgraded = DirectoryState { expects_head: false, ..restored(Some(position(1, 5))) };
        assert_eq!(compare(&upgraded, None), Err(Mismatch::NoHead));
        assert_eq!(compare(&restored(Some(position(1, 5))), None), Err(Mismatch::HeadLost));
        let first = DirectoryState { expects_head: false, ..restored(None) };
        assert_eq!(compare(&first, None), Ok(()), "a first start");
        let head = Head { position: position(1, 5), term: 1, journal: None };
        assert_eq!(compare(&restored(Some(position(1, 5))), Some(&head)), Ok(()), "it is the newest");
    }
}
