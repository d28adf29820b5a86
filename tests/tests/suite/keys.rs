//! The life of a key: rotation, revocation and expiry, seen from every gateway.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack};

#[tokio::test]
async fn a_revoked_key_is_refused_everywhere_within_a_second() {
    let stack = Stack::build().gateways(2).nats().await;
    for _ in 0..5 {
        let (_, key, id) = stack.operator.account("a", None, &["check"]).await;
        let gateways = [stack.api_at(0).with_key(&key), stack.api_at(1).with_key(&key)];
        for gateway in &gateways {
            gateway.check(&Api::harmless()).await.expect(200);
        }
        stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
        let revoked = Instant::now();
        for gateway in &gateways {
            wait_for("the refusal", Duration::from_secs(1), async || {
                gateway.check(&Api::harmless()).await.status == 401
            })
            .await;
        }
        assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
        stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    }
}

#[tokio::test]
async fn a_rotated_key_stays_valid_for_the_overlap_and_no_longer() {
    let stack = Stack::build().dev().await;
    let (_, old, id) = stack.operator.account("a", None, &["check"]).await;
    let old = stack.api.with_key(&old);
    old.check(&Api::harmless()).await.expect(200);
    let new = stack.operator.post(&format!("/v1/keys/{id}/rotate"), &json!({"overlap_seconds": 2})).await.expect(201);
    let new_key = stack.api.with_key(new["key"].as_str().unwrap());
    assert!(new["old_key_expires_at"].as_str().unwrap() > new["created_at"].as_str().unwrap(), "{new}");
    new_key.check(&Api::harmless()).await.expect(200);
    old.check(&Api::harmless()).await.expect(200);
    wait_for("the end of the overlap", Duration::from_secs(10), async || {
        old.check(&Api::harmless()).await.status == 401
    })
    .await;
    new_key.check(&Api::harmless()).await.expect(200);

    // Without a body, the old key ends at once.
    let path = format!("/v1/keys/{}/rotate", new["id"].as_str().unwrap());
    let newest = stack.operator.send(Method::POST, &path, &[], None).await.expect(201);
    assert_eq!(newest["old_key_expires_at"], newest["created_at"]);
    wait_for("the refusal", Duration::from_secs(1), async || new_key.check(&Api::harmless()).await.status == 401).await;
    stack.api.with_key(newest["key"].as_str().unwrap()).check(&Api::harmless()).await.expect(200);
    stack.operator.send(Method::POST, &path, &[], None).await.assert_error(409, "conflict");
}

/// The item of a key in its account's list.
async fn listed(stack: &Stack, account: &str, id: &str) -> serde_json::Value {
    let page = stack.operator.get(&format!("/v1/keys?account={account}")).await.expect(200);
    page["items"].as_array().unwrap().iter().find(|item| item["id"] == id).unwrap().clone()
}

/// Waits until a key is listed as used in this hour, or in the one that ended while it was.
async fn is_shown_as_used(stack: &Stack, account: &str, id: &str) {
    let hour = || Timestamp::from_second(Timestamp::now().as_second() / 3_600 * 3_600).unwrap().to_string();
    let before = hour();
    wait_for("the key's last use", Duration::from_secs(30), async || {
        let used = listed(stack, account, id).await["last_used_at"].clone();
        used == before.as_str() || used == hour().as_str()
    })
    .await;
}

#[tokio::test]
async fn a_key_shows_the_hour_of_its_last_use_at_whichever_gateway_and_over_a_restart() {
    let mut stack = Stack::build().gateways(2).nats().await;
    let (account, key, id) = stack.operator.account("a", None, &["check"]).await;
    let (other_account, other, other_id) = stack.operator.account("b", None, &["check"]).await;
    // A wrong key with its id is no use of a key, and what a gateway notes later comes no earlier.
    let wrong = format!("{}{}", &other[..other.len() - 2], if other.ends_with("00") { "11" } else { "00" });
    stack.api_at(1).with_key(&wrong).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    stack.api_at(1).with_key(&key).check(&Api::harmless()).await.expect(200);
    is_shown_as_used(&stack, &account, &id).await;
    assert!(listed(&stack, &other_account, &other_id).await.get("last_used_at").is_none(), "it was not used");
    stack.api_at(0).with_key(&other).check(&Api::harmless()).await.expect(200);
    is_shown_as_used(&stack, &other_account, &other_id).await;
    stack.start_keystore();
    is_shown_as_used(&stack, &account, &id).await;
}

#[tokio::test]
async fn a_key_shows_the_hour_of_its_last_use_in_one_process_and_over_a_restart() {
    let mut stack = Stack::build().dev().await;
    let (account, key, id) = stack.operator.account("a", None, &["check"]).await;
    assert!(listed(&stack, &account, &id).await.get("last_used_at").is_none(), "it was not used");
    stack.api.with_key(&key).check(&Api::harmless()).await.expect(200);
    is_shown_as_used(&stack, &account, &id).await;
    stack.restart_dev();
    is_shown_as_used(&stack, &account, &id).await;
}

#[tokio::test]
async fn an_expired_key_is_refused_though_it_is_cached() {
    let stack = Stack::build().dev().await;
    let now: i64 =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap();
    let (account, _, _) = stack.operator.account("a", None, &["check"]).await;
    let end = time(now + 3);
    let made = stack
        .operator
        .post("/v1/keys", &json!({"account": account, "name": "n", "scopes": ["check"], "expires_at": end}))
        .await
        .expect(201);
    let key = stack.api.with_key(made["key"].as_str().unwrap());
    key.check(&Api::harmless()).await.expect(200);
    wait_for("the end of the key", Duration::from_secs(10), async || key.check(&Api::harmless()).await.status == 401)
        .await;
    let listed = stack.operator.get(&format!("/v1/keys?account={account}")).await.expect(200);
    assert!(listed["items"].as_array().unwrap().iter().any(|item| item["id"] == made["id"]));
}

/// Whole seconds since the epoch as RFC 3339 (days from civil, Howard Hinnant's algorithm turned round).
fn time(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[tokio::test]
async fn many_first_uses_of_a_key_at_once_all_pass() {
    let stack = Stack::build().gateways(2).nats().await;
    let (_, key, _) = stack.operator.account("a", None, &["check"]).await;
    let checks: Vec<_> = (0..64)
        .map(|n| {
            let api = stack.api_at(n % 2).with_key(&key);
            tokio::spawn(async move { api.check(&Api::harmless()).await.status })
        })
        .collect();
    for check in checks {
        assert_eq!(check.await.unwrap(), 200);
    }
}
