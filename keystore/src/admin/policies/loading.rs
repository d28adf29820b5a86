//! What evaluators read: the content of a version, and which versions decide anywhere.
//!
//! Evaluators are known by their credentials, so their calls name no caller.

use std::collections::HashSet;

use stage0_contract::{
    ActiveVersion, ActiveVersions, FetchPolicy, FetchedPolicy, ListActiveVersions, MAX_LISTED_POLICIES, Refusal,
};

use super::find;
use crate::admin::ManageError;
use crate::store::record_store::RecordStore;

pub(crate) fn fetch_policy(store: &RecordStore, call: &FetchPolicy) -> Result<FetchedPolicy, ManageError> {
    let policy = find(store, call.account.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
    Ok(FetchedPolicy { version: call.version.clone(), bundle: store.policy_files(&policy)? })
}

/// The deployment's record is the first one, so its versions are: its floor, its default, its environments.
pub(crate) fn list_active_versions(
    store: &RecordStore,
    ListActiveVersions {}: &ListActiveVersions,
) -> Result<ActiveVersions, ManageError> {
    let (mut known, mut versions) = (HashSet::new(), Vec::new());
    for record in store.all_active_policies() {
        let record = record?;
        let slots = [&record.floor, &record.default].into_iter().chain(record.environments.values());
        for version in slots.filter_map(|slot| slot.active.clone()) {
            if versions.len() >= MAX_LISTED_POLICIES {
                return Ok(ActiveVersions { versions });
            }
            if known.insert(version.clone()) {
                versions.push(ActiveVersion { account: record.account.clone(), version });
            }
        }
    }
    Ok(ActiveVersions { versions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::policies::tests::{owner, version};
    use crate::store::record::{ActiveRecord, Record};

    fn record(of: Option<&str>, default: &str) -> ActiveRecord {
        let mut record = ActiveRecord { account: owner(of), ..ActiveRecord::default() };
        record.default.activate(version(default));
        record
    }

    #[test]
    fn what_is_active_is_listed_once_and_the_deployments_first() {
        let mut deployment = record(None, "house");
        deployment.floor.activate(version("floor"));
        let mut own = record(Some("a"), "house");
        own.environments.entry("production".to_owned()).or_default().activate(version("old"));
        own.environments.entry("production".to_owned()).or_default().activate(version("strict"));
        let records = [own, record(Some("b"), "acme"), deployment];
        let (_dir, store) = store_with(records.map(Record::ActivePolicies).into());
        let listed = list_active_versions(&store, &ListActiveVersions {}).unwrap().versions;
        let expected = [(None, "floor"), (None, "house"), (Some("a"), "strict"), (Some("b"), "acme")];
        let expected = expected.map(|(of, pack)| ActiveVersion { account: owner(of), version: version(pack) });
        assert_eq!(listed, expected, "a version that only a rollback leads to decides nothing");
    }

    #[test]
    fn no_more_versions_are_listed_than_an_evaluator_keeps() {
        let records = (0..=MAX_LISTED_POLICIES).map(|n| record(Some(&format!("a{n}")), &format!("p{n}")));
        let (_dir, store) = store_with(records.map(Record::ActivePolicies).collect());
        let listed = list_active_versions(&store, &ListActiveVersions {}).unwrap().versions;
        assert_eq!(listed.len(), MAX_LISTED_POLICIES);
    }
}
