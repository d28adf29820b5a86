//! Clocks that are wrong, amounts and names without bounds.
//!
//! A process gets another clock by a library that is loaded before the C library (`MovedClock`): what it says is what
//! that host's clock says. Windows, runs and idempotency keys go by the state store's clock; a host that is more than
//! 10 s from it decides nothing.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::nats::{Connection, NatsConfig};
use stage0_backplane::testing::wait_for;
use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateReply, EvaluateRequest, RequestId};
use stage0_tests::{Answer, Api, MovedClock, Stack};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400;

/// A key of a new account with so many checks a day.
async fn daily(stack: &Stack, limit: u64) -> Api {
    let (account, key, _) = stack.operator.account("limited", None, &["check", "runs:manage"]).await;
    stack.operator.patch(&format!("/v1/accounts/{account}"), &json!({"daily": limit})).await.expect(200);
    stack.api.with_key(&key)
}

async fn statuses(api: &Api, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(api.check(&Api::harmless()).await.status);
    }
    statuses
}

#[track_caller]
fn assert_names_the_clock(answer: &Answer, how: &str) {
    answer.assert_error(503, "unavailable");
    let text = answer.body["message"].as_str().unwrap();
    assert!(text.starts_with("the clock of this gateway is ") && text.contains(how), "{text}");
}

async fn clock_fault(api: &Api) -> Option<String> {
    let ready = api.get("/readyz").await;
    let reasons = ready.body["reasons"].as_array().cloned().unwrap_or_default();
    let mut said = reasons.iter().filter_map(Value::as_str);
    said.find(|reason| reason.starts_with("clock: ")).map(|reason| format!("{} {reason}", ready.status))
}

fn run_check(run: &str, limit: &str) -> Value {
    json!({"goal": "Fetch the next page", "success_criteria": ["page stored"], "constraints": [limit],
        "context": {"run_id": run}})
}

#[tokio::test]
async fn a_gateway_a_day_ahead_or_behind_decides_nothing_says_why_and_opens_no_second_quota() {
    for (seconds, how) in [(DAY, "ahead of"), (-DAY, "behind")] {
        // Without message keys, so that nothing else stands in its way.
        let mut stack = Stack::build().without_keys().nats().await;
        let right = daily(&stack, 5).await;
        assert_eq!(statuses(&right, 3).await, [200; 3]);
        let clock = MovedClock::ahead(seconds);
        stack.set_clock(Some(&clock));
        stack.start_gateway();
        let wrong = right.at(&stack.urls[1]);
        // Until it has read the store's clock it decides nothing either, but cannot say why.
        wait_for("a reason", WAIT_TIMEOUT, async || {
            wrong.check(&Api::harmless()).await.assert_error(503, "unavailable");
            clock_fault(&wrong).await.is_some()
        })
        .await;
        for _ in 0..3 {
            assert_names_the_clock(&wrong.check(&Api::harmless()).await, how);
        }
        let said = clock_fault(&wrong).await.expect("a reason");
        assert!(said.starts_with("503 clock: 86") && said.contains(how.trim_end_matches(" of")), "{said}");
        // Its usage call shows this day, with nothing counted. A gateway whose clock is behind sends requests that
        // are too old for their receivers.
        if seconds > 0 {
            let (usage, known) = (wrong.get("/usage").await.expect(200), right.get("/usage").await.expect(200));
            assert_eq!((&usage["day_key"], &usage["daily_used"]), (&known["day_key"], &known["daily_used"]));
        }
        assert_eq!(statuses(&right, 3).await, [200, 200, 402]);
        assert_names_the_clock(&wrong.check(&Api::harmless()).await, how);
    }
}

#[tokio::test]
async fn a_gateway_a_day_ahead_of_a_deployment_with_message_keys_names_its_clock_too() {
    let mut stack = Stack::build().nats().await;
    let clock = MovedClock::ahead(DAY);
    stack.set_clock(Some(&clock));
    stack.start_gateway();
    let wrong = stack.api.at(&stack.urls[1]);
    wait_for("a reason", WAIT_TIMEOUT, async || clock_fault(&wrong).await.is_some()).await;
    assert_names_the_clock(&wrong.check(&Api::harmless()).await, "ahead of");
    assert_eq!(statuses(&stack.api, 2).await, [200; 2], "the other one goes on");
}

#[tokio::test]
async fn a_clock_that_is_set_stops_its_gateway_at_once_and_only_while_it_is_wrong() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).without_keys().nats().await;
    let key = [("Idempotency-Key", "one"), ("content-type", "application/json")];
    let body = || Some(Api::harmless().to_string().into_bytes());
    let first = stack.api.send(Method::POST, "/check", &key, body()).await.expect(200);
    for wrong in [DAY, -DAY, 60, -60] {
        clock.set(wrong);
        stack.api.check(&Api::harmless()).await.assert_error(503, "unavailable");
        clock.set(0);
        assert_eq!(statuses(&stack.api, 1).await, [200]);
    }
    let again = stack.api.send(Method::POST, "/check", &key, body()).await.expect(200);
    assert_eq!((&again["request_id"], &again["cached"]), (&first["request_id"], &json!(true)));
}

#[tokio::test]
async fn clocks_that_differ_by_seconds_have_the_same_windows_and_the_same_time() {
    let mut stack = Stack::build().without_keys().nats().await;
    let clock = MovedClock::ahead(7);
    stack.set_clock(Some(&clock));
    stack.start_gateway();
    let other = stack.api.at(&stack.urls[1]);
    wait_for("a ready gateway", WAIT_TIMEOUT, async || other.get("/readyz").await.status == 200).await;
    let said = clock_fault(&other).await.expect("a remark");
    assert!(said.starts_with("200 clock: ") && said.contains("beyond 10 s checks are refused"), "{said}");
    assert_eq!(clock_fault(&stack.api).await, None);
    for _ in 0..3 {
        let before = Timestamp::now().as_second();
        let (one, two) = (stack.api.check(&Api::harmless()).await, other.check(&Api::harmless()).await);
        let after = Timestamp::now().as_second();
        for answer in [one, two] {
            let at = answer.expect(200)["evaluated_at"].as_i64().unwrap();
            assert!((before - 1..=after + 1).contains(&at), "{at} is not between {before} and {after}");
        }
    }
    // A run that one of them began is no older for the other.
    other.check(&run_check("r", "timeout: 5")).await.expect(200);
    let answer = stack.api.check(&run_check("r", "timeout: 5")).await.expect(200);
    assert_eq!(answer["verdict"], "ALLOW", "{answer}");
}

#[tokio::test]
async fn a_runs_time_is_the_state_stores_whatever_the_evaluators_clock_says() {
    let clock = MovedClock::ahead(0);
    let mut stack = Stack::build().without_keys().nats().await;
    stack.set_clock(Some(&clock));
    stack.restart_evaluator(0);
    clock.set(DAY);
    let began = Timestamp::now();
    let first = stack.api.check(&run_check("r", "timeout: 3000")).await.expect(200);
    assert_eq!(first["verdict"], "ALLOW");
    let run = stack.api.get("/v1/runs/r").await.expect(200);
    let seen: Timestamp = run["first_seen"].as_str().unwrap().parse().unwrap();
    assert!(seen.duration_since(began).as_secs().abs() <= 60, "{run}");
    assert!(run["elapsed_seconds"].as_f64().unwrap() < 60.0, "{run}");
    clock.set(0);
    assert_eq!(stack.api.check(&run_check("r", "timeout: 3000")).await.expect(200)["verdict"], "ALLOW");
}

#[tokio::test]
async fn an_evaluator_rejects_a_gateway_clock_that_differs_from_the_state_store() {
    let stack = Stack::build().without_keys().nats().await;
    // With a gateway's credentials and plain questions.
    let config = NatsConfig::new(stack.nats.as_ref().unwrap().url(), "gateway");
    let thief = Connection::open(&config).await.unwrap().backplane();
    let asked = async |number: u64, ahead: i64| {
        let context = json!({"run_id": "stolen"});
        let question = EvaluateRequest {
            asker: None,
            request_id: RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap(),
            account: AccountId::parse(&stack.account).unwrap(),
            request: CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap(),
            evaluated_at: Timestamp::now().as_second() + ahead,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        };
        thief.requests.request(&question, WAIT_TIMEOUT).await.unwrap()
    };
    for (number, ahead) in [(1, DAY), (2, -DAY), (3, 30), (4, i64::MAX / 2)] {
        let reply = asked(number, ahead).await;
        let EvaluateReply::Unable(why) = reply else { panic!("{ahead}: {reply:?}") };
        assert!(why.starts_with("the gateway's time is "), "{why}");
    }
    assert_eq!(stack.api.get("/v1/runs/stolen").await.status, 404, "no run began");
    assert!(matches!(asked(5, 0).await, EvaluateReply::Decided(_)));
    assert_eq!(stack.api.get("/v1/runs/stolen").await.status, 200);
}

#[tokio::test]
async fn dev_grants_no_second_daily_quota_when_the_clock_is_set_ahead() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let api = daily(&stack, 3).await;
    assert_eq!(statuses(&api, 4).await, [200, 200, 200, 402]);
    clock.set(DAY);
    assert_eq!(statuses(&api, 2).await, [402, 402]);
    clock.set(0);
    assert_eq!(statuses(&api, 1).await, [402]);
}

#[tokio::test]
async fn no_amount_beyond_a_billion_dollars_is_estimated_limited_or_settled() {
    let stack = Stack::build().dev().await;
    let money = |estimate: Value, limit: &str| {
        json!({"goal": "Summarise the report", "success_criteria": ["summary stored"], "constraints": [limit],
            "context": {"run_id": "m", "estimated_cost_usd": estimate}})
    };
    for large in [json!(1_000_000_001), json!(1e12), json!(1e18), json!(9_223_372_036_854_775_807_i64)] {
        let refused = stack.api.check(&money(large.clone(), "max_cost_usd: 10")).await;
        refused.assert_error(422, "validation_failed");
        assert_eq!(refused.body["errors"][0]["path"], "context.estimated_cost_usd", "{large}");
    }
    let refused = stack.api.check(&money(json!(1), "max_cost_usd: 1000000001")).await;
    refused.assert_error(422, "validation_failed");
    assert_eq!(refused.body["errors"][0]["path"], "constraints[0]");
    let id = stack.api.decide(&money(json!(1_000_000_000), "max_cost_usd: 1000000000")).await;
    let settle = |actual: Value| json!({"request_id": id, "actual_cost_usd": actual});
    for bad in [json!(1_000_000_000.000_001), json!(1e12), json!(9_000_000_000_000_i64), json!(-0.01), json!("1")] {
        let refused = stack.api.post("/v1/runs/m/settle", &settle(bad.clone())).await;
        refused.assert_error(422, "validation_failed");
        assert_eq!(refused.body["errors"][0]["path"], "actual_cost_usd", "{bad}");
    }
    let settled = stack.api.post("/v1/runs/m/settle", &settle(json!(1_000_000_000))).await.expect(200);
    assert_eq!(settled["cost"]["total_usd"], 1e9);
    let over = stack.api.check(&money(json!(0.000_001), "max_cost_usd: 1000000000")).await.expect(200);
    assert_eq!(over["verdict"], "DEFER");
}

#[tokio::test]
async fn a_run_or_tool_whose_name_hides_a_character_is_refused_and_ordinary_ones_pass() {
    let stack = Stack::build().dev().await;
    for hidden in ["job\u{0}", "\u{2800}job", "job\u{1b}[0m", "j\u{9b}ob", "job\u{fff9}1", "\u{0}"] {
        for (body, path) in [
            (run_check(hidden, "max_iterations: 1"), "context.run_id"),
            (json!({"goal": "g", "context": {"loop_state": {"run_id": hidden}}}), "context.loop_state.run_id"),
            (json!({"goal": "g", "tools": ["web_search", hidden]}), "tools[1]"),
            (json!({"goal": "g", "context": {"current_tool": hidden}}), "context.current_tool"),
        ] {
            let refused = stack.api.check(&body).await;
            refused.assert_error(422, "validation_failed");
            let errors = refused.body["errors"].as_array().unwrap();
            assert!(errors.iter().any(|error| error["path"] == path), "{hidden:?} {}", refused.text);
        }
    }
    // What is seen, and what joins it, names a run; another spelling of the same does not name another one.
    for (run, same) in [
        ("größe", "gro\u{308}ße"),
        ("本番 1", "本番\u{3000}1"),
        ("👨‍👩‍👧", "👨‍👩‍👧\u{200b}"),
        ("job 1", "job\u{a0} 1"),
        ("job 2", "job\n2"),
        ("job 3", "job\u{2028}\t3"),
    ] {
        let first = stack.api.check(&run_check(run, "max_iterations: 1")).await.expect(200);
        assert_eq!(first["verdict"], "ALLOW", "{run}");
        let second = stack.api.check(&run_check(same, "max_iterations: 1")).await.expect(200);
        assert_eq!(second["verdict"], "DEFER", "{same:?} is the run {run}");
    }
    for name in ["two\nlines", "nul\u{0}", "\u{2800}"] {
        let refused = stack.operator.post("/v1/accounts", &json!({"name": name})).await;
        refused.assert_error(422, "validation_failed");
    }
    stack.operator.post("/v1/accounts", &json!({"name": "Größe 本番 👨‍👩‍👧"})).await.expect(201);
}
