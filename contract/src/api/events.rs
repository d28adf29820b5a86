//! The events that webhook endpoints get, as the OpenAPI document describes them.
//!
//! The exporter filters by the same list of members that the document is made of. Events of marks hold the whole mark,
//! its line and the line's hash.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::{ApprovalRecord, DecisionRecord, Deletion, LineType, Mark};

/// Members of a decision's record that its event holds.
pub const DELIVERED_MEMBERS: [&str; 33] = [
    "account",
    "key_id",
    "request_id",
    "decision",
    "verdict",
    "reason",
    "issues",
    "risk_score",
    "value_risk",
    "waste_risk",
    "high_risk",
    "clarifying_questions",
    "defer_questions",
    "guardrails",
    "constraints_applied",
    "value_findings",
    "guardrail_checks",
    "cost_estimate",
    "approval",
    "task_hash",
    "policy_version",
    "policy_pack_version",
    "environment",
    "run_id",
    "effect_classes",
    "tools",
    "constraints_ignored_count",
    "timestamp",
    "evaluated_at",
    "decision_trace_summary",
    "recorded_at",
    "expires_at",
    "chain",
];

const SEQUENCE: &str =
    "The event's number at this endpoint, in the order of the log. A replay has a new one. Not `chain.sequence`.";

pub(super) struct Event {
    /// Its type, or the word before the dot for all types that begin with it.
    pub(super) kind: &'static str,
    pub(super) operation_id: &'static str,
    pub(super) component: &'static str,
    pub(super) summary: &'static str,
    /// When it is sent, and to which endpoints.
    pub(super) about: &'static str,
    data: fn(&mut SchemaGenerator) -> Value,
}

pub(super) const EVENTS: [Event; 11] = [
    Event {
        kind: LineType::Decision.as_str(),
        operation_id: "decisionRecorded",
        component: "DecisionRecordedEvent",
        summary: "A decision was recorded. Without `cached`, `meta`, the client's address and user agent, durations, \
            and whatever of the request's text is recorded.",
        about: "Goes to the endpoints whose filters it passes, if `events` is null or names it.",
        data: decision,
    },
    Event {
        kind: LineType::Checkpoint.as_str(),
        operation_id: "checkpointSigned",
        component: "CheckpointSignedEvent",
        summary: "A checkpoint of the account's log was signed.",
        about: "By default at most one every 10 s while decisions are recorded. Goes to every endpoint of the account \
            whose `events` is null or names it, whatever its other filters.",
        data: |generator| mark(generator, Map::new()),
    },
    Event {
        kind: LineType::Deletion.as_str(),
        operation_id: "decisionsDeleted",
        component: "DecisionsDeletedEvent",
        summary: "Decisions were deleted on demand.",
        about: "Goes to every endpoint of the account whose `events` is null or names it, whatever its other filters.",
        data: |generator| {
            let own = object::<Deletion>(generator);
            mark(generator, own)
        },
    },
    Event {
        kind: LineType::WebhookDisabled.as_str(),
        operation_id: "webhookDisabled",
        component: "WebhookDisabledEvent",
        summary: "An endpoint of the account was disabled by its failures.",
        about: "Goes to every endpoint of the account whose `events` is null or names it; to the disabled one once \
            it is enabled.",
        data: |generator| {
            let own = json!({
                "webhook": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "description": "The endpoint."},
                "reason": {"type": "string", "description": "Why it was disabled."},
            });
            mark(
                generator,
                Map::from_iter([("properties".to_owned(), own), ("required".to_owned(), json!(["webhook", "reason"]))]),
            )
        },
    },
    Event {
        kind: "approval",
        operation_id: "approvalChanged",
        component: "ApprovalChangedEvent",
        summary: "Something happened to an approval or to a wider grant.",
        about: "Goes only to endpoints whose `events` names its type or `approval.*`. Not every type has every member. \
            An event that was recorded twice has the same `webhook-id` and another `sequence`.",
        data: |generator| approval(generator, &["stop_id", "guard_id"]),
    },
    Event {
        kind: "policy",
        operation_id: "policyChanged",
        component: "PolicyChangedEvent",
        summary: "A policy was published, proposed, activated, rolled back or deleted.",
        about: "Goes only to endpoints whose `events` names its type or `policy.*`.",
        data: |generator| {
            let others = ["approval_id", "grant_id", "stop_id", "guard_id", "action_digest", "request_id"];
            approval(generator, &others)
        },
    },
    Event {
        kind: "stop",
        operation_id: "stopChanged",
        component: "StopChangedEvent",
        summary: "A stop began, or was resumed.",
        about: "Goes only to endpoints whose `events` names its type or `stop.*`.",
        data: |generator| {
            let others = ["approval_id", "grant_id", "guard_id", "action_digest", "policy_version", "request_id"];
            approval(generator, &others)
        },
    },
    Event {
        kind: LineType::DecisionOutcome.as_str(),
        operation_id: "decisionOutcome",
        component: "DecisionOutcomeEvent",
        summary: "What came of an allowed action was reported: `details` has the status.",
        about: "Goes only to endpoints whose `events` names its type or `decision.*`.",
        data: |generator| {
            let others = ["approval_id", "grant_id", "stop_id", "guard_id", "action_digest", "policy_version"];
            approval(generator, &others)
        },
    },
    Event {
        kind: LineType::GuardSilent.as_str(),
        operation_id: "guardSilent",
        component: "GuardSilentEvent",
        summary: "A guard did not report within the time that it gave.",
        about: "Goes only to endpoints whose `events` names its type or `guard.*`.",
        data: |generator| {
            let others = ["approval_id", "grant_id", "stop_id", "action_digest", "policy_version", "request_id"];
            approval(generator, &others)
        },
    },
    Event {
        kind: LineType::ToolsProbed.as_str(),
        operation_id: "toolsProbed",
        component: "ToolsProbedEvent",
        summary: "A workload asked which tools it can never be allowed: `details` counts them and names the first.",
        about: "Goes only to endpoints whose `events` names its type or `tools.*`.",
        data: |generator| approval(generator, &["approval_id", "grant_id", "stop_id", "guard_id", "action_digest"]),
    },
    Event {
        kind: "webhook.test",
        operation_id: "webhookTest",
        component: "WebhookTestEvent",
        summary: "Sent by `POST /v1/webhooks/{id}/test` alone.",
        about: "",
        data: |_| {
            json!({
                "type": "object",
                "required": ["account", "sequence", "event"],
                "properties": {
                    "account": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "description": "The account."},
                    "sequence": {"type": "integer", "enum": [0], "description": "0: it has no place in the order."},
                    "event": {"type": "string", "description": "The same as the header `webhook-id`."},
                },
            })
        },
    },
];

impl Event {
    fn types(&self) -> Vec<&'static str> {
        if self.kind.contains('.') {
            return vec![self.kind];
        }
        let is_of_kind = |line: &str| line.split_once('.').is_some_and(|(kind, _)| kind == self.kind);
        LineType::ALL.into_iter().map(LineType::as_str).filter(|line| is_of_kind(line)).collect()
    }

    /// The component that is the event's body, and the one that is its data.
    pub(super) fn schemas(&self, generator: &mut SchemaGenerator) -> [(String, Value); 2] {
        let data = self.component.replace("Event", "Data");
        let body = json!({
            "type": "object",
            "description": self.summary,
            "required": ["type", "timestamp", "data"],
            "properties": {
                "type": {"type": "string", "enum": self.types(), "description": "What happened."},
                "timestamp": {"type": "string", "format": "date-time", "description": "When it was recorded or made."},
                "data": {"$ref": format!("#/components/schemas/{data}")},
            },
        });
        [(self.component.to_owned(), body), (data, (self.data)(generator))]
    }
}

fn decision(generator: &mut SchemaGenerator) -> Value {
    let record = reduced(object::<DecisionRecord>(generator), |name| DELIVERED_MEMBERS.contains(&name));
    let own = json!({
        "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the decision's line in the \
            log: what `chain.previous` of its writer's next decision names."},
        "sequence": {"type": "integer", "minimum": 1, "description": SEQUENCE},
    });
    joined(record, own)
}

/// A line about an approval, a grant, a stop or a policy, without the members that such an event never has.
fn approval(generator: &mut SchemaGenerator, others: &[&str]) -> Value {
    let record = reduced(object::<ApprovalRecord>(generator), |name| name != "type" && !others.contains(&name));
    let own = json!({
        "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the event's line in the \
            log: what `chain.previous` of its writer's next line names."},
        "sequence": {"type": "integer", "minimum": 1, "description": SEQUENCE},
    });
    joined(record, own)
}

fn mark(generator: &mut SchemaGenerator, own: Map<String, Value>) -> Value {
    let mut all = object::<Mark>(generator);
    for (keyword, value) in own {
        match (all.get_mut(&keyword), value) {
            (Some(Value::Object(all)), Value::Object(own)) => all.extend(own),
            (Some(Value::Array(all)), Value::Array(own)) => all.extend(own),
            _ => {}
        }
    }
    let own = json!({
        "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of `line`."},
        "line": {"type": "string", "description": "The mark's line as it stands in the log, without its line feed: the \
            signature is over its bytes."},
        "sequence": {"type": "integer", "minimum": 1, "description": SEQUENCE},
        "signed_by": {"type": "string", "pattern": "^[0-9a-f]{16}$", "description": "`id` of the signing key."},
        "signature": {"type": "string", "pattern": "^[A-Za-z0-9+/]{86}==$", "description": "Ed25519 (RFC 8032), \
            base64 of 64 bytes, over the line up to `,\"signature\":` followed by `}`. Always the last member."},
    });
    joined(all, own)
}

/// An object's schema with only the members that are kept.
fn reduced(mut schema: Map<String, Value>, is_kept: impl Fn(&str) -> bool) -> Map<String, Value> {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| is_kept(name));
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name.as_str().is_some_and(&is_kept));
    }
    schema
}

/// An object's schema with more properties, all of them required.
fn joined(mut schema: Map<String, Value>, own: Value) -> Value {
    let Value::Object(own) = own else { return Value::Null };
    schema.remove("description");
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.extend(own.keys().map(|name| Value::from(name.as_str())));
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(own);
    }
    Value::Object(schema)
}

fn object<T: JsonSchema>(generator: &mut SchemaGenerator) -> Map<String, Value> {
    match T::json_schema(generator).to_value() {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}
