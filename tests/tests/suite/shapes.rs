//! What callers send beside what is known: near misses, members at the wrong level, null, a byte order mark.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_tests::Stack;

const JSON: (&str, &str) = ("content-type", "application/json");

fn harmless(more: &[(&str, Value)]) -> Value {
    let mut body = json!({"goal": "Read the weekly report", "success_criteria": ["it is read"], "context": {}});
    for (name, value) in more {
        body[*name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_misspelt_member_is_422_with_the_right_spelling() {
    let stack = Stack::build().dev().await;
    for (name, value, path, write) in [
        ("sideEffects", json!(["deploy"]), "sideEffects", "write `side_effects`"),
        ("side_effect", json!(["data_deletion"]), "side_effect", "write `side_effects`"),
        ("approval_status", json!("approved"), "approval_status", "write `context.approval_status`"),
        ("context", json!({"approvalStatus": "approved"}), "context.approvalStatus", "write `context.approval_status`"),
        (
            "context",
            json!({"constraints": ["read_only"]}),
            "context.constraints",
            "write `constraints` at the top level",
        ),
        (
            "context",
            json!({"loop_state": {"retryCount": 9}}),
            "context.loop_state.retryCount",
            "write `context.loop_state.retry_count`",
        ),
    ] {
        let answer = stack.api.check(&harmless(&[(name, value)])).await;
        answer.assert_error(422, "validation_failed");
        let errors = answer.body["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{}", answer.text);
        assert_eq!(errors[0]["path"], path);
        assert!(errors[0]["message"].as_str().unwrap().contains(write), "{}", answer.text);
        assert!(answer.body["message"].as_str().unwrap().contains(&format!("{path}: ")), "{}", answer.text);
    }
    let near = json!({"tool": "x", "goals": ["y"], "approved": true, "nested": {"sideEffects": []}});
    assert_eq!(stack.api.check(&harmless(&[("context", near)])).await.expect(200)["verdict"], "ALLOW");
}

#[tokio::test]
async fn members_that_nothing_reads_are_named_in_the_answer_alone() {
    let stack = Stack::build().dev().await;
    let body = harmless(&[("user", json!("u")), ("approvalStatus", json!("x")), ("a text", json!(1))]);
    let answer = stack.api.check(&body).await.expect(200);
    assert_eq!(answer["meta"]["ignored_fields"], json!(["*", "approvalStatus", "user"]));
    let id = answer["request_id"].as_str().unwrap();
    let record = stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    assert_eq!(record["verdict"], answer["verdict"]);
    assert!(record["meta"].get("ignored_fields").is_none() && !record.to_string().contains("approvalStatus"));
    assert_eq!(stack.api.verify().await["records"], 1);

    let none = stack.api.check(&harmless(&[])).await.expect(200);
    assert!(none["meta"].get("ignored_fields").is_none());

    // A name may be the secret itself.
    let secret = "AKIAIOSFODNN7EXAMPLE";
    let answer = stack.api.check(&harmless(&[(secret, json!(1)), ("user", json!("u"))])).await.expect(200);
    assert_eq!(answer["verdict"], "DENY");
    assert_eq!(answer["meta"]["ignored_fields"], json!(["*"]));
    assert!(!answer.to_string().contains(secret));
}

#[tokio::test]
async fn null_is_absent_and_a_byte_order_mark_is_skipped() {
    let stack = Stack::build().dev().await;
    let plain =
        stack.api.check(&json!({"goal": "Read the weekly report", "success_criteria": ["x"]})).await.expect(200);
    let mut body = json!({"goal": "Read the weekly report", "success_criteria": ["x"]});
    for name in [
        "constraints",
        "tools",
        "side_effects",
        "context",
        "environment",
        "pro",
        "policy_pack_version",
        "debug_store_input",
    ] {
        body[name] = Value::Null;
    }
    let answer = stack.api.check(&body).await.expect(200);
    assert_eq!((&answer["verdict"], &answer["task_hash"]), (&plain["verdict"], &plain["task_hash"]));
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    let marked = format!("\u{feff}{body}");
    let answer = stack.api.send(Method::POST, "/check", &[JSON], bytes(&marked)).await.expect(200);
    assert_eq!(answer["task_hash"], plain["task_hash"]);
    stack
        .api
        .send(Method::POST, "/check", &[JSON], bytes(&format!("\u{feff}{marked}")))
        .await
        .assert_error(400, "invalid_json");

    for (name, value, path) in [
        ("goal", Value::Null, "goal"),
        ("tools", json!(["a", null]), "tools[1]"),
        ("side_effects", json!([null]), "side_effects[0]"),
    ] {
        let answer = stack.api.check(&harmless(&[(name, value)])).await;
        answer.assert_error(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["path"], path);
    }
}

#[tokio::test]
async fn two_environments_are_one_by_the_policys_aliases_and_else_422() {
    let stack = Stack::build().dev().await;
    let body = |outer: &str, inner: &str| {
        harmless(&[("environment", json!(outer)), ("context", json!({"environment": inner}))])
    };
    let answer = stack.api.check(&body("prod", "Production")).await.expect(200);
    assert_eq!(answer["environment"], "prod", "told as it was sent");
    for (outer, inner) in [("prod", "staging"), ("dev", "d\u{435}v")] {
        let answer = stack.api.check(&body(outer, inner)).await;
        answer.assert_error(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["path"], "environment");
    }
}
