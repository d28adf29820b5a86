//! Settings of every role: flag, else environment variable `STAGE0_<NAME>`, else TOML file, else default.
//!
//! Owns where a setting comes from and how mistakes are told: all of them at once, each with its origin, none with a secret's
//! value; the process then ends with 64. [`table`] declares each setting once; flags, variables, file keys and
//! `docs/CONFIGURATION.md` follow from it. Refuses what it does not know: a misspelt setting never falls back to a default.

pub(crate) mod client;
mod foreign;
mod markdown;
mod nats;
pub(crate) mod parse;
mod reader;
pub(crate) mod roles;
mod sources;
pub(crate) mod table;

use std::fmt;

pub(crate) use markdown::markdown;
pub(crate) use nats::NatsSafety;
pub(crate) use reader::Reader;
pub(crate) use sources::{Flags, Sources};

/// Who uses a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything in one process.
    Dev,
    /// `stage0 gateway`.
    Gateway,
    /// `stage0 evaluator`.
    Evaluator,
    /// `stage0 keystore`.
    Keystore,
    /// `stage0 audit-export`.
    AuditExport,
    /// `stage0 receiver`.
    Receiver,
    /// Commands that talk to a server.
    Client,
    /// `stage0 health`.
    Health,
    /// `stage0 nats-admin`.
    NatsAdmin,
}

impl Role {
    /// All of them, in the order of the documentation.
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

    /// As the command is called; for [`Role::Client`] the first of them.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Gateway => "gateway",
            Self::Evaluator => "evaluator",
            Self::Keystore => "keystore",
            Self::AuditExport => "audit-export",
            Self::Receiver => "receiver",
            Self::Client => "check",
            Self::Health => "health",
            Self::NatsAdmin => "nats-admin",
        }
    }
}

/// One setting, as declared in [`table`].
#[derive(Debug)]
pub(crate) struct Setting {
    /// Flag and file key; the variable is `STAGE0_` and this in upper case with `_`.
    pub(crate) name: &'static str,
    /// What stands for the value in help texts.
    pub(crate) value: &'static str,
    /// One line for help and documentation.
    pub(crate) help: &'static str,
    /// Heading in help and documentation.
    pub(crate) group: &'static str,
    /// Its value is never shown.
    pub(crate) secret: bool,
    /// Where it may be given.
    pub(crate) places: Places,
    /// Who uses it, and what holds when it is not given.
    pub(crate) uses: &'static [(Role, Absent)],
}

/// Where a setting may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    /// Flag, variable and file.
    All,
    /// It names the file itself.
    NotInFile,
    /// A secret that has no business in a command line, which every process of the machine can read, nor in a settings file.
    VariableOnly,
}

/// What holds when a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It must be given.
    Required,
    /// It may be left out.
    Optional,
    /// This value.
    Default(&'static str),
}

impl Setting {
    /// The environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("STAGE0_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// What holds for a role when the setting is absent; none when the role does not use it.
    pub(crate) fn absent(&self, role: Role) -> Option<Absent> {
        self.uses.iter().find(|(user, _)| *user == role).map(|(_, absent)| *absent)
    }

    /// Whether there is a flag.
    pub(crate) fn has_flag(&self) -> bool {
        self.places != Places::VariableOnly
    }

    /// Whether a file may have it.
    pub(crate) fn in_file(&self) -> bool {
        self.places == Places::All
    }
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Flag, variable, or key and file.
    pub(crate) origin: String,
    /// Lower case, without the value of a secret.
    pub(crate) text: String,
}

/// All that is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Mistakes(pub(crate) Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("error: the settings are not usable")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}: {}", mistake.origin, mistake.text))
    }
}
