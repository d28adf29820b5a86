//! Who must approve: groups, several rules at once, too few people, escalation, delegation, removed members and systems
//! outside.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, MovedClock, Packs, Stack, Team, two_release_managers};

use super::path::{details, may_not_decide};

const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Within a second at every gateway; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

fn in_hours(hours: i64) -> String {
    let later = Timestamp::now() + SignedDuration::from_hours(hours);
    Timestamp::from_second(later.as_second()).unwrap().to_string()
}

#[tokio::test]
async fn where_too_few_people_may_decide_the_answer_says_so_at_once() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let ada = team.member("Ada", &["release-managers"]).await;
    team.member("Eve", &["interns"]).await;
    let answer = agent.api.check(&Api::deployment()).await.expect(200);
    let told = details(&answer);
    assert_eq!((&told["eligible"], &told["quorum"]), (&json!(1), &json!(2)), "{told:#}");
    assert!(answer["approval"].is_object(), "somebody may join in time: {answer:#}");
    ada.api.approve(&answer["approval"]).await.expect(200);
    // An invited member has no key yet, and counts when there is one.
    let body = json!({"account": team.account, "name": "Bob", "groups": ["release-managers"]});
    let invited = stack.operator.post("/v1/members", &body).await.expect(201);
    assert_eq!(details(&agent.api.check(&Api::deployment()).await.expect(200))["eligible"], 1);
    let bob = stack.operator.accept(invited["invitation_code"].as_str().unwrap()).await;
    let both = async || details(&agent.api.check(&Api::deployment()).await.expect(200))["eligible"] == 2;
    wait_for("the new member", NOTICE_TIMEOUT, both).await;
    bob.api.approve(&answer["approval"]).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn the_terms_of_all_rules_that_defer_must_be_met() {
    let rules = [
        ("approval.high_effect", "@approvers(\"release-managers\")\n@quorum(\"1\")"),
        ("approval.communication", "@approvers(\"press\")\n@quorum(\"1\")"),
    ];
    let packs = Packs::annotated("1.0.0", &rules);
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let (ada, bob) = (team.member("Ada", &["release-managers"]).await, team.member("Bob", &["press"]).await);
    let mut body = Api::deployment();
    body["side_effects"] = json!(["deploy", "notification"]);
    let approval = agent.api.deferred(&body).await;
    assert_eq!(approval["groups"], json!(["press", "release-managers"]), "{approval:#}");
    assert_eq!(ada.api.approve(&approval).await.expect(200)["status"], "pending");
    assert_eq!(agent.api.verdict(&body).await.0, "DEFER");
    assert_eq!(bob.api.approve(&approval).await.expect(200)["status"], "approved");
    assert_eq!(agent.api.verdict(&body).await.0, "ALLOW");
}

#[tokio::test]
async fn votes_count_with_the_groups_that_their_members_have_when_it_is_used() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let members = [
        team.member("Ada", &["release-managers"]).await,
        team.member("Bob", &["release-managers"]).await,
        team.member("Cyd", &["release-managers"]).await,
    ];
    let approval = agent.api.deferred(&Api::deployment()).await;
    for member in &members[..2] {
        member.api.approve(&approval).await.expect(200);
    }
    let groups = |groups: Value| json!({"groups": groups});
    let path = |member: &str| format!("/v1/members/{member}");
    stack.operator.patch(&path(&members[0].id), &groups(json!(["interns"]))).await.expect(200);
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert_eq!(answer["approval"]["id"], approval["id"], "it waits for people again: {answer:#}");
    assert_eq!(agent.api.standing(&approval).await, "pending");
    // A removed member's vote does not count either, and a third one's does.
    members[2].api.approve(&approval).await.expect(200);
    stack.operator.delete(&path(&members[1].id)).await.expect(204);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER");
    stack.operator.patch(&path(&members[0].id), &groups(json!(["release-managers"]))).await.expect(200);
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    // Either the earlier vote counts again or it must be given again: never without two members of the group.
    if verdict == "DEFER" {
        assert_eq!(answer["approval"]["id"], approval["id"], "{answer:#}");
        members[0].api.approve(&approval).await.expect(200);
        assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    }
}

#[tokio::test]
async fn a_removed_member_decides_nothing_any_more() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada, bob) = (team.agent().await, team.member("Ada", &[]).await, team.member("Bob", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    stack.operator.delete(&format!("/v1/members/{}", ada.id)).await.expect(204);
    let refused = async || ada.api.approve(&approval).await.status == 401;
    wait_for("the end of the key", NOTICE_TIMEOUT, refused).await;
    assert_eq!(agent.api.standing(&approval).await, "pending");
    bob.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn without_a_decision_a_second_group_may_as_well() {
    let clock = MovedClock::ahead(0);
    let annotations = "@approvers(\"release-managers\")\n@quorum(\"1\")\n@approve_within(\"2h\")\n\
        @escalate_after(\"30m\")\n@escalate_to(\"duty-managers\")";
    let packs = Packs::annotated("1.0.0", &[("approval.high_effect", annotations)]);
    let stack = Stack::build().policies(&packs).with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let (_ada, duty) = (team.member("Ada", &["release-managers"]).await, team.member("Dan", &["duty-managers"]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    may_not_decide(&duty.api.approve(&approval).await);
    clock.set(31 * 60);
    let escalated = async || agent.api.history(&approval).await.contains(&"approval.escalated".to_owned());
    wait_for("the escalation", MAINTENANCE_TIMEOUT, escalated).await;
    assert_eq!(duty.api.approve(&approval).await.expect(200)["status"], "approved");
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn a_member_who_is_away_is_stood_in_for_until_a_time() {
    let clock = MovedClock::ahead(0);
    let annotations = "@approvers(\"release-managers\")\n@quorum(\"1\")\n@approve_within(\"12h\")";
    let packs = Packs::annotated("1.0.0", &[("approval.high_effect", annotations)]);
    let stack = Stack::build().policies(&packs).with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let (ada, bob) = (team.member("Ada", &["release-managers"]).await, team.member("Bob", &["interns"]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    may_not_decide(&bob.api.approve(&approval).await);
    let path = format!("/v1/members/{}/delegate", ada.id);
    let delegate = json!({"to": bob.id, "until": in_hours(2)});
    bob.api.post(&path, &delegate).await.assert_error(403, "scope_missing");
    let shown = ada.api.post(&path, &delegate).await.expect(200);
    assert_eq!(shown["delegate"]["to"], json!(bob.id));
    let approved = bob.api.approve(&approval).await.expect(200);
    assert_eq!(approved["status"], "approved");
    assert_eq!(approved["votes"][0]["on_behalf_of"], json!(ada.id));
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    agent.api.until(&approval, "consumed").await;
    // Afterwards no more.
    let approval = agent.api.deferred(&Api::deployment()).await;
    clock.creep(3 * 3_600, &ada.api).await;
    may_not_decide(&bob.api.approve(&approval).await);
    ada.api.approve(&approval).await.expect(200);
}

#[tokio::test]
async fn a_reason_is_demanded_where_the_policy_says_so() {
    let annotations = "@quorum(\"1\")\n@approval_reason(\"required\")";
    let packs = Packs::annotated("1.0.0", &[("approval.high_effect", annotations)]);
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    let path = format!("/v1/approvals/{}/approve", approval["id"].as_str().unwrap());
    let bare = json!({"action_digest": approval["action_digest"]});
    ada.api.post(&path, &bare).await.assert_error(422, "validation_failed");
    ada.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn a_system_outside_registers_an_approval_with_its_evidence() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let body = json!({"account": team.account, "name": "tickets", "scopes": ["approvals:grant"]});
    let tickets = stack.operator.make_agent(&body).await;
    let approval = agent.api.deferred(&Api::deployment()).await;
    let path = format!("/v1/approvals/{}/register", approval["id"].as_str().unwrap());
    let register = |names: Value| {
        json!({"action_digest": approval["action_digest"], "approved_by": names,
            "evidence": "https://tickets.example/CHG-12"})
    };
    // No other caller may, and an account's key cannot give the scope on.
    let ada = team.member("Ada", &["release-managers"]).await;
    for refused in [&agent.api, &ada.api] {
        refused.post(&path, &register(json!(["a", "b"]))).await.assert_error(403, "scope_missing");
    }
    tickets.api.post(&path, &register(json!([]))).await.assert_error(422, "validation_failed");
    let one = tickets.api.post(&path, &register(json!(["ops-lead"]))).await.expect(200);
    assert_eq!(one["status"], "pending", "one of two: {one:#}");
    // The same person counts once there as well, however the name is written.
    tickets.api.post(&path, &register(json!([" OPS-Lead", "cto"]))).await.assert_error(409, "conflict");
    let two = tickets.api.post(&path, &register(json!(["cto"]))).await.expect(200);
    assert_eq!(two["status"], "approved", "{two:#}");
    assert!(two["votes"].to_string().contains("https://tickets.example/CHG-12"), "{two:#}");
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}
