//! Whose word counts: `caller` keeps the public contract, under `verified` only what is held here counts.

use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Packs, Stack, Team};

/// Within a second at every gateway; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

/// As an agent writes it that approves itself.
fn says(status: &str) -> Value {
    let mut body = Api::deployment();
    body["context"]["approval_status"] = json!(status);
    body["context"]["approved_by"] = json!("ops-lead@example.com");
    body["context"]["approved_at"] = json!(jiff::Timestamp::now().to_string());
    body
}

#[tokio::test]
async fn the_callers_word_counts_under_caller_and_alone_not_under_verified() {
    let stack = Stack::build().dev().await;
    let (caller, verified) = (Team::caller(&stack).await, Team::verified(&stack).await);
    let (believed, doubted) = (caller.agent().await, verified.agent().await);
    let (verdict, answer) = believed.api.verdict(&says("approved")).await;
    assert_eq!((verdict.as_str(), &answer["approval"]), ("ALLOW", &json!(null)), "{answer:#}");
    assert_eq!(answer["meta"]["approval_source"], "caller");
    let (verdict, answer) = doubted.api.verdict(&says("approved")).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert!(answer["approval"].is_object(), "{answer:#}");
    assert!(answer["issues"].to_string().contains("only approvals that are held here"), "it says so: {answer:#}");
    assert_eq!(answer["meta"].get("approval_source"), None);
    // A refusal that the caller reports counts in both modes.
    for agent in [&believed, &doubted] {
        assert_eq!(agent.api.verdict(&says("rejected")).await.0, "DENY");
    }
    // What is approved here counts in both, for the action as it was asked for.
    for (team, agent) in [(&caller, &believed), (&verified, &doubted)] {
        let ada = team.member("Ada", &[]).await;
        let approval = agent.api.deferred(&Api::deployment()).await;
        ada.api.approve(&approval).await.expect(200);
        let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
        assert_eq!((verdict.as_str(), &answer["meta"]["approval_source"]), ("ALLOW", &json!("approval")), "{answer:#}");
    }
    // An answer that needs no approval names no source, whatever the caller says.
    let mut boasting = Api::harmless();
    boasting["context"] = says("approved")["context"].clone();
    for body in [Api::harmless(), boasting] {
        let (verdict, answer) = believed.api.verdict(&body).await;
        assert_eq!((verdict.as_str(), answer["meta"].get("approval_source")), ("ALLOW", None), "{answer:#}");
    }
}

#[tokio::test]
async fn accounts_are_caller_unless_they_are_made_verified_and_the_operator_alone_switches_them() {
    let stack = Stack::build().dev().await;
    let (account, key, _) = stack.operator.account("old", None, &["check", "keys:manage", "members:manage"]).await;
    let api = stack.api.with_key(&key);
    assert_eq!(api.verdict(&says("approved")).await.0, "ALLOW");
    let path = format!("/v1/accounts/{account}");
    api.patch(&path, &json!({"approvals": "verified"})).await.assert_error(403, "scope_missing");
    for bad in [json!({"approvals": "both"}), json!({"approvals": 7}), json!({"four_eyes": "off"})] {
        stack.operator.patch(&path, &bad).await.assert_error(422, "validation_failed");
    }
    let shown = stack.operator.patch(&path, &json!({"approvals": "verified", "four_eyes": false})).await.expect(200);
    assert_eq!((&shown["approvals"], &shown["four_eyes"]), (&json!("verified"), &json!(false)));
    let deferred = async || api.check(&says("approved")).await.expect(200)["verdict"] == "DEFER";
    wait_for("the change", NOTICE_TIMEOUT, deferred).await;
    // The development account is `caller`, and its banner says so.
    assert_eq!(stack.api.verdict(&says("approved")).await.0, "ALLOW");
    let said = stack.dev.as_ref().unwrap().said();
    assert!(said.contains("caller"), "{said}");
}

#[tokio::test]
async fn the_command_line_makes_accounts_verified() {
    let stack = Stack::build().dev().await;
    let made = stack.operator.cli(&stack.ca(), &["accounts", "create", "--name", "team", "--json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["approvals"], "verified", "{made:#}");
}

#[tokio::test]
async fn members_that_a_pack_calls_volatile_are_no_part_of_the_action() {
    let packs = Packs::annotated("1.0.0", &[]);
    packs.extend("1.0.0", "[approvals]\nvolatile = [\"trace_id\"]");
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let with = |trace: &str, note: &str| {
        let mut body = Api::deployment();
        (body["context"]["trace_id"], body["context"]["note"]) = (json!(trace), json!(note));
        body
    };
    let approval = agent.api.deferred(&with("1", "a")).await;
    assert_eq!(agent.api.deferred(&with("2", "a")).await["id"], approval["id"]);
    assert_ne!(agent.api.deferred(&with("1", "b")).await["id"], approval["id"], "other members are bound");
    ada.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&with("3", "a")).await.0, "ALLOW");
}
