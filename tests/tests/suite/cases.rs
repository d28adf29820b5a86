//! The verdicts that we owe, over real HTTPS, in one process and on NATS.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stage0_tests::{Answer, Api, Stack};

fn cases() -> Vec<Value> {
    let files = [
        include_str!("../../../policies/baseline/cases.json"),
        include_str!("../../../policies/baseline/cases-2.json"),
    ];
    let cases: Vec<Value> = files.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).unwrap()).collect();
    assert!(cases.len() > 410, "{} cases", cases.len());
    // A case with a clock of its own is the pack's to judge; from outside there is only now.
    cases.into_iter().filter(|case| case.get("evaluated_at").is_none()).collect()
}

/// Each case is a run of its own, also where two name the same.
fn own_run(case: &Value) -> Value {
    let mut request = case["request"].clone();
    for place in ["/context/run_id", "/context/loop_state/run_id"] {
        if let Some(run) = request.pointer_mut(place).filter(|run| run.is_string()) {
            *run = format!("{} of {}", run.as_str().unwrap(), case["id"]).into();
        }
    }
    request
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

/// Whether an answer is what a case owes.
fn met(case: &Value, answer: &Answer) -> Result<(), String> {
    let said = match answer.status {
        422 => answer.body["message"].to_string() + &answer.body["errors"].to_string(),
        _ => ["issues", "reason", "clarifying_questions"].map(|member| answer.body[member].to_string()).join(" "),
    };
    if let Some(text) = texts(&case["says"]).into_iter().find(|text| !said.contains(text)) {
        return Err(format!("does not say {text}"));
    }
    let expected = case["expect"].as_array().unwrap();
    if answer.status == 422 {
        return if expected.contains(&json!(422)) { Ok(()) } else { Err("is refused".to_owned()) };
    }
    if answer.status != 200 || !expected.contains(&answer.body["verdict"]) {
        return Err(format!("{} is not one of {expected:?}", answer.body["verdict"]));
    }
    let issues = answer.body["issues"].as_array().unwrap();
    let codes: BTreeSet<_> = issues.iter().map(|issue| issue["code"].as_str().unwrap()).collect();
    if let Some(code) = texts(&case["codes"]).into_iter().find(|code| !codes.contains(code)) {
        return Err(format!("{code} is not among {codes:?}"));
    }
    let any = texts(&case["codes_any"]);
    if !any.is_empty() && !any.iter().any(|code| codes.contains(code)) {
        return Err(format!("none of {any:?} is among {codes:?}"));
    }
    if let Some(code) = texts(&case["absent_codes"]).into_iter().find(|code| codes.contains(code)) {
        return Err(format!("{code} is among {codes:?}"));
    }
    Ok(())
}

async fn judge(api: &Api, cases: &[Value]) {
    let mut wrong = Vec::new();
    for case in cases {
        let answer = api.check(&own_run(case)).await;
        if let Err(why) = met(case, &answer) {
            wrong.push(format!("{}: {why}: {}", case["id"], answer.text));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test]
async fn every_case_gets_its_verdict_in_one_process() {
    let stack = Stack::build().dev().await;
    judge(&stack.api, &cases()).await;
}

#[tokio::test]
async fn every_case_gets_its_verdict_on_nats() {
    let stack = Stack::build().evaluators(2).nats().await;
    judge(&stack.api, &cases()).await;
}
