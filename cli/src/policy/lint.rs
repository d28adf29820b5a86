//! `stage0 policy lint`: what is valid in a pack and probably wrong. A finding is exit code 1.

use serde_json::json;
use stage0_policy::{Finding, Lint, Pack};

use super::{ensure_pack, faults};
use crate::args::policy::LintArgs;
use crate::exit::Exit;
use crate::out;

pub(super) fn lint(arguments: &LintArgs) -> anyhow::Result<Exit> {
    let LintArgs { pack, allow } = arguments;
    let (dir, as_json) = (&pack.dir, pack.json);
    ensure_pack(dir, as_json)?;
    let found = match Pack::lint(dir) {
        Ok(found) => found,
        Err(refused) if as_json => {
            out::json(&json!({"clean": false, "findings": [], "faults": faults::for_json(dir, refused)}))?;
            return Ok(Exit::Failed);
        }
        Err(refused) => return Err(faults::refused(dir, refused)),
    };
    let (accepted, mut found): (Vec<Finding>, Vec<Finding>) =
        found.into_iter().partition(|finding| allow.contains(&finding.kind));
    faults::locate(dir, found.iter_mut().map(|finding| &mut finding.fault));
    let clean = found.is_empty();
    if as_json {
        out::json(&json!({"clean": clean, "findings": found, "faults": []}))?;
    } else {
        if !clean {
            let each = found.iter().map(|finding| (Some(finding.kind.as_str()), &finding.fault));
            out::line(faults::shown(dir, each))?;
        }
        summary(&found, accepted.len())?;
    }
    Ok(if clean { Exit::Done } else { Exit::Failed })
}

fn summary(found: &[Finding], accepted: usize) -> anyhow::Result<()> {
    let accepted = if accepted == 0 { String::new() } else { format!(" ({accepted} accepted by --allow)") };
    if found.is_empty() {
        return Ok(out::line(format!("nothing found{accepted}"))?);
    }
    let kinds = Lint::ALL.into_iter().filter_map(|kind| {
        let count = found.iter().filter(|finding| finding.kind == kind).count();
        (count > 0).then(|| format!("{count} {}", kind.as_str()))
    });
    let kinds: Vec<String> = kinds.collect();
    out::stderr_line(format!("error: {} found{accepted}: {}", counted(found.len()), kinds.join(", ")));
    Ok(())
}

fn counted(findings: usize) -> String {
    format!("{findings} {}", if findings == 1 { "thing" } else { "things" })
}
