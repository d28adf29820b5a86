//! The service around the check: answers' shapes, health, documents, start, stop, memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use stage0_tests::{Api, Process, Raw, Stack};

#[tokio::test]
async fn an_answer_has_every_field_in_its_type() {
    let stack = Stack::build().dev().await;
    let body = json!({"goal": "Deploy the service", "side_effects": ["deploy"], "constraints": ["approval required"],
        "environment": "production", "context": {"approval_status": "pending"}});
    let answer = stack
        .api
        .send(
            Method::POST,
            "/check",
            &[("content-type", "application/json; charset=utf-8"), ("X-Request-ID", "mine-7")],
            Some(body.to_string().into_bytes()),
        )
        .await;
    let id = answer.header("x-request-id").to_owned();
    let check = answer.expect(200);
    assert_eq!((&check["decision"], &check["verdict"]), (&json!("DEFER"), &json!("DEFER")));
    assert_eq!(check["request_id"], id);
    assert_eq!(id.chars().nth(14), Some('7'), "a UUIDv7: {id}");
    assert_eq!(
        check["meta"],
        json!({"source": "stage0", "test_mode": false, "client_request_id": "mine-7", "audit": "required"})
    );
    assert_eq!(check["policy_version"], check["policy_pack_version"]);
    assert!(check["policy_version"].as_str().unwrap().starts_with("baseline@"));
    assert_eq!(check["environment"], "production");
    assert_eq!(check["cached"], false);
    assert_eq!(check["task_hash"].as_str().unwrap().len(), 64);
    assert!(!check["clarifying_questions"].as_array().unwrap().is_empty());
    assert_eq!(check["clarifying_questions"], check["defer_questions"]);
    for integer in ["risk_score", "value_risk", "waste_risk", "timestamp", "evaluated_at"] {
        assert!(check[integer].is_i64() || check[integer].is_u64(), "{integer}: {}", check[integer]);
    }
    assert_eq!(
        check["guardrail_checks"]["approval"]["approval_required"],
        json!({"required": true, "satisfied": false})
    );
    for (path, field) in [("/guardrails", "array"), ("/constraints_applied", "array"), ("/value_findings", "array")] {
        assert!(check.pointer(path).unwrap().is_array(), "{path} is an {field}");
    }
    assert!(check["reason"].as_str().unwrap().starts_with("APPROVAL_REQUIRED: "));
}

#[tokio::test]
async fn equal_tasks_have_equal_hashes_and_each_check_its_own_id() {
    let stack = Stack::build().dev().await;
    let one = stack.api.check(&json!({"goal": "a b c", "context": {"x": 1, "y": 2}, "tools": ["t"]})).await.expect(200);
    let two = stack
        .api
        .check(&json!({"tools": ["t"], "context": {"y": 2, "x": 1.0}, "goal": "a b c", "side_effects": []}))
        .await
        .expect(200);
    assert_eq!(one["task_hash"], two["task_hash"]);
    assert_ne!(one["request_id"], two["request_id"]);
}

#[tokio::test]
async fn both_tls_versions_are_spoken_and_two_slashes_are_one() {
    let stack = Stack::build().dev().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut raw = Raw::connect_with(&stack.address(), &stack.ca(), &[version]).await.unwrap();
        raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        assert!(raw.rest().await.contains("{\"status\":\"ok\"}"), "{version:?}");
    }
    assert_eq!(stack.api.post("//check", &Api::harmless()).await.status, 200);
    assert_eq!(stack.api.post("/check/", &Api::harmless()).await.status, 200);
}

#[tokio::test]
async fn a_base_path_stands_before_every_route() {
    let stack = Stack::build().gateway_with(&["--base-path", "/stage0"]).dev().await;
    let plain = stack.api.at(stack.api.url.trim_end_matches("/stage0"));
    assert_eq!(plain.post("/stage0/check", &Api::harmless()).await.status, 200);
    assert_eq!(plain.post("//stage0//check", &Api::harmless()).await.status, 200);
    plain.undeclared().post("/check", &Api::harmless()).await.assert_error(404, "not_found");
}

#[tokio::test]
async fn health_readiness_and_documents_need_no_key() {
    let stack = Stack::build().dev().await;
    let open = stack.api.without_key();
    assert_eq!(open.get("/healthz").await.expect(200), json!({"status": "ok"}));
    let ready = open.get("/readyz").await.expect(200);
    assert_eq!((&ready["ready"], &ready["audit"]), (&json!(true), &json!("required")));
    assert_eq!(ready["reasons"], json!([]));
    let openapi = open.get("/openapi.json").await.expect(200);
    assert_eq!(openapi["openapi"], "3.1.0");
    let docs = open.get("/docs").await;
    assert_eq!(docs.status, 200);
    assert!(docs.header("content-security-policy").contains("default-src 'none'"));
    assert!(docs.text.contains("id=\"production-behaviour\""));
}

#[tokio::test]
async fn every_documented_path_exists_and_every_operation_is_known() {
    let stack = Stack::build().dev().await;
    let openapi = stack.api.get("/openapi.json").await.expect(200);
    let paths = openapi["paths"].as_object().unwrap();
    for (path, operations) in paths {
        let path = path.replace("{id}", "0000000000000000").replace("{request_id}", "0000000000000000");
        let mut methods: Vec<_> = operations.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        methods.sort();
        for method in &methods {
            let status = stack.api.send(method.parse().unwrap(), &path, &[], None).await.status;
            assert!(status != 405, "{method} {path}: {status}");
        }
        let refused = stack.api.send(Method::PUT, &path, &[], None).await;
        refused.assert_error(405, "method_not_allowed");
        let mut allowed: Vec<_> =
            refused.header("allow").split(", ").filter(|m| *m != "HEAD").map(str::to_owned).collect();
        allowed.sort();
        assert_eq!(allowed, methods, "{path}");
    }
}

#[tokio::test]
async fn term_ends_it_with_zero_and_the_next_start_uses_the_same_data() {
    let mut stack = Stack::build().dev().await;
    let (key, account) = (stack.api.key.clone(), stack.account.clone());
    stack.restart_dev();
    assert_eq!((&stack.api.key, &stack.account), (&key, &account));
    assert_eq!(stack.api.check(&Api::harmless()).await.status, 200);
}

#[tokio::test]
async fn every_role_drains_and_exits_with_zero() {
    let mut stack = Stack::build().nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    let mut processes: Vec<Process> = stack
        .gateways
        .drain(..)
        .chain(stack.exporters.drain(..))
        .chain(stack.evaluators.drain(..))
        .chain(stack.keystore.take())
        .collect();
    for process in &mut processes {
        let status = process.stop();
        assert_eq!(status.code(), Some(0), "{}", process.said());
    }
}

#[tokio::test]
async fn requests_in_flight_at_shutdown_are_answered() {
    let mut stack = Stack::build().nats().await;
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    let body = Api::harmless().to_string();
    let head = format!(
        "POST /check HTTP/1.1\r\nHost: localhost\r\nx-api-key: {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        stack.api.key.clone().unwrap(),
        body.len()
    );
    raw.send(head.as_bytes()).await;
    // The gateway has read the headers once it has asked the keystore about the key.
    raw.send(&body.as_bytes()[..10]).await;
    stack.gateways[0].signal(rustix::process::Signal::TERM);
    stack.gateways[0].wait_for("the drain", |line| line.contains("stopping").then_some(()));
    raw.send(&body.as_bytes()[10..]).await;
    let answer = raw.rest().await;
    assert!(answer.is_empty() || answer.contains("200 OK") || answer.contains("503"), "{answer}");
    assert_eq!(stack.gateways[0].ended().code(), Some(0));
}

#[tokio::test]
async fn a_request_that_arrives_as_the_gateway_stops_is_answered_and_its_connection_ends() {
    const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let stack = Stack::build().dev().await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
        raw.send(REQUEST).await;
        let answer = raw.until(r#"{"status":"ok"}"#).await.to_lowercase();
        assert!(answer.contains("200 ok") && !answer.contains("connection: close"), "{answer}");
        idle.push(raw);
    }
    let dev = stack.dev.as_ref().unwrap();
    dev.signal(rustix::process::Signal::TERM);
    dev.wait_for("the stop", |line| line.contains("stopping").then_some(()));
    for raw in &mut idle {
        raw.send(REQUEST).await;
    }
    for raw in &mut idle {
        let answer = raw.rest().await.to_lowercase();
        assert!(answer.contains("200 ok") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let stack = Stack::build().dev().await;
    let tls = stack.data().join("tls");
    let before = Raw::connect(&stack.address(), &stack.ca()).await.certificate();
    // An old file makes the next gateway on this directory renew it.
    let old = std::time::SystemTime::now() - Duration::from_secs(400 * 24 * 3600);
    std::fs::File::options().append(true).open(tls.join("server.pem")).unwrap().set_modified(old).unwrap();
    let other = Process::start(
        &["gateway", "--tls-dev-dir", tls.to_str().unwrap(), "--nats", "nats://127.0.0.1:9", "--listen", "127.0.0.1:0"]
            .map(str::to_owned),
    );
    stage0_backplane::testing::wait_for("the new certificate", Duration::from_secs(30), async || {
        Raw::connect(&stack.address(), &stack.ca()).await.certificate() != before
    })
    .await;
    drop(other);
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn a_broken_certificate_file_leaves_the_old_certificate_in_use() {
    let stack = Stack::build().dev().await;
    std::fs::write(stack.data().join("tls/server.pem"), "not a certificate").unwrap();
    stack.dev.as_ref().unwrap().wait_for("the refusal", |line| line.contains("new certificate refused").then_some(()));
    stack.api.check(&Api::harmless()).await.expect(200);
    Raw::connect(&stack.address(), &stack.ca()).await;
}

#[tokio::test]
async fn dev_at_rest_stays_small() {
    let stack = Stack::build().dev().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    let resident = stack.dev.as_ref().unwrap().resident();
    eprintln!("resident after one check: {:.1} MB", resident as f64 / 1e6);
    // Half of it is the binary itself, which is larger unoptimised than released, and a fifth are the compiled forms of
    // secrets. It comes to 124 to 132 MB; the released one's number stands in the README.
    assert!(resident < 145_000_000, "{resident} bytes");
}

#[tokio::test]
async fn a_check_without_an_evaluator_takes_no_longer_than_its_budget() {
    let mut stack = Stack::build().usual_budget().nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.evaluators[0].freeze();
    let started = Instant::now();
    stack.api.check(&Api::harmless()).await.assert_error(503, "unavailable");
    let took = started.elapsed();
    stack.evaluators[0].thaw();
    assert!(took < Duration::from_secs(8), "{took:?}");
    stack.evaluators.clear();
}

/// A promise whose test was renamed or removed is a promise that nothing shows.
#[test]
fn every_test_that_the_security_documents_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = String::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("Cargo.toml").exists() || folder.ends_with("clients"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let text = ["SECURITY.md", "docs/threat-model.md"].map(|name| std::fs::read_to_string(root.join(name)).unwrap());
    let text = text.join("\n");
    let is_test = |name: &&str| {
        // Names of metrics have three underscores too.
        name.matches('_').count() >= 3
            && !name.starts_with("stage0_")
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_:".contains(&b))
    };
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 90, "{named:?}");
    let exists = |name: &str| sources.contains(&format!("fn {}(", name.rsplit(':').next().unwrap()));
    let missing: Vec<_> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
