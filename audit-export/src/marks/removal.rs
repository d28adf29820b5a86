//! What a mark of a removal takes with it: found before the mark is written, and again where a crash came between.
//!
//! Owns the walk over the beginning of an account's log. It goes in the order of the log and ends at the first entry
//! that was recorded at the removal's time or later. Removing is done twice without harm, as a mark names what goes.

use jiff::Timestamp;
use stage0_backplane::{Backplane, Entry, Kind, Position, Seek, Which};
use stage0_contract::{AccountId, Head, LineStart, Mark, MarkBody};

use super::{FIRST_TIME, Heads, MarkFailure, PIECE, head_of};
use crate::metrics::{self, Removal};
use crate::shared::Shared;

/// One entry, mostly.
const FIRST_LOOK: usize = 1;

/// What was recorded before a time, from the beginning of the log on.
#[derive(Default)]
pub(super) struct Going {
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
    pub(super) count: u64,
    /// The last one of each writer.
    pub(super) last: Vec<Head>,
    /// Where the last of it stands; none where nothing goes.
    pub(super) through: Option<Position>,
}

/// Marks that may go.
#[derive(Clone, Copy)]
pub(super) struct OldMarks {
    through: Position,
    /// When the last of them would expire by itself.
    pub(super) expire_at: i64,
}

/// A mark's removal.
struct Removed<'m> {
    before: Timestamp,
    last: &'m [Head],
    /// Of an older mark, the last one's place.
    place: Option<Position>,
    why: Removal,
}

/// Walks over what was recorded before a time.
pub(super) async fn going(backplane: &Backplane, account: &AccountId, before: Timestamp) -> Result<Going, MarkFailure> {
    let (mut gone, mut heads, mut seek) = (Going::default(), Heads::default(), Seek::Start);
    'log: loop {
        let read = backplane.log.read(account, Which::Only(Kind::Decisions), seek, PIECE, Shared::soon());
        let chunk = read.await?;
        for entry in &chunk.entries {
            match recorded(entry) {
                Some(at) if at >= before => break 'log,
                Some(at) => {
                    gone.from = gone.from.or(Some(at));
                    gone.to = Some(at);
                    heads.add(entry, account);
                }
                // What cannot be read keeps nothing behind it from going.
                None if entry.stored_at >= before => break 'log,
                None => {}
            }
            gone.through = Some(entry.position);
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => seek = Seek::After(last.position),
            None => break,
        }
    }
    gone.count = heads.covered;
    gone.last = heads.of.into_values().collect();
    Ok(gone)
}

/// When an entry's lines were recorded; none where they cannot be read. Lines that were appended together were recorded
/// at the same moment.
pub(super) fn recorded(entry: &Entry) -> Option<Timestamp> {
    let line = entry.lines().next()?;
    serde_json::from_slice::<LineStart>(line).ok().map(|start| start.recorded_at)
}

/// A removal whose mark is written and which itself may not have happened.
pub(super) async fn finish(backplane: &Backplane, account: &AccountId, mark: &Mark) -> Result<(), MarkFailure> {
    let Some(removed) = removed(&mark.body) else { return Ok(()) };
    let through = match removed.place {
        Some(place) => Some(place),
        None => still_there(backplane, account, &removed).await?,
    };
    if let Some(through) = through {
        remove(backplane, account, through, removed.why).await?;
    }
    if let MarkBody::Expiry(expiry) = &mark.body {
        remove_marks(backplane, account, Some(expiry.before), mark.recorded_at).await?;
    }
    Ok(())
}

pub(super) async fn remove(
    backplane: &Backplane,
    account: &AccountId,
    through: Position,
    why: Removal,
) -> Result<u64, MarkFailure> {
    let removed = backplane.log.remove_through(account, Kind::Decisions, through, Shared::soon()).await?;
    metrics::removed(why, removed);
    Ok(removed)
}

/// Removes the marks at the beginning that are expired, or were recorded before a removal's time.
pub(super) async fn remove_marks(
    backplane: &Backplane,
    account: &AccountId,
    before: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), MarkFailure> {
    if let Some(OldMarks { through, .. }) = old_marks(backplane, account, before, now).await? {
        let removed = backplane.log.remove_through(account, Kind::Mark, through, Shared::soon()).await?;
        metrics::removed(Removal::Retention, removed);
    }
    Ok(())
}

/// The marks at the beginning that may go. The last one stays, as the next one follows it.
pub(super) async fn old_marks(
    backplane: &Backplane,
    account: &AccountId,
    before: Option<Timestamp>,
    now: Timestamp,
) -> Result<Option<OldMarks>, MarkFailure> {
    let (mut found, mut seek, mut piece, mut newest) = (None::<OldMarks>, Seek::Start, FIRST_LOOK, None);
    loop {
        let chunk = backplane.log.read(account, Which::Only(Kind::Mark), seek, piece, Shared::soon()).await?;
        for entry in &chunk.entries {
            let mark = entry.lines().next().and_then(|line| serde_json::from_slice::<Mark>(line).ok());
            let recorded = mark.as_ref().map_or(entry.stored_at, |mark| mark.recorded_at);
            let expires = mark.map_or(i64::MAX, |mark| mark.expires_at);
            if expires > now.as_second() && before.is_none_or(|before| recorded >= before) {
                return Ok(found);
            }
            let newest = match newest {
                Some(newest) => newest,
                None => {
                    let last = backplane.log.last(account, Kind::Mark, Shared::soon()).await?;
                    *newest.insert(last.map_or(Position(0), |last| last.position))
                }
            };
            if entry.position >= newest {
                return Ok(found);
            }
            let expire_at = if expires == i64::MAX { 0 } else { expires };
            let expire_at = found.map_or(expire_at, |before| before.expire_at.max(expire_at));
            found = Some(OldMarks { through: entry.position, expire_at });
        }
        match chunk.entries.last().filter(|_| chunk.more) {
            Some(last) => (seek, piece) = (Seek::After(last.position), PIECE),
            None => return Ok(found),
        }
    }
}

fn removed(body: &MarkBody) -> Option<Removed<'_>> {
    match body {
        MarkBody::Deletion(deletion) => Some(Removed {
            before: deletion.before,
            last: &deletion.deleted,
            place: (1..FIRST_TIME).contains(&deletion.through).then_some(Position(deletion.through)),
            why: Removal::Demand,
        }),
        MarkBody::Expiry(expiry) => {
            let (before, last) = (expiry.before, expiry.expired.as_slice());
            Some(Removed { before, last, place: None, why: Removal::Retention })
        }
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => None,
    }
}

/// The last place of what a mark names and was not removed; normally there is none.
async fn still_there(
    backplane: &Backplane,
    account: &AccountId,
    removed: &Removed<'_>,
) -> Result<Option<Position>, MarkFailure> {
    let gone = |entry: &Entry| {
        let named = head_of(entry, account).is_some_and(|head| {
            removed.last.iter().any(|last| last.writer == head.writer && last.sequence >= head.sequence)
        });
        named && recorded(entry).is_some_and(|at| at < removed.before)
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
