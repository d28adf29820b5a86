//! Requests to a running keystore and their replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, BoxFuture, Event, Notices, PublishError, RawSubscription, ServeError};
use stage0_contract::{
    ApiKey, Caller, CreateAccount, CreateKey, Deletion, KEY_ALPHABET, KeyChanged, KeyId, ListAccounts, ListKeys,
    ManageReply, Mark, MarkBody, NoteKeyUses, NoteKeyUsesReply, PermitDeletion, Plan, Refusal, RevokeKey, RotateKey,
    Scope, SignMark,
};
use stage0_keystore::OPERATOR_KEY_FILE;

use crate::harness::{Running, anonymous, caller_of, config, done, next_key_notice, refused, scopes};

#[tokio::test]
async fn unknown_wrong_and_revoked_keys_get_the_same_reply() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let made = running.key(&account, &[Scope::Check]).await;
    assert_eq!(running.verify(&ApiKey::from_random([1; 10], [2; 20]).unwrap()).await, None);
    running.revoke(&made.id).await;
    assert_eq!(running.verify(&made.key).await, None);
    running.stop().await;
}

#[tokio::test]
async fn a_caller_whose_key_ended_has_no_scope() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let manager = running.key(&account, &[Scope::KeysManage, Scope::Check]).await;
    let caller = caller_of(&manager);
    let mut call = running.create(&account, &[Scope::Check]);
    call.caller = caller.clone();
    done(running.ask(&call).await);
    call.caller.scopes = scopes(&Scope::ALL);
    call.scopes = scopes(&[Scope::Operator]);
    assert_eq!(refused(running.ask(&call).await), Refusal::ScopeMissing(Scope::Operator));
    running.revoke(&manager.id).await;
    call.caller = caller;
    call.scopes = scopes(&[Scope::Check]);
    assert_eq!(refused(running.ask(&call).await), Refusal::ScopeMissing(Scope::KeysManage));
    running.stop().await;
}

/// A gateway's claim is not enough: a caller that knows only a key's id does not hold the key.
#[tokio::test]
async fn a_caller_is_identified_by_its_key_and_not_by_its_claims() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let genuine = running.operator.clone();
    let wanted = CreateKey { caller: genuine.clone(), ..running.create(&account, &[Scope::Operator]) };
    let manager = running.key(&account, &[Scope::KeysManage]).await;
    let guessed = ApiKey::from_random([7; 10], [9; 20]).unwrap();
    let same_id = with_id_of(genuine.key.as_ref().unwrap());
    for (what, key) in [("another's", &manager.key), ("unknown", &guessed), ("of the same id", &same_id)] {
        let call = CreateKey { caller: Caller { key: Some(key.clone()), ..genuine.clone() }, ..wanted.clone() };
        assert_eq!(refused(running.ask(&call).await), Refusal::ScopeMissing(Scope::KeysManage), "{what}");
    }
    let unproven = CreateKey { caller: Caller { key: None, ..genuine.clone() }, ..wanted.clone() };
    assert_eq!(running.ask(&unproven).await, ManageReply::Failed);
    assert_eq!(running.keys_of(&account).await, 1, "only the manager's");
    done(running.ask(&wanted).await);
    running.stop().await;
}

/// A key with the same id and another secret.
fn with_id_of(key: &ApiKey) -> ApiKey {
    let mut id = [0; 10];
    let (mut buffer, mut bits, mut at) = (0_u32, 0, 0);
    for letter in key.id().as_str().bytes() {
        let value = KEY_ALPHABET.iter().position(|known| *known == letter).unwrap();
        buffer = (buffer << 5) | u32::try_from(value).unwrap();
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            id[at] = u8::try_from(buffer >> bits & 255).unwrap();
            at += 1;
        }
    }
    let other = ApiKey::from_random(id, [9; 20]).unwrap();
    assert_eq!((other.id(), other == *key), (key.id(), false));
    other
}

#[tokio::test]
async fn a_deletion_permit_signs_only_the_mark_of_its_own_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let (may, may_not) =
        (running.key(&account, &[Scope::DecisionsDelete]).await, running.key(&account, &[Scope::DecisionsRead]).await);
    let before = Timestamp::now();
    let ask = |caller, before| PermitDeletion { caller, before };
    let lacking = refused(running.ask(&ask(caller_of(&may_not), before)).await);
    assert_eq!(lacking, Refusal::ScopeMissing(Scope::DecisionsDelete));
    let invented = Caller { key: may_not.key.clone().into(), ..caller_of(&may) };
    assert!(matches!(running.ask(&ask(invented, before)).await, ManageReply::Refused(_)));
    let later = before + SignedDuration::from_hours(1);
    assert!(matches!(refused(running.ask(&ask(caller_of(&may), later)).await), Refusal::Invalid(_)));
    let permit = done(running.ask(&ask(caller_of(&may), before)).await);
    let mark = |by: &KeyId| deletion_mark(&account, before, by);
    let sign = |mark, permit| SignMark { mark, last: None, takes_earlier: false, permit };
    assert_eq!(running.ask(&sign(mark(&may.id), None)).await, ManageReply::Failed);
    assert_eq!(running.ask(&sign(mark(&may_not.id), Some(permit.clone()))).await, ManageReply::Failed);
    done(running.ask(&sign(mark(&may.id), Some(permit))).await);
    running.stop().await;
}

fn deletion_mark(account: &stage0_contract::AccountId, before: Timestamp, by: &KeyId) -> Mark {
    let deletion =
        Deletion { before, from: None, to: None, count: 1, through: 0, deleted: Vec::new(), requested_by: by.clone() };
    Mark {
        body: MarkBody::Deletion(deletion),
        account: account.clone(),
        number: 1,
        previous: None,
        recorded_at: before,
        expires_at: before.as_second() + 86_400,
        through: 0,
        covered: 0,
        heads: Vec::new(),
    }
}

#[tokio::test]
async fn a_keys_last_use_is_listed_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let (used, unused) = (running.key(&account, &[Scope::Check]).await, running.key(&account, &[Scope::Check]).await);
    let hour = NoteKeyUses::hour_of(Timestamp::now());
    let listed = async |running: &Running, id: &KeyId| {
        let list =
            ListKeys { caller: running.operator.clone(), account: Some(account.clone()), cursor: None, limit: 9 };
        let page = done(running.ask(&list).await);
        page.items.into_iter().find(|key| key.id == *id).unwrap().last_used_at
    };
    assert_eq!(listed(&running, &used.id).await, None);
    let journal = std::fs::metadata(dir.path().join(stage0_keystore::JOURNAL_FILE)).unwrap().len();
    let note = NoteKeyUses { hour, keys: vec![used.id.clone()] };
    assert_eq!(running.ask(&note).await, NoteKeyUsesReply::Noted);
    assert_eq!(listed(&running, &used.id).await, Some(hour));
    assert_eq!(listed(&running, &unused.id).await, None);
    assert_eq!(std::fs::metadata(dir.path().join(stage0_keystore::JOURNAL_FILE)).unwrap().len(), journal);
    running.stop().await;
    let running = Running::start(dir.path()).await;
    assert_eq!(listed(&running, &used.id).await, Some(hour));
    running.stop().await;
    // The database of last uses may be missing.
    std::fs::remove_dir_all(dir.path().join("last-used")).unwrap();
    let running = Running::start(dir.path()).await;
    assert_eq!(listed(&running, &used.id).await, None);
    assert_eq!(running.ask(&note).await, NoteKeyUsesReply::Noted);
    assert_eq!(listed(&running, &used.id).await, Some(hour));
    running.stop().await;
}

#[tokio::test]
async fn a_rotation_says_when_the_old_key_ends() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let made = running.key(&account, &[Scope::Check]).await;
    assert_eq!(made.old_key_expires_at, None, "there is none");
    let rotated = running.rotate(&made.id, 3_600).await;
    let end = rotated.old_key_expires_at.unwrap();
    assert_eq!(end, rotated.created_at + SignedDuration::from_secs(3_600));
    let again = running.rotate(&rotated.id, 0).await;
    assert_eq!(again.old_key_expires_at, Some(again.created_at), "it just ended");
    // A key that expires before the overlap ends.
    let soon = rotated.created_at + SignedDuration::from_secs(600);
    let brief = CreateKey { expires_at: Some(soon), ..running.create(&account, &[Scope::Check]) };
    let brief = done(running.ask(&brief).await);
    let rotation = RotateKey { caller: running.operator.clone(), id: brief.id, overlap_seconds: 3_600 };
    assert_eq!(done(running.ask(&rotation).await).old_key_expires_at, brief.expires_at);
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_account_and_its_keys_do_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let manager = running.key(&mine, &[Scope::KeysManage]).await;
    let foreign = running.key(&theirs, &[Scope::KeysManage]).await;
    let caller = caller_of(&manager);
    let list = ListKeys { caller: caller.clone(), account: Some(theirs.clone()), cursor: None, limit: 1 };
    assert_eq!(refused(running.ask(&list).await), Refusal::NotFound);
    let create = CreateKey { caller: caller.clone(), ..running.create(&theirs, &[Scope::KeysManage]) };
    assert_eq!(refused(running.ask(&create).await), Refusal::NotFound);
    let revoke = RevokeKey { caller: caller.clone(), id: foreign.id };
    assert_eq!(refused(running.ask(&revoke).await), Refusal::NotFound);
    let accounts = ListAccounts { caller: caller.clone(), cursor: None, limit: 1 };
    assert_eq!(refused(running.ask(&accounts).await), Refusal::ScopeMissing(Scope::Operator));
    let account = CreateAccount { approvals: None, caller, name: "n".to_owned(), plan: None };
    assert_eq!(refused(running.ask(&account).await), Refusal::ScopeMissing(Scope::Operator));
    let unknown = stage0_contract::AccountId::parse("acc_none").unwrap();
    assert_eq!(refused(running.ask(&running.create(&unknown, &[Scope::Check])).await), Refusal::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn a_key_speaks_for_its_account_with_its_scopes_and_plan() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let call = CreateAccount {
        approvals: None,
        caller: running.operator.clone(),
        name: "a".to_owned(),
        plan: Some(Plan::Free),
    };
    let account = done(running.ask(&call).await);
    let made = running.key(&account.id, &[Scope::Check]).await;
    let identity = running.verify(&made.key).await.unwrap();
    assert_eq!(
        (identity.account, identity.plan, identity.scopes),
        (account.id.clone(), Plan::Free, scopes(&[Scope::Check]))
    );
    assert!(account.id.as_str().starts_with("acc_") && account.id.as_str().len() == 20);
    assert_eq!(made.created_at.subsec_nanosecond(), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_rotated_key_ends_at_once_or_after_the_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let first = running.key(&account, &[Scope::Check]).await;
    let second = running.rotate(&first.id, 3_600).await;
    assert_eq!((&second.name, &second.scopes, second.expires_at), (&first.name, &first.scopes, None));
    assert!(running.verify(&first.key).await.unwrap().expires_at.is_some());
    let third = running.rotate(&second.id, 0).await;
    assert!(running.verify(&second.key).await.is_none());
    assert!(running.verify(&third.key).await.is_some());
    running.stop().await;
}

#[tokio::test]
async fn the_notice_of_an_ended_key_is_published_before_the_reply() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let made = running.key(&account, &[Scope::Check]).await;
    let mut heard = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    running.revoke(&made.id).await;
    running.revoke(&made.id).await;
    running.rotate(&running.key(&account, &[Scope::Check]).await.id, 60).await;
    for told in 0..3 {
        let (of, key) = next_key_notice(&mut heard).await;
        assert_eq!((of, key == made.id), (account.clone(), told < 2));
    }
    running.stop().await;
}

/// Notices that fail while the flag is set.
struct Mute {
    inner: Arc<dyn Notices>,
    mute: Arc<AtomicBool>,
}

impl Notices for Mute {
    fn publish_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), PublishError>> {
        if self.mute.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(PublishError)));
        }
        self.inner.publish_bytes(subject, notice)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        self.inner.flush()
    }

    fn subscribe_bytes<'a>(
        &'a self,
        subject: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn RawSubscription>, ServeError>> {
        self.inner.subscribe_bytes(subject)
    }
}

#[tokio::test]
async fn a_revocation_without_a_notice_is_not_confirmed_and_its_notice_is_retried() {
    let (dir, bus, mute) = (tempfile::tempdir().unwrap(), Bus::new(), Arc::new(AtomicBool::new(false)));
    let backplane = bus.connect();
    let notices = Arc::new(Mute { inner: Arc::clone(&backplane.notices), mute: Arc::clone(&mute) });
    let mut running =
        Running::start_on(config(dir.path()), Backplane { notices, ..backplane }, anonymous()).await.unwrap();
    running.become_operator(&dir.path().join(OPERATOR_KEY_FILE)).await;
    let account = running.account("a").await.id;
    let made = running.key(&account, &[Scope::Check]).await;
    let mut heard = bus.connect().notices.subscribe::<KeyChanged>().await.unwrap();
    mute.store(true, Ordering::SeqCst);
    let call = RevokeKey { caller: running.operator.clone(), id: made.id.clone() };
    assert_eq!(running.ask(&call).await, ManageReply::Failed);
    assert_eq!(running.verify(&made.key).await, None, "it is revoked, though not everybody knows");
    mute.store(false, Ordering::SeqCst);
    assert_eq!(next_key_notice(&mut heard).await, (account, made.id.clone()));
    done(running.ask(&call).await);
    running.stop().await;
}

#[tokio::test]
async fn a_keystore_that_begins_to_serve_invalidates_every_cached_key() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let mut heard = bus.connect().notices.subscribe::<KeyChanged>().await.unwrap();
    let running = Running::start_on(config(dir.path()), bus.connect(), anonymous()).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), heard.next()).await.unwrap();
    assert_eq!(event, Some(Event::Message(KeyChanged::Any {})));
    running.stop().await;
}

#[tokio::test]
async fn lists_are_paged_by_id_and_show_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(running.key(&account, &[Scope::Check]).await);
    }
    made.sort_by(|a, b| a.id.cmp(&b.id));
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let (caller, account) = (running.operator.clone(), Some(account.clone()));
        let page = done(running.ask(&ListKeys { caller, account, cursor, limit: 2 }).await);
        assert!(page.items.len() <= 2);
        found.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found.iter().map(|key| &key.id).collect::<Vec<_>>(), made.iter().map(|key| &key.id).collect::<Vec<_>>());
    assert!(found.iter().zip(&made).all(|(key, made)| made.key.expose().starts_with(&key.prefix)));
    let accounts = ListAccounts { caller: running.operator.clone(), cursor: None, limit: 2 };
    let page = done(running.ask(&accounts).await);
    assert_eq!((page.items.len(), page.next_cursor), (2, None));
    running.stop().await;
}

#[tokio::test]
async fn the_operators_key_is_written_once_only() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(dir.path()).await;
    let file = dir.path().join(OPERATOR_KEY_FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.ends_with('\n'));
    first.stop().await;
    let second = Running::start(dir.path()).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert_eq!(second.operator.scopes, scopes(&[Scope::Operator]));
    second.stop().await;
}
