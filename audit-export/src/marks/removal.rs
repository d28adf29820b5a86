//! Removes decisions and marks from the beginning of an account's log.
//!
//! Removals go in log order and end at the first entry that was recorded at the removal's time or later. Removing twice
//! does no harm, as the mark names what is removed.

use std::ops::ControlFlow;

use jiff::Timestamp;
use stage0_backplane::{Backplane, Entry, EntryKind, Position, Seek};
use stage0_contract::{AccountId, ChainedLine, Head, Mark, MarkBody};

use super::{Heads, MIN_THROUGH_MICROS, MarkFailure, READ_CHUNK_BYTES, head_of, scan};
use crate::metrics::{self, RemovalReason};
use crate::shared::Shared;

const FIRST_READ_BYTES: usize = 1;

#[derive(Default)]
pub(super) struct RemovalPlan {
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
    pub(super) count: u64,
    pub(super) heads: Vec<Head>,
    pub(super) through: Option<Position>,
}

#[derive(Clone, Copy)]
pub(super) struct OldMarks {
    through: Position,
    pub(super) expire_at: i64,
}

struct MarkedRemoval<'m> {
    before: Timestamp,
    heads: &'m [Head],
    /// The last entry's position, which only marks of an older version have.
    position: Option<Position>,
    reason: RemovalReason,
}

pub(super) async fn plan(
    backplane: &Backplane,
    account: &AccountId,
    before: Timestamp,
) -> Result<RemovalPlan, MarkFailure> {
    let mut plan = RemovalPlan::default();
    let mut heads = Heads::default();
    let add = |entry: &Entry| {
        match recorded_at(entry) {
            Some(at) if at >= before => return ControlFlow::Break(()),
            Some(at) => {
                plan.from = plan.from.or(Some(at));
                plan.to = Some(at);
                heads.add(entry, account);
            }
            // An entry that cannot be read does not keep the entries after it.
            None if entry.stored_at >= before => return ControlFlow::Break(()),
            None => {}
        }
        plan.through = Some(entry.position);
        ControlFlow::Continue(())
    };
    scan(backplane, account, EntryKind::Decisions, (Seek::Start, READ_CHUNK_BYTES), add).await?;
    plan.count = heads.covered;
    plan.heads = heads.of.into_values().collect();
    Ok(plan)
}

/// When an entry's lines were recorded, which is the same moment for all of them; none if they cannot be read.
pub(super) fn recorded_at(entry: &Entry) -> Option<Timestamp> {
    let line = entry.lines().next()?;
    ChainedLine::read(line).map(|chained| chained.recorded_at)
}

/// Finishes the removal of a mark that is written, in case a crash interrupted it.
pub(super) async fn finish(backplane: &Backplane, account: &AccountId, mark: &Mark) -> Result<(), MarkFailure> {
    let Some(removal) = removal_of(&mark.body) else { return Ok(()) };
    let through = match removal.position {
        Some(position) => Some(position),
        None => last_remaining(backplane, account, &removal).await?,
    };
    if let Some(through) = through {
        remove(backplane, account, through, removal.reason).await?;
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
    reason: RemovalReason,
) -> Result<u64, MarkFailure> {
    let removed =
        backplane.log.remove_through(account, EntryKind::Decisions, through, Shared::store_deadline()).await?;
    metrics::removed(reason, removed);
    Ok(removed)
}

/// Removes the marks at the beginning that have expired, or that were recorded before a removal's time.
pub(super) async fn remove_marks(
    backplane: &Backplane,
    account: &AccountId,
    before: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), MarkFailure> {
    if let Some(OldMarks { through, .. }) = old_marks(backplane, account, before, now).await? {
        let removed = backplane.log.remove_through(account, EntryKind::Mark, through, Shared::store_deadline()).await?;
        metrics::removed(RemovalReason::Retention, removed);
    }
    Ok(())
}

/// Finds the marks that [`remove_marks`] removes. The last mark always stays, as the next one refers to it.
pub(super) async fn old_marks(
    backplane: &Backplane,
    account: &AccountId,
    before: Option<Timestamp>,
    now: Timestamp,
) -> Result<Option<OldMarks>, MarkFailure> {
    let mut found = None::<OldMarks>;
    // An old mark may be removed once another mark is seen after it.
    let mut candidate = None;
    let check = |entry: &Entry| {
        found = candidate.take().or(found);
        let mark = entry.lines().next().and_then(|line| serde_json::from_slice::<Mark>(line).ok());
        let recorded_at = mark.as_ref().map_or(entry.stored_at, |mark| mark.recorded_at);
        let expires_at = mark.map(|mark| mark.expires_at);
        let is_expired = expires_at.is_some_and(|at| at <= now.as_second());
        if !is_expired && before.is_none_or(|before| recorded_at >= before) {
            return ControlFlow::Break(());
        }
        let expire_at = found.map_or(0, |before| before.expire_at).max(expires_at.unwrap_or(0));
        candidate = Some(OldMarks { through: entry.position, expire_at });
        ControlFlow::Continue(())
    };
    scan(backplane, account, EntryKind::Mark, (Seek::Start, FIRST_READ_BYTES), check).await?;
    Ok(found)
}

fn removal_of(body: &MarkBody) -> Option<MarkedRemoval<'_>> {
    match body {
        MarkBody::Deletion(deletion) => Some(MarkedRemoval {
            before: deletion.before,
            heads: &deletion.deleted,
            position: (1..MIN_THROUGH_MICROS).contains(&deletion.through).then_some(Position(deletion.through)),
            reason: RemovalReason::Deletion,
        }),
        MarkBody::Expiry(expiry) => Some(MarkedRemoval {
            before: expiry.before,
            heads: &expiry.expired,
            position: None,
            reason: RemovalReason::Retention,
        }),
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => None,
    }
}

/// The position of the last entry that a mark names and that was not removed; normally there is none.
async fn last_remaining(
    backplane: &Backplane,
    account: &AccountId,
    removal: &MarkedRemoval<'_>,
) -> Result<Option<Position>, MarkFailure> {
    let is_named = |entry: &Entry| {
        let named = head_of(entry, account).is_some_and(|head| {
            removal.heads.iter().any(|last| last.writer == head.writer && last.sequence >= head.sequence)
        });
        named && recorded_at(entry).is_some_and(|at| at < removal.before)
    };
    let mut last = None;
    let check = |entry: &Entry| {
        if !is_named(entry) {
            return ControlFlow::Break(());
        }
        last = Some(entry.position);
        ControlFlow::Continue(())
    };
    scan(backplane, account, EntryKind::Decisions, (Seek::Start, FIRST_READ_BYTES), check).await?;
    Ok(last)
}
