//! Counters with a limit that several processes add to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{Added, PutError, StateStore};
use tokio::time::Instant;

use crate::writing::{recorder, soon};
use crate::{PATIENT, Stage, on_every_store};

on_every_store! {
    a_counter_that_cannot_be_parsed_does_not_count_as_zero,
    nothing_is_granted_once_the_deadline_has_passed,
    nothing_is_granted_on_a_closed_connection,
    a_counter_grants_what_fits_below_the_limit_and_no_more,
    a_limit_that_was_lowered_takes_nothing_back,
    a_subtracted_amount_is_granted_again,
    a_counter_expires_by_itself,
    concurrent_additions_get_exactly_the_limit,
}

async fn add(state_store: &dyn StateStore, amount: u64, limit: u64) -> Result<Added, PutError> {
    state_store.add("counter", amount, limit, PATIENT, soon()).await
}

async fn a_counter_that_cannot_be_parsed_does_not_count_as_zero(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    for (key, value) in [("a", "no counter"), ("b", "{}"), ("c", r#"{"count":-1}"#), ("d", "")] {
        state_store.put(key, value.into(), None, None, soon()).await.unwrap();
        let added = state_store.add(key, 1, 10, PATIENT, soon()).await;
        assert!(matches!(added, Err(PutError::Failed(_))), "{value}: {added:?}");
        assert!(state_store.count(key, soon()).await.is_err(), "{value}");
    }
}

async fn nothing_is_granted_once_the_deadline_has_passed(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let past = Instant::now();
    assert!(matches!(state_store.add("counter", 1, 10, PATIENT, past).await, Err(PutError::Failed(_))));
    assert!(state_store.count("counter", past).await.is_err());
    assert_eq!(state_store.count("counter", soon()).await, Ok(0));
}

async fn nothing_is_granted_on_a_closed_connection(stage: Stage) {
    let (closed, open) = (stage.recorder().await, stage.recorder().await);
    closed.requests.close().await;
    assert!(matches!(add(&*closed.state_store, 1, 10).await, Err(PutError::Failed(_))));
    assert_eq!(open.state_store.count("counter", soon()).await, Ok(0));
}

async fn a_counter_grants_what_fits_below_the_limit_and_no_more(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    for (amount, granted, total) in [(4, 4, 4), (0, 0, 4), (5, 5, 9), (3, 1, 10), (1, 0, 10), (u64::MAX, 0, 10)] {
        assert_eq!(add(&*state_store, amount, 10).await, Ok(Added { granted, total }), "{amount}");
        assert_eq!(state_store.count("counter", soon()).await, Ok(total));
    }
}

async fn a_limit_that_was_lowered_takes_nothing_back(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    add(&*state_store, 10, 10).await.unwrap();
    assert_eq!(add(&*state_store, 1, 5).await, Ok(Added { granted: 0, total: 10 }));
    assert_eq!(add(&*state_store, 5, 12).await, Ok(Added { granted: 2, total: 12 }));
}

async fn a_subtracted_amount_is_granted_again(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    add(&*state_store, 10, 10).await.unwrap();
    assert_eq!(state_store.subtract("counter", 3, PATIENT, soon()).await, Ok(7));
    assert_eq!(add(&*state_store, 5, 10).await, Ok(Added { granted: 3, total: 10 }));
    assert_eq!(state_store.subtract("counter", 99, PATIENT, soon()).await, Ok(0), "never below nothing");
    assert_eq!(state_store.subtract("never", 1, PATIENT, soon()).await, Ok(0));
}

async fn a_counter_expires_by_itself(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    state_store.add("brief", 10, 10, Duration::from_secs(1), soon()).await.unwrap();
    wait_for("the counter ends", PATIENT, async || state_store.count("brief", soon()).await == Ok(0)).await;
    assert_eq!(state_store.add("brief", 1, 10, PATIENT, soon()).await, Ok(Added { granted: 1, total: 1 }));
}

async fn concurrent_additions_get_exactly_the_limit(stage: Stage) {
    let connections = join_all((0..3).map(|_| stage.recorder())).await;
    let adders = (0..24_u64).map(|number| {
        let state_store = Arc::clone(&connections[usize::try_from(number % 3).unwrap()].state_store);
        tokio::spawn(async move { add(&*state_store, number % 7 + 1, 60).await.unwrap() })
    });
    let added: Vec<Added> = join_all(adders).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(added.iter().map(|added| added.granted).sum::<u64>(), 60, "{added:?}");
    assert!(added.iter().all(|added| added.total <= 60));
    assert_eq!(connections[0].state_store.count("counter", soon()).await, Ok(60));
}

#[tokio::test]
async fn no_more_is_granted_than_there_is_however_often_nats_is_killed() {
    const LIMIT: u64 = 200;
    let mut nats = NatsServer::start().await;
    let connections = join_all((0..3).map(|_| recorder(&nats))).await;
    let ledgers: Vec<_> = connections.into_iter().map(|connection| connection.backplane().state_store).collect();
    let adders = join_all(ledgers.iter().map(async |state_store| {
        let mut granted = 0;
        loop {
            let until = Instant::now() + Duration::from_millis(300);
            match state_store.add("counter", 1, LIMIT, PATIENT * 10, until).await {
                Ok(Added { granted: 0, .. }) => return granted,
                Ok(added) => granted += added.granted,
                Err(_) => {
                    let back = async || state_store.count("counter", soon()).await.is_ok();
                    wait_for("the server", PATIENT, back).await;
                }
            }
        }
    }));
    let kills = async {
        for part in [40, 90, 140] {
            let reached = async || ledgers[0].count("counter", soon()).await.is_ok_and(|count| count >= part);
            wait_for("additions", PATIENT, reached).await;
            nats.kill();
            nats.restart().await;
        }
    };
    let (granted, ()) = tokio::join!(adders, kills);
    let granted: u64 = granted.into_iter().sum();
    // What was added by a request whose reply was lost is granted to no caller.
    assert!(granted <= LIMIT, "{granted}");
    assert!(granted > LIMIT / 2, "{granted}");
}
