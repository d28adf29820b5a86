//! The proof of a pack: its cases are run each time it is loaded, and it is refused if one fails.
//!
//! Every rule must be satisfied by at least one case, no trigger may hide a satisfied rule, and the facts of every case
//! must fit the schema.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::EntityUid;
use serde::Serialize;
use stage0_contract::{Decision, IssueCode, Verdict};

use super::cases::{Case, Expectation, line_of_case};
use super::{Pack, rules};
use crate::engine::{self, Engine};
use crate::facts::{Attribute, Attributes, Facts};
use crate::files::{CASES, Fault, Files, SCHEMA};

/// The result of one case.
#[derive(Debug, Clone, Serialize)]
pub struct CaseOutcome {
    /// The case.
    pub id: String,
    /// The answer that it expects.
    pub expected: Expectation,
    /// The verdict; `None` if the request was refused.
    pub verdict: Option<Verdict>,
    /// The codes of its issues, each once.
    pub codes: Vec<IssueCode>,
    /// Why there was no decision.
    pub error: Option<String>,
    /// Whether the answer is the expected one.
    pub passed: bool,
}

impl Case {
    fn facts(&self, engine: &Engine) -> Option<Facts> {
        engine.facts(self.request.as_ref().ok()?, self.evaluated_at).ok()
    }

    pub(crate) fn run(&self, engine: &Engine) -> CaseOutcome {
        let decided = match &self.request {
            Ok(request) => engine.decide(request, self.evaluated_at),
            Err(errors) => Err(errors.clone()),
        };
        let (verdict, codes, error, passed) = match decided {
            Ok(decision) => {
                let codes: BTreeSet<IssueCode> = decision.issues.iter().map(|issue| issue.code.clone()).collect();
                let passed = self.expected.met_by(decision.verdict, &codes, || reported(&decision));
                (Some(decision.verdict), codes.into_iter().collect(), None, passed)
            }
            Err(errors) => {
                let told = errors.iter().map(|e| format!("{} {}", e.path, e.message)).collect::<Vec<_>>().join("; ");
                let passed = self.expected.refused && self.expected.says.iter().all(|text| told.contains(text));
                (None, Vec::new(), Some(told), passed)
            }
        };
        CaseOutcome { id: self.id.clone(), expected: self.expected.clone(), verdict, codes, error, passed }
    }
}

impl Expectation {
    fn met_by(&self, verdict: Verdict, codes: &BTreeSet<IssueCode>, reported: impl FnOnce() -> String) -> bool {
        self.verdicts.contains(&verdict)
            && self.codes.iter().all(|code| codes.contains(code))
            && (self.codes_any.is_empty() || self.codes_any.iter().any(|code| codes.contains(code)))
            && !self.absent_codes.iter().any(|code| codes.contains(code))
            && (self.says.is_empty() || {
                let reported = reported();
                self.says.iter().all(|text| reported.contains(text))
            })
    }
}

fn reported(decision: &Decision) -> String {
    let mut reported = serde_json::to_string(&decision.issues).unwrap_or_default();
    for text in std::iter::once(&decision.reason).chain(&decision.clarifying_questions) {
        reported.push('\n');
        reported.push_str(text);
    }
    reported
}

impl CaseOutcome {
    fn complaint(&self) -> String {
        let list = |codes: &[IssueCode]| codes.iter().map(IssueCode::as_str).collect::<Vec<_>>().join(", ");
        let Expectation { verdicts, refused, codes, codes_any, says, absent_codes } = &self.expected;
        let verdicts: Vec<&str> =
            verdicts.iter().map(|v| v.as_str()).chain(refused.then_some("a refusal (422)")).collect();
        let mut wanted = format!("wants {} with [{}]", verdicts.join(" or "), list(codes));
        if !codes_any.is_empty() {
            wanted.push_str(&format!(" and any of [{}]", list(codes_any)));
        }
        if !absent_codes.is_empty() {
            wanted.push_str(&format!(" without [{}]", list(absent_codes)));
        }
        if !says.is_empty() {
            wanted.push_str(&format!(" saying {says:?}"));
        }
        let came = match (&self.error, self.verdict) {
            (Some(error), _) => error.clone(),
            (None, Some(verdict)) => format!("{verdict} with [{}]", list(&self.codes)),
            (None, None) => "nothing".to_owned(),
        };
        format!("the case {wanted} and comes to {came}")
    }
}

/// Runs the cases and returns a fault for everything that they do not prove.
pub(super) fn prove(pack: &Pack, cases: &[Case], engine: &Engine, files: &Files) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut satisfied: HashSet<String> = HashSet::new();
    for case in cases {
        let at = |message: String| {
            let quoted = format!("\"{}\"", case.id);
            let (file, text) = files.cases().find(|(_, text)| text.contains(&quoted)).unwrap_or((CASES, ""));
            Fault::new(file, message).at(line_of_case(text, &case.id)).rule(&case.id)
        };
        let outcome = case.run(engine);
        if !outcome.passed {
            faults.push(at(outcome.complaint()));
        }
        let Some(facts) = case.facts(engine) else { continue };
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
    faults.extend(misfits(cases, engine, files));
    faults
}

fn misfits(cases: &[Case], engine: &Engine, files: &Files) -> Vec<Fault> {
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
        let Some(facts) = case.facts(engine) else { return true };
        engine::context(&facts, described).is_ok_and(|context| context.validate(&schema, &action).is_ok())
    };
    if let Some(case) = cases.iter().find(|case| !fits(case)) {
        let message = "a fact of this case has another type than the schema says, or is not described as optional";
        faults.push(Fault::new(SCHEMA, message).rule(&case.id));
    }
    faults
}

/// The members that a schema declares in lines such as `name: Bool,` or `name?: Set<String>,`, with their line numbers.
fn members(schema: &str) -> impl Iterator<Item = (usize, &str)> {
    const TYPES: [&str; 4] = ["Bool", "Long", "String", "Set<String>"];
    schema.lines().enumerate().filter_map(|(index, line)| {
        let (name, described) = line.split_once(':')?;
        let described = described.trim().trim_end_matches(',');
        TYPES.contains(&described).then(|| (index, name.trim().trim_end_matches('?')))
    })
}
