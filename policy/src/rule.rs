//! One rule: the annotations of a Cedar policy, which say what it means when the policy is satisfied.
//!
//! An unknown annotation is a fault, because a misspelt `@serverity` would otherwise be a rule without a severity.

mod reads;

use std::collections::BTreeSet;

use cedar_policy::Policy;
use serde::de::DeserializeOwned;
use stage0_contract::{Effect, Escalation, IssueCode, NextAction, PolicyVersion, Severity};

use crate::approval::{DAY, Terms, quorum, within_seconds};
use crate::compiled::Compiled;
use crate::decision::About;
use crate::facts::{Attribute, Attributes, Kind, Trigger};
use crate::files::Fault;
use crate::pack::{GROUPS, OwnTypes, groups};
use crate::vocabulary::{Edition, nearest};

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
    /// The facts that its conditions read.
    pub(crate) attributes: Attributes,
    /// Its conditions; none where only Cedar can evaluate them.
    pub(crate) compiled: Option<Compiled>,
    /// The members of `custom` that its conditions name; none where they read the record as a whole.
    pub(crate) custom_members: Option<BTreeSet<String>>,
    /// The pack that it is inherited from; `None` for the pack's own rules.
    pub(crate) inherited: Option<PolicyVersion>,
    /// How many packs the pack that it is from extends.
    pub(crate) level: usize,
}

/// A fact in the `details` of an issue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detail {
    Attribute(Attribute),
    /// A member of a record, such as `custom.amount`.
    Member(Attribute, String),
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

    /// The facts that it reads or shows.
    pub(crate) fn shown_and_read(&self) -> Attributes {
        let mut attributes = self.attributes;
        self.details.iter().filter_map(Detail::attribute).for_each(|attribute| attributes.insert(attribute));
        attributes
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

impl Detail {
    fn attribute(&self) -> Option<Attribute> {
        match self {
            Self::Attribute(attribute) | Self::Member(attribute, _) => Some(*attribute),
            Self::NextOpening | Self::Secrets => None,
        }
    }

    /// The detail of this name, or what is wrong with the name. In the first edition no detail holds words of the
    /// request.
    fn parse(text: &str, edition: Edition, own: &OwnTypes) -> Result<Self, String> {
        match text {
            "next_opening" => return Ok(Self::NextOpening),
            "secrets" => return Ok(Self::Secrets),
            _ => {}
        }
        let (fact, member) = text.split_once('.').map_or((text, None), |(fact, member)| (fact, Some(member)));
        let attribute = Attribute::of_edition(fact, edition).map_err(|wrong| format!("`{fact}` {wrong}"))?;
        if edition == Edition::First && attribute.holds_words() {
            return Err(format!("`{fact}` holds words of the request"));
        }
        let Some(member) = member else { return Ok(Self::Attribute(attribute)) };
        let is_declared = match attribute.kind() {
            Kind::Custom => own.custom.get(member).is_some(),
            Kind::RunCalls => own.run_calls.iter().any(|tool| tool == member),
            _ => return Err(format!("`{fact}` has no members")),
        };
        if is_declared {
            Ok(Self::Member(attribute, member.to_owned()))
        } else {
            Err(format!("`type {}` of the schema does not declare `{member}`", attribute.kind().as_str()))
        }
    }
}

pub(crate) fn read(
    policy: &Policy,
    edition: Edition,
    own: &OwnTypes,
    file: &str,
    line: usize,
) -> Result<Rule, Vec<String>> {
    let mut reader = Reader { policy, edition, known: Vec::new(), wrong: Vec::new() };
    let id = reader.name("id");
    let effect = reader.required("effect", "deny, defer or advise", wire_word::<Effect>);
    let defaults = effect.filter(|_| edition == Edition::Second).map(Defaults::of);
    let family = reader.defaulted(
        "family",
        "a name of small letters, digits, `.` and `_`",
        id.as_deref().map(|id| id.split('.').next().unwrap_or(id).to_owned()),
        name,
    );
    let trigger = reader.defaulted("trigger", "a trigger that the evaluator knows", Trigger::parse("always"), |text| {
        Trigger::of_edition(text, edition)
    });
    let code = reader.required("code", "an issue code such as `APPROVAL_REQUIRED`", |text| IssueCode::parse(text).ok());
    let severity = defaults.map(|defaults| defaults.severity);
    let severity = reader.defaulted("severity", "LOW, MEDIUM, HIGH or CRITICAL", severity, wire_word::<Severity>);
    let message = reader.required("message", "a text", text);
    let question = reader.optional("question", "a text", text);
    let next_action = defaults.map(|defaults| defaults.next_action);
    let next_action =
        reader.defaulted("next_action", "a next action of the contract", next_action, wire_word::<NextAction>);
    let weight = defaults.map(|defaults| defaults.weight);
    let weight = reader.defaulted("weight", "a number from 0 to 100", weight, |text| {
        text.parse::<u8>().ok().filter(|weight| *weight <= 100)
    });
    let details = reader.details(own);
    let fields = reader.optional("fields", "a list of members of `context`", |t| list(t, name));
    let check = reader.optional("check", "a name of small letters and `_`", name);
    let about =
        reader.optional("about", &format!("one of {}", About::names().collect::<Vec<_>>().join(", ")), About::parse);
    let is_final = reader.annotation("final").is_some();
    let terms = reader.terms(effect, next_action);
    match (effect, severity) {
        (Some(Effect::Advise), Some(severity)) if severity >= Severity::High => {
            reader.wrong.push("advice is never HIGH or CRITICAL: an ALLOW could carry it".to_owned());
        }
        (Some(Effect::Defer), _) if question.is_none() => {
            reader.wrong.push("`@question` is missing: a rule that defers must ask".to_owned());
        }
        _ => {}
    }
    let Reads { attributes, custom_members, compiled } = reader.reads();
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
            details,
            fields: fields.unwrap_or_default(),
            check,
            about,
            is_final,
            terms,
            attributes: attributes?,
            compiled,
            custom_members: custom_members?,
            inherited: None,
            level: 0,
        })
    };
    rule().filter(|_| wrong.is_empty()).ok_or(wrong)
}

/// Annotations that say what an approval needs.
const TERMS: [&str; 7] =
    ["approvers", "quorum", "approve_within", "approval_valid_for", "escalate_after", "escalate_to", "approval_reason"];

/// What a rule of the second edition need not say.
#[derive(Clone, Copy)]
struct Defaults {
    severity: Severity,
    next_action: NextAction,
    weight: u8,
}

impl Defaults {
    fn of(effect: Effect) -> Self {
        let (severity, next_action, weight) = match effect {
            Effect::Deny => (Severity::High, NextAction::Stop, 35),
            Effect::Defer => (Severity::Medium, NextAction::ProvideContext, 10),
            Effect::Advise => (Severity::Low, NextAction::ProvideContext, 0),
        };
        Self { severity, next_action, weight }
    }
}

/// What the conditions of a rule read and say.
#[derive(Default)]
struct Reads {
    attributes: Option<Attributes>,
    custom_members: Option<Option<BTreeSet<String>>>,
    compiled: Option<Compiled>,
}

struct Reader<'a> {
    policy: &'a Policy,
    edition: Edition,
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
        let near = |name| {
            nearest(name, self.known.iter().copied(), 1).first().map(|near| format!(": did you mean `@{near}`?"))
        };
        let message = |name| format!("`@{name}` is no annotation of a rule{}", near(name).unwrap_or_default());
        unknown.into_iter().map(message).collect()
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

    /// An annotation that a rule of the first edition must have, and one of the second may leave to its default.
    fn defaulted<T>(
        &mut self,
        annotation: &'static str,
        wanted: &str,
        default: Option<T>,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        match self.edition {
            Edition::First => self.required(annotation, wanted, read),
            Edition::Second if self.policy.annotation(annotation).is_none() => default,
            Edition::Second => self.optional(annotation, wanted, read),
        }
    }

    fn name(&mut self, annotation: &'static str) -> Option<String> {
        self.required(annotation, "a name of small letters, digits, `.` and `_`", name)
    }

    fn details(&mut self, own: &OwnTypes) -> Vec<Detail> {
        let Some(text) = self.annotation("details") else { return Vec::new() };
        let mut details = Vec::new();
        for item in text.split(',').map(str::trim) {
            match Detail::parse(item, self.edition, own) {
                Ok(detail) => details.push(detail),
                Err(wrong) => self.wrong.push(format!("`@details` must be a list of facts: {wrong}")),
            }
        }
        details
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

    /// The facts that it reads, and the members of `custom` among them.
    fn reads(&mut self) -> Reads {
        let Ok(json) = self.policy.to_json() else {
            self.wrong.push("its conditions cannot be read".to_owned());
            return Reads::default();
        };
        Reads {
            attributes: Some(reads::attributes(&json, self.edition, &mut self.wrong)),
            custom_members: Some(reads::custom_members(&json)),
            compiled: Compiled::of(&json),
        }
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
