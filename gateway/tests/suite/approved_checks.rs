//! Checks that open, name or use an approval.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stage0_contract::{
    Account, ApprovalSource, ApprovalStatus, CheckRequest, EvaluateReply, EventsSettled, FetchAction, FetchedAction,
    GrantId, ManageReply, Refusal, Released, RequestId, SettleEvents, UpdateAccount, Verdict,
};
use stage0_gateway::{Audit, GatewayConfig, PublicUrl};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::approvals::{event, reference};
use crate::failing_log::Appends;
use crate::harness::{Answer, OPERATOR, Stack, TENANT, key, send};

/// Of the account `acc`.
const ACCOUNT: &str = r#"{"done": {"id": "acc", "name": "a", "plan": "free", "created_at": "2026-03-16T12:00:00Z"}}"#;
const DECIDED: &str = include_str!("../../../contract/fixtures/evaluate_reply_approval.json");

/// The reply of an evaluator that opened an approval.
pub(crate) fn deferred() -> EvaluateReply {
    let EvaluateReply::Decided(mut evaluation) = serde_json::from_str(DECIDED).unwrap() else { panic!("not decided") };
    evaluation.approval_source = None;
    EvaluateReply::Decided(evaluation)
}

/// The reply of an evaluator that allowed the action because of an approval.
pub(crate) fn allowed() -> EvaluateReply {
    let EvaluateReply::Decided(mut evaluation) = deferred() else { panic!("the fixture has changed") };
    evaluation.approval_source = Some(ApprovalSource::Approval);
    evaluation.events = vec![event("approval.reserved", 1), event("approval.used", 2)];
    let decision = &mut evaluation.decision;
    (decision.verdict, decision.issues, decision.defer_questions) = (Verdict::Allow, Vec::new(), Vec::new());
    decision.clarifying_questions = Vec::new();
    decision.approval.as_mut().unwrap().status = ApprovalStatus::Consumed;
    EvaluateReply::Decided(evaluation)
}

fn set_reply(stack: &Stack, reply: EvaluateReply) {
    *stack.services.reply.lock().unwrap() = reply;
}

async fn settling(stack: &mut Stack) -> UnboundedReceiver<SettleEvents> {
    stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await
}

#[tokio::test]
async fn an_opened_approval_is_recorded_in_the_decisions_batch_and_links_to_the_public_address() {
    let public = PublicUrl::parse("https://stage0.example.com").unwrap();
    let mut stack = Stack::with(|config| config.public_url = Some(public)).await;
    set_reply(&stack, deferred());
    let mut settled = settling(&mut stack).await;
    let answer = stack.check(&json!({"goal": "deploy the service"})).await.json();
    let url = "https://stage0.example.com/v1/approvals/apr_1";
    assert_eq!((&answer["approval"]["status"], &answer["approval"]["url"]), (&json!("pending"), &json!(url)));
    assert!(answer["meta"].get("approval_source").is_none());
    let lines = stack.lines().await;
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["decision.recorded", "approval.requested"]);
    assert_eq!(lines[0]["recorded_at"], lines[1]["recorded_at"], "one append");
    assert_eq!(lines[0]["chain"]["writer"], lines[1]["chain"]["writer"]);
    assert_eq!(lines[1]["chain"]["sequence"], 2);
    assert_eq!(lines[0]["approval"]["id"], lines[1]["approval_id"], "each leads to the other");
    assert_eq!(settled.recv().await.unwrap().recorded.len(), 1);
    let evaluated = stack.services.evaluated.lock().unwrap().clone().unwrap();
    let asker = evaluated.asker.unwrap();
    assert_eq!((&asker.key_id, asker.can_record, asker.scopes.is_empty()), (key(TENANT).id(), true, true));
    assert_eq!((asker.key_name, asker.groups), (None, None), "this keystore does not tell");

    // The event names the decision; only the decision is found by that id, and listed.
    let id = answer["request_id"].as_str().unwrap();
    let found = stack.get(TENANT, &format!("/v1/decisions/{id}")).await.json();
    assert_eq!(found["verdict"], "DEFER");
    let page = stack.get(TENANT, "/v1/decisions").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_evaluator_gets_the_name_and_the_groups_of_the_callers_key_as_they_are_now() {
    let stack = Stack::start().await;
    let name = Some("refunds-bot".to_owned());
    stack.services.change(TENANT, |identity| identity.key_name.clone_from(&name));
    for groups in [Some(vec!["finance".to_owned(), "support".to_owned()]), Some(Vec::new())] {
        stack.services.change(TENANT, |identity| identity.groups.clone_from(&groups));
        stack.publish_change().await;
        let mut told = None;
        // The notice and the next check travel different ways.
        for _ in 0..1_000 {
            // A check whose caller changes meanwhile is refused.
            let status = stack.check(&json!({"goal": "g"})).await.status.as_u16();
            assert!(matches!(status, 200 | 503), "{status}");
            let Some(evaluated) = stack.services.evaluated.lock().unwrap().take() else { continue };
            let asker = evaluated.asker.unwrap();
            told = Some((asker.key_name, asker.groups));
            if told == Some((name.clone(), groups.clone())) {
                break;
            }
        }
        assert_eq!(told, Some((name.clone(), groups)));
    }
}

#[tokio::test]
async fn a_key_whose_holder_is_not_known_opens_no_approval() {
    let stack = Stack::start().await;
    stack.services.change(TENANT, |identity| identity.holder = None);
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200);
    assert_eq!(stack.services.evaluated.lock().unwrap().clone().unwrap().asker, None);
}

#[tokio::test]
async fn an_allow_by_approval_says_so_and_its_events_follow_the_decision() {
    let mut stack = Stack::start().await;
    set_reply(&stack, allowed());
    let mut settled = settling(&mut stack).await;
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(
        (&answer.json()["verdict"], &answer.json()["meta"]["approval_source"]),
        (&json!("ALLOW"), &json!("approval"))
    );
    let kinds: Vec<_> = stack.lines().await.iter().map(|line| line["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["decision.recorded", "approval.reserved", "approval.used"]);
    let SettleEvents { recorded, released, .. } = settled.recv().await.unwrap();
    let events = [event("approval.reserved", 1), event("approval.used", 2)];
    assert_eq!((recorded, released), (events.iter().map(reference).collect(), None));
}

#[tokio::test]
async fn an_approval_is_free_again_when_its_decision_surely_is_not_recorded_also_under_best_effort() {
    for audit in [Audit::Required, Audit::BestEffort] {
        let mut stack = Stack::with(hurried(audit)).await;
        let mut settled = settling(&mut stack).await;
        set_reply(&stack, allowed());
        stack.log.fail(true);
        let (answer, SettleEvents { recorded, released, .. }) = surely_unrecorded(&stack, &mut settled).await;
        let Released { request_id, approval_id, grant_id } = released.unwrap();
        assert_eq!(request_id, RequestId::parse(answer.header("x-request-id").unwrap()).unwrap());
        assert_eq!((recorded.len(), approval_id.unwrap().as_str(), grant_id), (0, "apr_1", None));
        // What has used no approval is released as the operator chose.
        set_reply(&stack, deferred());
        let answer = stack.check(&json!({"goal": "g"})).await;
        assert_eq!(answer.status, if audit == Audit::Required { 503 } else { 200 });
        assert!(settled.try_recv().is_err(), "nothing was reserved, and nothing is recorded");
    }
}

/// Short, because each append is tried again until it is over.
fn hurried(audit: Audit) -> impl FnOnce(&mut GatewayConfig) {
    move |config| {
        config.audit = audit;
        config.request_budget = Duration::from_millis(500);
    }
}

/// A check whose append fails, and what the evaluator receives before the answer. On a busy machine the failure may be
/// known too late to be certain, and then nothing is sent: so there are up to twenty checks.
async fn surely_unrecorded(stack: &Stack, settled: &mut UnboundedReceiver<SettleEvents>) -> (Answer, SettleEvents) {
    for _ in 0..20 {
        let answer = stack.check(&json!({"goal": "g"})).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
        if let Ok(settle) = settled.try_recv() {
            return (answer, settle);
        }
    }
    panic!("nothing was released");
}

/// As [`allowed`], by a wider grant or by the caller's word.
fn allowed_by(source: ApprovalSource, grant: Option<GrantId>) -> EvaluateReply {
    let EvaluateReply::Decided(mut evaluation) = allowed() else { panic!("the fixture has changed") };
    (evaluation.approval_source, evaluation.events) = (Some(source), Vec::new());
    let approval = evaluation.decision.approval.as_mut().unwrap();
    (approval.id, approval.grant_id) = (None, grant);
    EvaluateReply::Decided(evaluation)
}

#[tokio::test]
async fn a_use_of_a_wider_grant_is_given_back_too_and_the_callers_word_has_nothing_to_give_back() {
    for audit in [Audit::Required, Audit::BestEffort] {
        let mut stack = Stack::with(hurried(audit)).await;
        let mut settled = settling(&mut stack).await;
        stack.log.set(Appends::Failed);
        let grant = GrantId::parse("grt_1").unwrap();
        set_reply(&stack, allowed_by(ApprovalSource::Grant, Some(grant.clone())));
        let (_, settle) = surely_unrecorded(&stack, &mut settled).await;
        let Released { approval_id, grant_id, .. } = settle.released.unwrap();
        assert_eq!((approval_id, grant_id), (None, Some(grant)), "{audit:?}");
        set_reply(&stack, allowed_by(ApprovalSource::Caller, None));
        let answer = stack.check(&json!({"goal": "g"})).await;
        assert_eq!(answer.status, if audit == Audit::Required { 503 } else { 200 }, "{}", answer.text);
        assert!(settled.try_recv().is_err(), "{audit:?}");
    }
}

/// Checks that an ALLOW that is recorded now is the first thing that the evaluator hears of.
async fn only_what_is_recorded_is_settled(stack: &Stack, settled: &mut UnboundedReceiver<SettleEvents>, why: &str) {
    // The release would have been sent before the answer.
    assert!(settled.try_recv().is_err(), "{why}: it may be recorded");
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(answer.status, 200, "{why}: {}", answer.text);
    let SettleEvents { recorded, released, .. } = settled.recv().await.unwrap();
    assert_eq!((recorded.len(), released), (2, None), "{why}");
}

#[tokio::test]
async fn an_approval_stays_used_while_it_is_not_known_whether_its_decision_is_recorded() {
    for audit in [Audit::Required, Audit::BestEffort] {
        for appends in [Appends::Unacknowledged, Appends::Lost, Appends::LostThenFailed] {
            let why = format!("{appends:?} under {audit:?}");
            let mut stack = Stack::with(hurried(audit)).await;
            let mut settled = settling(&mut stack).await;
            set_reply(&stack, allowed());
            stack.log.set(appends);
            let answer = stack.check(&json!({"goal": "g"})).await;
            assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{why}");
            stack.log.set(Appends::Acknowledged);
            let lines = stack.lines().await;
            assert_eq!(lines.len(), if appends == Appends::Unacknowledged { 3 } else { 0 }, "{why}");
            only_what_is_recorded_is_settled(&stack, &mut settled, &why).await;
        }
    }
}

#[tokio::test]
async fn an_approval_stays_used_when_the_log_has_not_answered_in_time() {
    let mut stack = Stack::with(hurried(Audit::Required)).await;
    let mut settled = settling(&mut stack).await;
    set_reply(&stack, allowed());
    let held = stack.log.hold().await;
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    drop(held);
    only_what_is_recorded_is_settled(&stack, &mut settled, "late").await;
}

#[tokio::test]
async fn a_decision_that_used_no_approval_leaves_under_best_effort_while_its_record_is_unknown() {
    let mut stack = Stack::with(hurried(Audit::BestEffort)).await;
    let mut settled = settling(&mut stack).await;
    set_reply(&stack, deferred());
    stack.log.set(Appends::Lost);
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["verdict"]), (200, &json!("DEFER")), "{}", answer.text);
    assert!(settled.try_recv().is_err(), "its event stays in the outbox until it is recorded");
}

#[tokio::test]
async fn an_approval_is_free_again_when_the_key_that_used_it_was_revoked_meanwhile() {
    for audit in [Audit::Required, Audit::BestEffort] {
        let mut stack = Stack::with(|config| config.audit = audit).await;
        let mut settled = settling(&mut stack).await;
        let account = serde_json::from_str::<ManageReply<Account>>(ACCOUNT).unwrap();
        stack.serve::<UpdateAccount>(move |_| account.clone()).await;
        set_reply(&stack, allowed());
        let services = Arc::clone(&stack.services);
        let deciding = services.deciding.lock().await;
        let check = tokio::spawn(send(stack.check_request(&json!({"goal": "g"}))));
        while stack.services.evaluations() == 0 {
            tokio::task::yield_now().await;
        }
        services.revoke(TENANT);
        // The answer to this one comes once the account's cached keys are invalid.
        let updated = stack.patch(OPERATOR, "/v1/accounts/acc", &json!({"four_eyes": false})).await;
        assert_eq!(updated.status, 200, "{}", updated.text);
        drop(deciding);
        let answer = check.await.unwrap();
        assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{audit:?}");
        let SettleEvents { recorded, released, .. } = settled.recv().await.unwrap();
        assert_eq!((recorded.len(), released.unwrap().approval_id.unwrap().as_str()), (0, "apr_1"), "{audit:?}");
    }
}

#[tokio::test]
async fn an_approvals_id_stands_alone() {
    let mut stack = Stack::start().await;
    let mut fetched = stack.serve::<FetchAction>(|_| ManageReply::Refused(Refusal::NotFound)).await;
    for body in [
        json!({"approval_id": "apr_1", "goal": "g"}),
        json!({"approval_id": "apr_1", "debug_store_input": true}),
        json!({"approval_id": 1}),
        json!({"approval_id": "a.b"}),
        json!({"approval_id": null}),
    ] {
        assert_eq!(stack.check(&body).await.bad_fields(), ["approval_id"], "{body}");
    }
    assert!(fetched.try_recv().is_err());
    let foreign = stack.check(&json!({"approval_id": "apr_1"})).await;
    assert_eq!(foreign.refusal(), (404, "not_found".to_owned()));
    let FetchAction { account, actor, id } = fetched.recv().await.unwrap();
    assert_eq!((account.as_str(), id.as_str(), &actor.key_id), ("acc", "apr_1", key(TENANT).id()));
    assert_eq!(stack.services.evaluations(), 0);
}

#[tokio::test]
async fn the_action_of_an_approval_is_decided_as_if_it_had_been_sent() {
    let mut stack = Stack::start().await;
    settling(&mut stack).await;
    set_reply(&stack, allowed());
    let action =
        json!({"goal": "deploy", "constraints": ["approval required"], "context": {"environment": "prod"}, "x": 1});
    let request = CheckRequest::parse(action.clone()).unwrap();
    let sealed = request.clone();
    stack.serve::<FetchAction>(move |_| ManageReply::Done(FetchedAction { request: sealed.clone() })).await;
    let sent = stack.check(&action).await.json();
    let named = stack.check(&json!({"approval_id": "apr_1"})).await.json();
    assert_eq!(stack.services.evaluated.lock().unwrap().clone().unwrap().request, request);
    assert_eq!((&sent["task_hash"], &sent["meta"]), (&named["task_hash"], &named["meta"]));
}

#[tokio::test]
async fn an_approved_action_is_refused_where_the_account_now_asks_for_a_run_or_has_no_pro() {
    let mut stack = Stack::start().await;
    let request = CheckRequest::parse(json!({"goal": "deploy", "pro": true})).unwrap();
    stack.serve::<FetchAction>(move |_| ManageReply::Done(FetchedAction { request: request.clone() })).await;
    let without_pro = stack.check(&json!({"approval_id": "apr_1"})).await;
    assert_eq!(without_pro.refusal(), (402, "plan_required".to_owned()));
    let mut stack = Stack::start().await;
    let request = CheckRequest::parse(json!({"goal": "deploy"})).unwrap();
    stack.serve::<FetchAction>(move |_| ManageReply::Done(FetchedAction { request: request.clone() })).await;
    stack.services.change(TENANT, |identity| identity.require_run_id = true);
    let without_run = stack.check(&json!({"approval_id": "apr_1"})).await;
    assert_eq!(without_run.bad_fields(), ["approval_id"]);
}
