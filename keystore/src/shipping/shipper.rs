//! Ships each change before the head acknowledges it, and begins a new copy when the present one has grown.
//!
//! Owned by the head writer, which calls [`Shipper::ship`] before each head and [`Shipper::step`] between heads. Each
//! write is a compare-and-set and comes after a look at the lease, so of an earlier holder's writes none that is late
//! replaces one of this keystore's: the first write of a term replaces the last part.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use stage0_backplane::{PutError, Revision, StateStore};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep};

use super::{CopyId, Half, MAX_PARTS, MAX_TAIL_BYTES, PART_BYTES, Shipped, read_part, sealed};
use crate::errors::chain;
use crate::head::{self, Head};
use crate::lease::tenure::Tenure;
use crate::metrics;
use crate::records::{RETRY_DELAY, STORE_TIMEOUT};
use crate::seal::JournalSealer;
use crate::store::changes::{Changes, Frame};
use crate::store::journal;
use crate::store::snapshot::Position;

/// What a copy may add to twice its first frame before a new one is begun.
const GROWTH_BYTES: u64 = 2 << 20;
/// Frames that wait for the end of a new copy; beyond this it is begun again.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// A record that is no longer needed expires after this.
const EXPIRY: Duration = Duration::from_secs(1);
/// Between two tries of a copy for which there was no room.
const RETRY_COPY_INTERVAL: Duration = Duration::from_secs(15);
const MAX_CONFLICTS: u32 = 5;
/// At a start, before a keystore serves without a copy.
const MAX_START_FAILURES: u32 = 5;

pub(crate) struct Shipper {
    store: Store,
    dir: PathBuf,
    changes: Changes,
    /// The copy that the head names, or will.
    copy: Option<PresentCopy>,
    /// Where the copy stands that the head named at the start.
    named: Option<Half>,
    /// Frames that the copy lacks.
    waiting: VecDeque<Frame>,
    /// The copy lacks changes that are no longer known one by one.
    has_gap: bool,
    next: Option<NextCopy>,
    /// Records of an earlier copy that are not needed: the half, and the parts that are left.
    unneeded: Option<(Half, u32)>,
    /// Why there is no whole copy, and when one is tried again.
    fault: Option<(String, Instant)>,
}

/// Everything that a write needs.
struct Store {
    state_store: Arc<dyn StateStore>,
    sealer: JournalSealer,
    tenure: Tenure,
}

struct PresentCopy {
    shipped: Shipped,
    /// The last part; `None` if what follows gets a part of its own.
    tail: Option<Vec<u8>>,
    tail_revision: Option<Revision>,
    /// The last part was not written in this term.
    is_inherited: bool,
}

struct NextCopy {
    id: CopyId,
    half: Half,
    source: Source,
    /// Frames since it was begun.
    since: VecDeque<Frame>,
    since_bytes: usize,
}

#[derive(Debug)]
enum AppendError {
    /// There is no room, and trying again at once does not help.
    NoRoom(String),
    Failed(String),
}

impl From<String> for AppendError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

enum Source {
    Reading(JoinHandle<Result<(Bytes, Position), String>>),
    Shipping { base: Bytes, position: Position, parts: u32 },
}

/// What remains to be done between heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Idle,
    /// Something was done, and there is more.
    Continues,
    /// There is a new copy: the head has to name it.
    NewCopy,
}

impl Shipper {
    /// Continues the copy that `head` names if the directory proves that it is its own; otherwise a new one is needed.
    pub(crate) async fn attach(
        (state_store, sealer, tenure): (Arc<dyn StateStore>, JournalSealer, Tenure),
        dir: &Path,
        changes: Changes,
        head: Option<&Head>,
    ) -> Result<Self, String> {
        changes.keep_frames();
        let store = Store { state_store, sealer, tenure };
        let (own, mut waiting, mut copy) = (changes.position(), VecDeque::new(), None);
        let found = head.filter(|head| head.position.store_id == own.store_id).and_then(|head| head.journal);
        if let Some(shipped) = found {
            let dir = dir.to_owned();
            let since = tokio::task::spawn_blocking(move || frames_since(&dir, &shipped, own)).await;
            if let Some(frames) = since.map_err(|error| error.to_string())?? {
                waiting = frames;
                copy = store.inherit(shipped).await?;
            }
        }
        let fault = None;
        Ok(Self {
            store,
            dir: dir.to_owned(),
            changes,
            has_gap: copy.is_none(),
            named: head.and_then(|head| head.journal).map(|shipped| shipped.half),
            copy,
            waiting,
            next: None,
            // A copy that was not finished, or not removed, is overwritten by the next one.
            unneeded: None,
            fault,
        })
    }

    /// Before anything is served: ships what is missing, or everything. Returns what [`ship`](Self::ship) does.
    pub(crate) async fn begin(&mut self) -> Result<Position, String> {
        let mut failures = 0;
        let mut newest = self.ship().await?;
        while self.has_gap && (self.next.is_some() || self.needs_copy()) {
            match self.step().await {
                Ok(Step::NewCopy) => newest = self.ship().await?,
                Ok(Step::Continues | Step::Idle) => {}
                Err(_) if self.fault.is_some() => break,
                Err(why) => {
                    failures += 1;
                    if failures >= MAX_START_FAILURES {
                        self.give_up(why);
                        break;
                    }
                    sleep(RETRY_DELAY).await;
                }
            }
        }
        Ok(newest)
    }

    /// What the head may name.
    pub(crate) fn shipped(&self) -> Option<Shipped> {
        self.copy.as_ref().map(|copy| copy.shipped)
    }

    /// Lets a copy for which there was no room be tried again at once.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        self.fault.iter_mut().for_each(|(_, retry)| *retry = Instant::now());
    }

    /// Why a machine that is lost takes changes with it.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_ref().map(|(why, _)| why.as_str())
    }

    /// Ships what changed. Returns the position that the head may have: no change after it is shipped.
    pub(crate) async fn ship(&mut self) -> Result<Position, String> {
        // Read first: a frame is added before its position.
        let newest = self.changes.position();
        for frame in self.changes.take_frames() {
            if let Some(next) = &mut self.next {
                next.since_bytes = next.since_bytes.saturating_add(frame.bytes.len());
                next.since.push_back(frame.clone());
            }
            if !self.has_gap {
                self.waiting.push_back(frame);
            }
        }
        if self.next.as_ref().is_some_and(|next| next.since_bytes > MAX_WAITING_BYTES) {
            self.next = None;
        }
        let shipped = self.copy.as_ref().map_or(0, |copy| copy.shipped.sequence);
        metrics::unshipped(newest.sequence.saturating_sub(shipped));
        let Some(copy) = self.copy.as_mut().filter(|_| !self.has_gap) else { return Ok(newest) };
        let last = copy.shipped.sequence;
        let follows =
            self.waiting.iter().zip(last.saturating_add(1)..).all(|(frame, at)| frame.position.sequence == at);
        let end = self.waiting.back().map_or(last, |frame| frame.position.sequence);
        if !follows || end < newest.sequence {
            tracing::warn!(shipped = last, newest = newest.sequence, "changes were not kept to be shipped");
            self.has_gap = true;
            self.waiting.clear();
            return Ok(newest);
        }
        match self.store.append(copy, &self.waiting).await {
            Ok(()) => {}
            Err(AppendError::Failed(why)) => return Err(why),
            // The head has room all the same.
            Err(AppendError::NoRoom(why)) => {
                self.has_gap = true;
                self.waiting.clear();
                self.give_up(why);
                return Ok(newest);
            }
        }
        self.waiting.clear();
        metrics::unshipped(0);
        Ok(Position { sequence: copy.shipped.sequence, digest: copy.shipped.digest, ..newest })
    }

    /// Whether [`step`](Self::step) has something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.next.is_some() || self.unneeded.is_some() || self.needs_copy()
    }

    fn needs_copy(&self) -> bool {
        if self.fault.as_ref().is_some_and(|(_, retry)| Instant::now() < *retry) {
            return false;
        }
        self.has_gap || self.copy.as_ref().is_none_or(|copy| has_outgrown(&copy.shipped))
    }

    /// Does a part of the work, while the head names the present copy. May be dropped at any moment and is called
    /// again, until all is done.
    pub(crate) async fn step(&mut self) -> Result<Step, String> {
        if self.next.is_none() && self.needs_copy() {
            self.begin_copy()?;
        }
        let Some(next) = &mut self.next else { return self.remove_next().await };
        match &mut next.source {
            Source::Reading(reading) => {
                let read = reading.await.map_err(|error| error.to_string()).and_then(|read| read);
                match read {
                    Ok((base, position)) => next.source = Source::Shipping { base, position, parts: 0 },
                    Err(error) => return Err(self.give_up(error)),
                }
                Ok(Step::Continues)
            }
            Source::Shipping { base, parts, .. } => {
                let from = (*parts as usize).saturating_mul(PART_BYTES);
                if from < base.len() {
                    match self.store.has_room().await {
                        Ok(()) => {}
                        Err(AppendError::Failed(why)) => return Err(why),
                        Err(AppendError::NoRoom(why)) => return Err(self.give_up(why)),
                    }
                    let part = base.get(from..base.len().min(from.saturating_add(PART_BYTES))).unwrap_or_default();
                    self.store.put((next.id, next.half, *parts), part, None).await?;
                    *parts += 1;
                    return Ok(Step::Continues);
                }
                self.finish_copy().await
            }
        }
    }

    fn begin_copy(&mut self) -> Result<(), String> {
        let named = self.copy.as_ref().map(|copy| copy.shipped.half).or(self.named);
        let half = named.map_or(Half::A, Half::other);
        // What is left there is overwritten.
        self.unneeded = self.unneeded.take().filter(|(unneeded, _)| *unneeded != half);
        let newest = self.changes.position().sequence;
        let dir = self.dir.clone();
        let source = Source::Reading(tokio::task::spawn_blocking(move || base_of(&dir, newest)));
        let since = self.waiting.clone();
        self.next = Some(NextCopy { id: CopyId::new()?, half, source, since, since_bytes: 0 });
        Ok(())
    }

    /// Adds what changed since the base was read, and lets the new copy count.
    async fn finish_copy(&mut self) -> Result<Step, String> {
        let Some(NextCopy { id, half, source: Source::Shipping { base, position, parts }, since, .. }) = &self.next
        else {
            return Ok(Step::Continues);
        };
        let bytes = base.len() as u64;
        let shipped = Shipped {
            copy: *id,
            half: *half,
            parts: *parts,
            bytes,
            tail: bytes.saturating_sub(u64::from(parts.saturating_sub(1)).saturating_mul(PART_BYTES as u64)),
            base: bytes,
            sequence: position.sequence,
            digest: position.digest,
        };
        // A large last part is not written again: the frames get a part of their own.
        let mut copy = PresentCopy { shipped, tail: None, tail_revision: None, is_inherited: false };
        let missing: VecDeque<_> =
            since.iter().filter(|frame| frame.position.sequence > position.sequence).cloned().collect();
        if missing.iter().zip(position.sequence.saturating_add(1)..).any(|(frame, at)| frame.position.sequence != at) {
            self.next = None;
            return Ok(Step::Continues);
        }
        match self.store.append(&mut copy, &missing).await {
            Ok(()) => {}
            Err(AppendError::Failed(why)) => return Err(why),
            Err(AppendError::NoRoom(why)) => return Err(self.give_up(why)),
        }
        let old = self.copy.replace(copy);
        self.unneeded = old.map(|old| (old.shipped.half, old.shipped.parts));
        (self.next, self.has_gap, self.fault) = (None, false, None);
        // Those that the old copy lacked, and that came after the last look.
        let last = self.copy.as_ref().map_or(0, |copy| copy.shipped.sequence);
        self.waiting.retain(|frame| frame.position.sequence > last);
        Ok(Step::NewCopy)
    }

    /// Lets the records of the copy before expire, one at a time.
    async fn remove_next(&mut self) -> Result<Step, String> {
        let Some((half, left)) = self.unneeded else { return Ok(Step::Idle) };
        let Some(part) = left.checked_sub(1) else {
            self.unneeded = None;
            return Ok(Step::Idle);
        };
        self.store.remove(half, part).await?;
        self.unneeded = Some((half, part));
        Ok(Step::Continues)
    }

    fn give_up(&mut self, why: String) -> String {
        if let Some(NextCopy { half, source: Source::Shipping { parts, .. }, .. }) = self.next.take() {
            self.unneeded = (parts > 0).then_some((half, parts)).or(self.unneeded);
        }
        self.fault = Some((why.clone(), Instant::now() + RETRY_COPY_INTERVAL));
        why
    }
}

fn has_outgrown(shipped: &Shipped) -> bool {
    shipped.bytes > shipped.base.saturating_mul(2).saturating_add(GROWTH_BYTES) || shipped.parts > MAX_PARTS
}

impl Store {
    /// The copy as it is, if its last part can be opened.
    async fn inherit(&self, shipped: Shipped) -> Result<Option<PresentCopy>, String> {
        let last = (shipped.copy, shipped.half, shipped.parts.saturating_sub(1));
        let found = read_part(&self.state_store, &self.sealer, last).await?;
        Ok(found.and_then(|(mut tail, revision)| {
            let counts = usize::try_from(shipped.tail).ok().filter(|counts| *counts <= tail.len())?;
            // The rest was never acknowledged, and this keystore may have gone on without it.
            tail.truncate(counts);
            Some(PresentCopy { shipped, tail: Some(tail), tail_revision: Some(revision), is_inherited: true })
        }))
    }

    /// Adds frames. The copy changes only when all of them are stored.
    async fn append(&self, copy: &mut PresentCopy, frames: &VecDeque<Frame>) -> Result<(), AppendError> {
        let new: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.iter().copied()).collect();
        if new.is_empty() && !copy.is_inherited {
            return Ok(());
        }
        let Shipped { copy: id, half, mut parts, .. } = copy.shipped;
        let last = (id, half, parts.saturating_sub(1));
        let mut tail = copy.tail.clone().unwrap_or_default();
        let mut revision = copy.tail_revision;
        let fits = copy.tail.is_some() && tail.len().saturating_add(new.len()) <= MAX_TAIL_BYTES;
        if fits {
            tail.extend_from_slice(&new);
        }
        // Written in each term at least once: from then on a write of an earlier term conflicts.
        if fits || copy.is_inherited {
            revision = Some(self.put(last, &tail, copy.tail_revision).await?);
        }
        if !fits && !new.is_empty() {
            for part in new.chunks(PART_BYTES) {
                self.has_room().await?;
                revision = Some(self.put((id, half, parts), part, None).await?);
                tail = part.to_vec();
                parts += 1;
            }
        }
        let shipped = &mut copy.shipped;
        if let Some(end) = frames.back().map(|frame| frame.position) {
            (shipped.sequence, shipped.digest) = (end.sequence, end.digest);
        }
        (shipped.parts, shipped.tail) = (parts, tail.len() as u64);
        shipped.bytes = shipped.bytes.saturating_add(new.len() as u64);
        (copy.tail, copy.tail_revision, copy.is_inherited) = (Some(tail), revision, false);
        Ok(())
    }

    /// A part is begun only where the lease and the head have room beside it.
    async fn has_room(&self) -> Result<(), AppendError> {
        let Err(error) = self.state_store.ready().await else { return Ok(()) };
        let why = chain(&error);
        // A state store that answers has no room, or must not be used for anything more.
        match self.state_store.get(&head::key(), Instant::now() + STORE_TIMEOUT).await {
            Ok(_) => Err(AppendError::NoRoom(why)),
            Err(_) => Err(AppendError::Failed(why)),
        }
    }

    /// Replaces a part, whatever an earlier holder of the lease has left there.
    async fn put(
        &self,
        (copy, half, part): (CopyId, Half, u32),
        content: &[u8],
        known: Option<Revision>,
    ) -> Result<Revision, String> {
        let value = sealed(&self.sealer, copy, part, content)?;
        self.replace(&half.key(part), &value, known, None).await
    }

    async fn remove(&self, half: Half, part: u32) -> Result<(), String> {
        let key = half.key(part);
        let found = self.state_store.get(&key, Instant::now() + STORE_TIMEOUT).await.map_err(|error| chain(&error))?;
        let Some(found) = found else { return Ok(()) };
        self.replace(&key, &Bytes::new(), Some(found.revision), Some(EXPIRY)).await.map(drop)
    }

    async fn replace(
        &self,
        key: &str,
        value: &Bytes,
        mut expected: Option<Revision>,
        expires_in: Option<Duration>,
    ) -> Result<Revision, String> {
        for _ in 0..MAX_CONFLICTS {
            // INVARIANT: checked after the revision was read, so a later holder's record is never replaced.
            if !self.tenure.is_valid() {
                return Err("the lease is over".to_owned());
            }
            let until = Instant::now() + STORE_TIMEOUT;
            match self.state_store.put(key, value.clone(), expected, expires_in, until).await {
                Ok(revision) => return Ok(revision),
                Err(PutError::Conflict) => {
                    let found = self.state_store.get(key, Instant::now() + STORE_TIMEOUT).await;
                    expected = found.map_err(|error| chain(&error))?.map(|record| record.revision);
                }
                Err(error) => return Err(chain(&error)),
            }
        }
        Err(format!("the record `{key}` changes all the time"))
    }
}

/// The frames of this directory after the end of a copy; `None` if it does not prove that the copy is its own.
fn frames_since(dir: &Path, shipped: &Shipped, own: Position) -> Result<Option<VecDeque<Frame>>, String> {
    if (own.sequence, own.digest) == (shipped.sequence, shipped.digest) {
        return Ok(Some(VecDeque::new()));
    }
    let bytes = std::fs::read(dir.join(journal::FILE)).map_err(|error| error.to_string())?;
    let replay = journal::replay_until(&bytes, own.sequence);
    let digest_at = |at| replay.trail.iter().find(|(sequence, _)| *sequence == at).map(|(_, digest)| *digest);
    if digest_at(shipped.sequence) != Some(shipped.digest) {
        return Ok(None);
    }
    let (mut frames, mut from) = (VecDeque::new(), 0);
    for (sequence, end) in replay.ends {
        if sequence > shipped.sequence {
            // The first frame is a snapshot, and no change.
            let frame = (from > 0).then(|| bytes.get(from..end)).flatten();
            let (Some(frame), Some(digest)) = (frame, digest_at(sequence)) else { return Ok(None) };
            let position = Position { store_id: own.store_id, sequence, digest };
            frames.push_back(Frame { position, bytes: Bytes::copy_from_slice(frame) });
        }
        from = end;
    }
    Ok(Some(frames))
}

/// All records as one frame, at a change that was committed.
fn base_of(dir: &Path, newest: u64) -> Result<(Bytes, Position), String> {
    let bytes =
        std::fs::read(dir.join(journal::FILE)).map_err(|error| format!("the journal cannot be read: {error}"))?;
    let replay = journal::replay_until(&bytes, newest);
    drop(bytes);
    let snapshot = replay.snapshot.ok_or("the journal cannot be read: it is damaged")?;
    let base = journal::of_snapshot(&snapshot).map_err(|error| chain(&error))?;
    Ok((base.into(), snapshot.position))
}
