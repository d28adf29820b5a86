//! The grammar of constraint strings (contract, section 6): `name`, `name: value`, or free text without machine effect.
//!
//! Owns which names are recognised and which values each takes. Says nothing about what a constraint decides: that is the
//! evaluator's facts and the policy pack. A recognised name with an unusable value is an error, never ignored.

use crate::number::{Micros, NumberError};
use crate::word::Word;

/// The most entries in the list of one constraint.
pub const MAX_LIST_ENTRIES: usize = 1_000;

/// One recognised constraint.
#[derive(Debug, Clone)]
pub enum Constraint {
    /// Something that is either declared or not.
    Flag(FlagName),
    /// Approval for these actions.
    RequireApprovalFor(Vec<Word>),
    /// Any of these roles.
    RequiredRole(Vec<Word>),
    /// Any of these environments.
    AllowedEnvironment(Vec<Word>),
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
    /// Any of these windows of the policy pack.
    AllowedChangeWindow(Vec<Word>),
    /// Any of these resources; `*` at the end stands for any rest.
    ResourceScope(Vec<Word>),
    /// Any of these MCP servers.
    AllowedMcpServers(Vec<Word>),
    /// Any of these tools.
    AllowedTools(Vec<Word>),
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

/// A recognised name whose value cannot be used. The text never quotes the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Not a number, or one that is out of range.
    #[error("`{name}` {error}: write `{name}: <{wanted}>`")]
    Number {
        /// The constraint's canonical name.
        name: &'static str,
        /// What it takes.
        wanted: &'static str,
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
    /// A `*` that is not the last character.
    #[error("`{name}` allows `*` only at the end of a value")]
    Wildcard {
        /// The constraint's canonical name.
        name: &'static str,
    },
}

impl Constraint {
    /// Reads one constraint string. `None` is free text, or a flag that is switched off: both have no effect.
    pub fn parse(text: &str) -> Result<Option<Self>, ConstraintError> {
        let whole = Word::new(text);
        let (name, value) = match whole.as_str().split_once(':') {
            Some((name, value)) => (Word::name(name), Some(value.trim())),
            None => (Word::name(whole.as_str()), None),
        };
        let Some(name) = name.known() else {
            return Ok(None);
        };
        let flag = |flag| Ok(is_on(value).then_some(Self::Flag(flag)));
        match name {
            "approval_required"
            | "approval"
            | "require_approval"
            | "human_review_required"
            | "human_approval_required" => flag(FlagName::ApprovalRequired),
            "require_approval_for" => list("require_approval_for", value).map(|l| Some(Self::RequireApprovalFor(l))),
            "required_role" => list("required_role", value).map(|l| Some(Self::RequiredRole(l))),
            "allowed_environment" => list("allowed_environment", value).map(|l| Some(Self::AllowedEnvironment(l))),
            "max_iterations" => whole_number("max_iterations", value).map(|n| Some(Self::MaxIterations(n))),
            "max_retries" => whole_number("max_retries", value).map(|n| Some(Self::MaxRetries(n))),
            "timeout" | "timeout_seconds" => decimal("timeout", "seconds", value).map(|n| Some(Self::Timeout(n))),
            "max_cost_usd" => dollars("max_cost_usd", value).map(|n| Some(Self::MaxCost(n))),
            "same_tool" | "same_tool_limit" => whole_number("same_tool_limit", value).map(|n| Some(Self::SameTool(n))),
            "no_repeat_calls" => flag(FlagName::NoRepeatCalls),
            "max_records" | "max_records_per_request" => {
                whole_number("max_records", value).map(|n| Some(Self::MaxRecords(n)))
            }
            "require_ticket" => flag(FlagName::RequireTicket),
            "allowed_change_window" => list("allowed_change_window", value).map(|l| Some(Self::AllowedChangeWindow(l))),
            "business_hours_only" => {
                Ok(is_on(value).then(|| Self::AllowedChangeWindow(vec![Word::new("business_hours")])))
            }
            "rollback_plan_required" => flag(FlagName::RollbackPlanRequired),
            "mfa_required" | "require_mfa" => flag(FlagName::MfaRequired),
            "resource_scope" => scope_list("resource_scope", value).map(|l| Some(Self::ResourceScope(l))),
            "allowed_mcp_servers" => list("allowed_mcp_servers", value).map(|l| Some(Self::AllowedMcpServers(l))),
            "tenant_isolation" => flag(FlagName::TenantIsolation),
            "allowed_tools" => list("allowed_tools", value).map(|l| Some(Self::AllowedTools(l))),
            "read_only" => flag(FlagName::ReadOnly),
            "dry_run" => flag(FlagName::DryRun),
            "sandbox" => flag(FlagName::Sandbox),
            // Longer texts that begin so are always on: `approval required from two people: no exceptions`.
            other if other.starts_with("approval_required") || other.starts_with("human_approval_required") => {
                Ok(Some(Self::Flag(FlagName::ApprovalRequired)))
            }
            _ => Ok(None),
        }
    }

    /// The canonical name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Flag(flag) => flag.name(),
            Self::RequireApprovalFor(_) => "require_approval_for",
            Self::RequiredRole(_) => "required_role",
            Self::AllowedEnvironment(_) => "allowed_environment",
            Self::MaxIterations(_) => "max_iterations",
            Self::MaxRetries(_) => "max_retries",
            Self::Timeout(_) => "timeout",
            Self::MaxCost(_) => "max_cost_usd",
            Self::SameTool(_) => "same_tool_limit",
            Self::MaxRecords(_) => "max_records",
            Self::AllowedChangeWindow(_) => "allowed_change_window",
            Self::ResourceScope(_) => "resource_scope",
            Self::AllowedMcpServers(_) => "allowed_mcp_servers",
            Self::AllowedTools(_) => "allowed_tools",
        }
    }

    /// The normalised form, as `constraints_applied` shows it: `required_role: a, b`.
    pub fn normalised(&self) -> String {
        let joined = |words: &[Word]| words.iter().map(Word::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::Flag(flag) => flag.name().to_owned(),
            Self::RequireApprovalFor(words)
            | Self::RequiredRole(words)
            | Self::AllowedEnvironment(words)
            | Self::AllowedChangeWindow(words)
            | Self::ResourceScope(words)
            | Self::AllowedMcpServers(words)
            | Self::AllowedTools(words) => format!("{}: {}", self.name(), joined(words)),
            Self::MaxIterations(n) | Self::MaxRetries(n) | Self::SameTool(n) | Self::MaxRecords(n) => {
                format!("{}: {n}", self.name())
            }
            Self::Timeout(n) => format!("{}: {}s", self.name(), n.to_decimal()),
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

fn is_on(value: Option<&str>) -> bool {
    !matches!(value, Some("false" | "no" | "off" | "0"))
}

fn list(name: &'static str, value: Option<&str>) -> Result<Vec<Word>, ConstraintError> {
    let value = value.unwrap_or_default();
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    let words: Vec<Word> = inner
        .split(',')
        .map(|item| Word::new(item.trim().trim_matches(['"', '\''])))
        .filter(|w| !w.is_empty())
        .collect();
    match words.len() {
        0 => Err(ConstraintError::EmptyList { name }),
        1..=MAX_LIST_ENTRIES => Ok(words),
        _ => Err(ConstraintError::TooManyEntries { name }),
    }
}

fn scope_list(name: &'static str, value: Option<&str>) -> Result<Vec<Word>, ConstraintError> {
    let words = list(name, value)?;
    let inner_star = |w: &Word| w.as_str().strip_suffix('*').unwrap_or(w.as_str()).contains('*');
    if words.iter().any(inner_star) { Err(ConstraintError::Wildcard { name }) } else { Ok(words) }
}

fn decimal(name: &'static str, wanted: &'static str, value: Option<&str>) -> Result<Micros, ConstraintError> {
    let value = value.unwrap_or_default();
    let digits = value.strip_suffix('s').unwrap_or(value).trim_end();
    Micros::parse(digits, false).map_err(|error| ConstraintError::Number { name, wanted, error })
}

/// No more than anybody can spend.
fn dollars(name: &'static str, value: Option<&str>) -> Result<Micros, ConstraintError> {
    const WANTED: &str = "dollars, at most 1000000000";
    let amount = decimal(name, WANTED, value)?;
    amount.at_most_usd().map_err(|error| ConstraintError::Number { name, wanted: WANTED, error })
}

fn whole_number(name: &'static str, value: Option<&str>) -> Result<u64, ConstraintError> {
    let wanted = "whole number";
    let micros = decimal(name, wanted, value)?.get();
    if micros % 1_000_000 != 0 {
        return Err(ConstraintError::Number { name, wanted, error: NumberError::NotANumber });
    }
    u64::try_from(micros / 1_000_000).map_err(|_| ConstraintError::Number {
        name,
        wanted,
        error: NumberError::OutOfRange,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> Option<String> {
        Constraint::parse(text).unwrap().map(|c| c.normalised())
    }

    #[test]
    fn spellings_and_aliases_come_to_one_form() {
        for (text, form) in [
            ("approval required", "approval_required"),
            ("Human Approval Required for trading intents", "approval_required"),
            ("require_approval: true", "approval_required"),
            ("rollback plan required", "rollback_plan_required"),
            ("read-only", "read_only"),
            ("max_iterations:3", "max_iterations: 3"),
            ("MAX-ITERATIONS: 3", "max_iterations: 3"),
            ("timeout:300s", "timeout: 300s"),
            ("timeout_seconds: 1.5", "timeout: 1.5s"),
            ("max_cost_usd: 2.00", "max_cost_usd: 2"),
            ("allowed_environment:staging,production", "allowed_environment: staging, production"),
            ("allowed_environment: [staging, \"Production\"]", "allowed_environment: staging, production"),
            ("resource_scope:accounts:staging", "resource_scope: accounts:staging"),
            ("business hours only", "allowed_change_window: business_hours"),
            ("same_tool: 2", "same_tool_limit: 2"),
            ("max_retries： 5", "max_retries: 5"),
        ] {
            assert_eq!(normal(text).as_deref(), Some(form), "{text}");
        }
    }

    #[test]
    fn free_text_and_flags_that_are_off_have_no_effect() {
        for text in [
            "no side effects",
            "informational only",
            "dry-run first",
            "production_deployment",
            "approval_required: false",
            "sandbox: off",
            "mfa_required:no",
            "read_only: 0",
            "business_hours_only: false",
            "no approval required",
            "read_\u{43e}nly",
        ] {
            assert_eq!(normal(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_has_a_thousand_entries_at_most() {
        let list = |entries: usize| Constraint::parse(&format!("allowed_tools: {}", vec!["t"; entries].join(",")));
        assert!(list(MAX_LIST_ENTRIES).is_ok());
        let Err(error) = list(MAX_LIST_ENTRIES + 1) else { panic!("taken") };
        assert_eq!(error.to_string(), "`allowed_tools` takes at most 1000 entries");
    }

    #[test]
    fn an_unusable_value_is_an_error() {
        for text in [
            "max_iterations",
            "max_iterations: many",
            "max_iterations: -1",
            "max_iterations: 1.5",
            "max_retries: 1e9",
            "timeout: soon",
            "max_cost_usd: 99999999999999999999",
            "max_cost_usd: 1000000000.01",
            "allowed_environment:",
            "required_role: [ , ]",
            "resource_scope: a*b",
            "same_tool_limit: unlimited",
            "max_records: ٣",
        ] {
            assert!(Constraint::parse(text).is_err(), "{text}");
        }
    }
}
