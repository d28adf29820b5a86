//! The version of a pack: a name that cannot belong to other content.
//!
//! Owns the digest: SHA-256 over every file's name and bytes in the order of names, each preceded by its length, so
//! that two different packs never hash the same bytes.

use sha2::{Digest, Sha256};
use stage0_contract::PolicyVersion;

use crate::files::{Fault, Files, MANIFEST};
use crate::secrets::spec::BASE;

const SHOWN: usize = 12;

/// `<name>@<semver>+<digest>`. `base` is the text of the secret forms that the pack uses in addition to its own.
pub(super) fn version(name: &str, semver: &str, files: &Files, base: Option<&str>) -> Result<PolicyVersion, Fault> {
    let mut hasher = Sha256::new();
    for (name, text) in files.iter().chain(base.map(|text| (BASE, text))) {
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
        version("p", "1.0.0", &Files::of(files.iter().copied()), None).unwrap().to_string()
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
        let based = version("p", "1.0.0", &Files::of([("a", "bc"), ("d", "")]), Some("forms")).unwrap();
        assert_ne!(base, based.to_string(), "what a pack extends is part of it");
    }

    #[test]
    fn the_digest_of_one_small_file_is_this() {
        // printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\2bc' | sha256sum
        assert_eq!(digest(&[("a", "bc")]), "p@1.0.0+3fafa1cf2f19");
    }
}
