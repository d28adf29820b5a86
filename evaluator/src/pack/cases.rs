//! `cases.json`: requests with the verdicts that the pack owes. A pack proves itself on them every time it is loaded.
//!
//! Owns the form of a case and the proof: every case passes, every rule is satisfied at least once, no trigger hides a satisfied rule,
//! and the facts of every case fit the schema.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::EntityUid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{CheckRequest, IssueCode, Verdict};

use super::Pack;
use super::fault::Fault;
use super::files::{CASES, Files, SCHEMA};
use super::rules;
use crate::engine::{self, Engine};
use crate::facts::{Attribute, Attributes};

/// Each case asks every rule, each time the pack is loaded.
const MAX_CASES: usize = 2_000;
/// A Monday at noon, UTC: when cases are judged that name no time.
const DEFAULT_TIME: i64 = 1_773_662_400;

/// A request and what it must come to.
#[derive(Debug)]
pub(crate) struct Case {
    id: String,
    expected: Expectation,
    request: CheckRequest,
    evaluated_at: i64,
}

/// What a case wants.
#[derive(Debug, Clone, Serialize)]
pub struct Expectation {
    /// Any of these.
    pub verdicts: Vec<Verdict>,
    /// All of these among the issues.
    pub codes: Vec<IssueCode>,
    /// None of these among the issues.
    pub absent_codes: Vec<IssueCode>,
}

/// How a case went.
#[derive(Debug, Clone, Serialize)]
pub struct CaseOutcome {
    /// The case.
    pub id: String,
    /// What it wants.
    pub expected: Expectation,
    /// What it came to; none when there was no decision.
    pub verdict: Option<Verdict>,
    /// The codes of its issues, each once.
    pub codes: Vec<IssueCode>,
    /// Why there was no decision.
    pub error: Option<String>,
    /// Whether the one is the other.
    pub passed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    id: String,
    /// Where the expectation comes from; for readers.
    #[serde(default, rename = "basis")]
    _basis: Option<String>,
    expect: Vec<Verdict>,
    #[serde(default)]
    codes: Vec<IssueCode>,
    #[serde(default)]
    absent_codes: Vec<IssueCode>,
    #[serde(default)]
    evaluated_at: Option<i64>,
    request: Value,
}

impl Case {
    /// Decides the case.
    pub(crate) fn run(&self, engine: &Engine) -> CaseOutcome {
        let mut outcome = CaseOutcome {
            id: self.id.clone(),
            expected: self.expected.clone(),
            verdict: None,
            codes: Vec::new(),
            error: None,
            passed: false,
        };
        match engine.decide(&self.request, self.evaluated_at) {
            Ok(decision) => {
                let codes: BTreeSet<IssueCode> = decision.issues.into_iter().map(|issue| issue.code).collect();
                let Expectation { verdicts, codes: wanted, absent_codes } = &self.expected;
                outcome.passed = verdicts.contains(&decision.verdict)
                    && wanted.iter().all(|code| codes.contains(code))
                    && !absent_codes.iter().any(|code| codes.contains(code));
                outcome.verdict = Some(decision.verdict);
                outcome.codes = codes.into_iter().collect();
            }
            Err(errors) => {
                let told: Vec<String> = errors.into_iter().map(|e| format!("{} {}", e.path, e.message)).collect();
                outcome.error = Some(told.join("; "));
            }
        }
        outcome
    }
}

impl CaseOutcome {
    fn complaint(&self) -> String {
        let list = |codes: &[IssueCode]| codes.iter().map(IssueCode::as_str).collect::<Vec<_>>().join(", ");
        let verdicts = self.expected.verdicts.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(" or ");
        let wanted = format!("wants {verdicts} with [{}]", list(&self.expected.codes));
        let without = if self.expected.absent_codes.is_empty() {
            String::new()
        } else {
            format!(" without [{}]", list(&self.expected.absent_codes))
        };
        let came = match (&self.error, self.verdict) {
            (Some(error), _) => error.clone(),
            (None, Some(verdict)) => format!("{verdict} with [{}]", list(&self.codes)),
            (None, None) => "nothing".to_owned(),
        };
        format!("the case {wanted}{without} and comes to {came}")
    }
}

/// Reads the cases and notes what is wrong with them.
pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Vec<Case>> {
    let text = files.needed(CASES, faults)?;
    let raw: Vec<RawCase> = match serde_json::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            faults.push(Fault::new(CASES, error.to_string()).at(error.line()));
            return None;
        }
    };
    if raw.is_empty() {
        faults.push(Fault::new(CASES, "there is no case: a pack proves itself"));
    }
    if raw.len() > MAX_CASES {
        faults.push(Fault::new(CASES, format!("there are {} cases, and may be {MAX_CASES}", raw.len())));
        return None;
    }
    let mut seen = HashSet::new();
    let mut cases = Vec::with_capacity(raw.len());
    for raw in raw {
        let fault = |message: String| Fault::new(CASES, message).at(line_of_case(text, &raw.id)).rule(&raw.id);
        if !seen.insert(raw.id.clone()) {
            faults.push(fault("its `id` is taken".to_owned()));
        }
        if raw.expect.is_empty() {
            faults.push(fault("it expects no verdict".to_owned()));
        }
        match CheckRequest::parse(raw.request.clone()) {
            Ok(request) => cases.push(Case {
                id: raw.id,
                expected: Expectation { verdicts: raw.expect, codes: raw.codes, absent_codes: raw.absent_codes },
                request,
                evaluated_at: raw.evaluated_at.unwrap_or(DEFAULT_TIME),
            }),
            Err(rejected) => {
                let told: Vec<String> = rejected.errors.iter().map(|e| format!("`{}` {}", e.path, e.message)).collect();
                faults.push(fault(format!("its request is refused: {}", told.join("; "))));
            }
        }
    }
    Some(cases)
}

/// Runs the cases and says what they do not prove.
pub(super) fn prove(pack: &Pack, engine: &Engine, files: &Files) -> Vec<Fault> {
    let text = files.get(CASES).unwrap_or_default();
    let mut faults = Vec::new();
    let mut satisfied: HashSet<String> = HashSet::new();
    for case in &pack.cases {
        let at = |message: String| Fault::new(CASES, message).at(line_of_case(text, &case.id)).rule(&case.id);
        let outcome = case.run(engine);
        if !outcome.passed {
            faults.push(at(outcome.complaint()));
        }
        let Ok(facts) = engine.facts(&case.request, case.evaluated_at) else { continue };
        let bucketed: BTreeSet<String> = engine.evaluate(&facts).matched.iter().map(|r| r.id.clone()).collect();
        for rule in engine.evaluate_all(&facts).matched {
            if !bucketed.contains(&rule.id) {
                let message = format!("its `@trigger` hides it in case `{}`", case.id);
                faults.push(Fault::new(&rule.file, message).at(rule.line).rule(&rule.id));
            }
        }
        satisfied.extend(bucketed);
    }
    for rule in pack.rules.values().filter(|rule| !satisfied.contains(&rule.id)) {
        let message = "no case satisfies it: an untested rule is no rule";
        faults.push(Fault::new(&rule.file, message).at(rule.line).rule(&rule.id));
    }
    faults.extend(misfits(pack, engine, files));
    faults
}

/// What the schema describes otherwise than the evaluator computes it.
fn misfits(pack: &Pack, engine: &Engine, files: &Files) -> Vec<Fault> {
    let mut faults = Vec::new();
    let Some(schema) = rules::schema(files, &mut faults) else { return faults };
    let Ok(action) = engine::ACTION.parse::<EntityUid>() else { return faults };
    let mut described = Attributes::default();
    for (index, name) in members(files.get(SCHEMA).unwrap_or_default()) {
        match Attribute::parse(name) {
            Some(attribute) => described.insert(attribute),
            None => {
                let message = format!("`{name}` is no fact that the evaluator computes");
                faults.push(Fault::new(SCHEMA, message).at(index + 1));
            }
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    let fits = |case: &&Case| {
        let Ok(facts) = engine.facts(&case.request, case.evaluated_at) else { return true };
        engine::context(&facts, described).is_ok_and(|context| context.validate(&schema, &action).is_ok())
    };
    if let Some(case) = pack.cases.iter().find(|case| !fits(case)) {
        let message = "a fact of this case has another type than the schema says, or is not described as optional";
        faults.push(Fault::new(SCHEMA, message).rule(&case.id));
    }
    faults
}

/// Lines such as `name: Bool,` or `name?: Set<String>,` and what they describe.
fn members(schema: &str) -> impl Iterator<Item = (usize, &str)> {
    const TYPES: [&str; 4] = ["Bool", "Long", "String", "Set<String>"];
    schema.lines().enumerate().filter_map(|(index, line)| {
        let (name, described) = line.split_once(':')?;
        let described = described.trim().trim_end_matches(',');
        TYPES.contains(&described).then(|| (index, name.trim().trim_end_matches('?')))
    })
}

fn line_of_case(text: &str, id: &str) -> usize {
    let quoted = format!("\"{id}\"");
    text.lines().position(|line| line.contains(&quoted)).map_or(1, |index| index + 1)
}
