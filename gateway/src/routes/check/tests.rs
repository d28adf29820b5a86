//! Which answers of an evaluator are final, and which are not believed.

use std::cell::Cell;

use serde_json::json;
use stage0_backplane::embedded::Bus;
use stage0_contract::AccountId;

use super::*;

const WITHIN: Duration = Duration::from_secs(5);

fn question() -> EvaluateRequest {
    EvaluateRequest {
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(json!({"goal": "read the report"})).unwrap(),
        evaluated_at: 1_773_662_400,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    }
}

/// Asks where every evaluator says the same; the error and how often one was asked.
async fn refused_by(reply: &EvaluateReply) -> (ApiError, usize) {
    let bus = Bus::new();
    let (evaluators, gateway) = (bus.connect(), bus.connect());
    let mut served = evaluators.requests.serve::<EvaluateRequest>().await.unwrap();
    let asked = Cell::new(0);
    let answering = async {
        while let Some(question) = served.next().await {
            asked.set(asked.get() + 1);
            question.answer(reply).await;
        }
    };
    let question = question();
    let asking = evaluate(&*gateway.requests, WITHIN, &question, Instant::now() + WITHIN);
    let answer = tokio::select! {
        answer = asking => answer,
        () = answering => panic!("the inbox ended"),
    };
    (answer.unwrap_err(), asked.get())
}

#[tokio::test]
async fn an_evaluator_that_gave_up_or_is_busy_is_the_last_that_is_asked() {
    for (reply, how) in [
        (EvaluateReply::TimedOut, How::Busy),
        (EvaluateReply::Busy, How::Busy),
        (EvaluateReply::Unable("why".to_owned()), How::Failed),
    ] {
        let missing = ApiError::Missing(Part::Service(Role::Evaluator, how));
        assert_eq!(refused_by(&reply).await, (missing, 1), "{reply:?}");
    }
}
