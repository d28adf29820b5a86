//! How approvals end, and that what happened to them is recorded.

use super::*;

#[tokio::test]
async fn a_denied_action_is_denied_for_its_time_and_asked_for_again_afterwards() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let deny = ApprovalChange::Deny { action_digest: approval.action_digest.clone() };
    let reason = "no, the key is AKIAIOSFODNN7EXAMPLE and password=hunter22";
    let ManageReply::Done(denied) = stage.change(&member("ann"), &approval, deny, reason).await else { panic!() };
    let event = denied.unrecorded.events.last().unwrap();
    assert_eq!(event.kind, LineType::ApprovalDenied);
    let told = event.reason.clone().unwrap();
    assert!(!told.contains("hunter22") && !told.contains("AKIAIOSFODNN7EXAMPLE"), "{told}");
    let decided = stage.check(&check(2, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Deny);
    assert!(decided.issues.iter().any(|issue| issue.code.as_str() == "APPROVAL_STATUS_INVALID"));
    assert_eq!(stage.open(&check(3, "Carry out another change")).await.status, ApprovalStatus::Pending);
    stage
        .alter(&record_key(&approval), |record| {
            record["decided_at"] = jiff::Timestamp::from_second(1_000).unwrap().to_string().into();
        })
        .await;
    let next = stage.open(&check(4, GOAL)).await;
    assert_ne!(next.id, approval.id);
}

#[tokio::test]
async fn what_is_not_decided_in_time_expires_by_maintenance_and_is_collected_until_it_is_recorded() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(stage.collect().await.is_empty(), "the gateway that answered has it still");
    stage.age(&approval, 4_000).await;
    let collected = stage.collect().await;
    assert_eq!(kinds(&collected), [LineType::ApprovalRequested, LineType::ApprovalExpired]);
    assert!(stage.collect().await.is_empty(), "handed to one gateway");
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Expired);
    refused(stage.vote("ann", &approval).await, "too late");
    stage.age(&approval, 60).await;
    let again = stage.collect().await;
    let ids = |events: &[ApprovalEvent]| events.iter().map(|event| event.event_id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&collected), "the first gateway died; the same events");
    stage.settle(&again).await;
    let history = ReadApprovalHistory { account: account(), actor: agent(), id: approval.id.clone().unwrap() };
    assert!(matches!(stage.ask(&history).await, ManageReply::Done(history) if history.items.len() == 2));
    assert_ne!(stage.open(&check(2, GOAL)).await.id, approval.id);
    assert!(stage.collect().await.is_empty());
}

#[tokio::test]
async fn what_an_ended_approval_has_not_recorded_is_recorded_by_its_successor() {
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(matches!(stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await, ManageReply::Done(_)));
    let next = stage.check(&check(2, GOAL)).await;
    use LineType::{ApprovalCancelled, ApprovalRequested};
    assert_eq!(kinds(&next.events), [ApprovalRequested, ApprovalCancelled, ApprovalRequested]);
    assert_eq!(next.events[1].approval_id, approval.id);
    stage.settle(&next.events).await;
    let next = next.decision.approval.unwrap();
    stage.age(&next, 60).await;
    assert!(stage.collect().await.is_empty(), "all of it is settled");
    let history = ReadApprovalHistory { account: account(), actor: agent(), id: next.id.unwrap() };
    assert!(matches!(stage.ask(&history).await, ManageReply::Done(history) if history.items.len() == 1));
}

#[tokio::test]
async fn an_outcome_of_an_approval_that_was_replaced_is_recorded() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let used = stage.check(&check(2, GOAL)).await;
    stage.settle(&used.events).await;
    let next = stage.open(&check(3, GOAL)).await;
    assert_ne!(next.id, approval.id);
    let report = ApprovalChange::Report { status: OutcomeStatus::Succeeded };
    assert!(matches!(stage.change(&agent(), &approval, report, "").await, ManageReply::Done(_)));
    stage.age(&next, 60).await;
    let collected = stage.collect().await;
    let outcome = collected.iter().find(|event| event.kind == LineType::ApprovalOutcome).unwrap();
    assert_eq!(outcome.approval_id, approval.id);
    stage.settle(&collected).await;
    stage.age(&next, 60).await;
    assert!(stage.collect().await.is_empty());
}

#[tokio::test]
async fn those_who_wait_hear_of_each_change() {
    let stage = Stage::new(1).await;
    let mut changes = stage.bus.connect().notices.subscribe::<ApprovalsChanged>().await.unwrap();
    let approval = stage.open(&check(1, GOAL)).await;
    assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
    let heard = tokio::time::timeout(WAIT_TIMEOUT, changes.next()).await.unwrap();
    let Some(Event::Message(changed)) = heard else { panic!("{heard:?}") };
    assert_eq!((changed.account, changed.ids), (account(), vec![approval.id.unwrap()]));
}
