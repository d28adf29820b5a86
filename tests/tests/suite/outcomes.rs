//! What came of allowed actions: reported once, recorded, shown, settled, and never guessed.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Receiver, Stack, Team};

use crate::policies::{activate, publish};

const TIMEOUT: Duration = Duration::from_secs(30);
const ABSENT_FOR: Duration = Duration::from_secs(3);

async fn report(api: &Api, decision: &str, body: &Value) -> Answer {
    api.post(&format!("/v1/decisions/{decision}/outcome"), body).await
}

async fn outcome_of(api: &Api, decision: &str) -> Value {
    api.get(&format!("/v1/decisions/{decision}")).await.expect(200)["outcome"].clone()
}

/// The lines of the account's log that report an outcome.
async fn outcome_lines(api: &Api) -> Vec<Value> {
    let lines = api.get("/v1/decisions/export").await;
    assert_eq!(lines.status, 200, "{}", lines.text);
    let lines = lines.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["type"] == "decision.outcome").collect()
}

fn ids(found: &[Value]) -> Vec<&str> {
    found.iter().map(|decision| decision["request_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_outcome_is_reported_once_recorded_and_shown_beside_its_decision() {
    for nats in [false, true] {
        let build = Stack::build();
        let stack = if nats { build.gateways(2).evaluators(2).nats().await } else { build.dev().await };
        let team = Team::caller(&stack).await;
        let api = &team.admin;
        let (done, silent) = (api.decide(&Api::harmless()).await, api.decide(&Api::harmless()).await);
        let denied = api.decide(&Api::forbidden()).await;
        assert_eq!(outcome_of(api, &done).await, Value::Null);

        let body = json!({"status": "succeeded", "tool_call_id": "toolu_1", "duration_ms": 420});
        let first = report(api, &done, &body).await.expect(200);
        assert_eq!(
            (&first["status"], &first["late"], &first["settled"]),
            (&json!("succeeded"), &json!(false), &Value::Null)
        );
        assert_eq!((&first["tool_call_id"], &first["duration_ms"]), (&json!("toolu_1"), &json!(420)));
        // At another gateway, again: the same answer, and no second line.
        let elsewhere = api.at(stack.urls.last().unwrap());
        assert_eq!(report(&elsewhere, &done, &body).await.expect(200), first);
        report(&elsewhere, &done, &json!({"status": "failed"})).await.assert_error(409, "conflict");
        let shown = outcome_of(&elsewhere, &done).await;
        assert_eq!((&shown["status"], &shown["request_id"]), (&json!("succeeded"), &json!(done)));
        let lines = outcome_lines(api).await;
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert_eq!((&lines[0]["request_id"], &lines[0]["details"]["status"]), (&json!(done), &json!("succeeded")));

        // Nothing came of what was not allowed, and nothing is known of what does not exist or is another account's.
        report(api, &denied, &body).await.assert_error(409, "conflict");
        report(api, "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55", &body).await.assert_error(404, "not_found");
        report(api, "no-id", &body).await.assert_error(404, "not_found");
        let other = Team::caller(&stack).await;
        report(&other.admin, &silent, &body).await.assert_error(404, "not_found");
        let agent = team.agent().await;
        report(&agent.api, &silent, &body).await.assert_error(403, "scope_missing");
        assert_eq!(outcome_of(api, &silent).await, Value::Null);

        assert_eq!(ids(&api.decisions("outcome=succeeded").await), [done.as_str()]);
        assert_eq!(ids(&api.decisions("outcome=none").await), [silent.as_str()]);
        assert!(api.decisions("outcome=failed").await.is_empty());
        let all = api.decisions("outcome=any").await;
        let statuses: Vec<_> = all.iter().map(|decision| &decision["outcome"]["status"]).collect();
        assert_eq!(statuses, [&json!("succeeded"), &Value::Null, &Value::Null]);
        assert!(api.decisions("").await.iter().all(|decision| decision.get("outcome").is_none()));
        api.get("/v1/decisions?outcome=perhaps").await.assert_error(422, "validation_failed");
        let verified = api.verify().await;
        assert_eq!(verified["ok"], true, "{verified:#}");
    }
}

#[tokio::test]
async fn what_a_report_may_not_say_is_named_member_by_member() {
    let stack = Stack::build().dev().await;
    let decision = stack.api.decide(&Api::harmless()).await;
    for (body, named) in [
        (json!({}), "status"),
        (json!({"status": "done"}), "status"),
        (json!({"status": "failed", "tool_call_id": ""}), "tool_call_id"),
        (json!({"status": "failed", "tool_call_id": "x".repeat(257)}), "tool_call_id"),
        (json!({"status": "failed", "duration_ms": -1}), "duration_ms"),
        (json!({"status": "failed", "duration_ms": 1.5}), "duration_ms"),
        (json!({"status": "failed", "cost_usd": -0.5}), "cost_usd"),
        (json!({"status": "failed", "cost_usd": "1"}), "cost_usd"),
        (json!({"status": "failed", "output": "text"}), "output"),
    ] {
        let answer = report(&stack.api, &decision, &body).await;
        answer.assert_error(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["path"], named, "{body}: {}", answer.text);
    }
    assert_eq!(outcome_of(&stack.api, &decision).await, Value::Null);
    let most = json!({"status": "failed", "tool_call_id": "x".repeat(256), "duration_ms": 0, "cost_usd": 0});
    assert_eq!(report(&stack.api, &decision, &most).await.expect(200)["status"], "failed");
}

#[tokio::test]
async fn unknown_is_replaced_by_what_it_turned_out_to_be_and_nothing_else_is() {
    let stack = Stack::build().dev().await;
    let decision = stack.api.decide(&Api::harmless()).await;
    assert_eq!(report(&stack.api, &decision, &json!({"status": "unknown"})).await.expect(200)["status"], "unknown");
    assert_eq!(ids(&stack.api.decisions("outcome=unknown").await), [decision.as_str()]);
    assert_eq!(report(&stack.api, &decision, &json!({"status": "skipped"})).await.expect(200)["status"], "skipped");
    report(&stack.api, &decision, &json!({"status": "unknown"})).await.assert_error(409, "conflict");
    assert_eq!(outcome_of(&stack.api, &decision).await["status"], "skipped");
    let statuses: Vec<_> =
        outcome_lines(&stack.api).await.iter().map(|line| line["details"]["status"].clone()).collect();
    assert_eq!(statuses, [json!("unknown"), json!("skipped")]);
}

#[tokio::test]
async fn of_reports_that_contradict_each_other_at_the_same_time_one_is_kept() {
    let stack = Stack::build().gateways(2).evaluators(3).nats().await;
    let team = Team::caller(&stack).await;
    for _ in 0..4 {
        let decision = team.admin.decide(&Api::harmless()).await;
        let before = outcome_lines(&team.admin).await.len();
        let reports = (0..16).map(|n| {
            let api = team.admin.at(&stack.urls[n % 2]);
            let (decision, status) = (decision.clone(), if n % 3 == 0 { "succeeded" } else { "failed" });
            async move { (status, report(&api, &decision, &json!({"status": status})).await) }
        });
        let answers = join_all(reports).await;
        let kept: Vec<_> =
            answers.iter().filter(|(_, answer)| answer.status == 200).map(|(status, _)| *status).collect();
        assert!(!kept.is_empty() && kept.iter().all(|status| *status == kept[0]), "{kept:?}");
        assert!(answers.iter().all(|(_, answer)| [200, 409].contains(&answer.status)), "{answers:?}");
        assert_eq!(outcome_of(&team.admin, &decision).await["status"], kept[0]);
        let lines = outcome_lines(&team.admin).await.split_off(before);
        assert!(!lines.is_empty() && lines.iter().all(|line| line["event_id"] == lines[0]["event_id"]), "{lines:#?}");
        assert_eq!(lines[0]["details"]["status"], kept[0]);
    }
}

#[tokio::test]
async fn a_cost_settles_the_run_and_less_than_the_estimate_takes_the_right_to_say_so() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent_with(&json!({"scopes": ["check", "outcomes:report", "decisions:read"]})).await;
    let check = json!({"goal": "Search for Python documentation", "success_criteria": ["found"],
        "constraints": ["max_cost_usd: 10"], "context": {"run_id": "money", "estimated_cost_usd": 2}});
    let (cheap, dear) = (agent.api.decide(&check).await, agent.api.decide(&check).await);
    let refused = report(&agent.api, &cheap, &json!({"status": "succeeded", "cost_usd": 0.5})).await;
    refused.assert_error(403, "scope_missing");
    assert!(refused.body["message"].as_str().unwrap().contains("runs:manage"), "{}", refused.text);
    assert_eq!(outcome_of(&agent.api, &cheap).await, Value::Null, "nothing of it is kept");
    let more = report(&agent.api, &dear, &json!({"status": "failed", "cost_usd": 3.5})).await.expect(200);
    assert_eq!((&more["cost_usd"], &more["settled"]["actual_cost_usd"]), (&json!(3.5), &json!(3.5)));
    let less = report(&team.admin, &cheap, &json!({"status": "succeeded", "cost_usd": 0.5})).await.expect(200);
    assert_eq!(less["settled"]["cost"]["total_usd"], 4.0);
    let again = report(&team.admin, &cheap, &json!({"status": "succeeded", "cost_usd": 0.5})).await.expect(200);
    assert_eq!(again["cost_usd"], 0.5);
    let run = team.admin.get("/v1/runs/money").await.expect(200);
    assert_eq!((&run["cost"]["spent_usd"], &run["cost"]["reserved_usd"]), (&json!(4.0), &json!(0.0)), "{run:#}");
    // Without a run there is nothing to settle, and the outcome is reported all the same.
    let free = agent.api.decide(&Api::harmless()).await;
    let reported = report(&agent.api, &free, &json!({"status": "succeeded", "cost_usd": 0.1})).await.expect(200);
    assert_eq!((&reported["settled"], &reported["cost_usd"]), (&Value::Null, &json!(0.1)));
}

#[tokio::test]
async fn the_outcome_of_an_approved_action_is_the_approvals_too() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let ada = team.member("Ada", &[]).await;
    let agent = team.agent_with(&json!({"scopes": ["check", "outcomes:report"]})).await;
    let approval = agent.api.deferred(&Api::deployment()).await;
    ada.api.approve(&approval).await.expect(200);
    let allowed = agent.api.check(&Api::deployment()).await.expect(200);
    assert_eq!(allowed["verdict"], "ALLOW");
    agent.api.until(&approval, "consumed").await;
    let decision = allowed["request_id"].as_str().unwrap();
    report(&agent.api, decision, &json!({"status": "succeeded"})).await.expect(200);
    let shown = ada.api.approval(&approval).await.expect(200);
    assert_eq!(shown["outcome"]["status"], "succeeded", "{shown:#}");
}

#[tokio::test]
async fn only_an_endpoint_that_names_outcomes_gets_them() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let events = json!(["decision.outcome"]);
    stack.api.webhook_with(&json!({"url": receiver.url("/outcomes"), "events": events})).await;
    stack.api.webhook(&receiver.url("/usual")).await;
    let decision = stack.api.decide(&Api::harmless()).await;
    report(&stack.api, &decision, &json!({"status": "failed", "tool_call_id": "c1"})).await.expect(200);
    let event = receiver.wait_for("the outcome", "/outcomes", TIMEOUT, |seen| Some(seen.first()?.event())).await;
    assert_eq!((&event["type"], &event["data"]["request_id"]), (&json!("decision.outcome"), &json!(decision)));
    assert_eq!(event["data"]["details"]["status"], "failed");
    tokio::time::sleep(ABSENT_FOR).await;
    assert!(receiver.seen("/usual").iter().all(|delivery| delivery.kind() != "decision.outcome"));
    assert_eq!(receiver.seen("/outcomes").len(), 1);
}

/// A pack that holds an action whose end is not known.
fn holding() -> Value {
    let manifest =
        "name = \"careful\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n[outcomes]\nhold_unknown = true\n";
    let request = json!({"goal": "Look the order up", "success_criteria": ["found"], "tools": ["web_search"]});
    let cases = json!([{"id": "reads", "expect": ["ALLOW"], "request": request}]);
    json!({"packs": [{"files": {"pack.toml": manifest, "cases.json": cases.to_string()}}]})
}

#[tokio::test]
async fn an_action_without_a_known_end_is_not_allowed_again_where_pack_and_key_say_that_ends_are_reported() {
    for nats in [false, true] {
        let build = Stack::build();
        let stack = if nats { build.gateways(2).evaluators(2).nats().await } else { build.dev().await };
        let team = Team::caller(&stack).await;
        let version = publish(&team.admin, &holding()).await;
        let reporting = team.agent_with(&json!({"scopes": ["check", "outcomes:report", "decisions:read"]})).await;
        let silent = team.agent_with(&json!({"scopes": ["check"]})).await;
        let write = json!({"goal": "Add a line to the report", "success_criteria": ["the line is there"],
            "tools": ["editor"], "side_effects": ["write"], "context": {"environment": "development"}});
        activate(&team.admin, &version, &json!({"reason": "ends are reported"})).await;
        let decided =
            async || reporting.api.check(&Api::harmless()).await.expect(200)["policy_version"] == json!(version);
        wait_for("the new policy", TIMEOUT, decided).await;

        let first = reporting.api.check(&write).await.expect(200);
        assert_eq!(first["verdict"], "ALLOW", "{first:#}");
        let held = reporting.api.at(stack.urls.last().unwrap()).check(&write).await.expect(200);
        assert_eq!(
            (&held["verdict"], &held["issues"][0]["code"]),
            (&json!("DEFER"), &json!("OUTCOME_UNKNOWN")),
            "{held:#}"
        );
        assert!(held["clarifying_questions"][0].as_str().unwrap().contains(first["request_id"].as_str().unwrap()));
        // Its neighbours: another action, what changes nothing, and a key that does not report.
        let mut other = write.clone();
        other["goal"] = json!("Add another line to the report");
        assert_eq!(reporting.api.check(&other).await.expect(200)["verdict"], "ALLOW");
        for _ in 0..2 {
            assert_eq!(reporting.api.check(&Api::harmless()).await.expect(200)["verdict"], "ALLOW");
            assert_eq!(silent.api.check(&write).await.expect(200)["verdict"], "ALLOW");
        }
        let decision = first["request_id"].as_str().unwrap();
        report(&reporting.api, decision, &json!({"status": "unknown"})).await.expect(200);
        assert_eq!(reporting.api.check(&write).await.expect(200)["verdict"], "DEFER", "unknown is not failed");
        report(&reporting.api, decision, &json!({"status": "failed"})).await.expect(200);
        assert_eq!(reporting.api.check(&write).await.expect(200)["verdict"], "ALLOW");
        // Of many at once, one is allowed.
        other["goal"] = json!("Add a third line to the report");
        let asks = (0..12).map(|n| {
            let (api, body) = (reporting.api.at(&stack.urls[n % stack.urls.len()]), other.clone());
            async move { api.check(&body).await.body["verdict"].as_str().map(str::to_owned) }
        });
        let verdicts = join_all(asks).await;
        let allowed = verdicts.iter().filter(|verdict| verdict.as_deref() == Some("ALLOW")).count();
        assert_eq!(allowed, 1, "{verdicts:?}");
    }
}
