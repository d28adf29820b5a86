//! Policy packs: a folder of rules, words, numbers and cases that is loaded whole or not at all.
//!
//! A pack with a single fault is refused, and the refusal lists all faults. Its cases must pass and satisfy every rule.
//! A pack that extends another has the words, numbers and rules of that one, and its own over them.
//! INVARIANT: an existing [`Pack`] is valid, and its version is derived from its content, so other rules cannot be
//! published under the same version.

mod approvals;
mod bundle;
mod case_run;
mod cases;
mod codes;
mod compared;
mod digest;
mod extends;
mod inherit;
mod judge;
mod load;
mod manifest;
mod merge;
mod own_types;
mod proof;
mod read_by;
mod reference;
mod rules;
mod set;
pub(crate) mod shape;
mod weakens;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::{Map, Value};
use stage0_contract::{FieldError, PolicyVersion, ReadBy};

use crate::compiled::Compiled;
use crate::evaluation::Rules;
use crate::facts::{Attributes, CustomTypes, Declared, Groups, RunNeeds};
use crate::files::{Files, PackError, SCHEMA};
use crate::rule::Rule;
use crate::secrets::{Detector, spec};
use crate::vocabulary::{self, Edition, Vocabulary, Windows};

pub use bundle::BundleError;
pub use cases::Expectation;
pub use judge::{MAX_LOADED_RULE_BYTES, MAX_RULE_BYTES};
pub use proof::{CaseOutcome, Reason, demand};
pub use set::{PackSet, PackSetError};
pub use weakens::Weakened;

pub(crate) use approvals::{Approvals, GROUPS, groups};
pub(crate) use cases::line_of_case;
pub(crate) use compared::{KnownCase, Milder, WordLists, milder, milder_terms};
pub(crate) use load::on_large_stack;
pub(crate) use manifest::{Outcomes, Pro, Scores};
pub(crate) use own_types::{OwnTypes, is_identifier};
pub(crate) use proof::Trial;
pub(crate) use rules::rekeyed;

use cases::Case;
use digest::Foundation;
use inherit::{Inheritance, Lineage};
use manifest::Manifest;
use read_by::Sources;
use weakens::Child;

/// A loaded, tested policy pack.
#[derive(Debug)]
pub struct Pack {
    version: PolicyVersion,
    pub(crate) scores: Scores,
    pub(crate) pro: Pro,
    pub(crate) windows: Windows,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) approvals: Approvals,
    pub(crate) outcomes: Outcomes,
    secrets: Arc<Detector>,
    pub(crate) rules: BTreeMap<String, Arc<Rule>>,
    /// A compiled rule differed from Cedar.
    left_to_cedar: AtomicBool,
    /// Members of `context` that the pack declares as its own.
    pub(crate) custom: CustomTypes,
    /// Tools whose calls in a run its rules count, in normal form.
    pub(crate) run_calls: Vec<String>,
    /// What the facts are read from that its rules read or show.
    pub(crate) groups: Groups,
    run_needs: RunNeeds,
    /// What its facts are read by.
    read_by: ReadBy,
    reference: Map<String, Value>,
    /// The text of each policy file.
    pub(crate) sources: Vec<String>,
    /// What engines share while any of them is there.
    shared_rules: Mutex<Weak<Rules>>,
    case_count: usize,
    lineage: Lineage,
}

impl Pack {
    /// Parses the files of a pack, and those of the pack that it extends below them. The cases are returned, not run.
    fn parse(own: &Files, parent: Option<&Arc<Self>>) -> Result<(Self, Vec<Case>), PackError> {
        let inheritance = parent.map(|parent| Inheritance::of(own, parent)).transpose()?;
        let mut faults = own.unexpected();
        let files = inheritance.as_ref().map_or(own, |inheritance| &inheritance.merged.files);
        let manifest = manifest::parse(files, &mut faults);
        let edition = manifest.as_ref().map(|(manifest, ..)| manifest.edition);
        // Only packs of the second edition can be extended, whatever is wrong with the manifest.
        let edition = edition.or(inheritance.as_ref().map(|_| Edition::Second));
        if edition == Some(Edition::First) {
            faults.extend(files.of_second_edition());
        }
        // Faults about the edition's files are reported only if the edition is known.
        let vocabulary = vocabulary::parse(files, edition, &mut faults);
        let edition = edition.unwrap_or_default();
        let secrets = match &inheritance {
            None => spec::parse(files, &mut faults),
            Some(inheritance) => inheritance.secrets(&mut faults),
        };
        let types = OwnTypes::read(SCHEMA, files.get(SCHEMA).unwrap_or_default(), edition, &mut faults);
        let (mut rules, mut sources) = rules::parse(files, edition, &types, &mut faults);
        // Faults that name a line of the pack's own files already.
        let mut placed = Vec::new();
        match &inheritance {
            None => faults.extend(rules::none(&rules, &sources, &faults)),
            Some(inheritance) => placed = inheritance.add_rules(&mut rules, &mut sources, faults.is_empty()),
        }
        if vocabulary.as_ref().and_then(Vocabulary::second).is_some_and(|(_, tools)| tools.undeclared_defers()) {
            rules.values_mut().for_each(|rule| rule.defer_undeclared(&mut faults));
        }
        if let Some((.., approvals)) = &manifest {
            for rule in rules.values() {
                let late = rule.late_escalation(&approvals.terms);
                match inheritance.as_ref().filter(|_| rule.inherited.is_some()) {
                    None => faults.extend(late),
                    Some(inheritance) => placed.extend(late.map(|fault| inheritance.blamed(&fault))),
                }
            }
        }
        let is_own = |code: &str| inheritance.as_ref().is_none_or(|inheritance| inheritance.describes(code));
        let holds_unknown = manifest.as_ref().is_some_and(|(manifest, ..)| manifest.outcomes.hold_unknown);
        let built_in = codes::built_in(!types.custom.is_empty(), holds_unknown);
        let codes = codes::parse(files, edition, &rules, &built_in, is_own, &mut faults);
        let has_cases = files.cases().next().is_some();
        let cases = match &inheritance {
            Some(inheritance) if !has_cases && !inheritance.needs_cases() => Some(Vec::new()),
            Some(_) | None => cases::parse(files, &mut faults),
        };
        if let Some(inheritance) = &inheritance {
            inheritance.merged.place(&mut faults);
            faults.append(&mut placed);
            if let (Some((manifest, windows, approvals)), Some(vocabulary)) = (&manifest, &vocabulary)
                && faults.is_empty()
            {
                let Manifest { scores, pro, outcomes, .. } = manifest;
                let child = Child { vocabulary, windows, scores, pro, approvals, outcomes };
                inheritance.weakenings(&child, &mut faults);
            }
        }
        match (manifest, vocabulary, secrets, codes, cases) {
            (Some((manifest, windows, approvals)), Some(vocabulary), Some(secrets), Some(codes), Some(cases))
                if faults.is_empty() =>
            {
                let mut attributes = Attributes::default();
                rules.values().for_each(|rule| attributes.extend(rule.shown_and_read()));
                let foundation = Foundation { secrets: secrets.base, parent: parent.map(|parent| parent.version()) };
                let version = digest::version(&manifest.name, &manifest.version, own, &foundation);
                let run_needs = RunNeeds::of(attributes);
                let read_by = Sources {
                    files,
                    secrets: &secrets.texts,
                    edition: manifest.edition,
                    windows: &windows,
                    run_calls: &types.run_calls,
                    run_needs,
                };
                let read_by = read_by.digests();
                let pack = Self {
                    version: version.map_err(PackError::of)?,
                    scores: manifest.scores,
                    pro: manifest.pro,
                    windows,
                    reference: reference::of(
                        files,
                        &vocabulary,
                        (&codes, &built_in),
                        &rules,
                        &approvals.terms,
                        &types.custom,
                    ),
                    vocabulary,
                    approvals,
                    outcomes: manifest.outcomes,
                    secrets: secrets.detector,
                    rules: rules.into_iter().map(|(id, rule)| (id, Arc::new(rule))).collect(),
                    left_to_cedar: AtomicBool::new(false),
                    custom: types.custom,
                    run_calls: types.run_calls,
                    groups: attributes.groups(),
                    run_needs,
                    read_by,
                    sources,
                    shared_rules: Mutex::default(),
                    case_count: cases.len(),
                    lineage: Lineage {
                        parent: parent.cloned(),
                        weakened: inheritance.as_ref().and_then(|inheritance| inheritance.section.weakened()),
                        secrets: secrets.texts,
                        files: inheritance.map_or_else(|| own.clone(), |inheritance| inheritance.merged.files),
                    },
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

    /// What its rules ask of the state of a run beyond the counts that every run keeps.
    pub fn run_needs(&self) -> RunNeeds {
        self.run_needs
    }

    /// Digests of what its facts are read by. Facts that one pack has read are those of another one with the same.
    pub fn read_by(&self) -> &ReadBy {
        &self.read_by
    }

    /// Its rules for an engine. If all are compiled, Cedar is asked so rarely that all threads share one copy, which
    /// takes megabytes. Else each engine has its own, because threads contend for the reference counts of Cedar's.
    pub(crate) fn rules_for_engine(self: &Arc<Self>) -> Result<Arc<Rules>, PackError> {
        if self.compiled_count() < self.rules.len() {
            return Ok(Arc::new(Rules::new(self)?));
        }
        let mut shared = self.shared_rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rules) = shared.upgrade() {
            return Ok(rules);
        }
        let rules = Arc::new(Rules::new(self)?);
        *shared = Arc::downgrade(&rules);
        Ok(rules)
    }

    /// Whether Cedar evaluates all of its rules, because a compiled one differed.
    pub fn is_left_to_cedar(&self) -> bool {
        self.left_to_cedar.load(Ordering::Relaxed)
    }

    /// For good, on every thread.
    pub(crate) fn leave_to_cedar(&self) {
        self.left_to_cedar.store(true, Ordering::Relaxed);
    }

    /// With a rule that is compiled into its opposite, for tests of what must find it.
    #[doc(hidden)]
    pub fn miscompiled(mut self, rule: &str) -> Self {
        if let Some(rule) = self.rules.get_mut(rule).map(Arc::make_mut) {
            rule.compiled = rule.compiled.take().map(Compiled::negated);
        }
        self
    }

    /// The number of rules that Cedar need not evaluate.
    pub fn compiled_count(&self) -> usize {
        self.rules.values().filter(|rule| rule.compiled.is_some()).count()
    }

    /// The number of rules.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The number of cases.
    pub fn case_count(&self) -> usize {
        self.case_count
    }

    /// A text with every secret in it masked, by the forms of this pack.
    pub fn mask(&self, text: &str) -> String {
        crate::secrets::mask(text, self.secrets())
    }

    /// Finds secrets by the forms of this pack.
    pub fn secrets(&self) -> &Detector {
        &self.secrets
    }
}
