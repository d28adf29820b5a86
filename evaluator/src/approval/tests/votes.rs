//! Which votes are refused, and which count when an approval is given and when it is used.

use super::*;

#[test]
fn two_people_of_whom_one_made_the_other_count_as_one() {
    let people = team();
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    approve(&mut approval, &people, "bob", 2).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending, "ann invited bob");
    approve(&mut approval, &people, "cem", 3).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
    assert_eq!(approval.usable_until, Some(at(53)));
    use LineType::{ApprovalApproved, ApprovalRequested, ApprovalVoted};
    assert_eq!(kinds(&approval), [ApprovalRequested, ApprovalVoted, ApprovalVoted, ApprovalApproved]);
}

#[test]
fn every_requirement_must_be_met() {
    let people = people_of(&[("ann", &["rm"], &[]), ("eve", &["sec"], &[])]);
    let mut approval = approval_of(terms(&[(&["rm"], 1), (&["sec"], 1)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending);
    approve(&mut approval, &people, "eve", 1).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
}

#[test]
fn each_vote_that_may_not_be_given_is_refused_in_words() {
    let people = team();
    let fresh = || approval_of(terms(&[(&["rm"], 2)]));
    assert!(says(approve(&mut fresh(), &people, "owner", 1), "somebody else must decide"));
    assert!(says(approve(&mut fresh(), &people, "gone", 1), "removed"));
    let others = people_of(&[("dan", &["dev"], &[])]);
    assert!(says(approve(&mut fresh(), &others, "dan", 1), "`rm`"));
    let mut once = fresh();
    approve(&mut once, &people, "ann", 1).unwrap();
    assert!(says(approve(&mut once, &people, "ann", 2), "decided already"));
    let mut other_digest = fresh();
    other_digest.action_digest = ActionDigest::parse(&"cd".repeat(32)).unwrap();
    assert!(says(approve(&mut other_digest, &people, "ann", 1), "read the approval again"));
    let mut late = fresh();
    assert!(!late.pass_time(at(99)) && late.pass_time(at(100)));
    assert!(says(approve(&mut late, &people, "ann", 100), "too late"));
    let mut done = approved();
    assert!(says(approve(&mut done, &people, "cem", 2), "decided already"));
    let (directory, own) = (Directory::new(&people), actor("ann"));
    let by_agent = Actor { holder: Holder { member: Some(member("ann")), ..agent() }, ..own };
    let change = Change { actor: &by_agent, directory: &directory, reason: "", now: at(1) };
    assert!(says(fresh().approve(&digest(), change), "somebody else must decide"));
    let no_member = Actor { holder: Holder::of_workload(key("x")), ..by_agent.clone() };
    let change = Change { actor: &no_member, ..change };
    assert!(says(fresh().approve(&digest(), change), "only a member's own key"));
}

#[test]
fn a_denial_needs_a_reason_and_ends_it() {
    let mut denied = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut denied, &team(), "ann", 1).unwrap();
    let refused = deny(&mut denied, &team(), "cem", "");
    assert!(matches!(refused, Err(Refusal::Invalid(errors)) if errors[0].path == "reason"));
    assert_eq!(denied.status, ApprovalStatus::Pending, "what is refused changes nothing");
    deny(&mut denied, &team(), "cem", "not on a Friday").unwrap();
    assert_eq!(denied.status, ApprovalStatus::Denied);
    assert!(says(approve(&mut denied, &team(), "bob", 2), "it is denied"));
    let mut strict = approval_of(ApprovalTerms { reason_required: true, ..terms(&[(&["rm"], 1)]) });
    assert!(matches!(approve(&mut strict, &team(), "ann", 1), Err(Refusal::Invalid(_))));
}

#[test]
fn votes_of_people_who_no_longer_may_are_not_enough_and_it_is_pending_again() {
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &team(), "ann", 1).unwrap();
    approve(&mut approval, &team(), "cem", 1).unwrap();
    let moved = people_of(&[("ann", &["rm"], &[]), ("cem", &["dev"], &[])]);
    let asker = approval.asker(true);
    let terms = approval.terms.clone();
    let question = Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(9) };
    assert!(Directory::new(&team()).is_enough(&approval.votes, question));
    assert!(!Directory::new(&moved).is_enough(&approval.votes, question));
    approval.fall_back(&Directory::new(&moved), [question; 2]);
    assert_eq!((approval.status, approval.votes.len()), (ApprovalStatus::Pending, 1));
    approve(&mut approval, &team(), "cem", 10).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved, "back in the group, cem decides again");
    let late = Question { now: at(101), ..question };
    approval.usable_until = Some(at(1_000));
    approval.fall_back(&Directory::new(&moved), [late; 2]);
    assert_eq!(approval.status, ApprovalStatus::Expired, "no time is left to decide");
}

#[test]
fn a_system_outside_counts_by_its_people_and_never_for_itself() {
    let people = team();
    let directory = Directory::new(&people);
    let external = |names: &[&str]| ExternalApproval {
        approved_by: names.iter().map(|name| (*name).to_owned()).collect(),
        evidence: "https://tickets.example/1".to_owned(),
    };
    let system = Actor { holder: Holder::of_workload(key("itsm")), ..actor("x") };
    let by = Change { actor: &system, directory: &directory, reason: "", now: at(1) };
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approval.register(&digest(), &external(&["Kim", " kim "]), by).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Pending, "one person, spelt twice");
    assert!(says(approval.register(&digest(), &external(&["KIM"]), by), "decided already"));
    approval.register(&digest(), &external(&["Lee"]), by).unwrap();
    assert_eq!(approval.status, ApprovalStatus::Approved);
    let text = serde_json::to_string(&approval.outbox.unrecorded(None)).unwrap();
    assert!(!text.contains("Kim") && !text.contains("tickets"), "{text}");
    for own in [agent(), Holder { made_by: Some(Person::Member(member("owner"))), ..Holder::of_workload(key("itsm")) }]
    {
        let asking = Actor { holder: own, ..system.clone() };
        let by = Change { actor: &asking, ..by };
        let mut fresh = approval_of(terms(&[(&["rm"], 1)]));
        assert!(says(fresh.register(&digest(), &external(&["Kim"]), by), "somebody else"));
    }
}

#[test]
fn votes_that_count_only_for_the_opener_do_not_stay() {
    let people = people_of(&[("ann", &["rm"], &[]), ("cem", &["rm"], &[]), ("owner", &["rm"], &[])]);
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approve(&mut approval, &people, "ann", 1).unwrap();
    approve(&mut approval, &people, "cem", 1).unwrap();
    let (opener, terms) = (approval.asker(true), approval.terms.clone());
    let user = Asker::new(&Holder { owner: Some(member("cem")), ..Holder::of_workload(key(AGENT)) }, true);
    let question = |asker| Question { asker, terms: &terms, opened_at: at(0), now: at(9) };
    approval.fall_back(&Directory::new(&people), [question(&opener), question(&user)]);
    let left: Vec<_> = approval.votes.iter().map(|stored| stored.vote.member_id.clone()).collect();
    assert_eq!((approval.status, left), (ApprovalStatus::Pending, vec![Some(member("ann"))]));
}
