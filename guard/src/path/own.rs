//! The guard's own files: its table, its key, its program and the like, wherever a person has put them.

use std::sync::Arc;

use super::pattern::part_could_be;
use super::segments;

/// Paths that decide what the guard does. They and all that lies below them are files of control.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnFiles {
    /// The segments of each, in lower case.
    paths: Arc<[Vec<String>]>,
}

impl OwnFiles {
    /// Absolute paths, or such below `~`.
    pub(crate) fn of(paths: &[String]) -> Self {
        let lower = |path: &String| segments("", &path.replace('\\', "/").to_lowercase()).0;
        Self { paths: paths.iter().map(lower).collect() }
    }

    /// Whether a path, in lower case, is one of them, lies below one or is a pattern that could stand for one. `above`:
    /// a directory that holds one counts too, since what replaces or moves it takes the file along.
    pub(super) fn cover(&self, path: &[String], above: bool) -> bool {
        self.paths.iter().any(|own| covers(own, path, above))
    }
}

fn covers(own: &[String], path: &[String], above: bool) -> bool {
    for (at, name) in own.iter().enumerate() {
        match path.get(at).map(String::as_str) {
            None => return above,
            // Any number of directories: what stands behind it decides.
            Some("**") => {
                let last = path.last().map_or("", String::as_str);
                return own.iter().skip(at).any(|name| part_could_be(last, name));
            }
            Some(part) if !part_could_be(part, name) => return false,
            Some(_) => {}
        }
    }
    true
}
