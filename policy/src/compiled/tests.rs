//! Conditions that are compiled, what they come to, and what is left to Cedar.
//!
//! That they come to the same in Cedar is shown by generated rules in `tests/suite/equivalence/random_rules.rs`.

use cedar_policy::Policy;
use serde_json::json;
use stage0_contract::CheckRequest;

use super::*;
use crate::engine::Engine;
use crate::pack::Pack;

fn compiled(condition: &str) -> Option<Compiled> {
    let text = format!("forbid (principal, action, resource) when {{ {condition} }};");
    Compiled::of(&text.parse::<Policy>().unwrap().to_json().unwrap())
}

fn holds(condition: &str) -> Result<bool, Failed> {
    let body = json!({"goal": "Deploy it now", "side_effects": ["deploy"], "environment": "staging",
        "context": {"current_iteration": 2}});
    let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
    let facts = engine.facts(&CheckRequest::parse(body).unwrap(), 0).unwrap();
    compiled(condition).unwrap_or_else(|| panic!("{condition} is not compiled")).holds(&facts)
}

#[test]
fn every_rule_of_the_baseline_and_of_the_templates_is_compiled() {
    let templates = Pack::templates().map(|name| Pack::template(name).unwrap().unwrap());
    for pack in std::iter::once(Pack::embedded().unwrap()).chain(templates) {
        assert_eq!(pack.compiled_count(), pack.rule_count(), "{}", pack.version());
    }
}

#[test]
fn a_part_behind_the_one_that_decides_cannot_fail() {
    for (condition, expected) in [
        ("context.high_effect && context.role == \"sre\"", Err(Failed)),
        ("!context.high_effect && context.role == \"sre\"", Ok(false)),
        ("context.high_effect || context.role == \"sre\"", Ok(true)),
        ("context has role && context.role == \"sre\"", Ok(false)),
        ("if context.high_effect then context.iteration == 2 else context.role == \"sre\"", Ok(true)),
        ("if context.bare then context.iteration == 2 else context.role == \"sre\"", Err(Failed)),
    ] {
        assert_eq!(holds(condition), expected, "{condition}");
    }
}

#[test]
fn a_number_that_overflows_and_an_operand_of_another_type_fail_the_rule() {
    for condition in [
        "context.iteration * 9223372036854775807 > 0",
        "context.iteration + 9223372036854775807 > 0",
        "-9223372036854775807 - context.iteration < 0",
        "context.approval_status > 5",
        "context.iteration && true",
        "context.iteration.contains(5)",
        "context.iteration like \"2\"",
        "context.environments.containsAll(\"staging\")",
    ] {
        assert_eq!(holds(condition), Err(Failed), "{condition}");
    }
    for condition in ["context.iteration != \"2\"", "!(context.environments == context.iteration)"] {
        assert_eq!(holds(condition), Ok(true), "{condition}: of two types, so never equal");
    }
}

#[test]
fn what_is_not_known_exactly_is_left_to_cedar() {
    let many_numbers = format!("[{}].contains(context.iteration)", vec!["1"; 33].join(", "));
    let deep = format!("context.iteration{} > 0", " + 1".repeat(101));
    for condition in [
        "context.now.offset(duration(\"1d\")) > datetime(\"2026-01-01\")",
        "context.now > datetime(\"2026-02-30\")",
        "context.now.toTime() < duration(\"5h\")",
        "ip(\"10.0.0.1\").isIpv4()",
        "principal == Agent::\"caller\"",
        "principal is Agent",
        "context.custom == {\"amount\": 1}",
        "{\"amount\": 1}.amount == context.iteration",
        "context.mood",
        "context has mood",
        "context has custom.amount.cents",
        "context.role.length == 1",
        "(if context.bare then context.custom else context.custom).amount > 1",
        "[[\"a\"]].contains([\"a\"])",
        "decimal(\"1.0\").lessThan(decimal(\"1.00001\"))",
        &many_numbers,
        &deep,
    ] {
        assert!(compiled(condition).is_none(), "{condition}");
    }
    let few_numbers = many_numbers.replacen("1, ", "", 1);
    let chain = format!("context.bare{}", " || context.bare".repeat(400));
    let decimal = "decimal(\"1.0\").lessThan(decimal(\"1.0001\"))";
    let moment = "context.now > datetime(\"2026-01-01\")";
    for condition in ["context.bare", moment, "context has custom.amount", decimal, &few_numbers, &chain] {
        assert!(compiled(condition).is_some(), "{condition}");
    }
}

#[test]
fn only_a_rule_that_forbids_for_every_caller_is_compiled() {
    let of = |text: &str| Compiled::of(&text.parse::<Policy>().unwrap().to_json().unwrap());
    assert!(of("forbid (principal, action, resource);").is_some());
    for text in [
        "permit (principal, action, resource);",
        "forbid (principal == Agent::\"a\", action, resource);",
        "forbid (principal, action == Action::\"check\", resource);",
        "forbid (principal, action, resource is Proposal);",
    ] {
        assert!(of(text).is_none(), "{text}");
    }
}
