//! One check uses what people approved: many at once, the same again, and what becomes of its record.

use super::*;

#[tokio::test]
async fn of_parallel_checks_on_two_evaluators_one_uses_what_two_people_approved() {
    let stage = Stage::new(2).await;
    let opened = stage.check(&check(1, GOAL)).await;
    let approval = opened.decision.approval.clone().unwrap();
    assert_eq!((approval.status, approval.quorum), (ApprovalStatus::Pending, 2));
    assert_eq!(
        (approval.groups.as_slice(), approval.url.starts_with("/v1/approvals/apr_")),
        (&["rm".to_owned()][..], true)
    );
    assert_eq!(kinds(&opened.events), [LineType::ApprovalRequested]);
    let waiting = stage.check(&check(2, GOAL)).await;
    assert_eq!(waiting.decision.approval.as_ref().unwrap().id, approval.id, "one of an action is pending");
    let ManageReply::Done(first) = stage.vote("ann", &approval).await else { panic!("no vote") };
    assert_eq!(first.approval.status, ApprovalStatus::Pending);
    let ManageReply::Done(second) = stage.vote("bob", &approval).await else { panic!("no vote") };
    assert_eq!(second.approval.status, ApprovalStatus::Approved);
    use LineType::{ApprovalApproved, ApprovalRequested, ApprovalReserved, ApprovalUsed, ApprovalVoted};
    assert_eq!(kinds(&second.unrecorded.events), [ApprovalRequested, ApprovalVoted, ApprovalApproved]);
    stage.settle(&second.unrecorded.events).await;
    let mut asks = JoinSet::new();
    for number in 10..74 {
        let requests = Arc::clone(&stage.caller.requests);
        asks.spawn(async move { requests.request(&check(number, GOAL), WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let mut used = Vec::new();
    for reply in replies {
        let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
        match decided.decision.verdict {
            Verdict::Allow => used.push(decided),
            Verdict::Defer => {
                assert!(decided.decision.approval.is_none() || detail(&decided.decision, "used_by").is_some());
            }
            Verdict::Deny => panic!("{decided:?}"),
        }
    }
    assert_eq!(used.len(), 1);
    let used = used.remove(0);
    assert_eq!(used.approval_source, Some(ApprovalSource::Approval));
    assert_eq!(used.decision.approval.as_ref().unwrap().status, ApprovalStatus::Consumed);
    assert_eq!(kinds(&used.events), [ApprovalReserved, ApprovalUsed]);
    let by = used.events[1].request_id.unwrap();
    let other = stage.check(&check(99, GOAL)).await.decision;
    assert_eq!((other.verdict, &other.approval), (Verdict::Defer, &None));
    assert_eq!(detail(&other, "used_by"), Some(&by.to_string().into()));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    stage.settle(&used.events).await;
    let seen = stage.seen(&approval).await;
    assert_eq!((seen.status, seen.used_by), (ApprovalStatus::Consumed, Some(by)));
    assert!(stage.collect().await.is_empty());
    let next = stage.check(&check(100, GOAL)).await.decision;
    assert_eq!(next.approval.as_ref().unwrap().status, ApprovalStatus::Pending, "a used one is followed by a new one");
    assert_ne!(next.approval.unwrap().id, approval.id);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Consumed, "the old one is still found");
}

#[tokio::test]
async fn a_repeated_check_gets_its_allow_again_before_and_after_it_is_recorded() {
    let stage = Stage::new(2).await;
    stage.approved(&check(1, GOAL)).await;
    let first = stage.check(&check(2, GOAL)).await;
    assert_eq!(first.decision.verdict, Verdict::Allow);
    let second = stage.check(&again(3, 2, GOAL)).await;
    assert_eq!((second.decision.verdict, second.events.last().unwrap().request_id), (Verdict::Allow, Some(id(3))));
    stage.settle(&second.events).await;
    let third = stage.check(&again(4, 2, GOAL)).await;
    assert_eq!(third.decision.verdict, Verdict::Allow);
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Defer);
}

#[tokio::test]
async fn a_check_of_a_run_uses_an_approval_once_with_its_counts() {
    let stage = Stage::new(2).await;
    let of_run = |number| with_context(check(number, GOAL), json!({"run_id": "r"}));
    let approval = stage.approved(&of_run(1)).await;
    let mut asks = JoinSet::new();
    for number in 10..42 {
        let (requests, message) = (Arc::clone(&stage.caller.requests), of_run(number));
        asks.spawn(async move { requests.request(&message, WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let decided = replies.iter().filter_map(|reply| match reply {
        EvaluateReply::Decided(decided) => Some(decided.decision.verdict),
        _ => None,
    });
    assert_eq!(decided.filter(|verdict| *verdict == Verdict::Allow).count(), 1);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    let run = stage0_contract::ShowRun { account: account(), run_id: stage0_contract::RunId::parse("r").unwrap() };
    assert!(matches!(stage.ask(&run).await, ManageReply::Done(view) if view.iterations == 1));
}

#[tokio::test]
async fn only_the_workload_that_asked_uses_an_approval() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let by_another = EvaluateRequest { asker: Some(agent_of("other")), ..check(2, GOAL) };
    let decided = stage.check(&by_another).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer);
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().contains("another workload"));
    let mut rotated = agent();
    rotated.key_id = KeyId::parse("agent-2").unwrap();
    let used = stage.check(&EvaluateRequest { asker: Some(rotated), ..check(3, GOAL) }).await.decision;
    assert_eq!((used.verdict, used.approval.unwrap().id), (Verdict::Allow, approval.id));
}

#[tokio::test]
async fn a_decision_that_was_surely_not_recorded_frees_its_approval_and_an_unknown_one_does_not() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Allow);
    stage.release(id(3), &approval).await;
    assert_eq!(stage.check(&check(4, GOAL)).await.decision.verdict, Verdict::Defer, "of another check");
    stage.release(id(2), &approval).await;
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved);
    assert_eq!(stage.check(&check(5, GOAL)).await.decision.verdict, Verdict::Allow);
    stage.age(&approval, 60).await;
    let collected = stage.collect().await;
    assert!(!kinds(&collected).contains(&LineType::ApprovalUsed), "not without its decision");
    stage.settle(&collected).await;
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Reserved);
    let reopen = || ApprovalChange::Reopen {};
    assert!(matches!(
        stage.change(&member("cem"), &approval, reopen(), "").await,
        ManageReply::Refused(Refusal::Invalid(_))
    ));
    refused(stage.change(&member("owner"), &approval, reopen(), "it died").await, "somebody else");
    let ManageReply::Done(reopened) = stage.change(&member("cem"), &approval, reopen(), "it died").await else {
        panic!("not reopened")
    };
    assert_eq!(reopened.approval.status, ApprovalStatus::Approved);
    let used = stage.check(&check(6, GOAL)).await;
    assert_eq!((used.decision.verdict, used.events.last().unwrap().request_id), (Verdict::Allow, Some(id(6))));
    assert!(!used.events.iter().any(|event| event.request_id == Some(id(5)) && event.kind == LineType::ApprovalUsed));
}

#[tokio::test]
async fn a_use_whose_confirmation_was_lost_is_told_to_gateways_and_confirmed() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let used = stage.check(&check(2, GOAL)).await;
    assert_eq!(used.decision.verdict, Verdict::Allow);
    let others: Vec<_> = used.events.iter().filter(|event| event.kind != LineType::ApprovalUsed).cloned().collect();
    stage.settle(&others).await;
    let collect = async || match stage.ask(&CollectEvents { cursor: None }).await {
        ManageReply::Done(page) => page.accounts,
        reply => panic!("not collected: {reply:?}"),
    };
    stage.age(&approval, 60).await;
    let mut told = collect().await;
    assert_eq!((told.len(), told[0].events.len(), told[0].unconfirmed.len()), (1, 0, 1));
    let told = told.remove(0).unconfirmed.remove(0);
    assert_eq!((told.request_id, &told.event.approval_id), (id(2), &approval.id));
    assert!(collect().await.is_empty(), "again in a minute");
    stage.age(&approval, 60).await;
    assert_eq!(collect().await[0].unconfirmed, std::slice::from_ref(&told), "as long as it is not known");
    let settle = SettleEvents { account: account(), recorded: vec![told.event], released: None };
    assert!(matches!(stage.ask(&settle).await, ManageReply::Done(_)));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Consumed);
}

#[tokio::test]
async fn its_workload_reports_what_came_of_the_action() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let report = || ApprovalChange::Report { status: OutcomeStatus::Failed };
    refused(stage.change(&agent(), &approval, report(), "").await, "only of a used approval");
    let used = stage.check(&check(2, GOAL)).await;
    stage.settle(&used.events).await;
    assert_eq!(stage.change(&member("ann"), &approval, report(), "").await, ManageReply::Refused(Refusal::NotFound));
    let ManageReply::Done(done) = stage.change(&agent(), &approval, report(), "").await else { panic!("no report") };
    assert_eq!(done.approval.outcome.unwrap().status, OutcomeStatus::Failed);
    assert_eq!(kinds(&done.unrecorded.events), [LineType::ApprovalOutcome]);
}
