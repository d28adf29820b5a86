//! A check from request to recorded answer, and how it fails.

use serde_json::json;
use stage0_contract::{EvaluateReply, FieldError, Severity, Verdict};

use crate::harness::{Stack, TENANT};

#[tokio::test]
async fn a_check_is_answered_with_the_evaluators_decision_and_is_in_the_log() {
    let stack = Stack::start().await;
    let answer = stack.check(&json!({"goal": "deploy the service"})).await;
    assert_eq!(answer.status, 200);
    let decision = answer.json();
    assert_eq!((&decision["verdict"], &decision["meta"]["audit"]), (&json!("DEFER"), &json!("required")));
    let id = decision["request_id"].as_str().unwrap();
    assert_eq!(answer.header("x-request-id"), Some(id));
    let recorded = stack.get(TENANT, &format!("/v1/decisions/{id}")).await;
    assert_eq!(recorded.status, 200);
    assert_eq!(recorded.json()["request_id"], id);
    assert_eq!(recorded.json()["verdict"], "DEFER");
    let page = stack.get(TENANT, "/v1/decisions").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_allow_with_a_grave_issue_is_not_released() {
    let stack = Stack::start().await;
    let mut reply = stack.services.reply.lock().unwrap().clone();
    let EvaluateReply::Decided(evaluation) = &mut reply else { panic!("{reply:?}") };
    evaluation.decision.verdict = Verdict::Allow;
    assert!(evaluation.decision.issues.iter().any(|issue| issue.severity >= Severity::High));
    *stack.services.reply.lock().unwrap() = reply;
    assert_eq!(stack.check(&json!({"goal": "g"})).await.refusal(), (503, "unavailable".to_owned()));
    let page = stack.get(TENANT, "/v1/decisions").await.json();
    assert_eq!(page["items"], json!([]), "and it is not recorded");
}

#[tokio::test]
async fn an_evaluator_that_cannot_decide_is_a_503_and_bad_input_a_422() {
    let stack = Stack::start().await;
    for (reply, status, code) in [
        (EvaluateReply::Unable("why".to_owned()), 503, "unavailable"),
        (EvaluateReply::Busy, 503, "unavailable"),
        (EvaluateReply::Invalid(vec![FieldError::new("constraints[0]", "is bad")]), 422, "validation_failed"),
        (EvaluateReply::TooManyRuns { limit: 3 }, 402, "quota_exceeded"),
    ] {
        *stack.services.reply.lock().unwrap() = reply.clone();
        let answer = stack.check(&json!({"goal": "g"})).await;
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{reply:?}");
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("1"), "{reply:?}");
        assert!(answer.json().get("verdict").is_none(), "a refusal never has a verdict");
    }
}
