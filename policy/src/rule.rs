//! One rule: the annotations of a Cedar policy, which say what it means when the policy is satisfied.
//!
//! An unknown annotation is a fault, because a misspelt `@serverity` would otherwise be a rule without a severity.

use cedar_policy::Policy;
use serde::de::DeserializeOwned;
use stage0_contract::{Effect, Escalation, IssueCode, NextAction, Severity};

use crate::approval::{DAY, Terms, quorum, within_seconds};
use crate::decision::About;
use crate::facts::{Attribute, Attributes, Trigger};
use crate::files::Fault;
use crate::pack::{GROUPS, groups};
use crate::vocabulary::Edition;

/// A rule, and the issue that it becomes when it is satisfied.
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
    pub(crate) fields: Vec<String>,
    pub(crate) check: Option<String>,
    /// Which part of a request the issue is about, and what would settle it.
    pub(crate) about: Option<About>,
    /// No change of the request settles the issue.
    pub(crate) is_final: bool,
    /// What the rule says of the approval that it asks for.
    pub(crate) terms: Terms,
    pub(crate) attributes: Attributes,
}

/// A fact in the `details` of an issue. None of them is a text of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    Attribute(Attribute),
    /// When all declared windows are next open at once.
    NextOpening,
    Secrets,
}

/// The rules that were evaluated for a request, and which of them were satisfied or failed.
#[derive(Debug, Default)]
pub(crate) struct Outcome<'p> {
    pub(crate) evaluated: Vec<&'p Rule>,
    pub(crate) matched: Vec<&'p Rule>,
    pub(crate) failed: Vec<String>,
}

impl Rule {
    /// The issue code for a tool whose name announces an effect that the request does not declare.
    const UNDECLARED: &str = "UNDECLARED_SIDE_EFFECT";

    /// Whether the rule defers until people approve.
    pub(crate) fn asks_for_approval(&self) -> bool {
        self.effect == Effect::Defer && self.next_action == NextAction::RequestApproval
    }

    /// A fault if others would be asked only after the time to approve is over.
    pub(crate) fn late_escalation(&self, defaults: &Terms) -> Option<Fault> {
        let message = "the escalation would come only after the time to approve is over: make `@escalate_after` \
                       shorter than `@approve_within` (or the pack's `within`)";
        let fault = || Fault::new(&self.file, message).at(self.line).rule(&self.id);
        self.terms.escalates_too_late(defaults).then(fault)
    }

    /// Makes advice on an undeclared effect defer, for packs with `undeclared_effects = "defer"`.
    pub(crate) fn defer_undeclared(&mut self, faults: &mut Vec<Fault>) {
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

pub(crate) fn read(policy: &Policy, edition: Edition, file: &str, line: usize) -> Result<Rule, Vec<String>> {
    let mut reader = Reader { policy, known: Vec::new(), wrong: Vec::new() };
    let id = reader.name("id");
    let family = reader.name("family");
    let trigger = reader.required("trigger", "a trigger that the evaluator knows", Trigger::parse);
    let effect = reader.required("effect", "deny, defer or advise", wire_word::<Effect>);
    let code = reader.required("code", "an issue code such as `APPROVAL_REQUIRED`", |text| IssueCode::parse(text).ok());
    let severity = reader.required("severity", "LOW, MEDIUM, HIGH or CRITICAL", wire_word::<Severity>);
    let message = reader.required("message", "a text", text);
    let question = reader.optional("question", "a text", text);
    let next_action = reader.required("next_action", "a next action of the contract", wire_word::<NextAction>);
    let weight = reader.required("weight", "a number from 0 to 100", |t| t.parse::<u8>().ok().filter(|n| *n <= 100));
    let details = reader.optional("details", "a list of facts without words of the request", |t| list(t, detail));
    let fields = reader.optional("fields", "a list of members of `context`", |t| list(t, name));
    let check = reader.optional("check", "a name of small letters and `_`", name);
    let wanted = || format!("one of {}", About::names().collect::<Vec<_>>().join(", "));
    let about = reader.optional("about", &wanted(), About::parse);
    let is_final = reader.annotation("final").is_some();
    let terms = reader.terms(effect, next_action);
    if edition == Edition::Second && policy.annotation("about").is_none() {
        reader.wrong.push(format!("`@about` is missing: it must be {}", wanted()));
    }
    match (effect, severity) {
        (Some(Effect::Advise), Some(severity)) if severity >= Severity::High => {
            reader.wrong.push("advice is never HIGH or CRITICAL: an ALLOW could carry it".to_owned());
        }
        (Some(Effect::Defer), _) if question.is_none() => {
            reader.wrong.push("`@question` is missing: a rule that defers must ask".to_owned());
        }
        _ => {}
    }
    let attributes = reader.attributes();
    if policy.effect() != cedar_policy::Effect::Forbid {
        reader.wrong.push("a rule must be a `forbid`".to_owned());
    }
    let wrong = [reader.unknown(), reader.wrong].concat();
    let rule = || {
        Some(Rule {
            id: id?,
            file: file.to_owned(),
            line,
            family: family?,
            trigger: trigger?,
            effect: effect?,
            code: code?,
            severity: severity?,
            message: message?,
            question,
            next_action: next_action?,
            weight: weight?,
            details: details.unwrap_or_default(),
            fields: fields.unwrap_or_default(),
            check,
            about,
            is_final,
            terms,
            attributes: attributes?,
        })
    };
    rule().filter(|_| wrong.is_empty()).ok_or(wrong)
}

/// Annotations that say what an approval needs.
const TERMS: [&str; 7] =
    ["approvers", "quorum", "approve_within", "approval_valid_for", "escalate_after", "escalate_to", "approval_reason"];

struct Reader<'a> {
    policy: &'a Policy,
    /// The annotations that were read.
    known: Vec<&'static str>,
    wrong: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Faults for annotations that were not read.
    fn unknown(&self) -> Vec<String> {
        let names = self.policy.annotations().map(|(name, _)| name);
        let mut unknown: Vec<&str> = names.filter(|name| !self.known.contains(name)).collect();
        unknown.sort_unstable();
        unknown.into_iter().map(|name| format!("`@{name}` is no annotation of a rule")).collect()
    }

    fn annotation(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.push(name);
        self.policy.annotation(name)
    }

    fn optional<T>(&mut self, annotation: &'static str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(self.annotation(annotation)?);
        if value.is_none() {
            self.wrong.push(format!("`@{annotation}` must be {wanted}"));
        }
        value
    }

    fn required<T>(&mut self, annotation: &'static str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        if self.policy.annotation(annotation).is_none() {
            self.wrong.push(format!("`@{annotation}` is missing"));
        }
        self.optional(annotation, wanted, read)
    }

    fn name(&mut self, annotation: &'static str) -> Option<String> {
        self.required(annotation, "a name of small letters, digits, `.` and `_`", name)
    }

    /// What the rule demands of an approval; at most on a rule that asks for one.
    fn terms(&mut self, effect: Option<Effect>, next_action: Option<NextAction>) -> Terms {
        let given = TERMS.iter().filter(|name| self.policy.annotation(name).is_some());
        let given: Vec<&str> = given.copied().collect();
        // A faulty effect or next action is reported by itself.
        let asks = effect.is_none_or(|effect| effect == Effect::Defer)
            && next_action.is_none_or(|action| action == NextAction::RequestApproval);
        if !asks {
            let told = "needs a rule that asks for an approval: `@effect(\"defer\")` and \
                        `@next_action(\"request_approval\")`";
            self.wrong.extend(given.iter().map(|name| format!("`@{name}` {told}")));
        }
        let duration = |longest: &str| format!("a duration such as `15m`, from `1m` to {longest}");
        let listed = |text: &str| groups(text.split(',').map(str::trim));
        let approvers = self.optional("approvers", GROUPS, listed);
        let quorum = self.optional("quorum", "a number from 1 to 10", |text| {
            quorum(text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))?)
        });
        let within = self.optional("approve_within", &duration("`7d`"), |text| within_seconds(text, 7 * DAY));
        let valid_for = self.optional("approval_valid_for", &duration("`24h`"), |text| within_seconds(text, DAY));
        let after = self.optional("escalate_after", &duration("`7d`"), |text| within_seconds(text, 7 * DAY));
        let to = self.optional("escalate_to", GROUPS, listed);
        let reason = self.optional("approval_reason", "`required`", |text| (text == "required").then_some(()));
        for (one, other) in [("escalate_after", "escalate_to"), ("escalate_to", "escalate_after")] {
            if given.contains(&one) && !given.contains(&other) {
                self.wrong.push(format!("`@{one}` needs `@{other}` beside it"));
            }
        }
        let escalation = after.zip(to).map(|(after_seconds, groups)| Escalation { after_seconds, groups });
        Terms { approvers, quorum, within, valid_for, escalation, reason_required: reason.is_some() }
    }

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

/// Collects every `context.<name>` and `context has <name>`.
fn named_attributes(json: &serde_json::Value, names: &mut Vec<String>) {
    match json {
        serde_json::Value::Object(members) => {
            let of_context = members.get("left").and_then(|l| l.get("Var")).and_then(|v| v.as_str()) == Some("context");
            if let (true, Some(name)) = (of_context, members.get("attr")) {
                let first = name.as_array().into_iter().flatten().take(1);
                let found = first.chain(std::iter::once(name)).filter_map(|n| n.as_str()).map(str::to_owned);
                names.extend(found.filter(|n| !names.contains(n)).collect::<Vec<_>>());
            }
            members.values().for_each(|member| named_attributes(member, names));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| named_attributes(item, names)),
        _ => {}
    }
}

fn wire_word<T: DeserializeOwned>(text: &str) -> Option<T> {
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
