//! What a caller may do with members: pure.
//!
//! Members decide about actions, so a caller gives no right that it lacks, other than `approvals:decide`, and gains
//! none by a member that it invites, changes or stands in for. Who did so is kept with the member as its maker: it
//! never counts as another person. A removed member does not exist, except for removing it again.

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AccountId, Caller, Delegate, DelegateMember, FieldError, InviteMember, MAX_GROUPS, MAX_INVITATION_SECONDS,
    MAX_MEMBERS, MemberId, MemberStatus, Person, Refusal, ReinviteMember, Scope, Scopes, UpdateMember, is_blank,
};

use super::{
    Granter, MAX_MAKERS, MAX_NAME_CHARS, bad_text, grants_approvals, holds_all, invalid_if_any, is_bidirectional,
    is_operator, require, whole_seconds,
};
use crate::store::record::{CodeHash, MemberRecord};

const MIN_INVITATION_SECONDS: u64 = 60;
const MAX_MAIL_CHARS: usize = 254;
const MAX_GROUP_CHARS: usize = 64;
const MAX_DELEGATION: SignedDuration = SignedDuration::from_hours(24 * 90);
/// JSON bytes of an account's people, which evaluators read at once: half of what a message carries.
pub(crate) const MAX_PEOPLE_BYTES: usize = 2 << 20;

/// Whether the member is one of the account that has had a key.
pub(crate) fn is_active(record: &MemberRecord, account: &AccountId) -> bool {
    record.exists() && record.member.status == MemberStatus::Active && record.member.account == *account
}

/// Checks the body of `POST /v1/members` and what it grants. Returns the scopes of the member's key.
pub(crate) fn valid_invitation(caller: &Caller, call: &InviteMember) -> Result<Scopes, Refusal> {
    let scopes = call.scopes.clone().unwrap_or_else(|| Scopes::from([Scope::ApprovalsDecide]));
    let mut errors: Vec<_> = bad_text("name", &call.name, MAX_NAME_CHARS).into_iter().collect();
    errors.extend(call.mail.as_deref().and_then(bad_mail));
    errors.extend(bad_groups(&call.groups));
    errors.extend(bad_validity(call.valid_seconds));
    if scopes.is_empty() {
        errors.push(FieldError::new("scopes", "must name at least one scope"));
    }
    if scopes.contains(&Scope::Operator) {
        errors.push(FieldError::new("scopes", "must not name `operator`, which no key of a member has"));
    }
    invalid_if_any(errors)?;
    may_hand_out(caller, &scopes)?;
    Ok(scopes)
}

pub(crate) fn check_member_cap(members: u64) -> Result<(), Refusal> {
    if members < MAX_MEMBERS as u64 {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the account has {members} members, and {MAX_MEMBERS} is the most: remove one first"
    )))
}

/// Judges the size of what evaluators read of an account's members.
pub(crate) fn check_people_bytes(bytes: usize) -> Result<(), Refusal> {
    if bytes <= MAX_PEOPLE_BYTES {
        return Ok(());
    }
    Err(Refusal::Conflict(
        "the account's members and their groups are too large in all: use fewer or shorter groups, or remove members"
            .to_owned(),
    ))
}

/// A member that the caller may change.
pub(crate) fn own_member(caller: &Caller, found: Option<MemberRecord>) -> Result<MemberRecord, Refusal> {
    own(caller, found).and_then(|record| if record.exists() { Ok(record) } else { Err(Refusal::NotFound) })
}

fn own(caller: &Caller, found: Option<MemberRecord>) -> Result<MemberRecord, Refusal> {
    found.filter(|record| is_operator(caller) || record.member.account == caller.account).ok_or(Refusal::NotFound)
}

/// The member that is invited again. The caller sees the code, which makes a key with all rights of the member.
pub(crate) fn reinvited(
    granter: &Granter,
    call: &ReinviteMember,
    found: Option<MemberRecord>,
) -> Result<MemberRecord, Refusal> {
    let mut record = own_member(&granter.caller, found)?;
    invalid_if_any(bad_validity(call.valid_seconds).into_iter().collect())?;
    may_hand_out(&granter.caller, &record.member.scopes)?;
    record.made_by = with_makers(granter, record.made_by, &record.member.id)?;
    Ok(record)
}

/// Who made a member, with the caller. A member is not its own maker.
pub(crate) fn with_makers(
    granter: &Granter,
    mut made_by: Vec<Person>,
    member: &MemberId,
) -> Result<Vec<Person>, Refusal> {
    for person in granter.makers() {
        if person != Person::Member(member.clone()) && !made_by.contains(&person) {
            made_by.push(person);
        }
    }
    if made_by.len() > MAX_MAKERS {
        return Err(Refusal::Conflict(format!(
            "more than {MAX_MAKERS} people have invited or changed the member: remove it and invite it again, or ask \
             the operator to make the change"
        )));
    }
    Ok(made_by)
}

/// Until when an invitation can be accepted.
pub(crate) fn invitation_end(valid_seconds: u64, now: Timestamp) -> Timestamp {
    let validity = SignedDuration::from_secs(i64::try_from(valid_seconds).unwrap_or(0));
    now.checked_add(validity).unwrap_or(now)
}

/// The member whose newest invitation has this code and has not expired, as it is once it accepted.
pub(crate) fn accepted(found: Option<MemberRecord>, code: &CodeHash, now: Timestamp) -> Result<MemberRecord, Refusal> {
    let mut record = found.filter(MemberRecord::exists).ok_or(Refusal::NotFound)?;
    let invitation = record.invitation.take().ok_or(Refusal::NotFound)?;
    if invitation.hash != *code || invitation.expires_at <= now {
        return Err(Refusal::NotFound);
    }
    record.member.status = MemberStatus::Active;
    Ok(record)
}

pub(crate) fn updated(
    granter: &Granter,
    call: UpdateMember,
    found: Option<MemberRecord>,
) -> Result<MemberRecord, Refusal> {
    let mut record = own_member(&granter.caller, found)?;
    let mut errors: Vec<_> =
        call.name.as_deref().and_then(|name| bad_text("name", name, MAX_NAME_CHARS)).into_iter().collect();
    errors.extend(call.mail.as_deref().filter(|mail| !mail.is_empty()).and_then(bad_mail));
    errors.extend(call.groups.iter().flat_map(|groups| bad_groups(groups)));
    invalid_if_any(errors)?;
    if let Some(groups) = call.groups.filter(|groups| *groups != record.member.groups) {
        if !is_operator(&granter.caller) && granter.is_of(&record.member.id) {
            return Err(Refusal::Conflict(
                "a member's groups are changed by another member or the operator, not by the member's own keys"
                    .to_owned(),
            ));
        }
        record.made_by = with_makers(granter, record.made_by, &record.member.id)?;
        record.member.groups = groups;
    }
    if let Some(name) = call.name {
        record.member.name = name;
    }
    if let Some(mail) = call.mail {
        record.member.mail = Some(mail).filter(|mail| !mail.is_empty());
    }
    Ok(record)
}

/// Checks who decides in a member's place. `to` is what the store has of the member that the call names.
pub(crate) fn delegated(
    granter: &Granter,
    call: &DelegateMember,
    found: Option<MemberRecord>,
    to: Option<&MemberRecord>,
    now: Timestamp,
) -> Result<MemberRecord, Refusal> {
    let caller = &granter.caller;
    // Who names another one's delegate chooses who decides for that one's groups.
    let is_itself = granter.holder.member.as_ref() == Some(&call.id) && !caller.scopes.is_empty();
    if !is_itself {
        require(caller, Scope::Operator)?;
    }
    let mut record = own_member(caller, found)?;
    let Some(named) = &call.to else {
        let until = call.until.map(|_| FieldError::new("until", "must be absent without `to`"));
        invalid_if_any(until.into_iter().collect())?;
        record.member.delegate = None;
        return Ok(record);
    };
    let mut errors = Vec::new();
    if *named == call.id || !to.is_some_and(|to| is_active(to, &record.member.account)) {
        errors.push(FieldError::new("to", "must be another active member of the account"));
    }
    let until = call.until.map(whole_seconds);
    let latest = now.checked_add(MAX_DELEGATION).unwrap_or(now);
    if until.is_none_or(|until| until <= now || until > latest) {
        errors.push(FieldError::new("until", "must be in the future and at most 90 days ahead"));
    }
    invalid_if_any(errors)?;
    if record.member.status != MemberStatus::Active {
        return Err(Refusal::Conflict(
            "the member has not accepted its invitation and decides about nothing".to_owned(),
        ));
    }
    record.member.delegate = until.map(|until| Delegate { to: named.clone(), until });
    Ok(record)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Removal {
    New(MemberRecord),
    Already(MemberRecord),
}

/// The caller ends the member's keys, so the member must not have more rights than the caller.
pub(crate) fn removed(caller: &Caller, found: Option<MemberRecord>, now: Timestamp) -> Result<Removal, Refusal> {
    let record = own(caller, found)?;
    if !record.exists() {
        return Ok(Removal::Already(record));
    }
    if !is_operator(caller) {
        holds_all(caller, &without_decide(&record.member.scopes))?;
    }
    Ok(Removal::New(record.tombstone(now)))
}

/// Whether the caller may give these scopes to a member: those that it holds and `approvals:decide`.
fn may_hand_out(caller: &Caller, scopes: &Scopes) -> Result<(), Refusal> {
    if is_operator(caller) {
        return Ok(());
    }
    holds_all(caller, &without_decide(scopes))?;
    grants_approvals(caller, scopes)
}

pub(super) fn without_decide(scopes: &Scopes) -> Scopes {
    scopes.iter().copied().filter(|scope| *scope != Scope::ApprovalsDecide).collect()
}

fn bad_mail(mail: &str) -> Option<FieldError> {
    let has_sides = mail.rsplit_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty());
    let is_hidden =
        |c: char| c.is_whitespace() || c.is_control() || is_bidirectional(c) || is_blank(c.encode_utf8(&mut [0; 4]));
    let is_bad = !has_sides || mail.chars().any(is_hidden) || mail.chars().count() > MAX_MAIL_CHARS;
    let message =
        || format!("must be an address with `@`, at most {MAX_MAIL_CHARS} characters and none of them hidden");
    is_bad.then(|| FieldError::new("mail", message()))
}

fn bad_groups(groups: &[String]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if groups.len() > MAX_GROUPS {
        errors.push(FieldError::new("groups", format!("must have at most {MAX_GROUPS} items")));
    }
    for (at, group) in groups.iter().take(MAX_GROUPS).enumerate() {
        let is_word = (1..=MAX_GROUP_CHARS).contains(&group.len())
            && group.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
        let message = if !is_word {
            format!("must have 1 to {MAX_GROUP_CHARS} small letters, digits, `.`, `_` or `-`")
        } else if groups.iter().take(at).any(|earlier| earlier == group) {
            "must not be named twice".to_owned()
        } else {
            continue;
        };
        errors.push(FieldError::new(format!("groups[{at}]"), message));
    }
    errors
}

fn bad_validity(seconds: u64) -> Option<FieldError> {
    let is_bad = !(MIN_INVITATION_SECONDS..=MAX_INVITATION_SECONDS).contains(&seconds);
    let message = || format!("must be {MIN_INVITATION_SECONDS} to {MAX_INVITATION_SECONDS}");
    is_bad.then(|| FieldError::new("valid_seconds", message()))
}

#[cfg(test)]
mod tests;
