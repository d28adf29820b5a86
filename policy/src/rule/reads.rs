//! What the conditions of a rule read: the facts that they name, and what a rule about them must say.
//!
//! INVARIANT: a rule about a run says what holds without one, and no rule passes because a fact was not told.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::facts::{Attribute, Attributes, CUSTOM, Group, RUN_NAMED};
use crate::vocabulary::Edition;

/// Every `context.<name>` and `context has <name>` of a rule.
#[derive(Debug, Default)]
struct Named {
    names: Vec<String>,
    /// Those of `has`.
    asked: Vec<String>,
}

/// The facts that a policy reads, and its faults; `json` is Cedar's own form of the policy.
pub(super) fn attributes(json: &Value, edition: Edition, wrong: &mut Vec<String>) -> Attributes {
    let mut named = Named::default();
    named.collect(json);
    let mut attributes = Attributes::default();
    for name in &named.names {
        match Attribute::of_edition(name, edition) {
            Ok(attribute) => attributes.insert(attribute),
            Err(unknown) => wrong.push(format!("`context.{name}` {unknown}")),
        }
    }
    // A gateway that does not tell who asks would make `has` false and so pass the rule; without it the rule fails.
    for name in &named.asked {
        let group = Attribute::parse(name).map(Attribute::group);
        if matches!(group, Some(Group::Caller | Group::Run)) {
            wrong.push(format!(
                "`context has {name}` must be left out: every check has the fact, and a rule that cannot read it denies"
            ));
        }
    }
    let of_run: Vec<Attribute> = attributes.iter().filter(|attribute| attribute.group() == Group::Run).collect();
    let is_run_named = |attribute: &&Attribute| attribute.name() == RUN_NAMED;
    if let (Some(first), None) =
        (of_run.iter().find(|one| !is_run_named(one)), of_run.iter().find(|one| is_run_named(one)))
    {
        let name = first.name();
        wrong.push(format!(
            "`context.{name}` counts nothing without a run, so say what holds then: in `unless` write \
             `context.run_named && …`, in `when` write `!context.run_named || …`"
        ));
    }
    attributes
}

/// The members of `context.custom` that a policy names; none where it reads the record as a whole, as to compare it.
pub(super) fn custom_members(json: &Value) -> Option<BTreeSet<String>> {
    let mut members = BTreeSet::new();
    collect_custom(json, &mut members).then_some(members)
}

/// Whether every use of the record names a member.
fn collect_custom(json: &Value, members: &mut BTreeSet<String>) -> bool {
    match json {
        Value::Object(operators) => operators.iter().all(|(operator, operands)| {
            let path = path(operands);
            let (of_context, of_custom) = match operands.get("left") {
                Some(left) => (is_context(left), is_custom(left)),
                None => (false, false),
            };
            match path.as_slice() {
                [member, ..] if of_custom => {
                    members.insert((*member).to_owned());
                    true
                }
                [CUSTOM, member, ..] if of_context => {
                    members.insert((*member).to_owned());
                    true
                }
                // `context has custom` holds for every request of a pack that declares members.
                [CUSTOM] if of_context => operator == "has",
                _ => collect_custom(operands, members),
            }
        }),
        Value::Array(items) => items.iter().all(|item| collect_custom(item, members)),
        _ => true,
    }
}

/// What an operator names of the record on its left: one member, or a path of them.
fn path(operands: &Value) -> Vec<&str> {
    match operands.get("attr") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is_context(json: &Value) -> bool {
    json.get("Var").and_then(Value::as_str) == Some("context")
}

/// Whether it is `context.custom`.
fn is_custom(json: &Value) -> bool {
    json.get(".").is_some_and(|access| access.get("left").is_some_and(is_context) && path(access) == [CUSTOM])
}

impl Named {
    fn collect(&mut self, json: &Value) {
        match json {
            Value::Object(members) => {
                for (operator, operands) in members {
                    let left = operands.get("left").and_then(|left| left.get("Var")).and_then(Value::as_str);
                    if let (Some("context"), Some(name)) = (left, operands.get("attr")) {
                        let path = name.as_array().and_then(|path| path.first());
                        if let Some(name) = path.unwrap_or(name).as_str() {
                            self.add(name, operator == "has");
                        }
                    }
                    self.collect(operands);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            _ => {}
        }
    }

    fn add(&mut self, name: &str, is_asked: bool) {
        let lists = [Some(&mut self.names), is_asked.then_some(&mut self.asked)];
        for list in lists.into_iter().flatten() {
            if !list.iter().any(|known| known == name) {
                list.push(name.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    fn read(condition: &str, edition: Edition) -> (Vec<&'static str>, Vec<String>) {
        let policy: Policy = format!("forbid (principal, action, resource) when {{ {condition} }};").parse().unwrap();
        let mut wrong = Vec::new();
        let attributes = attributes(&policy.to_json().unwrap(), edition, &mut wrong);
        (attributes.iter().map(Attribute::name).collect(), wrong)
    }

    fn names(condition: &str) -> Vec<&'static str> {
        let (names, wrong) = read(condition, Edition::Second);
        assert_eq!(wrong, Vec::<String>::new(), "{condition}");
        names
    }

    fn fault(condition: &str) -> String {
        let (_, wrong) = read(condition, Edition::Second);
        assert_eq!(wrong.len(), 1, "{condition}: {wrong:?}");
        wrong[0].clone()
    }

    #[test]
    fn every_fact_that_a_condition_names_is_found() {
        assert_eq!(names("context.bare || (context has role && context.role == \"sre\")"), ["role", "bare"]);
        assert_eq!(names("context.custom has amount && context.custom.amount > 500"), ["custom"]);
        assert_eq!(names("context has custom.amount && context.custom.amount > 500"), ["custom"]);
        assert_eq!(names("if context.bare then true else context[\"goal_vague\"]"), ["bare", "goal_vague"]);
        assert_eq!(names("context.declared.contains(\"run_calls\")"), ["declared"]);
    }

    #[test]
    fn members_of_custom_are_found_by_name_and_the_whole_record_is_all_of_them() {
        let members = |condition: &str| {
            let text = format!("forbid (principal, action, resource) when {{ {condition} }};");
            let policy: Policy = text.parse().unwrap();
            let members = custom_members(&policy.to_json().unwrap());
            members.map(|members| members.into_iter().collect::<Vec<_>>().join(","))
        };
        let named = |names: &str| Some(names.to_owned());
        assert_eq!(members("context.bare"), named(""));
        assert_eq!(members("context.custom has a && context.custom.b > 500"), named("a,b"));
        assert_eq!(members("context has custom.a && context.custom[\"b c\"]"), named("a,b c"));
        assert_eq!(members("context has custom && context.custom.a.contains(\"custom\")"), named("a"));
        assert_eq!(
            members("if context.custom.a then context.custom.b else context.tools.contains(\"x\")"),
            named("a,b")
        );
        for whole in [
            "context.custom == {\"a\": 1}",
            "context.custom has a && [context.custom].contains({\"a\": 1})",
            "(if context.bare then context.custom else context.custom).a",
        ] {
            assert_eq!(members(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_fact_that_does_not_exist_is_named() {
        assert_eq!(fault("context.mood"), "`context.mood` is no fact that the evaluator computes");
        let near = fault("context.effect_clases.contains(\"high\")");
        assert!(near.ends_with("did you mean `effect_classes`?"), "{near}");
        let (_, wrong) = read("context.tools.contains(\"a\")", Edition::First);
        assert!(wrong[0].starts_with("`context.tools` is no fact"), "{wrong:?}");
    }

    #[test]
    fn a_rule_about_a_run_says_what_holds_without_one() {
        for fact in ["run_allowed > 3", "run_approved", "run_calls.send_email >= 3", "run_last_verdict == \"DENY\""] {
            let fault = fault(&format!("context.{fact}"));
            assert!(fault.contains("in `unless` write `context.run_named && …`"), "{fault}");
            assert!(fault.ends_with("in `when` write `!context.run_named || …`"), "{fault}");
            assert!(!names(&format!("!context.run_named || context.{fact}")).is_empty());
        }
        assert_eq!(names("context.run_named"), ["run_named"]);
    }

    #[test]
    fn no_rule_asks_whether_the_caller_was_told() {
        for fact in ["key_name", "groups", "account"] {
            let fault = fault(&format!("context has {fact} && context.bare"));
            assert!(fault.starts_with(&format!("`context has {fact}` must be left out")), "{fault}");
        }
        assert_eq!(names("context has role && context.bare"), ["role", "bare"], "a fact that may be absent");
    }
}
