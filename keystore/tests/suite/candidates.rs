//! Policies that are tried: who may, whom it reaches, and what is there after a restart or a kill.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use stage0_backplane::Event;
use stage0_contract::{
    AccountId, ActivatePolicy, Activation, ActivationKind, ApiKey, Caller, CanaryTerms, CandidateCounts, CandidateMode,
    KeyChanged, ListActiveVersions, PoliciesInForce, PolicyCandidate, PolicyChanged, ReadActivePolicies,
    ReadPolicyHistory, Refusal, ReturnAt, ReturnCanary, Scope, ShadowPolicy, UpdateAccount, WithdrawCandidate,
};

use crate::harness::{LOSSES, Running, done, next_key_notice, refused};
use crate::policies::{acme, activate, decides, forget, history, managing, publish, roll_back, version};
use crate::webhooks::unchanged;

const TERMS: CanaryTerms =
    CanaryTerms { percent: 20, return_at: ReturnAt { disagreement_percent: 2, error_percent: 0, min_checks: 50 } };

fn shadow(caller: &Caller, number: u32, environment: Option<&str>) -> ShadowPolicy {
    ShadowPolicy {
        caller: caller.clone(),
        version: acme(number),
        account: None,
        environment: environment.map(str::to_owned),
        percent: 100,
        reason: None,
        sequence: None,
        is_trial: false,
    }
}

fn canary(caller: &Caller, number: u32) -> ActivatePolicy {
    ActivatePolicy { canary: Some(TERMS), ..activate(caller, &acme(number)) }
}

fn withdraw(caller: &Caller, environment: Option<&str>) -> WithdrawCandidate {
    WithdrawCandidate {
        caller: caller.clone(),
        account: None,
        environment: environment.map(str::to_owned),
        reason: None,
        sequence: None,
        is_trial: false,
    }
}

fn failing(account: &AccountId, candidate: &PolicyCandidate) -> ReturnCanary {
    let counts = CandidateCounts { checks: 3, errors: 1, ..CandidateCounts::default() };
    ReturnCanary {
        account: account.clone(),
        candidate: candidate.id,
        counts,
        is_uncounted: false,
        sequence: None,
        is_trial: false,
    }
}

/// The candidates of the account, as a check of this key brings them along.
async fn carried(running: &Running, key: &ApiKey) -> Vec<PolicyCandidate> {
    running.verify(key).await.unwrap().rules.candidates
}

async fn in_force(running: &Running, caller: &Caller, account: Option<&AccountId>) -> PoliciesInForce {
    done(running.ask(&ReadActivePolicies { caller: caller.clone(), account: account.cloned() }).await)
}

#[tokio::test]
async fn a_candidate_is_in_the_identity_of_its_accounts_keys_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    let (stranger, _, bystander) = managing(&running, "b").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    done(running.ask(&activate(&caller, &acme(1))).await);
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let mut hints = running.backplane.notices.subscribe::<PolicyChanged>().await.unwrap();
    let trial = ShadowPolicy { is_trial: true, ..shadow(&caller, 2, None) };
    let tried = done(running.ask(&trial).await);
    let hint = PolicyChanged { account: Some(account.clone()), versions: vec![acme(2)] };
    assert_eq!(hints.next().await, Some(Event::Message(hint)), "evaluators load it before a check needs it");
    assert!(carried(&running, &checks).await.is_empty(), "a trial does nothing");
    let begun = done(running.ask(&ShadowPolicy { is_trial: false, ..trial }).await).activation;
    assert_eq!(next_key_notice(&mut notices).await.0, account, "every gateway is told");
    let candidate = begun.candidate.clone().unwrap();
    assert_eq!(Some(candidate.id), tried.activation.candidate.map(|candidate| candidate.id));
    assert_eq!(carried(&running, &checks).await, std::slice::from_ref(&candidate));
    assert!(carried(&running, &bystander).await.is_empty());
    assert_eq!(in_force(&running, &caller, None).await.candidates, std::slice::from_ref(&candidate));
    assert_eq!(in_force(&running, &running.operator, Some(&account)).await.candidates, [candidate]);
    assert!(in_force(&running, &running.operator, None).await.candidates.is_empty());

    let started = done(running.ask(&canary(&caller, 2)).await).activation;
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    let now = carried(&running, &checks).await;
    assert_eq!((now.len(), now[0].mode, Some(&now[0])), (1, CandidateMode::Canary, started.candidate.as_ref()));
    assert_eq!(decides(&running, &checks, None).await[0], Some(acme(1)), "what is active stays");
    let listed = done(running.ask(&ListActiveVersions {}).await).versions;
    assert_eq!(listed.into_iter().map(|listed| listed.version).collect::<Vec<_>>(), [acme(1), acme(2)]);
    match refused(running.ask(&forget(&caller, &acme(2))).await) {
        Refusal::Conflict(text) => assert!(text.contains("it is tried as the canary of the default"), "{text}"),
        other => panic!("{other:?}"),
    }

    assert_eq!(refused(running.ask(&failing(&stranger, &now[0])).await), Refusal::NotFound, "another account's");
    let ended = done(running.ask(&failing(&account, &now[0])).await).activation;
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!((ended.kind, &ended.key_id), (ActivationKind::CanaryEnded, &caller.key_id));
    assert!(carried(&running, &checks).await.is_empty());
    assert_eq!(refused(running.ask(&failing(&account, &now[0])).await), Refusal::NotFound);
    let kinds: Vec<_> = history(&running, &caller).await.into_iter().map(|change| change.kind).collect();
    let expected = [
        ActivationKind::CanaryEnded,
        ActivationKind::CanaryStarted,
        ActivationKind::ShadowStarted,
        ActivationKind::Activated,
    ];
    assert_eq!(kinds, expected);
    done(running.ask(&forget(&caller, &acme(2))).await);
    running.stop().await;
}

#[tokio::test]
async fn only_keys_with_the_scope_try_policies_and_only_in_an_account_that_they_may_name() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    let (_, stranger, _) = managing(&running, "b").await;
    publish(&running, &caller, &acme(1)).await;
    let unscoped = running.caller(&account, &[Scope::Check, Scope::KeysManage]).await;
    let missing = Refusal::ScopeMissing(Scope::PoliciesManage);
    assert_eq!(refused(running.ask(&shadow(&unscoped, 1, None)).await), missing);
    assert_eq!(refused(running.ask(&withdraw(&unscoped, None)).await), missing);
    // A caller who does not hold the key that it names has no scope.
    let forged = Caller { key: Some(checks.clone()), ..caller.clone() };
    assert_eq!(refused(running.ask(&shadow(&forged, 1, None)).await), missing);
    let of_other = |caller: &Caller| ShadowPolicy { account: Some(account.clone()), ..shadow(caller, 1, None) };
    assert_eq!(refused(running.ask(&of_other(&stranger)).await), Refusal::NotFound);
    let other = WithdrawCandidate { account: Some(account.clone()), ..withdraw(&stranger, None) };
    assert_eq!(refused(running.ask(&other).await), Refusal::NotFound);
    let operator = running.operator.clone();
    let named = |refusal: Refusal| match refusal {
        Refusal::Invalid(errors) => errors.into_iter().map(|error| error.path).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(named(refused(running.ask(&shadow(&operator, 1, None)).await)), ["account"]);
    assert_eq!(named(refused(running.ask(&withdraw(&operator, None)).await)), ["account"]);
    assert_eq!(named(refused(running.ask(&canary(&operator, 1)).await)), ["account"]);
    let floor = ActivatePolicy { floor: true, ..canary(&operator, 1) };
    assert_eq!(named(refused(running.ask(&floor).await)), ["floor"]);
    assert!(carried(&running, &checks).await.is_empty());
    done(running.ask(&of_other(&operator)).await);
    assert_eq!(carried(&running, &checks).await.len(), 1);
    done(running.ask(&WithdrawCandidate { caller: operator, ..other }).await);
    assert!(carried(&running, &checks).await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn one_of_the_operators_versions_that_an_account_tries_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, _) = managing(&running, "a").await;
    let house = version("house@1.0.0+0123456789ab");
    publish(&running, &running.operator, &house).await;
    done(running.ask(&ShadowPolicy { version: house.clone(), ..shadow(&caller, 1, Some("staging")) }).await);
    match refused(running.ask(&forget(&running.operator, &house)).await) {
        Refusal::Conflict(text) => {
            let used = format!("it is tried as the shadow of `staging` (account `{account}`)");
            assert!(text.contains(&used), "{text}");
        }
        other => panic!("{other:?}"),
    }
    done(running.ask(&withdraw(&caller, Some("stg"))).await);
    done(running.ask(&forget(&running.operator, &house)).await);
    running.stop().await;
}

#[tokio::test]
async fn of_two_changes_at_once_that_were_tried_at_the_same_place_one_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (_, caller, checks) = managing(&running, "a").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    let (one, two) = (shadow(&caller, 1, None), shadow(&caller, 2, Some("production")));
    let tried = done(running.ask(&ShadowPolicy { is_trial: true, ..one.clone() }).await);
    let sequence = Some(tried.activation.sequence);
    let (one, two) = (ShadowPolicy { sequence, ..one }, ShadowPolicy { sequence, ..two });
    let (one, two) = tokio::join!(running.ask(&one), running.ask(&two));
    let (won, lost) = if done(one.clone()).is_outdated { (two, one) } else { (one, two) };
    let (won, lost) = (done(won), done(lost));
    assert!(!won.is_outdated && lost.is_outdated);
    assert_eq!(carried(&running, &checks).await, [won.activation.candidate.clone().unwrap()]);
    assert_eq!(history(&running, &caller).await, [won.activation]);
    running.stop().await;
}

#[tokio::test]
async fn candidates_and_the_wish_to_record_facts_survive_restarts_and_lost_files() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, caller, checks) = managing(&running, "a").await;
    for number in [1, 2, 3] {
        publish(&running, &caller, &acme(number)).await;
    }
    assert!(!running.verify(&checks).await.unwrap().rules.record_facts);
    let facts = UpdateAccount { record_facts: Some(true), ..unchanged(&running, &account) };
    assert!(done(running.ask(&facts).await).record_facts);
    done(running.ask(&activate(&caller, &acme(1))).await);
    done(running.ask(&shadow(&caller, 3, Some("production"))).await);
    done(running.ask(&canary(&caller, 3)).await);
    done(running.ask(&withdraw(&caller, None)).await);
    done(running.ask(&canary(&caller, 2)).await);
    let (before, changes) = (running.verify(&checks).await.unwrap().rules, history(&running, &caller).await);
    assert_eq!((before.candidates.len(), before.record_facts, changes.len()), (2, true, 5));
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        assert_eq!(running.verify(&checks).await.unwrap().rules, before, "{lost:?}");
        assert_eq!(history(&running, &caller).await, changes, "{lost:?}");
        running.stop().await;
    }
    // What ends a candidate is as durable.
    let running = Running::start(dir.path()).await;
    done(running.ask(&roll_back(&caller)).await);
    done(running.ask(&withdraw(&caller, Some("production"))).await);
    let facts = UpdateAccount { record_facts: Some(false), ..unchanged(&running, &account) };
    assert!(!done(running.ask(&facts).await).record_facts);
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        let rules = running.verify(&checks).await.unwrap().rules;
        assert!(rules.candidates.is_empty() && !rules.record_facts, "{lost:?}");
        running.stop().await;
    }
}

const DIRECTORY: &str = "STAGE0_TEST_CANDIDATES_DIRECTORY";

/// Not a test: the process that is killed runs this. Without its environment variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trying_process() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let running = Running::start(std::path::Path::new(&dir)).await;
    let (account, caller, _) = managing(&running, "a").await;
    for number in [1, 2] {
        publish(&running, &caller, &acme(number)).await;
    }
    println!("\nack account {account}");
    for turn in 0_u32.. {
        println!("\nask {turn}");
        let made = match turn % 3 {
            0 => done(running.ask(&shadow(&caller, 1, None)).await).activation,
            1 => done(running.ask(&canary(&caller, 2)).await).activation,
            _ => done(running.ask(&withdraw(&caller, None)).await).activation,
        };
        println!("\nack {}", made.sequence);
    }
}

#[tokio::test]
async fn after_a_kill_what_is_tried_is_what_the_history_says() {
    for (round, changes) in [1, 6, 20].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "candidates::trying_process", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (mut account, mut acknowledged, mut asked) = (None, 0_u64, 0);
        for line in output.lines().map_while(Result::ok) {
            if let Some(id) = line.strip_prefix("ack account ") {
                account = Some(AccountId::parse(id).unwrap());
            } else if let Some(sequence) = line.strip_prefix("ack ") {
                acknowledged = sequence.parse().unwrap();
            } else if line.starts_with("ask ") {
                asked += 1;
                if asked == changes {
                    // Some time within the change, which takes two writes to the disk.
                    std::thread::sleep(Duration::from_micros(700 * round as u64));
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let running = Running::start(dir.path()).await;
        let (operator, account) = (running.operator.clone(), account.unwrap());
        let found = in_force(&running, &operator, Some(&account)).await.candidates;
        let read = ReadPolicyHistory { caller: operator, account: Some(account), cursor: None, limit: 1_000 };
        let newest = done(running.ask(&read).await).items.into_iter().next();
        assert!(newest.as_ref().map_or(0, |newest| newest.sequence) >= acknowledged, "round {round}");
        let begun =
            |change: &Activation| matches!(change.kind, ActivationKind::ShadowStarted | ActivationKind::CanaryStarted);
        let expected: Vec<_> = newest.filter(begun).and_then(|change| change.candidate).into_iter().collect();
        assert_eq!(found, expected, "round {round}");
        running.stop().await;
    }
}
