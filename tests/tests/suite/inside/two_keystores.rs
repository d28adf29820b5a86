//! Two keystores: side by side on one directory, on a copy, on an empty one, with the lock file removed, and with the
//! holder killed, frozen, or lost with its disk. No revoked key lives, no valid key is called bad, and nothing that was
//! acknowledged is lost.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Process, Stack, serves};

/// The lease, and what a slow machine adds.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(10);
const LONG_TIMEOUT: Duration = Duration::from_secs(60);

/// Keys as a caller has them: one that lives and one that was revoked.
struct Keys {
    live: Api,
    revoked: Api,
}

impl Keys {
    async fn new(stack: &Stack) -> Self {
        let (_, live, _) = stack.operator.account("live", None, &["check"]).await;
        let (_, revoked, id) = stack.operator.account("revoked", None, &["check"]).await;
        stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
        Self { live: stack.api.with_key(&live), revoked: stack.api.with_key(&revoked) }
    }

    /// Sends checks through two gateways without cached keys: each asks the keystore again.
    async fn hold(&self, stack: &mut Stack) {
        for _ in 0..3 {
            stack.restart_gateway(0);
            let url = stack.urls[0].clone();
            let (live, revoked) = (self.live.at(&url), self.revoked.at(&url));
            wait_for("an answer about a valid key", LONG_TIMEOUT, async || {
                let status = live.check(&Api::harmless()).await.status;
                assert!(status == 200 || status == 503, "a valid key was answered with {status}");
                status == 200
            })
            .await;
            revoked.check(&Api::harmless()).await.assert_error(401, "unauthorized");
        }
    }
}

fn stands_by(keystore: &Process, why: &str) {
    keystore.wait_for(why, |line| (line.contains("keystore does not serve") && line.contains(why)).then_some(()));
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn beside(stack: &Stack, name: &str) -> PathBuf {
    stack.data().with_file_name(name)
}

/// An empty directory with what the guide says that a standby needs.
fn standby_directory(stack: &Stack, name: &str) -> PathBuf {
    let empty = beside(stack, name);
    std::fs::create_dir(&empty).unwrap();
    for file in ["secrets.key", "signing.key"] {
        std::fs::copy(stack.data().join(file), empty.join(file)).unwrap();
    }
    empty
}

/// Kills the holder and removes its disk. Returns how long it took until `standby` served.
fn lose_holder(stack: &mut Stack, standby: Process) -> Duration {
    let lost = Instant::now();
    stack.keystore.as_mut().unwrap().kill();
    std::fs::remove_dir_all(stack.data()).unwrap();
    serves(&standby);
    stack.keystore = Some(standby);
    lost.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_keystore_on_the_same_directory_stands_by_and_takes_over_within_ten_seconds() {
    let mut stack = Stack::build().nats().await;
    let keys = Keys::new(&stack).await;
    let second = stack.begin_keystore(&stack.data(), &[]);
    stands_by(&second, "another keystore holds the lease");
    // A lock file that somebody removes guards nothing; the journal does.
    std::fs::remove_file(stack.data().join("lock")).unwrap();
    let mut third = stack.begin_keystore(&stack.data(), &[]);
    stands_by(&third, "another keystore holds the lease");
    keys.hold(&mut stack).await;
    third.kill();
    let killed = Instant::now();
    stack.keystore.as_mut().unwrap().kill();
    serves(&second);
    assert!(killed.elapsed() < TAKEOVER_TIMEOUT, "{:?}", killed.elapsed());
    stack.keystore = Some(second);
    keys.hold(&mut stack).await;
    let names = std::fs::read_dir(stack.data()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().contains("damaged")), "something was put aside");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_second_keystore_never_takes_the_lease() {
    let mut stack = Stack::build().nats().await;
    let keys = Keys::new(&stack).await;
    let empty = beside(&stack, "empty");
    let mut second = stack.begin_keystore(&empty, &[]);
    stands_by(&second, "another keystore holds the lease");
    keys.hold(&mut stack).await;
    stack.keystore.as_mut().unwrap().kill();
    assert_eq!(second.ended().code(), Some(1));
    assert!(second.said().contains("it holds nothing, and the state store knows of"), "{}", second.said());
    assert!(!empty.join("operator.key").exists());
    stack.start_keystore();
    keys.hold(&mut stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_with_an_empty_directory_has_every_acknowledged_change_when_the_holders_machine_is_lost() {
    let mut stack = Stack::build().nats().await;
    let keys = Keys::new(&stack).await;
    let (account, stopped, _) = stack.operator.account("stopped", None, &["check"]).await;
    let standby = stack.begin_keystore(&standby_directory(&stack, "standby"), &[]);
    stands_by(&standby, "another keystore holds the lease");
    let body = json!({"account": account, "scope": "account", "reason": "lost machine"});
    // An event of a stop is recorded only once every process is known to read it.
    wait_for("a stop", LONG_TIMEOUT, async || stack.operator.post("/v1/stops", &body).await.status == 201).await;
    let stops = format!("/v1/stops?account={account}");
    let acknowledged = stack.operator.get(&stops).await.expect(200)["items"].clone();
    // The last of all that was acknowledged.
    let (_, late, id) = stack.operator.account("late", None, &["check"]).await;
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let took = lose_holder(&mut stack, standby);
    assert!(took < TAKEOVER_TIMEOUT, "{took:?}");
    keys.hold(&mut stack).await;
    let api = stack.api_at(0);
    api.with_key(&late).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    let answer = api.with_key(&stopped).check(&Api::harmless()).await.expect(200);
    assert_eq!(answer["verdict"], "DENY", "{answer}");
    assert_eq!(stack.operator.get(&stops).await.expect(200)["items"], acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_lost_in_the_middle_of_changes_takes_no_acknowledged_key_and_no_revocation_with_it() {
    let mut stack = Stack::build().nats().await;
    let (account, _, _) = stack.operator.account("flood", None, &["check"]).await;
    let standby = stack.begin_keystore(&standby_directory(&stack, "standby"), &[]);
    stands_by(&standby, "another keystore holds the lease");
    let acknowledged: Arc<Mutex<(Vec<String>, Vec<String>)>> = Arc::default();
    let makers: Vec<_> = (0..4)
        .map(|_| {
            let (operator, acknowledged) = (stack.operator.clone(), Arc::clone(&acknowledged));
            let body = json!({"account": account, "name": "one of many", "scopes": ["check"]});
            tokio::spawn(async move {
                for turn in 0_u32.. {
                    let made = operator.post("/v1/keys", &body).await;
                    if made.status != 201 {
                        return;
                    }
                    let made = made.expect(201);
                    let [id, key] = ["id", "key"].map(|member| made[member].as_str().unwrap().to_owned());
                    if turn % 2 == 0 {
                        acknowledged.lock().unwrap().0.push(key);
                    } else if operator.delete(&format!("/v1/keys/{id}")).await.status == 204 {
                        acknowledged.lock().unwrap().1.push(key);
                    }
                }
            })
        })
        .collect();
    wait_for("changes", LONG_TIMEOUT, async || acknowledged.lock().unwrap().1.len() > 5).await;
    let took = lose_holder(&mut stack, standby);
    assert!(took < TAKEOVER_TIMEOUT, "{took:?}");
    makers.iter().for_each(tokio::task::JoinHandle::abort);
    stack.restart_gateway(0);
    let api = stack.api_at(0);
    let (live, revoked) = acknowledged.lock().unwrap().clone();
    for key in &live {
        let live = api.with_key(key);
        wait_for("an answer about a key", LONG_TIMEOUT, async || {
            let status = live.check(&Api::harmless()).await.status;
            assert!(status == 200 || status == 503, "an acknowledged key was answered with {status}");
            status == 200
        })
        .await;
    }
    for key in &revoked {
        api.with_key(key).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    }
    // The one that took over is lost as well, as the third machine stands by.
    std::fs::create_dir(beside(&stack, "third")).unwrap();
    let third = stack.begin_keystore(&beside(&stack, "third"), &[]);
    stands_by(&third, "another keystore holds the lease");
    // The keys may come later.
    for file in ["secrets.key", "signing.key"] {
        std::fs::copy(beside(&stack, "standby").join(file), beside(&stack, "third").join(file)).unwrap();
    }
    stack.keystore.as_mut().unwrap().kill();
    std::fs::remove_dir_all(beside(&stack, "standby")).unwrap();
    serves(&third);
    stack.keystore = Some(third);
    stack.restart_gateway(0);
    let first = stack.api_at(0).with_key(&live[0]);
    wait_for("an answer", LONG_TIMEOUT, async || first.check(&Api::harmless()).await.status == 200).await;
    stack.api_at(0).with_key(&revoked[0]).check(&Api::harmless()).await.assert_error(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keystore_directory_copied_before_a_revocation_catches_up_when_its_turn_comes() {
    let mut stack = Stack::build().nats().await;
    let (_, early, id) = stack.operator.account("early", None, &["check"]).await;
    stack.keystore.as_mut().unwrap().stop();
    let copied = beside(&stack, "copy");
    copy_dir(&stack.data(), &copied);
    stack.start_keystore();
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let second = stack.begin_keystore(&copied, &[]);
    stands_by(&second, "another keystore holds the lease");
    stack.keystore.as_mut().unwrap().kill();
    serves(&second);
    stack.keystore = Some(second);
    stack.restart_gateway(0);
    stack.api_at(0).with_key(&early).check(&Api::harmless()).await.assert_error(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_keystore_is_replaced_and_never_answers_again() {
    let mut stack = Stack::build().nats().await;
    let keys = Keys::new(&stack).await;
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    stack.keystore.as_mut().unwrap().stop();
    let copied = beside(&stack, "copy");
    copy_dir(&stack.data(), &copied);
    stack.start_keystore();
    let second = stack.begin_keystore(&copied, &[]);
    stands_by(&second, "another keystore holds the lease");
    let mut first = stack.keystore.take().unwrap();
    let frozen = Instant::now();
    first.freeze();
    serves(&second);
    assert!(frozen.elapsed() < TAKEOVER_TIMEOUT, "{:?}", frozen.elapsed());
    stack.keystore = Some(second);
    wait_for("a revocation by the second", LONG_TIMEOUT, async || {
        stack.operator.delete(&format!("/v1/keys/{id}")).await.status == 204
    })
    .await;
    first.thaw();
    let leaked = stack.api.with_key(&leaked);
    for _ in 0..20 {
        let status = leaked.check(&Api::harmless()).await.status;
        assert!(status == 401 || status == 503, "the frozen keystore answered: {status}");
    }
    assert_eq!(first.ended().code(), Some(1));
    assert!(first.said().contains("another keystore took over"), "{}", first.said());
    keys.hold(&mut stack).await;
    leaked.at(&stack.urls[0]).check(&Api::harmless()).await.assert_error(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_keystore_without_a_standby_resumes_and_loses_nothing() {
    let mut stack = Stack::build().without_keys().nats().await;
    let keys = Keys::new(&stack).await;
    let frozen = Instant::now();
    stack.keystore.as_ref().unwrap().freeze();
    let waiting = stack.begin_keystore(&stack.data(), &[]);
    stands_by(&waiting, "another process uses the data directory");
    assert!(frozen.elapsed() > Duration::from_secs(4), "it waits for the end of the lease");
    stack.keystore.as_ref().unwrap().thaw();
    keys.hold(&mut stack).await;
    assert!(!waiting.said().contains("keystore holds the lease\""), "{}", waiting.said());
}
