//! The rules of a pack: which of them a check satisfies, and which fail.
//!
//! Rules are grouped by trigger. Those that could be compiled are evaluated on the facts where they stand; Cedar
//! evaluates the others, and gets only the attributes that they name. Of a share of the checks Cedar evaluates all.
//! INVARIANT: a rule that errors is reported as failed and never skipped; the same facts give the same outcome. Once a
//! compiled rule differed from Cedar, Cedar alone evaluates the pack.

mod difference;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, ContextCreationError, Entities, EntityUid, PolicySet, Request,
};

use crate::facts::{Attribute, Attributes, FactValue, Facts, Trigger, Triggers};
use crate::files::{Fault, PackError};
use crate::pack::{Pack, rekeyed};
use crate::rule::{Outcome, Rule};

pub use difference::{COMPARISON_INTERVAL, Difference};

/// The action of the schema that every rule is about.
pub(crate) const ACTION: &str = r#"Action::"check""#;
pub(crate) const PRINCIPAL: &str = r#"Agent::"caller""#;
pub(crate) const RESOURCE: &str = r#"Proposal::"action""#;

/// The rules of one pack, parsed for one engine, or for all of them ([`Pack::rules_for_engine`]).
pub(crate) struct Rules {
    pack: Arc<Pack>,
    buckets: BTreeMap<Trigger, Bucket>,
    authorizer: Authorizer,
    entities: Entities,
    principal: EntityUid,
    action: EntityUid,
    resource: EntityUid,
    /// Checks until the next one that Cedar evaluates too.
    until_compared: AtomicU32,
}

/// The rules of one trigger.
#[derive(Default)]
struct Bucket {
    rules: Vec<Arc<Rule>>,
    all: Policies,
    uncompiled: Policies,
}

/// Rules that Cedar evaluates, and the facts that they name.
#[derive(Default)]
struct Policies {
    set: PolicySet,
    attributes: Attributes,
}

/// Cedar was given a fact that it does not take, so it evaluated no rule.
struct NotAsked;

impl Rules {
    /// Parses the pack's policies again.
    pub(crate) fn new(pack: &Arc<Pack>) -> Result<Self, PackError> {
        let unparsed = || PackError::of(Fault::new("*.cedar", "the rules cannot be parsed again"));
        let mut buckets: BTreeMap<Trigger, Bucket> = BTreeMap::new();
        for source in &pack.sources {
            for policy in rekeyed(source).ok_or_else(unparsed)? {
                let rule = pack.rules.get::<str>(policy.id().as_ref()).ok_or_else(unparsed)?;
                let bucket = buckets.entry(rule.trigger).or_default();
                bucket.rules.push(Arc::clone(rule));
                let lists = [Some(&mut bucket.all), rule.compiled.is_none().then_some(&mut bucket.uncompiled)];
                for list in lists.into_iter().flatten() {
                    list.attributes.extend(rule.attributes);
                    list.set.add(policy.clone()).map_err(|_| unparsed())?;
                }
            }
        }
        let uid = |text: &str| text.parse::<EntityUid>().map_err(|_| unparsed());
        Ok(Self {
            buckets,
            authorizer: Authorizer::new(),
            entities: Entities::empty(),
            principal: uid(PRINCIPAL)?,
            action: uid(ACTION)?,
            resource: uid(RESOURCE)?,
            until_compared: AtomicU32::new(0),
            pack: Arc::clone(pack),
        })
    }

    /// Evaluates the rules whose trigger holds and is wanted.
    pub(crate) fn evaluate(&self, facts: &Facts, is_wanted: impl Fn(Trigger) -> bool) -> Outcome<'_> {
        let triggers = Triggers::of(facts);
        let buckets = self.buckets(|trigger| triggers.contains(trigger) && is_wanted(trigger));
        if self.pack.is_left_to_cedar() { self.by_cedar(&buckets, facts) } else { self.compiled(&buckets, facts) }
    }

    /// Evaluates the rules whose trigger holds. Of a share of the checks Cedar evaluates them too. Where it differs,
    /// the rules that it is about have failed, and it evaluates all of them from now on.
    pub(crate) fn evaluate_compared(&self, facts: &Facts) -> (Outcome<'_>, Option<Difference>) {
        let outcome = self.evaluate(facts, |_| true);
        if self.pack.is_left_to_cedar() {
            return (outcome, None);
        }
        let until_compared = self.until_compared.load(Ordering::Relaxed);
        self.until_compared.store(until_compared.checked_sub(1).unwrap_or(COMPARISON_INTERVAL - 1), Ordering::Relaxed);
        if until_compared > 0 {
            return (outcome, None);
        }
        let by_cedar = self.evaluate_by_cedar(facts);
        let Some(difference) = Difference::between(&self.pack, &outcome, &by_cedar) else { return (outcome, None) };
        self.pack.leave_to_cedar();
        (difference.fail(by_cedar), Some(difference))
    }

    /// Has Cedar evaluate the rules whose trigger holds, compiled or not.
    pub(crate) fn evaluate_by_cedar(&self, facts: &Facts) -> Outcome<'_> {
        let triggers = Triggers::of(facts);
        self.by_cedar(&self.buckets(|trigger| triggers.contains(trigger)), facts)
    }

    /// Has Cedar evaluate all rules, whatever their triggers, and compares.
    pub(crate) fn evaluate_all(&self, facts: &Facts) -> (Outcome<'_>, Option<Difference>) {
        let buckets = self.buckets(|_| true);
        let by_cedar = self.by_cedar(&buckets, facts);
        let difference = Difference::between(&self.pack, &self.compiled(&buckets, facts), &by_cedar);
        (by_cedar, difference)
    }

    /// Has Cedar evaluate every rule by these values.
    pub(crate) fn evaluate_by(&self, value: impl Fn(Attribute) -> Option<FactValue>) -> Outcome<'_> {
        let buckets = self.buckets(|_| true);
        self.all_by_cedar(&buckets, value)
    }

    fn buckets(&self, is_wanted: impl Fn(Trigger) -> bool) -> Vec<&Bucket> {
        self.buckets.iter().filter(|(trigger, _)| is_wanted(**trigger)).map(|(_, bucket)| bucket).collect()
    }

    fn compiled<'s>(&'s self, buckets: &[&'s Bucket], facts: &Facts) -> Outcome<'s> {
        let mut outcome = evaluated(buckets);
        let value = |attribute: Attribute| attribute.value(facts);
        if self.ask(buckets, |bucket| &bucket.uncompiled, value, &mut outcome).is_ok() {
            for rule in &outcome.evaluated {
                match rule.compiled.as_ref().map(|compiled| compiled.holds(facts)) {
                    Some(Ok(true)) => outcome.matched.push(rule),
                    Some(Err(_)) => outcome.failed.push(rule.id.clone()),
                    Some(Ok(false)) | None => {}
                }
            }
        }
        outcome.failed.sort_unstable();
        outcome
    }

    fn by_cedar<'s>(&'s self, buckets: &[&'s Bucket], facts: &Facts) -> Outcome<'s> {
        self.all_by_cedar(buckets, |attribute| attribute.value(facts))
    }

    fn all_by_cedar<'s>(
        &'s self,
        buckets: &[&'s Bucket],
        value: impl Fn(Attribute) -> Option<FactValue>,
    ) -> Outcome<'s> {
        let mut outcome = evaluated(buckets);
        // Which rules have failed is known in either case.
        let (Ok(()) | Err(NotAsked)) = self.ask(buckets, |bucket| &bucket.all, value, &mut outcome);
        // Cedar returns errors in random order.
        outcome.failed.sort_unstable();
        outcome
    }

    /// Has Cedar evaluate these policies of the buckets. Without a record of facts no rule can be evaluated, so each of
    /// the outcome has failed then.
    fn ask<'s>(
        &'s self,
        buckets: &[&'s Bucket],
        policies: impl Fn(&'s Bucket) -> &'s Policies,
        value: impl Fn(Attribute) -> Option<FactValue>,
        outcome: &mut Outcome<'s>,
    ) -> Result<(), NotAsked> {
        let asked = || buckets.iter().map(|bucket| policies(bucket)).filter(|policies| !policies.set.is_empty());
        let mut attributes = Attributes::default();
        asked().for_each(|policies| attributes.extend(policies.attributes));
        if asked().next().is_none() {
            return Ok(());
        }
        let request = context_of(attributes, value).ok().and_then(|context| {
            Request::new(self.principal.clone(), self.action.clone(), self.resource.clone(), context, None).ok()
        });
        let Some(request) = request else {
            outcome.failed = outcome.evaluated.iter().map(|rule| rule.id.clone()).collect();
            return Err(NotAsked);
        };
        for policies in asked() {
            // No rule permits, so the reasons of the response are all satisfied rules.
            let response = self.authorizer.is_authorized(&request, &policies.set, &self.entities);
            let rule = |id: &str| self.pack.rules.get(id).map(|rule| &**rule);
            outcome.matched.extend(response.diagnostics().reason().filter_map(|id| rule(id.as_ref())));
            let failed = |AuthorizationError::PolicyEvaluationError(error): &_| error.policy_id().to_string();
            outcome.failed.extend(response.diagnostics().errors().map(failed));
        }
        Ok(())
    }
}

fn evaluated<'s>(buckets: &[&'s Bucket]) -> Outcome<'s> {
    let rules = buckets.iter().flat_map(|bucket| &bucket.rules).map(|rule| &**rule);
    Outcome { evaluated: rules.collect(), ..Outcome::default() }
}

pub(crate) fn context(facts: &Facts, wanted: Attributes) -> Result<Context, Box<ContextCreationError>> {
    context_of(wanted, |attribute| attribute.value(facts))
}

fn context_of(
    wanted: Attributes,
    value: impl Fn(Attribute) -> Option<FactValue>,
) -> Result<Context, Box<ContextCreationError>> {
    let pair = |attribute: Attribute| {
        let value = value(attribute)?.into_expression()?;
        Some((attribute.name().to_owned(), value))
    };
    Context::from_pairs(wanted.iter().filter_map(pair)).map_err(Box::new)
}

#[cfg(test)]
mod tests;
