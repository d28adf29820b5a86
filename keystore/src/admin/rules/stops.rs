//! What a caller may do with stops: pure.
//!
//! Any key with `stops:manage` stops its account; only a person with it, or the operator, lets checks pass again. A
//! stop of every account is the operator's alone. Which checks a stop covers is judged by the policy.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, Caller, CreateStop, FieldError, KeyId, MAX_STOPS, Refusal, Scope, StopScope, is_blank,
};

use super::{Granter, bad_text, invalid_if_any, is_operator, require, whole_seconds};
use crate::store::record::{KeyRecord, StopRecord};

const MAX_REASON_CHARS: usize = 500;
const MAX_VALUE_CHARS: usize = 1_000;
/// Stops of a whole account, and as many of all accounts, that hold at the same time.
const MAX_WIDE_STOPS: usize = 10;

/// Checks the body of `POST /v1/stops`. `key` is what the store has of the key that it names, `account` the account
/// that is to be stopped. Returns what is stopped: a key by the first key of its rotations, so that its successors stop
/// too.
pub(crate) fn valid_stop(
    caller: &Caller,
    call: &CreateStop,
    (account, key): (&AccountId, Option<&KeyRecord>),
    now: Timestamp,
) -> Result<Option<String>, Refusal> {
    if call.scope == StopScope::All {
        require(caller, Scope::Operator)?;
    }
    let mut errors = Vec::new();
    if call.scope == StopScope::All && call.account.is_some() {
        errors.push(FieldError::new("account", "must be absent for `all`, which covers every account"));
    }
    let value = match (call.scope, &call.value) {
        (StopScope::Account | StopScope::All, Some(_)) => {
            errors.push(FieldError::new("value", "must be absent for `account` and `all`"));
            None
        }
        (StopScope::Account | StopScope::All, None) => None,
        (StopScope::Environment | StopScope::Tool, Some(value)) => {
            errors.extend(bad_text("value", value, MAX_VALUE_CHARS));
            Some(value.clone())
        }
        (StopScope::Key, Some(_)) if key.is_some_and(|key| key.account == *account) => {
            key.map(|key| key.holder().workload.as_str().to_owned())
        }
        (StopScope::Key, Some(_)) => {
            errors.push(FieldError::new("value", "must be the id of a key of the account"));
            None
        }
        (StopScope::Environment | StopScope::Tool | StopScope::Key, None) => {
            errors.push(FieldError::new("value", "must name the environment, tool or key that is stopped"));
            None
        }
    };
    errors.extend(bad_text("reason", &call.reason, MAX_REASON_CHARS));
    if call.until.is_some_and(|until| whole_seconds(until) <= now) {
        errors.push(FieldError::new("until", "must be in the future"));
    }
    invalid_if_any(errors)?;
    Ok(value)
}

/// The key that a stop names, if it names one.
pub(crate) fn named_key(call: &CreateStop) -> Option<KeyId> {
    let value = call.value.as_deref().filter(|value| call.scope == StopScope::Key && !is_blank(value))?;
    KeyId::parse(value).ok()
}

/// Judges how many stops hold, given the account's. Narrow stops never keep the whole account, or all, from stopping:
/// each of those scopes has a bound of its own.
pub(crate) fn check_stop_cap(scope: StopScope, holding: impl Iterator<Item = StopScope>) -> Result<(), Refusal> {
    let is_wide = |scope| matches!(scope, StopScope::Account | StopScope::All);
    if is_wide(scope) {
        let stops = holding.filter(|held| *held == scope).count();
        if stops < MAX_WIDE_STOPS {
            return Ok(());
        }
        return Err(Refusal::Conflict(format!(
            "{stops} such stops hold already, and {MAX_WIDE_STOPS} is the most: resume one"
        )));
    }
    let stops = holding.filter(|held| !is_wide(*held)).count();
    if stops < MAX_STOPS {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the account has {stops} stops that hold, and {MAX_STOPS} is the most: stop the whole account, or resume one"
    )))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resumption {
    New(StopRecord),
    /// It has ended before.
    Already(StopRecord),
}

pub(crate) fn resumed(
    granter: &Granter,
    found: Option<StopRecord>,
    reason: &str,
    now: Timestamp,
) -> Result<Resumption, Refusal> {
    let caller = &granter.caller;
    let is_own = |record: &StopRecord| is_operator(caller) || record.account == caller.account;
    let mut record = found.filter(is_own).ok_or(Refusal::NotFound)?;
    if record.stop.scope == StopScope::All {
        require(caller, Scope::Operator)?;
    }
    invalid_if_any(bad_text("reason", reason, MAX_REASON_CHARS).into_iter().collect())?;
    if !is_operator(caller) && granter.holder.member.is_none() {
        return Err(Refusal::Conflict(
            "only a person resumes a stop: use the key of a member with `stops:manage`, or ask the operator".to_owned(),
        ));
    }
    if !record.holds_at(now) {
        return Ok(Resumption::Already(record));
    }
    record.ended_at = Some(now);
    Ok(Resumption::New(record))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{caller, granter, paths};
    use super::*;
    use crate::store::record::tests::{at, key, member, stop, stop_of_all};
    use stage0_contract::{Holder, Scopes};

    const NOW: i64 = 1_000;

    fn create(scope: StopScope, value: Option<&str>) -> CreateStop {
        CreateStop {
            caller: caller("a", &[Scope::StopsManage]),
            account: None,
            scope,
            value: value.map(str::to_owned),
            reason: "incident 12".to_owned(),
            until: None,
        }
    }

    fn judged(call: &CreateStop) -> Result<Option<String>, Refusal> {
        judged_with(call, None)
    }

    fn judged_with(call: &CreateStop, key: Option<&KeyRecord>) -> Result<Option<String>, Refusal> {
        valid_stop(&call.caller, call, (&call.caller.account, key), at(NOW))
    }

    fn wrong(call: &CreateStop) -> Vec<String> {
        paths(judged(call).map(drop))
    }

    #[test]
    fn a_stop_of_every_account_is_the_operators_and_names_none() {
        let mut call = create(StopScope::All, None);
        assert_eq!(judged(&call), Err(Refusal::ScopeMissing(Scope::Operator)));
        call.caller = caller("o", &[Scope::Operator]);
        assert_eq!(judged(&call), Ok(None));
        call.account = Some(AccountId::parse("a").unwrap());
        assert_eq!(wrong(&call), ["account"]);
    }

    #[test]
    fn a_stop_names_what_its_scope_asks_for_and_nothing_else() {
        use StopScope::{Account, Environment, Key, Tool};
        assert_eq!(judged(&create(Account, None)), Ok(None));
        assert_eq!(wrong(&create(Account, Some("x"))), ["value"]);
        for scope in [Environment, Tool] {
            assert_eq!(judged(&create(scope, Some("prod"))), Ok(Some("prod".to_owned())));
            for bad in [None, Some(""), Some(" "), Some("pr\u{202e}od"), Some("a\nb")] {
                assert_eq!(wrong(&create(scope, bad)), ["value"], "{bad:?}");
            }
            assert_eq!(wrong(&create(scope, Some(&"é".repeat(1_001)))), ["value"]);
            assert!(judged(&create(scope, Some(&"é".repeat(1_000)))).is_ok());
        }
        assert_eq!(wrong(&create(Key, None)), ["value"]);
        assert_eq!(wrong(&create(Key, Some("unknown"))), ["value"]);
    }

    #[test]
    fn a_key_is_stopped_with_its_rotations_and_only_in_its_own_account() {
        let call = create(StopScope::Key, Some("k2"));
        assert_eq!(named_key(&call), Some(key("k2", "a", &[]).id));
        assert_eq!(named_key(&create(StopScope::Tool, Some("k2"))), None);
        let mut record = key("k2", "a", &[]);
        assert_eq!(judged_with(&call, Some(&record)), Ok(Some("k2".to_owned())));
        record.holder = Some(Holder::of_workload(key("k1", "a", &[]).id));
        assert_eq!(judged_with(&call, Some(&record)), Ok(Some("k1".to_owned())));
        assert_eq!(paths(judged_with(&call, Some(&key("k2", "b", &[]))).map(drop)), ["value"]);
    }

    #[test]
    fn a_reason_shows_as_it_is_and_an_end_lies_ahead() {
        let with = |reason: String| CreateStop { reason, ..create(StopScope::Account, None) };
        for bad in ["", " ", "\u{200b}", "a\nb", "a\u{1b}[2Jb", "a\u{202e}b", "a\u{2066}b", "a\u{200f}b"] {
            assert_eq!(wrong(&with(bad.to_owned())), ["reason"], "{bad:?}");
        }
        assert_eq!(wrong(&with("é".repeat(501))), ["reason"]);
        assert!(judged(&with("é".repeat(500))).is_ok());
        let until = |second| CreateStop { until: Some(at(second)), ..create(StopScope::Account, None) };
        assert_eq!((wrong(&until(NOW)), judged(&until(NOW + 1))), (vec!["until".to_owned()], Ok(None)));
    }

    #[test]
    fn a_hundred_stops_hold_at_the_same_time_and_never_keep_the_account_from_stopping() {
        use StopScope::{Account, All, Environment, Key, Tool};
        let judged = |scope, tools, accounts| {
            let holding = std::iter::repeat_n(Tool, tools).chain(std::iter::repeat_n(Account, accounts));
            check_stop_cap(scope, holding)
        };
        for narrow in [Environment, Tool, Key] {
            assert_eq!(judged(narrow, 99, 10), Ok(()));
            assert!(matches!(judged(narrow, 100, 0), Err(Refusal::Conflict(_))), "{narrow:?}");
        }
        assert_eq!(judged(Account, 100, 9), Ok(()));
        assert!(matches!(judged(Account, 0, 10), Err(Refusal::Conflict(_))));
        assert_eq!(judged(All, 100, 10), Ok(()));
        assert!(matches!(check_stop_cap(All, std::iter::repeat_n(All, 10)), Err(Refusal::Conflict(_))));
    }

    fn by(account: &str, scopes: &[Scope], of_member: bool) -> Granter {
        let mut granter = granter(caller(account, scopes), None);
        granter.holder.member = of_member.then(|| member("m", account).member.id);
        granter
    }

    fn resume(granter: &Granter, record: StopRecord) -> Result<Resumption, Refusal> {
        resumed(granter, Some(record), "fixed", at(NOW))
    }

    #[test]
    fn only_a_members_key_or_the_operator_resumes() {
        let record = stop("stop_1", "a");
        let ended = Resumption::New(StopRecord { ended_at: Some(at(NOW)), ..record.clone() });
        assert!(matches!(resume(&by("a", &[Scope::StopsManage], false), record.clone()), Err(Refusal::Conflict(_))));
        assert_eq!(resume(&by("a", &[Scope::StopsManage], true), record.clone()), Ok(ended.clone()));
        assert_eq!(resume(&by("o", &[Scope::Operator], false), record.clone()), Ok(ended));
        assert_eq!(resume(&by("b", &[Scope::StopsManage], true), record.clone()), Err(Refusal::NotFound));
        let refused = resumed(&by("a", &[Scope::StopsManage], true), Some(record), " ", at(NOW));
        assert_eq!(paths(refused.map(drop)), ["reason"]);
        assert_eq!(resumed(&by("a", &[Scope::StopsManage], true), None, "x", at(NOW)), Err(Refusal::NotFound));
    }

    #[test]
    fn only_the_operator_resumes_a_stop_of_every_account() {
        let record = stop_of_all("stop_1", "o");
        let scopes: Vec<_> = Scopes::from(Scope::ALL).into_iter().filter(|scope| *scope != Scope::Operator).collect();
        assert_eq!(resume(&by("o", &scopes, true), record.clone()), Err(Refusal::ScopeMissing(Scope::Operator)));
        assert!(matches!(resume(&by("o", &[Scope::Operator], false), record), Ok(Resumption::New(_))));
    }

    #[test]
    fn a_stop_that_has_ended_stays_as_it_was() {
        let mut record = stop("stop_1", "a");
        record.stop.until = Some(at(NOW));
        assert_eq!(
            resume(&by("a", &[Scope::StopsManage], true), record.clone()),
            Ok(Resumption::Already(record.clone()))
        );
        (record.stop.until, record.ended_at) = (None, Some(at(5)));
        assert_eq!(resume(&by("a", &[Scope::StopsManage], true), record.clone()), Ok(Resumption::Already(record)));
    }
}
