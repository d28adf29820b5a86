//! The operator's floor: a second pack that is evaluated beside the one that decides, and that none can be milder than.
//!
//! Owns what the two answers come to together. Each pack reads the request with its own vocabulary; here only their
//! answers meet, so that no word of one can change what the other finds.
//! INVARIANT: the verdict is the stricter of both, an approval must meet the terms of both, and no text is shown or
//! recorded in which either pack finds a secret.

use serde_json::{Map, Value};
use stage0_contract::{CallerTexts, Decision, Evaluation, Issue, KeptFacts, PolicyVersion, RedactedTexts, Verdict};

use crate::approval::{Answer, joined};
use crate::decision::rank;
use crate::facts::RunFacts;
use crate::secrets::REDACTED;

/// Asked where only the floor finds a secret: then no question of the other pack is shown.
const SECRET_QUESTION: &str = "Which part of the request is a secret? Take it out, then check again.";

impl Answer {
    /// What this answer comes to beside that of the operator's floor.
    #[must_use]
    pub fn with_floor(self, floor: Self) -> Self {
        let (own, other) = (self.evaluation, floor.evaluation);
        let only_floor_finds_secrets = floor.run.has_secrets && !self.run.has_secrets;
        let has_secrets = floor.run.has_secrets || self.run.has_secrets;
        let floor_verdict = other.decision.verdict;
        let decision = together(own.decision, other.decision, only_floor_finds_secrets);
        let terms = match (self.terms, floor.terms) {
            (Some(own), Some(other)) => Some(joined(own, other)),
            (own, other) => own.or(other),
        };
        let source = own.approval_source.or(other.approval_source);
        let keeps = !has_secrets && !self.stopped && !floor.stopped;
        Self {
            terms: terms.filter(|_| decision.verdict == Verdict::Defer),
            run: self.run.with(floor.run),
            stopped: self.stopped || floor.stopped,
            hold: self.hold.with(floor.hold),
            differences: [self.differences, floor.differences].concat(),
            evaluation: Evaluation {
                approval_source: source.filter(|_| decision.verdict != Verdict::Deny),
                recordable: own.recordable.zip(other.recordable).map(|(mut own, other)| {
                    let facts = own.facts.take().filter(|_| keeps);
                    let facts = facts.map(|facts| Box::new(KeptFacts { floor: Some(floor_verdict), ..*facts }));
                    RedactedTexts { facts, ..agreed(own, other, has_secrets) }
                }),
                events: own.events,
                decision,
            },
        }
    }
}

/// `hides`: the floor alone finds a secret, so that nothing of the request may be shown as the other pack shows it.
fn together(own: Decision, floor: Decision, hides: bool) -> Decision {
    let verdict = own.verdict.max(floor.verdict);
    let is_stricter = floor.verdict > own.verdict;
    let questions = questions(verdict, &own, &floor, hides);
    let texts = if hides { floor.clone() } else { own.clone() };
    let mut guardrail_checks = own.guardrail_checks;
    for (family, checks) in floor.guardrail_checks {
        let known = guardrail_checks.entry(family).or_default();
        for (check, state) in checks {
            let known = known.entry(check).or_insert(state);
            known.required |= state.required;
            known.satisfied &= state.satisfied;
        }
    }
    Decision {
        verdict,
        reason: reason(verdict, &own.reason, own.verdict, &floor.reason, floor.verdict),
        risk_score: own.risk_score.max(floor.risk_score),
        value_risk: own.value_risk.max(floor.value_risk),
        waste_risk: own.waste_risk.max(floor.waste_risk),
        high_risk: own.high_risk || floor.high_risk,
        defer_questions: if verdict == Verdict::Defer { questions.clone() } else { Vec::new() },
        clarifying_questions: questions,
        guardrails: texts.guardrails,
        constraints_applied: texts.constraints_applied,
        constraints_ignored: texts.constraints_ignored,
        value_findings: own.value_findings,
        guardrail_checks,
        cost_estimate: own.cost_estimate,
        environment: texts.environment,
        decision_trace_summary: format!("{}; floor: {}", own.decision_trace_summary, floor.decision_trace_summary),
        issues: issues(own.issues, floor.issues, &floor.policy_version, is_stricter, hides),
        policy_version: own.policy_version,
        floor_version: Some(floor.policy_version),
        approval: own.approval,
    }
}

/// The issues of both, those of the floor marked with its version. One that the other pack raises as well is shown
/// once, unless the floor is the stricter one: then its issues are why.
fn issues(own: Vec<Issue>, floor: Vec<Issue>, version: &PolicyVersion, is_stricter: bool, hides: bool) -> Vec<Issue> {
    let is_known = |issue: &Issue| {
        // A rule of the same name may ask for something else.
        let same = |other: &Issue| {
            (&other.code, &other.rule, &other.message, &other.details)
                == (&issue.code, &issue.rule, &issue.message, &issue.details)
        };
        !is_stricter && own.iter().any(|other| same(other) && other.severity >= issue.severity)
    };
    let marked = floor.into_iter().filter(|issue| !is_known(issue)).map(|mut issue| {
        issue.details.insert("policy".to_owned(), version.as_str().into());
        issue
    });
    let marked: Vec<Issue> = marked.collect();
    let shown = own.into_iter().map(|issue| if hides { Issue { details: Map::new(), ..issue } } else { issue });
    let mut issues: Vec<Issue> = shown.chain(marked).collect();
    issues.sort_by(rank);
    issues
}

/// The questions of the stricter pack come first, because they must be answered.
fn questions(verdict: Verdict, own: &Decision, floor: &Decision, hides: bool) -> Vec<String> {
    let own_questions = own.clarifying_questions.iter().filter(|_| !hides);
    let floor_questions = floor.clarifying_questions.iter();
    let mut questions: Vec<String> = Vec::new();
    let ordered: Vec<&String> = if floor.verdict > own.verdict {
        floor_questions.chain(own_questions).collect()
    } else {
        own_questions.chain(floor_questions).collect()
    };
    for question in ordered {
        if !questions.contains(question) {
            questions.push(question.clone());
        }
    }
    if verdict == Verdict::Defer && questions.is_empty() {
        questions.push(SECRET_QUESTION.to_owned());
    }
    questions
}

fn reason(verdict: Verdict, own: &str, own_verdict: Verdict, floor: &str, floor_verdict: Verdict) -> String {
    let is_both = own_verdict == floor_verdict && verdict != Verdict::Allow && !own.contains(floor);
    match (own_verdict < floor_verdict, is_both) {
        (true, _) => floor.to_owned(),
        (false, true) => format!("{own}; {floor}"),
        (false, false) => own.to_owned(),
    }
}

/// The texts in which neither pack finds a secret. Where one masks what the other does not, the text is left out.
fn agreed(own: RedactedTexts, floor: RedactedTexts, has_secrets: bool) -> RedactedTexts {
    let text = |own: Option<String>, floor: Option<&String>| {
        own.map(|own| if Some(&own) == floor { own } else { REDACTED.to_owned() })
    };
    // Without a secret the names differ only because the vocabularies do.
    let tools = if has_secrets && own.tools != floor.tools {
        own.tools
            .iter()
            .map(|tool| if floor.tools.contains(tool) { tool.clone() } else { REDACTED.to_owned() })
            .collect()
    } else {
        own.tools
    };
    let input = match (own.input, floor.input) {
        (Some(own), Some(floor)) => Some(members(own, &floor)),
        _ => None,
    };
    RedactedTexts {
        facts: None,
        run_id: text(own.run_id, floor.run_id.as_ref()),
        effect_classes: own.effect_classes,
        tools,
        caller: CallerTexts {
            client_request_id: text(own.caller.client_request_id, floor.caller.client_request_id.as_ref()),
            user_agent: text(own.caller.user_agent, floor.caller.user_agent.as_ref()),
        },
        input,
    }
}

/// Members that only one of them shows are left out: their names may be secrets.
fn members(own: Map<String, Value>, floor: &Map<String, Value>) -> Map<String, Value> {
    own.into_iter().filter_map(|(name, value)| Some((name.clone(), value_of_both(value, floor.get(&name)?)))).collect()
}

fn value_of_both(own: Value, floor: &Value) -> Value {
    if own == *floor {
        return own;
    }
    match (own, floor) {
        (Value::Object(own), Value::Object(floor)) => members(own, floor).into(),
        (Value::Array(own), Value::Array(floor)) if own.len() == floor.len() => {
            own.into_iter().zip(floor).map(|(own, floor)| value_of_both(own, floor)).collect()
        }
        _ => REDACTED.into(),
    }
}

impl RunFacts {
    /// What a check adds to its run where two packs read it: what either of them asks for.
    fn with(self, other: Self) -> Self {
        let called = match (self.called, other.called) {
            (Some(mut own), Some(other)) => {
                own.raise(&other);
                Some(own)
            }
            (own, other) => own.or(other),
        };
        let mut targets = self.targets;
        for target in other.targets {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Self { has_secrets: self.has_secrets || other.has_secrets, targets, called, ..self }
    }
}
