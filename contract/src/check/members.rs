//! The members of a request that the product knows: by level, with the type and the meaning of each.
//!
//! Near misses are found from this table, and documents list it. A member of `context` that stands in no table is a
//! fact that only the record keeps.

/// One known member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestMember {
    /// As it is spelled.
    pub name: &'static str,
    /// Its type, for people: `string`, `array of strings`, …
    pub kind: &'static str,
    /// What it says, for people.
    pub meaning: &'static str,
}

const fn member(name: &'static str, kind: &'static str, meaning: &'static str) -> RequestMember {
    RequestMember { name, kind, meaning }
}

/// Members of the request itself.
pub const REQUEST_MEMBERS: &[RequestMember] = &[
    member("goal", "string", "what the agent wants to do"),
    member("success_criteria", "array of strings", "how it will know that it is done"),
    member("constraints", "array of strings", "the limits that it declares"),
    member("tools", "array of strings", "the tools that it will use"),
    member("side_effects", "array of strings", "what will change outside"),
    member("context", "object", "facts about the situation"),
    member("environment", "string", "where it will run; the same as `context.environment`"),
    member("pro", "boolean", "whether advice of MEDIUM severity denies"),
    member("policy_pack_version", "string", "the wanted policy version; absent means the account's active one"),
    member("debug_store_input", "boolean", "whether the text of the request may be recorded"),
];

/// Members of `context` that rules read.
pub const CONTEXT_MEMBERS: &[RequestMember] = &[
    member("actor_role", "string", "the role of who acts; before `user_role` and `requester_role`"),
    member("user_role", "string", "the role of the user; before `requester_role`"),
    member("requester_role", "string", "the role of who asked for it"),
    member("approval_status", "string", "approved, pending, missing, none or rejected"),
    member("approved_by", "string", "who approved it; never who acts or asked for it"),
    member("approved_at", "string", "when it was approved: a time such as `2026-01-31T12:00:00Z` (RFC 3339)"),
    member("approval_reason", "string", "why it was approved"),
    member("customer_visible_approved", "boolean", "whether it is approved to be seen by customers"),
    member("environment", "string", "where it will run"),
    member("target_environment", "string", "what it will change"),
    member("request_channel", "string", "how the request came in"),
    member("resource_scope", "string", "the resources that it touches, as one name"),
    member("target_resources", "array of strings", "the resources that it touches"),
    member("active_mcp_servers", "array of strings", "the MCP servers that it can reach"),
    member("tenant_id", "string", "whose data the agent works for"),
    member("target_tenants", "array of strings", "whose data it touches"),
    member("output_policy", "string", "what may leave"),
    member("ticket_id", "string or whole number", "the ticket of the change"),
    member("rollback_plan", "boolean", "whether there is a plan to undo it"),
    member("mfa_verified", "boolean", "whether the person has passed a second factor"),
    member("record_count", "whole number from 0", "how many records it touches"),
    member("run_id", "string or whole number", "the run that this check belongs to"),
    member("current_iteration", "whole number from 1", "the iteration that comes next"),
    member("retry_count", "whole number from 0", "how many retries there were"),
    member("elapsed_seconds", "number from 0", "how long the run has taken"),
    member("estimated_cost_usd", "number from 0", "what this will cost, in US dollars"),
    member("cumulative_cost_usd", "number from 0", "what the run has cost, in US dollars"),
    member("current_tool", "string", "the tool that is called next"),
    member("recent_tools", "array of strings", "the tools that were called, the oldest first"),
    member("loop_state", "object", "`run_id`, `retry_count`, `elapsed_seconds` and `repeated_tools` of the run"),
    member("actor_id", "string or whole number", "who acts"),
    member("agent_id", "string or whole number", "the agent that acts"),
    member("requested_by", "string or whole number", "who asked for it"),
];

/// Members of `context.loop_state` that rules read.
pub const LOOP_STATE_MEMBERS: &[RequestMember] = &[
    member("run_id", "string or whole number", "as `context.run_id`"),
    member("retry_count", "whole number from 0", "as `context.retry_count`"),
    member("elapsed_seconds", "number from 0", "as `context.elapsed_seconds`"),
    member("repeated_tools", "array of strings", "as `context.recent_tools`"),
    member("current_iteration", "whole number from 1", "as `context.current_iteration`"),
    member("cumulative_cost_usd", "number from 0", "as `context.cumulative_cost_usd`"),
];

pub(super) fn holds(members: &[RequestMember], name: &str) -> bool {
    members.iter().any(|member| member.name == name)
}
