//! The cache of keys beside notices: what is trusted, what is asked for again, and whose notices cost whom.

use super::*;
use crate::address::ClientNet;
use crate::throttle::{FailedLogins, LoginsBy};
use futures_util::future::join_all;
use stage0_contract::{Caps, KeyId, Limits, Plan, Scopes};

fn key(byte: u8) -> ApiKey {
    ApiKey::from_random([byte; 10], [2; 20]).unwrap()
}

fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn identity(account: &str, key_id: &KeyId) -> KeyIdentity {
    KeyIdentity {
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

fn asking(backplane: &Backplane) -> Asking<'_> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    Asking { keystore: &*backplane.requests, deadline, request_id: None }
}

/// A keyring that hears notices, as soon as it does.
async fn listening() -> (Backplane, Arc<Keyring>) {
    let (backplane, keyring) = (Backplane::embedded(), Arc::new(Keyring::new([1; 32])));
    let (hearing, from) = (Arc::clone(&keyring), backplane.clone());
    tokio::spawn(async move { hearing.listen(&from).await });
    keyring.liveness.wait_until(|| keyring.liveness.proven_at().is_some()).await;
    (backplane, keyring)
}

/// Verifies a key that the keystore vouches for; `meanwhile` happens before it answers.
async fn verify(backplane: &Backplane, keyring: &Keyring, key: &ApiKey, of: &str, meanwhile: impl FnOnce()) -> bool {
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let answered = async {
        let question = asked.next().await.unwrap();
        meanwhile();
        question.answer(&VerifyKeyReply::Valid(identity(of, key.id()))).await;
    };
    let failed = FailedLogins::new(50);
    let (verified, ()) = tokio::join!(keyring.verify(key, asking(backplane), failed.of(None, None)), answered);
    matches!(verified.unwrap(), Verified::Yes(_))
}

/// Looks a key of `of` up, and answers every question about it after `meanwhile`; with how many questions there were.
async fn refresh(
    backplane: &Backplane,
    keyring: &Keyring,
    key: &ApiKey,
    of: &str,
    mut meanwhile: impl FnMut(),
) -> (Result<Known, KeystoreError>, u32) {
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let mut count = 0;
    let found = keyring.look_up(key, asking(backplane));
    tokio::pin!(found);
    loop {
        tokio::select! {
            biased;
            found = &mut found => return (found, count),
            question = asked.next() => {
                count += 1;
                meanwhile();
                question.unwrap().answer(&RefreshKeyReply::Live(identity(of, key.id()))).await;
            }
        }
    }
}

/// Whether a key is known without a question: nobody would answer one.
async fn is_trusted(backplane: &Backplane, keyring: &Keyring, key: &ApiKey) -> bool {
    matches!(keyring.look_up(key, asking(backplane)).await, Ok(Known::Yes(_)))
}

#[tokio::test]
async fn the_keystore_is_told_for_which_request_a_key_is_verified() {
    let (backplane, keyring) = (Backplane::embedded(), Keyring::new([1; 32]));
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let id = Some(RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap());
    let key = key(1);
    let failed = FailedLogins::new(50);
    let verified = keyring.verify(&key, Asking { request_id: id, ..asking(&backplane) }, failed.of(None, None));
    let answered = async {
        let question = asked.next().await.unwrap();
        assert_eq!(question.request.request_id, id);
        question.answer(&VerifyKeyReply::Invalid).await;
    };
    let (verified, ()) = tokio::join!(verified, answered);
    assert!(matches!(verified.unwrap(), Verified::No));
}

fn net(text: &str) -> Option<ClientNet> {
    Some(ClientNet::of(text.parse().unwrap()))
}

/// What becomes of 64 who show one key at once, from an address that is blocked while the one hash of it runs.
async fn crowd(failed: &FailedLogins, reply: impl Fn(&KeyId) -> VerifyKeyReply) -> Vec<Verified> {
    let (backplane, keyring) = listening().await;
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let (key, here) = (key(1), net("192.0.2.1"));
    let verify = async || keyring.verify(&key, asking(&backplane), failed.of(here, Some(key.id()))).await.unwrap();
    let (first, rest) = (verify(), async {
        let question = asked.next().await.unwrap();
        for _ in 0..5 {
            failed.of(here, None).failed();
        }
        // Whoever comes now shares the hash, though the address may cause no more of them.
        let rest = join_all((0..63).map(|_| verify()));
        let answered = async {
            tokio::task::yield_now().await;
            question.answer(&reply(key.id())).await;
        };
        tokio::join!(rest, answered).0
    });
    let (first, mut all) = tokio::join!(first, rest);
    all.push(first);
    let other = ApiKey::from_random([9; 10], [2; 20]).unwrap();
    let stranger = keyring.verify(&other, asking(&backplane), failed.of(here, Some(other.id()))).await.unwrap();
    assert!(matches!(stranger, Verified::Blocked(blocked) if blocked.by == LoginsBy::Address));
    let elsewhere = verified_elsewhere(&backplane, &keyring, failed, &other, &mut asked);
    assert!(matches!(elsewhere.await, Verified::No), "another address may");
    all
}

async fn verified_elsewhere(
    backplane: &Backplane,
    keyring: &Keyring,
    failed: &FailedLogins,
    key: &ApiKey,
    asked: &mut stage0_backplane::Served<VerifyKey>,
) -> Verified {
    let answered = async { asked.next().await.unwrap().answer(&VerifyKeyReply::Invalid).await };
    let verified = keyring.verify(key, asking(backplane), failed.of(net("192.0.2.2"), Some(key.id())));
    tokio::join!(verified, answered).0.unwrap()
}

#[tokio::test]
async fn all_who_show_a_good_key_share_its_hash_though_their_address_is_blocked_meanwhile() {
    let failed = FailedLogins::new(5);
    let all = crowd(&failed, |id| VerifyKeyReply::Valid(identity("a", id))).await;
    assert!(all.len() == 64 && all.iter().all(|verified| matches!(verified, Verified::Yes(_))));
}

#[tokio::test]
async fn all_who_show_a_wrong_key_are_told_so_and_count_as_one_failed_login() {
    let failed = FailedLogins::new(5);
    let all = crowd(&failed, |_| VerifyKeyReply::Invalid).await;
    assert!(all.len() == 64 && all.iter().all(|verified| matches!(verified, Verified::No)));
    let key = key(1);
    let elsewhere = failed.of(net("192.0.2.3"), Some(key.id()));
    (0..3).for_each(|_| elsewhere.failed());
    assert_eq!(elsewhere.blocked(), None, "64 who waited are one failure of the id");
    elsewhere.failed();
    assert!(elsewhere.blocked().is_some_and(|blocked| blocked.by == LoginsBy::Key), "and not none");
}

#[tokio::test]
async fn a_notice_of_one_account_costs_no_other_its_trust() {
    let (backplane, keyring) = listening().await;
    let (theirs, mine) = (key(1), key(2));
    assert!(verify(&backplane, &keyring, &theirs, "a", || {}).await);
    assert!(verify(&backplane, &keyring, &mine, "b", || {}).await);
    let before = keyring.doubts.count();
    for _ in 0..100 {
        let notice = KeyChanged::One { account: account("a"), key_id: KeyId::parse("long_revoked").unwrap() };
        backplane.notices.tell(&notice).await.unwrap();
    }
    while keyring.doubts.count() < before + 100 {
        tokio::task::yield_now().await;
    }
    assert!(is_trusted(&backplane, &keyring, &mine).await);
    assert!(
        !is_trusted(&backplane, &keyring, &theirs).await,
        "all keys of the account are in doubt, not the named one alone"
    );
    let (renewed, questions) = refresh(&backplane, &keyring, &theirs, "a", || {}).await;
    assert!(matches!(renewed, Ok(Known::Yes(_))) && questions == 1);
    assert!(is_trusted(&backplane, &keyring, &theirs).await);
}

#[tokio::test]
async fn notices_without_end_hold_up_their_own_account_alone() {
    let (backplane, keyring) = listening().await;
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    keyring.doubt(&account("a"));
    let (unsettled, questions) = refresh(&backplane, &keyring, &key, "a", || keyring.doubt(&account("a"))).await;
    assert!(matches!(unsettled, Err(KeystoreError::Unsettled)) && questions == MOST_TRIES);
    let (renewed, questions) = refresh(&backplane, &keyring, &key, "a", || keyring.doubt(&account("b"))).await;
    assert!(matches!(renewed, Ok(Known::Yes(_))) && questions == 1);
}

#[tokio::test]
async fn a_notice_that_is_heard_while_a_key_is_verified_makes_the_keyring_ask_again() {
    let (backplane, keyring) = listening().await;
    let key = key(1);
    let mut again = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let revoked = async { again.next().await.unwrap().answer(&RefreshKeyReply::Gone).await };
    let (valid, ()) = tokio::join!(verify(&backplane, &keyring, &key, "a", || keyring.doubt(&account("a"))), revoked);
    assert!(!valid);
    drop(again);
    assert!(
        verify(&backplane, &keyring, &key, "a", || keyring.doubt(&account("b"))).await,
        "another account's does not"
    );
    assert!(is_trusted(&backplane, &keyring, &key).await);
}

#[tokio::test]
async fn what_was_asked_for_before_notices_are_heard_is_not_trusted_afterwards() {
    let (backplane, keyring) = listening().await;
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    assert!(is_trusted(&backplane, &keyring, &key).await);
    let (hearing, from) = (Arc::clone(&keyring), backplane.clone());
    tokio::spawn(async move { hearing.listen(&from).await });
    while keyring.listeners.load(Ordering::SeqCst) == 1 {
        tokio::task::yield_now().await;
    }
    assert!(!is_trusted(&backplane, &keyring, &key).await);
}

/// A keyring that heard and proved itself, and does so no more.
fn no_longer_proven() -> (Backplane, Arc<Keyring>) {
    let backplane = Backplane::embedded();
    let keyring = Arc::new(Keyring::new([1; 32]));
    // As a connection that stands and over which nothing comes any more.
    keyring.listeners.fetch_add(1, Ordering::SeqCst);
    keyring.doubts.everything();
    (backplane, keyring)
}

/// What was asked for at `since` and stands without a doubt.
fn vouched(keyring: &Keyring, since: Duration) -> Vouched {
    Vouched::new(identity("a", key(1).id()), since, keyring.doubts.count())
}

#[test]
fn a_key_is_first_used_once_in_each_hour() {
    let keyring = Keyring::new([1; 32]);
    let believed = Believed { digest: [0; 32], vouched: Arc::new(vouched(&keyring, boottime())) };
    let hour = NoteKeyUses::hour_of(Timestamp::now());
    let minutes = |minutes| hour + jiff::SignedDuration::from_mins(minutes);
    let used = [0, 1, 59, 60, 61].map(|at| believed.is_first_use_in_hour(minutes(at)));
    assert_eq!(used, [true, false, false, true, false]);
}

#[tokio::test]
async fn what_was_told_is_trusted_only_while_the_proof_is_young_and_released_only_while_it_is() {
    let (_, keyring) = listening().await;
    let proven = keyring.liveness.proven_at().unwrap();
    let old = vouched(&keyring, proven.saturating_sub(Duration::from_secs(30)));
    let after = |millis| proven + Duration::from_millis(millis);
    assert!(keyring.trusts(&old, after(1)) && keyring.holds(&old, after(1)));
    // By another proof, by now, it may have become younger, never older.
    let none = no_longer_proven().1;
    let old = vouched(&none, Duration::from_secs(1_000));
    let at = |millis| Duration::from_secs(1_000) + Duration::from_millis(millis);
    assert!(!none.trusts(&old, at(0)), "without a proof the keystore is asked");
    assert!(none.holds(&old, at(499)), "one who was answered may go on for a moment");
    assert!(!none.holds(&old, at(500)));
    none.doubts.account(&account("a"));
    assert!(!none.holds(&old, at(1)), "not against a notice");
}

#[tokio::test]
async fn a_proof_makes_an_answer_good_for_a_minute_from_when_it_was_asked_for_and_no_longer() {
    let (_, keyring) = listening().await;
    // Proofs go on meanwhile: what is judged is judged by one of them.
    let judged = |seconds, later| loop {
        let now = keyring.liveness.proven_at().unwrap();
        let old = vouched(&keyring, now.saturating_sub(Duration::from_secs(seconds)));
        let trusted = keyring.trusts(&old, now + later);
        if keyring.liveness.proven_at() == Some(now) {
            break trusted;
        }
    };
    assert!(judged(59, Duration::ZERO));
    assert!(!judged(60, Duration::ZERO));
    assert!(judged(1, MAX_PROOF_AGE - Duration::from_millis(1)));
    assert!(!judged(1, MAX_PROOF_AGE), "by a proof that has become old");
}

#[tokio::test]
async fn without_a_proof_a_known_key_is_asked_for_at_every_request_and_many_at_once_share_the_question() {
    let (backplane, keyring) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    for _ in 0..3 {
        let (found, questions) = refresh(&backplane, &keyring, &key, "a", || {}).await;
        assert!(matches!(found, Ok(Known::Yes(_))) && questions == 1);
    }
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let all = async {
        let all = (0..50).map(|_| keyring.look_up(&key, asking(&backplane)));
        futures_util::future::join_all(all).await.into_iter().all(|found| matches!(found, Ok(Known::Yes(_))))
    };
    tokio::pin!(all);
    let mut questions = 0;
    loop {
        tokio::select! {
            biased;
            good = &mut all => break assert!(good),
            question = asked.next() => {
                questions += 1;
                question.unwrap().answer(&RefreshKeyReply::Live(identity("a", key.id()))).await;
            }
        }
    }
    assert!(questions <= 2, "{questions}");
}

#[tokio::test]
async fn without_a_proof_and_without_a_keystore_nobody_is_believed() {
    let (backplane, keyring) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    let found = keyring.look_up(&key, asking(&backplane)).await;
    assert!(matches!(found, Err(KeystoreError::Ask(_))));
}

#[tokio::test]
async fn a_proof_that_comes_while_the_keystore_is_silent_is_enough() {
    let (backplane, keyring) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    // It takes questions and answers none.
    let _silent = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let (hearing, from) = (Arc::clone(&keyring), backplane.clone());
    let found = keyring.look_up(&key, asking(&backplane));
    let proven = async {
        let mut listener = from.notices.listen::<KeyChanged>().await.unwrap().proving(&hearing.liveness);
        listener.next().await
    };
    tokio::select! {
        found = found => assert!(matches!(found, Ok(Known::Yes(_)))),
        _ = proven => panic!("no notice was told"),
    }
}

#[tokio::test]
async fn a_caller_is_looked_at_again_by_its_id_though_it_was_forgotten_and_is_refused_once_it_is_gone() {
    let (backplane, keyring) = no_longer_proven();
    let key = key(1);
    assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    let believed = Believed { digest: keyring.digest(&key), vouched: Arc::new(vouched(&keyring, Duration::ZERO)) };
    assert!(!keyring.stands(&believed), "it was found out long ago");
    let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
    for forgotten in [false, true] {
        if forgotten {
            keyring.known.invalidate(&believed.digest).await;
        }
        let live = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Live(identity("a", key.id()))).await };
        let (now, ()) = tokio::join!(keyring.confirm(&believed, asking(&backplane)), live);
        assert!(keyring.stands(&now.unwrap().unwrap()));
        let gone = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Gone).await };
        let (now, ()) = tokio::join!(keyring.confirm(&believed, asking(&backplane)), gone);
        assert!(now.unwrap().is_none());
        assert!(verify(&backplane, &keyring, &key, "a", || {}).await);
    }
    let mut fewer = identity("a", key.id());
    fewer.scopes = Scopes::from([stage0_contract::Scope::Check]);
    let changed = async { asked.next().await.unwrap().answer(&RefreshKeyReply::Live(fewer)).await };
    let (now, ()) = tokio::join!(keyring.confirm(&believed, asking(&backplane)), changed);
    assert!(matches!(now, Err(KeystoreError::Changed)), "what it may do was judged before");
}
