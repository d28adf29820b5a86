//! `stage0 doctor <role>`: examines everything that the role's settings refer to, and says how to fix each problem.
//!
//! Changes nothing: it creates no stream, file or key and does not lock the data directory, so it may run beside the
//! role. Exit code 1 when the role would not start or could not do its work.

mod certificates;
mod nats;
mod people;

pub(crate) use people::account;

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::Access;
use serde::Serialize;
use stage0_contract::Role;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::out;
use crate::settings::roles::{EvaluatorSettings, GatewaySettings, OnNats, TlsSource};
use stage0_audit_export::ExportConfig;
use stage0_keystore::{KeystoreConfig, OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};

/// Free space is low below a twentieth of the disk, on a large disk below 10 GiB.
const LOW_SPACE_DIVISOR: u64 = 20;
const LOW_SPACE_BYTES: u64 = 10 << 30;
/// Files of the keystore's directory that no other user may read.
const PRIVATE: [&str; 3] = [OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE];

/// The JSON words are older than the names here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    #[serde(rename = "good")]
    Ok,
    /// It was not examined; another command does it.
    Skipped,
    #[serde(rename = "doubtful")]
    Warn,
    #[serde(rename = "bad")]
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    #[serde(rename = "how")]
    severity: Severity,
    about: &'static str,
    found: String,
    advice: String,
}

impl Finding {
    pub(crate) fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, about, found: found.into(), advice: String::new() }
    }

    pub(crate) fn skipped(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Skipped, about, found: found.into(), advice: advice.into() }
    }

    pub(crate) fn warn(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warn, about, found: found.into(), advice: advice.into() }
    }

    pub(crate) fn error(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Error, about, found: found.into(), advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Skipped => "skip",
            Severity::Warn => "look",
            Severity::Error => "BAD",
        };
        write!(f, "{severity:<5} {:<12} {}", self.about, out::plain(&self.found))?;
        if !self.advice.is_empty() {
            write!(f, "\n{:18} -> {}", "", out::plain(&self.advice))?;
        }
        Ok(())
    }
}

pub(crate) fn gateway(settings: &OnNats<GatewaySettings>, as_json: bool) -> Exit {
    let mut findings = Vec::new();
    match &settings.service.tls {
        TlsSource::Files(files) => findings.extend(certificates::pair("certificate", files, Timestamp::now())),
        TlsSource::Dev(dir) => findings.push(Finding::warn(
            "certificate",
            format!("one for localhost is created in `{}`", dir.display()),
            "give --tls-cert and --tls-key to serve clients on other machines",
        )),
    }
    finish(Role::Gateway, findings, settings, as_json)
}

pub(crate) fn evaluator(settings: &OnNats<EvaluatorSettings>, as_json: bool) -> Exit {
    let loaded = crate::roles::load_packs(&settings.service.policy);
    let finding = match loaded {
        Ok(packs) => Finding::ok("policy", format!("{} decides", packs.active().version())),
        Err(error) => {
            let advice = "correct the pack; `stage0 policy validate DIR` shows every fault";
            Finding::error("policy", format!("{error:#}"), advice)
        }
    };
    finish(Role::Evaluator, vec![finding], settings, as_json)
}

pub(crate) fn keystore(settings: &OnNats<KeystoreConfig>, as_json: bool) -> Exit {
    let service = &settings.service;
    let mut findings = vec![disk(&service.data_dir)];
    findings.extend(private_files(&service.data_dir));
    if let Err(error) = service.validate() {
        findings.push(Finding::error("settings", error.to_string(), "correct the setting"));
    }
    finish(Role::Keystore, findings, settings, as_json)
}

pub(crate) fn audit_export(settings: &OnNats<ExportConfig>, as_json: bool) -> Exit {
    let mut findings = Vec::new();
    let egress = &settings.service.egress;
    if let Some(ca) = &egress.extra_ca {
        findings.push(certificates::file("webhook ca", ca, Timestamp::now()));
    }
    if egress.dangerous_allow_private {
        let advice = "remove dangerous-allow-private-webhooks, except on a local stack";
        findings.push(Finding::warn("webhooks", "may be sent to private addresses and over plain http", advice));
    }
    finish(Role::AuditExport, findings, settings, as_json)
}

fn finish<T>(role: Role, mut findings: Vec<Finding>, settings: &OnNats<T>, as_json: bool) -> Exit {
    let OnNats { nats: config, safety, .. } = settings;
    findings.insert(0, Finding::ok("settings", format!("complete for {role} ({VERSION})")));
    findings.extend(certificates::of_nats(config, Timestamp::now()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => findings.extend(runtime.block_on(nats::check(role, config, safety.open_allowed))),
        Err(error) => findings.push(Finding::error("system", format!("no threads: {error}"), "free some memory")),
    }
    report(&serde_json::json!(role), &findings, as_json)
}

/// Prints the findings; one that is bad is exit code 1.
pub(crate) fn report(subject: &serde_json::Value, findings: &[Finding], as_json: bool) -> Exit {
    let is_bad = findings.iter().any(|finding| finding.severity == Severity::Error);
    let written = if as_json {
        out::json(&serde_json::json!({"role": subject, "ok": !is_bad, "findings": findings}))
    } else {
        let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        out::line(text).map_err(anyhow::Error::from)
    };
    match written {
        Ok(()) if is_bad => Exit::Failed,
        result => crate::exit::ended(result),
    }
}

fn disk(dir: &Path) -> Finding {
    let shown = dir.display();
    match rustix::fs::statvfs(dir) {
        Err(error) => Finding::error(
            "disk",
            format!("`{shown}` cannot be examined: {error}"),
            "create the directory with mode 700, or name another with --data-dir",
        ),
        Ok(_) if rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err() => Finding::error(
            "disk",
            format!("`{shown}` cannot be written by this user"),
            "give the directory to the user that the keystore runs as",
        ),
        Ok(found) => {
            let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
            free_space("disk", &format!("`{shown}`"), free, all)
        }
    }
}

/// Secrets that other users can read, or that this user cannot.
fn private_files(dir: &Path) -> Vec<Finding> {
    if !dir.exists() {
        return Vec::new();
    }
    let files = PRIVATE.iter().map(|name| dir.join(name)).filter(|path| path.exists());
    let mut findings = Vec::new();
    for path in files.chain([dir.to_owned()]) {
        let shown = path.display();
        if rustix::fs::access(&path, Access::READ_OK).is_err() {
            let found = format!("`{shown}` cannot be read by this user");
            findings.push(Finding::error("secrets", found, "give it to the user that the keystore runs as"));
        } else if path.metadata().is_ok_and(|data| data.permissions().mode() & 0o077 != 0) {
            let found = format!("`{shown}` can be read by others");
            findings.push(Finding::warn("secrets", found, format!("chmod go= {shown}")));
        }
    }
    if findings.is_empty() { vec![Finding::ok("secrets", "cannot be read by other users")] } else { findings }
}

fn free_space(about: &'static str, subject: &str, free: u64, all: u64) -> Finding {
    let text = format!("{subject}: {} of {} are free", size(free), size(all));
    if free < (all / LOW_SPACE_DIVISOR).min(LOW_SPACE_BYTES) {
        Finding::warn(about, text, "free space: when the disk is full, checks fail with 503")
    } else {
        Finding::ok(about, text)
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
    fn low_disk_space_is_a_warning() {
        assert_eq!(free_space("disk", "x", 6 << 30, 100 << 30).severity, Severity::Ok);
        assert_eq!(free_space("disk", "x", 512 << 20, 1 << 30).severity, Severity::Ok, "half of a small disk");
        assert_eq!(free_space("disk", "x", 512 << 20, 100 << 30).severity, Severity::Warn);
        assert_eq!(free_space("disk", "x", 9 << 30, 1000 << 30).severity, Severity::Warn, "a hundredth of a large one");
        assert_eq!(free_space("disk", "x", 11 << 30, 1000 << 30).severity, Severity::Ok);
        assert_eq!(size(5 << 30 | 512 << 20), "5.5 GiB");
    }

    #[test]
    fn the_advice_is_below_the_finding() {
        let shown = Finding::error("nats", "no answer", "start it").to_string();
        assert_eq!(shown, "BAD   nats         no answer\n                   -> start it");
    }

    #[test]
    fn secrets_that_other_users_can_read_are_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let allow = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        allow(dir.path(), 0o700);
        assert_eq!(private_files(dir.path()).remove(0).severity, Severity::Ok);
        let key = dir.path().join(SIGNING_KEY_FILE);
        std::fs::write(&key, "x").unwrap();
        allow(&key, 0o640);
        let found = private_files(dir.path());
        assert!(
            found.len() == 1 && found[0].severity == Severity::Warn && found[0].found.contains(SIGNING_KEY_FILE),
            "{found:?}"
        );
    }

    #[test]
    fn a_missing_data_directory_is_one_finding() {
        assert_eq!(disk(Path::new("/nowhere/at/all")).severity, Severity::Error);
        assert_eq!(private_files(Path::new("/nowhere/at/all")), []);
    }
}
