//! NATS that dies, freezes or forgets.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use stage0_backplane::nats::Connection;
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{Backplane, Event, RequestError};
use tokio::time::Instant;

use crate::{Changed, Echo, PATIENT, answer_all, ask, ask_aside, echo};

/// Far below every deadline in these tests, far above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn connect(nats: &NatsServer) -> Backplane {
    Backplane::connect(&nats.config("suite")).await.unwrap()
}

#[tokio::test]
async fn waiting_requests_fail_when_the_server_is_killed_and_new_ones_fail_at_once_until_it_is_back() {
    let mut nats = NatsServer::start().await;
    let (asker, server) = (connect(&nats).await, connect(&nats).await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let waiting = ask_aside(&asker, "held", PATIENT);
    let _held = inbox.next().await.unwrap();

    let killed = Instant::now();
    nats.kill();
    assert_eq!(waiting.await.unwrap(), Err(RequestError::Disconnected));
    assert_eq!(ask(&asker, "while down", PATIENT).await, Err(RequestError::Disconnected));
    assert!(asker.requests.ready().await.is_err());
    assert!(asker.notices.publish(&Changed { number: 1 }).await.is_err());
    assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
    assert_eq!(asker.requests.pending(), 0);

    nats.restart().await;
    let served = tokio::spawn(answer_all(inbox));
    wait_for("requests are answered again", PATIENT, async || {
        ask(&asker, "back", AT_ONCE).await.as_deref() == Ok("back")
    })
    .await;
    served.abort();
}

#[tokio::test]
async fn a_subscriber_receives_a_gap_after_a_reconnect_and_notices_after_the_gap() {
    let mut nats = NatsServer::start().await;
    let (teller, hearer) = (connect(&nats).await, connect(&nats).await);
    let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap();
    nats.restart().await;
    assert_eq!(listener.next().await, Some(Event::Gap));

    // The gap proves that the subscription is registered again, so this does not wait for the subscriber.
    wait_for("the teller is back", PATIENT, async || teller.notices.publish(&Changed { number: 1 }).await.is_ok())
        .await;
    assert_eq!(listener.next().await, Some(Event::Message(Changed { number: 1 })));
}

#[tokio::test]
async fn requests_to_a_frozen_server_time_out_and_then_fail_as_disconnected_until_it_thaws() {
    let nats = NatsServer::start().await;
    let (asker, server) = (connect(&nats).await, connect(&nats).await);
    let served = tokio::spawn(answer_all(server.requests.serve::<Echo>().await.unwrap()));
    assert_eq!(ask(&asker, "before", PATIENT).await.as_deref(), Ok("before"));

    nats.freeze();
    let within = Duration::from_millis(100);
    let asked = Instant::now();
    assert_eq!(ask(&asker, "frozen", within).await, Err(RequestError::Timeout));
    assert!(asked.elapsed() >= within && asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    wait_for("the connection is given up", PATIENT, async || {
        ask(&asker, "frozen", within).await == Err(RequestError::Disconnected)
    })
    .await;
    assert_eq!(asker.requests.pending(), 0);

    nats.thaw();
    wait_for("requests are answered again", PATIENT, async || {
        ask(&asker, "thawed", AT_ONCE).await.as_deref() == Ok("thawed")
    })
    .await;
    served.abort();
}

#[tokio::test]
async fn ten_thousand_requests_without_a_reply_time_out_and_leave_nothing_behind() {
    let nats = NatsServer::start().await;
    let asker = connect(&nats).await;
    let frozen = async_nats::connect(nats.url()).await.unwrap();
    let _questions = frozen.queue_subscribe("s0.req.echo", "s0".to_owned()).await.unwrap();
    wait_for("the frozen one serves", PATIENT, async || {
        ask(&asker, "frozen?", Duration::from_millis(50)).await == Err(RequestError::Timeout)
    })
    .await;
    for _ in 0..10 {
        let asked = (0..1_000).map(|number| ask(&asker, number, Duration::from_millis(50)));
        for answer in join_all(asked).await {
            assert_eq!(answer, Err(RequestError::Timeout));
        }
    }
    assert_eq!(asker.requests.pending(), 0);
}

#[tokio::test]
async fn a_request_sent_while_disconnected_is_never_delivered() {
    let mut nats = NatsServer::start().await;
    let (asker, server) = (connect(&nats).await, connect(&nats).await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    nats.kill();
    wait_for("the asker notices", PATIENT, async || {
        ask(&asker, "first", Duration::from_millis(50)).await == Err(RequestError::Disconnected)
    })
    .await;
    for _ in 0..10 {
        assert_eq!(ask(&asker, "ghost", PATIENT).await, Err(RequestError::Disconnected));
    }
    nats.restart().await;
    wait_for("both are back", PATIENT, async || {
        asker.requests.ready().await.is_ok() && server.requests.ready().await.is_ok()
    })
    .await;
    let _waiting = ask_aside(&asker, "living", PATIENT);
    assert_eq!(inbox.next().await.unwrap().request, echo("living"));
}

#[tokio::test]
async fn a_request_without_a_deadline_is_dropped() {
    let nats = NatsServer::start().await;
    let (asker, server) = (connect(&nats).await, connect(&nats).await);
    let mut inbox = server.requests.serve::<Echo>().await.unwrap();
    let stranger = async_nats::connect(nats.url()).await.unwrap();
    let mut replies = stranger.subscribe("stranger").await.unwrap();
    stranger.publish_with_reply("s0.req.echo", "stranger", "{\"text\":\"forever\"}".into()).await.unwrap();
    // A self-ping behind it proves that the server has it.
    stranger.publish("stranger", "after".into()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().payload, "after");

    let _waiting = ask_aside(&asker, "until then", PATIENT);
    assert_eq!(inbox.next().await.unwrap().request, echo("until then"));
}

#[tokio::test]
async fn connection_problems_are_counted() {
    let mut nats = NatsServer::start().await;
    let connection = Connection::open(&nats.config("suite")).await.unwrap();
    let health = connection.health();
    assert_eq!((health.disconnects(), health.errors(), health.last_problem()), (0, 0, None));
    assert!(connection.server().version.starts_with("2."));
    assert_eq!(connection.server().max_payload, 8 * 1024 * 1024);

    nats.restart().await;
    let backplane = connection.backplane();
    wait_for("the break is counted", PATIENT, async || health.disconnects() == 1).await;
    wait_for("it is back", PATIENT, async || backplane.requests.ready().await.is_ok()).await;
    assert!(health.last_problem().is_some());
}

#[tokio::test]
async fn closing_ends_in_time_when_the_server_does_not_answer() {
    let nats = NatsServer::start().await;
    let connection = connect(&nats).await;
    let mut inbox = connection.requests.serve::<Echo>().await.unwrap();
    nats.freeze();
    let closed = async {
        inbox.stop().await;
        connection.requests.close().await;
    };
    tokio::time::timeout(PATIENT, closed).await.unwrap();
    nats.thaw();
}
