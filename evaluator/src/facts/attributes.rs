//! Attributes: the facts as rules see them, by name.
//!
//! Owns the one table from a name in `context.<name>` to a value; a rule or schema that names anything else is refused at load.
//! Only Booleans, whole numbers, texts and sets of texts: the policy engine knows no floats or nulls that could decide wrongly.

use stage0_contract::{FlagName, Micros};

use super::Facts;

/// A value that rules can compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FactValue {
    Bool(bool),
    Long(i64),
    Text(String),
    Set(Vec<String>),
}

/// One attribute: its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribute(u8);

/// A set of attributes: a bit for each row of the table, in as many words as the table needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes([u64; TABLE.len().div_ceil(64)]);

type Read = fn(&Facts) -> Option<FactValue>;

const TABLE: &[(&str, Read)] = &[
    ("side_effects", |f| bool(f.effects.any)),
    ("scoped_effects", |f| bool(f.effects.scoped)),
    ("high_effect", |f| bool(f.effects.high)),
    ("communication_effect", |f| bool(f.effects.communication)),
    ("loop_effect", |f| bool(f.effects.looping)),
    ("approval_effect", |f| bool(f.effects.approval)),
    ("impact_effect", |f| bool(f.effects.impact)),
    ("customer_visible_effect", |f| bool(f.effects.customer_visible)),
    ("unknown_effect", |f| bool(f.effects.unknown)),
    ("unknown_effect_part", |f| bool(f.effects.unknown_part)),
    ("writing_effect", |f| bool(f.effects.writes)),
    ("undeclared_effect", |f| bool(!f.powers.undeclared.is_empty())),
    ("declared", |f| set(f.declared.names.iter())),
    ("guardrail_declared", |f| bool(!f.declared.guardrails.is_empty())),
    ("context_present", |f| bool(f.context_present)),
    ("malformed", |f| set(f.malformed.iter())),
    ("approval_required", |f| bool(f.declared.flag(FlagName::ApprovalRequired))),
    ("approval_named", |f| bool(f.approval.named)),
    ("approval_status", |f| Some(FactValue::Text(f.approval.status.as_str().to_owned()))),
    ("approval_needed", |f| bool(f.approval.needed)),
    ("approval_time_unusable", |f| bool(f.approval.time_unusable)),
    ("approved_at", |f| f.approval.approved_at.map(FactValue::Long)),
    ("approved_by_actor", |f| bool(f.approval.by_actor)),
    ("approver_named", |f| bool(f.approval.approver_named)),
    ("customer_visible_refused", |f| bool(f.approval.customer_visible_refused)),
    ("role", |f| f.access.role.clone().map(FactValue::Text)),
    ("required_roles", |f| f.access.required_roles.clone().map(FactValue::Set)),
    ("environments", |f| Some(FactValue::Set(f.access.environments.clone()))),
    ("allowed_environments", |f| f.access.allowed_environments.clone().map(FactValue::Set)),
    ("iteration", |f| long(f.run.iteration)),
    ("max_iterations", |f| f.declared.max_iterations.map(FactValue::Long)),
    ("retries", |f| long(f.run.retries)),
    ("max_retries", |f| f.declared.max_retries.map(FactValue::Long)),
    ("elapsed_micros", |f| long(f.run.elapsed_micros)),
    ("timeout_micros", |f| f.declared.timeout.map(Micros::get).map(FactValue::Long)),
    ("cost_micros", |f| long(f.run.cost_micros)),
    ("max_cost_micros", |f| f.declared.max_cost.map(Micros::get).map(FactValue::Long)),
    ("same_tool_calls", |f| long(f.run.same_tool_calls)),
    ("same_tool_limit", |f| f.declared.same_tool_limit.map(FactValue::Long)),
    ("require_ticket", |f| bool(f.declared.flag(FlagName::RequireTicket))),
    ("ticket_named", |f| bool(f.ticket_named)),
    ("mfa_required", |f| bool(f.declared.flag(FlagName::MfaRequired))),
    ("mfa_verified", |f| bool(f.mfa_verified)),
    ("rollback_plan_required", |f| bool(f.declared.flag(FlagName::RollbackPlanRequired))),
    ("rollback_plan", |f| bool(f.rollback_plan)),
    ("change_window_declared", |f| bool(!f.declared.windows.is_empty())),
    ("window_open", |f| bool(f.window_open)),
    ("record_count", |f| f.scopes.record_count.map(FactValue::Long)),
    ("max_records", |f| f.declared.max_records.map(FactValue::Long)),
    ("resource_scope_declared", |f| bool(!f.declared.resource_scopes.is_empty())),
    ("resources_named", |f| bool(f.scopes.resources_named)),
    ("resources_outside", |f| bool(!f.scopes.resources_outside.is_empty())),
    ("mcp_servers_declared", |f| bool(f.declared.mcp_servers.is_some())),
    ("mcp_servers_named", |f| bool(f.scopes.mcp_servers_named)),
    ("mcp_servers_outside", |f| bool(!f.scopes.mcp_servers_outside.is_empty())),
    ("tenant_isolation_declared", |f| bool(f.declared.flag(FlagName::TenantIsolation))),
    ("tenants_named", |f| bool(f.scopes.tenants_named)),
    ("tenants_outside", |f| bool(!f.scopes.tenants_outside.is_empty())),
    ("tools_outside", |f| bool(!f.scopes.tools_outside.is_empty())),
    ("tools_denied", |f| bool(!f.scopes.tools_denied.is_empty())),
    ("environment_denied", |f| bool(!f.scopes.environments_denied.is_empty())),
    ("denied_environment_declared", |f| bool(!f.declared.denied_environments.is_empty())),
    ("constraints_not_understood", |f| bool(!f.declared.not_understood.is_empty())),
    ("limits_not_enforced", |f| set(f.limits_not_enforced.iter())),
    ("retries_unread", |f| bool(f.retries_unread)),
    ("approval_stale", |f| bool(f.approval_stale)),
    ("tools_guarded", |f| bool(f.declared.guards_tools())),
    ("sensitive_tool", |f| bool(f.powers.sensitive)),
    ("criteria_missing", |f| bool(f.criteria_missing)),
    ("bare", |f| bool(f.bare)),
    ("goal_vague", |f| bool(f.goal_vague)),
    ("secret_found", |f| bool(!f.secrets.is_empty())),
];

impl Attribute {
    /// Finds an attribute by name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::all().find(|a| a.name() == name)
    }

    /// Every attribute, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..u8::try_from(TABLE.len()).unwrap_or(u8::MAX)).map(Self)
    }

    /// As rules name it.
    pub(crate) fn name(self) -> &'static str {
        TABLE.get(usize::from(self.0)).map_or("", |(name, _)| name)
    }

    /// Whether its value holds words of the request, which may be kept from others.
    pub(crate) fn holds_words(self) -> bool {
        ["role", "required_roles", "environments", "allowed_environments"].contains(&self.name())
    }

    /// Its value; none where an optional fact is absent.
    pub(crate) fn value(self, facts: &Facts) -> Option<FactValue> {
        TABLE.get(usize::from(self.0)).and_then(|(_, read)| read(facts))
    }
}

impl Attributes {
    /// With one more.
    pub(crate) fn insert(&mut self, attribute: Attribute) {
        if let Some(word) = self.0.get_mut(usize::from(attribute.0) / 64) {
            *word |= 1 << (attribute.0 % 64);
        }
    }

    /// With all of another set.
    pub(crate) fn extend(&mut self, others: Self) {
        for (word, other) in self.0.iter_mut().zip(others.0) {
            *word |= other;
        }
    }

    /// Whether one is among them.
    fn contains(self, attribute: Attribute) -> bool {
        self.0.get(usize::from(attribute.0) / 64).is_some_and(|word| word & (1 << (attribute.0 % 64)) != 0)
    }

    /// In the order of the table.
    pub(crate) fn iter(self) -> impl Iterator<Item = Attribute> {
        Attribute::all().filter(move |a| self.contains(*a))
    }
}

fn bool(value: bool) -> Option<FactValue> {
    Some(FactValue::Bool(value))
}

fn long(value: i64) -> Option<FactValue> {
    Some(FactValue::Long(value))
}

fn set<'a>(names: impl Iterator<Item = &'a &'static str>) -> Option<FactValue> {
    Some(FactValue::Set(names.map(|n| (*n).to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<_> = Attribute::all().map(Attribute::name).collect();
        assert_eq!(names.len(), TABLE.len());
        assert_eq!(Attribute::parse("role").map(Attribute::name), Some("role"));
        assert_eq!(Attribute::parse("goal"), None);
    }

    #[test]
    fn a_set_keeps_the_order_of_the_table() {
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
