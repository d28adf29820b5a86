//! Policy packs: a folder of rules, words, numbers and cases that is loaded whole or not at all.
//!
//! Owns what a valid pack is: files, annotations, schema, vocabulary, cases that pass and that satisfy every rule at least once.
//! Refuses a pack with a single fault, and names them all.
//! INVARIANT: a [`Pack`] that exists keeps all of this, and its version names its content: nobody can publish other
//! rules under the same version.

mod cases;
mod digest;
mod fault;
mod files;
mod manifest;
mod rule;
mod rules;
mod set;
mod shape;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use stage0_contract::PolicyVersion;

use crate::engine::Engine;
use crate::facts::Window;

pub use cases::{CaseOutcome, Expectation};
pub use fault::{Fault, PackError};
pub use set::{PackSet, PackSetError};

pub(crate) use cases::Case;
pub(crate) use files::Files;
pub(crate) use manifest::{Pro, Scores};
pub(crate) use rule::{Detail, Rule};
pub(crate) use rules::rekeyed;
pub(crate) use vocabulary::{Class, Vocabulary};

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
    rules: BTreeMap<String, Rule>,
    /// The text of each policy file: every engine parses its own.
    sources: Vec<String>,
    cases: Vec<Case>,
}

impl Pack {
    /// The pack that is compiled in.
    pub fn embedded() -> Result<Arc<Self>, PackError> {
        Self::load(&Files::embedded())
    }

    /// Loads a folder, or names every fault in it.
    pub fn from_dir(folder: &Path) -> Result<Arc<Self>, PackError> {
        Self::load(&Files::read(folder)?)
    }

    /// Checks a folder as far as its files can be read, then runs its cases whether or not they pass.
    pub fn test(folder: &Path) -> Result<Vec<CaseOutcome>, PackError> {
        let files = Files::read(folder)?;
        with_room(|| {
            let pack = Arc::new(Self::parse(&files)?);
            let engine = Engine::new(Arc::clone(&pack))?;
            Ok(pack.cases.iter().map(|case| case.run(&engine)).collect())
        })
    }

    /// Loads the files of a pack.
    pub(crate) fn load(files: &Files) -> Result<Arc<Self>, PackError> {
        with_room(|| {
            let pack = Arc::new(Self::parse(files)?);
            let engine = Engine::new(Arc::clone(&pack))?;
            let faults = cases::prove(&pack, &engine, files);
            if faults.is_empty() { Ok(pack) } else { Err(PackError { faults }) }
        })
    }

    /// Everything but the cases' verdicts.
    fn parse(files: &Files) -> Result<Self, PackError> {
        let mut faults = files.unexpected();
        let manifest = manifest::parse(files, &mut faults);
        let vocabulary = vocabulary::parse(files, &mut faults);
        let (rules, sources) = rules::parse(files, &mut faults);
        let cases = cases::parse(files, &mut faults);
        match (manifest, vocabulary, cases) {
            (Some(manifest), Some(vocabulary), Some(cases)) if faults.is_empty() => Ok(Self {
                version: digest::version(&manifest.name, &manifest.semver, files).map_err(PackError::of)?,
                scores: manifest.scores,
                pro: manifest.pro,
                windows: manifest.windows,
                vocabulary,
                rules,
                sources,
                cases,
            }),
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
        self.cases.len()
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

    pub(crate) fn rules(&self) -> &BTreeMap<String, Rule> {
        &self.rules
    }

    pub(crate) fn sources(&self) -> &[String] {
        &self.sources
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
