//! Records that several processes share.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use stage0_backplane::testing::wait_for;
use stage0_backplane::{ListError, MAX_MESSAGE_BYTES, PutError, Revision, StateStore};
use tokio::time::Instant;

use crate::writing::soon;
use crate::{PATIENT, Stage, on_every_store};

on_every_store! {
    a_malformed_key_is_refused,
    a_record_that_is_too_large_is_refused,
    nothing_is_put_or_got_once_the_deadline_has_passed,
    nothing_is_put_or_got_on_a_closed_connection,
    a_record_that_was_changed_meanwhile_is_not_put,
    of_many_concurrent_puts_one_succeeds,
    a_record_is_there_with_its_bytes,
    keys_that_begin_alike_are_different,
    a_record_expires_by_itself,
    a_put_succeeds_without_a_revision_once_a_record_has_expired,
    records_below_one_prefix_are_listed_page_by_page_and_no_others,
    a_page_of_large_records_ends_early_and_the_rest_follows,
    an_unknown_cursor_is_refused_and_an_expired_record_is_not_listed,
}

async fn put(
    state_store: &dyn StateStore,
    key: &str,
    value: &str,
    expected: Option<Revision>,
) -> Result<Revision, PutError> {
    state_store.put(key, Bytes::from(value.to_owned()), expected, None, soon()).await
}

async fn get(state_store: &dyn StateStore, key: &str) -> Option<(Revision, Bytes)> {
    state_store.get(key, soon()).await.unwrap().map(|record| (record.revision, record.value))
}

/// Reads every page below a prefix and counts them; each lists its records and their sizes.
async fn listed(state_store: &dyn StateStore, under: &str, most: usize) -> (Vec<(String, usize)>, usize) {
    let (mut found, mut pages, mut after) = (Vec::new(), 0, None::<String>);
    loop {
        let page = state_store.list(under, after.as_deref(), most, soon()).await.unwrap();
        assert!(page.records.len() <= most, "{} records", page.records.len());
        found.extend(page.records.into_iter().map(|(word, record)| (word, record.value.len())));
        pages += 1;
        let Some(next) = page.next else { break };
        after = Some(next);
    }
    found.sort();
    (found, pages)
}

async fn records_below_one_prefix_are_listed_page_by_page_and_no_others(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    assert_eq!(listed(&*state_store, "cursor.a", 3).await, (Vec::new(), 1));
    for number in 0..7 {
        put(&*state_store, &format!("cursor.a.r{number}"), &"x".repeat(number), None).await.unwrap();
    }
    for other in ["cursor.a", "cursor.ab.r", "cursor.b.r", "cursor.a.deep.r", "replay.a.r"] {
        put(&*state_store, other, "other", None).await.unwrap();
    }
    let all: Vec<_> = (0..7).map(|number| (format!("r{number}"), number)).collect();
    for (most, least_pages) in [(1, 7), (3, 3), (1_000, 1)] {
        let (found, pages) = listed(&*state_store, "cursor.a", most).await;
        assert_eq!(found, all, "{most}");
        assert!(pages >= least_pages, "{pages} of at most {most}");
    }
    let page = state_store.list("cursor.b", None, 10, soon()).await.unwrap();
    let (word, record) = &page.records[0];
    assert_eq!(
        (word.as_str(), get(&*state_store, "cursor.b.r").await),
        ("r", Some((record.revision, record.value.clone())))
    );
    assert!(state_store.list("cursor.*", None, 10, soon()).await.is_err());
}

async fn a_page_of_large_records_ends_early_and_the_rest_follows(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    for number in 0..4 {
        put(&*state_store, &format!("cursor.a.r{number}"), &"x".repeat(200_000), None).await.unwrap();
    }
    let first = state_store.list("cursor.a", None, 100, soon()).await.unwrap();
    assert!((1..4).contains(&first.records.len()) && first.next.is_some(), "{}", first.records.len());
    assert_eq!(listed(&*state_store, "cursor.a", 100).await.0.len(), 4);
}

async fn an_unknown_cursor_is_refused_and_an_expired_record_is_not_listed(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    for cursor in ["a..b", "", "*", " ", "../a"] {
        let answer = state_store.list("cursor.a", Some(cursor), 10, soon()).await;
        assert_eq!(answer, Err(ListError::Cursor), "{cursor:?}");
    }
    let brief = Some(Duration::from_secs(1));
    state_store.put("cursor.a.brief", "x".into(), None, brief, soon()).await.unwrap();
    put(&*state_store, "cursor.a.kept", "x", None).await.unwrap();
    wait_for("the record's end", PATIENT, async || listed(&*state_store, "cursor.a", 10).await.0.len() == 1).await;
    assert_eq!(listed(&*state_store, "cursor.a", 10).await.0, [("kept".to_owned(), 1)]);
}

async fn a_malformed_key_is_refused(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    put(&*state_store, "cursor.a.b", "x", None).await.unwrap();
    let long = "x".repeat(201);
    for key in ["", ".", "a.", ".a", "a..b", "a.*", "*", "a.>", ">", "a b", "a\n", "ä", "a/b", long.as_str()] {
        let answer = put(&*state_store, key, "x", None).await;
        assert!(matches!(answer, Err(PutError::Failed(_))), "{key:?}: {answer:?}");
        assert!(state_store.get(key, soon()).await.is_err(), "{key:?}");
    }
    put(&*state_store, &"x".repeat(200), "x", None).await.unwrap();
}

async fn a_record_that_is_too_large_is_refused(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let put = async |bytes| state_store.put("large", vec![b'x'; bytes].into(), None, None, soon()).await;
    assert!(matches!(put(MAX_MESSAGE_BYTES + 1).await, Err(PutError::Failed(_))));
    put(MAX_MESSAGE_BYTES).await.unwrap();
    assert_eq!(get(&*state_store, "large").await.unwrap().1.len(), MAX_MESSAGE_BYTES);
}

async fn nothing_is_put_or_got_once_the_deadline_has_passed(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let past = Instant::now();
    let answer = state_store.put("a", "x".into(), None, None, past).await;
    assert!(matches!(answer, Err(PutError::Failed(_))), "{answer:?}");
    assert!(state_store.get("a", past).await.is_err());
    assert!(past.elapsed() < PATIENT / 2);
    assert_eq!(get(&*state_store, "a").await, None);
}

async fn nothing_is_put_or_got_on_a_closed_connection(stage: Stage) {
    let (closed, open) = (stage.recorder().await, stage.recorder().await);
    closed.requests.close().await;
    assert!(matches!(put(&*closed.state_store, "a", "x", None).await, Err(PutError::Failed(_))));
    assert!(closed.state_store.get("a", soon()).await.is_err());
    put(&*open.state_store, "a", "x", None).await.unwrap();
}

async fn a_record_that_was_changed_meanwhile_is_not_put(stage: Stage) {
    let (state_store, other) = (stage.recorder().await.state_store, stage.recorder().await.state_store);
    assert_eq!(put(&*state_store, "a", "x", Some(Revision(1))).await, Err(PutError::Conflict));
    let first = put(&*state_store, "a", "first", None).await.unwrap();
    assert_eq!(put(&*other, "a", "x", None).await, Err(PutError::Conflict));
    assert_eq!(put(&*other, "a", "x", Some(Revision(first.0 + 1))).await, Err(PutError::Conflict));
    let second = put(&*other, "a", "second", Some(first)).await.unwrap();
    assert!(second > first);
    assert_eq!(put(&*state_store, "a", "x", Some(first)).await, Err(PutError::Conflict));
    assert_eq!(get(&*state_store, "a").await, Some((second, "second".into())));
}

async fn of_many_concurrent_puts_one_succeeds(stage: Stage) {
    let connections = join_all((0..4).map(|_| stage.recorder())).await;
    let mut expected = None;
    for _ in 0..10 {
        let puts = connections.iter().enumerate().map(|(index, connection)| {
            let (state_store, value) = (connection.state_store.clone(), index.to_string());
            tokio::spawn(async move { put(&*state_store, "hot", &value, expected).await })
        });
        let answers: Vec<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.is_ok()).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| **answer == Err(PutError::Conflict)).count(), 3, "{answers:?}");
        let (index, revision) = (winners[0].0, winners[0].1.clone().unwrap());
        assert_eq!(get(&*connections[0].state_store, "hot").await, Some((revision, index.to_string().into())));
        expected = Some(revision);
    }
}

async fn a_record_is_there_with_its_bytes(stage: Stage) {
    let (state_store, other) = (stage.recorder().await.state_store, stage.recorder().await.state_store);
    assert_eq!(get(&*state_store, "cursor.a.b-c_D.9").await, None);
    let mut expected = None;
    for value in [(0..=255).collect::<Vec<u8>>(), Vec::new(), b"\r\n".to_vec()] {
        let value = Bytes::from(value);
        let revision = state_store.put("cursor.a.b-c_D.9", value.clone(), expected, None, soon()).await.unwrap();
        assert_eq!(get(&*other, "cursor.a.b-c_D.9").await, Some((revision, value)));
        expected = Some(revision);
    }
}

async fn keys_that_begin_alike_are_different(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let keys = ["a", "cursor.a", "cursor.a.b", "a_", "a-b", "A", "cursor", "runs.a", "usage.a", "keystore.a"];
    for key in keys {
        put(&*state_store, key, key, None).await.unwrap();
    }
    for key in keys {
        assert_eq!(get(&*state_store, key).await.unwrap().1, key);
    }
}

async fn a_record_expires_by_itself(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let lifetime = Duration::from_millis(900);
    let started = Instant::now();
    let revision = state_store.put("brief", "x".into(), None, Some(lifetime), soon()).await.unwrap();
    let found = get(&*state_store, "brief").await;
    assert!(found.is_some() || started.elapsed() >= lifetime, "it ended too early");
    wait_for("the record ends", PATIENT, async || get(&*state_store, "brief").await.is_none()).await;
    assert!(started.elapsed() >= lifetime, "it ended too early");
    assert_eq!(put(&*state_store, "brief", "y", Some(revision)).await, Err(PutError::Conflict));
    let again = put(&*state_store, "brief", "again", None).await.unwrap();
    assert!(again > revision);
    assert_eq!(get(&*state_store, "brief").await, Some((again, "again".into())));
}

async fn a_put_succeeds_without_a_revision_once_a_record_has_expired(stage: Stage) {
    let state_store = stage.recorder().await.state_store;
    let second = Some(Duration::from_secs(1));
    let brief = state_store.put("stays", "x".into(), None, second, soon()).await.unwrap();
    state_store.put("stays", "y".into(), Some(brief), None, soon()).await.unwrap();
    let lasting = put(&*state_store, "ends", "x", None).await.unwrap();
    state_store.put("ends", "y".into(), Some(lasting), second, soon()).await.unwrap();
    wait_for("the record ends", PATIENT, async || get(&*state_store, "ends").await.is_none()).await;
    assert_eq!(get(&*state_store, "stays").await.unwrap().1, "y");
}
