//! Stops: everything in scope is denied at every gateway within a second, until a person resumes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, MovedClock, Stack, Team};
use tokio::task::JoinHandle;

use crate::inside::freeze::{gateway_over, relay_of};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// What the product promises.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

fn harmless_in(environment: &str) -> Value {
    let mut body = Api::harmless();
    body["environment"] = json!(environment);
    body
}

fn harmless_with(tools: Value) -> Value {
    let mut body = Api::harmless();
    body["tools"] = tools;
    body
}

/// The verdict, and the codes of its issues.
async fn verdict(api: &Api, body: &Value) -> (String, String) {
    let answer = api.check(body).await.expect(200);
    (answer["verdict"].as_str().unwrap().to_owned(), answer["issues"].to_string())
}

#[track_caller]
fn is_stopped(answer: &Value) {
    assert_eq!(answer["verdict"], "DENY", "{answer:#}");
    let issue = &answer["issues"][0];
    assert_eq!((&issue["code"], &issue["severity"]), (&json!("STOPPED"), &json!("CRITICAL")), "{answer:#}");
    assert_eq!(answer["approval"], json!(null));
}

async fn until_stopped(api: &Api, body: &Value) {
    let stopped = async || api.check(body).await.body["verdict"] == "DENY";
    wait_for("the stop", STOP_TIMEOUT, stopped).await;
    is_stopped(&api.check(body).await.expect(200));
}

async fn until_resumed(api: &Api, body: &Value) {
    let resumed = async || api.check(body).await.body["verdict"] == "ALLOW";
    wait_for("the end of the stop", WAIT_TIMEOUT, resumed).await;
}

/// Callers of one agent at all gateways, who note when they began each check that was allowed.
struct Load {
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<(Vec<Instant>, Vec<String>)>>,
}

impl Load {
    fn start(stack: &Stack, agent: &Agent, body: &Value) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let callers = (0..8).map(|number| {
            let (api, body) = (agent.api.at(&stack.urls[number % stack.urls.len()]), body.clone());
            let ends = Arc::clone(&ends);
            tokio::spawn(async move {
                let (mut allowed, mut odd) = (Vec::new(), Vec::new());
                while !ends.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    // An answer that the stop cut half way is none.
                    let Ok(answer) = api.try_check(&body).await else { continue };
                    match (answer.status, answer.body["verdict"].as_str()) {
                        (200, Some("ALLOW")) => allowed.push(began),
                        (200, Some("DENY")) | (503, _) => {}
                        _ => odd.push(answer.text),
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (allowed, odd)
            })
        });
        Self { callers: callers.collect(), ends }
    }

    /// Ends it: when the checks began that were allowed.
    async fn end(self) -> Vec<Instant> {
        self.ends.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for caller in self.callers {
            let (allowed, odd) = caller.await.unwrap();
            assert!(odd.is_empty(), "{odd:?}");
            all.extend(allowed);
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_scope_is_denied_at_both_gateways_within_a_second_under_load() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let body = harmless_in("staging");
    let scopes = [
        json!({"scope": "account"}),
        json!({"scope": "environment", "value": "staging"}),
        json!({"scope": "tool", "value": "web_search"}),
        json!({"scope": "key", "value": agent.key_id}),
        json!({"scope": "all"}),
    ];
    for mut scope in scopes {
        for url in &stack.urls {
            until_resumed(&agent.api.at(url), &body).await;
        }
        scope["reason"] = json!("incident 12");
        let is_all = scope["scope"] == "all";
        let by = if is_all { &stack.operator } else { &team.admin };
        let load = Load::start(&stack, &agent, &body);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stop = by.stop(&scope).await;
        let stopped_at = Instant::now();
        for url in &stack.urls {
            until_stopped(&agent.api.at(url), &body).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let allowed = load.end().await;
        assert!(!allowed.is_empty(), "{scope}: there was load");
        let late: Vec<_> = allowed.iter().filter_map(|at| at.checked_duration_since(stopped_at)).collect();
        assert!(late.iter().all(|after| *after < STOP_TIMEOUT), "{scope}: allowed after {late:?}");
        // A bystander of another account is stopped by `all` alone.
        let (verdict, _) = verdict(&stack.api, &body).await;
        assert_eq!(verdict == "DENY", is_all, "{scope}");
        stack.operator.resume(&stop, "over").await.expect(200);
    }
    for url in &stack.urls {
        until_resumed(&agent.api.at(url), &body).await;
    }
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn a_stop_of_an_environment_covers_its_other_names_and_checks_that_name_none() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let stop = team.admin.stop(&json!({"scope": "environment", "value": "Prod", "reason": "incident 12"})).await;
    for environment in ["production", "prod", "PRD", "live", " Production "] {
        until_stopped(&agent.api, &harmless_in(environment)).await;
    }
    let mut inner = Api::harmless();
    inner["context"]["environment"] = json!("prod");
    let mut target = harmless_in("staging");
    target["context"]["target_environment"] = json!("production");
    for body in [Api::harmless(), json!({"goal": "Search for Python documentation"}), inner, target] {
        is_stopped(&agent.api.check(&body).await.expect(200));
    }
    for environment in ["staging", "stg", "development"] {
        assert_eq!(verdict(&agent.api, &harmless_in(environment)).await.0, "ALLOW", "{environment}");
    }
    stack.operator.resume(&stop, "over").await.expect(200);
    until_resumed(&agent.api, &harmless_in("prod")).await;
}

#[tokio::test]
async fn a_stop_of_a_tool_covers_every_reading_of_its_name_and_the_current_tool() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    team.admin.stop(&json!({"scope": "tool", "value": "web_search", "reason": "incident 12"})).await;
    for tools in [
        json!(["web_search"]),
        json!(["Web_Search"]),
        json!([" web_search "]),
        json!(["ｗｅｂ_search"]),
        json!(["calculator", "web_search"]),
    ] {
        until_stopped(&agent.api, &harmless_with(tools)).await;
    }
    let mut current = harmless_with(json!(["calculator"]));
    current["context"]["current_tool"] = json!("web_search");
    is_stopped(&agent.api.check(&current).await.expect(200));
    for tools in [json!(["calculator"]), json!([])] {
        let mut body = harmless_with(tools);
        body["success_criteria"] = json!(["found"]);
        assert_eq!(verdict(&agent.api, &body).await.0, "ALLOW");
    }
}

#[tokio::test]
async fn a_stop_of_a_key_covers_those_it_is_rotated_to_and_no_other() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let (agent, other) = (team.agent().await, team.agent().await);
    // Under its name of before or of today: it is one workload.
    let today = agent.rotated(&stack.operator).await;
    for key in [&agent.key_id, &today.key_id] {
        let stop = team.admin.stop(&json!({"scope": "key", "value": key, "reason": "incident 12"})).await;
        until_stopped(&today.api, &Api::harmless()).await;
        assert_eq!(verdict(&other.api, &Api::harmless()).await.0, "ALLOW");
        stack.operator.resume(&stop, "over").await.expect(200);
        until_resumed(&today.api, &Api::harmless()).await;
    }
    team.admin.stop(&json!({"scope": "key", "value": today.key_id, "reason": "incident 12"})).await;
    let next = today.rotated(&stack.operator).await;
    until_stopped(&next.api, &Api::harmless()).await;
    team.admin
        .post("/v1/stops", &json!({"scope": "key", "value": "0000000000000000", "reason": "x"}))
        .await
        .assert_error(422, "validation_failed");
}

#[tokio::test]
async fn an_allow_is_not_given_again_after_a_stop_and_counts_no_run() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let body = json!({"goal": "Search for Python documentation", "success_criteria": ["found"], "tools": ["web_search"],
        "constraints": ["max_iterations: 5"], "context": {"run_id": "r"}});
    let first = agent.api.check_under("k", &body).await.expect(200);
    assert_eq!(first["verdict"], "ALLOW");
    assert_eq!(agent.api.check_under("k", &body).await.expect(200)["cached"], true);
    let stop = team.admin.stop(&json!({"scope": "tool", "value": "web_search", "reason": "incident 12"})).await;
    until_stopped(&agent.api, &harmless_with(json!(["web_search"]))).await;
    let again = agent.api.check_under("k", &body).await.expect(200);
    is_stopped(&again);
    assert_ne!(again["request_id"], first["request_id"]);
    is_stopped(&agent.api.check(&body).await.expect(200));
    assert_eq!(agent.api.get("/v1/runs/r").await.expect(200)["iterations"], 1, "what is stopped counts nothing");
    stack.operator.resume(&stop, "over").await.expect(200);
    until_resumed(&agent.api, &harmless_with(json!(["web_search"]))).await;
    assert_eq!(agent.api.check(&body).await.expect(200)["verdict"], "ALLOW");
}

#[tokio::test]
async fn an_approval_is_held_up_while_a_stop_covers_it() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let (given, waits) = (Api::deployment_of("billing"), Api::deployment());
    let (approved, pending) = (agent.api.deferred(&given).await, agent.api.deferred(&waits).await);
    ada.api.approve(&approved).await.expect(200);
    let stop = team.admin.stop(&json!({"scope": "environment", "value": "staging", "reason": "incident 12"})).await;
    until_stopped(&agent.api, &waits).await;
    let refused = ada.api.approve(&pending).await;
    refused.assert_error(409, "conflict");
    assert!(refused.text.contains("stop"), "{}", refused.text);
    let shown = ada.api.approval(&pending).await.expect(200);
    assert_eq!((&shown["status"], &shown["votes"]), (&json!("pending"), &json!([])));
    assert!(shown["stopped"].as_str().is_some_and(|why| why.contains("incident 12")), "{shown:#}");
    is_stopped(&agent.api.check(&given).await.expect(200));
    is_stopped(&agent.api.check(&json!({"approval_id": approved["id"]})).await.expect(200));
    // What it does not cover goes on.
    let mut elsewhere = Api::deployment();
    elsewhere["environment"] = json!("development");
    let other = agent.api.deferred(&elsewhere).await;
    ada.api.approve(&other).await.expect(200);
    stack.operator.resume(&stop, "over").await.expect(200);
    let resumed = async || ada.api.approve(&pending).await.status == 200;
    wait_for("the end of the stop", WAIT_TIMEOUT, resumed).await;
    for body in [&given, &waits, &elsewhere] {
        assert_eq!(agent.api.verdict(body).await.0, "ALLOW");
    }
}

#[tokio::test]
async fn only_a_member_or_the_operator_resumes_and_says_why() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let (ada, keeper) = (
        team.member("Ada", &[]).await,
        team.member_with(&json!({"name": "Kim", "groups": [], "scopes": ["stops:manage"]})).await,
    );
    let account = json!({"scope": "account", "reason": "incident 12"});
    for refused in [&ada.api, &agent.api] {
        refused.post("/v1/stops", &account).await.assert_error(403, "scope_missing");
    }
    let stop = team.admin.stop(&account).await;
    // The workload's key that stopped does not resume: it may be what ran wild.
    let refused = team.admin.resume(&stop, "over").await;
    assert!([403, 409].contains(&refused.status), "{}", refused.text);
    for refused in [&ada.api, &agent.api] {
        refused.resume(&stop, "over").await.assert_error(403, "scope_missing");
    }
    keeper.api.resume(&stop, "").await.assert_error(422, "validation_failed");
    keeper.api.resume("stop_nothing", "x").await.assert_error(404, "not_found");
    let listed = agent.api.get("/v1/stops").await.expect(200);
    assert_eq!((&listed["items"][0]["id"], &listed["items"][0]["reason"]), (&json!(stop), &json!("incident 12")));
    keeper.api.resume(&stop, "checked: all is well").await.expect(200);
    assert_eq!(agent.api.get("/v1/stops").await.expect(200)["items"], json!([]));
    until_resumed(&agent.api, &Api::harmless()).await;
    // Twice is no error, and is recorded once.
    keeper.api.resume(&stop, "again").await.expect(200);
    let lines = team.admin.lines().await;
    let line = |kind: &str| lines.iter().find(|line| line["type"] == kind).unwrap_or_else(|| panic!("{kind}"));
    assert_eq!(
        (&line("stop.started")["stop_id"], &line("stop.started")["reason"]),
        (&json!(stop), &json!("incident 12"))
    );
    let ended = line("stop.ended");
    assert_eq!(lines.iter().filter(|line| line["type"] == "stop.ended").count(), 1);
    assert_eq!((&ended["stop_id"], &ended["actor"]["member_id"]), (&json!(stop), &json!(keeper.id)), "{ended:#}");
    assert_eq!(ended["reason"], "checked: all is well");
    wait_for("a mark", WAIT_TIMEOUT, async || team.admin.verify().await["unsealed"] == 0).await;
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn bodies_of_stops_are_validated_and_all_is_the_operators_alone() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    for bad in [
        json!({"scope": "everything", "reason": "x"}),
        json!({"reason": "x"}),
        json!({"scope": "account"}),
        json!({"scope": "account", "reason": ""}),
        json!({"scope": "account", "reason": "x".repeat(501)}),
        json!({"scope": "account", "value": "x", "reason": "x"}),
        json!({"scope": "tool", "reason": "x"}),
        json!({"scope": "tool", "value": "", "reason": "x"}),
        json!({"scope": "environment", "value": 7, "reason": "x"}),
        json!({"scope": "account", "reason": "x", "until": "tomorrow"}),
        json!({"scope": "account", "reason": "x", "until": "2001-01-01T00:00:00Z"}),
        json!({"scope": "account", "reason": "x", "colour": "red"}),
    ] {
        let refused = team.admin.post("/v1/stops", &bad).await;
        refused.assert_error(422, "validation_failed");
    }
    team.admin.post("/v1/stops", &json!({"scope": "all", "reason": "x"})).await.assert_error(403, "scope_missing");
    // A secret in a reason would be read by everybody whom the stop meets, and stay in the log.
    let body = json!({"scope": "tool", "value": "psql", "reason": "leaked AKIAIOSFODNN7EXAMPLE"});
    let made = team.admin.post("/v1/stops", &body).await.expect(201);
    let log = team.admin.get("/v1/decisions/export").await.text;
    for text in [made.to_string(), team.admin.get("/v1/stops").await.text, log] {
        assert!(text.contains("leaked [redacted]") && !text.contains("AKIA"), "{text}");
    }
    // The operator stops one account as well.
    let other = Team::caller(&stack).await;
    let body = json!({"scope": "account", "account": team.account, "reason": "unpaid"});
    stack.operator.stop(&body).await;
    until_stopped(&team.agent().await.api, &Api::harmless()).await;
    assert_eq!(verdict(&other.agent().await.api, &Api::harmless()).await.0, "ALLOW");
}

#[tokio::test]
async fn a_stop_with_an_end_ends_by_itself() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let until = Timestamp::from_second((Timestamp::now() + SignedDuration::from_mins(10)).as_second()).unwrap();
    let body = json!({"scope": "account", "reason": "maintenance", "until": until.to_string()});
    team.admin.stop(&body).await;
    until_stopped(&agent.api, &Api::harmless()).await;
    clock.set(9 * 60);
    is_stopped(&agent.api.check(&Api::harmless()).await.expect(200));
    clock.set(11 * 60);
    until_resumed(&agent.api, &Api::harmless()).await;
    assert_eq!(team.admin.get("/v1/stops").await.expect(200)["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_cannot_know_whether_a_stop_holds_answers_503() {
    let stack = Stack::build().nats().await;
    let relay = relay_of(&stack).await;
    let (_gateway, here) = gateway_over(&stack, &relay).await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let there = here.with_key(agent.api.key.as_ref().unwrap());
    there.check(&Api::harmless()).await.expect(200);
    // It is cut off from everything, and at the other one everything is stopped.
    relay.hold();
    team.admin.stop(&json!({"scope": "account", "reason": "incident 12"})).await;
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(2) {
        let began = stopped.elapsed();
        match there.check(&Api::harmless()).await.status {
            503 => {}
            200 if began < STOP_TIMEOUT => {}
            other => panic!("{other} after {began:?}"),
        }
    }
    relay.release();
    let known = async || {
        let answer = there.check(&Api::harmless()).await;
        assert_ne!(answer.body["verdict"], "ALLOW", "{}", answer.text);
        answer.status == 200
    };
    wait_for("an answer", WAIT_TIMEOUT, known).await;
    is_stopped(&there.check(&Api::harmless()).await.expect(200));
    let stops = team.admin.get("/v1/stops").await.expect(200);
    stack.operator.resume(stops["items"][0]["id"].as_str().unwrap(), "over").await.expect(200);
    until_resumed(&there, &Api::harmless()).await;
}

#[tokio::test]
async fn a_stop_survives_kill_9_of_the_keystore_and_a_new_gateway_knows_it() {
    let mut stack = Stack::build().nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    team.admin.stop(&json!({"scope": "account", "reason": "incident 12"})).await;
    stack.keystore.as_mut().unwrap().kill();
    stack.start_keystore();
    stack.start_gateway();
    for url in &stack.urls {
        let api = agent.api.at(url);
        let known = async || {
            let answer = api.check(&Api::harmless()).await;
            assert_ne!(answer.body["verdict"], "ALLOW", "{}", answer.text);
            answer.status == 200
        };
        wait_for("an answer", WAIT_TIMEOUT, known).await;
        is_stopped(&api.check(&Api::harmless()).await.expect(200));
    }
}

#[tokio::test]
async fn checks_are_stopped_and_resumed_by_command() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let keeper = team.member_with(&json!({"name": "Kim", "groups": [], "scopes": ["stops:manage"]})).await;
    let run = |api: &Api, arguments: &[&str]| {
        let output = api.cli(&stack.ca(), arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let stop = run(&keeper.api, &["stop", "--tool", "web_search", "--reason", "incident 12", "--json"]);
    let stop: Value = serde_json::from_str(&stop).unwrap();
    until_stopped(&agent.api, &harmless_with(json!(["web_search"]))).await;
    let listed = run(&keeper.api, &["stops"]);
    let id = stop["id"].as_str().unwrap();
    assert!(listed.contains(id) && listed.contains("incident 12"), "{listed}");
    run(&keeper.api, &["resume", id, "--reason", "over"]);
    until_resumed(&agent.api, &harmless_with(json!(["web_search"]))).await;
}
