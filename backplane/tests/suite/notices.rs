//! Notices and gaps.

use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::clock::boottime;
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{Backplane, ECHO_INTERVAL, Event, Liveness, PublishError};

use crate::{Changed, Moved, PATIENT, Stage, on_every_backplane};

/// More than a subscriber may be behind, on every backplane.
const FLOOD: usize = 10_000;

on_every_backplane! {
    a_closed_connection_publishes_and_receives_nothing,
    a_notice_that_cannot_be_read_is_a_gap,
    a_subscriber_that_falls_behind_receives_a_gap,
    a_notice_reaches_every_subscriber_of_its_subject,
    publishing_without_a_subscriber_succeeds,
    a_subscriber_receives_every_notice_published_after_it_subscribed,
    a_subscriber_proves_its_liveness_repeatedly_and_no_other_receives_the_echoes,
    a_proof_comes_after_every_notice_published_before,
    subscribers_that_share_a_liveness_take_turns,
}

async fn a_closed_connection_publishes_and_receives_nothing(stage: Stage) {
    let connection = stage.connect().await;
    let mut listener = connection.notices.subscribe::<Changed>().await.unwrap();
    connection.requests.close().await;
    assert_eq!(listener.next().await, None);
    assert_eq!(connection.notices.publish(&Changed { number: 1 }).await, Err(PublishError));
    assert!(connection.notices.subscribe::<Changed>().await.is_err());
}

async fn a_notice_that_cannot_be_read_is_a_gap(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap();
    teller.notices.publish_bytes("notice.changed", Bytes::from_static(b"nonsense")).await.unwrap();
    assert_eq!(listener.next().await, Some(Event::Gap));
}

async fn a_subscriber_that_falls_behind_receives_a_gap(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap();
    for number in 0..FLOOD {
        teller.notices.publish(&Changed { number }).await.unwrap();
    }
    teller.requests.ready().await.unwrap();
    hearer.requests.ready().await.unwrap();
    let heard_of_a_gap = async {
        while listener.next().await.unwrap() != Event::Gap {}
        // Later notices are received again.
        teller.notices.publish(&Changed { number: FLOOD }).await.unwrap();
        while listener.next().await.unwrap() != Event::Message(Changed { number: FLOOD }) {}
    };
    tokio::time::timeout(PATIENT, heard_of_a_gap).await.unwrap();
}

async fn a_notice_reaches_every_subscriber_of_its_subject(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listeners = Vec::new();
    for connection in [&teller, &hearer, &hearer] {
        listeners.push(connection.notices.subscribe::<Changed>().await.unwrap());
    }
    let mut other = hearer.notices.subscribe::<Moved>().await.unwrap();
    teller.notices.publish(&Changed { number: 7 }).await.unwrap();
    teller.notices.publish(&Moved {}).await.unwrap();
    for listener in &mut listeners {
        assert_eq!(listener.next().await, Some(Event::Message(Changed { number: 7 })));
    }
    assert_eq!(other.next().await, Some(Event::Message(Moved {})));
}

async fn publishing_without_a_subscriber_succeeds(stage: Stage) {
    let teller = stage.connect().await;
    assert_eq!(teller.notices.publish(&Moved {}).await, Ok(()));
}

async fn a_subscriber_receives_every_notice_published_after_it_subscribed(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    for number in 0..100 {
        // No wait in between: once `subscribe` has returned, a publisher needs to know nothing more.
        let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap();
        teller.notices.publish(&Changed { number }).await.unwrap();
        assert_eq!(listener.next().await, Some(Event::Message(Changed { number })));
    }
}

/// Waits until `liveness` is proven by an echo that was sent after `since`.
async fn proven_since(liveness: &Liveness, since: Duration) {
    let proven = liveness.wait_for_proof(|| liveness.proven_at() >= Some(since));
    tokio::time::timeout(PATIENT, proven).await.expect("a proof");
}

async fn a_subscriber_proves_its_liveness_repeatedly_and_no_other_receives_the_echoes(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let (liveness, not_asked) = (Liveness::new(), Liveness::new());
    let mut proving = hearer.notices.subscribe::<Changed>().await.unwrap().proving(&liveness);
    let mut beside = hearer.notices.subscribe::<Changed>().await.unwrap();
    let mut elsewhere = teller.notices.subscribe::<Changed>().await.unwrap();
    for _ in 0..3 {
        tokio::select! {
            () = proven_since(&liveness, boottime()) => {}
            event = proving.next() => panic!("{event:?}"),
            event = beside.next() => panic!("{event:?}"),
            event = elsewhere.next() => panic!("{event:?}"),
        }
    }
    assert_eq!(not_asked.proven_at(), None);
    teller.notices.publish(&Changed { number: 7 }).await.unwrap();
    for listener in [&mut proving, &mut beside, &mut elsewhere] {
        assert_eq!(listener.next().await, Some(Event::Message(Changed { number: 7 })));
    }
}

async fn a_proof_comes_after_every_notice_published_before(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let liveness = Liveness::new();
    let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap().proving(&liveness);
    for number in 0..5 {
        teller.notices.publish(&Changed { number }).await.unwrap();
        teller.notices.flush().await.unwrap();
        let told = boottime();
        // Nothing has been received, so nothing is proven, however long it takes.
        tokio::time::timeout(2 * ECHO_INTERVAL, liveness.wait_for_proof(|| liveness.proven_at() >= Some(told)))
            .await
            .expect_err("a proof before the notice");
        assert_eq!(listener.next().await, Some(Event::Message(Changed { number })));
        tokio::select! {
            () = proven_since(&liveness, told) => {}
            event = listener.next() => panic!("{event:?}"),
        }
    }
}

async fn subscribers_that_share_a_liveness_take_turns(stage: Stage) {
    let liveness = Liveness::new();
    let (first, second) = (stage.connect().await, stage.connect().await);
    let mut leaving = first.notices.subscribe::<Changed>().await.unwrap().proving(&liveness);
    let mut staying = second.notices.subscribe::<Changed>().await.unwrap().proving(&liveness);
    tokio::select! {
        () = proven_since(&liveness, boottime()) => {}
        event = leaving.next() => panic!("{event:?}"),
        event = staying.next() => panic!("{event:?}"),
    }
    // The other one goes on alone.
    drop(leaving);
    first.requests.close().await;
    tokio::select! {
        () = proven_since(&liveness, boottime()) => {}
        event = staying.next() => panic!("{event:?}"),
    }
    drop(staying);
    let ended = boottime();
    let proven = liveness.wait_for_proof(|| liveness.proven_at() > Some(ended));
    tokio::time::timeout(3 * ECHO_INTERVAL, proven).await.expect_err("nobody listens");
}

#[tokio::test]
async fn a_frozen_server_proves_no_liveness_and_earlier_notices_come_before_the_next_proof() {
    let nats = NatsServer::start().await;
    let (teller, hearer) = (Stage::Nats(nats), Liveness::new());
    let (telling, hearing) = (teller.connect().await, teller.connect().await);
    let Stage::Nats(nats) = &teller else { unreachable!() };
    let mut listener = hearing.notices.subscribe::<Changed>().await.unwrap().proving(&hearer);
    tokio::select! {
        () = proven_since(&hearer, boottime()) => {}
        event = listener.next() => panic!("{event:?}"),
    }
    nats.freeze();
    let frozen = boottime();
    // Longer than an echo takes, and shorter than the time after which a connection is given up.
    let silent = tokio::time::timeout(2 * ECHO_INTERVAL, listener.next()).await;
    assert!(silent.is_err() && hearer.proven_at() <= Some(frozen), "{silent:?}");
    telling.notices.publish(&Changed { number: 1 }).await.unwrap();
    let told = boottime();
    nats.thaw();
    // Earlier echoes come first, and count from when they were sent.
    let heard = tokio::time::timeout(PATIENT, listener.next()).await.unwrap();
    assert!(matches!(heard, Some(Event::Message(Changed { number: 1 }) | Event::Gap)), "{heard:?}");
    let proven = async {
        loop {
            tokio::select! {
                () = proven_since(&hearer, told) => break,
                event = listener.next() => assert!(event.is_some()),
            }
        }
    };
    tokio::time::timeout(PATIENT, proven).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_made_again_is_a_gap_before_it_is_a_proof() {
    let mut nats = NatsServer::start().await;
    for _ in 0..5 {
        let hearer = Backplane::connect(&nats.config("suite")).await.unwrap();
        let liveness = Liveness::new();
        let mut listener = hearer.notices.subscribe::<Changed>().await.unwrap().proving(&liveness);
        tokio::select! {
            () = proven_since(&liveness, boottime()) => {}
            event = listener.next() => panic!("{event:?}"),
        }
        nats.kill();
        let killed = boottime();
        nats.restart().await;
        // The subscriber is only asked for its next event: a proof may come only after the gap was reported.
        let next = tokio::time::timeout(PATIENT, listener.next()).await.unwrap();
        assert_eq!(next, Some(Event::Gap));
        assert!(liveness.proven_at() <= Some(killed), "a proof came before the gap");
    }
}
