//! Who approves: people as they are when the vote counts, and systems outside.

use super::*;

#[tokio::test]
async fn every_vote_that_may_not_count_is_refused() {
    let stage = Stage::new(2).await;
    let approval = stage.open(&check(1, GOAL)).await;
    refused(stage.vote("owner", &approval).await, "somebody else must decide");
    refused(stage.vote("sock", &approval).await, "somebody else must decide");
    refused(stage.vote("dan", &approval).await, "`rm`");
    refused(stage.vote("gone", &approval).await, "removed");
    let approve = || ApprovalChange::Approve { action_digest: approval.action_digest.clone() };
    let mut asker = agent();
    assert_eq!(
        stage.change(&asker, &approval, approve(), "").await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsDecide))
    );
    asker.scopes.insert(Scope::ApprovalsDecide);
    asker.holder.member = Some(MemberId::parse("ann").unwrap());
    refused(stage.change(&asker, &approval, approve(), "").await, "somebody else must decide");
    let foreign = actor("other", Holder::of_workload(KeyId::parse("other").unwrap()), &[Scope::Check]);
    assert_eq!(stage.change(&foreign, &approval, approve(), "").await, ManageReply::Refused(Refusal::NotFound));
    let other = ApprovalChange::Approve { action_digest: ActionDigest::parse(&"0".repeat(64)).unwrap() };
    refused(stage.change(&member("ann"), &approval, other, "").await, "read the approval again");
    let deny = || ApprovalChange::Deny { action_digest: approval.action_digest.clone() };
    for reason in ["", "bad \u{202e}reason", &"x".repeat(1_001)] {
        let reply = stage.change(&member("ann"), &approval, deny(), reason).await;
        assert!(matches!(reply, ManageReply::Refused(Refusal::Invalid(_))), "{reply:?}");
    }
    let mut unrecordable = member("ann");
    unrecordable.can_record = false;
    assert_eq!(stage.change(&unrecordable, &approval, approve(), "").await, ManageReply::Failed);
    assert!(stage.seen(&approval).await.votes.is_empty(), "nothing of this counted");
    assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
    refused(stage.vote("ann", &approval).await, "decided already");
    let foreign = ChangeApproval {
        account: AccountId::parse("other").unwrap(),
        actor: member("bob"),
        id: approval.id.clone().unwrap(),
        change: approve(),
        reason: String::new(),
    };
    assert_eq!(stage.ask(&foreign).await, ManageReply::Refused(Refusal::NotFound));
    assert!(matches!(stage.vote("bob", &approval).await, ManageReply::Done(_)));
    refused(stage.vote("cem", &approval).await, "decided already");
}

#[tokio::test]
async fn people_who_left_between_vote_and_use_no_longer_count() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    stage.people.lock().unwrap().members[1].groups = vec!["dev".to_owned()];
    let decided = stage.check(&check(2, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer);
    assert_eq!(decided.approval.unwrap().status, ApprovalStatus::Pending);
    let seen = stage.seen(&approval).await;
    assert_eq!((seen.status, seen.votes.len()), (ApprovalStatus::Pending, 1));
    assert!(matches!(stage.vote("cem", &approval).await, ManageReply::Done(_)));
    stage.people.lock().unwrap().members.remove(0);
    assert_eq!(stage.check(&check(3, GOAL)).await.decision.verdict, Verdict::Defer, "ann was removed");
    stage.people.lock().unwrap().members[0].groups = vec!["rm".to_owned()];
    assert!(matches!(stage.vote("bob", &approval).await, ManageReply::Done(_)));
    assert_eq!(stage.check(&check(4, GOAL)).await.decision.verdict, Verdict::Allow);
}

#[tokio::test]
async fn a_new_maker_between_vote_and_use_makes_two_people_one() {
    let stage = Stage::new(1).await;
    stage.approved(&check(1, GOAL)).await;
    stage.people.lock().unwrap().members[0].made_by = vec![Person::Member(MemberId::parse("owner").unwrap())];
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Defer, "the owner changed ann's groups");
}

#[tokio::test]
async fn a_system_outside_registers_approvals_with_its_scope() {
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let register = |names: &[&str]| ApprovalChange::Register {
        action_digest: approval.action_digest.clone(),
        external: ExternalApproval {
            approved_by: names.iter().map(|name| (*name).to_owned()).collect(),
            evidence: "ticket 7".to_owned(),
        },
    };
    let system = actor("itsm", Holder::of_workload(KeyId::parse("itsm").unwrap()), &[Scope::ApprovalsGrant]);
    let mut without = system.clone();
    without.scopes = [Scope::DecisionsRead].into();
    assert_eq!(
        stage.change(&without, &approval, register(&["Kim"]), "").await,
        ManageReply::Refused(Refusal::ScopeMissing(Scope::ApprovalsGrant))
    );
    let mut own = agent();
    own.scopes = [Scope::ApprovalsGrant].into();
    refused(stage.change(&own, &approval, register(&["Kim", "Lee"]), "").await, "somebody else");
    assert!(matches!(
        stage.change(&system, &approval, register(&[]), "").await,
        ManageReply::Refused(Refusal::Invalid(_))
    ));
    let ManageReply::Done(done) = stage.change(&system, &approval, register(&["Kim", "Lee"]), "").await else {
        panic!("not registered")
    };
    assert_eq!(done.approval.status, ApprovalStatus::Approved);
    assert_eq!(done.approval.votes[0].external.as_ref().unwrap().evidence, "ticket 7", "evidence is kept");
    assert_eq!(stage.check(&check(2, GOAL)).await.decision.verdict, Verdict::Allow);
}
