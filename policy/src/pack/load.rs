//! Loading: a pack is parsed, then every case is run against it, and it is refused if one fails. Packs that are
//! compiled in are parsed only: the tests of this release have run their cases.
//!
//! The work runs on a thread with a large stack, since Cedar recurses into an expression level by level.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use stage0_contract::CheckRequest;

use super::Pack;
use super::cases::Case;
use super::extends::Library;
use super::proof::{self, CaseOutcome};
use super::weakens;
use crate::engine::Engine;
use crate::explain::{CaseExplanation, Proposed};
use crate::files::{Fault, Files, PackError};
use crate::lint::{self, Finding};
use crate::time_limit::TimeLimit;

/// `shape` bounds the nesting of expressions so that this suffices even in a debug build.
const STACK_BYTES: usize = 64 << 20;

impl Pack {
    /// Loads a folder, or names every fault in it.
    pub fn from_dir(folder: &Path) -> Result<Arc<Self>, PackError> {
        Library::beside(folder).load(folder)
    }

    /// Parses a folder and runs its cases, and returns the result of each.
    pub fn test(folder: &Path) -> Result<Vec<CaseOutcome>, PackError> {
        let (files, parent) = read(folder)?;
        on_large_stack(|| {
            let (pack, cases) = Self::provable(&files, parent.as_ref())?;
            let engine = Engine::new(Arc::new(pack))?;
            Ok(cases.iter().map(|case| case.run(&engine)).collect())
        })
    }

    /// Explains the decision about a case of a folder; `None` if it has no such case. No case needs to pass.
    pub fn explain_case(folder: &Path, id: &str) -> Result<Option<CaseExplanation>, PackError> {
        let (files, parent) = read(folder)?;
        on_large_stack(|| {
            let (pack, cases) = Self::parse(&files, parent.as_ref())?;
            let engine = Engine::new(Arc::new(pack))?;
            Ok(cases.iter().find(|case| case.id == id).map(|case| case.explain(&engine)))
        })
    }

    /// Explains the decision of a folder's pack about an action. No case needs to pass.
    pub fn explain_action(
        folder: &Path,
        request: &CheckRequest,
        proposed: &Proposed,
    ) -> Result<CaseExplanation, PackError> {
        let (files, parent) = read(folder)?;
        on_large_stack(|| {
            let (pack, _) = Self::parse(&files, parent.as_ref())?;
            Ok(Engine::new(Arc::new(pack))?.explain_for(request, proposed).into())
        })
    }

    /// Finds what is valid in a folder and probably wrong. Cases that fail are no findings: `test` has them.
    pub fn lint(folder: &Path) -> Result<Vec<Finding>, PackError> {
        let (files, parent) = read(folder)?;
        on_large_stack(|| {
            let (pack, cases) = Self::provable(&files, parent.as_ref())?;
            let pack = Arc::new(pack);
            let engine = Engine::new(Arc::clone(&pack))?;
            let trials: Vec<_> = cases.iter().filter_map(|case| case.trial(&engine)).collect();
            Ok(lint::findings(&pack, &files, &trials))
        })
    }

    /// Parses a pack whose cases can all be run.
    fn provable(files: &Files, parent: Option<&Arc<Self>>) -> Result<(Self, Vec<Case>), PackError> {
        let (pack, cases) = Self::parse(files, parent)?;
        match proof::too_long(&pack, &cases) {
            Some(fault) => Err(PackError::of(fault)),
            None => Ok((pack, cases)),
        }
    }

    /// Parses and proves a pack over the pack that it extends, if it extends one.
    pub(super) fn load_over(files: &Files, parent: Option<&Arc<Self>>) -> Result<Arc<Self>, PackError> {
        Self::load_within(files, parent, TimeLimit::NONE)
    }

    /// Parses a pack that is compiled in. Its cases would take most of the time and memory of a start, and cannot come
    /// to another result than in the tests.
    pub(super) fn load_tested(files: &Files, parent: Option<&Arc<Self>>) -> Result<Arc<Self>, PackError> {
        on_large_stack(|| Self::provable(files, parent).map(|(pack, _)| Arc::new(pack)))
    }

    /// As [`Pack::load_over`]; what takes longer than the limit is refused.
    pub(super) fn load_within(
        files: &Files,
        parent: Option<&Arc<Self>>,
        limit: TimeLimit,
    ) -> Result<Arc<Self>, PackError> {
        on_large_stack(|| {
            let (pack, cases) = Self::provable(files, parent)?;
            let pack = Arc::new(pack);
            let engine = Engine::new(Arc::clone(&pack))?;
            let mut faults = proof::prove(&pack, &cases, &engine, &pack.lineage.files, limit)?;
            faults.extend(weakens::compare_verdicts(&pack, &engine, files, limit)?);
            if faults.is_empty() { Ok(pack) } else { Err(PackError { faults }) }
        })
    }
}

/// The files of a folder, and the pack that it extends.
fn read(folder: &Path) -> Result<(Files, Option<Arc<Pack>>), PackError> {
    let files = Files::read(folder)?;
    let parent = Library::beside(folder).parent_of(&files, folder)?;
    Ok((files, parent))
}

#[cfg(test)]
impl Pack {
    /// Loads files that extend no pack.
    pub(crate) fn load(files: &Files) -> Result<Arc<Self>, PackError> {
        Self::load_over(files, None)
    }

    /// The baseline as it was in the first edition.
    pub(crate) fn first_edition() -> Arc<Self> {
        Self::load(&Files::first_edition()).unwrap()
    }
}

pub(crate) fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, PackError> + Send) -> Result<T, PackError> {
    let failed = |what: String| PackError::of(Fault::new("*.cedar", what));
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("policy-pack".to_owned()).stack_size(STACK_BYTES);
        let working = worker.spawn_scoped(scope, work).map_err(|error| failed(format!("cannot be parsed: {error}")))?;
        working.join().unwrap_or_else(|_| Err(failed("cannot be parsed: the parser panicked".to_owned())))
    })
}
