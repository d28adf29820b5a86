//! Marks: checkpoints, deletions and notices, numbered, signed and put between the decisions.
//!
//! Every mark names the heads of all writers. They are taken from the mark before and from what was recorded since, so
//! no exporter remembers anything; two who write at once meet in the log, where one of them is told to look again. A
//! mark tells nothing of other accounts: its `through` is a time and no place in the store's order.
//! The keystore signs one mark for each number. What it signed and the log does not hold, as a crash came between, is
//! stored before any other: it is given again to whoever asks for the next one.
//! INVARIANT: the mark of a removal is written before anything is removed, and the removal is finished before any
//! further mark is written.

mod removal;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use stage0_backplane::{Backplane, Entry, Kind, MarkError, Position, ReadError, Seek, Which};
use stage0_contract::{
    AccountId, Deletion, DeletionPermit, Expiry, Head, KeyId, LineHash, LineStart, ManageReply, Mark, MarkBody,
    MarkSigned, Previous, Refusal, SignMark, WriterId,
};

use crate::metrics::{self, Removal};
use crate::shared::Shared;
use removal::Going;

const PIECE: usize = 4 << 20;
const TRIES: usize = 5;
/// A checkpoint is not written so soon after another mark, as another exporter may have been faster.
pub(crate) const NOT_AGAIN_WITHIN: SignedDuration = SignedDuration::from_secs(2);
const SIGN_WITHIN: Duration = Duration::from_secs(3);
/// What is past its retention waits until it is an hour of the log, so that marks of removals do not fill it.
const MIN_REMOVAL: SignedDuration = SignedDuration::from_hours(1);
/// A mark covers nothing that was stored later: the keystore signs none that does.
const MAX_THROUGH_AHEAD: SignedDuration = SignedDuration::from_mins(30);
/// No mark lasts longer: a day more than the longest retention.
const MAX_MARK_TTL: SignedDuration = SignedDuration::from_hours(24 * 3_651);
/// A `through` below is an older one on NATS: a sequence number of the stream. As a time it would lie in the year 1973.
const FIRST_TIME: u64 = 100_000_000_000_000;
/// So much before the time of the last mark is read again: what was stored behind it may bear an earlier time, by a
/// clock that was set back.
const OVERLAP: SignedDuration = SignedDuration::from_secs(2);

/// What became of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It has this number.
    Number(u64),
    /// There was nothing to say.
    Nothing,
    /// Another mark stands so close before that nobody looked whether there is something to say.
    TooSoon,
}

/// A mark could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkFailure {
    #[error("{0}")]
    Log(#[from] ReadError),
    #[error("{0}")]
    Append(#[from] MarkError),
    #[error("the keystore did not sign")]
    Unsigned,
    #[error("the keystore refused to sign: {0}")]
    Refused(String),
    #[error("the keystore knows of no such account")]
    UnknownAccount,
    #[error("others were always first")]
    Overtaken,
}

/// The last mark of an account.
struct Last {
    mark: Mark,
    line: String,
    hash: LineHash,
    position: Position,
}

/// What an account's row of marks ends with.
enum End {
    Nothing,
    Mark(Box<Last>),
    /// What stands there is no mark. Nothing follows it: the keystore knows the last mark.
    Unreadable(Position),
}

/// How long a mark is kept.
#[derive(Clone, Copy)]
struct Lasts {
    /// As a decision that is recorded beside it.
    days: u32,
    /// What it removes would have expired by itself then; in seconds since the epoch.
    until: i64,
}

/// What the keystore gave.
enum Signed {
    /// What was asked for.
    New(String),
    /// What it signed before and the log does not end with.
    Earlier(String),
}

/// Heads, as they are known up to a place in the log.
#[derive(Default)]
struct Heads {
    of: BTreeMap<WriterId, Head>,
    /// When the last of them was stored, in microseconds since the epoch.
    through: u64,
    covered: u64,
}

/// Writes a mark; a checkpoint only if there is something that no mark covers yet, and the last mark is not younger than `pace`.
pub(crate) async fn write(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    body: MarkBody,
    pace: SignedDuration,
    now: Timestamp,
) -> Result<Written, MarkFailure> {
    let lasts = Lasts { days: retention_days, until: latest_end(&body) };
    write_lasting(backplane, account, lasts, (body, None), pace, now).await
}

/// The permit: of a deletion.
async fn write_lasting(
    backplane: &Backplane,
    account: &AccountId,
    lasts: Lasts,
    (body, permit): (MarkBody, Option<&DeletionPermit>),
    pace: SignedDuration,
    now: Timestamp,
) -> Result<Written, MarkFailure> {
    let done = try_to_write(backplane, account, lasts, (&body, permit), pace, now).await;
    match &done {
        Ok(Written::Number(_)) => metrics::mark(&body, true),
        Ok(Written::Nothing | Written::TooSoon) => {}
        Err(_) => metrics::mark(&body, false),
    }
    done
}

async fn try_to_write(
    backplane: &Backplane,
    account: &AccountId,
    lasts: Lasts,
    (body, permit): (&MarkBody, Option<&DeletionPermit>),
    pace: SignedDuration,
    now: Timestamp,
) -> Result<Written, MarkFailure> {
    let mut signed = None;
    for _ in 0..TRIES {
        let (last, end) = match end(backplane, account).await? {
            End::Nothing => (None, None),
            End::Mark(last) => {
                let position = last.position;
                (Some(*last), Some(position))
            }
            End::Unreadable(position) => {
                tracing::error!(%account, position = position.0, "the last mark of the decision log cannot be read");
                (None, Some(position))
            }
        };
        if let Some(last) = &last {
            removal::finish(backplane, account, &last.mark).await?;
            // Another exporter was given the same line, and stored it first.
            if signed == Some(last.hash) {
                return Ok(Written::Number(last.mark.number));
            }
            if is_removed_already(body, &last.mark) {
                return Ok(Written::Nothing);
            }
        }
        let is_checkpoint = *body == MarkBody::Checkpoint {};
        // A mark of later than now is one that a wrong clock made: it keeps nobody waiting.
        let soon = last.as_ref().is_some_and(|last| now.duration_since(last.mark.recorded_at).abs() < pace);
        if is_checkpoint && soon {
            return Ok(Written::TooSoon);
        }
        let heads = heads(backplane, account, last.as_ref(), now).await?;
        if is_checkpoint && heads.covered == 0 {
            return Ok(Written::Nothing);
        }
        let number = last.as_ref().map_or(1, |last| last.mark.number.saturating_add(1));
        let mark = Mark {
            body: body.clone(),
            account: account.clone(),
            number,
            previous: last.as_ref().map(Last::as_previous),
            recorded_at: whole_millis(now),
            expires_at: lasts.expiry(now),
            through: bounded_through(&heads, last.as_ref(), now),
            covered: heads.covered,
            heads: heads.of.into_values().collect(),
        };
        let asked = SignMark { mark, last: last.map(|last| last.line), takes_earlier: true, permit: permit.cloned() };
        let (line, earlier) = match sign(backplane, &asked).await? {
            Signed::New(line) => (line, false),
            Signed::Earlier(line) => (line, true),
        };
        if !earlier {
            signed = Some(LineHash::of(line.as_bytes()));
        }
        match backplane.log.append_mark(account, line.into(), end, Shared::soon()).await {
            Ok(_) if earlier => tracing::info!(%account, "a mark that was signed before and not stored was stored"),
            Ok(_) => return Ok(Written::Number(number)),
            Err(MarkError::Conflict) => {}
            // It may stand there: then the next attempt finds it, and its number is taken.
            Err(error @ MarkError::Failed(_)) => return Err(error.into()),
        }
    }
    Err(MarkFailure::Overtaken)
}

/// What a caller asked to be deleted.
pub(crate) struct Demand {
    pub(crate) before: Timestamp,
    pub(crate) requested_by: KeyId,
    /// The keystore signs the mark with it and not without.
    pub(crate) permit: DeletionPermit,
}

/// Removes what was recorded before a time: a signed mark first, then the decisions.
pub(crate) async fn delete(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    demand: &Demand,
    now: Timestamp,
) -> Result<(Deletion, Option<u64>), MarkFailure> {
    // What a crash left undone belongs to an earlier mark.
    if let End::Mark(last) = end(backplane, account).await? {
        removal::finish(backplane, account, &last.mark).await?;
    }
    let Going { from, to, count, last, through } = removal::going(backplane, account, demand.before).await?;
    let deletion = Deletion {
        before: demand.before,
        from,
        to,
        count,
        // An older exporter takes it for a place and removes all before: a time would remove everything.
        through: 0,
        deleted: last,
        requested_by: demand.requested_by.clone(),
    };
    let Some(through) = through.filter(|_| count > 0) else { return Ok((deletion, None)) };
    let body = MarkBody::Deletion(deletion.clone());
    let lasts = Lasts { days: retention_days, until: latest_end(&body) };
    let body = (body, Some(&demand.permit));
    let written = write_lasting(backplane, account, lasts, body, SignedDuration::ZERO, now).await?;
    removal::remove(backplane, account, through, Removal::Demand).await?;
    let number = match written {
        Written::Number(number) => Some(number),
        Written::Nothing | Written::TooSoon => None,
    };
    tracing::info!(%account, count = deletion.count, mark = number, "decisions were deleted on demand");
    Ok((deletion, number))
}

/// Removes the first stretch of what is past an account's retention: a signed mark first, then decisions and marks.
/// Gives the number of entries.
pub(crate) async fn expire(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    span: Duration,
    now: Timestamp,
) -> Result<u64, MarkFailure> {
    removal::remove_marks(backplane, account, None, now).await?;
    let kept = SignedDuration::from_hours(24 * i64::from(retention_days));
    let horizon = whole_millis(now).checked_sub(kept).unwrap_or(Timestamp::UNIX_EPOCH);
    let read = backplane.log.read(account, Which::Only(Kind::Decisions), Seek::Start, 1, Shared::soon());
    let first = read.await?.entries.into_iter().next();
    let Some(begin) = first.map(|entry| removal::recorded(&entry).unwrap_or(entry.stored_at)) else { return Ok(0) };
    if horizon.duration_since(begin) < MIN_REMOVAL {
        return Ok(0);
    }
    let before = begin.checked_add(span).map_or(horizon, |end| end.min(horizon));
    let Going { from, to, count, last, through } = removal::going(backplane, account, before).await?;
    let Some(through) = through else { return Ok(0) };
    let body = MarkBody::Expiry(Expiry { horizon, retention_days, before, from, to, count, expired: last });
    let marks = removal::old_marks(backplane, account, Some(before), now).await?;
    let until = latest_end(&body).max(marks.map_or(0, |marks| marks.expire_at));
    let lasts = Lasts { days: retention_days, until };
    match write_lasting(backplane, account, lasts, (body, None), SignedDuration::ZERO, now).await {
        Ok(Written::Nothing) => return Ok(0),
        // Nobody can ask for this log any more, so nobody misses what goes from it.
        Err(MarkFailure::UnknownAccount) => {
            tracing::warn!(%account, "the keystore does not know this account: what is past its time goes without a mark");
        }
        Ok(Written::Number(_) | Written::TooSoon) => {}
        Err(error) => return Err(error),
    }
    let removed = removal::remove(backplane, account, through, Removal::Retention).await?;
    removal::remove_marks(backplane, account, Some(before), now).await?;
    Ok(removed)
}

/// Another exporter removed the same by its own mark.
fn is_removed_already(body: &MarkBody, last: &Mark) -> bool {
    match (body, &last.body) {
        (MarkBody::Expiry(wanted), MarkBody::Expiry(done)) => done.before >= wanted.before,
        _ => false,
    }
}

async fn end(backplane: &Backplane, account: &AccountId) -> Result<End, MarkFailure> {
    let Some(entry) = backplane.log.last(account, Kind::Mark, Shared::soon()).await? else { return Ok(End::Nothing) };
    let line = entry.lines().next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let Ok(mark) = serde_json::from_str(line) else { return Ok(End::Unreadable(entry.position)) };
    let (hash, line, position) = (LineHash::of(line.as_bytes()), line.to_owned(), entry.position);
    Ok(End::Mark(Box::new(Last { mark, line, hash, position })))
}

impl Last {
    fn as_previous(&self) -> Previous {
        Previous { hash: self.hash, recorded_at: self.mark.recorded_at, expires_at: self.mark.expires_at }
    }
}

/// The heads of the last mark, moved on by what was recorded since.
async fn heads(
    backplane: &Backplane,
    account: &AccountId,
    last: Option<&Last>,
    now: Timestamp,
) -> Result<Heads, MarkFailure> {
    let mut heads = Heads::default();
    let mut seek = Seek::Start;
    if let Some(last) = last {
        heads.through = last.mark.through;
        let known = last.mark.heads.iter().filter(|head| head.expires_at > now.as_second());
        heads.of = known.map(|head| (head.writer, *head)).collect();
        seek = behind(heads.through);
    }
    loop {
        let read = backplane.log.read(account, Which::Only(Kind::Decisions), seek, PIECE, Shared::soon());
        let chunk = read.await?;
        for entry in chunk.entries.iter().filter(|entry| !last.is_some_and(|last| last.covers(entry, now))) {
            heads.add(entry, account);
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => return Ok(heads),
        }
    }
}

/// What a store stored whose clock was far ahead is read again each time, rather than all that it stores once its clock
/// is right never being read.
fn bounded_through(heads: &Heads, last: Option<&Last>, now: Timestamp) -> u64 {
    let latest = micros(now.checked_add(MAX_THROUGH_AHEAD).unwrap_or(Timestamp::MAX));
    heads.through.min(latest).max(last.map_or(0, |last| last.mark.through))
}

/// Where what a mark does not cover begins, or a little before.
fn behind(through: u64) -> Seek {
    if through == 0 {
        return Seek::Start;
    }
    let stored_at = i64::try_from(through).ok().filter(|_| through >= FIRST_TIME).map(Timestamp::from_microsecond);
    match stored_at {
        Some(Ok(stored_at)) => Seek::Time(stored_at.checked_sub(OVERLAP).unwrap_or(Timestamp::UNIX_EPOCH)),
        Some(Err(_)) | None => Seek::After(Position(through)),
    }
}

impl Last {
    /// Whether the mark covers an entry that is read once more.
    fn covers(&self, entry: &Entry, now: Timestamp) -> bool {
        if self.mark.through < FIRST_TIME {
            return false;
        }
        let before = micros(entry.stored_at) <= self.mark.through;
        match head_of(entry, &self.mark.account) {
            // A head is left out of marks once it has expired.
            Some(head) if head.expires_at <= now.as_second() => before,
            Some(head) => {
                self.mark.heads.iter().any(|known| known.writer == head.writer && known.sequence >= head.sequence)
            }
            None => before,
        }
    }
}

/// An entry's lines are one writer's, so its last line tells. None where that is no decision of this account: a mark
/// that named another one's would be wrong for ever.
fn head_of(entry: &Entry, account: &AccountId) -> Option<Head> {
    let line = entry.lines().last()?;
    let Whose { account: whose } = serde_json::from_slice(line).ok()?;
    if whose.is_some_and(|whose| whose != *account) {
        return None;
    }
    serde_json::from_slice::<LineStart>(line).ok().map(|start| start.head(line))
}

#[derive(Deserialize)]
struct Whose {
    #[serde(default)]
    account: Option<AccountId>,
}

fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

impl Heads {
    fn add(&mut self, entry: &Entry, account: &AccountId) {
        self.through = micros(entry.stored_at).max(if self.through < FIRST_TIME { 0 } else { self.through });
        self.covered = self.covered.saturating_add(entry.lines().count() as u64);
        match head_of(entry, account) {
            Some(head) => {
                let known = self.of.entry(head.writer).or_insert(head);
                if head.sequence >= known.sequence {
                    *known = head;
                }
            }
            // A verification says more.
            None => tracing::error!(position = entry.position.0, "a line of the decision log cannot be read"),
        }
    }
}

async fn sign(backplane: &Backplane, asked: &SignMark) -> Result<Signed, MarkFailure> {
    match backplane.requests.ask(asked, SIGN_WITHIN).await {
        Ok(ManageReply::Done(MarkSigned { line, earlier: false })) => Ok(Signed::New(line)),
        Ok(ManageReply::Done(MarkSigned { line, earlier: true })) => Ok(Signed::Earlier(line)),
        Ok(ManageReply::Refused(Refusal::NotFound)) => Err(MarkFailure::UnknownAccount),
        Ok(ManageReply::Refused(Refusal::Conflict(why))) => Err(MarkFailure::Refused(why)),
        Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => Err(MarkFailure::Unsigned),
    }
}

impl Lasts {
    /// The later of both: until what a mark removed would have expired, somebody may ask where it is.
    fn expiry(self, now: Timestamp) -> i64 {
        let after = |ttl: SignedDuration| now.checked_add(ttl).unwrap_or(Timestamp::MAX).as_second();
        after(SignedDuration::from_hours(24 * i64::from(self.days))).max(self.until).min(after(MAX_MARK_TTL))
    }
}

/// When the last of what a mark removes would have expired by itself.
fn latest_end(body: &MarkBody) -> i64 {
    let removed = match body {
        MarkBody::Deletion(deletion) => deletion.deleted.as_slice(),
        MarkBody::Expiry(expiry) => expiry.expired.as_slice(),
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => &[],
    };
    removed.iter().map(|head| head.expires_at).max().unwrap_or(0)
}
