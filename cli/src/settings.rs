//! The settings of every command: flag, else environment variable `STAGE0_<NAME>`, else TOML file, else default.
//!
//! Each setting is declared once, beside the service that uses it. This module knows which command takes which of them,
//! and where the declared defaults do not suit a command. All mistakes are listed at once, each with its origin, none
//! with a secret's value; the process then ends with 64. A misspelt setting is refused and falls back to no default.

pub(crate) mod client;
mod markdown;
mod nats;
pub(crate) mod roles;
mod sources;
mod unknown;

use stage0_audit_export::ExportConfig;
use stage0_audit_export::egress::EgressConfig;
use stage0_evaluator::{PolicySettings, RunConfig};
use stage0_gateway::{GatewayConfig, TlsSettings};
use stage0_keystore::{KeystoreConfig, OperatorKeySettings};
use stage0_runtime::logs::LogSettings;
use stage0_runtime::process::MetricsSettings;
use stage0_runtime::settings::{Absent, Places, Setting};

pub(crate) use markdown::markdown;
pub(crate) use nats::{NatsSafety, stream_size};
pub(crate) use sources::{Flags, Sources};

use crate::dev_file::DEFAULT_DATA_DIR;
use client::ClientSettings;
use nats::{LogStreamSettings, MessageSettings, NatsSettings, StreamSettings, SyncSettings};
use roles::{DevOptions, ReceiverOptions};

const CONFIG: Setting = Setting {
    name: "config",
    value: "FILE",
    group: "Settings",
    help: "TOML file with settings; its keys are the names in this list",
    places: Places::NotInFile,
    absent: Absent::Optional,
};

const GROUPS: [&str; 14] = [
    "Settings",
    "Server",
    "TLS",
    "Limits",
    "Data",
    "Audit",
    "Policy",
    "Approvals",
    "Runs",
    "NATS",
    "Connection",
    "Receiver",
    "Logs",
    "Metrics",
];

const CONFIG_FILE: &[Setting] = &[CONFIG];
const PROCESS: [&[Setting]; 3] = [CONFIG_FILE, LogSettings::SETTINGS, MetricsSettings::SETTINGS];
const ON_NATS: [&[Setting]; 2] = [NatsSettings::SETTINGS, MessageSettings::SETTINGS];
const ON_LOG: [&[Setting]; 2] = [SyncSettings::SETTINGS, LogStreamSettings::SETTINGS];
const EVALUATOR: [&[Setting]; 2] = [PolicySettings::SETTINGS, RunConfig::SETTINGS];
const EXPORT: [&[Setting]; 2] = [ExportConfig::SETTINGS, EgressConfig::SETTINGS];

/// Commands that take the same settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandKind {
    Dev,
    Gateway,
    Evaluator,
    Keystore,
    AuditExport,
    Receiver,
    Client,
    Health,
    NatsAdmin,
}

/// Every setting, as it is declared, in the order of the documentation.
pub(crate) fn all() -> Vec<Setting> {
    let mut all: Vec<Setting> = Vec::new();
    for setting in CommandKind::ALL.into_iter().flat_map(|kind| kind.tables().concat()) {
        if all.iter().all(|known| known.name != setting.name) {
            all.push(setting);
        }
    }
    in_order(all)
}

fn in_order(mut settings: Vec<Setting>) -> Vec<Setting> {
    settings.sort_by_key(|setting| GROUPS.iter().position(|group| *group == setting.group));
    settings
}

impl CommandKind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Dev,
        Self::Gateway,
        Self::Evaluator,
        Self::Keystore,
        Self::AuditExport,
        Self::Receiver,
        Self::Client,
        Self::Health,
        Self::NatsAdmin,
    ];

    pub(crate) fn commands(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &["dev"],
            Self::Gateway => &["gateway"],
            Self::Evaluator => &["evaluator"],
            Self::Keystore => &["keystore"],
            Self::AuditExport => &["audit-export"],
            Self::Receiver => &["receiver"],
            Self::Client => crate::args::CLIENT_COMMANDS,
            Self::Health => &["health"],
            Self::NatsAdmin => &["nats-admin"],
        }
    }

    /// What these commands take, each with what holds for them when it is not given.
    pub(crate) fn settings(self) -> Vec<Setting> {
        let mut settings = self.tables().concat();
        for (name, absent) in self.exceptions() {
            match settings.iter_mut().find(|setting| setting.name == *name) {
                Some(setting) => setting.absent = *absent,
                None => {
                    let declared = all().into_iter().find(|setting| setting.name == *name);
                    settings.extend(declared.map(|setting| Setting { absent: *absent, ..setting }));
                }
            }
        }
        in_order(settings)
    }

    fn tables(self) -> Vec<&'static [Setting]> {
        let gateway: &[_] = &[GatewayConfig::SETTINGS];
        match self {
            Self::Dev => {
                [gateway, &[KeystoreConfig::SETTINGS, DevOptions::SETTINGS], &EXPORT, &EVALUATOR, &PROCESS].concat()
            }
            Self::Gateway => [gateway, &[TlsSettings::SETTINGS], &ON_NATS, &ON_LOG, &PROCESS].concat(),
            Self::Evaluator => [&EVALUATOR[..], &ON_NATS, &[LogStreamSettings::SETTINGS], &PROCESS].concat(),
            Self::Keystore => {
                let own = [KeystoreConfig::SETTINGS, OperatorKeySettings::SETTINGS];
                [&own[..], &ON_NATS, &[LogStreamSettings::SETTINGS], &PROCESS].concat()
            }
            Self::AuditExport => [&EXPORT[..], &ON_NATS, &ON_LOG, &PROCESS].concat(),
            Self::Receiver => [&[ReceiverOptions::SETTINGS][..], &PROCESS].concat(),
            Self::Client => vec![CONFIG_FILE, ClientSettings::SETTINGS],
            Self::Health => Vec::new(),
            Self::NatsAdmin => {
                vec![NatsSettings::SETTINGS, LogStreamSettings::SETTINGS, StreamSettings::SETTINGS]
            }
        }
    }

    /// Where the declaration does not suit these commands, and settings that another service declares.
    fn exceptions(self) -> &'static [(&'static str, Absent)] {
        match self {
            Self::Dev => &[
                ("listen", Absent::Default(|| "127.0.0.1:8443".to_owned())),
                ("data-dir", Absent::Default(data_dir)),
                ("log-format", Absent::Default(text_format)),
            ],
            Self::Gateway => &[("dangerous-allow-private-webhooks", Absent::Default(|| false.to_string()))],
            Self::Receiver => &[
                ("listen", Absent::Default(|| "127.0.0.1:9443".to_owned())),
                ("tls-cert", Absent::Required),
                ("tls-key", Absent::Required),
                ("log-format", Absent::Default(text_format)),
            ],
            Self::Client => &[("data-dir", Absent::Default(data_dir))],
            Self::Health => &[("metrics-listen", Absent::Required)],
            Self::Evaluator | Self::Keystore | Self::AuditExport | Self::NatsAdmin => &[],
        }
    }
}

fn data_dir() -> String {
    DEFAULT_DATA_DIR.to_owned()
}

fn text_format() -> String {
    "text".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_declared_once_and_in_a_known_group() {
        let mut names = std::collections::BTreeMap::new();
        for setting in CommandKind::ALL.into_iter().flat_map(|kind| kind.tables().concat()) {
            let name = setting.name;
            assert_eq!(*names.entry(name).or_insert(setting.help), setting.help, "{name} is declared twice");
            assert!(GROUPS.contains(&setting.group), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
            assert!(!setting.help.is_empty() && !setting.help.ends_with('.'), "{name}");
        }
        for kind in CommandKind::ALL {
            for (name, _) in kind.exceptions() {
                assert!(kind.settings().iter().any(|setting| setting.name == *name), "{name} is not declared");
            }
        }
    }
}
