//! Message key files, one for each role, mode 0600: read, watched, created and rotated (`stage0 nats-keys`).
//!
//! The keys themselves and the order of a rotation belong to the backplane. A file that everybody can read is refused.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stage0_backplane::nats::{KeySet, MessageAuth, MessageKeys, Requirement, Rotation};
use stage0_contract::Role;

use crate::args::nats::NatsKeysCommand;
use crate::{files, out};

const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

pub(crate) fn run(command: NatsKeysCommand) -> anyhow::Result<()> {
    match command {
        NatsKeysCommand::Create { dir, upgrade } => create_for_people(&dir, upgrade),
        NatsKeysCommand::Rotate { dir } => rotate(&dir),
        NatsKeysCommand::Show { dir, json } => show(&dir, json),
    }
}

/// Reads a role's keys. The error is the text for the setting.
pub(crate) fn read(path: &Path, role: Role) -> Result<MessageKeys, String> {
    let unreadable = |error: std::io::Error| format!("must name a file that can be read ({error})");
    let mode = path.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(format!("can be used by everybody on this machine: chmod 600 {}", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let keys = MessageKeys::parse(&text).map_err(|error| error.to_string())?;
    if keys.role() != role {
        return Err(format!("holds the keys of `{}`: this role's are in `{}`", keys.role(), file_name(role)));
    }
    Ok(keys)
}

/// Reads the keys again whenever the file changes, until the task is dropped. An unusable file changes nothing.
pub(crate) async fn watch(path: PathBuf, auth: Arc<MessageAuth>) {
    let mut last = changed_at(&path);
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let now = changed_at(&path);
        if now == last {
            continue;
        }
        last = now;
        let (file, role) = (path.clone(), auth.role());
        let read = tokio::task::spawn_blocking(move || read(&file, role)).await;
        let replaced = match read {
            Ok(Ok(keys)) => auth.replace(&keys).map(|()| keys.generations()).map_err(|error| error.to_string()),
            Ok(Err(why)) => Err(why),
            Err(error) => Err(error.to_string()),
        };
        match replaced {
            Ok((active, accepted)) => tracing::info!(active, ?accepted, "message keys were replaced"),
            Err(why) => tracing::error!(file = %path.display(), "message keys stay as they were: the file {why}"),
        }
    }
}

/// Not when it was modified: an administrator writes a file, and gives it to the role's user a moment later. Only the
/// time of change tells the second.
fn changed_at(path: &Path) -> Option<(i64, i64, u64)> {
    let found = path.metadata().ok()?;
    Some((found.ctime(), found.ctime_nsec(), found.len()))
}

pub(crate) fn file_name(role: Role) -> String {
    format!("{role}.keys")
}

/// Creates the files of all roles, unless there are some. Returns whether they were created.
pub(crate) fn create(dir: &Path, require: Requirement) -> anyhow::Result<bool> {
    if Role::ALL.iter().any(|role| dir.join(file_name(*role)).exists()) {
        load(dir)?;
        return Ok(false);
    }
    files::private_dir(dir)?;
    write(dir, &KeySet::create(require)?)?;
    Ok(true)
}

pub(crate) fn load(dir: &Path) -> anyhow::Result<KeySet> {
    match read_all(dir, |role| dir.join(file_name(role))) {
        Ok(set) => Ok(set),
        // After a crash between the renames of a step, the renamed files and the remaining `.next` files are one set.
        Err(error) => match read_all(dir, |role| pending(dir, role).unwrap_or_else(|| dir.join(file_name(role)))) {
            Ok(set) => {
                rename_pending(dir)?;
                Ok(set)
            }
            Err(_) => Err(error),
        },
    }
}

fn read_all(dir: &Path, path: impl Fn(Role) -> PathBuf) -> anyhow::Result<KeySet> {
    let read = |role: Role| {
        let path = path(role);
        read(&path, role).map_err(|why| anyhow::anyhow!("`{}` {why}", path.display()))
    };
    let all = Role::ALL.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    KeySet::of(all).with_context(|| format!("cannot use the keys in `{}`", dir.display()))
}

/// Writes all files as `.next` before the first is renamed, so that a crash leaves the old set or the new one.
fn write(dir: &Path, set: &KeySet) -> anyhow::Result<()> {
    for (role, keys) in set.roles() {
        files::replace(&next_path(dir, role), &keys.render()?)?;
    }
    rename_pending(dir)
}

fn rename_pending(dir: &Path) -> anyhow::Result<()> {
    for role in Role::ALL {
        if let Some(next) = pending(dir, role) {
            let path = dir.join(file_name(role));
            std::fs::rename(&next, &path).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
    }
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("cannot write `{}`", dir.display()))
}

fn next_path(dir: &Path, role: Role) -> PathBuf {
    dir.join(format!("{role}.next"))
}

fn pending(dir: &Path, role: Role) -> Option<PathBuf> {
    Some(next_path(dir, role)).filter(|path| path.exists())
}

fn create_for_people(dir: &Path, upgrade: bool) -> anyhow::Result<()> {
    let require = if upgrade { Requirement::WhenAllCan } else { Requirement::Always };
    ensure!(
        create(dir, require)?,
        "there are keys in `{}` already, and data that was stored with them cannot be read with others. To replace \
         them: stage0 nats-keys rotate --dir {}",
        dir.display(),
        dir.display()
    );
    let then = if upgrade {
        "start every role with its file: once all roles have sent authenticated messages for half a minute, other \
         messages are refused"
    } else {
        "start every role with its file: messages without authentication are refused from the start"
    };
    let files = Role::ALL.map(|role| format!("  {role:<13} --message-keys {}", dir.join(file_name(role)).display()));
    Ok(out::line(format!(
        "{}\n{then}. Keep a backup of `{}`: without these keys stored data is not accepted",
        files.join("\n"),
        dir.display()
    ))?)
}

fn rotate(dir: &Path) -> anyhow::Result<()> {
    let mut set = load(dir)?;
    let step = set.rotate(jiff::Timestamp::now())?;
    write(dir, &set)?;
    let text = match step {
        Rotation::Accepted(new) => format!(
            "step 1 of 3: generation {new} is accepted and not used yet. Give every role its file; once each has \
             logged `message keys were replaced`, run this again"
        ),
        Rotation::Activated(new) => format!(
            "step 2 of 3: generation {new} is used, and the previous one still accepted. Give every role its file; \
             once each has logged `message keys were replaced`, run this again"
        ),
        Rotation::Retired(old) => format!(
            "step 3 of 3: generation {old} is retired; data stored with it still verifies. Give every role its file"
        ),
    };
    Ok(out::line(text)?)
}

fn show(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let set = load(dir)?;
    let Some(keys) = set.role(Role::Gateway) else { bail!("no keys") };
    let (active, accepted) = keys.generations();
    let require = match keys.requirement() {
        Requirement::Always => "always",
        Requirement::WhenAllCan => "when all roles can",
    };
    if as_json {
        return out::json(&serde_json::json!({"required": require, "used": active, "accepted": accepted}));
    }
    let accepted: Vec<String> = accepted.iter().map(u32::to_string).collect();
    Ok(out::line(format!("required     {require}\nused         {active}\naccepted     {}", accepted.join(", ")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_have_mode_0600_and_are_not_created_twice() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        assert!(create(&dir, Requirement::Always).unwrap());
        let first = load(&dir).unwrap();
        assert!(!create(&dir, Requirement::Always).unwrap());
        assert_eq!(load(&dir).unwrap(), first);
        for role in Role::ALL {
            let path = dir.join(file_name(role));
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(&read(&path, role).unwrap(), first.role(role).unwrap());
        }
        assert!(create_for_people(&dir, false).unwrap_err().to_string().contains("nats-keys rotate"));
    }

    #[test]
    fn a_file_that_its_role_may_read_only_later_counts_as_changed_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.keys");
        std::fs::write(&path, "keys").unwrap();
        let (first, begun) = (changed_at(&path), std::time::Instant::now());
        // The clock of a file system moves every few milliseconds.
        while changed_at(&path) == first {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "a change of the mode is not noticed");
        }
    }

    #[test]
    fn a_file_of_another_role_or_one_that_everybody_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Requirement::Always).unwrap();
        let path = dir.path().join(file_name(Role::Keystore));
        assert!(read(&path, Role::Gateway).unwrap_err().contains("`gateway.keys`"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path, Role::Keystore).unwrap_err().contains("chmod 600"));
        std::fs::remove_file(&path).unwrap();
        assert!(load(dir.path()).is_err() && create(dir.path(), Requirement::Always).is_err());
    }

    #[test]
    fn a_crash_between_two_renames_leaves_the_old_or_the_new_set() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Requirement::Always).unwrap();
        let before = load(dir.path()).unwrap();
        let mut after = before.clone();
        after.rotate(jiff::Timestamp::now()).unwrap();
        let next = |role: Role| next_path(dir.path(), role);
        for role in [Role::Gateway, Role::Keystore] {
            files::replace(&next(role), &after.role(role).unwrap().render().unwrap()).unwrap();
        }
        assert_eq!(load(dir.path()).unwrap(), before, "not all files were written");
        for role in Role::ALL {
            files::replace(&next(role), &after.role(role).unwrap().render().unwrap()).unwrap();
        }
        std::fs::rename(next(Role::Gateway), dir.path().join(file_name(Role::Gateway))).unwrap();
        assert_eq!(load(dir.path()).unwrap(), after, "the first file was renamed");
        assert!(Role::ALL.iter().all(|role| !next(*role).exists()));
    }

    #[test]
    fn rotating_three_times_leaves_one_generation() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Requirement::Always).unwrap();
        for _ in 0..3 {
            rotate(dir.path()).unwrap();
        }
        assert_eq!(load(dir.path()).unwrap().role(Role::Evaluator).unwrap().generations(), (2, vec![2]));
    }
}
