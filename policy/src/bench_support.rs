//! Runs the steps of a decision one by one for the benchmarks. Not part of the API.

use std::hint::black_box;

use stage0_contract::{CheckRequest, Decision, EvaluateRequest, Evaluation};

use crate::decision;
use crate::engine::Engine;
use crate::evaluation;
use crate::facts::{Attributes, Declared, Facts, RunSnapshot};
use crate::pack::Pack;
use crate::redaction::{ActionSummary, redacted_texts};
use crate::rule::Outcome;
use crate::time_limit::TimeLimit;

/// Case 023 of the baseline pack.
pub const TYPICAL_REQUEST: &str = r#"{"goal": "Deploy the payments service to production",
"success_criteria": ["deployment completes safely"],
"constraints": ["approval required", "required_role:platform_admin", "allowed_environment:staging,production",
"max_iterations:3", "timeout:300s", "max_cost_usd:5"], "tools": ["argo_cd", "slack"],
"side_effects": ["deployment", "external notification"],
"context": {"run_id": "run_9f3d7f51", "actor_role": "platform_admin", "approval_status": "approved",
"approved_by": "ops-lead@company.com", "approved_at": "2026-03-15T09:30:00Z", "environment": "production",
"request_channel": "dashboard", "current_iteration": 1, "elapsed_seconds": 42, "current_tool": "argo_cd",
"recent_tools": ["github_actions"], "cumulative_cost_usd": 0.18}, "pro": true}"#;

pub fn answer(engine: &Engine, check: &EvaluateRequest) -> Option<Evaluation> {
    let answer = engine.answer(check, Some(&RunSnapshot::default()), None, TimeLimit::NONE);
    answer.ok().map(|answer| answer.evaluation)
}

/// Has Cedar evaluate all rules of a pack, as if a compiled one had differed.
pub fn leave_to_cedar(pack: &Pack) {
    pack.leave_to_cedar();
}

pub struct Measured<'e> {
    engine: &'e Engine,
    request: &'e CheckRequest,
    facts: Facts,
    outcome: Outcome<'e>,
    wanted: Attributes,
}

impl<'e> Measured<'e> {
    pub fn new(engine: &'e Engine, request: &'e CheckRequest, evaluated_at: i64) -> Option<Self> {
        let facts = engine.facts(request, evaluated_at).ok()?;
        let outcome = engine.evaluate(&facts);
        let mut wanted = Attributes::default();
        outcome.evaluated.iter().for_each(|rule| wanted.extend(rule.attributes));
        Some(Self { engine, request, facts, outcome, wanted })
    }

    pub fn rules(&self) -> usize {
        self.outcome.evaluated.len()
    }

    pub fn constraints(&self) {
        let pack = self.engine.pack();
        black_box(Declared::read(&self.request.constraints, &pack.vocabulary, &pack.windows).is_ok());
    }

    pub fn facts(&self, evaluated_at: i64) {
        black_box(self.engine.facts(self.request, evaluated_at).is_ok());
    }

    pub fn context(&self) {
        black_box(evaluation::context(&self.facts, self.wanted).is_ok());
    }

    pub fn evaluate(&self) {
        black_box(self.engine.evaluate(&self.facts).matched.len());
    }

    /// The same rules, all of them by Cedar.
    pub fn evaluate_by_cedar(&self) {
        black_box(self.engine.evaluate_by_cedar(&self.facts).matched.len());
    }

    /// Plain Cedar: the record of all facts that rules name, and all rules.
    pub fn evaluate_all(&self) {
        black_box(self.engine.evaluate_by(|attribute| attribute.value(&self.facts)).matched.len());
    }

    pub fn assemble(&self) -> Decision {
        decision::assemble(self.engine.pack(), self.request, &self.facts, &self.outcome)
    }

    /// Redacts the texts that may be recorded; `check` holds the same request.
    pub fn redact(&self, check: &EvaluateRequest) {
        let detector = self.engine.pack().secrets();
        let action = ActionSummary::of(&self.facts);
        black_box(redacted_texts(check, action, &self.facts.secrets, detector, TimeLimit::NONE).is_ok());
    }
}
