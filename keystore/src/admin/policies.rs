//! Policies: published, listed, activated and rolled back.
//!
//! What is published never changes, and the same content again is no change. What is active is a part of each identity
//! (`rules_of`), so a change of it succeeds only once every gateway was notified, as a stop does. Evaluators get a hint
//! to load a version before the first check needs it: when it is published, and when an activation is tried.
//! INVARIANT: an activation and its place in the history are one change, so both are there after a crash, or neither.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, ActivatePolicy, Activation, ActivationDone, ActivationKind, ActivePolicies, Caller, FieldError,
    KeyChanged, KeyId, ListPolicies, MAX_POLICY_HISTORY, Page, PoliciesInForce, PolicyActor, PolicyChanged,
    PolicyStored, PolicyVersion, PublishedPolicy, ReadActivePolicies, ReadPolicyHistory, Refusal, RollbackPolicy,
    Scope, ShowPolicy, StorePolicy,
};

use self::candidates::Terms;
use self::missing::{Advice, missing};
use super::pages::one_page;
use super::rules::candidates as candidate_rules;
use super::rules::policies::{self as policy_rules, Asked, Kept, Place};
use super::rules::proposals as proposal_rules;
use super::rules::{self, Granter};
use super::{AdminService, ChangeResult, ManageError, authorized, granter};
use crate::admin::announce::Changed;
use crate::store::record::{ActiveRecord, Forgotten, PolicyRecord, ProposalRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};

mod candidates;
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
        let (kind, (granter, place)) = match &call.canary {
            None => (ActivationKind::Activated, self.place(&call.caller, &asked)?),
            Some(terms) => {
                let place = self.place_of_candidate(&call.caller, &asked, candidate_rules::bad_terms(terms))?;
                (ActivationKind::CanaryStarted, place)
            }
        };
        self.require_published(place.owner.as_ref(), &call.version)?;
        let mut change = self.begin(kind, &granter, place, call.expected.as_ref())?;
        change.activation.version = Some(call.version.clone());
        change.activation.reason.clone_from(&call.reason);
        change.activation.diff_digest.clone_from(&call.diff_digest);
        change.activation.accepted_flips = call.accept_flips.filter(|flips| *flips > 0);
        change.activation.replayed = call.replayed;
        // Also where the version was active when it was tried: it may be active no longer.
        let is_judged = call.judged.as_ref().is_none_or(|judged| *judged == change.replaces);
        if !call.is_trial && !is_judged || change.is_moved(call.is_trial, call.sequence) {
            return Ok((change.not_made(), None));
        }
        if let Some(terms) = call.canary {
            self.begin_candidate(&mut change, &call.version, Terms::Canary(terms), None)?;
        } else if change.activation.from.as_ref() == Some(&call.version) {
            return self.activated_already(change, call.is_trial, &granter.caller.key_id);
        } else {
            change.activate(&call.version)?;
        }
        let needs_second = self.needs_second(&granter, &change.place.owner)?;
        if !call.is_trial {
            proposal_rules::check_proposes(call.proposes, needs_second)?;
        }
        if needs_second {
            return self.propose(change, call, &granter);
        }
        self.finish(change, call.is_trial, &granter.caller.key_id)
    }

    /// The answer where the version is active already.
    fn activated_already(&mut self, change: ActiveChange, is_trial: bool, by: &KeyId) -> ChangeResult<ActivationDone> {
        candidate_rules::check_untried(&change.record, &change.place)?;
        let Some(newest) = newest_of(self.store(), &change.activation)? else {
            // The history has lost the activation of what is active: this one takes its place there.
            return self.finish(change, is_trial, by);
        };
        // Announced all the same: the notice of the first one may have been lost.
        let announced = change.changed(by);
        let done = ActivationDone { activation: newest, is_outdated: false, ..change.not_made() };
        Ok((done, Some(announced)))
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
        if change.is_moved(call.is_trial, call.sequence) {
            return Ok((change.not_made(), None));
        }
        change.activation.reason.clone_from(&call.reason);
        let (slot, _) = policy_rules::slot(&mut change.record, &change.place)?;
        if !slot.roll_back() {
            return Err(policy_rules::nothing_to_roll_back(slot).into());
        }
        change.activation.version.clone_from(&slot.active);
        change.record.environments.retain(|_, slot| !slot.is_empty());
        change.end_candidate();
        self.finish(change, call.is_trial, &granter.caller.key_id)
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
        let record_facts = owner.map(|owner| store.account(owner)).transpose()?.flatten();
        let record_facts = record_facts.is_some_and(|account| account.record_facts);
        let mut record = store.active_policies(owner)?;
        let own = record.policies();
        let effective_everywhere = own.or(&store.active_policies(None)?.policies());
        let effective = effective_everywhere.of(place.environment.as_deref()).filter(|_| !place.is_floor);
        let (slot, environment) = policy_rules::slot(&mut record, &place)?;
        policy_rules::check_expected(expected, slot.active.as_ref(), effective)?;
        let from = slot.active.clone();
        let replaces = policy_rules::replaces(&place, from.as_ref(), &own, &effective_everywhere);
        place.environment = environment;
        let at = (self.now(), retention_days);
        let mut change = ActiveChange::next((kind, place), record, proposals::actor(granter), at);
        change.activation.from = from;
        change.replaces = replaces;
        change.record_facts = record_facts;
        Ok(change)
    }

    fn finish(&mut self, change: ActiveChange, is_trial: bool, by: &KeyId) -> ChangeResult<ActivationDone> {
        let announced = change.changed(by);
        let hint = Changed::Policy(change.hint());
        let ActiveChange { record, activation, retention_days, record_facts, replaces, proposal, .. } = change;
        let done = ActivationDone {
            activation: activation.clone(),
            is_new: true,
            retention_days,
            replaces,
            is_outdated: false,
            proposal: None,
            record_facts,
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
        let by = logged_key(&done.activation, by);
        tracing::warn!(
            account,
            environment,
            floor,
            policy_version = version,
            from,
            ?kind,
            by,
            "active or tried policy changed"
        );
        Ok((done, Some(announced)))
    }
}

/// A change of what is active that is not stored yet.
struct ActiveChange {
    place: Place,
    record: ActiveRecord,
    activation: Activation,
    retention_days: u32,
    /// The account's decisions are recorded with their facts.
    record_facts: bool,
    /// What decides where the version is going to.
    replaces: Vec<Option<PolicyVersion>>,
    /// The proposal that it comes from, as it is once the change is made.
    proposal: Option<ProposalRecord>,
}

impl ActiveChange {
    /// The next change at this place, which does not say yet what will be.
    fn next(
        (kind, place): (ActivationKind, Place),
        mut record: ActiveRecord,
        by: PolicyActor,
        (at, retention_days): (Timestamp, u32),
    ) -> Self {
        record.sequence += 1;
        let activation = Activation {
            sequence: record.sequence,
            at,
            kind,
            account: place.owner.clone(),
            environment: place.environment.clone(),
            floor: place.is_floor,
            version: None,
            from: None,
            reason: None,
            diff_digest: None,
            accepted_flips: None,
            key_id: by.key_id,
            member_id: by.member_id,
            proposal: None,
            candidate: None,
            returned_for: None,
            replayed: None,
        };
        let (record_facts, replaces) = (false, Vec::new());
        Self { place, record, activation, retention_days, record_facts, replaces, proposal: None }
    }

    /// The version is active at the place, and what was tried there has ended.
    fn activate(&mut self, version: &PolicyVersion) -> Result<(), Refusal> {
        let (slot, _) = policy_rules::slot(&mut self.record, &self.place)?;
        slot.activate(version.clone());
        self.end_candidate();
        Ok(())
    }

    fn end_candidate(&mut self) {
        if !self.place.is_floor {
            self.record.end_candidate(self.place.environment.as_deref());
        }
    }

    /// Whether another change came between the trial, at this place among the changes, and this call.
    fn is_moved(&self, is_trial: bool, tried_at: Option<u64>) -> bool {
        !is_trial && tried_at.is_some_and(|sequence| sequence != self.activation.sequence)
    }

    /// The answer where it takes the place of something else than what was judged.
    fn not_made(self) -> ActivationDone {
        let Self { activation, retention_days, record_facts, replaces, .. } = self;
        ActivationDone {
            activation,
            is_new: false,
            retention_days,
            replaces,
            is_outdated: true,
            proposal: None,
            record_facts,
        }
    }

    fn changed(&self, by: &KeyId) -> Changed {
        let account = &self.activation.account;
        // A notice invalidates the cached keys of its whole account (ADR 0003), so naming the caller's key is enough.
        let keys = match account.clone() {
            Some(account) => KeyChanged::One { account, key_id: by.clone() },
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
    let (own, candidates) = match &account {
        Some(account) => {
            let record = store.active_policies(Some(account))?;
            (record.policies(), record.candidates)
        }
        None => (ActivePolicies::default(), Vec::new()),
    };
    Ok(PoliciesInForce { account, effective: own.or(&deployment), own, deployment, floor, candidates })
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

/// The key that a log line names. What ends by its own terms is done by none.
fn logged_key<'a>(activation: &Activation, by: &'a KeyId) -> Option<&'a str> {
    activation.returned_for.is_none().then_some(by.as_str())
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
        // What is tried there is another matter.
        let is_there = change.environment == wanted.environment && change.floor == wanted.floor;
        if is_there && change.candidate.is_none() {
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
