//! The gate before an activation: what it makes looser must be accepted, by number and with a reason.
//!
//! The keystore says of what a version would take the place, and an evaluator compares both. The activation carries
//! what it was compared with, so that the keystore refuses it where another change came between.
//! INVARIANT: nothing is activated in place of something that it was not compared with. Without a comparison nothing
//! is.

use std::time::Instant;

use serde_json::{Map, Value};
use stage0_contract::{
    ActivatePolicy, ActivationAnswer, ActivationDone, ComparePolicies, DifferenceDirection, KeyIdentity,
    PolicyComparison, PolicyProposal, PolicyVersion, Verdict, canonical_hash,
};

use super::diff::{COMPARE_TIMEOUT, compare};
use super::{MAX_ATTEMPTS, changed_meanwhile, invalidate, make, proposals, record};
use crate::errors::{ApiError, Change};
use crate::routes::management::Call;

/// Differences that a refusal names.
const MAX_NAMED: usize = 3;
const MAX_NAME_CHARS: usize = 80;

/// What became of an activation.
pub(super) enum Made {
    Activated(ActivationAnswer),
    /// It waits for a second member.
    Proposed(PolicyProposal),
}

/// Tries an activation, compares it, records it, and makes it; or proposes it where a second member is needed.
pub(super) async fn activate(call: &Call, identity: &KeyIdentity, asked: ActivatePolicy) -> Result<Made, ApiError> {
    for _ in 0..MAX_ATTEMPTS {
        let trial = ActivatePolicy { is_trial: true, judged: None, ..asked.clone() };
        let (mut tried, mut recorded) = (call.send(&trial).await?, None);
        // What is active already has its line, and needs none to accept it; it is announced again.
        if tried.is_new {
            let judged = judge(call, &asked, &tried).await?;
            tried.activation.diff_digest = judged.diff_digest;
            tried.activation.accepted_flips = Some(judged.flips).filter(|flips| *flips > 0);
            if tried.proposal.is_none() {
                recorded = Some(record(call, identity, &tried).await?);
            } else if !call.state.can_record() {
                return Err(ApiError::NotRecorded(Change::NotReadable));
            }
        }
        let proposes = tried.proposal.is_some();
        let ActivationDone { activation, replaces, .. } = &tried;
        let (diff_digest, accept_flips) = (activation.diff_digest.clone(), activation.accepted_flips);
        let judged = Some(replaces.clone());
        let real = ActivatePolicy { is_trial: false, judged, diff_digest, accept_flips, proposes, ..asked.clone() };
        let done = make(call, identity, &real, &tried, recorded).await?;
        if let Some(proposal) = done.proposal {
            proposals::record(call, &proposal, done.is_new, done.retention_days).await?;
            return Ok(Made::Proposed(proposal));
        }
        if !done.is_outdated {
            invalidate(&call.state, &done.activation);
            let ActivationDone { activation, is_new, .. } = done;
            return Ok(Made::Activated(ActivationAnswer { activation, unchanged: !is_new }));
        }
    }
    Err(changed_meanwhile())
}

/// What an activation changes.
struct Judged {
    flips: u64,
    /// None where it only adds.
    diff_digest: Option<String>,
}

/// Compares a version with all that it takes the place of, and refuses what is looser and not accepted.
async fn judge(call: &Call, asked: &ActivatePolicy, tried: &ActivationDone) -> Result<Judged, ApiError> {
    let deadline = Instant::now() + COMPARE_TIMEOUT;
    let mut comparisons = Vec::new();
    for old in &tried.replaces {
        let (account, new) = (tried.activation.account.clone(), asked.version.clone());
        comparisons.push(compare(&call.state, &ComparePolicies { account, old: old.clone(), new }, deadline).await?);
    }
    let flips = comparisons.iter().map(|comparison| comparison.flips).sum();
    let diff_digest = digest(&comparisons);
    let refusal = refusal(asked, flips, diff_digest.as_deref(), &comparisons);
    refusal.map_or(Ok(Judged { flips, diff_digest }), |text| Err(ApiError::Conflict(text)))
}

/// That of the only comparison, else of all together.
fn digest(comparisons: &[PolicyComparison]) -> Option<String> {
    let digests: Vec<Value> = comparisons.iter().map(|one| one.diff_digest.clone().into()).collect();
    match digests.as_slice() {
        [] => None,
        [Value::String(only)] => Some(only.clone()),
        _ => Some(canonical_hash(&Map::from_iter([("diffs".to_owned(), Value::Array(digests))]))),
    }
}

/// Why an activation is refused; none: it is as it was accepted.
fn refusal(
    asked: &ActivatePolicy,
    flips: u64,
    diff_digest: Option<&str>,
    comparisons: &[PolicyComparison],
) -> Option<String> {
    if asked.diff_digest.is_some() && asked.diff_digest.as_deref() != diff_digest {
        let is = diff_digest.unwrap_or("none: it takes the place of no policy");
        return Some(format!("what it changes is not what `diff_digest` says: the digest is {is}"));
    }
    if asked.accept_flips.unwrap_or_default() == flips {
        return None;
    }
    let accepted = asked.accept_flips.map(|accepted| format!(", and `accept_flips` is {accepted}"));
    let accepted = accepted.unwrap_or_default();
    if flips == 0 {
        return Some(format!("nothing that it changes is looser{accepted}: send it without"));
    }
    let named = gravest(comparisons).join("; ");
    let of: Vec<&str> = comparisons.iter().map(|comparison| comparison.old.as_str()).collect();
    let of = of.join("`, `");
    Some(format!(
        "{flips} of what it changes in place of `{of}` are looser{accepted}: {named}; look at `GET {}`, and send \
         `accept_flips`: {flips} with a `reason` to accept them",
        path(&asked.version)
    ))
}

fn path(version: &PolicyVersion) -> String {
    format!("/v1/policies/{version}/diff")
}

/// The first looser differences: cases, then rules, words and values.
fn gravest(comparisons: &[PolicyComparison]) -> Vec<String> {
    let looser = |direction: DifferenceDirection| {
        matches!(direction, DifferenceDirection::Looser | DifferenceDirection::Unclear)
    };
    let verdict = |verdict: Option<Verdict>| verdict.map_or("refused", Verdict::as_str);
    let cases = comparisons.iter().flat_map(|one| &one.cases).filter(|case| looser(case.direction)).map(|case| {
        format!("the case `{}` comes from {} to {}", plain(&case.case), verdict(case.from), verdict(case.to))
    });
    let rules = comparisons.iter().flat_map(|one| &one.rules).filter(|rule| looser(rule.direction));
    let rules = rules.map(|rule| format!("the rule `{}` differs", plain(&rule.rule)));
    let words = comparisons.iter().flat_map(|one| &one.words).filter(|word| looser(word.direction));
    let words = words.map(|word| format!("the word `{}` of {} differs", plain(&word.word), plain(&word.file)));
    let values = comparisons.iter().flat_map(|one| &one.values).filter(|value| looser(value.direction));
    let values = values.map(|value| format!("the value `{}` of {} differs", plain(&value.name), plain(&value.file)));
    cases.chain(rules).chain(words).chain(values).take(MAX_NAMED).collect()
}

/// A name of a pack's author in a text for people.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control() && *c != '`').take(MAX_NAME_CHARS).collect()
}
