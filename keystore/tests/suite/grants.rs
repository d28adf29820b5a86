//! What a key may grant: no more rights than it has, no longer than it lasts, and no more keys than the account may
//! have.

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, CapChanges, Change, CreateKey, KeyCreated, KeyId, ListKeys, ManageReply, Refusal, RevokeKey, RotateKey,
    Scope, UpdateAccount,
};

use crate::harness::{Running, caller_of, done, refused};
use crate::webhooks::unchanged;

fn in_seconds(seconds: i64) -> Timestamp {
    let later = Timestamp::now().checked_add(SignedDuration::from_secs(seconds)).unwrap();
    Timestamp::from_second(later.as_second()).unwrap()
}

/// A key of an account, created by the operator.
async fn key(running: &Running, account: &AccountId, scopes: &[Scope], end: Option<Timestamp>) -> KeyCreated {
    done(running.ask(&CreateKey { expires_at: end, ..running.create(account, scopes) }).await)
}

async fn create(running: &Running, by: &KeyCreated, end: Option<Timestamp>) -> ManageReply<KeyCreated> {
    let call = running.create(&by.account, &[Scope::Check]);
    running.ask(&CreateKey { caller: caller_of(by), account: None, expires_at: end, ..call }).await
}

async fn rotate(running: &Running, by: &KeyCreated, id: &KeyId, overlap_seconds: u64) -> ManageReply<KeyCreated> {
    running.ask(&RotateKey { caller: caller_of(by), id: id.clone(), overlap_seconds }).await
}

async fn revoke(running: &Running, by: &KeyCreated, id: &KeyId) -> ManageReply<stage0_contract::Revoked> {
    running.ask(&RevokeKey { caller: caller_of(by), id: id.clone() }).await
}

async fn cap(running: &Running, account: &AccountId, keys: u64) {
    let caps = CapChanges { max_keys: Some(Change::Own(keys)), ..CapChanges::default() };
    done(running.ask(&UpdateAccount { caps, ..unchanged(running, account) }).await);
}

const MANAGER: [Scope; 2] = [Scope::KeysManage, Scope::Check];

#[tokio::test]
async fn an_expiring_key_cannot_create_or_rotate_one_that_lasts_longer() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let end = in_seconds(600);
    let manager = key(&running, &account, &MANAGER, Some(end)).await;
    let endless = key(&running, &account, &[Scope::Check], None).await;
    match refused(create(&running, &manager, Some(in_seconds(700))).await) {
        Refusal::Invalid(errors) => {
            assert_eq!(errors[0].path, "expires_at");
            assert!(errors[0].message.contains(&end.to_string()), "{errors:?}");
        }
        other => panic!("{other:?}"),
    }
    let made = done(create(&running, &manager, None).await);
    assert_eq!(made.expires_at, Some(end));
    let brief = done(create(&running, &manager, Some(in_seconds(300))).await);
    assert!(brief.expires_at < Some(end));
    // The caller of a rotation gets the successor's secret.
    assert!(matches!(refused(rotate(&running, &manager, &endless.id, 60).await), Refusal::Conflict(_)));
    let successor = done(rotate(&running, &manager, &made.id, 60).await);
    assert_eq!(successor.expires_at, Some(end), "rotation keeps the end");
    let itself = done(rotate(&running, &manager, &manager.id, 120).await);
    assert_eq!(itself.expires_at, Some(end));
    running.stop().await;
}

#[tokio::test]
async fn keys_granted_by_a_rotated_key_end_with_its_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let old = key(&running, &account, &MANAGER, None).await;
    let new = done(rotate(&running, &old, &old.id, 600).await);
    assert_eq!(new.expires_at, None);
    let made = done(create(&running, &old, None).await);
    assert!(made.expires_at.is_some_and(|end| end <= in_seconds(600)), "{:?}", made.expires_at);
    assert!(matches!(refused(create(&running, &old, Some(in_seconds(900))).await), Refusal::Invalid(_)));
    assert!(matches!(refused(rotate(&running, &old, &new.id, 0).await), Refusal::Conflict(_)));
    assert_eq!(done(create(&running, &new, None).await).expires_at, None, "its successor has no end");
    // The successor of the old key expires with its overlap when the old key is rotated again.
    let again = done(rotate(&running, &new, &old.id, 86_400).await);
    assert!(again.expires_at.is_some_and(|end| end <= in_seconds(600)), "{:?}", again.expires_at);
    running.stop().await;
}

#[tokio::test]
async fn a_key_with_more_rights_is_neither_revoked_nor_rotated_by_one_with_fewer() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let manager = key(&running, &account, &MANAGER, None).await;
    let strong = key(&running, &account, &[Scope::Check, Scope::DecisionsDelete], None).await;
    let missing = Refusal::ScopeMissing(Scope::DecisionsDelete);
    assert_eq!(refused(revoke(&running, &manager, &strong.id).await), missing);
    assert_eq!(refused(rotate(&running, &manager, &strong.id, 60).await), missing);
    assert!(running.is_active(&strong.id).await);
    let weak = key(&running, &account, &[Scope::Check], None).await;
    done(revoke(&running, &manager, &weak.id).await);
    done(revoke(&running, &manager, &weak.id).await);
    assert!(!running.is_active(&weak.id).await);
    // The key that it created stays active.
    let made = done(create(&running, &manager, None).await);
    done(revoke(&running, &manager, &manager.id).await);
    assert!(running.is_active(&made.id).await);
    running.revoke(&strong.id).await;
    running.stop().await;
}

#[tokio::test]
async fn an_account_has_no_more_active_keys_than_its_cap() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let manager = key(&running, &account, &MANAGER, None).await;
    cap(&running, &account, 3).await;
    let (first, second) = (create(&running, &manager, None).await, create(&running, &manager, None).await);
    let (first, second) = (done(first), done(second));
    match refused(create(&running, &manager, None).await) {
        Refusal::Conflict(text) => assert!(text.contains("`max_keys` is 3"), "{text}"),
        other => panic!("{other:?}"),
    }
    let over = running.ask(&running.create(&account, &[Scope::Check])).await;
    assert!(matches!(refused(over), Refusal::Conflict(_)), "nor does an operator make one more");
    // Both keys count during an overlap; without one the number stays the same.
    assert!(matches!(refused(rotate(&running, &manager, &first.id, 60).await), Refusal::Conflict(_)));
    let successor = done(rotate(&running, &manager, &first.id, 0).await);
    done(revoke(&running, &manager, &second.id).await);
    done(create(&running, &manager, None).await);
    assert!(matches!(create(&running, &manager, None).await, ManageReply::Refused(Refusal::Conflict(_))));
    cap(&running, &account, 4).await;
    done(create(&running, &manager, None).await);
    running.stop().await;
    let running = Running::start(dir.path()).await;
    assert!(matches!(create(&running, &manager, None).await, ManageReply::Refused(Refusal::Conflict(_))));
    assert!(running.is_active(&successor.id).await);
    running.stop().await;
}

#[tokio::test]
async fn creating_and_revoking_keys_forever_does_not_fill_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let first = running.key(&account, &[Scope::Check]).await;
    running.revoke(&first.id).await;
    let mut last = first.id.clone();
    for _ in 0..1_010 {
        last = running.key(&account, &[Scope::Check]).await.id;
        running.revoke(&last).await;
    }
    let mut listed = Vec::new();
    let mut cursor = None;
    loop {
        let (caller, account) = (running.operator.clone(), Some(account.clone()));
        let page = done(running.ask(&ListKeys { caller, account, cursor, limit: 1_000 }).await);
        listed.extend(page.items.into_iter().map(|key| key.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert!(listed.len() <= 1_001, "{}", listed.len());
    assert!(listed.contains(&last), "who was revoked last is still told of");
    // Keys that ended in the same second are forgotten in any order. A forgotten key is not active either.
    assert!(!running.is_active(&first.id).await);
    assert!(running.verify(&first.key).await.is_none());
    running.stop().await;
    // Journal and store agree on the remaining records.
    let running = Running::start(dir.path()).await;
    assert!(!running.is_active(&first.id).await && !running.is_active(&last).await);
    running.stop().await;
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.contains(".damaged-")));
    // The journal alone rebuilds the same store.
    std::fs::remove_dir_all(dir.path().join("store")).unwrap();
    let running = Running::start(dir.path()).await;
    assert_eq!(running.keys_of(&account).await, 1_000, "of at most a thousand a page");
    running.stop().await;
}
