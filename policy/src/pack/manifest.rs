//! `pack.toml`: the pack's name and version, the numbers of its scores, its change windows, what `pro` means, what
//! approvals need and what holds while an outcome is unknown.
//!
//! An unknown key is a fault: a misspelt number must not silently become a default.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use stage0_contract::{Severity, Word};
use toml::Spanned;

use super::approvals::{self, Approvals, RawApprovals};
use crate::files::{Fault, Files, MANIFEST, line_of};
use crate::vocabulary::{Edition, WindowSpec, Windows};

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scores {
    pub(crate) base: Base,
    pub(crate) floor: Floor,
}

/// The base of `risk_score`, by risk class.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Base {
    pub(crate) none: u8,
    pub(crate) medium: u8,
    #[serde(rename = "loop")]
    pub(crate) looping: u8,
    pub(crate) communication: u8,
    pub(crate) approval: u8,
    pub(crate) high: u8,
}

/// The lowest `risk_score`, by verdict.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Floor {
    pub(crate) allow: u8,
    pub(crate) defer: u8,
    pub(crate) deny: u8,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pro {
    /// With `pro`, advice of this severity or above denies.
    pub(crate) denies_from: Severity,
}

/// What the pack does with actions whose outcome is not known.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outcomes {
    /// An action that is not repeatable is not allowed again while nothing is known of what came of it: for workloads
    /// whose keys declare that they report outcomes.
    #[serde(default)]
    pub(crate) hold_unknown: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    extends: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub(super) edition: Edition,
    pub(super) scores: Scores,
    pub(super) pro: Pro,
    #[serde(default)]
    windows: BTreeMap<String, WindowSpec>,
    #[serde(default)]
    approvals: RawApprovals,
    #[serde(default)]
    pub(super) outcomes: Outcomes,
    weakens: Option<Spanned<IgnoredAny>>,
}

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<(Manifest, Windows, Approvals)> {
    let (text, mut manifest): (_, Manifest) = files.toml(MANIFEST, faults)?;
    // A pack that extends another is parsed without these two keys. They are members only so that an unknown key is
    // reported beside them.
    for (key, given) in [("extends", &manifest.extends), ("weakens", &manifest.weakens)] {
        if let Some(given) = given {
            let message = format!("unknown field `{key}`: this pack extends no other one");
            faults.push(Fault::new(MANIFEST, message).at(line_of(text, given.span().start)));
        }
    }
    if !is_name(&manifest.name) {
        faults.push(fault(text, "name", "`name` must be 1 to 40 small letters, digits or `-`"));
    }
    if semver(&manifest.version).is_none() {
        faults.push(fault(text, "version", "`version` must be three numbers such as `1.0.0`"));
    }
    let Scores { base, floor } = manifest.scores;
    let bases = [base.none, base.medium, base.looping, base.communication, base.approval, base.high];
    if bases.into_iter().chain([floor.allow, floor.defer, floor.deny]).any(|score| score > 100) {
        faults.push(fault(text, "[scores", "a score must be at most 100"));
    }
    if manifest.pro.denies_from == Severity::Low {
        faults.push(fault(text, "denies_from", "`denies_from` must be MEDIUM or above"));
    }
    let mut windows = Windows::new();
    for (name, spec) in &manifest.windows {
        let header = format!("[windows.{name}]");
        if !Word::name(name).is(name) {
            faults.push(fault(text, &header, "a window's name must be in normal form: small letters and `_`"));
        }
        match spec.read() {
            Ok(window) => {
                windows.insert(name.clone(), window);
            }
            Err(errors) => faults.extend(errors.iter().map(|error| fault(text, &header, error).rule(name))),
        }
    }
    let approvals = approvals::read(std::mem::take(&mut manifest.approvals), text, faults);
    Some((manifest, windows, approvals))
}

/// A fault at the first line that begins with a key.
fn fault(text: &str, key: &str, message: &str) -> Fault {
    let line = text.lines().position(|line| line.starts_with(key)).map(|index| index + 1);
    Fault { line, ..Fault::new(MANIFEST, message) }
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The three numbers of a version.
pub(super) fn semver(version: &str) -> Option<(u32, u32, u32)> {
    let number = |part: &str| {
        let is_number = (1..=6).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'));
        part.parse().ok().filter(|_| is_number)
    };
    let mut parts = version.split('.').map(number);
    match (parts.next()??, parts.next()??, parts.next()??, parts.next()) {
        (major, minor, patch, None) => Some((major, minor, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/baseline/pack.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(MANIFEST, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn every_fault_is_reported_with_its_line() {
        let text = GOOD
            .replace("\"baseline\"", "\"Base line\"")
            .replace("\"2.0.0\"", "\"1.0\"")
            .replace("high = 45", "high = 101")
            .replace("\"MEDIUM\"", "\"LOW\"")
            .replace("Etc/UTC", "Etc/Nowhere")
            .replace("\"mon\"", "\"moonday\"");
        let faults = faults(&text);
        assert_eq!(faults.len(), 6, "{faults:#?}");
        assert!(faults.iter().all(|f| f.starts_with("pack.toml:")), "{faults:#?}");
        assert!(faults.iter().any(|f| f.contains("business_hours")));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let faults = faults(&GOOD.replace("zone = ", "zoné = "));
        assert_eq!(faults.len(), 1);
        let faults = self::faults(&GOOD.replace("opens = ", "open = "));
        let line = GOOD.lines().position(|l| l.starts_with("opens")).unwrap() + 1;
        assert!(faults[0].starts_with(&format!("pack.toml:{line}:")), "{faults:?}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_every_key_that_a_pack_may_have() {
        let faults = faults(&GOOD.replace("edition = ", "wakens = "));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("unknown field `wakens`"), "{faults:?}");
        for key in ["extends", "weakens", "windows", "approvals", "outcomes"] {
            assert!(faults[0].contains(&format!("`{key}`")), "{key}: {faults:?}");
        }
    }

    #[test]
    fn unknown_outcomes_are_held_where_the_pack_says_so_and_nothing_else_can_be_said_of_them() {
        let read = |more: &str| {
            let mut faults = Vec::new();
            let text = format!("{GOOD}\n{more}");
            let read = parse(&Files::of([(MANIFEST, text.as_str())]), &mut faults);
            let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
            (read.map(|(manifest, ..)| manifest.outcomes.hold_unknown), faults)
        };
        assert_eq!(read(""), (Some(false), Vec::new()), "it is off unless the pack says so");
        assert_eq!(read("[outcomes]\n"), (Some(false), Vec::new()));
        assert_eq!(read("[outcomes]\nhold_unknown = false\n"), (Some(false), Vec::new()));
        assert_eq!(read("[outcomes]\nhold_unknown = true\n"), (Some(true), Vec::new()));
        for wrong in ["hold_unknwon = true", "hold_unknown = \"true\"", "hold_unknown = 1", "hold = true"] {
            let (read, faults) = read(&format!("[outcomes]\n{wrong}\n"));
            assert!(read.is_none() && faults.len() == 1, "{wrong}: {faults:?}");
            let line = GOOD.lines().count() + 3;
            assert!(faults[0].starts_with(&format!("pack.toml:{line}:")), "{faults:?}");
        }
    }

    #[test]
    fn a_pack_that_extends_no_other_weakens_none() {
        let faults = faults(&format!("{GOOD}\n[weakens]\nreason = \"r\"\n"));
        let line = GOOD.lines().count() + 2;
        assert_eq!(faults, [format!("pack.toml:{line}: unknown field `weakens`: this pack extends no other one")]);
    }

    #[test]
    fn a_missing_manifest_is_a_fault() {
        let mut faults = Vec::new();
        assert!(parse(&Files::default(), &mut faults).is_none());
        assert_eq!(faults.len(), 1);
    }
}
