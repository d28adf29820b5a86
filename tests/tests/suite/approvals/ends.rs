//! How approvals end without being used: denied, expired, cancelled, outrun by another policy; and how a used one is
//! opened again.

use std::time::Duration;

use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, MovedClock, Packs, Stack, TWO_RELEASE_MANAGERS, Team};

use super::path::{details, may_not_decide};

/// Gateways look for approvals that are past their time every five seconds.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(30);
const HOUR: i64 = 3_600;

#[tokio::test]
async fn a_denied_action_is_deny_for_an_hour_and_then_asks_again() {
    let clock = MovedClock::ahead(0);
    let stack = Stack::build().with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada, bob) = (team.agent().await, team.member("Ada", &[]).await, team.member("Bob", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    // No word, no denial.
    ada.api.deny(&approval, "").await.assert_error(422, "validation_failed");
    ada.api.deny(&approval, &"x".repeat(1_001)).await.assert_error(422, "validation_failed");
    let denied = ada.api.deny(&approval, "not on a Friday").await.expect(200);
    assert_eq!((&denied["status"], &denied["votes"][0]["approve"]), (&json!("denied"), &json!(false)));
    bob.api.approve(&approval).await.assert_error(409, "conflict");
    bob.api.deny(&approval, "me too").await.assert_error(409, "conflict");
    for _ in 0..2 {
        let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
        assert_eq!((verdict.as_str(), &answer["approval"]), ("DENY", &json!(null)), "{answer:#}");
        assert!(answer["issues"].to_string().contains("APPROVAL_STATUS_INVALID"), "{answer:#}");
    }
    // Another action is not meant, nor is the same one of another workload's run.
    agent.api.deferred(&Api::deployment_of("billing")).await;
    assert_eq!(agent.api.standing(&approval).await, "denied");
    clock.creep(HOUR + 60, &ada.api).await;
    let next = agent.api.deferred(&Api::deployment()).await;
    assert_ne!(next["id"], approval["id"]);
    ada.api.approve(&next).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn an_approval_expires_before_and_after_it_is_given_and_a_timeout_is_no_denial() {
    let clock = MovedClock::ahead(0);
    let packs = Packs::annotated(
        "1.0.0",
        &[("approval.high_effect", "@quorum(\"1\")\n@approve_within(\"1h\")\n@approval_valid_for(\"15m\")")],
    );
    let stack = Stack::build().policies(&packs).with_clock(&clock).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    // No member decides in time.
    let approval = agent.api.deferred(&Api::deployment()).await;
    clock.creep(HOUR + 60, &ada.api).await;
    ada.api.approve(&approval).await.assert_error(409, "conflict");
    wait_for("the expiry", MAINTENANCE_TIMEOUT, async || agent.api.standing(&approval).await == "expired").await;
    let shown = ada.api.approval(&approval).await.expect(200);
    assert_eq!((&shown["votes"], &shown["usable_until"]), (&json!([]), &json!(null)), "no person said no: {shown:#}");
    let recorded = async || ada.api.history(&approval).await == ["approval.requested", "approval.expired"];
    wait_for("its line", MAINTENANCE_TIMEOUT, recorded).await;

    // It is approved, and not used in time.
    let approval = agent.api.deferred(&Api::deployment()).await;
    let approved = ada.api.approve(&approval).await.expect(200);
    assert_eq!(approved["status"], "approved");
    clock.creep(HOUR + 60 + 16 * 60, &ada.api).await;
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert_ne!(answer["approval"]["id"], approval["id"], "it must be asked for again");
    assert_eq!(agent.api.standing(&approval).await, "expired");
    // And in time it is used.
    ada.api.approve(&answer["approval"]).await.expect(200);
    clock.creep(HOUR + 60 + 30 * 60, &ada.api).await;
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
}

#[tokio::test]
async fn an_approval_is_cancelled_by_its_workload_or_an_approver_and_by_no_other_caller() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other, ada) = (team.agent().await, team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    other.api.cancel(&approval).await.assert_error(404, "not_found");
    let cancelled = agent.api.cancel(&approval).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    agent.api.cancel(&approval).await.assert_error(409, "conflict");
    ada.api.approve(&approval).await.assert_error(409, "conflict");
    // An approved one too, by who approved it: it can no longer be used.
    let approval = agent.api.deferred(&Api::deployment()).await;
    ada.api.approve(&approval).await.expect(200);
    ada.api.cancel(&approval).await.expect(200);
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert_ne!(answer["approval"]["id"], approval["id"]);
    ada.api.approve(&answer["approval"]).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    ada.api.cancel(&answer["approval"]).await.assert_error(409, "conflict");
}

#[tokio::test]
async fn a_used_approval_is_opened_again_by_a_member_with_a_reason_and_used_once_more() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    ada.api.reopen(&approval, "nothing was used").await.assert_error(409, "conflict");
    ada.api.approve(&approval).await.expect(200);
    ada.api.reopen(&approval, "nothing was used").await.assert_error(409, "conflict");
    let (verdict, first) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "ALLOW");
    agent.api.until(&approval, "consumed").await;
    agent.api.reopen(&approval, "mine").await.assert_error(403, "scope_missing");
    ada.api.reopen(&approval, "").await.assert_error(422, "validation_failed");
    // The check could still be on its way.
    let busy = ada.api.reopen(&approval, "the reply was lost, and nothing ran").await;
    busy.assert_error(409, "conflict");
    assert!(busy.text.contains("try again in"), "{}", busy.text);
    wait_for("the check is surely over", Duration::from_secs(60), async || {
        ada.api.reopen(&approval, "the reply was lost, and nothing ran").await.status == 200
    })
    .await;
    let reopened = agent.api.approval(&approval).await.expect(200);
    assert_eq!((&reopened["status"], &reopened["used_by"]), (&json!("approved"), &json!(null)), "{reopened:#}");
    let (verdict, second) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!((verdict.as_str(), &second["approval"]["id"]), ("ALLOW", &approval["id"]), "{second:#}");
    assert_ne!(second["request_id"], first["request_id"]);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "DEFER");
    agent.api.until(&approval, "consumed").await;
    let history = ada.api.history(&approval).await;
    assert!(history.contains(&"approval.reopened".to_owned()), "{history:?}");
    assert_eq!(history.iter().filter(|one| *one == "approval.used").count(), 2, "{history:?}");
}

#[tokio::test]
async fn deciding_twice_or_with_another_digest_is_refused_and_counts_nothing() {
    let packs = Packs::annotated("1.0.0", &[("approval.high_effect", "@quorum(\"2\")")]);
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada, bob) = (team.agent().await, team.member("Ada", &[]).await, team.member("Bob", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    let mut other = approval.clone();
    other["action_digest"] = agent.api.deferred(&Api::deployment_of("billing")).await["action_digest"].clone();
    let refused = ada.api.approve(&other).await;
    refused.assert_error(409, "conflict");
    ada.api.deny(&other, "no").await.assert_error(409, "conflict");
    for bad in [json!(null), json!(""), json!("00"), json!(7)] {
        other["action_digest"] = bad;
        ada.api.approve(&other).await.assert_error(422, "validation_failed");
    }
    ada.api.approve(&approval).await.expect(200);
    may_not_decide(&ada.api.approve(&approval).await);
    let shown = ada.api.approval(&approval).await.expect(200);
    assert_eq!((&shown["status"], shown["votes"].as_array().unwrap().len()), (&json!("pending"), 1), "{shown:#}");
    bob.api.approve(&approval).await.expect(200);
    assert_eq!(agent.api.standing(&approval).await, "approved");
}

#[tokio::test]
async fn under_another_policy_an_approval_is_of_no_use() {
    let packs = Packs::annotated("1.0.0", &[("approval.high_effect", TWO_RELEASE_MANAGERS)]);
    packs.add("2.0.0", &[("approval.high_effect", "@quorum(\"1\")")]);
    let mut stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let approval = agent.api.deferred(&Api::deployment()).await;
    for member in &members {
        member.api.approve(&approval).await.expect(200);
    }
    stack.decide_by(&packs, "2.0.0");
    stack.restart_dev();
    let (agent, ada) = (agent.at(&stack.urls[0]), members[0].at(&stack.urls[0]));
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert_ne!(answer["approval"]["action_digest"], approval["action_digest"]);
    assert_eq!(answer["approval"]["quorum"], 1);
    ada.api.approve(&answer["approval"]).await.expect(200);
    assert_eq!(agent.api.verdict(&Api::deployment()).await.0, "ALLOW");
    // By the policy of before it is what it was.
    stack.decide_by(&packs, "1.0.0");
    stack.restart_dev();
    let agent = agent.at(&stack.urls[0]);
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!((verdict.as_str(), &answer["approval"]["id"]), ("ALLOW", &approval["id"]), "{answer:#}");
}

#[tokio::test]
async fn at_most_twenty_approvals_of_a_key_wait_at_a_time() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other, ada) = (team.agent().await, team.agent().await, team.member("Ada", &[]).await);
    let mut waiting = Vec::new();
    for number in 0..20 {
        waiting.push(agent.api.deferred(&Api::deployment_of(&format!("number {number}"))).await);
    }
    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!((verdict.as_str(), &answer["approval"]), ("DEFER", &json!(null)), "{answer:#}");
    let why = details(&answer)["approval"].as_str().unwrap().to_owned();
    assert!(why.contains("20"), "{why}");
    // Rotating the key frees nothing; another workload is not held back; one that was there is found again.
    let agent = agent.rotated(&stack.operator).await;
    assert_eq!(agent.api.check(&Api::deployment()).await.expect(200)["approval"], json!(null));
    other.api.deferred(&Api::deployment_of("other")).await;
    let again = agent.api.deferred(&Api::deployment_of("number 7")).await;
    assert_eq!(again["id"], waiting[7]["id"]);
    ada.api.deny(&waiting[0], "too many").await.expect(200);
    agent.api.deferred(&Api::deployment()).await;
}
