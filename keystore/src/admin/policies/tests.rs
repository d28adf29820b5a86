//! What is answered where the history has lost the activation of what is active, and which key a log line names.

use std::sync::Arc;

use super::*;
use crate::plans::Plans;
use crate::seal::tests::sealer_of;
use crate::sources::Clock;
use crate::store::DurableStore;
use crate::store::record::policies::tests::{activation, owner, policy, version};
use crate::store::record::tests::{account, at, key};
use crate::store::snapshot::StoreId;
use stage0_contract::CandidateCounts;

/// A keystore where `a` is the default, and its history has that activation, or only one of another place.
fn with_active(dir: &std::path::Path, with_its_activation: bool) -> (AdminService, ActivatePolicy) {
    let durable = DurableStore::open(dir, StoreId::from_random([1; 16]), at(1)).unwrap();
    let clock: Clock = Arc::new(|| at(10));
    let mut admin = AdminService::new(durable, Arc::new(sealer_of(1)), clock, Plans::built_in().unwrap()).unwrap();
    let manager = key("manager", "a", &[Scope::PoliciesManage]);
    let caller = Caller {
        account: manager.account.clone(),
        key_id: manager.id.clone(),
        scopes: manager.scopes.clone(),
        key: None,
    };
    let mut active = ActiveRecord { account: owner(Some("a")), sequence: 2, ..ActiveRecord::default() };
    active.default.activate(version("a"));
    let mut of_staging = activation(Some("a"), 2);
    of_staging.environment = Some("staging".to_owned());
    let mut records = vec![
        Record::Account(account("a")),
        Record::Key(manager),
        Record::Policy(policy("a", Some("a"))),
        Record::ActivePolicies(active),
        Record::Activation(of_staging),
    ];
    records.extend(with_its_activation.then(|| Record::Activation(activation(Some("a"), 1))));
    admin.commit(&records).unwrap();
    let call = ActivatePolicy {
        replayed_until: None,
        canary: None,
        replayed: None,
        caller,
        version: version("a"),
        account: None,
        environment: None,
        floor: false,
        reason: None,
        expected: None,
        diff_digest: None,
        accept_flips: None,
        judged: None,
        sequence: None,
        proposes: false,
        is_trial: false,
    };
    (admin, call)
}

#[test]
fn an_activation_that_the_history_has_lost_is_made_again_and_leads_back_to_nothing_else() {
    for (is_there, sequence) in [(true, 1), (false, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut admin, call) = with_active(dir.path(), is_there);
        let before = admin.store().active_policies(owner(Some("a")).as_ref()).unwrap().default;
        let (done, announced) = admin.activate_policy(&call).unwrap();
        assert_eq!((done.is_new, done.activation.sequence), (!is_there, sequence));
        assert_eq!(done.activation.version, Some(version("a")));
        assert!(announced.is_some());
        let after = admin.store().active_policies(owner(Some("a")).as_ref()).unwrap().default;
        assert_eq!(before, after, "a rollback leads where it led before");
        let (again, _) = admin.activate_policy(&call).unwrap();
        assert_eq!((again.is_new, again.activation), (false, done.activation));
    }
}

#[test]
fn a_log_line_names_the_key_that_made_a_change_and_none_where_a_canary_ended_by_its_terms() {
    let by = key("manager", "a", &[]).id;
    let withdrawn = Activation { kind: ActivationKind::CanaryEnded, ..activation(Some("a"), 1) };
    assert_eq!(logged_key(&withdrawn, &by), Some("manager"));
    let returned = Activation { returned_for: Some(CandidateCounts::default()), ..withdrawn };
    assert_eq!(logged_key(&returned, &by), None);
}
