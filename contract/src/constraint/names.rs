//! Names of constraints: the canonical ones, and the words that mean them.
//!
//! Spellings are folded: case, separators, camel case and the plural of a part make no other name (`allowedTools`,
//! `Allowed-Tool` and `allowed_tools` are one). A policy pack adds aliases, and tags that have no effect. The first
//! edition's names are not folded.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::value::unquoted;
use super::{FlagName, LimitName, ListName};
use crate::word::{Word, is_hyphen, parts};

/// No name is longer.
const MAX_NAME_BYTES: usize = 80;

/// A constraint that the grammar knows: a row of [`ConstraintName::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConstraintName {
    text: &'static str,
    pub(super) takes: Takes,
    /// Other names that every policy knows.
    aliases: &'static [&'static str],
    first_edition: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Flag(FlagName),
    /// Nothing: when it is set, it means this other constraint.
    ShortFor(&'static str),
    Limit(LimitName, Unit),
    List(ListName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Whole,
    Seconds,
    Dollars,
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
        Self::flag("approval_required", FlagName::ApprovalRequired).with_aliases(&[
            "approval",
            "require_approval",
            "human_review_required",
            "human_approval_required",
        ]),
        Self::list("require_approval_for", ListName::RequireApprovalFor),
        Self::list("required_role", ListName::RequiredRole),
        Self::list("allowed_environment", ListName::AllowedEnvironment),
        Self::list("environment", ListName::Environment).since_second_edition(),
        Self::list("denied_environment", ListName::DeniedEnvironment).since_second_edition(),
        Self::limit("max_iterations", LimitName::MaxIterations, Unit::Whole),
        Self::limit("max_retries", LimitName::MaxRetries, Unit::Whole),
        Self::limit("timeout", LimitName::Timeout, Unit::Seconds).with_aliases(&["timeout_seconds"]),
        Self::limit("max_cost_usd", LimitName::MaxCost, Unit::Dollars),
        Self::limit("same_tool_limit", LimitName::SameTool, Unit::Whole).with_aliases(&["same_tool"]),
        Self::flag("no_repeat_calls", FlagName::NoRepeatCalls),
        Self::limit("max_records", LimitName::MaxRecords, Unit::Whole).with_aliases(&["max_records_per_request"]),
        Self::flag("require_ticket", FlagName::RequireTicket),
        Self::list("allowed_change_window", ListName::AllowedChangeWindow),
        Self::new("business_hours_only", Takes::ShortFor("allowed_change_window: business_hours")),
        Self::flag("rollback_plan_required", FlagName::RollbackPlanRequired),
        Self::flag("mfa_required", FlagName::MfaRequired).with_aliases(&["require_mfa"]),
        Self::limit("approval_max_age", LimitName::ApprovalMaxAge, Unit::Seconds).since_second_edition(),
        Self::list("resource_scope", ListName::ResourceScope),
        Self::list("allowed_mcp_servers", ListName::AllowedMcpServers),
        Self::flag("tenant_isolation", FlagName::TenantIsolation),
        Self::list("allowed_tools", ListName::AllowedTools),
        Self::list("denied_tools", ListName::DeniedTools).since_second_edition(),
        Self::flag("read_only", FlagName::ReadOnly),
        Self::flag("dry_run", FlagName::DryRun),
        Self::flag("sandbox", FlagName::Sandbox),
    ];

    const fn new(text: &'static str, takes: Takes) -> Self {
        Self { text, takes, aliases: &[], first_edition: true }
    }

    const fn flag(text: &'static str, flag: FlagName) -> Self {
        Self::new(text, Takes::Flag(flag))
    }

    const fn limit(text: &'static str, limit: LimitName, unit: Unit) -> Self {
        Self::new(text, Takes::Limit(limit, unit))
    }

    const fn list(text: &'static str, list: ListName) -> Self {
        Self::new(text, Takes::List(list))
    }

    const fn with_aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn since_second_edition(self) -> Self {
        Self { first_edition: false, ..self }
    }

    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        self.text
    }

    /// Finds a constraint by its canonical name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.text == name)
    }

    /// What to write: the name with a value that would do.
    pub fn example(self) -> String {
        let value = match self.takes {
            Takes::Flag(_) | Takes::ShortFor(_) => return self.text.to_owned(),
            Takes::Limit(_, Unit::Whole) => "3",
            Takes::Limit(_, Unit::Seconds) => "5m",
            Takes::Limit(_, Unit::Dollars) => "2.50",
            Takes::List(list) if list.wildcards() == Wildcards::None => "a, b",
            Takes::List(_) => "a, b*",
        };
        format!("{}: {value}", self.text)
    }

    /// Its place in [`Self::ALL`], by which names that are equally near are sorted.
    pub(super) fn place(self) -> Option<usize> {
        Self::ALL.iter().position(|known| known.text == self.text)
    }

    /// Every name that means this constraint without a pack.
    fn spellings(self) -> impl Iterator<Item = (&'static str, Self)> {
        std::iter::once(self.text).chain(self.aliases.iter().copied()).map(move |text| (text, self))
    }
}

impl ListName {
    pub(super) fn wildcards(self) -> Wildcards {
        match self {
            Self::AllowedTools | Self::DeniedTools => Wildcards::Tools,
            Self::ResourceScope | Self::AllowedMcpServers => Wildcards::Places,
            _ => Wildcards::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Constraint(ConstraintName),
    /// It is known to have no effect.
    Tag,
}

/// The names that a policy knows.
#[derive(Debug)]
pub struct Names {
    pub(super) first_edition: bool,
    meanings: HashMap<String, Meaning>,
    /// As the table writes them, with `_` or blanks, so that most look-ups need no key.
    spelled: HashMap<String, Meaning>,
    /// The letters of all keys of constraints, for suggestions.
    pub(super) keys: Vec<(Vec<char>, ConstraintName)>,
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
            let names = ConstraintName::ALL.into_iter().filter(|name| name.first_edition);
            let names = names.flat_map(ConstraintName::spellings);
            let meanings = names.map(|(key, name)| (key.to_owned(), Meaning::Constraint(name))).collect();
            Names { first_edition: true, meanings, ..Names::empty() }
        });
        &NAMES
    }

    /// The names that need no pack, in every spelling.
    pub fn built_in() -> &'static Self {
        static NAMES: LazyLock<Names> = LazyLock::new(|| {
            let mut names = Names::empty();
            for (text, name) in ConstraintName::ALL.into_iter().flat_map(ConstraintName::spellings) {
                if let Some(key) = key(text) {
                    names.insert(text, key, Meaning::Constraint(name));
                }
            }
            names.with_keys()
        });
        &NAMES
    }

    /// The built-in names with a pack's aliases and tags, and what is wrong with these.
    pub fn with<'a>(
        aliases: impl IntoIterator<Item = (&'a str, ConstraintName)>,
        tags: impl IntoIterator<Item = &'a str>,
    ) -> (Self, Vec<NameFault>) {
        let mut names = Self {
            meanings: Self::built_in().meanings.clone(),
            spelled: Self::built_in().spelled.clone(),
            ..Self::empty()
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
        (names.with_keys(), faults)
    }

    fn empty() -> Self {
        Self { first_edition: false, meanings: HashMap::new(), spelled: HashMap::new(), keys: Vec::new() }
    }

    fn insert(&mut self, text: &str, key: String, meaning: Meaning) {
        self.spelled.insert(text.replace('_', " "), meaning);
        self.spelled.insert(text.to_owned(), meaning);
        self.meanings.insert(key, meaning);
    }

    fn with_keys(mut self) -> Self {
        let constraints = self.meanings.iter().filter_map(|(key, meaning)| match meaning {
            Meaning::Constraint(name) => Some((key.chars().collect(), *name)),
            Meaning::Tag => None,
        });
        self.keys = constraints.collect();
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
        key(unquoted(name)).map(|key| self.suggest(&key, 2)).unwrap_or_default()
    }

    pub(super) fn is_tag(&self, name: &str) -> bool {
        self.meaning(name) == Some(Meaning::Tag)
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

/// The form in which names are compared: parts in lower case and the singular, without separators. `None` for other
/// characters, or letters of more than one script.
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
