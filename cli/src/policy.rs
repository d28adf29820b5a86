//! `stage0 policy`: a pack author's tools. Offline: no server, no key, the evaluator's own code on a directory.
//!
//! Owns how faults, cases and explanations look; what they are is the evaluator's. A pack that is refused is exit code 1, and every
//! fault is named.

mod explain;

use std::path::Path;

use anyhow::ensure;
use stage0_contract::IssueCode;
use stage0_evaluator::{CaseOutcome, Pack};

use crate::args::DoPolicy;
use crate::exit::Exit;
use crate::out;

/// Runs one of them.
pub(crate) fn run(command: &DoPolicy) -> Exit {
    crate::run::finished(match command {
        DoPolicy::Validate { dir } => validate(dir),
        DoPolicy::Test { dir } => test(dir),
        DoPolicy::Explain { pack, file, json } => explain::explain(pack, file, *json),
    })
}

fn validate(dir: &Path) -> anyhow::Result<()> {
    let pack = Pack::from_dir(dir)?;
    Ok(out::line(format!("{} is valid: {} rules, {} cases", pack.version(), pack.rule_count(), pack.case_count()))?)
}

fn test(dir: &Path) -> anyhow::Result<()> {
    let outcomes = Pack::test(dir)?;
    let failed: Vec<&CaseOutcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    for outcome in &failed {
        out::line(complaint(outcome))?;
    }
    let all = outcomes.len();
    ensure!(failed.is_empty(), "{} of {all} cases fail", failed.len());
    ensure!(all > 0, "there is no case: a pack proves itself");
    Ok(out::line(format!("all {all} cases pass"))?)
}

fn complaint(outcome: &CaseOutcome) -> String {
    let expected = &outcome.expected;
    let verdicts = expected.verdicts.iter().map(|verdict| verdict.as_str()).collect::<Vec<_>>().join(" or ");
    let mut wanted = format!("{verdicts}{}", codes(" with ", &expected.codes));
    wanted.push_str(&codes(" without ", &expected.absent_codes));
    let came = match (&outcome.error, outcome.verdict) {
        (Some(error), _) => format!("no decision: {}", out::plain(error)),
        (None, Some(verdict)) => format!("{verdict}{}", codes(" with ", &outcome.codes)),
        (None, None) => "no decision".to_owned(),
    };
    format!("FAIL {}\n  expected  {wanted}\n  actual    {came}", out::plain(&outcome.id))
}

fn codes(before: &str, codes: &[IssueCode]) -> String {
    if codes.is_empty() {
        return String::new();
    }
    format!("{before}{}", codes.iter().map(IssueCode::as_str).collect::<Vec<_>>().join(", "))
}
