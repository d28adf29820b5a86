//! When the log cannot be written, or it is unknown whether a record is on disk: nothing is released, the reason is
//! reported, and service resumes by itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::{NatsServer, SYNCED, wait_for};
use stage0_tests::{Api, Process, Stack};

/// The budget of two seconds, and what a busy machine adds. Without a budget it would be the client's 30 seconds.
const BUDGET: Duration = Duration::from_secs(8);
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// As nats-server is without a word about it: it syncs every two minutes.
const RELAXED: &str = "max_payload: 8MB\njetstream {}";

/// The log's stream, as its operator has it in hand.
async fn stream(stack: &Stack) -> async_nats::jetstream::stream::Stream {
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    async_nats::jetstream::new(client).get_stream("S0_LOG").await.unwrap()
}

async fn ready(stack: &Stack) -> (u16, Value) {
    let answer = stack.api.get("/readyz").await;
    (answer.status, answer.body)
}

async fn refused_in_time(stack: &Stack) {
    let began = Instant::now();
    let answer = stack.api.check(&Api::harmless()).await;
    answer.assert_error(503, "unavailable");
    assert!(began.elapsed() < BUDGET, "{:?}", began.elapsed());
    assert!(answer.text.contains("the action must not run") && !answer.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_nats_that_freezes_under_load_costs_answers_but_no_record() {
    let mut stack = Stack::build().usual_budget().gateways(2).nats().await;
    through_an_outage(&mut stack, async |nats| nats.thaw()).await;
}

#[tokio::test]
async fn a_nats_that_freezes_and_dies_under_load_costs_answers_but_no_record() {
    let mut stack = Stack::build().usual_budget().gateways(2).nats().await;
    // What it had been sent and had not read is lost.
    through_an_outage(&mut stack, async |nats| {
        nats.kill();
        nats.restart().await;
    })
    .await;
}

/// Freezes nats under load, ends that in some way, and compares the answers with the log.
async fn through_an_outage(stack: &mut Stack, end: impl AsyncFnOnce(&mut NatsServer)) {
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (api, over) = (stack.api_at(number % 2), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut answered, mut refused) = (BTreeSet::new(), 0);
                while !over.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let answer = api.check(&Api::harmless()).await;
                    assert!(began.elapsed() < BUDGET, "{:?}", began.elapsed());
                    if answer.status == 200 {
                        answered.insert(answer.body["request_id"].as_str().unwrap().to_owned());
                    } else {
                        answer.assert_error(503, "unavailable");
                        refused += 1;
                    }
                }
                (answered, refused)
            })
        })
        .collect();
    wait_for("some decisions", RECOVERY_TIMEOUT, async || stack.api.decisions("limit=1000").await.len() >= 40).await;
    stack.nats.as_ref().unwrap().freeze();
    refused_in_time(stack).await;
    assert_eq!(ready(stack).await.0, 503);
    end(stack.nats.as_mut().unwrap()).await;
    wait_for("the return", RECOVERY_TIMEOUT, async || ready(stack).await.0 == 200).await;
    stack.api.decide(&Api::harmless()).await;
    over.store(true, Ordering::SeqCst);
    let (mut answered, mut refused) = (BTreeSet::new(), 0);
    for caller in callers {
        let (ids, refusals) = caller.await.unwrap();
        answered.extend(ids);
        refused += refusals;
    }
    assert!(refused > 0 && answered.len() >= 30, "{refused} refusals, {} answers", answered.len());
    let records = stack.api.decisions("limit=1000").await;
    let recorded: BTreeSet<_> = records.iter().map(|r| r["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(recorded.len(), records.len(), "a decision was recorded twice");
    assert!(answered.is_subset(&recorded));
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
}

#[tokio::test]
async fn a_missing_log_releases_no_decision_and_is_reported() {
    let mut stack = Stack::build().usual_budget().nats().await;
    stack.api.decide(&Api::harmless()).await;
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    async_nats::jetstream::new(client).delete_stream("S0_LOG").await.unwrap();
    refused_in_time(&stack).await;
    wait_for("the report", RECOVERY_TIMEOUT, async || ready(&stack).await.0 == 503).await;
    let (_, report) = ready(&stack).await;
    assert_eq!((&report["ready"], &report["audit"]), (&json!(false), &json!("required")));
    assert!(report["reasons"].to_string().contains("audit: "), "{report}");
    stack.api.get("/v1/decisions").await.assert_error(503, "unavailable");
    stack.api.get("/v1/decisions/verify").await.assert_error(503, "unavailable");
    // The next role that starts makes it again.
    stack.restart_exporter(0);
    wait_for("the return", RECOVERY_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
}

#[tokio::test]
async fn a_full_log_releases_no_decision_until_space_is_freed() {
    let stack = Stack::build().usual_budget().nats().await;
    stack.api.decide(&Api::harmless()).await;
    wait_for("a checkpoint", RECOVERY_TIMEOUT, async || stack.api.verify().await["unsealed"] == 0).await;
    let mut stream = stream(&stack).await;
    let info = stream.info().await.unwrap();
    let (mut config, messages) = (info.config.clone(), info.state.messages);
    config.max_messages = i64::try_from(messages).unwrap();
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    let operator = async_nats::jetstream::new(client);
    operator.update_stream(&config).await.unwrap();
    let refused = stack.api.check(&Api::harmless()).await;
    refused.assert_error(503, "unavailable");
    let says = "the decision log cannot be written: the action must not run";
    assert!(refused.text.contains(says), "{}", refused.text);
    refused_in_time(&stack).await;
    assert_eq!(stack.api.decisions("").await.len(), 1, "it can be read all the same");
    config.max_messages = -1;
    operator.update_stream(&config).await.unwrap();
    wait_for("the return", RECOVERY_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
    assert_eq!(stack.api.verify().await["ok"], true);
}

#[tokio::test]
async fn best_effort_answers_without_a_record_and_says_so_everywhere() {
    let stack = Stack::build().usual_budget().gateway_with(&["--audit", "best-effort"]).nats().await;
    let answer = stack.api.check(&Api::harmless()).await.expect(200);
    assert_eq!(answer["meta"]["audit"], "best-effort");
    let id = answer["request_id"].as_str().unwrap();
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    let (status, report) = ready(&stack).await;
    assert_eq!((status, &report["audit"]), (200, &json!("best-effort")));
    assert!(report["reasons"].to_string().contains("released even when it is not recorded"), "{report}");

    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    async_nats::jetstream::new(client).delete_stream("S0_LOG").await.unwrap();
    let began = Instant::now();
    let answer = stack.api.check(&Api::forbidden()).await.expect(200);
    assert!(began.elapsed() < BUDGET, "{:?}", began.elapsed());
    assert_eq!((&answer["verdict"], &answer["meta"]["audit"]), (&json!("DENY"), &json!("best-effort")));
    let known = |report: &Value| report["reasons"].to_string().matches("audit: ").count() == 2;
    wait_for("the report", RECOVERY_TIMEOUT, async || {
        let (status, report) = ready(&stack).await;
        status == 200 && known(&report)
    })
    .await;
}

#[tokio::test]
async fn an_unknown_audit_mode_is_refused() {
    let mut gateway = Process::start(&["dev", "--audit", "sometimes"].map(str::to_owned));
    assert_eq!(gateway.ended().code(), Some(64));
    gateway.wait_for("the reason", |line| line.contains("must be `required` or `best-effort`").then_some(()));
}

/// A gateway and an exporter.
fn recording_roles(nats: &NatsServer, monitor: &str, directory: &Path) -> Vec<Process> {
    let tls = directory.join("tls");
    let (url, tls) = (nats.url(), tls.to_str().unwrap());
    let common = ["--nats", &url, "--nats-monitor", monitor];
    let gateway = ["gateway", "--listen", "127.0.0.1:0", "--tls-dev-dir", tls];
    let mut started = Vec::new();
    for own in [gateway.as_slice(), ["audit-export"].as_slice()] {
        let arguments: Vec<_> = own.iter().chain(&common).map(|&argument| argument.to_owned()).collect();
        started.push(Process::start(&arguments));
    }
    started
}

/// What an operator has to change first ends a role: it would be started in vain again.
async fn no_role_starts(nats: &NatsServer, monitor: &str, why: &str) {
    let directory = tempfile::tempdir().unwrap();
    for mut process in recording_roles(nats, monitor, directory.path()) {
        assert_eq!(process.ended().code(), Some(1), "{}", process.said());
        process.wait_for("the reason", |line| line.contains(why).then_some(()));
    }
}

/// What may be there a moment later is waited for, and a signal ends that.
async fn each_role_waits(nats: &NatsServer, monitor: &str, why: &str) {
    let directory = tempfile::tempdir().unwrap();
    for mut process in recording_roles(nats, monitor, directory.path()) {
        process.wait_for("the reason", |line| (line.contains("cannot start yet") && line.contains(why)).then_some(()));
        assert_eq!(process.stop().code(), Some(0), "{}", process.said());
    }
}

#[tokio::test]
async fn on_a_server_that_does_not_sync_no_role_starts() {
    let nats = NatsServer::start_with(RELAXED).await;
    no_role_starts(&nats, &nats.monitor(), "does not sync each message: set `sync_interval: always`").await;
}

#[tokio::test]
async fn a_monitor_that_does_not_answer_is_waited_for() {
    let nats = NatsServer::start_with(SYNCED).await;
    each_role_waits(&nats, "http://127.0.0.1:9", "the sync mode of nats is not verified").await;
}

#[tokio::test]
async fn a_server_whose_jetstream_does_not_answer_is_waited_for() {
    let nats = NatsServer::start_with("max_payload: 8MB").await;
    each_role_waits(&nats, &nats.monitor(), "the streams of the decision log cannot be had").await;
}

#[tokio::test]
async fn relaxed_sync_must_be_accepted_by_name_and_is_reported() {
    let relaxed = ["--dangerous-relaxed-sync"];
    let stack =
        Stack::build().usual_budget().nats_with(RELAXED).gateway_with(&relaxed).export_with(&relaxed).nats().await;
    stack.api.decide(&Api::harmless()).await;
    let (status, report) = ready(&stack).await;
    assert_eq!(status, 200);
    assert!(report["reasons"].to_string().contains("a power cut may lose decisions"), "{report}");
}

#[tokio::test]
async fn without_a_monitor_url_a_warning_says_that_sync_was_not_checked() {
    let stack = Stack::build().usual_budget().unverified().nats().await;
    stack.api.decide(&Api::harmless()).await;
    let (status, report) = ready(&stack).await;
    assert_eq!((status, &report["reasons"]), (200, &json!(["audit: sync mode not verified"])));
    let stack = Stack::build().usual_budget().nats().await;
    assert_eq!(ready(&stack).await.1["reasons"], json!([]));
}

#[tokio::test]
async fn a_nats_server_that_restarts_without_sync_is_not_trusted() {
    let mut stack = Stack::build().usual_budget().nats().await;
    let id = stack.api.decide(&Api::harmless()).await;
    stack.nats.as_mut().unwrap().restart_with(RELAXED).await;
    wait_for("the doubt", RECOVERY_TIMEOUT, async || {
        let (status, report) = ready(&stack).await;
        status == 503 && report["reasons"].to_string().contains("does not sync each message")
    })
    .await;
    refused_in_time(&stack).await;
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    assert_eq!(stack.api.decisions("").await.len(), 1);
    stack.nats.as_mut().unwrap().restart_with(SYNCED).await;
    wait_for("the return", RECOVERY_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
    wait_for("readiness", RECOVERY_TIMEOUT, async || ready(&stack).await.0 == 200).await;
}
