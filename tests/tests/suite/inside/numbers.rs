//! Numbers and bytes of webhook events while exporters die, freeze and take over, and filters change under them.
//!
//! A receiver keeps all that came. What must hold of it: a number names one event, an event that comes again comes in
//! the same bytes, and has a second number only where a replay was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Delivery, Process, Receiver, Reply, Stack};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// An exporter that was killed holds its endpoints for ten seconds more.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(40);
/// Decisions of each round, by each of these callers.
const CALLERS: usize = 4;
const EACH: usize = 15;

/// Decisions of all three verdicts, made by several callers at once.
async fn decide(api: &Api) -> BTreeSet<String> {
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let api = api.clone();
            tokio::spawn(async move {
                let bodies = [Api::harmless(), Api::forbidden(), Api::unclear()];
                let mut made = Vec::new();
                for n in 0..EACH {
                    made.push(format!("dec_{}", api.decide(&bodies[(caller + n) % 3]).await));
                }
                made
            })
        })
        .collect();
    let mut made = BTreeSet::new();
    for caller in callers {
        made.extend(caller.await.unwrap());
    }
    made
}

/// The bytes without the number, which the last member is.
fn without_number(delivery: &Delivery) -> &[u8] {
    let end = format!(",\"sequence\":{}}}}}", delivery.sequence());
    delivery.body.strip_suffix(end.as_bytes()).expect("the number is the last member")
}

/// What must hold of all that came to one endpoint, after so many replays.
fn assert_one_number_one_event(came: &[Delivery], replays: usize) {
    let (mut by_number, mut by_event) = (BTreeMap::new(), BTreeMap::new());
    for delivery in came {
        let first: &Delivery = by_number.entry(delivery.sequence()).or_insert(delivery);
        assert_eq!(first.id(), delivery.id(), "number {} names two events", delivery.sequence());
        assert!(first.body == delivery.body, "number {} has two bodies", delivery.sequence());
        let of_event = by_event.entry(delivery.id()).or_insert_with(|| (delivery, BTreeSet::new()));
        assert!(without_number(of_event.0) == without_number(delivery), "event {} has two bodies", delivery.id());
        of_event.1.insert(delivery.sequence());
    }
    for (event, (_, numbers)) in by_event {
        assert!(numbers.len() <= 1 + replays, "event {event} has the numbers {numbers:?} after {replays} replays");
    }
}

/// Which of the exporters took the endpoint last.
fn serving(stack: &Stack, webhook: &str) -> usize {
    let took = |process: &Process| {
        let said = process.said();
        said.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["message"] == "endpoint is served by this worker" && line["webhook"] == webhook)
            .filter_map(|line| line["timestamp"].as_str().map(str::to_owned))
            .next_back()
    };
    let last = (0..stack.exporters.len()).max_by_key(|index| took(&stack.exporters[*index]));
    last.expect("there are exporters")
}

fn count(came: &[Delivery], of: &BTreeSet<String>) -> usize {
    let seen: BTreeSet<_> = came.iter().map(Delivery::id).filter(|id| of.contains(*id)).collect();
    seen.len()
}

async fn filter(api: &Api, webhook: &str, verdicts: Value) {
    api.patch(&format!("/v1/webhooks/{webhook}"), &json!({"verdicts": verdicts})).await.expect(200);
}

async fn replay(api: &Api, webhook: &str, from: Timestamp) {
    let to = Timestamp::now() + SignedDuration::from_secs(60);
    let body = json!({"from": from.to_string(), "to": to.to_string()});
    api.post(&format!("/v1/webhooks/{webhook}/replay"), &body).await.expect(202);
}

#[tokio::test]
async fn an_event_number_stays_with_one_event_through_kills_freezes_filters_and_replays() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().exporters(2).private_webhooks().nats().await;
    let began = Timestamp::now() - SignedDuration::from_secs(1);
    let (id, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let filters = [json!(["DENY"]), json!(["ALLOW", "DEFER"]), json!(["ALLOW"]), json!(null), json!(["DEFER"])];
    let mut all = BTreeSet::new();
    for (round, next) in filters.into_iter().enumerate() {
        let api = stack.api.clone();
        let before = receiver.seen("/in").len();
        let made = tokio::spawn(async move { decide(&api).await });
        // In the middle of a burst: some are numbered and sent, some numbered, some not read yet.
        receiver
            .wait_for("a part of it", "/in", TAKEOVER_TIMEOUT, |came| (came.len() >= before + 5).then_some(()))
            .await;
        let victim = serving(&stack, &id);
        if round % 2 == 0 {
            stack.exporters[victim].kill();
            filter(&stack.api, &id, next).await;
            all.extend(made.await.unwrap());
            stack.restart_exporter(victim);
        } else {
            // Longer than it may hold the endpoint: the other one serves it, with another filter, when it goes on.
            stack.exporters[victim].freeze();
            filter(&stack.api, &id, next).await;
            all.extend(made.await.unwrap());
            let frozen = receiver.seen("/in").len();
            receiver
                .wait_for("the other one", "/in", TAKEOVER_TIMEOUT, |came| (came.len() > frozen).then_some(()))
                .await;
            stack.exporters[victim].thaw();
        }
        replay(&stack.api, &id, began).await;
        let api = stack.api.clone();
        wait_for("a log that is read", TAKEOVER_TIMEOUT, async || {
            let one = format!("dec_{}", api.decide(&Api::unclear()).await);
            let other = format!("dec_{}", api.decide(&Api::harmless()).await);
            let denied = format!("dec_{}", api.decide(&Api::forbidden()).await);
            let these: BTreeSet<_> = [one, other, denied].into();
            let find = |came: &[Delivery]| (count(came, &these) > 0).then_some(());
            let came =
                tokio::time::timeout(WAIT_TIMEOUT / 4, receiver.wait_for("one of them", "/in", WAIT_TIMEOUT, find))
                    .await;
            all.extend(these);
            came.is_ok()
        })
        .await;
        assert_one_number_one_event(&receiver.seen("/in"), round + 1);
    }
    // Nothing was lost on the way: with all filters open, a replay brings what is still missing.
    filter(&stack.api, &id, json!(null)).await;
    wait_for("an endpoint with open filters", WAIT_TIMEOUT, async || {
        let one: BTreeSet<_> = [format!("dec_{}", stack.api.decide(&Api::forbidden()).await)].into();
        let find = |came: &[Delivery]| (count(came, &one) > 0).then_some(());
        tokio::time::timeout(WAIT_TIMEOUT / 10, receiver.wait_for("it", "/in", WAIT_TIMEOUT, find)).await.is_ok()
    })
    .await;
    replay(&stack.api, &id, began).await;
    receiver.wait_for("all", "/in", TAKEOVER_TIMEOUT, |came| (count(came, &all) == all.len()).then_some(())).await;
    let came = receiver.seen("/in");
    assert_one_number_one_event(&came, 6);
    assert!(came.iter().all(|delivery| delivery.is_signed_by(&secret)));
}

/// What was sent without an answer is sent again as it was, though the filter would not let it through any more.
#[tokio::test]
async fn an_event_that_has_its_number_is_delivered_under_it_whatever_the_filter_says_by_then() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().private_webhooks().nats().await;
    let (id, _) = stack.api.webhook(&receiver.url("/in")).await;
    receiver.always("/in", Reply::Hang);
    let made: BTreeSet<_> = [format!("dec_{}", stack.api.decide(&Api::forbidden()).await)].into();
    let first = receiver.wait_for("the attempt", "/in", WAIT_TIMEOUT, |came| came.first().cloned()).await;
    // At once: that it was sent is known from the receiver alone.
    stack.exporters[0].kill();
    assert!(made.contains(first.id()) || first.kind() == "checkpoint.signed", "{}", first.id());
    filter(&stack.api, &id, json!(["ALLOW"])).await;
    receiver.always("/in", Reply::status(200));
    let allowed: BTreeSet<_> = [format!("dec_{}", stack.api.decide(&Api::harmless()).await)].into();
    stack.restart_exporter(0);
    let again = receiver
        .wait_for("the event again", "/in", TAKEOVER_TIMEOUT, |came| {
            let again = came.iter().filter(|delivery| delivery.id() == first.id()).nth(1);
            again.filter(|_| count(came, &allowed) == 1).cloned()
        })
        .await;
    assert_eq!(again.sequence(), first.sequence());
    assert!(again.body == first.body);
    assert_one_number_one_event(&receiver.seen("/in"), 0);
}

#[tokio::test]
async fn a_deleted_decision_with_an_event_number_is_dropped_and_the_mark_says_so() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().exporters(2).private_webhooks().nats().await;
    let endpoint = json!({"url": receiver.url("/in"), "rate_limit": 10});
    let (id, _) = stack.api.webhook_with(&endpoint).await;
    let gone = decide(&stack.api).await;
    receiver.wait_for("a part of it", "/in", WAIT_TIMEOUT, |came| (count(came, &gone) >= 5).then_some(())).await;
    // With its numbers stored, and most of its events still to be sent.
    let victim = serving(&stack, &id);
    stack.exporters[victim].kill();
    let sent = count(&receiver.seen("/in"), &gone);
    let before = Timestamp::now();
    let deleted = stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    assert_eq!(deleted["count"], gone.len());
    let kept = decide(&stack.api).await;
    stack.restart_exporter(victim);
    let all_kept = |came: &[Delivery]| {
        let mark = came.iter().find(|delivery| delivery.kind() == "decisions.deleted").cloned();
        mark.filter(|_| count(came, &kept) == kept.len())
    };
    let mark = receiver.wait_for("what is kept, and the mark", "/in", TAKEOVER_TIMEOUT, all_kept).await;
    let came = receiver.seen("/in");
    assert_one_number_one_event(&came, 0);
    assert_eq!(count(&came, &gone), sent, "of what was deleted nothing came afterwards");
    assert!(sent < gone.len(), "{sent} of {}", gone.len());
    // What the receiver sees is a gap, and a mark behind it that names the deletion.
    let numbers: BTreeSet<_> = came.iter().map(Delivery::sequence).collect();
    let missing = (1..mark.sequence()).filter(|number| !numbers.contains(number)).count();
    assert!(missing > 0, "{numbers:?}, the mark is {}", mark.sequence());
    assert_eq!(mark.event()["data"]["count"], gone.len());
}

#[tokio::test]
async fn a_deleted_decision_is_not_delivered_from_a_cache() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let endpoint = json!({"url": receiver.url("/in"), "rate_limit": 10});
    stack.api.webhook_with(&endpoint).await;
    let gone = decide(&stack.api).await;
    receiver.wait_for("a part of it", "/in", WAIT_TIMEOUT, |came| (count(came, &gone) >= 5).then_some(())).await;
    let before = Timestamp::now();
    let deleted = stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    assert_eq!(deleted["count"], gone.len());
    let at = Instant::now();
    let kept = decide(&stack.api).await;
    receiver
        .wait_for("what is kept", "/in", WAIT_TIMEOUT, |came| (count(came, &kept) == kept.len()).then_some(()))
        .await;
    let late = |delivery: &&Delivery| gone.contains(delivery.id()) && delivery.at > at + Duration::from_millis(1_500);
    let came = receiver.seen("/in");
    assert_eq!(came.iter().filter(late).map(Delivery::id).collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(count(&came, &gone) < gone.len());
    assert_one_number_one_event(&came, 0);
}
