//! The rows of the fact table: name, type, how it is read from the facts, and what it means.
//!
//! Rows up to `malformed` are those of the first edition of the table; the facts that a pack can do without, and that
//! are read only for a pack that names one, are in `more`.

use stage0_contract::{FlagName, LimitName};

use super::super::approval::Status;
use super::Row;

/// `policy explain` lists triggers in this order.
pub(super) const ROWS: &[Row] = &[
    Row::trigger("always", |_| true, "Every check."),
    Row::flag("side_effects", |f| f.effects.any, "A side effect is declared that is not harmless."),
    Row::bool(
        "scoped_effects",
        |f| f.effects.scoped,
        "A side effect is declared that is more than a word for nothing.",
    ),
    Row::flag("high_effect", |f| f.effects.high, "A declared side effect is of the class `high`."),
    Row::flag(
        "communication_effect",
        |f| f.effects.communication,
        "A declared side effect is of the class `communication`.",
    ),
    Row::flag("loop_effect", |f| f.effects.looping, "A declared side effect is of the class `loop`."),
    Row::flag("approval_effect", |f| f.effects.approval, "A declared side effect is of the class `approval`."),
    Row::flag(
        "impact_effect",
        |f| f.effects.impact,
        "A declared side effect needs a role, an environment and the state of an approval.",
    ),
    Row::flag(
        "customer_visible_effect",
        |f| f.effects.customer_visible,
        "Customers can see what a declared side effect does.",
    ),
    Row::flag(
        "unknown_effect",
        |f| f.effects.unknown,
        "The pack does not know a declared side effect: it counts as high.",
    ),
    Row::flag(
        "unknown_effect_part",
        |f| f.effects.unknown_part,
        "A declared side effect has a known class and an unknown part.",
    ),
    Row::flag("writing_effect", |f| f.effects.writes, "A declared side effect writes, which `read_only` rules out."),
    Row::flag(
        "undeclared_effect",
        |f| !f.tool_risks.undeclared.is_empty(),
        "The name of a tool announces an effect that the request does not declare.",
    ),
    Row::names("declared", |f| &f.declared.names, "Canonical names of the declared constraints."),
    Row::bool("guardrail_declared", |f| !f.declared.guardrails.is_empty(), "A declared constraint is a guardrail."),
    Row::bool("context_present", |f| f.context_present, "`context` was sent."),
    Row::flag(
        "approval_required",
        |f| f.declared.flag(FlagName::ApprovalRequired),
        "The request declares `approval_required`.",
    ),
    Row::flag("approval_named", |f| f.approval.named, "`require_approval_for` names a declared effect or a tool."),
    Row::text(
        "approval_status",
        |f| f.approval.status.as_str(),
        "`approved`, `pending`, `missing`, `none`, `rejected`, `absent` or `unrecognised`.",
    ),
    Row::bool("approval_needed", |f| f.approval.needed, "A rule needs the approval, or lets something pass for it."),
    Row::trigger(
        "approved",
        |f| f.effects.any && f.approval.status == Status::Approved,
        "A side effect is declared and the status of the approval is `approved`.",
    ),
    Row::flag(
        "approval_time_unusable",
        |f| f.approval.time_unusable,
        "The time of the approval cannot be true, so the approval counts as missing.",
    ),
    Row::optional_long("approved_at", |f| f.approval.approved_at, "When it was approved, in seconds since the epoch."),
    Row::flag("approved_by_actor", |f| f.approval.by_actor, "The one who acts is the one who approved."),
    Row::bool("approver_named", |f| f.approval.approver_named, "The request says who approved."),
    Row::bool(
        "customer_visible_refused",
        |f| f.approval.customer_visible_refused,
        "`customer_visible_approved` is given and is not true.",
    ),
    Row::optional_word("role", |f| f.access.role.as_deref(), "The role that the caller acts in."),
    Row::trigger("required_role", |f| f.declared.required_roles.is_some(), "The request declares `required_role`."),
    Row::optional_words(
        "required_roles",
        |f| f.access.required_roles.as_deref(),
        "The roles that `required_role` lists.",
    ),
    Row::trigger(
        "role_outside",
        |f| !f.access.role_outside.is_empty(),
        "The role is not on the list that `required_role` declares.",
    ),
    Row::words("environments", |f| &f.access.environments, "Every environment that the request names."),
    Row::trigger(
        "allowed_environment",
        |f| f.declared.allowed_environments.is_some(),
        "The request declares `allowed_environment`.",
    ),
    Row::optional_words(
        "allowed_environments",
        |f| f.access.allowed_environments.as_deref(),
        "The environments that `allowed_environment` lists.",
    ),
    Row::trigger(
        "environment_outside",
        |f| !f.access.environments_outside.is_empty(),
        "An environment is not on the list that `allowed_environment` declares.",
    ),
    Row::long("iteration", |f| f.run.iteration, "The iteration of the run that is checked, from 1."),
    Row::limit("max_iterations", |f| f.declared.limit(LimitName::MaxIterations), "The declared `max_iterations`."),
    Row::long("retries", |f| f.run.retries, "Retries so far; a `retry_count` that is no number counts as 0."),
    Row::limit("max_retries", |f| f.declared.limit(LimitName::MaxRetries), "The declared `max_retries`."),
    Row::long("elapsed_micros", |f| f.run.elapsed_micros, "The time of the run so far, in microseconds."),
    Row::trigger("timeout", |f| f.declared.limit(LimitName::Timeout).is_some(), "The request declares `timeout`."),
    Row::optional_long(
        "timeout_micros",
        |f| f.declared.limit(LimitName::Timeout),
        "The declared `timeout`, in microseconds.",
    ),
    Row::long(
        "cost_micros",
        |f| f.run.cost_micros,
        "Money that the run spent and reserved, with the estimate of this check, in millionths of a dollar.",
    ),
    Row::trigger(
        "max_cost_usd",
        |f| f.declared.limit(LimitName::MaxCost).is_some(),
        "The request declares `max_cost_usd`.",
    ),
    Row::optional_long(
        "max_cost_micros",
        |f| f.declared.limit(LimitName::MaxCost),
        "The declared `max_cost_usd`, in millionths of a dollar.",
    ),
    Row::long("same_tool_calls", |f| f.run.same_tool_calls, "Calls of the most called proposed tool, with this one."),
    Row::limit(
        "same_tool_limit",
        |f| f.declared.limit(LimitName::SameTool),
        "The declared `same_tool_limit`, or 1 for `no_repeat_calls`.",
    ),
    Row::optional_long(
        "record_count",
        |f| f.scopes.record_count,
        "`context.record_count`, where the request declares `max_records`.",
    ),
    Row::limit("max_records", |f| f.declared.limit(LimitName::MaxRecords), "The declared `max_records`."),
    Row::flag("require_ticket", |f| f.declared.flag(FlagName::RequireTicket), "The request declares `require_ticket`."),
    Row::bool("ticket_named", |f| f.ticket_named, "`context.ticket_id` is given."),
    Row::flag("mfa_required", |f| f.declared.flag(FlagName::MfaRequired), "The request declares `mfa_required`."),
    Row::bool("mfa_verified", |f| f.mfa_verified, "`context.mfa_verified` is true."),
    Row::flag(
        "rollback_plan_required",
        |f| f.declared.flag(FlagName::RollbackPlanRequired),
        "The request declares `rollback_plan_required`.",
    ),
    Row::bool("rollback_plan", |f| f.rollback_plan, "`context.rollback_plan` is true."),
    Row::trigger(
        "allowed_change_window",
        |f| !f.declared.windows.is_empty(),
        "The request declares `allowed_change_window`.",
    ),
    Row::bool(
        "change_window_declared",
        |f| !f.declared.windows.is_empty(),
        "The request declares `allowed_change_window`.",
    ),
    Row::bool("window_open", |f| f.window_open, "All declared change windows are open now, or none is declared."),
    Row::trigger(
        "resource_scope",
        |f| !f.declared.resource_scopes.is_empty(),
        "The request declares `resource_scope`.",
    ),
    Row::bool(
        "resource_scope_declared",
        |f| !f.declared.resource_scopes.is_empty(),
        "The request declares `resource_scope`.",
    ),
    Row::bool(
        "resources_named",
        |f| f.scopes.resources_named,
        "The request names a target, where it declares `resource_scope`.",
    ),
    Row::bool(
        "resources_outside",
        |f| !f.scopes.resources_outside.is_empty(),
        "A target is outside the declared `resource_scope`.",
    ),
    Row::trigger(
        "allowed_mcp_servers",
        |f| f.declared.mcp_servers.is_some(),
        "The request declares `allowed_mcp_servers`.",
    ),
    Row::bool(
        "mcp_servers_declared",
        |f| f.declared.mcp_servers.is_some(),
        "The request declares `allowed_mcp_servers`.",
    ),
    Row::bool(
        "mcp_servers_named",
        |f| f.scopes.mcp_servers_named,
        "The request says which servers are active, where it declares `allowed_mcp_servers`.",
    ),
    Row::bool(
        "mcp_servers_outside",
        |f| !f.scopes.mcp_servers_outside.is_empty(),
        "A server is not on the list that `allowed_mcp_servers` declares.",
    ),
    Row::trigger(
        "tenant_isolation",
        |f| f.declared.flag(FlagName::TenantIsolation),
        "The request declares `tenant_isolation`.",
    ),
    Row::bool(
        "tenant_isolation_declared",
        |f| f.declared.flag(FlagName::TenantIsolation),
        "The request declares `tenant_isolation`.",
    ),
    Row::bool(
        "tenants_named",
        |f| f.scopes.tenants_named,
        "The request names its tenant and the targets' tenants, where it declares `tenant_isolation`.",
    ),
    Row::bool(
        "tenants_outside",
        |f| !f.scopes.tenants_outside.is_empty(),
        "A target belongs to another tenant, where the request declares `tenant_isolation`.",
    ),
    Row::trigger("allowed_tools", |f| f.declared.tools.is_some(), "The request declares `allowed_tools`."),
    Row::bool(
        "tools_outside",
        |f| !f.scopes.tools_outside.is_empty(),
        "A tool is not on the list that `allowed_tools` declares.",
    ),
    Row::trigger("denied_tools", |f| f.declared.denied_tools.is_some(), "The request declares `denied_tools`."),
    Row::bool(
        "tools_denied",
        |f| !f.scopes.tools_denied.is_empty(),
        "A tool is on the list that `denied_tools` declares.",
    ),
    Row::trigger(
        "denied_environment",
        |f| !f.declared.denied_environments.is_empty(),
        "The request declares `denied_environment`.",
    ),
    Row::bool(
        "denied_environment_declared",
        |f| !f.declared.denied_environments.is_empty(),
        "The request declares `denied_environment`.",
    ),
    Row::bool(
        "environment_denied",
        |f| !f.scopes.environments_denied.is_empty(),
        "An environment is on the list that `denied_environment` declares.",
    ),
    Row::trigger(
        "approval_max_age",
        |f| f.declared.limit(LimitName::ApprovalMaxAge).is_some(),
        "The request declares `approval_max_age`.",
    ),
    Row::bool(
        "approval_stale",
        |f| f.approval_stale,
        "The approval is older than `approval_max_age` allows, lies in the future, or does not say when it was given.",
    ),
    Row::flag(
        "constraints_not_understood",
        |f| !f.declared.not_understood.is_empty(),
        "A declared constraint cannot be read.",
    ),
    Row::names(
        "limits_not_enforced",
        |f| &f.limits_not_enforced,
        "Canonical names of declared limits whose counter is missing.",
    ),
    Row::trigger(
        "limits_not_enforced",
        |f| !f.limits_not_enforced.is_empty() || (f.retry_count_unusable && f.effects.looping),
        "The counter of a declared limit is missing, or retries of a loop cannot be read.",
    ),
    Row::bool("retries_unread", |f| f.retry_count_unusable, "`retry_count` is given and is no number of retries."),
    Row::trigger(
        "contradiction",
        |f| f.declared.flag(FlagName::ReadOnly) || f.declared.flag(FlagName::DryRun),
        "The request declares `read_only` or `dry_run`.",
    ),
    Row::flag("sensitive_tool", |f| f.tool_risks.sensitive, "A tool can do anything, as a shell can."),
    Row::bool(
        "tools_guarded",
        |f| f.declared.guards_tools(),
        "A declared constraint says what a tool that can do anything must not do.",
    ),
    Row::flag("criteria_missing", |f| f.criteria_missing, "`success_criteria` is empty."),
    Row::bool("bare", |f| f.bare, "The request has no tools, constraints, side effects, context or environment."),
    Row::flag("goal_vague", |f| f.goal_vague, "The goal says too little, and no side effect is declared."),
    Row::flag("secret_found", |f| !f.secrets.is_empty(), "The request holds a secret."),
    Row::names("malformed", |f| &f.malformed, "Members of `context` that cannot be used."),
    Row::trigger("malformed", |f| !f.malformed.is_empty(), "A member of `context` cannot be used."),
];
