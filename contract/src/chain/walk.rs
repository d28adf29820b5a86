//! Judges a log: walks its lines in order and says what does not fit.
//!
//! Owns what counts as a fault and what is excused: lines that expired, that a signed removal names, or that lie outside
//! the window.
//! Marks come first ([`row`]: what they say holds for lines before and behind them), then every line in the order of the log. Pure;
//! what it remembers grows with marks and writers, not with decisions. A line that cannot be read is a finding, never a stop.
//! The order between two writers is nobody's claim, so it is not judged.

mod row;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Head, LineHash, Link, MarkRef, PublicKey, WriterId};
use crate::record::{LineStart, LineType, MarkBody};
use crate::{AccountId, RequestId};

use row::Row;

/// Findings that a report lists; more are counted.
const MOST_FINDINGS: usize = 1_000;
/// Lines of one writer that a new writer, or a mark that was made meanwhile, can still be compared with.
const MOST_RECENT: usize = 1_000;
/// Holes of one writer that may still be filled by lines out of order.
const MOST_GAPS: usize = 1_000;

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines recorded before are not judged.
    pub from: Option<Timestamp>,
    /// Lines recorded after are not judged.
    pub to: Option<Timestamp>,
    /// The clock.
    pub now: Timestamp,
    /// What was recorded before is past the retention that holds now, and may be gone whatever its line says. What an
    /// earlier, shorter retention removed is excused by the marks that say so.
    pub horizon: Timestamp,
    /// A mark that was kept outside and must still be there.
    pub kept: Option<MarkRef>,
    /// The last mark that the keystore signed, as it says itself. It must be there too.
    pub signed: Option<MarkRef>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing was found.
    pub ok: bool,
    /// Decisions judged.
    pub records: u64,
    /// Their writers.
    pub writers: u64,
    /// Checkpoints that stand in the window.
    pub checkpoints: u64,
    /// Deletions on demand that stand in the window.
    pub deletions: u64,
    /// Removals by retention whose marks stand in the window.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expiries: u64,
    /// Decisions that no mark covers yet: that none was cut off behind them cannot be proven yet.
    pub unsealed: u64,
    /// When the first one judged was recorded.
    pub first_at: Option<Timestamp>,
    /// When the last one judged was recorded.
    pub last_at: Option<Timestamp>,
    /// The newest mark, to be kept outside.
    pub last_mark: Option<MarkRef>,
    /// At most 1,000.
    pub findings: Vec<Finding>,
    /// Further findings that are not listed.
    pub more_findings: u64,
    /// Entries that stand in the log's store and that no gateway or exporter put there: they are no part of the log,
    /// and somebody else can write to its store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rejected: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub kind: FindingKind,
    /// Whose chain, for decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterId>,
    /// The first that is at fault: a decision's sequence or a mark's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// How many, from that one on.
    pub count: u64,
    /// Of one decision that is there: its id, as its line says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Of decisions that are missing: the one in front of them in their writer's chain, where it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_request_id: Option<RequestId>,
    /// Of decisions that are missing: the one behind them, where it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_request_id: Option<RequestId>,
    /// In words.
    pub message: String,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A decision is gone.
    Missing,
    /// A line is not what was written.
    Altered,
    /// A line stands behind one that was written after it.
    Reordered,
    /// A line is there twice.
    Duplicate,
    /// A line is none of ours.
    Unreadable,
    /// A mark's signature does not hold, or no known key made it.
    BadSignature,
    /// A mark is gone.
    MarkMissing,
}

/// One writer's chain so far.
#[derive(Default)]
struct Seen {
    /// The lowest sequence that was there.
    first: Option<u64>,
    last: u64,
    /// Of the last one, where it is there and names one.
    last_id: Option<RequestId>,
    hash: Option<LineHash>,
    /// What a mark calls the last one, where it is another one.
    signed: Option<LineHash>,
    /// Lines that no mark named when they were seen.
    recent: BTreeMap<u64, (LineHash, Option<RequestId>)>,
    gaps: BTreeMap<u64, Gap>,
    unsealed: u64,
}

/// What was not there when it should have been; by its first sequence.
#[derive(Clone, Copy)]
struct Gap {
    last: u64,
    /// When the last of it was recorded and until when it is kept, as far as somebody says so.
    told: Option<(Timestamp, i64)>,
    message: &'static str,
    /// The decisions around it, where they are there.
    after: Option<RequestId>,
    before: Option<RequestId>,
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    listed: Vec<Finding>,
    more: u64,
}

/// A judgement under way.
pub struct Walk {
    window: Window,
    row: Row,
    writers: BTreeMap<WriterId, Seen>,
    found: Findings,
    records: u64,
    checkpoints: u64,
    deletions: u64,
    expiries: u64,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
}

impl Walk {
    /// Begins with all marks that the log holds, in order.
    pub fn new<'l>(window: Window, keys: Vec<PublicKey>, marks: impl IntoIterator<Item = &'l [u8]>) -> Self {
        let (mut row, mut found) = (Row::new(keys), Findings::default());
        for line in marks {
            row.judge(line, &mut found);
        }
        row.close(&window, &mut found);
        Self {
            window,
            row,
            writers: BTreeMap::new(),
            found,
            records: 0,
            checkpoints: 0,
            deletions: 0,
            expiries: 0,
            first_at: None,
            last_at: None,
        }
    }

    /// Says whose log it must be. Otherwise all lines must be of the account of the first one that names any.
    pub fn of(mut self, account: &AccountId) -> Self {
        if !self.row.is_of(account) {
            self.found.line(FindingKind::Unreadable, "the marks are those of another account");
        }
        self
    }

    /// The next line of the log, of whichever type.
    pub fn see(&mut self, line: &[u8]) {
        let Ok(kind) = serde_json::from_slice::<Kind>(line) else {
            // What should be a mark may have been looked at as one.
            if !self.row.has_judged(line) {
                self.found.line(FindingKind::Unreadable, "a line cannot be read");
            }
            return;
        };
        match kind.line {
            LineType::Decision if kind.account.as_ref().is_some_and(|account| !self.row.is_of(account)) => {
                self.found.decision_line(FindingKind::Unreadable, kind.id(), "a decision is another account's");
            }
            LineType::Decision => self.see_decision(line, kind.id()),
            LineType::Checkpoint | LineType::Deletion | LineType::Expiry | LineType::WebhookDisabled => {
                self.see_mark(line);
            }
        }
    }

    /// What came out.
    pub fn finish(mut self) -> Report {
        let (mut writers, mut unsealed) = (0, 0);
        for (writer, mut seen) in std::mem::take(&mut self.writers) {
            writers += u64::from(seen.first.is_some());
            unsealed += seen.unsealed;
            let mut whole: Option<(u64, Gap)> = None;
            seen.gaps.retain(|_, gap| !self.is_gap_excused(writer, gap));
            for (first, gap) in seen.gaps {
                match &mut whole {
                    Some((_, before)) if before.last + 1 == first => {
                        (before.last, before.before) = (gap.last, gap.before);
                    }
                    _ => self.found.missing(writer, whole.replace((first, gap))),
                }
            }
            self.found.missing(writer, whole);
        }
        Report {
            ok: self.found.listed.is_empty(),
            records: self.records,
            writers,
            checkpoints: self.checkpoints,
            deletions: self.deletions,
            expiries: self.expiries,
            unsealed,
            first_at: self.first_at,
            last_at: self.last_at,
            last_mark: self.row.last_signed(),
            findings: self.found.listed,
            more_findings: self.found.more,
            rejected: 0,
        }
    }

    fn see_decision(&mut self, line: &[u8], id: Option<RequestId>) {
        let start = serde_json::from_slice::<LineStart>(line).ok().filter(|start| start.chain.sequence > 0);
        let Some(LineStart { chain, recorded_at, .. }) = start else {
            return self.found.decision_line(FindingKind::Unreadable, id, "a decision's line cannot be read");
        };
        if !self.window.judges(recorded_at) {
            return;
        }
        self.records += 1;
        self.first_at = self.first_at.or(Some(recorded_at));
        self.last_at = Some(recorded_at);
        if !self.writers.contains_key(&chain.writer) {
            self.begin(&chain);
        }
        let (writer, sequence, hash) = (chain.writer, chain.sequence, LineHash::of(line));
        let seen = self.writers.entry(writer).or_default();
        if sequence <= seen.last {
            return self.repeated(writer, sequence, id);
        }
        seen.first = seen.first.or(Some(sequence));
        seen.unsealed += u64::from(!self.row.covers(writer, sequence));
        let previous = chain.previous.map(|previous| previous.hash);
        let (last, follows) = (seen.last, previous == seen.hash || (previous.is_some() && previous == seen.signed));
        let named = self.row.named(writer, sequence);
        let signed = named.filter(|named| *named != hash);
        if named.is_none() {
            seen.remember(sequence, hash, id);
        }
        let last_id = std::mem::replace(&mut seen.last_id, id);
        (seen.last, seen.hash, seen.signed) = (sequence, Some(hash), signed);
        let overflowing = seen.overflow();
        if last_id.is_none() {
            seen.end_of_hole(last, id);
        }
        if sequence - last > 1 {
            let told = chain.previous.map(|previous| (previous.recorded_at, previous.expires_at));
            let message = "decisions are missing from their writer's chain";
            seen.gaps.insert(last + 1, Gap { last: sequence - 1, told, message, after: last_id, before: id });
        } else if !follows {
            let message = "a decision is not the one that its successor follows";
            self.found.decision(FindingKind::Altered, writer, last.max(1), last_id, message);
        }
        if signed.is_some() {
            let message = "a decision is not the one that was signed";
            self.found.decision(FindingKind::Altered, writer, sequence, id, message);
        }
        let overflowing = overflowing.filter(|(_, gap)| !self.is_gap_excused(writer, gap));
        self.found.missing(writer, overflowing);
    }

    /// The first line of a writer that is looked at: what it says it found must have been there.
    fn begin(&mut self, link: &Link) {
        if let Some(after) = &link.after {
            self.expect(after, "a writer's last decisions are missing: a later writer followed them");
        }
        if let Some(mark) = &link.mark {
            self.row.expect(mark, &mut self.found);
        }
    }

    fn see_mark(&mut self, line: &[u8]) {
        let Some(mark) = self.row.believed(line, &self.window, &mut self.found) else { return };
        if !self.window.judges(mark.recorded_at) {
            return;
        }
        for head in &mark.heads {
            self.expect(head, "a writer's last decisions are missing: a mark names them");
        }
        match mark.body {
            MarkBody::Checkpoint {} => self.checkpoints += 1,
            MarkBody::Deletion(_) => self.deletions += 1,
            MarkBody::Expiry(_) => self.expiries += 1,
            MarkBody::WebhookDisabled { .. } => {}
        }
    }

    /// Somebody says that this decision was there.
    fn expect(&mut self, head: &Head, message: &'static str) {
        let known = self.writers.contains_key(&head.writer);
        let told = (head.recorded_at, head.expires_at);
        // What may be gone says nothing of what came later.
        if !known && self.is_excused(head.writer, head.sequence, told) {
            return;
        }
        let covered = self.row.covered(head.writer);
        let seen = self.writers.entry(head.writer).or_default();
        seen.unsealed = seen.unsealed.min(seen.last.saturating_sub(covered));
        if head.sequence > seen.last {
            // Of a writer that was never seen, all but the one that is named may have expired.
            let first = if known { seen.last + 1 } else { head.sequence };
            let after = seen.last_id.take();
            seen.gaps.insert(first, Gap { last: head.sequence, told: Some(told), message, after, before: None });
            // From here on the chain is followed as if they were there: one fault, one finding.
            (seen.last, seen.hash, seen.signed) = (head.sequence, Some(head.hash), None);
        } else if let Some((hash, id)) = seen.recent.get(&head.sequence).copied()
            && hash != head.hash
        {
            seen.recent.remove(&head.sequence);
            let message = "a decision is not the one that was followed";
            self.found.decision(FindingKind::Altered, head.writer, head.sequence, id, message);
        }
    }

    /// A line that stands behind a later one: it was moved, or is there twice.
    fn repeated(&mut self, writer: WriterId, sequence: u64, id: Option<RequestId>) {
        let Some(seen) = self.writers.get_mut(&writer) else { return };
        if seen.fill(sequence) || seen.first.is_none_or(|first| sequence < first) {
            let message = "a decision stands behind a later one";
            self.found.decision(FindingKind::Reordered, writer, sequence, id, message);
        } else {
            self.found.decision(FindingKind::Duplicate, writer, sequence, id, "a decision is there twice");
        }
    }

    fn is_gap_excused(&self, writer: WriterId, gap: &Gap) -> bool {
        gap.told.is_some_and(|told| self.is_excused(writer, gap.last, told))
    }

    fn is_excused(&self, writer: WriterId, sequence: u64, (recorded_at, expires_at): (Timestamp, i64)) -> bool {
        self.window.may_be_gone(recorded_at, expires_at)
            || !self.window.judges(recorded_at)
            || self.row.deleted(writer, sequence, recorded_at)
            || self.row.expired(recorded_at)
    }
}

impl Window {
    fn judges(&self, at: Timestamp) -> bool {
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at <= to)
    }

    fn may_be_gone(&self, recorded_at: Timestamp, expires_at: i64) -> bool {
        expires_at <= self.now.as_second() || recorded_at < self.horizon
    }
}

impl Seen {
    /// For whoever names the line later.
    fn remember(&mut self, sequence: u64, hash: LineHash, id: Option<RequestId>) {
        self.recent.insert(sequence, (hash, id));
        if self.recent.len() > MOST_RECENT {
            self.recent.pop_first();
        }
    }

    /// The oldest hole, when there are too many.
    fn overflow(&mut self) -> Option<(u64, Gap)> {
        if self.gaps.len() < MOST_GAPS { None } else { self.gaps.pop_first() }
    }

    /// The decision behind a hole that somebody else has told of.
    fn end_of_hole(&mut self, last: u64, id: Option<RequestId>) {
        let hole = self.gaps.range_mut(..=last).next_back().map(|(_, gap)| gap);
        if let Some(gap) = hole.filter(|gap| gap.last == last && gap.before.is_none()) {
            gap.before = id;
        }
    }

    /// Whether the line was missed so far.
    fn fill(&mut self, sequence: u64) -> bool {
        let hole = self.gaps.range(..=sequence).next_back().map(|(first, gap)| (*first, *gap));
        let Some((first, gap)) = hole.filter(|(_, gap)| sequence <= gap.last) else { return false };
        self.gaps.remove(&first);
        if first < sequence {
            self.gaps.insert(first, Gap { last: sequence - 1, before: None, ..gap });
        }
        if sequence < gap.last {
            self.gaps.insert(sequence + 1, Gap { after: None, ..gap });
        }
        true
    }
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        if self.listed.len() < MOST_FINDINGS {
            self.listed.push(finding);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn line(&mut self, kind: FindingKind, message: &str) {
        self.add(Finding::of(kind, message));
    }

    fn decision_line(&mut self, kind: FindingKind, request_id: Option<RequestId>, message: &str) {
        self.add(Finding { request_id, ..Finding::of(kind, message) });
    }

    fn marks(&mut self, kind: FindingKind, number: u64, count: u64, message: &str) {
        self.add(Finding { sequence: Some(number), count, ..Finding::of(kind, message) });
    }

    fn missing(&mut self, writer: WriterId, gap: Option<(u64, Gap)>) {
        if let Some((first, gap)) = gap {
            self.add(Finding {
                writer: Some(writer),
                sequence: Some(first),
                count: gap.last - first + 1,
                after_request_id: gap.after,
                before_request_id: gap.before,
                ..Finding::of(FindingKind::Missing, gap.message)
            });
        }
    }

    fn decision(
        &mut self,
        kind: FindingKind,
        writer: WriterId,
        sequence: u64,
        request_id: Option<RequestId>,
        message: &str,
    ) {
        let (writer, sequence) = (Some(writer), Some(sequence));
        self.add(Finding { writer, sequence, request_id, ..Finding::of(kind, message) });
    }
}

impl Finding {
    /// One, of which no more is known.
    fn of(kind: FindingKind, message: &str) -> Self {
        let (request_id, after_request_id, before_request_id) = (None, None, None);
        let (writer, sequence, message) = (None, None, message.to_owned());
        Self { kind, writer, sequence, count: 1, request_id, after_request_id, before_request_id, message }
    }
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    line: LineType,
    #[serde(default)]
    account: Option<AccountId>,
    /// Whatever stands there: a line whose id was altered is judged like any other.
    #[serde(default)]
    request_id: Option<serde_json::Value>,
}

impl Kind {
    fn id(&self) -> Option<RequestId> {
        RequestId::parse(self.request_id.as_ref()?.as_str()?).ok()
    }
}
