//! A decision log on NATS that dies, freezes, or is gone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use stage0_backplane::nats::{Connection, NatsConfig};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_backplane::{
    AppendError, DecisionLog, EntryFilter, EntryKind, MarkError, Position, PutError, ReadError, Seek,
};
use tokio::time::Instant;

use crate::PATIENT;
use crate::writing::{DECISIONS, account, append, batch, decisions, everything, in_pieces, recorder, soon, write};

/// Far below every deadline in a patient test, far above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

async fn is_back(log: &dyn DecisionLog) {
    wait_for("the log is ready again", PATIENT, async || log.ready().await.is_ok()).await;
}

#[tokio::test]
async fn a_killed_server_loses_and_doubles_nothing_that_is_appended_until_it_is_acknowledged() {
    let mut nats = NatsServer::start().await;
    let connection = recorder(&nats).await.backplane();
    let acknowledged = AtomicUsize::new(0);
    let writers = (0..8).map(async |writer| {
        let mut doubtful = 0;
        for number in 0..150 {
            let batch = batch(&account("a"), format!("{writer} {number:03}"));
            wait_for("the batch is acknowledged", PATIENT, async || {
                let answer = append(&*connection.log, batch.clone(), Instant::now() + SHORT).await;
                doubtful += usize::from(matches!(answer, Err(AppendError::Unknown(_))));
                answer.is_ok()
            })
            .await;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        doubtful
    });
    let kills = async {
        for round in 1..=5 {
            let enough = async || acknowledged.load(Ordering::Relaxed) > round * 200;
            wait_for("some are acknowledged", PATIENT, enough).await;
            nats.restart().await;
        }
    };
    let (doubtful, ()) = tokio::join!(join_all(writers), kills);
    let doubtful: usize = doubtful.into_iter().sum();
    let mut found = decisions(&*connection.log, &account("a")).await;
    found.sort();
    let written = (0..8).flat_map(|writer| (0..150).map(move |number| format!("{writer} {number:03}")));
    assert_eq!(found, written.collect::<Vec<_>>());
    println!("{doubtful} appends ended in doubt");
}

#[tokio::test]
async fn an_append_to_a_frozen_server_is_unknown_and_appending_it_again_settles_it() {
    let nats = NatsServer::start().await;
    let (log, a) = (recorder(&nats).await.backplane().log, account("a"));
    write(&*log, &a, "before").await;
    let doubtful = batch(&a, "doubtful");
    nats.freeze();
    let started = Instant::now();
    let answer = append(&*log, doubtful.clone(), Instant::now() + Duration::from_millis(100)).await;
    assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
    let mark = log.append_mark(&a, "m".into(), None, Instant::now() + SHORT).await;
    assert!(matches!(mark, Err(MarkError::Failed(_))), "{mark:?}");
    let read = log.read(&a, DECISIONS, Seek::Start, usize::MAX, Instant::now() + SHORT).await;
    assert!(read.is_err(), "{read:?}");
    assert!(log.last(&a, EntryKind::Decisions, Instant::now() + SHORT).await.is_err());
    assert!(log.ready().await.is_err());
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    wait_for("the connection is given up", PATIENT, async || {
        let answer = append(&*log, batch(&a, "never sent"), Instant::now() + SHORT).await;
        matches!(answer, Err(AppendError::NotStored(_)))
    })
    .await;

    nats.thaw();
    is_back(&*log).await;
    wait_for("it is settled", PATIENT, async || append(&*log, doubtful.clone(), soon()).await.is_ok()).await;
    let found = decisions(&*log, &a).await;
    assert_eq!(found.iter().filter(|text| *text == "doubtful").count(), 1, "{found:?}");
    assert_eq!(found[0], "before");
}

#[tokio::test]
async fn appends_fail_at_once_while_the_server_is_down() {
    let mut nats = NatsServer::start().await;
    let (connection, a) = (recorder(&nats).await.backplane(), account("a"));
    let (log, state_store) = (connection.log, connection.state_store);
    write(&*log, &a, "before").await;
    let revision = state_store.put("k", "v".into(), None, None, soon()).await.unwrap();
    nats.kill();
    wait_for("the break is noticed", PATIENT, async || connection.requests.ready().await.is_err()).await;
    let started = Instant::now();
    for _ in 0..10 {
        let answer = append(&*log, batch(&a, "down"), soon()).await;
        assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    }
    let offline = Err(ReadError("not connected to nats".into()));
    assert_eq!(log.read(&a, EntryFilter::All, Seek::Start, 1, soon()).await.map(drop), offline);
    assert_eq!(log.accounts(soon()).await.map(drop), offline);
    assert_eq!(log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), soon()).await.map(drop), offline);
    assert_eq!(state_store.get("k", soon()).await.map(drop), offline);
    let put = state_store.put("k", "w".into(), Some(revision), None, soon()).await;
    assert!(matches!(put, Err(PutError::Failed(_))), "{put:?}");
    assert!(log.ready().await.is_err());
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());

    nats.restart().await;
    is_back(&*log).await;
    assert_eq!(decisions(&*log, &a).await, ["before"]);
    assert_eq!(state_store.get("k", soon()).await.unwrap().unwrap().value, "v");
    write(&*log, &a, "after").await;
}

/// As many as one request brings.
const MANY: usize = 4_000;

async fn many(log: &dyn DecisionLog) {
    for start in (0..MANY).step_by(1_000) {
        let batches = (start..start + 1_000).map(|number| batch(&account("a"), format!("{number} {:0500}", 0)));
        assert!(log.append(batches.collect(), soon()).await.iter().all(Result::is_ok));
    }
    assert_eq!(in_pieces(log, &account("a"), DECISIONS, usize::MAX).await.len(), MANY);
}

/// Everything, or an error; never a part that claims to be everything.
fn is_whole(read: &Result<stage0_backplane::Chunk, ReadError>) -> bool {
    match read {
        Ok(chunk) => {
            assert_eq!((chunk.entries.len(), chunk.more), (MANY, false), "a part was taken for the whole");
            true
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_the_server_does_not_finish_is_an_error() {
    let mut nats = NatsServer::start().await;
    let (log, a) = (recorder(&nats).await.backplane().log, account("a"));
    many(&*log).await;
    let mut broken = 0;
    for round in 0..12_u64 {
        is_back(&*log).await;
        let reading = {
            let (log, a) = (log.clone(), a.clone());
            tokio::spawn(async move {
                loop {
                    let read = log.read(&a, DECISIONS, Seek::Start, usize::MAX, soon()).await;
                    if !is_whole(&read) {
                        return read.unwrap_err();
                    }
                }
            })
        };
        // At another moment of a read each time.
        for _ in 0..=round * 7 {
            drop(log.last(&a, EntryKind::Decisions, soon()).await);
        }
        let killed = Instant::now();
        nats.kill();
        let error = reading.await.unwrap();
        assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
        broken += usize::from(error.0.to_string().contains("is lost"));
        nats.restart().await;
    }
    println!("{broken} of 12 reads were cut in the middle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_ends_with_an_error_when_its_connection_is_closed_or_its_server_frozen() {
    let nats = NatsServer::start().await;
    let a = account("a");
    many(&*recorder(&nats).await.backplane().log).await;
    for turns in 0..10 {
        let connection = recorder(&nats).await.backplane();
        let (log, a) = (connection.log.clone(), a.clone());
        let reading = tokio::spawn(async move { log.read(&a, DECISIONS, Seek::Start, usize::MAX, soon()).await });
        for _ in 0..turns {
            drop(connection.requests.ready().await);
        }
        let closed = Instant::now();
        connection.requests.close().await;
        is_whole(&reading.await.unwrap());
        assert!(closed.elapsed() < AT_ONCE, "{:?}", closed.elapsed());
    }
    let log = recorder(&nats).await.backplane().log;
    let reading = log.read(&a, DECISIONS, Seek::Start, usize::MAX, Instant::now() + SHORT);
    let (read, ()) = tokio::join!(reading, async { nats.freeze() });
    is_whole(&read);
    nats.thaw();
}

#[tokio::test]
async fn deployments_with_different_prefixes_exchange_no_messages() {
    let nats = NatsServer::start().await;
    let with = async |prefix: &str| {
        let config = NatsConfig { prefix: prefix.to_owned(), ..nats.config("suite") };
        let connection = Connection::open(&config).await.unwrap();
        (connection.prepare_log(1).await, connection.backplane())
    };
    let (prepared, one) = with("stage0.test-1").await;
    prepared.unwrap();
    let (prepared, other) = with("s0").await;
    prepared.unwrap();
    let a = account("a");
    write(&*one.log, &a, "one").await;
    write(&*other.log, &a, "other").await;
    one.state_store.put("k", "one".into(), None, None, soon()).await.unwrap();
    assert_eq!(decisions(&*one.log, &a).await, ["one"]);
    assert_eq!(everything(&*other.log, &a, EntryFilter::All).await.len(), 1);
    assert_eq!(one.log.accounts(soon()).await.unwrap(), std::slice::from_ref(&a));
    assert_eq!(other.state_store.get("k", soon()).await, Ok(None));
    assert_eq!(one.log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), soon()).await, Ok(1));
    assert_eq!(decisions(&*other.log, &a).await, ["other"]);

    // These two would have the same stream name.
    let (prepared, _) = with("stage0_test-1").await;
    let why = prepared.unwrap_err().to_string();
    assert!(why.contains("`STAGE0_TEST-1_LOG` is not as it has to be: its `subjects` differs"), "{why}");
}

#[tokio::test]
async fn streams_are_made_once_and_many_may_make_them() {
    let nats = NatsServer::start().await;
    let connections = join_all((0..5).map(|_| async {
        let connection = Connection::open(&nats.config("suite")).await.unwrap();
        connection.prepare_log(1).await.unwrap();
        connection.prepare_log(1).await.unwrap();
        connection.backplane()
    }));
    let connections = connections.await;
    write(&*connections[0].log, &account("a"), "x").await;
    assert_eq!(decisions(&*connections[4].log, &account("a")).await, ["x"]);
}

#[tokio::test]
async fn a_server_without_jetstream_keeps_no_log_and_says_so() {
    let nats = NatsServer::start_with("max_payload: 8MB").await;
    let connection = Connection::open(&nats.config("suite")).await.unwrap();
    let why = connection.prepare_log(1).await.unwrap_err().to_string();
    assert!(why.contains("JetStream is off"), "{why}");
    let log = connection.backplane().log;
    let answer = append(&*log, batch(&account("a"), "x"), soon()).await;
    assert!(matches!(answer, Err(AppendError::NotStored(_))), "{answer:?}");
    assert!(log.read(&account("a"), EntryFilter::All, Seek::Start, 1, soon()).await.is_err());
    assert!(log.ready().await.unwrap_err().to_string().contains("JetStream is off"));
}

#[tokio::test]
async fn a_server_at_its_limit_is_not_ready_whether_or_not_its_monitor_is_asked() {
    let settings = "max_payload: 8MB\njetstream {\n  sync_interval: always\n  max_file_store: 16MB\n}";
    let nats = NatsServer::start_with(settings).await;
    let asking = recorder(&nats).await.backplane();
    let silent = Connection::open(&nats.config("suite")).await.unwrap().backplane();
    assert_eq!(asking.log.ready().await, Ok(Vec::new()));
    let a = account("a");
    let lines = vec![b'x'; 1_000_000];
    let mut room = 0;
    let refused = loop {
        match append(&*silent.log, batch(&a, lines.clone()), soon()).await {
            Ok(()) => room += 1,
            Err(error) => break error,
        }
        assert!(room < 20, "it takes all");
    };
    assert!(matches!(refused, AppendError::NotStored(_)), "{refused:?}");
    assert!(silent.log.ready().await.unwrap_err().to_string().contains("an append found no room"));
    assert!(asking.log.ready().await.unwrap_err().to_string().contains("has no room"));

    silent.log.remove_through(&a, EntryKind::Decisions, Position(u64::MAX), soon()).await.unwrap();
    write(&*silent.log, &a, "x").await;
    silent.log.ready().await.unwrap();
    wait_for("the monitor tells the room", PATIENT, async || asking.log.ready().await.is_ok()).await;
}
