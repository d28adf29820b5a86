//! The marks of an account: whether their row is whole, and what the signed ones say of decisions.
//!
//! Owns signatures, numbers and links of marks. INVARIANT: nothing is believed of a mark that no known key signed, or that is another
//! account's: such a mark excuses nothing, covers nothing, and only where it fits does it keep its place.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{FindingKind, Findings, Window};
use crate::AccountId;
use crate::chain::{Head, LineHash, MarkRef, PublicKey, WriterId};
use crate::record::{Mark, MarkBody};

/// What a signed deletion took of one writer.
struct Deleted {
    before: Timestamp,
    sequence: u64,
}

/// The mark before the next one.
#[derive(Clone, Copy)]
struct Before {
    number: u64,
    hash: LineHash,
    signed: bool,
}

/// All marks so far.
pub(super) struct Row {
    account: Option<AccountId>,
    keys: Vec<PublicKey>,
    /// Of every line that was judged: whether what it says is believed.
    judged: HashMap<LineHash, bool>,
    marks: BTreeMap<u64, LineHash>,
    before: Option<Before>,
    last_signed: Option<MarkRef>,
    /// First and last number of what should have been there and is not excused.
    gaps: Vec<(u64, u64)>,
    /// Marks with lower numbers may have expired.
    expired_below: u64,
    deleted: HashMap<WriterId, Vec<Deleted>>,
    /// Every head that a mark names. Known before any decision is seen, so that a chain that was computed anew cannot hide
    /// behind many lines, and a mark may stand far behind what it covers.
    named: BTreeMap<(WriterId, u64), LineHash>,
    covered: HashMap<WriterId, u64>,
}

impl Row {
    pub(super) fn new(keys: Vec<PublicKey>) -> Self {
        Self {
            account: None,
            keys,
            judged: HashMap::new(),
            marks: BTreeMap::new(),
            before: None,
            last_signed: None,
            gaps: Vec::new(),
            expired_below: 0,
            deleted: HashMap::new(),
            named: BTreeMap::new(),
            covered: HashMap::new(),
        }
    }

    /// The next mark.
    pub(super) fn judge(&mut self, line: &[u8], window: &Window, found: &mut Findings) {
        let hash = LineHash::of(line);
        self.judged.insert(hash, false);
        let Some(mark) = serde_json::from_slice::<Mark>(line).ok().filter(|mark| mark.number > 0) else {
            return found.line(FindingKind::Unreadable, "a mark cannot be read");
        };
        let signed = self.keys.iter().any(|key| key.signed(line));
        if !signed {
            found.marks(FindingKind::BadSignature, mark.number, 1, "no known key signed this mark");
        } else if !self.is_of(&mark.account) {
            return found.line(FindingKind::Unreadable, "a mark is another account's");
        } else {
            self.judged.insert(hash, true);
            self.believe(&mark, found);
        }
        self.place(&mark, Before { number: mark.number, hash, signed }, window, found);
    }

    /// After the last mark: what is still missing.
    pub(super) fn close(&mut self, window: &Window, found: &mut Findings) {
        for (mut first, last) in std::mem::take(&mut self.gaps) {
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
        let Some(kept) = window.kept else { return };
        match self.marks.get(&kept.number) {
            Some(hash) if *hash == kept.hash => {}
            Some(_) => {
                let message = "the mark that was kept outside is another one here";
                found.marks(FindingKind::Altered, kept.number, 1, message);
            }
            None if kept.number < self.expired_below => {}
            None => {
                let message = "the mark that was kept outside is not here";
                found.marks(FindingKind::MarkMissing, kept.number, 1, message);
            }
        }
    }

    /// The mark of a line of the log, if what it says is believed. One that was not judged yet was made meanwhile.
    pub(super) fn believed(&mut self, line: &[u8], window: &Window, found: &mut Findings) -> Option<Mark> {
        let hash = LineHash::of(line);
        if !self.judged.contains_key(&hash) {
            self.judge(line, window, found);
            self.close_late(found);
        }
        let believed = self.judged.get(&hash).copied().unwrap_or(false);
        if believed { serde_json::from_slice(line).ok() } else { None }
    }

    /// Whether what is wrong with this line was found already.
    pub(super) fn has_judged(&self, line: &[u8]) -> bool {
        self.judged.contains_key(&LineHash::of(line))
    }

    /// A writer says that this mark was there.
    pub(super) fn expect(&self, mark: &MarkRef, found: &mut Findings) {
        let newest = self.before.map_or(0, |before| before.number);
        match self.marks.get(&mark.number) {
            Some(hash) if *hash == mark.hash => {}
            Some(_) => {
                found.marks(FindingKind::Altered, mark.number, 1, "a mark is not the one that a writer followed");
            }
            None if mark.number > newest => {
                found.marks(FindingKind::MarkMissing, mark.number, 1, "a mark that a writer followed is not here");
            }
            // It expired, or its absence was found already.
            None => {}
        }
    }

    /// Whether a line of this account belongs here; the first one decides where nobody did.
    pub(super) fn is_of(&mut self, account: &AccountId) -> bool {
        self.account.get_or_insert_with(|| account.clone()) == account
    }

    /// The newest mark that is believed.
    pub(super) fn last_signed(&self) -> Option<MarkRef> {
        self.last_signed
    }

    /// What a mark calls this decision.
    pub(super) fn named(&self, writer: WriterId, sequence: u64) -> Option<LineHash> {
        self.named.get(&(writer, sequence)).copied()
    }

    /// The last decision of a writer that a mark covers.
    pub(super) fn covered(&self, writer: WriterId) -> u64 {
        self.covered.get(&writer).copied().unwrap_or(0)
    }

    pub(super) fn covers(&self, writer: WriterId, sequence: u64) -> bool {
        sequence <= self.covered(writer)
    }

    /// Whether a signed deletion took it.
    pub(super) fn deleted(&self, writer: WriterId, sequence: u64, recorded_at: Timestamp) -> bool {
        let deletions = self.deleted.get(&writer).map(Vec::as_slice).unwrap_or_default();
        deletions.iter().any(|deleted| sequence <= deleted.sequence && recorded_at < deleted.before)
    }

    fn believe(&mut self, mark: &Mark, found: &mut Findings) {
        for head in &mark.heads {
            self.cover(head, found);
        }
        match &mark.body {
            MarkBody::Deletion(deletion) => {
                for head in &deletion.deleted {
                    let deleted = Deleted { before: deletion.before, sequence: head.sequence };
                    self.deleted.entry(head.writer).or_default().push(deleted);
                }
            }
            MarkBody::Checkpoint {} | MarkBody::WebhookDisabled { .. } => {}
        }
    }

    fn cover(&mut self, head: &Head, found: &mut Findings) {
        let covered = self.covered.entry(head.writer).or_default();
        *covered = head.sequence.max(*covered);
        if *self.named.entry((head.writer, head.sequence)).or_insert(head.hash) != head.hash {
            let message = "two marks name different decisions";
            found.decisions(FindingKind::Altered, head.writer, head.sequence, 1, message);
        }
    }

    fn place(&mut self, mark: &Mark, this: Before, window: &Window, found: &mut Findings) {
        let (number, previous) = (this.number, mark.previous);
        let (last, expected) = match self.before {
            Some(before) => (before.number, Some(before)),
            None => (0, None),
        };
        // The number of an unsigned mark is believed only where it fits, or all that follow would seem to be out of order.
        if !this.signed && number != last.saturating_add(1) {
            return;
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
            if !previous.is_some_and(|previous| window.may_be_gone(previous.recorded_at, previous.expires_at)) {
                self.gaps.push((last + 1, number - 1));
            } else if expected.is_none() {
                self.expired_below = number;
            }
        } else if this.signed
            && expected.is_none_or(|before| before.signed)
            && previous.map(|previous| previous.hash) != expected.map(|before| before.hash)
        {
            // What was found unsigned needs no second finding.
            found.marks(FindingKind::Altered, last.max(1), 1, "a mark is not the one that its successor follows");
        }
        self.marks.insert(number, this.hash);
        if this.signed {
            self.last_signed = Some(MarkRef { number, hash: this.hash });
        }
        self.before = Some(this);
    }

    /// A mark that was made meanwhile and does not follow at once: what is between is missing.
    fn close_late(&mut self, found: &mut Findings) {
        for (first, last) in std::mem::take(&mut self.gaps) {
            found.marks(FindingKind::MarkMissing, first, last - first + 1, "marks are missing");
        }
    }
}
