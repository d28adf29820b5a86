//! The embedded log's file: opened again, killed at random moments, in use, damaged.

use std::os::unix::fs::PermissionsExt as _;

use stage0_backplane::EntryKind;
use stage0_backplane::embedded::{Bus, LOG_FILE, OpenError};

use crate::witness::{Witness, Writer, random_below, random_delay, rounds};
use crate::writing::{DECISIONS, account, append, batch, everything, mark, soon, texts, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut witness = Witness::default();
    for round in 0..rounds(3) {
        let mut writer = Writer::start(directory.path());
        witness.read_until(&writer, 1 + random_below(400), random_delay());
        writer.child.kill().unwrap();
        witness.read_rest(writer);
        let backplane = Bus::open(directory.path()).unwrap().connect();
        witness.confirm(&backplane).await;
        witness.append_the_last_again(&backplane).await;
        let confirmed = witness.confirm(&backplane).await;
        println!("round {round}: {confirmed} acknowledged appends hold");
    }
}

#[tokio::test]
async fn a_log_file_keeps_its_content_when_it_is_opened_again() {
    let (directory, a) = (tempfile::tempdir().unwrap(), account("a"));
    let once = batch(&a, "once");
    let (position, revision) = {
        let backplane = Bus::open(directory.path()).unwrap().connect();
        append(&*backplane.log, once.clone(), soon()).await.unwrap();
        let position = mark(&*backplane.log, &a, "mark", None).await;
        (position, backplane.state_store.put("k", "v".into(), None, None, soon()).await.unwrap())
    };
    let backplane = Bus::open(directory.path()).unwrap().connect();
    append(&*backplane.log, once, soon()).await.unwrap();
    write(&*backplane.log, &a, "next").await;
    let found = everything(&*backplane.log, &a, DECISIONS).await;
    assert_eq!(texts(&found), ["once", "next"]);
    assert!(found[0].position < position && position < found[1].position);
    assert_eq!(backplane.log.last(&a, EntryKind::Mark, soon()).await.unwrap().unwrap().position, position);
    let next = backplane.state_store.put("k", "w".into(), Some(revision), None, soon()).await.unwrap();
    assert!(next > revision);
}

#[tokio::test]
async fn a_file_is_private_and_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let bus = Bus::open(directory.path()).unwrap();
    let mode = std::fs::metadata(directory.path().join(LOG_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Bus::open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Locked(_)), "{error:?}");
    write(&*bus.connect().log, &account("a"), "unharmed").await;
    drop(bus);
    assert!(Bus::open(directory.path()).is_ok());
}

#[tokio::test]
async fn a_directory_that_is_not_there_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let error = Bus::open(&directory.path().join("missing")).err().unwrap();
    assert!(matches!(error, OpenError::Io(..)), "{error:?}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_and_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(LOG_FILE);
    let log = Bus::open(directory.path()).unwrap().connect().log;
    for number in 0..50 {
        write(&*log, &account("a"), format!("{number} {}", "x".repeat(2_000))).await;
    }
    drop(log);
    let whole = std::fs::read(&file).unwrap();
    let mut zeroed = whole.clone();
    zeroed[4096..].fill(0);
    for damaged in [b"no database at all".to_vec(), whole[..whole.len() / 3].to_vec(), zeroed] {
        std::fs::write(&file, &damaged).unwrap();
        let error = Bus::open(directory.path()).err().expect("damage is noticed");
        assert!(matches!(error, OpenError::Damaged(..)), "{error:?}");
        assert!(error.to_string().contains(LOG_FILE) && error.to_string().contains("is damaged"), "{error}");
    }
    std::fs::write(&file, &whole).unwrap();
    let log = Bus::open(directory.path()).unwrap().connect().log;
    assert_eq!(everything(&*log, &account("a"), DECISIONS).await.len(), 50);
}
