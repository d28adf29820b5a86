//! The logins of NATS, one for each process: their passwords' files, and which of them this process takes.
//!
//! A directory of a role holds `<role>-<number>.password`. A process takes the first whose file nobody has locked and
//! keeps the lock for as long as it lives, so that replicas that are started alike each get their own. The lock only
//! tells the processes of one machine apart: two machines are given different files. Two processes with one login would
//! work, and could hear the answers that are meant for the other, sealed as far as they hold secrets.

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stage0_backplane::check_secret_file;
use stage0_backplane::nats::{Logins, ServerFile};
use stage0_contract::Role;

use crate::files;

const SUFFIX: &str = ".password";
const PASSWORDS_FILE: &str = "passwords.conf";

/// A login that is this process's for as long as this lives.
pub(crate) struct TakenLogin {
    pub(crate) user: String,
    pub(crate) password: String,
    _lock: File,
}

impl fmt::Debug for TakenLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Takes the first login of the directory that no other process has; what is wrong otherwise, as a setting says it.
pub(crate) fn take(dir: &Path, role: Role) -> Result<TakenLogin, String> {
    let mut found: Vec<(u32, String, PathBuf)> = Vec::new();
    let unreadable = |error| format!("must name a directory that can be read ({error})");
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(user) = name.strip_suffix(SUFFIX) else { continue };
        let number = user.strip_prefix(role.as_str()).and_then(|rest| rest.strip_prefix('-'));
        if let Some(Ok(number)) = number.map(str::parse) {
            found.push((number, user.to_owned(), path));
        }
    }
    found.sort();
    let count = found.len();
    for (_, user, path) in found {
        let unusable = |error| format!("holds `{user}{SUFFIX}`, which cannot be used ({error})");
        let lock = File::open(&path).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        check_secret_file(&path).map_err(|exposed| format!("holds `{user}{SUFFIX}`: {exposed}"))?;
        let password = std::fs::read_to_string(&path).map_err(unusable)?.trim_end_matches(['\r', '\n']).to_owned();
        if password.is_empty() || password.contains('\n') {
            return Err(format!("holds `{user}{SUFFIX}`, which must be one line, the password"));
        }
        return Ok(TakenLogin { user, password, _lock: lock });
    }
    Err(match count {
        0 => format!("must hold `{role}-1{SUFFIX}`: `stage0 nats-config --logins-dir` makes it"),
        _ => format!(
            "holds {count} logins, and processes on this machine have them all: make more with \
             `stage0 nats-config --logins-dir`, or end a process"
        ),
    })
}

/// Makes what is missing: each role's directory with a file for each login, the administrator's with its own, and the
/// file that sets the variables.
pub(crate) fn create(dir: &Path, logins: Logins) -> anyhow::Result<()> {
    files::private_dir(dir)?;
    let mut passwords = String::new();
    for role in Role::ALL {
        let of_role = dir.join(role.as_str());
        files::private_dir(&of_role)?;
        for user in logins.of(role) {
            let password = kept(&of_role.join(format!("{user}{SUFFIX}")))?;
            passwords.push_str(&variable(&user, &password));
        }
    }
    let of_admin = dir.join(ServerFile::ADMIN_USER);
    files::private_dir(&of_admin)?;
    passwords.push_str(&variable(ServerFile::ADMIN_USER, &kept(&of_admin.join("nats.password"))?));
    files::replace(&dir.join(PASSWORDS_FILE), &passwords)
}

/// As a line of the file that nats-server includes.
pub(crate) fn variable(user: &str, password: &str) -> String {
    format!("{}: {password:?}\n", ServerFile::password_variable(user))
}

/// Puts a login's password where its role finds it. What is there already stays the same file: a process may have
/// locked it.
pub(crate) fn put(dir: &Path, user: &str, password: &str) -> anyhow::Result<()> {
    let (path, text) = (dir.join(format!("{user}{SUFFIX}")), format!("{password}\n"));
    if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    files::replace(&path, &text)
}

/// The secret of this file, which is made when it is not there.
pub(crate) fn kept(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim_end().to_owned();
            ensure!(!text.is_empty(), "`{}` is empty: remove it, and a new password is made", path.display());
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).context("the system gives no random bytes")?;
            let secret = data_encoding::HEXLOWER.encode(&secret);
            files::replace(path, &format!("{secret}\n"))?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_takes_a_login_of_its_own_until_there_is_none_and_one_that_ended_frees_its() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Logins { gateways: 2, ..Logins::default() }).unwrap();
        let gateways = dir.path().join("gateway");
        let (first, second) = (take(&gateways, Role::Gateway).unwrap(), take(&gateways, Role::Gateway).unwrap());
        assert_eq!((first.user.as_str(), second.user.as_str()), ("gateway-1", "gateway-2"));
        assert_ne!(first.password, second.password);
        let why = take(&gateways, Role::Gateway).unwrap_err();
        assert!(why.contains("holds 2 logins") && !why.contains(&first.password), "{why}");
        drop(first);
        assert_eq!(take(&gateways, Role::Gateway).unwrap().user, "gateway-1");
        let why = take(&gateways, Role::Evaluator).unwrap_err();
        assert!(why.contains("`evaluator-1.password`"), "{why}");
    }

    #[test]
    fn a_second_run_keeps_what_is_there_and_makes_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Logins { keystores: 1, ..Logins::default() }).unwrap();
        let password = |user: &str| std::fs::read_to_string(dir.path().join(format!("keystore/{user}.password")));
        let first = password("keystore-1").unwrap();
        assert!(password("keystore-2").is_err());
        create(dir.path(), Logins::default()).unwrap();
        assert_eq!(password("keystore-1").unwrap(), first);
        let file = std::fs::read_to_string(dir.path().join(PASSWORDS_FILE)).unwrap();
        assert!(file.contains(&format!("KEYSTORE_1_PASSWORD: {:?}\n", first.trim_end())), "{file}");
        assert!(file.contains("\nADMIN_PASSWORD: ") && dir.path().join("admin/nats.password").exists(), "{file}");
        assert_eq!(file.lines().count(), 36);
    }

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Logins::default()).unwrap();
        let keystores = dir.path().join("keystore");
        let file = keystores.join("keystore-1.password");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(take(&keystores, Role::Keystore).unwrap_err().contains("keystore-1.password"));
    }
}
