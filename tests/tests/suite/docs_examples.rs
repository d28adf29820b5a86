//! The examples of docs/audit.md and docs/webhooks.md are what the product records and delivers.
//!
//! Reads the documents, sends the request that they name to a running stack and compares shapes: names of members and
//! types, in any order. Values are compared where a reader would rely on them (verdict, codes, rules). A member that a
//! document calls optional may be there or not; every other that comes and is not shown, or the other way, fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Receiver, Stack, command};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
const AUDIT: &str = "audit.md";
const WEBHOOKS: &str = "webhooks.md";

/// Members that the documents call optional.
const OPTIONAL: [&str; 4] = ["effect_classes", "tools", "constraints_ignored_count", "at"];

/// A document as it is in this tree.
pub(crate) fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The fenced blocks of this language, in order.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let (mut found, mut open) = (vec![], None::<(bool, String)>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(named)) => open = Some((named == language, String::new())),
            (None, None) => {}
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    found
}

/// The line of a document that shows a JSON object of this `type`, to the byte.
fn shown(text: &str, kind: &str) -> String {
    let start = format!("{{\"type\":\"{kind}\"");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&start)).collect();
    assert_eq!(lines.len(), 1, "one example of `{kind}`");
    lines[0].to_owned()
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "fraction",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn differences(at: &str, example: &Value, real: &Value, found: &mut Vec<String>) {
    match (example, real) {
        (Value::Object(example), Value::Object(real)) => {
            let names: BTreeSet<_> = example.keys().chain(real.keys()).collect();
            for name in names {
                match (example.get(name), real.get(name)) {
                    (Some(example), Some(real)) => differences(&format!("{at}.{name}"), example, real, found),
                    (Some(_), None) | (None, Some(_)) if OPTIONAL.contains(&name.as_str()) => {}
                    (Some(_), None) => found.push(format!("{at}.{name} is shown, and does not come")),
                    (None, _) => found.push(format!("{at}.{name} comes, and is not shown")),
                }
            }
        }
        (Value::Array(example), Value::Array(real)) => {
            if example.is_empty() != real.is_empty() {
                found.push(format!("{at} is empty in one of the two"));
            }
            if let (Some(example), Some(real)) = (example.first(), real.first()) {
                differences(&format!("{at}[]"), example, real, found);
            }
        }
        _ => {
            let (example, real) = (kind_of(example), kind_of(real));
            if example != real {
                found.push(format!("{at} is shown as {example}, and comes as {real}"));
            }
        }
    }
}

#[track_caller]
fn same_shape(what: &str, example: &Value, real: &Value) {
    let mut found = vec![];
    differences(what, example, real, &mut found);
    assert!(found.is_empty(), "{}\nexample: {example}\nreal: {real}", found.join("\n"));
}

/// What a reader would rely on.
#[track_caller]
fn same_decision(example: &Value, real: &Value) {
    let told = |decision: &Value| {
        let issues: Vec<_> = decision["issues"]
            .as_array()
            .unwrap()
            .iter()
            .map(|issue| [&issue["code"], &issue["severity"], &issue["rule"], &issue["next_action"]].map(Clone::clone))
            .collect();
        (decision["decision"].clone(), decision["verdict"].clone(), decision["environment"].clone(), issues)
    };
    assert_eq!(told(example), told(real));
}

/// Asks what audit.md says was asked.
async fn ask(stack: &Stack) -> Value {
    let request = blocks(&document(AUDIT), "json").into_iter().find(|block| block.contains("\"goal\"")).unwrap();
    let headers = [("content-type", "application/json"), ("x-request-id", "mine-1"), ("user-agent", "agent/1.0")];
    stack.api.send(Method::POST, "/check", &headers, Some(request.into_bytes())).await.expect(200)
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

async fn lines_of(stack: &Stack, kind: &str) -> Vec<Value> {
    let export = stack.api.get("/v1/decisions/export").await.text;
    export.lines().map(parsed).filter(|line| line["type"] == kind).collect()
}

#[tokio::test]
async fn the_lines_that_the_audit_document_shows_are_those_of_the_log() {
    let stack = Stack::build().dev().await;
    let text = document(AUDIT);
    let example = parsed(&shown(&text, "decision.recorded"));
    let answer = ask(&stack).await;
    same_decision(&example, &answer);
    let recorded = lines_of(&stack, "decision.recorded").await;
    assert_eq!(recorded.len(), 1);
    same_shape("line", &example, &recorded[0]);
    same_decision(&example, &recorded[0]);
    for (name, value) in [("run_id", "run_1"), ("reason", answer["reason"].as_str().unwrap())] {
        assert_eq!(recorded[0][name], value, "{name}");
    }
    assert_eq!(example["meta"]["client_request_id"], recorded[0]["meta"]["client_request_id"]);
    assert_eq!(example["client"]["user_agent"], recorded[0]["client"]["user_agent"]);
    for optional in OPTIONAL {
        assert!(text.contains(&format!("`{optional}`")), "`{optional}` is not explained");
    }

    let mut marks = vec![];
    wait_for("a checkpoint", WAIT_TIMEOUT, async || {
        marks = lines_of(&stack, "checkpoint.signed").await;
        !marks.is_empty()
    })
    .await;
    same_shape("mark", &parsed(&shown(&text, "checkpoint.signed")), &marks[0]);

    let keys = blocks(&text, "json").into_iter().find(|block| block.contains("\"ed25519\"")).unwrap();
    let real = stack.api.without_key().get("/v1/signing-keys").await.expect(200);
    same_shape("signing keys", &parsed(&keys), &real);
}

#[tokio::test]
async fn the_test_vectors_of_the_audit_document_verify() {
    let directory = tempfile::tempdir().unwrap();
    let text = document(AUDIT);
    let lines = [shown(&text, "decision.recorded"), shown(&text, "checkpoint.signed")];
    let keys = blocks(&text, "json").into_iter().find(|block| block.contains("\"ed25519\"")).unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("signing-keys.json"), keys).unwrap();
    let verify = |lines: &[String; 2]| {
        std::fs::write(at("decisions.ndjson"), format!("{}\n{}\n", lines[0], lines[1])).unwrap();
        let mut command = command();
        command.args(["decisions", "verify", "--json", "--file", "decisions.ndjson", "--keys", "signing-keys.json"]);
        let output = command.current_dir(directory.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.stdout.is_empty(), "{}: {errors}", output.status);
        (output.status.success(), parsed(&String::from_utf8_lossy(&output.stdout)))
    };
    let (ok, report) = verify(&lines);
    assert!(ok && report["ok"] == true, "{report}");
    assert_eq!((&report["records"], &report["unsealed"]), (&Value::from(1), &Value::from(0)), "{report}");
    // The hashes that the text names are those of the lines.
    let mark = parsed(&lines[1]);
    let hash = mark["heads"][0]["hash"].as_str().unwrap();
    assert_eq!(text.matches(hash).count(), 2, "in the mark and in the text");
    let last = report["last_mark"]["hash"].as_str().unwrap();
    assert_eq!(text.matches(last).count(), 1, "in the text");
    let (ok, report) = verify(&lines.map(|line| line.replace("production", "prodaction")));
    assert!(!ok && report["ok"] == false, "{report}");
}

#[tokio::test]
async fn the_event_that_the_webhook_document_shows_is_what_is_delivered() {
    let receiver = Receiver::plain().await;
    let stack = Stack::build().private_webhooks().dev().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/stage0")).await;
    let answer = ask(&stack).await;
    let event = format!("dec_{}", answer["request_id"].as_str().unwrap());
    let find = |came: &[stage0_tests::Delivery]| came.iter().find(|delivery| delivery.id() == event).cloned();
    let delivery = receiver.wait_for("the decision", "/stage0", WAIT_TIMEOUT, find).await;
    assert!(delivery.is_signed_by(&secret));

    let text = document(WEBHOOKS);
    let example = parsed(&shown(&text, "decision.recorded"));
    same_shape("body", &example, &delivery.event());
    same_decision(&example["data"], &delivery.event()["data"]);
    for optional in OPTIONAL {
        assert!(text.contains(&format!("`{optional}`")), "`{optional}` is not explained");
    }
    // The headers above it, each with what comes in it.
    let request = blocks(&text, "text").into_iter().find(|block| block.starts_with("POST /stage0 ")).unwrap();
    let headers: Vec<_> = request.lines().skip(1).take_while(|line| !line.is_empty()).collect();
    assert!(headers.len() >= 6, "{headers:?}");
    for line in headers {
        let (name, value) = line.split_once(": ").unwrap();
        let real = delivery.headers.get(name).unwrap_or_else(|| panic!("`{name}` did not come")).to_str().unwrap();
        match name {
            "content-type" => assert_eq!(real, value),
            "user-agent" => assert!(real.starts_with("stage0/"), "{real}"),
            "webhook-signature" => assert!(real.starts_with("v1,"), "{real}"),
            "webhook-timestamp" => assert_eq!(real.len(), value.len()),
            _ => {}
        }
    }

    // Both documents tell of one decision.
    let line = parsed(&shown(&document(AUDIT), "decision.recorded"));
    for (name, value) in example["data"].as_object().unwrap() {
        match name.as_str() {
            "hash" => assert!(document(AUDIT).contains(value.as_str().unwrap()), "{value}"),
            "sequence" => {}
            name => assert_eq!(&line[name], value, "{name}"),
        }
    }
}

#[tokio::test]
async fn the_receiver_prints_the_codes_that_the_webhook_document_shows() {
    let stack = Stack::build().dev().await;
    let text = document(WEBHOOKS);
    let asked = text.lines().find_map(|line| line.strip_prefix("echo '")?.strip_suffix("' | stage0 check -")).unwrap();
    let answer = stack.api.check(&parsed(asked)).await.expect(200);
    let codes: Vec<_> = answer["issues"].as_array().unwrap().iter().map(|i| i["code"].as_str().unwrap()).collect();
    let line = text.lines().find(|line| line.contains(" DENY ") && line.contains("  #1  ")).unwrap();
    assert_eq!(answer["verdict"], "DENY");
    assert_eq!(line.split("  ").last().unwrap(), codes.join(","));
}

/// The guide shows one request and, for each verdict, what to change in it and the whole answer.
#[tokio::test]
async fn the_answers_that_the_guide_shows_are_those_of_the_product() {
    let stack = Stack::build().dev().await;
    let text = document("guide.md");
    let command = blocks(&text, "sh").into_iter().find(|block| block.contains("<<'JSON'")).unwrap();
    let request = parsed(command.split("<<'JSON'\n").nth(1).unwrap().split("\nJSON").next().unwrap());
    let examples = blocks(&text, "json");
    assert_eq!(examples.len(), 3, "one answer for each verdict");
    let approvals = [
        json!({}),
        json!({"approval_status": "approved", "approved_by": "dana@example.com"}),
        json!({"approval_status": "rejected"}),
    ];
    for ((example, approval), verdict) in examples.iter().zip(&approvals).zip(["DEFER", "ALLOW", "DENY"]) {
        let mut request = request.clone();
        for (name, value) in approval.as_object().unwrap() {
            let member = format!("\"{name}\": {value}");
            assert!(text.contains(&member), "the guide says `{member}`");
            request["context"][name] = value.clone();
        }
        let (example, answer) = (parsed(example), stack.api.check(&request).await.expect(200));
        assert_eq!(answer["verdict"], verdict);
        same_shape(verdict, &example, &answer);
        same_decision(&example, &answer);
        for member in ["reason", "risk_score", "guardrails", "guardrail_checks", "constraints_applied", "issues"] {
            assert_eq!(example[member], answer[member], "{verdict}: {member}");
        }
    }
}

#[test]
fn an_outdated_example_in_a_document_is_detected() {
    let real = serde_json::json!({"a": 1, "b": [{"c": "x"}], "at": ["goal"]});
    let found = |example: Value| {
        let mut found = vec![];
        differences("it", &example, &real, &mut found);
        found
    };
    assert!(found(serde_json::json!({"b": [{"c": "other"}], "a": 2})).is_empty());
    assert_eq!(found(serde_json::json!({"a": 1.5, "b": []})).len(), 2);
    assert_eq!(found(serde_json::json!({"a": 1, "b": [{"d": "x"}], "more": null})).len(), 3);
}
