//! Marks that the keystore signs, and the keys that verify them.

use stage0_contract::{AccountId, Mark, MarkBody, PublicKey, SignMark, SigningKeys};
use stage0_keystore::{KeystoreConfig, SIGNING_KEY_FILE};

use crate::harness::{Running, config, done};

fn mark(number: u64) -> Mark {
    Mark {
        body: MarkBody::Checkpoint {},
        account: AccountId::parse("acc_a").unwrap(),
        number,
        previous: None,
        recorded_at: "2026-03-04T05:06:07.089Z".parse().unwrap(),
        expires_at: 1_900_000_000,
        through: 12,
        covered: 2,
        heads: Vec::new(),
    }
}

async fn sign(running: &Running, number: u64) -> Vec<u8> {
    done(running.ask(&SignMark { mark: mark(number) }).await).line.into_bytes()
}

async fn keys(running: &Running) -> Vec<PublicKey> {
    done(running.ask(&SigningKeys {}).await).items
}

#[tokio::test]
async fn a_signed_mark_verifies_and_with_any_byte_altered_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let line = sign(&running, 7).await;
    let [key] = keys(&running).await.try_into().unwrap();
    assert!(key.signed(&line));
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(serde_json::from_value::<Mark>(read.clone()).unwrap(), mark(7));
    assert_eq!(read["signed_by"], key.id.as_str());
    for at in 0..line.len() {
        let mut altered = line.clone();
        altered[at] ^= 0x20;
        assert!(!key.signed(&altered), "{at}");
    }
    running.stop().await;
}

#[tokio::test]
async fn after_a_rotation_or_a_loss_old_marks_are_still_verified() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(SIGNING_KEY_FILE);
    let mut lines = Vec::new();
    for turn in 0..3 {
        match turn {
            0 => {}
            1 => std::fs::write(&file, "ab".repeat(32) + "\n").unwrap(),
            _ => std::fs::remove_file(&file).unwrap(),
        }
        let running = Running::start(dir.path()).await;
        lines.push(sign(&running, turn).await);
        let keys = keys(&running).await;
        assert_eq!(keys.len(), lines.len());
        for line in &lines {
            assert_eq!(keys.iter().filter(|key| key.signed(line)).count(), 1);
        }
        running.stop().await;
    }
    // The same file again is no rotation.
    let running = Running::start(dir.path()).await;
    assert_eq!(keys(&running).await.len(), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_signing_key_that_cannot_be_read_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    Running::start(dir.path()).await.stop().await;
    let file = dir.path().join(SIGNING_KEY_FILE);
    std::fs::write(&file, "ab\n").unwrap();
    assert!(Running::try_start(dir.path()).await.is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ab\n");
    let given = KeystoreConfig { signing_key_file: Some(dir.path().join("given")), ..config(dir.path()) };
    assert!(Running::start_with(given.clone()).await.is_err());
    std::fs::write(dir.path().join("given"), "cd".repeat(32)).unwrap();
    Running::start_with(given).await.unwrap().stop().await;
}
