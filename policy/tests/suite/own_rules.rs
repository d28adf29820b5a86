//! The rules that organisations ask for first, as a pack: no refunds above 500, `psql` only in staging, `bot-1` may not
//! deploy, three e-mails a run, delete only after a read, release only after an approval.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use stage0_policy::{Fault, Pack, RunNeeds};

use super::facts::with_rules;
use super::packs::Broken;

fn fixture(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-rules");
    fs::read_to_string(folder.join(file)).unwrap()
}

fn pack() -> Broken {
    let pack = with_rules(&fixture("own.cedar"));
    let codes = pack.text("codes.toml");
    let codes = format!("{}{}", codes.split("\n[OWN]").next().unwrap(), fixture("codes-own.toml"));
    // A case of the baseline sends an e-mail without a run, which a rule of this pack denies.
    let cases = pack.text("cases.json").replace("\"current_tool\": \"sendEmail\"", "\"current_tool\": \"sendSms\"");
    pack.write("codes.toml", &codes).write("cases.json", &cases).write("cases-own.json", &fixture("cases-own.json"))
}

#[test]
fn the_first_rules_of_an_organisation_are_short_and_proven() {
    let pack = pack();
    let failed: Vec<_> = Pack::test(pack.folder.path()).unwrap().into_iter().filter(|case| !case.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let pack = Pack::from_dir(pack.folder.path()).unwrap();
    assert_eq!(pack.run_needs(), RunNeeds { calls: true, allowed: true, verdicts: false, targets: true });
}

/// The faults of the pack with one more case.
fn with_case(case: &Value) -> Vec<Fault> {
    let mut cases: Vec<Value> = serde_json::from_str(&fixture("cases-own.json")).unwrap();
    cases.push(case.clone());
    let pack = pack().write("cases-own.json", &json!(cases).to_string());
    Pack::from_dir(pack.folder.path()).err().map(|error| error.faults).unwrap_or_default()
}

#[test]
fn a_case_says_who_asks_and_what_its_run_did() {
    let case = |more: Value| {
        let mut case = json!({"id": "more", "expect": ["ALLOW"], "request": {"goal": "Read the report of last week",
            "success_criteria": ["read"], "side_effects": ["none"], "context": {"run_id": "r"}}});
        case.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        case
    };
    for good in [
        json!({}),
        json!({"caller": {}}),
        json!({"caller": {"account": "a", "key_id": "k", "key_name": "n", "workload": "k", "member": "", "owner": "m",
            "groups": ["g"]}}),
        json!({"run": {"calls": {"send_email": 2}, "allowed": 3, "denied": 0, "deferred": 0, "last_verdict": "ALLOW",
            "cost_usd": 1.5, "seconds": 60, "seconds_since_allowed": 5, "approved": false,
            "target_tools": {"record/7": ["read_record"]}}}),
    ] {
        assert_eq!(with_case(&case(good)), []);
    }
    for (bad, told) in [
        (json!({"caller": {"name": "x"}}), "unknown field `name`"),
        (json!({"run": {"call": {}}}), "unknown field `call`"),
        (json!({"run": {"calls": {"send_email": -1}}}), "`send_email` in `run` must not be negative"),
        (json!({"run": {"allowed": -1}}), "`allowed` in `run` must not be negative"),
        (json!({"run": {"last_verdict": "MAYBE"}}), "unknown variant `MAYBE`"),
        (json!({"run": {"cost_usd": -1}}), "`run.cost_usd` is out of range"),
        (json!({"run": {"target_tools": {"../x": []}}}), "cannot be read as a target"),
        (
            json!({"run": {}, "request": {"goal": "Read the report of last week", "success_criteria": ["read"]}}),
            "it has a `run`, and its request names none",
        ),
    ] {
        let faults = with_case(&case(bad));
        assert!(faults.iter().any(|fault| fault.message.contains(told)), "{told}: {faults:#?}");
    }
}

#[test]
fn the_run_of_a_case_counts_for_the_limits_that_its_request_declares() {
    let limited = |limit: &str, run: Value, expect: &str| {
        with_case(
            &json!({"id": "more", "expect": [expect], "run": run, "request": {"goal": "Read the report of last week",
            "success_criteria": ["read"], "side_effects": ["none"], "constraints": [limit], "tools": ["read_report"],
            "context": {"run_id": "r"}}}),
        )
    };
    for (limit, within, beyond) in [
        ("max_iterations: 3", json!({"allowed": 2}), json!({"allowed": 3})),
        ("same_tool_limit: 2", json!({"calls": {"read_report": 1}}), json!({"calls": {"read_report": 2}})),
        ("timeout: 60s", json!({"seconds": 30}), json!({"seconds": 90})),
        ("max_cost_usd: 2", json!({"cost_usd": 1}), json!({"cost_usd": 3})),
    ] {
        assert_eq!(limited(limit, within, "ALLOW"), [], "{limit}");
        assert_eq!(limited(limit, beyond.clone(), "ALLOW").len(), 1, "{limit}");
    }
}
