//! Who may grant, rotate and revoke what, and until when.

use super::*;
use crate::store::record::tests::{at, key};
use stage0_contract::{CapChanges, KeyId};

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
    super::valid_key(&until(call.caller.clone(), None), call, now).map(drop)
}

fn rotated(call: &RotateKey, key: Option<KeyRecord>, now: Timestamp) -> Result<KeyRecord, Refusal> {
    super::rotated(&until(call.caller.clone(), None), call, key, now)
}

fn until(caller: Caller, end: Option<i64>) -> Granter {
    Granter { caller, ends: end.map(at) }
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
    assert_eq!(valid_key(&create(operator, Some("b"), &Scope::ALL), at(NOW)), Ok(()));
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
    let call = |name: String| CreateAccount { caller: caller("o", &[Scope::Operator]), name, plan: None };
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
    let made = |call: &CreateKey| super::valid_key(&granter, call, at(NOW));
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
        super::valid_key(&granter, &call, at(NOW))
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
