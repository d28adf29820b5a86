//! A role that reaches for the streams, or fills its own: the generated configuration, every role's real login, and
//! plain NATS tools.

// A plain NATS tool asks so, and a test is soon over.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_contract::Role;
use stage0_tests::{Api, Process, Stack, account_scopes};

use crate::starting::Deployment;

const LONG_TIMEOUT: Duration = Duration::from_secs(60);
const STREAMS: [&str; 6] = ["S0_LOG", "S0_LEDGER", "S0_RUNS", "S0_USAGE", "S0_IDEMPOTENCY", "S0_KEYSTORE"];

/// Every role, as `stage0 stack init` and `stage0 nats-admin init` let it run.
pub(super) struct Running {
    pub(super) deployment: Deployment,
    pub(super) account: String,
    pub(super) api: Api,
    pub(super) gateway: Api,
    pub(super) roles: Vec<Process>,
}

impl Running {
    pub(super) async fn start() -> Self {
        Self::with_room("20GB").await
    }

    async fn with_room(max_file: &str) -> Self {
        let deployment = Deployment::with_room(max_file).await;
        let keystore = deployment.role("keystore");
        keystore.wait_for("a serving keystore", |line| line.contains("keystore serves").then_some(()));
        let exporter = deployment.role("audit-export");
        exporter.wait_for_log("audit-export serves", "message");
        let evaluator = deployment.role("evaluator");
        evaluator.wait_for_log("evaluator starts", "policy_version");
        let gateway = deployment.role("gateway");
        let address = gateway.wait_for_log("gateway starts", "address").replace("127.0.0.1", "localhost");
        let key = std::fs::read_to_string(deployment.file("keystore", "data/operator.key")).unwrap();
        let ca = deployment.file("gateway", "ca.pem");
        let operator = Api::new(&format!("https://{address}"), ca.as_ref(), Some(key.trim()));
        wait_for("a ready gateway", LONG_TIMEOUT, async || operator.get("/readyz").await.status == 200).await;
        let (account, key, _) = operator.account("tests", None, &account_scopes()).await;
        let api = operator.with_key(&key);
        Self { deployment, account, api, gateway: operator, roles: vec![keystore, exporter, evaluator, gateway] }
    }

    /// A plain client with a role's login and certificate.
    async fn thief(&self, role: &str) -> Client {
        let file = |name| self.deployment.file(role, name);
        let (user, password) = match role {
            "admin" => (role.to_owned(), file("nats.password")),
            // The first of its logins, which a process of the role has as well.
            role => (format!("{role}-1"), self.deployment.file(role, &format!("logins/{role}-1.password"))),
        };
        let password = std::fs::read_to_string(password).unwrap();
        let options = ConnectOptions::new().user_and_password(user.clone(), password.trim().to_owned());
        let options = options.add_root_certificates(file("nats-ca.pem").into()).require_tls(true);
        let options = options.add_client_certificate(file("nats.pem").into(), file("nats.key").into());
        let options = options.custom_inbox_prefix(format!("_INBOX_{user}"));
        options.connect(self.deployment.nats.url().replace("nats://", "tls://")).await.unwrap()
    }

    async fn reasons(&self) -> String {
        self.gateway.get("/readyz").await.body["reasons"].to_string()
    }
}

/// No answer, or one that says no.
async fn is_refused(client: &Client, subject: &str, body: &Value) -> bool {
    match client.request(subject.to_owned(), body.to_string().into()).await {
        Ok(said) => String::from_utf8_lossy(&said.payload).contains(r#""error":"#),
        Err(_) => true,
    }
}

async fn config(admin: &Client, stream: &str) -> Value {
    let said = admin.request(format!("s0.api.STREAM.INFO.{stream}"), "".into()).await.unwrap();
    serde_json::from_slice::<Value>(&said.payload).unwrap()["config"].clone()
}

/// What rewrote a decision, removed it, or copied it, where a role could.
fn harmful(config: &Value) -> Vec<Value> {
    let with = |name: &str, value: Value| {
        let mut config = config.clone();
        config[name] = value;
        config
    };
    vec![
        with("subject_transform", json!({"src": "s0.log.*.d", "dest": "s0.log.stolen.d"})),
        with("republish", json!({"src": ">", "dest": "$JS.API.STREAM.MSG.DELETE.S0_LOG"})),
        with("sources", json!([{"name": "S0_RUNS"}])),
        with("max_age", json!(100_000_000)),
        with("max_msgs", json!(1)),
        with("discard", json!("old")),
        with("subjects", json!(["s0.log.*.d"])),
        with("allow_rollup_hdrs", json!(true)),
        with("sealed", json!(true)),
        with("description", json!("mine")),
    ]
}

#[tokio::test]
async fn no_roles_password_changes_a_stream_and_what_was_decided_stays_as_it_was() {
    let running = Running::start().await;
    let denied = running.api.check(&Api::forbidden()).await.expect(200);
    let id = denied["request_id"].as_str().unwrap();
    let admin = running.thief("admin").await;
    let mut before = Vec::new();
    for stream in STREAMS {
        before.push(config(&admin, stream).await);
    }
    for role in Role::ALL.map(Role::as_str) {
        let thief = running.thief(role).await;
        for (stream, config) in STREAMS.iter().zip(&before) {
            for api in ["s0.api", "$JS.API"] {
                for body in harmful(config) {
                    for what in ["CREATE", "UPDATE"] {
                        let subject = format!("{api}.STREAM.{what}.{stream}");
                        assert!(is_refused(&thief, &subject, &body).await, "{role}: {subject} {body}");
                    }
                }
                for (what, body) in [
                    ("STREAM.DELETE", json!({})),
                    ("STREAM.MSG.DELETE", json!({"seq": 1})),
                    ("STREAM.SNAPSHOT", json!({"deliver_subject": "_INBOX_x"})),
                    ("STREAM.RESTORE", json!({"config": config})),
                    ("CONSUMER.CREATE", json!({"stream_name": stream, "config": {"ack_policy": "none"}})),
                ] {
                    let subject = format!("{api}.{what}.{stream}");
                    assert!(is_refused(&thief, &subject, &body).await, "{role}: {subject}");
                }
                let subject = format!("{api}.STREAM.PURGE.{stream}");
                let may = role == "audit-export" && subject == "s0.api.STREAM.PURGE.S0_LOG";
                assert!(may || is_refused(&thief, &subject, &json!({})).await, "{role}: {subject}");
            }
        }
    }
    for (stream, before) in STREAMS.iter().zip(&before) {
        assert_eq!(config(&admin, stream).await, *before);
    }
    let found = running.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    assert_eq!(found["verdict"], "DENY");
    wait_for("a sealed log", LONG_TIMEOUT, async || running.api.verify().await["unsealed"] == 0).await;
    assert_eq!(running.api.verify().await["ok"], true);
    running.api.decide(&Api::harmless()).await;
}

#[tokio::test]
async fn no_decision_is_recorded_on_a_stream_with_foreign_settings_and_each_role_names_the_setting() {
    let running = Running::start().await;
    running.api.decide(&Api::harmless()).await;
    let admin = running.thief("admin").await;
    for (stream, setting, value) in [
        ("S0_LOG", "republish", json!({"src": ">", "dest": "elsewhere.>"})),
        ("S0_LOG", "subject_transform", json!({"src": "s0.log.*.d", "dest": "s0.log.x.d"})),
        ("S0_USAGE", "republish", json!({"src": ">", "dest": "elsewhere.>"})),
    ] {
        let mut foreign = config(&admin, stream).await;
        foreign[setting] = value;
        assert!(!is_refused(&admin, &format!("s0.api.STREAM.UPDATE.{stream}"), &foreign).await);
        let says = |text: &str| text.contains(stream) && text.contains(setting);
        wait_for("a gateway that is not ready", LONG_TIMEOUT, async || says(&running.reasons().await)).await;
        if stream == "S0_LOG" {
            wait_for("no answer without a record", LONG_TIMEOUT, async || {
                running.api.check(&Api::harmless()).await.status == 503
            })
            .await;
        }
        let (code, said) = running.deployment.admin("check");
        assert!(code == Some(1) && says(&said), "{said}");
        let mut doctor = Process::start(&running.deployment.arguments(&["doctor", "gateway"], "gateway", &[]));
        assert_eq!(doctor.ended().code(), Some(1));
        assert!(says(&doctor.said()), "{}", doctor.said());
        let mut second = running.deployment.role("gateway");
        assert_eq!(second.ended().code(), Some(1), "{}", second.said());
        assert!(says(&second.said()), "{}", second.said());
        // Made as it was, all go on by themselves.
        let (code, said) = running.deployment.admin("upgrade");
        assert!(code == Some(0) && says(&said), "{said}");
        wait_for("a ready gateway", LONG_TIMEOUT, async || running.gateway.get("/readyz").await.status == 200).await;
        wait_for("a decision", LONG_TIMEOUT, async || running.api.check(&Api::harmless()).await.status == 200).await;
    }
    assert_eq!(running.deployment.admin("check").0, Some(0));
}

#[tokio::test]
async fn an_evaluators_password_that_writes_without_end_stops_no_check_without_a_run() {
    let running = Running::with_room("96MB").await;
    running.api.decide(&Api::harmless()).await;
    let thief = running.thief("evaluator").await;
    let mut taken = 0;
    loop {
        let body = vec![b'x'; 800_000];
        let said = thief.request(format!("s0.ledger.runs.a.{taken}"), body.into()).await.unwrap();
        if String::from_utf8_lossy(&said.payload).contains("maximum bytes exceeded") {
            break;
        }
        taken += 1;
        assert!(taken < 60, "it takes all");
    }
    for _ in 0..20 {
        running.api.decide(&Api::harmless()).await;
    }
    assert_eq!(running.gateway.get("/readyz").await.status, 200, "{}", running.reasons().await);
    wait_for("a sealed log", LONG_TIMEOUT, async || running.api.verify().await["unsealed"] == 0).await;
}

#[tokio::test]
async fn three_hundred_queue_subscriptions_of_one_evaluator_do_not_take_every_question() {
    let running = Running::start().await;
    let thief = running.thief("evaluator").await;
    let mut swallowing = Vec::new();
    for _ in 0..300 {
        swallowing.push(thief.queue_subscribe("s0.req.evaluate", "s0".to_owned()).await.unwrap());
    }
    thief.flush().await.unwrap();
    let mut answered = 0;
    for _ in 0..30 {
        answered += usize::from(running.api.check(&Api::harmless()).await.status == 200);
    }
    assert!(answered > 0, "one login has every question");
    drop(swallowing);
}

#[tokio::test]
async fn notices_with_hundreds_of_thousands_of_invented_accounts_stop_no_checkpoint() {
    let stack = Stack::build().without_keys().nats().await;
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    for round in 0..2 {
        let accounts: Vec<_> = (0..300_000).map(|number| format!("x{round}_{number}")).collect();
        let body = json!({"accounts": accounts}).to_string();
        client.publish("s0.notice.decisions.recorded", body.into()).await.unwrap();
        // As many in small notices, which look like any other.
        for accounts in accounts.chunks(1_000) {
            client
                .publish("s0.notice.decisions.recorded", json!({"accounts": accounts}).to_string().into())
                .await
                .unwrap();
        }
    }
    client.flush().await.unwrap();
    stack.api.decide(&Api::harmless()).await;
    let sealed = Duration::from_secs(20);
    wait_for("a checkpoint", sealed, async || stack.api.verify().await["unsealed"] == 0).await;
    stack.api.decide(&Api::harmless()).await;
    wait_for("the next one", sealed, async || stack.api.verify().await["unsealed"] == 0).await;
    assert_eq!(stack.api.verify().await["ok"], true);
}
