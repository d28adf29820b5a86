//! Who may grant, rotate and revoke what, and until when.

use super::*;
use crate::store::record::tests::{at, key, member};
use stage0_contract::{CapChanges, KeyId, MemberStatus};

const NOW: i64 = 1_000;

pub(crate) fn caller(account: &str, scopes: &[Scope]) -> Caller {
    Caller {
        account: AccountId::parse(account).unwrap(),
        key_id: KeyId::parse("caller").unwrap(),
        scopes: scopes.iter().copied().collect(),
        key: None,
    }
}

fn create(caller: Caller, account: Option<&str>, scopes: &[Scope]) -> CreateKey {
    CreateKey {
        owner: None,
        caller,
        account: account.map(|id| AccountId::parse(id).unwrap()),
        name: "n".to_owned(),
        scopes: scopes.iter().copied().collect(),
        expires_at: None,
    }
}

fn rotate(caller: Caller, overlap_seconds: u64) -> RotateKey {
    RotateKey { caller, id: KeyId::parse("k").unwrap(), overlap_seconds }
}

/// Judged for a caller whose key has no end.
fn valid_key(call: &CreateKey, now: Timestamp) -> Result<(), Refusal> {
    granted(&until(call.caller.clone(), None), call, now).map(drop)
}

/// Judged in the account that the call names, for a workload without an owner.
fn granted(granter: &Granter, call: &CreateKey, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    let account = call.account.as_ref().unwrap_or(&call.caller.account);
    super::valid_key(granter, call, (account, None), now)
}

fn rotated(call: &RotateKey, key: Option<KeyRecord>, now: Timestamp) -> Result<KeyRecord, Refusal> {
    super::rotated(&until(call.caller.clone(), None), call, key, now)
}

fn until(caller: Caller, end: Option<i64>) -> Granter {
    granter(caller, end)
}

/// A workload's key of this caller.
pub(crate) fn granter(caller: Caller, end: Option<i64>) -> Granter {
    let holder = Holder::of_workload(caller.key_id.clone());
    Granter { caller, ends: end.map(at), holder }
}

pub(crate) fn paths(refusal: Result<(), Refusal>) -> Vec<String> {
    match refusal {
        Err(Refusal::Invalid(errors)) => errors.into_iter().map(|error| error.path).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_other_scope_manages_keys_or_accounts() {
    for scope in Scope::ALL {
        let caller = caller("a", &[scope]);
        let keys = matches!(scope, Scope::KeysManage | Scope::Operator);
        assert_eq!(
            require(&caller, Scope::KeysManage),
            if keys { Ok(()) } else { Err(Refusal::ScopeMissing(Scope::KeysManage)) }
        );
        let accounts = scope == Scope::Operator;
        let refused = Err(Refusal::ScopeMissing(Scope::Operator));
        assert_eq!(require(&caller, Scope::Operator), if accounts { Ok(()) } else { refused });
    }
}

#[test]
fn other_accounts_exist_only_for_an_operator() {
    let (mine, other) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
    let all_but_operator: Vec<_> = Scope::ALL.into_iter().filter(|scope| *scope != Scope::Operator).collect();
    let manager = caller("a", &all_but_operator);
    assert_eq!(target_account(&manager, Some(&other)), Err(Refusal::NotFound));
    assert_eq!(target_account(&manager, Some(&mine)), Ok(mine.clone()));
    assert_eq!(target_account(&manager, None), Ok(mine));
    assert_eq!(target_account(&caller("a", &[Scope::Operator]), Some(&other)), Ok(other));
}

#[test]
fn a_caller_grants_only_what_it_holds() {
    let manager = caller("a", &[Scope::KeysManage, Scope::Check]);
    let wants = [Scope::Check, Scope::DecisionsRead, Scope::Operator];
    let refused = Err(Refusal::ScopeMissing(Scope::DecisionsRead));
    assert_eq!(valid_key(&create(manager.clone(), None, &wants), at(NOW)), refused);
    assert_eq!(valid_key(&create(manager.clone(), Some("a"), &wants), at(NOW)), refused);
    assert_eq!(valid_key(&create(manager, None, &[Scope::Check]), at(NOW)), Ok(()));
}

#[test]
fn an_operator_grants_scopes_it_lacks_only_by_naming_an_account() {
    let operator = caller("o", &[Scope::Operator]);
    let refused = Err(Refusal::ScopeMissing(Scope::Check));
    assert_eq!(valid_key(&create(operator.clone(), None, &[Scope::Check, Scope::Operator]), at(NOW)), refused);
    assert_eq!(valid_key(&create(operator.clone(), None, &[Scope::Operator]), at(NOW)), Ok(()));
    let workloads: Vec<_> = Scope::ALL.into_iter().filter(|scope| *scope != Scope::ApprovalsDecide).collect();
    assert_eq!(valid_key(&create(operator, Some("b"), &workloads), at(NOW)), Ok(()));
}

#[test]
fn only_members_decide_and_only_the_operator_lets_systems_register_approvals() {
    let manager = caller("a", &Scope::ALL.map(|scope| if scope == Scope::Operator { Scope::Check } else { scope }));
    let operator = caller("o", &[Scope::Operator]);
    for call in [
        &create(manager.clone(), None, &[Scope::ApprovalsDecide]),
        &create(operator.clone(), Some("a"), &[Scope::ApprovalsDecide]),
    ] {
        assert_eq!(paths(valid_key(call, at(NOW))), ["scopes"]);
    }
    let grants = [Scope::ApprovalsGrant];
    assert_eq!(valid_key(&create(manager, None, &grants), at(NOW)), Err(Refusal::ScopeMissing(Scope::Operator)));
    assert_eq!(valid_key(&create(operator, Some("a"), &grants), at(NOW)), Ok(()));
}

#[test]
fn an_owner_is_an_active_member_of_the_keys_account() {
    let mut call = create(caller("a", &[Scope::KeysManage]), None, &[Scope::KeysManage]);
    let owner = member("mem_1", "a");
    call.owner = Some(owner.member.id.clone());
    let judged = |owner: Option<&MemberRecord>| {
        super::valid_key(&until(call.caller.clone(), None), &call, (&call.caller.account, owner), at(NOW)).map(drop)
    };
    assert_eq!(judged(Some(&owner)), Ok(()));
    let mut invited = owner.clone();
    invited.member.status = MemberStatus::Invited;
    for bad in [None, Some(&invited), Some(&owner.tombstone(at(1))), Some(&member("mem_1", "b"))] {
        assert_eq!(paths(judged(bad)), ["owner"], "{bad:?}");
    }
}

fn person(id: &str) -> Person {
    Person::Member(member(id, "a").member.id)
}

/// A member's own key with `keys:manage`.
fn member_key(id: &str) -> Granter {
    let mut granter = until(caller("a", &[Scope::KeysManage]), None);
    granter.holder.member = Some(member(id, "a").member.id);
    granter
}

#[test]
fn a_members_key_is_rotated_by_the_same_member_alone() {
    let mut found = key("k", "a", &[Scope::KeysManage]);
    found.holder = Some(Holder { member: Some(member("mem_1", "a").member.id), ..found.holder() });
    let by = |granter: &Granter| {
        super::rotated(granter, &rotate(granter.caller.clone(), 0), Some(found.clone()), at(NOW)).map(drop)
    };
    assert_eq!(by(&member_key("mem_1")), Ok(()));
    let operator = until(caller("o", &[Scope::Operator]), None);
    for other in [&member_key("mem_2"), &until(caller("a", &[Scope::KeysManage]), None), &operator] {
        match by(other) {
            Err(Refusal::Conflict(text)) => assert!(text.contains("invite the member again"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let workload = Some(key("k", "a", &[Scope::KeysManage]));
    assert!(super::rotated(&member_key("mem_2"), &rotate(caller("a", &[]), 0), workload, at(NOW)).is_ok());
}

#[test]
fn a_rotation_keeps_the_holder_and_adds_the_person_who_sees_the_new_secret() {
    let mut found = key("k2", "a", &[]);
    let holder = Holder { made_by: Some(person("mem_1")), ..Holder::of_workload(key("k1", "a", &[]).id) };
    found.holder = Some(holder.clone());
    let with = |known_to: Vec<Person>| Ok(Holder { known_to, ..holder.clone() });
    assert_eq!(successors_holder(&member_key("mem_1"), &found), with(Vec::new()), "it is known to have made the key");
    assert_eq!(successors_holder(&member_key("mem_2"), &found), with(vec![person("mem_2")]));
    let workload = until(caller("a", &[Scope::KeysManage]), None);
    assert_eq!(successors_holder(&workload, &found), with(vec![workload.holder.root()]));
    assert_eq!(successors_holder(&until(caller("o", &[Scope::Operator]), None), &found), with(Vec::new()));
    let mut itself = workload;
    itself.holder = Holder { member: None, ..holder.clone() };
    itself.holder.made_by = None;
    assert_eq!(successors_holder(&itself, &found), with(Vec::new()));
    let many = |count: usize| (0..count).map(|number| person(&format!("m{number}"))).collect();
    found.holder = Some(Holder { known_to: many(MAX_MAKERS - 1), ..holder.clone() });
    assert!(successors_holder(&member_key("mem_2"), &found).is_ok());
    found.holder = Some(Holder { known_to: many(MAX_MAKERS), ..holder });
    assert!(matches!(successors_holder(&member_key("mem_2"), &found), Err(Refusal::Conflict(_))));
}

#[test]
fn makers_are_all_who_stand_behind_a_caller_and_none_for_the_operator() {
    let mut workload = until(caller("a", &[Scope::KeysManage]), None);
    assert_eq!(workload.makers(), [workload.holder.root()], "a workload that no member is known to have made");
    workload.holder.made_by = Some(person("mem_1"));
    workload.holder.owner = Some(member("mem_2", "a").member.id);
    workload.holder.known_to = vec![person("mem_3"), person("mem_1")];
    assert_eq!(workload.makers(), ["mem_1", "mem_2", "mem_3"].map(person));
    assert_eq!(member_key("mem_1").makers(), [person("mem_1")]);
    assert_eq!(until(caller("o", &[Scope::Operator]), None).makers(), []);
}

#[test]
fn a_bad_body_names_every_bad_field() {
    let mut call = create(caller("a", &[Scope::KeysManage]), None, &[]);
    call.name = " \u{200b} ".to_owned();
    call.expires_at = Some(at(NOW));
    assert_eq!(paths(valid_key(&call, at(NOW))), ["name", "scopes", "expires_at"]);
}

#[test]
fn a_name_has_at_most_two_hundred_characters_and_is_not_blank() {
    let call =
        |name: String| CreateAccount { approvals: None, caller: caller("o", &[Scope::Operator]), name, plan: None };
    assert_eq!(paths(valid_account(&call("é".repeat(201)))), ["name"]);
    assert_eq!(paths(valid_account(&call(String::new()))), ["name"]);
    assert_eq!(valid_account(&call("é".repeat(200))), Ok(()));
}

#[test]
fn a_retention_is_one_day_to_ten_years() {
    for bad in [0, 3_651, u32::MAX] {
        let call = UpdateAccount { retention_days: Some(Change::Own(bad)), ..changes() };
        assert_eq!(paths(valid_account_changes(&call)), ["retention_days"]);
    }
    for good in [None, Some(Change::Plans), Some(Change::Own(1)), Some(Change::Own(3_650))] {
        assert_eq!(valid_account_changes(&UpdateAccount { retention_days: good, ..changes() }), Ok(()));
    }
}

#[test]
fn a_limit_is_at_least_one_and_every_bad_one_is_named() {
    let bad = |limit| Some(Change::Own(limit));
    let call = UpdateAccount { per_minute: bad(0), daily: bad(UNLIMITED + 1), monthly: bad(u64::MAX), ..changes() };
    assert_eq!(paths(valid_account_changes(&call)), ["per_minute", "daily", "monthly"]);
    let good = UpdateAccount { per_minute: bad(1), daily: bad(UNLIMITED), monthly: Some(Change::Plans), ..changes() };
    assert_eq!(valid_account_changes(&good), Ok(()));
}

fn changes() -> UpdateAccount {
    UpdateAccount {
        record_facts: None,
        approvals: None,
        four_eyes: None,
        policy_changes: None,
        caller: caller("o", &[Scope::Operator]),
        account: AccountId::parse("a").unwrap(),
        plan: None,
        retention_days: None,
        per_minute: None,
        daily: None,
        monthly: None,
        require_run_id: None,
        caps: CapChanges::default(),
    }
}

#[test]
fn a_cap_is_zero_to_unlimited() {
    let caps = |cap: u64| CapChanges { max_runs: Some(Change::Own(cap)), ..CapChanges::default() };
    assert_eq!(paths(valid_account_changes(&UpdateAccount { caps: caps(UNLIMITED + 1), ..changes() })), ["max_runs"]);
    for good in [0, UNLIMITED] {
        assert_eq!(valid_account_changes(&UpdateAccount { caps: caps(good), ..changes() }), Ok(()));
    }
}

#[test]
fn a_key_that_ends_within_this_second_is_not_in_the_future() {
    let mut call = create(caller("a", &[Scope::KeysManage]), None, &[Scope::KeysManage]);
    call.expires_at = Some(Timestamp::new(NOW, 999_999_999).unwrap());
    assert_eq!(paths(valid_key(&call, at(NOW))), ["expires_at"]);
    call.expires_at = Some(at(NOW + 1));
    assert_eq!(valid_key(&call, at(NOW)), Ok(()));
}

#[test]
fn a_foreign_or_unknown_key_is_neither_rotated_nor_revoked() {
    let manager = caller("a", &[Scope::KeysManage]);
    for found in [None, Some(key("k", "b", &[]))] {
        assert_eq!(rotated(&rotate(manager.clone(), 0), found.clone(), at(NOW)), Err(Refusal::NotFound));
        assert_eq!(revoked(&manager, found, at(NOW)), Err(Refusal::NotFound));
    }
    let operator = caller("o", &[Scope::Operator]);
    assert!(rotated(&rotate(operator.clone(), 0), Some(key("k", "b", &[Scope::Check])), at(NOW)).is_ok());
    assert!(revoked(&operator, Some(key("k", "b", &[])), at(NOW)).is_ok());
}

#[test]
fn rotating_a_key_needs_all_its_scopes() {
    let manager = caller("a", &[Scope::KeysManage]);
    let found = key("k", "a", &[Scope::Check, Scope::KeysManage]);
    let refused = Err(Refusal::ScopeMissing(Scope::Check));
    assert_eq!(rotated(&rotate(manager, 60), Some(found), at(NOW)), refused);
}

#[test]
fn a_key_ends_no_later_than_the_one_that_grants_it() {
    let granter = until(caller("a", &[Scope::KeysManage, Scope::Check]), Some(NOW + 60));
    let mut call = create(granter.caller.clone(), None, &[Scope::Check]);
    let made = |call: &CreateKey| granted(&granter, call, at(NOW));
    assert_eq!(made(&call), Ok(Some(at(NOW + 60))), "without a word about it, the granter's end");
    for (wanted, ends) in [(1, 1), (60, 60)] {
        call.expires_at = Some(at(NOW + wanted));
        assert_eq!(made(&call), Ok(Some(at(NOW + ends))));
    }
    call.expires_at = Some(Timestamp::new(NOW + 60, 999_999_999).unwrap());
    assert_eq!(made(&call), Ok(Some(at(NOW + 60))), "a fraction makes no later second");
    call.expires_at = Some(at(NOW + 61));
    call.name = String::new();
    match made(&call) {
        Err(Refusal::Invalid(errors)) => {
            let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
            assert_eq!(paths, ["name", "expires_at"], "both at once");
            assert!(errors[1].message.contains(&at(NOW + 60).to_string()), "{errors:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_expiring_operator_grants_lasting_keys_but_no_lasting_operator() {
    let granter = until(caller("o", &[Scope::Operator]), Some(NOW + 60));
    let made = |account, scopes: &[Scope], end: Option<i64>| {
        let call = CreateKey { expires_at: end.map(at), ..create(granter.caller.clone(), account, scopes) };
        granted(&granter, &call, at(NOW))
    };
    assert_eq!(made(Some("b"), &[Scope::Check], None), Ok(None));
    assert_eq!(made(Some("b"), &[Scope::Check], Some(NOW + 99)), Ok(Some(at(NOW + 99))));
    for account in [None, Some("o"), Some("b")] {
        assert_eq!(made(account, &[Scope::Operator], None), Ok(Some(at(NOW + 60))));
        assert_eq!(paths(made(account, &[Scope::Operator], Some(NOW + 99)).map(drop)), ["expires_at"]);
    }
    let (account, endless) = (key("k", "b", &[Scope::Check]), key("k", "o", &[Scope::Operator]));
    let rotated = |found| super::rotated(&granter, &rotate(granter.caller.clone(), 0), Some(found), at(NOW));
    assert!(rotated(account).is_ok());
    assert!(matches!(rotated(endless), Err(Refusal::Conflict(_))));
}

#[test]
fn a_rotation_yields_no_key_that_lasts_longer_than_the_callers() {
    let granter = until(caller("a", &[Scope::KeysManage]), Some(NOW + 60));
    let rotated = |end: Option<i64>| {
        let found = KeyRecord { expires_at: end.map(at), ..key("k", "a", &[]) };
        super::rotated(&granter, &rotate(granter.caller.clone(), 5), Some(found), at(NOW))
    };
    for longer in [None, Some(NOW + 61)] {
        match rotated(longer) {
            Err(Refusal::Conflict(text)) => assert!(text.contains(&at(NOW + 60).to_string()), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    for no_longer in [NOW + 60, NOW + 10] {
        assert_eq!(rotated(Some(no_longer)).unwrap().expires_at, Some(at(NOW + 5)));
    }
}

#[test]
fn revoking_a_key_needs_all_its_scopes() {
    let manager = caller("a", &[Scope::KeysManage, Scope::Check]);
    let strong = key("k", "a", &[Scope::Check, Scope::RunsManage]);
    let refused = Err(Refusal::ScopeMissing(Scope::RunsManage));
    assert_eq!(revoked(&manager, Some(strong.clone()), at(NOW)), refused);
    let gone = KeyRecord { revoked_at: Some(at(1)), ..strong.clone() };
    assert_eq!(revoked(&manager, Some(gone), at(NOW)), refused, "nor says whether it was");
    assert!(revoked(&manager, Some(key("k", "a", &[Scope::Check])), at(NOW)).is_ok());
    assert!(revoked(&caller("o", &[Scope::Operator]), Some(strong), at(NOW)).is_ok());
    let of_member = key("k", "a", &[Scope::Check, Scope::ApprovalsDecide]);
    assert!(revoked(&manager, Some(of_member), at(NOW)).is_ok(), "no key of a workload has `approvals:decide`");
    assert_eq!(
        revoked(&manager, Some(key("k", "a", &[Scope::Operator])), at(NOW)),
        Err(Refusal::ScopeMissing(Scope::Operator))
    );
}

#[test]
fn a_key_beyond_the_cap_is_refused_with_the_cap() {
    let caps = Caps { max_keys: Some(2), ..Caps::NONE };
    assert_eq!(check_key_cap(1, &caps), Ok(()));
    for active in [2, 3] {
        match check_key_cap(active, &caps) {
            Err(Refusal::Conflict(text)) => assert!(text.contains("`max_keys` is 2"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(check_key_cap(1_000_000, &Caps { max_keys: Some(UNLIMITED), ..Caps::NONE }), Ok(()));
}

#[test]
fn an_overlap_is_at_most_thirty_days() {
    let manager = caller("a", &[Scope::KeysManage]);
    let found = Some(key("k", "a", &[]));
    let over = rotated(&rotate(manager.clone(), MAX_OVERLAP_SECONDS + 1), found.clone(), at(NOW));
    assert_eq!(paths(over.map(drop)), ["overlap_seconds"]);
    let most = rotated(&rotate(manager, MAX_OVERLAP_SECONDS), found, at(NOW)).unwrap();
    assert_eq!(most.expires_at, Some(at(NOW + 2_592_000)));
}

#[test]
fn an_ended_key_is_not_rotated() {
    let manager = caller("a", &[Scope::KeysManage]);
    let (mut gone, mut over) = (key("k", "a", &[]), key("k", "a", &[]));
    gone.revoked_at = Some(at(NOW - 1));
    over.expires_at = Some(at(NOW));
    for (dead, word) in [(gone, "revoked"), (over, "expired")] {
        match rotated(&rotate(manager.clone(), 60), Some(dead), at(NOW)) {
            Err(Refusal::Conflict(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_overlap_never_lengthens_a_keys_time_and_zero_ends_it_at_once() {
    let manager = caller("a", &[Scope::KeysManage]);
    let mut found = key("k", "a", &[]);
    let end = |found: &KeyRecord, overlap| rotated(&rotate(manager.clone(), overlap), Some(found.clone()), at(NOW));
    assert_eq!(end(&found, 60).unwrap().expires_at, Some(at(NOW + 60)));
    found.expires_at = Some(at(NOW + 10));
    assert_eq!(end(&found, 60).unwrap().expires_at, Some(at(NOW + 10)));
    assert_eq!(end(&found, 5).unwrap().expires_at, Some(at(NOW + 5)));
    assert_eq!(end(&found, 0).unwrap().revoked_at, Some(at(NOW)));
}

#[test]
fn a_repeated_revocation_keeps_the_time_of_the_first() {
    let manager = caller("a", &[Scope::KeysManage]);
    let Revocation::New(first) = revoked(&manager, Some(key("k", "a", &[])), at(NOW)).unwrap() else { panic!() };
    assert_eq!(first.revoked_at, Some(at(NOW)));
    assert_eq!(revoked(&manager, Some(first.clone()), at(NOW + 9)), Ok(Revocation::Already(first)));
}

#[test]
fn a_page_has_one_to_a_thousand_items_and_a_valid_cursor() {
    for (cursor, limit, bad) in [(None, 0, "limit"), (None, 1_001, "limit"), (Some("a/b"), 1, "cursor")] {
        assert_eq!(paths(page(cursor, limit, KeyId::parse).map(drop)), [bad]);
    }
    assert_eq!(page(Some("k"), 1_000, KeyId::parse), Ok((Some(KeyId::parse("k").unwrap()), 1_000)));
}
