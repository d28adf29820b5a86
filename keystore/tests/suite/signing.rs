//! Marks that the keystore signs, and the keys that verify them.

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Head, LineHash, ManageReply, Mark, MarkBody, MarkSigned, Previous, PublicKey, Refusal, SignMark,
    SigningKeys,
};
use stage0_keystore::{KeystoreConfig, SIGNING_KEY_FILE};

use crate::harness::{Running, config, done};

/// The next mark of an account after a line.
fn mark(account: &AccountId, last: Option<&str>) -> Mark {
    let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
    let before: Option<Mark> = last.map(|line| serde_json::from_str(line).unwrap());
    let previous = before.as_ref().zip(last).map(|(mark, line)| Previous {
        hash: LineHash::of(line.as_bytes()),
        recorded_at: mark.recorded_at,
        expires_at: mark.expires_at,
    });
    let head = Head {
        writer: serde_json::from_str("\"019b7c5a-0000-7000-8000-000000000001\"").unwrap(),
        sequence: 9,
        hash: LineHash::of(b"a decision"),
        recorded_at: now - SignedDuration::from_secs(60),
        expires_at: now.as_second() + 86_400,
    };
    Mark {
        body: MarkBody::Checkpoint {},
        account: account.clone(),
        number: before.as_ref().map_or(1, |mark| mark.number + 1),
        previous,
        recorded_at: now,
        expires_at: now.as_second() + 30 * 86_400,
        through: 0,
        covered: 2,
        heads: before.map_or_else(|| vec![head], |mark| mark.heads),
    }
}

fn ask(mark: Mark) -> SignMark {
    SignMark { mark, last: None, takes_earlier: false, permit: None }
}

async fn sign(running: &Running, mark: &Mark) -> String {
    let MarkSigned { line, earlier } = done(running.ask(&ask(mark.clone())).await);
    assert!(!earlier);
    line
}

async fn earlier(running: &Running, mark: &Mark) -> String {
    let asked = SignMark { takes_earlier: true, ..ask(mark.clone()) };
    let MarkSigned { line, earlier } = done(running.ask(&asked).await);
    assert!(earlier);
    line
}

async fn is_refused(running: &Running, call: &SignMark) {
    let answer = running.ask(call).await;
    assert!(matches!(answer, ManageReply::Refused(Refusal::Conflict(_))), "{answer:?}");
}

async fn keys(running: &Running) -> Vec<PublicKey> {
    done(running.ask(&SigningKeys::default()).await).items
}

#[tokio::test]
async fn a_signed_mark_verifies_and_with_any_byte_altered_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let mark = mark(&running.operator.account, None);
    let line = sign(&running, &mark).await.into_bytes();
    let [key] = keys(&running).await.try_into().unwrap();
    assert!(key.signed(&line));
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(serde_json::from_value::<Mark>(read.clone()).unwrap(), mark);
    assert_eq!(read["signed_by"], key.id.as_str());
    for at in 0..line.len() {
        let mut altered = line.clone();
        altered[at] ^= 0x20;
        assert!(!key.signed(&altered), "{at}");
    }
    running.stop().await;
}

#[tokio::test]
async fn after_a_rotation_or_a_loss_old_marks_are_still_verified() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(SIGNING_KEY_FILE);
    let mut lines: Vec<String> = Vec::new();
    for turn in 0..3 {
        match turn {
            0 => {}
            1 => std::fs::write(&file, "ab".repeat(32) + "\n").unwrap(),
            _ => std::fs::remove_file(&file).unwrap(),
        }
        let running = Running::start(dir.path()).await;
        let last = lines.last().map(String::as_str);
        lines.push(sign(&running, &mark(&running.operator.account, last)).await);
        let keys = keys(&running).await;
        assert_eq!(keys.len(), lines.len());
        for line in &lines {
            assert_eq!(keys.iter().filter(|key| key.signed(line.as_bytes())).count(), 1);
        }
        running.stop().await;
    }
    // Starting again with the same file is not a rotation.
    let running = Running::start(dir.path()).await;
    assert_eq!(keys(&running).await.len(), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_mark_is_signed_only_if_it_follows_the_last_one_that_was_signed_for_its_account() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.operator.account.clone();
    let first = sign(&running, &mark(&account, None)).await;
    let second = sign(&running, &mark(&account, Some(&first))).await;
    let good = mark(&account, Some(&second));
    let other_head = Head { hash: LineHash::of(b"another decision"), ..good.heads[0] };
    let back = Head { sequence: 8, ..good.heads[0] };
    for wrong in [
        // Another history from the start, or from the last mark on.
        Mark { heads: vec![other_head], ..mark(&account, None) },
        Mark { heads: vec![other_head], ..mark(&account, Some(&first)) },
        Mark { number: 4, ..good.clone() },
        Mark { previous: None, ..good.clone() },
        Mark { heads: vec![other_head], ..good.clone() },
        Mark { heads: vec![back], ..good.clone() },
        Mark { heads: Vec::new(), ..good.clone() },
    ] {
        is_refused(&running, &ask(wrong)).await;
    }
    let third = sign(&running, &good).await;
    // Each account has its own numbers; an unknown account has none.
    let theirs = running.account("theirs").await.id;
    is_refused(&running, &ask(Mark { account: theirs.clone(), ..mark(&account, Some(&third)) })).await;
    sign(&running, &mark(&theirs, None)).await;
    let anonymous = running.ask(&ask(mark(&AccountId::parse("acc_nobody").unwrap(), None))).await;
    assert_eq!(anonymous, ManageReply::Refused(Refusal::NotFound));
    running.stop().await;
}

#[tokio::test]
async fn a_lost_signing_reply_is_sent_again_and_its_number_is_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let mut last: Option<String> = None;
    for _ in 0..2 {
        let running = Running::start(dir.path()).await;
        let account = running.operator.account.clone();
        let asked = mark(&account, last.as_deref());
        let line = sign(&running, &asked).await;
        running.stop().await;
        // As if keystore and exporter both ended between the journal and the reply.
        let running = Running::start(dir.path()).await;
        assert_eq!(sign(&running, &asked).await, line);
        let other = Mark { covered: 7, ..asked };
        assert_eq!(earlier(&running, &other).await, line);
        is_refused(&running, &ask(other)).await;
        let keys = done(running.ask(&SigningKeys { account: Some(account.clone()) }).await);
        assert_eq!(keys.last_mark.as_ref(), Some(&line));
        last = Some(line);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_signed_mark_is_in_the_journal_too() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.operator.account.clone();
    let first = sign(&running, &mark(&account, None)).await;
    let second = sign(&running, &mark(&account, Some(&first))).await;
    running.stop().await;
    std::fs::remove_dir_all(dir.path().join("store")).unwrap();
    let running = Running::start(dir.path()).await;
    let other = Mark { covered: 7, ..mark(&account, Some(&first)) };
    assert_eq!(earlier(&running, &other).await, second);
    sign(&running, &mark(&account, Some(&second))).await;
    running.stop().await;
}

#[tokio::test]
async fn two_concurrent_exporters_get_the_same_signed_mark() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.operator.account.clone();
    let [one, other] = [2, 3].map(|covered| {
        let mark = Mark { covered, ..mark(&account, None) };
        SignMark { takes_earlier: true, ..ask(mark) }
    });
    let (one, other) = tokio::join!(running.ask(&one), running.ask(&other));
    let (one, other) = (done(one), done(other));
    assert_eq!(one.line, other.line);
    assert!(one.earlier != other.earlier);
    // Both exporters continue after it.
    sign(&running, &mark(&account, Some(&one.line))).await;
    running.stop().await;
}

#[tokio::test]
async fn a_keystore_without_stored_marks_continues_after_the_logs_last_mark() {
    let (dir, older) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = Running::start(dir.path()).await;
    let account = running.operator.account.clone();
    let first = sign(&running, &mark(&account, None)).await;
    running.stop().await;
    // As it was after the first mark.
    crate::damage::copy_dir(dir.path(), &older.path().join("data"));
    let running = Running::start(dir.path()).await;
    let second = sign(&running, &mark(&account, Some(&first))).await;
    let third = sign(&running, &mark(&account, Some(&second))).await;
    running.stop().await;
    let running = Running::start(&older.path().join("data")).await;
    let next = mark(&account, Some(&third));
    is_refused(&running, &ask(next.clone())).await;
    // A mark with a foreign signature, or of another account, proves nothing.
    let forged = third.replace("\"covered\":2", "\"covered\":3");
    is_refused(&running, &SignMark { last: Some(forged), ..ask(next.clone()) }).await;
    let theirs = running.account("theirs").await.id;
    let stolen = mark(&theirs, Some(&third));
    is_refused(&running, &SignMark { last: Some(third.clone()), ..ask(stolen) }).await;
    let line = done(running.ask(&SignMark { last: Some(third), ..ask(next) }).await).line;
    // From then on its own record counts, so an older mark takes nothing back.
    let again = mark(&account, Some(&second));
    is_refused(&running, &SignMark { last: Some(second), ..ask(again.clone()) }).await;
    assert_eq!(earlier(&running, &again).await, line);
    running.stop().await;
}

#[tokio::test]
async fn a_malformed_signing_key_refuses_the_start_and_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    Running::start(dir.path()).await.stop().await;
    let file = dir.path().join(SIGNING_KEY_FILE);
    std::fs::write(&file, "ab\n").unwrap();
    assert!(Running::try_start(dir.path()).await.is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ab\n");
    let given = KeystoreConfig { signing_key_file: Some(dir.path().join("given")), ..config(dir.path()) };
    assert!(Running::start_with(given.clone()).await.is_err());
    std::fs::write(dir.path().join("given"), "cd".repeat(32)).unwrap();
    Running::start_with(given).await.unwrap().stop().await;
}
