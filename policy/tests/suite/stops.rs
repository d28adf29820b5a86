//! Stops: what each scope covers, in every disguise, and the nearest check that it does not cover.

use serde_json::{Value, json};
use stage0_contract::{AccountRules, Actor, CheckRequest, KeyId, Severity, Stop, StopId, StopScope, Verdict};
use stage0_policy::{Answer, Engine, EvaluateError, HeldApproval, RunSnapshot, TimeLimit};

use super::approvals::{Case, NOON, asker, baseline, cases, check};

fn stop(scope: StopScope, value: Option<&str>) -> Stop {
    Stop {
        id: StopId::parse("stp_1").unwrap(),
        account: None,
        scope,
        value: value.map(str::to_owned),
        reason: "the provider is down".to_owned(),
        created_at: "2026-03-16T11:00:00Z".parse().unwrap(),
        until: None,
        key_id: KeyId::parse("key_9").unwrap(),
        member_id: None,
    }
}

fn with(stops: Vec<Stop>) -> AccountRules {
    AccountRules { stops, ..AccountRules::default() }
}

fn is_stopped(engine: &Engine, stop: Stop, body: &Value) -> bool {
    let request = CheckRequest::parse(body.clone()).unwrap();
    engine.is_stopped(&request, &asker(with(vec![stop])), NOON).is_some()
}

fn harmless() -> Value {
    json!({"goal": "Summarise the sales report", "success_criteria": ["a summary"], "tools": ["grep"],
        "environment": "staging", "context": {}})
}

fn answer(engine: &Engine, body: &Value, stops: Vec<Stop>) -> Answer {
    let check = check(body, NOON, with(stops));
    engine.answer(&check, Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap()
}

#[test]
fn a_stopped_check_is_denied_with_the_stop_and_its_reason_and_nothing_else() {
    let engine = baseline();
    let free = answer(&engine, &harmless(), Vec::new());
    assert_eq!((free.evaluation.decision.verdict, free.stopped), (Verdict::Allow, false));
    for (scope, value, name) in [
        (StopScope::Account, None, "account"),
        (StopScope::All, None, "all"),
        (StopScope::Environment, Some("staging"), "environment"),
        (StopScope::Tool, Some("grep"), "tool"),
        (StopScope::Key, Some("key_2"), "key"),
    ] {
        let stopped = answer(&engine, &harmless(), vec![stop(scope, value)]);
        let decision = &stopped.evaluation.decision;
        assert!(stopped.stopped && stopped.terms.is_none() && stopped.evaluation.approval_source.is_none());
        assert_eq!(decision.verdict, Verdict::Deny, "{name}");
        assert_eq!(decision.issues.len(), 1, "{name}");
        let issue = &decision.issues[0];
        assert_eq!((issue.code.as_str(), issue.severity), ("STOPPED", Severity::Critical));
        assert_eq!(json!(issue.details), json!({"stop": "stp_1", "scope": name}));
        assert!(issue.message.ends_with(": the provider is down"), "{}", issue.message);
        assert_eq!(json!(issue.next_action), json!("stop"));
        assert_eq!(issue.rule, format!("stop.{name}"));
        assert_eq!(decision.reason, format!("STOPPED: {}", issue.message));
        assert!(decision.high_risk && decision.defer_questions.is_empty() && decision.guardrail_checks.is_empty());
        assert!(stopped.evaluation.recordable.is_some(), "it is recorded like any other");
    }
}

#[test]
fn every_case_is_denied_under_a_stop_of_the_account_whatever_is_held() {
    let engine = baseline();
    for Case { id, body, at } in cases() {
        let check = check(&body, at, with(vec![stop(StopScope::Account, None)]));
        for held in [None, Some(HeldApproval::Approved { by: "mem_1", at }), Some(HeldApproval::Denied)] {
            let stopped = engine.answer(&check, None, held, TimeLimit::NONE).unwrap();
            assert!(stopped.stopped, "{id}");
            let codes: Vec<&str> = stopped.evaluation.decision.issues.iter().map(|i| i.code.as_str()).collect();
            assert_eq!((stopped.evaluation.decision.verdict, codes), (Verdict::Deny, vec!["STOPPED"]), "{id}");
        }
    }
}

#[test]
fn a_request_with_wrong_fields_is_refused_before_a_stop_is_judged() {
    let engine = baseline();
    let mut body = harmless();
    body["constraints"] = json!(["allowed_change_window: blue_moon"]);
    let check = check(&body, NOON, with(vec![stop(StopScope::Account, None)]));
    let refused = engine.answer(&check, None, None, TimeLimit::NONE);
    assert!(matches!(refused, Err(EvaluateError::Invalid(errors)) if errors.len() == 1));
}

#[test]
fn a_stop_ends_at_its_time() {
    let engine = baseline();
    let until = |time: &str| Stop { until: Some(time.parse().unwrap()), ..stop(StopScope::Account, None) };
    for (time, holds) in [
        ("2026-03-16T12:00:01Z", true),
        ("2026-03-16T12:00:00.5Z", true),
        ("2026-03-16T12:00:00Z", false),
        ("2026-03-16T11:59:59Z", false),
    ] {
        assert_eq!(answer(&engine, &harmless(), vec![until(time)]).stopped, holds, "{time}");
    }
    let both = vec![until("2026-03-16T11:00:00Z"), stop(StopScope::Tool, Some("grep"))];
    assert!(answer(&engine, &harmless(), both).stopped, "one that is over hides no other");
}

#[test]
fn a_stop_of_an_environment_covers_its_names_in_every_member_and_checks_that_name_none() {
    let engine = baseline();
    let stopped = |value: &str, body: Value| is_stopped(&engine, stop(StopScope::Environment, Some(value)), &body);
    let in_top = |name: &str| json!({"goal": "g g", "environment": name});
    for value in ["production", "prod", " PRD ", "Ｐｒｏｄ", "pro\u{200b}duction", "live"] {
        for name in ["production", "prod", "PRD", "live", "Production ", "ｐｒｏｄ", "pr\u{200b}od", "pr\u{43e}d"] {
            assert!(stopped(value, in_top(name)), "{value} {name}");
            for member in ["environment", "target_environment"] {
                assert!(stopped(value, json!({"goal": "g g", "context": {member: name}})), "{value} {member} {name}");
            }
        }
        assert!(stopped(value, json!({"goal": "g g"})), "names none");
        assert!(stopped(value, json!({"goal": "g g", "environment": " ", "context": {"environment": "\u{200b}"}})));
        for unreadable in [json!(["staging"]), json!(7), json!({"name": "staging"}), json!(false)] {
            let body = json!({"goal": "g g", "environment": "staging", "context": {"target_environment": unreadable}});
            assert!(stopped(value, body), "{value} {unreadable}");
        }
        let body = json!({"goal": "g g", "environment": "staging", "context": {"target_environment": "prod"}});
        assert!(stopped(value, body), "the other member counts too");
        // The nearest checks that go on.
        for name in ["staging", "stage", "production2", "preprod", "pre-production", "development"] {
            assert!(!stopped(value, in_top(name)), "{value} {name}");
        }
    }
    for (value, name) in [("eu-west", "EU_West"), ("eu-west", "euWest"), ("euWest", "eu west")] {
        assert!(stopped(value, in_top(name)), "{value} {name}");
    }
    assert!(!stopped("eu-west", in_top("eu-west-1")) && !stopped("eu-west", in_top("eu--west")));
    assert!(stopped("pr\u{43e}d", in_top("staging")), "a stop whose name is ambiguous may be any");
}

#[test]
fn a_stop_of_a_tool_covers_every_reading_of_its_name_and_the_current_tool() {
    let engine = baseline();
    let stopped = |value: &str, body: Value| is_stopped(&engine, stop(StopScope::Tool, Some(value)), &body);
    let listed = |tool: &str| json!({"goal": "g g", "environment": "staging", "tools": ["grep", tool]});
    let current = |tool: Value| json!({"goal": "g g", "tools": ["grep"], "context": {"current_tool": tool}});
    for (value, tool) in [
        ("delete_repo", "delete_repo"),
        ("delete_repo", "DELETE-REPO"),
        ("delete_repo", "deleteRepo"),
        ("deleteRepo", "delete repo"),
        ("deleteRepo", "deleterepo"),
        ("delete_repo", "mcp__github__delete-repo"),
        ("delete_repo", "MCP__GitHub__deleteRepo"),
        ("delete_repo", "mcp__git__hub__delete_repo"),
        ("delete_repo", "github.delete_repo"),
        ("delete_repo", "tools/delete_repo"),
        ("delete_repo", "delete_repo(name)"),
        ("delete_repo", "ｄｅｌｅｔｅ＿ｒｅｐｏ"),
        ("delete_repo", "delete\u{200b}_repo"),
        ("delete_repo", " delete_repo\u{feff}"),
        ("delete_repo", "d\u{435}lete_repo"),
        ("mcp__github__delete_repo", "mcp__GitHub__deleteRepo"),
        ("mcp__github", "mcp__github__anything"),
        ("delete_*", "mcp__github__deleteRepo"),
        ("*", "grep"),
        ("b\u{430}sh", "grep"),
    ] {
        assert!(stopped(value, listed(tool)), "{value} {tool}");
        assert!(stopped(value, current(json!(tool))), "{value} {tool}");
    }
    for unreadable in [json!(["delete_repo"]), json!(7), json!({})] {
        assert!(stopped("delete_repo", current(unreadable.clone())), "{unreadable}");
    }
    for (value, tool) in [
        ("delete_repo", "delete_repos"),
        ("delete_repo", "undelete_repo"),
        ("delete_repo", "get_repo"),
        ("delete_repo", "delete__repo"),
        ("mcp__github__delete_repo", "mcp__gitlab__delete_repo"),
        ("mcp__github", "mcp__github2__get"),
        ("bash", "bash_history"),
    ] {
        assert!(!stopped(value, listed(tool)), "{value} {tool}");
        assert!(!stopped(value, current(json!(tool))), "{value} {tool}");
    }
    assert!(!stopped("delete_repo", json!({"goal": "g g"})), "no tool is proposed");
    assert!(!stopped("delete_repo", json!({"goal": "delete_repo", "context": {"current_tool": null}})));
    assert!(!stopped("delete_repo", json!({"goal": "g g", "context": {"recent_tools": ["delete_repo"]}})), "past");
}

#[test]
fn a_stop_of_a_key_covers_its_rotations_and_no_other_key() {
    let engine = baseline();
    let request = CheckRequest::parse(harmless()).unwrap();
    let stopped = |value: &str, asker: Actor| {
        let rules = with(vec![stop(StopScope::Key, Some(value))]);
        engine.is_stopped(&request, &Actor { rules, ..asker }, NOON).is_some()
    };
    // `asker` has the second key of the workload `key_1`.
    for value in ["key_1", "key_2", " key_2 "] {
        assert!(stopped(value, asker(AccountRules::default())), "{value}");
    }
    for value in ["key_3", "key_", "key_22", "KEY_2"] {
        assert!(!stopped(value, asker(AccountRules::default())), "{value}");
    }
}

#[test]
fn a_stop_that_does_not_say_what_it_is_for_covers_everything() {
    let engine = baseline();
    for scope in [StopScope::Environment, StopScope::Tool, StopScope::Key] {
        for value in [None, Some(" ")] {
            assert!(is_stopped(&engine, stop(scope, value), &harmless()), "{scope:?}");
        }
        assert!(!is_stopped(&engine, stop(scope, Some("other")), &harmless()), "{scope:?}");
    }
}

#[test]
fn a_hundred_stops_of_tools_are_judged_at_once_and_the_right_one_is_named() {
    let engine = baseline();
    let mut stops: Vec<Stop> = (0..99).map(|n| stop(StopScope::Tool, Some(&format!("tool_{n}")))).collect();
    stops.push(Stop { id: StopId::parse("stp_last").unwrap(), ..stop(StopScope::Tool, Some("grep")) });
    let stopped = answer(&engine, &harmless(), stops.clone());
    assert_eq!(stopped.evaluation.decision.issues[0].details["stop"], "stp_last");
    stops.pop();
    assert!(!answer(&engine, &harmless(), stops).stopped);
}

#[test]
fn a_secret_in_the_reason_of_a_stop_or_in_the_request_is_not_shown() {
    let engine = baseline();
    let key = format!("{}{}", "AKIA", "IOSFODNN7EXAMPLE");
    let reason = format!("leaked {key}");
    let mut body = harmless();
    body["environment"] = json!(format!("staging {key}"));
    let stopped = answer(&engine, &body, vec![Stop { reason, ..stop(StopScope::Account, None) }]);
    let shown = serde_json::to_string(&stopped.evaluation).unwrap();
    assert!(stopped.stopped && !shown.contains(&key), "{shown}");
    assert!(shown.contains("leaked "), "{shown}");
}

#[test]
fn the_vocabulary_of_a_pack_has_the_codes_that_no_rule_gives() {
    let reference = baseline().pack().reference().clone();
    let codes = reference["codes"].as_array().unwrap();
    for (code, severity) in [("STOPPED", "CRITICAL"), ("POLICY_ERROR", "HIGH"), ("APPROVAL_STATUS_INVALID", "HIGH")] {
        let told = codes.iter().find(|told| told["code"] == code).unwrap_or_else(|| panic!("{code}"));
        assert_eq!(told["severity"], severity);
        assert!(told["meaning"].is_string() && told["remedy"].is_string(), "{told}");
    }
}
