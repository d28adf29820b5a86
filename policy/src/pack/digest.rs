//! The version of a pack: a name that cannot belong to other content.
//!
//! Owns the digest: SHA-256 over every file's name and bytes in the order of names, each preceded by its length, so
//! that two different packs never hash the same bytes.

use sha2::{Digest, Sha256};
use stage0_contract::PolicyVersion;

use crate::files::{Fault, Files, MANIFEST};
use crate::secrets::spec::BASE;

const SHOWN: usize = 12;

/// What a pack is made of besides its own files.
#[derive(Debug, Default)]
pub(super) struct Foundation<'a> {
    /// The text of the secret forms that the pack uses in addition to its own.
    pub(super) secrets: Option<&'a str>,
    /// The version of the pack that it extends.
    pub(super) parent: Option<&'a PolicyVersion>,
}

/// The name under which the parent's version enters the digest. No file of a pack has it.
const PARENT: &str = "the pack that it extends";

/// The version in the form `<name>@<semver>+<digest>`.
pub(super) fn version(
    name: &str,
    semver: &str,
    files: &Files,
    foundation: &Foundation<'_>,
) -> Result<PolicyVersion, Fault> {
    let secrets = foundation.secrets.map(|text| (BASE, text));
    let parent = foundation.parent.map(|version| (PARENT, version.as_str()));
    let mut hasher = Sha256::new();
    for (name, text) in files.iter().chain(secrets).chain(parent) {
        for part in [name.as_bytes(), text.as_bytes()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let shown = hex.get(..SHOWN).unwrap_or(&hex);
    let version = PolicyVersion::parse(&format!("{name}@{semver}+{shown}"));
    version.map_err(|_| Fault::new(MANIFEST, "`name` and `version` are too long together"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(files: &[(&str, &str)]) -> String {
        version("p", "1.0.0", &Files::of(files.iter().copied()), &Foundation::default()).unwrap().to_string()
    }

    #[test]
    fn any_changed_byte_or_name_is_another_version() {
        let base = digest(&[("a", "bc"), ("d", "")]);
        assert_eq!(base, digest(&[("d", ""), ("a", "bc")]));
        for other in
            [&[("a", "bd"), ("d", "")][..], &[("ab", "c"), ("d", "")], &[("a", "bc")], &[("a", "bc"), ("e", "")]]
        {
            assert_ne!(base, digest(other));
        }
        let on = |secrets: Option<&str>, parent: Option<&str>| {
            let parent = parent.map(|version| PolicyVersion::parse(version).unwrap());
            let foundation = Foundation { secrets, parent: parent.as_ref() };
            version("p", "1.0.0", &Files::of([("a", "bc"), ("d", "")]), &foundation).unwrap().to_string()
        };
        let parents = [Some("b@1.0.0+000000000001"), Some("b@1.0.0+000000000002")];
        let based = [on(Some("forms"), None), on(None, parents[0]), on(None, parents[1])];
        assert!(!based.contains(&base), "what a pack extends is part of it");
        assert_ne!(based[1], based[2]);
    }

    #[test]
    fn the_digest_of_one_small_file_is_this() {
        // printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\2bc' | sha256sum
        assert_eq!(digest(&[("a", "bc")]), "p@1.0.0+3fafa1cf2f19");
    }
}
