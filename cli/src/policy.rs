//! `stage0 policy`: tools for pack authors. They run offline, without server or key, with the evaluator's code.
//!
//! A refused pack is exit code 1, and every fault is named. INVARIANT: `test` refuses every pack that `validate`
//! refuses; it only shows failed cases in more detail.

mod explain;
mod vocabulary;

use std::path::Path;

use anyhow::{bail, ensure};
use serde_json::{Value, json};
use stage0_contract::IssueCode;
use stage0_policy::{CaseOutcome, Fault, Pack};

use crate::args::{PackArgs, PolicyCommand};
use crate::exit::Exit;
use crate::out;

const MANIFEST: &str = "pack.toml";

pub(crate) fn run(command: &PolicyCommand) -> anyhow::Result<Exit> {
    match command {
        PolicyCommand::Validate(PackArgs { dir, json }) => validate(dir, *json),
        PolicyCommand::Test(PackArgs { dir, json }) => test(dir, *json),
        PolicyCommand::Vocabulary { dir, json, markdown } => {
            vocabulary::vocabulary(dir.as_deref(), *json, *markdown).map(|()| Exit::Done)
        }
        PolicyCommand::Explain { pack, file, json } => explain::explain(pack, file, *json).map(|()| Exit::Done),
    }
}

/// Refuses a folder of something else: every one of its files would be a fault. As JSON these are the answer.
fn ensure_pack(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let is_other = !as_json && dir.is_dir() && !dir.join(MANIFEST).exists();
    ensure!(!is_other, "`{}` is no policy pack: it has no {MANIFEST}", dir.display());
    Ok(())
}

fn validate(dir: &Path, as_json: bool) -> anyhow::Result<Exit> {
    ensure_pack(dir, as_json)?;
    match Pack::from_dir(dir) {
        Ok(pack) => {
            let (version, rules, cases) = (pack.version(), pack.rule_count(), pack.case_count());
            if as_json {
                out::json(&json!({"valid": true, "version": version, "rules": rules, "cases": cases, "faults": []}))?;
            } else {
                out::line(format!("{version} is valid: {rules} rules, {cases} cases"))?;
            }
        }
        Err(refused) if as_json => {
            out::json(&json!({"valid": false, "faults": refused.faults}))?;
            return Ok(Exit::Failed);
        }
        Err(refused) => return Err(refused.into()),
    }
    Ok(Exit::Done)
}

fn test(dir: &Path, as_json: bool) -> anyhow::Result<Exit> {
    ensure_pack(dir, as_json)?;
    let outcomes = match Pack::test(dir) {
        Ok(outcomes) => outcomes,
        Err(refused) if as_json => {
            out::json(&json!({"passed": false, "cases": [], "faults": refused.faults}))?;
            return Ok(Exit::Failed);
        }
        Err(refused) => return Err(refused.into()),
    };
    let failed: Vec<&CaseOutcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    let faults = Pack::from_dir(dir).err().map_or_else(Vec::new, |refused| refused.faults);
    // A failed case is a fault too. It is shown as a case only.
    let is_case = |fault: &&Fault| {
        fault.file.starts_with("cases") && failed.iter().any(|case| fault.rule.as_ref() == Some(&case.id))
    };
    let others: Vec<&Fault> = faults.iter().filter(|fault| !is_case(fault)).collect();
    if as_json {
        let passed = faults.is_empty();
        out::json(&json!({"passed": passed, "cases": outcomes, "faults": others}))?;
        return Ok(if passed { Exit::Done } else { Exit::Failed });
    }
    for outcome in &failed {
        out::decision(&failed_case(outcome))?;
    }
    let all = outcomes.len();
    if !others.is_empty() {
        let lines: String = others.iter().map(|fault| format!("\n  {}", out::plain(&fault.to_string()))).collect();
        bail!("{} of {all} cases fail, and the policy pack is refused ({} faults){lines}", failed.len(), others.len());
    }
    ensure!(failed.is_empty(), "{} of {all} cases fail", failed.len());
    out::line(format!("all {all} cases pass"))?;
    Ok(Exit::Done)
}

fn failed_case(outcome: &CaseOutcome) -> String {
    let expected = &outcome.expected;
    let verdicts = expected.verdicts.iter().map(|verdict| verdict.as_str()).collect::<Vec<_>>().join(" or ");
    let mut wanted = format!("{verdicts}{}", codes(" with ", &expected.codes));
    if let Some(any) = any_of(outcome) {
        wanted.push_str(&format!(" with any of {any}"));
    }
    wanted.push_str(&codes(" without ", &expected.absent_codes));
    let actual = match (&outcome.error, outcome.verdict) {
        (Some(error), _) => format!("no decision: {}", out::plain(error)),
        (None, Some(verdict)) => format!("{verdict}{}", codes(" with ", &outcome.codes)),
        (None, None) => "no decision".to_owned(),
    };
    let missing = expected.codes.iter().filter(|code| !outcome.codes.contains(code));
    let unwanted = expected.absent_codes.iter().filter(|code| outcome.codes.contains(code));
    let mut text = format!("FAIL {}\n  expected  {wanted}\n  actual    {actual}", out::plain(&outcome.id));
    text.push_str(&codes("\n  missing   ", missing));
    text.push_str(&codes("\n  too many  ", unwanted));
    text
}

fn any_of(outcome: &CaseOutcome) -> Option<String> {
    let expected = serde_json::to_value(&outcome.expected).ok()?;
    let any = expected.get("codes_any")?.as_array()?.iter().filter_map(Value::as_str).collect::<Vec<_>>();
    (!any.is_empty()).then(|| out::plain(&any.join(", ")))
}

/// The codes behind a text; nothing where there are none.
fn codes<'c>(before: &str, codes: impl IntoIterator<Item = &'c IssueCode>) -> String {
    let codes: Vec<_> = codes.into_iter().map(IssueCode::as_str).collect();
    if codes.is_empty() { String::new() } else { format!("{before}{}", codes.join(", ")) }
}
