//! Names of constraints: the canonical ones, and the words that mean them.
//!
//! Owns the look-up. Spellings are folded: case, separators, camel case and the plural of a part make no other name
//! (`allowedTools`, `Allowed-Tool` and `allowed_tools` are one). A policy pack adds aliases, and tags that have no
//! effect. The first edition's names are a table of their own, without aliases and without folding.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::near::Near;
use super::value::{self, unquoted};
use super::{Constraint, FlagName};
use crate::number::Micros;
use crate::word::{Word, is_hyphen, parts};

/// Environments that are known without a pack, as keys.
const ENVIRONMENTS: [&str; 20] = [
    "production",
    "prod",
    "prd",
    "live",
    "staging",
    "stage",
    "stg",
    "development",
    "dev",
    "test",
    "testing",
    "qa",
    "uat",
    "preprod",
    "preproduction",
    "sandbox",
    "local",
    "demo",
    "canary",
    "ci",
];

/// A constraint that the grammar knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of the contract")]
pub enum ConstraintName {
    ApprovalRequired,
    RequireApprovalFor,
    RequiredRole,
    AllowedEnvironment,
    Environment,
    DeniedEnvironment,
    MaxIterations,
    MaxRetries,
    Timeout,
    MaxCost,
    SameTool,
    NoRepeatCalls,
    MaxRecords,
    RequireTicket,
    AllowedChangeWindow,
    BusinessHoursOnly,
    RollbackPlanRequired,
    MfaRequired,
    ApprovalMaxAge,
    ResourceScope,
    AllowedMcpServers,
    TenantIsolation,
    AllowedTools,
    DeniedTools,
    ReadOnly,
    DryRun,
    Sandbox,
}

/// What a constraint takes.
pub(super) enum Form {
    Flag(FlagName),
    BusinessHours,
    List(fn(Vec<String>) -> Constraint),
    Whole(fn(u64) -> Constraint),
    Duration(fn(Micros) -> Constraint),
    Dollars(fn(Micros) -> Constraint),
}

/// Where a `*` may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcards {
    None,
    /// At the end; not for a server.
    Tools,
    /// At the end; behind a host only after a `/`.
    Places,
}

impl ConstraintName {
    /// Every constraint, in the contract's order.
    pub const ALL: [Self; 27] = [
        Self::ApprovalRequired,
        Self::RequireApprovalFor,
        Self::RequiredRole,
        Self::AllowedEnvironment,
        Self::Environment,
        Self::DeniedEnvironment,
        Self::MaxIterations,
        Self::MaxRetries,
        Self::Timeout,
        Self::MaxCost,
        Self::SameTool,
        Self::NoRepeatCalls,
        Self::MaxRecords,
        Self::RequireTicket,
        Self::AllowedChangeWindow,
        Self::BusinessHoursOnly,
        Self::RollbackPlanRequired,
        Self::MfaRequired,
        Self::ApprovalMaxAge,
        Self::ResourceScope,
        Self::AllowedMcpServers,
        Self::TenantIsolation,
        Self::AllowedTools,
        Self::DeniedTools,
        Self::ReadOnly,
        Self::DryRun,
        Self::Sandbox,
    ];

    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApprovalRequired => "approval_required",
            Self::RequireApprovalFor => "require_approval_for",
            Self::RequiredRole => "required_role",
            Self::AllowedEnvironment => "allowed_environment",
            Self::Environment => "environment",
            Self::DeniedEnvironment => "denied_environment",
            Self::MaxIterations => "max_iterations",
            Self::MaxRetries => "max_retries",
            Self::Timeout => "timeout",
            Self::MaxCost => "max_cost_usd",
            Self::SameTool => "same_tool_limit",
            Self::NoRepeatCalls => "no_repeat_calls",
            Self::MaxRecords => "max_records",
            Self::RequireTicket => "require_ticket",
            Self::AllowedChangeWindow => "allowed_change_window",
            Self::BusinessHoursOnly => "business_hours_only",
            Self::RollbackPlanRequired => "rollback_plan_required",
            Self::MfaRequired => "mfa_required",
            Self::ApprovalMaxAge => "approval_max_age",
            Self::ResourceScope => "resource_scope",
            Self::AllowedMcpServers => "allowed_mcp_servers",
            Self::TenantIsolation => "tenant_isolation",
            Self::AllowedTools => "allowed_tools",
            Self::DeniedTools => "denied_tools",
            Self::ReadOnly => "read_only",
            Self::DryRun => "dry_run",
            Self::Sandbox => "sandbox",
        }
    }

    /// Finds a constraint by its canonical name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// What to write: the name with a value that would do.
    pub fn example(self) -> String {
        let name = self.as_str();
        match self.form() {
            Form::Flag(_) | Form::BusinessHours => name.to_owned(),
            Form::Whole(_) => format!("{name}: 3"),
            Form::Duration(_) => format!("{name}: 5m"),
            Form::Dollars(_) => format!("{name}: 2.50"),
            Form::List(_) if self.wildcards() == Wildcards::None => format!("{name}: a, b"),
            Form::List(_) => format!("{name}: a, b*"),
        }
    }

    pub(super) fn form(self) -> Form {
        match self {
            Self::ApprovalRequired => Form::Flag(FlagName::ApprovalRequired),
            Self::NoRepeatCalls => Form::Flag(FlagName::NoRepeatCalls),
            Self::RequireTicket => Form::Flag(FlagName::RequireTicket),
            Self::RollbackPlanRequired => Form::Flag(FlagName::RollbackPlanRequired),
            Self::MfaRequired => Form::Flag(FlagName::MfaRequired),
            Self::TenantIsolation => Form::Flag(FlagName::TenantIsolation),
            Self::ReadOnly => Form::Flag(FlagName::ReadOnly),
            Self::DryRun => Form::Flag(FlagName::DryRun),
            Self::Sandbox => Form::Flag(FlagName::Sandbox),
            Self::BusinessHoursOnly => Form::BusinessHours,
            Self::RequireApprovalFor => Form::List(Constraint::RequireApprovalFor),
            Self::RequiredRole => Form::List(Constraint::RequiredRole),
            Self::AllowedEnvironment => Form::List(Constraint::AllowedEnvironment),
            Self::Environment => Form::List(Constraint::Environment),
            Self::DeniedEnvironment => Form::List(Constraint::DeniedEnvironment),
            Self::AllowedChangeWindow => Form::List(Constraint::AllowedChangeWindow),
            Self::ResourceScope => Form::List(Constraint::ResourceScope),
            Self::AllowedMcpServers => Form::List(Constraint::AllowedMcpServers),
            Self::AllowedTools => Form::List(Constraint::AllowedTools),
            Self::DeniedTools => Form::List(Constraint::DeniedTools),
            Self::MaxIterations => Form::Whole(Constraint::MaxIterations),
            Self::MaxRetries => Form::Whole(Constraint::MaxRetries),
            Self::SameTool => Form::Whole(Constraint::SameTool),
            Self::MaxRecords => Form::Whole(Constraint::MaxRecords),
            Self::Timeout => Form::Duration(Constraint::Timeout),
            Self::ApprovalMaxAge => Form::Duration(Constraint::ApprovalMaxAge),
            Self::MaxCost => Form::Dollars(Constraint::MaxCost),
        }
    }

    /// Whether it is either set or not.
    pub(super) fn is_flag(self) -> bool {
        matches!(self.form(), Form::Flag(_) | Form::BusinessHours)
    }

    pub(super) fn names_environments(self) -> bool {
        matches!(self, Self::AllowedEnvironment | Self::Environment | Self::DeniedEnvironment)
    }

    pub(super) fn wildcards(self) -> Wildcards {
        match self {
            Self::AllowedTools | Self::DeniedTools => Wildcards::Tools,
            Self::ResourceScope | Self::AllowedMcpServers => Wildcards::Places,
            _ => Wildcards::None,
        }
    }

    /// Whether the first edition knows it.
    fn is_of_first_edition(self) -> bool {
        !matches!(self, Self::Environment | Self::DeniedEnvironment | Self::DeniedTools | Self::ApprovalMaxAge)
    }
}

/// Other names that every policy knows.
const FIRST_ALIASES: [(&str, ConstraintName); 8] = [
    ("approval", ConstraintName::ApprovalRequired),
    ("require_approval", ConstraintName::ApprovalRequired),
    ("human_review_required", ConstraintName::ApprovalRequired),
    ("human_approval_required", ConstraintName::ApprovalRequired),
    ("timeout_seconds", ConstraintName::Timeout),
    ("same_tool", ConstraintName::SameTool),
    ("max_records_per_request", ConstraintName::MaxRecords),
    ("require_mfa", ConstraintName::MfaRequired),
];

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Constraint(ConstraintName),
    /// It is known to have no effect.
    Tag,
}

/// The names that a policy knows.
#[derive(Debug)]
pub struct Names {
    first_edition: bool,
    /// By key.
    meanings: HashMap<String, Meaning>,
    /// As the lists write them, with `_` or blanks: what most callers write needs no key.
    spelled: HashMap<String, Meaning>,
    near: Near,
}

/// A name that cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It could match nothing.
    #[error("`{0}` is not in normal form and would match nothing")]
    NotNormal(String),
    /// It is known already; case, separators and plurals make no other name.
    #[error("`{0}` is known already: it means {1}")]
    Taken(String, &'static str),
}

impl Names {
    /// The names of the first edition: compared whole, after separators alone are folded.
    pub fn first_edition() -> &'static Self {
        static NAMES: LazyLock<Names> = LazyLock::new(|| {
            let canonical = ConstraintName::ALL.into_iter().filter(|name| name.is_of_first_edition());
            let names = canonical.map(|name| (name.as_str(), name)).chain(FIRST_ALIASES);
            let meanings = names.map(|(key, name)| (key.to_owned(), Meaning::Constraint(name))).collect();
            Names { first_edition: true, meanings, spelled: HashMap::new(), near: Near::default() }
        });
        &NAMES
    }

    /// The names that need no pack, in every spelling.
    pub fn built_in() -> &'static Self {
        static NAMES: LazyLock<Names> = LazyLock::new(|| {
            let mut names = Names {
                first_edition: false,
                meanings: HashMap::new(),
                spelled: HashMap::new(),
                near: Near::default(),
            };
            let canonical = ConstraintName::ALL.into_iter().map(|name| (name.as_str(), name));
            for (text, name) in canonical.chain(FIRST_ALIASES) {
                if let Some(key) = key(text) {
                    names.insert(text, key, Meaning::Constraint(name));
                }
            }
            names.with_near()
        });
        &NAMES
    }

    /// The built-in names with a pack's aliases and tags, and what is wrong with these.
    pub fn with<'a>(
        aliases: impl IntoIterator<Item = (&'a str, ConstraintName)>,
        tags: impl IntoIterator<Item = &'a str>,
    ) -> (Self, Vec<NameFault>) {
        let mut names = Self {
            first_edition: false,
            meanings: Self::built_in().meanings.clone(),
            spelled: Self::built_in().spelled.clone(),
            near: Near::default(),
        };
        let mut faults = Vec::new();
        let aliases = aliases.into_iter().map(|(text, name)| (text, Meaning::Constraint(name)));
        for (text, meaning) in aliases.chain(tags.into_iter().map(|text| (text, Meaning::Tag))) {
            let Some(key) = key(text).filter(|_| Word::name(text).is(text)) else {
                faults.push(NameFault::NotNormal(text.to_owned()));
                continue;
            };
            if let Some(known) = names.meanings.get(&key) {
                faults.push(NameFault::Taken(text.to_owned(), known.as_str()));
            } else {
                names.insert(text, key, meaning);
            }
        }
        (names.with_near(), faults)
    }

    fn insert(&mut self, text: &str, key: String, meaning: Meaning) {
        self.spelled.insert(text.replace('_', " "), meaning);
        self.spelled.insert(text.to_owned(), meaning);
        self.meanings.insert(key, meaning);
    }

    fn with_near(mut self) -> Self {
        let constraints = self.meanings.iter().filter_map(|(key, meaning)| match meaning {
            Meaning::Constraint(name) => Some((key.clone(), *name)),
            Meaning::Tag => None,
        });
        self.near = Near::of(constraints.collect());
        self
    }

    /// The head of a constraint and the value behind its `:` or `=`.
    pub(super) fn split<'t>(&self, text: &'t str) -> (&'t str, Option<&'t str>) {
        let separates = |c: char| c == ':' || (c == '=' && !self.first_edition);
        match text.split_once(separates) {
            Some((head, value)) => (head.trim(), Some(value.trim())),
            None if self.first_edition => (text, None),
            // A full stop ends a sentence of one flag, too.
            None => (text.trim_end_matches(['.', ',', ';', '!']).trim_end(), None),
        }
    }

    /// The constraint that a name means.
    pub fn find(&self, name: &str) -> Option<ConstraintName> {
        match self.meaning(name)? {
            Meaning::Constraint(name) => Some(name),
            Meaning::Tag => None,
        }
    }

    fn meaning(&self, name: &str) -> Option<Meaning> {
        if self.first_edition {
            return Word::name(name).known().and_then(|word| self.meanings.get(word)).copied();
        }
        let spelled = self.spelled.get(name).copied();
        spelled.or_else(|| self.meanings.get(&key(unquoted(name))?).copied())
    }

    /// The constraints with a name within two edits of this one, the nearest first.
    pub fn nearest(&self, name: &str) -> Vec<&'static str> {
        key(unquoted(name)).map(|key| self.near.suggest(&key, 2)).unwrap_or_default()
    }

    /// Whether a name is known to have no effect.
    pub(super) fn is_tag(&self, name: &str) -> bool {
        self.meaning(name) == Some(Meaning::Tag)
    }

    pub(super) fn is_first_edition(&self) -> bool {
        self.first_edition
    }

    pub(super) fn near(&self) -> &Near {
        &self.near
    }

    pub(super) fn is_on(&self, value: Option<&str>) -> bool {
        value::is_on(value, self.first_edition)
    }

    pub(super) fn is_environment(&self, word: &str) -> bool {
        Word::new(word).known().is_some_and(|word| ENVIRONMENTS.contains(&word))
    }
}

impl Meaning {
    fn as_str(self) -> &'static str {
        match self {
            Self::Constraint(name) => name.as_str(),
            Self::Tag => "a tag without effect",
        }
    }
}

/// The one form in which names are compared: parts in lower case and the singular, without separators. None for what is
/// no name: other characters, or letters of more than one script.
pub(super) fn key(name: &str) -> Option<String> {
    let is_of_a_name = |c: char| c.is_alphanumeric() || c.is_whitespace() || c == '_' || is_hyphen(c);
    if name.len() > MAX_NAME_BYTES || !name.chars().all(is_of_a_name) || Word::new(name).known().is_none() {
        return None;
    }
    let mut key = String::with_capacity(name.len());
    for part in parts(name) {
        match part.strip_suffix('s') {
            Some(stem) if part.len() > 3 && !stem.ends_with('s') => match stem.strip_suffix("ie") {
                Some(stem) if stem.len() > 1 => {
                    key.push_str(stem);
                    key.push('y');
                }
                _ => key.push_str(stem),
            },
            _ => key.push_str(&part),
        }
    }
    (!key.is_empty()).then_some(key)
}

/// No name is longer.
const MAX_NAME_BYTES: usize = 80;
