//! Files that hold a secret: keys, passwords, private keys of certificates.
//!
//! Only its owner may read such a file; its group too if the file was given to the process by another user or by root,
//! as orchestrators do with secrets for containers (mode 0440, `fsGroup`). libpq has the same rule for a client's key.
//! Servers and clients use this one rule; it is a crate of its own so that a client depends on no part of a server.

use std::path::{Path, PathBuf};

#[cfg(unix)]
const OWNER: u32 = 0o700;
#[cfg(unix)]
const GROUP_READS: u32 = 0o040;

/// A secret file that others may read or change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "others may read or change `{}` (its mode is {mode:04o}): type `chmod 600 {}`",
    path.display(),
    quoted(&path.display().to_string())
)]
pub struct Exposed {
    path: PathBuf,
    mode: u32,
}

/// Refuses a file that others may read or change; the error says what to type. A path that cannot be inspected passes,
/// and on systems without Unix modes every file does.
pub fn check_secret_file(path: &Path) -> Result<(), Exposed> {
    match exposed_mode(path) {
        Some(mode) => Err(Exposed { path: path.to_owned(), mode }),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn exposed_mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let exposed = is_exposed(found.mode(), found.uid(), rustix::process::geteuid().as_raw());
    exposed.then_some(found.mode() & 0o7777)
}

#[cfg(not(unix))]
fn exposed_mode(_: &Path) -> Option<u32> {
    None
}

#[cfg(unix)]
fn is_exposed(mode: u32, owner: u32, process: u32) -> bool {
    // An owner could change the mode; root's group is trusted like root.
    let may_be_given = owner != process || owner == 0;
    let allowed = if may_be_given { OWNER | GROUP_READS } else { OWNER };
    mode & 0o777 & !allowed != 0
}

/// As a shell reads it.
fn quoted(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@%:,=".contains(&b);
    if path.bytes().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_file_may_be_group_readable_only_if_another_user_owns_it() {
        for mode in [0o400, 0o600, 0o700] {
            assert!(!is_exposed(mode, 1000, 1000), "{mode:o}");
        }
        for mode in [0o440, 0o640, 0o604, 0o601, 0o620, 0o644, 0o666, 0o777] {
            assert!(is_exposed(mode, 1000, 1000), "{mode:o}");
        }
        for (owner, process) in [(0, 1000), (1001, 1000), (0, 0)] {
            assert!(!is_exposed(0o440, owner, process) && !is_exposed(0o640, owner, process));
            for mode in [0o644, 0o444, 0o660, 0o650, 0o602] {
                assert!(is_exposed(mode, owner, process), "{mode:o}");
            }
        }
        assert!(!is_exposed(0o100_600, 1, 1), "the kind of file is no right");
    }

    #[test]
    fn the_refusal_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's a key");
        assert_eq!(check_secret_file(&path), Ok(()), "missing");
        assert_eq!(check_secret_file(dir.path()), Ok(()), "no file");
        std::fs::write(&path, "x").unwrap();
        let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        allow(0o644);
        let refused = check_secret_file(&path).unwrap_err().to_string();
        assert!(refused.contains("mode is 0644") && refused.ends_with(r"it'\''s a key'`"), "{refused}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(check_secret_file(&link).is_err(), "orchestrators mount secrets through links");
        allow(0o600);
        assert_eq!((check_secret_file(&path), check_secret_file(&link)), (Ok(()), Ok(())));
    }
}
