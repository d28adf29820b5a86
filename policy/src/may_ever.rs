//! The may-ever question: is a tool with these effects surely denied, whatever else a call says?
//!
//! A call of the question proposes the tool alone and declares the same effects. It is by the same caller, in the same
//! environment, and has every constraint and every member of `context` of the question, null included. Everything else
//! is open: further constraints and members, goal, arguments, targets, run, approvals, time. Where a call may name its
//! tool or environment a second time, it names the same one.
//! INVARIANT: `certainty` names a fact only where no such call can change it, and a denial counts only if its rule and
//! its trigger read nothing else. A rule that fails, and a fact that is not in the table, are never certain.

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, Effect, EvaluateRequest, IssueCode, Stop, StopScope, is_blank};

use crate::engine::Engine;
use crate::facts::{
    Attribute, Circumstances, EvaluateError, FactValue, Facts, Kind, Trigger, are_environments_settled, covering_stop,
    is_role_settled,
};
use crate::rule::Rule;
use crate::time_limit::TimeLimit;
use crate::vocabulary::Vocabulary;

/// When a fact of a question is one of each of its calls.
enum Certainty {
    /// Always: it comes from the tool, the effects, or the caller.
    Fixed,
    /// As soon as it is true: constraints are added, and none is taken away.
    OnceTrue,
    /// Where the question has the member of `context` that it comes from.
    Given(&'static str),
    /// It depends on the question.
    If(fn(&Question<'_>) -> bool),
    /// Never: a call may change it.
    Open,
}

use Certainty::{Fixed, Given, If, OnceTrue, Open};

/// The table: every fact and every trigger, by name. `None`: none of this name is known here.
fn certainty(name: &str) -> Option<Certainty> {
    Some(match name {
        // Effects and their classes.
        "always"
        | "side_effects"
        | "scoped_effects"
        | "high_effect"
        | "communication_effect"
        | "loop_effect"
        | "approval_effect"
        | "impact_effect"
        | "customer_visible_effect"
        | "unknown_effect"
        | "unknown_effect_part"
        | "writing_effect"
        | "effects"
        | "effect_classes" => Fixed,
        // A call that leaves out an empty list of effects states none: then a sensitive tool is undeclared too.
        "undeclared_effect" => If(|asked| asked.is_true("undeclared_effect") || !asked.request.side_effects.is_empty()),
        // The tool. Two unreadable names may be two tools.
        "sensitive_tool" | "tools" | "tool_names" => Fixed,
        "tool_count" => If(|asked| asked.is_tool_readable()),
        // A call with a tool is never bare.
        "bare" => Fixed,
        "mcp_servers" => Given("active_mcp_servers"),
        "tools_outside" | "tools_denied" | "mcp_servers_named" => OnceTrue,
        // Of a server with `__` in its name, a further list may have another part of it.
        "mcp_servers_outside" => Open,
        // The environment. A list of allowed ones spells `environments` as it has them.
        "environment" => If(|asked| asked.names_environment()),
        "environments" => {
            If(|asked| asked.names_environment() && are_environments_settled(asked.request, asked.vocabulary))
        }
        "environment_denied" => OnceTrue,
        "environment_outside" | "allowed_environments" => Open,
        // The caller.
        "account" | "key_id" | "key_name" | "workload" | "member" | "owner" | "groups" => Fixed,
        // Constraints: further ones may be declared, and lower a limit or shorten a list.
        "guardrail_declared"
        | "tools_guarded"
        | "approval_required"
        | "approval_named"
        | "approval_needed"
        | "require_ticket"
        | "mfa_required"
        | "rollback_plan_required"
        | "change_window_declared"
        | "resource_scope_declared"
        | "mcp_servers_declared"
        | "tenant_isolation_declared"
        | "denied_environment_declared"
        | "constraints_not_understood" => OnceTrue,
        "required_role"
        | "allowed_environment"
        | "timeout"
        | "max_cost_usd"
        | "allowed_change_window"
        | "resource_scope"
        | "allowed_mcp_servers"
        | "tenant_isolation"
        | "allowed_tools"
        | "denied_tools"
        | "denied_environment"
        | "approval_max_age"
        | "contradiction" => OnceTrue,
        // As facts these are numbers, and so never certain; as triggers they hold once declared.
        "max_iterations" | "max_retries" | "same_tool_limit" | "max_records" => OnceTrue,
        "declared" | "required_roles" | "timeout_micros" | "max_cost_micros" | "limits_not_enforced" => Open,
        // Members of `context`. `custom` as a fact is judged by the members that a rule names.
        "context_present" => If(|asked| asked.context.is_some_and(|context| !context.is_empty())),
        "role" => If(|asked| is_role_settled(asked.context, asked.vocabulary)),
        "ticket_named" => Given("ticket_id"),
        "mfa_verified" => Given("mfa_verified"),
        "rollback_plan" => Given("rollback_plan"),
        "tenant" => Given("tenant_id"),
        "agent" => Given("agent_id"),
        "estimated_cost_micros" => Given("estimated_cost_usd"),
        "custom" => OnceTrue,
        "role_outside" | "malformed" | "record_count" | "retries_unread" => Open,
        // Approvals.
        "approval_status"
        | "approved"
        | "approval_time_unusable"
        | "approved_at"
        | "approved_by_actor"
        | "approver_named"
        | "customer_visible_refused"
        | "approval_stale" => Open,
        // Targets.
        "targets" | "target_count" | "target_tenants" | "resources_named" | "resources_outside" | "tenants_named"
        | "tenants_outside" => Open,
        // The run.
        "iteration"
        | "retries"
        | "elapsed_micros"
        | "cost_micros"
        | "same_tool_calls"
        | "run"
        | "run_named"
        | "run_tools"
        | "run_calls"
        | "run_allowed"
        | "run_denied"
        | "run_deferred"
        | "run_last_verdict"
        | "run_cost_micros"
        | "run_seconds"
        | "run_seconds_since_allowed"
        | "run_approved"
        | "run_target_tools" => Open,
        // Time.
        "now" | "windows_open" | "window_open" => Open,
        // Goal, success criteria and secrets. A goal counts only beside effects that are none.
        "goal_vague" => If(|asked| asked.facts.effects.scoped),
        "criteria_missing" | "secret_found" => Open,
        _ => return None,
    })
}

/// What is asked, and its facts.
struct Question<'a> {
    request: &'a CheckRequest,
    context: Option<&'a Map<String, Value>>,
    facts: &'a Facts,
    vocabulary: &'a Vocabulary,
}

impl Question<'_> {
    /// Whether every fact that the rule reads is one of each call.
    fn knows_all_of(&self, rule: &Rule) -> bool {
        rule.attributes.iter().all(|attribute| match attribute.kind() {
            Kind::Custom => {
                let members = rule.custom_members.as_ref();
                members.is_some_and(|members| members.iter().all(|member| self.is_given(member)))
            }
            _ => self.knows(attribute),
        })
    }

    fn knows(&self, attribute: Attribute) -> bool {
        match certainty(attribute.name()) {
            Some(Fixed) => true,
            Some(OnceTrue) => self.is_true(attribute.name()),
            Some(Given(member)) => self.is_given(member),
            Some(If(holds)) => holds(self),
            Some(Open) | None => false,
        }
    }

    /// Whether a trigger that holds here holds for each call.
    fn keeps(&self, trigger: Trigger) -> bool {
        match certainty(trigger.name()) {
            Some(Fixed | OnceTrue) => true,
            Some(Given(member)) => self.is_given(member),
            Some(If(holds)) => holds(self),
            Some(Open) | None => false,
        }
    }

    fn is_given(&self, member: &str) -> bool {
        self.context.is_some_and(|context| context.contains_key(member))
    }

    fn is_true(&self, name: &str) -> bool {
        self.value(name) == Some(FactValue::Bool(true))
    }

    fn value(&self, name: &str) -> Option<FactValue> {
        Attribute::parse(name)?.value(self.facts)
    }

    fn is_tool_readable(&self) -> bool {
        let is_readable = |names: &Vec<String>| !names.iter().any(|name| name == "?");
        matches!(self.value("tool_names"), Some(FactValue::Set(names)) if is_readable(&names))
    }

    fn names_environment(&self) -> bool {
        names_environment(self.request)
    }
}

/// Whether a request names an environment, at any of the three places for it.
fn names_environment(request: &CheckRequest) -> bool {
    let inner = |name| request.context.as_ref()?.get(name)?.as_str();
    let named = [request.environment.as_deref(), inner("environment"), inner("target_environment")];
    named.into_iter().flatten().any(|name| !is_blank(name))
}

impl Engine {
    /// Why every call of this question is denied: the codes of the rules that deny it, or of the stop that covers it.
    /// Empty: some call may be allowed, or that is not certain.
    pub fn never_allows(&self, asked: &EvaluateRequest, limit: TimeLimit) -> Result<Vec<IssueCode>, EvaluateError> {
        let mut codes = self.rules_that_deny(asked, limit)?;
        codes.extend(self.surely_stops(asked).then(IssueCode::stopped));
        codes.sort_unstable();
        codes.dedup();
        Ok(codes)
    }

    /// Whether a stop without an end covers every call of this question.
    pub fn surely_stops(&self, asked: &EvaluateRequest) -> bool {
        let Some(asker) = &asked.asker else { return false };
        let is_named = names_environment(&asked.request);
        let is_everywhere = |stop: &Stop| stop.value.as_deref().is_none_or(is_blank);
        let is_certain = |stop: &&Stop| {
            stop.until.is_none() && (stop.scope != StopScope::Environment || is_named || is_everywhere(stop))
        };
        let stops = asker.rules.stops.iter().filter(is_certain);
        covering_stop(stops, &asked.request, asker, &self.pack().vocabulary).is_some()
    }

    fn rules_that_deny(&self, asked: &EvaluateRequest, limit: TimeLimit) -> Result<Vec<IssueCode>, EvaluateError> {
        let (pack, request) = (self.pack(), &asked.request);
        let circumstances: Circumstances<'_> = self.circumstances(asked, None, None);
        let facts = Facts::read(request, pack, &circumstances, limit)?;
        let question =
            Question { request, context: request.context.as_ref(), facts: &facts, vocabulary: &pack.vocabulary };
        let outcome = self.evaluate_where(&facts, |trigger| question.keeps(trigger));
        limit.check()?;
        let denies = |rule: &&&Rule| rule.effect == Effect::Deny && question.knows_all_of(rule);
        Ok(outcome.matched.iter().filter(denies).map(|rule| rule.code.clone()).collect())
    }
}

#[cfg(test)]
mod tests;
