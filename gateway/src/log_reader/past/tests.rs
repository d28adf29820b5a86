//! Which decisions of the past are read, in which order, and where reading ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use stage0_backplane::{Backplane, Batch};
use stage0_contract::AccountId;

use super::*;

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn id(number: u32) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

/// A line of this number, recorded so many seconds ago.
fn line(number: u32, environment: &str, seconds: i64) -> Value {
    json!({
        "type": "decision.recorded", "request_id": id(number), "recorded_at": ago(seconds), "expires_at": i64::MAX,
        "verdict": "DENY", "environment": environment, "policy_version": "acme@1.0.0+0123456789ab",
        "issues": [{"code": "LIMIT_EXCEEDED", "rule": "acme.limit"}, {"code": "OTHER", "rule": "acme.other"}]})
}

async fn append(backplane: &Backplane, batch: &str, lines: &[Value]) {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let batch = Batch { account: account(), id: batch.to_owned(), lines: lines.join("\n").into() };
    let deadline = Instant::now() + Duration::from_secs(60);
    backplane.log.append(vec![batch], deadline).await.pop().unwrap().unwrap();
}

fn past(backplane: &Backplane, environments: Environments, limit: usize) -> Past {
    let log = LogReader::within(&Arc::clone(&backplane.log), account(), 30);
    Past::new(log, (ago(1_000), Timestamp::now()), environments, limit)
}

fn everywhere() -> Environments {
    Environments::Except(Vec::new())
}

/// The numbers of all that is read, and whether there are older ones.
async fn read(mut past: Past) -> (Vec<PastDecision>, bool) {
    let mut all = Vec::new();
    while past.goes_on() {
        let (found, rest) = past.next().await.unwrap();
        all.extend(found);
        past = rest;
    }
    (all, past.has_older())
}

async fn ids(past: Past) -> (Vec<RequestId>, bool) {
    let (found, has_older) = read(past).await;
    (found.iter().map(|one| one.request_id).collect(), has_older)
}

#[tokio::test]
async fn the_newest_come_first_and_a_limit_says_whether_there_are_older_ones() {
    let backplane = Backplane::embedded();
    append(&backplane, "a", &[line(1, "", 9), line(2, "", 8), line(3, "", 7)]).await;
    append(&backplane, "b", &[line(4, "", 6)]).await;
    let backwards: Vec<_> = [4, 3, 2, 1].map(id).to_vec();
    for limit in 1..=5 {
        let expected = (backwards[..limit.min(4)].to_vec(), limit < 4);
        assert_eq!(ids(past(&backplane, everywhere(), limit)).await, expected, "{limit}");
    }
    let (found, _) = read(past(&backplane, everywhere(), 1)).await;
    let PastDecision { verdict, issue, facts, policy_version, .. } = &found[0];
    assert_eq!((verdict, facts, policy_version.as_str()), (&Verdict::Deny, &Kept::Nothing, "acme@1.0.0+0123456789ab"));
    let (code, rule) = issue.as_ref().unwrap();
    assert_eq!((code.as_str(), rule.as_str()), ("LIMIT_EXCEEDED", "acme.limit"), "the first one decides");
}

#[tokio::test]
async fn only_decisions_of_the_time_that_may_be_shown_are_read() {
    let backplane = Backplane::embedded();
    let mut expired = line(1, "", 5);
    expired["expires_at"] = json!(1);
    let mut event = line(2, "", 5);
    event["type"] = json!("policy.activated");
    let mut damaged = line(3, "", 5);
    damaged["verdict"] = json!("MAYBE");
    let (early, late) = (line(4, "", 2_000), line(5, "", -100));
    append(&backplane, "a", &[expired, event, damaged, early, line(6, "", 5), late, json!("no line")]).await;
    assert_eq!(ids(past(&backplane, everywhere(), 10)).await, (vec![id(6)], false));
    let of_another = LogReader::within(&backplane.log, AccountId::parse("acc_2").unwrap(), 30);
    let of_another = Past::new(of_another, (ago(1_000), Timestamp::now()), everywhere(), 10);
    assert_eq!(ids(of_another).await, (Vec::new(), false));
    // `until` itself is not before it, and `from` is within.
    let recorded_at = ago(50);
    let mut exact = line(7, "", 50);
    exact["recorded_at"] = json!(recorded_at);
    append(&backplane, "b", &[exact]).await;
    let span =
        |from, until| Past::new(LogReader::within(&backplane.log, account(), 30), (from, until), everywhere(), 10);
    assert_eq!(ids(span(ago(60), recorded_at)).await, (Vec::new(), false));
    assert_eq!(ids(span(recorded_at, ago(40))).await, (vec![id(7)], false));
}

#[tokio::test]
async fn a_place_is_an_environment_or_all_without_a_policy_of_their_own() {
    let backplane = Backplane::embedded();
    let lines = [line(1, "production", 9), line(2, "staging", 8), line(3, "", 7), line(4, "qa", 6)];
    append(&backplane, "a", &lines).await;
    let only = |name: &str| Environments::Only(name.to_owned());
    let except = |names: &[&str]| Environments::Except(names.iter().map(|&name| name.to_owned()).collect());
    for (environments, expected) in [
        (only("prod"), vec![1]),
        (only("staging"), vec![2]),
        (only("elsewhere"), vec![]),
        (except(&[]), vec![4, 3, 2, 1]),
        (except(&["prod", "stage"]), vec![4, 3]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(id).collect();
        assert_eq!(ids(past(&backplane, environments.clone(), 10)).await, (expected, false), "{environments:?}");
    }
}

#[tokio::test]
async fn facts_are_read_as_they_were_kept_and_an_unknown_form_is_unreadable() {
    let record = include_str!("../../../../contract/fixtures/decision_record_facts.json");
    let record: Value = serde_json::from_str(record).unwrap();
    let backplane = Backplane::embedded();
    let mut kept = line(1, "", 9);
    kept["facts"] = record["facts"].clone();
    let mut other = line(2, "", 8);
    other["facts"] = json!({"v": "two"});
    append(&backplane, "a", &[kept, other, line(3, "", 7)]).await;
    let (mut found, _) = read(past(&backplane, everywhere(), 10)).await;
    assert_eq!((&found[0].facts, &found[1].facts), (&Kept::Nothing, &Kept::Unreadable));
    assert!(found[0].facts.take().is_none() && found[0].facts == Kept::Nothing);
    let facts = found[2].facts.take().unwrap();
    assert_eq!(serde_json::to_value(&facts).unwrap(), record["facts"]);
    assert_eq!(found[2].facts, Kept::Taken);
}

#[tokio::test]
async fn what_is_recorded_later_is_not_counted_as_looked_at_and_a_bound_ends_with_older_ones() {
    let backplane = Backplane::embedded();
    let mut reading = past(&backplane, everywhere(), 10);
    let [early, late] = [5, -100].map(|seconds| line(1, "elsewhere", seconds).to_string());
    assert!(!reading.is_wanted(late.as_bytes()) && reading.scanned == 0);
    assert!(reading.is_wanted(early.as_bytes()) && reading.scanned == early.len());
    // More than one piece of the log.
    for batch in 0..3 {
        let padded = |number: u32| {
            let mut line = line(batch * 500 + number, "qa", 5);
            line["padding"] = json!("x".repeat(1_000));
            line
        };
        let lines: Vec<_> = (0..500).map(padded).collect();
        append(&backplane, &format!("b{batch}"), &lines).await;
    }
    assert_eq!(ids(past(&backplane, everywhere(), 5_000)).await.0.len(), 1_500, "every piece is read");
    let bounded = Past { scanned: MAX_SCAN_BYTES, ..past(&backplane, everywhere(), 5_000) };
    let (found, has_older) = ids(bounded).await;
    assert!((1..1_500).contains(&found.len()) && has_older, "{}", found.len());
}
