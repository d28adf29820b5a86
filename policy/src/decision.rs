//! The decision: satisfied rules become issues, and issues become a verdict, scores, questions and a reason.
//!
//! INVARIANT: an ALLOW has no HIGH or CRITICAL issue and a risk score of at most 99, a DEFER has a question, and a
//! failed rule denies. Where a secret was found, the decision holds no text of the request.

mod about;
mod approvals;
mod custom;
mod deciding;
mod details;
mod remedy;
mod replayed;
mod run;
mod score;
mod stopped;
mod unknown;

use std::collections::BTreeMap;

use serde_json::Map;
use stage0_contract::{
    CheckRequest, CostEstimate, Decision, Effect, GuardrailCheck, Issue, IssueCode, Micros, NextAction, Severity,
    Verdict,
};

pub(crate) use about::About;
pub(crate) use approvals::{source, terms};
pub(crate) use replayed::{Replay, replayed};
pub(crate) use stopped::stopped;

pub use deciding::deciding_issue;
pub use unknown::OutcomeHold;

use about::Context;
use details::details;
use remedy::Remedy;

use crate::facts::{CustomType, Facts};
use crate::pack::Pack;
use crate::rule::{Outcome, Rule};
use crate::secrets::REDACTED;

const VALUE: &str = "value";
const LOOP: &str = "loop";

/// An issue before it is part of a decision.
struct Draft {
    issue: Issue,
    effect: Effect,
    /// The rules that raised it, the gravest first.
    rules: Vec<String>,
    question: Option<String>,
    /// A sentence between the question and its hint.
    note: Option<&'static str>,
    about: Option<About>,
    remedy: Remedy,
}

pub(crate) fn assemble(pack: &Pack, request: &CheckRequest, facts: &Facts, outcome: &Outcome<'_>) -> Decision {
    let matched = by_gravity(outcome);
    let mistyped = facts.custom.as_ref().map(|custom| custom.mistyped.as_slice()).unwrap_or_default();
    let drafts = matched.iter().map(|rule| Draft::of(rule, facts, pack, request));
    let (drafts, verdict) = conclude(drafts, mistyped, &outcome.failed, facts.approval.denied);
    decision(pack, request, facts, outcome, &matched, drafts, verdict)
}

/// The satisfied rules, the gravest first.
fn by_gravity<'p>(outcome: &Outcome<'p>) -> Vec<&'p Rule> {
    let mut matched = outcome.matched.clone();
    matched.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)).then_with(|| a.id.cmp(&b.id)));
    matched
}

/// The issues of a check, the gravest first, and the verdict that they come to. `satisfied` are those of the rules, the
/// gravest first; what no rule raises is added here.
fn conclude(
    satisfied: impl Iterator<Item = Draft>,
    mistyped: &[(String, CustomType)],
    failed: &[String],
    is_denied: bool,
) -> (Vec<Draft>, Verdict) {
    let mut drafts: Vec<Draft> = Vec::with_capacity(satisfied.size_hint().0);
    for draft in satisfied {
        match drafts.iter_mut().find(|earlier| earlier.is_same_issue(&draft)) {
            Some(earlier) => earlier.merge(draft),
            None => drafts.push(draft),
        }
    }
    drafts.extend(custom::mistyped(mistyped));
    drafts.extend(failed.iter().map(|id| Draft::failed(id)));
    drafts.extend(approvals::denial(is_denied, &drafts));
    let mut verdict = verdict_of(&drafts);
    // Clients may deny an ALLOW that carries a grave issue, so a pack that produces one is broken, and it denies.
    if verdict == Verdict::Allow && drafts.iter().any(|draft| draft.issue.severity >= Severity::High) {
        drafts.push(Draft::failed("decision.grave_allow"));
        verdict = Verdict::Deny;
    }
    drafts.sort_by(|a, b| rank(&a.issue, &b.issue));
    (drafts, verdict)
}

fn decision(
    pack: &Pack,
    request: &CheckRequest,
    facts: &Facts,
    outcome: &Outcome<'_>,
    matched: &[&Rule],
    drafts: Vec<Draft>,
    verdict: Verdict,
) -> Decision {
    let questions = questions(verdict, &drafts);
    let risk = score::risk(pack, facts, matched, verdict);
    let family = |name: &str| score::total_weight(matched.iter().filter(|rule| rule.family == name));
    let shown = |text: &String| if facts.secrets.is_empty() { text.clone() } else { REDACTED.to_owned() };
    let ignored = facts.declared.ignored.iter().filter_map(|index| request.constraints.get(*index));
    Decision {
        verdict,
        reason: reason(verdict, &drafts),
        risk_score: risk,
        value_risk: family(VALUE),
        waste_risk: family(LOOP),
        high_risk: risk >= score::HIGH_RISK,
        defer_questions: if verdict == Verdict::Defer { questions.clone() } else { Vec::new() },
        clarifying_questions: questions,
        guardrails: shown_constraints(&facts.declared.guardrails, facts),
        constraints_applied: shown_constraints(&facts.declared.normalised, facts),
        constraints_ignored: ignored.map(shown).collect(),
        value_findings: matched.iter().filter(|rule| rule.family == VALUE).map(|rule| rule.message.clone()).collect(),
        guardrail_checks: guardrail_checks(outcome),
        cost_estimate: facts.estimated_cost.map(cost_estimate),
        policy_version: pack.version().clone(),
        floor_version: None,
        environment: if facts.environment.is_empty() { String::new() } else { shown(&facts.environment) },
        decision_trace_summary: trace(outcome, &drafts, verdict),
        issues: drafts.into_iter().map(Draft::into_issue).collect(),
        approval: None,
    }
}

/// The gravest first.
pub(crate) fn rank(a: &Issue, b: &Issue) -> std::cmp::Ordering {
    b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)).then_with(|| a.rule.cmp(&b.rule))
}

impl Draft {
    fn of(rule: &Rule, facts: &Facts, pack: &Pack, request: &CheckRequest) -> Self {
        let mut draft = Self::bare(rule, pack, request.pro);
        let details = &mut draft.issue.details;
        *details = self::details(rule, facts, pack.secrets());
        run::add_details(details, rule, facts, request);
        let context = Context { request, facts, pack, rule };
        let mut remedy = rule.about.map(|about| about.remedy(&context)).unwrap_or_default();
        draft.note = approvals::only_held(facts, rule, &mut remedy, details);
        if !facts.secrets.is_empty() {
            remedy.hide_words();
        }
        if rule.is_final {
            remedy.write.clear();
        }
        draft.remedy = remedy;
        draft
    }

    /// What a satisfied rule says of every request.
    fn bare(rule: &Rule, pack: &Pack, pro: bool) -> Self {
        let strict = pro && rule.effect == Effect::Advise && rule.severity >= pack.pro.denies_from;
        let issue = Issue {
            code: rule.code.clone(),
            severity: rule.severity,
            message: rule.message.clone(),
            rule: rule.id.clone(),
            next_action: rule.next_action,
            details: Map::new(),
        };
        Self {
            issue,
            effect: if strict { Effect::Deny } else { rule.effect },
            rules: vec![rule.id.clone()],
            question: rule.question.clone(),
            note: None,
            about: rule.about,
            remedy: Remedy::default(),
        }
    }

    /// The issue of a rule that failed while it was evaluated.
    fn failed(rule: &str) -> Self {
        let issue = Issue {
            code: IssueCode::policy_error(),
            severity: Severity::High,
            message: "the policy failed while it was evaluated".to_owned(),
            rule: rule.to_owned(),
            next_action: NextAction::Stop,
            details: Map::new(),
        };
        Self::denying(issue)
    }

    /// An issue that denies without a rule of the pack.
    fn denying(issue: Issue) -> Self {
        let rules = vec![issue.rule.clone()];
        Self { issue, effect: Effect::Deny, rules, question: None, note: None, about: None, remedy: Remedy::default() }
    }

    /// Issues of the same code about the same fact are one issue: one change settles both.
    fn is_same_issue(&self, other: &Self) -> bool {
        let about = self.about.is_some() && self.about == other.about && !self.about.is_some_and(About::is_members);
        self.issue.code == other.issue.code && (about || self.remedy.shares_evidence_with(&other.remedy))
    }

    /// Takes over another draft of the same issue, and keeps its own message.
    fn merge(&mut self, other: Self) {
        self.effect = self.effect.max(other.effect);
        self.issue.severity = self.issue.severity.max(other.issue.severity);
        self.rules.extend(other.rules);
        self.question = self.question.take().or(other.question);
        self.note = self.note.or(other.note);
        self.remedy.merge(other.remedy);
        for (name, value) in other.issue.details {
            self.issue.details.entry(name).or_insert(value);
        }
    }

    fn into_issue(self) -> Issue {
        let mut issue = self.issue;
        self.remedy.add_to(&mut issue.details);
        issue
    }

    /// The rule's question with a hint where the answer belongs.
    fn question(&self) -> Option<String> {
        let question = self.question.as_ref()?;
        let mut asked = question.clone();
        for more in self.note.map(str::to_owned).into_iter().chain(self.remedy.hint()) {
            asked.push_str(if asked.ends_with(['.', '?', '!']) { " " } else { ". " });
            asked.push_str(&more);
        }
        Some(asked)
    }
}

fn verdict_of(drafts: &[Draft]) -> Verdict {
    match drafts.iter().map(|draft| draft.effect).max() {
        Some(Effect::Deny) => Verdict::Deny,
        Some(Effect::Defer) => Verdict::Defer,
        Some(Effect::Advise) | None => Verdict::Allow,
    }
}

fn decides(draft: &Draft, verdict: Verdict) -> bool {
    match verdict {
        Verdict::Deny => draft.effect == Effect::Deny,
        Verdict::Defer => draft.effect == Effect::Defer,
        Verdict::Allow => false,
    }
}

/// On DEFER the questions of issues that defer come first, because they must be answered.
fn questions(verdict: Verdict, drafts: &[Draft]) -> Vec<String> {
    let deferring = drafts.iter().filter(|draft| verdict == Verdict::Defer && draft.effect == Effect::Defer);
    let mut questions: Vec<String> = Vec::new();
    for question in deferring.chain(drafts).filter_map(Draft::question) {
        if !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions
}

fn reason(verdict: Verdict, drafts: &[Draft]) -> String {
    let text = |draft: &Draft| format!("{}: {}", draft.issue.code, draft.issue.message);
    if verdict != Verdict::Allow {
        return drafts.iter().filter(|draft| decides(draft, verdict)).map(text).collect::<Vec<_>>().join("; ");
    }
    let advice = drafts.iter().map(text).collect::<Vec<_>>().join("; ");
    let no_objection = "no rule of the policy objects".to_owned();
    if drafts.is_empty() { no_objection } else { format!("{no_objection}; advice: {advice}") }
}

fn trace(outcome: &Outcome<'_>, drafts: &[Draft], verdict: Verdict) -> String {
    let deciding = drafts.iter().filter(|draft| decides(draft, verdict)).flat_map(|draft| &draft.rules);
    let deciding = deciding.cloned().collect::<Vec<_>>().join(", ");
    let deciding = if deciding.is_empty() { "none" } else { &deciding };
    let (evaluated, matched, failed) = (outcome.evaluated.len(), outcome.matched.len(), outcome.failed.len());
    format!("{evaluated} rules evaluated, {matched} matched, {failed} failed; deciding: {deciding}")
}

/// By family and `@check`: a check is required if one of its rules was evaluated, and satisfied unless one of them was
/// satisfied or failed.
fn guardrail_checks(outcome: &Outcome<'_>) -> BTreeMap<String, BTreeMap<String, GuardrailCheck>> {
    let mut families: BTreeMap<String, BTreeMap<String, GuardrailCheck>> = BTreeMap::new();
    for rule in &outcome.evaluated {
        let Some(check) = &rule.check else { continue };
        let broken = outcome.matched.iter().any(|m| m.id == rule.id) || outcome.failed.contains(&rule.id);
        // Most rules share a family, and its name is copied once.
        let checks = match families.get_mut(&rule.family) {
            Some(checks) => checks,
            None => families.entry(rule.family.clone()).or_default(),
        };
        match checks.get_mut(check) {
            Some(state) => state.satisfied &= !broken,
            None => drop(checks.insert(check.clone(), GuardrailCheck { required: true, satisfied: !broken })),
        }
    }
    families
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

/// Where the request holds a secret, only canonical names: the secret may look harmless in some places.
fn shown_constraints(constraints: &[String], facts: &Facts) -> Vec<String> {
    if facts.secrets.is_empty() {
        return constraints.to_vec();
    }
    let names = constraints.iter().filter_map(|constraint| constraint.split(':').next());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.dedup();
    names
}
