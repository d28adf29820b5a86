//! What is asked again, and with what.

use std::time::{Duration, Instant};

use stage0_client::selftest::Reply;
use stage0_client::{ConnectionError, NotAllowed, Undecided};

use crate::harness::{Scripted, action, allow, ok, refused};

#[tokio::test]
async fn a_check_is_asked_again_after_503_429_and_a_lost_connection_with_the_same_key_and_body() {
    for first in [refused(503), refused(429), Reply::Close] {
        let server = Scripted::start(move |_, before| if before == 0 { first.clone() } else { ok(&allow()) }).await;
        server.client().check(&action()).await.unwrap();
        let seen = server.seen();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].line, "POST /check HTTP/1.1");
        assert_eq!(seen[0].body, seen[1].body);
        let keys: Vec<_> = seen.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
        assert!(keys[0] == keys[1] && keys[0].len() == 32, "{keys:?}");
    }
}

#[tokio::test]
async fn a_check_is_asked_three_times_at_most() {
    let server = Scripted::start(|_, _| refused(503)).await;
    let error = server.client().check(&action()).await.unwrap_err();
    assert_eq!(server.seen().len(), 3);
    let NotAllowed::Undecided(error) = error else { panic!("{error}") };
    assert_eq!((error.status(), error.request_id()), (Some(503), Some("r-1")));
}

#[tokio::test]
async fn nothing_else_is_asked_again() {
    for status in [301, 307, 400, 401, 403, 404, 409, 413, 422, 500, 502, 504] {
        let server = Scripted::start(move |_, _| refused(status)).await;
        server.client().check(&action()).await.unwrap_err();
        assert_eq!(server.seen().len(), 1, "{status}");
    }
    let server = Scripted::start(|_, _| Reply::answer(200, &[], "garbage")).await;
    server.client().check(&action()).await.unwrap_err();
    assert_eq!(server.seen().len(), 1, "an answer that is no decision");
}

#[tokio::test]
async fn each_check_has_a_fresh_key_unless_the_caller_has_one() {
    let server = Scripted::start(|_, _| ok(&allow())).await;
    let client = server.client();
    client.check(&action()).await.unwrap();
    client.check(&action()).await.unwrap();
    client.check(&action().idempotency_key("payout-8841")).await.unwrap();
    let seen = server.seen();
    let keys: Vec<_> = seen.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    assert!(keys[0] != keys[1] && keys[2] == "payout-8841", "{keys:?}");
}

#[tokio::test]
async fn a_wait_that_does_not_fit_into_the_deadline_is_not_begun() {
    let server = Scripted::start(|_, _| Reply::answer(429, &[("retry-after", "60")], "")).await;
    let started = Instant::now();
    let error = server.client().check(&action()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(15), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_is_kept() {
    let busy = |before| if before == 0 { Reply::answer(503, &[("retry-after", "1")], "") } else { ok(&allow()) };
    let server = Scripted::start(move |_, before| busy(before)).await;
    let started = Instant::now();
    server.client().check(&action()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_attempt_that_hangs_leaves_time_for_another() {
    let server = Scripted::start(|_, before| if before == 0 { Reply::Silence } else { ok(&allow()) }).await;
    server.client().with_timeout(Duration::from_secs(6)).check(&action()).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_key_goes_nowhere() {
    let elsewhere = Scripted::start(|_, _| ok(&allow())).await;
    let location = format!("{}check", elsewhere.client().connection().url());
    let server = Scripted::start(move |_, _| Reply::answer(307, &[("location", &location)], "")).await;
    let error = server.client().check(&action()).await.unwrap_err();
    assert!(
        matches!(error, NotAllowed::Undecided(Undecided::Connection(ConnectionError::Refused { status: 307, .. }))),
        "{error}"
    );
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn wrong_members_are_named() {
    let body = r#"{"message": "goal: is required", "error": "validation_failed", "request_id": "r-2",
        "detail": {"detail": "", "request_id": "r-2"}, "errors": [{"path": "goal", "message": "is required"}]}"#;
    let server = Scripted::start(|_, _| Reply::answer(422, &[], body)).await;
    let error = server.client().check(&action()).await.unwrap_err();
    assert!(error.to_string().contains("goal: is required (request r-2)"), "{error}");
    let NotAllowed::Undecided(error) = error else { panic!("{error}") };
    assert_eq!((error.fields()[0].path.as_str(), error.fields().len()), ("goal", 1));
}
