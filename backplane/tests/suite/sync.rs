//! A log is only as durable as the server's disk: how a server is treated that syncs rarely, or does not say.

use stage0_backplane::nats::{Connection, NatsConfig, PrepareError, SyncMode};
use stage0_backplane::testing::{NatsServer, SYNCED, wait_for};
use stage0_backplane::{AppendError, DecisionLog, MarkError};
use tokio::time::Instant;

use crate::PATIENT;
use crate::writing::{account, append, batch, decisions, recorder, soon, verified, write};

/// JetStream with its defaults.
const RELAXED: &str = "max_payload: 8MB\njetstream {\n}";

fn with(nats: &NatsServer, monitors: &[String], dangerous_relaxed: bool) -> NatsConfig {
    NatsConfig { sync: SyncMode { monitors: monitors.to_vec(), dangerous_relaxed }, ..nats.config("suite") }
}

async fn is_refused(log: &dyn DecisionLog, why: &str) {
    match append(log, batch(&account("a"), "x"), soon()).await {
        Err(AppendError::NotStored(reason)) => assert!(reason.to_string().contains(why), "{reason}"),
        other => panic!("{other:?}"),
    }
    match log.append_mark(&account("a"), "m".into(), None, soon()).await {
        Err(MarkError::Failed(reason)) => assert!(reason.to_string().contains(why), "{reason}"),
        other => panic!("{other:?}"),
    }
    let reason = log.ready().await.unwrap_err().to_string();
    assert!(reason.contains(why), "{reason}");
}

/// Opens a connection whose log cannot be prepared, and returns why.
async fn refusal(config: &NatsConfig) -> (Connection, String) {
    let connection = Connection::open(config).await.unwrap();
    match connection.prepare_log(1).await {
        Err(PrepareError::Sync(why)) => (connection, why.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_syncs_rarely_is_refused() {
    let nats = NatsServer::start_with(RELAXED).await;
    let (connection, why) = refusal(&verified(&nats)).await;
    assert!(why.contains(&nats.monitor()) && why.contains("sync_interval: always"), "{why}");
    is_refused(&*connection.backplane().log, "does not sync each message").await;
    assert!(connection.backplane().log.accounts(soon()).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_server_among_several_that_syncs_rarely_is_enough_to_refuse() {
    let (good, bad) = (NatsServer::start().await, NatsServer::start_with(RELAXED).await);
    let (_, why) = refusal(&with(&good, &[good.monitor(), bad.monitor()], false)).await;
    assert!(why.contains(&bad.monitor()), "{why}");
}

#[tokio::test]
async fn a_server_that_syncs_rarely_is_used_with_the_dangerous_setting_and_readiness_says_so() {
    let nats = NatsServer::start_with(RELAXED).await;
    for monitors in [vec![], vec![nats.monitor()]] {
        let connection = Connection::open(&with(&nats, &monitors, true)).await.unwrap();
        connection.prepare_log(1).await.unwrap();
        let log = connection.backplane().log;
        write(&*log, &account("a"), "x").await;
        let remarks = log.ready().await.unwrap();
        assert!(remarks.len() == 1 && remarks[0].contains("a power cut may lose decisions"), "{remarks:?}");
    }
}

#[tokio::test]
async fn a_server_without_a_monitor_is_used_and_readiness_says_that_it_is_not_verified() {
    let nats = NatsServer::start().await;
    let connection = Connection::open(&nats.config("suite")).await.unwrap();
    connection.prepare_log(1).await.unwrap();
    let log = connection.backplane().log;
    write(&*log, &account("a"), "x").await;
    assert_eq!(log.ready().await.unwrap(), ["audit: sync mode not verified"]);
}

#[tokio::test]
async fn a_server_that_begins_to_sync_rarely_is_refused_until_it_syncs_again() {
    let mut nats = NatsServer::start().await;
    let connection = recorder(&nats).await;
    let (log, requests) = (connection.backplane().log, connection.backplane().requests);
    write(&*log, &account("a"), "x").await;
    assert_eq!(log.ready().await, Ok(Vec::new()));

    nats.restart_with(RELAXED).await;
    wait_for("it is connected again", PATIENT, async || requests.ready().await.is_ok()).await;
    // A container has lost the streams.
    assert!(matches!(connection.prepare_log(1).await, Err(PrepareError::Sync(_))));
    is_refused(&*log, "does not sync each message").await;

    nats.restart_with(SYNCED).await;
    wait_for("it is connected again", PATIENT, async || connection.prepare_log(1).await.is_ok()).await;
    write(&*log, &account("b"), "x").await;
    assert_eq!(log.ready().await, Ok(Vec::new()));
}

#[tokio::test]
async fn one_server_of_three_that_is_lost_or_frozen_stops_no_append_and_readiness_names_it() {
    let (nats, other) = (NatsServer::start().await, NatsServer::start().await);
    let (mut gone, frozen) = (NatsServer::start().await, NatsServer::start().await);
    gone.kill();
    frozen.freeze();
    for lost in [&gone, &frozen] {
        // In whatever order.
        for monitors in [[&nats, &other, lost], [lost, &nats, &other]] {
            let monitors = monitors.map(NatsServer::monitor);
            let connection = Connection::open(&with(&nats, &monitors, false)).await.unwrap();
            let began = Instant::now();
            connection.prepare_log(1).await.unwrap();
            let log = connection.backplane().log;
            write(&*log, &account("a"), "two of three are enough").await;
            assert!(began.elapsed() < PATIENT / 3, "{:?}", began.elapsed());
            let remarks = log.ready().await.unwrap();
            assert!(remarks.len() == 1 && remarks[0].contains(&lost.monitor()), "{remarks:?}");
        }
    }
    let (connection, why) = refusal(&with(&nats, &[nats.monitor(), gone.monitor(), frozen.monitor()], false)).await;
    assert!(why.contains(&gone.monitor()) && why.contains(&frozen.monitor()), "{why}");
    is_refused(&*connection.backplane().log, "does not answer").await;
    frozen.thaw();
}

#[tokio::test]
async fn one_server_of_three_that_syncs_rarely_is_enough_to_refuse_also_where_another_is_lost() {
    let (nats, relaxed) = (NatsServer::start().await, NatsServer::start_with(RELAXED).await);
    let mut gone = NatsServer::start().await;
    gone.kill();
    let (_, why) = refusal(&with(&nats, &[nats.monitor(), gone.monitor(), relaxed.monitor()], false)).await;
    assert!(why.contains(&relaxed.monitor()) && why.contains("does not sync each message"), "{why}");
}

#[tokio::test]
async fn an_append_is_refused_at_start_while_the_monitor_does_not_answer() {
    let (nats, mut gone) = (NatsServer::start().await, NatsServer::start().await);
    gone.kill();
    let (connection, why) = refusal(&with(&nats, &[gone.monitor()], false)).await;
    assert!(why.contains(&gone.monitor()) && why.contains("does not answer"), "{why}");
    is_refused(&*connection.backplane().log, "does not answer").await;
}

#[tokio::test]
async fn an_append_is_refused_at_start_while_the_monitor_is_frozen() {
    let (nats, frozen) = (NatsServer::start().await, NatsServer::start().await);
    frozen.freeze();
    let (_, why) = refusal(&with(&nats, &[frozen.monitor()], false)).await;
    assert!(why.contains("does not answer"), "{why}");
    frozen.thaw();
}

#[tokio::test]
async fn an_answer_that_is_not_jetstreams_monitor_is_refused() {
    let (nats, plain) = (NatsServer::start().await, NatsServer::start_with("max_payload: 8MB").await);
    let (_, why) = refusal(&with(&nats, &[plain.monitor()], false)).await;
    assert!(why.contains("no monitor of nats with JetStream"), "{why}");
    let clients_port = nats.url().replace("nats://", "http://");
    let (_, why) = refusal(&with(&nats, &[clients_port], false)).await;
    assert!(why.contains("not verified"), "{why}");
}

#[tokio::test]
async fn the_last_answer_of_a_lost_monitor_counts_until_the_connection_breaks() {
    // The monitor of one stands in for that of the other, so that it can be lost alone.
    let (mut nats, mut monitor) = (NatsServer::start().await, NatsServer::start().await);
    let connection = Connection::open(&with(&nats, &[monitor.monitor()], false)).await.unwrap();
    connection.prepare_log(1).await.unwrap();
    let (log, requests) = (connection.backplane().log, connection.backplane().requests);
    monitor.kill();
    write(&*log, &account("a"), "on the connection that was verified").await;

    nats.restart().await;
    wait_for("it is connected again", PATIENT, async || requests.ready().await.is_ok()).await;
    is_refused(&*log, "does not answer").await;

    monitor.restart().await;
    wait_for("the log is ready again", PATIENT, async || log.ready().await.is_ok()).await;
    write(&*log, &account("a"), "verified again").await;
    assert_eq!(decisions(&*log, &account("a")).await.len(), 2);
}
