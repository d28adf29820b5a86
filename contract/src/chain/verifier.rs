//! Verifies an account's log: reads its lines in order and reports every line that is missing, altered, moved or
//! doubled.
//!
//! A missing line is excused if it expired, if a signed removal names it, or if it lies outside the window. Marks are
//! checked first ([`mark_chain`]), because a mark vouches for lines before and after it. Every other line belongs to a
//! writer's chain by its link, whatever its type: a log of a newer version verifies as its own version verifies it.
//! Memory grows with the marks and writers, not with the lines. An unreadable line becomes a finding and does not stop
//! the verification. The order of lines of different writers is not checked, since no line states it.

mod mark_chain;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Head, LineHash, Link, MarkRef, PublicKey, WriterId};
use crate::record::{ChainedLine, LineType, MarkBody, known_type};
use crate::{AccountId, RequestId};

use mark_chain::MarkChain;

/// Findings that a report lists; further ones are only counted.
const MAX_FINDINGS: usize = 1_000;
/// Lines kept per writer that no mark has named yet, to compare with a mark or a new writer that names them later.
const MAX_RECENT: usize = 1_000;
/// Gaps kept per writer, which lines out of order may still fill.
const MAX_GAPS: usize = 1_000;

/// Which part of a log is verified, and what must be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines recorded earlier are not verified.
    pub from: Option<Timestamp>,
    /// Lines recorded later are not verified.
    pub to: Option<Timestamp>,
    /// The current time.
    pub now: Timestamp,
    /// Lines recorded earlier are past the present retention and may be gone, whatever their own expiry says. Lines
    /// that an earlier, shorter retention removed are excused by its marks.
    pub horizon: Timestamp,
    /// A mark that somebody kept outside of the log and that must still be in it.
    pub kept: Option<MarkRef>,
    /// The last mark that the keystore says it signed; it must be in the log too.
    pub signed: Option<MarkRef>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Nothing was found. It does not say that nothing is unsealed.
    pub ok: bool,
    /// Decisions that were verified.
    pub records: u64,
    /// Further lines of writers' chains that were verified: events of approvals, grants and stops, and lines of types
    /// that this version does not know. Absent where there are none.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    #[schemars(extend("minimum" = 1))]
    pub other_lines: u64,
    /// Writers of those lines.
    pub writers: u64,
    /// Checkpoints in the window.
    pub checkpoints: u64,
    /// Deletions on demand in the window.
    pub deletions: u64,
    /// Removals by retention in the window; absent where there are none.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    #[schemars(extend("minimum" = 1))]
    pub expiries: u64,
    /// Lines of writers' chains that no mark covers yet: that none was cut off behind them cannot be proven.
    pub unsealed: u64,
    /// When the first verified decision was recorded.
    pub first_at: Option<Timestamp>,
    /// When the last one was.
    pub last_at: Option<Timestamp>,
    /// The newest mark whose signature holds: keep it outside.
    pub last_mark: Option<MarkRef>,
    /// At most 1,000.
    #[schemars(extend("maxItems" = 1000))]
    pub findings: Vec<Finding>,
    /// How many further findings are not listed.
    pub more_findings: u64,
    /// Entries in the log's store that no gateway or exporter put there, where there are any: an alarm for the
    /// operator. They are no part of the log, and no finding.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    #[schemars(extend("minimum" = 1))]
    pub rejected: u64,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// `missing`: a line of a writer's chain is gone. `altered`: a line is not what was written. `reordered`: a line
    /// stands behind one written after it. `duplicate`: a line is there twice. `unreadable`: a line is none of ours.
    /// `bad_signature`: no known key signed a mark. `mark_missing`: a mark is gone, or the last one that the keystore
    /// signed.
    pub kind: FindingKind,
    /// Whose chain; absent for marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterId>,
    /// The first at fault: a line's sequence in its writer's chain, or without `writer` a mark's number; absent when a
    /// line cannot be placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// How many, from that one on.
    #[schemars(extend("minimum" = 1))]
    pub count: u64,
    /// The id of a decision that is in the log but at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Of missing lines: the decision in front of them in their writer's chain, where one is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_request_id: Option<RequestId>,
    /// Of missing lines: the decision behind them, where one is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_request_id: Option<RequestId>,
    /// In words, for people.
    pub message: String,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A line of a writer's chain is missing.
    Missing,
    /// A line differs from what was written.
    Altered,
    /// A line follows one that was written after it.
    Reordered,
    /// A line occurs twice.
    Duplicate,
    /// A line cannot be parsed, or belongs to another account.
    Unreadable,
    /// A mark is not signed by a known key.
    BadSignature,
    /// A mark is missing.
    MarkMissing,
}

#[derive(Default)]
struct WriterChain {
    /// The lowest sequence in the log.
    first: Option<u64>,
    last: u64,
    /// The id of the last line, if it is in the log and a decision that has one.
    last_id: Option<RequestId>,
    hash: Option<LineHash>,
    /// The hash that a mark gives for the last line, if it differs.
    signed: Option<LineHash>,
    /// Lines that no mark had named when they were read.
    recent: BTreeMap<u64, (LineHash, Option<RequestId>)>,
    gaps: BTreeMap<u64, Gap>,
    unsealed: u64,
}

/// A run of missing lines; the map's key is its first sequence.
#[derive(Clone, Copy)]
struct Gap {
    last: u64,
    /// When its last line was recorded and when that expires, if another line says so.
    claim: Option<(Timestamp, i64)>,
    message: &'static str,
    /// The decisions before and after it, if they are in the log.
    after: Option<RequestId>,
    before: Option<RequestId>,
}

/// A verification in progress.
pub struct ChainVerifier {
    window: Window,
    marks: MarkChain,
    writers: BTreeMap<WriterId, WriterChain>,
    /// Findings, counts and times so far; the rest is filled in at the end.
    report: Report,
}

impl ChainVerifier {
    /// Checks all marks of the log, which must come in order.
    pub fn new<'l>(window: Window, keys: Vec<PublicKey>, marks: impl IntoIterator<Item = &'l [u8]>) -> Self {
        let mut chain = MarkChain::new(keys);
        let mut report = Report::default();
        for line in marks {
            chain.check(line, &mut report);
        }
        chain.check_gaps(&window, &mut report);
        Self { window, marks: chain, writers: BTreeMap::new(), report }
    }

    /// Sets the account that the log must belong to. Without it, the first line that names an account sets it.
    pub fn of(mut self, account: &AccountId) -> Self {
        if !self.marks.belongs_to(account) {
            self.report.line(FindingKind::Unreadable, None, "the marks are those of another account");
        }
        self
    }

    /// Verifies the next line of the log: a mark, or a line of a writer's chain, of whatever type.
    pub fn read_line(&mut self, line: &[u8]) {
        let Ok(kind) = serde_json::from_slice::<Kind>(line) else {
            // A broken mark was reported when the marks were checked.
            if !self.marks.was_checked(line) {
                self.report.line(FindingKind::Unreadable, None, "a line cannot be read");
            }
            return;
        };
        if kind.line.is_some_and(LineType::is_mark) {
            self.read_mark(line);
        } else if kind.account.as_ref().is_some_and(|account| !self.marks.belongs_to(account)) {
            self.report.line(FindingKind::Unreadable, kind.id(), "a line is another account's");
        } else {
            self.read_chained(line, kind.id());
        }
    }

    /// Ends the verification: reports the gaps that nothing excuses.
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
                    _ => self.report.missing(writer, whole.replace((first, gap))),
                }
            }
            self.report.missing(writer, whole);
        }
        Report {
            ok: self.report.findings.is_empty(),
            writers,
            unsealed,
            last_mark: self.marks.last_signed,
            ..self.report
        }
    }

    fn read_chained(&mut self, line: &[u8], id: Option<RequestId>) {
        let Some(read) = ChainedLine::read(line) else {
            // A mark whose type was altered was reported when the marks were checked.
            if self.marks.was_checked(line) {
                return;
            }
            return self.report.line(
                FindingKind::Unreadable,
                id,
                "a line's place in its writer's chain cannot be read",
            );
        };
        let (is_decision, ChainedLine { chain, recorded_at, .. }) = (read.is_decision(), read);
        if !self.window.covers(recorded_at) {
            return;
        }
        if is_decision {
            self.report.records += 1;
            self.report.first_at = self.report.first_at.or(Some(recorded_at));
            self.report.last_at = Some(recorded_at);
        } else {
            self.report.other_lines += 1;
        }
        if !self.writers.contains_key(&chain.writer) {
            self.check_first_link(&chain);
        }
        let (writer, sequence, hash) = (chain.writer, chain.sequence, LineHash::of(line));
        let seen = self.writers.entry(writer).or_default();
        if sequence <= seen.last {
            return self.report_out_of_order(writer, sequence, id);
        }
        seen.first = seen.first.or(Some(sequence));
        seen.unsealed += u64::from(sequence > self.marks.covered(writer));
        let previous = chain.previous.map(|previous| previous.hash);
        let (last, follows) = (seen.last, previous == seen.hash || (previous.is_some() && previous == seen.signed));
        let named = self.marks.named(writer, sequence);
        let signed = named.filter(|named| *named != hash);
        if named.is_none() {
            seen.recent.insert(sequence, (hash, id));
            if seen.recent.len() > MAX_RECENT {
                seen.recent.pop_first();
            }
        }
        let last_id = std::mem::replace(&mut seen.last_id, id);
        (seen.last, seen.hash, seen.signed) = (sequence, Some(hash), signed);
        let overflowing = if seen.gaps.len() < MAX_GAPS { None } else { seen.gaps.pop_first() };
        if last_id.is_none() {
            seen.close_gap(last, id);
        }
        if sequence - last > 1 {
            let claim = chain.previous.map(|previous| (previous.recorded_at, previous.expires_at));
            let message = "lines are missing from their writer's chain";
            seen.gaps.insert(last + 1, Gap { last: sequence - 1, claim, message, after: last_id, before: id });
        } else if !follows {
            let message = "a line is not the one that its successor follows";
            self.report.decision(FindingKind::Altered, writer, last.max(1), last_id, message);
        }
        if signed.is_some() {
            let message = "a line is not the one that was signed";
            self.report.decision(FindingKind::Altered, writer, sequence, id, message);
        }
        let overflowing = overflowing.filter(|(_, gap)| !self.is_gap_excused(writer, gap));
        self.report.missing(writer, overflowing);
    }

    /// Checks what a writer's first line says was in the log before it.
    fn check_first_link(&mut self, link: &Link) {
        if let Some(after) = &link.after {
            self.expect_head(after, "a writer's last lines are missing: a later writer followed them");
        }
        if let Some(mark) = &link.mark {
            self.marks.expect_head(mark, &mut self.report);
        }
    }

    fn read_mark(&mut self, line: &[u8]) {
        let Some(mark) = self.marks.trusted_mark(line, &self.window, &mut self.report) else { return };
        if !self.window.covers(mark.recorded_at) {
            return;
        }
        for head in &mark.heads {
            self.expect_head(head, "a writer's last lines are missing: a mark names them");
        }
        match mark.body {
            MarkBody::Checkpoint {} => self.report.checkpoints += 1,
            MarkBody::Deletion(_) => self.report.deletions += 1,
            MarkBody::Expiry(_) => self.report.expiries += 1,
            MarkBody::WebhookDisabled { .. } => {}
        }
    }

    /// Checks that a line which a mark or a later writer names is in the log.
    fn expect_head(&mut self, head: &Head, message: &'static str) {
        let known = self.writers.contains_key(&head.writer);
        let claim = (head.recorded_at, head.expires_at);
        // A head that may have expired proves nothing about later lines.
        if !known && self.is_excused(head.writer, head.sequence, claim) {
            return;
        }
        let covered = self.marks.covered(head.writer);
        let seen = self.writers.entry(head.writer).or_default();
        seen.unsealed = seen.unsealed.min(seen.last.saturating_sub(covered));
        if head.sequence > seen.last {
            // If the writer is unknown, everything before the named line may have expired.
            let first = if known { seen.last + 1 } else { head.sequence };
            let after = seen.last_id.take();
            seen.gaps.insert(first, Gap { last: head.sequence, claim: Some(claim), message, after, before: None });
            // Continue as if the missing lines were there, so that one fault yields one finding.
            (seen.last, seen.hash, seen.signed) = (head.sequence, Some(head.hash), None);
        } else if let Some((hash, id)) = seen.recent.get(&head.sequence).copied()
            && hash != head.hash
        {
            seen.recent.remove(&head.sequence);
            let message = "a line is not the one that was followed";
            self.report.decision(FindingKind::Altered, head.writer, head.sequence, id, message);
        }
    }

    /// A line that stands behind a later one: it was moved, or is there twice.
    fn report_out_of_order(&mut self, writer: WriterId, sequence: u64, id: Option<RequestId>) {
        let Some(seen) = self.writers.get_mut(&writer) else { return };
        if seen.fill(sequence) || seen.first.is_none_or(|first| sequence < first) {
            let message = "a line stands behind a later one";
            self.report.decision(FindingKind::Reordered, writer, sequence, id, message);
        } else {
            self.report.decision(FindingKind::Duplicate, writer, sequence, id, "a line is there twice");
        }
    }

    fn is_gap_excused(&self, writer: WriterId, gap: &Gap) -> bool {
        gap.claim.is_some_and(|claim| self.is_excused(writer, gap.last, claim))
    }

    fn is_excused(&self, writer: WriterId, sequence: u64, (recorded_at, expires_at): (Timestamp, i64)) -> bool {
        self.window.may_be_gone(recorded_at, expires_at)
            || !self.window.covers(recorded_at)
            || self.marks.deleted(writer, sequence, recorded_at)
            || self.marks.expired(recorded_at)
    }
}

impl Window {
    fn covers(&self, at: Timestamp) -> bool {
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at <= to)
    }

    fn may_be_gone(&self, recorded_at: Timestamp, expires_at: i64) -> bool {
        expires_at <= self.now.as_second() || recorded_at < self.horizon
    }
}

impl WriterChain {
    /// Sets the decision after a gap that a mark or another writer revealed.
    fn close_gap(&mut self, last: u64, id: Option<RequestId>) {
        let gap = self.gaps.range_mut(..=last).next_back().map(|(_, gap)| gap);
        if let Some(gap) = gap.filter(|gap| gap.last == last && gap.before.is_none()) {
            gap.before = id;
        }
    }

    /// Takes a line out of the gap that it belongs to; false if it is in none.
    fn fill(&mut self, sequence: u64) -> bool {
        let gap = self.gaps.range(..=sequence).next_back().map(|(first, gap)| (*first, *gap));
        let Some((first, gap)) = gap.filter(|(_, gap)| sequence <= gap.last) else { return false };
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

impl Report {
    fn add(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings = self.more_findings.saturating_add(1);
        }
    }

    fn line(&mut self, kind: FindingKind, request_id: Option<RequestId>, message: &str) {
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
    fn of(kind: FindingKind, message: &str) -> Self {
        Self {
            kind,
            writer: None,
            sequence: None,
            count: 1,
            request_id: None,
            after_request_id: None,
            before_request_id: None,
            message: message.to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type", deserialize_with = "known_type")]
    line: Option<LineType>,
    #[serde(default)]
    account: Option<AccountId>,
    /// Any JSON value: a line whose id was altered is verified like any other.
    #[serde(default)]
    request_id: Option<serde_json::Value>,
}

impl Kind {
    /// Of a decision. Lines about approvals name the decision that they belong to, which may be a different one.
    fn id(&self) -> Option<RequestId> {
        if self.line != Some(LineType::Decision) {
            return None;
        }
        RequestId::parse(self.request_id.as_ref()?.as_str()?).ok()
    }
}
