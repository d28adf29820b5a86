//! The marks of an account: whether their row is whole, and what the signed ones say of decisions.
//!
//! Owns signatures, numbers and links of marks. INVARIANT: nothing is believed of a mark that no known key signed, or that is another
//! account's: such a mark excuses nothing, covers nothing, and only where it fits does it keep its place.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{FindingKind, Findings, Window};
use crate::AccountId;
use crate::chain::{Head, LineHash, MarkRef, Previous, PublicKey, WriterId};
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

/// Marks that should have been there, from the first number to the last.
#[derive(Clone, Copy)]
struct Hole {
    first: u64,
    last: u64,
    /// What the mark behind says of the last one.
    told: Option<Previous>,
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
    /// A mark behind may still excuse them: they are judged when all marks are known.
    holes: Vec<Hole>,
    /// Marks with lower numbers may have expired.
    expired_below: u64,
    deleted: HashMap<WriterId, Vec<Deleted>>,
    /// What was recorded before was removed because its retention was over; the latest of all such marks. A mark that
    /// is gone by now was recorded before the horizon of a later one, and so was everything that it excused.
    horizon: Option<Timestamp>,
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
            holes: Vec::new(),
            expired_below: 0,
            deleted: HashMap::new(),
            horizon: None,
            named: BTreeMap::new(),
            covered: HashMap::new(),
        }
    }

    /// The next mark.
    pub(super) fn judge(&mut self, line: &[u8], found: &mut Findings) {
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
        self.place(&mark, Before { number: mark.number, hash, signed }, found);
    }

    /// After the last mark: what is still missing.
    pub(super) fn close(&mut self, window: &Window, found: &mut Findings) {
        for Hole { mut first, last, told } in std::mem::take(&mut self.holes) {
            if told.is_some_and(|told| self.may_be_gone(&told, window)) {
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
        if let Some(kept) = window.kept {
            let (another, gone) =
                ("the mark that was kept outside is another one here", "the mark that was kept outside is not here");
            self.must_hold(kept, another, gone, found);
        }
        if let Some(signed) = window.signed.filter(|signed| window.kept != Some(*signed)) {
            let another = "the last mark that the keystore signed is another one here";
            let gone = "the last mark that the keystore signed is not here: the end of the log was removed, or no \
                        exporter ran since";
            self.must_hold(signed, another, gone, found);
        }
    }

    fn must_hold(&self, mark: MarkRef, another: &str, gone: &str, found: &mut Findings) {
        match self.marks.get(&mark.number) {
            Some(hash) if *hash == mark.hash => {}
            Some(_) => found.marks(FindingKind::Altered, mark.number, 1, another),
            None if mark.number < self.expired_below => {}
            None => found.marks(FindingKind::MarkMissing, mark.number, 1, gone),
        }
    }

    /// The mark of a line of the log, if what it says is believed. One that was not judged yet was made meanwhile.
    pub(super) fn believed(&mut self, line: &[u8], window: &Window, found: &mut Findings) -> Option<Mark> {
        let hash = LineHash::of(line);
        if !self.judged.contains_key(&hash) {
            self.judge(line, found);
            self.close_late(window, found);
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

    /// Whether a signed mark says that what was recorded then was past its retention and removed.
    pub(super) fn expired(&self, recorded_at: Timestamp) -> bool {
        self.horizon.is_some_and(|horizon| recorded_at < horizon)
    }

    fn may_be_gone(&self, told: &Previous, window: &Window) -> bool {
        window.may_be_gone(told.recorded_at, told.expires_at) || self.expired(told.recorded_at)
    }

    fn believe(&mut self, mark: &Mark, found: &mut Findings) {
        for head in &mark.heads {
            self.cover(head, found);
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

    fn cover(&mut self, head: &Head, found: &mut Findings) {
        let covered = self.covered.entry(head.writer).or_default();
        *covered = head.sequence.max(*covered);
        self.name(head, found);
    }

    fn name(&mut self, head: &Head, found: &mut Findings) {
        if *self.named.entry((head.writer, head.sequence)).or_insert(head.hash) != head.hash {
            let message = "two marks name different decisions";
            found.decision(FindingKind::Altered, head.writer, head.sequence, None, message);
        }
    }

    fn place(&mut self, mark: &Mark, this: Before, found: &mut Findings) {
        let (number, previous) = (this.number, mark.previous);
        let (last, expected) = match self.before {
            Some(before) => (before.number, Some(before)),
            None => (0, None),
        };
        // The number of an unsigned mark is believed only where it fits, or all that follow would seem to be out of order.
        if !this.signed && number != last.saturating_add(1) {
            return;
        }
        // Nor does an unsigned one take the place of the mark that was signed with its number.
        if number == last && this.signed && expected.is_some_and(|before| !before.signed) {
            let followed = number.checked_sub(1).and_then(|before| self.marks.get(&before)).copied();
            if followed.is_some_and(|hash| previous.map(|previous| previous.hash) != Some(hash)) {
                let message = "a mark is not the one that its successor follows";
                found.marks(FindingKind::Altered, number - 1, 1, message);
            }
            return self.stands(this);
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
            self.holes.push(Hole { first: last + 1, last: number - 1, told: previous });
        } else if this.signed
            && expected.is_none_or(|before| before.signed)
            && previous.map(|previous| previous.hash) != expected.map(|before| before.hash)
        {
            // What was found unsigned needs no second finding.
            found.marks(FindingKind::Altered, last.max(1), 1, "a mark is not the one that its successor follows");
        }
        self.stands(this);
    }

    fn stands(&mut self, this: Before) {
        self.marks.insert(this.number, this.hash);
        if this.signed {
            self.last_signed = Some(MarkRef { number: this.number, hash: this.hash });
        }
        self.before = Some(this);
    }

    /// A mark that was made meanwhile and does not follow at once: what is between is missing.
    fn close_late(&mut self, window: &Window, found: &mut Findings) {
        for Hole { first, last, told } in std::mem::take(&mut self.holes) {
            if told.is_some_and(|told| self.may_be_gone(&told, window)) {
                continue;
            }
            found.marks(FindingKind::MarkMissing, first, last - first + 1, "marks are missing");
        }
    }
}
