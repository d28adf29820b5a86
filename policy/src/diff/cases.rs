//! Cases whose verdict differs: all cases of both packs, decided by both.
//!
//! A case that both packs have is decided once. A request that a pack refuses is not decided, so its action does not
//! run; that is no more and no less than a DENY.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use stage0_contract::{Decision, Verdict};

use super::Direction;
use crate::engine::Engine;
use crate::files::PackError;
use crate::pack::{KnownCase, Pack};
use crate::secrets::REDACTED;

/// Cases that are decided.
const MAX_CASES: usize = 4_000;
/// Characters of a goal that are shown.
const MAX_GOAL: usize = 200;

/// What became of the cases of both packs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cases {
    /// Those that both packs decide.
    pub decided: usize,
    /// Those that only the old pack decides. The new one refuses their requests.
    pub only_old_decides: usize,
    /// Those that only the new pack decides.
    pub only_new_decides: usize,
    /// Those whose requests both refuse.
    pub none_decides: usize,
    /// Those beyond the first 4,000, which were not looked at.
    pub left_out: usize,
    /// Those whose verdict differs: the looser ones first, then the stricter ones, then those between a DENY and a
    /// refusal.
    pub changed: Vec<CaseDiff>,
}

/// A case whose verdict differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseDiff {
    /// Its `id`.
    pub case: String,
    /// Name and number of the pack that it is from.
    pub pack: String,
    /// The beginning of the goal; redacted where the request holds a secret.
    pub goal: String,
    /// The verdict of the old pack; null if it refuses the request.
    pub from: Option<Verdict>,
    /// The verdict of the new pack.
    pub to: Option<Verdict>,
    /// What that does.
    pub direction: Direction,
    /// The rules that decided in the old pack.
    pub old_rules: Vec<DecidedBy>,
    /// The rules that decided in the new pack.
    pub new_rules: Vec<DecidedBy>,
}

/// A rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecidedBy {
    /// Its `@id`, or the evaluator's own name.
    pub rule: String,
    /// The code of its issue.
    pub code: Option<String>,
    /// Its file, if the pack has it.
    pub file: Option<String>,
    /// Its line, from 1.
    pub line: Option<usize>,
}

/// Of the packs, the old one first.
pub(super) fn differences(engines: &[Engine; 2]) -> Result<Cases, PackError> {
    let [old, new] = engines;
    let mut known = new.pack().known_cases()?;
    known.extend(old.pack().known_cases()?);
    let mut seen = HashSet::new();
    known.retain(|case| seen.insert(case.input.clone()));
    let mut cases = Cases { left_out: known.len().saturating_sub(MAX_CASES), ..Cases::default() };
    for case in known.iter().take(MAX_CASES) {
        let decisions = [case.decide(old), case.decide(new)];
        match &decisions {
            [Some(_), Some(_)] => cases.decided += 1,
            [Some(_), None] => cases.only_old_decides += 1,
            [None, Some(_)] => cases.only_new_decides += 1,
            [None, None] => cases.none_decides += 1,
        }
        cases.changed.extend(difference(case, &decisions, engines));
    }
    cases.changed.sort_by_key(order);
    Ok(cases)
}

fn difference(case: &KnownCase, decisions: &[Option<Decision>; 2], engines: &[Engine; 2]) -> Option<CaseDiff> {
    let [from, to] = decisions.each_ref().map(|decision| decision.as_ref().map(|decision| decision.verdict));
    if from == to {
        return None;
    }
    let [old, new] = engines;
    let shown = |text: &str| new.mask(&old.mask(text));
    let has_secret = engines.iter().any(|engine| case.has_secret(engine.pack()));
    let goal = case.request().map(|request| request.goal.as_str()).unwrap_or_default();
    let goal = if has_secret { REDACTED.to_owned() } else { shown(goal).chars().take(MAX_GOAL).collect() };
    let rules = |decision: &Option<Decision>, pack: &Pack| {
        decision.as_ref().map_or_else(Vec::new, |decision| deciding(decision, pack))
    };
    let strength = |verdict: Option<Verdict>| verdict.unwrap_or(Verdict::Deny);
    Some(CaseDiff {
        case: shown(case.id()),
        pack: case.pack.clone(),
        goal,
        from,
        to,
        direction: Direction::of_greater(&strength(from), &strength(to)),
        old_rules: rules(&decisions[0], old.pack()),
        new_rules: rules(&decisions[1], new.pack()),
    })
}

/// The largest step first: of looser ones DENY to ALLOW, DENY to DEFER, DEFER to ALLOW, of stricter ones the reverse.
fn order(case: &CaseDiff) -> impl Ord + use<> {
    let refused = case.from.is_none() || case.to.is_none();
    let strength = |verdict: Option<Verdict>| verdict.unwrap_or(Verdict::Deny);
    let (from, to) = (strength(case.from), strength(case.to));
    let (gravest, mildest) = (from.max(to), from.min(to));
    (case.direction, refused, Reverse(gravest), mildest, case.pack.clone(), case.case.clone())
}

/// The rules that a decision names as deciding, in the order of their names.
fn deciding(decision: &Decision, pack: &Pack) -> Vec<DecidedBy> {
    let (_, named) = decision.decision_trace_summary.rsplit_once("deciding: ").unwrap_or_default();
    // An ALLOW is decided by no rule.
    let ids: BTreeSet<&str> = named.split(", ").filter(|id| !id.is_empty() && *id != "none").collect();
    let decided = |id: &str| {
        let rule = pack.rules.get(id);
        let of_issue = || decision.issues.iter().find(|issue| issue.rule == id).map(|issue| issue.code.to_string());
        DecidedBy {
            rule: id.to_owned(),
            code: rule.map(|rule| rule.code.to_string()).or_else(of_issue),
            file: rule.map(|rule| rule.file.clone()),
            line: rule.map(|rule| rule.line),
        }
    };
    ids.into_iter().map(decided).collect()
}
