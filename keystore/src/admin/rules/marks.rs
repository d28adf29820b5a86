//! Whether a mark may follow the last one that was signed for its account: pure.
//!
//! A signature means something even if an exporter is taken over: numbers rise by one, each mark names the hash of the
//! line that was signed last, heads never go back or change, times are near, and no removal cuts the account's
//! retention. A request for another mark with a number that was signed gets the signed line. Whether the heads agree
//! with the log is for the log's verification.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{Deletion, Expiry, Head, LineHash, Mark, MarkBody, Previous, WriterId};

/// Between the clocks of exporter, log and keystore. With more skew, exporters remove nothing either.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);
const MIN_MARK_TTL: SignedDuration = SignedDuration::from_hours(24);
/// At most the longest retention, and a day for what was recorded a little earlier.
const MAX_MARK_TTL: SignedDuration = SignedDuration::from_hours(24 * 3_651);
/// Gateways that may have started within the retention. Invented writers would enlarge every later mark.
const MAX_HEADS: usize = 10_000;
/// A smaller `through` is a position in the log's order and not a time in microseconds.
const MIN_THROUGH_TIME: u64 = 100_000_000_000_000;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LastMark {
    pub(crate) mark: Mark,
    pub(crate) line: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MarkFault {
    #[error("its number was given to another mark already")]
    Taken,
    #[error("its number does not follow that of the last mark that was signed")]
    Number,
    #[error("it does not follow the last mark that was signed")]
    Previous,
    #[error("the mark that it is to follow was not signed here")]
    Unproven,
    #[error("its time is too far from this keystore's")]
    Time,
    #[error("it would expire too early, or too late")]
    Expiry,
    #[error("it covers what was stored before, or later than now")]
    Through,
    #[error("it names a writer twice")]
    Twice,
    #[error("it names more than {MAX_HEADS} writers")]
    Heads,
    #[error("it takes back a decision that a signed mark names")]
    HeadsBack,
    #[error("it names another decision than a signed mark does")]
    HeadsDiffer,
    #[error("it leaves out a decision that has not expired")]
    HeadsMissing,
    #[error("it names removed decisions that are not older than what it says was removed")]
    Removed,
    #[error("it removes what the account's retention still keeps")]
    Retention,
}

impl MarkFault {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Number => "number",
            Self::Previous => "previous",
            Self::Unproven => "unproven",
            Self::Time => "time",
            Self::Expiry => "expiry",
            Self::Through => "through",
            Self::Twice => "twice",
            Self::Heads => "heads",
            Self::HeadsBack => "heads_back",
            Self::HeadsDiffer => "heads_differ",
            Self::HeadsMissing => "heads_missing",
            Self::Removed => "removed",
            Self::Retention => "retention",
        }
    }
}

impl LastMark {
    pub(crate) fn parse(line: String) -> Result<Self, serde_json::Error> {
        Ok(Self { mark: serde_json::from_str(&line)?, line })
    }

    pub(crate) fn hash(&self) -> LineHash {
        LineHash::of(self.line.as_bytes())
    }

    fn as_previous(&self) -> Previous {
        Previous { hash: self.hash(), recorded_at: self.mark.recorded_at, expires_at: self.mark.expires_at }
    }
}

/// Checks the next mark of an account that keeps decisions for `retention_days`.
pub(crate) fn follows(
    next: &Mark,
    last: Option<&LastMark>,
    retention_days: u32,
    now: Timestamp,
) -> Result<(), MarkFault> {
    in_row(next, last)?;
    times(next, last.map(|last| &last.mark), now)?;
    let named = by_writer(&next.heads)?;
    if let Some(last) = last {
        heads(&named, &last.mark, now)?;
    }
    match &next.body {
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => Ok(()),
        MarkBody::Deletion(Deletion { before, deleted, .. }) => removed(next, &named, last, deleted, *before),
        MarkBody::Expiry(Expiry { horizon, retention_days: said, before, expired, .. }) => {
            let kept = SignedDuration::from_hours(24 * i64::from(retention_days));
            let latest = now.checked_sub(kept).and_then(|latest| latest.checked_add(MAX_CLOCK_SKEW));
            if *said != retention_days || before > horizon || latest.is_ok_and(|latest| *horizon > latest) {
                return Err(MarkFault::Retention);
            }
            removed(next, &named, last, expired, *before)
        }
    }
}

/// Whether a mark names another decision than the signed one under the same number. No honest exporter does.
pub(crate) fn contradicts(next: &Mark, last: &Mark) -> bool {
    let signed: BTreeMap<(WriterId, u64), LineHash> =
        last.heads.iter().map(|head| ((head.writer, head.sequence), head.hash)).collect();
    next.heads.iter().any(|head| signed.get(&(head.writer, head.sequence)).is_some_and(|hash| *hash != head.hash))
}

fn in_row(next: &Mark, last: Option<&LastMark>) -> Result<(), MarkFault> {
    let (number, previous) = match last {
        Some(last) => (last.mark.number.saturating_add(1), Some(last.as_previous())),
        None => (1, None),
    };
    match next.number.cmp(&number) {
        std::cmp::Ordering::Less => Err(MarkFault::Taken),
        std::cmp::Ordering::Greater => Err(MarkFault::Number),
        std::cmp::Ordering::Equal if next.previous != previous => Err(MarkFault::Previous),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

fn times(next: &Mark, last: Option<&Mark>, now: Timestamp) -> Result<(), MarkFault> {
    if next.recorded_at.duration_since(now).abs() > MAX_CLOCK_SKEW {
        return Err(MarkFault::Time);
    }
    let after = |ttl: SignedDuration| next.recorded_at.checked_add(ttl).map_or(i64::MAX, Timestamp::as_second);
    let named = match &next.body {
        MarkBody::Deletion(deletion) => deletion.deleted.as_slice(),
        MarkBody::Expiry(expiry) => expiry.expired.as_slice(),
        MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => &[],
    };
    // A verification may ask for a removed decision until that decision would have expired.
    let needed = named.iter().map(|head| head.expires_at).max().unwrap_or(0).min(after(MAX_MARK_TTL));
    if next.expires_at < after(MIN_MARK_TTL).max(needed) || next.expires_at > after(MAX_MARK_TTL) {
        return Err(MarkFault::Expiry);
    }
    let before = last.map_or(0, |last| last.through);
    let is_time = next.through >= MIN_THROUGH_TIME;
    let latest = now.checked_add(MAX_CLOCK_SKEW).unwrap_or(Timestamp::MAX).as_microsecond();
    let late = is_time && i64::try_from(next.through).map_or(true, |through| through > latest);
    // The first time that follows positions is larger than all of them.
    if (late && next.through > before) || next.through < before { Err(MarkFault::Through) } else { Ok(()) }
}

fn by_writer(heads: &[Head]) -> Result<BTreeMap<WriterId, &Head>, MarkFault> {
    if heads.len() > MAX_HEADS {
        return Err(MarkFault::Heads);
    }
    let named: BTreeMap<WriterId, &Head> = heads.iter().map(|head| (head.writer, head)).collect();
    if named.len() == heads.len() { Ok(named) } else { Err(MarkFault::Twice) }
}

fn heads(named: &BTreeMap<WriterId, &Head>, last: &Mark, now: Timestamp) -> Result<(), MarkFault> {
    let soon = now.checked_add(MAX_CLOCK_SKEW).unwrap_or(Timestamp::MAX).as_second();
    for before in &last.heads {
        match named.get(&before.writer) {
            Some(head) if head.sequence < before.sequence => return Err(MarkFault::HeadsBack),
            Some(head) if head.sequence == before.sequence && *head != before => return Err(MarkFault::HeadsDiffer),
            Some(_) => {}
            None if before.expires_at > soon => return Err(MarkFault::HeadsMissing),
            None => {}
        }
    }
    Ok(())
}

/// Removed decisions must be older than the mark says and than the heads, and have the hashes that signed marks gave.
fn removed(
    next: &Mark,
    named: &BTreeMap<WriterId, &Head>,
    last: Option<&LastMark>,
    gone: &[Head],
    before: Timestamp,
) -> Result<(), MarkFault> {
    let gone = by_writer(gone)?;
    let signed = last.map(|last| last.mark.heads.as_slice()).unwrap_or_default();
    for head in gone.values() {
        let behind = named.get(&head.writer).is_some_and(|newest| newest.sequence < head.sequence);
        if head.recorded_at >= before || behind {
            return Err(MarkFault::Removed);
        }
        let mut known = next.heads.iter().chain(signed);
        if known.any(|known| (known.writer, known.sequence) == (head.writer, head.sequence) && known.hash != head.hash)
        {
            return Err(MarkFault::HeadsDiffer);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
