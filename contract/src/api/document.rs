//! The OpenAPI 3.1 document, made of the table of operations and the schemas of the wire types.
//!
//! Nothing of it is written twice: paths, scopes and statuses come from the rows, members and descriptions from the
//! types and their docs. `docs/openapi.json` pins the result.

#![expect(
    clippy::indexing_slicing,
    reason = "every index is a name in an object that is built here; the snapshot test builds the whole document"
)]

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::events::EVENTS;
use super::responses::{ErrorResponse, add_rate_limit};
use super::row::{Reply, Row};
use super::schemas::{ConstraintForm, ContextMember, IssueRun, SuggestedChange, VocabularyCode};
use super::{Access, Operation};
use crate::{ErrorBody, Scope};

const JSON: &str = "application/json";

/// The document; `server` is the URL that its paths are relative to.
pub fn openapi(server: &str) -> Value {
    let mut document = Document::new();
    let mut paths: Map<String, Value> = Map::new();
    for row in Operation::ALL.iter().map(|operation| operation.row()).filter(|row| row.is_described) {
        let described = document.operation(row);
        let path = paths.entry(row.path).or_insert_with(|| json!({}));
        path[row.method.as_str().to_ascii_lowercase()] = described;
    }
    // `callbacks` and not `webhooks`, which openapi-generator makes clients of that do not compile.
    paths["/v1/webhooks"]["post"]["callbacks"] = document.events();
    let mut value = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Stage0",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Runtime authorization for AI agents",
            "description": "Before an agent acts, ask `POST /check`. Act only on a 200 answer whose `verdict` is \
                `ALLOW` and whose `decision` is `GO`; anything else, an error or no answer at all included, means: do \
                not act. Stage0 never executes anything. A decision is recorded before it is released, unless the \
                deployment chose otherwise (`meta.audit`): an answer that you got is in the decision log.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "contact": {"name": "The operator of this deployment"},
        },
        "servers": [{"url": server, "description": "This server"}],
        "security": [{"apiKey": []}],
        "tags": TAGS.map(|(name, description)| json!({"name": name, "description": description})),
        "paths": paths,
        "components": document.components(),
    });
    tidy(&mut value);
    value
}

const TAGS: [(&str, &str); 14] = [
    ("check", "Decisions"),
    ("runs", "What the server has counted of an agent's runs"),
    ("usage", "What an account has used"),
    ("decisions", "The decision log: read, export, verify, delete"),
    ("accounts", "Accounts, by the operator"),
    ("keys", "API keys"),
    ("members", "The people of an account, and who stands in for whom"),
    ("approvals", "Deferred actions that people decide about, and wider grants"),
    ("stops", "What denies every check in its scope until a person resumes it"),
    ("guards", "What enforces decisions beside agents, and when it reported last"),
    ("policies", "Policies that an organisation publishes and activates"),
    ("webhooks", "Endpoints that get every recorded decision, signed"),
    ("service", "The service itself"),
    ("events", "What webhook endpoints get"),
];

const RETRIES: &str = "Failed, as is a redirect and no answer within 15 s: tried again after 5 s, 5 min, 30 min, 2 h, \
    5 h, 10 h and 10 h, each 20 % more or less.";

/// The schemas that are met while operations are described.
struct Document {
    requests: SchemaGenerator,
    replies: SchemaGenerator,
    schemas: BTreeMap<String, Value>,
}

impl Document {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        let mut replies = settings().for_serialize().into_generator();
        replies.subschema_for::<ErrorBody>();
        // Those that other schemas name in writing.
        replies.subschema_for::<SuggestedChange>();
        replies.subschema_for::<IssueRun>();
        replies.subschema_for::<ConstraintForm>();
        replies.subschema_for::<ContextMember>();
        replies.subschema_for::<VocabularyCode>();
        replies.subschema_for::<Scope>();
        Self { requests: settings().for_deserialize().into_generator(), replies, schemas: BTreeMap::new() }
    }

    fn operation(&mut self, row: &Row) -> Value {
        let mut operation = json!({"operationId": operation_id(row.name), "tags": [row.tag]});
        let (summary, description) = row.doc.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        operation["summary"] = summary.trim().into();
        let description = text(description);
        if !description.is_empty() {
            operation["description"] = description.into();
        }
        if let Access::Open = row.access {
            operation["security"] = json!([]);
        }
        let mut parameters = Vec::new();
        if let Some(input) = row.input {
            let schema = input(&mut self.requests).to_value();
            self.input(row, schema, &mut parameters, &mut operation);
        }
        if row.name == "Check" {
            parameters.push(json!({"$ref": "#/components/parameters/ClientRequestId"}));
            parameters.push(json!({"$ref": "#/components/parameters/CheckKey"}));
            parameters.push(json!({"$ref": "#/components/parameters/MinPolicy"}));
        }
        if row.name == "AskAsHook" {
            parameters.push(json!({"$ref": "#/components/parameters/HookEnvironment"}));
            parameters.push(json!({"$ref": "#/components/parameters/HookDecision"}));
        }
        if row.is_idempotent {
            parameters.push(json!({"$ref": "#/components/parameters/CreationKey"}));
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = row.body {
            let schema = body(&mut self.requests).to_value();
            operation["requestBody"] = request_body(row, &schema, true);
        }
        operation["responses"] = self.responses(row);
        operation
    }

    /// The members of a request type: parameters of the path, then of the query or members of the body.
    fn input(&mut self, row: &Row, schema: Value, parameters: &mut Vec<Value>, operation: &mut Value) {
        let Value::Object(mut schema) = schema else { return };
        let Some(Value::Object(properties)) = schema.remove("properties") else { return };
        let required = schema.remove("required").unwrap_or_default();
        let is_required = |name: &str| required.as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let mut members = Map::new();
        for (name, mut property) in properties {
            let in_path = row.path.contains(&format!("{{{name}}}"));
            if !in_path && row.method.has_body() {
                members.insert(name, property);
                continue;
            }
            let description = property.as_object_mut().and_then(|property| property.remove("description"));
            without_null(&mut property);
            let mut parameter = json!({"name": name, "in": if in_path { "path" } else { "query" }});
            if in_path || is_required(&name) {
                parameter["required"] = true.into();
            }
            if let Some(description) = description {
                parameter["description"] = description;
            }
            parameter["schema"] = property;
            parameters.push(parameter);
        }
        if members.is_empty() {
            return;
        }
        let required: Vec<&str> = members.keys().map(String::as_str).filter(|name| is_required(name)).collect();
        let is_body_required = !required.is_empty() || row.body_example.is_some();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("additionalProperties".to_owned(), false.into());
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        schema.insert("properties".to_owned(), members.into());
        let name = format!("{}Request", row.name);
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        self.schemas.insert(name, schema.into());
        operation["requestBody"] = request_body(row, &reference, is_body_required);
    }

    fn responses(&mut self, row: &Row) -> Value {
        let mut success = json!({"description": row.description});
        success["headers"]["X-Request-Id"] = json!({"$ref": "#/components/headers/RequestId"});
        if row.name == "Check" {
            add_rate_limit(&mut success["headers"]);
        }
        match row.reply {
            Reply::Nothing => {}
            Reply::Json(schema) => {
                success["content"][JSON]["schema"] = schema(&mut self.replies).to_value();
                if let Some(example) = row.example.and_then(example) {
                    success["content"][JSON]["example"] = example;
                }
            }
            Reply::Other(media_type) => {
                success["content"][media_type]["schema"] = json!({"type": "string"});
            }
        }
        let mut responses = Map::new();
        if let Some(unready) = row.probe.and_then(|probe| probe.unready) {
            let mut other = success.clone();
            other["description"] = unready.into();
            responses.insert("503".to_owned(), other);
        }
        if let Some(description) = row.unchanged {
            let mut unchanged = success.clone();
            unchanged["description"] = description.into();
            responses.insert("200".to_owned(), unchanged);
        }
        if let Some((description, schema)) = row.accepted {
            let mut accepted = json!({"description": description});
            accepted["headers"]["X-Request-Id"] = json!({"$ref": "#/components/headers/RequestId"});
            accepted["content"][JSON]["schema"] = schema(&mut self.replies).to_value();
            responses.insert("202".to_owned(), accepted);
        }
        responses.insert(row.status.to_string(), success);
        for error in row.errors() {
            let reference = json!({"$ref": format!("#/components/responses/{}", error.name())});
            responses.insert(error.status().to_string(), reference);
        }
        responses.sort_keys();
        responses.into()
    }

    /// What is sent to the URL of an endpoint once it is created.
    fn events(&mut self) -> Value {
        let mut events = Map::new();
        for event in &EVENTS {
            let mut schemas = event.schemas(&mut self.replies);
            schemas.iter_mut().for_each(|(_, schema)| without_null_members(schema));
            self.schemas.extend(schemas);
            let schema = json!({"$ref": format!("#/components/schemas/{}", event.component)});
            let post = json!({
                "operationId": event.operation_id,
                "tags": ["events"],
                "summary": event.summary,
                "security": [],
                "parameters": event_headers(),
                "requestBody": {"required": true, "content": {JSON: {"schema": schema}}},
                "description":
                    format!("Sent with `content-type: application/json`, over HTTP/1.1. {}", event.about).trim(),
                "responses": {
                    "2XX": {"description": "Delivered. The body is ignored."},
                    "410": {"description": "The endpoint is gone: it is disabled at once."},
                    "429": {"description": "Busy: tried again, not before `Retry-After` (seconds or a date, at most \
                        24 h)."},
                    "503": {"description": "As 429."},
                    "default": {"description": RETRIES},
                },
            });
            events.insert(event.kind.to_owned(), json!({"{$request.body#/url}": {"post": post}}));
        }
        events.into()
    }

    fn components(mut self) -> Value {
        self.schemas.extend(self.requests.take_definitions(true));
        let mut replies = self.replies.take_definitions(true);
        replies.values_mut().for_each(without_null_members);
        self.schemas.extend(replies);
        let responses: Map<_, _> =
            ErrorResponse::ALL.iter().map(|error| (error.name().to_owned(), error.describe())).collect();
        json!({
            "securitySchemes": {"apiKey": {
                "type": "apiKey",
                "in": "header",
                "name": "x-api-key",
                "description": "A key of the account.",
            }},
            "headers": headers(),
            "parameters": parameters(),
            "responses": responses,
            "schemas": self.schemas,
        })
    }
}

fn request_body(row: &Row, schema: &Value, is_required: bool) -> Value {
    let mut content = json!({"schema": schema});
    if let Some(example) = row.body_example.and_then(|example| serde_json::from_str::<Value>(example).ok()) {
        content["example"] = example;
    }
    json!({"required": is_required, "content": {JSON: content}})
}

/// The answer in a fixture: what was done, where it is the reply to a message.
fn example(fixture: &str) -> Option<Value> {
    let mut value: Value = serde_json::from_str(fixture).ok()?;
    let mut answer = value.get_mut("done").map(Value::take).unwrap_or(value);
    // Fixtures from before this member existed; since then every decision has it.
    if let Some(decision) = answer.as_object_mut().filter(|answer| answer.contains_key("verdict")) {
        decision.entry("constraints_ignored").or_insert_with(|| json!([]));
    }
    Some(answer)
}

/// `CreateKey` is `createKey`.
fn operation_id(name: &str) -> String {
    let mut id = name.to_owned();
    if let Some(first) = id.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    id
}

/// Lines of a doc comment as paragraphs of one line each.
pub(super) fn text(doc: &[&str]) -> String {
    unwrapped(&doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n"))
}

fn unwrapped(text: &str) -> String {
    let paragraphs = text.trim().split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n").replace("[`", "`").replace("`]", "`")
}

/// A parameter that is not given is absent, never null.
fn without_null(schema: &mut Value) {
    if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|kind| kind != "null");
        if let [one] = types.as_slice() {
            schema["type"] = one.clone();
        }
    }
    let is_null = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "null");
    if let Some(choices) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        choices.retain(|choice| !is_null(choice));
        if let [one] = choices.as_slice() {
            let one = one.clone();
            if let Some(object) = schema.as_object_mut() {
                object.remove("anyOf");
                object.extend(one.as_object().cloned().unwrap_or_default());
            }
        }
    }
}

/// A member of a reply that is not always there is left out, never null; unless its type says that null means more.
fn without_null_members(schema: &mut Value) {
    let required = schema.get("required").cloned().unwrap_or_default();
    let is_required = |name: &str| required.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (_, property) in properties.iter_mut().filter(|(name, _)| !is_required(name)) {
            if property.get("default") != Some(&Value::Null) {
                without_null(property);
            }
        }
    }
}

/// Writes what the schema generator makes of Rust types as a person would: an enum of texts is one `enum` whose
/// description explains each, a number has no format of a Rust type, a description no line breaks.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            join_constants(object);
            let is_of_rust =
                |format: &str| format.starts_with("uint") || format.starts_with("int") || format == "double";
            if object.get("format").and_then(Value::as_str).is_some_and(is_of_rust) {
                object.remove("format");
            }
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = unwrapped(description);
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `oneOf` constants with a description each becomes an `enum` with one description.
fn join_constants(schema: &mut Map<String, Value>) {
    let Some(choices) = schema.get("oneOf").and_then(Value::as_array) else { return };
    let mut values = Vec::new();
    let mut explained = Vec::new();
    for choice in choices {
        if let Some(constant) = choice.get("const").filter(|constant| constant.is_string()) {
            values.push(constant.clone());
            let description = choice.get("description").and_then(Value::as_str).unwrap_or_default();
            explained.push(format!("`{}`: {}", constant.as_str().unwrap_or_default(), lower_first(description)));
        } else if let Some(several) = choice.get("enum").and_then(Value::as_array) {
            values.extend(several.iter().cloned());
        } else {
            return;
        }
    }
    schema.remove("oneOf");
    schema.insert("type".to_owned(), "string".into());
    schema.insert("enum".to_owned(), values.into());
    let own = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{own} {}", explained.join(" "));
    schema.insert("description".to_owned(), description.trim().into());
}

fn lower_first(text: &str) -> String {
    let mut text = text.to_owned();
    // Not the first letter of an acronym.
    let is_word = text.chars().nth(1).is_some_and(|second| second.is_lowercase() || second == ' ');
    if let Some(first) = text.get_mut(..1).filter(|_| is_word) {
        first.make_ascii_lowercase();
    }
    text
}

fn headers() -> Value {
    json!({
        "RequestId": {"description": "The id of this answer.", "schema": {"type": "string", "format": "uuid"}},
        "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
        "RateLimitLimit": {
            "description": "Checks that the account's shortest limited window may have: a minute, else a day, else a \
                month. Absent where nothing is limited. After draft-ietf-httpapi-ratelimit-headers-06.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "RateLimitRemaining": {
            "description": "What is left of it, as far as this gateway knows.",
            "schema": {"type": "integer", "minimum": 0},
        },
        "RateLimitReset": {
            "description": "Seconds until the window ends.",
            "schema": {"type": "integer", "minimum": 1},
        },
    })
}

fn parameters() -> Value {
    let key = json!({"type": "string", "minLength": 1, "maxLength": 128});
    json!({
        "ClientRequestId": {
            "name": "X-Request-Id",
            "in": "header",
            "schema": {"type": "string", "maxLength": 128},
            "description": "The caller's correlation id, visible ASCII; comes back in `meta.client_request_id`.",
        },
        "CheckKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": key,
            "description": "Visible ASCII, chosen by the caller for one action. For 10 minutes after its first use \
                with this API key the same body gets the recorded decision again (`cached: true`, the same \
                `request_id`), counted only in the minute's rate limit; the order of members does not matter. Another \
                body: 422. Void once another policy version decides, and with the API key. A second request waits for \
                the first. A retry after a 503 counts in its run no second time.",
        },
        "MinPolicy": {
            "name": "X-Stage0-Min-Policy",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": 100},
            "description": "`<pack>@<semver>+<digest>`: the check is answered only if this version decides it, or one \
                of the same pack with a higher number; else a 503 that names both.",
        },
        "HookEnvironment": {
            "name": "environment",
            "in": "query",
            "schema": {"type": "string"},
            "description": "Where the agent works, such as `production`, for tools whose entry in the table names \
                none: `environment` of the check.",
        },
        "HookDecision": {
            "name": "Stage0-Decision",
            "in": "header",
            "schema": {"type": "string", "format": "uuid"},
            "description": "With an event that tells the end of a call: the decision that allowed it \
                (`X-Request-Id` of that answer). What came of the call is then reported as its outcome, which takes \
                the scope `outcomes:report`.",
        },
        "CreationKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": key,
            "description": "Visible ASCII, chosen by the caller for one call. For 10 minutes after its first use with \
                this API key the same call with the same body gets the same answer again, its secret included, and \
                nothing is created a second time; the order of members does not matter. Another call or another body: \
                422. With it a body has at most 6000 bytes. A second request waits for the first. After a refusal \
                (4xx) the key is free. Where an answer was lost and it is not known whether something was created, a \
                repeat is 409: look for it, and call again under another key.",
        },
    })
}

/// The headers of an event. Written out in each event: openapi-generator does not follow references there.
fn event_headers() -> Value {
    json!([
        {
            "name": "webhook-id",
            "in": "header",
            "required": true,
            "schema": {"type": "string"},
            "description": "The event's id, the same at every attempt and replay: `dec_<request_id>`, \
                `mark_<account>_<number>` or `test_<uuid>`. Deduplicate by it.",
        },
        {
            "name": "webhook-timestamp",
            "in": "header",
            "required": true,
            "schema": {"type": "integer"},
            "description": "Of this attempt: whole seconds since the epoch.",
        },
        {
            "name": "webhook-signature",
            "in": "header",
            "required": true,
            "schema": {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$"},
            "description": "One `v1,<base64>` for each secret, the newest first, with a space between: HMAC-SHA256, \
                keyed with the decoded secret, of `<webhook-id>.<webhook-timestamp>.<body>` (Standard Webhooks).",
        },
    ])
}
