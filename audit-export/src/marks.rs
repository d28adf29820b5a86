//! Marks: checkpoints, deletions and notices, numbered, signed and put between the decisions.
//!
//! Every mark names the heads of all writers. They are taken from the mark before and from what was recorded since, so no exporter
//! remembers anything; two who write at once meet in the log, where one of them is told to look again.
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
const TRIES: usize = 5;
/// A checkpoint is not written so soon after another mark, as another exporter may have been faster.
pub(crate) const NOT_AGAIN_WITHIN: SignedDuration = SignedDuration::from_secs(2);
const SIGN_WITHIN: Duration = Duration::from_secs(3);

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
) -> Result<Written, MarkFailure> {
    let done = try_to_write(backplane, account, retention_days, &body, pace).await;
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
) -> Result<Written, MarkFailure> {
    for _ in 0..TRIES {
        let last = last(backplane, account).await?;
        if let Some(last) = &last {
            finish_deletion(backplane, account, &last.mark).await?;
        }
        let now = Timestamp::now();
        let is_checkpoint = *body == MarkBody::Checkpoint {};
        let soon = last.as_ref().is_some_and(|last| now.duration_since(last.mark.recorded_at) < pace);
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
) -> Result<(Deletion, Option<u64>), MarkFailure> {
    // What a crash left undone belongs to an earlier mark.
    if let Some(last) = last(backplane, account).await? {
        finish_deletion(backplane, account, &last.mark).await?;
    }
    let deletion = what_goes(backplane, account, before, requested_by).await?;
    if deletion.count == 0 {
        return Ok((deletion, None));
    }
    let body = MarkBody::Deletion(deletion.clone());
    let written = write(backplane, account, retention_days, body, SignedDuration::ZERO).await?;
    let through = Position(deletion.through);
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
    if let MarkBody::Deletion(deletion) = &mark.body {
        let through = Position(deletion.through);
        let removed = backplane.log.remove_through(account, Kind::Decisions, through, Shared::soon()).await?;
        metrics::removed(Removal::Demand, removed);
    }
    Ok(())
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
    if let Some(last) = last {
        heads.through = last.mark.through;
        let known = last.mark.heads.iter().filter(|head| head.expires_at > now.as_second());
        heads.of = known.map(|head| (head.writer, *head)).collect();
    }
    let mut seek = if heads.through == 0 { Seek::Start } else { Seek::After(Position(heads.through)) };
    loop {
        let read = backplane.log.read(account, Which::Only(Kind::Decisions), seek, PIECE, Shared::soon());
        let chunk = read.await?;
        for entry in &chunk.entries {
            heads.add(entry);
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => return Ok(heads),
        }
    }
}

impl Heads {
    /// An entry's lines are one writer's, so its last line tells.
    fn add(&mut self, entry: &Entry) {
        self.through = entry.position.0;
        self.covered = self.covered.saturating_add(entry.lines().count() as u64);
        let Some(line) = entry.lines().last() else { return };
        match serde_json::from_slice::<LineStart>(line) {
            Ok(start) => {
                let head = start.head(line);
                let known = self.of.entry(head.writer).or_insert(head);
                if head.sequence >= known.sequence {
                    *known = head;
                }
            }
            // A verification says more.
            Err(_) => tracing::error!(position = entry.position.0, "a line of the decision log cannot be read"),
        }
    }
}

/// Walks over what was recorded before a time.
async fn what_goes(
    backplane: &Backplane,
    account: &AccountId,
    before: Timestamp,
    requested_by: &KeyId,
) -> Result<Deletion, MarkFailure> {
    let mut deletion = Deletion {
        before,
        from: None,
        to: None,
        count: 0,
        through: 0,
        deleted: Vec::new(),
        requested_by: requested_by.clone(),
    };
    let (mut gone, mut seek) = (Heads::default(), Seek::Start);
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
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => break,
        }
    }
    deletion.count = gone.covered;
    deletion.through = gone.through;
    deletion.deleted = gone.of.into_values().collect();
    Ok(deletion)
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
