//! The NATS logins, one for each process: their password files, and the choice of a login at the start.
//!
//! A process takes the first `<role>-<number>.password` that no other process has locked and holds the lock until it
//! ends, so replicas with the same settings get different logins. The lock works within one machine: two machines must
//! be given different files. Two processes with the same login would work, but each could receive the other's replies.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use stage0_backplane::nats::{Logins, NatsServerConf};
use stage0_contract::Role;
use stage0_secret_file::check_secret_file;

use crate::files;

const SUFFIX: &str = ".password";
const PASSWORDS_FILE: &str = "passwords.conf";

/// A login that this process holds until the value is dropped. No `Debug`: it holds a password.
pub(crate) struct TakenLogin {
    pub(crate) user: String,
    pub(crate) password: String,
    _lock: File,
}

/// Takes the first login of the directory that no other process holds. The error is the text for the setting.
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
        0 => format!("must hold `{role}-1{SUFFIX}`: `stage0 nats-config --logins-dir` creates it"),
        _ => format!(
            "holds {count} logins, all taken by processes on this machine: make more with \
             `stage0 nats-config --logins-dir`, or end a process"
        ),
    })
}

/// Creates what is missing: for each role a directory with a file per login, the administrator's directory, and
/// `passwords.conf`, which sets the variables of nats-server.
pub(crate) fn create(dir: &Path, logins: Logins) -> anyhow::Result<()> {
    files::private_dir(dir)?;
    let mut passwords = String::new();
    for role in Role::ALL {
        let role_dir = dir.join(role.as_str());
        files::private_dir(&role_dir)?;
        for user in logins.of(role) {
            let password = read_or_create(&role_dir.join(format!("{user}{SUFFIX}")))?;
            passwords.push_str(&variable(&user, &password));
        }
    }
    let admin_dir = dir.join(NatsServerConf::ADMIN_USER);
    files::private_dir(&admin_dir)?;
    passwords.push_str(&variable(NatsServerConf::ADMIN_USER, &read_or_create(&admin_dir.join("nats.password"))?));
    files::replace(&dir.join(PASSWORDS_FILE), &passwords)
}

pub(crate) fn variable(user: &str, password: &str) -> String {
    format!("{}: {password:?}\n", NatsServerConf::password_variable(user))
}

/// A file with the same content is not replaced, because a process may hold its lock.
pub(crate) fn put(dir: &Path, user: &str, password: &str) -> anyhow::Result<()> {
    let (path, text) = (dir.join(format!("{user}{SUFFIX}")), format!("{password}\n"));
    if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    files::replace(&path, &text)
}

pub(crate) fn read_or_create(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim_end().to_owned();
            ensure!(!text.is_empty(), "`{}` is empty: remove it to get a new password", path.display());
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
    fn each_process_takes_its_own_login_and_frees_it_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Logins { gateways: 2, ..Logins::default() }).unwrap();
        let gateways = dir.path().join("gateway");
        let (first, second) = (take(&gateways, Role::Gateway).unwrap(), take(&gateways, Role::Gateway).unwrap());
        assert_eq!((first.user.as_str(), second.user.as_str()), ("gateway-1", "gateway-2"));
        assert_ne!(first.password, second.password);
        let why = take(&gateways, Role::Gateway).err().unwrap();
        assert!(why.contains("holds 2 logins") && !why.contains(&first.password), "{why}");
        drop(first);
        assert_eq!(take(&gateways, Role::Gateway).unwrap().user, "gateway-1");
        let why = take(&gateways, Role::Evaluator).err().unwrap();
        assert!(why.contains("`evaluator-1.password`"), "{why}");
    }

    #[test]
    fn a_second_run_keeps_existing_logins_and_creates_missing_ones() {
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
    fn a_password_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Logins::default()).unwrap();
        let keystores = dir.path().join("keystore");
        let file = keystores.join("keystore-1.password");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(take(&keystores, Role::Keystore).err().unwrap().contains("keystore-1.password"));
    }
}
