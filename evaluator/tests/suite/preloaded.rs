//! What is active is loaded before an evaluator says that it is ready, and nothing of it keeps one from serving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, ActiveVersion, ActiveVersions, EvaluatorStatus, FetchPolicy, FetchedPolicy, ListActiveVersions,
    ManageReply, PolicyBundle, PolicyVersion, Refusal,
};
use stage0_evaluator::{Evaluator, EvaluatorConfig, RunConfig, build};
use stage0_policy::PackSet;
use tokio::task::JoinSet;

use super::published::{pack, version_of};
use super::service::connect;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

async fn evaluator(bus: &Bus) -> Evaluator {
    let config = EvaluatorConfig {
        packs: PackSet::embedded().unwrap(),
        shards: NonZeroUsize::new(2),
        runs: RunConfig::default(),
    };
    build(config, connect(bus)).await.unwrap()
}

/// Starts a keystore where these are published, and these are active. Returns how often a policy was fetched.
async fn keystore(
    bus: &Bus,
    published: Vec<(PolicyVersion, PolicyBundle)>,
    active: Vec<PolicyVersion>,
    serving: &mut JoinSet<()>,
) -> Arc<AtomicUsize> {
    let backplane = bus.connect();
    let account = AccountId::parse("acc").ok();
    let mut fetches = backplane.requests.serve::<FetchPolicy>().await.unwrap();
    let mut lists = backplane.requests.serve::<ListActiveVersions>().await.unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    serving.spawn(async move {
        let _backplane = backplane;
        loop {
            tokio::select! {
                Some(asked) = fetches.next() => {
                    count.fetch_add(1, Ordering::Relaxed);
                    let (wanted, _, responder) = asked.into_parts();
                    let found = published.iter().find(|(version, _)| *version == wanted.version).cloned();
                    let reply = found.map_or(ManageReply::Refused(Refusal::NotFound), |(version, bundle)| {
                        ManageReply::Done(FetchedPolicy { version, bundle })
                    });
                    responder.answer(&reply).await;
                }
                Some(asked) = lists.next() => {
                    let active = active.iter().cloned();
                    let versions = active.map(|version| ActiveVersion { account: account.clone(), version }).collect();
                    asked.answer(&ManageReply::Done(ActiveVersions { versions })).await;
                }
                else => return,
            }
        }
    });
    fetched
}

#[tokio::test]
async fn what_is_active_is_loaded_before_the_evaluator_serves_and_fetched_once() {
    let (bus, mut serving) = (Bus::new(), JoinSet::new());
    let (ours, unused) = (pack("ours", "defer"), pack("unused", "deny"));
    let [of_ours, of_unused] = [&ours, &unused].map(version_of);
    let published = vec![(of_ours.clone(), ours), (of_unused, unused)];
    let fetched = keystore(&bus, published, vec![of_ours.clone()], &mut serving).await;
    let policies = evaluator(&bus).await.policies();
    assert!(policies.is_preloaded());
    assert_eq!(policies.versions(), [of_ours], "what is only published is left");
    assert_eq!(fetched.load(Ordering::Relaxed), 1, "both shards wait for one load");
}

#[tokio::test]
async fn an_active_version_that_does_not_load_keeps_neither_the_others_nor_the_evaluator() {
    let (bus, mut serving) = (Bus::new(), JoinSet::new());
    let ours = pack("ours", "defer");
    let of_ours = version_of(&ours);
    let wrong = PolicyVersion::parse("ours@1.0.0+000000000000").unwrap();
    let gone = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let published = vec![(wrong.clone(), ours.clone()), (of_ours.clone(), ours)];
    keystore(&bus, published, vec![gone, wrong, of_ours.clone()], &mut serving).await;
    let evaluator = evaluator(&bus).await;
    assert!(evaluator.policies().is_preloaded());
    assert_eq!(evaluator.policies().versions(), [of_ours]);
    serving.spawn(async move { evaluator.run_until(std::future::pending()).await.unwrap() });
    bus.connect().requests.request(&EvaluatorStatus {}, WAIT_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn without_a_keystore_an_evaluator_serves_at_once_and_loads_what_is_active_when_one_answers() {
    let (bus, mut serving) = (Bus::new(), JoinSet::new());
    let ours = pack("ours", "defer");
    let of_ours = version_of(&ours);
    let evaluator = evaluator(&bus).await;
    let policies = evaluator.policies();
    assert!(!policies.is_preloaded(), "it is not ready");
    serving.spawn(async move { evaluator.run_until(std::future::pending()).await.unwrap() });
    bus.connect().requests.request(&EvaluatorStatus {}, WAIT_TIMEOUT).await.unwrap();
    keystore(&bus, vec![(of_ours.clone(), ours)], vec![of_ours.clone()], &mut serving).await;
    tokio::time::timeout(WAIT_TIMEOUT, policies.preloaded()).await.unwrap();
    assert_eq!(policies.versions(), [of_ours]);
}
