//! The body of `POST /check`: parsed once, field by field, so that a refusal names every bad field.
//!
//! An existing [`CheckRequest`] keeps every rule of the wire contract that needs no policy; only an evaluator knows
//! change windows and policy versions.

mod bounds;
mod members;
mod near;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canonical::Canonical;
use crate::constraint::Constraint;
use crate::environment;
use crate::word::{Spelling, is_blank};

pub use members::{CONTEXT_MEMBERS, LOOP_STATE_MEMBERS, REQUEST_MEMBERS, RequestMember};

/// The largest body, in bytes.
pub const MAX_BODY_BYTES: usize = 1_000_000;
/// The longest goal, in characters.
pub const MAX_GOAL_CHARS: usize = 8_000;
/// The most items in an array of strings.
pub const MAX_ITEMS: usize = 200;
/// The longest item or environment, in characters.
pub const MAX_ITEM_CHARS: usize = 1_000;
/// The most entries in an array of `context`, at any depth.
pub const MAX_CONTEXT_ENTRIES: usize = 1_000;
/// The most unknown members that an answer names.
const MAX_IGNORED: usize = 20;

/// A list of short texts in a request.
#[derive(JsonSchema)]
#[schemars(inline, transparent)]
#[expect(dead_code, reason = "only its schema is used")]
struct Items(#[schemars(extend("maxItems" = 200), inner(length(min = 1, max = 1000)))] Vec<String>);

/// A proposed action. Unknown members are tolerated. At most 1,000,000 bytes, 50,000 JSON values, 32 levels deep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckRequest {
    /// What the agent wants to do.
    #[schemars(extend("minLength" = 1, "maxLength" = 8000))]
    pub goal: String,
    /// How it will know that it is done.
    #[schemars(with = "Option<Items>", extend("default" = []))]
    pub success_criteria: Vec<String>,
    /// Limits it declares, such as `approval required`, `required_role: admin` or `max_cost_usd: 5`.
    #[schemars(with = "Option<Items>", extend("default" = []))]
    pub constraints: Vec<String>,
    /// Tools it will use.
    #[schemars(with = "Option<Items>", extend("default" = []))]
    pub tools: Vec<String>,
    /// What changes outside, such as `deploy` or `external_notification`. A word that the policy does not know
    /// counts as high risk.
    #[schemars(with = "Option<Items>", extend("default" = []))]
    pub side_effects: Vec<String>,
    /// False if `side_effects` was absent or null. An empty array is different: it states that nothing changes.
    #[serde(default = "stated", skip_serializing_if = "is_stated")]
    #[schemars(skip)]
    pub side_effects_stated: bool,
    /// Facts: `actor_role`, `approval_status`, `environment`, `run_id`, … Absent differs from empty.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::optional_members")]
    #[schemars(with = "Option<crate::api::Context>")]
    pub context: Option<Map<String, Value>>,
    /// The same as `context.environment`; both given and different is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 1000))]
    pub environment: Option<String>,
    /// Advice of MEDIUM severity denies as well.
    #[schemars(default)]
    pub pro: bool,
    /// Empty: the account's active version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ""))]
    pub policy_pack_version: Option<String>,
    /// Only when true is the request's text recorded, with secrets masked, as `input` of the decision's record.
    #[schemars(default)]
    pub debug_store_input: bool,
    /// Unknown top-level members: tolerated, never evaluated, but searched for secrets.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "crate::json::members")]
    #[schemars(skip)]
    pub unknown: Map<String, Value>,
}

/// The default for a request from an older gateway, which does not send the member.
fn stated() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_stated(stated: &bool) -> bool {
    *stated
}

/// Why a body was refused, and the parts of it that a policy can still review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedRequest {
    /// Every bad field; never empty.
    pub errors: Vec<FieldError>,
    /// The constraints by index; invalid ones are empty texts.
    pub constraints: Vec<String>,
    /// The requested policy version, if it could be read.
    pub policy_pack_version: Option<String>,
}

fn environment_at<'a>(outer: Option<&'a str>, context: Option<&'a Map<String, Value>>) -> Option<&'a str> {
    let inner = || context?.get("environment")?.as_str();
    outer.filter(|text| !is_blank(text)).or_else(inner).filter(|text| !is_blank(text))
}

/// One bad field: where, and what it must be. Never quotes the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// `goal`, `constraints[3]`, …
    pub path: String,
    /// Lower case, no full stop.
    pub message: String,
}

impl FieldError {
    /// A bad field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The error for two environments that contradict each other.
    pub fn environments_differ() -> Self {
        Self::new("environment", "must be the same as `context.environment`, or only one of them given")
    }
}

impl CheckRequest {
    /// Parses a body, or names every bad field.
    pub fn parse(body: Value) -> Result<Self, RejectedRequest> {
        let Value::Object(mut members) = body else {
            let errors = vec![FieldError::new("body", "must be a JSON object")];
            return Err(RejectedRequest { errors, constraints: Vec::new(), policy_pack_version: None });
        };
        // Null means the same as an absent member, except that a goal is required.
        members.retain(|name, value| !value.is_null() || !members::holds(REQUEST_MEMBERS, name));
        let side_effects_stated = members.contains_key("side_effects");
        let mut fields = Fields { errors: Vec::new(), members: &mut members };
        let mut request = Self {
            goal: fields.goal(),
            success_criteria: fields.strings("success_criteria"),
            constraints: fields.strings("constraints"),
            tools: fields.strings("tools"),
            side_effects: fields.strings("side_effects"),
            side_effects_stated,
            context: fields.context(),
            environment: fields.text("environment"),
            pro: fields.boolean("pro"),
            policy_pack_version: fields.text("policy_pack_version"),
            debug_store_input: fields.boolean("debug_store_input"),
            unknown: Map::new(),
        };
        let mut errors = fields.errors;
        request.unknown = members;
        near::in_request(&request.unknown, &mut errors);
        if let Some(context) = &request.context {
            near::in_context(context, &mut errors);
        }
        for (index, constraint) in request.constraints.iter().enumerate() {
            if let Err(error) = Constraint::parse(constraint) {
                errors.push(FieldError::new(format!("constraints[{index}]"), error.to_string()));
            }
        }
        request.out_of_bounds(&mut errors);
        if errors.is_empty() {
            return Ok(request);
        }
        // The policy decides which environments are the same; a body that is refused anyway lists what is plain.
        if request.environments_differ() {
            errors.push(FieldError::environments_differ());
        }
        Err(RejectedRequest {
            errors,
            constraints: request.constraints,
            policy_pack_version: request.policy_pack_version,
        })
    }

    fn environments_differ(&self) -> bool {
        self.two_environments().is_some_and(|(outer, inner)| {
            let (outer, inner) = (Spelling::of(outer), Spelling::of(inner));
            let name = |spelling: &Spelling| {
                let word = spelling.folded()?;
                Some(environment::of_alias(word).unwrap_or(word).to_owned())
            };
            !outer.is_same(&inner) && (name(&outer).is_none() || name(&outer) != name(&inner))
        })
    }

    /// The environment that the check names, at either place.
    pub fn environment_name(&self) -> Option<&str> {
        environment_at(self.environment.as_deref(), self.context.as_ref())
    }

    /// As [`Self::environment_name`], of a body that need not be a valid request.
    pub fn environment_in(body: &Map<String, Value>) -> Option<&str> {
        environment_at(body.get("environment").and_then(Value::as_str), body.get("context").and_then(Value::as_object))
    }

    /// The top-level environment and the one in `context`, if both are given and differ as texts.
    pub fn two_environments(&self) -> Option<(&str, &str)> {
        let inner = self.context.as_ref().and_then(|context| context.get("environment")).and_then(Value::as_str);
        let (outer, inner) = (self.environment.as_deref()?, inner.filter(|text| !is_blank(text))?);
        (outer != inner).then_some((outer, inner))
    }

    /// Unknown members of the request for the answer: sorted, at most 20, `*` for a name that is not a plain
    /// identifier.
    pub fn ignored_fields(&self) -> Vec<String> {
        let mut names: Vec<&str> = self.unknown.keys().map(|name| near::told(name)).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().take(MAX_IGNORED).map(str::to_owned).collect()
    }

    /// Hex SHA-256 of the canonical request. The order of members, absent against empty arrays, the place of the
    /// environment, unknown members and `debug_store_input` make no difference.
    pub fn task_hash(&self) -> String {
        let inner = self.context.as_ref().and_then(|context| context.get("environment"));
        let mut canonical = Canonical::default();
        canonical.raw(br#"{"constraints":"#);
        canonical.texts(&self.constraints);
        canonical.raw(br#","context":"#);
        match &self.context {
            Some(context) => canonical.object(context, Some("environment")),
            None => canonical.raw(b"null"),
        }
        canonical.raw(br#","environment":"#);
        match (&self.environment, inner) {
            (Some(environment), _) => canonical.text(environment),
            (None, Some(environment)) => canonical.value(environment),
            (None, None) => canonical.raw(b"null"),
        }
        canonical.raw(br#","goal":"#);
        canonical.text(&self.goal);
        canonical.raw(br#","policy_pack_version":"#);
        match &self.policy_pack_version {
            Some(version) => canonical.text(version),
            None => canonical.raw(b"null"),
        }
        canonical.raw(br#","pro":"#);
        canonical.bool(self.pro);
        canonical.raw(br#","side_effects":"#);
        canonical.texts(&self.side_effects);
        canonical.raw(br#","success_criteria":"#);
        canonical.texts(&self.success_criteria);
        canonical.raw(br#","tools":"#);
        canonical.texts(&self.tools);
        canonical.raw(b"}");
        canonical.hash()
    }
}

/// Takes members out of the body one by one and collects their faults.
struct Fields<'a> {
    errors: Vec<FieldError>,
    members: &'a mut Map<String, Value>,
}

impl Fields<'_> {
    fn bad(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    fn goal(&mut self) -> String {
        match self.members.remove("goal") {
            Some(Value::String(goal)) if is_blank(&goal) => self.bad("goal", "must not be blank"),
            Some(Value::String(goal)) if goal.chars().count() > MAX_GOAL_CHARS => {
                self.bad("goal", format!("must have at most {MAX_GOAL_CHARS} characters"));
            }
            Some(Value::String(goal)) => return goal,
            Some(_) => self.bad("goal", "must be a string"),
            None => self.bad("goal", "is required"),
        }
        String::new()
    }

    fn strings(&mut self, name: &str) -> Vec<String> {
        let items = match self.members.remove(name) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                let example = match name {
                    "tools" => "read_file",
                    "constraints" => "max_iterations: 3",
                    "success_criteria" => "all tests pass",
                    _ => "write",
                };
                self.bad(name, format!("must be an array of strings: write `[\"{example}\"]`"));
                return Vec::new();
            }
        };
        if items.len() > MAX_ITEMS {
            self.bad(name, format!("must have at most {MAX_ITEMS} items"));
            return Vec::new();
        }
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let message = match item {
                Value::String(text) if is_blank(&text) => "must not be blank".to_owned(),
                Value::String(text) if text.chars().count() > MAX_ITEM_CHARS => {
                    format!("must have at most {MAX_ITEM_CHARS} characters")
                }
                Value::String(text) => {
                    strings.push(text);
                    continue;
                }
                other => no_string(name, &other),
            };
            self.bad(format!("{name}[{index}]"), message);
            // A bad item keeps its place, so that later items are named by their own index.
            strings.push(String::new());
        }
        strings
    }

    fn context(&mut self) -> Option<Map<String, Value>> {
        let message = match self.members.remove("context")? {
            Value::Object(context) => {
                for (name, member) in &context {
                    long_arrays(member, Place::Member(&Place::Context, name), &mut self.errors);
                }
                return Some(context);
            }
            Value::String(_) => "must be an object, not a text: send the JSON object itself, without quotes around it",
            _ => "must be an object",
        };
        self.bad("context", message);
        None
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.members.remove(name)? {
            Value::String(text) if is_blank(&text) => {}
            Value::String(text) if text.chars().count() > MAX_ITEM_CHARS => {
                self.bad(name, format!("must have at most {MAX_ITEM_CHARS} characters"));
            }
            Value::String(text) => return Some(text),
            _ => self.bad(name, "must be a string"),
        }
        None
    }

    fn boolean(&mut self, name: &str) -> bool {
        match self.members.remove(name) {
            None => false,
            Some(Value::Bool(value)) => value,
            Some(_) => {
                self.bad(name, "must be true or false");
                false
            }
        }
    }
}

/// The error text for an item that is not a string. It quotes only a known constraint with a number or Boolean.
fn no_string(list: &str, item: &Value) -> String {
    match (list, item) {
        ("constraints", Value::Object(members)) => {
            let mut members = members.iter();
            let written = members.next().and_then(|(name, value)| {
                let text = format!("{name}: {value}");
                let plain = is_plain_name(name) && (value.is_number() || value.is_boolean());
                let known = plain && !matches!(Constraint::parse(&text), Ok(None));
                (known && members.next().is_none()).then_some(text)
            });
            format!("must be a string: write `{}`", written.as_deref().unwrap_or("max_iterations: 3"))
        }
        ("tools", Value::Object(_)) => {
            "must be a string: write the tool's name alone, such as `read_file`, not its definition".to_owned()
        }
        ("side_effects", Value::Object(_)) => {
            "must be a string: write the effect's word alone, such as `write`".to_owned()
        }
        (_, Value::Null) => "must be a string, not null: leave it out".to_owned(),
        _ => "must be a string".to_owned(),
    }
}

/// A path in `context`; rendered only for an error.
#[derive(Clone, Copy)]
enum Place<'p> {
    Context,
    Member(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Context => f.write_str("context"),
            // A member name is the caller's text: it is quoted only if it is a plain identifier.
            Self::Member(parent, name) => write!(f, "{parent}.{}", near::told(name)),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Reports every array that is too long, at any depth.
fn long_arrays(value: &Value, place: Place<'_>, errors: &mut Vec<FieldError>) {
    match value {
        Value::Array(items) => {
            if items.len() > MAX_CONTEXT_ENTRIES {
                let message = format!("must have at most {MAX_CONTEXT_ENTRIES} entries");
                errors.push(FieldError::new(place.to_string(), message));
            }
            for (index, item) in items.iter().enumerate() {
                long_arrays(item, Place::Item(&place, index), errors);
            }
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| long_arrays(member, Place::Member(&place, name), errors));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether an error may quote a member's name: it looks like an identifier and not like free text.
pub fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(body: Value) -> Vec<String> {
        CheckRequest::parse(body)
            .unwrap_err()
            .errors
            .into_iter()
            .map(|e| format!("{}: {}", e.path, e.message))
            .collect()
    }

    #[test]
    fn the_smallest_request_has_empty_arrays_and_no_context() {
        let request = CheckRequest::parse(json!({"goal": "x y"})).unwrap();
        assert!(request.tools.is_empty() && request.context.is_none() && !request.pro);
        let request =
            CheckRequest::parse(json!({"goal": "x y", "context": {}, "policy_pack_version": "", "colour": 1})).unwrap();
        assert_eq!(request.context, Some(Map::new()));
        assert_eq!(request.policy_pack_version, None);
        assert!(request.unknown.contains_key("colour"));
    }

    #[test]
    fn every_bad_field_is_named() {
        let found = errors(json!({
            "goal": " ", "success_criteria": "x", "constraints": ["max_iterations: x", 7, ""], "tools": "Bash",
            "side_effects": [["a"]], "context": [], "environment": 1, "pro": "yes", "policy_pack_version": 2,
            "debug_store_input": 0
        }));
        assert_eq!(found.len(), 12, "{found:?}");
        for path in [
            "goal",
            "success_criteria",
            "constraints[0]",
            "constraints[1]",
            "constraints[2]",
            "tools",
            "side_effects[0]",
            "context",
            "environment",
            "pro",
            "policy_pack_version",
            "debug_store_input",
        ] {
            assert!(found.iter().any(|e| e.starts_with(&format!("{path}: "))), "{path} in {found:?}");
        }
    }

    #[test]
    fn sizes_are_counted_in_characters_and_items() {
        assert!(CheckRequest::parse(json!({"goal": "é".repeat(8_000)})).is_ok());
        assert_eq!(errors(json!({"goal": "é".repeat(8_001)})).len(), 1);
        assert!(CheckRequest::parse(json!({"goal": "g", "tools": vec!["t"; 200]})).is_ok());
        assert_eq!(errors(json!({"goal": "g", "tools": vec!["t"; 100_000]})).len(), 1);
        assert!(CheckRequest::parse(json!({"goal": "g", "tools": ["é".repeat(1_000)]})).is_ok());
        assert_eq!(errors(json!({"goal": "g", "tools": ["é".repeat(1_001)]})).len(), 1);
    }

    #[test]
    fn an_array_in_the_context_is_counted_at_every_depth() {
        let long = || vec![0; MAX_CONTEXT_ENTRIES + 1];
        let most = vec![0; MAX_CONTEXT_ENTRIES];
        assert!(CheckRequest::parse(json!({"goal": "g", "context": {"a": &most, "b": {"c": [[&most]]}}})).is_ok());
        assert!(CheckRequest::parse(json!({"goal": "g", "colour": long()})).is_ok(), "not in the context");
        let mut found = errors(json!({"goal": "g", "context": {
            "target_resources": long(), "x": {"y z": [[], [long()]]}, "loop_state": {"repeated_tools": long()}}}));
        found.sort_unstable();
        let text = "must have at most 1000 entries";
        assert_eq!(
            found,
            [
                format!("context.loop_state.repeated_tools: {text}"),
                format!("context.target_resources: {text}"),
                format!("context.x.*[1][0]: {text}")
            ]
        );
    }

    #[test]
    fn two_different_environments_are_told_beside_other_errors_and_else_left_to_the_policy() {
        let differ = |outer: &str, inner: &str| {
            let body = json!({"goal": " ", "environment": outer, "context": {"environment": inner}});
            let request = json!({"goal": "g", "environment": outer, "context": {"environment": inner}});
            let request = CheckRequest::parse(request).unwrap();
            assert_eq!(request.two_environments().is_some(), outer != inner && !outer.is_empty());
            errors(body).len() == 2
        };
        assert!(differ("staging", "production") && differ("prod", "staging") && differ("st\u{430}ging", "staging"));
        for (outer, inner) in [
            ("Staging ", "staging"),
            ("", "staging"),
            ("prod", "Production"),
            ("PRD", "live"),
            ("pre-prod", "pre_prod"),
        ] {
            assert!(!differ(outer, inner), "{outer} {inner}");
        }
    }

    #[test]
    fn null_is_absent_for_every_optional_member_and_the_hash_does_not_tell() {
        let absent = CheckRequest::parse(json!({"goal": "g"})).unwrap();
        let optional = REQUEST_MEMBERS.iter().map(|member| member.name).filter(|name| *name != "goal");
        let mut all = json!({"goal": "g"});
        for name in optional {
            assert_eq!(CheckRequest::parse(json!({"goal": "g", name: null})).unwrap(), absent, "{name}");
            all[name] = Value::Null;
        }
        let all = CheckRequest::parse(all).unwrap();
        assert_eq!((&all, all.task_hash()), (&absent, absent.task_hash()));
        assert_eq!(errors(json!({"goal": null})), ["goal: is required"]);
        let items = errors(json!({"goal": "g", "tools": [null, "a", null]}));
        assert_eq!(items, [0, 2].map(|n| format!("tools[{n}]: must be a string, not null: leave it out")));
    }

    #[test]
    fn an_absent_side_effect_states_nothing_and_an_empty_array_does() {
        let read = |body: Value| CheckRequest::parse(body).unwrap();
        let (absent, empty) = (read(json!({"goal": "g"})), read(json!({"goal": "g", "side_effects": []})));
        assert!(!absent.side_effects_stated && empty.side_effects_stated);
        assert_eq!(absent.task_hash(), empty.task_hash());
        for request in [absent, empty] {
            let wire = serde_json::to_value(&request).unwrap();
            assert_eq!(wire.get("side_effects_stated").is_some(), !request.side_effects_stated);
            assert_eq!(serde_json::from_value::<CheckRequest>(wire).unwrap(), request);
        }
    }

    #[test]
    fn a_shape_that_people_send_is_told_what_to_write() {
        for (body, told) in [
            (
                json!({"constraints": [{"max_iterations": 3}]}),
                "constraints[0]: must be a string: write `max_iterations: 3`",
            ),
            (json!({"constraints": [{"dry_run": true}]}), "constraints[0]: must be a string: write `dry_run: true`"),
            (json!({"constraints": [{"sk_live_x": 3}]}), "constraints[0]: must be a string: write `max_iterations: 3`"),
            (
                json!({"constraints": {"read_only": true}}),
                "constraints: must be an array of strings: write `[\"max_iterations: 3\"]`",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "x"}}]}),
                "tools[0]: must be a string: write the tool's name alone, such as `read_file`, not its definition",
            ),
            (json!({"tools": "Bash"}), "tools: must be an array of strings: write `[\"read_file\"]`"),
            (
                json!({"side_effects": {"deploy": true}}),
                "side_effects: must be an array of strings: write `[\"write\"]`",
            ),
            (
                json!({"context": "{\"environment\":\"prod\"}"}),
                "context: must be an object, not a text: send the JSON object itself, without quotes around it",
            ),
        ] {
            let mut body = body;
            body["goal"] = json!("g");
            assert_eq!(errors(body), [told]);
        }
    }

    #[test]
    fn unknown_members_are_told_in_order_and_only_by_plain_names() {
        let ignored = |body: Value| CheckRequest::parse(body).unwrap().ignored_fields();
        let body = json!({"goal": "g", "user": 1, "approvalStatus": "approved", "a text, no name": 1, "\u{e9}": 2});
        assert_eq!(ignored(body), ["*", "approvalStatus", "user"]);
        let mut many = json!({"goal": "g"});
        for n in 0..500 {
            many[format!("x{n:03}")] = json!(n);
        }
        let told = ignored(many);
        assert_eq!((told.len(), told[0].as_str(), told[19].as_str()), (20, "x000", "x019"));
        assert!(ignored(json!({"goal": "g", "context": {"colour": 1}})).is_empty());
    }

    #[test]
    fn equal_tasks_have_equal_hashes() {
        let hash = |body: &str| CheckRequest::parse(crate::parse_strict(body.as_bytes()).unwrap()).unwrap().task_hash();
        let one = hash(r#"{"goal":"g","tools":["a"],"context":{"a":1,"b":{"c":2.0,"d":null},"environment":"e"}}"#);
        assert_eq!(
            one,
            hash(
                r#"{"context":{"b":{"d":null,"c":2},"a":1},"environment":"e","tools":["a"],"goal":"g","side_effects":[],"debug_store_input":true,"x":1}"#
            )
        );
        assert_eq!(one.len(), 64);
        for other in [
            r#"{"goal":"g"}"#,
            r#"{"goal":"g","context":{}}"#,
            r#"{"goal":"G"}"#,
            r#"{"goal":"g","pro":true}"#,
            r#"{"goal":"g","tools":["a","b"]}"#,
            r#"{"goal":"g","tools":["b","a"]}"#,
        ] {
            assert_ne!(one, hash(other), "{other}");
        }
        assert_ne!(hash(r#"{"goal":"g"}"#), hash(r#"{"goal":"g","context":{}}"#));
    }

    #[test]
    fn the_hash_is_the_documented_one() {
        let request = CheckRequest::parse(json!({"goal": "Ünïcode \"q\"", "context": {"n": 1.5}})).unwrap();
        let canonical = concat!(
            r#"{"constraints":[],"context":{"n":1.5},"environment":null,"goal":"Ünïcode \"q\"","#,
            r#""policy_pack_version":null,"pro":false,"side_effects":[],"success_criteria":[],"tools":[]}"#,
        );
        let digest = <sha2::Sha256 as sha2::Digest>::digest(canonical.as_bytes());
        assert_eq!(request.task_hash(), data_encoding::HEXLOWER.encode(&digest));
    }
}
