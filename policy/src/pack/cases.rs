//! `cases*.json`: requests with the verdicts that the pack must give.
//!
//! Cases are run by `proof`, which stands above the engine.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{CheckRequest, FieldError, IssueCode, Verdict};

use crate::files::{CASES, Fault, Files};

const MAX_CASES: usize = 2_000;
/// A Monday at noon, UTC: the time of cases that name none.
const DEFAULT_TIME: i64 = 1_773_662_400;

/// The status of a request that is refused before it is decided.
const REFUSED: u16 = 422;

#[derive(Debug)]
pub(crate) struct Case {
    pub(super) id: String,
    pub(super) expected: Expectation,
    /// The parsed request, or why the parser refuses it.
    pub(super) request: Result<CheckRequest, Vec<FieldError>>,
    pub(super) evaluated_at: i64,
}

/// The answer that a case expects.
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    id: String,
    #[serde(default, rename = "basis")]
    _basis: Option<String>,
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
            let id = raw.id.clone();
            let fault = |message: String| Fault::new(file, message).at(line_of_case(text, &id)).rule(&id);
            if !seen.insert(id.clone()) {
                faults.push(fault("its `id` is taken".to_owned()));
            }
            match case(raw) {
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

fn case(raw: RawCase) -> Result<Case, String> {
    let RawCase { id, expect, codes, codes_any, says, absent_codes, evaluated_at, request, .. } = raw;
    let mut expected = Expectation { verdicts: Vec::new(), refused: false, codes, codes_any, says, absent_codes };
    for one in &expect {
        match one {
            Expected::Verdict(verdict) => expected.verdicts.push(*verdict),
            Expected::Status(REFUSED) => expected.refused = true,
            Expected::Status(other) => return Err(format!("it expects the status {other}: {REFUSED} is the only one")),
        }
    }
    if expect.is_empty() {
        return Err("it expects no verdict".to_owned());
    }
    let request = CheckRequest::parse(request).map_err(|rejected| rejected.errors);
    if let (Err(errors), false) = (&request, expected.refused) {
        let told: Vec<String> = errors.iter().map(|e| format!("`{}` {}", e.path, e.message)).collect();
        return Err(format!("its request is refused: {}", told.join("; ")));
    }
    Ok(Case { id, expected, request, evaluated_at: evaluated_at.unwrap_or(DEFAULT_TIME) })
}

pub(super) fn line_of_case(text: &str, id: &str) -> usize {
    let quoted = format!("\"{id}\"");
    text.lines().position(|line| line.contains(&quoted)).map_or(1, |index| index + 1)
}
