//! A hostile asker: somebody who may make keys and invite members, and wants to approve what the own workload asks for.
//!
//! Each way is refused, and beside each stands its harmless neighbour: a person whom the asker did not make approves,
//! and the same check is allowed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Agent, Api, Member, Packs, Stack, Team};

use crate::approvals::path::{details, may_not_decide};

/// Within a second at every gateway; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the asker's own key may do.
const MIGHTY: [&str; 4] = ["approvals:decide", "check", "keys:manage", "members:manage"];

/// A team, the asker, and a member whom the asker did not make.
struct Scene {
    stack: Stack,
    team: Team,
    mal: Member,
    ada: Member,
    _packs: Packs,
}

impl Scene {
    async fn with_rule(annotations: &str) -> Self {
        let packs = Packs::annotated("1.0.0", &[("approval.high_effect", annotations)]);
        let stack = Stack::build().policies(&packs).dev().await;
        let team = Team::verified(&stack).await;
        let mal = team.member_with(&json!({"name": "Mal", "groups": ["release-managers"], "scopes": MIGHTY})).await;
        let ada = team.member("Ada", &["release-managers"]).await;
        Self { stack, team, mal, ada, _packs: packs }
    }

    async fn new() -> Self {
        Self::with_rule("@approvers(\"release-managers\")\n@quorum(\"1\")").await
    }

    /// A workload whose key the asker made.
    async fn puppet(&self) -> Agent {
        self.mal.api.make_agent(&json!({"name": "agent", "scopes": ["check"]})).await
    }

    /// Somebody invited by the asker, with the rights that the asker can give.
    async fn sock(&self, by: &Api) -> Member {
        by.invite(&json!({"name": "Sock", "groups": ["release-managers"], "scopes": MIGHTY})).await
    }

    /// None of these may approve what the agent asks for; Ada may, and then it is allowed.
    async fn only_ada_may(&self, agent: &Agent, others: &[&Member]) {
        let approval = agent.api.deferred(&Api::deployment()).await;
        for other in others {
            may_not_decide(&other.api.approve(&approval).await);
        }
        assert_eq!(agent.api.standing(&approval).await, "pending");
        assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER");
        self.ada.api.approve(&approval).await.expect(200);
        let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
        assert_eq!((verdict.as_str(), &answer["approval"]["id"]), ("ALLOW", &approval["id"]), "{answer:#}");
        agent.api.until(&approval, "consumed").await;
    }
}

fn as_agent(member: &Member) -> Agent {
    Agent { key_id: member.key_id.clone(), api: member.api.clone() }
}

#[tokio::test]
async fn no_member_approves_with_the_key_that_asked_or_one_it_was_rotated_to() {
    let scene = Scene::new().await;
    let own = as_agent(&scene.mal);
    scene.only_ada_may(&own, &[&scene.mal]).await;
    let rotated = own.rotated(&scene.mal.api).await;
    let mal = Member { id: scene.mal.id.clone(), key_id: rotated.key_id.clone(), api: rotated.api.clone() };
    scene.only_ada_may(&rotated, &[&mal]).await;
}

#[tokio::test]
async fn who_made_or_owns_a_workload_does_not_approve_what_it_asks_for() {
    let scene = Scene::new().await;
    scene.only_ada_may(&scene.puppet().await, &[&scene.mal]).await;
    let owned = scene.team.agent_with(&json!({"owner": scene.mal.id})).await;
    scene.only_ada_may(&owned, &[&scene.mal]).await;
    // Nor through a key that makes keys.
    let maker = scene.mal.api.make_agent(&json!({"name": "maker", "scopes": ["check", "keys:manage"]})).await;
    let second = maker.api.make_agent(&json!({"name": "second", "scopes": ["check"]})).await;
    scene.only_ada_may(&second, &[&scene.mal]).await;
    // A workload of somebody else is another matter.
    let others = scene.team.agent().await;
    let approval = others.api.deferred(&Api::deployment()).await;
    scene.mal.api.approve(&approval).await.expect(200);
    assert_eq!(others.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn who_rotates_a_workloads_key_and_so_sees_it_does_not_approve_what_it_asks_for() {
    let scene = Scene::new().await;
    let agent = scene.team.agent().await;
    let taken = agent.rotated(&scene.mal.api).await;
    scene.only_ada_may(&taken, &[&scene.mal]).await;
    // Rotated on by the operator, it is known to the asker no longer, but was asked under the same name.
    let again = taken.rotated(&scene.stack.operator).await;
    scene.only_ada_may(&again, &[]).await;
}

#[tokio::test]
async fn a_second_key_of_the_same_person_is_the_same_person() {
    let scene = Scene::new().await;
    let agent = scene.puppet().await;
    let path = format!("/v1/members/{}/invite", scene.mal.id);
    let invited = scene.stack.operator.post(&path, &json!({})).await.expect(201);
    let second = scene.mal.api.accept(invited["invitation_code"].as_str().unwrap()).await;
    assert_eq!(second.id, scene.mal.id);
    scene.only_ada_may(&agent, &[&second]).await;
    // One person counts once, with two keys too.
    let path = format!("/v1/members/{}/invite", scene.ada.id);
    let invited = scene.stack.operator.post(&path, &json!({})).await.expect(201);
    let again = scene.ada.api.accept(invited["invitation_code"].as_str().unwrap()).await;
    let other = scene.team.agent().await;
    let approval = other.api.deferred(&Api::deployment()).await;
    again.api.approve(&approval).await.expect(200);
    assert_eq!(other.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn members_whom_the_asker_invited_and_those_whom_they_invited_do_not_approve() {
    let scene = Scene::new().await;
    let agent = scene.puppet().await;
    let sock = scene.sock(&scene.mal.api).await;
    let socks_sock = scene.sock(&sock.api).await;
    // The asker takes the code that was meant for somebody.
    let body = json!({"name": "Honest Bob", "groups": ["release-managers"]});
    let invited = scene.mal.api.post("/v1/members", &body).await.expect(201);
    let intercepted = scene.mal.api.accept(invited["invitation_code"].as_str().unwrap()).await;
    scene.only_ada_may(&agent, &[&scene.mal, &sock, &socks_sock, &intercepted]).await;
    // The other way round: what the sock's workload asks for, its maker does not approve.
    let of_sock = sock.api.make_agent(&json!({"name": "agent", "scopes": ["check"]})).await;
    scene.only_ada_may(&of_sock, &[&scene.mal, &sock, &socks_sock, &intercepted]).await;
    // Nor is the thread cut by removing who stands in between.
    scene.mal.api.delete(&format!("/v1/members/{}", sock.id)).await.expect(204);
    scene.only_ada_may(&agent, &[&socks_sock]).await;
}

#[tokio::test]
async fn who_invites_a_member_again_has_had_its_code_and_is_that_member() {
    let scene = Scene::new().await;
    let agent = scene.puppet().await;
    let bob = scene.team.member("Bob", &["release-managers"]).await;
    let invited = scene.mal.api.post(&format!("/v1/members/{}/invite", bob.id), &json!({})).await.expect(201);
    let stolen = scene.mal.api.accept(invited["invitation_code"].as_str().unwrap()).await;
    scene.only_ada_may(&agent, &[&stolen]).await;
}

#[tokio::test]
async fn a_change_of_groups_by_the_asker_makes_no_member_an_approver() {
    let scene = Scene::new().await;
    let agent = scene.puppet().await;
    let (eve, bob) = (scene.team.member("Eve", &["interns"]).await, scene.team.member("Bob", &["interns"]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    let groups = json!({"groups": ["release-managers"]});
    may_not_decide(&eve.api.approve(&approval).await);
    scene.mal.api.patch(&format!("/v1/members/{}", eve.id), &groups).await.expect(200);
    may_not_decide(&eve.api.approve(&approval).await);
    let more = json!({"groups": ["release-managers", "press"]});
    scene.mal.api.patch(&format!("/v1/members/{}", scene.mal.id), &more).await.assert_error(409, "conflict");
    scene.stack.operator.patch(&format!("/v1/members/{}", bob.id), &groups).await.expect(200);
    bob.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn a_key_that_makes_both_agents_and_members_makes_no_approvers_for_its_agents() {
    let scene = Scene::new().await;
    let agent = scene.team.admin.make_agent(&json!({"name": "agent", "scopes": ["check"]})).await;
    let invited = scene.team.admin.invite(&json!({"name": "Sock", "groups": ["release-managers"]})).await;
    scene.only_ada_may(&agent, &[&invited]).await;
    // For a workload that it did not make, its member is a person like others.
    let other = scene.team.agent().await;
    let approval = other.api.deferred(&Api::deployment()).await;
    invited.api.approve(&approval).await.expect(200);
    assert_eq!(other.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn two_members_one_of_whom_made_the_other_are_one_person_where_two_must_approve() {
    let scene = Scene::with_rule("@approvers(\"release-managers\")\n@quorum(\"2\")").await;
    let agent = scene.team.agent().await;
    let sock = scene.sock(&scene.mal.api).await;
    let approval = agent.api.deferred(&Api::deployment()).await;
    scene.mal.api.approve(&approval).await.expect(200);
    let second = sock.api.approve(&approval).await;
    assert!(second.status == 409 || second.body["status"] == "pending", "{}", second.text);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER");
    scene.ada.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn two_puppets_of_one_person_are_one_person_where_two_must_approve() {
    let scene = Scene::with_rule("@approvers(\"release-managers\")\n@quorum(\"2\")").await;
    let agent = scene.team.agent().await;
    let puppets = [scene.sock(&scene.mal.api).await, scene.sock(&scene.mal.api).await];
    let approval = agent.api.deferred(&Api::deployment()).await;
    puppets[0].api.approve(&approval).await.expect(200);
    let second = puppets[1].api.approve(&approval).await;
    assert!(second.status == 409 || second.body["status"] == "pending", "{}", second.text);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER");
    scene.ada.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn no_member_approves_in_the_place_of_somebody_who_may_not() {
    let scene = Scene::new().await;
    let agent = scene.team.agent_with(&json!({"owner": scene.mal.id})).await;
    let (eve, bob) = (scene.team.member("Eve", &["interns"]).await, scene.team.member("Bob", &["interns"]).await);
    let until = Timestamp::from_second((Timestamp::now() + SignedDuration::from_hours(1)).as_second()).unwrap();
    let delegate = async |from: &Member, to: &Member| {
        let body = json!({"to": to.id, "until": until.to_string()});
        from.api.post(&format!("/v1/members/{}/delegate", from.id), &body).await.expect(200);
    };
    let approval = agent.api.deferred(&Api::deployment()).await;
    delegate(&scene.mal, &eve).await;
    may_not_decide(&eve.api.approve(&approval).await);
    // The owner in the place of somebody who may.
    delegate(&scene.ada, &scene.mal).await;
    may_not_decide(&scene.mal.api.approve(&approval).await);
    delegate(&scene.ada, &bob).await;
    let approved = bob.api.approve(&approval).await.expect(200);
    assert_eq!(
        (&approved["status"], &approved["votes"][0]["on_behalf_of"]),
        (&json!("approved"), &json!(scene.ada.id))
    );
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn a_team_of_one_needs_the_operator_to_switch_four_eyes_off_and_still_a_key_of_its_own() {
    let scene = Scene::new().await;
    let team = Team::verified(&scene.stack).await;
    let body = json!({"name": "Solo", "groups": ["release-managers"], "scopes": MIGHTY});
    let solo = team.member_with(&body).await;
    let agent = team.agent_with(&json!({"owner": solo.id})).await;
    let answer = agent.api.check(&Api::deployment()).await.expect(200);
    assert_eq!(details(&answer)["eligible"], 0, "it says at once that nobody can: {answer:#}");
    may_not_decide(&solo.api.approve(&answer["approval"]).await);
    let switch = json!({"four_eyes": false});
    let path = format!("/v1/accounts/{}", team.account);
    solo.api.patch(&path, &switch).await.assert_error(403, "scope_missing");
    team.admin.patch(&path, &switch).await.assert_error(403, "scope_missing");
    team.set(&switch).await;
    let approved = async || solo.api.approve(&answer["approval"]).await.status == 200;
    wait_for("the change at the gateway", NOTICE_TIMEOUT, approved).await;
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    // What the approver's own key asks for, it still does not approve.
    let own = solo.api.deferred(&Api::deployment()).await;
    may_not_decide(&solo.api.approve(&own).await);
    // Back on, a vote of the owner's that was given meanwhile does not count any more.
    let approval = agent.api.deferred(&Api::deployment_of("billing")).await;
    solo.api.approve(&approval).await.expect(200);
    team.set(&json!({"four_eyes": true})).await;
    let deferred = async || {
        let told = details(&agent.api.check(&Api::deployment_of("search")).await.expect(200));
        told["eligible"] == 0
    };
    wait_for("the change at the gateway", NOTICE_TIMEOUT, deferred).await;
    assert_eq!(agent.api.verdict(&Api::deployment_of("billing")).await.0, "DEFER");
}
