//! Waiting for people: only a second ALLOW allows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_client::selftest::{Reply, Request};
use stage0_client::{Deferred, NotAllowed};
use stage0_contract::ApprovalStatus;

use crate::harness::{REQUEST_ID, Scripted, action, allow, decided, defer_with_approval, ok, refused};

const WAIT: Duration = Duration::from_secs(20);

fn approval(status: &str) -> Value {
    json!({"id": "apr_1", "status": status, "action_digest": "9".repeat(64),
        "policy_version": "baseline@1.0.0+0123456789ab", "environment": "", "key_id": "0w3ge1r70w3ge1r7",
        "workload": "0w3ge1r70w3ge1r7", "request_id": REQUEST_ID, "issues": [],
        "terms": {"requirements": [{"groups": [], "quorum": 1}], "within_seconds": 600, "valid_seconds": 600},
        "eligible": 1, "votes": [], "created_at": "2026-03-16T12:00:00Z", "expires_at": "2026-03-16T13:00:00Z",
        "decided_at": null, "usable_until": null, "used_by": null, "used_at": null, "outcome": null, "stopped": null,
        "url": "https://s0.example/v1/approvals/apr_1", "action": null})
}

fn is_check(request: &Request) -> bool {
    request.line.starts_with("POST /check ")
}

async fn deferred(server: &Scripted) -> Deferred {
    match server.client().check(&action()).await {
        Err(NotAllowed::Deferred(deferred)) => *deferred,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_approved_action_is_asked_again_and_only_that_answer_allows() {
    for (again, is_allowed) in [(allow(), true), (decided("DENY", "NO_GO"), false)] {
        let server = Scripted::start(move |request, before| match before {
            0 => ok(&defer_with_approval()),
            1 => ok(&approval("pending")),
            2 => ok(&approval("approved")),
            _ if is_check(request) => ok(&again),
            _ => refused(404),
        })
        .await;
        let deferred = deferred(&server).await;
        assert_eq!(deferred.questions(), ["Who approves it?"]);
        assert_eq!(server.client().wait_for_approval(&deferred, WAIT).await.is_ok(), is_allowed);
        let seen = server.seen();
        assert!(seen[1].line.starts_with("GET /v1/approvals/apr_1?wait="), "{}", seen[1].line);
        assert_eq!((seen.len(), &seen[0].body), (4, &seen[3].body), "the same action");
        assert_ne!(seen[0].header("idempotency-key"), seen[3].header("idempotency-key"));
    }
}

#[tokio::test]
async fn an_approval_that_people_refused_or_that_is_gone_allows_nothing() {
    for status in ["denied", "expired", "cancelled", "reserved", "consumed"] {
        let server = Scripted::start(move |_, before| match before {
            0 => ok(&defer_with_approval()),
            1 => ok(&approval(status)),
            _ => ok(&allow()),
        })
        .await;
        let deferred = deferred(&server).await;
        let error = server.client().wait_for_approval(&deferred, WAIT).await.unwrap_err();
        assert!(error.to_string().contains(&format!("approval apr_1 is {status}")), "{error}");
        assert_eq!(server.seen().len(), 2, "it is not asked again");
    }
}

#[tokio::test]
async fn waiting_ends_when_its_time_is_over() {
    let polled = |before| if before == 0 { ok(&defer_with_approval()) } else { ok(&approval("pending")) };
    let server = Scripted::start(move |_, before| polled(before)).await;
    let deferred = deferred(&server).await;
    let started = Instant::now();
    let error = server.client().wait_for_approval(&deferred, Duration::from_secs(2)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(15));
    let NotAllowed::Deferred(still) = error else { panic!("{error}") };
    assert_eq!(still.approval().unwrap().status, ApprovalStatus::Pending);
    assert!(server.seen().len() < 8, "a server that does not wait is not flooded");
}

#[tokio::test]
async fn a_server_that_comes_back_is_asked_on() {
    let server = Scripted::start(|_, before| match before {
        0 => ok(&defer_with_approval()),
        1 => Reply::Close,
        2 => refused(503),
        3 => ok(&approval("approved")),
        _ => ok(&allow()),
    })
    .await;
    let deferred = deferred(&server).await;
    server.client().wait_for_approval(&deferred, WAIT).await.unwrap();
}

#[tokio::test]
async fn a_key_that_may_not_read_approvals_ends_the_wait() {
    let server = Scripted::start(|_, before| if before == 0 { ok(&defer_with_approval()) } else { refused(403) }).await;
    let deferred = deferred(&server).await;
    let error = server.client().wait_for_approval(&deferred, WAIT).await.unwrap_err();
    assert!(matches!(error, NotAllowed::Undecided(_)), "{error}");
}

#[tokio::test]
async fn a_deferral_without_an_approval_is_returned_at_once() {
    let server = Scripted::start(|_, _| ok(&decided("DEFER", "DEFER"))).await;
    let deferred = deferred(&server).await;
    let error = server.client().wait_for_approval(&deferred, WAIT).await.unwrap_err();
    assert!(matches!(error, NotAllowed::Deferred(_)), "{error}");
    assert_eq!(server.seen().len(), 1);
}
