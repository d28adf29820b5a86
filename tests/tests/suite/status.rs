//! `GET /v1/status`: the deployment's processes, for the operator.

use std::time::Duration;

use serde_json::Value;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack};

const LONG_TIMEOUT: Duration = Duration::from_secs(60);

/// States of a role's processes, sorted.
async fn states(operator: &Api, role: &str) -> Vec<String> {
    let status = operator.get("/v1/status").await.expect(200);
    let of_role = |one: &&Value| one["role"] == role;
    let all = status["instances"].as_array().unwrap().iter().filter(of_role);
    let mut states: Vec<_> = all.map(|one| one["state"].as_str().unwrap().to_owned()).collect();
    states.sort();
    states
}

#[tokio::test]
async fn the_operator_sees_who_is_there_who_left_and_who_was_lost() {
    let mut stack = Stack::build().nats().await;
    let operator = stack.operator.clone();
    for role in ["gateway", "evaluator", "keystore", "audit-export"] {
        wait_for("a role is ready", LONG_TIMEOUT, async || {
            let states = states(&operator, role).await;
            !states.is_empty() && states.iter().all(|state| state == "ready")
        })
        .await;
    }
    stack.start_evaluator();
    wait_for("another evaluator", LONG_TIMEOUT, async || states(&operator, "evaluator").await == ["ready", "ready"])
        .await;
    stack.evaluators[0].kill();
    wait_for("it is lost", LONG_TIMEOUT, async || states(&operator, "evaluator").await == ["lost", "ready"]).await;
    assert!(stack.exporters[0].stop().success());
    wait_for("it said goodbye", LONG_TIMEOUT, async || states(&operator, "audit-export").await == ["stopping"]).await;
    stack.keystore.take().unwrap().kill();
    wait_for("the gateway knows why it is not ready", LONG_TIMEOUT, async || {
        let status = operator.get("/v1/status").await;
        let text = status.text;
        status.status == 200
            && text.contains("\"not_ready\"")
            && text.contains("keystore: no process serves the subject")
    })
    .await;
}

#[tokio::test]
async fn an_account_key_cannot_see_the_deployment_status() {
    let stack = Stack::build().dev().await;
    let refused = stack.api.get("/v1/status").await;
    refused.assert_error(403, "scope_missing");
    stack.api.without_key().get("/v1/status").await.assert_error(401, "unauthorized");
    let one = stack.operator.get("/v1/status").await.expect(200);
    assert_eq!(one["instances"].as_array().unwrap().len(), 4, "{one}");
}
