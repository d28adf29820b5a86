//! `stage0 doctor <role>`: reads the settings that the role would start with, looks at everything they lead to, and says of each finding what to do.
//!
//! Owns the findings and how they look. Changes nothing: it makes no stream, no file and no key, and holds no data directory, so it may
//! run beside the role. `certificates` and `nats` do the looking. Exit code 1 when the role would not start or not do its part.

mod certificates;
mod nats;

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use stage0_contract::Role;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::out;
use crate::settings::roles::{ExportSettings, GatewaySettings, OnNats, PolicySettings, TlsSource};
use stage0_keystore::KeystoreConfig;

/// Below this share of a disk, or this many bytes, writing will soon fail.
const LITTLE_SHARE: u64 = 20;
const LITTLE_BYTES: u64 = 1 << 30;

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// As it should be.
    Good,
    /// It works, and somebody should know.
    Doubtful,
    /// The role does not start or cannot do its part.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub(crate) fn gateway(settings: OnNats<GatewaySettings>) -> Exit {
    let mut findings = Vec::new();
    match &settings.service.tls {
        TlsSource::Files(files) => findings.extend(certificates::server(files, Timestamp::now())),
        TlsSource::Dev(dir) => findings.push(Finding::doubtful(
            "certificate",
            format!("one for localhost is made in `{}`", dir.display()),
            "for clients of other machines give --tls-cert and --tls-key",
        )),
    }
    finish(Role::Gateway, findings, &settings.nats)
}

/// `stage0 doctor evaluator`.
pub(crate) fn evaluator(settings: OnNats<PolicySettings>) -> Exit {
    let OnNats { nats, service, .. } = settings;
    let loaded = crate::roles::load_packs(service.dir, service.active, &service.selectable);
    let finding = match loaded {
        Ok(packs) => Finding::good("policy", format!("{} decides", packs.active().version())),
        Err(error) => {
            Finding::bad("policy", format!("{error:#}"), "mend the pack; `stage0 policy validate DIR` says more")
        }
    };
    finish(Role::Evaluator, vec![finding], &nats)
}

/// `stage0 doctor keystore`.
pub(crate) fn keystore(settings: OnNats<KeystoreConfig>) -> Exit {
    let OnNats { nats, service, .. } = settings;
    let mut findings = vec![disk(&service.data_dir)];
    if let Err(error) = service.validate() {
        findings.push(Finding::bad("settings", error.to_string(), "correct the setting"));
    }
    finish(Role::Keystore, findings, &nats)
}

/// `stage0 doctor audit-export`.
pub(crate) fn audit_export(settings: OnNats<ExportSettings>) -> Exit {
    let OnNats { nats, service, .. } = settings;
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
    finish(Role::AuditExport, findings, &nats)
}

fn finish(role: Role, mut findings: Vec<Finding>, config: &stage0_backplane::nats::NatsConfig) -> Exit {
    findings.insert(0, Finding::good("settings", format!("complete for {role} ({VERSION})")));
    findings.extend(certificates::of_nats(config, Timestamp::now()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => findings.extend(runtime.block_on(nats::look(role, config))),
        Err(error) => findings.push(Finding::bad("system", format!("no threads: {error}"), "free some memory")),
    }
    let worst = findings.iter().any(|finding| finding.how == How::Bad);
    let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    match out::line(text) {
        Ok(()) if worst => Exit::Failed,
        result => crate::run::finished(result.map_err(anyhow::Error::from)),
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
        Ok(found) => {
            let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
            room(ABOUT, &format!("`{shown}`"), free, all)
        }
    }
}

/// What is free of what there is.
pub(crate) fn room(about: &'static str, place: &str, free: u64, all: u64) -> Finding {
    let text = format!("{place}: {} of {} are free", size(free), size(all));
    if free < LITTLE_BYTES && free < all / LITTLE_SHARE {
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
        assert_eq!(room("disk", "x", 2 << 30, 100 << 30).how, How::Good);
        assert_eq!(room("disk", "x", 512 << 20, 1 << 30).how, How::Good, "half of a small disk");
        assert_eq!(room("disk", "x", 512 << 20, 100 << 30).how, How::Doubtful);
        assert_eq!(size(5 << 30 | 512 << 20), "5.5 GiB");
    }

    #[test]
    fn advice_stands_below_what_was_found() {
        let shown = Finding::bad("nats", "nobody answers", "start it").to_string();
        assert_eq!(shown, "BAD   nats         nobody answers\n                   -> start it");
    }

    #[test]
    fn a_directory_that_is_not_there_is_bad() {
        assert_eq!(disk(Path::new("/nowhere/at/all")).how, How::Bad);
    }
}
