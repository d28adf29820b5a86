//! Notices and gaps.

use bytes::Bytes;
use stage0_backplane::{Event, TellError};

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
