//! A directory that was written before there were webhook endpoints and signing keys: accounts and keys, and nothing else.
//!
//! The files are what that version left when it was killed.

use std::path::{Path, PathBuf};

use stage0_contract::{AccountId, KeyId, ListRetentions, SigningKeys};

use crate::damage::copy_dir;
use crate::harness::{Running, config, done, nobody};

const ACCOUNT: &str = "acc_vzs43dqa08zkxvhq";
pub(crate) const LIVE: [&str; 3] = ["sfn5vvfd0bhb9a4z", "n1hykybrwxx1t7t8", "901v2rmqejf65fpy"];
const ENDED: [&str; 3] = ["mz5hy293vwwctqx6", "2n7akfcft03t065d", "y6qhnsqa3qydtmvw"];

pub(crate) fn older(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    copy_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/before_webhooks"), &data);
    data
}

/// It opens, takes a record of a later version, and opens again; returns what was put aside.
async fn is_carried_on(data: &Path) -> Vec<String> {
    let account = AccountId::parse(ACCOUNT).unwrap();
    for _ in 0..2 {
        let running = Running::start_as(config(data), nobody()).await.unwrap();
        for id in LIVE {
            assert!(running.lives(&KeyId::parse(id).unwrap()).await, "{id} is lost");
        }
        for id in ENDED {
            assert!(!running.lives(&KeyId::parse(id).unwrap()).await, "{id} came back to life");
        }
        let kept = done(running.ask(&ListRetentions { cursor: None }).await).items;
        assert!(kept.iter().any(|(id, _)| *id == account), "{kept:?}");
        // Its public key was stored at the first start.
        assert_eq!(done(running.ask(&SigningKeys::default()).await).items.len(), 1);
        assert_eq!(running.endpoints().await.len(), 0);
        running.stop().await;
    }
    let names = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".damaged-")).collect()
}

#[tokio::test]
async fn what_an_older_version_left_is_opened_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(is_carried_on(&older(dir.path())).await, Vec::<String>::new());
}

#[tokio::test]
async fn each_of_journal_and_store_is_made_of_the_other_ones_older_records() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    std::fs::remove_dir_all(data.join("store")).unwrap();
    assert_eq!(is_carried_on(&data).await, Vec::<String>::new());
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    // Once, so that the state store knows how new the store must be.
    Running::start_as(config(&data), nobody()).await.unwrap().stop().await;
    std::fs::remove_file(data.join("journal")).unwrap();
    assert_eq!(is_carried_on(&data).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_older_store_without_its_journal_is_refused_while_nothing_tells_how_new_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    std::fs::remove_file(data.join("journal")).unwrap();
    let refused = Running::start_as(config(&data), nobody()).await.err().expect("it started");
    let text = std::error::Error::source(&refused).unwrap().to_string();
    assert!(text.contains("the journal is missing") && text.contains("--accept-restore"), "{text}");
    assert!(!data.join("journal").exists());
}
