//! Bundles: a pack in a message, with the packs that it extends as far as they are not compiled in.
//!
//! A bundle is loaded from memory alone; its packs can extend each other and the packs that are compiled in. It loads
//! as the version that its folder has, or it is refused.
//! INVARIANT: no bundle replaces a pack that is compiled in, and each of its packs is a part of what decides.

use std::path::Path;
use std::sync::Arc;

use stage0_contract::{
    MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, MAX_BUNDLE_PACKS, PolicyBundle, PolicyFault, PolicyFiles, PolicySummary,
    PolicyVersion,
};

use super::extends::{Library, Loaded, is_reserved, wanted};
use super::proof::in_time;
use super::weakens::Weakened;
use super::{Pack, PackError};
use crate::files::{Fault, Files, MANIFEST};
use crate::time_limit::TimeLimit;

/// Why a bundle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refused}")]
pub struct BundleError {
    /// The pack with the faults, from 0.
    pub pack: usize,
    /// Its faults.
    pub refused: PackError,
}

impl BundleError {
    pub(super) fn new(pack: usize, refused: PackError) -> Self {
        Self { pack, refused }
    }

    /// A fault of the whole bundle, at the pack itself.
    fn of_all(bundle: &PolicyBundle, message: String) -> Self {
        Self::new(bundle.packs.len().saturating_sub(1), PackError::of(Fault::new(MANIFEST, message)))
    }

    /// The faults as they are sent.
    pub fn to_faults(&self) -> Vec<PolicyFault> {
        let fault = |fault: &Fault| PolicyFault {
            pack: self.pack,
            file: Some(fault.file.clone()),
            line: fault.line,
            rule: fault.rule.clone(),
            message: fault.message.clone(),
            help: fault.help.as_deref().map(str::to_owned),
        };
        self.refused.faults.iter().map(fault).collect()
    }
}

impl Pack {
    /// The bundle of a folder's pack. That it is valid is found out by [`Pack::from_bundle`].
    pub fn bundle(folder: &Path) -> Result<PolicyBundle, PackError> {
        let text = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
        let packed = |files: &Files| PolicyFiles { files: files.iter().map(text).collect() };
        let chain = Library::beside(folder).chain(folder)?;
        let bundle = PolicyBundle { packs: chain.iter().map(packed).collect() };
        match too_large(&bundle) {
            Some(message) => Err(PackError::of(Fault::new(MANIFEST, message))),
            None => Ok(bundle),
        }
    }

    /// Loads and proves the packs of a bundle, and returns the last one.
    pub fn from_bundle(bundle: &PolicyBundle) -> Result<Arc<Self>, BundleError> {
        Self::from_bundle_within(bundle, TimeLimit::NONE)
    }

    pub(super) fn from_bundle_within(bundle: &PolicyBundle, limit: TimeLimit) -> Result<Arc<Self>, BundleError> {
        if let Some(message) = too_large(bundle) {
            return Err(BundleError::of_all(bundle, message));
        }
        let mut loaded: Option<Arc<Self>> = None;
        for (index, pack) in bundle.packs.iter().enumerate() {
            let files = Files::received(&pack.files).map_err(|refused| BundleError::new(index, refused))?;
            in_time(limit).map_err(|refused| BundleError::new(index, refused))?;
            let pack = load(&files, loaded.take(), limit).map_err(|refused| BundleError::new(index, refused))?;
            loaded = Some(pack);
        }
        loaded.ok_or_else(|| BundleError::of_all(bundle, "the bundle has no pack".to_owned()))
    }

    /// As [`Pack::from_bundle`], for a bundle that was published as this version. Where this release compiles in other
    /// packs than the one that it was published under, it is another version, and is refused.
    pub fn published(bundle: &PolicyBundle, version: &PolicyVersion) -> Result<Arc<Self>, BundleError> {
        let pack = Self::from_bundle(bundle)?;
        if pack.version() == version {
            return Ok(pack);
        }
        let oldest = pack.ancestors().last().map(Self::label).unwrap_or_default();
        let message = format!(
            "published as {version}, but loads as {} here: this release compiles in another `{}`",
            pack.version(),
            oldest.split('@').next().unwrap_or_default()
        );
        Err(BundleError::of_all(bundle, message))
    }

    /// What is known of it without its files.
    pub fn summary(&self) -> PolicySummary {
        let names = |Weakened { without, replaces, words, numbers, .. }: &Weakened| {
            [without, replaces, words, numbers].into_iter().flatten().cloned().collect::<Vec<_>>()
        };
        PolicySummary {
            version: self.version().clone(),
            rules: self.rule_count(),
            cases: self.ancestors().map(Self::case_count).sum(),
            weakens: self.ancestors().filter_map(Self::weakened).flat_map(names).collect(),
            parents: self.parents().map(|parent| parent.version().clone()).collect(),
        }
    }
}

fn too_large(bundle: &PolicyBundle) -> Option<String> {
    let (packs, files, bytes) = (bundle.packs.len(), bundle.files(), bundle.bytes());
    if packs > MAX_BUNDLE_PACKS {
        return Some(format!("{packs} packs are to be published together, and may be {MAX_BUNDLE_PACKS}"));
    }
    if files > MAX_BUNDLE_FILES {
        return Some(format!("all packs together have {files} files, and may have {MAX_BUNDLE_FILES}"));
    }
    let message = format!(
        "all files together, with those of the packs that it extends, have {bytes} bytes, and may have \
         {MAX_BUNDLE_BYTES}"
    );
    (bytes > MAX_BUNDLE_BYTES).then_some(message)
}

/// Loads a pack of a bundle over the one before it, or over one that is compiled in.
fn load(files: &Files, before: Option<Arc<Pack>>, limit: TimeLimit) -> Loaded {
    let Some(before) = before else {
        let parent = Library::embedded_parent(files)?;
        return Pack::load_within(files, parent.as_ref(), limit);
    };
    let refuse = |message: String| PackError::of(Fault::new(MANIFEST, message));
    let Some(extends) = wanted(files).map_err(PackError::of)? else {
        return Err(refuse(format!("does not extend `{}`, which comes with it", before.label())));
    };
    if !extends.is_label(before.label()) {
        let message = format!("extends `{}`, and comes with `{}`", extends.label(), before.label());
        return Err(extends.refused(message));
    }
    if is_reserved(&extends) {
        let message = format!("`{}` is a pack that is compiled in, and another one comes with it", extends.label());
        return Err(extends.refused(message));
    }
    Pack::load_within(files, Some(&extends.checked(Ok(before))?), limit)
}
