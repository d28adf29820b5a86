//! When a recorded decision is given again under its `Idempotency-Key`, and when it is decided again.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stage0_contract::{
    Approval, ApprovalStatus, CheckRequest, CoveredByStop, CoveredByStopReply, EvaluateReply, EventsSettled,
    FetchAction, FetchedAction, Grant, Grants, ListGrants, ManageReply, Refusal, RequestId, SettleEvents, ShowApproval,
};

use crate::approvals::changed;
use crate::approved_checks::{allowed, deferred};
use crate::harness::{Answer, Stack, TENANT, send};
use crate::stops::stop;

const GRANTS: &str = include_str!("../../../contract/fixtures/grants.json");

async fn repeated(stack: &Stack, body: &Value) -> Answer {
    send(stack.check_request(body).header("idempotency-key", "once")).await
}

/// A stack whose evaluator answers so, and that shows an approval as the test says.
async fn with_approval(mut reply: EvaluateReply) -> (Stack, Arc<Mutex<Option<Approval>>>) {
    let mut stack = Stack::start().await;
    if let EvaluateReply::Decided(evaluation) = &mut reply {
        evaluation.decision.policy_version = active();
    }
    *stack.services.reply.lock().unwrap() = reply;
    stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    let shown: Arc<Mutex<Option<Approval>>> = Arc::default();
    let showing = Arc::clone(&shown);
    stack
        .serve::<ShowApproval>(move |_| {
            let approval = showing.lock().unwrap().clone();
            approval.map_or(ManageReply::Refused(Refusal::NotFound), ManageReply::Done)
        })
        .await;
    (stack, shown)
}

fn active() -> stage0_contract::PolicyVersion {
    let status = include_str!("../../../contract/fixtures/evaluator_status_reply.json");
    serde_json::from_str::<stage0_contract::EvaluatorStatusReply>(status).unwrap().active
}

fn approval(status: ApprovalStatus, used_by: Option<RequestId>) -> Option<Approval> {
    Some(Approval { status, used_by, ..changed().approval })
}

#[tokio::test]
async fn a_defer_is_given_again_until_its_approval_changes_its_state() {
    let (stack, shown) = with_approval(deferred()).await;
    let body = json!({"goal": "g"});
    *shown.lock().unwrap() = approval(ApprovalStatus::Pending, None);
    let first = repeated(&stack, &body).await.json();
    let again = repeated(&stack, &body).await.json();
    assert_eq!((&again["request_id"], &again["cached"]), (&first["request_id"], &json!(true)));
    assert_eq!(stack.services.evaluations(), 1);
    *shown.lock().unwrap() = approval(ApprovalStatus::Approved, None);
    let decided_again = repeated(&stack, &body).await.json();
    assert_ne!(decided_again["request_id"], first["request_id"]);
    assert_eq!((stack.services.evaluations(), &decided_again["cached"]), (2, &json!(false)));
    *shown.lock().unwrap() = None;
    assert_ne!(
        repeated(&stack, &body).await.json()["request_id"],
        decided_again["request_id"],
        "an approval that is gone"
    );
}

#[tokio::test]
async fn an_allow_is_given_again_while_its_own_check_stands_as_the_one_that_used_the_approval() {
    let (stack, shown) = with_approval(allowed()).await;
    let body = json!({"goal": "g"});
    let first = repeated(&stack, &body).await.json();
    let id = RequestId::parse(first["request_id"].as_str().unwrap()).unwrap();
    for status in [ApprovalStatus::Consumed, ApprovalStatus::Reserved] {
        *shown.lock().unwrap() = approval(status, Some(id));
        assert_eq!(repeated(&stack, &body).await.json()["request_id"], first["request_id"], "{status:?}");
    }
    // A person has opened it again.
    *shown.lock().unwrap() = approval(ApprovalStatus::Approved, None);
    let second = repeated(&stack, &body).await.json();
    assert_ne!(second["request_id"], first["request_id"]);
    let other = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
    *shown.lock().unwrap() = approval(ApprovalStatus::Consumed, Some(other));
    assert_ne!(repeated(&stack, &body).await.json()["request_id"], second["request_id"], "another check used it");
}

#[tokio::test]
async fn whether_an_approval_has_changed_must_be_known() {
    let (stack, _) = {
        let mut stack = Stack::start().await;
        let EvaluateReply::Decided(mut evaluation) = deferred() else { panic!("the fixture has changed") };
        evaluation.decision.policy_version = active();
        *stack.services.reply.lock().unwrap() = EvaluateReply::Decided(evaluation);
        stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
        stack.serve::<ShowApproval>(|_| ManageReply::Failed).await;
        (stack, ())
    };
    let body = json!({"goal": "g"});
    assert_eq!(repeated(&stack, &body).await.status, 200);
    assert_eq!(repeated(&stack, &body).await.refusal(), (503, "unavailable".to_owned()));
    assert_eq!(stack.services.evaluations(), 1);
}

#[tokio::test]
async fn an_allow_by_a_wider_grant_is_given_again_until_the_grant_is_revoked() {
    let mut reply = allowed();
    let ManageReply::Done(Grants { items }) = serde_json::from_str(GRANTS).unwrap() else { panic!("no grants") };
    let grant: Grant = items[0].clone();
    if let EvaluateReply::Decided(evaluation) = &mut reply {
        let approval = evaluation.decision.approval.as_mut().unwrap();
        (approval.id, approval.grant_id) = (None, Some(grant.id.clone()));
    }
    let (mut stack, _) = with_approval(reply).await;
    let revoked = Arc::new(Mutex::new(None));
    let revoking = Arc::clone(&revoked);
    stack
        .serve::<ListGrants>(move |_| {
            let grant = Grant { revoked_at: *revoking.lock().unwrap(), ..grant.clone() };
            ManageReply::Done(Grants { items: vec![grant] })
        })
        .await;
    let body = json!({"goal": "g"});
    let first = repeated(&stack, &body).await.json();
    assert_eq!(repeated(&stack, &body).await.json()["request_id"], first["request_id"]);
    *revoked.lock().unwrap() = Some(jiff::Timestamp::now());
    assert_ne!(repeated(&stack, &body).await.json()["request_id"], first["request_id"]);
}

#[tokio::test]
async fn a_decision_is_not_given_again_once_a_stop_covers_the_check() {
    let mut stack = Stack::start().await;
    let covered = Arc::new(Mutex::new(false));
    let covering = Arc::clone(&covered);
    let mut asked =
        stack.serve::<CoveredByStop>(move |_| CoveredByStopReply { is_covered: *covering.lock().unwrap() }).await;
    let body = json!({"goal": "g", "tools": ["psql"]});
    let first = repeated(&stack, &body).await.json();
    assert_eq!(repeated(&stack, &body).await.json()["request_id"], first["request_id"]);
    assert!(asked.try_recv().is_err(), "an account without stops costs nothing more");
    stack.services.change(TENANT, |identity| identity.rules.stops = vec![stop("environment", Some("production"))]);
    stack.publish_change().await;
    // The notice and the next check travel different ways.
    let mut again = repeated(&stack, &body).await;
    for _ in 0..1_000 {
        if asked.try_recv().is_ok() {
            break;
        }
        again = repeated(&stack, &body).await;
    }
    assert_eq!(again.json()["request_id"], first["request_id"], "another environment's stop");
    repeated(&stack, &body).await;
    let question = asked.recv().await.unwrap();
    assert_eq!((question.request.tools, question.asker.rules.stops.len()), (vec!["psql".to_owned()], 1));
    *covered.lock().unwrap() = true;
    assert_ne!(repeated(&stack, &body).await.json()["request_id"], first["request_id"]);
}

#[tokio::test]
async fn a_check_by_approval_id_is_given_again_without_its_action() {
    let (mut stack, shown) = with_approval(allowed()).await;
    let request = CheckRequest::parse(json!({"goal": "deploy"})).unwrap();
    let mut fetched =
        stack.serve::<FetchAction>(move |_| ManageReply::Done(FetchedAction { request: request.clone() })).await;
    let body = json!({"approval_id": "apr_1"});
    let first = repeated(&stack, &body).await.json();
    let id = RequestId::parse(first["request_id"].as_str().unwrap()).unwrap();
    *shown.lock().unwrap() = approval(ApprovalStatus::Consumed, Some(id));
    assert_eq!(repeated(&stack, &body).await.json()["request_id"], first["request_id"]);
    assert!(fetched.recv().await.is_some() && fetched.try_recv().is_err());
    assert_eq!(stack.services.evaluations(), 1);
}
