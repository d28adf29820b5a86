//! `stage0 policy explain`: the decision of a pack about an action or a case, and for each rule why it applies or not.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::bail;
use stage0_contract::{ApprovalTerms, CheckRequest, Effect, FieldError, Requirement, RunId};
use stage0_policy::{
    CaseExplanation, Engine, Explanation, Pack, PartExplanation, Proposed, RuleExplanation, RuleOutcome,
};

use super::{ensure_pack, faults};
use crate::approvals::length;
use crate::args::policy::ExplainArgs;
use crate::out::{self, plain};
use crate::{action, decision};

const BUILT_IN: &str = "baseline";
/// A longer value of a fact is cut.
const MAX_VALUE: usize = 80;
/// As many rules are shown as nearly apply.
const MAX_NEAR: usize = 5;

pub(super) fn explain(arguments: &ExplainArgs) -> anyhow::Result<()> {
    let ExplainArgs { pack, file, case, all, json, .. } = arguments;
    let explanation = match (file, case) {
        (Some(file), _) => of_action(pack, file, &proposed(arguments))?,
        (None, case) => of_case(pack, case.as_deref().unwrap_or_default())?,
    };
    if *json { out::json(&explanation) } else { Ok(out::decision(&for_people(&explanation, *all))?) }
}

fn proposed(arguments: &ExplainArgs) -> Proposed {
    let ExplainArgs { at, key_name, group, member, .. } = arguments;
    Proposed {
        at: at.unwrap_or_else(jiff::Timestamp::now).as_second(),
        key_name: key_name.clone().unwrap_or_default(),
        member: member.clone().unwrap_or_default(),
        groups: group.clone(),
    }
}

fn of_action(pack: &Path, file: &Path, proposed: &Proposed) -> anyhow::Result<Explanation> {
    let is_folder = pack != Path::new(BUILT_IN);
    if is_folder {
        ensure_pack(pack, false)?;
    }
    let request = match CheckRequest::parse(action::read(file)?.value) {
        Ok(request) => request,
        Err(rejected) => bail!("the action is refused{}", list(&rejected.errors)),
    };
    let explained = if is_folder {
        Pack::explain_action(pack, &request, proposed).map_err(|refused| faults::refused(pack, refused))?
    } else {
        Engine::new(Pack::embedded()?)?.explain_for(&request, proposed).into()
    };
    if matches!(RunId::of(&request), Ok(Some(_))) {
        out::stderr_line(
            "the counts of the run are not known here: this is decided as its first check; a case has `run`",
        );
    }
    match explained {
        CaseExplanation::Decided(explanation) => Ok(*explanation),
        CaseExplanation::Refused(errors) => bail!("the policy refuses the action{}", list(&errors)),
    }
}

/// A pack whose cases fail is explained too: that is when its author asks.
fn of_case(pack: &Path, id: &str) -> anyhow::Result<Explanation> {
    ensure_pack(pack, false)?;
    match Pack::explain_case(pack, id).map_err(|refused| faults::refused(pack, refused))? {
        Some(CaseExplanation::Decided(explanation)) => Ok(*explanation),
        Some(CaseExplanation::Refused(errors)) => bail!("the request of the case is refused{}", list(&errors)),
        None => bail!("`{}` has no case `{}`", pack.display(), plain(id)),
    }
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(|error| format!("\n  {}: {}", plain(&error.path), plain(&error.message))).collect()
}

fn for_people(explanation: &Explanation, all: bool) -> String {
    let Explanation { facts, triggers, rules, decision, .. } = explanation;
    let of = |wanted: RuleOutcome| rules.iter().filter(move |rule| rule.outcome == wanted);
    let near = |rule: &&RuleExplanation| all || (rule.inherited.is_none() && rule.is_near_miss());
    let mut missed: Vec<&RuleExplanation> = of(RuleOutcome::DoesNotApply).filter(near).collect();
    if !all {
        missed.sort_by_key(|rule| distance(rule));
        missed.truncate(MAX_NEAR);
    }
    let heading = if all { "Rules that do not apply" } else { "Rules that nearly apply" };
    let mut text = [
        decision::for_people(decision),
        section("Rules that apply", of(RuleOutcome::Applies).map(|rule| of_rule(rule, all))),
        section("Rules that fail, which denies", of(RuleOutcome::Failed).map(|rule| of_rule(rule, true))),
        section(heading, missed.into_iter().map(|rule| of_rule(rule, all))),
    ]
    .concat();
    if all {
        text.push_str(&section("Rules that are not evaluated", of(RuleOutcome::NotEvaluated).map(not_evaluated)));
        text.push_str(&section("Facts", facts.iter().map(|(name, value)| plain(&format!("{name} = {value}")))));
        text.push_str(&section("Triggers that hold", triggers.iter().map(ToString::to_string)));
    } else {
        let others = rules.len() - of(RuleOutcome::Applies).count();
        text.push_str(&format!("\n\n{others} of {} rules do not apply; --all shows why, and every fact", rules.len()));
    }
    text
}

/// How far a rule is from applying: by the parts that do not hold, and then by how early the first of them stands. A
/// rule about another tool fails at its beginning.
fn distance(rule: &RuleExplanation) -> (usize, Reverse<usize>) {
    let fails = |part: &PartExplanation| part.holds == Some(false);
    let failed = rule.parts.iter().filter(|part| fails(part)).count();
    (failed, Reverse(rule.parts.iter().position(fails).unwrap_or(0)))
}

fn section(heading: &str, items: impl Iterator<Item = String>) -> String {
    let lines: String = items.map(|item| format!("\n  {}", item.replace('\n', "\n  "))).collect();
    if lines.is_empty() { lines } else { format!("\n\n{heading}{lines}") }
}

/// The rule, and the parts of its condition: all of them, or those that do not hold.
fn of_rule(rule: &RuleExplanation, all: bool) -> String {
    let mut text = title(rule);
    let shown = |part: &&PartExplanation| all || rule.outcome == RuleOutcome::Applies || part.holds == Some(false);
    for part in rule.parts.iter().filter(shown) {
        let holds = match part.holds {
            Some(true) => "met",
            Some(false) => "not met",
            None => "open",
        };
        let unless = if part.unless { "unless " } else { "" };
        text.push_str(&format!("\n    {holds:<8}{unless}{}", plain(&part.part)));
        let facts: Vec<String> = part.facts.iter().map(|(name, value)| fact(name, value)).collect();
        if !facts.is_empty() {
            text.push_str(&format!("\n            {}", facts.join(", ")));
        }
    }
    text
}

fn not_evaluated(rule: &RuleExplanation) -> String {
    format!("{}\n    its trigger `{}` does not hold: {}", title(rule), rule.trigger, rule.trigger_means)
}

fn title(rule: &RuleExplanation) -> String {
    let effect = match rule.effect {
        Effect::Deny => "denies",
        Effect::Defer => "defers",
        Effect::Advise => "advises",
    };
    let place = format!("{}:{}", plain(&rule.file), rule.line);
    let needs = rule.approval.as_ref().map_or_else(String::new, |terms| format!("\n    {}", needs(terms)));
    format!("{} {effect} ({place})\n    {}{needs}", plain(&rule.rule), plain(&rule.message))
}

/// Such as "needs 2 approvals from the group `finance` within 1 h".
fn needs(terms: &ApprovalTerms) -> String {
    let demands: Vec<String> = terms.requirements.iter().map(demand).collect();
    format!("needs {} within {}", demands.join(" and "), length(terms.within_seconds))
}

/// Such as "one approval from the group `finance`".
pub(super) fn demand(requirement: &Requirement) -> String {
    plain(&stage0_policy::demand(requirement))
}

fn fact(name: &str, value: &serde_json::Value) -> String {
    let name = plain(name);
    if value.is_null() {
        return format!("{name} is absent");
    }
    let value = plain(&value.to_string());
    match value.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{name} = {}…", value.get(..end).unwrap_or_default()),
        None => format!("{name} = {value}"),
    }
}
