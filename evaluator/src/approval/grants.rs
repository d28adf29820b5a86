//! Wider grants: what a workload may do for a while without a new approval.
//!
//! All grants of an account are one record, with their events. The policy judges whether a grant covers an action. Its
//! votes are judged when it is used, against the terms of the deciding rules.
//! INVARIANT: a grant holds for one workload, at most eight hours, until it is revoked; each use is counted once.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use stage0_contract::{
    AccountId, Actor, ApprovalEvent, EventActor, FieldError, Grant, GrantId, Holder, KeyId, LineType,
    MAX_GRANT_SECONDS, MAX_GRANTS, Refusal, RequestId, Vote,
};
use uuid::Uuid;

use super::people::{Asker, Directory};
use super::record::{MAX_VOTES, Outbox, StoredVote, actor_of, blank_event, members};

/// Uses that a grant names where it is shown.
const MAX_SHOWN_USES: usize = 20;
/// Uses that can be released or repeated: those of as many checks at the same time.
const MAX_USED_BY: usize = 64;
/// JSON bytes of an account's grants, beyond which they are not added to, approved or used. Half of what a record
/// holds: the other half is for revoking all of them.
const MAX_BYTES: usize = 512 << 10;
const MAX_TEXT_CHARS: usize = 200;
const MAX_EFFECTS: usize = 20;
const MAX_EFFECT_CHARS: usize = 100;
/// Events that may wait to be recorded before a grant is used no more.
const MAX_UNRECORDED: usize = 200;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredGrants {
    pub(super) account: AccountId,
    pub(super) retention_days: u32,
    pub(super) grants: Vec<StoredGrant>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredGrant {
    /// Without its votes, which stand beside it with their holders.
    pub(super) grant: Grant,
    pub(super) votes: Vec<StoredVote>,
    /// Who stands behind the workload.
    pub(super) asker: Holder,
    pub(super) outbox: Outbox,
    /// The account's grants need all the room that is for them: it is not used until some have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_crowded: bool,
}

impl StoredGrants {
    pub(super) fn new(account: AccountId) -> Self {
        Self { account, retention_days: stage0_contract::DEFAULT_RETENTION_DAYS, grants: Vec::new() }
    }

    /// Drops grants that have ended and whose events are recorded.
    pub(super) fn pass_time(&mut self, now: Timestamp) {
        for stored in &mut self.grants {
            stored.outbox.forget_recorded();
            stored.outbox.forget_uses(now);
        }
        // A revoked one is kept until its time is over, so that revoking it again finds it.
        self.grants.retain(|stored| stored.grant.until > now || !stored.outbox.events.is_empty());
        let is_crowded = self.check_size().is_err();
        self.grants.iter_mut().for_each(|stored| stored.is_crowded = is_crowded);
    }

    /// Refuses what makes the record so large that a revocation might not fit.
    pub(super) fn check_size(&self) -> Result<(), Refusal> {
        let bytes = serde_json::to_vec(self).map_or(usize::MAX, |json| json.len());
        if bytes <= MAX_BYTES {
            return Ok(());
        }
        Err(Refusal::Conflict("the account's wider grants are too large in all: revoke some, or wait".to_owned()))
    }

    pub(super) fn find(&mut self, id: &GrantId) -> Option<&mut StoredGrant> {
        self.grants.iter_mut().find(|stored| stored.grant.id == *id)
    }

    pub(super) fn add(&mut self, stored: StoredGrant, now: Timestamp) -> Result<(), Refusal> {
        let revoked = self.grants.len().saturating_sub(MAX_GRANTS);
        if revoked >= MAX_GRANTS || self.grants.iter().filter(|stored| stored.holds(now)).count() >= MAX_GRANTS {
            return Err(Refusal::Conflict(format!("the account has {MAX_GRANTS} wider grants already: revoke some")));
        }
        self.grants.push(stored);
        self.check_size().inspect_err(|_| drop(self.grants.pop()))
    }

    pub(super) fn due_at(&self) -> Option<Timestamp> {
        self.grants.iter().filter_map(|stored| stored.outbox.due_at()).min()
    }

    pub(super) fn confirm(&mut self, id: &GrantId, event_id: Uuid) -> bool {
        self.find(id).is_some_and(|stored| stored.outbox.recorded(event_id).is_some())
    }
}

/// What a grant may not be.
pub(super) fn fault(create: &stage0_contract::CreateGrant, now: Timestamp) -> Option<FieldError> {
    let is_narrow = create.run_id.is_some() || create.tool.is_some() || create.effects.is_some();
    let latest = now.saturating_add(SignedDuration::from_secs(MAX_GRANT_SECONDS)).unwrap_or(now);
    let texts = [("run_id", &create.run_id), ("tool", &create.tool), ("environment", &create.environment)];
    let blank = texts.into_iter().find(|(_, text)| text.as_deref().is_some_and(stage0_contract::is_blank));
    if !is_narrow {
        return Some(FieldError::new("body", "must have at least one of `run_id`, `tool` and `effects`"));
    }
    if let Some((name, _)) = blank {
        return Some(FieldError::new(name, "must not be blank"));
    }
    let long =
        texts.into_iter().find(|(_, text)| text.as_ref().is_some_and(|text| text.chars().count() > MAX_TEXT_CHARS));
    if let Some((name, _)) = long {
        return Some(FieldError::new(name, format!("must have at most {MAX_TEXT_CHARS} characters")));
    }
    let effects = create.effects.as_deref().unwrap_or_default();
    if effects.len() > MAX_EFFECTS || effects.iter().any(|effect| effect.chars().count() > MAX_EFFECT_CHARS) {
        let message = format!("must be at most {MAX_EFFECTS} effects of at most {MAX_EFFECT_CHARS} characters each");
        return Some(FieldError::new("effects", message));
    }
    if create.effects.as_ref().is_some_and(Vec::is_empty) {
        return Some(FieldError::new("effects", "must name at least one effect"));
    }
    if create.until <= now || create.until > latest {
        return Some(FieldError::new("until", "must be in the future, at most 8 hours ahead"));
    }
    None
}

impl StoredGrant {
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        self.grant.until > now && self.grant.revoked_at.is_none()
    }

    /// Whether this workload may use it now, as far as the grant itself says.
    pub(super) fn is_usable(&self, workload: &KeyId, now: Timestamp) -> bool {
        self.grant.workload == *workload
            && self.holds(now)
            && !self.is_crowded
            && self.outbox.unrecorded(None).len() < MAX_UNRECORDED
            && self.outbox.events.len() < 2 * MAX_UNRECORDED
    }

    fn event(&self, kind: LineType, at: Timestamp) -> ApprovalEvent {
        ApprovalEvent { grant_id: Some(self.grant.id.clone()), ..blank_event(kind, at) }
    }

    fn push(&mut self, event: ApprovalEvent) {
        let source = self.grant.id.clone();
        self.outbox.push(source.as_str(), event);
    }

    /// One more person approves it; the first one makes it.
    pub(super) fn approve(
        &mut self,
        actor: &Actor,
        directory: &Directory<'_>,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let conflict = |text: &str| Err(Refusal::Conflict(text.to_owned()));
        if !self.holds(now) {
            return conflict("the grant has ended or was revoked");
        }
        let Some(member) = &actor.holder.member else { return conflict("only a member's own key can decide") };
        if !directory.may_decide(member) {
            return conflict("the member was removed, or has no key that may decide");
        }
        if !directory.is_another_holder(&actor.holder, &Asker::new(&self.asker, actor.rules.four_eyes)) {
            return conflict(
                "somebody else must decide: this person stands behind the workload that may use the grant",
            );
        }
        if self.votes.iter().any(|stored| stored.vote.member_id.as_ref() == Some(member)) {
            return conflict("this person has decided already: another one must");
        }
        if self.votes.len() >= MAX_VOTES {
            return conflict("the grant has too many answers");
        }
        let vote = Vote {
            member_id: Some(member.clone()),
            key_id: actor.key_id.clone(),
            approve: true,
            at: now,
            reason: reason.to_owned(),
            on_behalf_of: None,
            external: None,
        };
        self.votes.push(StoredVote { vote, holder: actor.holder.clone() });
        let details = json!({
            "workload": self.grant.workload,
            "until": self.grant.until,
            "votes": self.votes.len(),
        });
        let event = ApprovalEvent {
            actor: Some(actor_of(actor)),
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            environment: self.grant.environment.clone(),
            details: members(details),
            ..self.event(LineType::GrantCreated, now)
        };
        self.push(event);
        Ok(())
    }

    pub(super) fn revoke(&mut self, actor: &Actor, reason: &str, now: Timestamp) -> Result<(), Refusal> {
        if self.grant.revoked_at.is_some() {
            return Ok(());
        }
        if !self.holds(now) {
            return Err(Refusal::Conflict("the grant has ended".to_owned()));
        }
        self.grant.revoked_at = Some(now);
        let event = ApprovalEvent {
            actor: Some(actor_of(actor)),
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            ..self.event(LineType::GrantRevoked, now)
        };
        self.push(event);
        Ok(())
    }

    /// Counts a use once for each check, and adds an event for each attempt.
    pub(super) fn record_use(
        &mut self,
        key_id: &KeyId,
        operation: RequestId,
        request_id: RequestId,
        blank: ApprovalEvent,
    ) {
        let is_known = |id: RequestId| self.grant.used_by.contains(&id);
        if is_known(request_id) {
            return;
        }
        if !is_known(operation) {
            self.grant.uses = self.grant.uses.saturating_add(1);
        }
        self.grant.used_by.push(request_id);
        let most = self.grant.used_by.len().saturating_sub(MAX_USED_BY);
        self.grant.used_by.drain(..most);
        let event = ApprovalEvent {
            grant_id: Some(self.grant.id.clone()),
            request_id: Some(request_id),
            actor: Some(EventActor::of(key_id, None)),
            ..blank
        };
        self.push(event);
    }

    /// The decision of this attempt is surely not in the log.
    pub(super) fn release(&mut self, request_id: RequestId) -> bool {
        if !self.grant.used_by.contains(&request_id) {
            return false;
        }
        self.grant.used_by.retain(|used| *used != request_id);
        self.grant.uses = self.grant.uses.saturating_sub(1);
        self.outbox.events.retain(|stored| stored.recorded || stored.event.request_id != Some(request_id));
        true
    }

    pub(super) fn view(&self) -> Grant {
        let votes = self.votes.iter().map(|stored| stored.vote.clone()).collect();
        let shown = self.grant.used_by.len().saturating_sub(MAX_SHOWN_USES);
        let used_by = self.grant.used_by.iter().skip(shown).copied().collect();
        Grant { votes, used_by, ..self.grant.clone() }
    }
}
