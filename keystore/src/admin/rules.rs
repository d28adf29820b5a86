//! What a caller may do: pure.
//!
//! Owns every refusal of a management call. Checks run in a fixed order, because it shows in the reply: whether the
//! caller may make the call at all, whether the thing it names is its own (otherwise it does not exist), the body, then
//! the state. No scope implies another; only `operator` reaches other accounts.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Caller, Caps, Change, CreateAccount, CreateKey, FieldError, Holder, IdError, MemberId, Person, Refusal,
    RotateKey, Scope, UNLIMITED, UpdateAccount, hidden, is_blank,
};

use crate::store::record::{KeyRecord, MemberRecord};

pub(crate) mod candidates;
pub(crate) mod marks;
pub(crate) mod members;
pub(crate) mod policies;
pub(crate) mod proposals;
pub(crate) mod stops;
pub(crate) mod webhooks;

pub(crate) const MAX_OVERLAP_SECONDS: u64 = 30 * 24 * 60 * 60;

/// A gateway's clock may be this far ahead.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);
const MAX_NAME_CHARS: usize = 200;
const MAX_PAGE: u32 = 1_000;
const MAX_RETENTION_DAYS: u32 = 3_650;
/// People who may have seen the secrets of one key, or made one member. Evaluators read all of them at every approval.
const MAX_MAKERS: usize = 32;

/// The caller, as its own record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granter {
    pub(crate) caller: Caller,
    /// When its key expires, if it does. For a rotated key this is the end of the overlap.
    pub(crate) ends: Option<Timestamp>,
    pub(crate) holder: Holder,
}

impl Granter {
    /// Everybody who counts as the maker of what this caller makes: none where it is the operator.
    pub(crate) fn makers(&self) -> Vec<Person> {
        if is_operator(&self.caller) {
            return Vec::new();
        }
        let Holder { owner, known_to, .. } = &self.holder;
        let mut makers = Vec::new();
        let others = owner.iter().cloned().map(Person::Member).chain(known_to.iter().cloned());
        for person in [self.holder.root()].into_iter().chain(others) {
            if !makers.contains(&person) {
                makers.push(person);
            }
        }
        makers
    }

    /// Whether the caller's key is the member's own, or one that the member made or answers for.
    fn is_of(&self, member: &MemberId) -> bool {
        self.holder.persons().any(|person| matches!(&person, Person::Member(id) if id == member))
    }
}

pub(crate) fn require(caller: &Caller, scope: Scope) -> Result<(), Refusal> {
    if is_operator(caller) || caller.scopes.contains(&scope) { Ok(()) } else { Err(Refusal::ScopeMissing(scope)) }
}

pub(crate) fn valid_deletion(before: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    let latest = now.checked_add(MAX_CLOCK_SKEW).unwrap_or(now);
    let future = (before > latest).then(|| FieldError::new("before", "must not be in the future"));
    invalid_if_any(future.into_iter().collect())
}

pub(crate) fn target_account(caller: &Caller, named: Option<&AccountId>) -> Result<AccountId, Refusal> {
    match named {
        None => Ok(caller.account.clone()),
        Some(named) if is_operator(caller) || *named == caller.account => Ok(named.clone()),
        Some(_) => Err(Refusal::NotFound),
    }
}

pub(crate) fn valid_account(call: &CreateAccount) -> Result<(), Refusal> {
    invalid_if_any(bad_name(&call.name).into_iter().collect())
}

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
    invalid_if_any(errors)
}

/// Checks the body of `POST /v1/keys` and what it grants, in `account`, to a workload of this owner. Returns when the
/// key expires.
pub(crate) fn valid_key(
    granter: &Granter,
    call: &CreateKey,
    (account, owner): (&AccountId, Option<&MemberRecord>),
    now: Timestamp,
) -> Result<Option<Timestamp>, Refusal> {
    let Granter { caller, ends, .. } = granter;
    let mut errors: Vec<_> = bad_name(&call.name).into_iter().collect();
    if call.scopes.is_empty() {
        errors.push(FieldError::new("scopes", "must name at least one scope"));
    }
    if call.scopes.contains(&Scope::ApprovalsDecide) {
        let message = "must not name `approvals:decide`, which only keys of members have: invite a member";
        errors.push(FieldError::new("scopes", message));
    }
    if call.owner.is_some() && !owner.is_some_and(|owner| members::is_active(owner, account)) {
        errors.push(FieldError::new("owner", "must be an active member of the account"));
    }
    // An operator grants scopes that it does not hold only by naming an account, which thus gets its first key.
    let as_operator = is_operator(caller) && call.account.is_some();
    let latest = ends.filter(|_| !(as_operator && may_outlive(&call.scopes)));
    let expires_at = call.expires_at.map(whole_seconds);
    if expires_at.is_some_and(|end| end <= now) {
        errors.push(FieldError::new("expires_at", "must be in the future"));
    }
    if let (Some(end), Some(latest)) = (expires_at, latest)
        && end > latest
    {
        let message = format!("must not be after {latest}, when the key that grants it ends");
        errors.push(FieldError::new("expires_at", message));
    }
    invalid_if_any(errors)?;
    if !as_operator {
        holds_all(caller, &call.scopes)?;
    }
    grants_approvals(caller, &call.scopes)?;
    Ok(expires_at.or(latest))
}

/// Only the operator says which systems outside may register approvals.
fn grants_approvals(caller: &Caller, scopes: &BTreeSet<Scope>) -> Result<(), Refusal> {
    if scopes.contains(&Scope::ApprovalsGrant) { require(caller, Scope::Operator) } else { Ok(()) }
}

/// Whether an operator may grant these scopes for longer than its own key lasts. Not `operator` itself, or holding such
/// a key for a moment would be enough to keep it.
fn may_outlive(scopes: &BTreeSet<Scope>) -> bool {
    !scopes.contains(&Scope::Operator)
}

pub(crate) fn check_key_cap(active: u64, caps: &Caps) -> Result<(), Refusal> {
    let most = caps.keys();
    if active < most {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the account has {active} active keys, and its cap `max_keys` is {most}: revoke one that is not used, or ask \
         the operator to raise the cap"
    )))
}

/// The caller gets the secret of the successor, so the key must not have more rights than the caller.
pub(crate) fn rotated(
    granter: &Granter,
    call: &RotateKey,
    key: Option<KeyRecord>,
    now: Timestamp,
) -> Result<KeyRecord, Refusal> {
    let Granter { caller, ends, holder } = granter;
    let mut key = own(caller, key)?;
    let end = end_of_overlap(call.overlap_seconds, now)?;
    may_end_key(caller, &key)?;
    if key.holder().member.is_some_and(|member| holder.member.as_ref() != Some(&member)) {
        return Err(Refusal::Conflict(
            "the key is a member's, and only a key of the same member rotates it: invite the member again instead"
                .to_owned(),
        ));
    }
    if key.revoked_at.is_some() {
        return Err(Refusal::Conflict("the key is revoked; create a new one instead".to_owned()));
    }
    if !key.is_active_at(now) {
        return Err(Refusal::Conflict("the key is expired; create a new one instead".to_owned()));
    }
    if let Some(ends) = ends
        && key.expires_at.is_none_or(|end| end > *ends)
        && !(is_operator(caller) && may_outlive(&key.scopes))
    {
        return Err(Refusal::Conflict(format!(
            "the key lives longer than the one that would rotate it, which ends at {ends}; rotate it with a key that \
             lives as long"
        )));
    }
    if call.overlap_seconds == 0 {
        key.revoked_at = Some(now);
    } else {
        key.expires_at = Some(key.expires_at.map_or(end, |existing| existing.min(end)));
    }
    Ok(key)
}

/// Who stands behind the successor of a key: as before, and the people who rotate it, who see its secret.
pub(crate) fn successors_holder(granter: &Granter, key: &KeyRecord) -> Result<Holder, Refusal> {
    let mut holder = key.holder();
    if holder.workload == granter.holder.workload {
        return Ok(holder);
    }
    for person in granter.makers() {
        let is_known = holder.persons().any(|known| known == person);
        if !is_known {
            holder.known_to.push(person);
        }
    }
    if holder.known_to.len() > MAX_MAKERS {
        let message = format!("more than {MAX_MAKERS} people have rotated the key: create a new one instead");
        return Err(Refusal::Conflict(message));
    }
    Ok(holder)
}

fn end_of_overlap(seconds: u64, now: Timestamp) -> Result<Timestamp, Refusal> {
    if seconds > MAX_OVERLAP_SECONDS {
        let message = format!("must be 0 to {MAX_OVERLAP_SECONDS}");
        return Err(Refusal::Invalid(vec![FieldError::new("overlap_seconds", message)]));
    }
    // At most 30 days, which always fits. If it did not, the overlap would end at once.
    let overlap = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
    Ok(now.checked_add(overlap).unwrap_or(now))
}

pub(crate) fn revoked(caller: &Caller, key: Option<KeyRecord>, now: Timestamp) -> Result<Revocation, Refusal> {
    let mut key = own(caller, key)?;
    may_end_key(caller, &key)?;
    if key.revoked_at.is_some() {
        return Ok(Revocation::Already(key));
    }
    key.revoked_at = Some(now);
    Ok(Revocation::New(key))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revocation {
    New(KeyRecord),
    Already(KeyRecord),
}

/// Where a page begins and how many items it has. A cursor is the last id of the page before.
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
    invalid_if_any(errors)?;
    Ok((cursor, limit as usize))
}

/// Times are stored as whole seconds, rounded down so that a fraction never lengthens a key's validity.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

pub(crate) fn is_operator(caller: &Caller) -> bool {
    caller.scopes.contains(&Scope::Operator)
}

fn own(caller: &Caller, key: Option<KeyRecord>) -> Result<KeyRecord, Refusal> {
    key.filter(|key| is_operator(caller) || key.account == caller.account).ok_or(Refusal::NotFound)
}

/// Only an operator may end a key that has more rights than the caller. A leaked key of a member can be ended by keys
/// that can never have `approvals:decide` themselves.
fn may_end_key(caller: &Caller, key: &KeyRecord) -> Result<(), Refusal> {
    if is_operator(caller) { Ok(()) } else { holds_all(caller, &members::without_decide(&key.scopes)) }
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

/// What is wrong with a text that people decide by: it must show as it is.
fn bad_text(path: &str, text: &str, max_chars: usize) -> Option<FieldError> {
    let is_bad = is_blank(text)
        || hidden(text).is_some()
        || text.chars().any(|c| c.is_control() || is_bidirectional(c))
        || text.chars().count() > max_chars;
    let message = || {
        format!(
            "must have 1 to {max_chars} characters, none of them hidden or changing the direction of text, and not be \
             blank"
        )
    };
    is_bad.then(|| FieldError::new(path, message()))
}

/// The controls of UAX #9, which make a text look like another one.
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn invalid_if_any(errors: Vec<FieldError>) -> Result<(), Refusal> {
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

#[cfg(test)]
pub(crate) mod tests;
