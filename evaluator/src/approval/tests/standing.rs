//! Who may decide about an action, and whether enough people may.

use super::*;

fn standing(people: &People, name: &str, terms: &ApprovalTerms, four_eyes: bool, now: i64) -> Standing {
    let asker = Asker::new(&agent(), four_eyes);
    let question = Question { asker: &asker, terms, opened_at: at(0), now: at(now) };
    Directory::new(people).standing(&member(name), question)
}

const MAY: Standing = Standing::May { on_behalf_of: None };

#[test]
fn the_asker_its_owner_and_everybody_made_by_them_may_not_decide_and_others_may() {
    let people = people_of(&[
        ("owner", &["rm"], &[]),
        ("sock", &["rm"], &["owner"]),
        ("sock2", &["rm"], &["sock"]),
        ("by-agent", &["rm"], &["key:agent"]),
        ("by-other", &["rm"], &["key:other"]),
        ("ann", &["rm"], &[]),
        ("admin", &["rm"], &[]),
    ]);
    let terms = terms(&[(&["rm"], 1)]);
    for (name, expected) in [
        ("owner", Standing::OwnAction),
        ("sock", Standing::OwnAction),
        ("sock2", Standing::OwnAction),
        ("by-agent", Standing::OwnAction),
        ("by-other", MAY),
        ("ann", MAY),
        ("nobody", Standing::Unknown),
    ] {
        assert_eq!(standing(&people, name, &terms, true, 0), expected, "{name}");
    }
    for (name, expected) in [("owner", MAY), ("sock", MAY), ("by-agent", Standing::OwnAction)] {
        assert_eq!(standing(&people, name, &terms, false, 0), expected, "{name}, without four eyes");
    }
}

#[test]
fn who_made_an_asker_or_was_made_by_the_same_person_may_not_decide() {
    let people = people_of(&[("admin", &["rm"], &[]), ("owner", &["rm"], &["admin"]), ("ann", &["rm"], &["admin"])]);
    let terms = terms(&[(&["rm"], 1)]);
    assert_eq!(standing(&people, "admin", &terms, true, 0), Standing::OwnAction);
    assert_eq!(standing(&people, "ann", &terms, true, 0), Standing::OwnAction, "made by the same admin");
    let people = people_of(&[("owner", &["rm"], &["admin"]), ("ann", &["rm"], &["other"]), ("bob", &["rm"], &[])]);
    for other in ["ann", "bob"] {
        assert_eq!(standing(&people, other, &terms, true, 0), MAY, "{other}");
    }
}

#[test]
fn groups_delegation_and_escalation_let_members_decide() {
    let mut people =
        people_of(&[("ann", &["rm"], &[]), ("bob", &["dev"], &[]), ("eve", &["sec"], &[]), ("owner", &["rm"], &[])]);
    let mut terms = terms(&[(&["rm"], 1)]);
    assert_eq!(standing(&people, "bob", &terms, true, 0), Standing::OtherGroups);
    people.members[0].delegate = Some(Delegate { to: member("bob"), until: at(10) });
    let in_place = Standing::May { on_behalf_of: Some(member("ann")) };
    assert_eq!(standing(&people, "bob", &terms, true, 9), in_place);
    assert_eq!(standing(&people, "bob", &terms, true, 10), Standing::OtherGroups, "the delegation is over");
    people.members[0].delegate = None;
    people.members[3].delegate = Some(Delegate { to: member("bob"), until: at(10) });
    assert_eq!(standing(&people, "bob", &terms, true, 0), Standing::OtherGroups, "in the place of one who asks");
    terms.escalation = Some(Escalation { after_seconds: 30, groups: vec!["sec".to_owned()] });
    assert_eq!(standing(&people, "eve", &terms, true, 29), Standing::OtherGroups);
    assert_eq!(standing(&people, "eve", &terms, true, 30), MAY);
    people.members[2].may_decide = false;
    assert_eq!(standing(&people, "eve", &terms, true, 30), Standing::Unknown, "no key that may decide");
    terms.requirements[0].groups.clear();
    assert_eq!(standing(&people, "bob", &terms, true, 0), MAY, "any member");
}

#[test]
fn an_escalation_of_one_requirement_opens_no_other() {
    let people = people_of(&[("ann", &["rm"], &[]), ("mine", &["mine"], &[]), ("owner", &["rm"], &[])]);
    let mut terms = terms(&[(&["ours"], 1), (&["rm"], 1)]);
    let escalation = Escalation { after_seconds: 30, groups: vec!["mine".to_owned()] };
    terms.requirements[0].escalation = Some(escalation.clone());
    assert_eq!(standing(&people, "mine", &terms, true, 29), Standing::OtherGroups);
    assert_eq!(standing(&people, "mine", &terms, true, 30), MAY, "for the first requirement");
    let status = |terms: &ApprovalTerms| {
        let mut approval = approval_of(terms.clone());
        approve(&mut approval, &people, "mine", 30).unwrap();
        approval.status
    };
    assert_eq!(status(&terms), ApprovalStatus::Pending, "the members of `rm` are still needed");
    // The harmless neighbour: an escalation beside the requirements, as records before had it, opens all of them.
    terms.requirements[0].escalation = None;
    terms.escalation = Some(escalation);
    assert_eq!(status(&terms), ApprovalStatus::Approved);
}

#[test]
fn fewer_eligible_people_than_the_quorum_are_seen_at_once() {
    let electorate = |people: &People, quorum, four_eyes| {
        let asker = Asker::new(&agent(), four_eyes);
        let terms = terms(&[(&["rm"], quorum)]);
        Directory::new(people).electorate(Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(0) })
    };
    let people = team();
    assert_eq!(electorate(&people, 2, true), Electorate { eligible: 3, is_short: false });
    assert_eq!(electorate(&people, 3, true), Electorate { eligible: 2, is_short: true }, "ann and bob are one");
    assert_eq!(electorate(&people, 3, false), Electorate { eligible: 4, is_short: false });
}
