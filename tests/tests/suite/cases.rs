//! The verdicts that we owe, over real HTTPS, in one process and on NATS.

use std::collections::BTreeSet;

use serde_json::Value;
use stage0_tests::{Api, Stack};

fn cases() -> Vec<Value> {
    let text = include_str!("../../../policies/baseline/cases.json");
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(cases.len() > 120, "{} cases", cases.len());
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

async fn judge(api: &Api, cases: &[Value]) {
    let mut wrong = Vec::new();
    for case in cases {
        let answer = api.check(&own_run(case)).await;
        let expected: Vec<_> = case["expect"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let codes: BTreeSet<_> =
            answer.body["issues"].as_array().into_iter().flatten().map(|i| i["code"].as_str().unwrap()).collect();
        let owed: Vec<_> = case["codes"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        let verdict = answer.body["verdict"].as_str().unwrap_or("none");
        if answer.status != 200 || !expected.contains(&verdict) || !owed.iter().all(|code| codes.contains(code)) {
            wrong.push(format!("{}: {verdict} {codes:?}, owed {expected:?} {owed:?}: {}", case["id"], answer.text));
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
