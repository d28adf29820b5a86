//! Findings about the conditions of rules, as their authors wrote them.
//!
//! Two conditions are compared part by part. Equal parts mean the same; that different parts do is not looked for, so
//! that every finding is right.

use std::collections::BTreeSet;

use cedar_policy::Policy;
use serde_json::Value;
use stage0_contract::Effect;

use super::{Finding, Lint};
use crate::cedar_text::{self, Condition};
use crate::facts::{self, FactRow};
use crate::files::Fault;
use crate::pack::{Pack, rekeyed};
use crate::rule::Rule;

/// A rule of the pack itself.
pub(super) struct Own<'p> {
    pub(super) rule: &'p Rule,
    trigger: String,
    conditions: Vec<Condition>,
    /// What must hold for it to apply, the trigger included.
    needed: BTreeSet<String>,
    /// Cedar's own form of it.
    pub(super) json: Value,
}

pub(super) fn own(pack: &Pack) -> Vec<Own<'_>> {
    let policies = pack.sources.iter().filter_map(|source| rekeyed(source)).flatten();
    let own = |policy: Policy| {
        let rule = pack.rules.get::<str>(policy.id().as_ref())?;
        if rule.inherited.is_some() { None } else { Own::of(&policy, rule) }
    };
    policies.filter_map(own).collect()
}

impl<'p> Own<'p> {
    fn of(policy: &Policy, rule: &'p Rule) -> Option<Self> {
        let trigger = policy.annotation("trigger").unwrap_or("always").to_owned();
        let conditions = cedar_text::conditions(&policy.to_cedar()?);
        let mut needed: BTreeSet<String> = BTreeSet::new();
        for condition in &conditions {
            match (condition.is_unless, condition.parts.as_slice()) {
                (false, parts) => needed.extend(parts.iter().map(|part| bare(part).to_owned())),
                (true, [part]) => {
                    needed.insert(opposite(part));
                }
                (true, parts) => {
                    needed.insert(format!("!({})", parts.join(" && ")));
                }
            }
        }
        if trigger != "always" {
            needed.insert(format!("trigger {trigger}"));
            let is_flag = |row: &FactRow| row.name == trigger && row.is_trigger && row.cedar_type == Some("Bool");
            if facts::table().any(|row| is_flag(&row)) {
                needed.insert(format!("context.{trigger}"));
            }
        }
        Some(Self { rule, trigger, conditions, needed, json: policy.to_json().ok()? })
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(&self.rule.file, message).at(self.rule.line).rule(&self.rule.id)
    }

    /// Whether it applies wherever `other` would apply if the check named a run, and names none.
    pub(super) fn demands_a_run_for(&self, other: &Self) -> bool {
        let mut needed = self.needed.clone();
        needed.remove("!context.run_named") && needed.is_subset(&other.needed) && self.rule.effect != Effect::Advise
    }

    fn parts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.conditions.iter().flat_map(|one| one.parts.iter().map(|part| (part.as_str(), one.is_unless)))
    }
}

pub(super) fn findings(own: &[Own<'_>]) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in own {
        found.extend(never_applies(rule));
        found.extend(own.iter().find_map(|other| shadowed(rule, other)));
        found.extend(absent_members(rule, own));
    }
    found
}

fn never_applies(own: &Own<'_>) -> Option<Finding> {
    let not_the_trigger = opposite(&format!("context.{}", own.trigger));
    let message = if own.needed.contains(&not_the_trigger) {
        format!("it never applies: its condition has `{not_the_trigger}`, and its trigger is `{}`", own.trigger)
    } else {
        let part = own.needed.iter().find(|part| own.needed.contains(&opposite(part)))?;
        format!("it never applies: its condition has both `{part}` and `{}`", opposite(part))
    };
    Some(Lint::NeverApplies.finding(own.fault(message).help("take one of the two out, or join them by `||`")))
}

/// Whether `other` applies wherever `own` does, so that `own` changes nothing.
fn shadowed(own: &Own<'_>, other: &Own<'_>) -> Option<Finding> {
    let (rule, by) = (own.rule, other.rule);
    if rule.id == by.id || !other.needed.is_subset(&own.needed) {
        return None;
    }
    let place = format!("`{}` ({}:{})", by.id, by.file, by.line);
    let is_same = own.needed == other.needed;
    // Of two equal rules the later one is reported.
    let is_later = (&rule.file, rule.line) > (&by.file, by.line);
    let adds_nothing = rule.code == by.code && strictness(rule.effect) <= strictness(by.effect);
    let fault = match is_same {
        true if is_later => own.fault(format!("it has the condition of {place}")).help("make one rule of the two"),
        false if adds_nothing => {
            let message =
                format!("wherever it applies, {place} does, with the same code and the same effect or a stricter one");
            own.fault(message).help("take it out, or give it a code of its own")
        }
        _ => return None,
    };
    Some(Lint::ShadowedRule.finding(fault))
}

fn strictness(effect: Effect) -> u8 {
    match effect {
        Effect::Advise => 0,
        Effect::Defer => 1,
        Effect::Deny => 2,
    }
}

/// Members of `context` that a caller may leave out to pass.
fn absent_members(own: &Own<'_>, all: &[Own<'_>]) -> Vec<Finding> {
    if own.rule.effect == Effect::Advise {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (part, is_unless) in own.parts() {
        let Some(member) = asked_for(part).filter(|_| !is_unless) else { continue };
        let is_demanded = |other: &Own<'_>| {
            other.parts().any(|(part, is_unless)| {
                let denied = part.strip_prefix('!').map(bare).and_then(asked_for);
                denied.or(asked_for(part).filter(|_| is_unless)) == Some(member)
            })
        };
        if !all.iter().any(is_demanded) {
            let message = format!("an action without `context.{member}` passes it");
            let help =
                format!("add a rule with `!(context.custom has {member})` that defers, or --allow absent-member");
            found.push(Lint::AbsentMember.finding(own.fault(message).help(help)));
        }
    }
    found
}

/// `amount` of `context.custom has amount`.
fn asked_for(part: &str) -> Option<&str> {
    let member = bare(part).strip_prefix("context.custom has ")?.trim();
    member.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some(member)
}

/// Without brackets around all of it.
fn bare(part: &str) -> &str {
    let part = part.trim();
    let Some(inner) = part.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return part };
    let mut depth = 0;
    let closes_early = inner.chars().any(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    if closes_early || inner.contains('"') { part } else { bare(inner) }
}

/// The part that holds where this one does not.
fn opposite(part: &str) -> String {
    let part = bare(part);
    match part.strip_prefix('!') {
        Some(rest) if is_one(bare(rest)) || bare(rest) != rest => bare(rest).to_owned(),
        Some(_) | None if is_one(part) => format!("!{part}"),
        Some(_) | None => format!("!({part})"),
    }
}

/// Whether it is one fact, so that `!` before it needs no brackets.
fn is_one(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opposite_of_a_part_is_found_in_every_spelling() {
        assert_eq!(opposite("context.a"), "!context.a");
        assert_eq!(opposite("!context.a"), "context.a");
        assert_eq!(opposite("!(context.a == 1)"), "context.a == 1");
        assert_eq!(opposite("context.a == 1"), "!(context.a == 1)");
        assert_eq!(opposite("(context.a == 1)"), "!(context.a == 1)");
        // `!` binds tighter than `==`.
        assert_eq!(opposite("!context.a == context.b"), "!(!context.a == context.b)");
        assert_eq!(opposite("(context.a) || (context.b)"), "!((context.a) || (context.b))");
    }

    #[test]
    fn a_member_that_is_asked_for_is_known_by_name() {
        assert_eq!(asked_for("context.custom has amount"), Some("amount"));
        assert_eq!(asked_for("(context.custom has amount)"), Some("amount"));
        assert_eq!(asked_for("context.custom has amount || context.a"), None);
        assert_eq!(asked_for("context has max_records"), None);
    }
}
