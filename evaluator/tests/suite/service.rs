//! The worker on the embedded backplane.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use stage0_backplane::RequestError;
use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, CallerTexts, CheckRequest, EvaluateReply, EvaluateRequest, EvaluatorStatus, RequestId, ReviewRequest,
    Verdict,
};
use stage0_evaluator::{BuildError, Connect, EvaluatorConfig, RunConfig, build};
use stage0_policy::PackSet;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// More than two shards answer in the moment between the last message and the stop.
const IN_HAND: usize = 100;

fn config() -> EvaluatorConfig {
    EvaluatorConfig { packs: PackSet::embedded().unwrap(), shards: NonZeroUsize::new(2), runs: RunConfig::default() }
}

pub(crate) fn connect(bus: &Bus) -> Connect {
    let bus = bus.clone();
    Arc::new(move || {
        let bus = bus.clone();
        Box::pin(async move { Ok(bus.connect()) })
    })
}

fn message(goal: &str) -> EvaluateRequest {
    EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(json!({"goal": goal, "success_criteria": ["done"]})).unwrap(),
        evaluated_at: 1_773_662_400,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    }
}

#[tokio::test]
async fn it_answers_every_kind_of_question_and_drains() {
    let bus = Bus::new();
    let evaluator = build(config(), connect(&bus)).await.unwrap();
    let active = evaluator.active().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(evaluator.run_until(async {
        let _ = stopped.await;
    }));
    let caller = bus.connect();
    let status = caller.requests.request(&EvaluatorStatus {}, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(status.active, active);
    let EvaluateReply::Decided(decided) =
        caller.requests.request(&message("read the report"), WAIT_TIMEOUT).await.unwrap()
    else {
        panic!("not decided")
    };
    assert_eq!((decided.decision.verdict, decided.decision.policy_version), (Verdict::Allow, active));
    let review = ReviewRequest {
        account: AccountId::parse("acc").unwrap(),
        constraints: vec!["allowed_change_window: blue_moon".to_owned()],
        policy_pack_version: None,
        policy: None,
    };
    assert_eq!(caller.requests.request(&review, WAIT_TIMEOUT).await.unwrap().errors.len(), 1);
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    let refused = caller.requests.request(&message("read the report"), Duration::from_millis(200)).await;
    assert!(matches!(refused, Err(RequestError::NoResponders | RequestError::Timeout)), "{refused:?}");
}

#[tokio::test]
async fn a_draining_evaluator_answers_what_it_has_in_hand() {
    let bus = Bus::new();
    let evaluator = build(config(), connect(&bus)).await.unwrap();
    let caller = bus.connect();
    let sent = Arc::new(AtomicUsize::new(0));
    let mut asks = JoinSet::new();
    for _ in 0..IN_HAND {
        let (requests, sent) = (Arc::clone(&caller.requests), Arc::clone(&sent));
        asks.spawn(async move {
            // The first poll hands the message over too, and nothing else runs on this thread meanwhile.
            sent.fetch_add(1, Ordering::Relaxed);
            requests.request(&message("read the report"), WAIT_TIMEOUT).await
        });
    }
    while sent.load(Ordering::Relaxed) < IN_HAND {
        tokio::task::yield_now().await;
    }
    evaluator.run_until(std::future::ready(())).await.unwrap();
    while let Some(reply) = asks.join_next().await {
        assert!(matches!(reply.unwrap(), Ok(EvaluateReply::Decided(_))), "a message in hand got no decision");
    }
}

#[tokio::test]
async fn without_a_connection_it_does_not_start() {
    let connect: Connect = Arc::new(|| Box::pin(async { Err("no way".into()) }));
    assert!(matches!(build(config(), connect).await, Err(BuildError::Shard(_))));
}
