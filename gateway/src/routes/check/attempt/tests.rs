//! Which answers of an evaluator are final.

use std::cell::Cell;

use serde_json::json;
use stage0_backplane::embedded::Bus;
use stage0_contract::{AccountId, CallerTexts, CheckRequest, RequestId};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

fn message() -> EvaluateRequest {
    EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(json!({"goal": "read the report"})).unwrap(),
        evaluated_at: 1_773_662_400,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    }
}

/// Evaluates where every evaluator gives the same reply; with the error and the number of requests.
async fn refused_by(reply: &EvaluateReply) -> (ApiError, usize) {
    let bus = Bus::new();
    let (evaluators, gateway) = (bus.connect(), bus.connect());
    let mut served = evaluators.requests.serve::<EvaluateRequest>().await.unwrap();
    let requests = Cell::new(0);
    let answering = async {
        while let Some(question) = served.next().await {
            requests.set(requests.get() + 1);
            question.answer(reply).await;
        }
    };
    let message = Arc::new(message());
    let asking = evaluate(&*gateway.requests, TIMEOUT, &message, 100, Instant::now() + TIMEOUT);
    let answer = tokio::select! {
        answer = asking => answer,
        () = answering => panic!("the requests ended"),
    };
    (answer.unwrap_err(), requests.get())
}

#[tokio::test]
async fn a_check_is_not_retried_when_an_evaluator_gave_up_or_is_busy() {
    for (reply, how) in [
        (EvaluateReply::TimedOut, How::Busy),
        (EvaluateReply::Busy, How::Busy),
        (EvaluateReply::Unable("why".to_owned()), How::Failed),
    ] {
        let missing = ApiError::Missing(Part::Service(Role::Evaluator, how));
        assert_eq!(refused_by(&reply).await, (missing, 1), "{reply:?}");
    }
    let version = PolicyVersion::parse("acme@1.0.0+0123456789ab").unwrap();
    for is_loading in [true, false] {
        let reply = EvaluateReply::PolicyMissing { version: version.clone(), is_loading };
        let missing = ApiError::PolicyMissing { version: version.clone(), is_loading };
        assert_eq!(refused_by(&reply).await, (missing, 1), "{reply:?}");
    }
}
