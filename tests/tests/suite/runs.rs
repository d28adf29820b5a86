//! Runs: an agent cannot loop or overspend by forgetting, by sending smaller counters, by asking many workers at once,
//! or by a crash.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack};

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

fn check(run: &str, constraint: &str, mut context: Value) -> Value {
    context["run_id"] = run.into();
    json!({"goal": "Search for Python documentation", "success_criteria": ["found"], "constraints": [constraint],
        "context": context})
}

/// Sends this many checks at once, to the gateways in turn; returns how many were allowed, deferred and refused with
/// 503.
async fn storm(stack: &Stack, body: &Value, count: usize) -> (usize, usize, usize) {
    let asks = (0..count).map(|number| {
        let api = stack.api_at(number % stack.urls.len());
        async move { api.check(body).await }
    });
    let answers = join_all(asks).await;
    let said = |verdict: &str| answers.iter().filter(|answer| answer.body["verdict"] == verdict).count();
    let failed = answers.iter().filter(|answer| answer.status == 503).count();
    assert_eq!(said("ALLOW") + said("DEFER") + failed, count, "{:?}", answers.last());
    (said("ALLOW"), said("DEFER"), failed)
}

async fn run_of(api: &Api, run: &str) -> Value {
    api.get(&format!("/v1/runs/{run}")).await.expect(200)
}

#[tokio::test]
async fn max_iterations_allows_exactly_ten_of_64_concurrent_checks_on_three_evaluators() {
    let stack = Stack::build().gateways(2).evaluators(3).nats().await;
    let body = check("r", "max_iterations: 10", json!({}));
    assert_eq!(storm(&stack, &body, 64).await, (10, 54, 0));
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 10);
    let money = check("m", "max_cost_usd: 10", json!({"estimated_cost_usd": 1}));
    assert_eq!(storm(&stack, &money, 50).await, (10, 40, 0));
    assert_eq!(run_of(&stack.api, "m").await["cost"]["reserved_usd"], 10.0);
    // What was answered was recorded with the run's name.
    assert_eq!(stack.api.decisions("run_id=r&verdict=ALLOW").await.len(), 10);
}

#[tokio::test]
async fn max_iterations_allows_exactly_ten_of_64_concurrent_checks_in_one_process_and_over_a_restart() {
    let mut stack = Stack::build().dev().await;
    let body = check("r", "max_iterations: 10", json!({}));
    assert_eq!(storm(&stack, &body, 6).await, (6, 0, 0));
    stack.kill_dev();
    stack.start_dev();
    assert_eq!(storm(&stack, &body, 64).await, (4, 60, 0));
}

#[tokio::test]
async fn killed_evaluators_and_a_killed_nats_let_no_more_pass() {
    let mut stack = Stack::build().evaluators(3).nats().await;
    let body = check("r", "max_iterations: 10", json!({}));
    let api = stack.api.clone();
    let asks = tokio::spawn({
        let body = body.clone();
        async move {
            let (mut allowed, mut rounds) = (0, 0);
            // Until the run has surely come to its end.
            while rounds < 200 {
                let answers = join_all((0..16).map(|_| api.check(&body))).await;
                allowed += answers.iter().filter(|answer| answer.body["verdict"] == "ALLOW").count();
                if answers.iter().all(|answer| answer.body["verdict"] == "DEFER") {
                    break;
                }
                rounds += 1;
            }
            allowed
        }
    });
    stack.restart_evaluator(0);
    stack.restart_nats().await;
    stack.restart_evaluator(1);
    let allowed = asks.await.unwrap();
    assert!(allowed <= 10, "{allowed}");
    // A reply that was lost may have counted: never more than ten, and the run is at its end.
    wait_for("an answer", RECOVERY_TIMEOUT, async || stack.api.check(&body).await.body["verdict"] == "DEFER").await;
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 10);
    // Each ALLOW that was answered is in the log; one more may be there whose answer was lost.
    let recorded = stack.api.decisions("run_id=r&verdict=ALLOW").await.len();
    assert!((allowed..=10).contains(&recorded), "{allowed} answered, {recorded} recorded");
}

#[tokio::test]
async fn a_busy_run_that_an_evaluator_held_when_it_was_killed_or_frozen_goes_on_and_no_more_pass() {
    let mut stack = Stack::build().evaluators(1).nats().await;
    let body = check("r", "max_iterations: 30", json!({}));
    // One after the other, so that the evaluator holds the run in its journal.
    for _ in 0..10 {
        assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW");
    }
    stack.restart_evaluator(0);
    for _ in 0..10 {
        assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW", "its runs are taken at once");
    }
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 20);
    stack.start_evaluator();
    stack.evaluators[0].freeze();
    let (before, _, _) = storm(&stack, &body, 32).await;
    stack.evaluators[0].thaw();
    let (after, _, _) = storm(&stack, &body, 32).await;
    assert!(before > 0 && before + after <= 10, "{before} and {after}");
    wait_for("an answer", RECOVERY_TIMEOUT, async || stack.api.check(&body).await.body["verdict"] == "DEFER").await;
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 30);
    let recorded = stack.api.decisions("run_id=r&verdict=ALLOW").await.len();
    assert!((20 + before + after..=30).contains(&recorded), "{recorded} recorded");
}

#[tokio::test]
async fn busy_runs_are_shown_and_listed_with_their_last_counts_and_can_be_settled_and_ended() {
    let stack = Stack::build().evaluators(2).nats().await;
    let body = check("r", "max_iterations: 100", json!({"estimated_cost_usd": 1}));
    for _ in 0..40 {
        assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW");
    }
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 40);
    let listed = stack.api.get("/v1/runs").await.expect(200);
    assert_eq!(listed["items"][0]["iterations"], 40);
    let last = stack.api.check(&body).await.expect(200)["request_id"].clone();
    let settled = stack.api.post("/v1/runs/r/settle", &json!({"request_id": last, "actual_cost_usd": 2})).await;
    assert_eq!(settled.expect(200)["cost"]["total_usd"], 42.0);
    stack.api.delete("/v1/runs/r").await.expect(204);
    assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW");
    assert_eq!(run_of(&stack.api, "r").await["iterations"], 1);
}

#[tokio::test]
async fn reported_counters_below_and_above_the_servers_count_are_handled() {
    let stack = Stack::build().dev().await;
    let verdict = async |run: &str, limit: &str, context: Value| {
        let answer = stack.api.check(&check(run, limit, context)).await.expect(200);
        answer["verdict"].as_str().unwrap().to_owned()
    };
    for _ in 0..2 {
        assert_eq!(verdict("small", "max_iterations: 2", json!({"current_iteration": 1})).await, "ALLOW");
    }
    assert_eq!(verdict("small", "max_iterations: 2", json!({"current_iteration": 1})).await, "DEFER");
    assert_eq!(verdict("large", "max_iterations: 2", json!({"current_iteration": 3})).await, "DEFER");
    assert_eq!(verdict("large", "max_iterations: 2", json!({})).await, "DEFER");
    assert_eq!(verdict("retries", "max_retries: 3", json!({"retry_count": 3})).await, "DEFER");
    assert_eq!(verdict("retries", "max_retries: 3", json!({"retry_count": null})).await, "DEFER");
    assert_eq!(verdict("cost", "max_cost_usd: 5", json!({"cumulative_cost_usd": 5.01})).await, "DEFER");
    assert_eq!(verdict("cost", "max_cost_usd: 5", json!({"cumulative_cost_usd": 0})).await, "DEFER");
    assert_eq!(verdict("time", "timeout: 60s", json!({"loop_state": {"elapsed_seconds": 61}})).await, "DEFER");
    assert_eq!(verdict("time", "timeout: 60s", json!({"elapsed_seconds": 0})).await, "DEFER");
    let tool = |recent: Value| json!({"current_tool": "shell", "recent_tools": recent});
    assert_eq!(verdict("tool", "same_tool_limit: 2", tool(json!(["shell"]))).await, "ALLOW");
    assert_eq!(verdict("tool", "same_tool_limit: 2", tool(json!([]))).await, "DEFER");
    // Names that look the same are the same run; two different names in one request cannot be counted.
    assert_eq!(verdict("small\u{200b}", "max_iterations: 2", json!({})).await, "DEFER");
    assert_eq!(verdict("fresh", "max_iterations: 2", json!({"loop_state": {"run_id": "small"}})).await, "DEFER");
    // Another run, or another account, starts again.
    assert_eq!(verdict("other", "max_iterations: 1", json!({})).await, "ALLOW");
    let (_, key, _) = stack.operator.account("b", None, &["check"]).await;
    let answer = stack.api.with_key(&key).check(&check("other", "max_iterations: 1", json!({}))).await.expect(200);
    assert_eq!(answer["verdict"], "ALLOW");
}

#[tokio::test]
async fn a_run_can_be_shown_and_ended_only_by_its_own_account() {
    let stack = Stack::build().dev().await;
    let body = check("a/b é", "max_iterations: 1", json!({"current_tool": "shell", "estimated_cost_usd": 0.25}));
    let id = stack.api.decide(&body).await;
    let path = "/v1/runs/a%2Fb%20%C3%A9";
    let run = stack.api.get(path).await.expect(200);
    assert_eq!((&run["run_id"], &run["iterations"], &run["tools"]), (&json!("a/b é"), &json!(1), &json!(["shell"])));
    assert_eq!(run["reservations"][0]["request_id"], id.as_str());
    let (_, key, _) = stack.operator.account("b", None, &stage0_tests::account_scopes()).await;
    let stranger = stack.api.with_key(&key);
    stranger.get(path).await.assert_error(404, "not_found");
    stranger.delete(path).await.assert_error(404, "not_found");
    let settle = json!({"request_id": id, "actual_cost_usd": 1});
    stranger.post(&format!("{path}/settle"), &settle).await.assert_error(404, "not_found");
    stack.operator.get(path).await.assert_error(403, "scope_missing");
    stack.api.without_key().get(path).await.assert_error(401, "unauthorized");
    let made = |scope: &str| json!({"account": stack.account, "name": "k", "scopes": [scope]});
    let key = stack.operator.post("/v1/keys", &made("check")).await.expect(201);
    let checks = stack.api.with_key(key["key"].as_str().unwrap());
    checks.get(path).await.expect(200);
    let refused = checks.delete(path).await;
    refused.assert_error(403, "scope_missing");
    assert!(refused.text.contains("runs:manage"), "{}", refused.text);
    let key = stack.operator.post("/v1/keys", &made("decisions:read")).await.expect(201);
    let reads = stack.api.with_key(key["key"].as_str().unwrap());
    reads.get(path).await.assert_error(403, "scope_missing");
    reads.post(&format!("{path}/settle"), &settle).await.assert_error(403, "scope_missing");
    let (settles, no_json) = (format!("{path}/settle"), Some(b"x".to_vec()));
    let refused = reads.send(reqwest::Method::POST, &settles, &[], no_json.clone()).await;
    refused.assert_error(403, "scope_missing");
    let refused = checks.send(reqwest::Method::POST, &settles, &[], no_json).await;
    refused.assert_error(415, "unsupported_media_type");
    assert_eq!(stack.api.check(&body).await.body["verdict"], "DEFER");
    assert_eq!(stack.api.delete(path).await.status, 204);
    stack.api.get(path).await.assert_error(404, "not_found");
    stack.api.delete(path).await.assert_error(404, "not_found");
    assert_eq!(stack.api.check(&body).await.body["verdict"], "ALLOW");
}

/// The names of an account's runs, over all pages.
async fn names(api: &Api, limit: usize) -> Vec<String> {
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/runs?limit={limit}{cursor}")).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit, "{page}");
        names.extend(items.iter().map(|run| run["run_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    names.sort();
    names
}

async fn lists_an_accounts_own_runs(stack: &Stack) {
    assert_eq!(names(&stack.api, 100).await, Vec::<String>::new());
    for run in ["a/b é", "first", "second", "third"] {
        assert_eq!(stack.api.check(&check(run, "max_iterations: 9", json!({}))).await.body["verdict"], "ALLOW");
    }
    let (_, key, _) = stack.operator.account("b", None, &stage0_tests::account_scopes()).await;
    let stranger = stack.api.with_key(&key);
    stranger.check(&check("theirs", "max_iterations: 9", json!({}))).await.expect(200);
    let all = ["a/b é", "first", "second", "third"];
    for limit in [1, 3, 1_000] {
        assert_eq!(names(&stack.api, limit).await, all, "{limit}");
    }
    assert_eq!(names(&stranger, 100).await, ["theirs"]);
    let page = stack.api.get("/v1/runs").await.expect(200);
    let listed = page["items"].as_array().unwrap().iter().find(|run| run["run_id"] == "first").unwrap();
    let shown = run_of(&stack.api, "first").await;
    for member in ["first_seen", "last_seen", "expires_at", "iterations", "cost", "tools", "tool_calls", "reservations"]
    {
        assert_eq!(listed[member], shown[member], "{member}");
    }
    assert_eq!(stack.api.delete("/v1/runs/second").await.status, 204);
    assert_eq!(names(&stack.api, 1).await, ["a/b é", "first", "third"]);
    for wrong in
        ["limit=0", "limit=1001", "limit=x", "cursor=a%20b", "cursor=..%2Fb", "account=acc_1", "limit=1&limit=2"]
    {
        stack.api.get(&format!("/v1/runs?{wrong}")).await.assert_error(422, "validation_failed");
    }
    stack.operator.get("/v1/runs").await.assert_error(403, "scope_missing");
    stack.api.without_key().get("/v1/runs").await.assert_error(401, "unauthorized");
    stack.api.delete("/v1/runs").await.assert_error(405, "method_not_allowed");
    let made = json!({"account": stack.account, "name": "k", "scopes": ["decisions:read"]});
    let reads = stack.operator.post("/v1/keys", &made).await.expect(201);
    stack.api.with_key(reads["key"].as_str().unwrap()).get("/v1/runs").await.assert_error(403, "scope_missing");
}

#[tokio::test]
async fn runs_are_listed_page_by_page_and_an_accounts_own_alone_on_nats() {
    lists_an_accounts_own_runs(&Stack::build().evaluators(2).nats().await).await;
}

#[tokio::test]
async fn runs_are_listed_page_by_page_and_an_accounts_own_alone_in_one_process() {
    let mut stack = Stack::build().dev().await;
    lists_an_accounts_own_runs(&stack).await;
    stack.restart_dev();
    assert_eq!(names(&stack.api, 2).await, ["a/b é", "first", "third"], "they outlive a restart");
}

#[tokio::test]
async fn a_numeric_run_id_equals_its_decimal_text_and_a_defer_tells_how_to_end_the_run() {
    let stack = Stack::build().dev().await;
    let mut body = check("", "max_iterations: 1", json!({}));
    body["context"]["run_id"] = json!(11_233_637_052_i64);
    assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW");
    assert_eq!(run_of(&stack.api, "11233637052").await["iterations"], 1);
    let text = check("11233637052", "max_iterations: 1", json!({}));
    let deferred = stack.api.check(&text).await.expect(200);
    assert_eq!(deferred["verdict"], "DEFER");
    let issue = &deferred["issues"][0];
    let run = &issue["details"]["run"];
    assert_eq!((&issue["code"], &run["run_id"]), (&json!("LOOP_THRESHOLD_EXCEEDED"), &json!("11233637052")));
    assert_eq!(run["counted"], json!({"iteration": 2, "max_iterations": 1}));
    let (method, path) = run["end"].as_str().unwrap().split_once(' ').unwrap();
    assert_eq!((method, path.split(' ').next().unwrap()), ("DELETE", "/v1/runs/{run_id}"));
    let end = path.split(' ').next().unwrap().replace("{run_id}", run["run_id"].as_str().unwrap());
    assert_eq!(stack.api.delete(&end).await.status, 204);
    assert_eq!(stack.api.check(&body).await.expect(200)["verdict"], "ALLOW");
    let recorded = stack.api.decisions("&run_id=11233637052").await;
    assert_eq!(recorded.len(), 3, "{recorded:?}");
}

#[tokio::test]
async fn costs_are_settled_once_by_those_who_may() {
    let stack = Stack::build().dev().await;
    let estimated = |usd: f64| check("m", "max_cost_usd: 10", json!({"estimated_cost_usd": usd}));
    let allowed = stack.api.decide(&estimated(4.0)).await;
    let deferred = stack.api.check(&estimated(7.0)).await.expect(200);
    assert_eq!(deferred["verdict"], "DEFER");
    let path = "/v1/runs/m/settle";
    for (body, named) in [
        (json!({}), vec!["request_id", "actual_cost_usd"]),
        (json!({"request_id": "x", "actual_cost_usd": -1}), vec!["request_id", "actual_cost_usd"]),
        (json!({"request_id": allowed, "actual_cost_usd": "1"}), vec!["actual_cost_usd"]),
        (json!({"request_id": allowed, "actual_cost_usd": null}), vec!["actual_cost_usd"]),
        (json!({"request_id": allowed, "actual_cost_usd": 1, "currency": "EUR"}), vec!["currency"]),
    ] {
        let answer = stack.api.post(path, &body).await;
        answer.assert_error(422, "validation_failed");
        let paths: Vec<_> = answer.body["errors"].as_array().unwrap().iter().map(|e| e["path"].clone()).collect();
        assert_eq!(paths, named, "{body}");
    }
    let key = json!({"account": stack.account, "name": "k", "scopes": ["check"]});
    let key = stack.operator.post("/v1/keys", &key).await.expect(201);
    let checks = stack.api.with_key(key["key"].as_str().unwrap());
    let settle = |id: &Value, usd: f64| json!({"request_id": id, "actual_cost_usd": usd});
    let refused = checks.post(path, &settle(&json!(allowed), 3.99)).await;
    refused.assert_error(403, "scope_missing");
    assert!(refused.text.contains("runs:manage"));
    let settled = checks.post(path, &settle(&json!(allowed), 4.5)).await.expect(200);
    assert_eq!((&settled["estimated_cost_usd"], &settled["actual_cost_usd"]), (&json!(4.0), &json!(4.5)));
    assert_eq!(settled["cost"], json!({"spent_usd": 4.5, "reserved_usd": 0.0, "total_usd": 4.5}));
    let twice = stack.api.post(path, &settle(&json!(allowed), 1.0)).await;
    twice.assert_error(409, "conflict");
    assert!(twice.text.contains("4.5 USD"), "{}", twice.text);
    let never = stack.api.post(path, &settle(&deferred["request_id"], 1.0)).await;
    never.assert_error(409, "conflict");
    assert!(never.text.contains("was not allowed"), "{}", never.text);
    let other = stack.api.decide(&check("other", "max_cost_usd: 10", json!({}))).await;
    stack.api.post(path, &settle(&json!(other), 1.0)).await.assert_error(409, "conflict");
    let unknown = json!("01890000-0000-7000-8000-000000000001");
    stack.api.post(path, &settle(&unknown, 1.0)).await.assert_error(404, "not_found");
    let second = stack.api.decide(&estimated(5.5)).await;
    stack.api.post(path, &settle(&json!(second), 0.0)).await.expect(200);
    assert_eq!(run_of(&stack.api, "m").await["cost"]["total_usd"], 4.5);
}

#[tokio::test]
async fn a_cost_reservation_that_is_never_settled_counts_as_spent() {
    let stack = Stack::build().with(&["--reservations-kept-seconds", "1"]).dev().await;
    let body = check("m", "max_cost_usd: 10", json!({"estimated_cost_usd": 4}));
    let id = stack.api.decide(&body).await;
    wait_for("the reservation ends", RECOVERY_TIMEOUT, async || {
        run_of(&stack.api, "m").await["cost"]["reserved_usd"] == 0.0
    })
    .await;
    assert_eq!(run_of(&stack.api, "m").await["cost"]["spent_usd"], 4.0);
    let late = stack.api.post("/v1/runs/m/settle", &json!({"request_id": id, "actual_cost_usd": 0})).await;
    late.assert_error(409, "conflict");
    assert!(late.text.contains("too long ago"), "{}", late.text);
}

#[tokio::test]
async fn a_run_expires_after_its_configured_ttl() {
    let stack = Stack::build().with(&["--runs-kept-seconds", "1"]).dev().await;
    let body = check("r", "max_iterations: 1", json!({}));
    stack.api.decide(&body).await;
    wait_for("the run's end", RECOVERY_TIMEOUT, async || stack.api.get("/v1/runs/r").await.status == 404).await;
    assert_eq!(stack.api.check(&body).await.body["verdict"], "ALLOW");
}

#[tokio::test]
async fn an_account_may_require_that_each_check_names_its_run() {
    let stack = Stack::build().dev().await;
    let path = format!("/v1/accounts/{}", stack.account);
    stack.operator.patch(&path, &json!({"require_run_id": true})).await.expect(200);
    for context in [json!({}), json!({"run_id": " "}), json!({"run_id": 7.5})] {
        let mut body = Api::harmless();
        body["context"] = context;
        body["tools"] = json!([""]);
        let answer = stack.api.check(&body).await;
        answer.assert_error(422, "validation_failed");
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains("context.run_id: ") && (message.contains("tools[0]: ")), "{message}");
    }
    stack.api.check(&check("r", "sandbox", json!({}))).await.expect(200);
    stack.operator.patch(&path, &json!({"require_run_id": false})).await.expect(200);
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn without_a_state_store_a_check_of_a_run_is_not_decided() {
    let mut stack = Stack::build().nats().await;
    stack.api.decide(&check("r", "max_iterations: 1", json!({}))).await;
    stack.nats.as_mut().unwrap().kill();
    stack.api.check(&check("r", "max_iterations: 1", json!({}))).await.assert_error(503, "unavailable");
    stack.api.get("/v1/runs/r").await.assert_error(503, "unavailable");
    stack.nats.as_mut().unwrap().restart().await;
    wait_for("an answer", RECOVERY_TIMEOUT, async || {
        stack.api.check(&check("r", "max_iterations: 1", json!({}))).await.body["verdict"] == "DEFER"
    })
    .await;
}
