//! `pack.toml`: the pack's name and version, the numbers of its scores, its change windows, what `pro` means and what
//! approvals need.
//!
//! An unknown key is a fault: a misspelt number must not silently become a default.

use std::collections::BTreeMap;

use serde::Deserialize;
use stage0_contract::{Severity, Word};

use super::approvals::{self, Approvals, RawApprovals};
use crate::files::{Fault, Files, MANIFEST};
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    #[serde(default)]
    pub(super) edition: Edition,
    pub(super) scores: Scores,
    pub(super) pro: Pro,
    #[serde(default)]
    windows: BTreeMap<String, WindowSpec>,
    #[serde(default)]
    approvals: RawApprovals,
}

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<(Manifest, Windows, Approvals)> {
    let (text, mut manifest): (_, Manifest) = files.toml(MANIFEST, faults)?;
    if !is_name(&manifest.name) {
        faults.push(fault(text, "name", "`name` must be 1 to 40 small letters, digits or `-`"));
    }
    if !is_semver(&manifest.version) {
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

fn is_name(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_semver(version: &str) -> bool {
    let number = |part: &str| {
        (1..=6).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let parts: Vec<&str> = version.split('.').collect();
    parts.len() == 3 && parts.into_iter().all(number)
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
    fn a_missing_manifest_is_a_fault() {
        let mut faults = Vec::new();
        assert!(parse(&Files::default(), &mut faults).is_none());
        assert_eq!(faults.len(), 1);
    }
}
