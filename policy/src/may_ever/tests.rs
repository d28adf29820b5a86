//! Which facts of a question are certain.
//!
//! That nothing is certain which a call can change is tested on generated calls, in `tests/suite/equivalence`.

use super::*;
use crate::engine::Engine;
use crate::facts::table;
use crate::pack::Pack;
use serde_json::json;
use stage0_contract::Actor;

#[test]
fn every_fact_and_every_trigger_is_in_the_table() {
    for row in table() {
        assert!(certainty(row.name).is_some(), "{}", row.name);
    }
    assert!(certainty("weather").is_none());
}

#[test]
fn no_fact_of_a_run_of_the_time_or_of_a_goal_is_ever_certain() {
    let open = ["run", "time"];
    for row in table().filter(|row| open.contains(&row.group)) {
        assert!(matches!(certainty(row.name), Some(Open)), "{}", row.name);
    }
    for name in ["approval_status", "secret_found", "criteria_missing", "targets", "window_open", "malformed"] {
        assert!(matches!(certainty(name), Some(Open)), "{name}");
    }
}

/// The facts of a question that are certain.
fn known(body: &Value) -> Vec<&'static str> {
    let mut whole = json!({"goal": "anything", "tools": ["grep"]});
    whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let asker: Actor = serde_json::from_value(json!({"key_id": "k", "holder": {"workload": "k"}})).unwrap();
    let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
    let asked = EvaluateRequest {
        request_id: stage0_contract::RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: stage0_contract::AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(whole).unwrap(),
        evaluated_at: 1_773_662_400,
        operation: None,
        caller: stage0_contract::CallerTexts::default(),
        max_runs: None,
        asker: Some(asker),
    };
    let circumstances = Circumstances { groups: crate::facts::Groups::ALL, ..engine.circumstances(&asked, None, None) };
    let facts = Facts::read(&asked.request, engine.pack(), &circumstances, TimeLimit::NONE).unwrap();
    let question = Question {
        request: &asked.request,
        context: asked.request.context.as_ref(),
        facts: &facts,
        vocabulary: &engine.pack().vocabulary,
    };
    Attribute::all().filter(|attribute| question.knows(*attribute)).map(Attribute::name).collect()
}

fn knows(body: &Value, fact: &str) -> bool {
    known(body).contains(&fact)
}

#[test]
fn what_a_question_leaves_out_is_open_and_what_it_gives_is_known() {
    for (fact, without, with) in [
        ("environment", json!({}), json!({"environment": "qa"})),
        ("environments", json!({}), json!({"context": {"target_environment": "qa"}})),
        ("environments", json!({"environment": " "}), json!({"environment": "qa"})),
        ("role", json!({"context": {"user_role": "dev"}}), json!({"context": {"actor_role": "dev"}})),
        ("role", json!({"context": {"actor_role": null}}), json!({"context": {"actor_role": "", "user_role": "dev"}})),
        ("tenant", json!({"context": {}}), json!({"context": {"tenant_id": "t"}})),
        ("agent", json!({}), json!({"context": {"agent_id": null}})),
        ("mcp_servers", json!({"tools": ["mcp__a__b"]}), json!({"context": {"active_mcp_servers": []}})),
        ("ticket_named", json!({}), json!({"context": {"ticket_id": "T-1"}})),
        ("context_present", json!({"context": {}}), json!({"context": {"a": 1}})),
        ("guardrail_declared", json!({}), json!({"constraints": ["allowed_tools: grep"]})),
        (
            "tools_outside",
            json!({"constraints": ["allowed_tools: grep"]}),
            json!({"constraints": ["allowed_tools: a"]}),
        ),
        ("tools_denied", json!({"constraints": ["denied_tools: a"]}), json!({"constraints": ["denied_tools: grep"]})),
        ("undeclared_effect", json!({}), json!({"side_effects": ["read"]})),
        ("undeclared_effect", json!({"side_effects": []}), json!({"side_effects": [], "tools": ["delete_rows"]})),
        ("goal_vague", json!({"side_effects": ["none"]}), json!({"side_effects": ["deploy"]})),
        ("tool_count", json!({"tools": ["b\u{430}sh"]}), json!({"tools": ["bash"]})),
        (
            "environment_denied",
            json!({"environment": "qa", "constraints": ["denied_environment: dev"]}),
            json!({"environment": "qa", "constraints": ["denied_environment: qa"]}),
        ),
    ] {
        assert_eq!([knows(&without, fact), knows(&with, fact)], [false, true], "{fact} {without} {with}");
    }
    let always = known(&json!({}));
    for fact in ["tools", "tool_names", "effects", "effect_classes", "high_effect", "sensitive_tool", "groups", "bare"]
    {
        assert!(always.contains(&fact), "{fact}");
    }
}

#[test]
fn a_name_that_a_later_list_may_spell_otherwise_is_open() {
    let environments = |name: &str| knows(&json!({"environment": name}), "environments");
    assert_eq!(["qa", "production", "prod"].map(environments), [true; 3]);
    assert_eq!(["our_zone", "our-zone", "ourZone"].map(environments), [false; 3]);
    let role = |name: &str| knows(&json!({"context": {"actor_role": name}}), "role");
    assert_eq!(["dev", "platform_admin", "platformAdmin"].map(role), [true, false, false]);
    // Why: the list decides how the fact is spelled.
    let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
    let spelled = |constraints: Value| {
        let body = json!({"goal": "g", "environment": "our_zone", "constraints": constraints});
        engine.facts(&CheckRequest::parse(body).unwrap(), 0).unwrap().access.environments
    };
    assert_eq!(spelled(json!([])), ["our_zone"]);
    assert_eq!(spelled(json!(["allowed_environment: ourZone"])), ["ourzone"]);
}
