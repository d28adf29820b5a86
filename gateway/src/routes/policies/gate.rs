//! The gate before an activation: what it makes looser must be accepted, by number and with a reason.
//!
//! The keystore says of what a version would take the place, and an evaluator compares both. The activation carries
//! what it was compared with, so that the keystore refuses it where another change came between. Where the account's
//! decisions are recorded with their facts, the newest are decided again by the version, and count as well.
//! INVARIANT: nothing is activated in place of something that it was not compared with. Without a comparison, and
//! without the replay that is due, nothing is.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};
use stage0_contract::{
    ActivatePolicy, ActivationAnswer, ActivationDone, ComparePolicies, DifferenceDirection, KeyIdentity,
    PolicyComparison, PolicyProposal, PolicyReplay, ReplayGap, ReplaySummary, Verdict, canonical_hash, is_looser,
};

use super::diff::{COMPARE_TIMEOUT, compare};
use super::recorded::{MAX_ATTEMPTS, changed_meanwhile, invalidate, make, record};
use super::{proposals, replay};
use crate::errors::{ApiError, Change, How, Part};
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
    // The same decisions in each attempt.
    let until = asked.replayed_until.unwrap_or_else(Timestamp::now);
    for _ in 0..MAX_ATTEMPTS {
        let trial = ActivatePolicy { is_trial: true, judged: None, ..asked.clone() };
        let (mut tried, mut recorded) = (call.send(&trial).await?, None);
        require_canary(&asked, &tried)?;
        // What is active already has its line, and needs none to accept it; it is announced again.
        if tried.is_new {
            let judged = judge(call, identity, &asked, &tried, until).await?;
            tried.activation.diff_digest = judged.diff_digest;
            tried.activation.accepted_flips = Some(judged.flips).filter(|flips| *flips > 0);
            tried.activation.replayed = judged.replayed;
            if tried.proposal.is_none() {
                recorded = Some(record(call, identity, &tried).await?);
            } else if !call.state.can_record() {
                return Err(ApiError::NotRecorded(Change::NotReadable));
            }
        }
        let proposes = tried.proposal.is_some();
        let ActivationDone { activation, replaces, .. } = &tried;
        let real = ActivatePolicy {
            is_trial: false,
            judged: Some(replaces.clone()),
            // The id of a canary, which was recorded, comes from its place among the changes.
            sequence: activation.candidate.as_ref().map(|_| activation.sequence),
            diff_digest: activation.diff_digest.clone(),
            accept_flips: activation.accepted_flips,
            replayed: activation.replayed,
            proposes,
            ..asked.clone()
        };
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

/// A keystore of an earlier release knows of no canaries, and would activate the version for all runs.
fn require_canary(asked: &ActivatePolicy, tried: &ActivationDone) -> Result<(), ApiError> {
    let is_canary = match &tried.proposal {
        Some(proposal) => proposal.canary.is_some(),
        None => tried.activation.candidate.is_some(),
    };
    if asked.canary.is_none() || is_canary {
        return Ok(());
    }
    tracing::error!(policy_version = %asked.version, "the keystore would activate as a whole what is to be a canary");
    Err(ApiError::Missing(Part::answered::<ActivatePolicy>(How::Failed)))
}

/// What an activation changes.
struct Judged {
    flips: u64,
    /// None where it only adds.
    diff_digest: Option<String>,
    /// None where no decisions of the account were replayed.
    replayed: Option<ReplaySummary>,
}

/// Compares a version with all that it takes the place of, replays what is recorded, and refuses what is looser and not
/// accepted.
async fn judge(
    call: &Call,
    identity: &KeyIdentity,
    asked: &ActivatePolicy,
    tried: &ActivationDone,
    until: Timestamp,
) -> Result<Judged, ApiError> {
    let deadline = Instant::now() + COMPARE_TIMEOUT;
    let mut comparisons = Vec::new();
    for old in &tried.replaces {
        let (account, new) = (tried.activation.account.clone(), asked.version.clone());
        comparisons.push(compare(&call.state, &ComparePolicies { account, old: old.clone(), new }, deadline).await?);
    }
    let replay = match &tried.activation.account {
        Some(account) if tried.record_facts && !asked.floor => {
            Some(replay::before(call, account, asked, tried, until).await?)
        }
        Some(_) | None => None,
    };
    let may_replay = tried.activation.account.as_ref() == Some(&identity.account);
    let (replay, stale) = replay.map(|replay::Before { shown, stale }| (shown, stale)).unzip();
    let found = Found { comparisons: &comparisons, replay: replay.as_ref(), may_replay };
    let stale = stale.flatten().map(|since| format!("{since}: replay again, and send the newer `until`"));
    match found.refusal(asked).or(stale) {
        Some(text) => Err(ApiError::Conflict(text)),
        None => Ok(Judged {
            flips: found.flips(),
            diff_digest: digest(&comparisons),
            replayed: replay.as_ref().map(replay::summary),
        }),
    }
}

/// What a version changes, as far as it was found out.
struct Found<'a> {
    comparisons: &'a [PolicyComparison],
    /// None where no decisions of the account were replayed.
    replay: Option<&'a PolicyReplay>,
    /// The caller may look at what was replayed.
    may_replay: bool,
}

impl Found<'_> {
    /// What is looser: of what the policies say, and of what was decided.
    fn flips(&self) -> u64 {
        self.compared_flips() + self.replay.map_or(0, |replay| replay.flips)
    }

    fn compared_flips(&self) -> u64 {
        self.comparisons.iter().map(|comparison| comparison.flips).sum()
    }

    /// Why an activation is refused; none: it is as it was accepted.
    fn refusal(&self, asked: &ActivatePolicy) -> Option<String> {
        let (flips, diff_digest) = (self.flips(), digest(self.comparisons));
        if asked.diff_digest.is_some() && asked.diff_digest != diff_digest {
            let is = diff_digest.as_deref().unwrap_or("none: it takes the place of no policy");
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
        let of: Vec<&str> = self.comparisons.iter().map(|comparison| comparison.old.as_str()).collect();
        let (compared, of) = (self.compared_flips(), of.join("`, `"));
        let replayed = self.replay.map(|replay| {
            let PolicyReplay { flips, replayed, .. } = replay;
            let older = if replay.has_older { ", the newest of more" } else { "" };
            format!(", and {flips} of {replayed} refused decisions that it decides again{older}")
        });
        let named: Vec<String> = gravest(self.comparisons)
            .into_iter()
            .chain(self.replay.map(replayed_text))
            .filter(|text| !text.is_empty())
            .collect();
        Some(format!(
            "{compared} of what it changes in place of `{of}` may be looser{}{accepted}: {}; look at {}, and send {} \
             with a `reason` to accept them",
            replayed.unwrap_or_default(),
            named.join("; "),
            self.paths(asked),
            self.members(flips),
        ))
    }

    /// Where the caller sees all of it.
    fn paths(&self, asked: &ActivatePolicy) -> String {
        let path = format!("/v1/policies/{}", asked.version);
        let diff = format!("`GET {path}/diff`");
        match self.replay.filter(|_| self.may_replay) {
            Some(replay) => {
                let is_plain = |name: &&String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                let environment = asked.environment.as_ref().filter(is_plain);
                let environment = environment.map(|name| format!("environment={name}&")).unwrap_or_default();
                format!("{diff} and `GET {path}/replay?{environment}gate=true&until={}`", replay.until)
            }
            None => diff,
        }
    }

    /// What accepts it.
    fn members(&self, flips: u64) -> String {
        let accepts = format!("`accept_flips`: {flips}");
        // So that the number stays the same while further decisions are recorded.
        self.replay.map_or(accepts.clone(), |replay| format!("{accepts} and `replayed_until`: `{}`", replay.until))
    }
}

/// What was found of recorded decisions: the looser ones, and what could not be decided again.
fn replayed_text(replay: &PolicyReplay) -> String {
    let looser = replay.changes.iter().filter(|change| is_looser(Some(change.from), Some(change.to)));
    let looser = looser.map(|change| {
        format!("{} recorded decisions come from {} to {}", change.count, change.from.as_str(), change.to.as_str())
    });
    let gaps = replay.not_replayed.iter().map(|gap| format!("`{}` {}", word(gap.why), gap.count));
    let gaps = gaps.collect::<Vec<_>>().join(", ");
    let not_replayed = replay.decisions.saturating_sub(replay.replayed);
    let gaps = (not_replayed > 0)
        .then(|| format!("{not_replayed} of {} recorded decisions could not be replayed ({gaps})", replay.decisions));
    looser.chain(gaps).collect::<Vec<_>>().join("; ")
}

/// As the answer of a replay says it.
fn word(gap: ReplayGap) -> String {
    let word = serde_json::to_value(gap).unwrap_or_default();
    word.as_str().unwrap_or_default().to_owned()
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
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control() && *c != '`').take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests;
