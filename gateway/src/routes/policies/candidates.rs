//! Policies that are tried: `GET /v1/policies/candidates`, `POST /v1/policies/{version}/shadow`,
//! `POST /v1/policies/withdraw`, and the terms of a canary.
//!
//! The keystore keeps which there are, as a part of an account's rules, and evaluators what they find. A policy is
//! tried for one account: an operator must name it, and reads how often it differs, but not in what.

use std::collections::HashMap;

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Activation, ActivationKind, Caller, CanaryTerms, CandidateFindings, Candidates, CandidatesRead,
    MAX_CANDIDATES, PoliciesInForce, PolicyCandidate, ReadActivePolicies, ReadCandidates, ReadPolicyHistory, ReturnAt,
    Scope, ShadowPolicy, ShownCandidate, WithdrawCandidate,
};

use super::recorded::change;
use super::{MAX_ENVIRONMENT_CHARS, MAX_REASON_CHARS, masked_reason, named};
use crate::errors::ApiError;
use crate::routes::fields::Fields;
use crate::routes::management::{Call, to_the_end};
use crate::routes::stops::refuse_secrets;

const WHOLE: u8 = 100;
/// Changes that are searched for candidates that ended.
const HISTORY_READ: u32 = 1_000;
const MAX_MIN_CHECKS: u64 = 1_000_000;
/// The decisions that an activation is checked against end no longer ago: those before say little of what is decided
/// now.
const MAX_REPLAY_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Clocks of gateways differ by less.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(2);

pub(in crate::routes) async fn candidates(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose_trial(&mut fields, &caller);
    let ended = fields.word("ended", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    fields.finish()?;
    let may_read = caller.scopes.contains(&Scope::DecisionsRead);
    // The keystore says whose candidates the caller may see.
    let active = call.send(&ReadActivePolicies { caller: caller.clone(), account: account.clone() }).await?;
    let PoliciesInForce { account: owner, candidates, .. } = active;
    let candidates: Vec<(PolicyCandidate, Option<Timestamp>)> = if ended {
        let limit = HISTORY_READ;
        let history = call.send(&ReadPolicyHistory { caller, account, cursor: None, limit }).await?;
        ended_of(history.items, &candidates)
    } else {
        candidates.into_iter().map(|candidate| (candidate, None)).collect()
    };
    let Some(account) = owner.filter(|_| !candidates.is_empty()) else {
        return Ok(HttpResponse::Ok().json(Candidates { items: Vec::new() }));
    };
    let read = ReadCandidates { account, candidates: candidates.iter().map(|(candidate, _)| candidate.id).collect() };
    let found = call.send(&read).await?;
    let items = candidates.into_iter().map(|of| shown(of, &found, may_read)).collect();
    Ok(HttpResponse::Ok().json(Candidates { items }))
}

/// The last candidates of a history, the newest change first, that are tried no longer, and when each ended: with a
/// change of its own, or with the next one at its place.
fn ended_of(history: Vec<Activation>, live: &[PolicyCandidate]) -> Vec<(PolicyCandidate, Option<Timestamp>)> {
    let mut ended: Vec<(PolicyCandidate, Option<Timestamp>)> = Vec::new();
    let mut next_at: HashMap<Option<String>, Timestamp> = HashMap::new();
    for Activation { at, kind, environment, candidate, .. } in history.into_iter().filter(|change| !change.floor) {
        let next = next_at.insert(environment, at);
        let Some(candidate) = candidate else { continue };
        let is_known = live.iter().chain(ended.iter().map(|(one, _)| one)).any(|one| one.id == candidate.id);
        let is_end = matches!(kind, ActivationKind::ShadowEnded | ActivationKind::CanaryEnded);
        if let Some(ended_at) = if is_end { Some(at) } else { next }.filter(|_| !is_known) {
            ended.push((candidate, Some(ended_at)));
        }
    }
    ended.truncate(MAX_CANDIDATES);
    ended
}

pub(in crate::routes) async fn shadow(mut call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, reason } = place(&mut fields, &caller);
    let is_whole = !fields.has("percent") || fields.take_null("percent");
    let percent = if is_whole { Some(WHOLE) } else { percent(&mut fields) };
    fields.finish()?;
    let (version, percent) = (named(&version)?, percent.ok_or(ApiError::Unavailable)?);
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let trial =
            ShadowPolicy { caller, version, account, environment, percent, reason, sequence: None, is_trial: true };
        let real = |sequence| ShadowPolicy { is_trial: false, sequence: Some(sequence), ..trial.clone() };
        change(&call, &identity, &trial, real).await
    });
    Ok(HttpResponse::Ok().json(done.await?.activation))
}

pub(in crate::routes) async fn withdraw(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, reason } = place(&mut fields, &caller);
    fields.finish()?;
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let trial = WithdrawCandidate { caller, account, environment, reason, sequence: None, is_trial: true };
        let real = |sequence| WithdrawCandidate { is_trial: false, sequence: Some(sequence), ..trial.clone() };
        change(&call, &identity, &trial, real).await
    });
    Ok(HttpResponse::Ok().json(done.await?.activation))
}

/// The terms of an activation that begins as a canary.
pub(super) fn canary(
    fields: &mut Fields,
    caller: &Caller,
    is_floor: bool,
    account: Option<&AccountId>,
) -> Option<CanaryTerms> {
    let terms = fields.object("canary", |terms| {
        let is_absent = !terms.has("percent") || terms.take_null("percent");
        if is_absent {
            terms.refuse("percent", "is required");
        }
        let percent = percent(terms);
        let return_at = terms.object("return_at", return_at).unwrap_or_default();
        Some(CanaryTerms { percent: percent?, return_at })
    });
    if terms.is_some() && is_floor {
        fields.refuse("canary", "must be absent beside `floor`: each check is judged by the floor");
    } else if terms.is_some() && account.is_none() && caller.scopes.contains(&Scope::Operator) {
        fields.refuse("account", "must be named with an operator's key: a policy is tried for one account");
    }
    terms.flatten()
}

/// What is not said is as it is by default.
fn return_at(fields: &mut Fields) -> ReturnAt {
    let usual = ReturnAt::default();
    ReturnAt {
        disagreement_percent: fields
            .number_within("disagreement_percent", 0, WHOLE.into())
            .unwrap_or(usual.disagreement_percent),
        error_percent: fields.number_within("error_percent", 0, WHOLE.into()).unwrap_or(usual.error_percent),
        min_checks: fields.number_within("min_checks", 1, MAX_MIN_CHECKS).unwrap_or(usual.min_checks),
    }
}

fn percent(fields: &mut Fields) -> Option<u8> {
    fields.number_within("percent", 1, WHOLE.into())
}

/// Up to when decisions are replayed before an activation.
pub(super) fn replayed_until(fields: &mut Fields, now: Timestamp) -> Option<Timestamp> {
    let until = fields.timestamp("replayed_until")?;
    let age = now.duration_since(until);
    if age < -MAX_CLOCK_SKEW {
        fields.refuse("replayed_until", "must not be in the future");
    } else if age > MAX_REPLAY_AGE {
        fields.refuse("replayed_until", "must be within the last 24 hours");
    }
    Some(until)
}

/// Where a policy is tried.
struct Place {
    account: Option<AccountId>,
    environment: Option<String>,
    reason: Option<String>,
}

fn place(fields: &mut Fields, caller: &Caller) -> Place {
    let account = whose_trial(fields, caller);
    let environment = fields.prose("environment", MAX_ENVIRONMENT_CHARS);
    let reason = fields.prose("reason", MAX_REASON_CHARS);
    refuse_secrets(fields, "environment", environment.as_deref());
    refuse_secrets(fields, "reason", reason.as_deref());
    Place { account, environment, reason }
}

/// The account that is named; none: the caller's own. An operator must name one.
fn whose_trial(fields: &mut Fields, caller: &Caller) -> Option<AccountId> {
    let account = fields.account();
    if account.is_none() && caller.scopes.contains(&Scope::Operator) {
        fields.refuse("account", "must be named with an operator's key: a policy is tried for one account");
    }
    account
}

/// A candidate with what was found of it: nothing yet, where it is not among what was found.
fn shown(
    (candidate, ended_at): (PolicyCandidate, Option<Timestamp>),
    read: &CandidatesRead,
    may_read: bool,
) -> ShownCandidate {
    let found = read.found.iter().find(|found| found.candidate == candidate.id);
    let mut findings = found.map(|found| found.findings.clone()).unwrap_or_default();
    if !may_read {
        // They name agents and requests of the account.
        let CandidateFindings { counts, .. } = findings;
        findings = CandidateFindings { counts, ..CandidateFindings::default() };
    }
    findings.sort();
    ShownCandidate { candidate, ended_at, findings }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change at this second, of the candidate with this number.
    fn change(kind: ActivationKind, second: i64, environment: Option<&str>, candidate: Option<u128>) -> Activation {
        let text = include_str!("../../../../contract/fixtures/activation_canary.json");
        let activation: Activation = serde_json::from_str(text).unwrap();
        let of = activation.candidate.clone().unwrap();
        let candidate = candidate.map(|number| PolicyCandidate { id: uuid::Uuid::from_u128(number), ..of });
        let (at, environment) = (Timestamp::from_second(second).unwrap(), environment.map(str::to_owned));
        Activation { at, kind, environment, candidate, ..activation }
    }

    #[test]
    fn a_candidate_ended_with_its_own_change_or_with_the_next_one_at_its_place() {
        use ActivationKind::{Activated, CanaryEnded, CanaryStarted, ShadowStarted};
        let history = vec![
            change(CanaryStarted, 90, None, Some(9)),
            change(Activated, 80, Some("qa"), None),
            change(ShadowStarted, 70, Some("qa"), Some(3)),
            change(CanaryEnded, 60, None, Some(2)),
            change(CanaryStarted, 50, None, Some(2)),
            change(ShadowStarted, 40, None, Some(1)),
        ];
        let live = history[0].candidate.clone().unwrap();
        let ended = ended_of(history, &[live]);
        let found: Vec<_> = ended.iter().map(|(one, at)| (one.id.as_u128(), at.unwrap().as_second())).collect();
        assert_eq!(found, [(3, 80), (2, 60), (1, 50)]);
        assert!(ended_of(Vec::new(), &[]).is_empty());
    }
}
