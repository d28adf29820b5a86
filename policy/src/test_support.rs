//! Takes a decision apart for tests that compare the engine with a plain evaluation of the pack. Not part of the API.
#![allow(clippy::unwrap_used, clippy::panic, reason = "for tests alone")]

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{AuthorizationError, Authorizer, Entities, EntityUid, Policy, PolicyId, PolicySet, Request};
use serde_json::Value;
use stage0_contract::{Decision, EvaluateRequest};

use crate::approval::HeldApproval;
use crate::compiled::Compiled;
use crate::decision;
use crate::engine::Engine;
use crate::evaluation;
use crate::facts::{Attribute, Attributes, Circumstances, EvaluateError, Facts, Groups, RunSnapshot};
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
        let rules = |ids: &BTreeSet<String>| -> Vec<&Rule> {
            ids.iter().filter_map(|id| pack.rules.get(id)).map(AsRef::as_ref).collect()
        };
        let outcome = Outcome {
            evaluated: self.engine.evaluate(&self.facts).evaluated,
            matched: rules(&found.satisfied),
            failed: found.failed.iter().cloned().collect(),
        };
        decision::assemble(pack, &self.check.request.request, &self.facts, &outcome)
    }
}

/// Rules that are in no pack, each as Cedar evaluates it and as it is compiled.
pub struct LooseRules {
    policies: PolicySet,
    compiled: BTreeMap<String, Compiled>,
    attributes: Attributes,
}

impl LooseRules {
    /// Of texts in Cedar. A rule is named by its place, from 0.
    pub fn parse(texts: &[String]) -> Self {
        let mut rules =
            Self { policies: PolicySet::new(), compiled: BTreeMap::new(), attributes: Attributes::default() };
        let is_named = |attribute: &Attribute| texts.iter().any(|text| text.contains(attribute.name()));
        Attribute::all().filter(is_named).for_each(|attribute| rules.attributes.insert(attribute));
        for (place, text) in texts.iter().enumerate() {
            let id = place.to_string();
            let policy =
                Policy::parse(Some(PolicyId::new(&id)), text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let compiled = policy.to_json().ok().and_then(|json| Compiled::of(&json));
            rules.compiled.extend(compiled.map(|compiled| (id, compiled)));
            rules.policies.add(policy).unwrap();
        }
        rules
    }

    /// How many of them are compiled.
    pub fn compiled(&self) -> usize {
        self.compiled.len()
    }

    /// What Cedar finds of those that are compiled.
    pub fn by_cedar(&self, check: &Whole<'_>) -> Found {
        let uid = |text: &str| text.parse::<EntityUid>().unwrap();
        let context = evaluation::context(&check.facts, self.attributes).unwrap();
        let [principal, action, resource] = [evaluation::PRINCIPAL, evaluation::ACTION, evaluation::RESOURCE].map(uid);
        let request = Request::new(principal, action, resource, context, None).unwrap();
        let response = Authorizer::new().is_authorized(&request, &self.policies, &Entities::empty());
        let failed = |AuthorizationError::PolicyEvaluationError(error): &_| error.policy_id().to_string();
        let is_compiled = |id: &String| self.compiled.contains_key(id);
        Found {
            satisfied: response.diagnostics().reason().map(ToString::to_string).filter(is_compiled).collect(),
            failed: response.diagnostics().errors().map(failed).filter(is_compiled).collect(),
        }
    }

    /// What they find themselves.
    pub fn by_themselves(&self, check: &Whole<'_>) -> Found {
        let mut found = Found::default();
        for (id, compiled) in &self.compiled {
            match compiled.holds(&check.facts) {
                Ok(true) => drop(found.satisfied.insert(id.clone())),
                Ok(false) => {}
                Err(_) => drop(found.failed.insert(id.clone())),
            }
        }
        found
    }
}

fn facts(engine: &Engine, check: Check<'_>, groups: Groups) -> Result<Facts, EvaluateError> {
    let circumstances = engine.circumstances(check.request, check.snapshot, check.held);
    Facts::read(&check.request.request, engine.pack(), &Circumstances { groups, ..circumstances }, TimeLimit::NONE)
}
