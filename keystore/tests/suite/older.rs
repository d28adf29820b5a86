//! Data directories of older versions.
//!
//! `before_webhooks` was left by a version without endpoints and signing keys when it was killed. `data-0.1.0` was
//! written by version 0.1.0.

use std::path::{Path, PathBuf};

use stage0_contract::{
    AccountId, AccountRules, Holder, KeyId, ListAccounts, ListRetentions, Plan, RefreshKey, RefreshKeyReply, Scope,
    SigningKeys,
};

use crate::damage::copy_dir;
use crate::harness::{Running, anonymous, config, done};

const ACCOUNT: &str = "acc_vzs43dqa08zkxvhq";
pub(crate) const LIVE: [&str; 3] = ["sfn5vvfd0bhb9a4z", "n1hykybrwxx1t7t8", "901v2rmqejf65fpy"];
const ENDED: [&str; 3] = ["mz5hy293vwwctqx6", "2n7akfcft03t065d", "y6qhnsqa3qydtmvw"];

pub(crate) fn older(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    copy_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/before_webhooks"), &data);
    data
}

/// Opens it, stores a record of a later version, and opens it again. Returns the names of damaged files.
async fn opens_with_its_keys(data: &Path) -> Vec<String> {
    let account = AccountId::parse(ACCOUNT).unwrap();
    for _ in 0..2 {
        let running = Running::start_as(config(data), anonymous()).await.unwrap();
        for id in LIVE {
            assert!(running.is_active(&KeyId::parse(id).unwrap()).await, "{id} is lost");
        }
        for id in ENDED {
            assert!(!running.is_active(&KeyId::parse(id).unwrap()).await, "{id} came back to life");
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
async fn a_directory_from_before_webhooks_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(opens_with_its_keys(&older(dir.path())).await, Vec::<String>::new());
}

#[tokio::test]
async fn journal_and_store_from_before_webhooks_are_rebuilt_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    std::fs::remove_dir_all(data.join("store")).unwrap();
    assert_eq!(opens_with_its_keys(&data).await, Vec::<String>::new());
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    // This start records in the state store how new the store must be.
    Running::start_as(config(&data), anonymous()).await.unwrap().stop().await;
    std::fs::remove_file(data.join("journal")).unwrap();
    assert_eq!(opens_with_its_keys(&data).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_old_store_without_its_journal_and_without_a_head_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    std::fs::remove_file(data.join("journal")).unwrap();
    let refused = Running::start_as(config(&data), anonymous()).await.err().expect("it started");
    let text = std::error::Error::source(&refused).unwrap().to_string();
    assert!(text.contains("the journal is missing") && text.contains("--accept-restore"), "{text}");
    assert!(!data.join("journal").exists());
}

/// `tests/fixtures/data-0.1.0` was written by `stage0 dev` of version 0.1.0: an account whose settings were changed, a
/// live, a revoked and a rotated key, an endpoint with a rotated secret, a deleted endpoint, and the state store's
/// file.
#[tokio::test]
async fn a_data_directory_of_0_1_0_opens_with_its_accounts_keys_and_endpoints() {
    const ACCOUNT: &str = "acc_bsypfwb2wgh4mr0t";
    const ENDPOINT: &str = "we_yx7d2s4qzqxs8d76";
    const SECRET: &str = "whsec_ILGVZWw9waivkNU6bIzmpZKG6w09KzoBtF4qrlpxVjQ=";
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-0.1.0"), &data);
    let account = AccountId::parse(ACCOUNT).unwrap();
    // The second start reads what the first one wrote on top.
    for round in 0..2 {
        // Signs in with the operator's key from its file.
        let running = Running::start(&data).await;
        for (id, active) in [
            ("8cba41bv67besj5a", true),
            ("eh6rr5f482d8q2yz", true),
            ("7gy4kx79a3m82j62", false),
            ("46r47qzz0wt6y1qa", false),
        ] {
            assert_eq!(running.is_active(&KeyId::parse(id).unwrap()).await, active, "{id}");
        }
        let key_id = KeyId::parse("8cba41bv67besj5a").unwrap();
        let RefreshKeyReply::Live(identity) =
            running.ask(&RefreshKey { key_id: key_id.clone(), request_id: None }).await
        else {
            panic!("the key is gone");
        };
        // From before members, approvals and stops.
        assert_eq!((identity.holder, identity.rules), (Some(Holder::of_workload(key_id)), AccountRules::default()));
        assert_eq!(running.keys_of(&account).await, 4 + round);
        let accounts = ListAccounts { caller: running.operator.clone(), cursor: None, limit: 100 };
        let accounts = done(running.ask(&accounts).await).items;
        let found = accounts.iter().find(|found| found.id == account).unwrap();
        assert_eq!((found.name.as_str(), found.plan, found.retention_days), ("fixture", Plan::Pro, Some(7)));
        assert_eq!(found.limits.per_minute, Some(5));
        let endpoints = running.endpoints().await;
        assert_eq!(endpoints.len(), 1, "the deleted endpoint is not listed");
        assert_eq!(endpoints[0].webhook.id.as_str(), ENDPOINT);
        assert_eq!(endpoints[0].webhook.url, "https://hooks.example/kept");
        // The secret from before the rotation stops signing 30 days after the fixture was made.
        assert_eq!(endpoints[0].secrets[0].expose(), SECRET);
        assert_eq!(done(running.ask(&SigningKeys::default()).await).items.len(), 1);
        running.key(&account, &[Scope::Check]).await;
        running.stop().await;
    }
    let names = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.contains(".damaged-")), "both files were intact");
}
