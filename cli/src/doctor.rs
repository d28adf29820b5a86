//! `stage0 doctor <role>`: reads the settings that the role would start with, looks at everything they lead to, and says of each finding what to do.
//!
//! Owns the findings and how they look. Changes nothing: it makes no stream, no file and no key, and holds no data directory, so it may
//! run beside the role. `certificates` and `nats` do the looking. Exit code 1 when the role would not start or not do its part.

mod certificates;
mod nats;

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::Access;
use serde::Serialize;
use stage0_backplane::nats::NatsConfig;
use stage0_contract::Role;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::out;
use crate::settings::NatsSafety;
use crate::settings::roles::{ExportSettings, GatewaySettings, OnNats, PolicySettings, TlsSource};
use stage0_keystore::{KeystoreConfig, OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};

/// Below this share of a disk writing will soon fail; of a large disk, below these bytes.
const LITTLE_SHARE: u64 = 20;
const LITTLE_BYTES: u64 = 10 << 30;
/// Files of the keystore's directory that nobody else may read.
const PRIVATE: [&str; 3] = [OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE];

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// As it should be.
    Good,
    /// It works, and somebody should know.
    Doubtful,
    /// The role does not start or cannot do its part.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) how: How,
    /// One word.
    pub(crate) about: &'static str,
    pub(crate) found: String,
    /// What to do; empty where all is well.
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn good(about: &'static str, found: impl Into<String>) -> Self {
        Self { how: How::Good, about, found: found.into(), advice: String::new() }
    }

    pub(crate) fn doubtful(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { how: How::Doubtful, about, found: found.into(), advice: advice.into() }
    }

    pub(crate) fn bad(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { how: How::Bad, about, found: found.into(), advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Good => "ok",
            How::Doubtful => "look",
            How::Bad => "BAD",
        };
        write!(f, "{how:<5} {:<12} {}", self.about, out::plain(&self.found))?;
        if !self.advice.is_empty() {
            write!(f, "\n{:18} -> {}", "", out::plain(&self.advice))?;
        }
        Ok(())
    }
}

/// `stage0 doctor gateway`.
pub(crate) fn gateway(settings: OnNats<GatewaySettings>, as_json: bool) -> Exit {
    let OnNats { nats, safety, service, .. } = settings;
    let mut findings = Vec::new();
    match service.tls {
        TlsSource::Files(files) => findings.extend(certificates::server(&files, Timestamp::now())),
        TlsSource::Dev(dir) => findings.push(Finding::doubtful(
            "certificate",
            format!("one for localhost is made in `{}`", dir.display()),
            "for clients of other machines give --tls-cert and --tls-key",
        )),
    }
    finish(Role::Gateway, findings, &nats, &safety, as_json)
}

/// `stage0 doctor evaluator`.
pub(crate) fn evaluator(settings: OnNats<PolicySettings>, as_json: bool) -> Exit {
    let OnNats { nats, safety, service, .. } = settings;
    let loaded = crate::roles::load_packs(service.dir, service.active, &service.selectable);
    let finding = match loaded {
        Ok(packs) => Finding::good("policy", format!("{} decides", packs.active().version())),
        Err(error) => {
            Finding::bad("policy", format!("{error:#}"), "mend the pack; `stage0 policy validate DIR` says more")
        }
    };
    finish(Role::Evaluator, vec![finding], &nats, &safety, as_json)
}

/// `stage0 doctor keystore`.
pub(crate) fn keystore(settings: OnNats<KeystoreConfig>, as_json: bool) -> Exit {
    let OnNats { nats, safety, service, .. } = settings;
    let mut findings = vec![disk(&service.data_dir)];
    findings.extend(private_files(&service.data_dir));
    if let Err(error) = service.validate() {
        findings.push(Finding::bad("settings", error.to_string(), "correct the setting"));
    }
    finish(Role::Keystore, findings, &nats, &safety, as_json)
}

/// `stage0 doctor audit-export`.
pub(crate) fn audit_export(settings: OnNats<ExportSettings>, as_json: bool) -> Exit {
    let OnNats { nats, safety, service, .. } = settings;
    let mut findings = Vec::new();
    if let Some(ca) = &service.export.egress.extra_ca {
        findings.push(certificates::file("webhook ca", ca, Timestamp::now()));
    }
    if service.export.egress.dangerous_allow_private {
        findings.push(Finding::doubtful(
            "webhooks",
            "may reach private addresses and plain http",
            "for a local stack only: elsewhere remove dangerous-allow-private-webhooks",
        ));
    }
    finish(Role::AuditExport, findings, &nats, &safety, as_json)
}

fn finish(role: Role, mut findings: Vec<Finding>, config: &NatsConfig, safety: &NatsSafety, as_json: bool) -> Exit {
    findings.insert(0, Finding::good("settings", format!("complete for {role} ({VERSION})")));
    findings.extend(certificates::of_nats(config, Timestamp::now()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => findings.extend(runtime.block_on(nats::look(role, config, safety.open_allowed))),
        Err(error) => findings.push(Finding::bad("system", format!("no threads: {error}"), "free some memory")),
    }
    let worst = findings.iter().any(|finding| finding.how == How::Bad);
    let written = if as_json {
        out::json(&serde_json::json!({"role": role, "ok": !worst, "findings": findings}))
    } else {
        let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        out::line(text).map_err(anyhow::Error::from)
    };
    match written {
        Ok(()) if worst => Exit::Failed,
        result => crate::run::finished(result),
    }
}

/// Room where the role writes.
fn disk(dir: &Path) -> Finding {
    const ABOUT: &str = "disk";
    let shown = dir.display();
    match rustix::fs::statvfs(dir) {
        Err(error) => Finding::bad(
            ABOUT,
            format!("`{shown}` cannot be looked at: {error}"),
            "make the directory, for this user alone, or name another with --data-dir",
        ),
        Ok(_) if rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err() => Finding::bad(
            ABOUT,
            format!("`{shown}` cannot be written by this user"),
            "give the directory to the user that the keystore runs as",
        ),
        Ok(found) => {
            let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
            room(ABOUT, &format!("`{shown}`"), free, all)
        }
    }
}

/// What of the directory others may read, and what this user may not.
fn private_files(dir: &Path) -> Vec<Finding> {
    const ABOUT: &str = "secrets";
    let files = PRIVATE.iter().map(|name| dir.join(name)).filter(|path| path.exists());
    let mut findings = Vec::new();
    for path in files.chain([dir.to_owned()]) {
        let shown = path.display();
        if rustix::fs::access(&path, Access::READ_OK).is_err() {
            let found = format!("`{shown}` cannot be read by this user");
            findings.push(Finding::bad(ABOUT, found, "give it to the user that the keystore runs as"));
        } else if path.metadata().is_ok_and(|data| data.permissions().mode() & 0o077 != 0) {
            let found = format!("`{shown}` can be read by others");
            findings.push(Finding::doubtful(ABOUT, found, format!("chmod go= {shown}")));
        }
    }
    if findings.is_empty() { vec![Finding::good(ABOUT, "are this user's alone")] } else { findings }
}

/// What is free of what there is.
pub(crate) fn room(about: &'static str, place: &str, free: u64, all: u64) -> Finding {
    let text = format!("{place}: {} of {} are free", size(free), size(all));
    if free < (all / LITTLE_SHARE).min(LITTLE_BYTES) {
        Finding::doubtful(about, text, "make room: what cannot be written is not acknowledged, and checks end with 503")
    } else {
        Finding::good(about, text)
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=0x3fff_ffff => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_told_and_enough_is_well() {
        assert_eq!(room("disk", "x", 6 << 30, 100 << 30).how, How::Good);
        assert_eq!(room("disk", "x", 512 << 20, 1 << 30).how, How::Good, "half of a small disk");
        assert_eq!(room("disk", "x", 512 << 20, 100 << 30).how, How::Doubtful);
        assert_eq!(room("disk", "x", 9 << 30, 1000 << 30).how, How::Doubtful, "a hundredth of a large one");
        assert_eq!(room("disk", "x", 11 << 30, 1000 << 30).how, How::Good);
        assert_eq!(size(5 << 30 | 512 << 20), "5.5 GiB");
    }

    #[test]
    fn advice_stands_below_what_was_found() {
        let shown = Finding::bad("nats", "nobody answers", "start it").to_string();
        assert_eq!(shown, "BAD   nats         nobody answers\n                   -> start it");
    }

    #[test]
    fn secrets_that_others_may_read_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let allow = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        allow(dir.path(), 0o700);
        assert_eq!(private_files(dir.path()).remove(0).how, How::Good);
        let key = dir.path().join(SIGNING_KEY_FILE);
        std::fs::write(&key, "x").unwrap();
        allow(&key, 0o640);
        let found = private_files(dir.path());
        assert!(
            found.len() == 1 && found[0].how == How::Doubtful && found[0].found.contains(SIGNING_KEY_FILE),
            "{found:?}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_bad() {
        assert_eq!(disk(Path::new("/nowhere/at/all")).how, How::Bad);
    }
}
