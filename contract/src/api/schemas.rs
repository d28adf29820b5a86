//! The schemas of wire types that write themselves as text, or as an object whose members another table lists.
//!
//! The patterns say what each type's `parse` accepts. Ids are written where they are used (`inline`), so that clients
//! get a string and not a type of their own for each.

#![expect(clippy::indexing_slicing, reason = "every index is a name in an object that is built here")]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::{
    AccountId, ActionDigest, ApiKey, ApprovalId, CONTEXT_MEMBERS, Change, ClientRequestId, GrantId, GuardId,
    InvitationCode, IssueCode, KeyId, LOOP_STATE_MEMBERS, LineHash, MemberId, PolicyVersion, ProposalId, RequestId,
    RequestMember, RunId, SigningKeyId, StopId, WebhookId, WebhookSecret, WriterId,
};

macro_rules! inline_schemas {
    ($($name:ident = $schema:tt;)+) => {$(
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+};
}

inline_schemas! {
    AccountId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    ActionDigest = {"type": "string", "pattern": "^[0-9a-f]{64}$"};
    ApiKey = {"type": "string"};
    ApprovalId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    ClientRequestId = {"type": "string", "maxLength": 128};
    GrantId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    InvitationCode = {"type": "string", "pattern": "^inv_[0-9a-z]{32}$"};
    IssueCode = {"type": "string", "pattern": "^[A-Z][A-Z0-9_]{0,63}$"};
    KeyId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    LineHash = {"type": "string", "pattern": "^[0-9a-f]{64}$"};
    MemberId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    PolicyVersion = {"type": "string", "minLength": 1, "maxLength": 100};
    ProposalId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    RequestId = {"type": "string", "format": "uuid"};
    RunId = {"type": "string", "minLength": 1, "maxLength": 1000};
    SigningKeyId = {"type": "string", "pattern": "^[0-9a-f]{16}$"};
    StopId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    WebhookId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    GuardId = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"};
    WebhookSecret = {"type": "string", "pattern": "^whsec_[A-Za-z0-9+/]+={0,2}$"};
    WriterId = {"type": "string", "format": "uuid"};
}

/// In a request body, null gives the setting back to the plan.
impl<T: JsonSchema> JsonSchema for Change<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ChangeOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

/// The known members of a check's `context`.
pub(crate) struct Context;

impl JsonSchema for Context {
    fn schema_name() -> Cow<'static, str> {
        "Context".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut properties = properties(CONTEXT_MEMBERS);
        let nested = json!({
            "type": ["object", "null"],
            "description": "What the agent's loop has counted.",
            "properties": self::properties(LOOP_STATE_MEMBERS),
            "additionalProperties": true,
        });
        properties.insert("loop_state".to_owned(), nested);
        json_schema!({
            "type": "object",
            "description": "Facts about the situation. Absent differs from empty. Other members are allowed: no rule \
                reads them, and the decision's record keeps them where the request asks for it. An array has at most \
                1,000 entries.",
            "properties": properties,
            "additionalProperties": true,
        })
    }
}

fn properties(members: &[RequestMember]) -> Map<String, Value> {
    let property = |member: &RequestMember| {
        let mut schema = kind(member.kind);
        let mut text = member.meaning.to_owned();
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        schema["description"] = format!("{text}.").into();
        (member.name.to_owned(), schema)
    };
    members.iter().map(property).collect()
}

/// The schema of a member's type. Null is the same as absent.
fn kind(kind: &str) -> Value {
    match kind {
        "boolean" => json!({"type": ["boolean", "null"]}),
        "array of strings" => json!({"type": ["array", "null"], "items": {"type": "string"}}),
        "string or whole number" => json!({"type": ["string", "integer", "null"]}),
        "whole number from 0" => json!({"type": ["integer", "null"], "minimum": 0}),
        "whole number from 1" => json!({"type": ["integer", "null"], "minimum": 1}),
        "number from 0" => json!({"type": ["number", "null"], "minimum": 0}),
        _ => json!({"type": ["string", "null"]}),
    }
}

macro_rules! components {
    ($($name:ident = $schema:tt;)+) => {$(
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+};
}

components! {
    IssueDetails = {
        "type": "object",
        "description": "Where the matter lies and what would settle it. An issue that no change of the request settles \
            has no `write`. `found`, `allowed`, `write` and `did_you_mean` are in the answer alone: records, webhooks \
            and answers that are given again have only the rest.",
        "properties": {
            "at": {"type": "array", "items": {"type": "string"}, "description": "JSON paths of the culprits.",
                "examples": [["tools[1]", "constraints[0]"]]},
            "found": {"type": "array", "items": {}, "description": "Words and numbers of the request, in its own \
                units. Empty where the request holds a secret."},
            "allowed": {"type": "array", "items": {}, "description": "What they were compared with."},
            "write": {"type": "array", "items": {"$ref": "#/components/schemas/SuggestedChange"},
                "description": "What to write instead."},
            "did_you_mean": {"type": "array", "items": {"type": "string"},
                "description": "Known words that are near to one that is not known."},
            "run": {"$ref": "#/components/schemas/IssueRun"},
        },
        "additionalProperties": true,
    };
    IssueRun = {
        "type": "object",
        "description": "Where a rule of the loop family defers because of what the server remembers of the run: which \
            run, what is counted beside its limit, and how to end it.",
        "required": ["run_id", "counted", "end"],
        "properties": {
            "run_id": {"type": "string", "description": "The run's name."},
            "counted": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "What was counted.",
            },
            "end": {"type": "string", "description": "How to end the run."},
        },
    };
    SuggestedChange = {
        "type": "object",
        "description": "One thing to change in the request. With `op` and `value` it may be written as it stands. \
            With `by` it is evidence that a person or another system must give: never make it up.",
        "required": ["path"],
        "properties": {
            "op": {"type": "string", "enum": ["add", "replace"], "description": "What to do at `path`."},
            "path": {"type": "string", "description": "`constraints`: append; `constraints[1]`: that item."},
            "value": {"type": "string", "description": "What to write there."},
            "by": {"type": "string", "enum": ["person", "system"], "description": "Who must give the evidence."},
        },
    };
    RecordedInput = {
        "type": "object",
        "description": "Only when the request said `debug_store_input: true`: its text, secrets masked. Unknown \
            top-level members are not kept.",
        "required": ["goal", "success_criteria", "constraints", "tools", "side_effects"],
        "properties": {
            "goal": {"type": "string", "description": "What the agent wanted to do."},
            "success_criteria": {"type": "array", "items": {"type": "string"}, "description": "As sent."},
            "constraints": {"type": "array", "items": {"type": "string"}, "description": "As sent."},
            "tools": {"type": "array", "items": {"type": "string"}, "description": "As sent."},
            "side_effects": {"type": "array", "items": {"type": "string"}, "description": "As sent."},
            "context": {"type": "object", "additionalProperties": true, "description": "As sent, unknown members \
                included."},
            "environment": {"type": "string", "description": "As sent."},
        },
    };
    HookEvent = {
        "type": "object",
        "description": "The event of the agent's hook, as the agent writes it. At most 1,000,000 bytes.",
        "additionalProperties": true,
    };
    HookAnswer = {
        "type": "object",
        "description": "What the agent expects of a hook: other members for each agent.",
        "additionalProperties": true,
    };
    OpenapiDocument = {
        "type": "object",
        "description": "An OpenAPI document.",
        "required": ["openapi"],
        "properties": {"openapi": {"type": "string", "description": "The version of OpenAPI that it is written in."}},
        "additionalProperties": true,
    };
    PolicyVocabulary = {
        "type": "object",
        "description": "The words of a policy pack.",
        "required": ["policy_version", "edition", "codes"],
        "properties": {
            "policy_version": {"type": "string", "description": "The policy whose words they are."},
            "edition": {"type": "integer", "description": "The edition of the facts that the policy was written for."},
            "classes": {"type": "object", "additionalProperties": true,
                "description": "Words of side effects and tools by class."},
            "sensitive_tools": {"type": "array", "items": {"type": "string"},
                "description": "Names of tools that count as sensitive."},
            "side_effects": {"type": "object", "additionalProperties": true,
                "description": "Words by class, as the pack's `effects.toml` has them."},
            "tools": {"type": "object", "additionalProperties": true, "description": "Names of tools by class."},
            "constraints": {"type": "object", "additionalProperties": true,
                "description": "Aliases, guardrails and tags, as the pack's `constraints.toml` has them."},
            "constraint_forms": {"type": "array", "items": {"$ref": "#/components/schemas/ConstraintForm"},
                "description": "How each constraint is written."},
            "vocabulary": {"type": "object", "additionalProperties": true,
                "description": "Environments with aliases, words of approvals, vague goals."},
            "context": {"type": "array", "items": {"$ref": "#/components/schemas/ContextMember"},
                "description": "Members of `context` that rules read."},
            "codes": {"type": "array", "items": {"$ref": "#/components/schemas/VocabularyCode"},
                "description": "Every code that an issue can have."},
        },
    };
    ConstraintForm = {
        "type": "object",
        "description": "How one constraint is written.",
        "properties": {
            "name": {"type": "string", "description": "The constraint's name."},
            "value": {"type": "string", "description": "What its value is."},
            "aliases": {"type": "array", "items": {"type": "string"}, "description": "Other names of it."},
            "guardrail": {"type": "boolean", "description": "Whether it is a guardrail."},
        },
        "additionalProperties": true,
    };
    ContextMember = {
        "type": "object",
        "description": "A member of `context` that rules read.",
        "properties": {
            "name": {"type": "string", "description": "As it is spelled."},
            "type": {"type": "string", "description": "Its type, in words."},
            "meaning": {"type": "string", "description": "What it says."},
        },
        "additionalProperties": true,
    };
    VocabularyCode = {
        "type": "object",
        "description": "A code that an issue can have.",
        "required": ["code", "meaning", "remedy"],
        "properties": {
            "code": {"type": "string", "description": "As issues have it."},
            "severity": {"type": "string", "description": "How grave it is."},
            "meaning": {"type": ["string", "null"], "description": "What it says."},
            "remedy": {"type": ["string", "null"], "description": "What a caller can do."},
            "rules": {"type": "array", "items": {"type": "object", "additionalProperties": true},
                "description": "The rules that raise it."},
        },
        "additionalProperties": true,
    };
}
