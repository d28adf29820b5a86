//! Every way in which a mark does not follow, each beside the nearest one that does.

use super::*;
use stage0_contract::{AccountId, KeyId};

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;
const DAYS: u32 = 30;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn micros(second: i64) -> u64 {
    u64::try_from(at(second).as_microsecond()).unwrap()
}

fn head(writer: u8, sequence: u64, recorded_at: i64) -> Head {
    let writer: WriterId = serde_json::from_str(&format!("\"{writer:08}-0000-7000-8000-000000000000\"")).unwrap();
    let hash = LineHash::of(&sequence.to_be_bytes());
    Head { writer, sequence, hash, recorded_at: at(recorded_at), expires_at: recorded_at + 30 * DAY }
}

fn first() -> Mark {
    Mark {
        body: MarkBody::Checkpoint {},
        account: AccountId::parse("acc_1").unwrap(),
        number: 1,
        previous: None,
        recorded_at: at(NOW - 60),
        expires_at: NOW - 60 + 30 * DAY,
        through: micros(NOW - 61),
        covered: 3,
        heads: vec![head(1, 5, NOW - 90), head(2, 7, NOW - 80)],
    }
}

fn line_of(mark: Mark) -> LastMark {
    LastMark { line: serde_json::to_string(&mark).unwrap(), mark }
}

/// A minute later, with one decision more.
fn next(last: &LastMark) -> Mark {
    Mark {
        number: last.mark.number + 1,
        previous: Some(last.as_previous()),
        recorded_at: at(NOW),
        expires_at: NOW + 30 * DAY,
        through: micros(NOW - 1),
        heads: vec![head(1, 6, NOW - 10), last.mark.heads[1]],
        ..last.mark.clone()
    }
}

fn judged(change: impl FnOnce(&mut Mark)) -> Result<(), MarkFault> {
    let last = line_of(first());
    let mut mark = next(&last);
    change(&mut mark);
    follows(&mark, Some(&last), DAYS, at(NOW))
}

#[test]
fn the_first_mark_has_the_number_one_and_the_next_one_follows_it() {
    assert_eq!(follows(&first(), None, DAYS, at(NOW)), Ok(()));
    assert_eq!(judged(|_| {}), Ok(()));
    let last = line_of(first());
    assert_eq!(follows(&next(&last), None, DAYS, at(NOW)), Err(MarkFault::Number));
    let unfounded = Mark { previous: Some(last.as_previous()), ..first() };
    assert_eq!(follows(&unfounded, None, DAYS, at(NOW)), Err(MarkFault::Previous));
}

#[test]
fn a_marks_number_is_neither_skipped_nor_reused() {
    assert_eq!(judged(|mark| mark.number = 3), Err(MarkFault::Number));
    assert_eq!(judged(|mark| mark.number = 1), Err(MarkFault::Taken));
    assert_eq!(judged(|mark| mark.number = 0), Err(MarkFault::Taken));
    assert_eq!(judged(|mark| mark.number = u64::MAX), Err(MarkFault::Number));
}

#[test]
fn a_mark_that_follows_another_line_is_a_fork() {
    let other = line_of(Mark { covered: 4, ..first() });
    assert_eq!(judged(|mark| mark.previous = Some(other.as_previous())), Err(MarkFault::Previous));
    assert_eq!(judged(|mark| mark.previous = None), Err(MarkFault::Previous));
}

#[test]
fn heads_never_go_back_or_change() {
    assert_eq!(judged(|mark| mark.heads[0] = head(1, 4, NOW - 95)), Err(MarkFault::HeadsBack));
    assert_eq!(judged(|mark| mark.heads[0] = first().heads[0]), Ok(()));
    assert_eq!(judged(|mark| mark.heads[1].hash = LineHash::of(b"other")), Err(MarkFault::HeadsDiffer));
    assert_eq!(judged(|mark| mark.heads[1].expires_at -= 1), Err(MarkFault::HeadsDiffer));
    assert_eq!(judged(|mark| mark.heads.push(head(1, 7, NOW - 5))), Err(MarkFault::Twice));
    assert_eq!(judged(|mark| mark.heads.push(head(3, 1, NOW - 5))), Ok(()));
}

#[test]
fn a_head_is_left_out_only_once_it_has_expired() {
    assert_eq!(judged(|mark| mark.heads.truncate(1)), Err(MarkFault::HeadsMissing));
    for (ends, wanted) in [(NOW + 2 * 3_600, Err(MarkFault::HeadsMissing)), (NOW - 1, Ok(()))] {
        let mut before = first();
        before.heads[1].expires_at = ends;
        let last = line_of(before);
        let mut mark = next(&last);
        mark.heads.pop();
        assert_eq!(follows(&mark, Some(&last), DAYS, at(NOW)), wanted, "{ends}");
    }
}

#[test]
fn a_mark_is_dated_now_and_expires_no_earlier_than_what_it_removes() {
    for (second, wanted) in
        [(NOW - 3_601, Err(MarkFault::Time)), (NOW + 3_601, Err(MarkFault::Time)), (NOW - 30, Ok(()))]
    {
        let mark = |mark: &mut Mark| (mark.recorded_at, mark.expires_at) = (at(second), second + 30 * DAY);
        assert_eq!(judged(mark), wanted, "{second}");
    }
    assert_eq!(judged(|mark| mark.expires_at = NOW + DAY - 1), Err(MarkFault::Expiry));
    assert_eq!(judged(|mark| mark.expires_at = NOW + DAY), Ok(()));
    assert_eq!(judged(|mark| mark.expires_at = NOW + 4_000 * DAY), Err(MarkFault::Expiry));
    assert_eq!(judged(|mark| mark.through = micros(NOW + 3_601)), Err(MarkFault::Through));
    assert_eq!(judged(|mark| mark.through = micros(NOW - 62)), Err(MarkFault::Through));
    assert_eq!(judged(|mark| mark.through = first().through), Ok(()));
    // A store whose clock was ahead once, before this was a rule.
    let ahead = line_of(Mark { through: micros(NOW + 40 * DAY), ..first() });
    assert_eq!(follows(&Mark { through: ahead.mark.through, ..next(&ahead) }, Some(&ahead), DAYS, at(NOW)), Ok(()));
}

fn deletion(mark: &mut Mark, gone: Head, before: i64) {
    let (before, deleted) = (at(before), vec![gone]);
    let requested_by = KeyId::parse("key_1").unwrap();
    mark.body =
        MarkBody::Deletion(Deletion { before, from: None, to: None, count: 1, through: 0, deleted, requested_by });
}

#[test]
fn a_deletion_names_only_older_decisions_that_existed() {
    assert_eq!(judged(|mark| deletion(mark, head(1, 5, NOW - 90), NOW - 85)), Ok(()));
    assert_eq!(judged(|mark| deletion(mark, head(1, 5, NOW - 90), NOW - 90)), Err(MarkFault::Removed));
    assert_eq!(judged(|mark| deletion(mark, head(1, 7, NOW - 90), NOW - 85)), Err(MarkFault::Removed));
    let other = Head { hash: LineHash::of(b"other"), ..head(1, 5, NOW - 90) };
    assert_eq!(judged(|mark| deletion(mark, other, NOW - 85)), Err(MarkFault::HeadsDiffer));
    // It must not be gone itself while its absence would be asked for.
    let expires = |days: i64| {
        judged(|mark| {
            deletion(mark, head(1, 5, NOW - 90), NOW - 85);
            mark.expires_at = NOW + days * DAY;
        })
    };
    assert_eq!((expires(29), expires(30)), (Err(MarkFault::Expiry), Ok(())));
}

fn expiry(mark: &mut Mark, days: u32, horizon: i64, before: i64) {
    let gone = vec![head(3, 9, before - 10)];
    let (horizon, before) = (at(horizon), at(before));
    let (from, to, count) = (None, None, 1);
    mark.body = MarkBody::Expiry(Expiry { horizon, retention_days: days, before, from, to, count, expired: gone });
}

#[test]
fn a_removal_respects_the_retention() {
    let month = NOW - 30 * DAY;
    assert_eq!(judged(|mark| expiry(mark, 30, month, month)), Ok(()));
    assert_eq!(judged(|mark| expiry(mark, 30, month, month - 60)), Ok(()));
    assert_eq!(judged(|mark| expiry(mark, 30, month + 3_601, month)), Err(MarkFault::Retention));
    assert_eq!(judged(|mark| expiry(mark, 1, NOW - DAY, NOW - DAY)), Err(MarkFault::Retention));
    assert_eq!(judged(|mark| expiry(mark, 30, month, month + 1)), Err(MarkFault::Retention));
    let last = line_of(first());
    let mut mark = next(&last);
    expiry(&mut mark, 1, NOW - DAY, NOW - DAY);
    assert_eq!(follows(&mark, Some(&last), 1, at(NOW)), Ok(()));
}

#[test]
fn an_exporter_that_reads_the_same_log_never_contradicts_a_mark() {
    let (last, later) = (first(), next(&line_of(first())));
    assert!(!contradicts(&later, &last) && !contradicts(&last, &later) && !contradicts(&last, &last));
    let mut other = later;
    other.heads[1].hash = LineHash::of(b"rewritten");
    assert!(contradicts(&other, &last));
}

#[test]
fn a_mark_names_a_bounded_number_of_writers() {
    let many = |count: u32| {
        let head = |number: u32| {
            let writer = serde_json::from_str(&format!("\"{number:08x}-0000-7000-9000-000000000000\"")).unwrap();
            Head { writer, ..head(1, 1, NOW - 10) }
        };
        (0..count).map(head).collect::<Vec<_>>()
    };
    assert_eq!(judged(|mark| mark.heads.extend(many(9_998))), Ok(()));
    assert_eq!(judged(|mark| mark.heads.extend(many(9_999))), Err(MarkFault::Heads));
}
