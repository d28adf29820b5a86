//! The decision: satisfied rules become issues, issues a verdict, scores, questions and a reason.
//!
//! Owns the assembly of [`Decision`]. INVARIANT: an ALLOW has no HIGH or CRITICAL issue and a risk score of at most 99, a DEFER has a
//! question, a failed rule denies; and where a secret was found, no text of the request is in the decision.

mod about;
mod checks;
mod remedy;
mod run;
mod score;

use serde_json::{Map, Value};
use stage0_contract::{
    CheckRequest, CostEstimate, Decision, Effect, Issue, IssueCode, Micros, NextAction, Severity, Verdict,
};

pub(crate) use about::About;

use about::Asked;
use remedy::Remedy;

use crate::engine::Outcome;
use crate::facts::Facts;
use crate::pack::{Detail, Pack, Rule};
use crate::secrets::REDACTED;

/// The family whose messages are findings about a task's worth.
const VALUE: &str = "value";
/// The family of runs that do not end.
const LOOP: &str = "loop";

/// An issue and what it does.
struct Found {
    issue: Issue,
    effect: Effect,
    /// The rules that gave it, the gravest first.
    rules: Vec<String>,
    question: Option<String>,
    about: Option<About>,
    remedy: Remedy,
}

/// Makes the decision of an evaluation.
pub(crate) fn assemble(pack: &Pack, request: &CheckRequest, facts: &Facts, outcome: &Outcome<'_>) -> Decision {
    let mut matched = outcome.matched.clone();
    matched.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)).then_with(|| a.id.cmp(&b.id)));
    let mut found: Vec<Found> = Vec::with_capacity(matched.len());
    for rule in &matched {
        let one = satisfied(rule, facts, pack, request);
        match found.iter_mut().find(|before| before.is_same_fact(&one)) {
            Some(before) => before.merge(one),
            None => found.push(one),
        }
    }
    found.extend(outcome.failed.iter().map(|id| failed(id)));
    let mut verdict = verdict_of(&found);
    // INVARIANT: one client denies locally what is allowed with a grave issue; such a pack is broken, and a broken pack denies.
    if verdict == Verdict::Allow && found.iter().any(|f| f.issue.severity >= Severity::High) {
        found.push(failed("decision.grave_allow"));
        verdict = Verdict::Deny;
    }
    found.sort_by(|a, b| rank(&a.issue, &b.issue));
    let questions = questions(verdict, &found);
    let scores = score::Scored::of(pack, facts, &matched, verdict);
    let family = |name: &str| score::weight(matched.iter().filter(|rule| rule.family == name));
    let exposed = Exposed::of(request, facts);
    Decision {
        verdict,
        reason: reason(verdict, &found),
        risk_score: scores.risk,
        value_risk: family(VALUE),
        waste_risk: family(LOOP),
        high_risk: scores.high_risk,
        defer_questions: if verdict == Verdict::Defer { questions.clone() } else { Vec::new() },
        clarifying_questions: questions,
        guardrails: exposed.guardrails,
        constraints_applied: exposed.constraints,
        constraints_ignored: exposed.ignored,
        value_findings: matched.iter().filter(|rule| rule.family == VALUE).map(|rule| rule.message.clone()).collect(),
        guardrail_checks: checks::of(outcome),
        cost_estimate: facts.estimated_cost.map(cost_estimate),
        policy_version: pack.version().clone(),
        environment: exposed.environment,
        decision_trace_summary: trace(outcome, &found, verdict),
        issues: found.into_iter().map(Found::told).collect(),
    }
}

/// The gravest first, then by code and rule.
fn rank(a: &Issue, b: &Issue) -> std::cmp::Ordering {
    b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)).then_with(|| a.rule.cmp(&b.rule))
}

fn satisfied(rule: &Rule, facts: &Facts, pack: &Pack, request: &CheckRequest) -> Found {
    let strict = request.pro && rule.effect == Effect::Advise && rule.severity >= pack.pro().denies_from;
    let mut issue = Issue {
        code: rule.code.clone(),
        severity: rule.severity,
        message: rule.message.clone(),
        rule: rule.id.clone(),
        next_action: rule.next_action,
        details: details(rule, facts),
    };
    run::add(&mut issue.details, rule, facts, request);
    let mut remedy = rule.about.map(|about| about.tell(&Asked { request, facts, pack, rule })).unwrap_or_default();
    if !facts.secrets.is_empty() {
        remedy.hide_words();
    }
    if rule.is_final {
        remedy.write.clear();
    }
    Found {
        issue,
        effect: if strict { Effect::Deny } else { rule.effect },
        rules: vec![rule.id.clone()],
        question: rule.question.clone(),
        about: rule.about,
        remedy,
    }
}

fn failed(rule: &str) -> Found {
    let issue = Issue {
        code: IssueCode::policy_error(),
        severity: Severity::High,
        message: "the policy failed while it was evaluated".to_owned(),
        rule: rule.to_owned(),
        next_action: NextAction::Stop,
        details: Map::new(),
    };
    let rules = vec![rule.to_owned()];
    Found { issue, effect: Effect::Deny, rules, question: None, about: None, remedy: Remedy::default() }
}

impl Found {
    /// The same code for one fact is one issue: what settles the one settles the other.
    fn is_same_fact(&self, other: &Self) -> bool {
        let about = self.about.is_some() && self.about == other.about && !self.about.is_some_and(About::is_members);
        self.issue.code == other.issue.code && (about || self.remedy.meets(&other.remedy))
    }

    /// Takes over another issue of the same fact; its own words stay.
    fn merge(&mut self, other: Self) {
        self.effect = self.effect.max(other.effect);
        self.issue.severity = self.issue.severity.max(other.issue.severity);
        self.rules.extend(other.rules);
        self.question = self.question.take().or(other.question);
        self.remedy.merge(other.remedy);
        for (name, value) in other.issue.details {
            self.issue.details.entry(name).or_insert(value);
        }
    }

    fn told(self) -> Issue {
        let mut issue = self.issue;
        self.remedy.tell(&mut issue.details);
        issue
    }

    /// What is asked, and where the answer belongs.
    fn asked(&self) -> Option<String> {
        let question = self.question.as_ref()?;
        Some(match self.remedy.hint() {
            Some(hint) if question.ends_with(['.', '?', '!']) => format!("{question} {hint}"),
            Some(hint) => format!("{question}. {hint}"),
            None => question.clone(),
        })
    }
}

fn verdict_of(found: &[Found]) -> Verdict {
    match found.iter().map(|f| f.effect).max() {
        Some(Effect::Deny) => Verdict::Deny,
        Some(Effect::Defer) => Verdict::Defer,
        Some(Effect::Advise) | None => Verdict::Allow,
    }
}

fn decides(found: &Found, verdict: Verdict) -> bool {
    match verdict {
        Verdict::Deny => found.effect == Effect::Deny,
        Verdict::Defer => found.effect == Effect::Defer,
        Verdict::Allow => false,
    }
}

/// On DEFER the questions of what defers come first: they are what must be answered.
fn questions(verdict: Verdict, found: &[Found]) -> Vec<String> {
    let deferring = found.iter().filter(|f| verdict == Verdict::Defer && f.effect == Effect::Defer);
    let mut questions: Vec<String> = Vec::new();
    for question in deferring.chain(found).filter_map(Found::asked) {
        if !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions
}

fn reason(verdict: Verdict, found: &[Found]) -> String {
    let told = |found: &Found| format!("{}: {}", found.issue.code, found.issue.message);
    if verdict == Verdict::Allow {
        let advice = found.iter().map(told).collect::<Vec<_>>().join("; ");
        return match found.len() {
            0 => "no rule of the policy objects".to_owned(),
            _ => format!("no rule of the policy objects; advice: {advice}"),
        };
    }
    found.iter().filter(|f| decides(f, verdict)).map(told).collect::<Vec<_>>().join("; ")
}

fn trace(outcome: &Outcome<'_>, found: &[Found], verdict: Verdict) -> String {
    let deciding: Vec<&str> =
        found.iter().filter(|f| decides(f, verdict)).flat_map(|f| &f.rules).map(String::as_str).collect();
    let deciding = if deciding.is_empty() { "none".to_owned() } else { deciding.join(", ") };
    let (evaluated, matched, failed) = (outcome.evaluated.len(), outcome.matched.len(), outcome.failed.len());
    format!("{evaluated} rules evaluated, {matched} matched, {failed} failed; deciding: {deciding}")
}

fn details(rule: &Rule, facts: &Facts) -> Map<String, Value> {
    let mut details = Map::new();
    for detail in &rule.details {
        match detail {
            Detail::Attribute(attribute) => {
                if let Some(value) = attribute.value(facts) {
                    details.insert(attribute.name().to_owned(), value.into());
                }
            }
            Detail::NextOpening => {
                let opening = facts.next_opening.clone().map_or(Value::Null, Value::String);
                details.insert("next_opening".to_owned(), opening);
            }
            Detail::Secrets => {
                let told = facts.secrets.iter().map(|s| serde_json::json!({"kind": s.kind, "path": s.path}));
                details.insert("secrets".to_owned(), told.collect());
            }
        }
    }
    if !rule.fields.is_empty() {
        details.insert("fields".to_owned(), rule.fields.clone().into());
    }
    details
}

#[expect(clippy::cast_precision_loss, reason = "for display only; nothing is decided by it")]
fn cost_estimate(cost: Micros) -> CostEstimate {
    let dollars = cost.get() as f64 / 1_000_000.0;
    CostEstimate {
        currency: "USD".to_owned(),
        min: dollars,
        max: dollars,
        assumptions: vec!["as the caller estimates it".to_owned()],
    }
}

/// What of the request's own words may be told.
struct Exposed {
    environment: String,
    constraints: Vec<String>,
    ignored: Vec<String>,
    guardrails: Vec<String>,
}

impl Exposed {
    /// With a secret about, only names of ours: the same value may stand in several places, and in some of them look harmless.
    fn of(request: &CheckRequest, facts: &Facts) -> Self {
        let declared = &facts.declared;
        let ignored = declared.ignored.iter().filter_map(|index| request.constraints.get(*index));
        if facts.secrets.is_empty() {
            return Self {
                ignored: ignored.cloned().collect(),
                environment: facts.environment.clone(),
                constraints: declared.normalised.clone(),
                guardrails: declared.guardrails.clone(),
            };
        }
        let bare = |forms: &[String]| {
            let mut names: Vec<String> =
                forms.iter().filter_map(|form| form.split(':').next()).map(str::to_owned).collect();
            names.dedup();
            names
        };
        let environment = if facts.environment.is_empty() { String::new() } else { REDACTED.to_owned() };
        Self {
            environment,
            constraints: bare(&declared.normalised),
            ignored: ignored.map(|_| REDACTED.to_owned()).collect(),
            guardrails: bare(&declared.guardrails),
        }
    }
}
