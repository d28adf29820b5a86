//! Stops: what they reach, who makes and resumes them, and that every gateway is notified.

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::Event;
use stage0_contract::{
    AccountId, ApiKey, Caller, CreateStop, KeyChanged, ListStops, ManageReply, Refusal, ResumeStop, RotateKey, Scope,
    Stop, StopId, StopScope,
};

use crate::harness::{LOSSES, Running, caller_of, done, next_key_notice, refused, wait_for};

pub(crate) fn create(caller: &Caller, scope: StopScope) -> CreateStop {
    CreateStop {
        caller: caller.clone(),
        account: None,
        scope,
        value: None,
        reason: "incident 12".to_owned(),
        until: None,
    }
}

fn resume(caller: &Caller, id: &StopId) -> ResumeStop {
    ResumeStop { caller: caller.clone(), id: id.clone(), reason: "fixed".to_owned() }
}

/// The stops that hold for a key's checks.
pub(crate) async fn of_key(running: &Running, key: &ApiKey) -> Vec<Stop> {
    running.verify(key).await.unwrap().rules.stops
}

pub(crate) async fn listed(running: &Running, account: &AccountId) -> Vec<Stop> {
    let caller = running.operator.clone();
    done(running.ask(&ListStops { caller, account: Some(account.clone()), cursor: None, limit: 1_000 }).await).items
}

#[tokio::test]
async fn a_stop_is_in_the_identity_of_its_accounts_keys_until_a_member_resumes_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, other) = (running.account("a").await.id, running.account("b").await.id);
    let (checks, bystander) =
        (running.key(&account, &[Scope::Check]).await, running.key(&other, &[Scope::Check]).await);
    let workload = running.key(&account, &[Scope::StopsManage]).await;
    let (person, by_person) = running.member(&account, &[Scope::StopsManage]).await;
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let stop = done(running.ask(&create(&caller_of(&workload), StopScope::Account)).await);
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!((&stop.account, &stop.key_id, &stop.member_id), (&Some(account.clone()), &workload.id, &None));
    assert_eq!(of_key(&running, &checks.key).await, std::slice::from_ref(&stop));
    assert_eq!(listed(&running, &account).await, std::slice::from_ref(&stop));
    assert!(of_key(&running, &bystander.key).await.is_empty() && listed(&running, &other).await.is_empty());
    let by_workload = refused(running.ask(&resume(&caller_of(&workload), &stop.id)).await);
    assert!(matches!(by_workload, Refusal::Conflict(_)), "{by_workload:?}");
    assert_eq!(of_key(&running, &checks.key).await.len(), 1);
    assert_eq!(done(running.ask(&resume(&by_person, &stop.id)).await), stop, "as it was");
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert!(of_key(&running, &checks.key).await.is_empty() && listed(&running, &account).await.is_empty());
    assert_eq!(done(running.ask(&resume(&by_person, &stop.id)).await), stop, "a repeated call");
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    let of_member = done(running.ask(&create(&by_person, StopScope::Account)).await);
    assert_eq!(of_member.member_id, Some(person));
    done(running.ask(&resume(&running.operator, &of_member.id)).await);
    running.stop().await;
}

#[tokio::test]
async fn a_stop_of_all_reaches_every_account_and_is_the_operators() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let checks = running.key(&account, &[Scope::Check]).await;
    let (_, by_person) = running.member(&account, &[Scope::StopsManage]).await;
    let missing = Refusal::ScopeMissing(Scope::Operator);
    assert_eq!(refused(running.ask(&create(&by_person, StopScope::All)).await), missing);
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let stop = done(running.ask(&create(&running.operator, StopScope::All)).await);
    assert_eq!(notices.next().await, Some(Event::Message(KeyChanged::Any {})));
    assert_eq!(stop.account, None);
    assert_eq!(of_key(&running, &checks.key).await, std::slice::from_ref(&stop));
    let operators = running.operator.key.clone().unwrap();
    assert_eq!(of_key(&running, &operators).await, std::slice::from_ref(&stop), "and once for the operator");
    assert_eq!(listed(&running, &running.operator.account).await, std::slice::from_ref(&stop));
    assert!(listed(&running, &account).await.is_empty());
    assert_eq!(refused(running.ask(&resume(&by_person, &stop.id)).await), Refusal::NotFound);
    done(running.ask(&resume(&running.operator, &stop.id)).await);
    assert_eq!(notices.next().await, Some(Event::Message(KeyChanged::Any {})));
    assert!(of_key(&running, &checks.key).await.is_empty() && of_key(&running, &operators).await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn stops_survive_restarts_and_lost_files() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let checks = running.key(&account, &[Scope::Check]).await;
    let environment = CreateStop {
        account: Some(account.clone()),
        value: Some("production".to_owned()),
        ..create(&running.operator, StopScope::Environment)
    };
    let stop = done(running.ask(&environment).await);
    let all = done(running.ask(&create(&running.operator, StopScope::All)).await);
    let ended = CreateStop { account: Some(account.clone()), ..create(&running.operator, StopScope::Account) };
    let ended = done(running.ask(&ended).await);
    done(running.ask(&resume(&running.operator, &ended.id)).await);
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        assert_eq!(of_key(&running, &checks.key).await, [stop.clone(), all.clone()], "{lost:?}");
        assert_eq!(listed(&running, &account).await, std::slice::from_ref(&stop), "{lost:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_stop_ends_by_itself_at_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let checks = running.key(&account, &[Scope::Check]).await;
    let stops = running.caller(&account, &[Scope::StopsManage]).await;
    let until = Timestamp::now() + SignedDuration::from_secs(2);
    let brief = CreateStop { until: Some(until), ..create(&stops, StopScope::Account) };
    let brief = done(running.ask(&brief).await);
    assert_eq!(brief.until, Some(Timestamp::from_second(until.as_second()).unwrap()), "whole seconds");
    wait_for("the end of the stop", async || of_key(&running, &checks.key).await.is_empty()).await;
    assert!(listed(&running, &account).await.is_empty());
    // The next change notes its end.
    let next = done(running.ask(&create(&stops, StopScope::Account)).await);
    assert_eq!(listed(&running, &account).await, [next]);
    running.stop().await;
}

#[tokio::test]
async fn an_equal_stop_is_made_once_and_a_hundred_hold_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let (_, by) = running.member(&account, &[Scope::StopsManage]).await;
    let tool = |number: usize| CreateStop { value: Some(format!("tool_{number}")), ..create(&by, StopScope::Tool) };
    let first = done(running.ask(&tool(0)).await);
    assert_eq!(done(running.ask(&tool(0)).await), first, "its notice may have been lost");
    let worded = CreateStop { reason: "another".to_owned(), ..tool(0) };
    assert_ne!(done(running.ask(&worded).await).id, first.id);
    for number in 1..99 {
        done(running.ask(&tool(number)).await);
    }
    assert_eq!(listed(&running, &account).await.len(), 100);
    assert!(matches!(refused(running.ask(&tool(99)).await), Refusal::Conflict(_)));
    assert_eq!(done(running.ask(&tool(0)).await), first, "which is no new one");
    done(running.ask(&resume(&by, &first.id)).await);
    done(running.ask(&tool(99)).await);
    running.stop().await;
}

#[tokio::test]
async fn a_stop_of_a_rotated_key_names_its_workload() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, other) = (running.account("a").await.id, running.account("b").await.id);
    let first = running.key(&account, &[Scope::Check]).await;
    let rotate = RotateKey { caller: running.operator.clone(), id: first.id.clone(), overlap_seconds: 0 };
    let second = done(running.ask(&rotate).await);
    let stops = running.caller(&account, &[Scope::StopsManage]).await;
    let call = |id: &str| CreateStop { value: Some(id.to_owned()), ..create(&stops, StopScope::Key) };
    let stop = done(running.ask(&call(second.id.as_str())).await);
    assert_eq!(stop.value.as_deref(), Some(first.id.as_str()));
    assert_eq!(running.verify(&second.key).await.unwrap().holder.unwrap().workload, first.id);
    let foreign = running.key(&other, &[Scope::Check]).await;
    for unknown in [foreign.id.as_str(), "nothing", "no/key"] {
        match refused(running.ask(&call(unknown)).await) {
            Refusal::Invalid(errors) => assert_eq!(errors[0].path, "value"),
            other => panic!("{other:?}"),
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn calls_about_stops_need_their_scope_and_reach_no_other_account() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let foreign = CreateStop { account: Some(theirs.clone()), ..create(&running.operator, StopScope::Account) };
    let foreign = done(running.ask(&foreign).await);
    let (_, manager) = running.member(&mine, &[Scope::StopsManage]).await;
    let (_, others) = running.member(&mine, &[Scope::MembersManage, Scope::KeysManage]).await;
    for (caller, refusal) in [(manager, Refusal::NotFound), (others, Refusal::ScopeMissing(Scope::StopsManage))] {
        let stop = CreateStop { account: Some(theirs.clone()), ..create(&caller, StopScope::Account) };
        assert_eq!(refused(running.ask(&stop).await), refusal);
        let list = ListStops { caller: caller.clone(), account: Some(theirs.clone()), cursor: None, limit: 1 };
        assert_eq!(refused(running.ask(&list).await), refusal);
        assert_eq!(refused(running.ask(&resume(&caller, &foreign.id)).await), refusal);
    }
    assert_eq!(listed(&running, &theirs).await.len(), 1);
    let unknown = StopId::parse("stop_none").unwrap();
    assert_eq!(refused(running.ask(&resume(&running.operator, &unknown)).await), Refusal::NotFound);
    let unproven = Caller { key: None, ..running.operator.clone() };
    assert_eq!(running.ask(&create(&unproven, StopScope::All)).await, ManageReply::Failed);
    running.stop().await;
}
