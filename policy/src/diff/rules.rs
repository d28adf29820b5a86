//! Rules that were added, left out or changed.
//!
//! Annotations are compared by what they mean, so that a default that is written out is no difference, and conditions
//! as Cedar has parsed them, so that comments and line breaks are none.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::Policy;
use serde::Serialize;
use serde_json::Value;
use stage0_contract::{Effect, NextAction};

use super::{Change, Direction};
use crate::approval::Terms;
use crate::cedar_text::{self, Condition};
use crate::facts::Trigger;
use crate::pack::{Pack, milder_terms, rekeyed};
use crate::rule::Rule;

/// A rule that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleDiff {
    /// Its `@id`.
    pub rule: String,
    /// What became of it.
    pub change: Change,
    /// What that does.
    pub direction: Direction,
    /// What the rule does, in the new pack if that has it.
    pub effect: Effect,
    /// Its `@code`.
    pub code: String,
    /// Its `@message`.
    pub message: String,
    /// Its file: in the new pack, or in the old one if it is removed. That of an inherited rule begins with its pack.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// Annotations that differ, if it is changed.
    pub annotations: Vec<AnnotationDiff>,
    /// Its condition, if that differs.
    pub condition: Option<ConditionDiff>,
}

/// An annotation that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnnotationDiff {
    /// Its name, without `@`.
    pub name: &'static str,
    /// Its value in the old pack; `None` if it is not there and has no default.
    pub from: Option<String>,
    /// Its value in the new pack.
    pub to: Option<String>,
    /// What that does.
    pub direction: Direction,
}

/// Two conditions of a rule, as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConditionDiff {
    /// Each `when` and `unless` of the old pack.
    pub from: Vec<String>,
    /// Those of the new pack.
    pub to: Vec<String>,
    /// What that does.
    pub direction: Direction,
}

/// A rule with its policy.
struct Parsed<'p> {
    rule: &'p Rule,
    policy: Policy,
}

pub(super) fn differences(old: &Pack, new: &Pack) -> Vec<RuleDiff> {
    let [before, after] = [old, new].map(parsed);
    let ids: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let one = |id: &str| match (before.get(id), after.get(id)) {
        (Some(before), Some(after)) => changed(before, after, &new.approvals.terms),
        (None, Some(after)) => Some(only(after.rule, Change::Added)),
        (Some(before), None) => Some(only(before.rule, Change::Removed)),
        (None, None) => None,
    };
    ids.into_iter().filter_map(one).collect()
}

fn parsed(pack: &Pack) -> BTreeMap<&str, Parsed<'_>> {
    let policies = pack.sources.iter().filter_map(|source| rekeyed(source)).flatten();
    policies
        .filter_map(|policy| {
            let rule = pack.rules.get::<str>(policy.id().as_ref())?;
            Some((rule.id.as_str(), Parsed { rule, policy }))
        })
        .collect()
}

/// Every rule forbids, so that one more lets less pass: advice denies if a request asks for it with `pro`.
fn only(rule: &Rule, change: Change) -> RuleDiff {
    let direction = if change == Change::Added { Direction::Stricter } else { Direction::Looser };
    difference(rule, change, direction)
}

fn difference(rule: &Rule, change: Change, direction: Direction) -> RuleDiff {
    RuleDiff {
        rule: rule.id.clone(),
        change,
        direction,
        effect: rule.effect,
        code: rule.code.to_string(),
        message: rule.message.clone(),
        file: rule.file.clone(),
        line: rule.line,
        annotations: Vec::new(),
        condition: None,
    }
}

fn changed(before: &Parsed<'_>, after: &Parsed<'_>, defaults: &Terms) -> Option<RuleDiff> {
    let annotations = annotations(before, after, defaults);
    let condition = condition(&before.policy, &after.policy);
    if annotations.is_empty() && condition.is_none() {
        return None;
    }
    let directions = annotations.iter().map(|one| one.direction).chain(condition.iter().map(|one| one.direction));
    let direction = directions.fold(Direction::Neutral, Direction::and);
    Some(RuleDiff { annotations, condition, ..difference(after.rule, Change::Changed, direction) })
}

fn annotations(before: &Parsed<'_>, after: &Parsed<'_>, defaults: &Terms) -> Vec<AnnotationDiff> {
    let [mut from, mut to] = [before, after].map(values);
    let names: BTreeSet<&'static str> = from.keys().chain(to.keys()).copied().collect();
    // Terms that the pack changes for all of its rules are a difference of the pack.
    let [old, new] = [before, after].map(|parsed| over(&parsed.rule.terms, defaults));
    let terms = [milder_terms(&old, &new), milder_terms(&new, &old)];
    let one = |name: &'static str| {
        let (from, to) = (from.remove(name), to.remove(name));
        let of_terms = Direction::of(terms[0].contains(&name), terms[1].contains(&name));
        let direction = direction(name, before.rule, after.rule).and(of_terms);
        (from != to).then_some(AnnotationDiff { name, from, to, direction })
    };
    names.into_iter().filter_map(one).collect()
}

/// The annotations of a rule with their defaults, as they count.
fn values(parsed: &Parsed<'_>) -> BTreeMap<&'static str, String> {
    let Parsed { rule, policy } = parsed;
    let Terms { approvers, quorum, within, valid_for, escalation, reason_required } = &rule.terms;
    let list = |items: &[String]| Some(items.join(", "));
    let given = |name: &str| policy.annotation(name).map(str::to_owned);
    let sorted = |name: &str| {
        let mut items: Vec<&str> = policy.annotation(name)?.split(',').map(str::trim).collect();
        items.sort_unstable();
        Some(items.join(", "))
    };
    let values = [
        ("effect", Some(word(&rule.effect))),
        ("code", Some(rule.code.to_string())),
        ("severity", Some(word(&rule.severity))),
        ("message", Some(rule.message.clone())),
        ("question", rule.question.clone()),
        ("family", Some(rule.family.clone())),
        ("trigger", Some(policy.annotation("trigger").unwrap_or(ALWAYS).to_owned())),
        ("next_action", Some(word(&rule.next_action))),
        ("weight", Some(rule.weight.to_string())),
        ("details", sorted("details")),
        ("fields", sorted("fields")),
        ("check", rule.check.clone()),
        ("about", given("about")),
        ("final", rule.is_final.then(|| "yes".to_owned())),
        ("approvers", approvers.as_deref().and_then(list)),
        ("quorum", quorum.map(|quorum| quorum.to_string())),
        ("approve_within", within.map(duration)),
        ("approval_valid_for", valid_for.map(duration)),
        ("escalate_after", escalation.as_ref().map(|escalation| duration(escalation.after_seconds))),
        ("escalate_to", escalation.as_ref().and_then(|escalation| list(&escalation.groups))),
        ("approval_reason", reason_required.then(|| "required".to_owned())),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

const ALWAYS: &str = "always";

/// A value as it is written in an annotation.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn duration(seconds: i64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let exact = units.into_iter().find(|(unit, _)| seconds % unit == 0);
    exact.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

fn over(rule: &Terms, defaults: &Terms) -> Terms {
    Terms {
        approvers: rule.approvers.clone().or_else(|| defaults.approvers.clone()),
        quorum: rule.quorum.or(defaults.quorum),
        within: rule.within.or(defaults.within),
        valid_for: rule.valid_for.or(defaults.valid_for),
        escalation: rule.escalation.clone().or_else(|| defaults.escalation.clone()),
        reason_required: rule.reason_required || defaults.reason_required,
    }
}

/// What a changed annotation does, except one about the terms of an approval.
fn direction(name: &str, before: &Rule, after: &Rule) -> Direction {
    match name {
        "effect" => Direction::of_greater(&before.effect, &after.effect),
        "severity" => Direction::of_greater(&before.severity, &after.severity),
        // It adds to the risk score, by which callers decide, too.
        "weight" => Direction::of_greater(&before.weight, &after.weight),
        // Where a rule asks for an approval, one can be given.
        "next_action" => {
            let asks = |rule: &Rule| rule.next_action == NextAction::RequestApproval;
            Direction::of_greater(&!asks(before), &!asks(after))
        }
        "trigger" => match [before, after].map(|rule| Trigger::parse(ALWAYS) == Some(rule.trigger)) {
            [true, false] => Direction::Looser,
            [false, true] => Direction::Stricter,
            _ => Direction::Unclear,
        },
        _ => Direction::Neutral,
    }
}

fn condition(before: &Policy, after: &Policy) -> Option<ConditionDiff> {
    let conditions = |policy: &Policy| policy.to_json().ok()?.get_mut("conditions").map(Value::take);
    if conditions(before) == conditions(after) {
        return None;
    }
    let [from, to] = [before, after].map(|policy| cedar_text::conditions(&policy.to_string()));
    let direction = Direction::of(!applies_wherever(&from, &to), !applies_wherever(&to, &from));
    let written = |conditions: &[Condition]| conditions.iter().map(written).collect();
    Some(ConditionDiff { from: written(&from), to: written(&to), direction })
}

fn written(condition: &Condition) -> String {
    let word = if condition.is_unless { "unless" } else { "when" };
    format!("{word} {{ {} }}", condition.parts.join(" && "))
}

/// Whether conditions hold wherever others do, as far as that shows: none has more parts that must hold.
fn applies_wherever(others: &[Condition], conditions: &[Condition]) -> bool {
    fn parts(condition: &Condition) -> BTreeSet<&str> {
        condition.parts.iter().map(String::as_str).collect()
    }
    let whens = |of: &'_ [Condition]| -> BTreeSet<String> {
        of.iter().filter(|one| !one.is_unless).flat_map(|one| one.parts.clone()).collect()
    };
    let unless = |of: &'_ [Condition]| -> Vec<BTreeSet<String>> {
        let unless = of.iter().filter(|one| one.is_unless);
        unless.map(|one| parts(one).into_iter().map(str::to_owned).collect()).collect()
    };
    let excluded = unless(others);
    whens(conditions).is_subset(&whens(others))
        && unless(conditions).iter().all(|one| excluded.iter().any(|other| other.is_subset(one)))
}
