//! Marks: checkpoints, deletions and notices, numbered, signed and put between the decisions.
//!
//! Every mark names the heads of all writers. They are taken from the mark before and from what was recorded since, so
//! no exporter remembers anything; two who write at once meet in the log, where one of them is told to look again. A
//! mark tells nothing of other accounts: its `through` is a time and no place in the store's order.
//! INVARIANT: a deletion is written before anything is removed, and finished before any further mark is written.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{Backplane, Entry, Kind, MarkError, Position, ReadError, Seek, Which};
use stage0_contract::{
    AccountId, Deletion, Head, KeyId, LineHash, LineStart, ManageReply, Mark, MarkBody, MarkSigned, Previous, SignMark,
    WriterId,
};

use crate::metrics::{self, Removal};
use crate::shared::Shared;

const PIECE: usize = 4 << 20;
/// One entry, mostly.
const FIRST_LOOK: usize = 1;
const TRIES: usize = 5;
/// A checkpoint is not written so soon after another mark, as another exporter may have been faster.
pub(crate) const NOT_AGAIN_WITHIN: SignedDuration = SignedDuration::from_secs(2);
const SIGN_WITHIN: Duration = Duration::from_secs(3);
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
    #[error("the last mark cannot be read")]
    Unreadable,
    #[error("others were always first")]
    Overtaken,
}

/// The last mark of an account, if there is one.
struct Last {
    mark: Mark,
    hash: LineHash,
    position: Position,
}

/// Heads, as they are known up to a place in the log.
#[derive(Default)]
struct Heads {
    of: BTreeMap<WriterId, Head>,
    /// When the last of them was stored, in microseconds since the epoch.
    through: u64,
    covered: u64,
}

/// What goes on demand, and where the last of it stands.
struct Going {
    deletion: Deletion,
    through: Position,
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
    let done = try_to_write(backplane, account, retention_days, &body, pace, now).await;
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
    retention_days: u32,
    body: &MarkBody,
    pace: SignedDuration,
    now: Timestamp,
) -> Result<Written, MarkFailure> {
    for _ in 0..TRIES {
        let last = last(backplane, account).await?;
        if let Some(last) = &last {
            finish_deletion(backplane, account, &last.mark).await?;
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
            recorded_at: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
            expires_at: expiry(now, retention_days),
            through: heads.through,
            covered: heads.covered,
            heads: heads.of.into_values().collect(),
        };
        let line = sign(backplane, mark).await?;
        let after = last.as_ref().map(|last| last.position);
        match backplane.log.append_mark(account, line.into(), after, Shared::soon()).await {
            Ok(_) => return Ok(Written::Number(number)),
            Err(MarkError::Conflict) => {}
            // It may stand there: then the next attempt finds it, and its number is taken.
            Err(error @ MarkError::Failed(_)) => return Err(error.into()),
        }
    }
    Err(MarkFailure::Overtaken)
}

/// Removes what was recorded before a time: a signed mark first, then the decisions.
pub(crate) async fn delete(
    backplane: &Backplane,
    account: &AccountId,
    retention_days: u32,
    before: Timestamp,
    requested_by: &KeyId,
    now: Timestamp,
) -> Result<(Deletion, Option<u64>), MarkFailure> {
    // What a crash left undone belongs to an earlier mark.
    if let Some(last) = last(backplane, account).await? {
        finish_deletion(backplane, account, &last.mark).await?;
    }
    let Going { deletion, through } = what_goes(backplane, account, before, requested_by).await?;
    if deletion.count == 0 {
        return Ok((deletion, None));
    }
    let body = MarkBody::Deletion(deletion.clone());
    let written = write(backplane, account, retention_days, body, SignedDuration::ZERO, now).await?;
    let removed = backplane.log.remove_through(account, Kind::Decisions, through, Shared::soon()).await?;
    metrics::removed(Removal::Demand, removed);
    let number = match written {
        Written::Number(number) => Some(number),
        Written::Nothing | Written::TooSoon => None,
    };
    tracing::info!(%account, count = deletion.count, mark = number, "decisions were deleted on demand");
    Ok((deletion, number))
}

/// A deletion whose mark is written and whose removal may not have been: doing it twice does no harm.
pub(crate) async fn finish_deletion(
    backplane: &Backplane,
    account: &AccountId,
    mark: &Mark,
) -> Result<(), MarkFailure> {
    let MarkBody::Deletion(deletion) = &mark.body else { return Ok(()) };
    let through = match deletion.through {
        0 | FIRST_TIME.. => still_there(backplane, account, deletion).await?,
        place => Some(Position(place)),
    };
    if let Some(through) = through {
        let removed = backplane.log.remove_through(account, Kind::Decisions, through, Shared::soon()).await?;
        metrics::removed(Removal::Demand, removed);
    }
    Ok(())
}

/// The last place of what a deletion names and did not remove; normally there is none.
async fn still_there(
    backplane: &Backplane,
    account: &AccountId,
    deletion: &Deletion,
) -> Result<Option<Position>, MarkFailure> {
    let gone = |entry: &Entry| {
        let first = entry.lines().next().and_then(|line| serde_json::from_slice::<LineStart>(line).ok());
        let named = head_of(entry).is_some_and(|head| {
            deletion.deleted.iter().any(|last| last.writer == head.writer && last.sequence >= head.sequence)
        });
        named && first.is_some_and(|start| start.recorded_at < deletion.before)
    };
    let (mut last, mut seek, mut piece) = (None, Seek::Start, FIRST_LOOK);
    loop {
        let chunk = backplane.log.read(account, Which::Only(Kind::Decisions), seek, piece, Shared::soon()).await?;
        for entry in &chunk.entries {
            if !gone(entry) {
                return Ok(last);
            }
            last = Some(entry.position);
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => (seek, piece) = (Seek::After(last.position), PIECE),
            None => return Ok(last),
        }
    }
}

async fn last(backplane: &Backplane, account: &AccountId) -> Result<Option<Last>, MarkFailure> {
    let Some(entry) = backplane.log.last(account, Kind::Mark, Shared::soon()).await? else { return Ok(None) };
    let line = entry.lines().next().ok_or(MarkFailure::Unreadable)?;
    let mark = serde_json::from_slice(line).map_err(|_| MarkFailure::Unreadable)?;
    Ok(Some(Last { mark, hash: LineHash::of(line), position: entry.position }))
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
            heads.add(entry);
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => return Ok(heads),
        }
    }
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
        match head_of(entry) {
            // A head is left out of marks once it has expired.
            Some(head) if head.expires_at <= now.as_second() => before,
            Some(head) => {
                self.mark.heads.iter().any(|known| known.writer == head.writer && known.sequence >= head.sequence)
            }
            None => before,
        }
    }
}

/// An entry's lines are one writer's, so its last line tells.
fn head_of(entry: &Entry) -> Option<Head> {
    let line = entry.lines().last()?;
    serde_json::from_slice::<LineStart>(line).ok().map(|start| start.head(line))
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

impl Heads {
    fn add(&mut self, entry: &Entry) {
        self.through = micros(entry.stored_at).max(if self.through < FIRST_TIME { 0 } else { self.through });
        self.covered = self.covered.saturating_add(entry.lines().count() as u64);
        match head_of(entry) {
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

/// Walks over what was recorded before a time.
async fn what_goes(
    backplane: &Backplane,
    account: &AccountId,
    before: Timestamp,
    requested_by: &KeyId,
) -> Result<Going, MarkFailure> {
    let mut deletion = Deletion {
        before,
        from: None,
        to: None,
        count: 0,
        // An older exporter takes it for a place and removes all before: a time would remove everything.
        through: 0,
        deleted: Vec::new(),
        requested_by: requested_by.clone(),
    };
    let (mut gone, mut seek, mut last) = (Heads::default(), Seek::Start, Position(0));
    'log: loop {
        let read = backplane.log.read(account, Which::Only(Kind::Decisions), seek, PIECE, Shared::soon());
        let chunk = read.await?;
        for entry in &chunk.entries {
            // Lines that were appended together were recorded at the same moment.
            let start = entry.lines().next().and_then(|line| serde_json::from_slice::<LineStart>(line).ok());
            let Some(start) = start.filter(|start| start.recorded_at < before) else { break 'log };
            deletion.from = deletion.from.or(Some(start.recorded_at));
            deletion.to = Some(start.recorded_at);
            gone.add(entry);
            last = entry.position;
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => break,
        }
    }
    deletion.count = gone.covered;
    deletion.deleted = gone.of.into_values().collect();
    Ok(Going { deletion, through: last })
}

async fn sign(backplane: &Backplane, mark: Mark) -> Result<String, MarkFailure> {
    match backplane.requests.ask(&SignMark { mark }, SIGN_WITHIN).await {
        Ok(ManageReply::Done(MarkSigned { line })) => Ok(line),
        Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => Err(MarkFailure::Unsigned),
    }
}

fn expiry(now: Timestamp, retention_days: u32) -> i64 {
    let kept = SignedDuration::from_hours(24 * i64::from(retention_days));
    now.checked_add(kept).unwrap_or(Timestamp::MAX).as_second()
}
