//! What is never allowed, asked of the whole product: the answer, its line, what is delivered, and what is not counted.

use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Receiver, Stack, Team};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

fn question() -> Value {
    json!({"environment": "staging", "tools": [{"tool": "web_search"}, {"tool": "mcp__search__Fetch-Page"}]})
}

/// What may be, for each tool.
fn may(probe: &Value) -> Vec<&str> {
    probe["tools"].as_array().unwrap().iter().map(|tool| tool["may"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_probe_is_in_the_chain_and_is_delivered_to_those_who_want_it_and_counts_as_no_check() {
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    for (path, events) in [("/probes", json!(["tools.*", "checkpoint.signed"])), ("/plain", Value::Null)] {
        stack.api.webhook_with(&json!({"url": receiver.url(path), "events": events})).await;
    }
    let before = stack.api.get("/usage").await.expect(200);
    assert_eq!(may(&stack.api.post("/v1/probes", &question()).await.expect(200)), ["maybe"; 2]);
    let stopped = json!({"scope": "tool", "value": "fetch_page", "reason": "incident 12"});
    stack.api.post("/v1/stops", &stopped).await.expect(201);
    let mut probe = Value::Null;
    wait_for("the stop", WAIT_TIMEOUT, async || {
        probe = stack.api.post("/v1/probes", &question()).await.expect(200);
        may(&probe) == ["maybe", "never"]
    })
    .await;
    assert_eq!(probe["tools"][1]["codes"], json!(["STOPPED"]));
    let mut check = Api::harmless();
    check["tools"] = json!(["mcp__search__Fetch-Page"]);
    assert_eq!(stack.api.check(&check).await.expect(200)["verdict"], "DENY");

    let after = stack.api.get("/usage").await.expect(200);
    let used = |usage: &Value| usage["daily_used"].as_u64().unwrap();
    assert_eq!(used(&after), used(&before) + 1, "the check alone");
    let verified = stack.api.verify().await;
    assert_eq!(verified["ok"], true, "{verified:#}");
    let export = stack.api.get("/v1/decisions/export").await;
    let lines: Vec<Value> = export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().rfind(|line| line["type"] == "tools.probed").expect("a line");
    assert_eq!((&line["request_id"], &line["policy_version"]), (&probe["request_id"], &probe["policy_version"]));
    assert_eq!(line["details"], json!({"tools": 2, "never": 1, "names": ["mcp__search__fetch_page"]}));
    assert_eq!(line["environment"], "staging");
    // No decision has its id.
    stack
        .api
        .get(&format!("/v1/decisions/{}", probe["request_id"].as_str().unwrap()))
        .await
        .assert_error(404, "not_found");

    let of_probe = line["event_id"].as_str().unwrap().to_owned();
    let came = |came: &[stage0_tests::Delivery]| {
        let found = came.iter().find(|delivery| delivery.id().ends_with(&of_probe))?;
        Some(found.id().to_owned())
    };
    receiver.wait_for("the probe", "/probes", WAIT_TIMEOUT, came).await;
    let marked = |came: &[stage0_tests::Delivery]| {
        came.iter().any(|delivery| delivery.id().starts_with("mark_")).then(|| came.to_vec())
    };
    let plain = receiver.wait_for("a mark", "/plain", WAIT_TIMEOUT, marked).await;
    assert!(plain.iter().all(|delivery| !delivery.id().ends_with(&of_probe)));
}

#[tokio::test]
async fn a_probe_advances_no_run_and_opens_no_approval() {
    let stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let agent = team.agent().await;
    let mut body = question();
    body["context"] = json!({"run_id": "r-1", "current_iteration": 5});
    body["constraints"] = json!(["approval_required", "max_iterations: 2"]);
    for _ in 0..3 {
        assert_eq!(may(&agent.api.post("/v1/probes", &body).await.expect(200)), ["maybe"; 2]);
    }
    team.admin.get("/v1/runs/r-1").await.assert_error(404, "not_found");
    assert_eq!(team.admin.get("/v1/approvals").await.expect(200)["items"], json!([]));
    assert_eq!(team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn what_a_pack_never_allows_is_denied_at_each_call_and_what_it_may_is_not_hidden() {
    let packs = stage0_tests::Packs::extending_baseline(
        "1.0.0",
        &[
            ("codes.toml", "[NO_SUCH_TOOL]\nmeaning = \"m\"\nremedy = \"r\"\n"),
            (
                "own.cedar",
                "@id(\"own.tools\") @effect(\"deny\") @code(\"NO_SUCH_TOOL\") @message(\"not here\")\n\
                 forbid (principal, action, resource)\n\
                 when { context.tools.contains(\"drop_table\") && context.environment == \"production\" };\n",
            ),
            (
                "cases.json",
                "[{\"id\": \"own\", \"expect\": [\"DENY\"], \"codes\": [\"NO_SUCH_TOOL\"], \"request\": {\"goal\": \
                 \"Drop the table of May\", \"tools\": [\"drop_table\"], \"environment\": \"production\"}}]",
            ),
        ],
    );
    let stack = Stack::build().policies(&packs).dev().await;
    let tools = json!([{"tool": "mcp__db__dropTable"}, {"tool": "web_search"}]);
    let ask = async |environment: &str| {
        let body = json!({"tools": tools, "environment": environment});
        stack.api.post("/v1/probes", &body).await.expect(200)
    };
    assert_eq!(may(&ask("prod").await), ["never", "maybe"]);
    assert_eq!(may(&ask("staging").await), ["maybe", "maybe"]);
    let anywhere = stack.api.post("/v1/probes", &json!({"tools": tools})).await.expect(200);
    assert_eq!(may(&anywhere), ["maybe", "maybe"]);
    for more in [json!({}), json!({"constraints": ["sandbox", "dry_run"]}), json!({"context": {"run_id": "r"}})] {
        let mut check = Api::harmless();
        check["tools"] = json!(["mcp__db__dropTable"]);
        check["environment"] = json!("production");
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(stack.api.check(&check).await.expect(200)["verdict"], "DENY", "{more}");
    }
}
