//! Backups of the keystore put back: each is refused with what was found, and accepted only with every key revoked that
//! the state store does not list as live. On NATS, and in one process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Process, Stack, serves};

const FILES: [&str; 2] = ["journal", "store"];
const LONG_TIMEOUT: Duration = Duration::from_secs(60);
/// Without these no webhook secret can be read and no mark be signed as before.
const KEY_FILES: [&str; 2] = ["secrets.key", "signing.key"];

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        std::fs::remove_file(path).unwrap();
    }
}

fn back_up(stack: &mut Stack, name: &str) -> PathBuf {
    stack.keystore.as_mut().unwrap().stop();
    let backup = stack.data().with_file_name(name);
    std::fs::create_dir(&backup).unwrap();
    for file in FILES {
        copy(&stack.data().join(file), &backup.join(file));
    }
    stack.start_keystore();
    backup
}

fn put_back(data: &Path, backup: &Path) {
    for file in FILES {
        remove(&data.join(file));
        copy(&backup.join(file), &data.join(file));
    }
}

/// What the operator's guide names, of the directory as it is, and nothing else is left of the directory.
fn keep_only_a_backup(data: &Path) {
    let kept = data.with_file_name("kept");
    std::fs::rename(data, &kept).unwrap();
    std::fs::create_dir(data).unwrap();
    for file in FILES.iter().chain(&KEY_FILES) {
        copy(&kept.join(file), &data.join(file));
    }
}

fn dev(data: &Path, with: &[&str]) -> Process {
    let own = ["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir", data.to_str().unwrap()];
    Process::start(&own.iter().chain(with).map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
}

/// Where a `dev` that has begun listens.
fn url_of(dev: &Process, data: &Path) -> String {
    dev.wait_for("the end of the banner", |line| line.starts_with("Ctrl-C stops it").then_some(()));
    let file = std::fs::read_to_string(data.join("dev.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&file).unwrap()["url"].as_str().unwrap().to_owned()
}

fn is_refused(mut keystore: Process, why: &str) {
    assert_eq!(keystore.ended().code(), Some(1), "{}", keystore.said());
    let said = keystore.said();
    assert!(said.contains(why) && said.contains("--accept-restore"), "{said}");
    assert!(!said.contains("\"keystore serves\""), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_directory_is_refused_until_the_restore_is_accepted_and_revives_nothing() {
    let mut stack = Stack::build().nats().await;
    let data = stack.data();
    let (account, kept, _) = stack.operator.account("kept", None, &["check"]).await;
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    let before_revocation = back_up(&mut stack, "before-revocation");
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let before_creation = back_up(&mut stack, "before-creation");
    let body = serde_json::json!({"account": account, "name": "later", "scopes": ["check"]});
    let later = stack.operator.post("/v1/keys", &body).await.expect(201)["key"].as_str().unwrap().to_owned();
    let (newer, gone, _) = stack.operator.account("newer", None, &["check"]).await;
    stack.keystore.as_mut().unwrap().stop();
    // Without the key nothing can be taken over from the state store.
    let (secrets_key, aside) = (data.join("secrets.key"), data.with_file_name("secrets.key"));
    std::fs::rename(&secrets_key, &aside).unwrap();
    for backup in [&before_revocation, &before_creation] {
        put_back(&data, backup);
        is_refused(stack.begin_keystore(&data, &[]), "older than what was acknowledged");
        remove(&data.join("journal"));
        is_refused(stack.begin_keystore(&data, &[]), "older than what was acknowledged");
    }
    std::fs::rename(&aside, &secrets_key).unwrap();
    stack.start_keystore();
    stack.restart_gateway(0);
    let api = stack.api_at(0);
    api.with_key(&later).check(&Api::harmless()).await.expect(200);
    api.with_key(&leaked).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    stack.keystore.as_mut().unwrap().stop();
    put_back(&data, &before_revocation);
    let keystore = stack.begin_keystore(&data, &["--accept-restore"]);
    serves(&keystore);
    keystore
        .wait_for("what was done", |line| line.contains("1 keys are revoked: ").then(|| assert!(line.contains(&id))));
    keystore.wait_for("what is dead", |line| line.contains("2 keys were made after the backup").then_some(()));
    let gone_line = format!("1 accounts were made after the backup and are gone: {newer}");
    keystore.wait_for("who is gone", |line| line.contains(&gone_line).then_some(()));
    stack.keystore = Some(keystore);
    stack.restart_gateway(0);
    stack.api.with_key(&kept).check(&Api::harmless()).await.expect(200);
    for dead in [&leaked, &later, &gone] {
        stack.api.with_key(dead).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    }
    stack.keystore.as_mut().unwrap().stop();
    stack.start_keystore();
    stack.api.with_key(&kept).check(&Api::harmless()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_the_decision_logs_own_copy_refuses_an_older_directory() {
    let mut stack = Stack::build().dev().await;
    let data = stack.directory.path().join("data");
    let backup = data.with_file_name("backup");
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    stack.stop_dev();
    std::fs::create_dir(&backup).unwrap();
    for file in FILES {
        copy(&data.join(file), &backup.join(file));
    }
    stack.start_dev();
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    stack.stop_dev();
    put_back(&data, &backup);
    is_refused(dev(&data, &[]), "older than what was acknowledged");
    let dev = dev(&data, &["--accept-restore"]);
    let url = url_of(&dev, &data);
    dev.wait_for("what was done", |line| line.contains("1 keys are revoked: ").then_some(()));
    stack.api.at(&url).check(&Api::harmless()).await.expect(200);
    stack.api.at(&url).with_key(&leaked).check(&Api::harmless()).await.assert_error(401, "unauthorized");
}

/// A server that takes everybody lets a role make its stream again: it is there, and knows nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_store_without_its_keystore_record_is_not_taken_for_a_new_deployment() {
    let mut stack = Stack::build().nats().await;
    let nats = stack.nats.as_ref().unwrap();
    let client = async_nats::connect(nats.url()).await.unwrap();
    stack.keystore.as_mut().unwrap().stop();
    async_nats::jetstream::new(client).delete_stream("S0_KEYSTORE").await.unwrap();
    is_refused(stack.begin_keystore(&stack.data(), &[]), "has lost its record");
}

/// Directory and NATS are lost, and the backup holds what the guide names: nothing says which keys live.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_backup_beside_a_new_nats_are_refused_and_no_key_of_theirs_lives() {
    let mut stack = Stack::build().nats().await;
    let (data, jetstream) = (stack.data(), stack.directory.path().join("nats"));
    if !jetstream.exists() {
        eprintln!("NOT TESTED: the directory of a server in a container is not this machine's");
        return;
    }
    let (_, kept, _) = stack.operator.account("kept", None, &["check"]).await;
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    let backup = back_up(&mut stack, "backup");
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    stack.keystore.as_mut().unwrap().stop();
    keep_only_a_backup(&data);
    put_back(&data, &backup);
    stack.nats.as_mut().unwrap().kill();
    std::fs::remove_dir_all(&jetstream).unwrap();
    std::fs::create_dir(&jetstream).unwrap();
    stack.nats.as_mut().unwrap().restart().await;
    is_refused(stack.begin_keystore(&data, &[]), "has lost its record");
    let keystore = stack.begin_keystore(&data, &["--accept-restore"]);
    serves(&keystore);
    keystore.wait_for("what was done", |line| line.contains("a new one is in `operator.key`").then_some(()));
    assert!(data.join("operator.key").exists());
    stack.keystore = Some(keystore);
    stack.restart_gateway(0);
    for dead in [&kept, &leaked] {
        stack.api.with_key(dead).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_the_files_of_a_backup_without_their_log_are_refused_and_no_key_of_theirs_lives() {
    let mut stack = Stack::build().dev().await;
    let data = stack.data();
    let (_, kept, _) = stack.operator.account("kept", None, &["check"]).await;
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    stack.stop_dev();
    let backup = data.with_file_name("backup");
    std::fs::create_dir(&backup).unwrap();
    for file in FILES {
        copy(&data.join(file), &backup.join(file));
    }
    stack.start_dev();
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    stack.stop_dev();
    keep_only_a_backup(&data);
    put_back(&data, &backup);
    let mut refused = dev(&data, &[]);
    assert_eq!(refused.ended().code(), Some(1), "{}", refused.said());
    assert!(refused.said().contains("--accept-new-log"), "{}", refused.said());
    is_refused(dev(&data, &["--accept-new-log"]), "has lost its record");
    let restored = dev(&data, &["--accept-restore"]);
    let url = url_of(&restored, &data);
    restored.wait_for("what was done", |line| line.contains("a new one is in `operator.key`").then_some(()));
    // Its certificates were lost, too.
    let api = Api::new(&url, &data.join("tls/ca.pem"), None);
    for dead in [&kept, &leaked] {
        api.with_key(dead).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    }
}

/// Only the state store goes back, for seconds, under keystores that run: the next start compares.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_store_that_is_put_back_under_running_keystores_ends_them_and_the_next_start_compares() {
    let mut stack = Stack::build().nats().await;
    let (data, jetstream) = (stack.data(), stack.directory.path().join("nats"));
    if !jetstream.exists() {
        eprintln!("NOT TESTED: the directory of a server in a container is not this machine's");
        return;
    }
    let (_, kept, _) = stack.operator.account("kept", None, &["check"]).await;
    let (_, leaked, id) = stack.operator.account("leaked", None, &["check"]).await;
    let backup = stack.directory.path().join("backup");
    stack.nats.as_mut().unwrap().kill();
    copy(&jetstream, &backup);
    stack.nats.as_mut().unwrap().restart().await;
    wait_for("a revocation", LONG_TIMEOUT, async || {
        stack.operator.delete(&format!("/v1/keys/{id}")).await.status == 204
    })
    .await;
    let mut waiting = stack.begin_keystore(&data.with_file_name("empty"), &[]);
    waiting.wait_for("its turn", |line| line.contains("stands by: another keystore").then_some(()));
    stack.nats.as_mut().unwrap().kill();
    remove(&jetstream);
    copy(&backup, &jetstream);
    stack.nats.as_mut().unwrap().restart().await;
    let mut keystore = stack.keystore.take().unwrap();
    for ended in [&mut keystore, &mut waiting] {
        assert_eq!(ended.ended().code(), Some(1), "{}", ended.said());
        assert!(ended.said().contains("it was put back to an earlier state"), "{}", ended.said());
    }
    stack.start_keystore();
    stack.restart_gateway(0);
    let (kept, leaked) = (stack.api.with_key(&kept), stack.api.with_key(&leaked));
    wait_for("an answer", LONG_TIMEOUT, async || kept.check(&Api::harmless()).await.status == 200).await;
    leaked.check(&Api::harmless()).await.assert_error(401, "unauthorized");
}
