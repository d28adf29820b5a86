//! Outcomes of allowed actions: reported, recorded, and shown with their decisions.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use stage0_contract::{
    ApprovalSource, EvaluateReply, EventsSettled, ManageReply, OutcomeReported, OutcomeStatus, Refusal,
    ReportDecisionOutcome, RequestId, Scope, SettleEvents,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::approved_checks::allowed;
use crate::failing_log::Appends;
use crate::harness::{Answer, READER, Stack, TENANT, key};

const REPORTED: &str = include_str!("../../../contract/fixtures/outcome_reported.json");
/// Of no decision in the log.
const UNKNOWN: &str = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";

pub(crate) fn reported() -> OutcomeReported {
    let reply: ManageReply<OutcomeReported> = serde_json::from_str(REPORTED).unwrap();
    let ManageReply::Done(reported) = reply else { panic!("the fixture has changed") };
    reported
}

/// What the evaluator answers to a check: an ALLOW that used an approval, as its source says.
pub(crate) fn allow(stack: &Stack, source: Option<ApprovalSource>) {
    let EvaluateReply::Decided(mut evaluation) = allowed() else { panic!("the fixture has changed") };
    (evaluation.events, evaluation.approval_source) = (Vec::new(), source);
    if source.is_none() {
        evaluation.decision.approval = None;
    }
    *stack.services.reply.lock().unwrap() = EvaluateReply::Decided(evaluation);
}

/// A stack whose tenant may report outcomes.
async fn start(change: impl FnOnce(&mut stage0_gateway::GatewayConfig)) -> Stack {
    let mut stack = Stack::with(change).await;
    stack.services.change(TENANT, |identity| {
        identity.scopes.insert(Scope::OutcomesReport);
    });
    stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    stack
}

async fn serving(stack: &mut Stack, reply: ManageReply<OutcomeReported>) -> UnboundedReceiver<ReportDecisionOutcome> {
    stack.serve::<ReportDecisionOutcome>(move |_| reply.clone()).await
}

async fn checked(stack: &Stack) -> String {
    let answer = stack.check(&json!({"goal": "deploy the service"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["request_id"].as_str().unwrap().to_owned()
}

async fn report(stack: &Stack, id: &str, body: Value) -> Answer {
    stack.post(TENANT, &format!("/v1/decisions/{id}/outcome"), &body).await
}

#[tokio::test]
async fn an_outcome_is_recorded_with_its_decisions_run_and_approval_and_then_settled() {
    let mut stack = Stack::start().await;
    stack.services.change(TENANT, |identity| {
        identity.scopes.insert(Scope::OutcomesReport);
    });
    let mut settled = stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    let mut asked = serving(&mut stack, ManageReply::Done(reported())).await;
    allow(&stack, Some(ApprovalSource::Approval));
    let id = checked(&stack).await;
    let body = json!({"status": "succeeded", "tool_call_id": "toolu_01", "duration_ms": 420, "cost_usd": 0.42});
    let answer = report(&stack, &id, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let OutcomeReported { outcome, settled: money, unrecorded } = reported();
    let mut expected = serde_json::to_value(&outcome).unwrap();
    expected["settled"] = serde_json::to_value(&money).unwrap();
    assert_eq!(answer.json(), expected);

    let lines = stack.lines().await;
    let decision = lines.iter().find(|line| line["type"] == "decision.recorded").unwrap();
    let asked = asked.recv().await.unwrap();
    assert_eq!((asked.account.as_str(), &asked.actor.key_id), ("acc", key(TENANT).id()));
    assert_eq!((asked.request_id.to_string(), asked.status), (id, OutcomeStatus::Succeeded));
    assert_eq!((asked.tool_call_id.as_deref(), asked.duration_ms), (Some("toolu_01"), Some(420)));
    assert_eq!((asked.actual_micros, asked.may_lower), (Some(420_000), true), "the key has `runs:manage`");
    assert_eq!(asked.run_id.unwrap().as_str(), "run_1");
    assert_eq!(asked.approval_id.unwrap().as_str(), "apr_1");
    assert_eq!(json!(asked.decided_at), decision["recorded_at"]);
    assert_eq!(json!(asked.expires_at), decision["expires_at"]);
    let line = lines.iter().find(|line| line["type"] == "decision.outcome").unwrap();
    let event = &unrecorded.events[0];
    assert_eq!((&line["event_id"], &line["details"]["status"]), (&json!(event.event_id), &json!("succeeded")));
    let recorded = settled.recv().await.unwrap().recorded;
    assert_eq!((recorded[0].event_id, recorded[0].outcome_of), (event.event_id, event.request_id));
}

#[tokio::test]
async fn an_approval_that_the_decision_did_not_use_has_no_part_in_its_outcome() {
    let mut stack = start(|_| {}).await;
    let mut asked = serving(&mut stack, ManageReply::Done(reported())).await;
    for (source, used) in [(Some(ApprovalSource::Caller), None), (Some(ApprovalSource::Approval), Some("apr_1"))] {
        allow(&stack, source);
        let id = checked(&stack).await;
        assert_eq!(report(&stack, &id, json!({"status": "failed"})).await.status, 200, "{source:?}");
        let approval = asked.recv().await.unwrap().approval_id;
        assert_eq!(approval.as_ref().map(|id| id.as_str()), used, "{source:?}");
    }
}

#[tokio::test]
async fn nothing_comes_of_what_was_not_allowed() {
    let mut stack = start(|_| {}).await;
    let mut asked = serving(&mut stack, ManageReply::Done(reported())).await;
    let deferred = checked(&stack).await;
    let answer = report(&stack, &deferred, json!({"status": "skipped"})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    assert!(answer.text.contains("was not allowed"), "{}", answer.text);
    assert!(asked.try_recv().is_err());
    allow(&stack, None);
    let allowed = checked(&stack).await;
    assert_eq!(report(&stack, &allowed, json!({"status": "skipped"})).await.status, 200);
}

#[tokio::test]
async fn a_decision_that_the_log_does_not_have_is_the_evaluators_to_know() {
    let mut stack = start(|_| {}).await;
    let mut asked = serving(&mut stack, ManageReply::Refused(Refusal::NotFound)).await;
    let before = Timestamp::now();
    let answer = report(&stack, UNKNOWN, json!({"status": "unknown"})).await;
    assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
    let asked_for = asked.recv().await.unwrap();
    assert_eq!((asked_for.run_id, asked_for.approval_id), (None, None));
    assert!(asked_for.decided_at >= before && asked_for.decided_at <= Timestamp::now());
    assert_eq!(asked_for.expires_at, asked_for.decided_at.as_second(), "its outcome is shown at no time");
    assert_eq!(report(&stack, "no-uuid", json!({"status": "unknown"})).await.status, 404);
    assert!(asked.try_recv().is_err(), "what is no id names no decision");
}

#[tokio::test]
async fn every_bad_member_of_a_report_is_named_and_its_neighbour_is_not() {
    let mut stack = start(|_| {}).await;
    let mut asked = serving(&mut stack, ManageReply::Done(reported())).await;
    let all = json!({"status": "done", "tool_call_id": "", "duration_ms": -1, "cost_usd": -0.01, "output": "x"});
    let named = report(&stack, UNKNOWN, all).await.bad_fields();
    assert_eq!(named, ["status", "tool_call_id", "duration_ms", "cost_usd", "output"]);
    assert_eq!(report(&stack, UNKNOWN, json!({})).await.bad_fields(), ["status"]);
    for (member, bad) in [
        ("status", json!("SUCCEEDED")),
        ("tool_call_id", json!("x".repeat(257))),
        ("tool_call_id", json!("a\nb")),
        ("tool_call_id", json!("a\u{200b}b")),
        ("tool_call_id", json!(7)),
        ("duration_ms", json!(31_536_000_001_u64)),
        ("duration_ms", json!(0.5)),
        ("cost_usd", json!(1_000_000_001)),
        ("cost_usd", json!("1")),
    ] {
        let mut body = json!({"status": "failed"});
        body[member] = bad;
        assert_eq!(report(&stack, UNKNOWN, body.clone()).await.bad_fields(), [member], "{body}");
    }
    assert!(asked.try_recv().is_err());
    for (member, good) in [
        ("status", json!("skipped")),
        ("tool_call_id", json!("ä".repeat(256))),
        ("tool_call_id", json!(null)),
        ("duration_ms", json!(31_536_000_000_u64)),
        ("duration_ms", json!(0)),
        ("cost_usd", json!(1_000_000_000)),
        ("cost_usd", json!(0)),
    ] {
        let mut body = json!({"status": "failed"});
        body[member] = good;
        assert_eq!(report(&stack, UNKNOWN, body.clone()).await.status, 200, "{body}");
    }
}

#[tokio::test]
async fn a_report_takes_its_own_scope_and_a_lower_cost_another() {
    let mut stack = start(|_| {}).await;
    stack.services.change(READER, |identity| {
        identity.scopes.insert(Scope::OutcomesReport);
    });
    let lower = ManageReply::Refused(Refusal::ScopeMissing(Scope::RunsManage));
    let mut asked = serving(&mut stack, lower).await;
    let path = format!("/v1/decisions/{UNKNOWN}/outcome");
    let body = json!({"status": "succeeded", "cost_usd": 0.01});
    let refused = stack.post(READER, &path, &body).await;
    assert_eq!(refused.refusal(), (403, "scope_missing".to_owned()));
    assert!(refused.text.contains("`runs:manage`"), "{}", refused.text);
    assert!(!asked.recv().await.unwrap().may_lower);

    let stack = Stack::start().await;
    let refused = stack.post(READER, &path, &body).await;
    assert_eq!(refused.refusal(), (403, "scope_missing".to_owned()));
    assert!(refused.text.contains("`outcomes:report`"), "{}", refused.text);
}

#[tokio::test]
async fn another_outcome_than_the_reported_one_is_a_conflict() {
    let mut stack = start(|_| {}).await;
    let why = "another outcome was reported already: `succeeded`".to_owned();
    serving(&mut stack, ManageReply::Refused(Refusal::Conflict(why.clone()))).await;
    let answer = report(&stack, UNKNOWN, json!({"status": "failed"})).await;
    assert_eq!((answer.status.as_u16(), answer.json()["message"].as_str()), (409, Some(why.as_str())));
}

#[tokio::test]
async fn an_outcome_that_is_not_known_to_be_recorded_is_a_503_and_is_reported_again() {
    for appends in [Appends::Failed, Appends::Lost, Appends::Unacknowledged] {
        let mut stack = start(|config| config.request_budget = Duration::from_millis(500)).await;
        serving(&mut stack, ManageReply::Done(reported())).await;
        stack.log.set(appends);
        let answer = report(&stack, UNKNOWN, json!({"status": "succeeded"})).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{appends:?}");
        stack.log.set(Appends::Acknowledged);
        assert_eq!(report(&stack, UNKNOWN, json!({"status": "succeeded"})).await.status, 200, "{appends:?}");
    }
}

#[tokio::test]
async fn no_outcome_is_kept_while_a_process_may_not_be_able_to_read_its_line() {
    let mut stack = start(|config| config.single_process = false).await;
    let mut asked = serving(&mut stack, ManageReply::Done(reported())).await;
    let answer = report(&stack, UNKNOWN, json!({"status": "succeeded"})).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("nothing was changed"), "{}", answer.text);
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_report_that_was_kept_before_writes_no_further_line() {
    let mut stack = start(|_| {}).await;
    let again = OutcomeReported { unrecorded: Default::default(), settled: None, ..reported() };
    serving(&mut stack, ManageReply::Done(again)).await;
    stack.log.fail(true);
    let answer = report(&stack, UNKNOWN, json!({"status": "succeeded"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["settled"]), (200, &Value::Null), "{}", answer.text);
    assert_eq!(stack.lines().await, Vec::<Value>::new());
    assert!(RequestId::parse(answer.json()["request_id"].as_str().unwrap()).is_ok());
}
