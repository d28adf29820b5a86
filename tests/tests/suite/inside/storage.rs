//! Disks that are full.
//!
//! A full disk must not keep a stolen key alive.

use std::time::Duration;

use serde_json::json;
use stage0_backplane::testing::{Disk, wait_for};
use stage0_tests::{Api, Stack};

const SOON: Duration = Duration::from_secs(20);
const DISK_BYTES: u64 = 40 << 20;

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
        wait_for("a key that stays revoked", SOON, is_dead).await;
    }
    for key in &keys[20..] {
        revoked(&stack, key).await;
    }

    disk.empty();
    wait_for("a new key", SOON, async || {
        stack.api.post("/v1/keys", &json!({"name": "now", "scopes": ["check"]})).await.status == 201
    })
    .await;
    wait_for("the reserve", SOON, async || reserve() == whole).await;
    let ready = stack.operator.get("/readyz").await;
    assert!(!ready.text.contains("disk is nearly full"), "{}", ready.text);
}
