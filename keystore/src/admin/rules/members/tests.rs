//! Who may invite, change, stand in for and remove whom.

use super::super::tests::{caller, granter, paths};
use super::*;
use crate::store::record::Invitation;
use crate::store::record::tests::{at, member};
use stage0_contract::{KeyId, MemberId};

const NOW: i64 = 1_000;

fn invite(caller: Caller) -> InviteMember {
    InviteMember {
        caller,
        account: None,
        name: "Ada".to_owned(),
        mail: None,
        groups: Vec::new(),
        scopes: None,
        valid_seconds: 3_600,
    }
}

fn manager() -> Caller {
    caller("a", &[Scope::MembersManage, Scope::Check])
}

fn id(text: &str) -> MemberId {
    MemberId::parse(text).unwrap()
}

/// A member's own key.
fn of_member(name: &str, scopes: &[Scope]) -> Granter {
    let mut granter = granter(caller("a", scopes), None);
    granter.holder.member = Some(id(name));
    granter
}

fn wrong(call: &InviteMember) -> Vec<String> {
    paths(valid_invitation(&call.caller, call).map(drop))
}

fn with_scopes(caller: Caller, scopes: &[Scope]) -> Result<Scopes, Refusal> {
    let call = InviteMember { scopes: Some(scopes.iter().copied().collect()), ..invite(caller) };
    valid_invitation(&call.caller, &call)
}

#[test]
fn an_invitation_names_every_bad_field() {
    let call = InviteMember {
        name: "A\u{202e}da".to_owned(),
        mail: Some("ada".to_owned()),
        groups: vec!["ops".to_owned(), "Ops".to_owned(), "ops".to_owned()],
        scopes: Some(Scopes::new()),
        valid_seconds: 59,
        ..invite(manager())
    };
    assert_eq!(wrong(&call), ["name", "mail", "groups[1]", "groups[2]", "valid_seconds", "scopes"]);
    assert_eq!(valid_invitation(&manager(), &invite(manager())), Ok(Scopes::from([Scope::ApprovalsDecide])));
}

#[test]
fn mail_has_two_sides_and_at_most_254_characters() {
    let mail = |mail: &str| InviteMember { mail: Some(mail.to_owned()), ..invite(manager()) };
    for bad in ["", "@", "a@", "@b", "a b@c", "a\n@b", "a\u{200b}@b", &format!("{}@b", "a".repeat(253))] {
        assert_eq!(wrong(&mail(bad)), ["mail"], "{bad:?}");
    }
    for good in ["a@b", "ada.lovelace+x@example.org", &format!("{}@b", "a".repeat(252))] {
        assert!(valid_invitation(&manager(), &mail(good)).is_ok(), "{good:?}");
    }
}

#[test]
fn groups_are_short_small_words_and_at_most_fifty() {
    let groups = |groups: Vec<String>| InviteMember { groups, ..invite(manager()) };
    for bad in ["", "Ops", "a b", "é", "a/b", &"a".repeat(65)] {
        assert_eq!(wrong(&groups(vec![bad.to_owned()])), ["groups[0]"], "{bad:?}");
    }
    assert!(valid_invitation(&manager(), &groups(vec!["a.b_c-9".to_owned(), "a".repeat(64)])).is_ok());
    let many = |count: usize| (0..count).map(|number| format!("g{number}")).collect();
    assert!(valid_invitation(&manager(), &groups(many(50))).is_ok());
    assert_eq!(wrong(&groups(many(51))), ["groups"]);
}

#[test]
fn an_invitation_lasts_a_minute_to_a_day() {
    for (seconds, is_good) in [(59, false), (60, true), (86_400, true), (86_401, false), (u64::MAX, false)] {
        let call = InviteMember { valid_seconds: seconds, ..invite(manager()) };
        assert_eq!(valid_invitation(&manager(), &call).is_ok(), is_good, "{seconds}");
    }
    assert_eq!(invitation_end(60, at(NOW)), at(NOW + 60));
}

#[test]
fn a_member_gets_only_scopes_that_the_caller_holds_and_approvals_decide() {
    use Scope::{ApprovalsDecide, ApprovalsGrant, Check, Operator, RunsManage};
    assert!(with_scopes(manager(), &[ApprovalsDecide, Check]).is_ok());
    assert_eq!(with_scopes(manager(), &[RunsManage]), Err(Refusal::ScopeMissing(RunsManage)));
    let all = caller("a", &[Scope::MembersManage, ApprovalsGrant]);
    assert_eq!(with_scopes(all, &[ApprovalsGrant]), Err(Refusal::ScopeMissing(Operator)));
    let operator = caller("o", &[Operator]);
    assert!(with_scopes(operator.clone(), &[RunsManage, ApprovalsGrant]).is_ok());
    assert_eq!(paths(with_scopes(operator, &[Operator]).map(drop)), ["scopes"]);
}

#[test]
fn an_account_has_at_most_a_thousand_members_and_their_groups_fit_one_message() {
    assert_eq!(check_member_cap(999), Ok(()));
    assert!(matches!(check_member_cap(1_000), Err(Refusal::Conflict(_))));
    assert_eq!(check_people_bytes(MAX_PEOPLE_BYTES), Ok(()));
    assert!(matches!(check_people_bytes(MAX_PEOPLE_BYTES + 1), Err(Refusal::Conflict(_))));
}

#[test]
fn a_foreign_unknown_or_removed_member_does_not_exist() {
    let found = member("mem_1", "a");
    for gone in [None, Some(member("mem_1", "b")), Some(found.clone().tombstone(at(1)))] {
        assert_eq!(own_member(&manager(), gone), Err(Refusal::NotFound));
    }
    assert_eq!(own_member(&manager(), Some(found.clone())), Ok(found.clone()));
    assert_eq!(own_member(&caller("o", &[Scope::Operator]), Some(found.clone())), Ok(found));
}

fn reinvite(granter: &Granter, found: MemberRecord) -> Result<MemberRecord, Refusal> {
    let call = ReinviteMember { caller: granter.caller.clone(), id: found.member.id.clone(), valid_seconds: 60 };
    reinvited(granter, &call, Some(found))
}

#[test]
fn inviting_again_makes_the_caller_a_maker_and_needs_the_members_rights() {
    let (of_a, of_b) = (of_member("mem_a", &[Scope::MembersManage]), of_member("mem_b", &[Scope::MembersManage]));
    let once = reinvite(&of_a, member("mem_1", "a")).unwrap();
    let twice = reinvite(&of_b, reinvite(&of_a, once).unwrap()).unwrap();
    assert_eq!(twice.made_by, ["mem_a", "mem_b"].map(|name| Person::Member(id(name))));
    assert_eq!(reinvite(&of_member("mem_1", &[Scope::MembersManage]), member("mem_1", "a")).unwrap().made_by, []);
    let operator = granter(caller("o", &[Scope::Operator]), None);
    assert_eq!(reinvite(&operator, member("mem_1", "a")).unwrap().made_by, []);
    let mut strong = member("mem_1", "a");
    strong.member.scopes.insert(Scope::RunsManage);
    assert_eq!(reinvite(&of_a, strong.clone()), Err(Refusal::ScopeMissing(Scope::RunsManage)));
    assert!(reinvite(&operator, strong).is_ok());
    let call = ReinviteMember { caller: manager(), id: id("mem_1"), valid_seconds: 1 };
    assert_eq!(paths(reinvited(&of_a, &call, Some(member("mem_1", "a"))).map(drop)), ["valid_seconds"]);
}

#[test]
fn a_member_has_at_most_thirty_two_makers() {
    let workload = |number: usize| {
        let mut by = granter(manager(), None);
        by.holder.workload = KeyId::parse(&format!("k{number}")).unwrap();
        by
    };
    let mut made_by = Vec::new();
    for number in 0..MAX_MAKERS {
        made_by = with_makers(&workload(number), made_by, &id("mem_1")).unwrap();
    }
    assert_eq!(with_makers(&workload(0), made_by.clone(), &id("mem_1")), Ok(made_by.clone()), "it is one already");
    assert!(matches!(with_makers(&workload(99), made_by, &id("mem_1")), Err(Refusal::Conflict(_))));
}

#[test]
fn a_code_is_accepted_once_until_it_expires_and_only_the_newest() {
    let code = |text: &str| CodeHash(text.to_owned());
    let mut found = member("mem_1", "a");
    found.member.status = MemberStatus::Invited;
    found.invitation = Some(Invitation { hash: code("new"), expires_at: at(NOW + 1) });
    let used = accepted(Some(found.clone()), &code("new"), at(NOW)).unwrap();
    assert_eq!((used.member.status, &used.invitation), (MemberStatus::Active, &None));
    let mut gone = found.clone();
    gone.removed_at = Some(at(1));
    let bad = [
        (None, "new", NOW),
        (Some(used), "new", NOW),
        (Some(found.clone()), "old", NOW),
        (Some(found), "new", NOW + 1),
        (Some(gone), "new", NOW),
    ];
    for (found, text, now) in bad {
        assert_eq!(accepted(found, &code(text), at(now)), Err(Refusal::NotFound), "{text} {now}");
    }
}

fn update() -> UpdateMember {
    UpdateMember { caller: manager(), id: id("mem_1"), name: None, mail: None, groups: None }
}

#[test]
fn a_member_is_changed_as_the_call_says_and_not_otherwise() {
    let by = granter(manager(), None);
    let found = member("mem_1", "a");
    assert_eq!(updated(&by, update(), Some(found.clone())), Ok(found.clone()));
    let call = UpdateMember { name: Some("Grace".to_owned()), mail: Some(String::new()), ..update() };
    let changed = updated(&by, call, Some(found.clone())).unwrap();
    assert_eq!((changed.member.name.as_str(), changed.member.mail, changed.made_by), ("Grace", None, Vec::new()));
    let bad = UpdateMember {
        name: Some(" ".to_owned()),
        mail: Some("x".to_owned()),
        groups: Some(vec![String::new()]),
        ..update()
    };
    assert_eq!(paths(updated(&by, bad, Some(found)).map(drop)), ["name", "mail", "groups[0]"]);
    assert_eq!(updated(&by, update(), None), Err(Refusal::NotFound));
}

#[test]
fn a_change_of_groups_is_made_by_another_who_becomes_a_maker() {
    let groups = |groups: &[&str]| UpdateMember {
        groups: Some(groups.iter().map(|group| (*group).to_owned()).collect()),
        ..update()
    };
    let found = member("mem_1", "a");
    let change = |by: &Granter, of: &[&str]| updated(by, groups(of), Some(found.clone()));
    let other = of_member("mem_2", &[Scope::MembersManage]);
    let changed = change(&other, &["ops"]).unwrap();
    assert_eq!((changed.member.groups, changed.made_by), (vec!["ops".to_owned()], vec![Person::Member(id("mem_2"))]));
    let same = change(&other, &["release-managers"]).unwrap();
    assert_eq!(same.made_by, [], "nothing changed");
    let own = of_member("mem_1", &[Scope::MembersManage]);
    assert!(matches!(change(&own, &["ops"]), Err(Refusal::Conflict(_))));
    assert!(change(&own, &["release-managers"]).is_ok());
    // The same person by a workload's key that it made or answers for.
    for holder in ["made_by", "owner"] {
        let mut workload = granter(manager(), None);
        match holder {
            "made_by" => workload.holder.made_by = Some(Person::Member(id("mem_1"))),
            _ => workload.holder.owner = Some(id("mem_1")),
        }
        assert!(matches!(change(&workload, &["ops"]), Err(Refusal::Conflict(_))), "{holder}");
    }
    let operator = change(&granter(caller("o", &[Scope::Operator]), None), &["ops"]).unwrap();
    assert_eq!(operator.made_by, [], "the operator is not a person of the account");
}

fn delegate(to: Option<&str>, until: Option<i64>) -> DelegateMember {
    DelegateMember { caller: manager(), id: id("mem_1"), to: to.map(id), until: until.map(at) }
}

fn judged(by: &Granter, call: &DelegateMember) -> Result<MemberRecord, Refusal> {
    let to = call.to.as_ref().map(|to| member(to.as_str(), "a"));
    delegated(by, call, Some(member("mem_1", "a")), to.as_ref(), at(NOW))
}

#[test]
fn a_member_or_the_operator_names_another_active_member_for_at_most_ninety_days() {
    const DAYS_90: i64 = 90 * 86_400;
    let own = of_member("mem_1", &[Scope::ApprovalsDecide]);
    let by_operator = granter(caller("o", &[Scope::Operator]), None);
    let expected = Some(Delegate { to: id("mem_2"), until: at(NOW + DAYS_90) });
    for by in [&own, &by_operator] {
        assert_eq!(judged(by, &delegate(Some("mem_2"), Some(NOW + DAYS_90))).unwrap().member.delegate, expected);
    }
    for bad in [None, Some(NOW), Some(NOW + DAYS_90 + 1)] {
        assert_eq!(paths(judged(&own, &delegate(Some("mem_2"), bad)).map(drop)), ["until"], "{bad:?}");
    }
    assert_eq!(paths(judged(&own, &delegate(Some("mem_1"), Some(NOW + 9))).map(drop)), ["to"]);
    let call = delegate(Some("mem_2"), Some(NOW + 9));
    let mut invited = member("mem_2", "a");
    invited.member.status = MemberStatus::Invited;
    for bad in [None, Some(&invited), Some(&member("mem_2", "b")), Some(&member("mem_2", "a").tombstone(at(1)))] {
        assert_eq!(paths(delegated(&own, &call, Some(member("mem_1", "a")), bad, at(NOW)).map(drop)), ["to"]);
    }
}

#[test]
fn a_member_who_has_not_accepted_has_no_delegate() {
    let by = of_member("mem_1", &[Scope::ApprovalsDecide]);
    let judged = |status| {
        let mut found = member("mem_1", "a");
        found.member.status = status;
        let call = delegate(Some("mem_2"), Some(NOW + 9));
        delegated(&by, &call, Some(found), Some(&member("mem_2", "a")), at(NOW)).map(drop)
    };
    assert_eq!(judged(MemberStatus::Active), Ok(()));
    assert!(matches!(judged(MemberStatus::Invited), Err(Refusal::Conflict(_))));
}

#[test]
fn a_delegation_is_ended_and_its_end_names_no_time() {
    let own = of_member("mem_1", &[Scope::ApprovalsDecide]);
    assert_eq!(judged(&own, &delegate(None, None)).unwrap().member.delegate, None);
    assert_eq!(paths(judged(&own, &delegate(None, Some(NOW + 9))).map(drop)), ["until"]);
}

#[test]
fn others_name_no_delegate_and_managers_neither_nor_end_it() {
    let call = delegate(Some("mem_2"), Some(NOW + 9));
    let missing = Err(Refusal::ScopeMissing(Scope::Operator));
    assert_eq!(judged(&of_member("mem_3", &[Scope::ApprovalsDecide]), &call), missing);
    assert_eq!(judged(&of_member("mem_1", &[]), &call), missing, "a caller that is not proven has no scope");
    let workload = granter(manager(), None);
    for by in [&of_member("mem_2", &[Scope::MembersManage]), &of_member("mem_3", &[Scope::MembersManage]), &workload] {
        assert_eq!(judged(by, &call), missing);
        assert_eq!(judged(by, &delegate(None, None)), missing);
    }
    assert!(judged(&of_member("mem_1", &[Scope::MembersManage]), &call).is_ok(), "itself");
}

#[test]
fn a_member_with_more_rights_than_the_caller_is_removed_by_the_operator() {
    let mut strong = member("mem_1", "a");
    strong.member.scopes.insert(Scope::RunsManage);
    assert_eq!(removed(&manager(), Some(strong.clone()), at(NOW)), Err(Refusal::ScopeMissing(Scope::RunsManage)));
    let operator = caller("o", &[Scope::Operator]);
    let gone = Removal::New(strong.clone().tombstone(at(NOW)));
    assert_eq!(removed(&operator, Some(strong), at(NOW)), Ok(gone));
    let plain = member("mem_1", "a");
    let gone = plain.clone().tombstone(at(NOW));
    assert_eq!(removed(&manager(), Some(plain.clone()), at(NOW)), Ok(Removal::New(gone.clone())));
    assert_eq!(removed(&manager(), Some(gone.clone()), at(NOW + 9)), Ok(Removal::Already(gone)));
    assert_eq!(removed(&caller("b", &[Scope::MembersManage]), Some(plain), at(NOW)), Err(Refusal::NotFound));
    assert_eq!(removed(&manager(), None, at(NOW)), Err(Refusal::NotFound));
}
