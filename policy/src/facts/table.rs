//! The fact table: every attribute that a rule can read and every trigger that a rule can have, by name.
//!
//! Attributes are what rules see as `context.<name>`: Booleans, whole numbers, texts and sets of texts only, because
//! floats and nulls could decide wrongly. Triggers are cheap conditions that must hold before a rule is evaluated, so
//! that most rules never are; a pack with a trigger that hides a rule is refused.

use stage0_contract::{FlagName, LimitName};

use super::Facts;
use super::approval::Status;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FactValue {
    Bool(bool),
    Long(i64),
    Text(String),
    Set(Vec<String>),
}

enum Row {
    /// A Boolean attribute, and a trigger that holds when it is true.
    Flag(fn(&Facts) -> bool),
    /// A declared number, absent unless declared, and a trigger that holds when it is declared.
    Limit(fn(&Facts) -> Option<i64>),
    /// An attribute; absent where it returns `None`.
    Attribute(fn(&Facts) -> Option<FactValue>),
    /// An attribute that holds words of the request. They are hidden where the request holds a secret.
    Words(fn(&Facts) -> Option<FactValue>),
    Trigger(fn(&Facts) -> bool),
}

use Row::{Attribute as Value, Flag, Limit, Trigger as When, Words};

/// `policy explain` lists triggers in this order.
const TABLE: &[(&str, Row)] = &[
    ("always", When(|_| true)),
    ("side_effects", Flag(|f| f.effects.any)),
    ("scoped_effects", Value(|f| bool(f.effects.scoped))),
    ("high_effect", Flag(|f| f.effects.high)),
    ("communication_effect", Flag(|f| f.effects.communication)),
    ("loop_effect", Flag(|f| f.effects.looping)),
    ("approval_effect", Flag(|f| f.effects.approval)),
    ("impact_effect", Flag(|f| f.effects.impact)),
    ("customer_visible_effect", Flag(|f| f.effects.customer_visible)),
    ("unknown_effect", Flag(|f| f.effects.unknown)),
    ("unknown_effect_part", Flag(|f| f.effects.unknown_part)),
    ("writing_effect", Flag(|f| f.effects.writes)),
    ("undeclared_effect", Flag(|f| !f.tool_risks.undeclared.is_empty())),
    ("declared", Value(|f| set(&f.declared.names))),
    ("guardrail_declared", Value(|f| bool(!f.declared.guardrails.is_empty()))),
    ("context_present", Value(|f| bool(f.context_present))),
    ("approval_required", Flag(|f| f.declared.flag(FlagName::ApprovalRequired))),
    ("approval_named", Flag(|f| f.approval.named)),
    ("approval_status", Value(|f| Some(FactValue::Text(f.approval.status.as_str().to_owned())))),
    ("approval_needed", Value(|f| bool(f.approval.needed))),
    ("approved", When(|f| f.effects.any && f.approval.status == Status::Approved)),
    ("approval_time_unusable", Flag(|f| f.approval.time_unusable)),
    ("approved_at", Value(|f| f.approval.approved_at.map(FactValue::Long))),
    ("approved_by_actor", Flag(|f| f.approval.by_actor)),
    ("approver_named", Value(|f| bool(f.approval.approver_named))),
    ("customer_visible_refused", Value(|f| bool(f.approval.customer_visible_refused))),
    ("role", Words(|f| f.access.role.clone().map(FactValue::Text))),
    ("required_role", When(|f| f.declared.required_roles.is_some())),
    ("required_roles", Words(|f| f.access.required_roles.clone().map(FactValue::Set))),
    ("role_outside", When(|f| !f.access.role_outside.is_empty())),
    ("environments", Words(|f| Some(FactValue::Set(f.access.environments.clone())))),
    ("allowed_environment", When(|f| f.declared.allowed_environments.is_some())),
    ("allowed_environments", Words(|f| f.access.allowed_environments.clone().map(FactValue::Set))),
    ("environment_outside", When(|f| !f.access.environments_outside.is_empty())),
    ("iteration", Value(|f| long(f.run.iteration))),
    ("max_iterations", Limit(|f| f.declared.limit(LimitName::MaxIterations))),
    ("retries", Value(|f| long(f.run.retries))),
    ("max_retries", Limit(|f| f.declared.limit(LimitName::MaxRetries))),
    ("elapsed_micros", Value(|f| long(f.run.elapsed_micros))),
    ("timeout", When(|f| f.declared.limit(LimitName::Timeout).is_some())),
    ("timeout_micros", Value(|f| f.declared.limit(LimitName::Timeout).map(FactValue::Long))),
    ("cost_micros", Value(|f| long(f.run.cost_micros))),
    ("max_cost_usd", When(|f| f.declared.limit(LimitName::MaxCost).is_some())),
    ("max_cost_micros", Value(|f| f.declared.limit(LimitName::MaxCost).map(FactValue::Long))),
    ("same_tool_calls", Value(|f| long(f.run.same_tool_calls))),
    ("same_tool_limit", Limit(|f| f.declared.limit(LimitName::SameTool))),
    ("record_count", Value(|f| f.scopes.record_count.map(FactValue::Long))),
    ("max_records", Limit(|f| f.declared.limit(LimitName::MaxRecords))),
    ("require_ticket", Flag(|f| f.declared.flag(FlagName::RequireTicket))),
    ("ticket_named", Value(|f| bool(f.ticket_named))),
    ("mfa_required", Flag(|f| f.declared.flag(FlagName::MfaRequired))),
    ("mfa_verified", Value(|f| bool(f.mfa_verified))),
    ("rollback_plan_required", Flag(|f| f.declared.flag(FlagName::RollbackPlanRequired))),
    ("rollback_plan", Value(|f| bool(f.rollback_plan))),
    ("allowed_change_window", When(|f| !f.declared.windows.is_empty())),
    ("change_window_declared", Value(|f| bool(!f.declared.windows.is_empty()))),
    ("window_open", Value(|f| bool(f.window_open))),
    ("resource_scope", When(|f| !f.declared.resource_scopes.is_empty())),
    ("resource_scope_declared", Value(|f| bool(!f.declared.resource_scopes.is_empty()))),
    ("resources_named", Value(|f| bool(f.scopes.resources_named))),
    ("resources_outside", Value(|f| bool(!f.scopes.resources_outside.is_empty()))),
    ("allowed_mcp_servers", When(|f| f.declared.mcp_servers.is_some())),
    ("mcp_servers_declared", Value(|f| bool(f.declared.mcp_servers.is_some()))),
    ("mcp_servers_named", Value(|f| bool(f.scopes.mcp_servers_named))),
    ("mcp_servers_outside", Value(|f| bool(!f.scopes.mcp_servers_outside.is_empty()))),
    ("tenant_isolation", When(|f| f.declared.flag(FlagName::TenantIsolation))),
    ("tenant_isolation_declared", Value(|f| bool(f.declared.flag(FlagName::TenantIsolation)))),
    ("tenants_named", Value(|f| bool(f.scopes.tenants_named))),
    ("tenants_outside", Value(|f| bool(!f.scopes.tenants_outside.is_empty()))),
    ("allowed_tools", When(|f| f.declared.tools.is_some())),
    ("tools_outside", Value(|f| bool(!f.scopes.tools_outside.is_empty()))),
    ("denied_tools", When(|f| f.declared.denied_tools.is_some())),
    ("tools_denied", Value(|f| bool(!f.scopes.tools_denied.is_empty()))),
    ("denied_environment", When(|f| !f.declared.denied_environments.is_empty())),
    ("denied_environment_declared", Value(|f| bool(!f.declared.denied_environments.is_empty()))),
    ("environment_denied", Value(|f| bool(!f.scopes.environments_denied.is_empty()))),
    ("approval_max_age", When(|f| f.declared.limit(LimitName::ApprovalMaxAge).is_some())),
    ("approval_stale", Value(|f| bool(f.approval_stale))),
    ("constraints_not_understood", Flag(|f| !f.declared.not_understood.is_empty())),
    ("limits_not_enforced", Value(|f| set(&f.limits_not_enforced))),
    (
        "limits_not_enforced",
        When(|f| !f.limits_not_enforced.is_empty() || (f.retry_count_unusable && f.effects.looping)),
    ),
    ("retries_unread", Value(|f| bool(f.retry_count_unusable))),
    ("contradiction", When(|f| f.declared.flag(FlagName::ReadOnly) || f.declared.flag(FlagName::DryRun))),
    ("sensitive_tool", Flag(|f| f.tool_risks.sensitive)),
    ("tools_guarded", Value(|f| bool(f.declared.guards_tools()))),
    ("criteria_missing", Flag(|f| f.criteria_missing)),
    ("bare", Value(|f| bool(f.bare))),
    ("goal_vague", Flag(|f| f.goal_vague)),
    ("secret_found", Flag(|f| !f.secrets.is_empty())),
    ("malformed", Value(|f| set(&f.malformed))),
    ("malformed", When(|f| !f.malformed.is_empty())),
];

fn bool(value: bool) -> Option<FactValue> {
    Some(FactValue::Bool(value))
}

fn long(value: i64) -> Option<FactValue> {
    Some(FactValue::Long(value))
}

fn set(names: &[&'static str]) -> Option<FactValue> {
    Some(FactValue::Set(names.iter().map(|name| (*name).to_owned()).collect()))
}

impl Row {
    fn is_attribute(&self) -> bool {
        !matches!(self, Self::Trigger(_))
    }

    fn is_trigger(&self) -> bool {
        matches!(self, Self::Flag(_) | Self::Limit(_) | Self::Trigger(_))
    }

    fn value(&self, facts: &Facts) -> Option<FactValue> {
        match self {
            Self::Flag(read) => bool(read(facts)),
            Self::Limit(read) => read(facts).map(FactValue::Long),
            Self::Attribute(read) | Self::Words(read) => read(facts),
            Self::Trigger(_) => None,
        }
    }

    fn holds(&self, facts: &Facts) -> bool {
        match self {
            Self::Flag(holds) | Self::Trigger(holds) => holds(facts),
            Self::Limit(read) => read(facts).is_some(),
            Self::Attribute(_) | Self::Words(_) => false,
        }
    }
}

/// Rows of the table with their index.
fn rows(wanted: fn(&Row) -> bool) -> impl Iterator<Item = (u8, &'static str, &'static Row)> {
    (0..).zip(TABLE).filter(move |(_, (_, row))| wanted(row)).map(|(index, (name, row))| (index, *name, row))
}

/// One attribute, by its index in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute(u8);

/// One trigger, by its index in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trigger(u8);

impl Attribute {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::all().find(|attribute| attribute.name() == name)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        rows(Row::is_attribute).map(|(index, ..)| Self(index))
    }

    pub(crate) fn name(self) -> &'static str {
        TABLE.get(usize::from(self.0)).map_or("", |(name, _)| name)
    }

    pub(crate) fn holds_words(self) -> bool {
        matches!(TABLE.get(usize::from(self.0)), Some((_, Row::Words(_))))
    }

    /// Its value; `None` where an optional fact is absent.
    pub(crate) fn value(self, facts: &Facts) -> Option<FactValue> {
        TABLE.get(usize::from(self.0)).and_then(|(_, row)| row.value(facts))
    }
}

impl Trigger {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        rows(Row::is_trigger).find(|(_, known, _)| *known == name).map(|(index, ..)| Self(index))
    }
}

/// A bit for each row of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RowSet([u64; TABLE.len().div_ceil(64)]);

impl RowSet {
    fn insert(&mut self, index: u8) {
        if let Some(word) = self.0.get_mut(usize::from(index) / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn contains(self, index: u8) -> bool {
        self.0.get(usize::from(index) / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes(RowSet);

impl Attributes {
    pub(crate) fn insert(&mut self, attribute: Attribute) {
        self.0.insert(attribute.0);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        for (word, other) in self.0.0.iter_mut().zip(others.0.0) {
            *word |= other;
        }
    }

    /// In the order of the table.
    pub(crate) fn iter(self) -> impl Iterator<Item = Attribute> {
        Attribute::all().filter(move |attribute| self.0.contains(attribute.0))
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Triggers(RowSet);

impl Triggers {
    pub(crate) fn of(facts: &Facts) -> Self {
        let mut triggers = RowSet::default();
        for (index, ..) in rows(Row::is_trigger).filter(|(_, _, row)| row.holds(facts)) {
            triggers.insert(index);
        }
        Self(triggers)
    }

    pub(crate) fn contains(self, trigger: Trigger) -> bool {
        self.0.contains(trigger.0)
    }

    pub(crate) fn names(self) -> Vec<&'static str> {
        rows(Row::is_trigger).filter(|(index, ..)| self.0.contains(*index)).map(|(_, name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_attributes_and_no_two_triggers_have_the_same_name() {
        for kind in [Row::is_attribute, Row::is_trigger] {
            let unique: BTreeSet<_> = rows(kind).map(|(_, name, _)| name).collect();
            assert_eq!(unique.len(), rows(kind).count());
        }
        assert!(u8::try_from(TABLE.len()).is_ok(), "an index is a byte");
    }

    #[test]
    fn attributes_and_triggers_are_found_by_name() {
        assert_eq!(Attribute::parse("role").map(Attribute::name), Some("role"));
        assert_eq!(Attribute::parse("goal"), None);
        assert_eq!(Attribute::parse("always"), None, "a trigger that is no attribute");
        assert!(Trigger::parse("malformed").is_some() && Trigger::parse("high_effect").is_some());
        assert_eq!(Trigger::parse("sometimes"), None);
        assert_eq!(Trigger::parse("role"), None, "an attribute that is no trigger");
    }

    #[test]
    fn a_set_of_attributes_keeps_the_order_of_the_table() {
        let mut wanted = Attributes::default();
        for name in ["role", "side_effects", "goal_vague"] {
            wanted.insert(Attribute::parse(name).unwrap());
        }
        let names: Vec<_> = wanted.iter().map(Attribute::name).collect();
        assert_eq!(names, ["side_effects", "role", "goal_vague"]);
    }

    #[test]
    fn every_attribute_has_a_bit_of_its_own() {
        for attribute in Attribute::all() {
            let mut set = Attributes::default();
            set.insert(attribute);
            assert_eq!(set.iter().collect::<Vec<_>>(), [attribute]);
        }
    }
}
