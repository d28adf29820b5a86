//! Triggers: cheap conditions that must hold before a rule can be satisfied, so that most rules are never evaluated.
//!
//! Owns the one table from a `@trigger` to its condition. A trigger only saves work: loading a pack compares every case with an
//! evaluation of all rules and refuses a trigger that hides one.

use stage0_contract::FlagName;

use super::Facts;
use super::approval::Status;

/// One trigger: its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trigger(u8);

/// A set of triggers: a bit for each row of the table, in as many words as the table needs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Triggers([u64; TABLE.len().div_ceil(64)]);

type Holds = fn(&Facts) -> bool;

const TABLE: &[(&str, Holds)] = &[
    ("always", |_| true),
    ("side_effects", |f| f.effects.any),
    ("high_effect", |f| f.effects.high),
    ("communication_effect", |f| f.effects.communication),
    ("loop_effect", |f| f.effects.looping),
    ("approval_effect", |f| f.effects.approval),
    ("impact_effect", |f| f.effects.impact),
    ("customer_visible_effect", |f| f.effects.customer_visible),
    ("unknown_effect", |f| f.effects.unknown),
    ("unknown_effect_part", |f| f.effects.unknown_part),
    ("writing_effect", |f| f.effects.writes),
    ("undeclared_effect", |f| !f.powers.undeclared.is_empty()),
    ("approval_required", |f| f.declared.flag(FlagName::ApprovalRequired)),
    ("approval_named", |f| f.approval.named),
    ("approved", |f| f.effects.any && f.approval.status == Status::Approved),
    ("approval_time_unusable", |f| f.approval.time_unusable),
    ("approved_by_actor", |f| f.approval.by_actor),
    ("required_role", |f| f.declared.required_roles.is_some()),
    ("role_outside", |f| !f.access.role_outside.is_empty()),
    ("allowed_environment", |f| f.declared.allowed_environments.is_some()),
    ("environment_outside", |f| !f.access.environments_outside.is_empty()),
    ("max_iterations", |f| f.declared.max_iterations.is_some()),
    ("max_retries", |f| f.declared.max_retries.is_some()),
    ("timeout", |f| f.declared.timeout.is_some()),
    ("max_cost_usd", |f| f.declared.max_cost.is_some()),
    ("same_tool_limit", |f| f.declared.same_tool_limit.is_some()),
    ("max_records", |f| f.declared.max_records.is_some()),
    ("require_ticket", |f| f.declared.flag(FlagName::RequireTicket)),
    ("mfa_required", |f| f.declared.flag(FlagName::MfaRequired)),
    ("rollback_plan_required", |f| f.declared.flag(FlagName::RollbackPlanRequired)),
    ("allowed_change_window", |f| !f.declared.windows.is_empty()),
    ("resource_scope", |f| !f.declared.resource_scopes.is_empty()),
    ("allowed_mcp_servers", |f| f.declared.mcp_servers.is_some()),
    ("tenant_isolation", |f| f.declared.flag(FlagName::TenantIsolation)),
    ("allowed_tools", |f| f.declared.tools.is_some()),
    ("denied_tools", |f| f.declared.denied_tools.is_some()),
    ("denied_environment", |f| !f.declared.denied_environments.is_empty()),
    ("approval_max_age", |f| f.declared.approval_max_age.is_some()),
    ("constraints_not_understood", |f| !f.declared.not_understood.is_empty()),
    ("limits_not_enforced", |f| !f.limits_not_enforced.is_empty() || (f.retries_unread && f.effects.looping)),
    ("contradiction", |f| f.declared.flag(FlagName::ReadOnly) || f.declared.flag(FlagName::DryRun)),
    ("sensitive_tool", |f| f.powers.sensitive),
    ("criteria_missing", |f| f.criteria_missing),
    ("goal_vague", |f| f.goal_vague),
    ("secret_found", |f| !f.secrets.is_empty()),
    ("malformed", |f| !f.malformed.is_empty()),
];

impl Trigger {
    /// Finds a trigger by name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::all().find(|t| t.name() == name)
    }

    /// Every trigger, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..u8::try_from(TABLE.len()).unwrap_or(u8::MAX)).map(Self)
    }

    /// As a rule names it.
    pub(crate) fn name(self) -> &'static str {
        TABLE.get(usize::from(self.0)).map_or("", |(name, _)| name)
    }

    fn holds(self, facts: &Facts) -> bool {
        TABLE.get(usize::from(self.0)).is_some_and(|(_, holds)| holds(facts))
    }
}

impl Triggers {
    /// Those that hold.
    pub(crate) fn of(facts: &Facts) -> Self {
        let mut triggers = Self::default();
        for trigger in Trigger::all().filter(|trigger| trigger.holds(facts)) {
            if let Some(word) = triggers.0.get_mut(usize::from(trigger.0) / 64) {
                *word |= 1 << (trigger.0 % 64);
            }
        }
        triggers
    }

    /// Whether one is among them.
    pub(crate) fn contains(self, trigger: Trigger) -> bool {
        self.0.get(usize::from(trigger.0) / 64).is_some_and(|word| word & (1 << (trigger.0 % 64)) != 0)
    }

    /// By name, in the order of the table.
    pub(crate) fn names(self) -> Vec<&'static str> {
        Trigger::all().filter(|t| self.contains(*t)).map(Trigger::name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<_> = Trigger::all().map(Trigger::name).collect();
        assert_eq!(names.len(), TABLE.len());
        assert_eq!(Trigger::parse("malformed").map(Trigger::name), Some("malformed"));
        assert_eq!(Trigger::parse("sometimes"), None);
    }
}
