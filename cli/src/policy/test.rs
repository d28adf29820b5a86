//! `stage0 policy test`: the cases of a pack, each that fails with the rules that decided it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use stage0_contract::IssueCode;
use stage0_policy::{CaseOutcome, Expectation, Fault, Pack, PackError, Reason, accept_case};

use super::explain::demand;
use super::lineage::Lineage;
use super::{ensure_pack, faults, fmt, junit, watch};
use crate::args::policy::TestArgs;
use crate::decision::wire_word;
use crate::exit::Exit;
use crate::out::{self, plain};

/// What a run of a pack's cases came to.
pub(super) struct Tested {
    pub(super) outcomes: Vec<CaseOutcome>,
    /// Why the pack is refused besides cases that fail.
    pub(super) faults: Vec<Fault>,
    /// Of a pack that is not refused.
    lineage: Option<Lineage>,
}

impl Tested {
    /// An error where the pack cannot be read, so that no case can be run.
    fn of(dir: &Path) -> Result<Self, PackError> {
        let outcomes = Pack::test(dir)?;
        let (lineage, faults) = match Pack::from_dir(dir) {
            Ok(pack) => (Some(Lineage::of(&pack)), Vec::new()),
            Err(refused) => (None, refused.faults),
        };
        // A failed case is a fault too. It is shown as a case only.
        let is_case = |fault: &Fault| {
            let of_fault = |case: &&CaseOutcome| !case.passed && fault.rule.as_ref() == Some(&case.id);
            fault.file.starts_with("cases") && outcomes.iter().any(|case| of_fault(&case))
        };
        let mut faults: Vec<Fault> = faults.into_iter().filter(|fault| !is_case(fault)).collect();
        faults::locate(dir, &mut faults);
        Ok(Self { outcomes, faults, lineage })
    }

    fn failed(&self) -> Vec<&CaseOutcome> {
        self.outcomes.iter().filter(|outcome| !outcome.passed).collect()
    }

    fn passed(&self) -> bool {
        self.faults.is_empty() && self.failed().is_empty()
    }
}

pub(super) fn run(arguments: &TestArgs) -> anyhow::Result<Exit> {
    let dir = &arguments.pack.dir;
    ensure_pack(dir, arguments.pack.json)?;
    if arguments.watch {
        return watch::watch(dir, || report(dir).map(|_| ()));
    }
    let as_json = arguments.pack.json;
    let mut tested = Tested::of(dir);
    if let Ok(first) = &tested
        && arguments.accept
        && !first.failed().is_empty()
    {
        accept(dir, &first.failed(), as_json)?;
        tested = Tested::of(dir);
    }
    if let Some(file) = &arguments.junit {
        let name = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = junit::document(&name, tested.as_ref());
        fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    if as_json { print_json(dir, tested) } else { print(dir, tested) }
}

fn print_json(dir: &Path, tested: Result<Tested, PackError>) -> anyhow::Result<Exit> {
    let passed = tested.as_ref().is_ok_and(Tested::passed);
    match tested {
        Ok(Tested { outcomes, faults, lineage }) => {
            let answer = json!({"passed": passed, "cases": outcomes, "faults": faults});
            out::json(&match &lineage {
                Some(lineage) => lineage.added_to(answer),
                None => answer,
            })?;
        }
        Err(refused) => {
            out::json(&json!({"passed": false, "cases": [], "faults": faults::for_json(dir, refused)}))?;
        }
    }
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

/// Runs the cases and prints what came out.
fn report(dir: &Path) -> anyhow::Result<Exit> {
    print(dir, Tested::of(dir))
}

fn print(dir: &Path, tested: Result<Tested, PackError>) -> anyhow::Result<Exit> {
    let tested = match tested {
        Ok(tested) => tested,
        Err(refused) => return Err(faults::refused(dir, refused)),
    };
    let failed = tested.failed();
    for outcome in &failed {
        out::decision(&failed_case(outcome))?;
    }
    let all = tested.outcomes.len();
    if !tested.faults.is_empty() {
        let count = match tested.faults.len() {
            1 => "1 fault".to_owned(),
            many => format!("{many} faults"),
        };
        let shown = faults::shown(dir, tested.faults.iter().map(|fault| (None, fault)));
        let shown = shown.trim_end();
        bail!("{} of {all} cases fail, and the policy pack is refused ({count})\n\n{shown}", failed.len());
    }
    ensure!(
        failed.is_empty(),
        "{} of {all} cases fail\n  `stage0 policy explain {} --case {}` says why; \
         --accept writes what came out into the cases",
        failed.len(),
        dir.display(),
        failed.first().map_or("ID", |case| &case.id)
    );
    out::line(format!("all {all} cases pass"))?;
    tested.lineage.iter().flat_map(Lineage::lines).try_for_each(out::line)?;
    Ok(Exit::Done)
}

/// Rewrites the cases that fail, after it has shown them.
fn accept(dir: &Path, failed: &[&CaseOutcome], as_json: bool) -> anyhow::Result<()> {
    let mut left = failed.to_vec();
    for file in case_files(dir)? {
        let path = dir.join(&file);
        let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut accepted = 0;
        left.retain(|case| {
            let Some(acceptance) = accept_case(&text, case) else { return true };
            if !as_json {
                let _ = out::decision(&failed_case(case));
            }
            for member in acceptance.contradicted {
                out::stderr_line(format!("`{member}` of {} says otherwise: change it by hand", plain(&case.id)));
            }
            text = acceptance.text;
            accepted += 1;
            false
        });
        if accepted > 0 {
            fmt::replace(&path, &text)?;
            let cases = if accepted == 1 { "case" } else { "cases" };
            out::stderr_line(format!(
                "accepted {accepted} {cases} in {}: read the change before you keep it",
                path.display()
            ));
        }
    }
    for case in left {
        out::stderr_line(format!("{} is no case of this pack's own, and was not accepted", plain(&case.id)));
    }
    Ok(())
}

fn case_files(dir: &Path) -> anyhow::Result<Vec<String>> {
    let failed = || format!("cannot read `{}`", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let name = entry.with_context(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("cases") && name.ends_with(".json") {
            files.push(name);
        }
    }
    files.sort_unstable();
    Ok(files)
}

pub(super) fn failed_case(outcome: &CaseOutcome) -> String {
    let Expectation { codes: wanted, absent_codes, .. } = &outcome.expected;
    let missing = wanted.iter().filter(|code| !outcome.codes.contains(code));
    let unwanted = absent_codes.iter().filter(|code| outcome.codes.contains(code));
    let mut text = format!("FAIL {}", plain(&outcome.id));
    text.push_str(&format!("\n  expected  {}\n  actual    {}", expected(&outcome.expected), actual(outcome)));
    text.push_str(&codes("\n  missing   ", missing));
    text.push_str(&codes("\n  too many  ", unwanted));
    if let Some(wanted) = outcome.expected.approval.as_ref().filter(|_| !outcome.is_asked()) {
        let demands: Vec<String> = outcome.approval.iter().flat_map(|terms| &terms.requirements).map(demand).collect();
        let demands = if demands.is_empty() { "no approval".to_owned() } else { demands.join(" and ") };
        text.push_str(&format!("\n  approval  expected {}, and the rules ask for {demands}", demand(wanted)));
    }
    for unsaid in &outcome.unsaid {
        text.push_str(&format!("\n  unsaid    {}", plain(unsaid)));
    }
    for (index, reason) in outcome.reasons.iter().enumerate() {
        let label = if index == 0 { "because" } else { "and" };
        text.push_str(&format!("\n  {label:<9} {}", of_rule(reason)));
    }
    text
}

fn of_rule(Reason { rule, file, line, code, severity, message, .. }: &Reason) -> String {
    let place = file.as_ref().zip(*line).map(|(file, line)| format!(" ({}:{line})", plain(file)));
    let severity = wire_word(severity);
    format!("{severity} {code}: {}\n            {}{}", plain(message), plain(rule), place.unwrap_or_default())
}

pub(super) fn expected(expected: &Expectation) -> String {
    let mut answers: Vec<&str> = expected.verdicts.iter().map(|verdict| verdict.as_str()).collect();
    answers.extend(expected.refused.then_some("a refusal (422)"));
    let mut wanted = format!("{}{}", answers.join(" or "), codes(" with ", &expected.codes));
    wanted.push_str(&codes(" with any of ", &expected.codes_any));
    wanted.push_str(&codes(" without ", &expected.absent_codes));
    wanted
}

pub(super) fn actual(outcome: &CaseOutcome) -> String {
    match (&outcome.error, outcome.verdict) {
        (Some(error), _) => format!("a refusal (422): {}", plain(error)),
        (None, Some(verdict)) => format!("{verdict}{}", codes(" with ", &outcome.codes)),
        (None, None) => "no decision".to_owned(),
    }
}

/// The codes behind a text; nothing where there are none.
fn codes<'c>(before: &str, codes: impl IntoIterator<Item = &'c IssueCode>) -> String {
    let codes: Vec<_> = codes.into_iter().map(IssueCode::as_str).collect();
    if codes.is_empty() { String::new() } else { format!("{before}{}", codes.join(", ")) }
}
