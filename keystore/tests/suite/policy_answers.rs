//! Policies: what is answered where nothing changes, what a deletion leaves, and what is missing.

use stage0_contract::{
    ActivatePolicy, ActiveVersion, Caller, ForgetPolicy, ListActiveVersions, PolicyForgotten, PolicyVersion, Refusal,
    Scope, ShowPolicy, StorePolicy,
};

use crate::harness::{LOSSES, Running, done, refused};
use crate::policies::{acme, activate, forget, history, listed, managing, publish, roll_back, store, version};

fn conflict(refusal: Refusal) -> String {
    match refusal {
        Refusal::Conflict(text) => text,
        other => panic!("{other:?}"),
    }
}

fn missing(refusal: Refusal) -> String {
    match refusal {
        Refusal::Missing(text) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_trial_of_publishing_or_deleting_does_nothing_and_says_what_would_be_done() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let trial = StorePolicy { is_trial: true, ..store(&caller, &acme(1)) };
    let tried = done(running.ask(&trial).await);
    assert!(tried.is_new && tried.policy.summary.version == acme(1) && tried.retention_days > 0);
    assert!(listed(&running, &caller).await.is_empty());
    publish(&running, &caller, &acme(1)).await;
    assert!(!done(running.ask(&trial).await).is_new);
    let trial = ForgetPolicy { is_trial: true, ..forget(&caller, &acme(1)) };
    let PolicyForgotten { account: of, retention_days } = done(running.ask(&trial).await);
    assert_eq!((of, retention_days), (Some(account), tried.retention_days));
    assert_eq!(listed(&running, &caller).await, [acme(1)]);
    running.stop().await;
}

#[tokio::test]
async fn a_deleted_number_comes_back_with_the_same_content_alone_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, _) = managing(&running, "a").await;
    let (_, other, _) = managing(&running, "b").await;
    publish(&running, &caller, &acme(1)).await;
    done(running.ask(&forget(&caller, &acme(1))).await);
    let changed = version("acme@1.1.0+ba9876543210");
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        let text = conflict(refused(running.ask(&store(&caller, &changed)).await));
        let expected = "`acme@1.1.0` was published with other content, as `acme@1.1.0+0123456789ab`, and deleted: \
                        raise `version` in pack.toml";
        assert_eq!(text, expected, "{lost:?}");
        running.stop().await;
    }
    let running = Running::start(dir.path()).await;
    // The number of another account, and the next one, are free.
    publish(&running, &other, &changed).await;
    publish(&running, &caller, &acme(2)).await;
    assert!(done(running.ask(&store(&caller, &acme(1))).await).is_new, "the same content");
    let text = conflict(refused(running.ask(&store(&caller, &changed)).await));
    assert!(text.starts_with("`acme@1.1.0` is published with other content"), "{text}");
    done(running.ask(&forget(&caller, &acme(1))).await);
    conflict(refused(running.ask(&store(&caller, &changed)).await));
    running.stop().await;
}

#[tokio::test]
async fn a_refused_deletion_says_where_the_version_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let house = version("house@1.0.0+0123456789ab");
    publish(&running, &running.operator, &house).await;
    publish(&running, &caller, &acme(1)).await;
    let in_production =
        |of: &PolicyVersion| ActivatePolicy { environment: Some("production".to_owned()), ..activate(&caller, of) };
    done(running.ask(&in_production(&acme(1))).await);
    done(running.ask(&activate(&caller, &acme(1))).await);
    done(running.ask(&activate(&caller, &house)).await);
    let text = conflict(refused(running.ask(&forget(&caller, &acme(1))).await));
    let expected = "a rollback of the default leads to it; it is active in `production`";
    assert_eq!(text, format!("`{}` is needed: {expected}", acme(1)));
    let text = conflict(refused(running.ask(&forget(&running.operator, &house)).await));
    assert_eq!(text, format!("`{house}` is needed: it is active as the default (account `{account}`)"));
    running.stop().await;
}

#[tokio::test]
async fn what_is_active_already_is_answered_with_the_activation_that_made_it_so() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, _) = managing(&running, "a").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    let first =
        done(running.ask(&ActivatePolicy { reason: Some("why".to_owned()), ..activate(&caller, &acme(1)) }).await);
    let staging = ActivatePolicy { environment: Some("staging".to_owned()), ..activate(&caller, &acme(2)) };
    let of_staging = done(running.ask(&staging).await);
    for (call, made) in [(activate(&caller, &acme(1)), &first), (staging, &of_staging)] {
        for is_trial in [true, false] {
            let again = done(running.ask(&ActivatePolicy { is_trial, ..call.clone() }).await);
            assert_eq!((again.is_new, &again.activation), (false, &made.activation), "{is_trial}");
        }
    }
    // A rollback is what made the first one active again.
    done(running.ask(&activate(&caller, &acme(2))).await);
    let undone = done(running.ask(&roll_back(&caller)).await);
    let again = done(running.ask(&activate(&caller, &acme(1))).await);
    assert_eq!((again.is_new, again.activation.sequence), (false, undone.activation.sequence));
    let sequences: Vec<_> = history(&running, &caller).await.iter().map(|change| change.sequence).collect();
    assert_eq!(sequences, [4, 3, 2, 1]);
    running.stop().await;
}

#[tokio::test]
async fn a_rollback_beyond_the_tenth_says_that_there_were_more() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, _) = managing(&running, "a").await;
    let none = "there is no earlier activation to go back to: activate a version";
    assert_eq!(conflict(refused(running.ask(&roll_back(&caller)).await)), none);
    for number in 0..11 {
        publish(&running, &caller, &acme(number)).await;
        done(running.ask(&activate(&caller, &acme(number))).await);
    }
    for _ in 0..10 {
        done(running.ask(&roll_back(&caller)).await);
    }
    let text = conflict(refused(running.ask(&roll_back(&caller)).await));
    assert_eq!(text, "only the last 10 activations can be rolled back: activate a version");
    running.stop().await;
}

#[tokio::test]
async fn a_version_that_is_missing_is_answered_with_what_the_caller_may_see() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let (other_account, other, _) = managing(&running, "b").await;
    let house = version("house@1.0.0+0123456789ab");
    publish(&running, &running.operator, &house).await;
    publish(&running, &caller, &acme(1)).await;
    let changed = version("acme@1.1.0+ba9876543210");
    let same_number = format!("no version `{changed}` is published here; there is `{}`", acme(1));
    let show = |caller: &Caller, version: &PolicyVersion| ShowPolicy {
        caller: caller.clone(),
        version: version.clone(),
        account: None,
        files: false,
    };
    assert_eq!(missing(refused(running.ask(&activate(&caller, &changed)).await)), same_number);
    assert_eq!(missing(refused(running.ask(&show(&caller, &changed)).await)), same_number);
    assert_eq!(missing(refused(running.ask(&forget(&caller, &changed)).await)), same_number);

    // What another account has published is like what was never published.
    for wanted in [acme(1), acme(7)] {
        let text = format!("no version `{wanted}` is published for account `{other_account}`");
        assert_eq!(missing(refused(running.ask(&activate(&other, &wanted)).await)), text);
        assert_eq!(missing(refused(running.ask(&show(&other, &wanted)).await)), text);
        assert_eq!(missing(refused(running.ask(&forget(&other, &wanted)).await)), text);
    }
    let of_account = ActivatePolicy { account: Some(account.clone()), ..activate(&other, &acme(1)) };
    assert_eq!(refused(running.ask(&of_account).await), Refusal::NotFound);

    let for_all = format!("`{}` is published in account `{account}`: ", acme(1));
    for floor in [false, true] {
        let call = ActivatePolicy { floor, ..activate(&running.operator, &acme(1)) };
        let advice = "publish it for every account (`--all-accounts`)";
        assert_eq!(missing(refused(running.ask(&call).await)), format!("{for_all}{advice}"));
    }
    let shown = missing(refused(running.ask(&show(&running.operator, &acme(1))).await));
    assert_eq!(shown, format!("{for_all}name that account (`--account`)"));
    let text = missing(refused(running.ask(&forget(&caller, &house)).await));
    assert_eq!(text, format!("`{house}` is the operator's, for every account: only the operator deletes it"));
    running.stop().await;
}

#[tokio::test]
async fn an_evaluator_is_told_what_is_active_now_the_deployments_first() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let list = async || done(running.ask(&ListActiveVersions {}).await).versions;
    let (account, caller, _) = managing(&running, "a").await;
    let floor = version("floor@1.0.0+0123456789ab");
    publish(&running, &running.operator, &floor).await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    assert!(list().await.is_empty(), "what is published decides nothing");
    for number in [1, 2] {
        done(running.ask(&activate(&caller, &acme(number))).await);
    }
    done(running.ask(&ActivatePolicy { floor: true, ..activate(&running.operator, &floor) }).await);
    let own = |version| ActiveVersion { account: Some(account.clone()), version };
    assert_eq!(list().await, [ActiveVersion { account: None, version: floor }, own(acme(2))]);
    running.stop().await;
}

#[tokio::test]
async fn only_those_with_the_scope_are_told_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let caller = running.caller(&account, &[Scope::Check]).await;
    let refusal = refused(running.ask(&activate(&caller, &acme(1))).await);
    assert_eq!(refusal, Refusal::ScopeMissing(Scope::PoliciesManage));
    running.stop().await;
}
