//! Notices and gaps.

use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::clock::boottime;
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{Backplane, ECHO_INTERVAL, Event, Liveness, TellError};

use crate::{Changed, Moved, PATIENT, Stage, on_every_backplane};

/// More than a listener may be behind, on every backplane.
const FLOOD: usize = 10_000;

on_every_backplane! {
    a_closed_connection_tells_and_hears_nothing,
    a_notice_that_cannot_be_read_is_a_gap,
    a_listener_that_falls_behind_hears_of_a_gap,
    a_notice_reaches_every_listener_of_its_subject,
    a_notice_that_nobody_hears_is_told_all_the_same,
    a_listener_hears_what_is_told_once_listening_began,
    a_listener_proves_again_and_again_that_notices_arrive_and_nobody_hears_how,
    a_proof_comes_after_what_was_told_before,
    listeners_that_share_a_liveness_take_turns,
}

async fn a_closed_connection_tells_and_hears_nothing(stage: Stage) {
    let connection = stage.connect().await;
    let mut listener = connection.notices.listen::<Changed>().await.unwrap();
    connection.requests.close().await;
    assert_eq!(listener.next().await, None);
    assert_eq!(connection.notices.tell(&Changed { number: 1 }).await, Err(TellError));
    assert!(connection.notices.listen::<Changed>().await.is_err());
}

async fn a_notice_that_cannot_be_read_is_a_gap(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listener = hearer.notices.listen::<Changed>().await.unwrap();
    teller.notices.tell_bytes("notice.changed", Bytes::from_static(b"nonsense")).await.unwrap();
    assert_eq!(listener.next().await, Some(Event::Gap));
}

async fn a_listener_that_falls_behind_hears_of_a_gap(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listener = hearer.notices.listen::<Changed>().await.unwrap();
    for number in 0..FLOOD {
        teller.notices.tell(&Changed { number }).await.unwrap();
    }
    teller.requests.ready().await.unwrap();
    hearer.requests.ready().await.unwrap();
    let heard_of_a_gap = async {
        while listener.next().await.unwrap() != Event::Gap {}
        // What comes after is heard again.
        teller.notices.tell(&Changed { number: FLOOD }).await.unwrap();
        while listener.next().await.unwrap() != Event::Heard(Changed { number: FLOOD }) {}
    };
    tokio::time::timeout(PATIENT, heard_of_a_gap).await.unwrap();
}

async fn a_notice_reaches_every_listener_of_its_subject(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let mut listeners = Vec::new();
    for connection in [&teller, &hearer, &hearer] {
        listeners.push(connection.notices.listen::<Changed>().await.unwrap());
    }
    let mut other = hearer.notices.listen::<Moved>().await.unwrap();
    teller.notices.tell(&Changed { number: 7 }).await.unwrap();
    teller.notices.tell(&Moved {}).await.unwrap();
    for listener in &mut listeners {
        assert_eq!(listener.next().await, Some(Event::Heard(Changed { number: 7 })));
    }
    assert_eq!(other.next().await, Some(Event::Heard(Moved {})));
}

async fn a_notice_that_nobody_hears_is_told_all_the_same(stage: Stage) {
    let teller = stage.connect().await;
    assert_eq!(teller.notices.tell(&Moved {}).await, Ok(()));
}

async fn a_listener_hears_what_is_told_once_listening_began(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    for number in 0..100 {
        // No wait in between: that listening returned is all that a teller may need to know.
        let mut listener = hearer.notices.listen::<Changed>().await.unwrap();
        teller.notices.tell(&Changed { number }).await.unwrap();
        assert_eq!(listener.next().await, Some(Event::Heard(Changed { number })));
    }
}

/// Waits until `liveness` is proven by what was sent after `since`.
async fn proven_since(liveness: &Liveness, since: Duration) {
    let proven = liveness.wait_until(|| liveness.proven_at() >= Some(since));
    tokio::time::timeout(PATIENT, proven).await.expect("a proof");
}

async fn a_listener_proves_again_and_again_that_notices_arrive_and_nobody_hears_how(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let (liveness, not_asked) = (Liveness::new(), Liveness::new());
    let mut proving = hearer.notices.listen::<Changed>().await.unwrap().proving(&liveness);
    let mut beside = hearer.notices.listen::<Changed>().await.unwrap();
    let mut elsewhere = teller.notices.listen::<Changed>().await.unwrap();
    for _ in 0..3 {
        tokio::select! {
            () = proven_since(&liveness, boottime()) => {}
            event = proving.next() => panic!("{event:?}"),
            event = beside.next() => panic!("{event:?}"),
            event = elsewhere.next() => panic!("{event:?}"),
        }
    }
    assert_eq!(not_asked.proven_at(), None);
    teller.notices.tell(&Changed { number: 7 }).await.unwrap();
    for listener in [&mut proving, &mut beside, &mut elsewhere] {
        assert_eq!(listener.next().await, Some(Event::Heard(Changed { number: 7 })));
    }
}

async fn a_proof_comes_after_what_was_told_before(stage: Stage) {
    let (teller, hearer) = (stage.connect().await, stage.connect().await);
    let liveness = Liveness::new();
    let mut listener = hearer.notices.listen::<Changed>().await.unwrap().proving(&liveness);
    for number in 0..5 {
        teller.notices.tell(&Changed { number }).await.unwrap();
        teller.notices.settle().await.unwrap();
        let told = boottime();
        // Nothing is heard yet, so nothing is proven, however long it takes.
        tokio::time::timeout(2 * ECHO_INTERVAL, liveness.wait_until(|| liveness.proven_at() >= Some(told)))
            .await
            .expect_err("a proof before the notice");
        assert_eq!(listener.next().await, Some(Event::Heard(Changed { number })));
        tokio::select! {
            () = proven_since(&liveness, told) => {}
            event = listener.next() => panic!("{event:?}"),
        }
    }
}

async fn listeners_that_share_a_liveness_take_turns(stage: Stage) {
    let liveness = Liveness::new();
    let (first, second) = (stage.connect().await, stage.connect().await);
    let mut leaving = first.notices.listen::<Changed>().await.unwrap().proving(&liveness);
    let mut staying = second.notices.listen::<Changed>().await.unwrap().proving(&liveness);
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
    let proven = liveness.wait_until(|| liveness.proven_at() > Some(ended));
    tokio::time::timeout(3 * ECHO_INTERVAL, proven).await.expect_err("nobody listens");
}

#[tokio::test]
async fn a_server_that_is_frozen_proves_nothing_and_a_notice_of_the_meantime_comes_before_the_next_proof() {
    let nats = NatsServer::start().await;
    let (teller, hearer) = (Stage::Nats(nats), Liveness::new());
    let (telling, hearing) = (teller.connect().await, teller.connect().await);
    let Stage::Nats(nats) = &teller else { unreachable!() };
    let mut listener = hearing.notices.listen::<Changed>().await.unwrap().proving(&hearer);
    tokio::select! {
        () = proven_since(&hearer, boottime()) => {}
        event = listener.next() => panic!("{event:?}"),
    }
    nats.freeze();
    let frozen = boottime();
    // Longer than an echo takes, and shorter than a connection is given up.
    let silent = tokio::time::timeout(2 * ECHO_INTERVAL, listener.next()).await;
    assert!(silent.is_err() && hearer.proven_at() <= Some(frozen), "{silent:?}");
    telling.notices.tell(&Changed { number: 1 }).await.unwrap();
    let told = boottime();
    nats.thaw();
    // Echoes of before come first, and count from when they were sent.
    let heard = tokio::time::timeout(PATIENT, listener.next()).await.unwrap();
    assert!(matches!(heard, Some(Event::Heard(Changed { number: 1 }) | Event::Gap)), "{heard:?}");
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
        let mut listener = hearer.notices.listen::<Changed>().await.unwrap().proving(&liveness);
        tokio::select! {
            () = proven_since(&liveness, boottime()) => {}
            event = listener.next() => panic!("{event:?}"),
        }
        nats.kill();
        let killed = boottime();
        nats.restart().await;
        // The listener is asked for nothing but its next event: a proof may only come once the gap was told.
        let next = tokio::time::timeout(PATIENT, listener.next()).await.unwrap();
        assert_eq!(next, Some(Event::Gap));
        assert!(liveness.proven_at() <= Some(killed), "a proof came before the gap");
    }
}
