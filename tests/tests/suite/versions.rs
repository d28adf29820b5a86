//! Releases side by side: the next one may run beside the last; a process that is further away is refused or named.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stage0_backplane::nats::{Connection, Release};
use stage0_backplane::testing::{NatsServer, wait_for};
use stage0_contract::{InstanceHeartbeat, InstanceState, PROTOCOL_VERSION, Role};
use stage0_tests::{Process, Stack};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn release(protocol_version: u32, version: &str) -> Release {
    Release { protocol_version, version: version.to_owned() }
}

/// As if a process of this release had run as the role.
pub(crate) async fn has_run(nats: &NatsServer, role: Role, release: &Release) {
    let connection = Connection::open(&nats.config(role.as_str())).await.unwrap();
    connection.prepare(role, 1).await.unwrap();
    connection.admit(role, release).await.unwrap();
    assert_eq!(connection.newest_release(role).await.unwrap().as_ref(), Some(release));
}

fn evaluator(nats: &NatsServer) -> Process {
    Process::start(&["evaluator", "--nats", &nats.url()].map(str::to_owned))
}

#[tokio::test]
async fn a_release_that_is_too_old_for_a_deployment_refuses_to_start_and_says_why() {
    let nats = NatsServer::start().await;
    has_run(&nats, Role::Evaluator, &release(PROTOCOL_VERSION + 1, "0.2.0")).await;
    let next = evaluator(&nats);
    next.wait_for_log("evaluator starts", "version");
    drop(next);

    let nats = NatsServer::start().await;
    has_run(&nats, Role::Evaluator, &release(PROTOCOL_VERSION + 2, "0.3.0 (abcdef)")).await;
    let mut refused = evaluator(&nats);
    assert_eq!(refused.ended().code(), Some(1), "{}", refused.said());
    let why = "must not run here: 0.3.0 (abcdef) (protocol 3) has run as evaluator";
    refused.wait_for("the reason", |line| line.contains(why).then_some(()));
    let mut doctor = Process::start(&["doctor", "evaluator", "--nats", &nats.url()].map(str::to_owned));
    assert_eq!(doctor.ended().code(), Some(1), "{}", doctor.said());
    assert!(doctor.said().contains(why), "{}", doctor.said());
    // The other roles have records of their own.
    let exporter = Process::start(&["audit-export", "--nats", &nats.url()].map(str::to_owned));
    exporter.wait_for("a serving exporter", |line| line.contains("audit-export serves").then_some(()));
}

/// A process of the release before speaks to this one, and so no record of it keeps this one from starting.
#[tokio::test]
async fn a_role_starts_where_the_last_release_has_run_and_records_that() {
    let nats = NatsServer::start().await;
    has_run(&nats, Role::Evaluator, &release(PROTOCOL_VERSION - 1, "0.0.9")).await;
    let started = evaluator(&nats);
    let version = started.wait_for_log("evaluator starts", "version");
    let connection = Connection::open(&nats.config("evaluator")).await.unwrap();
    let newest = connection.newest_release(Role::Evaluator).await.unwrap();
    assert_eq!(newest, Some(release(PROTOCOL_VERSION, &version)));
}

#[tokio::test]
async fn a_process_of_a_distant_release_is_named_by_gateways_and_by_status() {
    let stack = Stack::build().without_keys().nats().await;
    let stranger = Connection::open(&stack.nats.as_ref().unwrap().config("audit-export")).await.unwrap().backplane();
    let beat = async |protocol_version: u32| {
        let heartbeat = InstanceHeartbeat {
            role: Role::AuditExport,
            instance: "far-away".to_owned(),
            version: "0.9.0".to_owned(),
            started_at: Timestamp::now(),
            state: InstanceState::Ready,
            remarks: Vec::new(),
            policy_version: None,
            delivery: None,
            log_edition: InstanceHeartbeat::LOG_EDITION,
            policy_edition: 0,
            policies: Vec::new(),
            protocol_version,
        };
        let bytes = serde_json::to_vec(&heartbeat).unwrap();
        stranger.notices.publish_bytes(InstanceHeartbeat::subject(Role::AuditExport), bytes.into()).await.unwrap();
    };
    let named = async || {
        beat(PROTOCOL_VERSION + 2).await;
        let report = stack.operator.get("/readyz").await.expect(200);
        report["reasons"].to_string().contains("audit-export far-away (0.9.0, protocol 3)")
    };
    wait_for("a remark in /readyz", WAIT_TIMEOUT, named).await;
    let gateway = &stack.gateways[0];
    gateway.wait_for("an error in the log", |line| {
        (line.contains(r#""level":"ERROR""#) && line.contains("far-away")).then_some(())
    });
    let status = stack.operator.get("/v1/status").await.expect(200);
    let found = status["instances"].as_array().unwrap().iter().find(|one| one["instance"] == "far-away").unwrap();
    assert_eq!(found["protocol_version"], json!(PROTOCOL_VERSION + 2));
    let gone = async || {
        beat(PROTOCOL_VERSION).await;
        !stack.operator.get("/readyz").await.text.contains("far-away")
    };
    wait_for("its replacement", WAIT_TIMEOUT, gone).await;
}
