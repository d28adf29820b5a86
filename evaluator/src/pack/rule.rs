//! One rule: what its annotations say it means when it is satisfied.
//!
//! Owns the annotations: which there are, which a rule needs, what each takes. An unknown one is a fault, since a misspelt
//! `@serverity` would otherwise be a rule without a severity.

use cedar_policy::Policy;
use serde::de::DeserializeOwned;
use stage0_contract::{Effect, IssueCode, NextAction, Severity};

use super::fault::Fault;
use super::manifest::Edition;
use crate::decision::About;
use crate::facts::{Attribute, Attributes, Trigger};

/// A satisfied rule becomes an issue: this one.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: String,
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) family: String,
    pub(crate) trigger: Trigger,
    pub(crate) effect: Effect,
    pub(crate) code: IssueCode,
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) question: Option<String>,
    pub(crate) next_action: NextAction,
    pub(crate) weight: u8,
    pub(crate) details: Vec<Detail>,
    /// Members of `context` that would help.
    pub(crate) fields: Vec<String>,
    pub(crate) check: Option<String>,
    /// Where the matter lies in a request, and what would settle it.
    pub(crate) about: Option<About>,
    /// No change of the request settles it.
    pub(crate) is_final: bool,
    /// What the rule's conditions name.
    pub(crate) attributes: Attributes,
}

/// A fact that an issue tells in its `details`. No text of the request is among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// A number or Boolean that rules see, by its name.
    Attribute(Attribute),
    /// When the declared windows are next open together.
    NextOpening,
    /// Kinds and places of secrets.
    Secrets,
}

impl Rule {
    /// The code of a tool whose name says an effect that the request does not declare.
    const UNDECLARED: &str = "UNDECLARED_SIDE_EFFECT";

    /// Defers on an undeclared effect instead of giving advice, as `undeclared_effects = "defer"` in `tools.toml` says.
    pub(super) fn defer_undeclared(&mut self, faults: &mut Vec<Fault>) {
        if self.code.as_str() != Self::UNDECLARED || self.effect != Effect::Advise {
            return;
        }
        self.effect = Effect::Defer;
        if self.question.is_none() {
            let message =
                "`@question` is missing: `undeclared_effects` makes the rule defer, and a rule that defers must ask";
            faults.push(Fault::new(&self.file, message).at(self.line).rule(&self.id));
        }
    }
}

const KNOWN: [&str; 15] = [
    "id",
    "family",
    "trigger",
    "effect",
    "code",
    "severity",
    "message",
    "question",
    "next_action",
    "weight",
    "details",
    "fields",
    "check",
    "about",
    "final",
];

/// Reads a policy's annotations, or says everything that is wrong with them.
pub(super) fn read(policy: &Policy, edition: Edition, file: &str, line: usize) -> Result<Rule, Vec<String>> {
    let mut reader = Reader { policy, wrong: Vec::new() };
    reader.unknown();
    let id = reader.name("id");
    let family = reader.name("family");
    let trigger = reader.parsed("trigger", "a trigger that the evaluator knows", Trigger::parse);
    let effect = reader.parsed("effect", "deny, defer or advise", plain::<Effect>);
    let code = reader.parsed("code", "an issue code such as `APPROVAL_REQUIRED`", |text| IssueCode::parse(text).ok());
    let severity = reader.parsed("severity", "LOW, MEDIUM, HIGH or CRITICAL", plain::<Severity>);
    let message = reader.parsed("message", "a text", text);
    let question = reader.optional("question", "a text", text);
    let next_action = reader.parsed("next_action", "a next action of the contract", plain::<NextAction>);
    let weight = reader.parsed("weight", "a number from 0 to 100", |t| t.parse::<u8>().ok().filter(|n| *n <= 100));
    let details = reader.optional("details", "a list of facts without words of the request", |t| list(t, detail));
    let fields = reader.optional("fields", "a list of members of `context`", |t| list(t, name));
    let check = reader.optional("check", "a name of small letters and `_`", name);
    let wanted = || format!("one of {}", About::names().collect::<Vec<_>>().join(", "));
    let about = reader.optional("about", &wanted(), About::parse);
    let is_final = policy.annotation("final").is_some();
    if edition == Edition::Second && policy.annotation("about").is_none() {
        reader.wrong.push(format!("`@about` is missing: it must be {}", wanted()));
    }
    match (effect, severity) {
        (Some(Effect::Advise), Some(severity)) if severity >= Severity::High => {
            reader.wrong.push("advice is never HIGH or CRITICAL: an ALLOW could carry it".to_owned());
        }
        (Some(Effect::Defer), _) if question.is_none() => {
            reader.wrong.push("`@question` is missing: who defers must say what is asked".to_owned());
        }
        _ => {}
    }
    let attributes = reader.attributes();
    if policy.effect() != cedar_policy::Effect::Forbid {
        reader.wrong.push("a rule must be a `forbid`".to_owned());
    }
    let wrong = reader.wrong;
    let needed = (id, family, trigger, effect, code, severity, message, next_action, weight, attributes);
    let (
        Some(id),
        Some(family),
        Some(trigger),
        Some(effect),
        Some(code),
        Some(severity),
        Some(message),
        Some(next_action),
        Some(weight),
        Some(attributes),
    ) = needed
    else {
        return Err(wrong);
    };
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Rule {
        id,
        file: file.to_owned(),
        line,
        family,
        trigger,
        effect,
        code,
        severity,
        message,
        question,
        next_action,
        weight,
        details: details.unwrap_or_default(),
        fields: fields.unwrap_or_default(),
        check,
        about,
        is_final,
        attributes,
    })
}

struct Reader<'a> {
    policy: &'a Policy,
    wrong: Vec<String>,
}

impl Reader<'_> {
    fn unknown(&mut self) {
        let mut unknown: Vec<&str> =
            self.policy.annotations().map(|(name, _)| name).filter(|n| !KNOWN.contains(n)).collect();
        unknown.sort_unstable();
        self.wrong.extend(unknown.into_iter().map(|name| format!("`@{name}` is no annotation of a rule")));
    }

    fn optional<T>(&mut self, annotation: &str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(self.policy.annotation(annotation)?);
        if value.is_none() {
            self.wrong.push(format!("`@{annotation}` must be {wanted}"));
        }
        value
    }

    fn parsed<T>(&mut self, annotation: &str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        if self.policy.annotation(annotation).is_none() {
            self.wrong.push(format!("`@{annotation}` is missing"));
        }
        self.optional(annotation, wanted, read)
    }

    fn name(&mut self, annotation: &str) -> Option<String> {
        self.parsed(annotation, "a name of small letters, digits, `.` and `_`", name)
    }

    /// What the conditions name; a name that no fact has is a fault.
    fn attributes(&mut self) -> Option<Attributes> {
        let Ok(json) = self.policy.to_json() else {
            self.wrong.push("its conditions cannot be read".to_owned());
            return None;
        };
        let mut names = Vec::new();
        named_attributes(&json, &mut names);
        let mut attributes = Attributes::default();
        for name in names {
            match Attribute::parse(&name) {
                Some(attribute) => attributes.insert(attribute),
                None => self.wrong.push(format!("`context.{name}` is no fact that the evaluator computes")),
            }
        }
        Some(attributes)
    }
}

/// Every `context.<name>` and `context has <name>`.
fn named_attributes(json: &serde_json::Value, names: &mut Vec<String>) {
    match json {
        serde_json::Value::Object(members) => {
            let of_context = members.get("left").and_then(|l| l.get("Var")).and_then(|v| v.as_str()) == Some("context");
            if let (true, Some(name)) = (of_context, members.get("attr")) {
                let many = name.as_array().into_iter().flatten().take(1);
                let found = many.chain(std::iter::once(name)).filter_map(|n| n.as_str()).map(str::to_owned);
                names.extend(found.filter(|n| !names.contains(n)).collect::<Vec<_>>());
            }
            members.values().for_each(|member| named_attributes(member, names));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| named_attributes(item, names)),
        _ => {}
    }
}

/// A word of the contract, as on the wire.
fn plain<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(text)).ok()
}

fn text(text: &str) -> Option<String> {
    let one_line = !text.trim().is_empty() && !text.contains('\n');
    one_line.then(|| text.trim().to_owned())
}

fn name(text: &str) -> Option<String> {
    let valid = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_'));
    valid.then(|| text.to_owned())
}

fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|item| read(item.trim())).collect()
}

fn detail(text: &str) -> Option<Detail> {
    match text {
        "next_opening" => Some(Detail::NextOpening),
        "secrets" => Some(Detail::Secrets),
        other => Attribute::parse(other).filter(|a| !a.holds_words()).map(Detail::Attribute),
    }
}
