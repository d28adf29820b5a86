//! Which policies may be tried, where and how, and when a canary has to end: pure.
//!
//! A policy is tried in one account. What holds for every account is not, and neither is the floor.

use stage0_contract::{
    Caller, CanaryTerms, CandidateMode, FieldError, MAX_CANDIDATES, MAX_CANDIDATES_A_DAY, PolicyCandidate,
    PolicyVersion, Refusal, ReturnAt, ReturnCanary, Scope,
};

use super::policies::{Asked, Place, bad_place, owner};
use super::{invalid_if_any, require};
use crate::store::record::ActiveRecord;
use crate::store::record::policies::mode_word;

const MAX_PERCENT: u8 = 100;
const MAX_MIN_CHECKS: u32 = 1_000_000;

/// Where something is tried. `terms` is what is wrong with the rest of the call.
pub(crate) fn place(caller: &Caller, asked: &Asked<'_>, terms: Vec<FieldError>) -> Result<Place, Refusal> {
    if asked.is_floor {
        require(caller, Scope::Operator)?;
    }
    let owner = owner(caller, asked.account)?;
    let mut errors = bad_place(asked, owner.as_ref());
    if asked.is_floor {
        errors.push(FieldError::new("floor", "must be absent beside `canary`: the floor is not tried"));
    } else if owner.is_none() {
        let message = "must be named with an operator's key: a policy is tried in one account";
        errors.push(FieldError::new("account", message));
    }
    errors.extend(terms);
    invalid_if_any(errors)?;
    Ok(Place { owner, environment: asked.environment.map(str::to_owned), is_floor: false })
}

pub(crate) fn bad_percent(path: &str, percent: u8) -> Option<FieldError> {
    let is_good = (1..=MAX_PERCENT).contains(&percent);
    (!is_good).then(|| FieldError::new(path, format!("must be 1 to {MAX_PERCENT}")))
}

pub(crate) fn bad_terms(terms: &CanaryTerms) -> Vec<FieldError> {
    let CanaryTerms { percent, return_at: ReturnAt { disagreement_percent, error_percent, min_checks } } = *terms;
    let mut errors: Vec<_> = bad_percent("canary.percent", percent).into_iter().collect();
    for (name, rate) in [("disagreement_percent", disagreement_percent), ("error_percent", error_percent)] {
        if rate > MAX_PERCENT {
            let message = format!("must be 0 to {MAX_PERCENT}");
            errors.push(FieldError::new(format!("canary.return_at.{name}"), message));
        }
    }
    if !(1..=MAX_MIN_CHECKS).contains(&min_checks) {
        let message = format!("must be 1 to {MAX_MIN_CHECKS}");
        errors.push(FieldError::new("canary.return_at.min_checks", message));
    }
    errors
}

/// Refuses to try what decides at the place already: the first of `replaces`, which is what an activation would take
/// the place of.
pub(crate) fn check_differs(version: &PolicyVersion, replaces: &[Option<PolicyVersion>]) -> Result<(), Refusal> {
    match replaces.first() {
        Some(Some(active)) if active == version => {
            Err(Refusal::Conflict(format!("`{version}` is active there already: there is nothing to try")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses to begin the same once more, which would put its counts back to zero. A canary that was compared with
/// something else is another one.
pub(crate) fn check_new(record: &ActiveRecord, new: &PolicyCandidate) -> Result<(), Refusal> {
    let is_same = |tried: &PolicyCandidate| {
        let PolicyCandidate { mode, version, percent, return_at, against, .. } = tried;
        (*mode, *percent, *return_at) == (new.mode, new.percent, new.return_at)
            && *version == new.version
            && *against == new.against
    };
    if record.candidate_at(new.environment.as_deref()).is_some_and(is_same) {
        return Err(Refusal::Conflict("it is tried there already, on the same terms".to_owned()));
    }
    Ok(())
}

/// `begun` is how many the account began in the last 24 hours.
pub(crate) fn check_begun(begun: usize) -> Result<(), Refusal> {
    if begun >= MAX_CANDIDATES_A_DAY {
        return Err(Refusal::Conflict(format!(
            "{begun} policies began to be tried within 24 hours, and {MAX_CANDIDATES_A_DAY} is the most: try it later"
        )));
    }
    Ok(())
}

/// Refuses to activate what is active at the place already while another version is tried there: it would say that
/// nothing is to do, and the candidate would go on.
pub(crate) fn check_untried(record: &ActiveRecord, place: &Place) -> Result<(), Refusal> {
    let tried = record.candidate_at(place.environment.as_deref()).filter(|_| !place.is_floor);
    tried.map_or(Ok(()), |PolicyCandidate { version, mode, .. }| {
        let mode = mode_word(*mode);
        Err(Refusal::Conflict(format!("it is active already, and `{version}` is tried there as a {mode}: withdraw it")))
    })
}

/// The candidate takes the place of what is tried at its place.
pub(crate) fn begin(record: &mut ActiveRecord, candidate: PolicyCandidate) -> Result<(), Refusal> {
    record.end_candidate(candidate.environment.as_deref());
    if record.candidates.len() >= MAX_CANDIDATES {
        return Err(Refusal::Conflict(format!(
            "{MAX_CANDIDATES} policies are tried, which is the most: withdraw one that is tried at another place"
        )));
    }
    record.candidates.push(candidate);
    Ok(())
}

/// The candidate that a caller withdraws.
pub(crate) fn withdrawn(record: &ActiveRecord, place: &Place) -> Result<PolicyCandidate, Refusal> {
    let found = record.candidate_at(place.environment.as_deref()).cloned();
    found.ok_or_else(|| Refusal::Conflict("no policy is tried there".to_owned()))
}

/// The canary that ends by its own terms, or because what it decides is not counted.
pub(crate) fn returned(record: &ActiveRecord, call: &ReturnCanary) -> Result<PolicyCandidate, Refusal> {
    let found = record.candidates.iter().find(|candidate| candidate.id == call.candidate).ok_or(Refusal::NotFound)?;
    match (found.mode, found.return_at) {
        (CandidateMode::Canary, _) if call.is_uncounted => Ok(found.clone()),
        (CandidateMode::Canary, Some(at)) if at.is_passed(&call.counts) => Ok(found.clone()),
        (CandidateMode::Canary, _) => {
            Err(Refusal::Conflict("the canary differs no more often than its terms allow".to_owned()))
        }
        (CandidateMode::Shadow, _) => {
            Err(Refusal::Conflict("a shadow decides nothing, and does not end by itself".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
