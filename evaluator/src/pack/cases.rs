//! `cases.json`: requests with the verdicts that the pack owes. A pack proves itself on them every time it is loaded.
//!
//! Owns the form of a case and the proof: every case passes, every rule is satisfied at least once, no trigger hides a satisfied rule,
//! and the facts of every case fit the schema.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::EntityUid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{CheckRequest, Decision, FieldError, IssueCode, Verdict};

use super::Pack;
use super::fault::Fault;
use super::files::{CASES, Files, SCHEMA};
use super::rules;
use crate::engine::{self, Engine};
use crate::facts::{Attribute, Attributes, Facts};

/// Each case asks every rule, each time the pack is loaded.
const MAX_CASES: usize = 2_000;
/// A Monday at noon, UTC: when cases are judged that name no time.
const DEFAULT_TIME: i64 = 1_773_662_400;

/// The status of a request that is refused before it is decided.
const REFUSED: u16 = 422;

/// A request and what it must come to.
#[derive(Debug)]
pub(crate) struct Case {
    id: String,
    expected: Expectation,
    /// What the parser makes of it.
    request: Result<CheckRequest, Vec<FieldError>>,
    evaluated_at: i64,
}

/// What a case wants.
#[derive(Debug, Clone, Serialize)]
pub struct Expectation {
    /// Any of these.
    pub verdicts: Vec<Verdict>,
    /// Or a refusal: status 422.
    pub refused: bool,
    /// All of these among the issues.
    pub codes: Vec<IssueCode>,
    /// At least one of these among the issues, where there is one.
    pub codes_any: Vec<IssueCode>,
    /// Texts that must occur in the issues, the reason, the questions or the errors.
    pub says: Vec<String>,
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
    /// What the case is an example of; for readers.
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    expect: Vec<Expected>,
    #[serde(default)]
    codes: Vec<IssueCode>,
    #[serde(default)]
    codes_any: Vec<IssueCode>,
    #[serde(default)]
    says: Vec<String>,
    #[serde(default)]
    absent_codes: Vec<IssueCode>,
    #[serde(default)]
    evaluated_at: Option<i64>,
    request: Value,
}

/// A verdict, or the status of a refusal.
#[derive(Deserialize)]
#[serde(untagged)]
enum Expected {
    Verdict(Verdict),
    Status(u16),
}

impl RawCase {
    fn expectation(&self) -> Result<Expectation, String> {
        let mut expected = Expectation {
            verdicts: Vec::new(),
            refused: false,
            codes: self.codes.clone(),
            codes_any: self.codes_any.clone(),
            says: self.says.clone(),
            absent_codes: self.absent_codes.clone(),
        };
        for one in &self.expect {
            match one {
                Expected::Verdict(verdict) => expected.verdicts.push(*verdict),
                Expected::Status(REFUSED) => expected.refused = true,
                Expected::Status(other) => {
                    return Err(format!("it expects the status {other}: {REFUSED} is the only one"));
                }
            }
        }
        if self.expect.is_empty() { Err("it expects no verdict".to_owned()) } else { Ok(expected) }
    }
}

impl Case {
    /// What rules see of it; nothing where it is refused.
    fn facts(&self, engine: &Engine) -> Option<Facts> {
        engine.facts(self.request.as_ref().ok()?, self.evaluated_at).ok()
    }

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
        let decided = match &self.request {
            Ok(request) => engine.decide(request, self.evaluated_at),
            Err(errors) => Err(errors.clone()),
        };
        match decided {
            Ok(decision) => {
                outcome.verdict = Some(decision.verdict);
                let said = || said(&decision);
                let codes: BTreeSet<IssueCode> = decision.issues.iter().map(|issue| issue.code.clone()).collect();
                outcome.passed = self.expected.met_by(decision.verdict, &codes, said);
                outcome.codes = codes.into_iter().collect();
            }
            Err(errors) => {
                let told: Vec<String> = errors.into_iter().map(|e| format!("{} {}", e.path, e.message)).collect();
                let told = told.join("; ");
                outcome.passed = self.expected.refused && self.expected.says.iter().all(|text| told.contains(text));
                outcome.error = Some(told);
            }
        }
        outcome
    }
}

impl Expectation {
    fn met_by(&self, verdict: Verdict, codes: &BTreeSet<IssueCode>, said: impl FnOnce() -> String) -> bool {
        self.verdicts.contains(&verdict)
            && self.codes.iter().all(|code| codes.contains(code))
            && (self.codes_any.is_empty() || self.codes_any.iter().any(|code| codes.contains(code)))
            && !self.absent_codes.iter().any(|code| codes.contains(code))
            && (self.says.is_empty() || {
                let said = said();
                self.says.iter().all(|text| said.contains(text))
            })
    }
}

/// The issues, the reason and the questions as one text.
fn said(decision: &Decision) -> String {
    let mut said = serde_json::to_string(&decision.issues).unwrap_or_default();
    for text in std::iter::once(&decision.reason).chain(&decision.clarifying_questions) {
        said.push('\n');
        said.push_str(text);
    }
    said
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

/// Reads the cases of every file of cases and notes what is wrong with them.
pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Vec<Case>> {
    files.needed(CASES, faults)?;
    let mut cases = Vec::new();
    let mut seen = HashSet::new();
    let mut readable = true;
    for (file, text) in files.cases() {
        let raw: Vec<RawCase> = match serde_json::from_str(text) {
            Ok(raw) => raw,
            Err(error) => {
                faults.push(Fault::new(file, error.to_string()).at(error.line()));
                readable = false;
                continue;
            }
        };
        if raw.is_empty() {
            faults.push(Fault::new(file, "there is no case: a pack proves itself"));
        }
        for raw in raw {
            let fault = |message: String| Fault::new(file, message).at(line_of_case(text, &raw.id)).rule(&raw.id);
            if !seen.insert(raw.id.clone()) {
                faults.push(fault("its `id` is taken".to_owned()));
            }
            match case(&raw) {
                Ok(case) => cases.push(case),
                Err(message) => faults.push(fault(message)),
            }
        }
    }
    if seen.len() > MAX_CASES {
        faults.push(Fault::new(CASES, format!("there are {} cases, and may be {MAX_CASES}", seen.len())));
        return None;
    }
    readable.then_some(cases)
}

fn case(raw: &RawCase) -> Result<Case, String> {
    let expected = raw.expectation()?;
    let request = CheckRequest::parse(raw.request.clone()).map_err(|rejected| rejected.errors);
    if let (Err(errors), false) = (&request, expected.refused) {
        let told: Vec<String> = errors.iter().map(|e| format!("`{}` {}", e.path, e.message)).collect();
        return Err(format!("its request is refused: {}", told.join("; ")));
    }
    let evaluated_at = raw.evaluated_at.unwrap_or(DEFAULT_TIME);
    Ok(Case { id: raw.id.clone(), expected, request, evaluated_at })
}

/// Runs the cases and says what they do not prove.
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

/// What the schema describes otherwise than the evaluator computes it.
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
