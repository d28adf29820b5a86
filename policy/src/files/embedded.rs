//! The packs that are compiled into this binary: the baseline, and the templates that extend it.
//!
//! Each folder's files are named here, one by one; a test compares the names with the folders.

use super::Files;

/// The name of the pack that every other one extends in the end.
pub(crate) const BASELINE: &str = "baseline";

/// A pack of this binary: its name, and the name and text of each of its files.
pub(crate) struct Embedded {
    pub(crate) name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! folder {
    ($pack:literal: $($file:literal),+ $(,)?) => {
        Embedded {
            name: $pack,
            files: &[$(($file, include_str!(concat!("../../../policies/", $pack, "/", $file)))),+],
        }
    };
}

/// The baseline, then the templates by name.
pub(crate) static EMBEDDED: &[Embedded] = &[
    folder!(
        "baseline":
        "pack.toml",
        "schema.cedarschema",
        "vocabulary.toml",
        "effects.toml",
        "tools.toml",
        "codes.toml",
        "constraints.toml",
        "secrets.toml",
        "cases.json",
        "cases-2.json",
        "access.cedar",
        "approval.cedar",
        "change.cedar",
        "constraints.cedar",
        "effects.cedar",
        "evidence.cedar",
        "loop.cedar",
        "scope.cedar",
        "secrets.cedar",
        "value.cedar",
    ),
    folder!(
        "coding-agent":
        "cases.json",
        "codes.toml",
        "coding.cedar",
        "pack.toml",
        "schema.cedarschema",
        "tools.toml",
    ),
    folder!(
        "customer-messaging":
        "cases.json",
        "codes.toml",
        "messaging.cedar",
        "pack.toml",
        "schema.cedarschema",
        "tools.toml",
    ),
    folder!(
        "data-protection":
        "cases.json",
        "codes.toml",
        "data.cedar",
        "pack.toml",
        "schema.cedarschema",
        "tools.toml",
    ),
    folder!("money-movement": "cases.json", "codes.toml", "pack.toml", "payments.cedar", "schema.cedarschema"),
    folder!("production-ready": "cases.json", "codes.toml", "pack.toml", "production.cedar", "schema.cedarschema"),
    folder!("read-only-analyst": "analyst.cedar", "cases.json", "codes.toml", "pack.toml", "schema.cedarschema"),
];

impl Embedded {
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        self.files.iter().copied()
    }

    pub(crate) fn files(&self) -> Files {
        Files(self.files.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect())
    }
}

impl Files {
    /// The baseline pack that is compiled into this binary.
    #[cfg(test)]
    pub(crate) fn embedded() -> Self {
        EMBEDDED.iter().find(|pack| pack.name == BASELINE).map(Embedded::files).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn each_folder_of_a_pack_is_compiled_in_with_all_its_files() {
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let mut names: Vec<String> = std::fs::read_dir(&policies)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("pack.toml").is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, EMBEDDED.iter().map(|pack| pack.name).collect::<Vec<_>>());
        for pack in EMBEDDED {
            let folder = Files::read(&policies.join(pack.name)).unwrap();
            assert!(folder == pack.files(), "{}: another list of files or other texts", pack.name);
        }
    }
}
