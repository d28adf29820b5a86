//! A published version that is deleted: with its line, and without its number coming back with other content.

use serde_json::json;
use stage0_tests::{Stack, Team};

use crate::policies::{activate, pack, publish};

#[tokio::test]
async fn a_deletion_is_recorded_and_its_number_stays_taken_after_a_restart() {
    let mut stack = Stack::build().dev().await;
    let team = Team::caller(&stack).await;
    let deleted = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
    let active = publish(&team.admin, &pack("acme", "1.1.0", "calculator")).await;
    activate(&team.admin, &active, &json!({"environment": "staging"})).await;
    let refused = team.admin.delete(&format!("/v1/policies/{active}")).await;
    refused.assert_error(409, "conflict");
    assert!(refused.body["message"].as_str().unwrap().contains("it is active in `staging`"), "{}", refused.text);
    let again = activate(&team.admin, &active, &json!({"environment": "stg"})).await;
    assert_eq!((&again["unchanged"], &again["sequence"]), (&json!(true), &json!(1)));

    assert_eq!(team.admin.delete(&format!("/v1/policies/{deleted}")).await.status, 204);
    let missing = team.admin.get(&format!("/v1/policies/{deleted}")).await;
    missing.assert_error(404, "not_found");
    let expected = format!("no version `{deleted}` is published for account `{}`", team.account);
    assert_eq!(missing.body["message"], json!(expected));
    let lines = team.admin.lines().await;
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!((of("policy.published").len(), of("policy.activated").len()), (2, 1));
    let deletions = of("policy.deleted");
    assert_eq!((deletions.len(), &deletions[0]["policy_version"]), (1, &json!(deleted)), "{lines:#?}");
    assert_eq!(team.admin.verify().await["ok"], true);

    stack.restart_dev();
    let admin = team.admin.at(&stack.urls[0]);
    let refused = admin.post("/v1/policies", &pack("acme", "1.0.0", "calculator")).await;
    refused.assert_error(409, "conflict");
    assert!(refused.body["message"].as_str().unwrap().contains("and deleted: raise `version`"), "{}", refused.text);
    assert_eq!(publish(&admin, &pack("acme", "1.0.0", "web_search")).await, deleted, "the same content");
}
