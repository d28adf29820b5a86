//! How an approval ends without a use: by time, or because it is taken back.

use super::*;

#[test]
fn what_was_not_decided_or_used_in_time_expires_once() {
    let mut pending = approval_of(terms(&[(&["rm"], 1)]));
    assert!(pending.pass_time(at(100)) && !pending.pass_time(at(200)));
    assert_eq!(pending.status, ApprovalStatus::Expired);
    let mut unused = approved();
    assert!(!unused.pass_time(at(50)) && unused.pass_time(at(51)));
    assert_eq!((unused.status, kinds(&unused).last()), (ApprovalStatus::Expired, Some(&LineType::ApprovalExpired)));
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(!used.pass_time(at(1_000)), "a used one has no time");
}

#[test]
fn further_groups_are_asked_once() {
    let escalation = Some(Escalation { after_seconds: 30, groups: vec!["sec".to_owned()] });
    let mut approval = approval_of(ApprovalTerms { escalation, ..terms(&[(&["rm"], 1)]) });
    assert!(!approval.pass_time(at(29)) && approval.pass_time(at(30)) && !approval.pass_time(at(31)));
    assert_eq!(kinds(&approval).last(), Some(&LineType::ApprovalEscalated));
}

#[test]
fn each_requirement_escalates_in_its_own_time() {
    let mut terms = terms(&[(&["rm"], 1), (&["dba"], 1)]);
    let after = |after_seconds, group: &str| Some(Escalation { after_seconds, groups: vec![group.to_owned()] });
    (terms.requirements[0].escalation, terms.requirements[1].escalation) = (after(30, "sec"), after(60, "ops"));
    let mut approval = approval_of(terms.clone());
    assert!(approval.pass_time(at(30)) && !approval.pass_time(at(59)));
    let events = std::mem::take(&mut approval.outbox.events);
    assert_eq!(approval.due_at(), Some(at(60)), "maintenance looks at it again");
    approval.outbox.events = events;
    assert!(approval.pass_time(at(60)) && !approval.pass_time(at(61)));
    assert_eq!(kinds(&approval).iter().filter(|kind| **kind == LineType::ApprovalEscalated).count(), 2);
    // Both at once, if no evaluator looked before.
    let mut late = approval_of(terms);
    assert!(late.pass_time(at(61)) && !late.pass_time(at(62)));
    assert_eq!(kinds(&late), kinds(&approval));
    // A record of an earlier version has one escalation, and says only that it came.
    late.escalated_after = None;
    late.outbox.events.clear();
    assert!(!late.pass_time(at(63)) && late.due_at() == Some(at(100)));
}

#[test]
fn what_is_used_or_over_cannot_be_cancelled() {
    let people = team();
    let (directory, ann) = (Directory::new(&people), actor("ann"));
    let by = Change { actor: &ann, directory: &directory, reason: "", now: at(2) };
    let mut pending = approval_of(terms(&[(&["rm"], 1)]));
    pending.cancel(by).unwrap();
    assert_eq!(pending.status, ApprovalStatus::Cancelled);
    assert!(says(pending.cancel(by), "ended already"));
    approved().cancel(by).unwrap();
    let mut used = approved();
    claim(&mut used, 2, 2, 1);
    assert!(says(used.cancel(by), "too late"));
}
