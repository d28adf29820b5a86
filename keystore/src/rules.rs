//! What a caller may do (contract, section 7): pure.
//!
//! Owns every refusal of a management call; those about endpoints are in [`webhooks`]. The order of the questions is part of the
//! answer: first whether the caller may call at all, then whether what it names is its own (else it does not exist), then the body, then
//! the state. No scope implies another; `operator` alone reaches over accounts.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Caller, Caps, Change, CreateAccount, CreateKey, FieldError, IdError, Refusal, RotateKey, Scope,
    UNLIMITED, UpdateAccount, hidden, is_blank,
};

use crate::record::KeyRecord;

pub(crate) mod marks;
pub(crate) mod webhooks;

/// Longest overlap of a rotation: 30 days.
pub(crate) const MAX_OVERLAP_SECONDS: u64 = 30 * 24 * 60 * 60;

/// How far a gateway's clock may be ahead.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);
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

/// Who may delete decisions of its own account.
pub(crate) fn may_delete_decisions(caller: &Caller) -> Result<(), Refusal> {
    if is_operator(caller) || caller.scopes.contains(&Scope::DecisionsDelete) {
        Ok(())
    } else {
        Err(Refusal::ScopeMissing(Scope::DecisionsDelete))
    }
}

/// Judges up to when decisions are to be deleted.
pub(crate) fn valid_deletion(before: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    let latest = now.checked_add(MAX_CLOCK_SKEW).unwrap_or(now);
    let future = (before > latest).then(|| FieldError::new("before", "must not be in the future"));
    refuse_if_any(future.into_iter().collect())
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
    let bad = is_blank(name)
        || hidden(name).is_some()
        || name.chars().any(char::is_control)
        || name.chars().count() > MAX_NAME_CHARS;
    let message = || format!("must have 1 to {MAX_NAME_CHARS} characters, none of them hidden, and not be blank");
    bad.then(|| FieldError::new("name", message()))
}

fn refuse_if_any(errors: Vec<FieldError>) -> Result<(), Refusal> {
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

#[cfg(test)]
pub(crate) mod tests;
