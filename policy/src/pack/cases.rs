//! `cases*.json`: requests with the verdicts that the pack must give.
//!
//! Cases are run by `proof`, which stands above the engine.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{CheckRequest, FieldError, IssueCode, Requirement, Verdict};

use super::case_run::RawRun;
use super::{GROUPS, groups};
use crate::approval::quorum;
use crate::facts::{Asking, Before, Circumstances, Groups, NamedCaller, RunSnapshot};
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
    evaluated_at: i64,
    caller: NamedCaller,
    run: Option<RunSnapshot>,
}

impl Case {
    /// In what its request is decided. Without a `caller` that caller has no name, and without a `run` it is the first
    /// check of its run.
    pub(super) fn circumstances(&self, groups: Groups) -> Circumstances<'_> {
        Circumstances {
            snapshot: self.run.as_ref(),
            before: self.run.as_ref().map_or(Before::Nothing, |run| Before::Known(&run.history)),
            asking: Asking::Named(&self.caller),
            ..Circumstances::outside_of_a_server(self.evaluated_at, groups)
        }
    }
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
    /// Among what the approval needs that the decision asks for: this many members of these groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Requirement>,
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
    approval: Option<RawApproval>,
    #[serde(default)]
    evaluated_at: Option<i64>,
    #[serde(default)]
    caller: NamedCaller,
    #[serde(default)]
    run: Option<RawRun>,
    request: Value,
}

/// What an approval needs. Without `groups` any member may approve, and without `quorum` one is enough.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApproval {
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    quorum: Option<i64>,
}

impl RawApproval {
    fn read(self, expect: &[Expected]) -> Result<Requirement, String> {
        if !expect.iter().any(|one| matches!(one, Expected::Verdict(Verdict::Defer))) {
            return Err("it has an `approval`, and expects no DEFER: only a DEFER asks for an approval".to_owned());
        }
        let quorum = quorum(self.quorum.unwrap_or(1)).ok_or("`quorum` in `approval` must be a number from 1 to 10")?;
        if self.groups.is_empty() {
            return Ok(Requirement { groups: Vec::new(), quorum, escalation: None });
        }
        let groups = groups(self.groups.iter().map(String::as_str));
        let groups = groups.ok_or_else(|| format!("`groups` in `approval` must be {GROUPS}"))?;
        Ok(Requirement { groups, quorum, escalation: None })
    }
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
    let RawCase { id, expect, codes, codes_any, says, absent_codes, approval, .. } = raw;
    let RawCase { evaluated_at, caller, run, request, .. } = raw;
    let approval = approval.map(|approval| approval.read(&expect)).transpose()?;
    let mut expected =
        Expectation { verdicts: Vec::new(), refused: false, codes, codes_any, says, absent_codes, approval };
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
    let run = match (run, &request) {
        (Some(run), Ok(request)) => Some(run.snapshot(request)?),
        _ => None,
    };
    Ok(Case { id, expected, request, evaluated_at: evaluated_at.unwrap_or(DEFAULT_TIME), caller, run })
}

pub(crate) fn line_of_case(text: &str, id: &str) -> usize {
    let quoted = format!("\"{id}\"");
    text.lines().position(|line| line.contains(&quoted)).map_or(1, |index| index + 1)
}
