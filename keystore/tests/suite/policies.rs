//! Policies: who publishes and activates what, whom it reaches, and what is there after a restart.

use stage0_backplane::Event;
use stage0_contract::{
    AccountId, ActivatePolicy, Activation, ActivationKind, ApiKey, Caller, FetchPolicy, ForgetPolicy, KeyChanged,
    ListPolicies, MAX_POLICIES_OF_ACCOUNT, ManageReply, PoliciesInForce, PolicyBundle, PolicyChanged, PolicyFiles,
    PolicySummary, PolicyVersion, PublishedPolicy, ReadActivePolicies, ReadPolicyHistory, Refusal, RollbackPolicy,
    Scope, ShowPolicy, StorePolicy,
};

use crate::harness::{LOSSES, Running, done, next_key_notice, refused};

pub(crate) fn version(text: &str) -> PolicyVersion {
    PolicyVersion::parse(text).unwrap()
}

/// `acme@1.0.0` and so on; the digest says nothing here.
pub(crate) fn acme(number: u32) -> PolicyVersion {
    version(&format!("acme@1.{number}.0+0123456789ab"))
}

fn bundle(of: &PolicyVersion) -> PolicyBundle {
    let files = [("pack.toml".to_owned(), format!("# {of}\n\"quoted\"\tand ä\n"))].into();
    PolicyBundle { packs: vec![PolicyFiles { files }] }
}

pub(crate) fn store(caller: &Caller, version: &PolicyVersion) -> StorePolicy {
    let summary = PolicySummary {
        version: version.clone(),
        rules: 60,
        cases: 400,
        weakens: Vec::new(),
        parents: vec![PolicyVersion::parse("baseline@2.0.0+0123456789ab").unwrap()],
    };
    StorePolicy { caller: caller.clone(), account: None, summary, bundle: bundle(version), is_trial: false }
}

pub(crate) fn forget(caller: &Caller, version: &PolicyVersion) -> ForgetPolicy {
    ForgetPolicy { caller: caller.clone(), version: version.clone(), account: None, is_trial: false }
}

pub(crate) fn activate(caller: &Caller, version: &PolicyVersion) -> ActivatePolicy {
    ActivatePolicy {
        replayed_until: None,
        canary: None,
        replayed: None,
        caller: caller.clone(),
        version: version.clone(),
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
    }
}

pub(crate) fn roll_back(caller: &Caller) -> RollbackPolicy {
    RollbackPolicy {
        sequence: None,
        caller: caller.clone(),
        account: None,
        environment: None,
        floor: false,
        reason: None,
        expected: None,
        is_trial: false,
    }
}

pub(crate) async fn publish(running: &Running, caller: &Caller, version: &PolicyVersion) -> PublishedPolicy {
    done(running.ask(&store(caller, version)).await).policy
}

pub(crate) async fn listed(running: &Running, caller: &Caller) -> Vec<PolicyVersion> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let list = ListPolicies { caller: caller.clone(), account: None, cursor, limit: 2 };
        let page = done(running.ask(&list).await);
        found.extend(page.items.into_iter().map(|policy| policy.summary.version));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return found;
        }
    }
}

pub(crate) async fn history(running: &Running, caller: &Caller) -> Vec<Activation> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let read = ReadPolicyHistory { caller: caller.clone(), account: None, cursor, limit: 2 };
        let page = done(running.ask(&read).await);
        found.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return found;
        }
    }
}

/// What decides a check of this key in this environment, and the floor.
pub(crate) async fn decides(running: &Running, key: &ApiKey, environment: Option<&str>) -> [Option<PolicyVersion>; 2] {
    let rules = running.verify(key).await.unwrap().rules;
    [rules.policy.of(environment).cloned(), rules.floor]
}

async fn in_force(running: &Running, caller: &Caller) -> PoliciesInForce {
    done(running.ask(&ReadActivePolicies { caller: caller.clone(), account: None }).await)
}

/// An account with a caller that manages its policies, and a key that checks.
pub(crate) async fn managing(running: &Running, name: &str) -> (AccountId, Caller, ApiKey) {
    let account = running.account(name).await.id;
    let caller = running.caller(&account, &[Scope::PoliciesManage]).await;
    let checks = running.key(&account, &[Scope::Check]).await.key;
    (account, caller, checks)
}

#[tokio::test]
async fn a_published_version_never_changes_and_only_its_account_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let (_, other, _) = managing(&running, "b").await;
    let mut hints = running.backplane.notices.subscribe::<PolicyChanged>().await.unwrap();
    let first = done(running.ask(&store(&caller, &acme(1))).await);
    assert!(
        first.is_new
            && first.policy.account == Some(account.clone())
            && first.policy.key_id.as_ref() == Some(&caller.key_id)
    );
    let hint = PolicyChanged { account: Some(account.clone()), versions: vec![acme(1)] };
    assert_eq!(hints.next().await, Some(Event::Message(hint)));
    let again = done(running.ask(&store(&caller, &acme(1))).await);
    assert_eq!((again.is_new, &again.policy), (false, &first.policy));
    match refused(running.ask(&store(&caller, &version("acme@1.1.0+ba9876543210"))).await) {
        Refusal::Conflict(text) => assert!(text.contains("raise `version`"), "{text}"),
        other => panic!("{other:?}"),
    }
    // Another account may have a pack of the same name and number.
    publish(&running, &other, &version("acme@1.1.0+ba9876543210")).await;
    publish(&running, &running.operator, &version("house@1.0.0+0123456789ab")).await;
    publish(&running, &caller, &acme(2)).await;
    assert_eq!(listed(&running, &caller).await, [acme(1), acme(2), version("house@1.0.0+0123456789ab")]);
    let show = |caller: &Caller, of: &PolicyVersion| ShowPolicy {
        caller: caller.clone(),
        version: of.clone(),
        account: None,
        files: true,
    };
    let shown = done(running.ask(&show(&caller, &acme(1))).await);
    assert_eq!(shown.packs, Some(bundle(&acme(1)).packs));
    // Its own one with that number is named, and that another account has this version is not.
    let missing = format!("no version `{}` is published here; there is `acme@1.1.0+ba9876543210`", acme(1));
    assert_eq!(refused(running.ask(&show(&other, &acme(1))).await), Refusal::Missing(missing));
    // Which key of the operator's published a pack is not an account's to know.
    for (asker, is_seen) in [(&caller, false), (&running.operator, true)] {
        let shown = done(running.ask(&show(asker, &version("house@1.0.0+0123456789ab"))).await);
        assert_eq!(shown.key_id.is_some(), is_seen);
    }
    let of_other = StorePolicy { account: Some(account), ..store(&other, &acme(3)) };
    assert_eq!(refused(running.ask(&of_other).await), Refusal::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn two_contents_with_one_version_are_never_both_published() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, _) = managing(&running, "a").await;
    publish(&running, &caller, &acme(1)).await;
    // As an author gets it who looks for a second pack with the same short digest.
    let twin = StorePolicy { bundle: bundle(&acme(2)), ..store(&caller, &acme(1)) };
    let refuses = async |what: &str| match refused(running.ask(&twin).await) {
        Refusal::Conflict(text) => assert!(text.contains("raise `version`"), "{what}: {text}"),
        other => panic!("{what}: {other:?}"),
    };
    refuses("while the first is published").await;
    done(running.ask(&forget(&caller, &acme(1))).await);
    refuses("after it was deleted").await;
    let again = done(running.ask(&store(&caller, &acme(1))).await);
    assert!(again.is_new, "the same content comes back");
    running.stop().await;
}

#[tokio::test]
async fn no_other_scope_manages_policies() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let others: Vec<_> = Scope::ALL
        .into_iter()
        .filter(|scope| !matches!(scope, Scope::PoliciesManage | Scope::Operator | Scope::ApprovalsDecide))
        .collect();
    let caller = running.caller(&account, &others).await;
    let missing = Refusal::ScopeMissing(Scope::PoliciesManage);
    assert_eq!(refused(running.ask(&store(&caller, &acme(1))).await), missing);
    publish(&running, &running.operator, &acme(1)).await;
    assert_eq!(refused(running.ask(&activate(&caller, &acme(1))).await), missing);
    assert_eq!(refused(running.ask(&roll_back(&caller)).await), missing);
    let list = ListPolicies { caller: caller.clone(), account: None, cursor: None, limit: 1 };
    assert_eq!(refused(running.ask(&list).await), missing);
    let read = ReadActivePolicies { caller: caller.clone(), account: None };
    assert_eq!(refused(running.ask(&read).await), missing);
    let forget = ForgetPolicy { caller, version: acme(1), account: None, is_trial: false };
    assert_eq!(refused(running.ask(&forget).await), missing);
    running.stop().await;
}

#[tokio::test]
async fn an_activation_is_in_the_identity_of_its_accounts_keys_until_it_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    let (_, _, bystander) = managing(&running, "b").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let trial = ActivatePolicy { is_trial: true, ..activate(&caller, &acme(1)) };
    assert_eq!(done(running.ask(&trial).await).activation.version, Some(acme(1)));
    assert_eq!(decides(&running, &checks, None).await, [None, None], "a trial does nothing");
    assert!(history(&running, &caller).await.is_empty());

    let first = done(running.ask(&activate(&caller, &acme(1))).await);
    assert!(first.is_new && first.activation.from.is_none());
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!(decides(&running, &checks, Some("prod")).await, [Some(acme(1)), None]);
    assert_eq!(decides(&running, &bystander, None).await, [None, None]);
    let again = done(running.ask(&activate(&caller, &acme(1))).await);
    assert!(!again.is_new, "nothing changes");
    assert_eq!(next_key_notice(&mut notices).await.0, account, "the first notice may have been lost");

    let staging = ActivatePolicy { environment: Some("staging".to_owned()), ..activate(&caller, &acme(2)) };
    done(running.ask(&staging).await);
    assert_eq!(decides(&running, &checks, Some("stg")).await[0], Some(acme(2)));
    assert_eq!(decides(&running, &checks, Some("prod")).await[0], Some(acme(1)));

    let stale = ActivatePolicy { expected: Some(acme(2)), ..activate(&caller, &acme(2)) };
    assert!(matches!(refused(running.ask(&stale).await), Refusal::Conflict(_)));
    let current = ActivatePolicy { expected: Some(acme(1)), reason: Some("why".to_owned()), ..stale };
    assert_eq!(done(running.ask(&current).await).activation.from, Some(acme(1)));

    let back = RollbackPolicy { expected: Some(acme(2)), ..roll_back(&caller) };
    let undone = done(running.ask(&back).await).activation;
    assert_eq!(
        (undone.kind, &undone.version, &undone.from),
        (ActivationKind::RolledBack, &Some(acme(1)), &Some(acme(2)))
    );
    assert!(matches!(refused(running.ask(&back).await), Refusal::Conflict(_)), "a repeated call goes back once");
    assert_eq!(decides(&running, &checks, None).await[0], Some(acme(1)));
    // One that was tried before another change is not made.
    let late = RollbackPolicy { sequence: Some(undone.sequence), ..roll_back(&caller) };
    assert!(done(running.ask(&late).await).is_outdated);
    assert_eq!(decides(&running, &checks, None).await[0], Some(acme(1)));
    let next = RollbackPolicy { sequence: Some(undone.sequence + 1), ..late };
    assert!(!done(running.ask(&next).await).is_outdated);
    assert_eq!(decides(&running, &checks, None).await[0], None);
    assert!(matches!(refused(running.ask(&roll_back(&caller)).await), Refusal::Conflict(_)));
    assert_eq!(decides(&running, &checks, Some("staging")).await[0], Some(acme(2)), "which has its own");

    let sequences: Vec<_> = history(&running, &caller).await.iter().map(|change| change.sequence).collect();
    assert_eq!(sequences, [5, 4, 3, 2, 1]);
    let unknown = activate(&caller, &acme(9));
    assert!(matches!(refused(running.ask(&unknown).await), Refusal::Missing(_)));
    running.stop().await;
}

#[tokio::test]
async fn an_activation_that_was_judged_against_something_else_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, checks) = managing(&running, "a").await;
    for number in [1, 2, 3] {
        publish(&running, &caller, &acme(number)).await;
    }
    let judged = |version: &PolicyVersion, against: Vec<Option<PolicyVersion>>| ActivatePolicy {
        judged: Some(against),
        accept_flips: Some(3),
        diff_digest: Some("0123456789abcdef".repeat(4)),
        ..activate(&caller, version)
    };
    let trial = ActivatePolicy { is_trial: true, ..activate(&caller, &acme(1)) };
    assert_eq!(done(running.ask(&trial).await).replaces, [None], "the evaluators' own");
    let first = done(running.ask(&judged(&acme(1), vec![None])).await);
    assert!(first.is_new && !first.is_outdated);
    assert_eq!((first.activation.accepted_flips, first.activation.diff_digest.is_some()), (Some(3), true));
    assert_eq!(history(&running, &caller).await[0].accepted_flips, Some(3));

    // Another one was activated after it was tried.
    let late = done(running.ask(&judged(&acme(2), vec![None])).await);
    assert!(late.is_outdated && !late.is_new);
    assert_eq!(late.replaces, [Some(acme(1))]);
    assert_eq!(decides(&running, &checks, None).await[0], Some(acme(1)), "nothing changed");
    assert_eq!(history(&running, &caller).await.len(), 1);
    // It was active when it was tried, and is no longer.
    let gone = done(running.ask(&judged(&acme(3), vec![Some(acme(3))])).await);
    assert!(gone.is_outdated);
    let again = done(running.ask(&judged(&acme(1), vec![Some(acme(1))])).await);
    assert!(!again.is_outdated && !again.is_new, "which is active already");

    let none = ActivatePolicy { accept_flips: Some(0), ..judged(&acme(2), vec![Some(acme(1))]) };
    let made = done(running.ask(&none).await);
    assert_eq!((made.is_new, made.activation.accepted_flips), (true, None), "nothing was looser");
    assert_eq!(decides(&running, &checks, None).await[0], Some(acme(2)));
    running.stop().await;
}

#[tokio::test]
async fn the_deployments_default_and_floor_are_the_operators_and_reach_every_account() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    let (_, _, other) = managing(&running, "b").await;
    let (house, floor) = (version("house@1.0.0+0123456789ab"), version("floor@1.0.0+0123456789ab"));
    for of_all in [&house, &floor] {
        publish(&running, &running.operator, of_all).await;
    }
    publish(&running, &caller, &acme(1)).await;
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let by_account = ActivatePolicy { floor: true, ..activate(&caller, &floor) };
    assert_eq!(refused(running.ask(&by_account).await), Refusal::ScopeMissing(Scope::Operator));
    done(running.ask(&activate(&running.operator, &house)).await);
    assert_eq!(notices.next().await, Some(Event::Message(KeyChanged::Any {})));
    done(running.ask(&ActivatePolicy { floor: true, ..activate(&running.operator, &floor) }).await);
    for key in [&checks, &other] {
        assert_eq!(decides(&running, key, None).await, [Some(house.clone()), Some(floor.clone())]);
    }
    // What decides is what the caller expects, also where it is the deployment's.
    let own = ActivatePolicy { expected: Some(house.clone()), ..activate(&caller, &acme(1)) };
    done(running.ask(&own).await);
    assert_eq!(decides(&running, &checks, None).await, [Some(acme(1)), Some(floor.clone())]);
    assert_eq!(decides(&running, &other, None).await[0], Some(house.clone()));
    let found = in_force(&running, &caller).await;
    assert_eq!((found.account, found.effective.default), (Some(account.clone()), Some(acme(1))));
    assert_eq!((found.deployment.default, found.floor), (Some(house.clone()), Some(floor.clone())));
    // The operator's packs can be activated by each account, and a pack of an account by no other.
    done(running.ask(&activate(&caller, &house)).await);
    let for_all = refused(running.ask(&activate(&running.operator, &acme(1))).await);
    assert!(matches!(for_all, Refusal::Missing(_)), "{for_all:?}");
    let of_account = ActivatePolicy { account: Some(account), ..activate(&running.operator, &acme(1)) };
    done(running.ask(&of_account).await);
    done(running.ask(&RollbackPolicy { floor: true, ..roll_back(&running.operator) }).await);
    assert_eq!(decides(&running, &checks, None).await, [Some(acme(1)), None]);
    running.stop().await;
}

#[tokio::test]
async fn policies_and_activations_survive_restarts_and_lost_files() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    let floor = version("floor@1.0.0+0123456789ab");
    publish(&running, &running.operator, &floor).await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
        done(running.ask(&activate(&caller, &acme(number))).await);
    }
    done(running.ask(&ActivatePolicy { floor: true, ..activate(&running.operator, &floor) }).await);
    let forget = forget(&running.operator, &acme(3));
    let forget = ForgetPolicy { account: Some(account.clone()), ..forget };
    publish(&running, &caller, &acme(3)).await;
    done(running.ask(&forget).await);
    let before = history(&running, &caller).await;
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        assert_eq!(decides(&running, &checks, None).await, [Some(acme(2)), Some(floor.clone())], "{lost:?}");
        assert_eq!(history(&running, &caller).await, before, "{lost:?}");
        assert_eq!(listed(&running, &caller).await, [acme(1), acme(2), floor.clone()], "{lost:?}");
        let fetch = FetchPolicy { account: Some(account.clone()), version: acme(1) };
        assert_eq!(done(running.ask(&fetch).await).bundle, bundle(&acme(1)), "{lost:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_version_is_forgotten_once_nothing_leads_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    for number in [1, 2, 3] {
        publish(&running, &caller, &acme(number)).await;
    }
    for number in [1, 2] {
        done(running.ask(&activate(&caller, &acme(number))).await);
    }
    let forget = |number| forget(&caller, &acme(number));
    for needed in [1, 2] {
        assert!(matches!(refused(running.ask(&forget(needed)).await), Refusal::Conflict(_)), "{needed}");
    }
    done(running.ask(&forget(3)).await);
    assert!(matches!(refused(running.ask(&forget(3)).await), Refusal::Missing(_)));
    let fetch = |number| FetchPolicy { account: Some(account.clone()), version: acme(number) };
    assert_eq!(refused(running.ask(&fetch(3)).await), Refusal::NotFound);
    done(running.ask(&fetch(2)).await);
    done(running.ask(&roll_back(&caller)).await);
    done(running.ask(&forget(2)).await);
    // One of the operator's is needed by the account that has it active.
    let house = version("house@1.0.0+0123456789ab");
    publish(&running, &running.operator, &house).await;
    done(running.ask(&activate(&caller, &house)).await);
    let by_operator = self::forget(&running.operator, &house);
    assert!(matches!(refused(running.ask(&by_operator).await), Refusal::Conflict(_)));
    running.stop().await;
}

#[tokio::test]
async fn an_evaluator_gets_an_accounts_own_versions_and_the_deployments_and_no_other_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let (other, _, _) = managing(&running, "b").await;
    let house = version("house@1.0.0+0123456789ab");
    publish(&running, &caller, &acme(1)).await;
    publish(&running, &running.operator, &house).await;
    let fetch = async |account: Option<&AccountId>, version: &PolicyVersion| {
        let fetch = FetchPolicy { account: account.cloned(), version: version.clone() };
        match running.ask(&fetch).await {
            ManageReply::Done(fetched) => Some(fetched.bundle),
            ManageReply::Refused(Refusal::NotFound) => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fetch(Some(&account), &acme(1)).await, Some(bundle(&acme(1))));
    assert_eq!(fetch(Some(&other), &acme(1)).await, None);
    assert_eq!(fetch(None, &acme(1)).await, None);
    for account in [Some(&account), Some(&other), None] {
        assert_eq!(fetch(account, &house).await, Some(bundle(&house)));
    }
    running.stop().await;
}

#[tokio::test]
async fn of_two_activations_at_once_both_are_in_the_history_and_the_later_one_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, checks) = managing(&running, "a").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    let (one, two) = (activate(&caller, &acme(1)), activate(&caller, &acme(2)));
    let (one, two) = tokio::join!(running.ask(&one), running.ask(&two));
    let mut made = [done(one).activation, done(two).activation];
    made.sort_by_key(|activation| activation.sequence);
    assert_eq!(made[1].from, made[0].version);
    assert_eq!(decides(&running, &checks, None).await[0], made[1].version);
    let [first, second] = made;
    assert_eq!(history(&running, &caller).await, [second, first]);
    running.stop().await;
}

#[tokio::test]
async fn an_account_keeps_a_hundred_versions() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, _) = managing(&running, "a").await;
    for number in 0..MAX_POLICIES_OF_ACCOUNT {
        publish(&running, &caller, &acme(u32::try_from(number).unwrap())).await;
    }
    assert!(matches!(refused(running.ask(&store(&caller, &acme(100))).await), Refusal::Conflict(_)));
    assert!(!done(running.ask(&store(&caller, &acme(0))).await).is_new, "which is no further one");
    done(running.ask(&forget(&caller, &acme(0))).await);
    publish(&running, &caller, &acme(100)).await;
    running.stop().await;
}
