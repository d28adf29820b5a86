//! Policies: published, listed, activated and rolled back.
//!
//! What is published never changes, and the same content again is no change. What is active is a part of each identity
//! (`rules_of`), so a change of it succeeds only once every gateway was notified, as a stop does. Evaluators get a hint
//! to load a version before the first check needs it: when it is published, and when an activation is tried.
//! INVARIANT: an activation and its place in the history are one change, so both are there after a crash, or neither.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, ActivatePolicy, Activation, ActivationDone, ActivationKind, ActivePolicies, Caller, FieldError,
    KeyChanged, ListPolicies, MAX_POLICY_HISTORY, Page, PoliciesInForce, PolicyChanged, PolicyStored, PolicyVersion,
    PublishedPolicy, ReadActivePolicies, ReadPolicyHistory, Refusal, RollbackPolicy, Scope, ShowPolicy, StorePolicy,
};

use self::missing::{Advice, missing};
use super::pages::one_page;
use super::rules::policies::{self as policy_rules, Asked, Kept, Place};
use super::rules::proposals as proposal_rules;
use super::rules::{self, Granter};
use super::{AdminService, ChangeResult, ManageError, authorized, granter};
use crate::admin::announce::Changed;
use crate::store::record::{ActiveRecord, Forgotten, PolicyRecord, ProposalRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};

mod forget;
mod loading;
mod missing;
mod proposals;

pub(crate) use loading::{fetch_policy, list_active_versions};
pub(crate) use proposals::{Claims, list_proposals, show_proposal};

impl AdminService {
    pub(crate) fn store_policy(&mut self, call: StorePolicy) -> ChangeResult<PolicyStored> {
        let (now, store) = (self.now(), self.store());
        let granter = granter(store, &call.caller, Scope::PoliciesManage, now)?;
        let owner = policy_rules::owner(&granter.caller, call.account.as_ref())?;
        let retention_days = retention_days(store, &granter.caller, owner.as_ref())?;
        let version = call.summary.version.clone();
        if let Some(policy) = store.policy(owner.as_ref(), &version)? {
            // The digest of a version is short: its author can find two contents with one.
            if store.policy_files(&policy)? != call.bundle {
                return Err(policy_rules::published_otherwise(&version).into());
            }
            return Ok((PolicyStored { policy, is_new: false, retention_days }, None));
        }
        let deleted = store.deleted_policy(owner.as_ref(), &version)?;
        if let Some(deleted) = deleted.as_ref().filter(|deleted| deleted.content != call.bundle.content_hash()) {
            return Err(policy_rules::deleted_otherwise(&deleted.version).into());
        }
        let (mut own, mut all) = (Kept::default(), Kept::default());
        for policy in store.policies(owner.as_ref(), None) {
            let policy = policy?;
            if policy_rules::same_number(&policy.summary.version, &version) {
                return Err(policy_rules::published_otherwise(&policy.summary.version).into());
            }
            own.add(&policy);
        }
        for policy in store.all_policies() {
            all.add(&policy?);
        }
        policy_rules::valid_policy(&call, own, all)?;
        let policy = PublishedPolicy {
            summary: call.summary,
            account: owner.clone(),
            published_at: now,
            key_id: Some(granter.caller.key_id.clone()),
            member_id: granter.holder.member.clone(),
            bytes: call.bundle.bytes(),
            packs: None,
        };
        if call.is_trial {
            return Ok((PolicyStored { policy, is_new: true, retention_days }, None));
        }
        let mut records = vec![Record::Policy(PolicyRecord { policy: policy.clone(), bundle: call.bundle })];
        records.extend(deleted.map(|deleted| Record::Forgotten(Forgotten::DeletedPolicy(deleted))));
        self.commit(&records)?;
        tracing::info!(account = owner.as_ref().map(AccountId::as_str), policy_version = %version,
            by = %granter.caller.key_id, "policy published");
        let changed = Changed::Policy(PolicyChanged { account: owner, versions: vec![version] });
        Ok((PolicyStored { policy, is_new: true, retention_days }, Some(changed)))
    }

    pub(crate) fn activate_policy(&mut self, call: &ActivatePolicy) -> ChangeResult<ActivationDone> {
        let asked = Asked {
            account: call.account.as_ref(),
            environment: call.environment.as_deref(),
            is_floor: call.floor,
            reason: call.reason.as_deref(),
            diff_digest: call.diff_digest.as_deref(),
        };
        let (granter, place) = self.place(&call.caller, &asked)?;
        self.require_published(place.owner.as_ref(), &call.version)?;
        let mut change = self.begin(ActivationKind::Activated, &granter, place, call.expected.as_ref())?;
        change.activation.version = Some(call.version.clone());
        change.activation.reason.clone_from(&call.reason);
        change.activation.diff_digest.clone_from(&call.diff_digest);
        change.activation.accepted_flips = call.accept_flips.filter(|flips| *flips > 0);
        // Also where the version was active when it was tried: it may be active no longer.
        if !call.is_trial && call.judged.as_ref().is_some_and(|judged| *judged != change.replaces) {
            return Ok((change.not_made(), None));
        }
        if change.activation.from.as_ref() == Some(&call.version) {
            let Some(newest) = newest_of(self.store(), &change.activation)? else {
                // The history has lost the activation of what is active: this one takes its place there.
                return self.finish(change, call.is_trial, &granter.caller);
            };
            // Announced all the same: the notice of the first one may have been lost.
            let announced = change.changed(&granter.caller);
            let done = ActivationDone { activation: newest, is_outdated: false, ..change.not_made() };
            return Ok((done, Some(announced)));
        }
        let needs_second = self.needs_second(&granter, &change.place.owner)?;
        if !call.is_trial {
            proposal_rules::check_proposes(call.proposes, needs_second)?;
        }
        if needs_second {
            return self.propose(change, call, &granter);
        }
        let (slot, _) = policy_rules::slot(&mut change.record, &change.place)?;
        slot.activate(call.version.clone());
        self.finish(change, call.is_trial, &granter.caller)
    }

    pub(crate) fn roll_back_policy(&mut self, call: &RollbackPolicy) -> ChangeResult<ActivationDone> {
        let asked = Asked {
            account: call.account.as_ref(),
            environment: call.environment.as_deref(),
            is_floor: call.floor,
            reason: call.reason.as_deref(),
            diff_digest: None,
        };
        let (granter, place) = self.place(&call.caller, &asked)?;
        let mut change = self.begin(ActivationKind::RolledBack, &granter, place, call.expected.as_ref())?;
        if !call.is_trial && call.sequence.is_some_and(|sequence| sequence != change.activation.sequence) {
            return Ok((change.not_made(), None));
        }
        change.activation.reason.clone_from(&call.reason);
        let (slot, _) = policy_rules::slot(&mut change.record, &change.place)?;
        if !slot.roll_back() {
            return Err(policy_rules::nothing_to_roll_back(slot).into());
        }
        change.activation.version.clone_from(&slot.active);
        change.record.environments.retain(|_, slot| !slot.is_empty());
        self.finish(change, call.is_trial, &granter.caller)
    }

    /// The version must be published where the place's owner sees it.
    fn require_published(&self, owner: Option<&AccountId>, version: &PolicyVersion) -> Result<(), ManageError> {
        if find(self.store(), owner, version)?.is_none() {
            return Err(missing(self.store(), owner, version, Advice::PublishForAll)?.into());
        }
        Ok(())
    }

    fn place(&self, caller: &Caller, asked: &Asked<'_>) -> Result<(Granter, Place), ManageError> {
        let granter = granter(self.store(), caller, Scope::PoliciesManage, self.now())?;
        let place = policy_rules::place(&granter.caller, asked)?;
        Ok((granter, place))
    }

    /// The next change of what is active, which does not say yet what will be.
    fn begin(
        &self,
        kind: ActivationKind,
        granter: &Granter,
        mut place: Place,
        expected: Option<&PolicyVersion>,
    ) -> Result<ActiveChange, ManageError> {
        let store = self.store();
        let owner = place.owner.as_ref();
        let retention_days = retention_days(store, &granter.caller, owner)?;
        let mut record = store.active_policies(owner)?;
        let own = record.policies();
        let effective_everywhere = own.or(&store.active_policies(None)?.policies());
        let effective = effective_everywhere.of(place.environment.as_deref()).filter(|_| !place.is_floor);
        let (slot, environment) = policy_rules::slot(&mut record, &place)?;
        policy_rules::check_expected(expected, slot.active.as_ref(), effective)?;
        let from = slot.active.clone();
        let replaces = policy_rules::replaces(&place, from.as_ref(), &own, &effective_everywhere);
        record.sequence += 1;
        place.environment.clone_from(&environment);
        let activation = Activation {
            sequence: record.sequence,
            at: self.now(),
            kind,
            account: place.owner.clone(),
            environment,
            floor: place.is_floor,
            version: None,
            from,
            reason: None,
            diff_digest: None,
            accepted_flips: None,
            key_id: granter.caller.key_id.clone(),
            member_id: granter.holder.member.clone(),
            proposal: None,
        };
        Ok(ActiveChange { place, record, activation, retention_days, replaces, proposal: None })
    }

    fn finish(&mut self, change: ActiveChange, is_trial: bool, by: &Caller) -> ChangeResult<ActivationDone> {
        let announced = change.changed(by);
        let hint = Changed::Policy(change.hint());
        let ActiveChange { record, activation, retention_days, replaces, proposal, .. } = change;
        let done = ActivationDone {
            activation: activation.clone(),
            is_new: true,
            retention_days,
            replaces,
            is_outdated: false,
            proposal: None,
        };
        if is_trial {
            return Ok((done, Some(hint)));
        }
        let (account, sequence) = (activation.account.clone(), activation.sequence);
        let mut records = vec![Record::ActivePolicies(record), Record::Activation(activation)];
        if let Some(sequence) = sequence.checked_sub(MAX_POLICY_HISTORY).filter(|sequence| *sequence > 0) {
            records.push(Record::Forgotten(Forgotten::Activation { account, sequence }));
        }
        records.extend(proposal.map(Record::Proposal));
        self.commit(&records)?;
        let Activation { kind, account, environment, floor, version, from, .. } = &done.activation;
        let (account, text) = (account.as_ref().map(AccountId::as_str), PolicyVersion::as_str);
        let (version, from) = (version.as_ref().map(text), from.as_ref().map(text));
        tracing::warn!(account, environment, floor, policy_version = version, from, ?kind, by = %by.key_id,
            "active policy changed");
        Ok((done, Some(announced)))
    }
}

/// A change of what is active that is not stored yet.
struct ActiveChange {
    place: Place,
    record: ActiveRecord,
    activation: Activation,
    retention_days: u32,
    /// What decides where the version is going to.
    replaces: Vec<Option<PolicyVersion>>,
    /// The proposal that it comes from, as it is once the change is made.
    proposal: Option<ProposalRecord>,
}

impl ActiveChange {
    /// The answer where it takes the place of something else than what was judged.
    fn not_made(self) -> ActivationDone {
        let Self { activation, retention_days, replaces, .. } = self;
        ActivationDone { activation, is_new: false, retention_days, replaces, is_outdated: true, proposal: None }
    }

    fn changed(&self, by: &Caller) -> Changed {
        let account = &self.activation.account;
        // A notice invalidates the cached keys of its whole account (ADR 0003), so naming the caller's key is enough.
        let keys = match account.clone() {
            Some(account) => KeyChanged::One { account, key_id: by.key_id.clone() },
            None => KeyChanged::Any {},
        };
        Changed::Activation(keys, self.hint())
    }

    fn hint(&self) -> PolicyChanged {
        let Activation { account, version, .. } = &self.activation;
        PolicyChanged { account: account.clone(), versions: version.iter().cloned().collect() }
    }
}

pub(crate) fn list_policies(
    store: &RecordStore,
    call: &ListPolicies,
    now: Timestamp,
) -> Result<Page<PublishedPolicy>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    let owner = policy_rules::owner(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, PolicyVersion::parse)?;
    retention_days(store, &caller, owner.as_ref())?;
    let after = after.as_ref().map(PolicyVersion::as_str);
    let some = |owner: Option<&AccountId>| -> Result<Vec<_>, StoreError> {
        store.policies(owner, after).take(limit + 1).collect()
    };
    let mut policies = some(owner.as_ref())?;
    if owner.is_some() {
        policies.extend(some(None)?);
    }
    // The sort is stable: of two with the same content the account's own is listed.
    policies.sort_by(|one, other| one.summary.version.cmp(&other.summary.version));
    policies.dedup_by(|later, first| later.summary.version == first.summary.version);
    policies.iter_mut().for_each(|policy| hide_publisher(policy, &caller));
    let version = |policy: &PublishedPolicy| policy.summary.version.clone();
    let (items, next) = one_page(policies.into_iter().map(Ok), limit, version)?;
    Ok(Page { items, next_cursor: next.map(|version| version.as_str().to_owned()) })
}

pub(crate) fn show_policy(
    store: &RecordStore,
    call: &ShowPolicy,
    now: Timestamp,
) -> Result<PublishedPolicy, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    let owner = policy_rules::owner(&caller, call.account.as_ref())?;
    let Some(mut policy) = find(store, owner.as_ref(), &call.version)? else {
        return Err(missing(store, owner.as_ref(), &call.version, Advice::NameTheAccount)?.into());
    };
    hide_publisher(&mut policy, &caller);
    if call.files {
        policy.packs = Some(store.policy_files(&policy)?.packs);
    }
    Ok(policy)
}

pub(crate) fn read_active_policies(
    store: &RecordStore,
    call: &ReadActivePolicies,
    now: Timestamp,
) -> Result<PoliciesInForce, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    let account = policy_rules::owner(&caller, call.account.as_ref())?;
    retention_days(store, &caller, account.as_ref())?;
    let deployment = store.active_policies(None)?;
    let (floor, deployment) = (deployment.floor.active.clone(), deployment.policies());
    let own = match &account {
        Some(account) => store.active_policies(Some(account))?.policies(),
        None => ActivePolicies::default(),
    };
    Ok(PoliciesInForce { account, effective: own.or(&deployment), own, deployment, floor })
}

pub(crate) fn read_policy_history(
    store: &RecordStore,
    call: &ReadPolicyHistory,
    now: Timestamp,
) -> Result<Page<Activation>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
    let owner = policy_rules::owner(&caller, call.account.as_ref())?;
    let (_, limit) = rules::page(None, call.limit, AccountId::parse)?;
    let before =
        call.cursor.as_deref().map(str::parse).transpose().map_err(|_| {
            Refusal::Invalid(vec![FieldError::new("cursor", "must be a `next_cursor` of an earlier page")])
        })?;
    retention_days(store, &caller, owner.as_ref())?;
    let (items, next) =
        one_page(store.activations(owner.as_ref(), before), limit, |activation: &Activation| activation.sequence)?;
    Ok(Page { items, next_cursor: next.map(|sequence| sequence.to_string()) })
}

/// An account does not learn which of the operator's keys published a pack.
fn hide_publisher(policy: &mut PublishedPolicy, caller: &Caller) {
    if policy.account.is_none() && !rules::is_operator(caller) {
        (policy.key_id, policy.member_id) = (None, None);
    }
}

/// The newest change of the place of this activation, if it is of the version that is active there.
fn newest_of(store: &RecordStore, wanted: &Activation) -> Result<Option<Activation>, StoreError> {
    for change in store.activations(wanted.account.as_ref(), None) {
        let change = change?;
        if change.environment == wanted.environment && change.floor == wanted.floor {
            return Ok(Some(change).filter(|change| change.version == wanted.from));
        }
    }
    Ok(None)
}

/// An account's own version, or the deployment's.
fn find(
    store: &RecordStore,
    owner: Option<&AccountId>,
    version: &PolicyVersion,
) -> Result<Option<PublishedPolicy>, StoreError> {
    match (store.policy(owner, version)?, owner) {
        (None, Some(_)) => store.policy(None, version),
        (found, _) => Ok(found),
    }
}

/// How long lines about the owner's policies are kept; those of the deployment are in the operator's account.
fn retention_days(store: &RecordStore, caller: &Caller, owner: Option<&AccountId>) -> Result<u32, ManageError> {
    let account = store.account(owner.unwrap_or(&caller.account))?.ok_or(Refusal::NotFound)?;
    Ok(account.retention())
}

#[cfg(test)]
mod tests;
