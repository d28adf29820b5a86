//! Lines of new kinds are written only once every process that is there can read them.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stage0_backplane::Backplane;
use stage0_backplane::nats::{Connection, MessageAuth, MessageKeys};
use stage0_backplane::testing::wait_for;
use stage0_contract::{InstanceHeartbeat, InstanceState, Role};
use stage0_tests::{Api, Stack, Team};

use super::path::details;

const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

/// A process with the message keys of a role of the stack.
async fn process_of(stack: &Stack, role: Role) -> Backplane {
    let keys = std::fs::read_to_string(stack.keys_dir().join(format!("{role}.keys"))).unwrap();
    let auth = MessageAuth::new(&MessageKeys::parse(&keys).unwrap(), role, false).unwrap();
    let mut config = stack.nats.as_ref().unwrap().config(role.as_str());
    config.auth = Some(auth);
    Connection::open(&config).await.unwrap().backplane()
}

fn heartbeat(role: Role, log_edition: u32) -> InstanceHeartbeat {
    InstanceHeartbeat {
        role,
        instance: format!("{role}-of-an-earlier-release"),
        version: "0.1.0".to_owned(),
        started_at: Timestamp::now(),
        state: InstanceState::Ready,
        remarks: Vec::new(),
        policy_version: None,
        delivery: None,
        log_edition,
        policy_edition: 0,
        policies: Vec::new(),
        protocol_version: 0,
    }
}

#[tokio::test]
async fn while_a_process_of_an_earlier_release_is_there_no_approval_opens_and_the_answer_says_why() {
    let stack = Stack::build().nats().await;
    let team = Team::verified(&stack).await;
    let (agent, ada) = (team.agent().await, team.member("Ada", &[]).await);
    let opens = async || agent.api.check(&Api::deployment()).await.body["approval"].is_object();
    wait_for("an approval, once all processes were heard", WAIT_TIMEOUT, opens).await;
    let first = agent.api.deferred(&Api::deployment()).await;

    let exporter = process_of(&stack, Role::AuditExport).await;
    let subject = InstanceHeartbeat::subject(Role::AuditExport);
    let beat = async |edition: u32| {
        let bytes = serde_json::to_vec(&heartbeat(Role::AuditExport, edition)).unwrap();
        exporter.notices.publish_bytes(subject, bytes.into()).await.unwrap();
    };
    beat(0).await;
    let mut asked = 0;
    let closed = async || {
        asked += 1;
        let answer = agent.api.check(&Api::deployment_of(&format!("number {asked}"))).await.expect(200);
        answer["approval"] == json!(null)
    };
    wait_for("no approval", WAIT_TIMEOUT, closed).await;
    let answer = agent.api.check(&Api::deployment_of("billing")).await.expect(200);
    assert_eq!(answer["verdict"], "DEFER");
    assert!(details(&answer)["approval"].as_str().is_some_and(|why| !why.is_empty()), "{answer:#}");
    // Votes are not recorded either, so none is taken; a stop holds all the same.
    ada.api.approve(&first).await.assert_error(503, "unavailable");
    beat(0).await;
    let stop = team.admin.post("/v1/stops", &json!({"scope": "tool", "value": "argo_cd", "reason": "x"})).await;
    assert!([201, 503].contains(&stop.status), "{}", stop.text);
    let stopped = async || agent.api.check(&Api::deployment()).await.body["verdict"] == "DENY";
    wait_for("the stop", WAIT_TIMEOUT, stopped).await;
    assert!(!team.admin.get("/v1/decisions/export").await.text.contains("stop.started"), "no line is written yet");

    // It is replaced by one that reads all lines, and everything goes on.
    beat(1).await;
    let stops = team.admin.get("/v1/stops").await.expect(200);
    let id = stops["items"][0]["id"].as_str().unwrap().to_owned();
    let resumed = async || stack.operator.resume(&id, "over").await.status == 200;
    wait_for("the end of the stop", WAIT_TIMEOUT, resumed).await;
    let approved = async || ada.api.approve(&first).await.status == 200;
    wait_for("the vote", WAIT_TIMEOUT, approved).await;
    let allowed = async || agent.api.check(&Api::deployment()).await.body["verdict"] == "ALLOW";
    wait_for("the action", WAIT_TIMEOUT, allowed).await;
    assert_eq!(team.admin.verify().await["ok"], true);
}
