//! Activations that wait for a second member on a running product: who can approve one, what it changes, and what the
//! log says of both persons.

use serde_json::{Value, json};
use stage0_tests::{Answer, Api, Member, Stack, Team};

use crate::policies::{accepting, decided, pack, publish};

/// A team whose activations need a second member, and a version that is stricter than the baseline.
struct Office {
    team: Team,
    version: String,
}

impl Office {
    async fn open(stack: &Stack) -> Self {
        let team = Team::caller(stack).await;
        team.set(&json!({"policy_changes": "second_member"})).await;
        let version = publish(&team.admin, &pack("acme", "1.0.0", "web_search")).await;
        Self { team, version }
    }

    /// Somebody whom the operator invited.
    async fn member(&self, name: &str) -> Member {
        self.team.member_with(&json!({"name": name, "scopes": ["policies:manage", "members:manage"]})).await
    }

    /// Proposes the version, with everything accepted that it makes looser.
    async fn propose(&self, by: &Api) -> Value {
        let mut body = accepting(by, &self.version).await;
        if body["accept_flips"] == json!(0) {
            body.as_object_mut().unwrap().remove("accept_flips");
        }
        body["reason"] = json!("no searches");
        let answer = by.post(&format!("/v1/policies/{}/activate", self.version), &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.body["proposal"].clone()
    }
}

async fn approve(by: &Api, proposal: &Value) -> Answer {
    decide(by, proposal, "approve").await
}

async fn decide(by: &Api, proposal: &Value, what: &str) -> Answer {
    let id = proposal["id"].as_str().unwrap();
    by.post(&format!("/v1/policies/proposals/{id}/{what}"), &json!({"reason": "as we agreed"})).await
}

async fn types(api: &Api) -> Vec<String> {
    let lines = api.lines().await.into_iter();
    let types = lines.map(|line| line["type"].as_str().unwrap().to_owned());
    types.filter(|line| line.starts_with("policy.") && line != "policy.published").collect()
}

#[tokio::test]
async fn an_activation_is_made_by_the_second_member_alone_and_its_line_names_both() {
    let stack = Stack::build().dev().await;
    let office = Office::open(&stack).await;
    let (ada, bo) = (office.member("Ada").await, office.member("Bo").await);
    let agent = office.team.agent().await;
    let before = decided(&agent.api, &Api::harmless()).await.unwrap();
    assert_eq!(before.0, "ALLOW");
    let proposal = office.propose(&ada.api).await;
    assert_eq!((&proposal["status"], &proposal["proposed_by"]["member_id"]), (&json!("pending"), &json!(ada.id)));
    assert_eq!(office.propose(&ada.api).await, proposal, "the same again is no further one");
    assert_eq!(decided(&agent.api, &Api::harmless()).await.as_ref(), Some(&before), "nothing is activated yet");

    // Neither the proposer, nor a workload, nor the operator, nor one whom the proposer invited.
    let invited = ada.api.invite(&json!({"name": "Cy", "scopes": ["policies:manage"]})).await;
    for by in [&ada.api, &office.team.admin, &stack.operator, &invited.api] {
        approve(by, &proposal).await.assert_error(409, "conflict");
    }
    assert_eq!(decided(&agent.api, &Api::harmless()).await.as_ref(), Some(&before));
    let made = approve(&bo.api, &proposal).await.expect(200);
    assert_eq!((&made["version"], &made["member_id"]), (&json!(office.version), &json!(bo.id)));
    assert_eq!(decided(&agent.api, &Api::harmless()).await, Some(("DENY".to_owned(), office.version.clone())));
    approve(&bo.api, &proposal).await.assert_error(409, "conflict");

    let lines = office.team.admin.lines().await;
    let line = lines.iter().find(|line| line["type"] == "policy.activated").unwrap();
    assert_eq!((&line["actor"]["member_id"], &line["reason"]), (&json!(bo.id), &json!("no searches")));
    assert_eq!(line["details"]["proposed_by"]["member_id"], json!(ada.id));
    assert_eq!(line["details"]["approved_by"]["member_id"], json!(bo.id));
    assert_eq!(line["details"]["approval_reason"], json!("as we agreed"));
    let proposed = lines.iter().find(|line| line["type"] == "policy.proposed").unwrap();
    assert_eq!(proposed["details"]["proposal_id"], proposal["id"]);
    let history = office.team.admin.get("/v1/policies/history").await.expect(200);
    assert_eq!(history["items"][0]["proposal"]["proposed_by"]["member_id"], json!(ada.id));

    // A rollback waits for no second member, and leads back to what was in force.
    ada.api.post("/v1/policies/rollback", &json!({"expected": office.version})).await.expect(200);
    assert_eq!(decided(&agent.api, &Api::harmless()).await, Some(before));
    assert_eq!(types(&office.team.admin).await.last().map(String::as_str), Some("policy.rolled_back"));
    assert_eq!(office.team.admin.verify().await["ok"], true);
}

#[tokio::test]
async fn a_stale_proposal_is_outdated_and_a_denied_or_cancelled_one_activates_nothing() {
    let stack = Stack::build().dev().await;
    let office = Office::open(&stack).await;
    let (ada, bo) = (office.member("Ada").await, office.member("Bo").await);
    let agent = office.team.agent().await;
    for (what, by) in [("deny", &bo), ("cancel", &ada)] {
        let proposal = office.propose(&ada.api).await;
        decide(&by.api, &proposal, what).await.expect(200);
        approve(&bo.api, &proposal).await.assert_error(409, "conflict");
    }
    let stale = office.propose(&ada.api).await;
    let needed = office.team.admin.delete(&format!("/v1/policies/{}", office.version)).await;
    needed.assert_error(409, "conflict");
    // What the operator activates for the account needs no second member.
    let other = publish(&office.team.admin, &pack("acme", "1.1.0", "calculator")).await;
    let mut body = accepting(&office.team.admin, &other).await;
    if body["accept_flips"] == json!(0) {
        body.as_object_mut().unwrap().remove("accept_flips");
    }
    body["account"] = json!(office.team.account);
    stack.operator.post(&format!("/v1/policies/{other}/activate"), &body).await.expect(200);
    approve(&bo.api, &stale).await.assert_error(409, "conflict");
    assert_eq!(decided(&agent.api, &Api::harmless()).await, Some(("ALLOW".to_owned(), other.clone())));
    let shown = bo.api.get(&format!("/v1/policies/proposals/{}", stale["id"].as_str().unwrap())).await.expect(200);
    assert_eq!((&shown["status"], &shown["decided_by"]["member_id"]), (&json!("outdated"), &json!(bo.id)));
    let statuses = bo.api.get("/v1/policies/proposals").await.expect(200);
    let mut statuses: Vec<_> = statuses["items"].as_array().unwrap().iter().map(|of| of["status"].clone()).collect();
    statuses.sort_by_key(ToString::to_string);
    assert_eq!(statuses, ["cancelled", "denied", "outdated"]);
    let expected = [
        "policy.proposed",
        "policy.proposal_denied",
        "policy.proposed",
        "policy.proposal_cancelled",
        "policy.proposed",
        "policy.activated",
        "policy.proposal_outdated",
    ];
    assert_eq!(types(&office.team.admin).await, expected);
    // The same, proposed on what is in force now, can be approved.
    let fresh = office.propose(&ada.api).await;
    assert_eq!(fresh["from"], json!(other));
    approve(&bo.api, &fresh).await.expect(200);
    assert_eq!(decided(&agent.api, &Api::harmless()).await, Some(("DENY".to_owned(), office.version.clone())));
}

#[tokio::test]
async fn of_two_approvals_at_once_one_is_made_and_one_is_recorded() {
    let stack = Stack::build().dev().await;
    let office = Office::open(&stack).await;
    let (ada, bo) = (office.member("Ada").await, office.member("Bo").await);
    let proposal = office.propose(&office.team.admin).await;
    let (one, two) = tokio::join!(approve(&ada.api, &proposal), approve(&bo.api, &proposal));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{} {}", one.text, two.text);
    let lines = types(&office.team.admin).await;
    assert_eq!(lines, ["policy.proposed", "policy.activated"]);
}

#[tokio::test]
async fn a_proposal_outlives_a_restart_and_another_account_knows_nothing_of_it() {
    let mut stack = Stack::build().dev().await;
    let office = Office::open(&stack).await;
    let (ada, bo) = (office.member("Ada").await, office.member("Bo").await);
    let proposal = office.propose(&ada.api).await;
    let stranger = Team::caller(&stack).await;
    let other = stranger.member_with(&json!({"name": "Eve", "scopes": ["policies:manage"]})).await;
    for what in ["approve", "deny", "cancel"] {
        decide(&other.api, &proposal, what).await.assert_error(404, "not_found");
    }
    assert_eq!(other.api.get("/v1/policies/proposals").await.expect(200)["items"], json!([]));
    let foreign = format!("/v1/policies/proposals?account={}", office.team.account);
    other.api.get(&foreign).await.assert_error(404, "not_found");
    assert_eq!(stack.operator.get(&foreign).await.expect(200)["items"][0]["id"], proposal["id"]);
    stack.restart_dev();
    let bo = bo.at(&stack.urls[0]);
    let pending = bo.api.get("/v1/policies/proposals?status=pending").await.expect(200);
    assert_eq!(pending["items"], json!([proposal]));
    approve(&ada.at(&stack.urls[0]).api, &proposal).await.assert_error(409, "conflict");
    approve(&bo.api, &proposal).await.expect(200);
}

#[tokio::test]
async fn the_command_says_that_it_waits_and_the_second_member_approves_by_the_command_that_it_names() {
    let stack = Stack::build().dev().await;
    let office = Office::open(&stack).await;
    let (ada, bo) = (office.member("Ada").await, office.member("Bo").await);
    let ca = stack.ca();
    let said = |by: &Member, arguments: &[&str]| {
        let output = by.api.cli(&ca, arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = said(&ada, &["policy", "activate", "acme@1.0.0", "--reason", "no searches"]);
    assert!(code == Some(0) && out.contains("nothing is activated until a second member approves it"), "{out}{err}");
    let command = out.lines().last().unwrap().split("stage0 ").nth(1).unwrap();
    // Each member has a connection and a key of its own.
    let (command, connection) = command.split_once(" --").unwrap();
    assert!(connection.ends_with("--key-file FILE"), "{connection}");
    let (code, _, _) = said(&ada, &["policy", "activate", "acme@1.0.0", "--wait"]);
    assert_eq!(code, Some(1), "what waits for a second member is not active");
    let (_, listed, _) = said(&bo, &["policy", "proposals", "--status", "pending"]);
    assert!(listed.contains("acme@1.0.0+") && listed.contains("no searches"), "{listed}");
    let arguments: Vec<&str> = command.split_whitespace().collect();
    let (code, _, err) = said(&ada, &arguments);
    assert!(code == Some(1) && err.contains("somebody else must approve"), "{err}");
    let (code, out, err) = said(&bo, &arguments);
    assert!(code == Some(0) && out.starts_with("approved, and active"), "{out}{err}");
    let (_, all, _) = said(&bo, &["policy", "proposals", "--json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all["items"][0]["status"], json!("approved"));
}
