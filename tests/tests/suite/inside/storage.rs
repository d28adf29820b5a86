//! Disks that are full, and logs that are not there any more.
//!
//! A full disk must not keep a stolen key alive, and an emptied log must not look like a new deployment.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use stage0_backplane::testing::{Disk, wait_for};
use stage0_tests::{Api, Process, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
const DISK_BYTES: u64 = 40 << 20;

fn dev(data: &Path, more: &[&str]) -> Process {
    let own = ["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir", data.to_str().unwrap()];
    Process::start(&own.iter().chain(more).map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
}

#[tokio::test]
async fn on_a_full_disk_keys_are_revoked_and_none_is_made() {
    let Some(disk) = Disk::small(DISK_BYTES) else { return };
    let data = disk.path().join("keys");
    std::fs::create_dir(&data).unwrap();
    let mut stack = Stack::build().keystore_on(&data).nats().await;
    let reserve = || std::fs::metadata(data.join("reserve")).unwrap().len();
    let whole = reserve();
    assert!(whole >= 4 << 20, "{whole}");
    let mut keys = Vec::new();
    for number in 0..30 {
        let body = json!({"name": format!("key {number}"), "scopes": ["check"]});
        let made = stack.api.post("/v1/keys", &body).await.expect(201);
        keys.push((made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned()));
    }
    let (endpoint, _) = stack.api.webhook("https://hooks.example.com/in").await;
    disk.fill(0);

    let refused = stack.api.post("/v1/keys", &json!({"name": "one more", "scopes": ["check"]})).await;
    refused.assert_error(409, "conflict");
    assert!(refused.text.contains("disk is nearly full"), "{}", refused.text);
    let revoked = async |stack: &Stack, (id, key): &(String, String)| {
        assert_eq!(stack.api.with_key(key).check(&Api::harmless()).await.status, 200);
        assert_eq!(stack.api.delete(&format!("/v1/keys/{id}")).await.status, 204);
        let dead = async || stack.api.with_key(key).check(&Api::harmless()).await.status == 401;
        wait_for("a key that is refused", Duration::from_secs(1), dead).await;
    };
    for key in &keys[..20] {
        revoked(&stack, key).await;
    }
    assert_eq!(stack.api.delete(&format!("/v1/webhooks/{endpoint}")).await.status, 204);
    assert!(reserve() < whole, "a part was given up");
    let ready = stack.operator.get("/readyz").await;
    assert_eq!(ready.status, 200, "what is stored can be verified");
    assert!(ready.text.contains("disk is nearly full"), "{}", ready.text);

    // It starts on the full disk, knows what was revoked, and revokes on.
    stack.keystore.as_mut().unwrap().kill();
    disk.fill(0);
    stack.start_keystore();
    for (_, key) in &keys[..20] {
        let is_dead = async || stack.api.with_key(key).check(&Api::harmless()).await.status == 401;
        wait_for("a key that stays revoked", WAIT_TIMEOUT, is_dead).await;
    }
    for key in &keys[20..] {
        revoked(&stack, key).await;
    }

    disk.empty();
    wait_for("a new key", WAIT_TIMEOUT, async || {
        stack.api.post("/v1/keys", &json!({"name": "now", "scopes": ["check"]})).await.status == 201
    })
    .await;
    wait_for("the reserve", WAIT_TIMEOUT, async || reserve() == whole).await;
    let ready = stack.operator.get("/readyz").await;
    assert!(!ready.text.contains("disk is nearly full"), "{}", ready.text);
}

#[tokio::test]
async fn a_missing_or_replaced_log_is_not_started_silently() {
    let mut stack = Stack::build().dev().await;
    let id = stack.api.decide(&Api::harmless()).await;
    wait_for("a mark", WAIT_TIMEOUT, async || stack.api.verify().await["unsealed"] == 0).await;
    stack.stop_dev();
    let other = {
        let mut other = Stack::build().dev().await;
        other.api.decide(&Api::harmless()).await;
        other.stop_dev();
        std::fs::read(other.data().join("decisions.redb")).unwrap()
    };
    let (data, log) = (stack.data(), stack.data().join("decisions.redb"));
    let own = std::fs::read(&log).unwrap();
    let faults = [
        (None, "it is missing"),
        (Some(Vec::new()), "it is empty"),
        (Some(other), "it is not the log that this directory had"),
    ];
    for (content, why) in &faults {
        match content {
            Some(content) => std::fs::write(&log, content).unwrap(),
            None => std::fs::remove_file(&log).unwrap(),
        }
        let mut refused = dev(&data, &[]);
        assert_eq!(refused.ended().code(), Some(1), "{}", refused.said());
        assert!(refused.said().contains(why) && refused.said().contains("--accept-new-log"), "{}", refused.said());
        // No new log stands there now.
        let left = std::fs::metadata(&log).ok().map(|found| found.len() > 0);
        assert_eq!(left, content.as_ref().map(|bytes| !bytes.is_empty()));
    }
    // A directory of an older version has no `log.id`: its keystore tells.
    let log_id = std::fs::read(data.join("log.id")).unwrap();
    std::fs::remove_file(data.join("log.id")).unwrap();
    std::fs::remove_file(&log).unwrap();
    let mut refused = dev(&data, &[]);
    assert_eq!(refused.ended().code(), Some(1), "{}", refused.said());
    assert!(refused.said().contains("it is missing"), "{}", refused.said());

    // The log of before is taken, with its id or without.
    std::fs::write(&log, &own).unwrap();
    stack.start_dev();
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    stack.stop_dev();
    assert_eq!(std::fs::read(data.join("log.id")).unwrap(), log_id);

    // Somebody says so: then there is a new log, and it is the directory's. Which keys live stood in the old one.
    std::fs::remove_file(&log).unwrap();
    let mut refused = dev(&data, &["--accept-new-log"]);
    assert_eq!(refused.ended().code(), Some(1), "{}", refused.said());
    assert!(refused.said().contains("decision log is not the one of before, and was accepted"), "{}", refused.said());
    assert!(refused.said().contains("--accept-restore"), "{}", refused.said());
    let mut accepted = dev(&data, &["--accept-restore"]);
    accepted.wait_for("the end of the banner", |line| line.starts_with("Ctrl-C stops it").then_some(()));
    assert!(accepted.said().contains("keys are revoked"), "{}", accepted.said());
    assert!(accepted.stop().success());
    stack.start_dev();
    stack.api.get(&format!("/v1/decisions/{id}")).await.assert_error(404, "not_found");
    stack.api.decide(&Api::harmless()).await;
    assert_eq!(stack.api.verify().await["ok"], false, "what was recorded before is missed");
    let (_, key, _) = stack.operator.account("after", None, &account_scopes()).await;
    stack.api.with_key(&key).decide(&Api::harmless()).await;
    assert_eq!(stack.api.with_key(&key).verify().await["ok"], true);
}
