//! Refusals that an agent can act on: where, what and how in the answer, and no word of it in what is kept.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_tests::{Api, Authority, Delivery, Receiver, Stack};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Refused for its environment and its role; the words that were compared are unlike any other.
fn refused() -> Value {
    json!({"goal": "Carry out the planned step", "success_criteria": ["done"], "tools": ["Write-File", "write_file"],
        "side_effects": ["write"], "constraints": ["required_role: zebra, yak", "please be careful with this one"],
        "context": {"actor_role": "walrus"}})
}

fn issue<'a>(answer: &'a Value, code: &str) -> &'a Value {
    let issues = answer["issues"].as_array().unwrap();
    issues.iter().find(|issue| issue["code"] == code).unwrap_or_else(|| panic!("no {code} in {answer}"))
}

#[tokio::test]
async fn a_refusal_names_the_place_the_value_and_the_remedy() {
    let stack = Stack::build().dev().await;
    let answer = stack.api.check(&refused()).await.expect(200);
    let details = &issue(&answer, "ROLE_NOT_AUTHORIZED")["details"];
    assert_eq!(details["at"], json!(["context.actor_role", "constraints[0]"]));
    assert_eq!((&details["found"], &details["allowed"]), (&json!(["walrus"]), &json!(["zebra", "yak"])));
    assert_eq!(details["write"], json!([{"path": "context.actor_role", "by": "system"}]));
    assert_eq!(answer["constraints_ignored"], json!(["please be careful with this one"]));

    // What the caller may write by itself stands there word for word.
    let bare = json!({"goal": "Deploy build 7", "success_criteria": ["done"], "side_effects": ["deploy"]});
    let answer = stack.api.check(&bare).await.expect(200);
    let details = &issue(&answer, "SIDE_EFFECTS_NEED_GUARDRAILS")["details"];
    assert_eq!(details["at"], json!(["side_effects[0]"]));
    assert_eq!(details["write"], json!([{"op": "add", "path": "constraints", "value": "approval_required"}]));
    let mut mended = bare;
    mended["constraints"] = json!([details["write"][0]["value"]]);
    let answer = stack.api.check(&mended).await.expect(200);
    assert_eq!(answer["verdict"], "DEFER");
    let question = answer["defer_questions"][0].as_str().unwrap();
    assert!(question.contains("`context.approval_status`"), "{question}");
}

#[tokio::test]
async fn amounts_in_refusals_use_the_callers_units() {
    let stack = Stack::build().dev().await;
    let body = json!({"goal": "Carry out the planned step", "success_criteria": ["done"],
        "constraints": ["max_cost_usd: 100", "timeout: 1m"],
        "context": {"estimated_cost_usd": 1500.5, "elapsed_seconds": 61.5}});
    let answer = stack.api.check(&body).await.expect(200);
    let told: Vec<_> = answer["issues"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| (&i["details"]["found"], &i["details"]["allowed"]))
        .collect();
    assert!(told.contains(&(&json!([1500.5]), &json!([100.0]))), "{told:?}");
    assert!(told.contains(&(&json!([61.5]), &json!([60.0]))), "{told:?}");
}

#[tokio::test]
async fn no_word_that_was_compared_is_kept() {
    let authority = Authority::default();
    let receiver = Receiver::tls(&authority).await;
    let stack = Stack::build().private_webhooks().trusting(&authority).dev().await;
    stack.api.webhook(&receiver.url("/in")).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
    let ask = async || {
        stack.api.send(Method::POST, "/check", &headers, Some(refused().to_string().into_bytes())).await.expect(200)
    };
    let first = ask().await;
    let id = first["request_id"].as_str().unwrap().to_owned();
    let again = ask().await;
    let record = stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    let find = |came: &[Delivery]| came.iter().find(|delivery| delivery.id() == format!("dec_{id}")).cloned();
    let event = receiver.wait_for("the decision", "/in", WAIT_TIMEOUT, find).await;
    let event: Value = serde_json::from_slice(&event.body).unwrap();
    for kept in [&again, &record, &event["data"]] {
        let text = kept.to_string();
        for word in ["walrus", "careful", "\"write\"", "\"found\"", "\"allowed\""] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        let details = &issue(kept, "ROLE_NOT_AUTHORIZED")["details"];
        assert_eq!(details["at"], json!(["context.actor_role", "constraints[0]"]));
    }
    // An auditor sees what was attempted.
    for kept in [&record, &event["data"]] {
        assert_eq!(kept["effect_classes"], json!(["medium"]));
        assert_eq!(kept["tools"], json!(["write_file"]));
        assert_eq!(kept["constraints_ignored_count"], 1);
    }
    assert_eq!(stack.api.verify().await["ok"], true);
}

#[tokio::test]
async fn no_text_of_a_request_with_a_secret_appears_anywhere() {
    let stack = Stack::build().dev().await;
    let mut body = refused();
    body["context"]["note"] = json!(format!("use {}{}", "AKIA", "IOSFODNN7EXAMPLE"));
    body["tools"] = json!([format!("run_{}{}", "ghp_", "a1B2".repeat(9))]);
    let answer = stack.api.check(&body).await;
    assert_eq!(answer.body["verdict"], "DENY");
    for word in ["walrus", "IOSFODNN7", "a1B2a1B2"] {
        assert!(!answer.text.contains(word), "{word} in {}", answer.text);
    }
    let id = answer.body["request_id"].as_str().unwrap();
    let record = stack.api.get(&format!("/v1/decisions/{id}")).await;
    assert!(!record.text.contains("a1B2a1B2"), "{}", record.text);
}

#[tokio::test]
async fn the_vocabulary_is_shown_to_every_active_key_and_no_other_caller() {
    for stack in [Stack::build().dev().await, Stack::build().nats().await] {
        let told = stack.api.get("/v1/policy/vocabulary").await.expect(200);
        let answer = stack.api.check(&Api::harmless()).await.expect(200);
        assert_eq!(told["policy_version"], answer["policy_version"]);
        let codes: Vec<_> =
            told["codes"].as_array().unwrap().iter().map(|code| code["code"].as_str().unwrap()).collect();
        for code in ["APPROVAL_REQUIRED", "CONSTRAINT_NOT_UNDERSTOOD", "POLICY_ERROR"] {
            assert!(codes.contains(&code), "{code}");
        }
        for code in told["codes"].as_array().unwrap() {
            assert!(code["meaning"].is_string() && code["remedy"].is_string(), "{code}");
        }
        let text = told.to_string();
        for word in ["data_deletion", "allowed_environment", "allowed_env", "approval_status", "prod"] {
            assert!(text.contains(&format!("\"{word}\"")), "{word}");
        }
        stack.operator.get("/v1/policy/vocabulary").await.expect(200);
        stack.api.without_key().get("/v1/policy/vocabulary").await.assert_error(401, "unauthorized");
        stack.api.post("/v1/policy/vocabulary", &json!({})).await.assert_error(405, "method_not_allowed");
    }
}
