//! `stage0 policy`: tools for pack authors. They run offline, without server or key, with the evaluator's code.
//!
//! A refused pack is exit code 1, and every fault is shown where it stands. INVARIANT: `test` refuses every pack that
//! `validate` refuses; it only shows failed cases in more detail.

mod diff;
mod explain;
mod facts;
pub(crate) mod faults;
mod fmt;
mod junit;
mod lineage;
mod lint;
mod markdown;
mod new;
mod test;
mod vocabulary;
mod watch;

use std::path::Path;

use anyhow::ensure;
use serde_json::json;
use stage0_policy::Pack;

use lineage::Lineage;

use crate::args::policy::{PackArgs, PolicyCommand};
use crate::exit::Exit;
use crate::out;

const MANIFEST: &str = "pack.toml";

pub(crate) fn run(command: &PolicyCommand) -> anyhow::Result<Exit> {
    match command {
        PolicyCommand::New(arguments) => new::new(arguments).map(|()| Exit::Done),
        PolicyCommand::Validate(PackArgs { dir, json }) => validate(dir, *json),
        PolicyCommand::Test(arguments) => test::run(arguments),
        PolicyCommand::Explain(arguments) => explain::explain(arguments).map(|()| Exit::Done),
        PolicyCommand::Lint(arguments) => lint::lint(arguments),
        PolicyCommand::Diff(arguments) => diff::diff(arguments),
        PolicyCommand::Fmt(arguments) => fmt::fmt(arguments),
        PolicyCommand::Facts(arguments) => facts::facts(arguments).map(|()| Exit::Done),
        PolicyCommand::Vocabulary { dir, json, markdown } => {
            vocabulary::vocabulary(dir.as_deref(), *json, *markdown).map(|()| Exit::Done)
        }
    }
}

/// Refuses a folder of something else: every one of its files would be a fault. As JSON these are the answer.
pub(crate) fn ensure_pack(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let is_other = !as_json && dir.is_dir() && !dir.join(MANIFEST).exists();
    ensure!(
        !is_other,
        "`{}` is no policy pack: it has no {MANIFEST}\n  `stage0 policy new DIR` writes a pack to start from",
        dir.display()
    );
    Ok(())
}

fn validate(dir: &Path, as_json: bool) -> anyhow::Result<Exit> {
    ensure_pack(dir, as_json)?;
    match Pack::from_dir(dir) {
        Ok(pack) => {
            let (version, rules, cases) = (pack.version(), pack.rule_count(), pack.case_count());
            let lineage = Lineage::of(&pack);
            if as_json {
                let valid = json!({"valid": true, "version": version, "rules": rules, "cases": cases, "faults": []});
                out::json(&lineage.added_to(valid))?;
            } else {
                out::line(format!("{version} is valid: {rules} rules, {cases} cases"))?;
                lineage.lines().into_iter().try_for_each(out::line)?;
            }
        }
        Err(refused) if as_json => {
            out::json(&json!({"valid": false, "faults": faults::for_json(dir, refused)}))?;
            return Ok(Exit::Failed);
        }
        Err(refused) => return Err(faults::refused(dir, refused)),
    }
    Ok(Exit::Done)
}
