//! Properties that hold for every request, whatever it contains.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use stage0_contract::{CheckRequest, Decision, Severity, Spelling, Verdict};
use stage0_policy::{Engine, Pack};

const NOW: i64 = 1_773_662_400;

static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| Pack::embedded().unwrap());

fn decide(body: &Value) -> Option<Decision> {
    thread_local! {
        static ENGINE: Engine = Engine::new(Arc::clone(&PACK)).unwrap();
    }
    let request = CheckRequest::parse(body.clone()).ok()?;
    ENGINE.with(|engine| engine.decide(&request, NOW)).ok()
}

fn decided(body: &Value) -> Decision {
    decide(body).unwrap_or_else(|| panic!("{body} is decided"))
}

/// Known words, look-alikes of known words, and arbitrary texts.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,20}",
        prop::sample::select(vec![
            "deploy",
            "publish",
            "write",
            "loop",
            "notification",
            "d\u{435}ploy",
            "ｗｒｉｔｅ",
            "customer_impact",
            "requires_approval",
            "teleport",
            "shell",
            "admin",
            "staging",
            "production",
            "approved",
            "rejected",
            "password=hunter22",
            "..",
            "a/../b",
            "%2e%2e",
            "\u{200b}",
            "幫我",
        ])
        .prop_map(str::to_owned),
    ]
}

fn constraint() -> impl Strategy<Value = String> {
    prop_oneof![
        word(),
        prop::sample::select(vec![
            "approval_required",
            "require_approval_for: write",
            "required_role: admin",
            "allowed_environment: staging",
            "max_iterations: 3",
            "max_retries: 2",
            "timeout: 60s",
            "max_cost_usd: 1",
            "same_tool_limit: 1",
            "no_repeat_calls",
            "max_records: 5",
            "require_ticket",
            "business_hours_only",
            "rollback_plan_required",
            "mfa_required",
            "resource_scope: a/*",
            "allowed_mcp_servers: a",
            "tenant_isolation",
            "allowed_tools: shell",
            "read_only",
            "sandbox",
        ])
        .prop_map(str::to_owned),
    ]
}

fn evidence() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..12).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
        prop::collection::vec(word(), 0..4).prop_map(Value::from),
        prop::collection::vec(any::<u64>(), 0..3).prop_map(Value::from),
        Just(json!({"retry_count": 3, "repeated_tools": ["shell", "shell"], "elapsed_seconds": "x"})),
    ]
}

fn context() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "actor_role",
        "user_role",
        "approval_status",
        "approved_by",
        "customer_visible_approved",
        "environment",
        "target_environment",
        "resource_scope",
        "target_resources",
        "active_mcp_servers",
        "tenant_id",
        "target_tenants",
        "ticket_id",
        "rollback_plan",
        "mfa_verified",
        "record_count",
        "current_iteration",
        "retry_count",
        "elapsed_seconds",
        "estimated_cost_usd",
        "current_tool",
        "recent_tools",
        "cumulative_cost_usd",
        "loop_state",
        "password",
        "anything",
    ]);
    prop::collection::vec((name, evidence()), 0..8).prop_map(|members| {
        Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    })
}

prop_compose! {
    fn body()(
        goal in "\\PC{1,40}|help me think|deploy the service",
        criteria in prop::collection::vec(word(), 0..2),
        constraints in prop::collection::vec(constraint(), 0..5),
        tools in prop::collection::vec(word(), 0..3),
        side_effects in prop::collection::vec(word(), 0..3),
        context in prop::option::of(context()),
        pro in any::<bool>(),
    ) -> Value {
        let mut body = json!({"goal": goal, "success_criteria": criteria, "constraints": constraints, "tools": tools,
            "side_effects": side_effects, "pro": pro});
        if let Some(context) = context {
            body["context"] = context;
        }
        body
    }
}

fn approved(body: &Value) -> bool {
    body["context"]["approval_status"].as_str().is_some_and(|status| stage0_contract::visible(status) == "approved")
}

fn harmless(effect: &str) -> bool {
    // Repeats the vocabulary on purpose: an effect that is not listed here must never be allowed without an approval.
    // A dash alone means no effect.
    let dash = Spelling::of(effect).folded() == Some("_");
    dash || ["write", "loop", "customer_impact", "shell", "rejected"]
        .contains(&stage0_contract::visible(effect).as_str())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_a_consistent_decision(body in body()) {
        let Some(decision) = decide(&body) else { return Ok(()) };
        prop_assert!(!decision.reason.is_empty());
        prop_assert_eq!(decision.high_risk, decision.risk_score >= 61);
        match decision.verdict {
            Verdict::Allow => {
                prop_assert!(decision.risk_score <= 99);
                prop_assert!(decision.issues.iter().all(|i| i.severity < Severity::High));
                let effects = body["side_effects"].as_array().unwrap();
                let risky = effects.iter().any(|e| !harmless(e.as_str().unwrap()));
                prop_assert!(!risky || approved(&body), "a risky effect passed without approval");
            }
            Verdict::Defer => {
                prop_assert!(!decision.defer_questions.is_empty());
                prop_assert_eq!(&decision.defer_questions, &decision.clarifying_questions);
            }
            Verdict::Deny => prop_assert!(decision.defer_questions.is_empty()),
        }
        prop_assert!(decision.issues.iter().all(|i| i.code.as_str() != "POLICY_ERROR"));
        prop_assert_eq!(decide(&body), Some(decision), "the same request, the same decision");
    }

    #[test]
    fn repeating_a_constraint_never_weakens_a_verdict(body in body(), index in any::<prop::sample::Index>()) {
        let constraints = body["constraints"].as_array().unwrap();
        if constraints.is_empty() {
            return Ok(());
        }
        let mut twice = body.clone();
        twice["constraints"].as_array_mut().unwrap().push(index.get(constraints).clone());
        if let (Some(once), Some(twice)) = (decide(&body), decide(&twice)) {
            prop_assert!(twice.verdict >= once.verdict);
        }
    }

    #[test]
    fn no_word_of_a_request_with_a_secret_is_in_its_decision(marker in "[a-z]{12}") {
        let body = json!({
            "goal": format!("{marker} with password=hunter22"), "success_criteria": [&marker], "tools": [&marker],
            "constraints": [format!("required_role: {marker}"), format!("allowed_tools: {marker}"), &marker],
            "side_effects": [&marker], "environment": &marker,
            "context": {"actor_role": &marker, &marker: {"api_key": "abcd1234"}, "target_environment": &marker},
        });
        let decision = decided(&body);
        prop_assert_eq!(decision.verdict, Verdict::Deny);
        let text = serde_json::to_string(&decision).unwrap();
        prop_assert!(!text.contains(&marker) && !text.contains("hunter22") && !text.contains("abcd1234"), "{}", text);
    }
}

#[test]
fn an_overflowing_retry_count_is_never_allowed() {
    for context in [json!({"retry_count": 9.3e18}), json!({"retry_count": u64::MAX}), json!({"retry_count": 1e300})] {
        let body = json!({"goal": "two words", "constraints": ["max_retries: 3"], "context": context});
        assert_eq!(decided(&body).verdict, Verdict::Defer, "{body}");
    }
}

#[test]
fn issues_are_sorted_by_severity_and_guardrail_checks_are_reported() {
    let decision = decided(&json!({
        "goal": "Deploy it now", "side_effects": ["deploy"], "tools": ["shell"],
        "constraints": ["required_role: admin", "allowed_environment: staging"],
        "context": {"actor_role": "viewer", "environment": "staging"},
    }));
    let codes: Vec<&str> = decision.issues.iter().map(|i| i.code.as_str()).collect();
    assert_eq!(
        codes,
        ["ROLE_NOT_AUTHORIZED", "APPROVAL_REQUIRED", "SENSITIVE_TOOLS_NEED_CONSTRAINTS", "MISSING_SUCCESS_CRITERIA"]
    );
    let access = &decision.guardrail_checks["access"];
    assert!(!access["required_role"].satisfied && access["allowed_environment"].satisfied);
    assert_eq!(decision.guardrails, ["required_role: admin", "allowed_environment: staging"]);
    assert!(decision.reason.starts_with("ROLE_NOT_AUTHORIZED: "), "{}", decision.reason);
}

#[test]
fn an_issue_about_a_closed_change_window_names_its_next_opening() {
    let pack = Arc::clone(&PACK);
    let engine = Engine::new(pack).unwrap();
    let request = CheckRequest::parse(json!({"goal": "two words", "constraints": ["business_hours_only"]})).unwrap();
    // Saturday noon.
    let decision = engine.decide(&request, 1_773_489_600).unwrap();
    assert_eq!(decision.issues[0].details["next_opening"], "2026-03-16T09:00:00Z");
}
