//! Wider grants.

use super::*;

fn grant(by: &Actor, tool: Option<&str>, seconds: i64) -> CreateGrant {
    CreateGrant {
        account: account(),
        actor: by.clone(),
        holder: Some(agent().holder),
        key_id: agent().key_id,
        run_id: None,
        tool: tool.map(str::to_owned),
        effects: None,
        environment: None,
        until: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
        reason: "release night".to_owned(),
    }
}

#[tokio::test]
async fn a_wider_grant_serves_its_workload_once_enough_people_gave_it() {
    let stage = Stage::new(2).await;
    let made = stage.ask(&grant(&member("ann"), Some("argo_cd"), 3_600)).await;
    let ManageReply::Done(GrantChanged { grant: made, unrecorded }) = made else { panic!("{made:?}") };
    assert_eq!(kinds(&unrecorded.events), [LineType::GrantCreated]);
    stage.settle(&unrecorded.events).await;
    assert_eq!(stage.check(&check(1, GOAL)).await.decision.verdict, Verdict::Defer, "one person is not two");
    let change = |by: &Actor, change| ChangeGrant {
        account: account(),
        actor: by.clone(),
        id: made.id.clone(),
        change,
        reason: "for the release".to_owned(),
    };
    refused(stage.ask(&change(&member("ann"), GrantChange::Approve)).await, "decided already");
    refused(stage.ask(&change(&member("owner"), GrantChange::Approve)).await, "somebody else");
    assert_eq!(stage.ask(&change(&agent(), GrantChange::Approve)).await, ManageReply::Refused(Refusal::NotFound));
    assert!(matches!(stage.ask(&change(&member("bob"), GrantChange::Approve)).await, ManageReply::Done(_)));
    for number in 2..5 {
        let used = stage.check(&check(number, GOAL)).await;
        assert_eq!((used.decision.verdict, used.approval_source), (Verdict::Allow, Some(ApprovalSource::Grant)));
        assert_eq!(used.decision.approval.as_ref().unwrap().grant_id.as_ref(), Some(&made.id));
        let event = used.events.last().unwrap();
        assert_eq!((event.kind, event.request_id), (LineType::ApprovalUsed, Some(id(number))));
        stage.settle(&used.events).await;
    }
    assert_eq!(stage.check(&again(9, 4, GOAL)).await.decision.verdict, Verdict::Allow);
    let other = EvaluateRequest { asker: Some(agent_of("other")), ..check(6, GOAL) };
    assert_eq!(stage.check(&other).await.decision.verdict, Verdict::Defer, "another workload");
    let mut other_tool = check(7, GOAL);
    other_tool.request.tools = vec!["terraform".to_owned()];
    assert_eq!(stage.check(&other_tool).await.decision.verdict, Verdict::Defer, "another tool");
    let list = |actor: Actor| ListGrants { account: account(), actor };
    let ManageReply::Done(listed) = stage.ask(&list(agent())).await else { panic!("no list") };
    assert_eq!((listed.items[0].uses, listed.items[0].votes.len()), (3, 2), "a repeated check is one use");
    assert!(matches!(stage.ask(&list(agent_of("other"))).await, ManageReply::Done(grants) if grants.items.is_empty()));
    assert!(matches!(stage.ask(&change(&member("cem"), GrantChange::Revoke)).await, ManageReply::Done(_)));
    assert_eq!(stage.check(&check(8, GOAL)).await.decision.verdict, Verdict::Defer, "revoked");
    let again = stage.ask(&change(&member("cem"), GrantChange::Revoke)).await;
    assert!(matches!(again, ManageReply::Done(changed) if changed.grant.revoked_at.is_some()), "twice is no error");
    refused(stage.ask(&change(&member("bob"), GrantChange::Approve)).await, "revoked");
}

#[tokio::test]
async fn a_grant_that_is_too_wide_too_long_or_ones_own_is_refused() {
    let stage = Stage::new(1).await;
    let invalid = |reply: ManageReply<GrantChanged>, at: &str| match reply {
        ManageReply::Refused(Refusal::Invalid(errors)) => assert_eq!(errors[0].path, at),
        reply => panic!("{reply:?}"),
    };
    invalid(stage.ask(&grant(&member("ann"), None, 60)).await, "body");
    invalid(stage.ask(&grant(&member("ann"), Some("argo_cd"), 8 * 3_600 + 60)).await, "until");
    invalid(stage.ask(&grant(&member("ann"), Some("argo_cd"), -1)).await, "until");
    invalid(stage.ask(&CreateGrant { holder: None, ..grant(&member("ann"), Some("argo_cd"), 60) }).await, "key_id");
    invalid(
        stage.ask(&CreateGrant { reason: String::new(), ..grant(&member("ann"), Some("argo_cd"), 60) }).await,
        "reason",
    );
    for own in ["owner", "sock"] {
        refused(stage.ask(&grant(&member(own), Some("argo_cd"), 60)).await, "somebody else");
    }
    refused(stage.ask(&grant(&member("gone"), Some("argo_cd"), 60)).await, "removed");
    assert_eq!(
        stage.ask(&grant(&agent(), Some("argo_cd"), 60)).await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide))
    );
    assert!(matches!(stage.ask(&grant(&member("ann"), Some("argo_cd"), 8 * 3_600 - 1)).await, ManageReply::Done(_)));
}
