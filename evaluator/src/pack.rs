//! Policy packs: a folder of rules, words, numbers and cases that is loaded whole or not at all.
//!
//! Owns what a valid pack is: files, annotations, schema, vocabulary, cases that pass and that satisfy every rule at least once.
//! Refuses a pack with a single fault, and names them all.
//! INVARIANT: a [`Pack`] that exists keeps all of this, and its version names its content: nobody can publish other
//! rules under the same version.

mod cases;
mod codes;
mod constraints;
mod digest;
mod effects;
mod fault;
mod files;
mod manifest;
mod names;
mod near;
mod reference;
mod rule;
mod rules;
mod secrets;
mod set;
mod shape;
mod tools;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use serde_json::{Map, Value};
use stage0_contract::PolicyVersion;

use crate::engine::Engine;
use crate::facts::Window;
use crate::secrets::Detector;

pub use cases::{CaseOutcome, Expectation};
pub use fault::{Fault, PackError};
pub use set::{PackSet, PackSetError};

pub(crate) use cases::Case;
pub(crate) use effects::{Class, EffectWords, Marks, Meaning};
pub(crate) use files::Files;
pub(crate) use manifest::{Edition, Pro, Scores};
pub(crate) use names::{APPROVED, ApprovalWord, Names};
pub(crate) use rule::{Detail, Rule};
pub(crate) use rules::rekeyed;
#[cfg(test)]
pub(crate) use secrets::baseline;
pub(crate) use tools::ToolWords;
pub(crate) use vocabulary::Vocabulary;

/// Stack of the thread that parses and validates a pack: Cedar goes down into an expression level by level, and `shape`
/// bounds levels for this size with room to spare, also in a development build.
const STACK_BYTES: usize = 64 << 20;

/// A loaded, tested policy pack.
#[derive(Debug)]
pub struct Pack {
    version: PolicyVersion,
    scores: Scores,
    pro: Pro,
    windows: Windows,
    vocabulary: Vocabulary,
    secrets: Arc<Detector>,
    rules: BTreeMap<String, Rule>,
    reference: Map<String, Value>,
    /// The text of each policy file: every engine parses its own.
    sources: Vec<String>,
    case_count: usize,
}

impl Pack {
    /// The pack that is compiled in; its content never changes, so that it proves itself once in a process.
    pub fn embedded() -> Result<Arc<Self>, PackError> {
        static EMBEDDED: OnceLock<Result<Arc<Pack>, PackError>> = OnceLock::new();
        EMBEDDED.get_or_init(|| Self::load(&Files::embedded())).clone()
    }

    /// Loads a folder, or names every fault in it.
    pub fn from_dir(folder: &Path) -> Result<Arc<Self>, PackError> {
        Self::load(&Files::read(folder)?)
    }

    /// Checks a folder as far as its files can be read, then runs its cases whether or not they pass.
    pub fn test(folder: &Path) -> Result<Vec<CaseOutcome>, PackError> {
        let files = Files::read(folder)?;
        with_room(|| {
            let (pack, cases) = Self::parse(&files)?;
            let engine = Engine::new(Arc::new(pack))?;
            Ok(cases.iter().map(|case| case.run(&engine)).collect())
        })
    }

    /// Loads the files of a pack.
    pub(crate) fn load(files: &Files) -> Result<Arc<Self>, PackError> {
        with_room(|| {
            let (pack, cases) = Self::parse(files)?;
            let pack = Arc::new(pack);
            let engine = Engine::new(Arc::clone(&pack))?;
            let faults = cases::prove(&pack, &cases, &engine, files);
            if faults.is_empty() { Ok(pack) } else { Err(PackError { faults }) }
        })
    }

    /// Everything but the cases' verdicts; nobody needs the cases once they have proven the pack.
    fn parse(files: &Files) -> Result<(Self, Vec<Case>), PackError> {
        let mut faults = files.unexpected();
        let manifest = manifest::parse(files, &mut faults);
        if manifest.as_ref().is_some_and(|manifest| manifest.edition == Edition::First) {
            faults.extend(files.of_second_edition());
        }
        let edition = manifest.as_ref().map_or(Edition::default(), |manifest| manifest.edition);
        // What belongs to which edition is told once the edition is known.
        let vocabulary = vocabulary::parse(files, manifest.as_ref().map(|_| edition), &mut faults);
        let secrets = secrets::parse(files, &mut faults);
        let (mut rules, sources) = rules::parse(files, edition, &mut faults);
        if vocabulary.as_ref().and_then(Vocabulary::tools).is_some_and(ToolWords::undeclared_defers) {
            rules.values_mut().for_each(|rule| rule.defer_undeclared(&mut faults));
        }
        let codes = codes::parse(files, edition, &rules, &mut faults);
        let cases = cases::parse(files, &mut faults);
        match (manifest, vocabulary, secrets, codes, cases) {
            (Some(manifest), Some(vocabulary), Some(secrets), Some(codes), Some(cases)) if faults.is_empty() => {
                let pack = Self {
                    version: digest::version(&manifest.name, &manifest.semver, files, secrets.base)
                        .map_err(PackError::of)?,
                    scores: manifest.scores,
                    pro: manifest.pro,
                    windows: manifest.windows,
                    reference: reference::of(files, &vocabulary, &codes, &rules),
                    vocabulary,
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

    /// `<name>@<semver>+<digest>`.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// How many cases prove it.
    pub fn case_count(&self) -> usize {
        self.case_count
    }

    pub(crate) fn scores(&self) -> &Scores {
        &self.scores
    }

    pub(crate) fn pro(&self) -> &Pro {
        &self.pro
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// What finds secrets by the forms of this pack.
    pub fn secrets(&self) -> &Detector {
        &self.secrets
    }

    pub(crate) fn rules(&self) -> &BTreeMap<String, Rule> {
        &self.rules
    }

    pub(crate) fn sources(&self) -> &[String] {
        &self.sources
    }
}

#[cfg(test)]
impl Pack {
    /// The baseline as it was in the first edition.
    pub(crate) fn first_edition() -> Arc<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
        Self::from_dir(&folder).expect("the first edition loads")
    }
}

/// Does work that goes deep, on a thread with the stack for it.
fn with_room<T: Send>(work: impl FnOnce() -> Result<T, PackError> + Send) -> Result<T, PackError> {
    let failed = |what: String| PackError::of(Fault::new("*.cedar", what));
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("policy-pack".to_owned()).stack_size(STACK_BYTES);
        let working = worker.spawn_scoped(scope, work).map_err(|error| failed(format!("cannot be parsed: {error}")))?;
        working.join().unwrap_or_else(|_| Err(failed("cannot be parsed: the parser panicked".to_owned())))
    })
}

/// The change windows of a pack, by name.
#[derive(Debug, Default)]
pub(crate) struct Windows(BTreeMap<String, Window>);

impl Windows {
    /// Finds a window.
    pub(crate) fn get(&self, name: &str) -> Option<&Window> {
        self.0.get(name)
    }

    /// In alphabetical order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn of<N: Into<String>>(windows: impl IntoIterator<Item = (N, Window)>) -> Self {
        Self(windows.into_iter().map(|(name, window)| (name.into(), window)).collect())
    }
}
