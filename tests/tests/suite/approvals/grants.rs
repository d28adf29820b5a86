//! Wider grants: what a workload may do for a while without being asked about each action.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_tests::{Agent, Api, MovedClock, Stack, Team, two_release_managers};

use super::path::may_not_decide;

fn in_minutes(minutes: i64) -> String {
    let later = Timestamp::now() + SignedDuration::from_mins(minutes);
    Timestamp::from_second(later.as_second()).unwrap().to_string()
}

fn grant(agent: &Agent, more: &Value) -> Value {
    let mut body = json!({"key_id": agent.key_id, "until": in_minutes(60), "reason": "migration, reviewed in CHG-12"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn id(grant: &Value) -> &str {
    grant["id"].as_str().unwrap()
}

#[tokio::test]
async fn a_grant_allows_what_it_covers_for_its_workload_until_it_is_revoked_and_counts_each_use() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other, ada) = (team.agent().await, team.agent().await, team.member("Ada", &[]).await);
    let made = ada.api.post("/v1/grants", &grant(&agent, &json!({"tool": "argo_cd", "environment": "staging"}))).await;
    let made = made.expect(201);
    let mut used = Vec::new();
    for what in ["payments", "billing", "payments"] {
        let (verdict, answer) = agent.api.verdict(&Api::deployment_of(what)).await;
        assert_eq!(verdict, "ALLOW", "{answer:#}");
        assert_eq!((&answer["approval"]["grant_id"], &answer["approval"]["id"]), (&made["id"], &json!(null)));
        assert_eq!(answer["meta"]["approval_source"], "grant");
        used.push(answer["request_id"].clone());
    }
    // Another workload, tool or environment is not covered.
    assert_eq!(other.api.verdict(&Api::deployment()).await.0, "DEFER");
    let mut tool = Api::deployment();
    (tool["tools"], tool["constraints"]) = (json!(["kubectl"]), json!(["allowed_tools: kubectl"]));
    let mut two = Api::deployment();
    (two["tools"], two["constraints"]) = (json!(["argo_cd", "kubectl"]), json!(["allowed_tools: argo_cd, kubectl"]));
    let mut environment = Api::deployment();
    environment["environment"] = json!("development");
    let mut nowhere = Api::deployment();
    nowhere.as_object_mut().unwrap().remove("environment");
    for body in [tool, two, environment, nowhere] {
        let (verdict, answer) = agent.api.verdict(&body).await;
        assert_eq!(verdict, "DEFER", "{body}: {answer:#}");
    }
    let listed = ada.api.get("/v1/grants").await.expect(200);
    let listed = &listed["items"][0];
    assert_eq!((&listed["id"], &listed["uses"], &listed["used_by"]), (&made["id"], &json!(3), &json!(used)));
    assert_eq!(agent.api.get("/v1/grants").await.expect(200)["items"].as_array().unwrap().len(), 1);
    assert_eq!(other.api.get("/v1/grants").await.expect(200)["items"], json!([]), "another workload's");

    let path = format!("/v1/grants/{}/revoke", id(&made));
    agent.api.post(&path, &json!({"reason": "x"})).await.assert_error(403, "scope_missing");
    ada.api.post(&path, &json!({"reason": ""})).await.assert_error(422, "validation_failed");
    for _ in 0..2 {
        ada.api.post(&path, &json!({"reason": "done"})).await.expect(200);
    }
    assert_eq!(agent.api.verdict(&Api::deployment_of("payments")).await.0, "DEFER");
}

#[tokio::test]
async fn a_grant_ends_by_itself_and_never_later_than_after_eight_hours() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    for (more, field) in [
        (json!({"tool": "argo_cd", "until": in_minutes(8 * 60 + 5)}), "until"),
        (json!({"tool": "argo_cd", "until": in_minutes(-1)}), "until"),
        (json!({"tool": "argo_cd", "until": null}), "until"),
        (json!({"tool": "argo_cd", "reason": " "}), "reason"),
        (json!({"environment": "staging"}), ""),
        (json!({}), ""),
    ] {
        let refused = ada.api.post("/v1/grants", &grant(&agent, &more)).await;
        refused.assert_error(422, "validation_failed");
        assert!(refused.text.contains(field), "{more}: {}", refused.text);
    }
    let mut unknown = grant(&agent, &json!({"tool": "argo_cd"}));
    unknown["key_id"] = json!("0000000000000000");
    ada.api.post("/v1/grants", &unknown).await.assert_error(404, "not_found");
    let run = json!({"run_id": "nightly-7", "until": in_minutes(30)});
    ada.api.post("/v1/grants", &grant(&agent, &run)).await.expect(201);
    let mut body = Api::deployment();
    body["context"]["run_id"] = json!("nightly-7");
    assert_eq!(agent.api.verdict(&body).await.0, "ALLOW");
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER", "no run is named");
    body["context"]["run_id"] = json!("nightly-8");
    assert_eq!(agent.api.verdict(&body).await.0, "DEFER", "another run");
    clock.set(31 * 60);
    body["context"]["run_id"] = json!("nightly-7");
    assert_eq!(agent.api.verdict(&body).await.0, "DEFER", "past its time");
    assert_eq!(ada.api.get("/v1/grants").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn a_denial_outranks_a_grant_and_no_allow_is_given_again_once_its_grant_is_revoked() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let denied = agent.api.deferred(&Api::deployment_of("billing")).await;
    ada.api.deny(&denied, "not this one").await.expect(200);
    let made = ada.api.post("/v1/grants", &grant(&agent, &json!({"tool": "argo_cd"}))).await.expect(201);
    assert_eq!(agent.api.verdict(&Api::deployment_of("billing")).await.0, "DENY");
    let first = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    assert_eq!(first["verdict"], "ALLOW", "{first:#}");
    let again = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    assert_eq!((&again["request_id"], &again["cached"]), (&first["request_id"], &json!(true)));
    let path = format!("/v1/grants/{}/revoke", id(&made));
    ada.api.post(&path, &json!({"reason": "done"})).await.expect(200);
    let (verdict, _) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER");
    let after = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    assert_eq!((&after["verdict"], &after["cached"]), (&json!("DEFER"), &json!(false)), "{after:#}");
}

#[tokio::test]
async fn a_grant_holds_once_as_many_people_have_approved_it_as_the_policy_asks_for() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let ada = team.member("Ada", &["release-managers"]).await;
    let bob = team.member("Bob", &["release-managers"]).await;
    let agent = team.agent_with(&json!({"owner": ada.id})).await;
    let cyd = team.member("Cyd", &["release-managers"]).await;
    let made = cyd.api.post("/v1/grants", &grant(&agent, &json!({"tool": "argo_cd"}))).await.expect(201);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER", "one of two");
    let path = format!("/v1/grants/{}/approve", id(&made));
    let reason = json!({"reason": "reviewed"});
    // Neither the same person again nor the owner makes it two.
    may_not_decide(&cyd.api.post(&path, &reason).await);
    let owner = ada.api.post(&path, &reason).await;
    assert!(owner.status == 409 || owner.status == 200, "{}", owner.text);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER", "the owner is not another person");
    bob.api.post(&path, &reason).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    // A grant that its own owner makes is nothing.
    let own = ada.api.post("/v1/grants", &grant(&agent, &json!({"tool": "kubectl"}))).await;
    assert!(own.status == 409 || own.status == 201, "{}", own.text);
    let mut body = Api::deployment();
    (body["tools"], body["constraints"]) = (json!(["kubectl"]), json!(["allowed_tools: kubectl"]));
    assert_eq!(agent.api.verdict(&body).await.0, "DEFER");
}
