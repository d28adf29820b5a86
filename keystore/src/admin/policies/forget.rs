//! Deleting a published version: only one that nothing leads to, recorded first, and its number stays taken.

use stage0_contract::{AccountId, ForgetPolicy, MAX_DELETED_POLICIES, PolicyForgotten, PolicyVersion, Refusal, Scope};

use super::missing::{Advice, missing};
use super::{policy_rules, proposals, retention_days};
use crate::admin::{AdminService, ChangeResult, ManageError, authorized};
use crate::store::record::{DeletedPolicy, Forgotten, ForgottenPolicy, Record};
use crate::store::record_store::{RecordStore, StoreError};

impl AdminService {
    pub(crate) fn forget_policy(&mut self, call: &ForgetPolicy) -> ChangeResult<PolicyForgotten> {
        let (now, store) = (self.now(), self.store());
        let caller = authorized(store, &call.caller, Scope::PoliciesManage, now)?;
        let owner = policy_rules::owner(&caller, call.account.as_ref())?;
        let retention_days = retention_days(store, &caller, owner.as_ref())?;
        let Some(policy) = store.policy(owner.as_ref(), &call.version)? else {
            return Err(not_here(store, owner.as_ref(), &call.version)?.into());
        };
        let mut uses = uses(store, owner.as_ref(), &call.version)?;
        uses.extend(proposals::uses(store, owner.as_ref(), &call.version, now)?);
        if !uses.is_empty() {
            return Err(policy_rules::still_needed(&call.version, &uses).into());
        }
        let done = PolicyForgotten { account: owner.clone(), retention_days };
        if call.is_trial {
            return Ok((done, None));
        }
        let forgotten = ForgottenPolicy { account: owner.clone(), version: call.version.clone() };
        let content = store.policy_files(&policy)?.content_hash();
        let deleted = DeletedPolicy { account: owner.clone(), version: call.version.clone(), content, deleted_at: now };
        let mut records = vec![Record::Forgotten(Forgotten::Policy(forgotten)), Record::DeletedPolicy(deleted)];
        records.extend(surplus(store, owner.as_ref(), &call.version)?);
        self.commit(&records)?;
        tracing::info!(account = owner.as_ref().map(AccountId::as_str), policy_version = %call.version,
            by = %caller.key_id, "policy deleted");
        Ok((done, None))
    }
}

/// A version of another owner, which the caller may see but not delete, is not missing.
fn not_here(store: &RecordStore, owner: Option<&AccountId>, version: &PolicyVersion) -> Result<Refusal, ManageError> {
    if owner.is_some() && store.policy(None, version)?.is_some() {
        let text = format!("`{version}` is the operator's, for every account: only the operator deletes it");
        return Ok(Refusal::Missing(text));
    }
    Ok(missing(store, owner, version, Advice::NameTheAccount)?)
}

/// Where a version is active, and which rollbacks lead to it.
fn uses(store: &RecordStore, owner: Option<&AccountId>, version: &PolicyVersion) -> Result<Vec<String>, StoreError> {
    if owner.is_some() {
        return Ok(store.active_policies(owner)?.uses(version));
    }
    // Every account may have activated one of the operator's.
    let mut all = Vec::new();
    for active in store.all_active_policies() {
        let active = active?;
        let of = active.account.as_ref().map(|account| format!(" (account `{account}`)")).unwrap_or_default();
        all.extend(active.uses(version).into_iter().map(|used| used + &of));
    }
    Ok(all)
}

/// The oldest of the numbers that deleted versions keep, where there is no room for one more.
fn surplus(
    store: &RecordStore,
    owner: Option<&AccountId>,
    version: &PolicyVersion,
) -> Result<Option<Record>, StoreError> {
    let deleted = store.deleted_policies(owner).collect::<Result<Vec<_>, _>>()?;
    let is_kept = |deleted: &&DeletedPolicy| !policy_rules::same_number(&deleted.version, version);
    let others = deleted.iter().filter(is_kept);
    if others.clone().count() < MAX_DELETED_POLICIES {
        return Ok(None);
    }
    let oldest = others.min_by_key(|deleted| deleted.deleted_at).cloned();
    Ok(oldest.map(|deleted| Record::Forgotten(Forgotten::DeletedPolicy(deleted))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::policies::tests::owner;
    use crate::store::record::tests::at;

    fn deleted(number: usize, of: Option<&str>) -> DeletedPolicy {
        let version = PolicyVersion::parse(&format!("acme@1.{number}.0+0123456789ab")).unwrap();
        let deleted_at = at(i64::try_from(10_000 - number).unwrap());
        DeletedPolicy { account: owner(of), version, content: String::new(), deleted_at }
    }

    #[test]
    fn the_oldest_of_a_thousand_numbers_leaves_and_only_of_the_same_owner() {
        let of_one = |count: usize| {
            let numbers = (0..count).map(|number| Record::DeletedPolicy(deleted(number, Some("a"))));
            store_with(numbers.chain([Record::DeletedPolicy(deleted(9_000, None))]).collect())
        };
        let a = owner(Some("a"));
        let next = deleted(5_000, Some("a")).version;
        let (_dir, store) = of_one(MAX_DELETED_POLICIES - 1);
        assert_eq!(surplus(&store, a.as_ref(), &next).unwrap(), None);
        let (_dir, store) = of_one(MAX_DELETED_POLICIES);
        let oldest = deleted(MAX_DELETED_POLICIES - 1, Some("a"));
        let forgotten = Record::Forgotten(Forgotten::DeletedPolicy(oldest));
        assert_eq!(surplus(&store, a.as_ref(), &next).unwrap(), Some(forgotten));
        // A number that is kept already takes no further room.
        assert_eq!(surplus(&store, a.as_ref(), &deleted(3, Some("a")).version).unwrap(), None);
        assert_eq!(surplus(&store, None, &next).unwrap(), None);
    }
}
