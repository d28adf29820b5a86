//! Loading: a pack is parsed, then every case is run against it, and it is refused if one fails.
//!
//! The work runs on a thread with a large stack, since Cedar recurses into an expression level by level.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use super::Pack;
use super::proof::{self, CaseOutcome};
use crate::engine::Engine;
use crate::files::{Fault, Files, PackError};

/// `shape` bounds the nesting of expressions so that this suffices even in a debug build.
const STACK_BYTES: usize = 64 << 20;

impl Pack {
    /// The compiled-in baseline. It is loaded and proven once per process.
    pub fn embedded() -> Result<Arc<Self>, PackError> {
        static EMBEDDED: OnceLock<Result<Arc<Pack>, PackError>> = OnceLock::new();
        EMBEDDED.get_or_init(|| Self::load(&Files::embedded())).clone()
    }

    /// Loads a folder, or names every fault in it.
    pub fn from_dir(folder: &Path) -> Result<Arc<Self>, PackError> {
        Self::load(&Files::read(folder)?)
    }

    /// Parses a folder and runs its cases, and returns the result of each.
    pub fn test(folder: &Path) -> Result<Vec<CaseOutcome>, PackError> {
        let files = Files::read(folder)?;
        on_large_stack(|| {
            let (pack, cases) = Self::parse(&files)?;
            let engine = Engine::new(Arc::new(pack))?;
            Ok(cases.iter().map(|case| case.run(&engine)).collect())
        })
    }

    pub(crate) fn load(files: &Files) -> Result<Arc<Self>, PackError> {
        on_large_stack(|| {
            let (pack, cases) = Self::parse(files)?;
            let pack = Arc::new(pack);
            let engine = Engine::new(Arc::clone(&pack))?;
            let faults = proof::prove(&pack, &cases, &engine, files);
            if faults.is_empty() { Ok(pack) } else { Err(PackError { faults }) }
        })
    }
}

#[cfg(test)]
impl Pack {
    /// The baseline as it was in the first edition.
    pub(crate) fn first_edition() -> Arc<Self> {
        Self::load(&Files::first_edition()).unwrap()
    }
}

fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, PackError> + Send) -> Result<T, PackError> {
    let failed = |what: String| PackError::of(Fault::new("*.cedar", what));
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("policy-pack".to_owned()).stack_size(STACK_BYTES);
        let working = worker.spawn_scoped(scope, work).map_err(|error| failed(format!("cannot be parsed: {error}")))?;
        working.join().unwrap_or_else(|_| Err(failed("cannot be parsed: the parser panicked".to_owned())))
    })
}
