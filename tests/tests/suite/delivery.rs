//! Deliveries on a bad day: receivers that fail, hang, redirect or lie about where they are, and exporters that are
//! killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Authority, Delivery, Receiver, Reply, Stack};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// An exporter that was killed holds its endpoints for ten seconds more.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(40);

async fn decide(api: &Api, count: usize) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    for _ in 0..count {
        made.insert(format!("dec_{}", api.decide(&Api::harmless()).await));
    }
    made
}

fn have(came: &[Delivery], ids: &BTreeSet<String>) -> bool {
    let seen: BTreeSet<_> = came.iter().map(Delivery::id).collect();
    ids.iter().all(|id| seen.contains(id.as_str()))
}

/// Waits until all of these came, and checks what holds for all that came: signed, numbered without a gap, and what
/// came twice is the same both times.
async fn all_arrive(
    receiver: &Receiver,
    path: &str,
    secret: &str,
    ids: &BTreeSet<String>,
    within: Duration,
) -> Vec<Delivery> {
    // Events of other kinds have numbers too, and several are on their way at a time.
    let whole = |came: &[Delivery]| {
        let numbers: BTreeSet<_> = came.iter().map(Delivery::sequence).collect();
        numbers.last() == Some(&(numbers.len() as u64))
    };
    let find = |came: &[Delivery]| (have(came, ids) && whole(came)).then(|| came.to_vec());
    let came = receiver.wait_for("all events, without a gap", path, within, find).await;
    assert!(came.iter().all(|delivery| delivery.is_signed_by(secret)));
    let mut bodies: BTreeMap<u64, &Delivery> = BTreeMap::new();
    for delivery in &came {
        let first = bodies.entry(delivery.sequence()).or_insert(delivery);
        assert_eq!((first.id(), &first.body), (delivery.id(), &delivery.body), "one number, two events");
    }
    let ids: BTreeSet<_> = came.iter().map(Delivery::id).collect();
    assert_eq!(ids.len(), bodies.len(), "one event, two numbers");
    came
}

async fn settled(api: &Api, webhook: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut found = json!(null);
    wait_for(what, WAIT_TIMEOUT, async || {
        found = api.deliveries(webhook).await.into_iter().find(|delivery| is(delivery)).unwrap_or_default();
        !found.is_null()
    })
    .await;
    found
}

#[tokio::test]
async fn a_failed_event_is_retried_unchanged() {
    let authority = Authority::default();
    let receiver = Receiver::tls(&authority).await;
    let stack = Stack::build().private_webhooks().trusting(&authority).dev().await;
    let (id, secret) = stack.api.webhook(&receiver.url("/in")).await;
    receiver.answer("/in", [Reply::status(500)]);
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    let waiting = settled(&stack.api, &id, "the failure", |d| d["event"] == event && d["state"] == "waiting").await;
    assert_eq!((&waiting["attempts"], &waiting["status"]), (&json!(1), &json!(500)));
    assert_eq!(waiting["error"], "the endpoint answered 500");
    assert!(waiting["next_attempt_at"].is_string(), "{waiting}");
    let twice = receiver
        .wait_for("the second attempt", "/in", WAIT_TIMEOUT, |came| {
            let same: Vec<_> = came.iter().filter(|d| d.id() == event).cloned().collect();
            (same.len() == 2).then_some(same)
        })
        .await;
    assert_eq!(twice[0].body, twice[1].body);
    assert_ne!(
        twice[0].headers["webhook-signature"], twice[1].headers["webhook-signature"],
        "signed again, at its own time"
    );
    assert!(twice.iter().all(|d| d.is_signed_by(&secret)));
    let gap = twice[1].at - twice[0].at;
    assert!(gap > Duration::from_secs(3) && gap < Duration::from_secs(10), "{gap:?}");
    let done = settled(&stack.api, &id, "the delivery", |d| d["event"] == event && d["state"] == "delivered").await;
    assert_eq!((&done["attempts"], &done["status"], &done["error"]), (&json!(2), &json!(200), &json!(null)));
    assert_eq!(done["next_attempt_at"], json!(null));
}

#[tokio::test]
async fn a_receivers_retry_after_header_is_honoured() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let short = stack.api.webhook(&receiver.url("/short")).await.0;
    stack.api.webhook(&receiver.url("/long")).await;
    receiver.answer("/short", [Reply::with(429, "retry-after", "2")]);
    receiver.answer("/long", [Reply::with(429, "retry-after", "9")]);
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    settled(&stack.api, &short, "the refusal", |d| d["event"] == event && d["status"] == 429).await;
    for (path, least, most) in [("/short", 2, 8), ("/long", 9, 12)] {
        let find = |came: &[Delivery]| {
            let at: Vec<_> = came.iter().filter(|d| d.id() == event).map(|d| d.at).collect();
            (at.len() == 2).then(|| at[1] - at[0])
        };
        let gap = receiver.wait_for("the second attempt", path, WAIT_TIMEOUT, find).await;
        assert!(gap >= Duration::from_secs(least) && gap < Duration::from_secs(most), "{path}: {gap:?}");
    }
}

#[tokio::test]
async fn a_retry_delay_counts_from_the_end_of_a_slow_failed_attempt() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    stack.api.webhook(&receiver.url("/slow")).await;
    let late = Duration::from_secs(6);
    receiver.answer("/slow", [Reply::Late(late, 500)]);
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    let find = |came: &[Delivery]| {
        let at: Vec<_> = came.iter().filter(|d| d.id() == event).map(|d| d.at).collect();
        (at.len() == 2).then(|| at[1] - at[0])
    };
    let gap = receiver.wait_for("the second attempt", "/slow", WAIT_TIMEOUT, find).await;
    // Five seconds, a fifth less at most.
    assert!(gap >= late + Duration::from_secs(4), "{gap:?}");
}

#[tokio::test]
async fn an_endpoint_that_answers_gone_is_disabled_at_once_and_catches_up_when_enabled() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let (id, secret) = stack.api.webhook(&receiver.url("/gone")).await;
    let (_, other) = stack.api.webhook(&receiver.url("/other")).await;
    receiver.answer("/gone", [Reply::status(410)]);
    let mut all = decide(&stack.api, 1).await;
    let path = format!("/v1/webhooks/{id}");
    wait_for("its end", WAIT_TIMEOUT, async || stack.api.get(&path).await.expect(200)["enabled"] == false).await;
    let shown = stack.api.get(&path).await.expect(200);
    assert_eq!(shown["disabled_reason"], "the endpoint answered 410: it is gone");
    let notice = receiver
        .wait_for("the notice", "/other", WAIT_TIMEOUT, |came| {
            came.iter().find(|d| d.kind() == "webhook.disabled").cloned()
        })
        .await;
    assert!(notice.is_signed_by(&other));
    let data = notice.event()["data"].clone();
    assert_eq!((&data["webhook"], &data["reason"]), (&json!(id), &shown["disabled_reason"]));
    // Meanwhile it gets nothing; then it gets all of it.
    let meanwhile = decide(&stack.api, 5).await;
    receiver.wait_for("the others", "/other", WAIT_TIMEOUT, |came| have(came, &meanwhile).then_some(())).await;
    assert!(receiver.seen("/gone").iter().all(|d| !meanwhile.contains(d.id())));
    all.extend(meanwhile);
    let enabled = stack.api.post(&format!("{path}/enable"), &json!({})).await.expect(200);
    assert_eq!((&enabled["enabled"], &enabled["disabled_reason"]), (&json!(true), &json!(null)));
    let came = receiver
        .wait_for("what waited", "/gone", WAIT_TIMEOUT, |came| {
            (came.len() > all.len() && have(came, &all)).then(|| came.to_vec())
        })
        .await;
    let first = came.iter().filter(|d| d.id() == came[0].id()).count();
    assert_eq!(first, 2, "what was answered with 410 comes again");
    assert!(came.iter().all(|d| d.is_signed_by(&secret)));
    assert_eq!(stack.api.verify().await["ok"], true);
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_no_other_endpoint() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    stack.api.webhook(&receiver.url("/hangs")).await;
    let (_, secret) = stack.api.webhook(&receiver.url("/in")).await;
    receiver.always("/hangs", Reply::Hang);
    let first = decide(&stack.api, 40).await;
    receiver.wait_for("an attempt", "/hangs", WAIT_TIMEOUT, |came| (!came.is_empty()).then_some(())).await;
    let began = Instant::now();
    let second = decide(&stack.api, 40).await;
    let all = first.union(&second).cloned().collect();
    all_arrive(&receiver, "/in", &secret, &all, WAIT_TIMEOUT).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (receiver, elsewhere) = (Receiver::plain().await, Receiver::plain().await);
    let stack = Stack::build().private_webhooks().dev().await;
    let targets = [("/inside", elsewhere.url("/inside")), ("/metadata", "http://169.254.169.254/latest/".to_owned())];
    for (path, target) in &targets {
        receiver.always(path, Reply::with(307, "location", target));
        let (id, _) = stack.api.webhook(&receiver.url(path)).await;
        let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
        let refused = settled(&stack.api, &id, "the failure", |d| d["event"] == event).await;
        assert_eq!((&refused["state"], &refused["status"]), (&json!("waiting"), &json!(307)));
        assert_eq!(refused["error"], "the endpoint answered 307: redirects are not followed");
        let tested = stack.api.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await.expect(200);
        assert_eq!((&tested["delivered"], &tested["status"]), (&json!(false), &json!(307)));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn webhooks_reach_no_private_address_unless_the_operator_allows_it() {
    let authority = Authority::default();
    let receiver = Receiver::tls(&authority).await;
    let stack = Stack::build().trusting(&authority).nats().await;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
    ];
    let mut webhooks = Vec::new();
    for host in hosts {
        webhooks.push((host, stack.api.webhook(&receiver.url_of(host, "/in")).await.0));
    }
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    for (host, id) in webhooks {
        let refused = settled(&stack.api, &id, "the refusal", |d| d["event"] == event).await;
        let why = refused["error"].as_str().unwrap();
        assert_eq!(why, "the host cannot be resolved, or has an address that is not public", "{host}");
        assert_eq!((&refused["state"], &refused["status"]), (&json!("waiting"), &json!(null)), "{host}");
        let tested = stack.api.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await.expect(200);
        assert_eq!((&tested["delivered"], tested["error"].as_str()), (&json!(false), Some(why)), "{host}");
    }
    assert_eq!(receiver.connections(), 0, "nobody connected");
}

#[tokio::test]
async fn a_receiver_with_an_untrusted_certificate_gets_no_event() {
    let (known, unknown) = (Authority::default(), Authority::default());
    let receiver = Receiver::tls(&unknown).await;
    let stack = Stack::build().private_webhooks().trusting(&known).dev().await;
    let (id, _) = stack.api.webhook(&receiver.url("/in")).await;
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    let refused = settled(&stack.api, &id, "the refusal", |d| d["event"] == event).await;
    assert_eq!(refused["error"], "no secure connection: its certificate is not signed by a trusted authority");
    assert!(receiver.connections() > 0 && receiver.seen("/in").is_empty());
}

#[tokio::test]
async fn a_rate_limit_is_kept() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let (_, secret) = stack.api.webhook_with(&json!({"url": receiver.url("/in"), "rate_limit": 10})).await;
    let all = decide(&stack.api, 25).await;
    let came = all_arrive(&receiver, "/in", &secret, &all, WAIT_TIMEOUT).await;
    let took = came[came.len() - 1].at - came[0].at;
    let least = Duration::from_millis(100 * (came.len() as u64 - 2));
    assert!(took > least, "{} in {took:?}", came.len());
}

#[tokio::test]
async fn a_deleted_endpoint_gets_nothing_more() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().nats().await;
    let (id, _) = stack.api.webhook(&receiver.url("/deleted")).await;
    let (_, secret) = stack.api.webhook(&receiver.url("/kept")).await;
    let before = decide(&stack.api, 5).await;
    receiver.wait_for("events", "/deleted", WAIT_TIMEOUT, |came| have(came, &before).then_some(())).await;
    assert_eq!(stack.api.delete(&format!("/v1/webhooks/{id}")).await.status, 204);
    // The exporter hears of it a moment later.
    wait_for("an event that only one gets", WAIT_TIMEOUT, async || {
        let one = decide(&stack.api, 1).await;
        receiver.wait_for("the event", "/kept", WAIT_TIMEOUT, |came| have(came, &one).then_some(())).await;
        !have(&receiver.seen("/deleted"), &one)
    })
    .await;
    let after = decide(&stack.api, 20).await;
    all_arrive(&receiver, "/kept", &secret, &after, WAIT_TIMEOUT).await;
    assert!(receiver.seen("/deleted").iter().all(|d| !after.contains(d.id())));
}

#[tokio::test]
async fn a_backlog_survives_the_death_of_its_exporter() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().private_webhooks().nats().await;
    let endpoint = json!({"url": receiver.url("/in"), "rate_limit": 100});
    let (_, secret) = stack.api.webhook_with(&endpoint).await;
    // Made while no exporter runs.
    stack.exporters[0].kill();
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let api = stack.api.clone();
            tokio::spawn(async move { decide(&api, 50).await })
        })
        .collect();
    let mut all = BTreeSet::new();
    for made in asked {
        all.extend(made.await.unwrap());
    }
    assert_eq!(all.len(), 300);
    assert!(receiver.seen("/in").is_empty());
    stack.restart_exporter(0);
    receiver.wait_for("a part of it", "/in", TAKEOVER_TIMEOUT, |came| (came.len() >= 100).then_some(())).await;
    stack.restart_exporter(0);
    let came = receiver.seen("/in").len();
    assert!(came < 300, "{came}: it was killed too late");
    let came = all_arrive(&receiver, "/in", &secret, &all, TAKEOVER_TIMEOUT).await;
    let twice = came.len() - came.iter().map(Delivery::id).collect::<BTreeSet<_>>().len();
    assert!(twice < 150, "{twice} came twice");
}

#[tokio::test]
async fn events_in_flight_when_an_exporter_dies_are_sent_again() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().private_webhooks().nats().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/slow")).await;
    stack.api.webhook(&receiver.url("/other")).await;
    receiver.always("/slow", Reply::Hang);
    let all = decide(&stack.api, 10).await;
    receiver.wait_for("all ten", "/slow", WAIT_TIMEOUT, |came| have(came, &all).then_some(())).await;
    // Two checkpoints later, which the other endpoint receives, the stored cursor knows all events in flight.
    for number in 1..=2 {
        decide(&stack.api, 1).await;
        let marks = |came: &[Delivery]| came.iter().filter(|d| d.kind() == "checkpoint.signed").count();
        receiver.wait_for("a checkpoint", "/other", WAIT_TIMEOUT, |came| (marks(came) >= number).then_some(())).await;
    }
    stack.exporters[0].kill();
    receiver.always("/slow", Reply::status(200));
    stack.restart_exporter(0);
    let twice = |came: &[Delivery]| all.iter().all(|id| came.iter().filter(|d| d.id() == id).count() >= 2);
    receiver.wait_for("all ten again", "/slow", TAKEOVER_TIMEOUT, |came| twice(came).then_some(())).await;
    all_arrive(&receiver, "/slow", &secret, &all, WAIT_TIMEOUT).await;
}

#[tokio::test]
async fn another_exporter_takes_over_and_no_event_is_lost() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().exporters(2).private_webhooks().nats().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let mut all = decide(&stack.api, 10).await;
    all_arrive(&receiver, "/in", &secret, &all, WAIT_TIMEOUT).await;
    let serves = |exporter: &stage0_tests::Process| exporter.said().contains("endpoint is served by this worker");
    let serving = stack.exporters.iter().position(serves).expect("one of them serves it");
    assert!(!serves(&stack.exporters[1 - serving]), "only one of them serves it");
    let api = stack.api.clone();
    let meanwhile = tokio::spawn(async move { decide(&api, 100).await });
    receiver.wait_for("a part of it", "/in", WAIT_TIMEOUT, |came| (came.len() >= 30).then_some(())).await;
    stack.exporters[serving].kill();
    all.extend(meanwhile.await.unwrap());
    all_arrive(&receiver, "/in", &secret, &all, TAKEOVER_TIMEOUT).await;
    assert!(serves(&stack.exporters[1 - serving]));
}

#[tokio::test]
async fn a_stopping_exporter_hands_over_its_endpoints_at_once() {
    let receiver = Receiver::plain().await;
    let mut stack = Stack::build().private_webhooks().nats().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let mut all = decide(&stack.api, 10).await;
    all_arrive(&receiver, "/in", &secret, &all, WAIT_TIMEOUT).await;
    let mut ended = stack.exporters.remove(0);
    assert_eq!(ended.stop().code(), Some(0));
    assert!(ended.said().contains("endpoint is free for another worker"), "{}", ended.said());
    let before = receiver.seen("/in").len();
    all.extend(decide(&stack.api, 10).await);
    stack.start_exporter();
    let came = all_arrive(&receiver, "/in", &secret, &all, WAIT_TIMEOUT).await;
    let ids: BTreeSet<_> = came.iter().map(Delivery::id).collect();
    assert_eq!(ids.len(), came.len(), "nothing came twice: {before} before");
}
