//! How new the directory must be: its newest position, kept outside of it in the state store.
//!
//! Owns the record `keystore.head` (lineage, number and digest of the newest acknowledged change, and the keystore's
//! term) and the pure judgement of a directory by it. A change is acknowledged once the head holds it, or after half a
//! second where the state store is away: a revocation must not wait for that. What is kept there beside the head is
//! [`live_keys`](crate::live_keys)'. A directory remembers that it has a head, in a file of its own and in journal and
//! store ([`trail`](crate::trail)), so that one that is gone is noticed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stage0_backplane::{Ledger, PutError, Record, Revision};
use stage0_contract::KEYSTORE_RECORDS;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::changes::Changes;
use crate::disk;
use crate::health::Health;
use crate::image::{Digest, Position};
use crate::lease::{Loss, MAX_REPLICA_LAG, RETRY_DELAY, STORE_TIMEOUT, Tenure, went_back};
use crate::live_keys::Lister;

/// A change is acknowledged after that, though the state store does not have it.
const HEAD_TIMEOUT: Duration = Duration::from_millis(500);
/// Without changes, so often it is looked at: the state store may go back between two renewals of the lease.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// In the data directory: there is a head in the state store.
const REMEMBERED_FILE: &str = "state-store.json";

/// What the record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    #[serde(flatten)]
    pub(crate) position: Position,
    /// Of the keystore that wrote it.
    pub(crate) term: u64,
}

/// Why a directory is not what was acknowledged last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error(
        "its files end at change {found}, and the state store knows of {known}: they are older than what was acknowledged"
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

/// What is in a directory, as far as it is judged.
pub(crate) struct Held<'a> {
    /// None: nothing.
    pub(crate) position: Option<Position>,
    /// What the content was after an earlier change, as far as that is known.
    pub(crate) digest_at: &'a dyn Fn(u64) -> Option<Digest>,
    pub(crate) lacks_journal: bool,
    /// A head was written for it before: its files say so.
    pub(crate) remembers: bool,
}

/// Whether a directory is as new as the head, or newer: the last change may not have reached the state store.
pub(crate) fn judge(held: &Held<'_>, head: Option<&Head>) -> Result<(), Mismatch> {
    match (held.position, head.map(|head| head.position)) {
        (_, None) if held.remembers => Err(Mismatch::HeadLost),
        (None, None) => Ok(()),
        (None, Some(known)) => Err(Mismatch::Empty { known: known.sequence }),
        (Some(_), None) if held.lacks_journal => Err(Mismatch::JournalMissing),
        // Of a deployment that had none before: what was written since says that there was one.
        (Some(_), None) => Ok(()),
        (Some(found), Some(known)) if found.lineage != known.lineage => {
            Err(Mismatch::Foreign { known: known.sequence })
        }
        (Some(found), Some(known)) if found.sequence < known.sequence => {
            Err(Mismatch::Older { found: found.sequence, known: known.sequence })
        }
        (Some(found), Some(known)) => {
            let then =
                if found.sequence == known.sequence { Some(found.digest) } else { (held.digest_at)(known.sequence) };
            match then {
                Some(digest) if digest == known.digest => Ok(()),
                Some(_) => Err(Mismatch::Different { at: known.sequence }),
                None => Err(Mismatch::Unproven { found: found.sequence, known: known.sequence }),
            }
        }
    }
}

/// As [`judge`], by an operator who says that the directory was restored: without a head nothing speaks against that.
pub(crate) fn judge_restored(held: &Held<'_>, head: Option<&Head>) -> Result<(), Mismatch> {
    match judge(held, head) {
        Ok(()) if held.position.is_some() && head.is_none() => Err(Mismatch::NoHead),
        judged => judged,
    }
}

/// Whether this directory's newest position was ever kept outside.
pub(crate) fn is_remembered(dir: &Path) -> std::io::Result<bool> {
    dir.join(REMEMBERED_FILE).try_exists()
}

/// The next start expects a head.
pub(crate) fn remember(dir: &Path, now: jiff::Timestamp) -> std::io::Result<()> {
    if is_remembered(dir)? {
        return Ok(());
    }
    disk::replace(dir, REMEMBERED_FILE, format!("{{\"head_kept_since\":\"{now}\"}}\n").as_bytes())
}

/// Waits for the state store to have what was changed.
#[derive(Debug, Clone)]
pub(crate) struct HeadStored {
    changes: Changes,
    stored: watch::Receiver<u64>,
}

impl HeadStored {
    /// Resolves when the newest change is in the state store, or after [`HEAD_TIMEOUT`].
    pub(crate) async fn settled(&self) {
        let newest = self.changes.position().sequence;
        let mut stored = self.stored.clone();
        // Late or not: the change stands, and the task that writes the head goes on trying.
        drop(timeout(HEAD_TIMEOUT, stored.wait_for(|stored| *stored >= newest)).await);
    }
}

/// Writes the head, and the lists of live keys before it.
pub(crate) struct HeadWriter {
    ledger: Arc<dyn Ledger>,
    changes: Changes,
    lister: Lister,
    head: Head,
    /// The head is in the state store, and not only wanted there.
    is_stored: bool,
    revision: Option<Revision>,
    tenure: Tenure,
    health: Health,
    stored: watch::Sender<u64>,
}

impl HeadWriter {
    /// Writes the first head of this term.
    pub(crate) async fn start(
        ledger: Arc<dyn Ledger>,
        changes: Changes,
        lister: Lister,
        term: u64,
        revision: Option<Revision>,
        (tenure, health): (Tenure, Health),
    ) -> Result<(Self, HeadStored), PutError> {
        let head = Head { position: changes.position(), term };
        let (stored, is_stored) = watch::channel(0);
        let own = changes.clone();
        let mut writer =
            Self { ledger, changes: own, lister, head, is_stored: false, revision, tenure, health, stored };
        writer.put(head).await?;
        Ok((writer, HeadStored { changes, stored: is_stored }))
    }

    /// Until stopped; then what is not stored yet gets one more attempt.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut moved = self.changes.watch();
        moved.mark_changed();
        loop {
            let listing = !self.lister.is_done();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = moved.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    while let Err(error) = self.store_newest().await {
                        let why = format!("the state store does not have the newest change: {error}");
                        self.health.remarks(Some(why));
                        if stop.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
                            return;
                        }
                    }
                    self.health.remarks(None);
                }
                listed = self.lister.list_next(&self.ledger), if listing => {
                    if let Err(error) = listed {
                        self.health.remarks(Some(format!("live keys are not listed in the state store yet: {error}")));
                        if stop.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
                            break;
                        }
                    } else if self.lister.is_done() {
                        self.health.remarks(None);
                    }
                }
                () = sleep(LOOK_INTERVAL) => self.look().await,
            }
        }
        if let Err(error) = self.store_newest().await {
            tracing::warn!(error, "the newest change is not in the state store; the next start writes it");
        }
    }

    async fn store_newest(&mut self) -> Result<(), String> {
        let position = self.changes.position();
        let accounts = self.changes.take();
        if position == self.head.position && accounts.is_empty() {
            return Ok(());
        }
        for account in &accounts {
            if let Err(error) = self.lister.list(&self.ledger, account).await {
                self.changes.add(accounts);
                return Err(error);
            }
        }
        self.put(Head { position, ..self.head }).await.map_err(|error| error.to_string())
    }

    /// What was put last changes only when this one is acknowledged: whatever else happens, it is put again.
    async fn put(&mut self, head: Head) -> Result<(), PutError> {
        if !self.tenure.holds() {
            return Err(PutError::Failed("the lease is over".to_owned()));
        }
        let value = serde_json::to_vec(&head).map_err(|error| PutError::Failed(error.to_string()))?;
        loop {
            let deadline = Instant::now() + STORE_TIMEOUT;
            match self.ledger.put(&key(), value.clone().into(), self.revision, None, deadline).await {
                Ok(revision) => {
                    self.revision = Some(revision);
                    (self.head, self.is_stored) = (head, true);
                    self.changes.acknowledged(head.position);
                    self.stored.send_replace(head.position.sequence);
                    return Ok(());
                }
                Err(PutError::Conflict) => {
                    let found = self.find().await.map_err(PutError::Failed)?;
                    if let Some((found, _)) = &found
                        && *found != head
                        && !self.may_have_written(found)
                    {
                        self.is_not_ours(found);
                        return Err(PutError::Conflict);
                    }
                    // Ours, of which only the acknowledgement was lost; or the state store lost all it had.
                    if found.is_none() {
                        self.lister.start_over();
                    }
                    self.revision = found.map(|(_, revision)| revision);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the state store still has what was put last.
    async fn look(&mut self) {
        let since = Instant::now();
        loop {
            match self.find().await {
                Ok(None) => {
                    self.lister.start_over();
                    self.revision = None;
                    if let Err(error) = self.put(self.head).await {
                        tracing::warn!(%error, "the head is gone and cannot be written again yet");
                    }
                    return;
                }
                Ok(Some((found, _))) if !self.may_have_written(&found) => {
                    if since.elapsed() >= MAX_REPLICA_LAG {
                        return self.is_not_ours(&found);
                    }
                }
                // A state store that is away says so to the renewal of the lease.
                Ok(Some(_)) | Err(_) => return,
            }
            sleep(RETRY_DELAY).await;
        }
    }

    async fn find(&self) -> Result<Option<(Head, Revision)>, String> {
        let found = read(&self.ledger).await;
        if found.is_err() && went_back(&self.ledger, &key()).await {
            tracing::error!("the state store went back to an earlier state: its head is older than this keystore's");
            self.tenure.lose(Loss::WentBack);
        }
        found
    }

    /// Whether it is what was acknowledged last, or was tried since.
    fn may_have_written(&self, found: &Head) -> bool {
        let Head { position, term } = *found;
        let own = self.is_stored && term == self.head.term && position.lineage == self.head.position.lineage;
        own && self.changes.trail().digest_at(position.sequence) == Some(position.digest)
    }

    /// At the first head of a term somebody else may have come between.
    fn is_not_ours(&self, found: &Head) {
        let (term, own_term) = (found.term, self.head.term);
        if term > own_term {
            tracing::error!(term, own_term, "another keystore has written the head: it took over");
            self.tenure.lose(Loss::Followed);
        } else if self.is_stored || term == own_term {
            tracing::error!(
                term,
                own_term,
                "the head is not the one that this keystore wrote last: the state store or this machine was put back to \
                 an earlier state, or this process was copied"
            );
            self.tenure.lose(Loss::WentBack);
        }
    }
}

pub(crate) fn key() -> String {
    format!("{KEYSTORE_RECORDS}.head")
}

/// The head, and the revision that the next one replaces.
pub(crate) async fn read(ledger: &Arc<dyn Ledger>) -> Result<Option<(Head, Revision)>, String> {
    let found = ledger.get(&key(), Instant::now() + STORE_TIMEOUT).await.map_err(|error| error.to_string())?;
    let Some(Record { revision, value }) = found else { return Ok(None) };
    // What nobody can read is no first start.
    let head = serde_json::from_slice(&value).map_err(|_| "the keystore's head cannot be read".to_owned())?;
    Ok(Some((head, revision)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Image, Lineage};
    use crate::record::Record as Kept;
    use crate::record::tests::{account, key as key_record};

    fn position(lineage: u8, changes: u64) -> Position {
        let mut image = Image::of(Lineage::from_random([lineage; 16]), 0, vec![Kept::Account(account("a"))]).unwrap();
        for change in 0..changes {
            image.apply(vec![Kept::Key(key_record(&format!("k{change}"), "a", &[]))]).unwrap();
        }
        image.position
    }

    fn held(position: Option<Position>) -> Held<'static> {
        Held { position, digest_at: &|_| None, lacks_journal: false, remembers: true }
    }

    #[test]
    fn a_directory_that_is_as_new_as_the_head_or_newer_is_taken() {
        let head = Head { position: position(1, 5), term: 1 };
        assert_eq!(judge(&held(Some(position(1, 5))), Some(&head)), Ok(()));
        let known = |at| (at == 5).then(|| position(1, 5).digest);
        for changes in [6, 7] {
            let newer = Held { digest_at: &known, ..held(Some(position(1, changes))) };
            assert_eq!(judge(&newer, Some(&head)), Ok(()), "the last changes did not reach the head");
        }
        let missing = Held { lacks_journal: true, ..held(Some(position(1, 5))) };
        assert_eq!(judge(&missing, Some(&head)), Ok(()), "the head proves how new the store is");
    }

    #[test]
    fn what_is_older_different_foreign_or_gone_is_refused() {
        let head = Head { position: position(1, 5), term: 1 };
        let refused = |position| judge(&held(position), Some(&head)).unwrap_err();
        assert_eq!(refused(Some(position(1, 4))), Mismatch::Older { found: 4, known: 5 });
        assert_eq!(refused(Some(position(2, 9))), Mismatch::Foreign { known: 5 });
        assert_eq!(refused(None), Mismatch::Empty { known: 5 });
        let other = Position { digest: Digest::default(), ..position(1, 5) };
        assert_eq!(refused(Some(other)), Mismatch::Different { at: 5 });
        let forked = |at| (at == 5).then(Digest::default);
        let newer = Held { digest_at: &forked, ..held(Some(position(1, 7))) };
        assert_eq!(judge(&newer, Some(&head)), Err(Mismatch::Different { at: 5 }));
        assert_eq!(refused(Some(position(1, 7))), Mismatch::Unproven { found: 7, known: 5 }, "perhaps another fork");
    }

    #[test]
    fn without_a_head_only_a_directory_that_never_had_one_starts() {
        let upgraded = |lacks_journal| Held { lacks_journal, remembers: false, ..held(Some(position(1, 5))) };
        assert_eq!(judge(&upgraded(false), None), Ok(()));
        assert_eq!(judge(&upgraded(true), None), Err(Mismatch::JournalMissing));
        assert_eq!(judge(&held(Some(position(1, 5))), None), Err(Mismatch::HeadLost));
        assert_eq!(judge(&held(None), None), Err(Mismatch::HeadLost), "it was emptied, and so was the state store");
        let first = Held { remembers: false, ..held(None) };
        assert_eq!(judge(&first, None), Ok(()), "a first start");
    }

    #[test]
    fn what_an_operator_calls_restored_is_taken_as_such_where_nothing_tells_how_new_it_is() {
        let upgraded = Held { remembers: false, ..held(Some(position(1, 5))) };
        assert_eq!(judge_restored(&upgraded, None), Err(Mismatch::NoHead));
        assert_eq!(judge_restored(&held(Some(position(1, 5))), None), Err(Mismatch::HeadLost));
        assert_eq!(judge_restored(&Held { remembers: false, ..held(None) }, None), Ok(()), "a first start");
        let head = Head { position: position(1, 5), term: 1 };
        assert_eq!(judge_restored(&held(Some(position(1, 5))), Some(&head)), Ok(()), "it is the newest");
    }
}
