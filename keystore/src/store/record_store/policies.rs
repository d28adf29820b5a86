//! Reads of policies: what is published, what is active, and what the rules of an account are.

use jiff::Timestamp;
use stage0_contract::{
    Account, AccountId, AccountRules, Activation, PolicyBundle, PolicyVersion, ProposalId, PublishedPolicy,
};

use super::{RecordStore, StoreError};
use crate::store::record::policies::{self, of_owner, owner_word, policy_slot};
use crate::store::record::{self, ActiveRecord, DeletedPolicy, PolicyRecord, ProposalRecord};

impl RecordStore {
    /// What an account demands, what it has stopped, and what decides: its own, then the deployment's.
    pub(crate) fn rules_of(&self, account: &Account, now: Timestamp) -> Result<AccountRules, StoreError> {
        let stops = self.stops_for(&account.id, now)?;
        let (own, deployment) = (self.active_policies(Some(&account.id))?, self.active_policies(None)?);
        Ok(AccountRules {
            approvals: account.approvals,
            four_eyes: account.four_eyes,
            stops,
            policy: own.policies().or(&deployment.policies()),
            floor: deployment.floor.active,
            candidates: own.candidates,
            record_facts: account.record_facts,
        })
    }

    pub(crate) fn active_policies(&self, owner: Option<&AccountId>) -> Result<ActiveRecord, StoreError> {
        let found = self.read(&record::entry(record::ACTIVE_POLICIES, owner_word(owner)))?;
        Ok(found.unwrap_or_else(|| ActiveRecord { account: owner.cloned(), ..ActiveRecord::default() }))
    }

    /// Of every account, and of the deployment.
    pub(crate) fn all_active_policies(&self) -> impl Iterator<Item = Result<ActiveRecord, StoreError>> + use<> {
        self.values(record::ACTIVE_POLICIES, None)
    }

    /// A published version of this owner, without its files.
    pub(crate) fn policy(
        &self,
        owner: Option<&AccountId>,
        version: &PolicyVersion,
    ) -> Result<Option<PublishedPolicy>, StoreError> {
        self.read(&record::entry(record::POLICIES, &policy_slot(owner, version)))
    }

    pub(crate) fn policy_files(&self, policy: &PublishedPolicy) -> Result<PolicyBundle, StoreError> {
        let slot = policy_slot(policy.account.as_ref(), &policy.summary.version);
        self.read(&record::entry(record::POLICY_FILES, &slot))?.ok_or(StoreError::Inconsistent)
    }

    /// The versions of one owner, by version.
    pub(crate) fn policies(
        &self,
        owner: Option<&AccountId>,
        after: Option<&str>,
    ) -> impl Iterator<Item = Result<PublishedPolicy, StoreError>> + use<> {
        self.values(&of_owner(record::POLICIES, owner), after)
    }

    /// The versions of every owner.
    pub(crate) fn all_policies(&self) -> impl Iterator<Item = Result<PublishedPolicy, StoreError>> + use<> {
        self.values(record::POLICIES, None)
    }

    /// The changes of one owner, the newest first.
    pub(crate) fn activations(
        &self,
        owner: Option<&AccountId>,
        before: Option<u64>,
    ) -> impl Iterator<Item = Result<Activation, StoreError>> + use<> {
        let after = before.map(policies::activation_word);
        self.values(&of_owner(record::ACTIVATIONS, owner), after.as_deref())
    }

    pub(crate) fn proposal(&self, id: &ProposalId) -> Result<Option<ProposalRecord>, StoreError> {
        self.read(&record::entry(record::PROPOSALS, id.as_str()))
    }

    /// The proposals of one account, in no order of time.
    pub(crate) fn proposals(&self, account: &AccountId) -> Result<Vec<ProposalRecord>, StoreError> {
        self.listed(&record::listed_proposals(account), record::PROPOSALS, None).collect()
    }

    /// The proposals of every account.
    pub(crate) fn all_proposals(&self) -> impl Iterator<Item = Result<ProposalRecord, StoreError>> + use<> {
        self.values(record::PROPOSALS, None)
    }

    /// The deleted version that has this version's number.
    pub(crate) fn deleted_policy(
        &self,
        owner: Option<&AccountId>,
        version: &PolicyVersion,
    ) -> Result<Option<DeletedPolicy>, StoreError> {
        self.read(&record::entry(record::DELETED_POLICIES, &record::deleted_slot(owner, version)))
    }

    /// The deleted versions of one owner whose numbers are kept.
    pub(crate) fn deleted_policies(
        &self,
        owner: Option<&AccountId>,
    ) -> impl Iterator<Item = Result<DeletedPolicy, StoreError>> + use<> {
        self.values(&of_owner(record::DELETED_POLICIES, owner), None)
    }

    /// The record of the policy that is listed in this entry.
    pub(super) fn policy_record(&self, key: &[u8], listed: &[u8]) -> Result<PolicyRecord, StoreError> {
        let slot = key.get(record::POLICIES.len()..).ok_or(StoreError::Inconsistent)?;
        let bundle = self.read(&[record::POLICY_FILES, slot].concat())?.ok_or(StoreError::Inconsistent)?;
        Ok(PolicyRecord { policy: serde_json::from_slice(listed)?, bundle })
    }
}
