//! Reads of policies: what is published, what is active, and what the rules of an account are.

use jiff::Timestamp;
use stage0_contract::{Account, AccountId, AccountRules, Activation, PolicyBundle, PolicyVersion, PublishedPolicy};

use super::{RecordStore, StoreError};
use crate::store::record::policies::{self, of_owner, owner_word, policy_slot};
use crate::store::record::{self, ActiveRecord, PolicyRecord};

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

    /// The record of the policy that is listed in this entry.
    pub(super) fn policy_record(&self, key: &[u8], listed: &[u8]) -> Result<PolicyRecord, StoreError> {
        let slot = key.get(record::POLICIES.len()..).ok_or(StoreError::Inconsistent)?;
        let bundle = self.read(&[record::POLICY_FILES, slot].concat())?.ok_or(StoreError::Inconsistent)?;
        Ok(PolicyRecord { policy: serde_json::from_slice(listed)?, bundle })
    }
}
