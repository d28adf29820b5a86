//! The packs of a process: which decides by default, and which a request may ask for by version.
//!
//! Versions are loaded side by side and never replaced; the same name and number with different content is refused.
//! Unknown and unselectable versions are refused with the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stage0_contract::{FieldError, PolicyVersion};

use super::extends::Library;
use super::{Pack, PackError};

/// Packs by version.
#[derive(Debug, Clone)]
pub struct PackSet {
    active: Arc<Pack>,
    loaded: BTreeMap<PolicyVersion, Arc<Pack>>,
    selectable: BTreeSet<PolicyVersion>,
}

/// Why a set of packs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackSetError {
    /// The folder of packs cannot be listed.
    #[error("cannot list the policy packs in `{}`", .0.display())]
    List(PathBuf, #[source] std::io::Error),
    /// The pack in a folder is refused.
    #[error("{}: {}", .0.display(), .1)]
    Refused(PathBuf, PackError),
    /// Two contents under one version number.
    #[error("`{0}` and `{1}` are one version with two contents: raise `version`")]
    Republished(PolicyVersion, PolicyVersion),
    /// A wanted version is not among those loaded.
    #[error("`{0}` is not loaded; loaded are {1}")]
    NotLoaded(String, String),
}

impl PackSet {
    /// One pack, which decides everything.
    pub fn of(active: Arc<Pack>) -> Self {
        let loaded = BTreeMap::from([(active.version().clone(), Arc::clone(&active))]);
        Self { active, loaded, selectable: BTreeSet::new() }
    }

    /// The compiled-in baseline alone.
    pub fn embedded() -> Result<Self, PackError> {
        Pack::embedded().map(Self::of)
    }

    /// With every pack in the folders directly below `folder`. Hidden entries and plain files are passed over.
    pub fn with_dir(mut self, folder: &Path) -> Result<Self, PackSetError> {
        let failed = |source| PackSetError::List(folder.to_owned(), source);
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                folders.push(entry.path());
            }
        }
        folders.sort_unstable();
        // A pack that others extend is loaded once.
        let mut library = Library::of(folder);
        for folder in folders {
            let pack = library.load(&folder).map_err(|error| PackSetError::Refused(folder, error))?;
            self.insert(pack)?;
        }
        Ok(self)
    }

    /// With one more pack.
    pub fn insert(&mut self, pack: Arc<Pack>) -> Result<(), PackSetError> {
        let number = |version: &PolicyVersion| version.as_str().split('+').next().map(str::to_owned);
        let wanted = number(pack.version());
        if let Some(known) = self.loaded.keys().find(|known| number(known) == wanted && *known != pack.version()) {
            return Err(PackSetError::Republished(known.clone(), pack.version().clone()));
        }
        self.loaded.entry(pack.version().clone()).or_insert(pack);
        Ok(())
    }

    /// Makes a loaded version the default: the full version, or its `name@semver`.
    pub fn activate(&mut self, wanted: &str) -> Result<(), PackSetError> {
        self.active = self.find(wanted)?;
        Ok(())
    }

    /// Lets requests ask for a loaded version.
    pub fn allow(&mut self, wanted: &str) -> Result<(), PackSetError> {
        let version = self.find(wanted)?.version().clone();
        self.selectable.insert(version);
        Ok(())
    }

    /// What decides when nothing else is asked for.
    pub fn active(&self) -> &Arc<Pack> {
        &self.active
    }

    /// All packs.
    pub fn packs(&self) -> impl Iterator<Item = &Arc<Pack>> {
        self.loaded.values()
    }

    /// All versions.
    pub fn versions(&self) -> Vec<PolicyVersion> {
        self.loaded.keys().cloned().collect()
    }

    /// The pack that decides a request.
    pub fn choose(&self, wanted: Option<&str>) -> Result<&Arc<Pack>, FieldError> {
        let Some(wanted) = wanted else { return Ok(&self.active) };
        if wanted == self.active.version().as_str() {
            return Ok(&self.active);
        }
        let allowed = self.selectable.iter().find(|version| version.as_str() == wanted);
        allowed.and_then(|version| self.loaded.get(version)).ok_or_else(Self::not_selectable)
    }

    /// The fault of a request that asks for a version that may not decide it.
    pub fn not_selectable() -> FieldError {
        FieldError::new("policy_pack_version", "is neither the active policy version nor one that may be selected")
    }

    fn find(&self, wanted: &str) -> Result<Arc<Pack>, PackSetError> {
        let matches =
            |version: &PolicyVersion| version.as_str() == wanted || version.as_str().split('+').next() == Some(wanted);
        let found = self.loaded.iter().find(|(version, _)| matches(version)).map(|(_, pack)| Arc::clone(pack));
        found.ok_or_else(|| {
            let loaded: Vec<&str> = self.loaded.keys().map(PolicyVersion::as_str).collect();
            PackSetError::NotLoaded(wanted.to_owned(), loaded.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    fn other(semver: &str) -> Arc<Pack> {
        let files = Files::embedded();
        let manifest = files.get("pack.toml").unwrap().replace("\"2.0.0\"", &format!("\"{semver}\""));
        Pack::load(&files.with("pack.toml", &manifest)).unwrap()
    }

    #[test]
    fn unknown_and_forbidden_versions_are_refused_with_one_text() {
        let mut set = PackSet::embedded().unwrap();
        let next = other("1.2.0");
        set.insert(Arc::clone(&next)).unwrap();
        let unknown = set.choose(Some("baseline@9.9.9+000000000000")).unwrap_err();
        assert_eq!(unknown, set.choose(Some(next.version().as_str())).unwrap_err());
        assert_eq!(unknown.path, "policy_pack_version");
        assert!(set.choose(Some("baseline@2.0.0")).is_err(), "a version is asked for in full");
        set.allow("baseline@1.2.0").unwrap();
        assert_eq!(set.choose(Some(next.version().as_str())).unwrap().version(), next.version());
        assert_eq!(set.choose(None).unwrap().version(), set.active().version());
    }

    #[test]
    fn one_version_with_two_contents_is_refused() {
        let mut set = PackSet::embedded().unwrap();
        let files = Files::embedded();
        let manifest = format!("{}\n# changed\n", files.get("pack.toml").unwrap());
        let changed = Pack::load(&files.with("pack.toml", &manifest)).unwrap();
        assert!(matches!(set.insert(changed), Err(PackSetError::Republished(..))));
        set.insert(Pack::embedded().unwrap()).unwrap();
        assert_eq!(set.versions().len(), 1);
    }

    #[test]
    fn only_a_loaded_version_can_be_activated() {
        let mut set = PackSet::embedded().unwrap();
        assert!(matches!(set.activate("baseline@9.0.0"), Err(PackSetError::NotLoaded(..))));
        set.insert(other("9.0.0")).unwrap();
        set.activate("baseline@9.0.0").unwrap();
        assert!(set.active().version().as_str().starts_with("baseline@9.0.0+"));
    }
}
