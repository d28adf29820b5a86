//! Floods of new keys: revocations and verifications do not wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stage0_contract::{CreateKey, ManageReply, RevokeKey, Scope};
use stage0_keystore::{HashCost, KeystoreConfig};
use tokio::task::JoinSet;

use crate::harness::{Running, caller_of, config, done};

/// Hashes cost what they cost in a deployment.
fn costly(dir: &std::path::Path) -> KeystoreConfig {
    KeystoreConfig { hash_cost: HashCost::OWASP, ..config(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_new_keys_is_asked_to_retry_and_delays_no_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start_with(costly(dir.path())).await.unwrap();
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let mut victims = Vec::new();
    for _ in 0..7 {
        victims.push(running.key(&mine, &[Scope::Check]).await);
    }
    let flooder = running.key(&theirs, &[Scope::KeysManage, Scope::Check]).await;
    let manager = running.key(&mine, &[Scope::KeysManage, Scope::Check]).await;
    let (stop, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut flood = JoinSet::new();
    for _ in 0..64 {
        let (requests, stop, busy) = (Arc::clone(&running.backplane.requests), Arc::clone(&stop), Arc::clone(&busy));
        let call = CreateKey {
            caller: caller_of(&flooder),
            account: None,
            ..running.create(&flooder.account, &[Scope::Check])
        };
        flood.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match requests.request(&call, Duration::from_secs(30)).await {
                    Ok(ManageReply::Busy) => {
                        busy.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                    Ok(ManageReply::Done(_) | ManageReply::Refused(_)) => {}
                    Ok(ManageReply::Failed) | Err(_) => panic!("a creation failed"),
                }
            }
        });
    }
    while busy.load(Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    let mut revocations = Vec::new();
    for victim in &victims {
        let began = Instant::now();
        done(running.ask(&RevokeKey { caller: caller_of(&manager), id: victim.id.clone() }).await);
        revocations.push(began.elapsed());
        assert!(!running.is_active(&victim.id).await);
    }
    // Another account can still create a key, after the few of the flood that are in flight.
    let fresh = CreateKey { caller: caller_of(&manager), account: None, ..running.create(&mine, &[Scope::Check]) };
    let began = Instant::now();
    assert!(matches!(running.ask(&fresh).await, ManageReply::Done(_)));
    // That waits for a hash or two; behind a queue of eight a revocation would take several times as long.
    let creation = began.elapsed();
    revocations.sort_unstable();
    let median = revocations[revocations.len() / 2];
    assert!(median < creation * 2, "{revocations:?}, a creation {creation:?}");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
    running.stop().await;
}
