//! The disk is full: appends fail in time, and nothing that was acknowledged is lost.

use std::time::Duration;

use stage0_backplane::embedded::Bus;
use stage0_backplane::testing::{Disk, NatsServer};
use stage0_backplane::{AppendError, Backplane};
use tokio::time::Instant;

use crate::writing::{account, append, batch, decisions, recorder, write};

const APPEND_TIMEOUT: Duration = Duration::from_millis(500);
/// Allowance for a busy machine.
const MAX_DELAY: Duration = Duration::from_secs(3);
const BYTES: u64 = 24 << 20;
const ROOM: u64 = 4 << 20;

/// Appends large batches and then smaller ones until no more are accepted; returns what was acknowledged.
async fn append_until_full(backplane: &Backplane) -> Vec<String> {
    let (mut stored, mut failures) = (Vec::new(), 0);
    for number in 0..20_000 {
        let size = [50_000, 5_000, 500, 0][failures];
        let text = format!("{number} {}", "x".repeat(size));
        let started = Instant::now();
        match append(&*backplane.log, batch(&account("a"), text.clone()), started + APPEND_TIMEOUT).await {
            Ok(()) => stored.push(text),
            Err(AppendError::NotStored(_) | AppendError::Unknown(_)) => failures += 1,
        }
        assert!(started.elapsed() < APPEND_TIMEOUT + MAX_DELAY, "{:?}", started.elapsed());
        if failures == 4 {
            assert!(!stored.is_empty());
            return stored;
        }
    }
    panic!("the disk never ran full");
}

/// Every acknowledged batch is stored exactly once, and no other batch is stored twice.
async fn holds(backplane: &Backplane, stored: &[String]) {
    let mut found = decisions(&*backplane.log, &account("a")).await;
    found.sort();
    assert!(found.windows(2).all(|two| two[0] != two[1]), "something is there twice");
    for text in stored {
        let number = text.split(' ').next().unwrap();
        assert!(found.binary_search(text).is_ok(), "acknowledged batch {number} is lost");
    }
}

#[tokio::test]
async fn a_server_on_a_full_disk_stores_nothing_and_loses_nothing() {
    let Some(disk) = Disk::small(BYTES) else { return };
    // JetStream would stop long before the disk is full.
    let settings = "max_payload: 8MB\njetstream {\n  sync_interval: always\n  max_file_store: 1GB\n}";
    let Some(mut nats) = NatsServer::start_in(&disk.path().join("nats"), settings).await else {
        eprintln!("NOT TESTED: a container does not see this machine's disks");
        return;
    };
    let connection = recorder(&nats).await.backplane();
    write(&*connection.log, &account("b"), "before").await;
    disk.fill(ROOM);
    let stored = append_until_full(&connection).await;
    println!("{} batches fit", stored.len());
    let why = connection.log.ready().await.unwrap_err().to_string();
    assert!(why.contains("cannot write `S0_LOG`") && why.contains("no space left on device"), "{why}");
    nats.kill();
    disk.empty();
    nats.restart().await;
    let connection = recorder(&nats).await.backplane();
    holds(&connection, &stored).await;
    assert_eq!(decisions(&*connection.log, &account("b")).await, ["before"]);
    write(&*connection.log, &account("b"), "after").await;
    nats.kill();
}

#[tokio::test]
async fn a_file_on_a_full_disk_fails_is_read_and_works_again_by_itself() {
    let Some(disk) = Disk::small(BYTES) else { return };
    let bus = Bus::open(disk.path()).unwrap();
    let connection = bus.connect();
    write(&*connection.log, &account("b"), "before").await;
    assert_eq!(connection.log.ready().await, Ok(Vec::new()));
    disk.fill(ROOM);
    let stored = append_until_full(&connection).await;
    println!("{} batches fit", stored.len());
    assert!(connection.log.ready().await.is_err());
    holds(&connection, &stored).await;

    disk.empty();
    write(&*connection.log, &account("b"), "small ones fit again").await;
    assert_eq!(connection.log.ready().await, Ok(Vec::new()));
    holds(&connection, &stored).await;
    drop((bus, connection));
    let connection = Bus::open(disk.path()).unwrap().connect();
    holds(&connection, &stored).await;
    assert_eq!(decisions(&*connection.log, &account("b")).await, ["before", "small ones fit again"]);
}
