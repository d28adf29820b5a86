//! Takes a decision apart for tests that compare the engine with a plain evaluation of the pack. Not part of the API.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stage0_contract::{Decision, EvaluateRequest};

use crate::approval::HeldApproval;
use crate::decision;
use crate::engine::Engine;
use crate::facts::{Attribute, Circumstances, EvaluateError, Facts, Groups, RunSnapshot};
use crate::rule::{Outcome, Rule};
use crate::time_limit::TimeLimit;

/// A check, with what the server knows of it.
#[derive(Debug, Clone, Copy)]
pub struct Check<'c> {
    pub request: &'c EvaluateRequest,
    pub snapshot: Option<&'c RunSnapshot>,
    pub held: Option<HeldApproval<'c>>,
}

/// The rules of a pack that a check satisfies, and those that fail for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub satisfied: BTreeSet<String>,
    pub failed: BTreeSet<String>,
}

/// What the engine finds: with triggers, and with the facts that the pack's rules name.
pub fn found(engine: &Engine, check: Check<'_>) -> Result<Found, EvaluateError> {
    let facts = facts(engine, check, engine.pack().groups)?;
    let outcome = engine.evaluate(&facts);
    let satisfied = outcome.matched.iter().map(|rule| rule.id.clone()).collect();
    Ok(Found { satisfied, failed: outcome.failed.into_iter().collect() })
}

/// A check with every fact of the table.
pub struct Whole<'c> {
    engine: &'c Engine,
    check: Check<'c>,
    facts: Facts,
}

impl<'c> Whole<'c> {
    pub fn read(engine: &'c Engine, check: Check<'c>) -> Result<Self, EvaluateError> {
        Ok(Self { engine, check, facts: facts(engine, check, Groups::ALL)? })
    }

    /// The facts as JSON. What is absent, or was not told, is left out.
    pub fn facts(&self) -> BTreeMap<&'static str, Value> {
        let value = |attribute: Attribute| Some((attribute.name(), attribute.value(&self.facts)?.into()));
        Attribute::all().filter_map(value).collect()
    }

    /// The decision that these rules come to.
    pub fn decision(&self, found: &Found) -> Decision {
        let pack = self.engine.pack();
        let rules = |ids: &BTreeSet<String>| -> Vec<&Rule> { ids.iter().filter_map(|id| pack.rules.get(id)).collect() };
        let outcome = Outcome {
            evaluated: self.engine.evaluate(&self.facts).evaluated,
            matched: rules(&found.satisfied),
            failed: found.failed.iter().cloned().collect(),
        };
        decision::assemble(pack, &self.check.request.request, &self.facts, &outcome)
    }
}

fn facts(engine: &Engine, check: Check<'_>, groups: Groups) -> Result<Facts, EvaluateError> {
    let circumstances = engine.circumstances(check.request, check.snapshot, check.held);
    Facts::read(&check.request.request, engine.pack(), &Circumstances { groups, ..circumstances }, TimeLimit::NONE)
}
