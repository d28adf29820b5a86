//! What a pack's schema declares: the facts that its rules may read, and the members of its own types `Custom` and
//! `RunCalls`.
//!
//! Read from Cedar's own JSON form of the schema. A schema that Cedar cannot parse is reported by `rules`, and declares
//! nothing here.

use std::collections::BTreeMap;

use cedar_policy::SchemaFragment;
use serde_json::{Map, Value};

use super::shape;
use crate::facts::{Attribute, Attributes, CustomType, CustomTypes, Kind, MAX_CUSTOM_MEMBERS, is_stored_name};
use crate::files::{Fault, line_of};
use crate::vocabulary::Edition;

const CUSTOM: &str = "Custom";
const RUN_CALLS: &str = "RunCalls";
/// Tools that a run counts separately.
const MAX_COUNTED_TOOLS: usize = 200;
const MAX_NAME_CHARS: usize = 64;
/// A type that is named through more other names than this is no type.
const MAX_ALIASES: usize = 8;

/// What a schema declares.
#[derive(Debug, Default)]
pub(crate) struct OwnTypes {
    /// The facts that rules may read.
    pub(crate) attributes: Attributes,
    /// Members of `context` that the pack declares as its own.
    pub(crate) custom: CustomTypes,
    /// Tools whose calls the pack's rules count, in normal form.
    pub(crate) run_calls: Vec<String>,
}

impl OwnTypes {
    /// Reads a whole schema, or one that has only the two types.
    pub(super) fn read(file: &str, text: &str, edition: Edition, faults: &mut Vec<Fault>) -> Self {
        if shape::schema(file, text).is_err() {
            return Self::default();
        }
        let parsed =
            SchemaFragment::from_cedarschema_str(text).ok().and_then(|(parsed, _)| parsed.to_json_value().ok());
        let Some(json) = parsed else { return Self::default() };
        let Some(declared) = json.get("") else { return Self::default() };
        let empty = Map::new();
        let types = declared.get("commonTypes").and_then(Value::as_object).unwrap_or(&empty);
        let mut reader = Reader { file, text, types, faults };
        let mut own = Self::default();
        let context = declared.pointer("/actions/check/appliesTo/context");
        if let Some(facts) = context.and_then(|context| reader.members(context)) {
            own.attributes = reader.facts(&facts, edition);
        }
        // To a pack of the first edition these are types like any other.
        let of_second = |name| types.get(name).filter(|_| edition == Edition::Second);
        if let Some(custom) = of_second(CUSTOM) {
            own.custom = reader.custom(custom);
        }
        if let Some(calls) = of_second(RUN_CALLS) {
            own.run_calls = reader.run_calls(calls);
        }
        own
    }
}

/// A type of a schema, with its names resolved.
#[derive(Debug, PartialEq)]
enum Type {
    /// As it is written in a schema.
    Plain(String),
    Record,
}

#[derive(Debug, PartialEq)]
struct Member {
    /// The name of its type, where it has one.
    name: Option<String>,
    kind: Type,
    is_optional: bool,
}

type Members = BTreeMap<String, Member>;

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    types: &'a Map<String, Value>,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, within: &str, name: &str, message: String) {
        let line = line_of_member(self.text, within, name);
        self.faults.push(Fault::new(self.file, message).at(line));
    }

    /// The type that stands behind a name. A name of itself stands for nothing.
    fn behind<'j>(&'j self, json: &'j Value) -> &'j Value {
        let mut json = json;
        for _ in 0..MAX_ALIASES {
            match type_name(json).and_then(|name| self.types.get(name)) {
                Some(aliased) => json = aliased,
                None => return json,
            }
        }
        &Value::Null
    }

    /// Looks no deeper than the items of a set, because a type may hold itself.
    fn kind(&self, json: &Value) -> Type {
        let json = self.behind(json);
        if json.get("attributes").is_some() {
            return Type::Record;
        }
        let plain = |json: &Value| {
            let name = type_name(json).unwrap_or("?");
            let name = name.strip_prefix("__cedar::").unwrap_or(name);
            if name == "Boolean" { "Bool".to_owned() } else { name.to_owned() }
        };
        Type::Plain(match json.get("element") {
            Some(element) => format!("Set<{}>", plain(self.behind(element))),
            None => plain(json),
        })
    }

    /// The members of a record; `None` for another type.
    fn members(&self, json: &Value) -> Option<Members> {
        let member = |(name, json): (&String, &Value)| {
            let is_optional = json.get("required").and_then(Value::as_bool) == Some(false);
            (name.clone(), Member { name: type_name(json).map(str::to_owned), kind: self.kind(json), is_optional })
        };
        Some(self.behind(json).get("attributes")?.as_object()?.iter().map(member).collect())
    }

    /// The facts that the schema describes: each must be in the table, with its type.
    fn facts(&mut self, members: &Members, edition: Edition) -> Attributes {
        const FACTS: &str = "context";
        let mut attributes = Attributes::default();
        // Of more names than there are rows in the table, one of the first is no fact.
        for (name, member) in members.iter().take(usize::from(u8::MAX) + 1) {
            let attribute = match Attribute::of_edition(name, edition) {
                Ok(attribute) => attribute,
                Err(wrong) => {
                    self.fault(FACTS, name, format!("`{name}` {wrong}"));
                    continue;
                }
            };
            let wanted = attribute.kind().as_str();
            let fits = match (&member.kind, attribute.kind()) {
                (Type::Record, Kind::Custom | Kind::RunCalls) => member.name.as_deref() == Some(wanted),
                (Type::Plain(given), _) => given == wanted,
                (Type::Record, _) => false,
            };
            if !fits {
                self.fault(FACTS, name, format!("`{name}` is of another type: write `{name}: {wanted}`"));
            } else if attribute.is_optional() && !member.is_optional {
                self.fault(FACTS, name, format!("`{name}` may be absent: write `{name}?: {wanted}`"));
            } else {
                attributes.insert(attribute);
            }
        }
        attributes
    }

    fn custom(&mut self, json: &Value) -> CustomTypes {
        let mut types = CustomTypes::default();
        let Some(members) = self.members(json) else {
            self.fault(CUSTOM, CUSTOM, "`Custom` must be a record such as `{ amount?: Long }`".to_owned());
            return types;
        };
        if members.len() > MAX_CUSTOM_MEMBERS {
            let message = format!("`Custom` has {} members, and may have {MAX_CUSTOM_MEMBERS}", members.len());
            self.fault(CUSTOM, CUSTOM, message);
            return types;
        }
        for (name, member) in members {
            let kind = match &member.kind {
                Type::Plain(kind) => CustomType::parse(kind),
                Type::Record => None,
            };
            let Some(kind) = kind else {
                let known = CustomType::ALL.map(CustomType::as_str).join(", ");
                self.fault(CUSTOM, &name, format!("`{name}` must have one of the types {known}"));
                continue;
            };
            if !is_identifier(&name) {
                let message = format!("`{name}` must be 1 to {MAX_NAME_CHARS} letters, digits and `_`, no digit first");
                self.fault(CUSTOM, &name, message);
            } else if !member.is_optional {
                let message = format!("a request may leave `{name}` out: write `{name}?: {}`", kind.as_str());
                self.fault(CUSTOM, &name, message);
            }
            types.0.insert(name, kind);
        }
        types
    }

    fn run_calls(&mut self, json: &Value) -> Vec<String> {
        let Some(members) = self.members(json) else {
            self.fault(RUN_CALLS, RUN_CALLS, "`RunCalls` must be a record such as `{ send_email: Long }`".to_owned());
            return Vec::new();
        };
        if members.len() > MAX_COUNTED_TOOLS {
            let message = format!("`RunCalls` has {} members, and may have {MAX_COUNTED_TOOLS}", members.len());
            self.fault(RUN_CALLS, RUN_CALLS, message);
            return Vec::new();
        }
        for (name, member) in &members {
            if member.kind != Type::Plain("Long".to_owned()) || member.is_optional {
                self.fault(RUN_CALLS, name, format!("`{name}` is a number of calls: write `{name}: Long`"));
            } else if !is_stored_name(name) {
                let message = format!(
                    "`{name}` would count nothing: runs count tools in small letters, with `_` for `-` and blanks"
                );
                self.fault(RUN_CALLS, name, message);
            }
        }
        members.into_keys().collect()
    }
}

/// The name by which a type is used.
fn type_name(json: &Value) -> Option<&str> {
    let name = json.get("name").or_else(|| json.get("type"))?.as_str()?;
    (!["Record", "Set", "EntityOrCommon", "Extension", "Entity"].contains(&name)).then_some(name)
}

/// Whether a pack may declare a member of this name.
pub(crate) fn is_identifier(name: &str) -> bool {
    name.len() <= MAX_NAME_CHARS
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// The line of `name:` after the first `within` of a schema, or else of the `within`; comments are passed over.
fn line_of_member(text: &str, within: &str, name: &str) -> usize {
    let start = text.find(within).unwrap_or(0);
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_declared = |at: usize| {
        let before = text.get(..at).unwrap_or_default();
        let after = text.get(at + name.len()..).unwrap_or_default().trim_start_matches('"').trim_start();
        let line = before.rsplit('\n').next().unwrap_or_default();
        !before.ends_with(is_part)
            && !line.contains("//")
            && after.trim_start_matches('?').trim_start().starts_with(':')
    };
    let found = text.match_indices(name).map(|(at, _)| at).filter(|at| *at >= start).find(|at| is_declared(*at));
    line_of(text, found.unwrap_or(start))
}
