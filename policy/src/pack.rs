//! Policy packs: a folder of rules, words, numbers and cases that is loaded whole or not at all.
//!
//! A pack with a single fault is refused, and the refusal lists all faults. Its cases must pass and satisfy every rule.
//! INVARIANT: an existing [`Pack`] is valid, and its version is derived from its content, so other rules cannot be
//! published under the same version.

mod approvals;
mod cases;
mod codes;
mod digest;
mod load;
mod manifest;
mod proof;
mod reference;
mod rules;
mod set;
mod shape;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use stage0_contract::{FieldError, PolicyVersion};

use crate::facts::Declared;
use crate::files::{Files, PackError};
use crate::rule::Rule;
use crate::secrets::{Detector, spec};
use crate::vocabulary::{self, Edition, Vocabulary, Windows};

pub use cases::Expectation;
pub use proof::CaseOutcome;
pub use set::{PackSet, PackSetError};

pub(crate) use approvals::{Approvals, GROUPS, groups};
pub(crate) use manifest::{Pro, Scores};
pub(crate) use rules::rekeyed;

use cases::Case;

/// A loaded, tested policy pack.
#[derive(Debug)]
pub struct Pack {
    version: PolicyVersion,
    pub(crate) scores: Scores,
    pub(crate) pro: Pro,
    pub(crate) windows: Windows,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) approvals: Approvals,
    secrets: Arc<Detector>,
    pub(crate) rules: BTreeMap<String, Rule>,
    reference: Map<String, Value>,
    /// The text of each policy file. Every engine parses its own copy.
    pub(crate) sources: Vec<String>,
    case_count: usize,
}

impl Pack {
    /// The cases are returned, not run.
    fn parse(files: &Files) -> Result<(Self, Vec<Case>), PackError> {
        let mut faults = files.unexpected();
        let manifest = manifest::parse(files, &mut faults);
        let edition = manifest.as_ref().map(|(manifest, ..)| manifest.edition);
        if edition == Some(Edition::First) {
            faults.extend(files.of_second_edition());
        }
        // Faults about the edition's files are reported only if the edition is known.
        let vocabulary = vocabulary::parse(files, edition, &mut faults);
        let edition = edition.unwrap_or_default();
        let secrets = spec::parse(files, &mut faults);
        let (mut rules, sources) = rules::parse(files, edition, &mut faults);
        if vocabulary.as_ref().and_then(Vocabulary::second).is_some_and(|(_, tools)| tools.undeclared_defers()) {
            rules.values_mut().for_each(|rule| rule.defer_undeclared(&mut faults));
        }
        if let Some((.., approvals)) = &manifest {
            faults.extend(rules.values().filter_map(|rule| rule.late_escalation(&approvals.terms)));
        }
        let codes = codes::parse(files, edition, &rules, &mut faults);
        let cases = cases::parse(files, &mut faults);
        match (manifest, vocabulary, secrets, codes, cases) {
            (Some((manifest, windows, approvals)), Some(vocabulary), Some(secrets), Some(codes), Some(cases))
                if faults.is_empty() =>
            {
                let version = digest::version(&manifest.name, &manifest.version, files, secrets.base);
                let pack = Self {
                    version: version.map_err(PackError::of)?,
                    scores: manifest.scores,
                    pro: manifest.pro,
                    windows,
                    reference: reference::of(files, &vocabulary, &codes, &rules, &approvals.terms),
                    vocabulary,
                    approvals,
                    secrets: secrets.detector,
                    rules,
                    sources,
                    case_count: cases.len(),
                };
                Ok((pack, cases))
            }
            _ => Err(PackError { faults }),
        }
    }

    /// The version, `<name>@<semver>+<digest>`.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// The faults of a request's constraints that only the pack can find. Faults of the grammar are the gateway's.
    pub fn review(&self, constraints: &[String]) -> Vec<FieldError> {
        Declared::review(constraints, &self.vocabulary, &self.windows)
    }

    /// The number of rules.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The number of cases.
    pub fn case_count(&self) -> usize {
        self.case_count
    }

    /// Finds secrets by the forms of this pack.
    pub fn secrets(&self) -> &Detector {
        &self.secrets
    }
}
