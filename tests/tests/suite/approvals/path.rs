//! From the deferred check to the one ALLOW, and what a repeated check is answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Stack, Team, two_release_managers};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The answer to a long poll comes as soon as something changes; the machine may be slow.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the issue about the missing approval says beside it.
pub(crate) fn details(answer: &Value) -> Value {
    let issues = answer["issues"].as_array().unwrap();
    let issue = issues.iter().find(|issue| issue["code"] == "APPROVAL_REQUIRED");
    issue.unwrap_or_else(|| panic!("APPROVAL_REQUIRED in {answer:#}"))["details"].clone()
}

/// The vote was refused, and nothing was counted.
#[track_caller]
pub(crate) fn may_not_decide(answer: &Answer) {
    answer.assert_error(409, "conflict");
}

#[tokio::test]
async fn an_action_that_two_members_approve_is_allowed_once() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let (ada, bob) =
        (team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers", "x"]).await);
    let outsider = team.member("Eve", &["interns"]).await;

    let (verdict, answer) = agent.api.verdict(&Api::deployment()).await;
    let approval = answer["approval"].clone();
    assert_eq!((verdict.as_str(), &approval["status"]), ("DEFER", &json!("pending")), "{answer:#}");
    assert_eq!((&approval["quorum"], &approval["groups"]), (&json!(2), &json!(["release-managers"])));
    assert_eq!(approval["action_digest"].as_str().unwrap().len(), 64);
    let id = approval["id"].as_str().unwrap();
    assert_eq!(approval["url"], format!("/v1/approvals/{id}"));
    assert_eq!(details(&answer)["eligible"], 2, "{answer:#}");

    // The same again waits for the same approval, whatever the loop has counted meanwhile.
    let mut again = Api::deployment();
    again["context"]["retry_count"] = json!(1);
    again["context"]["approval_status"] = json!("pending");
    assert_eq!(agent.api.deferred(&again).await["id"], approval["id"]);

    let shown = ada.api.approval(&approval).await.expect(200);
    assert_eq!(shown["action"]["goal"], "Deploy the payments service", "{shown:#}");
    assert_eq!((&shown["status"], &shown["workload"]), (&json!("pending"), &json!(agent.key_id)));
    assert_eq!(shown["request_id"], answer["request_id"]);
    let waiting = tokio::spawn({
        let (api, approval) = (agent.api.clone(), approval.clone());
        async move {
            let mut shown = api.approval(&approval).await.expect(200);
            while shown["status"] == "pending" {
                shown = api.wait(&approval, "30s").await.expect(200);
            }
            shown
        }
    });
    let one = ada.api.approve(&shown).await.expect(200);
    assert_eq!((&one["status"], one["votes"].as_array().unwrap().len()), (&json!("pending"), 1));
    may_not_decide(&outsider.api.approve(&approval).await);
    let began = Instant::now();
    let two = bob.api.approve(&shown).await.expect(200);
    assert_eq!(two["status"], "approved", "{two:#}");
    let noticed = waiting.await.unwrap();
    assert!(began.elapsed() < NOTICE_TIMEOUT, "the long poll returned after {:?}", began.elapsed());
    assert_eq!((&noticed["status"], &noticed["votes"][0]["member_id"]), (&json!("approved"), &json!(ada.id)));

    let (verdict, allowed) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!((verdict.as_str(), &allowed["approval"]["status"]), ("ALLOW", &json!("consumed")), "{allowed:#}");
    assert_eq!(allowed["approval"]["id"], approval["id"]);
    assert_eq!(allowed["meta"]["approval_source"], "approval");
    agent.api.until(&approval, "consumed").await;

    let (verdict, second) = agent.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "it is used up: {second:#}");
    assert_eq!(details(&second)["used_by"], allowed["request_id"], "{second:#}");
    assert_ne!(second["approval"]["id"], approval["id"], "a new one waits for people");

    let used = agent.api.approval(&approval).await.expect(200);
    assert_eq!((&used["status"], &used["used_by"]), (&json!("consumed"), &allowed["request_id"]));
    let reported = agent.api.report(&approval, "succeeded").await.expect(200);
    assert_eq!(reported["outcome"]["status"], "succeeded");
    agent.api.report(&approval, "failed").await.assert_error(409, "conflict");
    let history = ada.api.history(&approval).await;
    let expected =
        ["requested", "voted", "approved", "reserved", "used", "outcome"].map(|one| format!("approval.{one}"));
    assert_eq!(history, expected);
}

#[tokio::test]
async fn a_long_poll_returns_at_once_when_a_member_decides_at_another_gateway() {
    let stack = Stack::build().gateways(2).nats().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await.at(&stack.urls[1]));
    for verdict in ["approved", "denied"] {
        let approval = agent.api.deferred(&Api::deployment_of(verdict)).await;
        let waiting = tokio::spawn({
            let (api, approval) = (agent.api.clone(), approval.clone());
            async move {
                let mut shown = api.wait(&approval, "60s").await.expect(200);
                while shown["status"] == "pending" {
                    shown = api.wait(&approval, "60s").await.expect(200);
                }
                shown["status"].clone()
            }
        });
        let decided = match verdict {
            "approved" => ada.api.approve(&approval).await,
            _ => ada.api.deny(&approval, "no").await,
        };
        decided.expect(200);
        let status = tokio::time::timeout(NOTICE_TIMEOUT, waiting).await.expect("an answer before its time").unwrap();
        assert_eq!(status, verdict);
    }
    for id in ["apr_nothing", "..%2f..", &"9".repeat(3_000), "apr_00000000000000000000000000000000_00000000"] {
        agent.api.get(&format!("/v1/approvals/{id}")).await.assert_error(404, "not_found");
    }
}

#[tokio::test]
async fn the_approvals_id_alone_is_the_action_that_was_deferred() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other) = (team.agent().await, team.agent().await);
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let approval = agent.api.deferred(&Api::deployment()).await;
    let alone = json!({"approval_id": approval["id"]});
    assert_eq!(agent.api.deferred(&alone).await["id"], approval["id"], "not approved yet");
    for member in &members {
        member.api.approve(&approval).await.expect(200);
    }
    // Nothing may stand beside it, and no other workload learns what the action is.
    for (name, value) in [("goal", json!("x")), ("context", json!({})), ("tools", json!([]))] {
        let mut more = alone.clone();
        more[name] = value;
        let refused = agent.api.check(&more).await;
        refused.assert_error(422, "validation_failed");
        assert!(refused.text.contains("approval_id"), "{}", refused.text);
    }
    for bad in [json!(7), json!(""), json!("a b"), json!(null)] {
        agent.api.check(&json!({"approval_id": bad})).await.assert_error(422, "validation_failed");
    }
    other.api.check(&alone).await.assert_error(404, "not_found");
    agent.api.check(&json!({"approval_id": "apr_nothing"})).await.assert_error(404, "not_found");
    let (verdict, allowed) = agent.api.verdict(&alone).await;
    assert_eq!((verdict.as_str(), &allowed["approval"]["id"]), ("ALLOW", &approval["id"]), "{allowed:#}");
    let (verdict, _) = agent.api.verdict(&alone).await;
    assert_eq!(verdict, "DEFER", "once");
}

#[tokio::test]
async fn an_idempotency_key_repeats_the_allow_and_a_deferral_only_while_it_still_stands() {
    let packs = two_release_managers();
    let stack = Stack::build().policies(&packs).dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let members = [team.member("Ada", &["release-managers"]).await, team.member("Bob", &["release-managers"]).await];
    let first = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    let again = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    assert_eq!((&again["request_id"], &again["cached"]), (&first["request_id"], &json!(true)));
    for member in &members {
        member.api.approve(&first["approval"]).await.expect(200);
    }
    // The answer of before is void: the approval that it names is another by now.
    let allowed = agent.api.check_under("k", &Api::deployment()).await.expect(200);
    assert_eq!((&allowed["verdict"], &allowed["cached"]), (&json!("ALLOW"), &json!(false)), "{allowed:#}");
    // The reply was lost: the same key gives the same answer, and uses nothing.
    for _ in 0..3 {
        let again = agent.api.check_under("k", &Api::deployment()).await.expect(200);
        assert_eq!((&again["verdict"], &again["cached"]), (&json!("ALLOW"), &json!(true)), "{again:#}");
        assert_eq!(again["request_id"], allowed["request_id"]);
    }
    let lines = team.admin.decisions("verdict=ALLOW").await;
    assert_eq!(lines.len(), 1, "one ALLOW is recorded");
    // Another key, or none, is another check.
    for answer in [
        agent.api.check_under("other", &Api::deployment()).await.expect(200),
        agent.api.check(&Api::deployment()).await.expect(200),
    ] {
        assert_eq!(answer["verdict"], "DEFER", "{answer:#}");
        assert_eq!(details(&answer)["used_by"], allowed["request_id"], "{answer:#}");
    }
}

#[tokio::test]
async fn one_changed_byte_is_another_action() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let mut body = Api::deployment();
    body["context"]["estimated_cost_usd"] = json!(5);
    body["context"]["record_count"] = json!(3);
    body["context"]["target_resources"] = json!(["payments/1"]);
    body["context"]["nested"] = json!({"deep": [1, {"note": "a"}]});
    body["reviewed"] = json!("a");
    let approval = agent.api.deferred(&body).await;
    let changes = [
        ("/goal", json!("Deploy the payments service ")),
        ("/goal", json!("Deploy the payment\u{455} service")),
        ("/constraints/0", json!("allowed_tools: argo_cd, kubectl")),
        ("/success_criteria/0", json!("deployment completes")),
        ("/environment", json!("development")),
        ("/context/actor_role", json!("admin")),
        ("/context/estimated_cost_usd", json!(5.01)),
        ("/context/record_count", json!(4)),
        ("/context/target_resources/0", json!("payments/2")),
        ("/context/nested/deep/1/note", json!("b")),
        ("/reviewed", json!("b")),
    ];
    let mut digests = vec![approval["action_digest"].clone()];
    for (pointer, value) in changes {
        let mut changed = body.clone();
        *changed.pointer_mut(pointer).unwrap() = value.clone();
        let other = agent.api.deferred(&changed).await;
        assert!(!digests.contains(&other["action_digest"]), "{pointer} {value}");
        assert_ne!(other["id"], approval["id"]);
        digests.push(other["action_digest"].clone());
    }
    // Approved is what was shown, and nothing beside it.
    ada.api.approve(&approval).await.expect(200);
    let mut dearer = body.clone();
    dearer["context"]["estimated_cost_usd"] = json!(5.01);
    assert_eq!(agent.api.verdict(&dearer).await.0, "DEFER");
    // The order of members and the counters of a loop are no part of the action.
    let mut turned = serde_json::Map::new();
    for (name, value) in body.as_object().unwrap().iter().rev() {
        turned.insert(name.clone(), value.clone());
    }
    let mut turned = Value::from(turned);
    for (name, value) in [
        ("current_iteration", json!(7)),
        ("retry_count", json!(2)),
        ("elapsed_seconds", json!(9)),
        ("recent_tools", json!(["argo_cd"])),
        ("cumulative_cost_usd", json!(1.5)),
        ("approval_reason", json!("please")),
        ("loop_state", json!({"retry_count": 2})),
    ] {
        turned["context"][name] = value;
    }
    // No run is named, and `loop_state` without one changes nothing.
    let (verdict, answer) = agent.api.verdict(&turned).await;
    assert_eq!((verdict.as_str(), &answer["approval"]["id"]), ("ALLOW", &approval["id"]), "{answer:#}");
}

#[tokio::test]
async fn only_the_workload_that_asked_can_use_the_approval_and_a_rotated_key_is_the_same_workload() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let (agent, other, ada) = (team.agent().await, team.agent().await, team.member("Ada", &[]).await);
    let approval = agent.api.deferred(&Api::deployment()).await;
    ada.api.approve(&approval).await.expect(200);
    let (verdict, answer) = other.api.verdict(&Api::deployment()).await;
    assert_eq!(verdict, "DEFER", "{answer:#}");
    assert!(answer.to_string().contains("only the one that asked"), "it says why: {answer:#}");
    let rotated = agent.rotated(&stack.operator).await;
    let gone = async || agent.api.check(&Api::harmless()).await.status == 401;
    wait_for("the old key's end", WAIT_TIMEOUT, gone).await;
    let (verdict, answer) = rotated.api.verdict(&Api::deployment()).await;
    assert_eq!((verdict.as_str(), &answer["approval"]["id"]), ("ALLOW", &approval["id"]), "{answer:#}");
}

#[tokio::test]
async fn no_approval_opens_where_something_else_is_missing_as_well() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let mut body = Api::deployment();
    body["constraints"] = json!(["allowed_tools: argo_cd", "require_ticket"]);
    let (verdict, answer) = agent.api.verdict(&body).await;
    assert_eq!((verdict.as_str(), &answer["approval"]), ("DEFER", &json!(null)), "{answer:#}");
    assert!(answer["issues"].to_string().contains("TICKET_REQUIRED"), "{answer:#}");
    let page = team.admin.get("/v1/approvals").await.expect(200);
    assert_eq!(page["items"], json!([]));
    body["context"]["ticket_id"] = json!("OPS-7");
    agent.api.deferred(&body).await;
    // Verdicts that no person is asked about have none either.
    for body in [Api::harmless(), Api::forbidden(), Api::unclear()] {
        let answer = agent.api.check(&body).await.expect(200);
        assert_eq!(answer["approval"], json!(null), "{answer:#}");
    }
}

#[tokio::test]
async fn an_action_that_is_too_long_to_be_read_opens_no_approval_and_says_so() {
    let stack = Stack::build().dev().await;
    let team = Team::verified(&stack).await;
    let agent = team.agent().await;
    let mut body = Api::deployment();
    body["context"]["notes"] = json!((0..40).map(|_| "x".repeat(4_000)).collect::<Vec<_>>());
    let (verdict, answer) = agent.api.verdict(&body).await;
    assert_eq!((verdict.as_str(), &answer["approval"]), ("DEFER", &json!(null)), "{answer:.500}");
    assert!(details(&answer)["approval"].as_str().is_some_and(|why| !why.is_empty()), "{}", details(&answer));
    body["context"]["notes"] = json!((0..20).map(|_| "x".repeat(4_000)).collect::<Vec<_>>());
    agent.api.deferred(&body).await;
}
