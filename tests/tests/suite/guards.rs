//! Guards beside agents: they report that they are alive, and the server says when one went silent.

use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Receiver, Stack, Team};

/// Ten seconds of grace, a look every ten, and rounds of five at gateways; the machine may be slow.
const SILENT_TIMEOUT: Duration = Duration::from_secs(90);
const ABSENT_FOR: Duration = Duration::from_secs(8);

fn report(guard: &str, next_within_seconds: u32) -> Value {
    json!({"guard_id": guard, "kind": "claude-code", "version": "0.1.0", "agent_version": "2.1.332",
        "host": "laptop-7", "next_within_seconds": next_within_seconds, "asked": 12, "refused": 1})
}

async fn listed(api: &Api, query: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let mut page = api.get(&format!("/v1/guards?{query}{cursor}")).await.expect(200);
        all.append(page["items"].as_array_mut().unwrap());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

fn names(guards: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = guards.iter().map(|guard| guard["guard_id"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_guard_that_does_not_report_in_time_is_silent_once_for_those_who_asked_to_hear() {
    for nats in [false, true] {
        let receiver = Receiver::plain().await;
        let build = Stack::build().private_webhooks();
        let stack = if nats { build.gateways(2).evaluators(2).nats().await } else { build.dev().await };
        let team = Team::caller(&stack).await;
        let (agent, other) = (team.agent().await, Team::caller(&stack).await);
        team.admin.webhook_with(&json!({"url": receiver.url("/silent"), "events": ["guard.silent"]})).await;
        team.admin.webhook(&receiver.url("/usual")).await;

        let kept = agent.api.post("/v1/guards", &report("gone", 1)).await.expect(200);
        assert_eq!((&kept["state"], &kept["asked"], &kept["undecided"]), (&json!("alive"), &json!(12), &json!(0)));
        agent.api.post("/v1/guards", &report("alive", 3_600)).await.expect(200);
        agent.api.post("/v1/guards", &report("ended", 0)).await.expect(200);

        let event = receiver.wait_for("silence", "/silent", SILENT_TIMEOUT, |seen| Some(seen.first()?.event())).await;
        assert_eq!((&event["type"], &event["data"]["guard_id"]), (&json!("guard.silent"), &json!("gone")), "{event:#}");
        assert_eq!(event["data"]["details"]["kind"], "claude-code");
        assert_eq!(names(&listed(&team.admin, "").await), ["alive", "ended", "gone"]);
        assert_eq!(names(&listed(&team.admin, "state=silent").await), ["gone"]);
        assert_eq!(names(&listed(&team.admin, "state=ended").await), ["ended"]);
        assert!(listed(&other.admin, "").await.is_empty(), "another account sees none of it");
        tokio::time::sleep(ABSENT_FOR).await;
        assert_eq!(receiver.seen("/silent").len(), 1);
        assert!(receiver.seen("/usual").iter().all(|delivery| delivery.kind() != "guard.silent"));

        // It is back, and not silent.
        agent.api.post("/v1/guards", &report("gone", 3_600)).await.expect(200);
        let back = async || names(&listed(&team.admin, "state=alive").await) == ["alive", "gone"];
        wait_for("the guard to be back", SILENT_TIMEOUT, back).await;
        assert_eq!(team.admin.delete("/v1/guards/gone").await.status, 204);
        team.admin.delete("/v1/guards/gone").await.assert_error(404, "not_found");
        assert_eq!(names(&listed(&team.admin, "").await), ["alive", "ended"]);
        let verified = team.admin.verify().await;
        assert_eq!(verified["ok"], true, "{verified:#}");
    }
}

#[tokio::test]
async fn what_a_guard_may_not_say_is_named_and_who_may_not_ask_is_refused() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    for (member, value) in [
        ("guard_id", json!("a b")),
        ("guard_id", json!(null)),
        ("kind", json!("")),
        ("version", json!("x".repeat(65))),
        ("agent_version", json!("1\n2")),
        ("host", json!(7)),
        ("next_within_seconds", json!(604_801)),
        ("next_within_seconds", json!(-1)),
        ("asked", json!(-1)),
        ("goal", json!("text")),
    ] {
        let mut body = report("g", 60);
        body[member] = value.clone();
        let answer = agent.api.post("/v1/guards", &body).await;
        answer.assert_error(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["path"], member, "{value}: {}", answer.text);
    }
    agent.api.post("/v1/guards", &report("g", 604_800)).await.expect(200);
    agent.api.get("/v1/guards").await.assert_error(403, "scope_missing");
    agent.api.delete("/v1/guards/g").await.assert_error(403, "scope_missing");
    let reader = team.agent_with(&json!({"scopes": ["decisions:read"]})).await;
    reader.api.post("/v1/guards", &report("g", 60)).await.assert_error(403, "scope_missing");
    assert_eq!(names(&listed(&reader.api, "").await), ["g"]);
}
