//! Processes that stop for a while and go on: what was true before is not taken for true afterwards.
//!
//! Gateways are stopped by SIGSTOP and by the cgroup freezer, with checks in hand and on connections that are kept
//! alive; their connection to NATS carries nothing for a while. A key that was revoked elsewhere meanwhile is allowed
//! nothing more, and keys that were not revoked keep working.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Freezer, Process, Raw, Relay, Stack};
use tokio::task::JoinHandle;

/// A second, and what a busy machine adds.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Callers that ask all the time.
const CALLERS: usize = 24;
/// How long after it goes on a gateway may still send what it was writing when it was stopped.
const BUFFERED_TIMEOUT: Duration = Duration::from_millis(100);

/// One answer, and when it came.
#[derive(Debug)]
struct Told {
    at: Instant,
    answer: Answer,
}

/// Callers of one key at one gateway, each on a connection that is kept alive.
struct Callers {
    over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Told>>>,
}

impl Callers {
    fn start(api: &Api) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (api, over) = (api.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let mut all = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    // An answer that was cut half way is none.
                    if let Ok(answer) = api.try_check(&Api::harmless()).await {
                        all.push(Told { at: Instant::now(), answer });
                    }
                }
                all
            })
        };
        Self { tasks: (0..CALLERS).map(caller).collect(), over }
    }

    async fn end(self) -> Vec<Told> {
        self.over.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        all
    }
}

/// Two gateways that take any number of bad keys from one address.
async fn two_gateways() -> Stack {
    Stack::build().gateways(2).gateway_with(&["--failed-logins-per-minute", "1000000"]).nats().await
}

/// How a gateway stops and goes on.
trait Stops {
    fn stop(&self);
    fn go_on(&self);
}

impl Stops for Process {
    fn stop(&self) {
        self.freeze();
    }

    fn go_on(&self) {
        self.thaw();
    }
}

impl Stops for Freezer {
    fn stop(&self) {
        self.freeze();
    }

    fn go_on(&self) {
        self.thaw();
    }
}

/// Stops the second gateway under load for `length`, revokes the callers' key at the first, and lets it go on.
async fn nothing_is_allowed_afterwards(stack: &Stack, gateway: &dyn Stops, length: Duration) {
    let (account, key, id) = stack.operator.account("frozen", None, &["check"]).await;
    let made = json!({"account": account, "name": "reader", "scopes": ["decisions:read", "check"]});
    let reader = stack.operator.post("/v1/keys", &made).await.expect(201);
    let reader = stack.operator.with_key(reader["key"].as_str().unwrap());
    let callers = Callers::start(&stack.api_at(1).with_key(&key));
    // One page: all of them would be a race with what is recorded meanwhile.
    let recorded = async || reader.get("/v1/decisions?limit=100").await.expect(200)["items"].as_array().unwrap().len();
    wait_for("checks in hand", RECOVERY_TIMEOUT, async || recorded().await >= 3 * CALLERS).await;
    gateway.stop();
    let stopped = Instant::now();
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let revoked = Timestamp::now();
    wait_for("the end of the stop", RECOVERY_TIMEOUT, async || stopped.elapsed() >= length).await;
    let went_on = Instant::now();
    gateway.go_on();
    let gone = stack.api_at(1).with_key(&key);
    wait_for("the refusal", REFUSAL_TIMEOUT, async || gone.check(&Api::harmless()).await.status == 401).await;
    // Other keys are served on the same gateway.
    wait_for("the return", RECOVERY_TIMEOUT, async || {
        reader.at(&stack.urls[1]).check(&Api::harmless()).await.status == 200
    })
    .await;
    let told = callers.end().await;
    let (before, after): (Vec<_>, Vec<_>) = told.into_iter().partition(|told| told.at < went_on);
    assert!(before.iter().filter(|told| told.answer.body["verdict"] == "ALLOW").count() >= CALLERS);
    assert!(!after.is_empty());
    // What was confirmed before the stop may already be in a connection's buffer: one answer for each of the gateway's
    // threads, which leaves at once.
    let max_buffered = std::thread::available_parallelism().map_or(2, usize::from);
    let (buffered, after): (Vec<_>, Vec<_>) = after
        .into_iter()
        .partition(|told| told.answer.body["verdict"] == "ALLOW" && told.at < went_on + BUFFERED_TIMEOUT);
    assert!(buffered.len() <= max_buffered, "{buffered:?}");
    for told in &after {
        // Callers that are refused ask again at once, until their address has asked too often.
        assert!(matches!(told.answer.status, 401 | 429 | 503), "{:?}: {}", told.at - went_on, told.answer.text);
        assert!(told.answer.body.get("verdict").is_none(), "{}", told.answer.text);
    }
    let own_check_of_the_reader = |record: &serde_json::Value| record["key_id"] != id.as_str();
    for record in reader.decisions(&format!("limit=1000&from={revoked}")).await {
        assert!(own_check_of_the_reader(&record), "recorded after the revocation: {record}");
    }
    assert_eq!(reader.verify().await["ok"], true);
}

#[tokio::test]
async fn a_gateway_that_was_stopped_for_a_moment_allows_nothing_to_a_key_that_was_revoked_meanwhile() {
    let stack = two_gateways().await;
    for _ in 0..4 {
        nothing_is_allowed_afterwards(&stack, &stack.gateways[1], Duration::from_millis(1_300)).await;
    }
}

#[tokio::test]
async fn a_gateway_that_was_stopped_until_nats_gave_it_up_allows_nothing_to_a_key_that_was_revoked_meanwhile() {
    let stack = two_gateways().await;
    nothing_is_allowed_afterwards(&stack, &stack.gateways[1], Duration::from_secs(7)).await;
}

#[tokio::test]
async fn a_gateway_that_its_cgroup_froze_allows_nothing_to_a_key_that_was_revoked_meanwhile() {
    let stack = two_gateways().await;
    let Some(freezer) = Freezer::of(stack.gateways[1].id()) else {
        eprintln!("not tested: no cgroup can be made here, which takes root");
        return;
    };
    for length in [700, 1_300, 2_600] {
        nothing_is_allowed_afterwards(&stack, &freezer, Duration::from_millis(length)).await;
    }
}

#[tokio::test]
async fn cached_keys_work_without_a_keystore_but_not_on_a_gateway_that_was_frozen_too() {
    let stack = Stack::build().gateways(2).nats().await;
    let here = stack.api_at(1);
    for gateway in [&stack.api, &here] {
        gateway.check(&Api::harmless()).await.expect(200);
    }
    stack.keystore.as_ref().unwrap().freeze();
    // Notices are proven to arrive, and a keystore that is stopped revokes nothing.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        here.check(&Api::harmless()).await.expect(200);
    }
    stack.gateways[1].freeze();
    let stopped = Instant::now();
    // Waited for at the other gateway, which goes on meanwhile.
    stack.api.check(&Api::harmless()).await.expect(200);
    wait_for("a long stop", RECOVERY_TIMEOUT, async || stopped.elapsed() > Duration::from_secs(1)).await;
    stack.gateways[1].thaw();
    // The proof comes again by itself, without the keystore.
    wait_for("the return", RECOVERY_TIMEOUT, async || here.check(&Api::harmless()).await.status == 200).await;
    stack.keystore.as_ref().unwrap().thaw();
    here.check(&Api::harmless()).await.expect(200);
}

/// A gateway that reaches NATS over a relay.
pub(crate) async fn gateway_over(stack: &Stack, relay: &Relay) -> (Process, Api) {
    let (nats, keys) = (stack.nats.as_ref().unwrap(), stack.keys_dir().join("gateway.keys"));
    let (url, monitor) = (format!("nats://{}", relay.address), nats.monitor());
    let tls = stack.directory.path().join("tls");
    let [tls, keys] = [&tls, &keys].map(|path| path.to_str().unwrap());
    let arguments = ["gateway", "--nats", &url, "--nats-monitor", &monitor, "--listen", "127.0.0.1:0"];
    let files = ["--tls-dev-dir", tls, "--message-keys", keys];
    let gateway = Process::start(&[&arguments[..], &files].concat().iter().map(|&a| a.to_owned()).collect::<Vec<_>>());
    let address = gateway.wait_for_log("gateway starts", "address");
    let api = stack.api.at(&format!("https://{address}"));
    wait_for("a ready gateway", RECOVERY_TIMEOUT, async || api.get("/readyz").await.status == 200).await;
    (gateway, api)
}

pub(crate) async fn relay_of(stack: &Stack) -> Relay {
    Relay::start(stack.nats.as_ref().unwrap().url().trim_start_matches("nats://")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_keys_are_not_trusted_while_no_nats_message_arrives_and_trust_returns_by_itself() {
    let stack = Stack::build().nats().await;
    let relay = relay_of(&stack).await;
    let (_gateway, api) = gateway_over(&stack, &relay).await;
    // Its scope is judged from the cache alone, so that NATS is asked nothing while its key is believed.
    let (_, key, id) = stack.operator.account("a", None, &["decisions:read"]).await;
    let reads = api.with_key(&key);
    let checks = async || reads.check(&Api::harmless()).await.status;
    assert_eq!(checks().await, 403);
    for length in [Duration::from_millis(1_500), Duration::from_secs(5)] {
        relay.hold();
        let held = Instant::now();
        let mut last_believed = Duration::ZERO;
        while held.elapsed() < length {
            let asked = held.elapsed();
            match checks().await {
                403 => last_believed = asked,
                503 => {}
                other => panic!("{other}"),
            }
        }
        assert!(last_believed < REFUSAL_TIMEOUT, "{last_believed:?}");
        let report = api.get("/readyz").await;
        assert!(report.text.contains("notices of revocations were last proven to arrive"), "{}", report.text);
        relay.release();
        wait_for("the return", RECOVERY_TIMEOUT, async || checks().await == 403).await;
        wait_for("readiness", RECOVERY_TIMEOUT, async || {
            let report = api.get("/readyz").await;
            report.status == 200 && !report.text.contains("notices of revocations")
        })
        .await;
    }
    // Revoked while nothing arrives: from then on it is never believed.
    relay.hold();
    let held = Instant::now();
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let revoked = Instant::now();
    while held.elapsed() < Duration::from_millis(1_500) {
        let status = checks().await;
        assert!(status == 503 || revoked.elapsed() < REFUSAL_TIMEOUT, "{status} after {:?}", revoked.elapsed());
    }
    relay.release();
    wait_for("the refusal", RECOVERY_TIMEOUT, async || match checks().await {
        401 => true,
        503 => false,
        other => panic!("{other}"),
    })
    .await;
}

#[tokio::test]
async fn a_gateway_on_a_busy_machine_keeps_its_cache_and_asks_for_no_key_without_need() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let stack = Stack::build().gateway_with(&["--metrics-listen", &address]).nats().await;
    let (_, key, _) = stack.operator.account("a", None, &["check"]).await;
    let over = Arc::new(AtomicBool::new(false));
    let spinning = (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| {
        let over = Arc::clone(&over);
        std::thread::spawn(move || while !over.load(Ordering::Relaxed) {})
    });
    let spinning: Vec<_> = spinning.collect();
    let callers = Callers::start(&stack.api.with_key(&key));
    let (began, page) = (Instant::now(), async || reqwest::get(format!("http://{address}/metrics")).await.unwrap());
    wait_for("a while under load", RECOVERY_TIMEOUT, async || began.elapsed() > Duration::from_secs(4)).await;
    let page = page().await.text().await.unwrap();
    over.store(true, Ordering::Relaxed);
    let told = callers.end().await;
    spinning.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(told.iter().all(|told| told.answer.status == 200), "{:?}", told.iter().find(|t| t.answer.status != 200));
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(" 0");
        line.trim().parse::<f64>().unwrap()
    };
    let (hits, asked) =
        (value("stage0_key_cache_total{outcome=\"hit\"}"), value("stage0_key_cache_total{outcome=\"refreshed\"}"));
    assert!(hits >= CALLERS as f64 && asked * 20.0 <= hits, "{hits} hits, {asked} questions");
    assert!(page.contains("stage0_notices_proven_age_seconds"), "{page}");
    let rejected = page.lines().find(|line| line.starts_with("stage0_backplane_rejected_messages_total"));
    assert_eq!(rejected, None, "echoes are no forged messages");
}

#[tokio::test]
async fn a_key_that_is_revoked_while_its_body_or_its_download_is_under_way_gets_no_more() {
    let stack = Stack::build().nats().await;
    let (account, key, id) = stack.operator.account("a", None, &["check", "decisions:read"]).await;
    let made = json!({"account": account, "name": "other", "scopes": ["check", "decisions:read"]});
    let other = stack.operator.post("/v1/keys", &made).await.expect(201);
    let other = stack.api.with_key(other["key"].as_str().unwrap());
    // More than all buffers of a connection hold.
    let mut large = Api::harmless();
    (large["context"]["note"], large["debug_store_input"]) = ("x ".repeat(10_000).into(), true.into());
    for _ in 0..150 {
        other.check(&large).await.expect(200);
    }
    let whole = other.get("/v1/decisions/export").await;
    assert!(whole.status == 200 && whole.text.len() > 2_000_000, "{}", whole.text.len());
    let head = |first: &str, more: &str| {
        format!("{first} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n{more}connection: close\r\n\r\n")
    };
    let mut download = Raw::connect(&stack.address(), &stack.ca()).await;
    download.send(head("GET /v1/decisions/export", "").as_bytes()).await;
    assert!(download.until("\"line\"").await.starts_with("HTTP/1.1 200"));
    let mut check = Raw::connect(&stack.address(), &stack.ca()).await;
    let body = Api::harmless().to_string();
    let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    check.send(head("POST /check", &more).as_bytes()).await;
    check.send(&body.as_bytes()[..10]).await;
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let gone = stack.api.with_key(&key);
    wait_for("the refusal", REFUSAL_TIMEOUT, async || gone.check(&Api::harmless()).await.status == 401).await;
    check.send(&body.as_bytes()[10..]).await;
    let answer = check.rest().await;
    assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains("verdict"), "{answer}");
    let rest = download.rest().await;
    assert!(rest.len() < whole.text.len() / 2 && !rest.ends_with("0\r\n\r\n"), "{} bytes more", rest.len());
    // The neighbour's is whole, with what was marked since.
    assert!(other.get("/v1/decisions/export").await.text.starts_with(&whole.text));
}

#[tokio::test]
async fn a_key_that_revokes_itself_gets_its_answer() {
    let stack = Stack::build().nats().await;
    let (_, first, id) = stack.operator.account("a", None, &["keys:manage", "check"]).await;
    let first = stack.api.with_key(&first);
    let second = first.post(&format!("/v1/keys/{id}/rotate"), &json!({})).await.expect(201);
    let second_key = stack.api.with_key(second["key"].as_str().unwrap());
    wait_for("the refusal", REFUSAL_TIMEOUT, async || first.check(&Api::harmless()).await.status == 401).await;
    second_key.check(&Api::harmless()).await.expect(200);
    second_key.delete(&format!("/v1/keys/{}", second["id"].as_str().unwrap())).await.expect(204);
    wait_for("the refusal", REFUSAL_TIMEOUT, async || second_key.check(&Api::harmless()).await.status == 401).await;
}
