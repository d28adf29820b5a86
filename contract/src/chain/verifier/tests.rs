//! A log with several writers, signed marks, and everything that can be done to it.

mod other_lines;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jiff::SignedDuration;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::KeyId;
use crate::chain::{SigningKeyId, Unsigned};
use crate::record::{Deletion, Expiry, LineHeader, Mark};

const START: i64 = 1_800_000_000;
const DAY: i64 = 86_400;
const DAYS: i64 = 30;

/// What a test calls a line: a decision by writer and sequence, a mark by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Decision(u8, u64),
    Mark(u64),
}
use Name::{Decision, Mark as Signed};

#[derive(Clone)]
struct Line {
    name: Name,
    bytes: Vec<u8>,
}

/// Writes a log as gateways and the exporter do; one line a second.
#[derive(Clone)]
struct Log {
    /// The type of a writer's line with this sequence.
    kind: fn(u8, u64) -> &'static str,
    lines: Vec<Line>,
    heads: BTreeMap<WriterId, Head>,
    last: Option<Head>,
    mark: Option<(MarkRef, super::super::Previous)>,
    clock: i64,
}

fn writer(number: u8) -> WriterId {
    WriterId::new(Uuid::from_u128(number.into()))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn public(pair: &Ed25519KeyPair) -> PublicKey {
    PublicKey::new(pair.public_key().as_ref().try_into().unwrap(), at(START))
}

fn sign(mark: &Mark, pair: &Ed25519KeyPair) -> Vec<u8> {
    let unsigned = Unsigned::new(mark, &public(pair).id).unwrap();
    unsigned.signed(pair.sign(unsigned.bytes()).as_ref().try_into().unwrap())
}

fn body(second: i64) -> String {
    let id = format!("0190163d-8694-739b-aea5-{second:012x}");
    format!(r#"{{"verdict":"ALLOW","account":"acc_1","request_id":"{id}","timestamp":{second}}}"#)
}

impl Log {
    fn new() -> Self {
        let kind = |_, _| LineType::Decision.as_str();
        Self { kind, lines: Vec::new(), heads: BTreeMap::new(), last: None, mark: None, clock: START }
    }

    /// Three writers: the second began after the first, the third after both; two checkpoints; a tail.
    fn usual() -> Self {
        Self::usual_with(Self::new().kind)
    }

    /// The same, with lines of other types.
    fn usual_with(kind: fn(u8, u64) -> &'static str) -> Self {
        let mut log = Self { kind, ..Self::new() };
        log.write(1).write(1).write(1).write(2).write(1).checkpoint();
        log.write(2).write(1).write(3).write(2).write(1).write(3).checkpoint().checkpoint();
        log.write(1).write(3);
        log
    }

    fn tick(&mut self) -> (Timestamp, i64) {
        self.clock += 1;
        (at(self.clock), self.clock + DAYS * DAY)
    }

    fn write(&mut self, number: u8) -> &mut Self {
        let (recorded_at, expires_at) = self.tick();
        let before = self.heads.get(&writer(number));
        let chain = Link {
            writer: writer(number),
            sequence: before.map_or(1, |head| head.sequence + 1),
            previous: before.map(Head::as_previous),
            after: self.last.filter(|_| before.is_none()),
            mark: self.mark.map(|(mark, _)| mark).filter(|_| before.is_none()),
        };
        let kind = (self.kind)(number, chain.sequence);
        let start = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
        let text = String::from_utf8(start.with(body(self.clock).as_bytes()).unwrap()).unwrap();
        let bytes = text.replacen(LineType::Decision.as_str(), kind, 1).into_bytes();
        let head = start.head(&bytes);
        self.heads.insert(head.writer, head);
        self.last = Some(head);
        self.lines.push(Line { name: Decision(number, head.sequence), bytes });
        self
    }

    fn checkpoint(&mut self) -> &mut Self {
        self.mark(MarkBody::Checkpoint {}, &pair(1))
    }

    fn mark(&mut self, body: MarkBody, pair: &Ed25519KeyPair) -> &mut Self {
        let (recorded_at, expires_at) = self.tick();
        let mark = Mark {
            body,
            account: account(),
            number: self.mark.map_or(1, |(mark, _)| mark.number + 1),
            previous: self.mark.map(|(_, previous)| previous),
            recorded_at,
            expires_at,
            through: self.lines.len() as u64,
            covered: 0,
            heads: self.heads.values().copied().collect(),
        };
        let bytes = sign(&mark, pair);
        let hash = LineHash::of(&bytes);
        let previous = super::super::Previous { hash, recorded_at, expires_at };
        self.mark = Some((MarkRef { number: mark.number, hash }, previous));
        self.lines.push(Line { name: Signed(mark.number), bytes });
        self
    }

    /// Says that all decisions so far were deleted, and which those are; does not delete them.
    fn deletion(&mut self, pair: &Ed25519KeyPair) -> &mut Self {
        let deleted = self.heads.values().copied().collect();
        let requested_by = KeyId::parse("key_1").unwrap();
        let before = at(self.clock + 1);
        let through = self.lines.len() as u64;
        let body = Deletion { before, from: None, to: None, count: 1, through, deleted, requested_by };
        self.mark(MarkBody::Deletion(body), pair)
    }

    fn place(&self, name: Name) -> usize {
        self.lines.iter().position(|line| line.name == name).unwrap()
    }

    fn line(&self, name: Name) -> &[u8] {
        &self.lines[self.place(name)].bytes
    }

    fn start(&self, name: Name) -> LineHeader {
        serde_json::from_slice(self.line(name)).unwrap()
    }

    fn without(mut self, names: &[Name]) -> Self {
        self.lines.retain(|line| !names.contains(&line.name));
        self
    }

    /// The lines of one writer with these sequences.
    fn cut(mut self, number: u8, sequences: std::ops::RangeInclusive<u64>) -> Self {
        self.lines.retain(|line| !matches!(line.name, Decision(n, s) if n == number && sequences.contains(&s)));
        self
    }

    fn replaced(mut self, name: Name, from: &str, to: &str) -> Self {
        let place = self.place(name);
        let text = String::from_utf8(self.lines[place].bytes.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        self.lines[place].bytes = text.replacen(from, to, 1).into_bytes();
        self
    }

    fn swapped(mut self, one: Name, other: Name) -> Self {
        let (one, other) = (self.place(one), self.place(other));
        self.lines.swap(one, other);
        self
    }

    /// Behind the last line.
    fn with(mut self, name: Name, bytes: &[u8]) -> Self {
        self.lines.push(Line { name, bytes: bytes.to_vec() });
        self
    }

    /// Alters a decision, and makes the rest of its writer's chain fit again.
    fn recomputed(mut self, number: u8, from: u64) -> Self {
        self = self.replaced(Decision(number, from), "ALLOW", "DENY");
        let mut sequence = from;
        while let Some(place) = self.lines.iter().position(|line| line.name == Decision(number, sequence + 1)) {
            let previous = self.start(Decision(number, sequence)).head(self.line(Decision(number, sequence)));
            let mut start = self.start(Decision(number, sequence + 1));
            start.chain.previous = Some(previous.as_previous());
            let body = body(start.recorded_at.as_second());
            self.lines[place].bytes = start.with(body.as_bytes()).unwrap();
            sequence += 1;
        }
        self
    }

    fn now(&self) -> Window {
        Window { from: None, to: None, now: at(self.clock), horizon: at(0), kept: None, signed: None }
    }

    fn checked(&self) -> Report {
        self.checked_in(self.now())
    }

    fn checked_in(&self, window: Window) -> Report {
        let marks = self.lines.iter().filter(|line| matches!(line.name, Signed(_))).map(|line| line.bytes.as_slice());
        let mut verifier = ChainVerifier::new(window, vec![public(&pair(1))], marks).of(&account());
        self.lines.iter().for_each(|line| verifier.read_line(&line.bytes));
        verifier.finish()
    }

    fn is_good(&self) {
        self.is_good_in(self.now());
    }

    fn is_good_in(&self, window: Window) {
        let report = self.checked_in(window);
        assert!(report.ok && report.findings.is_empty(), "{:#?}", report.findings);
    }

    /// Exactly these, in any order.
    fn finds(&self, wanted: &[Fault]) {
        self.finds_in(self.now(), wanted);
    }

    fn finds_in(&self, window: Window, wanted: &[Fault]) {
        let report = self.checked_in(window);
        let mut found: Vec<Fault> = report.findings.iter().map(|f| (f.kind, f.writer, f.sequence, f.count)).collect();
        for fault in wanted {
            let place = found.iter().position(|f| f == fault);
            found.remove(place.unwrap_or_else(|| panic!("{fault:?} is not in {:#?}", report.findings)));
        }
        assert!(found.is_empty() && !report.ok, "more than wanted: {found:#?}");
    }
}

type Fault = (FindingKind, Option<WriterId>, Option<u64>, u64);

fn of(kind: FindingKind, number: u8, sequence: u64, count: u64) -> Fault {
    (kind, Some(writer(number)), Some(sequence), count)
}

fn of_mark(kind: FindingKind, number: u64, count: u64) -> Fault {
    (kind, None, Some(number), count)
}

const UNREADABLE: Fault = (FindingKind::Unreadable, None, None, 1);

#[test]
fn an_untouched_log_is_good_and_is_counted() {
    let log = Log::usual();
    let report = log.checked();
    assert!(report.ok, "{:#?}", report.findings);
    assert_eq!((report.records, report.writers, report.checkpoints, report.deletions), (13, 3, 3, 0));
    assert_eq!(report.unsealed, 2);
    assert_eq!((report.first_at, report.last_at), (Some(at(START + 1)), Some(at(log.clock))));
    assert_eq!(report.last_mark, log.mark.map(|(mark, _)| mark));
    let window = Window { kept: report.last_mark, ..log.now() };
    log.is_good_in(window);
    Log::new().is_good();
}

#[test]
fn a_removed_decision_is_missing_wherever_it_stood() {
    use FindingKind::Missing;
    for (name, fault) in [
        (Decision(1, 1), of(Missing, 1, 1, 1)),
        (Decision(1, 2), of(Missing, 1, 2, 1)),
        (Decision(1, 4), of(Missing, 1, 4, 1)),
        (Decision(1, 6), of(Missing, 1, 6, 1)),
        (Decision(2, 1), of(Missing, 2, 1, 1)),
        (Decision(2, 3), of(Missing, 2, 3, 1)),
        (Decision(3, 1), of(Missing, 3, 1, 1)),
    ] {
        Log::usual().without(&[name]).finds(&[fault]);
    }
    Log::usual().cut(1, 2..=3).finds(&[of(Missing, 1, 2, 2)]);
}

#[test]
fn a_finding_names_the_decision_it_is_about_or_those_around_a_hole() {
    let log = Log::usual();
    let id = |name| {
        let line: Kind = serde_json::from_slice(log.line(name)).unwrap();
        line.id().or_else(|| panic!("{name:?} has no id"))
    };
    let ids = |log: &Log| {
        let report = log.checked();
        let [finding] = report.findings.as_slice() else { panic!("{:#?}", report.findings) };
        (finding.request_id, finding.after_request_id, finding.before_request_id)
    };
    let altered = Decision(1, 2);
    assert_eq!(ids(&log.clone().replaced(altered, "ALLOW", "DENY")), (id(altered), None, None));
    let copied = log.line(altered).to_vec();
    assert_eq!(ids(&log.clone().with(altered, &copied)), (id(altered), None, None));
    let cut = log.clone().replaced(altered, "\"chain\"", "\"chains\"");
    let unreadable = cut.checked().findings.into_iter().find(|found| found.kind == FindingKind::Unreadable).unwrap();
    assert_eq!(unreadable.request_id, id(altered));
    assert_eq!(ids(&log.clone().without(&[altered])), (None, id(Decision(1, 1)), id(Decision(1, 3))));
    assert_eq!(ids(&log.clone().cut(1, 2..=4)), (None, id(Decision(1, 1)), id(Decision(1, 5))));
    assert_eq!(ids(&log.clone().cut(1, 1..=1)), (None, None, id(Decision(1, 2))));
    let mut tail = log.clone().cut(2, 3..=3);
    tail.checkpoint();
    assert_eq!(ids(&tail), (None, id(Decision(2, 2)), None));
    let swapped = log.clone().swapped(Decision(1, 3), Decision(1, 4));
    let moved = swapped.checked().findings.into_iter().find(|found| found.kind == FindingKind::Reordered).unwrap();
    assert_eq!(moved.request_id, id(Decision(1, 3)));
}

#[test]
fn a_tail_or_a_whole_writer_that_is_cut_is_missing() {
    use FindingKind::Missing;
    Log::usual().cut(1, 4..=9).finds(&[of(Missing, 1, 4, 3)]);
    Log::usual().cut(2, 2..=9).finds(&[of(Missing, 2, 2, 2)]);
    // Decisions before the named one may have expired, so their absence is no finding.
    Log::usual().cut(2, 1..=9).finds(&[of(Missing, 2, 1, 3)]);
    let mut log = Log::new();
    log.write(1).write(1).write(2);
    log.clone().cut(1, 1..=9).finds(&[of(Missing, 1, 2, 1)]);
    log.cut(1, 2..=2).finds(&[of(Missing, 1, 2, 1)]);
}

#[test]
fn an_altered_decision_is_not_the_one_that_was_followed_or_signed() {
    use FindingKind::Altered;
    for name in [Decision(1, 2), Decision(1, 4), Decision(1, 6), Decision(2, 3), Decision(3, 1), Decision(2, 1)] {
        let Decision(number, sequence) = name else { continue };
        Log::usual().replaced(name, "ALLOW", "DENY").finds(&[of(Altered, number, sequence, 1)]);
    }
    // The last one before a new writer, which no mark names.
    let mut log = Log::new();
    log.write(1).write(2);
    log.replaced(Decision(1, 1), "ALLOW", "DENY").finds(&[of(Altered, 1, 1, 1)]);
}

#[test]
fn a_recomputed_chain_does_not_match_the_marks() {
    use FindingKind::Altered;
    // The second and the third writer followed its third and fifth decision, marks name the fourth and sixth.
    Log::usual().recomputed(1, 2).finds(&[3, 4, 5, 6].map(|sequence| of(Altered, 1, sequence, 1)));
    Log::usual().recomputed(3, 1).finds(&[of(Altered, 3, 2, 1)]);
    // However many lines are put between.
    let mut log = Log::new();
    log.write(1).write(1);
    let mut forged = log.clone();
    log.checkpoint();
    for _ in 0..2 * MAX_RECENT {
        forged.write(1);
    }
    let forged = forged.recomputed(1, 2).with(Signed(1), log.line(Signed(1)));
    forged.finds(&[of(Altered, 1, 2, 1)]);
}

#[test]
fn a_mark_may_stand_far_behind_what_it_covers() {
    let mut log = Log::new();
    log.write(1).write(1);
    let heads = log.heads.clone();
    for _ in 0..2 * MAX_RECENT {
        log.write(1);
    }
    log.heads = heads;
    log.checkpoint().is_good();
    assert_eq!(log.checked().unsealed, 2 * MAX_RECENT as u64);
    // And a later one behind an earlier one.
    let mut log = Log::new();
    log.write(1).write(1);
    let heads = log.heads.clone();
    log.write(1).checkpoint();
    log.heads = heads;
    log.checkpoint().is_good();
    assert_eq!(log.checked().unsealed, 0);
}

#[test]
fn two_marks_that_name_different_decisions_cannot_both_be_true() {
    let mut log = Log::usual();
    let mut mark: Mark = serde_json::from_slice(log.line(Signed(3))).unwrap();
    mark.heads[0].hash = LineHash::of(b"other");
    let place = log.place(Signed(3));
    log.lines[place].bytes = sign(&mark, &pair(1));
    log.finds(&[of(FindingKind::Altered, 1, 6, 1)]);
    // Also when there is nothing left to compare them with.
    let later = Window { horizon: at(START + 100), ..log.now() };
    log.cut(1, 1..=9).finds_in(later, &[of(FindingKind::Altered, 1, 6, 1)]);
}

#[test]
fn a_moved_decision_is_out_of_order_and_a_copy_is_there_twice() {
    use FindingKind::{Duplicate, Reordered};
    Log::usual().swapped(Decision(1, 2), Decision(1, 3)).finds(&[of(Reordered, 1, 2, 1)]);
    Log::usual().swapped(Decision(1, 1), Decision(1, 3)).finds(&[of(Reordered, 1, 2, 1), of(Reordered, 1, 1, 1)]);
    Log::usual().swapped(Decision(3, 2), Signed(2)).finds(&[of(Reordered, 3, 2, 1)]);
    // A mark that is moved forward: what it covers stands behind it.
    let behind = [of(Reordered, 2, 1, 1), of(Reordered, 1, 4, 1)];
    Log::usual().swapped(Decision(2, 1), Signed(1)).finds(&behind);
    let log = Log::usual();
    let copy = log.line(Decision(1, 3)).to_vec();
    log.with(Decision(1, 3), &copy).finds(&[of(Duplicate, 1, 3, 1)]);
    let mut log = Log::new();
    log.write(1).write(1).write(1).checkpoint();
    log.lines.rotate_right(1);
    log.finds(&[1, 2, 3].map(|sequence| of(Reordered, 1, sequence, 1)));
    // One of three that are missing turns up behind the others.
    let mut log = Log::new();
    log.write(1).write(1).write(1).write(1).write(1);
    let late = log.line(Decision(1, 3)).to_vec();
    let log = log.cut(1, 2..=4).with(Decision(1, 3), &late);
    log.finds(&[of(Reordered, 1, 3, 1), of(FindingKind::Missing, 1, 2, 1), of(FindingKind::Missing, 1, 4, 1)]);
}

#[test]
fn an_altered_or_wrongly_signed_mark_is_badly_signed() {
    use FindingKind::{BadSignature, MarkMissing};
    let missing = of_mark(MarkMissing, 2, 1);
    for (from, to, wanted) in [
        (r#""covered":0"#, r#""covered":1"#, &[of_mark(BadSignature, 2, 1)][..]),
        (r#""signature":""#, r#""signature":"A"#, &[of_mark(BadSignature, 2, 1)]),
        (r#""number":2"#, r#""number":7"#, &[of_mark(BadSignature, 7, 1), missing]),
        (r#""number":2"#, r#""number":1"#, &[of_mark(BadSignature, 1, 1), missing]),
        (r#""number":2"#, r#""number":-2"#, &[UNREADABLE, missing]),
        ("checkpoint", "chequepoint", &[UNREADABLE, missing]),
    ] {
        Log::usual().replaced(Signed(2), from, to).finds(wanted);
    }
    let mark: Mark = serde_json::from_slice(Log::usual().line(Signed(2))).unwrap();
    let mut log = Log::usual();
    let place = log.place(Signed(2));
    log.lines[place].bytes = sign(&mark, &pair(9));
    log.finds(&[of_mark(BadSignature, 2, 1)]);
    // It is not what is kept outside.
    let mut log = Log::usual();
    log.mark(MarkBody::Checkpoint {}, &pair(9));
    log.finds(&[of_mark(BadSignature, 4, 1)]);
    assert_eq!(log.checked().last_mark.map(|mark| mark.number), Some(3));
    // A number of its own does not put all the others out of order.
    let forged = sign(&Mark { number: u64::MAX, ..mark }, &pair(9));
    Log::usual().with(Signed(0), &forged).finds(&[of_mark(BadSignature, u64::MAX, 1)]);
}

#[test]
fn a_mark_that_its_successor_does_not_follow_is_altered() {
    let log = Log::usual();
    let mark: Mark = serde_json::from_slice(log.line(Signed(2))).unwrap();
    let (place, other) = (log.place(Signed(2)), sign(&Mark { covered: 7, ..mark }, &pair(1)));
    let mut log = log;
    log.lines[place].bytes = other;
    log.finds(&[of_mark(FindingKind::Altered, 2, 1)]);
}

#[test]
fn a_removed_mark_is_missing_and_the_last_one_to_whom_it_was_shown() {
    use FindingKind::MarkMissing;
    Log::usual().without(&[Signed(1)]).finds(&[of_mark(MarkMissing, 1, 1)]);
    Log::usual().without(&[Signed(2)]).finds(&[of_mark(MarkMissing, 2, 1)]);
    let log = Log::usual();
    let kept = log.mark.map(|(mark, _)| mark);
    let cut = log.without(&[Signed(3)]);
    cut.is_good();
    cut.finds_in(Window { kept, ..cut.now() }, &[of_mark(MarkMissing, 3, 1)]);
    // A later writer had seen it.
    let mut log = Log::usual();
    log.write(4);
    log.without(&[Signed(3)]).finds(&[of_mark(MarkMissing, 3, 1)]);
}

#[test]
fn a_mark_that_was_kept_and_is_another_one_here_is_altered() {
    let log = Log::usual();
    let kept = Some(MarkRef { number: 2, hash: LineHash::of(b"other") });
    log.finds_in(Window { kept, ..log.now() }, &[of_mark(FindingKind::Altered, 2, 1)]);
}

#[test]
fn swapped_marks_are_out_of_order_and_a_copied_one_is_there_twice() {
    use FindingKind::{Duplicate, Reordered};
    Log::usual().swapped(Signed(2), Signed(3)).finds(&[of_mark(Reordered, 2, 1)]);
    let log = Log::usual();
    let copy = log.line(Signed(2)).to_vec();
    log.with(Signed(2), &copy).finds(&[of_mark(Duplicate, 2, 1)]);
}

#[test]
fn a_line_that_is_not_a_record_is_unreadable() {
    for line in
        ["", "garbage", "{}", "[]", r#"{"type":"decision.recorded"}"#, r#"{"type":"other"}"#, "\u{0}", "{\"type\":"]
    {
        Log::usual().with(Decision(9, 9), line.as_bytes()).finds(&[UNREADABLE]);
    }
    // As a mark it is found once too, although it is looked at twice.
    Log::usual().with(Signed(9), br#"{"type":"checkpoint.signed"}"#).finds(&[UNREADABLE]);
    Log::usual().with(Decision(9, 9), br#"{"type":"checkpoint.signed"}"#).finds(&[UNREADABLE]);
    let deep = format!("{}{}", r#"{"type":"decision.recorded","a":"#, "[".repeat(100_000));
    Log::usual().with(Decision(9, 9), deep.as_bytes()).finds(&[UNREADABLE]);
}

#[test]
fn lines_of_another_account_prove_nothing() {
    let mut other = Log::new();
    other.write(1).write(1);
    let mark: Mark = serde_json::from_slice(Log::usual().line(Signed(3))).unwrap();
    let foreign = sign(&Mark { account: AccountId::parse("acc_2").unwrap(), number: 4, ..mark }, &pair(1));
    Log::usual().with(Signed(4), &foreign).finds(&[UNREADABLE]);
    Log::usual().replaced(Decision(3, 3), "acc_1", "acc_2").finds(&[UNREADABLE]);
    // A log that is another account's from end to end.
    let log = Log::usual();
    let marks = log.lines.iter().filter(|line| matches!(line.name, Signed(_))).map(|line| line.bytes.as_slice());
    let verifier = ChainVerifier::new(log.now(), vec![public(&pair(1))], marks).of(&AccountId::parse("acc_2").unwrap());
    assert!(!verifier.finish().ok);
}

#[test]
fn expired_lines_may_be_missing() {
    // All that was written in the first eight seconds has expired.
    let log = Log::usual();
    let expired = Window { now: at(START + 8 + DAYS * DAY), ..log.now() };
    let shortened = Window { horizon: at(START + 9), ..log.now() };
    let from = Window { from: Some(at(START + 9)), ..log.now() };
    let gone = |log: Log| {
        let lines = log.lines.clone();
        let old = |line: &Line| {
            let times: Times = serde_json::from_slice(&line.bytes).unwrap();
            times.recorded_at <= at(START + 8)
        };
        Log { lines: lines.into_iter().filter(|line| !old(line)).collect(), ..log }
    };
    for window in [expired, shortened] {
        gone(Log::usual()).is_good_in(window);
        // Or some of it still there.
        Log::usual().is_good_in(window);
        Log::usual().cut(1, 1..=2).is_good_in(window);
        Log::usual().cut(1, 1..=5).is_good_in(window);
        let kept: Mark = serde_json::from_slice(Log::usual().line(Signed(1))).unwrap();
        let kept = MarkRef { number: kept.number, hash: LineHash::of(Log::usual().line(Signed(1))) };
        gone(Log::usual()).is_good_in(Window { kept: Some(kept), ..window });
        // But no later one.
        gone(Log::usual()).without(&[Decision(1, 6)]).finds_in(window, &[of(FindingKind::Missing, 1, 6, 1)]);
        gone(Log::usual()).cut(1, 1..=9).finds_in(window, &[of(FindingKind::Missing, 1, 6, 1)]);
        gone(Log::usual()).cut(3, 1..=9).finds_in(window, &[of(FindingKind::Missing, 3, 2, 1)]);
    }
    // An old mark that is still there names a decision that may be gone: it says nothing of those right behind it.
    let mut log = Log::new();
    log.write(1).write(1).checkpoint().write(1).write(1).write(1).write(1).checkpoint();
    let shortened = Window { horizon: at(START + 6), ..log.now() };
    log.cut(1, 1..=9).finds_in(shortened, &[of(FindingKind::Missing, 1, 6, 1)]);
    // Before `from` decisions are not looked at; marks always are.
    Log::usual().cut(1, 1..=5).cut(2, 1..=2).is_good_in(from);
    Log::usual().without(&[Decision(1, 6)]).finds_in(from, &[of(FindingKind::Missing, 1, 6, 1)]);
    Log::usual().without(&[Signed(1)]).finds_in(from, &[of_mark(FindingKind::MarkMissing, 1, 1)]);
}

#[derive(Deserialize)]
struct Times {
    recorded_at: Timestamp,
}

#[test]
fn lines_after_the_window_are_not_verified() {
    let log = Log::usual();
    let to = Window { to: Some(at(START + 8)), ..log.now() };
    log.is_good_in(to);
    let report = log.checked_in(to);
    assert_eq!((report.records, report.checkpoints), (7, 1));
    Log::usual().cut(3, 1..=9).is_good_in(to);
    Log::usual().without(&[Decision(1, 2)]).finds_in(to, &[of(FindingKind::Missing, 1, 2, 1)]);
    // A gateway whose clock is ahead of the exporter's, and one whose clock was set back.
    let mut log = Log::new();
    log.write(1).write(1);
    log.clock -= 1;
    log.checkpoint().write(1);
    log.is_good_in(Window { to: Some(at(START + 1)), ..log.now() });
    log.is_good_in(Window { from: Some(at(START + 2)), ..log.now() });
    let mut log = Log::new();
    log.write(1).write(1);
    log.clock -= 2;
    log.write(1);
    log.is_good_in(Window { to: Some(at(START + 1)), ..log.now() });
}

#[test]
fn a_signed_deletion_excuses_what_it_names_and_nothing_else() {
    use FindingKind::Missing;
    let mut log = Log::usual();
    log.deletion(&pair(1)).write(1).write(2).write(5).checkpoint();
    // Not carried out yet, half and wholly.
    log.is_good();
    assert_eq!(log.checked().deletions, 1);
    log.clone().cut(1, 1..=4).is_good();
    log.clone().cut(1, 1..=7).cut(2, 1..=3).cut(3, 1..=3).is_good();
    log.clone().cut(3, 1..=3).without(&[Decision(2, 1)]).is_good();
    // What came later.
    log.clone().cut(1, 1..=8).finds(&[of(Missing, 1, 8, 1)]);
    log.clone().cut(2, 1..=4).finds(&[of(Missing, 2, 4, 1)]);
    log.clone().cut(5, 1..=1).finds(&[of(Missing, 5, 1, 1)]);
    // And the deletion itself cannot be taken away.
    log.clone().without(&[Signed(4)]).finds(&[of_mark(FindingKind::MarkMissing, 4, 1)]);
    log.cut(1, 1..=7).without(&[Signed(4)]).finds(&[of_mark(FindingKind::MarkMissing, 4, 1), of(Missing, 1, 3, 5)]);
}

#[test]
fn a_deletion_excuses_only_what_is_older_and_not_behind_what_it_names() {
    use FindingKind::Missing;
    let deleted = |before: i64, through: u64| {
        let mut log = Log::new();
        log.write(1).write(1).write(1).write(1).write(1);
        let name = Decision(1, through);
        let deleted = vec![log.start(name).head(log.line(name))];
        let requested_by = KeyId::parse("key_1").unwrap();
        let body = Deletion { before: at(before), from: None, to: None, count: 1, through: 0, deleted, requested_by };
        log.mark(MarkBody::Deletion(body), &pair(1));
        log
    };
    deleted(START + 4, 5).cut(1, 1..=3).is_good();
    deleted(START + 4, 5).cut(1, 1..=4).finds(&[of(Missing, 1, 1, 4)]);
    deleted(START + 9, 3).cut(1, 1..=3).is_good();
    deleted(START + 9, 3).cut(1, 1..=4).finds(&[of(Missing, 1, 1, 4)]);
}

#[test]
fn a_deletion_that_is_not_signed_excuses_nothing() {
    use FindingKind::{BadSignature, Missing};
    let mut log = Log::usual();
    log.deletion(&pair(9)).write(1);
    log.cut(1, 1..=2).finds(&[of_mark(BadSignature, 4, 1), of(Missing, 1, 1, 2)]);
    let mut log = Log::usual();
    log.deletion(&pair(1)).write(1);
    let log = log.cut(1, 2..=2).replaced(Signed(4), r#""count":1"#, r#""count":2"#);
    log.finds(&[of_mark(BadSignature, 4, 1), of(Missing, 1, 2, 1)]);
}

#[test]
fn a_deletion_of_another_account_excuses_nothing() {
    let mut log = Log::usual();
    log.deletion(&pair(1));
    let mark: Mark = serde_json::from_slice(log.line(Signed(4))).unwrap();
    let place = log.place(Signed(4));
    log.lines[place].bytes = sign(&Mark { account: AccountId::parse("acc_2").unwrap(), ..mark }, &pair(1));
    log.cut(1, 2..=2).finds(&[UNREADABLE, of(FindingKind::Missing, 1, 2, 1)]);
}

#[test]
fn an_append_whose_fate_was_unknown_may_have_landed_behind_its_successor() {
    let mut log = Log::new();
    log.write(1).write(1).checkpoint();
    let abandoned = log.clone().write(1).clone();
    let (late, landed) = (Decision(1, 3), abandoned.line(Decision(1, 3)).to_vec());
    log.write(2);
    let mut log = log.with(late, &landed);
    log.is_good();
    log.heads = abandoned.heads.into_iter().chain(log.heads).collect();
    log.write(2).checkpoint();
    log.is_good();
}

#[test]
fn lines_appended_while_the_log_is_read_are_no_fault() {
    let mut log = Log::usual();
    let marks: Vec<Vec<u8>> =
        log.lines.iter().filter(|l| matches!(l.name, Signed(_))).map(|l| l.bytes.clone()).collect();
    let window = log.now();
    // After the marks were read: a checkpoint, a writer that follows it, a deletion that is carried out.
    log.checkpoint().write(6).deletion(&pair(1)).write(6);
    let log = log.cut(1, 2..=7);
    let mut verifier =
        ChainVerifier::new(window, vec![public(&pair(1))], marks.iter().map(Vec::as_slice)).of(&account());
    log.lines.iter().for_each(|line| verifier.read_line(&line.bytes));
    let report = verifier.finish();
    assert!(report.ok, "{:#?}", report.findings);
    assert_eq!((report.last_mark.map(|mark| mark.number), report.unsealed), (Some(5), 1));
}

#[test]
fn changes_to_the_log_while_it_is_read_are_found() {
    let checked = |log: &Log| {
        let usual = Log::usual();
        let marks = usual.lines.iter().filter(|l| matches!(l.name, Signed(_))).map(|l| l.bytes.as_slice());
        let mut verifier = ChainVerifier::new(log.now(), vec![public(&pair(1))], marks).of(&account());
        log.lines.iter().for_each(|line| verifier.read_line(&line.bytes));
        let found = verifier.finish().findings;
        found.into_iter().map(|f| (f.kind, f.writer, f.sequence, f.count)).collect::<Vec<Fault>>()
    };
    let mut log = Log::usual();
    log.checkpoint().checkpoint();
    assert_eq!(checked(&log), []);
    assert_eq!(checked(&log.clone().without(&[Signed(4)])), [of_mark(FindingKind::MarkMissing, 4, 1)]);
    assert_eq!(checked(&log.clone().without(&[Decision(1, 7)])), [of(FindingKind::Missing, 1, 7, 1)]);
    let altered = log.replaced(Decision(1, 7), "ALLOW", "DENY");
    assert_eq!(checked(&altered), [of(FindingKind::Altered, 1, 7, 1)]);
    let mut forged = Log::usual();
    forged.mark(MarkBody::Checkpoint {}, &pair(9));
    assert_eq!(checked(&forged), [of_mark(FindingKind::BadSignature, 4, 1)]);
}

#[test]
fn absurd_numbers_are_findings() {
    let log = Log::usual();
    let line = |sequence: u64, previous: bool| {
        let mut start = log.start(Decision(1, 2));
        start.chain.sequence = sequence;
        start.chain.previous = start.chain.previous.filter(|_| previous);
        start.with(b"{}").unwrap()
    };
    for (sequence, previous) in [(0, true), (0, false), (u64::MAX, true), (u64::MAX, false), (u64::MAX - 1, true)] {
        let name = Decision(1, 99);
        assert!(!log.clone().with(name, &line(sequence, previous)).checked().ok, "{sequence}");
        let mut first = log.clone();
        first.lines.insert(0, Line { name, bytes: line(sequence, previous) });
        assert!(!first.checked().ok, "{sequence}");
        let mut alone = Log::new();
        alone.lines.push(Line { name, bytes: line(sequence, previous) });
        alone.lines.push(Line { name, bytes: line(u64::MAX, previous) });
        assert!(!alone.checked().ok, "{sequence}");
    }
    log.clone().with(Decision(1, 99), &line(0, true)).finds(&[UNREADABLE]);
    let mut alone = Log::new();
    alone.lines.push(Line { name: Decision(1, 1), bytes: line(1, true) });
    alone.finds(&[of(FindingKind::Altered, 1, 1, 1)]);
    // Even where the keystore signed them.
    for (number, sequence) in [(0, 0), (u64::MAX, u64::MAX), (4, u64::MAX), (4, 0), (u64::MAX - 1, 1)] {
        let mark: Mark = serde_json::from_slice(log.line(Signed(3))).unwrap();
        let head = Head { sequence, ..mark.heads[0] };
        let mark = Mark { number, heads: vec![head, Head { writer: writer(8), ..head }], ..mark };
        let far = log.clone().with(Signed(number), &sign(&mark, &pair(1)));
        assert!(!far.checked().ok, "{number} {sequence}");
        let mut twice = far.clone();
        twice.lines.insert(0, far.lines.last().unwrap().clone());
        assert!(!twice.checked().ok, "{number} {sequence}");
    }
    let mark: Mark = serde_json::from_slice(log.line(Signed(3))).unwrap();
    log.clone().with(Signed(0), &sign(&Mark { number: 0, ..mark }, &pair(1))).finds(&[UNREADABLE]);
    let kept = Some(MarkRef { number: u64::MAX, hash: LineHash::of(b"") });
    log.finds_in(Window { kept, ..log.now() }, &[of_mark(FindingKind::MarkMissing, u64::MAX, 1)]);
}

#[test]
fn findings_are_counted_but_not_all_listed() {
    let mut log = Log::usual();
    for _ in 0..2_500 {
        log = log.with(Decision(9, 9), b"garbage");
    }
    let report = log.checked();
    assert_eq!((report.ok, report.findings.len(), report.more_findings), (false, 1_000, 1_500));
}

#[test]
fn every_second_line_removed_is_found_without_remembering_every_hole() {
    let mut log = Log::new();
    for _ in 0..2 * (MAX_GAPS + 500) {
        log.write(1);
    }
    log.lines.retain(|line| !matches!(line.name, Decision(_, sequence) if sequence % 2 == 1));
    let report = log.checked();
    assert_eq!(report.findings.len() as u64 + report.more_findings, MAX_GAPS as u64 + 500);
}

/// What is done to one line, or to a pair.
#[derive(Debug, Clone)]
enum Tamper {
    Remove,
    Alter(prop::sample::Index, u8),
    Swap(prop::sample::Index),
    Copy(prop::sample::Index),
}

fn tamper() -> impl Strategy<Value = Tamper> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        Just(Tamper::Remove),
        (index(), 1_u8..).prop_map(|(at, flip)| Tamper::Alter(at, flip)),
        index().prop_map(Tamper::Swap),
        index().prop_map(Tamper::Copy),
    ]
}

/// Writers 1 to 3, and 0 for a checkpoint; with a checkpoint and a tail at the end.
fn random(steps: &[u8], tail: &[u8]) -> Log {
    let mut log = Log::new();
    let step = |log: &mut Log, step: u8| {
        if step == 0 {
            log.checkpoint()
        } else {
            log.write(step)
        };
    };
    steps.iter().for_each(|s| step(&mut log, *s));
    log.checkpoint();
    tail.iter().for_each(|s| step(&mut log, *s));
    log
}

fn same_chain(one: Name, other: Name) -> bool {
    match (one, other) {
        (Decision(one, _), Decision(other, _)) => one == other,
        (Signed(_), Signed(_)) => true,
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_change_of_a_line_before_the_last_checkpoint_is_found(
        steps in prop::collection::vec(0_u8..4, 1..40),
        tail in prop::collection::vec(1_u8..4, 0..4),
        place in any::<prop::sample::Index>(),
        tamper in tamper(),
    ) {
        let mut log = random(&steps, &tail);
        prop_assert!(log.checked().ok);
        let place = place.index(steps.len());
        let line = log.lines[place].clone();
        match &tamper {
            Tamper::Remove => {
                log.lines.remove(place);
            }
            Tamper::Alter(at, flip) => {
                let at = at.index(line.bytes.len());
                log.lines[place].bytes[at] ^= flip;
            }
            Tamper::Swap(other) => {
                let chain = |other: &Line| same_chain(line.name, other.name) && line.name != other.name;
                let others: Vec<usize> = (0..steps.len()).filter(|at| chain(&log.lines[*at])).collect();
                prop_assume!(!others.is_empty());
                log.lines.swap(place, others[other.index(others.len())]);
            }
            Tamper::Copy(to) => log.lines.insert(to.index(log.lines.len() + 1), line),
        }
        let report = log.checked();
        prop_assert!(!report.ok && !report.findings.is_empty(), "{:?} at {} was not found", tamper, place);
    }

    #[test]
    fn no_line_stops_a_verification(
        line in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
    ) {
        let mut log = Log::usual();
        log.lines.insert(place.index(log.lines.len()), Line { name: Decision(9, 9), bytes: line });
        prop_assert_eq!(log.checked().findings.len(), 1);
    }
}

#[test]
fn a_signing_key_is_named_in_the_line_that_it_signed() {
    let line = String::from_utf8(Log::usual().line(Signed(1)).to_vec()).unwrap();
    let id: SigningKeyId = public(&pair(1)).id;
    assert!(line.contains(&format!(r#""signed_by":"{id}""#)), "{line}");
    let month = SignedDuration::from_hours(24 * DAYS);
    let mark: Mark = serde_json::from_str(&line).unwrap();
    assert_eq!(mark.recorded_at.checked_add(month).unwrap().as_second(), mark.expires_at);
}

impl Log {
    /// Says that what was recorded before `before` was removed as it was older than the horizon; does not remove it.
    fn expiry(&mut self, horizon: i64, before: i64, pair: &Ed25519KeyPair) -> &mut Self {
        let mut last: BTreeMap<WriterId, Head> = BTreeMap::new();
        for line in self.lines.iter().filter(|line| matches!(line.name, Decision(..))) {
            let head = serde_json::from_slice::<LineHeader>(&line.bytes).unwrap().head(&line.bytes);
            if head.recorded_at < at(before) {
                last.insert(head.writer, head);
            }
        }
        let expired = last.into_values().collect();
        let (horizon, before) = (at(horizon), at(before));
        let expiry = Expiry { horizon, retention_days: 1, before, from: None, to: None, count: 1, expired };
        self.mark(MarkBody::Expiry(expiry), pair)
    }

    /// Without everything that was recorded before, marks included.
    fn removed_before(mut self, second: i64) -> Self {
        self.lines.retain(|line| serde_json::from_slice::<Times>(&line.bytes).unwrap().recorded_at >= at(second));
        self
    }
}

#[test]
fn lines_removed_by_a_shorter_retention_stay_excused_after_it_is_raised() {
    use FindingKind::{BadSignature, MarkMissing, Missing};
    // The first mark and all decisions of the first eight seconds are older than the horizon.
    let mut log = Log::usual();
    log.expiry(START + 9, START + 9, &pair(1)).write(1).checkpoint();
    log.is_good();
    log.clone().removed_before(START + 9).is_good();
    log.clone().removed_before(START + 5).is_good();
    assert_eq!(log.clone().removed_before(START + 9).checked().expiries, 1);
    // A mark that was kept outside may be among what went.
    let kept = Some(MarkRef { number: 1, hash: LineHash::of(log.line(Signed(1))) });
    log.clone().removed_before(START + 9).is_good_in(Window { kept, ..log.now() });
    // Later decisions are not excused; nor is any without the mark, or if the mark is not signed.
    log.clone().removed_before(START + 9).without(&[Decision(1, 6)]).finds(&[of(Missing, 1, 6, 1)]);
    log.clone().removed_before(START + 10).finds(&[of(Missing, 3, 1, 1)]);
    assert!(!log.clone().removed_before(START + 9).without(&[Signed(4)]).checked().ok);
    let plain = Log::usual();
    let gone = plain.checked_in(plain.now());
    assert!(gone.ok && !plain.removed_before(START + 9).checked().ok);
    let mut forged = Log::usual();
    forged.expiry(START + 9, START + 9, &pair(9)).write(1);
    let report = forged.removed_before(START + 9).checked();
    let kinds: Vec<FindingKind> = report.findings.iter().map(|finding| finding.kind).collect();
    for kind in [BadSignature, MarkMissing, Missing] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
}

#[test]
fn a_mark_of_a_removal_may_go_when_a_later_one_stands() {
    let mut log = Log::usual();
    log.expiry(START + 5, START + 5, &pair(1)).write(1).write(2).write(3).checkpoint();
    let first = log.clock;
    log.expiry(first, first, &pair(1)).write(1).checkpoint();
    log.clone().removed_before(first).is_good();
    // But a checkpoint behind it may not.
    let last = log.mark.unwrap().0.number;
    log.write(1).checkpoint();
    log.removed_before(first).without(&[Signed(last)]).finds(&[of_mark(FindingKind::MarkMissing, last, 1)]);
}

#[test]
fn a_removal_that_names_another_decision_than_stands_there_is_found() {
    let mut log = Log::usual();
    let mut altered = Log::usual().recomputed(3, 3);
    altered.heads.clone_from(&log.heads);
    log.expiry(START + 14, START + 14, &pair(1));
    let place = log.place(Decision(3, 3));
    log.lines[place].bytes = altered.line(Decision(3, 3)).to_vec();
    log.finds(&[of(FindingKind::Altered, 3, 3, 1)]);
}

#[test]
fn the_last_mark_that_the_keystore_signed_must_be_there() {
    use FindingKind::{Altered, MarkMissing};
    let log = Log::usual();
    let signed = log.mark.map(|(mark, _)| mark);
    let window = Window { signed, ..log.now() };
    log.is_good_in(window);
    log.clone().without(&[Signed(3)]).finds_in(window, &[of_mark(MarkMissing, 3, 1)]);
    Log::new().finds_in(window, &[of_mark(MarkMissing, 3, 1)]);
    // A mark that was also kept outside is reported once.
    Log::new().finds_in(Window { kept: signed, ..window }, &[of_mark(MarkMissing, 3, 1)]);
    let other = Some(MarkRef { number: 2, hash: LineHash::of(b"other") });
    log.finds_in(Window { signed: other, ..log.now() }, &[of_mark(Altered, 2, 1)]);
}

#[test]
fn a_forged_mark_does_not_take_the_place_of_the_one_that_is_signed_after_it() {
    use FindingKind::{Altered, BadSignature, Duplicate};
    let mut log = Log::usual();
    let before = log.mark;
    log.mark(MarkBody::Checkpoint {}, &pair(9));
    // As an exporter goes on: the last one that was signed once more, and then the next one.
    let copy = log.line(Signed(3)).to_vec();
    let mut log = log.with(Signed(3), &copy);
    log.mark = before;
    log.write(1).checkpoint().write(1).checkpoint();
    log.finds(&[of_mark(BadSignature, 4, 1), of_mark(Duplicate, 3, 1)]);
    assert_eq!((log.checked().last_mark, log.checked().unsealed), (log.mark.map(|(mark, _)| mark), 0));
    // It must follow the signed one all the same.
    let mark: Mark = serde_json::from_slice(Log::usual().line(Signed(3))).unwrap();
    let mut log = Log::usual();
    log.mark(MarkBody::Checkpoint {}, &pair(9));
    let other = sign(&Mark { number: 4, ..mark }, &pair(1));
    log.with(Signed(4), &other).finds(&[of_mark(BadSignature, 4, 1), of_mark(Altered, 3, 1)]);
}

#[test]
fn an_empty_line_is_found_among_marks_and_among_decisions() {
    Log::usual().with(Signed(9), b"").finds(&[UNREADABLE]);
    Log::usual().with(Decision(9, 9), b"").finds(&[UNREADABLE]);
}
