//! What a replay sums up, and what of it an evaluator is asked.

use std::sync::Arc;

use serde_json::json;
use stage0_backplane::{Backplane, Batch};
use stage0_contract::{IssueCode, MAX_LISTED_FLIPS, RequestId, Verdict};

use super::*;
use crate::server::tests::state;

fn version() -> PolicyVersion {
    PolicyVersion::parse("acme@1.2.0+0123456789ab").unwrap()
}

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn id(number: usize) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn code(text: &str) -> IssueCode {
    IssueCode::parse(text).unwrap()
}

fn recorded(number: usize, verdict: Verdict) -> PastDecision {
    PastDecision {
        request_id: id(number),
        recorded_at: Timestamp::UNIX_EPOCH,
        policy_version: version(),
        floor_version: None,
        environment: String::new(),
        verdict,
        issue: (verdict != Verdict::Allow).then(|| (code("RECORDED"), "old".to_owned())),
        facts: Kept::Taken,
        bytes: 1,
    }
}

fn decided(verdict: Verdict) -> Replayed {
    let by = (verdict != Verdict::Allow).then(|| (code("REPLAYED"), "new".to_owned()));
    let (code, rule) = by.unzip();
    Replayed::Decided { verdict, code, rule }
}

fn finished(sum: Sum) -> PolicyReplay {
    sum.finish(version(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH).shown
}

#[test]
fn what_goes_further_comes_first_and_each_decision_is_counted_once() {
    use Verdict::{Allow, Defer, Deny};
    let mut sum = Sum::default();
    let pairs =
        [(Allow, Deny), (Deny, Defer), (Defer, Allow), (Deny, Allow), (Deny, Deny), (Allow, Allow), (Defer, Deny)];
    for (number, (from, to)) in pairs.into_iter().enumerate() {
        sum.add(recorded(number, from), None, decided(to));
    }
    sum.add(recorded(8, Deny), None, Replayed::Not(ReplayGap::Words));
    sum.add(recorded(9, Deny), None, Replayed::Not(ReplayGap::NotKept));
    sum.add(recorded(10, Deny), None, Replayed::Not(ReplayGap::NotKept));
    sum.add(recorded(11, Deny), None, decided(Allow));
    let replay = finished(sum);
    assert_eq!((replay.decisions, replay.replayed, replay.flips, replay.left_out), (11, 8, 4, 0));
    let changes: Vec<_> = replay.changes.iter().map(|one| (one.from, one.to, one.count)).collect();
    let expected = [(Deny, Allow, 2), (Defer, Allow, 1), (Deny, Defer, 1), (Allow, Deny, 1), (Defer, Deny, 1)];
    assert_eq!(changes, expected);
    let gaps: Vec<_> = replay.not_replayed.iter().map(|gap| (gap.why, gap.count)).collect();
    assert_eq!(gaps, [(ReplayGap::NotKept, 2), (ReplayGap::Words, 1)]);
    let ids: Vec<_> = replay.items.iter().map(|item| item.request_id).collect();
    assert_eq!(ids, [3, 11, 2, 1, 0, 6].map(id));
    let by = |index: usize| (replay.items[index].code.as_ref().unwrap().as_str(), replay.items[index].rule.as_deref());
    assert_eq!(by(0), ("RECORDED", Some("old")), "the stricter of both says why");
    assert_eq!(by(4), ("REPLAYED", Some("new")));
}

#[test]
fn what_is_active_now_counts_and_not_what_another_version_decided() {
    use Verdict::{Allow, Deny};
    let mut sum = Sum::default();
    // A version that was rolled back denied it.
    sum.add(recorded(0, Deny), Some(decided(Allow)), decided(Allow));
    sum.add(recorded(1, Allow), Some(decided(Deny)), decided(Allow));
    // The active one cannot decide it again.
    sum.add(recorded(2, Deny), Some(Replayed::Not(ReplayGap::Words)), decided(Allow));
    let replay = finished(sum);
    assert_eq!((replay.replayed, replay.flips), (3, 2));
    let items: Vec<_> = replay.items.iter().map(|item| (item.request_id, item.recorded, item.from)).collect();
    assert_eq!(items, [(id(1), Allow, Deny), (id(2), Deny, Deny)]);
    let by = |index: usize| replay.items[index].code.as_ref().unwrap().as_str();
    assert_eq!((by(0), by(1)), ("REPLAYED", "RECORDED"));
}

#[test]
fn what_came_since_makes_an_accepted_number_stale_only_where_it_is_of_another_kind() {
    use Verdict::{Allow, Defer, Deny};
    let finish = |decisions: &[(Verdict, Verdict)], has_older: bool| {
        let mut sum = Sum::default();
        sum.has_older = has_older;
        for (number, (from, to)) in decisions.iter().enumerate() {
            sum.add(recorded(number, *from), None, decided(*to));
        }
        sum.finish(version(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH)
    };
    let accepted = finish(&[(Deny, Allow)], true).kinds;
    let stale = |decisions: &[(Verdict, Verdict)], has_older| finish(decisions, has_older).stale(&accepted);
    assert_eq!(stale(&[], false), None);
    assert_eq!(stale(&[(Deny, Allow), (Deny, Allow), (Allow, Deny)], false), None);
    let text = stale(&[(Deny, Allow), (Defer, Allow)], false).unwrap();
    assert!(text.contains("from DEFER by the rule `old` to ALLOW"), "{text}");
    assert!(stale(&[(Deny, Allow)], true).unwrap().starts_with("more than 1 decisions"));
    assert!(
        finish(&[(Deny, Allow)], false).stale(&finish(&[], false).kinds).is_some(),
        "an empty past accepts nothing"
    );
}

#[test]
fn a_hundred_are_listed_and_the_gravest_are_never_among_those_left_out() {
    let mut sum = Sum::default();
    for number in 0..500 {
        sum.add(recorded(number, Verdict::Allow), None, decided(Verdict::Deny));
    }
    sum.add(recorded(500, Verdict::Deny), None, decided(Verdict::Allow));
    let replay = finished(sum);
    assert_eq!((replay.items.len(), replay.left_out, replay.flips), (MAX_LISTED_FLIPS, 401, 1));
    assert_eq!((replay.items[0].request_id, replay.items[1].request_id), (id(500), id(0)), "then the newest");
}

/// Appends this number of decisions, of which each third has no facts.
async fn log_of(backplane: &Backplane, count: usize) {
    let facts = json!({"v": 1, "read_by": {"words": "w", "windows": "w", "run": "r"}, "values": {}, "place": "qa"});
    let line = |number: usize| {
        let facts = if number.is_multiple_of(3) { json!(null) } else { facts.clone() };
        json!({
            "type": "decision.recorded", "request_id": id(number), "recorded_at": Timestamp::now(),
            "expires_at": i64::MAX, "verdict": "DENY", "environment": "qa", "policy_version": version(), "issues": [],
            "facts": facts})
        .to_string()
    };
    let lines: Vec<String> = (0..count).map(line).collect();
    let batch = Batch { account: account(), id: "b".to_owned(), lines: lines.join("\n").into() };
    let deadline = Instant::now() + REPLAY_TIMEOUT;
    backplane.log.append(vec![batch], deadline).await.pop().unwrap().unwrap();
}

/// Replays the log before an evaluator that answers so; with how many decisions each of its messages had.
async fn replayed(
    count: usize,
    answer: impl Fn(usize, &ReplayDecisions) -> ReplayDecisionsReply,
) -> (Result<PolicyReplay, ApiError>, Vec<usize>) {
    let backplane = Backplane::embedded();
    log_of(&backplane, count).await;
    let state = state(&backplane, |_| {});
    let log = LogReader::within(&Arc::clone(&backplane.log), account(), 30);
    let (from, until) = (Timestamp::UNIX_EPOCH, Timestamp::now());
    let past = Past::new(log, (from, until), Environments::Only("qa".to_owned()), MAX_REPLAYED);
    let deadline = Instant::now() + REPLAY_TIMEOUT;
    // What is recorded was decided by it.
    let active = ActivePolicies { default: Some(version()), ..ActivePolicies::default() };
    let question = Question { state: &state, account: account(), version: version(), active, floor: None, deadline };
    let mut served = backplane.requests.serve::<ReplayDecisions>().await.unwrap();
    let mut sizes = Vec::new();
    let result = {
        let replaying = question.replay(past);
        tokio::pin!(replaying);
        loop {
            tokio::select! {
                result = &mut replaying => break result,
                Some(asked) = served.next() => {
                    let reply = answer(sizes.len(), &asked.request);
                    sizes.push(asked.request.facts.len());
                    asked.answer(&reply).await;
                }
            }
        }
    };
    (result.map(finished), sizes)
}

fn all(verdict: Verdict, asked: &ReplayDecisions) -> ReplayDecisionsReply {
    ReplayDecisionsReply::Replayed(asked.facts.iter().map(|_| decided(verdict)).collect())
}

#[tokio::test]
async fn decisions_are_replayed_in_bounded_batches_and_those_without_facts_are_counted() {
    let (replay, sizes) = replayed(1_500, |_, asked| all(Verdict::Allow, asked)).await;
    let replay = replay.unwrap();
    assert_eq!((replay.decisions, replay.replayed, replay.flips), (1_500, 1_000, 1_000));
    assert_eq!(replay.not_replayed, [stage0_contract::NotReplayed { why: ReplayGap::NotKept, count: 500 }]);
    assert!(sizes.len() > 5 && sizes.iter().all(|size| *size <= MAX_REPLAY_BATCH), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 1_000);
}

#[tokio::test]
async fn a_log_without_facts_needs_no_evaluator() {
    let (replay, sizes) = replayed(1, |_, _| ReplayDecisionsReply::Busy).await;
    let replay = replay.unwrap();
    assert_eq!((replay.decisions, replay.replayed, sizes.len()), (1, 0, 0));
}

#[tokio::test]
async fn an_evaluator_that_is_busy_is_asked_again_and_one_that_fails_ends_the_replay() {
    let busy_once = |nth: usize, asked: &ReplayDecisions| match nth {
        0 => ReplayDecisionsReply::Busy,
        _ => all(Verdict::Deny, asked),
    };
    let (replay, sizes) = replayed(2, busy_once).await;
    assert_eq!((replay.unwrap().replayed, sizes), (1, vec![1, 1]));
    let failed = ApiError::NotReplayed(Part::answered::<ReplayDecisions>(How::Failed));
    let (replay, _) = replayed(2, |_, _| ReplayDecisionsReply::Unable("no such version".to_owned())).await;
    assert_eq!(replay, Err(failed.clone()));
    // Another number than was asked for would be counted against other decisions.
    for count in [0, 2] {
        let answer =
            move |_: usize, _: &ReplayDecisions| ReplayDecisionsReply::Replayed(vec![decided(Verdict::Allow); count]);
        assert_eq!(replayed(2, answer).await.0, Err(failed.clone()));
    }
}
