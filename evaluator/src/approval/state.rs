//! How an approval changes: opened, decided, used, and used again.
//!
//! Pure: each change takes the time and the directory of people, and returns a refusal in words. A change that is
//! refused leaves the record as it was.
//! INVARIANT: each end is reached once. An approval that a check has reserved is free for no other check until that one
//! has surely not been recorded, or until a person reopens it.

use jiff::Timestamp;
use serde_json::json;
use stage0_contract::{
    ActionDigest, Actor, ApprovalEvent, ApprovalStatus, EventActor, ExternalApproval, FieldError, LineType, Outcome,
    OutcomeStatus, Refusal, RequestId, Vote,
};
use uuid::Uuid;

use super::people::{Asker, Directory, Question, Standing, same_name};
use super::record::{
    Attempt, Claim, IN_USE_FOR, MAX_VOTES, StoredApproval, StoredVote, Use, actor_of, later, members, seconds_later,
};

/// Who makes a change, when, and what is known of people.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) actor: &'a Actor,
    pub(super) directory: &'a Directory<'a>,
    /// Checked and masked.
    pub(super) reason: &'a str,
    pub(super) now: Timestamp,
}

/// What a check finds when it would use an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    /// It is this check's now, or was already.
    ForThis,
    ByAnother(RequestId),
    /// It is not approved.
    Not,
}

fn conflict<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Conflict(text.into()))
}

fn required<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::Invalid(vec![FieldError::new("reason", why)]))
}

impl StoredApproval {
    /// The first event: who asked for what.
    pub(super) fn opened(&mut self, eligible: u32) {
        let mut details = json!({
            "quorum": self.terms.quorum(),
            "groups": self.terms.groups(),
            "expires_at": self.expires_at,
            "eligible": eligible,
        });
        if let (Some(used_by), Some(details)) = (self.after, details.as_object_mut()) {
            details.insert("used_by".to_owned(), json!(used_by));
        }
        let actor = EventActor::of(&self.key_id, self.asker.member.as_ref());
        let event = ApprovalEvent {
            request_id: Some(self.request_id),
            actor: Some(actor),
            details: members(details),
            ..self.event(LineType::ApprovalRequested, self.created_at)
        };
        self.push(event);
    }

    pub(super) fn asker(&self, four_eyes: bool) -> Asker {
        Asker::new(&self.asker, four_eyes)
    }

    fn question<'a>(&'a self, asker: &'a Asker, now: Timestamp) -> Question<'a> {
        Question { asker, terms: &self.terms, opened_at: self.created_at, now }
    }

    /// Refuses what is not pending, or not what the caller saw.
    fn must_be_pending(&self, digest: &ActionDigest) -> Result<(), Refusal> {
        match self.status {
            ApprovalStatus::Pending => {}
            ApprovalStatus::Approved | ApprovalStatus::Denied | ApprovalStatus::Cancelled => {
                return conflict(format!("it was decided already: it is {}", self.status.as_str()));
            }
            ApprovalStatus::Expired => return conflict("it is too late: the approval has expired"),
            ApprovalStatus::Reserved | ApprovalStatus::Consumed => {
                return conflict("it was decided already: the approval was used");
            }
        }
        if *digest != self.action_digest {
            return conflict("`action_digest` is not that of the pending action: read the approval again");
        }
        if self.votes.len() >= MAX_VOTES || self.outbox.is_full() {
            return conflict("the approval has too many answers: cancel it");
        }
        Ok(())
    }

    /// Whether this caller may decide, and in whose place.
    fn voter(&self, change: Change<'_>) -> Result<Vote, Refusal> {
        let Change { actor, directory, reason, now } = change;
        let Some(member) = &actor.holder.member else {
            return conflict("only a member's own key can decide");
        };
        if actor.holder.workload == self.asker.workload {
            return own_action();
        }
        let asker = self.asker(actor.rules.four_eyes);
        let on_behalf_of = match directory.standing(member, self.question(&asker, now)) {
            Standing::May { on_behalf_of } => on_behalf_of,
            Standing::Unknown => return conflict("the member was removed, or has no key that may decide"),
            Standing::OwnAction => return own_action(),
            Standing::OtherGroups => {
                let groups = self.terms.groups().join("`, `");
                return conflict(format!("the member is in none of the groups that may decide: `{groups}`"));
            }
        };
        if self.votes.iter().any(|stored| stored.vote.member_id.as_ref() == Some(member)) {
            return conflict("this person has decided already: another one must");
        }
        Ok(Vote {
            member_id: Some(member.clone()),
            key_id: actor.key_id.clone(),
            approve: true,
            at: now,
            reason: reason.to_owned(),
            on_behalf_of,
            external: None,
        })
    }

    pub(super) fn approve(&mut self, digest: &ActionDigest, change: Change<'_>) -> Result<(), Refusal> {
        self.must_be_pending(digest)?;
        let vote = self.voter(change)?;
        if self.terms.reason_required && change.reason.is_empty() {
            return required("is required to approve this action");
        }
        self.accept(&vote, change);
        Ok(())
    }

    /// A system outside approved it.
    pub(super) fn register(
        &mut self,
        digest: &ActionDigest,
        external: &ExternalApproval,
        change: Change<'_>,
    ) -> Result<(), Refusal> {
        self.must_be_pending(digest)?;
        let Change { actor, directory, reason, now } = change;
        if !directory.is_another_holder(&actor.holder, &self.asker(true)) {
            return own_action();
        }
        let names: Vec<String> = external.approved_by.iter().map(|name| same_name(name)).collect();
        let known = self.votes.iter().filter_map(|stored| stored.vote.external.as_ref());
        let mut known = known.flat_map(|external| external.approved_by.iter().map(|name| same_name(name)));
        if known.any(|name| names.contains(&name)) {
            return conflict("one of `approved_by` has decided already: another one must");
        }
        let vote = Vote {
            member_id: None,
            key_id: actor.key_id.clone(),
            approve: true,
            at: now,
            reason: reason.to_owned(),
            on_behalf_of: None,
            external: Some(external.clone()),
        };
        self.accept(&vote, change);
        Ok(())
    }

    fn accept(&mut self, vote: &Vote, change: Change<'_>) {
        let Change { actor, directory, now, .. } = change;
        self.votes.push(StoredVote { vote: vote.clone(), holder: actor.holder.clone() });
        let asker = self.asker(actor.rules.four_eyes);
        let is_enough = directory.is_enough(&self.votes, self.question(&asker, now));
        let kind = if is_enough {
            self.status = ApprovalStatus::Approved;
            self.decided_at = Some(now);
            self.usable_until = Some(seconds_later(now, self.terms.valid_seconds));
            LineType::ApprovalApproved
        } else {
            LineType::ApprovalVoted
        };
        self.push_vote(kind, vote, actor);
    }

    fn push_vote(&mut self, kind: LineType, vote: &Vote, actor: &Actor) {
        let mut details = json!({
            "votes": self.votes.iter().filter(|stored| stored.vote.approve).count(),
            "quorum": self.terms.quorum(),
        });
        if let Some(details) = details.as_object_mut() {
            if let Some(member) = &vote.on_behalf_of {
                details.insert("on_behalf_of".to_owned(), member.as_str().into());
            }
            if let Some(external) = &vote.external {
                // Names and evidence of people outside stay out of the log, as those of members do.
                details.insert("external".to_owned(), external.approved_by.len().into());
            }
            if kind == LineType::ApprovalApproved {
                details.insert("usable_until".to_owned(), json!(self.usable_until));
            }
        }
        let event = ApprovalEvent {
            actor: Some(actor_of(actor)),
            reason: Some(vote.reason.clone()).filter(|reason| !reason.is_empty()),
            details: members(details),
            ..self.event(kind, vote.at)
        };
        self.push(event);
    }

    pub(super) fn deny(&mut self, digest: &ActionDigest, change: Change<'_>) -> Result<(), Refusal> {
        self.must_be_pending(digest)?;
        let vote = Vote { approve: false, ..self.voter(change)? };
        if change.reason.is_empty() {
            return required("is required to deny an action");
        }
        self.votes.push(StoredVote { vote: vote.clone(), holder: change.actor.holder.clone() });
        self.status = ApprovalStatus::Denied;
        self.decided_at = Some(change.now);
        self.push_vote(LineType::ApprovalDenied, &vote, change.actor);
        Ok(())
    }

    /// Takes back what was not used yet.
    pub(super) fn cancel(&mut self, change: Change<'_>) -> Result<(), Refusal> {
        match self.status {
            ApprovalStatus::Pending | ApprovalStatus::Approved => {}
            ApprovalStatus::Reserved | ApprovalStatus::Consumed => {
                return conflict("it is too late: the approval was used");
            }
            ApprovalStatus::Denied | ApprovalStatus::Expired | ApprovalStatus::Cancelled => {
                return conflict(format!("it has ended already: it is {}", self.status.as_str()));
            }
        }
        let was = self.status.as_str();
        self.status = ApprovalStatus::Cancelled;
        self.decided_at = Some(change.now);
        self.push_by(LineType::ApprovalCancelled, change, json!({"was": was}));
        Ok(())
    }

    /// A used approval may be used again: by one who may decide, and who is not the one who asks.
    pub(super) fn reopen(&mut self, change: Change<'_>) -> Result<(), Refusal> {
        if !matches!(self.status, ApprovalStatus::Reserved | ApprovalStatus::Consumed) {
            return conflict(format!("only a used approval can be reopened: it is {}", self.status.as_str()));
        }
        if self.outcome.as_ref().is_some_and(|outcome| outcome.status == OutcomeStatus::Succeeded) {
            return conflict("the action succeeded, as its workload reported: ask for a new approval");
        }
        if self.outbox.is_full() {
            return conflict("the approval has been used too often: ask for a new one");
        }
        match self.voter(change) {
            Ok(_) => {}
            // Who approved it may say as well that nothing came of it.
            Err(Refusal::Conflict(text)) if text.starts_with("this person has decided already") => {}
            Err(refusal) => return Err(refusal),
        }
        if change.reason.is_empty() {
            return required("is required to reopen an approval");
        }
        // Its decision may be recorded at this moment: reopened now, the approval would let two checks pass.
        let free_at = self.used.as_ref().map(|used| later(used.newest_at(), IN_USE_FOR));
        if let Some(free_at) = free_at.filter(|free_at| *free_at > change.now) {
            let left = free_at.duration_since(change.now).as_millis().max(0).unsigned_abs().div_ceil(1_000);
            return conflict(format!("a check may still be using it: try again in {left} s"));
        }
        let used_by = self.used.take().map(|used| used.request_id());
        self.status = ApprovalStatus::Approved;
        self.outcome = None;
        // Of a decision that may not exist no line may tell later.
        self.outbox.events.retain(|stored| stored.recorded || stored.event.kind != LineType::ApprovalUsed);
        if self.usable_until.is_none_or(|until| until <= change.now) {
            self.usable_until = Some(seconds_later(change.now, self.terms.valid_seconds));
        }
        self.push_by(
            LineType::ApprovalReopened,
            change,
            json!({"used_by": used_by, "usable_until": self.usable_until}),
        );
        Ok(())
    }

    /// The workload says what came of the action; whether that was new.
    pub(super) fn report(&mut self, status: OutcomeStatus, change: Change<'_>) -> Result<bool, Refusal> {
        self.report_by(status, actor_of(change.actor), change.reason, change.now)
    }

    /// As [`StoredApproval::report`], by a caller that was judged elsewhere.
    pub(super) fn report_by(
        &mut self,
        status: OutcomeStatus,
        actor: EventActor,
        reason: &str,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        if !matches!(self.status, ApprovalStatus::Reserved | ApprovalStatus::Consumed) {
            return conflict(format!("only of a used approval an outcome is reported: it is {}", self.status.as_str()));
        }
        match &self.outcome {
            Some(outcome) if outcome.status == status => return Ok(false),
            Some(_) => return conflict("another outcome was reported already"),
            None => {}
        }
        self.outcome = Some(Outcome { status, at: now });
        // Who acted has had the answer, whatever is known of its line.
        self.status = ApprovalStatus::Consumed;
        self.push_event(LineType::ApprovalOutcome, actor, reason, now, json!({"status": status}));
        Ok(true)
    }

    fn push_by(&mut self, kind: LineType, change: Change<'_>, details: serde_json::Value) {
        self.push_event(kind, actor_of(change.actor), change.reason, change.now, details);
    }

    fn push_event(
        &mut self,
        kind: LineType,
        actor: EventActor,
        reason: &str,
        now: Timestamp,
        details: serde_json::Value,
    ) {
        let event = ApprovalEvent {
            actor: Some(actor),
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            details: members(details),
            ..self.event(kind, now)
        };
        self.push(event);
    }

    /// Whether an attempt of this id uses the approval.
    pub(super) fn is_used_by(&self, request_id: RequestId) -> bool {
        self.used.as_ref().is_some_and(|used| used.attempts.iter().any(|attempt| attempt.request_id == request_id))
    }

    /// Makes an approval this check's, unless another one has it.
    pub(super) fn reserve(&mut self, claim: Claim<'_>, now: Timestamp) -> Reserved {
        let Claim { operation, request_id, claim: own, .. } = claim;
        match (self.status, &mut self.used) {
            (ApprovalStatus::Reserved | ApprovalStatus::Consumed, Some(used)) if used.operation == operation => {
                if let Some(attempt) = used.attempts.iter_mut().find(|attempt| attempt.request_id == request_id) {
                    if !attempt.claims.contains(&own) {
                        attempt.claims.push(own);
                        attempt.at = now;
                    }
                    return Reserved::ForThis;
                }
                if self.outbox.is_full() {
                    return Reserved::ByAnother(operation);
                }
                used.attempts.push(Attempt { request_id, claims: vec![own], at: now, event_id: Uuid::nil() });
            }
            (ApprovalStatus::Reserved | ApprovalStatus::Consumed, Some(used)) => {
                return Reserved::ByAnother(used.request_id());
            }
            (ApprovalStatus::Approved, _) if !self.outbox.is_full() => {
                self.status = ApprovalStatus::Reserved;
                let attempts = vec![Attempt { request_id, claims: vec![own], at: now, event_id: Uuid::nil() }];
                self.used = Some(Use { operation, attempts, at: now, asked_at: None });
                self.push_use(LineType::ApprovalReserved, claim, now);
            }
            _ => return Reserved::Not,
        }
        self.push_use(LineType::ApprovalUsed, claim, now);
        let event_id = self.outbox.events.last().map(|stored| stored.event.event_id);
        let attempt = self.used.as_mut().and_then(|used| used.attempts.last_mut());
        if let (Some(attempt), Some(event_id)) = (attempt, event_id) {
            attempt.event_id = event_id;
        }
        Reserved::ForThis
    }

    fn push_use(&mut self, kind: LineType, claim: Claim<'_>, now: Timestamp) {
        let Claim { key_id, operation, request_id, .. } = claim;
        let first = (operation != request_id).then_some(operation);
        let details = first.map(|operation| members(json!({"operation": operation}))).unwrap_or_default();
        let event = ApprovalEvent {
            request_id: Some(request_id),
            actor: Some(EventActor::of(key_id, None)),
            details,
            ..self.event(kind, now)
        };
        self.push(event);
    }

    /// The decision of this attempt is surely not in the log, as far as `claim` goes; none: as far as anybody goes.
    /// Returns whether anything changed.
    pub(super) fn release(&mut self, request_id: RequestId, claim: Option<Uuid>, now: Timestamp) -> bool {
        if self.status != ApprovalStatus::Reserved {
            return false;
        }
        let Some(used) = &mut self.used else { return false };
        let Some(attempt) = used.attempts.iter_mut().find(|attempt| attempt.request_id == request_id) else {
            return false;
        };
        if let Some(claim) = claim {
            let before = attempt.claims.len();
            attempt.claims.retain(|other| *other != claim);
            if !attempt.claims.is_empty() {
                return attempt.claims.len() != before;
            }
        }
        used.attempts.retain(|attempt| attempt.request_id != request_id);
        let is_free = used.attempts.is_empty();
        let of_attempt = |event: &ApprovalEvent| event.request_id == Some(request_id);
        let is_kept = |event: &ApprovalEvent| {
            !of_attempt(event)
                || !(event.kind == LineType::ApprovalUsed || event.kind == LineType::ApprovalReserved && is_free)
        };
        let has_left = self.outbox.events.iter().any(|stored| !is_kept(&stored.event) && stored.has_left());
        self.outbox.events.retain(|stored| is_kept(&stored.event) || stored.has_left());
        if is_free {
            self.used = None;
            self.status = ApprovalStatus::Approved;
            if has_left {
                let event = ApprovalEvent {
                    request_id: Some(request_id),
                    details: members(json!({"why": "its decision was not recorded"})),
                    ..self.event(LineType::ApprovalReopened, now)
                };
                self.push(event);
            }
        }
        true
    }

    /// These votes are no longer enough: people decide again, or the time is over. Votes that still count stay: for who
    /// opened the approval and for who would use it.
    pub(super) fn fall_back(&mut self, directory: &Directory<'_>, questions: [Question<'_>; 2]) {
        let [Question { now, .. }, _] = questions;
        if self.expires_at <= now {
            self.usable_until = Some(now);
            self.pass_time(now);
            return;
        }
        self.votes.retain(|stored| questions.iter().all(|question| directory.counts(stored, *question)));
        self.status = ApprovalStatus::Pending;
        (self.decided_at, self.usable_until) = (None, None);
        let details = members(json!({"why": "its approvers no longer suffice", "votes": self.votes.len()}));
        let event = ApprovalEvent { details, ..self.event(LineType::ApprovalReopened, now) };
        self.push(event);
    }

    /// The event's line is in the log; whether that was news.
    pub(super) fn confirm(&mut self, event_id: Uuid) -> bool {
        let kind = self.outbox.recorded(event_id).map(|event| event.kind);
        let of_attempt = |used: &Use| used.attempts.iter().any(|attempt| attempt.event_id == event_id);
        let is_use =
            kind == Some(LineType::ApprovalUsed) || !event_id.is_nil() && self.used.as_ref().is_some_and(of_attempt);
        let is_news = is_use && self.status == ApprovalStatus::Reserved;
        if is_news {
            self.status = ApprovalStatus::Consumed;
        }
        kind.is_some() || is_news
    }
}

fn own_action<T>() -> Result<T, Refusal> {
    conflict("somebody else must decide: this person asked for the action, or made or was made by one who asks for it")
}
