//! Runs the steps of a decision one by one for the benchmarks. Not part of the API.

use std::hint::black_box;

use stage0_contract::{CheckRequest, Decision, EvaluateRequest, Evaluation};

use crate::decision;
use crate::engine::{self, Engine};
use crate::facts::{Attributes, Declared, Facts, RunSnapshot};
use crate::redaction::{ActionSummary, redacted_texts};
use crate::rule::Outcome;
use crate::time_limit::TimeLimit;

/// Everything that an evaluator does for a parsed check; `None` for a request that the pack refuses.
pub fn answer(engine: &Engine, check: &EvaluateRequest) -> Option<Evaluation> {
    engine.answer(check, Some(&RunSnapshot::default()), TimeLimit::NONE).ok().map(|(decided, _)| decided)
}

/// One request with the inputs of each step.
pub struct Measured<'e> {
    engine: &'e Engine,
    request: &'e CheckRequest,
    facts: Facts,
    outcome: Outcome<'e>,
    wanted: Attributes,
}

impl<'e> Measured<'e> {
    /// Prepares the inputs of all steps; `None` for a request that the pack refuses.
    pub fn new(engine: &'e Engine, request: &'e CheckRequest, evaluated_at: i64) -> Option<Self> {
        let facts = engine.facts(request, evaluated_at).ok()?;
        let outcome = engine.evaluate(&facts);
        let mut wanted = Attributes::default();
        outcome.evaluated.iter().for_each(|rule| wanted.extend(rule.attributes));
        Some(Self { engine, request, facts, outcome, wanted })
    }

    /// The number of rules whose trigger holds.
    pub fn rules(&self) -> usize {
        self.outcome.evaluated.len()
    }

    /// Reads and merges the constraints.
    pub fn constraints(&self) {
        let pack = self.engine.pack();
        black_box(Declared::read(&self.request.constraints, pack.vocabulary(), pack.windows()).is_ok());
    }

    /// Computes all facts, including the search for secrets.
    pub fn facts(&self, evaluated_at: i64) {
        black_box(self.engine.facts(self.request, evaluated_at).is_ok());
    }

    /// Builds the record that Cedar evaluates.
    pub fn context(&self) {
        black_box(engine::context(&self.facts, self.wanted).is_ok());
    }

    /// Builds the record and evaluates the rules whose trigger holds.
    pub fn evaluate(&self) {
        black_box(self.engine.evaluate(&self.facts).matched.len());
    }

    /// Builds the record of all facts that rules name and evaluates all rules, to measure what triggers save.
    pub fn evaluate_all(&self) {
        black_box(self.engine.evaluate_all(&self.facts).matched.len());
    }

    /// Makes the decision from the outcome of the rules.
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
