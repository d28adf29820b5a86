//! The cache of keys beside notices: what is trusted, what is asked for again, and whose notices cost whom.

use super::*;
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

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(30)
}

/// A keyring that hears notices, as soon as it does.
async fn listening() -> (Backplane, Arc<Keyring>) {
    let (backplane, keyring) = (Backplane::embedded(), Arc::new(Keyring::new([1; 32])));
    let (hearing, from) = (Arc::clone(&keyring), backplane.clone());
    tokio::spawn(async move { hearing.listen(&from).await });
    while keyring.listeners.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
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
    let (verified, ()) = tokio::join!(keyring.verify(key, &*backplane.requests, soon(), None), answered);
    verified.unwrap().is_some()
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
    let found = keyring.look_up(key, &*backplane.requests, soon(), None);
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
    matches!(keyring.look_up(key, &*backplane.requests, soon(), None).await, Ok(Known::Yes(_)))
}

#[tokio::test]
async fn the_keystore_is_told_for_which_request_a_key_is_verified() {
    let (backplane, keyring) = (Backplane::embedded(), Keyring::new([1; 32]));
    let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let id = Some(RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap());
    let key = key(1);
    let verified = keyring.verify(&key, &*backplane.requests, soon(), id);
    let answered = async {
        let question = asked.next().await.unwrap();
        assert_eq!(question.request.request_id, id);
        question.answer(&VerifyKeyReply::Invalid).await;
    };
    let (verified, ()) = tokio::join!(verified, answered);
    assert!(verified.unwrap().is_none());
}

#[tokio::test]
async fn a_notice_of_one_account_costs_no_other_its_trust() {
    let (backplane, keyring) = listening().await;
    let (theirs, mine) = (key(1), key(2));
    assert!(verify(&backplane, &keyring, &theirs, "a", || {}).await);
    assert!(verify(&backplane, &keyring, &mine, "b", || {}).await);
    let before = keyring.doubts.count();
    for _ in 0..100 {
        let notice = KeyChanged { account: account("a"), key_id: KeyId::parse("long_revoked").unwrap() };
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
