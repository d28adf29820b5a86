//! The grammar of constraint strings: `name`, `name: value`, or free text without machine effect.
//!
//! `names` has the table of all constraints, `value` parses values, and `form` recognises text that looks like a
//! constraint but is none. What a constraint decides is up to the evaluator's facts and the policy pack.
//! INVARIANT: a recognised name with an unusable value is an error, never ignored.

mod form;
mod names;
mod near;
mod value;

use crate::number::{NumberError, decimal};
use crate::word::{Word, plain, visible};

pub use names::{ConstraintName, NameFault, Names};
pub use near::edit_distance;

use names::{Takes, Unit};
use value::unquoted;

/// The most entries in the list of one constraint.
pub const MAX_LIST_ENTRIES: usize = 1_000;

/// One recognised constraint.
#[derive(Debug, Clone)]
pub struct Constraint {
    name: ConstraintName,
    /// What it sets.
    pub value: ConstraintValue,
}

/// What a constraint sets.
#[derive(Debug, Clone)]
pub enum ConstraintValue {
    /// A flag that is on.
    Flag(FlagName),
    /// The largest number allowed, or millionths of seconds or dollars where the limit says so.
    Limit(LimitName, i64),
    /// Entries in NFKC, in the case of the caller.
    List(ListName, Vec<String>),
}

/// A constraint without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the contract")]
pub enum FlagName {
    ApprovalRequired,
    NoRepeatCalls,
    RequireTicket,
    RollbackPlanRequired,
    MfaRequired,
    TenantIsolation,
    ReadOnly,
    DryRun,
    Sandbox,
}

/// A constraint whose smallest value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitName {
    /// The last iteration that may run.
    MaxIterations,
    /// Retries at which to stop.
    MaxRetries,
    /// Millionths of a second.
    Timeout,
    /// Millionths of a dollar.
    MaxCost,
    /// Identical calls that may run.
    SameTool,
    /// Records that may be touched.
    MaxRecords,
    /// How long ago the approval may have been given, in millionths of a second.
    ApprovalMaxAge,
}

/// A constraint with a list of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the contract")]
pub enum ListName {
    RequireApprovalFor,
    RequiredRole,
    AllowedEnvironment,
    /// Like `AllowedEnvironment`, but written as a tag: it restricts the environment but is not a guardrail.
    Environment,
    DeniedEnvironment,
    /// Windows of the policy pack.
    AllowedChangeWindow,
    ResourceScope,
    AllowedMcpServers,
    AllowedTools,
    DeniedTools,
}

/// The result of parsing a constraint string.
#[derive(Debug, Clone)]
pub enum Reading {
    /// It has an effect.
    Constraint(Constraint),
    /// A flag that is switched off.
    Off,
    /// It looks like a constraint but is none; holds the names that were probably meant, best first.
    NotUnderstood(Vec<&'static str>),
    /// A sentence, or a tag that is known to have no effect.
    Text,
}

/// A recognised name with an unusable value. The text has the canonical name and never quotes the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum ConstraintError {
    #[error("`{name}` {error}: write `{name}: {example}`{form}")]
    Number { name: &'static str, error: NumberError, example: &'static str, form: &'static str },
    #[error("`{0}` needs a list: write `{0}: a, b`")]
    EmptyList(&'static str),
    #[error("`{0}` takes at most {MAX_LIST_ENTRIES} entries")]
    TooManyEntries(&'static str),
    #[error("`{0}` separates values with a comma: write `{0}: a, b`")]
    Joined(&'static str),
    #[error("`{0}` takes no brackets but `[` and `]` around the whole list: write `{0}: a, b`")]
    Brackets(&'static str),
    #[error("`{name}` cannot exclude a value: write each value that it means, `{name}: a, b`{}", instead(.name))]
    Negated { name: &'static str },
    #[error("`{0}` allows `*` only at the end of a value: write `{0}: a*, b`")]
    Wildcard(&'static str),
    #[error("`{0}` takes names, and no word for all of them: write each value")]
    Everything(&'static str),
    #[error("`{0}` takes no `*`: write each value, `{0}: a, b`")]
    NoWildcard(&'static str),
    #[error("`{0}` allows `*` only in the tool's part: write `mcp__server__*`")]
    McpWildcard(&'static str),
    #[error("`{0}` allows `*` behind a host only after a `/`: write `{0}: https://host.example/*`")]
    HostWildcard(&'static str),
}

/// The constraint that excludes values of the same kind.
fn instead(name: &str) -> &'static str {
    match name {
        "allowed_tools" => ", or `denied_tools: c`",
        "allowed_environment" | "environment" => ", or `denied_environment: c`",
        _ => "",
    }
}

impl Constraint {
    /// Reads one constraint string by the names that every policy knows. `None` is what has no effect.
    pub fn parse(text: &str) -> Result<Option<Self>, ConstraintError> {
        Ok(match Self::read(text, Names::built_in())? {
            Reading::Constraint(constraint) => Some(constraint),
            Reading::Off | Reading::NotUnderstood(_) | Reading::Text => None,
        })
    }

    /// Reads one constraint string by these names.
    pub fn read(text: &str, names: &Names) -> Result<Reading, ConstraintError> {
        let text = plain(text);
        let text = text.trim();
        let (head, value) = names.split(text);
        if let Some(name) = names.find(head) {
            return Self::of(name, value, names);
        }
        if begins_with_approval(head)
            && let Some(name) = ConstraintName::parse("approval_required")
        {
            return Self::of(name, None, names);
        }
        Ok(match names.not_understood(text, head) {
            Some(meant) => Reading::NotUnderstood(meant),
            None => Reading::Text,
        })
    }

    fn of(name: ConstraintName, value: Option<&str>, names: &Names) -> Result<Reading, ConstraintError> {
        let value = match name.takes {
            Takes::Flag(_) | Takes::ShortFor(_) if !value::is_on(value, names.first_edition) => {
                return Ok(Reading::Off);
            }
            Takes::ShortFor(constraint) => return Self::read(constraint, names),
            Takes::Flag(flag) => ConstraintValue::Flag(flag),
            Takes::Limit(limit, unit) => ConstraintValue::Limit(limit, value::limit(name.as_str(), unit, value)?),
            Takes::List(list) => ConstraintValue::List(list, value::list(name.as_str(), list, value)?),
        };
        Ok(Reading::Constraint(Self { name, value }))
    }

    /// The canonical name.
    pub fn name(&self) -> &'static str {
        self.name.as_str()
    }

    /// The normalised form, as `constraints_applied` shows it: `required_role: a, b`.
    pub fn normalised(&self) -> String {
        let name = self.name();
        match (&self.value, self.name.takes) {
            (ConstraintValue::Flag(_), _) => name.to_owned(),
            (ConstraintValue::List(_, entries), _) => {
                let entries: Vec<String> = entries.iter().map(|entry| visible(entry)).collect();
                format!("{name}: {}", entries.join(", "))
            }
            (ConstraintValue::Limit(_, seconds), Takes::Limit(_, Unit::Seconds)) => {
                format!("{name}: {}s", decimal(*seconds))
            }
            (ConstraintValue::Limit(_, dollars), Takes::Limit(_, Unit::Dollars)) => {
                format!("{name}: {}", decimal(*dollars))
            }
            (ConstraintValue::Limit(_, number), _) => format!("{name}: {number}"),
        }
    }
}

/// Longer texts that begin so are always on: `approval required from two people: no exceptions`.
fn begins_with_approval(head: &str) -> bool {
    let word = Word::name(unquoted(head));
    let begins = |name: &str| name.starts_with("approval_required") || name.starts_with("human_approval_required");
    word.known().is_some_and(begins)
}

#[cfg(test)]
mod tests;
