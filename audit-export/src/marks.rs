//! Marks: checkpoints, deletions, expiries and notices that are numbered, signed and stored between the decisions.
//!
//! Every mark names the last line (head) of each writer, computed from the previous mark and the decisions since, so an
//! exporter keeps no state; of two that write at once, the log refuses one, which reads again. A mark's `through` is a
//! time, not a position, and reveals nothing of other accounts. The keystore signs one mark for each number: one that a
//! crash kept out of the log is returned to the next caller, who stores it first.
//! INVARIANT: the mark of a removal is written before anything is removed, and the removal is finished before the next
//! mark is written.

mod removal;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use stage0_backplane::{Backplane, Entry, EntryFilter, EntryKind, MarkError, Position, ReadError, Seek};
use stage0_contract::{
    AccountId, ChainedLine, Deletion, DeletionPermit, Expiry, Head, KeyId, LineHash, ManageReply, Mark, MarkBody,
    MarkSigned, Previous, Refusal, SignMark, WriterId,
};

use crate::metrics::{self, RemovalReason};
use crate::shared::Shared;
use removal::RemovalPlan;

const READ_CHUNK_BYTES: usize = 4 << 20;
const MAX_ATTEMPTS: usize = 5;
/// A checkpoint is written at least this long after the last mark, as another exporter may have written that one.
pub(crate) const MIN_CHECKPOINT_INTERVAL: SignedDuration = SignedDuration::from_secs(2);
const SIGN_TIMEOUT: Duration = Duration::from_secs(3);
/// Expired decisions are removed an hour of the log at a time, so that the log does not fill with marks of removals.
const MIN_REMOVAL_SPAN: SignedDuration = SignedDuration::from_hours(1);
/// The keystore signs no mark whose `through` is further in the future.
const MAX_THROUGH_AHEAD: SignedDuration = SignedDuration::from_mins(30);
/// No mark is kept longer: a day more than the longest retention.
const MAX_MARK_TTL: SignedDuration = SignedDuration::from_hours(24 * 3_651);
/// A smaller `through` is the stream's sequence number, of an older version on NATS. As a time it would be in 1973.
const MIN_THROUGH_MICROS: u64 = 100_000_000_000_000;
/// Read again before the last mark: after a clock was set back, later decisions may have an earlier time.
const REREAD_OVERLAP: SignedDuration = SignedDuration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkResult {
    Written(u64),
    NothingNew,
    /// The last mark is so recent that the log was not searched for newer decisions.
    TooSoon,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkFailure {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Append(#[from] MarkError),
    #[error("the keystore did not sign")]
    Unsigned,
    #[error("the keystore refused to sign: {0}")]
    Refused(String),
    #[error("the keystore does not know this account")]
    UnknownAccount,
    #[error("other exporters wrote marks first at every attempt")]
    Conflict,
}

pub(crate) struct DeletionRequest {
    pub(crate) before: Timestamp,
    pub(crate) requested_by: KeyId,
    pub(crate) permit: DeletionPermit,
}

struct Draft<'a> {
    account: &'a AccountId,
    body: MarkBody,
    permit: Option<&'a DeletionPermit>,
    /// The mark is kept as long as a decision that is recorded at the same time.
    retention_days: u32,
    /// It is kept at least until then, in seconds since the epoch.
    keep_until: i64,
    min_interval: SignedDuration,
    now: Timestamp,
}

struct LastMark {
    mark: Mark,
    line: String,
    hash: LineHash,
}

struct LastEntry {
    position: Position,
    /// None if the entry is not a mark; then the keystore knows the last mark.
    mark: Option<LastMark>,
}

#[derive(Default)]
struct Heads {
    of: BTreeMap<WriterId, Head>,
    /// When the last of them was stored, in microseconds since the epoch.
    through: u64,
    covered: u64,
}

/// A checkpoint needs decisions that no mark covers, and a last mark that is at least `min_interval` old.
pub(crate) async fn write(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    body: MarkBody,
    min_interval: SignedDuration,
    now: Timestamp,
) -> Result<MarkResult, MarkFailure> {
    let draft = Draft { account, body, permit: None, retention_days, keep_until: 0, min_interval, now };
    write_draft(backplane, draft).await
}

async fn write_draft(backplane: &Backplane, draft: Draft<'_>) -> Result<MarkResult, MarkFailure> {
    let result = try_to_write(backplane, &draft).await;
    match &result {
        Ok(MarkResult::Written(_)) => metrics::mark(&draft.body, true),
        Ok(MarkResult::NothingNew | MarkResult::TooSoon) => {}
        Err(_) => metrics::mark(&draft.body, false),
    }
    result
}

async fn try_to_write(backplane: &Backplane, draft: &Draft<'_>) -> Result<MarkResult, MarkFailure> {
    let Draft { account, body, permit, min_interval, now, .. } = draft;
    let is_checkpoint = *body == MarkBody::Checkpoint {};
    let mut signed = None;
    for _ in 0..MAX_ATTEMPTS {
        let last_entry = last_entry(backplane, account).await?;
        let position = last_entry.as_ref().map(|entry| entry.position);
        let last = last_entry.and_then(|entry| entry.mark);
        if let Some(last) = &last {
            removal::finish(backplane, account, &last.mark).await?;
            // Another exporter received the same line, and stored it first.
            if signed == Some(last.hash) {
                return Ok(MarkResult::Written(last.mark.number));
            }
            // Another exporter removed the same decisions by its own mark.
            if let (MarkBody::Expiry(wanted), MarkBody::Expiry(done)) = (body, &last.mark.body)
                && done.before >= wanted.before
            {
                return Ok(MarkResult::NothingNew);
            }
            // The absolute distance: a mark from the future, by a wrong clock, must not delay checkpoints.
            if is_checkpoint && now.duration_since(last.mark.recorded_at).abs() < *min_interval {
                return Ok(MarkResult::TooSoon);
            }
        }
        let heads = heads(backplane, account, last.as_ref(), *now).await?;
        if is_checkpoint && heads.covered == 0 {
            return Ok(MarkResult::NothingNew);
        }
        let number = last.as_ref().map_or(1, |last| last.mark.number.saturating_add(1));
        // If the store's clock was far ahead for a time, entries after its correction would never be covered.
        let latest = micros(now.checked_add(MAX_THROUGH_AHEAD).unwrap_or(Timestamp::MAX));
        let mark = Mark {
            body: body.clone(),
            account: (*account).clone(),
            number,
            previous: last.as_ref().map(LastMark::as_previous),
            recorded_at: whole_millis(*now),
            expires_at: expiry(draft),
            through: heads.through.min(latest).max(last.as_ref().map_or(0, |last| last.mark.through)),
            covered: heads.covered,
            heads: heads.of.into_values().collect(),
        };
        let last = last.map(|last| last.line);
        let request = SignMark { mark, last, takes_earlier: true, permit: permit.cloned() };
        let MarkSigned { line, earlier } = sign(backplane, &request).await?;
        if !earlier {
            signed = Some(LineHash::of(line.as_bytes()));
        }
        match backplane.log.append_mark(account, line.into(), position, Shared::store_deadline()).await {
            Ok(_) if earlier => {
                tracing::info!(%account, "a mark that was signed before and not stored was stored");
            }
            Ok(_) => return Ok(MarkResult::Written(number)),
            Err(MarkError::Conflict) => {}
            // The mark may be stored: the next write finds it, and its number is taken.
            Err(error @ MarkError::Failed(_)) => return Err(error.into()),
        }
    }
    Err(MarkFailure::Conflict)
}

pub(crate) async fn delete(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    request: &DeletionRequest,
    now: Timestamp,
) -> Result<(Deletion, Option<u64>), MarkFailure> {
    // Entries that a crash left unremoved belong to an earlier mark.
    if let Some(LastEntry { mark: Some(last), .. }) = last_entry(backplane, account).await? {
        removal::finish(backplane, account, &last.mark).await?;
    }
    let RemovalPlan { from, to, count, heads, through } = removal::plan(backplane, account, request.before).await?;
    let deletion = Deletion {
        before: request.before,
        from,
        to,
        count,
        // An older exporter takes this for a position and removes everything up to it.
        through: 0,
        deleted: heads,
        requested_by: request.requested_by.clone(),
    };
    let Some(through) = through.filter(|_| count > 0) else { return Ok((deletion, None)) };
    let body = MarkBody::Deletion(deletion.clone());
    let permit = Some(&request.permit);
    let draft = Draft { account, body, permit, retention_days, keep_until: 0, min_interval: SignedDuration::ZERO, now };
    let number = match write_draft(backplane, draft).await? {
        MarkResult::Written(number) => Some(number),
        MarkResult::NothingNew | MarkResult::TooSoon => None,
    };
    removal::remove(backplane, account, through, RemovalReason::Deletion).await?;
    tracing::info!(%account, count = deletion.count, mark = number, "decisions were deleted on demand");
    Ok((deletion, number))
}

/// Removes decisions past the retention, at most `span` of the log. Returns the number of entries removed.
pub(crate) async fn expire(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    span: Duration,
    now: Timestamp,
) -> Result<u64, MarkFailure> {
    removal::remove_marks(backplane, account, None, now).await?;
    let retention = SignedDuration::from_hours(24 * i64::from(retention_days));
    let horizon = whole_millis(now).checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH);
    let read =
        backplane.log.read(account, EntryFilter::Only(EntryKind::Decisions), Seek::Start, 1, Shared::store_deadline());
    let Some(first) = read.await?.entries.into_iter().next() else { return Ok(0) };
    let begin = removal::recorded_at(&first).unwrap_or(first.stored_at);
    if horizon.duration_since(begin) < MIN_REMOVAL_SPAN {
        return Ok(0);
    }
    let before = begin.checked_add(span).map_or(horizon, |end| end.min(horizon));
    let RemovalPlan { from, to, count, heads, through } = removal::plan(backplane, account, before).await?;
    let Some(through) = through else { return Ok(0) };
    let body = MarkBody::Expiry(Expiry { horizon, retention_days, before, from, to, count, expired: heads });
    let marks = removal::old_marks(backplane, account, Some(before), now).await?;
    let keep_until = marks.map_or(0, |marks| marks.expire_at);
    let draft =
        Draft { account, body, permit: None, retention_days, keep_until, min_interval: SignedDuration::ZERO, now };
    match write_draft(backplane, draft).await {
        Ok(MarkResult::NothingNew) => return Ok(0),
        // No caller can read this account's log any more, so a removal needs no mark.
        Err(MarkFailure::UnknownAccount) => {
            tracing::warn!(
                %account,
                "the keystore does not know this account: expired decisions are removed without a mark"
            );
        }
        Ok(MarkResult::Written(_) | MarkResult::TooSoon) => {}
        Err(error) => return Err(error),
    }
    let removed = removal::remove(backplane, account, through, RemovalReason::Retention).await?;
    removal::remove_marks(backplane, account, Some(before), now).await?;
    Ok(removed)
}

async fn last_entry(backplane: &Backplane, account: &AccountId) -> Result<Option<LastEntry>, MarkFailure> {
    let Some(entry) = backplane.log.last(account, EntryKind::Mark, Shared::store_deadline()).await? else {
        return Ok(None);
    };
    let line = entry.lines().next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let position = entry.position;
    let mark = match serde_json::from_str(line) {
        Ok(mark) => Some(LastMark { mark, line: line.to_owned(), hash: LineHash::of(line.as_bytes()) }),
        Err(_) => {
            tracing::error!(%account, position = position.0, "the last mark of the decision log cannot be read");
            None
        }
    };
    Ok(Some(LastEntry { position, mark }))
}

async fn heads(
    backplane: &Backplane,
    account: &AccountId,
    last: Option<&LastMark>,
    now: Timestamp,
) -> Result<Heads, MarkFailure> {
    let mut heads = Heads::default();
    let mut seek = Seek::Start;
    if let Some(last) = last {
        heads.through = last.mark.through;
        let known = last.mark.heads.iter().filter(|head| head.expires_at > now.as_second());
        heads.of = known.map(|head| (head.writer, *head)).collect();
        seek = seek_after(heads.through);
    }
    let add = |entry: &Entry| {
        if !last.is_some_and(|last| last.covers(entry, now)) {
            heads.add(entry, account);
        }
        ControlFlow::Continue(())
    };
    scan(backplane, account, EntryKind::Decisions, (seek, READ_CHUNK_BYTES), add).await?;
    Ok(heads)
}

/// Visits entries in log order, until `visit` breaks. A caller that mostly needs one entry passes a small first read.
async fn scan(
    backplane: &Backplane,
    account: &AccountId,
    kind: EntryKind,
    (mut seek, mut chunk_bytes): (Seek, usize),
    mut visit: impl FnMut(&Entry) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    loop {
        let deadline = Shared::store_deadline();
        let chunk = backplane.log.read(account, EntryFilter::Only(kind), seek, chunk_bytes, deadline).await?;
        if chunk.entries.iter().try_for_each(&mut visit).is_break() {
            return Ok(());
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => (seek, chunk_bytes) = (Seek::After(last.position), READ_CHUNK_BYTES),
            None => return Ok(()),
        }
    }
}

/// Where the entries begin that a mark with this `through` may not cover.
fn seek_after(through: u64) -> Seek {
    if through == 0 {
        return Seek::Start;
    }
    let stored_at =
        i64::try_from(through).ok().filter(|_| through >= MIN_THROUGH_MICROS).map(Timestamp::from_microsecond);
    match stored_at {
        Some(Ok(stored_at)) => Seek::Time(stored_at.checked_sub(REREAD_OVERLAP).unwrap_or(Timestamp::UNIX_EPOCH)),
        Some(Err(_)) | None => Seek::After(Position(through)),
    }
}

/// None if the line cannot be read or names another account: a mark with that head would be wrong for ever.
fn head_of(entry: &Entry, account: &AccountId) -> Option<Head> {
    let line = entry.lines().last()?;
    let owner = serde_json::from_slice::<Owner>(line).ok()?.account;
    if owner.is_some_and(|owner| owner != *account) {
        return None;
    }
    ChainedLine::read(line).map(|chained| chained.head(line))
}

#[derive(Deserialize)]
struct Owner {
    #[serde(default)]
    account: Option<AccountId>,
}

fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

async fn sign(backplane: &Backplane, request: &SignMark) -> Result<MarkSigned, MarkFailure> {
    match backplane.requests.request(request, SIGN_TIMEOUT).await {
        Ok(ManageReply::Done(signed)) => Ok(signed),
        Ok(ManageReply::Refused(Refusal::NotFound)) => Err(MarkFailure::UnknownAccount),
        Ok(ManageReply::Refused(Refusal::Conflict(why))) => Err(MarkFailure::Refused(why)),
        Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => Err(MarkFailure::Unsigned),
    }
}

impl LastMark {
    fn as_previous(&self) -> Previous {
        Previous { hash: self.hash, recorded_at: self.mark.recorded_at, expires_at: self.mark.expires_at }
    }

    fn covers(&self, entry: &Entry, now: Timestamp) -> bool {
        if self.mark.through < MIN_THROUGH_MICROS {
            return false;
        }
        let before = micros(entry.stored_at) <= self.mark.through;
        match head_of(entry, &self.mark.account) {
            // Marks leave out a head that has expired.
            Some(head) if head.expires_at <= now.as_second() => before,
            Some(head) => {
                self.mark.heads.iter().any(|known| known.writer == head.writer && known.sequence >= head.sequence)
            }
            None => before,
        }
    }
}

impl Heads {
    fn add(&mut self, entry: &Entry, account: &AccountId) {
        let before = if self.through < MIN_THROUGH_MICROS { 0 } else { self.through };
        self.through = micros(entry.stored_at).max(before);
        self.covered = self.covered.saturating_add(entry.lines().count() as u64);
        match head_of(entry, account) {
            Some(head) => {
                let known = self.of.entry(head.writer).or_insert(head);
                if head.sequence >= known.sequence {
                    *known = head;
                }
            }
            // `stage0 decisions verify` says what is wrong with it.
            None => tracing::error!(position = entry.position.0, "a line of the decision log cannot be read"),
        }
    }
}

/// In seconds since the epoch. Until the removed decisions would have expired, their mark explains where they are.
fn expiry(draft: &Draft<'_>) -> i64 {
    let after = |ttl: SignedDuration| draft.now.checked_add(ttl).unwrap_or(Timestamp::MAX).as_second();
    let retention = SignedDuration::from_hours(24 * i64::from(draft.retention_days));
    after(retention).max(latest_expiry(&draft.body)).max(draft.keep_until).min(after(MAX_MARK_TTL))
}

fn latest_expiry(body: &MarkBody) -> i64 {
    let removed = match body {
        MarkBody::Deletion(deletion) => deletion.deleted.as_slice(),
        MarkBody::Expiry(expiry) => expiry.expired.as_slice(),
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => &[],
    };
    removed.iter().map(|head| head.expires_at).max().unwrap_or(0)
}
