//! `stage0 policy explain`: the decision of a pack about an action, and why. Change windows are evaluated at the
//! current time.

use std::path::Path;

use anyhow::bail;
use stage0_contract::{CheckRequest, FieldError};
use stage0_policy::{Engine, Explanation, Pack};

use crate::out::{self, plain};
use crate::{action, decision};

const BUILT_IN: &str = "baseline";

pub(super) fn explain(pack: &Path, file: &Path, as_json: bool) -> anyhow::Result<()> {
    let pack = if pack == Path::new(BUILT_IN) { Pack::embedded()? } else { Pack::from_dir(pack)? };
    let engine = Engine::new(pack)?;
    let request = match CheckRequest::parse(action::read(file)?.value) {
        Ok(request) => request,
        Err(rejected) => bail!("the action is refused{}", list(&rejected.errors)),
    };
    match engine.explain(&request, jiff::Timestamp::now().as_second()) {
        Ok(explanation) if as_json => out::json(&explanation),
        Ok(explanation) => Ok(out::decision(&for_people(&explanation))?),
        Err(errors) => bail!("the policy refuses the action{}", list(&errors)),
    }
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(|error| format!("\n  {}: {}", plain(&error.path), plain(&error.message))).collect()
}

fn for_people(explanation: &Explanation) -> String {
    let Explanation { facts, triggers, rules_evaluated, rules_matched, rules_failed, decision } = explanation;
    let others = rules_evaluated.iter().filter(|id| !rules_matched.contains(id) && !rules_failed.contains(id));
    let facts = facts.iter().map(|(name, value)| format!("{name} = {value}"));
    [
        decision::for_people(decision),
        section("Facts", facts),
        section("Triggers that held", triggers.iter().map(ToString::to_string)),
        section("Rules that matched", rules_matched.iter().cloned()),
        section("Rules that failed, which denies", rules_failed.iter().cloned()),
        section("Rules that did not match", others.cloned()),
    ]
    .concat()
}

fn section(heading: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("\n  {}", plain(&line))).collect();
    if lines.is_empty() { lines } else { format!("\n\n{heading}{lines}") }
}
