//! Policies: published, listed, activated and rolled back.
//!
//! What is published never changes, and the same content again is no change. What is active is a part of each identity
//! (`rules_of`), so a change of it succeeds only once every gateway was notified, as a stop does. Evaluators get a hint
//! to load a version before the first check needs it: when it is published, and when an activation is tried.
//! INVARIANT: an activation and its place in the history are one change, so both are there after a crash, or neither.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, ActivatePolicy, Activation, ActivationDone, ActivationKind, ActivePolicies, Caller, FetchPolicy,
    FetchedPolicy, FieldError, ForgetPolicy, KeyChanged, ListPolicies, MAX_POLICY_HISTORY, Page, PoliciesInForce,
    PolicyChanged, PolicyForgotten, PolicyStored, PolicyVersion, PublishedPolicy, ReadActivePolicies,
    ReadPolicyHistory, Refusal, RollbackPolicy, Scope, ShowPolicy, StorePolicy,
};

use super::pages::one_page;
use super::rules::policies::{self as policy_rules, Asked, Kept, Place};
use super::rules::{self, Granter};
use super::{AdminService, ChangeResult, ManageError, authorized, granter};
use crate::admin::announce::Changed;
use crate::store::record::{ActiveRecord, Forgotten, ForgottenPolicy, PolicyRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};

impl AdminService {
    pub(crate) fn store_policy(&mut self, call: StorePolicy) -> ChangeResult<PolicyStored> {
        let (now, store) = (self.now(), self.store());
        let granter = granter(store, &call.caller, Scope::PoliciesManage, now)?;
        let owner = policy_rules::owner(&granter.caller, call.account.as_ref())?;
        let retention_days = retention_days(store, &granter.caller, owner.as_ref())?;
        let version = call.summary.version.clone();
        if let Some(policy) = store.policy(owner.as_ref(), &version)? {
            return Ok((PolicyStored { policy, is_new: false, retention_days }, None));
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
            key_id: granter.caller.key_id.clone(),
            member_id: granter.holder.member.clone(),
            bytes: call.bundle.bytes(),
            packs: None,
        };
        self.commit(&[Record::Policy(PolicyRecord { policy: policy.clone(), bundle: call.bundle })])?;
        tracing::info!(account = owner.as_ref().map(AccountId::as_str), policy_version = %version,
            by = %granter.caller.key_id, "policy published");
        let changed = Changed::Policy(PolicyChanged { account: owner, versions: vec![version] });
        Ok((PolicyStored { policy, is_new: true, retention_days }, Some(changed)))
    }

    pub(crate) fn forget_policy(&mut self, call: &ForgetPolicy) -> ChangeResult<PolicyForgotten> {
        let (now, store) = (self.now(), self.store());
        let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
        let owner = policy_rules::owner(&caller, call.account.as_ref())?;
        store.policy(owner.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
        let is_needed = match &owner {
            Some(account) => store.active_policies(Some(account))?.needs(&call.version),
            None => {
                let mut is_needed = false;
                for active in store.all_active_policies() {
                    is_needed |= active?.needs(&call.version);
                }
                is_needed
            }
        };
        if is_needed {
            return Err(policy_rules::still_needed(&call.version).into());
        }
        let forgotten = ForgottenPolicy { account: owner.clone(), version: call.version.clone() };
        self.commit(&[Record::Forgotten(Forgotten::Policy(forgotten))])?;
        tracing::info!(account = owner.as_ref().map(AccountId::as_str), policy_version = %call.version,
            by = %caller.key_id, "policy forgotten");
        Ok((PolicyForgotten {}, None))
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
        find(self.store(), place.owner.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
        let mut change = self.begin(ActivationKind::Activated, &granter, place, call.expected.as_ref())?;
        change.activation.version = Some(call.version.clone());
        change.activation.reason.clone_from(&call.reason);
        change.activation.diff_digest.clone_from(&call.diff_digest);
        if change.activation.from.as_ref() == Some(&call.version) {
            // Announced all the same: the notice of the first one may have been lost.
            let announced = change.changed(&granter.caller);
            let ActiveChange { activation, retention_days, .. } = change;
            return Ok((ActivationDone { activation, is_new: false, retention_days }, Some(announced)));
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
        change.activation.reason.clone_from(&call.reason);
        let (slot, _) = policy_rules::slot(&mut change.record, &change.place)?;
        if !slot.roll_back() {
            return Err(policy_rules::nothing_to_roll_back().into());
        }
        change.activation.version.clone_from(&slot.active);
        change.record.environments.retain(|_, slot| !slot.is_empty());
        self.finish(change, call.is_trial, &granter.caller)
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
        let effective = record.policies().or(&store.active_policies(None)?.policies());
        let effective = effective.of(place.environment.as_deref()).filter(|_| !place.is_floor);
        let (slot, environment) = policy_rules::slot(&mut record, &place)?;
        policy_rules::check_expected(expected, slot.active.as_ref(), effective)?;
        let from = slot.active.clone();
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
            key_id: granter.caller.key_id.clone(),
            member_id: granter.holder.member.clone(),
        };
        Ok(ActiveChange { place, record, activation, retention_days })
    }

    fn finish(&mut self, change: ActiveChange, is_trial: bool, by: &Caller) -> ChangeResult<ActivationDone> {
        let announced = change.changed(by);
        let hint = Changed::Policy(change.hint());
        let ActiveChange { record, activation, retention_days, .. } = change;
        let done = ActivationDone { activation: activation.clone(), is_new: true, retention_days };
        if is_trial {
            return Ok((done, Some(hint)));
        }
        let (account, sequence) = (activation.account.clone(), activation.sequence);
        let mut records = vec![Record::ActivePolicies(record), Record::Activation(activation)];
        if let Some(sequence) = sequence.checked_sub(MAX_POLICY_HISTORY).filter(|sequence| *sequence > 0) {
            records.push(Record::Forgotten(Forgotten::Activation { account, sequence }));
        }
        self.commit(&records)?;
        let Activation { kind, account, environment, version, .. } = &done.activation;
        let (account, version) = (account.as_ref().map(AccountId::as_str), version.as_ref().map(PolicyVersion::as_str));
        tracing::warn!(account, environment, policy_version = version, ?kind, by = %by.key_id, "active policy changed");
        Ok((done, Some(announced)))
    }
}

/// A change of what is active that is not stored yet.
struct ActiveChange {
    place: Place,
    record: ActiveRecord,
    activation: Activation,
    retention_days: u32,
}

impl ActiveChange {
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
    let mut policy = find(store, owner.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
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

/// For evaluators, which are known by their credentials.
pub(crate) fn fetch_policy(store: &RecordStore, call: &FetchPolicy) -> Result<FetchedPolicy, ManageError> {
    let policy = find(store, call.account.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
    Ok(FetchedPolicy { version: call.version.clone(), bundle: store.policy_files(&policy)? })
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
