//! The OpenAPI document: examples and fixtures follow it, and what it says that may be sent is read.

use std::path::Path;

use serde_json::{Value, json};
use stage0_contract::{Operation, openapi};
use stage0_tests::openapi::faults;
use stage0_tests::{Api, Stack};

/// Fixtures that hold what the API answers, and the component that each follows.
const ANSWERS: &[(&str, &str)] = &[
    ("account_page", "AccountPage"),
    ("account_reply_approvals", "Account"),
    ("account_reply_caps", "Account"),
    ("account_reply_done", "Account"),
    ("account_reply_limits", "Account"),
    ("account_reply_retention", "Account"),
    ("activation", "Activation"),
    ("activation_rolled_back", "Activation"),
    ("approval_history", "ApprovalHistory"),
    ("approval_page", "ApprovalPage"),
    ("approval_reply_done", "Approval"),
    ("check_response_ignored", "CheckResponse"),
    ("check_response_input_stored", "CheckResponse"),
    ("decision_record", "ShownDecision"),
    ("decision_record_attempted", "ShownDecision"),
    ("decision_record_with_input", "ShownDecision"),
    ("decisions_deleted", "DecisionsDeleted"),
    ("decisions_deleted_none", "DecisionsDeleted"),
    ("delivery_page", "DeliveryPage"),
    ("error_body_throttled", "ErrorBody"),
    ("error_body_validation", "ErrorBody"),
    ("grant", "Grant"),
    ("grants", "Grants"),
    ("invitation_accepted", "InvitationAccepted"),
    ("key_created", "KeyCreated"),
    ("key_page", "KeyPage"),
    ("key_page_last_used", "KeyPage"),
    ("key_page_member", "KeyPage"),
    ("key_rotated", "KeyCreated"),
    ("member_invited", "MemberInvited"),
    ("member_page", "MemberPage"),
    ("member_reply_done", "Member"),
    ("policies_in_force", "PoliciesInForce"),
    ("policy_history", "ActivationPage"),
    ("policy_page", "PublishedPolicyPage"),
    ("policy_reply_files", "PublishedPolicy"),
    ("public_keys", "SigningKeys"),
    ("published_policy", "PublishedPolicy"),
    ("replay_started", "ReplayStarted"),
    ("report_expiries", "Report"),
    ("report_findings", "Report"),
    ("report_good", "Report"),
    ("run_page", "RunPage"),
    ("run_settled", "RunSettled"),
    ("run_view", "Run"),
    ("shown_policy", "ShownPolicy"),
    ("status", "Status"),
    ("stop_page", "StopPage"),
    ("stop_reply_done", "Stop"),
    ("usage", "Usage"),
    ("usage_stored_bytes", "Usage"),
    ("webhook_created", "WebhookCreated"),
    ("webhook_page", "WebhookPage"),
    ("webhook_reply_done", "Webhook"),
    ("webhook_tested_delivered", "WebhookTested"),
    ("webhook_tested_failed", "WebhookTested"),
];

#[test]
fn each_fixture_of_an_answer_follows_the_document() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contract/fixtures");
    for (name, component) in ANSWERS {
        let text = std::fs::read_to_string(fixtures.join(format!("{name}.json"))).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        let mut value = value.get_mut("done").map(Value::take).unwrap_or(value);
        // Older decisions do not have these members; an answer of today always has them.
        if let Some(decision) = value.as_object_mut().filter(|value| value.contains_key("verdict")) {
            decision.entry("constraints_ignored").or_insert(json!([]));
            decision.entry("approval").or_insert(json!(null));
        }
        let faults = faults(&format!("#/components/schemas/{component}"), &value);
        assert!(faults.is_empty(), "{name}: {faults:#?}");
    }
}

#[test]
fn each_example_follows_its_schema() {
    fn each(value: &Value, path: &str, count: &mut usize) {
        match value {
            Value::Object(object) => {
                let reference = object.get("schema").and_then(|schema| schema["$ref"].as_str());
                let examples =
                    object.get("examples").and_then(Value::as_object).into_iter().flat_map(|all| all.values());
                let examples = examples.map(|example| &example["value"]).chain(object.get("example"));
                if let Some(reference) = reference {
                    for example in examples {
                        let faults = faults(reference, example);
                        assert!(faults.is_empty(), "{path}: {faults:#?}");
                        *count += 1;
                    }
                }
                object.iter().for_each(|(name, value)| each(value, &format!("{path}/{name}"), count));
            }
            Value::Array(items) => items.iter().for_each(|item| each(item, path, count)),
            _ => {}
        }
    }
    let mut count = 0;
    each(&openapi("https://localhost"), "", &mut count);
    assert!(count > 40, "{count} examples");
}

#[test]
fn a_member_that_is_not_declared_is_a_fault() {
    let run = "#/components/schemas/RunCost";
    let cost = json!({"spent_usd": 0, "reserved_usd": 0.5, "total_usd": 0.5});
    assert!(faults(run, &cost).is_empty());
    for (member, value) in [("spent_usd", json!("0")), ("total_usd", json!(-1)), ("more", json!(0))] {
        let mut bad = cost.clone();
        bad[member] = value;
        assert_eq!(faults(run, &bad).len(), 1, "{member}");
    }
    assert_eq!(faults(run, &json!({"spent_usd": 0, "reserved_usd": 0.5})).len(), 1);
}

/// A query that the document allows is read; any other is refused.
#[tokio::test]
async fn each_operation_reads_exactly_the_query_parameters_that_are_declared() {
    let stack = Stack::build().dev().await;
    let document = stack.api.get("/openapi.json").await.expect(200);
    for operation in Operation::ALL {
        let method = operation.method().as_str();
        let parameters = document["paths"][operation.path()][method.to_ascii_lowercase()]["parameters"].as_array();
        let query: Vec<_> = parameters.into_iter().flatten().filter(|parameter| parameter["in"] == "query").collect();
        if query.is_empty() {
            continue;
        }
        let api = if operation.path() == "/v1/accounts" { &stack.operator } else { &stack.api };
        let named = query.iter().map(|parameter| format!("{}=%00", parameter["name"].as_str().unwrap()));
        let named: Vec<_> = named.chain(["other=1".to_owned()]).collect();
        let path = format!("{}?{}", operation.path(), named.join("&"));
        let answer = api.send(method.parse().unwrap(), &path, &[], None).await;
        answer.assert_error(422, "validation_failed");
        let unknown: Vec<_> = answer.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|error| error["message"] == "is not known to this call")
            .map(|error| error["path"].clone())
            .collect();
        assert_eq!(unknown, ["other"], "{operation:?}");
    }
}

#[tokio::test]
async fn the_document_names_the_host_that_serves_it() {
    let stack = Stack::build().gateway_with(&["--base-path", "/stage0"]).dev().await;
    let document = stack.api.get("/openapi.json").await.expect(200);
    assert_eq!(document["servers"][0]["url"], stack.api.url);
    assert_eq!(document["paths"], openapi("")["paths"]);
    stack.api.check(&Api::harmless()).await.expect(200);
}
