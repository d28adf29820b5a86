//! Activations that wait for a second member: proposed, approved, denied and cancelled.
//!
//! An approval is tried, recorded and made, as an activation is; another end is stored first and recorded then, because
//! it changes nothing. An approval that was tried is claimed for a moment, so that of two at once one is recorded.
//! INVARIANT: the end of a proposal and the activation that it makes are one change.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, ActivatePolicy, ActivationDone, ActivationKind, ApprovedProposal, DecideProposal, KeyId, ListProposals,
    MemberId, PROPOSAL_TTL_SECONDS, Page, PolicyActor, PolicyProposal, PolicyVersion, ProposalDecided,
    ProposalDecision, ProposalId, ProposalStatus, Refusal, Scope, ShowProposal,
};

use super::candidates::Terms;
use super::{ActiveChange, Place, retention_days};
use crate::admin::rules::proposals::{self as proposal_rules, Earlier};
use crate::admin::rules::{self, Granter};
use crate::admin::{AdminService, ChangeResult, ManageError, authorized, granter, new_id};
use crate::sources::random;
use crate::store::record::{Forgotten, MemberRecord, Owner, ProposalRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};

/// Longer than a gateway takes to record an approval.
const CLAIM_TTL: SignedDuration = SignedDuration::from_secs(10);

/// Which key is approving a proposal at the moment, and until when.
#[derive(Debug, Default)]
pub(crate) struct Claims(HashMap<ProposalId, (KeyId, Timestamp)>);

impl Claims {
    /// Refuses what another key is approving.
    fn check(&mut self, id: &ProposalId, by: &KeyId, now: Timestamp) -> Result<(), Refusal> {
        self.0.retain(|_, (_, until)| *until > now);
        match self.0.get(id) {
            Some((key, _)) if key != by => {
                Err(Refusal::Conflict("another member is approving it at this moment: look at it again".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn claim(&mut self, id: &ProposalId, by: &KeyId, now: Timestamp) {
        self.0.insert(id.clone(), (by.clone(), now.saturating_add(CLAIM_TTL).unwrap_or(now)));
    }

    fn release(&mut self, id: &ProposalId) {
        self.0.remove(id);
    }
}

impl AdminService {
    /// Whether this activation waits for a second member.
    pub(super) fn needs_second(&self, granter: &Granter, owner: &Owner) -> Result<bool, ManageError> {
        let Some(account) = owner else { return Ok(false) };
        let account = self.store().account(account)?.ok_or(Refusal::NotFound)?;
        Ok(proposal_rules::needs_second(&granter.caller, &account))
    }

    /// Keeps an activation that is not made until a second member approves it.
    pub(super) fn propose(
        &mut self,
        change: ActiveChange,
        call: &ActivatePolicy,
        granter: &Granter,
    ) -> ChangeResult<ActivationDone> {
        let now = self.now();
        let record = proposed(&change, call, granter, now)?;
        let account = record.proposal.account.clone();
        let all = self.store().proposals(&account)?;
        let done = |change: ActiveChange, record: ProposalRecord, is_new| {
            let proposal = Some(record.shown(now));
            Ok((ActivationDone { is_new, is_outdated: false, proposal, ..change.not_made() }, None))
        };
        if let Earlier::Same(same) = proposal_rules::earlier(&all, &record, call.is_trial, now)? {
            return done(change, *same, call.is_trial);
        }
        if call.is_trial {
            return done(change, record, true);
        }
        let mut records = vec![Record::Proposal(record.clone())];
        let forget = |id| Record::Forgotten(Forgotten::Proposal { id, account: account.clone() });
        records.extend(proposal_rules::surplus(all, now).into_iter().map(forget));
        self.commit(&records)?;
        let PolicyProposal { id, version, .. } = &record.proposal;
        tracing::info!(%account, proposal = %id, policy_version = %version, by = %granter.caller.key_id,
            "activation proposed");
        done(change, record, true)
    }

    pub(crate) fn decide_proposal(&mut self, call: &DecideProposal) -> ChangeResult<ProposalDecided> {
        let (now, store) = (self.now(), self.store());
        let granter = granter(store, &call.caller, Scope::PoliciesManage, now)?;
        let record = proposal_rules::own(&granter.caller, store.proposal(&call.id)?)?;
        proposal_rules::valid_decision(call)?;
        match call.decision {
            ProposalDecision::Approve => self.approve(call, record, &granter, now),
            ProposalDecision::Deny => {
                proposal_rules::is_member(&granter)?;
                self.end(call, record, &granter, (ProposalStatus::Denied, now))
            }
            ProposalDecision::Cancel => {
                proposal_rules::may_cancel(&granter, &record)?;
                self.end(call, record, &granter, (ProposalStatus::Cancelled, now))
            }
        }
    }

    fn approve(
        &mut self,
        call: &DecideProposal,
        record: ProposalRecord,
        granter: &Granter,
        now: Timestamp,
    ) -> ChangeResult<ProposalDecided> {
        if is_ended_by(&record, ProposalStatus::Outdated, granter) {
            return self.end(call, record, granter, (ProposalStatus::Outdated, now));
        }
        proposal_rules::must_be_pending(&record, now)?;
        let PolicyProposal { id, account, version, environment, canary, .. } = &record.proposal;
        let people = self.store().members_and_removed(account)?;
        let member = people.iter().find(|found| granter.holder.member.as_ref() == Some(&found.member.id));
        proposal_rules::may_approve(granter, &record, member, |of| makers(&people, of))?;
        self.claims.check(id, &granter.caller.key_id, now)?;
        let (owner, environment) = (Some(account.clone()), environment.clone());
        self.require_published(owner.as_ref(), version)?;
        let place = Place { owner, environment, is_floor: false };
        let kind = canary.map_or(ActivationKind::Activated, |_| ActivationKind::CanaryStarted);
        let mut change = self.begin(kind, granter, place, None)?;
        if change.replaces != record.replaces {
            return self.end(call, record, granter, (ProposalStatus::Outdated, now));
        }
        match canary {
            None => change.activate(version)?,
            Some(terms) => self.begin_candidate(&mut change, version, Terms::Canary(*terms), Some(id))?,
        }
        let mut record = record.ended(ProposalStatus::Approved, Some(actor(granter)), now);
        record.proposal.decision_reason.clone_from(&call.reason);
        approve_change(&mut change, &record.proposal);
        let id = record.proposal.id.clone();
        if call.is_trial {
            self.claims.claim(&id, &granter.caller.key_id, now);
        }
        change.proposal = Some(record.clone());
        let (done, announced) = self.finish(change, call.is_trial, &granter.caller.key_id)?;
        if !call.is_trial {
            self.claims.release(&id);
        }
        let ActivationDone { activation, retention_days, .. } = done;
        let proposal = record.proposal;
        Ok((ProposalDecided { proposal, activation: Some(activation), is_new: true, retention_days }, announced))
    }

    /// Ends a proposal without an activation. The same key may do it again, because its line may be missing.
    fn end(
        &mut self,
        call: &DecideProposal,
        record: ProposalRecord,
        granter: &Granter,
        (status, now): (ProposalStatus, Timestamp),
    ) -> ChangeResult<ProposalDecided> {
        let retention_days = retention_days(self.store(), &granter.caller, Some(&record.proposal.account))?;
        let done = |record: ProposalRecord, is_new| {
            let proposal = record.proposal;
            Ok((ProposalDecided { proposal, activation: None, is_new, retention_days }, None))
        };
        if is_ended_by(&record, status, granter) {
            return done(record, false);
        }
        proposal_rules::must_be_pending(&record, now)?;
        let by = actor(granter);
        self.claims.check(&record.proposal.id, &by.key_id, now)?;
        let mut record = record.ended(status, Some(by), now);
        record.proposal.decision_reason.clone_from(&call.reason);
        self.commit(&[Record::Proposal(record.clone())])?;
        let PolicyProposal { id, account, .. } = &record.proposal;
        self.claims.release(id);
        let (status, by) = (status.as_str(), &granter.caller.key_id);
        tracing::info!(%account, proposal = %id, status, %by, "proposed activation ended");
        done(record, true)
    }
}

pub(crate) fn list_proposals(
    store: &RecordStore,
    call: &ListProposals,
    now: Timestamp,
) -> Result<Page<PolicyProposal>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    let account = rules::target_account(&caller, call.account.as_ref())?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    Ok(proposal_rules::listed(store.proposals(&account)?, call, now)?)
}

pub(crate) fn show_proposal(
    store: &RecordStore,
    call: &ShowProposal,
    now: Timestamp,
) -> Result<PolicyProposal, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    Ok(proposal_rules::own(&caller, store.proposal(&call.id)?)?.shown(now))
}

/// The pending proposals that would activate a version of this owner.
pub(super) fn uses(
    store: &RecordStore,
    owner: Option<&AccountId>,
    version: &PolicyVersion,
    now: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let mut uses = Vec::new();
    for record in store.all_proposals() {
        let record = record?;
        let PolicyProposal { id, account, version: proposed, .. } = &record.proposal;
        // Every account may propose one of the operator's.
        let is_seen = owner.is_none_or(|owner| owner == account);
        if is_seen && proposed == version && record.is_pending(now) {
            let of = if owner.is_none() { format!(" (account `{account}`)") } else { String::new() };
            uses.push(format!("`{id}` proposes it{of}"));
        }
    }
    Ok(uses)
}

fn proposed(
    change: &ActiveChange,
    call: &ActivatePolicy,
    granter: &Granter,
    now: Timestamp,
) -> Result<ProposalRecord, ManageError> {
    let activation = &change.activation;
    let proposal = PolicyProposal {
        canary: call.canary,
        replayed: activation.replayed,
        id: new_id("prop", random()?, ProposalId::parse)?,
        account: change.place.owner.clone().ok_or(Refusal::NotFound)?,
        status: ProposalStatus::Pending,
        version: call.version.clone(),
        environment: activation.environment.clone(),
        from: activation.from.clone(),
        reason: activation.reason.clone(),
        diff_digest: activation.diff_digest.clone(),
        accepted_flips: activation.accepted_flips,
        proposed_by: actor(granter),
        proposed_at: now,
        expires_at: now.saturating_add(SignedDuration::from_secs(PROPOSAL_TTL_SECONDS)).unwrap_or(now),
        decided_by: None,
        decided_at: None,
        decision_reason: None,
    };
    Ok(ProposalRecord { proposal, holder: granter.holder.clone(), replaces: change.replaces.clone() })
}

/// What was proposed is what is activated, by the key that approves it.
fn approve_change(change: &mut ActiveChange, of: &PolicyProposal) {
    let activation = &mut change.activation;
    activation.version = Some(of.version.clone());
    activation.reason.clone_from(&of.reason);
    activation.diff_digest.clone_from(&of.diff_digest);
    activation.accepted_flips = of.accepted_flips;
    activation.replayed = of.replayed;
    activation.proposal = Some(ApprovedProposal {
        id: of.id.clone(),
        proposed_by: of.proposed_by.clone(),
        approval_reason: of.decision_reason.clone(),
    });
}

pub(super) fn actor(granter: &Granter) -> PolicyActor {
    PolicyActor { key_id: granter.caller.key_id.clone(), member_id: granter.holder.member.clone() }
}

fn is_ended_by(record: &ProposalRecord, status: ProposalStatus, granter: &Granter) -> bool {
    let by = record.proposal.decided_by.as_ref();
    record.proposal.status == status && by.is_some_and(|by| by.key_id == granter.caller.key_id)
}

fn makers(people: &[MemberRecord], of: &MemberId) -> Vec<stage0_contract::Person> {
    people.iter().find(|found| found.member.id == *of).map(|found| found.made_by.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
