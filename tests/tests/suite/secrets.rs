//! No secret in any file, log, error or answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use stage0_tests::{Api, Receiver, Stack, account_scopes};

/// Files that hold a secret because that is what they are for; all 0600.
const SECRET_FILES: [&str; 7] =
    ["dev.json", "api.key", "operator.key", "ca.key", "server.key", "secrets.key", "signing.key"];

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// The random part of a key: what must appear nowhere.
fn secret_part(key: &str) -> &str {
    key.rsplit_once('_').unwrap().1
}

async fn use_everything(stack: &Stack) -> Vec<String> {
    let (account, key, id) = stack.operator.account("Secretive", None, &account_scopes()).await;
    let rotated = stack.operator.post(&format!("/v1/keys/{id}/rotate"), &json!({})).await.expect(201);
    let mine = stack.api.with_key(rotated["key"].as_str().unwrap());
    let planted = [
        "hunter2-planted-secret",
        "AKIAIOSFODNN7EXAMPLE",
        "planted-in-goal-8842",
        "planted-in-context-8843",
        "planted-header-8844",
    ];
    let body = json!({
        "goal": format!("planted-in-goal-8842 password={}", planted[0]), "tools": ["t"],
        "context": {"note": "planted-in-context-8843", planted[1]: "x", "environment": planted[1]},
        "constraints": [format!("required_role: {}", planted[1])]
    });
    let answer = mine.check(&body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.body["verdict"], "DENY");
    assert!(answer.body["issues"].to_string().contains("SECRET_IN_REQUEST"));
    for secret in planted {
        assert!(!answer.text.contains(secret), "{secret} in {}", answer.text);
    }
    // What a request asks to be kept is kept, but for its secrets.
    let kept = json!({
        "goal": format!("log in with password={} and read", planted[0]), "tools": [planted[1]],
        "debug_store_input": true,
        "context": {"run_id": planted[1], "db": {"password": planted[0]}, planted[1]: 1}
    });
    let said = [("content-type", "application/json"), ("x-request-id", planted[1]), ("user-agent", planted[1])];
    let answer =
        mine.send(reqwest::Method::POST, "/check", &said, Some(kept.to_string().into_bytes())).await.expect(200);
    let record = mine.get(&format!("/v1/decisions/{}", answer["request_id"].as_str().unwrap())).await;
    assert!(record.text.contains("log in with"), "{}", record.text);
    for secret in planted {
        assert!(!record.text.contains(secret), "{secret} in {}", record.text);
    }
    mine.check(&json!({"goal": "a b", "environment": 7, "x": planted[0]})).await.assert_error(422, "validation_failed");
    mine.with_key(&format!("s0_{}", planted[4])).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    mine.get(&format!("/v1/{}", planted[2])).await.assert_error(404, "not_found");
    let wrong = stage0_contract::ApiKey::from_random([5; 10], [6; 20]).unwrap();
    mine.with_key(wrong.expose()).check(&Api::harmless()).await.assert_error(401, "unauthorized");
    stack.api.get(&format!("/v1/keys?account={account}")).await;
    let shown = webhook_secrets(&mine, &planted).await;
    let mut secrets: Vec<String> = planted.iter().map(|&s| s.to_owned()).collect();
    for key in [
        key.as_str(),
        rotated["key"].as_str().unwrap(),
        wrong.expose(),
        stack.operator.key.as_ref().unwrap(),
        stack.api.key.as_ref().unwrap(),
    ] {
        secrets.push(secret_part(key).to_owned());
    }
    secrets.extend(shown);
    secrets
}

/// The secrets of an endpoint that was made, rotated, tested, written to and sent what was recorded.
async fn webhook_secrets(mine: &Api, planted: &[&str]) -> Vec<String> {
    let receiver = Receiver::plain().await;
    let (id, first) = mine.webhook(&receiver.url("/in")).await;
    let second = mine.post(&format!("/v1/webhooks/{id}/rotate-secret"), &json!({})).await.expect(201);
    mine.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await.expect(200);
    mine.decide(&json!({"goal": planted[2], "context": {"run_id": "run-7", "note": planted[3]}})).await;
    let came = receiver
        .wait_for("the decision", "/in", Duration::from_secs(30), |came| {
            came.iter().any(|d| d.kind() == "decision.recorded").then(|| came.to_vec())
        })
        .await;
    for delivery in came {
        let text = String::from_utf8(delivery.body).unwrap();
        for secret in planted {
            assert!(!text.contains(*secret), "{secret} in {text}");
        }
    }
    let shown = mine.get("/v1/webhooks").await;
    let secrets = [first.as_str(), second["secret"].as_str().unwrap()].map(|text| text.replace("whsec_", ""));
    for secret in &secrets {
        assert!(!shown.text.contains(secret.as_str()), "{}", shown.text);
    }
    secrets.to_vec()
}

fn assert_clean(stack: &Stack, secrets: &[String], logs: &str) {
    assert!(logs.lines().count() > 20, "the log is there:\n{logs}");
    for secret in secrets {
        assert!(
            !logs.contains(secret.as_str()),
            "{secret} is in the log: {:?}",
            logs.lines().find(|l| l.contains(secret.as_str()))
        );
    }
    for file in files(stack.directory.path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if SECRET_FILES.contains(&name) {
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
            continue;
        }
        let bytes = fs::read(&file).unwrap();
        for secret in secrets {
            assert!(!holds(&bytes, secret), "{secret} is in {}", file.display());
        }
        assert!(!holds(&bytes, "PRIVATE KEY"), "a private key is in {}", file.display());
    }
}

#[tokio::test]
async fn no_secret_is_in_any_file_or_in_the_trace_log_of_dev() {
    let stack = Stack::build().with(&["--log", "trace"]).private_webhooks().dev().await;
    let secrets = use_everything(&stack).await;
    assert_clean(&stack, &secrets, &stack.said());
}

#[tokio::test]
async fn no_secret_is_in_any_file_or_in_the_trace_log_of_any_role() {
    let stack = Stack::build().with(&["--log", "trace"]).private_webhooks().nats().await;
    let secrets = use_everything(&stack).await;
    assert_clean(&stack, &secrets, &stack.said());
}

#[tokio::test]
async fn bad_settings_are_named_and_secrets_in_them_are_not_shown() {
    let mut process = stage0_tests::Process::start(
        &["gateway", "--nats", "nats://user:hunter2-planted@", "--listen", "nowhere", "--workers", "many"]
            .map(str::to_owned),
    );
    assert_eq!(process.ended().code(), Some(64));
    process.wait_for("the end of the output", |line| line.contains("workers").then_some(()));
    let said = process.said();
    for name in ["nats", "listen", "workers", "tls"] {
        assert!(said.contains(name), "{name} in {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}
