//! Policies that are tried: shadows and canaries, begun, withdrawn, and ended by their own terms.
//!
//! A candidate is a part of what an account has active, so its identities carry it, and each beginning and each end is
//! a change of the same history. What is active stays as it is.
//! INVARIANT: a candidate has the id that was recorded when it was tried, and no other candidate has ever had it.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use stage0_contract::{
    AccountId, ActivationDone, ActivationKind, Caller, CanaryTerms, CandidateChanged, CandidateMode, FieldError,
    PolicyActor, PolicyCandidate, PolicyVersion, ProposalId, Refusal, ReturnCanary, Scope, ShadowPolicy,
    WithdrawCandidate,
};
use uuid::{Builder, Uuid};

use super::{ActiveChange, Place, retention_days};
use crate::admin::rules::Granter;
use crate::admin::rules::candidates as candidate_rules;
use crate::admin::rules::policies::Asked;
use crate::admin::{AdminService, ChangeResult, ManageError, granter};
use crate::store::record::ActiveRecord;
use crate::store::record_store::{RecordStore, StoreError};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// The reason of a change that a gateway makes because it cannot judge a canary.
const UNCOUNTED: &str = "what it decides is not counted";

/// How a version is tried.
#[derive(Debug, Clone, Copy)]
pub(super) enum Terms {
    /// With the share of runs that it judges.
    Shadow(u8),
    Canary(CanaryTerms),
}

impl AdminService {
    pub(crate) fn shadow_policy(&mut self, call: &ShadowPolicy) -> ChangeResult<CandidateChanged> {
        let asked = asked(call.account.as_ref(), call.environment.as_deref(), call.reason.as_deref());
        let terms = candidate_rules::bad_percent("percent", call.percent).into_iter().collect();
        let (granter, place) = self.place_of_candidate(&call.caller, &asked, terms)?;
        self.require_published(place.owner.as_ref(), &call.version)?;
        let mut change = self.begin(ActivationKind::ShadowStarted, &granter, place, None)?;
        if change.is_moved(call.is_trial, call.sequence) {
            return Ok((changed(change.not_made()), None));
        }
        change.activation.reason.clone_from(&call.reason);
        self.begin_candidate(&mut change, &call.version, Terms::Shadow(call.percent), None)?;
        self.finish_candidate(change, call.is_trial)
    }

    pub(crate) fn withdraw_candidate(&mut self, call: &WithdrawCandidate) -> ChangeResult<CandidateChanged> {
        let asked = asked(call.account.as_ref(), call.environment.as_deref(), call.reason.as_deref());
        let (granter, place) = self.place_of_candidate(&call.caller, &asked, Vec::new())?;
        let owner = place.owner.as_ref();
        let retention_days = retention_days(self.store(), &granter.caller, owner)?;
        let record = self.store().active_policies(owner)?;
        let candidate = candidate_rules::withdrawn(&record, &place)?;
        let by = super::proposals::actor(&granter);
        let mut change = self.ending(record, candidate, by, retention_days);
        if change.is_moved(call.is_trial, call.sequence) {
            return Ok((changed(change.not_made()), None));
        }
        change.activation.reason.clone_from(&call.reason);
        self.finish_candidate(change, call.is_trial)
    }

    /// For a gateway, which has no key: the counts must show that the terms of the canary end it.
    pub(crate) fn return_canary(&mut self, call: &ReturnCanary) -> ChangeResult<CandidateChanged> {
        let store = self.store();
        let retention_days = store.account(&call.account)?.ok_or(Refusal::NotFound)?.retention();
        let record = store.active_policies(Some(&call.account))?;
        let candidate = candidate_rules::returned(&record, call)?;
        // What its terms say is done for the key that set them.
        let by = PolicyActor { key_id: candidate.key_id.clone(), member_id: None };
        let mut change = self.ending(record, candidate, by, retention_days);
        if change.is_moved(call.is_trial, call.sequence) {
            return Ok((changed(change.not_made()), None));
        }
        change.activation.returned_for = Some(call.counts);
        change.activation.reason = call.is_uncounted.then(|| UNCOUNTED.to_owned());
        self.finish_candidate(change, call.is_trial)
    }

    pub(super) fn place_of_candidate(
        &self,
        caller: &Caller,
        asked: &Asked<'_>,
        terms: Vec<FieldError>,
    ) -> Result<(Granter, Place), ManageError> {
        let granter = granter(self.store(), caller, Scope::PoliciesManage, self.now())?;
        let place = candidate_rules::place(&granter.caller, asked, terms)?;
        Ok((granter, place))
    }

    /// Makes a change into the beginning of a candidate. `proposal` is the one that it comes from.
    pub(super) fn begin_candidate(
        &self,
        change: &mut ActiveChange,
        version: &PolicyVersion,
        terms: Terms,
        proposal: Option<&ProposalId>,
    ) -> Result<(), ManageError> {
        candidate_rules::check_differs(version, &change.replaces)?;
        let account = change.place.owner.as_ref().ok_or(Refusal::NotFound)?;
        let (mode, percent, return_at, against) = match terms {
            Terms::Shadow(percent) => (CandidateMode::Shadow, percent, None, Vec::new()),
            Terms::Canary(CanaryTerms { percent, return_at }) => {
                (CandidateMode::Canary, percent, Some(return_at), change.replaces.clone())
            }
        };
        let activation = &mut change.activation;
        let candidate = PolicyCandidate {
            id: self.candidate_id(account, activation.sequence, proposal),
            mode,
            version: version.clone(),
            environment: activation.environment.clone(),
            percent,
            return_at,
            started_at: activation.at,
            key_id: activation.key_id.clone(),
            against,
        };
        candidate_rules::check_new(&change.record, &candidate)?;
        candidate_rules::check_begun(begun_since(self.store(), account, candidate.started_at)?)?;
        activation.version = Some(version.clone());
        activation.candidate = Some(candidate.clone());
        // A place that was only looked at.
        change.record.environments.retain(|_, slot| !slot.is_empty());
        Ok(candidate_rules::begin(&mut change.record, candidate)?)
    }

    /// The same id when a candidate is tried and when it is made. A restored directory has an id of its own, so that
    /// no candidate gets the counts of one that the restore undid.
    fn candidate_id(&self, account: &AccountId, sequence: u64, proposal: Option<&ProposalId>) -> Uuid {
        let directory = self.durable.changes.position().store_id.to_hex();
        let origin = proposal.map_or_else(|| sequence.to_string(), |proposal| proposal.as_str().to_owned());
        let mut id = [0; 16];
        id.iter_mut().zip(Sha256::digest(format!("{directory}/{account}/{origin}"))).for_each(|(to, from)| *to = from);
        Builder::from_custom_bytes(id).into_uuid()
    }

    /// The change that ends this candidate.
    fn ending(
        &self,
        mut record: ActiveRecord,
        candidate: PolicyCandidate,
        by: PolicyActor,
        retention_days: u32,
    ) -> ActiveChange {
        let kind = match candidate.mode {
            CandidateMode::Shadow => ActivationKind::ShadowEnded,
            CandidateMode::Canary => ActivationKind::CanaryEnded,
        };
        let (owner, environment) = (record.account.clone(), candidate.environment.clone());
        record.end_candidate(environment.as_deref());
        let active = record.active_at(environment.as_deref()).cloned();
        let place = Place { owner, environment, is_floor: false };
        let mut change = ActiveChange::next((kind, place), record, by, (self.now(), retention_days));
        change.activation.version = active;
        change.activation.from = Some(candidate.version.clone());
        change.activation.candidate = Some(candidate);
        change
    }

    fn finish_candidate(&mut self, change: ActiveChange, is_trial: bool) -> ChangeResult<CandidateChanged> {
        let by = change.activation.key_id.clone();
        let (done, announced) = self.finish(change, is_trial, &by)?;
        Ok((changed(done), announced))
    }
}

/// How many candidates an account began in the 24 hours before. Its history has the newest change first.
fn begun_since(store: &RecordStore, account: &AccountId, now: Timestamp) -> Result<usize, StoreError> {
    let since = now.saturating_sub(DAY).unwrap_or(Timestamp::MIN);
    let mut begun = 0;
    for change in store.activations(Some(account), None) {
        let change = change?;
        if change.at <= since {
            break;
        }
        let begins = matches!(change.kind, ActivationKind::ShadowStarted | ActivationKind::CanaryStarted);
        begun += usize::from(begins);
    }
    Ok(begun)
}

fn asked<'a>(account: Option<&'a AccountId>, environment: Option<&'a str>, reason: Option<&'a str>) -> Asked<'a> {
    Asked { account, environment, is_floor: false, reason, diff_digest: None }
}

fn changed(done: ActivationDone) -> CandidateChanged {
    let ActivationDone { activation, retention_days, is_outdated, .. } = done;
    CandidateChanged { activation, retention_days, is_outdated }
}

#[cfg(test)]
mod tests;
