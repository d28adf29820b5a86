//! The parts of a decision, one by one, for the benchmark. Not part of the API.

use std::hint::black_box;

use stage0_contract::{CheckRequest, Decided, Decision, EvaluateRequest};

use crate::decision;
use crate::engine::{self, Engine, Outcome};
use crate::facts::{Attributes, Declared, Facts, Past};
use crate::recordable::{Attempted, recordable};
use crate::time_limit::TimeLimit;

/// All that an evaluator does for a check once it is read; none for a request that the pack refuses.
pub fn answer(engine: &Engine, question: &EvaluateRequest) -> Option<Decided> {
    engine.answer(question, Some(&Past::default()), TimeLimit::NONE).ok().map(|(decided, _)| decided)
}

/// One request, prepared up to each part.
pub struct Measured<'e> {
    engine: &'e Engine,
    request: &'e CheckRequest,
    facts: Facts,
    outcome: Outcome<'e>,
    wanted: Attributes,
}

impl<'e> Measured<'e> {
    /// Prepares everything; none for a request that the pack refuses.
    pub fn new(engine: &'e Engine, request: &'e CheckRequest, evaluated_at: i64) -> Option<Self> {
        let facts = engine.facts(request, evaluated_at).ok()?;
        let outcome = engine.evaluate(&facts);
        let mut wanted = Attributes::default();
        outcome.evaluated.iter().for_each(|rule| wanted.extend(rule.attributes));
        Some(Self { engine, request, facts, outcome, wanted })
    }

    /// How many rules its triggers leave.
    pub fn rules(&self) -> usize {
        self.outcome.evaluated.len()
    }

    /// Words and constraints.
    pub fn constraints(&self) {
        let pack = self.engine.pack();
        black_box(Declared::read(&self.request.constraints, pack.vocabulary(), pack.windows()).is_ok());
    }

    /// All facts, secrets included.
    pub fn facts(&self, evaluated_at: i64) {
        black_box(self.engine.facts(self.request, evaluated_at).is_ok());
    }

    /// The record for the policy engine.
    pub fn context(&self) {
        black_box(engine::context(&self.facts, self.wanted).is_ok());
    }

    /// The record and the rules.
    pub fn evaluate(&self) {
        black_box(self.engine.evaluate(&self.facts).matched.len());
    }

    /// What triggers save: the record of all facts that rules name, and all rules.
    pub fn evaluate_all(&self) {
        black_box(self.engine.evaluate_all(&self.facts).matched.len());
    }

    /// The decision from satisfied rules.
    pub fn assemble(&self) -> Decision {
        decision::assemble(self.engine.pack(), self.request, &self.facts, &self.outcome)
    }

    /// What may be recorded; `question` asks for the same request.
    pub fn recordable(&self, question: &EvaluateRequest) {
        let (effects, tools) = (&self.facts.effects, &self.facts.tools);
        let attempted = Attempted { effect_classes: effects.classes(), tools: tools.names() };
        let detector = self.engine.pack().secrets();
        black_box(recordable(question, attempted, &self.facts.secrets, detector, TimeLimit::NONE).is_ok());
    }
}
