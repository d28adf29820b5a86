//! What evaluators read: the content of a version, and which versions decide anywhere.
//!
//! Evaluators are known by their credentials, so their calls name no caller.

use std::collections::HashSet;

use stage0_contract::{
    ActiveVersion, ActiveVersions, FetchPolicy, FetchedPolicy, ListActiveVersions, MAX_LISTED_POLICIES, Refusal,
};

use super::find;
use crate::admin::ManageError;
use crate::store::record::ActiveRecord;
use crate::store::record_store::RecordStore;

pub(crate) fn fetch_policy(store: &RecordStore, call: &FetchPolicy) -> Result<FetchedPolicy, ManageError> {
    let policy = find(store, call.account.as_ref(), &call.version)?.ok_or(Refusal::NotFound)?;
    Ok(FetchedPolicy { version: call.version.clone(), bundle: store.policy_files(&policy)? })
}

/// The deployment's record is the first one, so its versions are: its floor, its default, its environments. What is
/// tried comes after all that is active.
pub(crate) fn list_active_versions(
    store: &RecordStore,
    ListActiveVersions {}: &ListActiveVersions,
) -> Result<ActiveVersions, ManageError> {
    let (mut known, mut versions, mut tried) = (HashSet::new(), Vec::new(), Vec::new());
    for record in store.all_active_policies() {
        let ActiveRecord { account, default, environments, floor, candidates, .. } = record?;
        let slots = [floor, default].into_iter().chain(environments.into_values());
        for version in slots.filter_map(|slot| slot.active) {
            if versions.len() >= MAX_LISTED_POLICIES {
                return Ok(ActiveVersions { versions });
            }
            if known.insert(version.clone()) {
                versions.push(ActiveVersion { account: account.clone(), version });
            }
        }
        let of_account = |version| ActiveVersion { account: account.clone(), version };
        tried.extend(candidates.into_iter().map(|candidate| of_account(candidate.version)));
    }
    let more = tried.into_iter().filter(|tried| known.insert(tried.version.clone()));
    versions.extend(more.take(MAX_LISTED_POLICIES.saturating_sub(versions.len())));
    Ok(ActiveVersions { versions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::Record;
    use crate::store::record::policies::tests::{candidate, owner, version};

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
    fn what_is_tried_is_listed_after_all_that_is_active_and_once() {
        let mut own = record(Some("a"), "acme");
        own.candidates = vec![candidate(1, "acme", Some("staging"), None), candidate(2, "next", None, None)];
        let (_dir, store) = store_with([own, record(Some("b"), "other")].map(Record::ActivePolicies).into());
        let listed = list_active_versions(&store, &ListActiveVersions {}).unwrap().versions;
        let expected = [("a", "acme"), ("b", "other"), ("a", "next")];
        let expected = expected.map(|(of, pack)| ActiveVersion { account: owner(Some(of)), version: version(pack) });
        assert_eq!(listed, expected);
        let tried = |n: usize| {
            let mut record = record(Some(&format!("a{n}")), "acme");
            record.candidates.push(candidate(1, &format!("p{n}"), None, None));
            Record::ActivePolicies(record)
        };
        let (_dir, store) = store_with((0..=MAX_LISTED_POLICIES).map(tried).collect());
        let listed = list_active_versions(&store, &ListActiveVersions {}).unwrap().versions;
        assert_eq!((listed.len(), &listed[0].version), (MAX_LISTED_POLICIES, &version("acme")));
    }

    #[test]
    fn no_more_versions_are_listed_than_an_evaluator_keeps() {
        let records = (0..=MAX_LISTED_POLICIES).map(|n| record(Some(&format!("a{n}")), &format!("p{n}")));
        let (_dir, store) = store_with(records.map(Record::ActivePolicies).collect());
        let listed = list_active_versions(&store, &ListActiveVersions {}).unwrap().versions;
        assert_eq!(listed.len(), MAX_LISTED_POLICIES);
    }
}
