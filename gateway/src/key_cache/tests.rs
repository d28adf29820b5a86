//! The key cache with notices: what is used from the cache, what is refreshed, and what a notice invalidates.

use super::*;
use crate::address::ClientNet;
use crate::throttle::{FailedLogins, LoginsBy};
use futures_util::future::join_all;
use stage0_contract::{Caps, KeyId, Limits, Plan, Scopes, Stop};

fn key(byte: u8) -> ApiKey {
    ApiKey::from_random([byte; 10], [2; 20]).unwrap()
}

fn version(text: &str) -> stage0_contract::PolicyVersion {
    stage0_contract::PolicyVersion::parse(text).unwrap()
}

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn identity(account: &str, key_id: &KeyId) -> KeyIdentity {
    KeyIdentity {
        holder: None,
        key_name: None,
        groups: None,
        rules: stage0_contract::AccountRules::default(),
        key_id: key_id.clone(),
        account: AccountId::parse(account).unwrap(),
        scopes: Scopes::default(),
        plan: Plan::Free,
        expires_at: None,
        retention_days: 30,
        limits: Limits::NONE,
        require_run_id: false,
        caps: Caps::NONE,
    }
}

fn call_to(backplane: &Backplane) -> KeystoreCall<'_> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    KeystoreCall { keystore: &*backplane.requests, deadline, request_id: None }
}

/// A cache that is subscribed to notices, and has a proof that they arrive.
async fn listening() -> (Backplane, Arc<KeyCache>) {
    let (backplane, key_cache) = (Backplane::embedded(), Arc::new(KeyCache::new([1; 32])));
    let (hearing, from) = (Arc::clone(&key_cache), backplane.clone());
    tokio::spawn(async move { hearing.listen(&from).await });
    key_cache.liveness.wait_for_proof(|| key_cache.liveness.proven_at().is_some()).await;
    (backplane, key_cache)
}

/// Verifies a key that the keystore says is valid; `meanwhile` happens before it answers.
async fn verify(backplane: &Backplane, key_cache: &KeyCache, key: &ApiKey, of: &str, meanwhile: impl FnOnce()) -> bool {
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let answered = async {
        let request = asked.next().await.unwrap();
        meanwhile();
        request.answer(&VerifyKeyReply::Valid(identity(of, key.id()))).await;
    };
    let failed = FailedLogins::new(50);
    let (verified, ()) = tokio::join!(key_cache.verify(key, call_to(backplane), failed.of(None, None)), answered);
    matches!(verified.unwrap(), Verification::Valid(_))
}

/// Looks a key of account `of` up, and answers every refresh of it after `meanwhile`; with the number of refreshes.
async fn refresh(
    backplane: &Backplane,
    key_cache: &KeyCache,
    key: &ApiKey,
    of: &str,
    mut meanwhile: impl FnMut(),
) -> (Result<CacheLookup, KeystoreError>, u32) {
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let mut count = 0;
    let found = key_cache.look_up(key, call_to(backplane));
    tokio::pin!(found);
    loop {
        tokio::select! {
            biased;
            found = &mut found => return (found, count),
            request = asked.next() => {
                count += 1;
                meanwhile();
                request.unwrap().answer(&RefreshKeyReply::Live(identity(of, key.id()))).await;
            }
        }
    }
}

/// Whether a key is used from the cache: no keystore serves here.
async fn is_trusted(backplane: &Backplane, key_cache: &KeyCache, key: &ApiKey) -> bool {
    matches!(key_cache.look_up(key, call_to(backplane)).await, Ok(CacheLookup::Hit(_)))
}

#[tokio::test]
async fn a_verification_carries_the_id_of_its_request() {
    let (backplane, key_cache) = (Backplane::embedded(), KeyCache::new([1; 32]));
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let id = Some(RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap());
    let key = key(1);
    let failed = FailedLogins::new(50);
    let verified =
        key_cache.verify(&key, KeystoreCall { request_id: id, ..call_to(&backplane) }, failed.of(None, None));
    let answered = async {
        let request = asked.next().await.unwrap();
        assert_eq!(request.request.request_id, id);
        request.answer(&VerifyKeyReply::Invalid).await;
    };
    let (verified, ()) = tokio::join!(verified, answered);
    assert!(matches!(verified.unwrap(), Verification::Invalid));
}

fn net(text: &str) -> Option<ClientNet> {
    Some(ClientNet::of(text.parse().unwrap()))
}

/// The results of 64 concurrent requests with one key, from an address that is blocked while its hash is computed.
async fn crowd(failed: &FailedLogins, reply: impl Fn(&KeyId) -> VerifyKeyReply) -> Vec<Verification> {
    let (backplane, key_cache) = listening().await;
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let (key, here) = (key(1), net("192.0.2.1"));
    let verify = async || key_cache.verify(&key, call_to(&backplane), failed.of(here, Some(key.id()))).await.unwrap();
    let (first, rest) = (verify(), async {
        let request = asked.next().await.unwrap();
        for _ in 0..5 {
            failed.of(here, None).failed();
        }
        // The requests that come now share the hash, although their address may cause no more of them.
        let rest = join_all((0..63).map(|_| verify()));
        let answered = async {
            tokio::task::yield_now().await;
            request.answer(&reply(key.id())).await;
        };
        tokio::join!(rest, answered).0
    });
    let (first, mut all) = tokio::join!(first, rest);
    all.push(first);
    let other = ApiKey::from_random([9; 10], [2; 20]).unwrap();
    let stranger = key_cache.verify(&other, call_to(&backplane), failed.of(here, Some(other.id()))).await.unwrap();
    assert!(matches!(stranger, Verification::Blocked(blocked) if blocked.by == LoginsBy::Address));
    let elsewhere = verified_elsewhere(&backplane, &key_cache, failed, &other, &mut asked);
    assert!(matches!(elsewhere.await, Verification::Invalid), "another address may");
    all
}

async fn verified_elsewhere(
    backplane: &Backplane,
    key_cache: &KeyCache,
    failed: &FailedLogins,
    key: &ApiKey,
    asked: &mut stage0_backplane::RequestStream<VerifyKey>,
) -> Verification {
    let answered = async { asked.next().await.unwrap().answer(&VerifyKeyReply::Invalid).await };
    let verified = key_cache.verify(key, call_to(backplane), failed.of(net("192.0.2.2"), Some(key.id())));
    tokio::join!(verified, answered).0.unwrap()
}

#[tokio::test]
async fn concurrent_requests_with_a_valid_key_share_one_hash_even_if_their_address_gets_blocked() {
    let failed = FailedLogins::new(5);
    let all = crowd(&failed, |id| VerifyKeyReply::Valid(identity("a", id))).await;
    assert!(all.len() == 64 && all.iter().all(|verified| matches!(verified, Verification::Valid(_))));
}

#[tokio::test]
async fn concurrent_requests_with_an_invalid_key_count_as_one_failed_login() {
    let failed = FailedLogins::new(5);
    let all = crowd(&failed, |_| VerifyKeyReply::Invalid).await;
    assert!(all.len() == 64 && all.iter().all(|verified| matches!(verified, Verification::Invalid)));
    let key = key(1);
    let elsewhere = failed.of(net("192.0.2.3"), Some(key.id()));
    (0..3).for_each(|_| elsewhere.failed());
    assert_eq!(elsewhere.blocked(), None, "64 who waited are one failure of the id");
    elsewhere.failed();
    assert!(elsewhere.blocked().is_some_and(|blocked| blocked.by == LoginsBy::Key), "and not none");
}

#[tokio::test]
async fn a_notice_about_one_account_invalidates_no_other() {
    let (backplane, key_cache) = listening().await;
    let (theirs, mine) = (key(1), key(2));
    assert!(verify(&backplane, &key_cache, &theirs, "a", || {}).await);
    assert!(verify(&backplane, &key_cache, &mine, "b", || {}).await);
    let before = key_cache.invalidations.generation();
    for _ in 0..100 {
        let notice = KeyChanged::One { account: account("a"), key_id: KeyId::parse("long_revoked").unwrap() };
        backplane.notices.publish(&notice).await.unwrap();
    }
    while key_cache.invalidations.generation() < before + 100 {
        tokio::task::yield_now().await;
    }
    assert!(is_trusted(&backplane, &key_cache, &mine).await);
    assert!(
        !is_trusted(&backplane, &key_cache, &theirs).await,
        "all keys of the account are invalidated, not only the named one"
    );
    let (renewed, requests) = refresh(&backplane, &key_cache, &theirs, "a", || {}).await;
    assert!(matches!(renewed, Ok(CacheLookup::Hit(_))) && requests == 1);
    assert!(is_trusted(&backplane, &key_cache, &theirs).await);
}

#[tokio::test]
async fn endless_notices_delay_their_own_account_only() {
    let (backplane, key_cache) = listening().await;
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    key_cache.invalidate(&account("a"));
    let (unsettled, requests) =
        refresh(&backplane, &key_cache, &key, "a", || key_cache.invalidate(&account("a"))).await;
    assert!(matches!(unsettled, Err(KeystoreError::Unsettled)) && requests == MAX_ATTEMPTS);
    let (renewed, requests) = refresh(&backplane, &key_cache, &key, "a", || key_cache.invalidate(&account("b"))).await;
    assert!(matches!(renewed, Ok(CacheLookup::Hit(_))) && requests == 1);
}

#[tokio::test]
async fn a_notice_during_a_verification_makes_the_cache_refresh_the_key() {
    let (backplane, key_cache) = listening().await;
    let key = key(1);
    let mut again = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let revoked = async { again.next().await.unwrap().answer(&RefreshKeyReply::Gone).await };
    let (valid, ()) =
        tokio::join!(verify(&backplane, &key_cache, &key, "a", || key_cache.invalidate(&account("a"))), revoked);
    assert!(!valid);
    drop(again);
    assert!(
        verify(&backplane, &key_cache, &key, "a", || key_cache.invalidate(&account("b"))).await,
        "another account's does not"
    );
    assert!(is_trusted(&backplane, &key_cache, &key).await);
}

#[tokio::test]
async fn an_identity_from_before_the_subscription_is_refreshed() {
    let (backplane, key_cache) = listening().await;
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    assert!(is_trusted(&backplane, &key_cache, &key).await);
    let (hearing, from) = (Arc::clone(&key_cache), backplane.clone());
    tokio::spawn(async move { hearing.listen(&from).await });
    while key_cache.listeners.load(Ordering::SeqCst) == 1 {
        tokio::task::yield_now().await;
    }
    assert!(!is_trusted(&backplane, &key_cache, &key).await);
}

/// A cache that was subscribed and had a proof, and has none any more.
fn no_longer_proven() -> (Backplane, Arc<KeyCache>) {
    let backplane = Backplane::embedded();
    let key_cache = Arc::new(KeyCache::new([1; 32]));
    // As for a connection over which nothing arrives any more.
    key_cache.listeners.fetch_add(1, Ordering::SeqCst);
    key_cache.invalidations.invalidate_all();
    (backplane, key_cache)
}

/// An identity that was requested at `since` and is not invalidated.
fn cached(key_cache: &KeyCache, since: Duration) -> CachedIdentity {
    CachedIdentity::new(identity("a", key(1).id()), since, key_cache.invalidations.generation())
}

fn held(key_cache: &KeyCache, digest: Digest, since: Duration) -> VerifiedCaller {
    VerifiedCaller { digest, cached: Arc::new(cached(key_cache, since)), binding: Binding::Key }
}

#[test]
fn the_first_use_of_a_key_in_an_hour_is_reported_once() {
    let key_cache = KeyCache::new([1; 32]);
    let caller = held(&key_cache, [0; 32], boottime());
    let hour = NoteKeyUses::hour_of(Timestamp::now());
    let minutes = |minutes| hour + jiff::SignedDuration::from_mins(minutes);
    let used = [0, 1, 59, 60, 61].map(|at| caller.is_first_use_in_hour(minutes(at)));
    assert_eq!(used, [true, false, false, true, false]);
}

#[tokio::test]
async fn without_a_young_proof_an_identity_is_used_for_half_a_second_only() {
    let (_, key_cache) = listening().await;
    let proven = key_cache.liveness.proven_at().unwrap();
    let old = cached(&key_cache, proven.saturating_sub(Duration::from_secs(30)));
    let after = |millis| proven + Duration::from_millis(millis);
    assert!(key_cache.is_trusted(&old, after(1)) && key_cache.is_fresh(&old, after(1)));
    // Another proof may have arrived by now: the age can only be smaller.
    let none = no_longer_proven().1;
    let old = cached(&none, Duration::from_secs(1_000));
    let at = |millis| Duration::from_secs(1_000) + Duration::from_millis(millis);
    assert!(!none.is_trusted(&old, at(0)), "without a proof the keystore is asked");
    assert!(none.is_fresh(&old, at(499)), "one who was answered may go on for a moment");
    assert!(!none.is_fresh(&old, at(500)));
    none.invalidations.invalidate(&account("a"));
    assert!(!none.is_fresh(&old, at(1)), "not against a notice");
}

#[tokio::test]
async fn with_a_young_proof_an_identity_is_used_for_a_minute() {
    let (_, key_cache) = listening().await;
    // Proofs go on arriving: use a result that was judged by a single one.
    let judged = |seconds, later| loop {
        let now = key_cache.liveness.proven_at().unwrap();
        let old = cached(&key_cache, now.saturating_sub(Duration::from_secs(seconds)));
        let trusted = key_cache.is_trusted(&old, now + later);
        if key_cache.liveness.proven_at() == Some(now) {
            break trusted;
        }
    };
    assert!(judged(59, Duration::ZERO));
    assert!(!judged(60, Duration::ZERO));
    assert!(judged(1, MAX_PROOF_AGE - Duration::from_millis(1)));
    assert!(!judged(1, MAX_PROOF_AGE), "by a proof that has become old");
}

#[tokio::test]
async fn without_a_proof_every_request_refreshes_its_key_and_concurrent_ones_share_the_refresh() {
    let (backplane, key_cache) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    for _ in 0..3 {
        let (found, requests) = refresh(&backplane, &key_cache, &key, "a", || {}).await;
        assert!(matches!(found, Ok(CacheLookup::Hit(_))) && requests == 1);
    }
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let all = async {
        let all = (0..50).map(|_| key_cache.look_up(&key, call_to(&backplane)));
        futures_util::future::join_all(all).await.into_iter().all(|found| matches!(found, Ok(CacheLookup::Hit(_))))
    };
    tokio::pin!(all);
    let mut requests = 0;
    loop {
        tokio::select! {
            biased;
            good = &mut all => break assert!(good),
            request = asked.next() => {
                requests += 1;
                request.unwrap().answer(&RefreshKeyReply::Live(identity("a", key.id()))).await;
            }
        }
    }
    assert!(requests <= 2, "{requests}");
}

#[tokio::test]
async fn without_a_proof_and_a_keystore_no_key_is_accepted() {
    let (backplane, key_cache) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    let found = key_cache.look_up(&key, call_to(&backplane)).await;
    assert!(matches!(found, Err(KeystoreError::Ask(_))));
}

#[tokio::test]
async fn a_proof_that_arrives_while_the_keystore_is_silent_is_enough() {
    let (backplane, key_cache) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    // It receives requests and answers none.
    let _silent = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let (hearing, from) = (Arc::clone(&key_cache), backplane.clone());
    let found = key_cache.look_up(&key, call_to(&backplane));
    let proven = async {
        let mut listener = from.notices.subscribe::<KeyChanged>().await.unwrap().proving(&hearing.liveness);
        listener.next().await
    };
    tokio::select! {
        found = found => assert!(matches!(found, Ok(CacheLookup::Hit(_)))),
        _ = proven => panic!("no notice was sent"),
    }
}

#[tokio::test]
async fn an_evicted_caller_is_confirmed_by_its_id_and_refused_once_revoked() {
    let (backplane, key_cache) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    let caller = held(&key_cache, key_cache.digest(&key), Duration::ZERO);
    assert!(!key_cache.is_current(&caller), "it was found out long ago");
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    for forgotten in [false, true] {
        if forgotten {
            key_cache.identities.invalidate(&caller.digest).await;
        }
        let live = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Live(identity("a", key.id()))).await };
        let (now, ()) = tokio::join!(key_cache.confirm(&caller, call_to(&backplane)), live);
        assert!(key_cache.is_current(&now.unwrap().unwrap()));
        let gone = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Gone).await };
        let (now, ()) = tokio::join!(key_cache.confirm(&caller, call_to(&backplane)), gone);
        assert!(now.unwrap().is_none());
        assert!(verify(&backplane, &key_cache, &key, "a", || {}).await);
    }
    let mut fewer = identity("a", key.id());
    fewer.scopes = Scopes::from([stage0_contract::Scope::Check]);
    let changed = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Live(fewer)).await };
    let (now, ()) = tokio::join!(key_cache.confirm(&caller, call_to(&backplane)), changed);
    assert!(matches!(now, Err(KeystoreError::Changed)), "what it may do was judged before");
}

fn stop(until: Option<Timestamp>) -> Stop {
    let json = serde_json::json!({
        "id": "stop_1", "account": "a", "scope": "account", "value": null, "reason": "incident 12",
        "created_at": "2026-01-31T12:00:00Z", "until": until, "key_id": "k", "member_id": null});
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn a_check_is_not_confirmed_under_other_rules_and_one_that_is_decided_only_under_another_policy() {
    let (backplane, key_cache) = no_longer_proven();
    let key = key(1);
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let mut stopped = identity("a", key.id());
    stopped.rules.stops = vec![stop(Some(Timestamp::MAX))];
    let mut over = identity("a", key.id());
    over.rules.stops = vec![stop(Some(Timestamp::UNIX_EPOCH))];
    let mut alone = identity("a", key.id());
    alone.rules.four_eyes = false;
    let mut verified = identity("a", key.id());
    verified.rules.approvals = stage0_contract::ApprovalMode::Verified;
    let mut published = identity("a", key.id());
    published.rules.policy.default = Some(version("acme@1.0.0+0123456789ab"));
    let mut floored = identity("a", key.id());
    floored.rules.floor = Some(version("floor@1.0.0+0123456789ab"));
    let tried = |mode: &str| {
        let candidate = serde_json::json!({
            "id": "01a20c2e-c3d9-727d-9b3c-c2a79d458dbe", "mode": mode, "version": "acme@1.0.0+0123456789ab",
            "environment": null, "percent": 5, "return_at": null, "started_at": "2026-03-16T12:05:00Z", "key_id": "k"});
        let mut tried = identity("a", key.id());
        tried.rules.candidates = vec![serde_json::from_value(candidate).unwrap()];
        tried
    };
    let mut owned = identity("a", key.id());
    owned.holder = Some(stage0_contract::Holder::of_workload(key.id().clone()));
    let (past, future) = (Duration::ZERO, Duration::MAX);
    let bindings =
        [Binding::Key, Binding::Rules, Binding::Decision { until: past }, Binding::Decision { until: future }];
    for (now, allowed) in [
        (stopped, [true, false, false, false]),
        (alone, [true, false, false, false]),
        (verified, [true, false, false, false]),
        (owned, [true, false, false, false]),
        (published, [true, false, false, true]),
        (floored, [true, false, false, true]),
        (tried("canary"), [true, false, false, true]),
        (tried("shadow"), [true; 4]),
        (over, [true; 4]),
        (identity("a", key.id()), [true; 4]),
    ] {
        for (binding, is_allowed) in bindings.into_iter().zip(allowed) {
            let mut caller = held(&key_cache, key_cache.digest(&key), Duration::ZERO);
            match binding {
                Binding::Key => {
                    caller.bind_to_rules();
                    caller.unbind();
                }
                Binding::Rules => caller.bind_to_rules(),
                Binding::Decision { until } => caller.bind_to_decision(until),
            }
            key_cache.identities.invalidate(&caller.digest).await;
            let answered = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Live(now.clone())).await };
            let (confirmed, ()) = tokio::join!(key_cache.confirm(&caller, call_to(&backplane)), answered);
            if is_allowed {
                let confirmed = confirmed.unwrap().unwrap();
                assert_eq!((confirmed.binding, &**confirmed.identity()), (binding, &now));
            } else {
                assert!(matches!(confirmed, Err(KeystoreError::Changed)), "{binding:?}: {now:?}");
            }
        }
    }
}

#[test]
fn other_groups_or_another_name_are_other_rules_and_what_was_not_told_before_is_not() {
    let untold = identity("a", key(1).id());
    let mut told = untold.clone();
    (told.key_name, told.groups) = (Some("nightly import".to_owned()), Some(vec!["finance".to_owned()]));
    let mut moved = told.clone();
    moved.groups = Some(Vec::new());
    let mut renamed = told.clone();
    renamed.key_name = Some("refunds-bot".to_owned());
    for (now, before, is_other) in [
        (&moved, &told, true),
        (&renamed, &told, true),
        (&untold, &told, true),
        (&told, &untold, false),
        (&told, &told, false),
    ] {
        assert_eq!(!Binding::Rules.allows(now, before), is_other, "{now:?} after {before:?}");
    }
}
