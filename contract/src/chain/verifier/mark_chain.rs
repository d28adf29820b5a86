//! The chain of an account's marks: whether it is complete, and what its signed marks say about decisions.
//!
//! INVARIANT: an unverified mark (no known key signed it, or it belongs to another account) excuses no gap and covers
//! no decision. It only occupies its number, and only if that number is the next one.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{FindingKind, Report, Window};
use crate::AccountId;
use crate::chain::{Head, LineHash, MarkRef, Previous, PublicKey, WriterId};
use crate::record::{Mark, MarkBody};

/// The decisions of one writer that a signed deletion removed.
struct Deleted {
    before: Timestamp,
    sequence: u64,
}

#[derive(Clone, Copy)]
struct LastMark {
    number: u64,
    hash: LineHash,
    signed: bool,
}

#[derive(Clone, Copy)]
struct MarkGap {
    first: u64,
    last: u64,
    /// What the mark after the gap says about the last missing one.
    claim: Option<Previous>,
}

#[derive(Default)]
pub(super) struct MarkChain {
    account: Option<AccountId>,
    keys: Vec<PublicKey>,
    /// Every line that was checked, and whether its content can be trusted.
    checked: HashMap<LineHash, bool>,
    marks: BTreeMap<u64, LineHash>,
    before: Option<LastMark>,
    pub(super) last_signed: Option<MarkRef>,
    /// Gaps are checked when all marks are known, since a later mark may excuse them.
    gaps: Vec<MarkGap>,
    /// Marks with lower numbers may have expired.
    expired_below: u64,
    deleted: HashMap<WriterId, Vec<Deleted>>,
    /// The latest horizon of all removals by retention: lines recorded earlier were removed. What only an expired mark
    /// excused is older than the horizon of a later mark.
    horizon: Option<Timestamp>,
    /// Every head that a mark names. Complete before the first decision is read, so that a recomputed chain is detected
    /// however far after its decisions the mark stands.
    named: BTreeMap<(WriterId, u64), LineHash>,
    covered: HashMap<WriterId, u64>,
}

impl MarkChain {
    pub(super) fn new(keys: Vec<PublicKey>) -> Self {
        Self { keys, ..Self::default() }
    }

    pub(super) fn check(&mut self, line: &[u8], found: &mut Report) {
        let hash = LineHash::of(line);
        self.checked.insert(hash, false);
        let Some(mark) = serde_json::from_slice::<Mark>(line).ok().filter(|mark| mark.number > 0) else {
            return found.line(FindingKind::Unreadable, None, "a mark cannot be read");
        };
        let signed = self.keys.iter().any(|key| key.signed(line));
        if !signed {
            found.marks(FindingKind::BadSignature, mark.number, 1, "no known key signed this mark");
        } else if !self.belongs_to(&mark.account) {
            return found.line(FindingKind::Unreadable, None, "a mark is another account's");
        } else {
            self.checked.insert(hash, true);
            self.apply(&mark, found);
        }
        self.append(&mark, LastMark { number: mark.number, hash, signed }, found);
    }

    /// Reports marks that are missing before one that was checked.
    fn report_gaps(&mut self, window: &Window, found: &mut Report) {
        for MarkGap { mut first, last, claim } in std::mem::take(&mut self.gaps) {
            if claim.is_some_and(|claim| self.may_be_gone(&claim, window)) {
                if first == 1 {
                    self.expired_below = last.saturating_add(1);
                }
                continue;
            }
            let there: Vec<u64> = self.marks.range(first..=last).map(|(number, _)| *number).collect();
            for number in there {
                if first < number {
                    found.marks(FindingKind::MarkMissing, first, number - first, "marks are missing");
                }
                first = number.saturating_add(1);
            }
            if first <= last {
                found.marks(FindingKind::MarkMissing, first, last - first + 1, "marks are missing");
            }
        }
    }

    /// Reports all marks that are missing. Call it after the last mark.
    pub(super) fn check_gaps(&mut self, window: &Window, found: &mut Report) {
        self.report_gaps(window, found);
        if let Some(kept) = window.kept {
            let another = "the mark that was kept outside is another one here";
            let gone = "the mark that was kept outside is not here";
            self.must_hold(kept, self.expired_below, another, gone, found);
        }
        if let Some(signed) = window.signed.filter(|signed| window.kept != Some(*signed)) {
            let another = "the last mark that the keystore signed is another one here";
            let gone = "the last mark that the keystore signed is not here: the end of the log was removed, or no \
                        exporter ran since";
            self.must_hold(signed, self.expired_below, another, gone, found);
        }
    }

    /// Checks that a mark is in the log. It may be gone if its number is below `from`.
    fn must_hold(&self, mark: MarkRef, from: u64, another: &str, gone: &str, found: &mut Report) {
        match self.marks.get(&mark.number) {
            Some(hash) if *hash == mark.hash => {}
            Some(_) => found.marks(FindingKind::Altered, mark.number, 1, another),
            None if mark.number < from => {}
            None => found.marks(FindingKind::MarkMissing, mark.number, 1, gone),
        }
    }

    /// The mark on a line, if it can be trusted. One that was appended after the marks were read is checked now.
    pub(super) fn trusted_mark(&mut self, line: &[u8], window: &Window, found: &mut Report) -> Option<Mark> {
        let hash = LineHash::of(line);
        if !self.checked.contains_key(&hash) {
            self.check(line, found);
            self.report_gaps(window, found);
        }
        let is_trusted = self.checked.get(&hash).copied().unwrap_or(false);
        is_trusted.then(|| serde_json::from_slice(line).ok()).flatten()
    }

    /// Whether this line was checked as a mark, so that its faults are reported already.
    pub(super) fn was_checked(&self, line: &[u8]) -> bool {
        self.checked.contains_key(&LineHash::of(line))
    }

    /// Checks that a mark which a writer followed is in the log.
    pub(super) fn expect_head(&self, mark: &MarkRef, found: &mut Report) {
        // An older one that is gone expired, or its absence was reported already.
        let newest = self.before.map_or(0, |before| before.number);
        let another = "a mark is not the one that a writer followed";
        self.must_hold(*mark, newest.saturating_add(1), another, "a mark that a writer followed is not here", found);
    }

    /// Whether the log belongs to this account. The first call sets the account if it was not given.
    pub(super) fn belongs_to(&mut self, account: &AccountId) -> bool {
        self.account.get_or_insert_with(|| account.clone()) == account
    }

    /// The hash that a mark gives for this decision.
    pub(super) fn named(&self, writer: WriterId, sequence: u64) -> Option<LineHash> {
        self.named.get(&(writer, sequence)).copied()
    }

    /// The last decision of a writer that a mark covers.
    pub(super) fn covered(&self, writer: WriterId) -> u64 {
        self.covered.get(&writer).copied().unwrap_or(0)
    }

    /// Whether a signed deletion removed this decision.
    pub(super) fn deleted(&self, writer: WriterId, sequence: u64, recorded_at: Timestamp) -> bool {
        let deletions = self.deleted.get(&writer).map(Vec::as_slice).unwrap_or_default();
        deletions.iter().any(|deleted| sequence <= deleted.sequence && recorded_at < deleted.before)
    }

    /// Whether a signed mark says that lines recorded at this time were removed by retention.
    pub(super) fn expired(&self, recorded_at: Timestamp) -> bool {
        self.horizon.is_some_and(|horizon| recorded_at < horizon)
    }

    fn may_be_gone(&self, claim: &Previous, window: &Window) -> bool {
        window.may_be_gone(claim.recorded_at, claim.expires_at) || self.expired(claim.recorded_at)
    }

    fn apply(&mut self, mark: &Mark, found: &mut Report) {
        for head in &mark.heads {
            let covered = self.covered.entry(head.writer).or_default();
            *covered = head.sequence.max(*covered);
            self.name(head, found);
        }
        match &mark.body {
            MarkBody::Deletion(deletion) => {
                for head in &deletion.deleted {
                    self.name(head, found);
                    let deleted = Deleted { before: deletion.before, sequence: head.sequence };
                    self.deleted.entry(head.writer).or_default().push(deleted);
                }
            }
            MarkBody::Expiry(expiry) => {
                expiry.expired.iter().for_each(|head| self.name(head, found));
                self.horizon = self.horizon.max(Some(expiry.horizon));
            }
            MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => {}
        }
    }

    fn name(&mut self, head: &Head, found: &mut Report) {
        if *self.named.entry((head.writer, head.sequence)).or_insert(head.hash) != head.hash {
            let message = "two marks name different decisions";
            found.decision(FindingKind::Altered, head.writer, head.sequence, None, message);
        }
    }

    fn append(&mut self, mark: &Mark, this: LastMark, found: &mut Report) {
        let (number, previous) = (this.number, mark.previous);
        let expected = self.before;
        let last = expected.map_or(0, |before| before.number);
        // The number of an unsigned mark counts only if it is the next one; otherwise all later marks would seem to be
        // out of order.
        if !this.signed && number != last.saturating_add(1) {
            return;
        }
        // A signed mark replaces an unsigned one with the same number.
        if number == last && this.signed && expected.is_some_and(|before| !before.signed) {
            let followed = number.checked_sub(1).and_then(|before| self.marks.get(&before)).copied();
            if followed.is_some_and(|hash| previous.map(|previous| previous.hash) != Some(hash)) {
                let message = "a mark is not the one that its successor follows";
                found.marks(FindingKind::Altered, number - 1, 1, message);
            }
            return self.accept(this);
        }
        if number <= last {
            let (kind, message) = if self.marks.contains_key(&number) {
                (FindingKind::Duplicate, "a mark is there twice")
            } else {
                (FindingKind::Reordered, "a mark stands behind a later one")
            };
            found.marks(kind, number, 1, message);
            self.marks.entry(number).or_insert(this.hash);
            return;
        }
        if number - last > 1 {
            self.gaps.push(MarkGap { first: last + 1, last: number - 1, claim: previous });
        } else if this.signed
            && expected.is_none_or(|before| before.signed)
            && previous.map(|previous| previous.hash) != expected.map(|before| before.hash)
        {
            // A mark without a valid signature was reported already.
            found.marks(FindingKind::Altered, last.max(1), 1, "a mark is not the one that its successor follows");
        }
        self.accept(this);
    }

    fn accept(&mut self, this: LastMark) {
        self.marks.insert(this.number, this.hash);
        if this.signed {
            self.last_signed = Some(MarkRef { number: this.number, hash: this.hash });
        }
        self.before = Some(this);
    }
}
