//! The grammar of constraint strings (contract, section 6): `name`, `name: value`, or free text without machine effect.
//!
//! Owns the list of constraints and the parser of one string. `names` maps names and aliases to constraints, `value`
//! parses values, and `form` recognises text that looks like a constraint but is none. What a constraint decides is up
//! to the evaluator's facts and the policy pack. A recognised name with an unusable value is an error, never ignored.

mod form;
mod names;
mod near;
mod value;

use crate::number::{Micros, NumberError};
use crate::word::{Word, plain, visible};

pub use names::{ConstraintName, NameFault, Names};

use names::Form;
use value::unquoted;

/// The most entries in the list of one constraint.
pub const MAX_LIST_ENTRIES: usize = 1_000;

/// One recognised constraint. Lists hold their entries in NFKC, in the case of the caller.
#[derive(Debug, Clone)]
pub enum Constraint {
    /// A constraint without a value: declared or not.
    Flag(FlagName),
    /// Approval for these actions.
    RequireApprovalFor(Vec<String>),
    /// Any of these roles.
    RequiredRole(Vec<String>),
    /// Any of these environments.
    AllowedEnvironment(Vec<String>),
    /// Like `AllowedEnvironment`, but written as a tag: it restricts the environment but is not a guardrail.
    Environment(Vec<String>),
    /// None of these environments.
    DeniedEnvironment(Vec<String>),
    /// The last iteration that may run.
    MaxIterations(u64),
    /// Retries at which to stop.
    MaxRetries(u64),
    /// Seconds, in millionths.
    Timeout(Micros),
    /// Dollars, in millionths.
    MaxCost(Micros),
    /// Identical calls that may run.
    SameTool(u64),
    /// Records that may be touched.
    MaxRecords(u64),
    /// How long ago the approval may have been given: seconds, in millionths.
    ApprovalMaxAge(Micros),
    /// Any of these windows of the policy pack.
    AllowedChangeWindow(Vec<String>),
    /// Any of these resources; `*` at the end stands for any rest.
    ResourceScope(Vec<String>),
    /// Any of these MCP servers; `*` at the end stands for any rest.
    AllowedMcpServers(Vec<String>),
    /// Any of these tools; `*` at the end stands for any rest.
    AllowedTools(Vec<String>),
    /// None of these tools; `*` at the end stands for any rest.
    DeniedTools(Vec<String>),
}

/// A constraint without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlagName {
    /// A person must approve.
    ApprovalRequired,
    /// No call twice.
    NoRepeatCalls,
    /// A ticket must be named.
    RequireTicket,
    /// A rollback plan must exist.
    RollbackPlanRequired,
    /// The person must have passed a second factor.
    MfaRequired,
    /// Only the caller's own tenant.
    TenantIsolation,
    /// Nothing is written.
    ReadOnly,
    /// Nothing is done.
    DryRun,
    /// Nothing outside can be reached.
    Sandbox,
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

/// A recognised name with an unusable value. The text never quotes the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Not a number, or one that is out of range.
    #[error("`{name}` {error}: write {wanted}")]
    Number {
        /// The constraint's canonical name.
        name: &'static str,
        /// A value that would do, and the unit.
        wanted: String,
        /// What is wrong.
        error: NumberError,
    },
    /// No value, or an empty list.
    #[error("`{name}` needs a list: write `{name}: a, b`")]
    EmptyList {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// More entries than are compared.
    #[error("`{name}` takes at most {MAX_LIST_ENTRIES} entries")]
    TooManyEntries {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// Values that are joined by something other than a comma.
    #[error("`{name}` separates values with a comma: write `{name}: a, b`")]
    Joined {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// Brackets other than `[` and `]` around the whole list.
    #[error("`{name}` takes no brackets but `[` and `]` around the whole list: write `{name}: a, b`")]
    Brackets {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A value that is excluded.
    #[error("`{name}` cannot exclude a value: write each value that it means, `{name}: a, b`{}", instead(.name))]
    Negated {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A `*` that is not the last character.
    #[error("`{name}` allows `*` only at the end of a value: write `{name}: a*, b`")]
    Wildcard {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A word such as `all` in a list that must name each value.
    #[error("`{name}` takes names, and no word for all of them: write each value")]
    Everything {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A `*` in a list that compares whole values.
    #[error("`{name}` takes no `*`: write each value, `{name}: a, b`")]
    NoWildcard {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A `*` for any server.
    #[error("`{name}` allows `*` only in the tool's part: write `mcp__server__*`")]
    McpWildcard {
        /// The constraint's canonical name.
        name: &'static str,
    },
    /// A `*` that could match another host.
    #[error("`{name}` allows `*` behind a host only after a `/`: write `{name}: https://host.example/*`")]
    HostWildcard {
        /// The constraint's canonical name.
        name: &'static str,
    },
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
        if begins_with_approval(head) {
            return Ok(Reading::Constraint(Self::Flag(FlagName::ApprovalRequired)));
        }
        Ok(match names.not_understood(text, head) {
            Some(meant) => Reading::NotUnderstood(meant),
            None => Reading::Text,
        })
    }

    fn of(name: ConstraintName, value: Option<&str>, names: &Names) -> Result<Reading, ConstraintError> {
        let list = |make: fn(Vec<String>) -> Self| value::list(name, value, names).map(make);
        let whole = |make: fn(u64) -> Self| value::whole_number(name.as_str(), value).map(make);
        let constraint = match name.form() {
            Form::Flag(flag) if names.is_on(value) => Self::Flag(flag),
            Form::BusinessHours if names.is_on(value) => Self::AllowedChangeWindow(vec!["business_hours".to_owned()]),
            Form::Flag(_) | Form::BusinessHours => return Ok(Reading::Off),
            Form::List(make) => list(make)?,
            Form::Whole(make) => whole(make)?,
            Form::Duration(make) => value::duration(name.as_str(), value).map(make)?,
            Form::Dollars(make) => value::dollars(name.as_str(), value).map(make)?,
        };
        Ok(Reading::Constraint(constraint))
    }

    /// The canonical name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Flag(flag) => flag.name(),
            Self::RequireApprovalFor(_) => "require_approval_for",
            Self::RequiredRole(_) => "required_role",
            Self::AllowedEnvironment(_) => "allowed_environment",
            Self::Environment(_) => "environment",
            Self::DeniedEnvironment(_) => "denied_environment",
            Self::MaxIterations(_) => "max_iterations",
            Self::MaxRetries(_) => "max_retries",
            Self::Timeout(_) => "timeout",
            Self::MaxCost(_) => "max_cost_usd",
            Self::SameTool(_) => "same_tool_limit",
            Self::MaxRecords(_) => "max_records",
            Self::ApprovalMaxAge(_) => "approval_max_age",
            Self::AllowedChangeWindow(_) => "allowed_change_window",
            Self::ResourceScope(_) => "resource_scope",
            Self::AllowedMcpServers(_) => "allowed_mcp_servers",
            Self::AllowedTools(_) => "allowed_tools",
            Self::DeniedTools(_) => "denied_tools",
        }
    }

    /// The normalised form, as `constraints_applied` shows it: `required_role: a, b`.
    pub fn normalised(&self) -> String {
        let joined = |words: &[String]| words.iter().map(|word| visible(word)).collect::<Vec<_>>().join(", ");
        match self {
            Self::Flag(flag) => flag.name().to_owned(),
            Self::RequireApprovalFor(words)
            | Self::RequiredRole(words)
            | Self::AllowedEnvironment(words)
            | Self::Environment(words)
            | Self::DeniedEnvironment(words)
            | Self::AllowedChangeWindow(words)
            | Self::ResourceScope(words)
            | Self::AllowedMcpServers(words)
            | Self::AllowedTools(words)
            | Self::DeniedTools(words) => format!("{}: {}", self.name(), joined(words)),
            Self::MaxIterations(n) | Self::MaxRetries(n) | Self::SameTool(n) | Self::MaxRecords(n) => {
                format!("{}: {n}", self.name())
            }
            Self::Timeout(n) | Self::ApprovalMaxAge(n) => format!("{}: {}s", self.name(), n.to_decimal()),
            Self::MaxCost(n) => format!("{}: {}", self.name(), n.to_decimal()),
        }
    }
}

impl FlagName {
    /// The canonical name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApprovalRequired => "approval_required",
            Self::NoRepeatCalls => "no_repeat_calls",
            Self::RequireTicket => "require_ticket",
            Self::RollbackPlanRequired => "rollback_plan_required",
            Self::MfaRequired => "mfa_required",
            Self::TenantIsolation => "tenant_isolation",
            Self::ReadOnly => "read_only",
            Self::DryRun => "dry_run",
            Self::Sandbox => "sandbox",
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
