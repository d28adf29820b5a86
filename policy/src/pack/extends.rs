//! `extends` of `pack.toml`: which pack a pack extends, and where it is found.
//!
//! It names a pack and its major version. Packs are looked for among those that are compiled in and in the folders
//! beside the pack's own; of several versions the highest one is taken. A chain has four packs at most and no circle.
//! INVARIANT: a pack is loaded and proven before a pack that extends it, once for each library.
//! INVARIANT: the name of a pack that is compiled in never stands for a folder of other content, so that no pack in the
//! folder can take the place of what the others extend.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use serde::Deserialize;
use toml::Spanned;

use super::manifest::{is_name, semver};
use super::{Pack, PackError};
use crate::files::{BASELINE, EMBEDDED, Embedded, Fault, Files, MANIFEST, line_of, read_text, toml_fault};

/// The packs of a chain, the first one that extends nothing included.
const MAX_LEVELS: usize = 4;
/// Folders beside a pack.
const MAX_SIBLINGS: usize = 1_000;
/// Packs that a fault lists.
const MAX_LISTED: usize = 20;

pub(super) type Loaded = Result<Arc<Pack>, PackError>;

/// The value of `extends` and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extends {
    name: String,
    major: u32,
    pub(super) line: usize,
}

impl Extends {
    /// A fault at the line of `extends`.
    pub(super) fn refused(&self, message: String) -> PackError {
        PackError::of(Fault::new(MANIFEST, message).at(self.line))
    }

    fn too_long(&self) -> PackError {
        self.refused(format!("more than {MAX_LEVELS} packs extend each other, this one included"))
    }

    /// Whether a pack of this name and number is named.
    pub(super) fn is_label(&self, label: &str) -> bool {
        let read = label.split_once('@').and_then(|(name, number)| Some((name, semver(number)?.0)));
        read == Some((self.name.as_str(), self.major))
    }

    fn names(&self, files: &Files) -> bool {
        let head = head(files.get(MANIFEST).unwrap_or_default());
        head.is_some_and(|(name, version)| name == self.name && version.0 == self.major)
    }

    /// The name and the major version, as they are written.
    pub(super) fn label(&self) -> String {
        format!("{}@{}", self.name, self.major)
    }

    /// The pack that is extended, if it is valid and can be extended.
    pub(super) fn checked(&self, parent: Loaded) -> Loaded {
        let parent = parent.map_err(|error| {
            let first = error.faults.first().map(Fault::to_string).unwrap_or_default();
            self.refused(format!("`{}`, which it extends, is refused itself: {first}", self.label()))
        })?;
        if parent.vocabulary.second().is_none() {
            return Err(
                self.refused(format!("`{}` is a pack of `edition = 1`, which cannot be extended", parent.label()))
            );
        }
        if parent.ancestors().count() >= MAX_LEVELS {
            return Err(self.too_long());
        }
        Ok(parent)
    }
}

/// Whether a pack that is compiled in has the name and the major version of these files.
pub(super) fn is_reserved(extends: &Extends) -> bool {
    EMBEDDED.iter().any(|pack| extends.names(&pack.files()))
}

/// What is read of a pack before it is loaded.
#[derive(Deserialize)]
struct Head {
    name: String,
    version: String,
}

/// Reads `extends`. A manifest that cannot be parsed and does not mention it is reported with the other files' faults.
pub(super) fn wanted(files: &Files) -> Result<Option<Extends>, Fault> {
    #[derive(Deserialize)]
    struct Wanted {
        extends: Option<Spanned<toml::Value>>,
    }
    let text = files.get(MANIFEST).unwrap_or_default();
    let extends = match toml::from_str::<Wanted>(text) {
        Ok(wanted) => wanted.extends,
        Err(error) if text.contains("extends") => return Err(toml_fault(MANIFEST, text, &error)),
        Err(_) => None,
    };
    let Some(extends) = extends else { return Ok(None) };
    let line = line_of(text, extends.span().start);
    let named = extends.get_ref().as_str().and_then(|value| value.split_once('@'));
    let read = named.and_then(|(name, major)| Some((name, semver(&format!("{major}.0.0"))?.0)));
    match read.filter(|(name, _)| is_name(name)) {
        Some((name, major)) => Ok(Some(Extends { name: name.to_owned(), major, line })),
        None => {
            let message = "`extends` must be a name and a major version such as `baseline@2`";
            Err(Fault::new(MANIFEST, message).at(line))
        }
    }
}

/// Where a pack that can be extended is.
#[derive(Clone)]
enum Place {
    Embedded(&'static Embedded),
    Folder(PathBuf),
}

struct Candidate {
    version: (u32, u32, u32),
    place: Place,
}

/// The packs that can be extended from one folder of packs, each loaded at most once.
#[derive(Debug, Default)]
pub(super) struct Library {
    /// The folder of packs; `None` for packs that are compiled in.
    folder: Option<PathBuf>,
    /// By name: version and folder of each pack in it.
    siblings: OnceLock<Result<Siblings, Fault>>,
    loaded: BTreeMap<PathBuf, Arc<Pack>>,
}

type Siblings = BTreeMap<String, Vec<((u32, u32, u32), PathBuf)>>;

impl Library {
    pub(super) fn of(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()), ..Self::default() }
    }

    /// The library of the folder that a pack's folder is in.
    pub(super) fn beside(folder: &Path) -> Self {
        // `..` has no parent by its name.
        let absolute = if folder.file_name().is_some() { std::path::absolute(folder) } else { folder.canonicalize() };
        Self { folder: absolute.ok().and_then(|path| path.parent().map(Path::to_owned)), ..Self::default() }
    }

    /// Loads the pack of a folder, or names every fault in it.
    pub(super) fn load(&mut self, folder: &Path) -> Loaded {
        self.load_within(folder, &mut Vec::new())
    }

    /// The pack that these files extend, if they extend one.
    pub(super) fn parent_of(&mut self, files: &Files, folder: &Path) -> Result<Option<Arc<Pack>>, PackError> {
        self.parent(files, Some(folder), &mut vec![shown(folder)])
    }

    fn load_within(&mut self, folder: &Path, trail: &mut Vec<String>) -> Loaded {
        let key = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        if let Some(loaded) = self.loaded.get(&key) {
            return Ok(Arc::clone(loaded));
        }
        let files = Files::read(folder)?;
        trail.push(shown(folder));
        let parent = self.parent(&files, Some(folder), trail);
        trail.pop();
        let loaded = Pack::load_over(&files, parent?.as_ref())?;
        self.loaded.insert(key, Arc::clone(&loaded));
        Ok(loaded)
    }

    fn parent(
        &mut self,
        files: &Files,
        folder: Option<&Path>,
        trail: &mut Vec<String>,
    ) -> Result<Option<Arc<Pack>>, PackError> {
        let Some(extends) = wanted(files).map_err(PackError::of)? else { return Ok(None) };
        let refuse = |message: String| extends.refused(message);
        if trail.len() >= MAX_LEVELS {
            return Err(extends.too_long());
        }
        let parent = match self.find(&extends, folder).map_err(&refuse)? {
            Place::Embedded(pack) if trail.iter().any(|name| name == pack.name) => Err(circle(trail, pack.name)),
            Place::Folder(folder) if trail.contains(&shown(&folder)) => Err(circle(trail, &shown(&folder))),
            Place::Embedded(pack) => Ok(embedded(pack, trail)),
            Place::Folder(folder) => Ok(self.load_within(&folder, trail)),
        };
        extends.checked(parent.map_err(&refuse)?).map(Some)
    }

    /// The pack that these files extend, of those that are compiled in.
    pub(super) fn embedded_parent(files: &Files) -> Result<Option<Arc<Pack>>, PackError> {
        // No name of a pack, so that it closes no circle.
        Self::default().parent(files, None, &mut vec!["the pack itself".to_owned()])
    }

    /// The files of a folder's pack and of each pack that it extends which is not compiled in, the pack itself last.
    pub(super) fn chain(&self, folder: &Path) -> Result<Vec<Files>, PackError> {
        let (mut chain, mut folder) = (vec![Files::read(folder)?], folder.to_owned());
        while let Some(extends) = chain.last().map(wanted).transpose().map_err(PackError::of)?.flatten() {
            match self.find(&extends, Some(&folder)).map_err(|message| extends.refused(message))? {
                Place::Embedded(_) => break,
                // A circle of packs is too long as well.
                Place::Folder(_) if chain.len() >= MAX_LEVELS => return Err(extends.too_long()),
                Place::Folder(next) => {
                    chain.push(Files::read(&next)?);
                    folder = next;
                }
            }
        }
        chain.reverse();
        Ok(chain)
    }

    /// The highest version among the packs of that name and major version.
    fn find(&self, extends: &Extends, own: Option<&Path>) -> Result<Place, String> {
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut others: Vec<String> = Vec::new();
        let mut see = |name: &str, version: (u32, u32, u32), place: Place| {
            if name == extends.name && version.0 == extends.major {
                candidates.push(Candidate { version, place });
            } else if others.len() < MAX_LISTED {
                others.push(format!("{name}@{}", version.0));
            }
        };
        for pack in EMBEDDED {
            if let Some((name, version)) = head(pack.files().get(MANIFEST).unwrap_or_default()) {
                see(&name, version, Place::Embedded(pack));
            }
        }
        let reserved = EMBEDDED.iter().find(|pack| pack.name == extends.name);
        let own = own.and_then(|own| own.canonicalize().ok());
        for (name, found) in self.siblings().map_err(|fault| fault.to_string())? {
            for (version, folder) in found {
                // A pack may have the name of the one that it extends.
                if own.is_some() && folder.canonicalize().ok() == own {
                    continue;
                }
                let place = Place::Folder(folder.clone());
                match reserved.filter(|pack| pack.name == name && version.0 == extends.major) {
                    None => see(name, *version, place),
                    Some(pack) if is_same(&Place::Embedded(pack), &place) => {}
                    Some(_) => return Err(taken(name, folder)),
                }
            }
        }
        candidates.sort_by_key(|candidate| Reverse(candidate.version));
        let mut best = candidates.iter().take_while(|one| Some(one.version) == candidates.first().map(|c| c.version));
        let Some(first) = best.next() else {
            others.dedup();
            let (name, major) = (&extends.name, extends.major);
            return Err(format!(
                "there is no pack `{name}` of version {major} to extend: there are {}",
                others.join(", ")
            ));
        };
        if best.any(|other| !is_same(&first.place, &other.place)) {
            let ((major, minor, patch), name) = (first.version, &extends.name);
            return Err(format!("there are two packs `{name}@{major}.{minor}.{patch}` of different content"));
        }
        Ok(first.place.clone())
    }

    fn siblings(&self) -> Result<&Siblings, Fault> {
        let found = self.siblings.get_or_init(|| match &self.folder {
            Some(folder) => siblings(folder),
            None => Ok(Siblings::new()),
        });
        found.as_ref().map_err(Clone::clone)
    }
}

/// Name and version of each pack in a folder of packs. What is no pack is passed over.
fn siblings(folder: &Path) -> Result<Siblings, Fault> {
    let mut siblings = Siblings::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(siblings) };
    let mut folders = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || !path.join(MANIFEST).is_file() {
            continue;
        }
        if folders.len() == MAX_SIBLINGS {
            let message = format!("has more than {MAX_SIBLINGS} packs in it");
            return Err(Fault::new(&folder.display().to_string(), message));
        }
        folders.push(path);
    }
    folders.sort_unstable();
    for path in folders {
        if let Some((name, version)) = read_text(&path.join(MANIFEST), MANIFEST).ok().as_deref().and_then(head) {
            siblings.entry(name).or_default().push((version, path));
        }
    }
    Ok(siblings)
}

fn head(manifest: &str) -> Option<(String, (u32, u32, u32))> {
    let head: Head = toml::from_str(manifest).ok()?;
    Some((head.name, semver(&head.version)?))
}

fn is_same(one: &Place, other: &Place) -> bool {
    let files = |place: &Place| match place {
        Place::Embedded(pack) => Some(pack.files()),
        Place::Folder(folder) => Files::read(folder).ok(),
    };
    files(one).zip(files(other)).is_some_and(|(one, other)| one == other)
}

fn taken(name: &str, folder: &Path) -> String {
    let folder = folder.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "`{name}` is the name of a pack that is compiled in, and the folder `{folder}` beside this one has a pack of \
         that name with other content: give that pack another name, or move it to another folder"
    )
}

/// What tells the folders of a chain apart. Packs that are compiled in go by their names.
fn shown(folder: &Path) -> String {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string()
}

fn circle(trail: &[String], again: &str) -> String {
    format!("the packs extend each other in a circle: {}, {again}", trail.join(", "))
}

/// A pack that is compiled in, loaded once per process. Of the trail only such packs count, so that the
/// result is the same for every pack that extends it.
fn embedded(pack: &'static Embedded, trail: &[String]) -> Loaded {
    static LOADED: LazyLock<Vec<OnceLock<Loaded>>> =
        LazyLock::new(|| EMBEDDED.iter().map(|_| OnceLock::new()).collect());
    let load = || {
        let is_embedded = |name: &&String| EMBEDDED.iter().any(|known| known.name == **name);
        let mut trail: Vec<String> = trail.iter().filter(is_embedded).cloned().collect();
        trail.push(pack.name.to_owned());
        let files = pack.files();
        let parent = Library::default().parent(&files, None, &mut trail)?;
        Pack::load_tested(&files, parent.as_ref())
    };
    let index = EMBEDDED.iter().position(|known| known.name == pack.name);
    match index.and_then(|index| LOADED.get(index)) {
        Some(loaded) => loaded.get_or_init(load).clone(),
        None => load(),
    }
}

impl Pack {
    /// The compiled-in baseline. It is loaded once per process.
    pub fn embedded() -> Loaded {
        let unknown = || Err(PackError::of(Fault::new(MANIFEST, "the baseline is not compiled in")));
        Self::embedded_named(BASELINE).unwrap_or_else(unknown)
    }

    /// A compiled-in template by its name, loaded once per process.
    pub fn template(name: &str) -> Option<Loaded> {
        Self::embedded_named(name).filter(|_| name != BASELINE)
    }

    /// The names of the compiled-in templates.
    pub fn templates() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|pack| pack.name).filter(|name| *name != BASELINE)
    }

    /// The files of a compiled-in template, each with its text.
    pub fn template_files(name: &str) -> Option<impl Iterator<Item = (&'static str, &'static str)>> {
        EMBEDDED.iter().find(|pack| pack.name == name && name != BASELINE).map(Embedded::texts)
    }

    /// Whether a pack can have this name: 1 to 40 small letters, digits or `-`.
    pub fn is_name(name: &str) -> bool {
        is_name(name)
    }

    fn embedded_named(name: &str) -> Option<Loaded> {
        let pack = EMBEDDED.iter().find(|pack| pack.name == name)?;
        Some(embedded(pack, &[]))
    }
}
