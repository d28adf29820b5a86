//! What a caller may do (contract, section 7): pure.
//!
//! Owns every refusal of a management call; those about endpoints are in [`webhooks`]. The order of the questions is part of the
//! answer: first whether the caller may call at all, then whether what it names is its own (else it does not exist), then the body, then
//! the state. No scope implies another; `operator` alone reaches over accounts.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Caller, Caps, Change, CreateAccount, CreateKey, FieldError, IdError, Refusal, RotateKey, Scope,
    UNLIMITED, UpdateAccount, is_blank,
};

use crate::record::KeyRecord;

pub(crate) mod webhooks;

/// Longest overlap of a rotation: 30 days.
pub(crate) const MAX_OVERLAP_SECONDS: u64 = 30 * 24 * 60 * 60;

const MAX_NAME_CHARS: usize = 200;
const MAX_PAGE: u32 = 1_000;
const MAX_RETENTION_DAYS: u32 = 3_650;

/// Who grants, by its record: what it holds, and when that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granter {
    pub(crate) caller: Caller,
    /// The end of its key; none while nothing ends it. A key that was rotated has the end of its overlap.
    pub(crate) ends: Option<Timestamp>,
}

/// Who may manage accounts.
pub(crate) fn may_manage_accounts(caller: &Caller) -> Result<(), Refusal> {
    if is_operator(caller) { Ok(()) } else { Err(Refusal::ScopeMissing(Scope::Operator)) }
}

/// Who may manage keys at all.
pub(crate) fn may_manage_keys(caller: &Caller) -> Result<(), Refusal> {
    if is_operator(caller) || caller.scopes.contains(&Scope::KeysManage) {
        Ok(())
    } else {
        Err(Refusal::ScopeMissing(Scope::KeysManage))
    }
}

/// The account that a call is about: another's does not exist for anybody but an operator.
pub(crate) fn account_meant(caller: &Caller, named: Option<&AccountId>) -> Result<AccountId, Refusal> {
    match named {
        None => Ok(caller.account.clone()),
        Some(named) if is_operator(caller) || *named == caller.account => Ok(named.clone()),
        Some(_) => Err(Refusal::NotFound),
    }
}

/// Judges the body of `POST /v1/accounts`.
pub(crate) fn valid_account(call: &CreateAccount) -> Result<(), Refusal> {
    refuse_if_any(bad_name(&call.name).into_iter().collect())
}

/// Judges the body of `PATCH /v1/accounts/{id}`.
pub(crate) fn valid_account_changes(call: &UpdateAccount) -> Result<(), Refusal> {
    let mut errors = Vec::new();
    if call.retention_days.and_then(Change::own).is_some_and(|days| !(1..=MAX_RETENTION_DAYS).contains(&days)) {
        errors.push(FieldError::new("retention_days", format!("must be 1 to {MAX_RETENTION_DAYS}")));
    }
    for (name, limit) in [("per_minute", call.per_minute), ("daily", call.daily), ("monthly", call.monthly)] {
        if limit.and_then(Change::own).is_some_and(|limit| !(1..=UNLIMITED).contains(&limit)) {
            errors.push(FieldError::new(name, format!("must be 1 to {UNLIMITED}, which means no limit")));
        }
    }
    let caps = call.caps;
    for (name, cap) in [
        ("max_keys", caps.max_keys),
        ("max_endpoints", caps.max_endpoints),
        ("max_runs", caps.max_runs),
        ("stored_bytes", caps.stored_bytes),
    ] {
        if cap.and_then(Change::own).is_some_and(|cap| cap > UNLIMITED) {
            errors.push(FieldError::new(name, format!("must be 0 to {UNLIMITED}, which means no cap")));
        }
    }
    refuse_if_any(errors)
}

/// Judges the body of `POST /v1/keys` and what it grants; when the key will end.
pub(crate) fn valid_key(granter: &Granter, call: &CreateKey, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    let Granter { caller, ends } = granter;
    let mut errors: Vec<_> = bad_name(&call.name).into_iter().collect();
    if call.scopes.is_empty() {
        errors.push(FieldError::new("scopes", "must name at least one scope"));
    }
    // Only by naming an account does an operator grant what it does not hold: so an account gets its first key.
    let as_operator = is_operator(caller) && call.account.is_some();
    let latest = ends.filter(|_| !(as_operator && may_outlive(&call.scopes)));
    let expires_at = call.expires_at.map(whole_seconds);
    if expires_at.is_some_and(|end| end <= now) {
        errors.push(FieldError::new("expires_at", "must be in the future"));
    }
    if let (Some(end), Some(latest)) = (expires_at, latest)
        && end > latest
    {
        errors.push(FieldError::new(
            "expires_at",
            format!("must not be after {latest}, when the key that grants it ends"),
        ));
    }
    refuse_if_any(errors)?;
    if !as_operator {
        holds_all(caller, &call.scopes)?;
    }
    Ok(expires_at.or(latest))
}

/// Whether an operator, whose key ends, may give this to others for longer. Not what makes an operator: whoever has
/// such a key for a moment would keep it.
fn may_outlive(scopes: &BTreeSet<Scope>) -> bool {
    !scopes.contains(&Scope::Operator)
}

/// Whether an account that has so many living keys may have one more.
pub(crate) fn room_for_key(living: u64, caps: &Caps) -> Result<(), Refusal> {
    let most = caps.keys();
    if living < most {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the account has {living} keys that live, and its cap `max_keys` is {most}: revoke one that is not used, or ask the \
         operator to raise the cap"
    )))
}

/// The old key as it is after its rotation. Whoever rotates a key gets the secret of its successor: that must be no
/// more than it has.
pub(crate) fn rotated(
    granter: &Granter,
    call: &RotateKey,
    key: Option<KeyRecord>,
    now: Timestamp,
) -> Result<KeyRecord, Refusal> {
    let Granter { caller, ends } = granter;
    let mut key = own(caller, key)?;
    let end = end_of_overlap(call.overlap_seconds, now)?;
    may_take(caller, &key)?;
    if key.revoked_at.is_some() {
        return Err(Refusal::Conflict("the key is revoked; create a new one instead".to_owned()));
    }
    if !key.lives_at(now) {
        return Err(Refusal::Conflict("the key is expired; create a new one instead".to_owned()));
    }
    if let Some(ends) = ends
        && key.expires_at.is_none_or(|end| end > *ends)
        && !(is_operator(caller) && may_outlive(&key.scopes))
    {
        return Err(Refusal::Conflict(format!(
            "the key lives longer than the one that would rotate it, which ends at {ends}; rotate it with a key that lives as \
             long"
        )));
    }
    if call.overlap_seconds == 0 {
        key.revoked_at = Some(now);
    } else {
        key.expires_at = Some(key.expires_at.map_or(end, |existing| existing.min(end)));
    }
    Ok(key)
}

/// When what is replaced ends.
fn end_of_overlap(seconds: u64, now: Timestamp) -> Result<Timestamp, Refusal> {
    if seconds > MAX_OVERLAP_SECONDS {
        let message = format!("must be 0 to {MAX_OVERLAP_SECONDS}");
        return Err(Refusal::Invalid(vec![FieldError::new("overlap_seconds", message)]));
    }
    // At most 30 days: fits. Were it ever not to fit, it ends at once.
    let overlap = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
    Ok(now.checked_add(overlap).unwrap_or(now))
}

/// The key as it is once revoked; `None` when it was so already.
pub(crate) fn revoked(caller: &Caller, key: Option<KeyRecord>, now: Timestamp) -> Result<Revocation, Refusal> {
    let mut key = own(caller, key)?;
    may_take(caller, &key)?;
    if key.revoked_at.is_some() {
        return Ok(Revocation::Already(key));
    }
    key.revoked_at = Some(now);
    Ok(Revocation::New(key))
}

/// What a revocation changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revocation {
    New(KeyRecord),
    Already(KeyRecord),
}

/// Where a page begins and how long it is; cursors are the last id of the page before.
pub(crate) fn page<Id>(
    cursor: Option<&str>,
    limit: u32,
    parse: impl Fn(&str) -> Result<Id, IdError>,
) -> Result<(Option<Id>, usize), Refusal> {
    let mut errors = Vec::new();
    if !(1..=MAX_PAGE).contains(&limit) {
        errors.push(FieldError::new("limit", format!("must be 1 to {MAX_PAGE}")));
    }
    let cursor = cursor.map(parse).transpose().unwrap_or_else(|_| {
        errors.push(FieldError::new("cursor", "must be a `next_cursor` of an earlier page"));
        None
    });
    refuse_if_any(errors)?;
    Ok((cursor, limit as usize))
}

/// Times are kept at whole seconds; a fraction never lengthens a key's life.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn is_operator(caller: &Caller) -> bool {
    caller.scopes.contains(&Scope::Operator)
}

fn own(caller: &Caller, key: Option<KeyRecord>) -> Result<KeyRecord, Refusal> {
    key.filter(|key| is_operator(caller) || key.account == caller.account).ok_or(Refusal::NotFound)
}

/// Whoever is no operator ends no key that may do more than its own.
fn may_take(caller: &Caller, key: &KeyRecord) -> Result<(), Refusal> {
    if is_operator(caller) { Ok(()) } else { holds_all(caller, &key.scopes) }
}

fn holds_all(caller: &Caller, scopes: &BTreeSet<Scope>) -> Result<(), Refusal> {
    scopes.difference(&caller.scopes).next().map_or(Ok(()), |lacking| Err(Refusal::ScopeMissing(*lacking)))
}

fn bad_name(name: &str) -> Option<FieldError> {
    let bad = is_blank(name) || name.chars().count() > MAX_NAME_CHARS;
    bad.then(|| FieldError::new("name", format!("must have 1 to {MAX_NAME_CHARS} characters and not be blank")))
}

fn refuse_if_any(errors: Vec<FieldError>) -> Result<(), Refusal> {
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::tests::{at, key};
    use stage0_contract::{CapChanges, KeyId};

    const NOW: i64 = 1_000;

    pub(crate) fn caller(account: &str, scopes: &[Scope]) -> Caller {
        Caller {
            account: AccountId::parse(account).unwrap(),
            key_id: KeyId::parse("caller").unwrap(),
            scopes: scopes.iter().copied().collect(),
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
                may_manage_keys(&caller),
                if keys { Ok(()) } else { Err(Refusal::ScopeMissing(Scope::KeysManage)) }
            );
            let accounts = scope == Scope::Operator;
            let refused = Err(Refusal::ScopeMissing(Scope::Operator));
            assert_eq!(may_manage_accounts(&caller), if accounts { Ok(()) } else { refused });
        }
    }

    #[test]
    fn another_account_does_not_exist_for_anybody_but_an_operator() {
        let (mine, other) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
        let all_but_operator: Vec<_> = Scope::ALL.into_iter().filter(|scope| *scope != Scope::Operator).collect();
        let manager = caller("a", &all_but_operator);
        assert_eq!(account_meant(&manager, Some(&other)), Err(Refusal::NotFound));
        assert_eq!(account_meant(&manager, Some(&mine)), Ok(mine.clone()));
        assert_eq!(account_meant(&manager, None), Ok(mine));
        assert_eq!(account_meant(&caller("a", &[Scope::Operator]), Some(&other)), Ok(other));
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
    fn an_operator_grants_anything_but_only_in_an_account_that_it_names() {
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
    fn decisions_are_kept_for_a_day_to_ten_years() {
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
        let good =
            UpdateAccount { per_minute: bad(1), daily: bad(UNLIMITED), monthly: Some(Change::Plans), ..changes() };
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
    fn a_cap_may_be_none_at_all_and_no_more_than_unlimited() {
        let caps = |cap: u64| CapChanges { max_runs: Some(Change::Own(cap)), ..CapChanges::default() };
        assert_eq!(
            paths(valid_account_changes(&UpdateAccount { caps: caps(UNLIMITED + 1), ..changes() })),
            ["max_runs"]
        );
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
    fn who_lacks_a_scope_of_a_key_does_not_rotate_it() {
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
    fn an_operator_that_ends_gives_accounts_keys_that_do_not_but_makes_no_operator_that_does_not() {
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
    fn a_rotation_hands_out_no_key_that_lives_longer_than_the_one_that_asks() {
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
    fn who_lacks_a_scope_of_a_key_does_not_revoke_it_either() {
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
    fn a_key_more_than_the_cap_is_refused_and_the_cap_named() {
        let caps = Caps { max_keys: Some(2), ..Caps::NONE };
        assert_eq!(room_for_key(1, &caps), Ok(()));
        for living in [2, 3] {
            match room_for_key(living, &caps) {
                Err(Refusal::Conflict(text)) => assert!(text.contains("`max_keys` is 2"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(room_for_key(1_000_000, &Caps { max_keys: Some(UNLIMITED), ..Caps::NONE }), Ok(()));
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
    fn a_dead_key_is_not_rotated() {
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
    fn an_overlap_never_lengthens_a_life_and_none_ends_it_at_once() {
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
    fn the_first_revocation_stands() {
        let manager = caller("a", &[Scope::KeysManage]);
        let Revocation::New(first) = revoked(&manager, Some(key("k", "a", &[])), at(NOW)).unwrap() else { panic!() };
        assert_eq!(first.revoked_at, Some(at(NOW)));
        assert_eq!(revoked(&manager, Some(first.clone()), at(NOW + 9)), Ok(Revocation::Already(first)));
    }

    #[test]
    fn a_page_has_one_to_a_thousand_items_and_a_cursor_of_ours() {
        for (cursor, limit, bad) in [(None, 0, "limit"), (None, 1_001, "limit"), (Some("a/b"), 1, "cursor")] {
            assert_eq!(paths(page(cursor, limit, KeyId::parse).map(drop)), [bad]);
        }
        assert_eq!(page(Some("k"), 1_000, KeyId::parse), Ok((Some(KeyId::parse("k").unwrap()), 1_000)));
    }
}
