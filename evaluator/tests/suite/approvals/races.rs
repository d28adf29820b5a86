//! Of two who act at the same time one succeeds, and the answer of the other says what happened.

use super::*;

/// Each race is run this often, so that it ends in more than one way.
const ROUNDS: u64 = 8;

fn goal(number: u64) -> String {
    format!("Carry out change number {number}")
}

/// The one that succeeded, and the answer of the other.
#[track_caller]
fn one_of(replies: (ManageReply<ApprovalChanged>, ManageReply<ApprovalChanged>)) -> (Approval, String) {
    match replies {
        (ManageReply::Done(done), ManageReply::Refused(Refusal::Conflict(text)))
        | (ManageReply::Refused(Refusal::Conflict(text)), ManageReply::Done(done)) => (done.approval, text),
        replies => panic!("not one of two: {replies:?}"),
    }
}

fn why(decision: &Decision) -> &str {
    detail(decision, "approval").and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn of_two_votes_that_would_each_complete_an_approval_the_later_one_hears_that_it_was_decided() {
    let stage = Stage::new(2).await;
    for number in 0..ROUNDS {
        let approval = stage.open(&check(number, &goal(number))).await;
        assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
        let (done, text) = one_of(tokio::join!(stage.vote("bob", &approval), stage.vote("cem", &approval)));
        assert_eq!((done.status, done.votes.len()), (ApprovalStatus::Approved, 2));
        assert_eq!(text, "it was decided already: it is approved");
        assert_eq!(stage.seen(&approval).await.votes, done.votes, "the later vote does not count");
    }
}

#[tokio::test]
async fn of_an_approval_and_a_denial_the_later_one_hears_which_came_first() {
    let stage = Stage::new(2).await;
    for number in 0..ROUNDS {
        let approval = stage.open(&check(number, &goal(number))).await;
        assert!(matches!(stage.vote("ann", &approval).await, ManageReply::Done(_)));
        let (cem, deny) = (member("cem"), ApprovalChange::Deny { action_digest: approval.action_digest.clone() });
        let denial = stage.change(&cem, &approval, deny, "not on a Friday");
        let (done, text) = one_of(tokio::join!(stage.vote("bob", &approval), denial));
        assert_eq!(text, format!("it was decided already: it is {}", done.status.as_str()));
        assert_eq!(stage.seen(&approval).await.status, done.status);
    }
}

#[tokio::test]
async fn of_two_checks_that_use_an_approval_the_later_one_names_the_other() {
    let stage = Stage::new(2).await;
    for number in 0..ROUNDS {
        let (goal, first) = (goal(number), 100 + 2 * number);
        let approval = stage.approved(&check(number, &goal)).await;
        let messages = [check(first, &goal), check(first + 1, &goal)];
        let (one, other) = tokio::join!(stage.check(&messages[0]), stage.check(&messages[1]));
        let (winner, loser) = if one.decision.verdict == Verdict::Allow { (one, other) } else { (other, one) };
        assert_eq!((winner.decision.verdict, loser.decision.verdict), (Verdict::Allow, Verdict::Defer));
        let used_by = stage.seen(&approval).await.used_by.unwrap();
        assert_eq!(winner.events.last().unwrap().request_id, Some(used_by));
        assert_eq!(why(&loser.decision), "another check uses the approval, or used it");
        assert_eq!(detail(&loser.decision, "used_by"), Some(&used_by.to_string().into()));
        assert!(loser.decision.approval.is_none() && loser.events.is_empty());
    }
}

/// What came of a use and a cancellation of the same approval.
async fn settled_race(stage: &Stage, approval: &ApprovalRef, used: Evaluation, reply: ManageReply<ApprovalChanged>) {
    let seen = stage.seen(approval).await.status;
    if used.decision.verdict == Verdict::Allow {
        refused(reply, "it is too late: the approval was used");
        assert_eq!(seen, ApprovalStatus::Reserved);
        return;
    }
    assert!(matches!(reply, ManageReply::Done(_)), "{reply:?}");
    assert_eq!((used.decision.verdict, seen), (Verdict::Defer, ApprovalStatus::Cancelled));
    assert_eq!(why(&used.decision), "the last approval is cancelled: this is a new one");
    let next = used.decision.approval.unwrap();
    assert_eq!(next.status, ApprovalStatus::Pending);
    assert_ne!(next.id, approval.id);
}

#[tokio::test]
async fn of_a_use_and_a_cancellation_the_later_one_hears_of_the_other() {
    let stage = Stage::new(2).await;
    let cancel =
        async |approval: &ApprovalRef| stage.change(&agent(), approval, ApprovalChange::Cancel {}, "not needed").await;
    for number in 0..ROUNDS {
        let (goal, message) = (goal(number), check(100 + number, &goal(number)));
        let approval = stage.approved(&check(number, &goal)).await;
        let (used, cancelled) = match number {
            0 => {
                let used = stage.check(&message).await;
                assert_eq!(used.decision.verdict, Verdict::Allow);
                (used, cancel(&approval).await)
            }
            1 => {
                let cancelled = cancel(&approval).await;
                (stage.check(&message).await, cancelled)
            }
            _ => tokio::join!(stage.check(&message), cancel(&approval)),
        };
        settled_race(&stage, &approval, used, cancelled).await;
    }
}
