//! Findings about what the cases of a pack do not show.

use std::collections::BTreeSet;

use serde_json::Value;
use stage0_contract::Effect;

use super::rules::Own;
use super::{Finding, Lint};
use crate::facts::{Attribute, Group, RUN_NAMED};
use crate::files::{Fault, Files};
use crate::pack::{Pack, Trial, line_of_case};

/// Rules of which the cases do not show both: where they apply, and where they are evaluated and do not.
pub(super) fn findings(own: &[Own<'_>], trials: &[Trial]) -> Vec<Finding> {
    let finding = |own: &Own<'_>| {
        let id = &own.rule.id;
        let applied = trials.iter().filter(|trial| trial.matched.contains(id)).count();
        let passed = trials.iter().any(|trial| trial.evaluated.contains(id) && !trial.matched.contains(id));
        if applied == 0 {
            let fault = own.fault("it applies in no case").help("add a case that it denies, defers or advises on");
            return Some(Lint::DeadRule.finding(fault));
        }
        let help = "add a case that comes close and is not caught, so that a wider condition would be noticed";
        let fault = || own.fault("every case that asks it is caught by it").help(help);
        (!passed).then(|| Lint::UntestedRule.finding(fault()))
    };
    own.iter().filter_map(finding).collect()
}

/// Rules about a run of which no case shows that an action without one does not pass.
pub(super) fn without_run(own: &[Own<'_>], trials: &[Trial]) -> Vec<Finding> {
    let counts = |attribute: Attribute| attribute.group() == Group::Run && attribute.name() != RUN_NAMED;
    let passes = |one: &&Own<'_>| {
        let applied = || trials.iter().filter(|trial| trial.matched.contains(&one.rule.id));
        one.rule.effect != Effect::Advise
            && one.rule.attributes.iter().any(counts)
            // A rule that applies in no case is dead for that reason.
            && applied().next().is_some()
            && applied().all(|trial| trial.run_named)
            && !own.iter().any(|other| other.demands_a_run_for(one))
    };
    let finding = |one: &Own<'_>| {
        let fault = one.fault("it applies in no case without a run: an action may pass it by leaving `run_id` out");
        let help = "in `unless` write `context.run_named && …`, in `when` write `!context.run_named || …`, and add a \
                    case without `run_id`";
        Lint::PassesWithoutRun.finding(fault.help(help))
    };
    own.iter().filter(passes).map(finding).collect()
}

/// Codes that cases expect or rule out, and that nothing gives.
pub(super) fn unknown_codes(pack: &Pack, files: &Files) -> Vec<Finding> {
    let codes = pack.reference().get("codes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let known: BTreeSet<&str> = codes.iter().filter_map(|code| code.get("code")?.as_str()).collect();
    let mut found = Vec::new();
    for (file, text) in files.cases() {
        let cases: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
        for case in &cases {
            let id = case.get("id").and_then(Value::as_str).unwrap_or_default();
            let listed =
                ["codes", "codes_any", "absent_codes"].into_iter().filter_map(|member| case.get(member)?.as_array());
            for code in listed.flatten().filter_map(Value::as_str).filter(|code| !known.contains(code)) {
                let message = format!("no rule gives `{code}`");
                let fault = Fault::new(file, message).at(line_of_case(text, id)).rule(id);
                found.push(
                    Lint::UnknownCode.finding(fault.help("is it misspelt? `stage0 policy vocabulary` lists the codes")),
                );
            }
        }
    }
    found
}
