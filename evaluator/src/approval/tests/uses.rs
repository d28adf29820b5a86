//! One check uses an approval: reserved, confirmed, released, reopened, and what came of it.

use super::*;

#[test]
fn one_check_uses_an_approval_and_its_repetitions_are_the_same_check() {
    let mut used = approved();
    assert_eq!(claim(&mut used, 2, 2, 1), Reserved::ForThis);
    assert_eq!(claim(&mut used, 3, 3, 2), Reserved::ByAnother(request(2)));
    assert_eq!(claim(&mut used, 2, 2, 1), Reserved::ForThis);
    assert_eq!(claim(&mut used, 2, 4, 3), Reserved::ForThis, "a repetition with its own request id");
    let uses = used.outbox.unrecorded(Some(request(4)));
    let uses: Vec<_> = uses.iter().filter(|event| event.kind == LineType::ApprovalUsed).collect();
    assert_eq!((uses.len(), uses[0].request_id), (1, Some(request(4))), "each attempt tells of itself");
    assert_eq!(claim(&mut approval_of(terms(&[(&["rm"], 1)])), 2, 2, 1), Reserved::Not, "pending");
    let event_id = uses[0].event_id;
    assert!(used.confirm(event_id) && !used.confirm(event_id));
    assert_eq!(used.status, ApprovalStatus::Consumed);
    assert_eq!(claim(&mut used, 3, 3, 2), Reserved::ByAnother(request(4)));
    assert_eq!(claim(&mut used, 2, 4, 3), Reserved::ForThis, "its lost answer");
    assert!(!used.release(request(4), None, at(6)), "what is recorded stays used");
}

#[test]
fn a_use_that_was_surely_not_recorded_is_free_again_and_one_that_another_evaluator_claims_is_not() {
    let mut used = approved();
    let before = kinds(&used);
    claim(&mut used, 2, 2, 1);
    assert!(!used.release(request(3), None, at(6)), "of another check");
    assert!(used.release(request(2), Some(Uuid::from_u128(1)), at(6)));
    assert_eq!((used.status, kinds(&used)), (ApprovalStatus::Approved, before), "as if it had not been");
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 2, 2);
    assert!(used.release(request(2), Some(Uuid::from_u128(1)), at(6)));
    assert_eq!(used.status, ApprovalStatus::Reserved, "the second evaluator may have answered");
    assert!(used.release(request(2), None, at(6)), "the gateway knows");
    assert_eq!(used.status, ApprovalStatus::Approved);
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 5, 2);
    assert!(used.release(request(2), None, at(6)));
    assert_eq!(used.status, ApprovalStatus::Reserved, "a later attempt may be in the log");
}

#[test]
fn a_released_use_whose_line_may_be_written_is_told_as_reopened() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let handed = used.outbox.collect(at(60), 100);
    assert!(handed.iter().any(|event| event.kind == LineType::ApprovalReserved));
    assert!(!handed.iter().any(|event| event.kind == LineType::ApprovalUsed), "only with its decision");
    assert!(used.outbox.collect(at(61), 100).is_empty(), "handed out to one gateway");
    assert!(!used.outbox.collect(at(76), 100).is_empty(), "which may have died");
    assert!(used.release(request(2), None, at(77)));
    assert_eq!(kinds(&used).last(), Some(&LineType::ApprovalReopened));
}

#[test]
fn a_used_approval_is_reopened_with_a_reason_and_not_by_one_who_asks() {
    let people = team();
    let directory = Directory::new(&people);
    let reopen = |approval: &mut StoredApproval, name: &str, reason: &str| {
        let actor = actor(name);
        approval.reopen(Change { actor: &actor, directory: &directory, reason, now: at(80) })
    };
    assert!(says(reopen(&mut approved(), "cem", "why"), "only a used approval"));
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(says(reopen(&mut used, "owner", "why"), "somebody else"));
    assert!(matches!(reopen(&mut used, "cem", ""), Err(Refusal::Invalid(_))));
    reopen(&mut used, "ann", "the process died before it acted").unwrap();
    assert_eq!((used.status, used.usable_until), (ApprovalStatus::Approved, Some(at(130))));
    assert!(used.outbox.unrecorded(Some(request(2))).iter().all(|event| event.kind != LineType::ApprovalUsed));
    claim(&mut used, 3, 3, 1);
    let agent = Actor { holder: agent(), ..actor("x") };
    let by = Change { actor: &agent, directory: &directory, reason: "", now: at(90) };
    assert_eq!(used.report(OutcomeStatus::Succeeded, by), Ok(true));
    assert_eq!(used.report(OutcomeStatus::Succeeded, by), Ok(false), "told twice");
    assert!(matches!(used.report(OutcomeStatus::Failed, by), Err(Refusal::Conflict(_))));
    assert!(says(reopen(&mut used, "cem", "again"), "succeeded"));
}

#[test]
fn what_a_check_may_still_be_using_is_not_reopened_and_afterwards_it_is() {
    let people = team();
    let (directory, cem) = (Directory::new(&people), actor("cem"));
    let reopen = |approval: &mut StoredApproval, now: i64| {
        approval.reopen(Change { actor: &cem, directory: &directory, reason: "it died", now: at(now) })
    };
    for is_recorded in [false, true] {
        let mut used = approved();
        claim(&mut used, 2, 2, 1);
        if is_recorded {
            let event_id = used.used.as_ref().unwrap().attempts[0].event_id;
            assert!(used.confirm(event_id));
        }
        let before = used.clone();
        assert!(says(reopen(&mut used, 6), "try again in 29 s"), "claimed at 5");
        assert!(says(reopen(&mut used, 34), "try again in 1 s"));
        assert_eq!(used, before, "what is refused changes nothing");
        reopen(&mut used, 35).unwrap();
        assert_eq!(used.status, ApprovalStatus::Approved);
    }
}

#[test]
fn a_use_that_no_gateway_confirmed_is_given_out_each_minute_and_confirmed_without_its_event() {
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    claim(&mut used, 2, 4, 2);
    used.outbox.events.iter_mut().for_each(|stored| stored.recorded = true);
    assert_eq!(used.due_at(), Some(at(15)));
    assert!(used.unconfirmed(at(14)).is_empty());
    let found = used.unconfirmed(at(15));
    let ids: Vec<_> = found.iter().map(|one| one.request_id).collect();
    assert_eq!(ids, [request(4), request(2)]);
    assert!(found.iter().all(|one| one.event.approval_id.as_ref() == Some(&used.id)));
    assert!(used.unconfirmed(at(74)).is_empty() && used.due_at() == Some(at(75)));
    assert_eq!(used.unconfirmed(at(75)).len(), 2);
    used.outbox.events.clear();
    assert!(!used.confirm(Uuid::from_u128(7)));
    assert!(used.confirm(found[1].event.event_id) && !used.confirm(found[1].event.event_id));
    assert_eq!((used.status, used.due_at()), (ApprovalStatus::Consumed, None));
    assert!(used.unconfirmed(at(1_000)).is_empty());
}

#[test]
fn an_outcome_says_that_an_approval_was_used() {
    let people = team();
    let (directory, by_agent) = (Directory::new(&people), Actor { holder: agent(), ..actor("x") });
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    let by = Change { actor: &by_agent, directory: &directory, reason: "", now: at(6) };
    used.report(OutcomeStatus::Failed, by).unwrap();
    assert_eq!(used.status, ApprovalStatus::Consumed);
    assert!(!used.release(request(2), None, at(7)));
}
