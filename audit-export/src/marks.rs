//! Marks: checkpoints, deletions, expiries and notices that are numbered, signed and stored between the decisions.
//!
//! Every mark names the last line (head) of each writer. The heads are computed from the previous mark and the
//! decisions recorded since, so an exporter keeps no state of its own; of two that write at once, the log refuses one,
//! which reads again. A mark reveals nothing of other accounts: its `through` is a time, not a position in the store.
//! The keystore signs one mark for each number. If a crash kept a signed mark out of the log, the keystore returns it
//! to the next caller, who stores it before any other.
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
    AccountId, Deletion, DeletionPermit, Expiry, Head, KeyId, LineHash, LineHeader, ManageReply, Mark, MarkBody,
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
/// A smaller `through` comes from an older version on NATS and is a sequence number of the stream. As a time it would
/// be in 1973.
const MIN_THROUGH_MICROS: u64 = 100_000_000_000_000;
/// How much before the time of the last mark is read again: a clock that was set back may have given decisions stored
/// after the mark an earlier time.
const REREAD_OVERLAP: SignedDuration = SignedDuration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkResult {
    /// Written with this number.
    Written(u64),
    /// No mark was needed.
    NothingNew,
    /// The last mark is so recent that the log was not searched for newer decisions.
    TooSoon,
}

/// A mark could not be written.
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

/// A deletion that a caller requested.
pub(crate) struct DeletionRequest {
    pub(crate) before: Timestamp,
    pub(crate) requested_by: KeyId,
    /// The keystore signs the mark only with it.
    pub(crate) permit: DeletionPermit,
}

/// A mark to be written.
struct Draft<'a> {
    account: &'a AccountId,
    body: MarkBody,
    /// For a deletion.
    permit: Option<&'a DeletionPermit>,
    lifetime: MarkLifetime,
    /// Applies to checkpoints.
    min_interval: SignedDuration,
    now: Timestamp,
}

/// How long a mark is kept.
#[derive(Clone, Copy)]
struct MarkLifetime {
    /// As long as a decision that is recorded at the same time.
    retention_days: u32,
    /// At least until the decisions that it removes would have expired, in seconds since the epoch.
    until: i64,
}

/// The account's last mark.
struct LastMark {
    mark: Mark,
    line: String,
    hash: LineHash,
}

/// The last entry among an account's marks.
struct LastEntry {
    position: Position,
    /// None if the entry is not a mark. The next mark then follows nothing in the log: the keystore knows the last
    /// mark.
    mark: Option<LastMark>,
}

/// The line that the keystore returned.
enum SignedLine {
    New(String),
    /// A mark that it signed before and that the log does not have.
    Earlier(String),
}

/// The last line of each writer, up to a point in the log.
#[derive(Default)]
struct Heads {
    of: BTreeMap<WriterId, Head>,
    /// When the last of them was stored, in microseconds since the epoch.
    through: u64,
    covered: u64,
}

/// Writes a mark. A checkpoint is written only if there are decisions that no mark covers, and if the last mark is at
/// least `min_interval` old.
pub(crate) async fn write(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    body: MarkBody,
    min_interval: SignedDuration,
    now: Timestamp,
) -> Result<MarkResult, MarkFailure> {
    let lifetime = MarkLifetime { retention_days, until: latest_expiry(&body) };
    write_draft(backplane, Draft { account, body, permit: None, lifetime, min_interval, now }).await
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
    let Draft { account, body, permit, lifetime, min_interval, now } = draft;
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
            if is_removed_already(body, &last.mark) {
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
        let mark = Mark {
            body: body.clone(),
            account: (*account).clone(),
            number,
            previous: last.as_ref().map(LastMark::as_previous),
            recorded_at: whole_millis(*now),
            expires_at: lifetime.expiry(*now),
            through: bounded_through(&heads, last.as_ref(), *now),
            covered: heads.covered,
            heads: heads.of.into_values().collect(),
        };
        let last = last.map(|last| last.line);
        let request = SignMark { mark, last, takes_earlier: true, permit: permit.cloned() };
        let (line, is_earlier) = match sign(backplane, &request).await? {
            SignedLine::New(line) => {
                signed = Some(LineHash::of(line.as_bytes()));
                (line, false)
            }
            SignedLine::Earlier(line) => (line, true),
        };
        match backplane.log.append_mark(account, line.into(), position, Shared::store_deadline()).await {
            Ok(_) if is_earlier => {
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

/// Deletes the decisions that were recorded before a time: writes a signed mark, then removes them.
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
    let plan = removal::plan(backplane, account, request.before).await?;
    let RemovalPlan { from, to, count, heads, through } = plan;
    let deletion = Deletion {
        before: request.before,
        from,
        to,
        count,
        // An older exporter takes this for a position and removes everything up to it; a time would remove the whole
        // log.
        through: 0,
        deleted: heads,
        requested_by: request.requested_by.clone(),
    };
    let Some(through) = through.filter(|_| count > 0) else { return Ok((deletion, None)) };
    let body = MarkBody::Deletion(deletion.clone());
    let lifetime = MarkLifetime { retention_days, until: latest_expiry(&body) };
    let permit = Some(&request.permit);
    let draft = Draft { account, body, permit, lifetime, min_interval: SignedDuration::ZERO, now };
    let number = match write_draft(backplane, draft).await? {
        MarkResult::Written(number) => Some(number),
        MarkResult::NothingNew | MarkResult::TooSoon => None,
    };
    removal::remove(backplane, account, through, RemovalReason::Deletion).await?;
    tracing::info!(%account, count = deletion.count, mark = number, "decisions were deleted on demand");
    Ok((deletion, number))
}

/// Removes the oldest decisions past an account's retention, at most `span` of the log: writes a signed mark, then
/// removes decisions and old marks. Returns the number of entries removed.
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
    let until = latest_expiry(&body).max(marks.map_or(0, |marks| marks.expire_at));
    let lifetime = MarkLifetime { retention_days, until };
    let draft = Draft { account, body, permit: None, lifetime, min_interval: SignedDuration::ZERO, now };
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

/// Whether another exporter removed the same decisions by its own mark.
fn is_removed_already(body: &MarkBody, last: &Mark) -> bool {
    match (body, &last.body) {
        (MarkBody::Expiry(wanted), MarkBody::Expiry(done)) => done.before >= wanted.before,
        _ => false,
    }
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

/// The heads of the last mark, updated with the decisions recorded since.
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

/// Visits an account's entries of one kind in log order, until `visit` breaks. The first read has its own size: a
/// caller that mostly needs one entry reads one.
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

/// Limits `through` to a little after now. If the store's clock was far ahead for a time, the entries of that time are
/// read again for each mark; without the limit, entries stored after the clock was corrected would never be covered.
fn bounded_through(heads: &Heads, last: Option<&LastMark>, now: Timestamp) -> u64 {
    let latest = micros(now.checked_add(MAX_THROUGH_AHEAD).unwrap_or(Timestamp::MAX));
    heads.through.min(latest).max(last.map_or(0, |last| last.mark.through))
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

/// The head that an entry gives its writer: its last line, as one writer made all its lines. None if the line cannot be
/// read or names another account: a mark with that head would be wrong for ever.
fn head_of(entry: &Entry, account: &AccountId) -> Option<Head> {
    let line = entry.lines().last()?;
    let owner = serde_json::from_slice::<Owner>(line).ok()?.account;
    if owner.is_some_and(|owner| owner != *account) {
        return None;
    }
    serde_json::from_slice::<LineHeader>(line).ok().map(|header| header.head(line))
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

async fn sign(backplane: &Backplane, request: &SignMark) -> Result<SignedLine, MarkFailure> {
    match backplane.requests.request(request, SIGN_TIMEOUT).await {
        Ok(ManageReply::Done(MarkSigned { line, earlier: false })) => Ok(SignedLine::New(line)),
        Ok(ManageReply::Done(MarkSigned { line, earlier: true })) => Ok(SignedLine::Earlier(line)),
        Ok(ManageReply::Refused(Refusal::NotFound)) => Err(MarkFailure::UnknownAccount),
        Ok(ManageReply::Refused(Refusal::Conflict(why))) => Err(MarkFailure::Refused(why)),
        Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => Err(MarkFailure::Unsigned),
    }
}

impl LastMark {
    fn as_previous(&self) -> Previous {
        Previous { hash: self.hash, recorded_at: self.mark.recorded_at, expires_at: self.mark.expires_at }
    }

    /// Whether the mark covers an entry that is read again.
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

impl MarkLifetime {
    /// In seconds since the epoch. Until the removed decisions would have expired, their mark explains where they are.
    fn expiry(self, now: Timestamp) -> i64 {
        let after = |ttl: SignedDuration| now.checked_add(ttl).unwrap_or(Timestamp::MAX).as_second();
        let retention = SignedDuration::from_hours(24 * i64::from(self.retention_days));
        after(retention).max(self.until).min(after(MAX_MARK_TTL))
    }
}

/// When the last decision that a mark removes would have expired.
fn latest_expiry(body: &MarkBody) -> i64 {
    let removed = match body {
        MarkBody::Deletion(deletion) => deletion.deleted.as_slice(),
        MarkBody::Expiry(expiry) => expiry.expired.as_slice(),
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => &[],
    };
    removed.iter().map(|head| head.expires_at).max().unwrap_or(0)
}
