//! An approval as the state store keeps it, with the events that happened to it.
//!
//! Its record is the outbox of its events: an event is written together with its change, and stays marked as
//! unrecorded until a gateway has confirmed its line of the decision log.
//! INVARIANT: no text of the action is in a record; it is sealed elsewhere.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, ActionDigest, Actor, Approval, ApprovalEvent, ApprovalId, ApprovalIssue, ApprovalRef, ApprovalStatus,
    ApprovalTerms, EventActor, EventRef, Holder, KeyId, LineType, Outcome, PolicyVersion, RequestId, UnconfirmedUse,
    Vote,
};
use uuid::Uuid;

use crate::event_id::event_id;

/// Events that one approval can have; further changes are refused.
const MAX_EVENTS: usize = 200;
/// Unrecorded events that the next approval of an action takes over. The rest of its events is for deciding and using.
pub(super) const MAX_INHERITED: usize = MAX_EVENTS / 2;
/// Answers that one approval can have.
pub(super) const MAX_VOTES: usize = 50;
/// How long the process that changed something has to record it, before a gateway's maintenance does.
const RECORDING_TIMEOUT: SignedDuration = SignedDuration::from_secs(5);
/// How long events that were handed to one gateway are handed to no other.
const HANDED_OUT_TTL: SignedDuration = SignedDuration::from_secs(15);
/// How long the use of a wider grant may still be confirmed.
const UNCONFIRMED_USE_TTL: SignedDuration = SignedDuration::from_hours(1);
/// How long a check may still be using an approval after its last attempt: twice the budget in which a gateway decides
/// and records a check, and the margin by which clocks of processes may differ.
pub(super) const IN_USE_FOR: SignedDuration = SignedDuration::from_secs(30);
/// After which time gateways look whether a use that none of them confirmed is in the log, and how often again.
const UNCONFIRMED_AFTER: SignedDuration = SignedDuration::from_secs(10);
const UNCONFIRMED_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// Digits of the digest that name the record.
const SLOT_DIGITS: usize = 32;
const ID_PREFIX: &str = "apr_";

/// An approval in the state store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredApproval {
    pub(super) id: ApprovalId,
    pub(super) account: AccountId,
    pub(super) status: ApprovalStatus,
    pub(super) action_digest: ActionDigest,
    pub(super) policy_version: PolicyVersion,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) floor_version: Option<PolicyVersion>,
    pub(super) environment: String,
    pub(super) key_id: KeyId,
    /// Who stands behind the key that asked.
    pub(super) asker: Holder,
    pub(super) request_id: RequestId,
    pub(super) issues: Vec<ApprovalIssue>,
    pub(super) terms: ApprovalTerms,
    pub(super) votes: Vec<StoredVote>,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) decided_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usable_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<Use>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
    /// Whether further groups may decide already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) escalated: bool,
    /// The time of the last escalation that has come, in seconds. `None` beside `escalated`: there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) escalated_after: Option<i64>,
    /// The check that used the approval of the same action before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<RequestId>,
    pub(super) retention_days: u32,
    pub(super) outbox: Outbox,
}

/// An answer, with who stands behind the key that gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredVote {
    #[serde(flatten)]
    pub(super) vote: Vote,
    pub(super) holder: Holder,
}

/// Which check uses an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Use {
    /// The first attempt of the check.
    pub(super) operation: RequestId,
    /// The attempts that were allowed and may be in the log.
    pub(super) attempts: Vec<Attempt>,
    pub(super) at: Timestamp,
    /// When gateways were last asked whether it is in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) asked_at: Option<Timestamp>,
}

/// One attempt of a check. Two evaluators can decide it, when a gateway asks the second one because the first is slow:
/// what one of them gives back, the other still claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) request_id: RequestId,
    pub(super) claims: Vec<Uuid>,
    /// When it was last claimed.
    #[serde(default)]
    pub(super) at: Timestamp,
    /// The event that is recorded with its decision; it can be confirmed when the outbox no longer has it.
    #[serde(default)]
    pub(super) event_id: Uuid,
}

/// Who claims an approval for a check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) key_id: &'a KeyId,
    /// The first attempt of the check.
    pub(super) operation: RequestId,
    pub(super) request_id: RequestId,
    /// The evaluator's own.
    pub(super) claim: Uuid,
}

impl Use {
    /// The check that uses the approval: its last attempt.
    pub(super) fn request_id(&self) -> RequestId {
        self.attempts.last().map_or(self.operation, |attempt| attempt.request_id)
    }

    /// When it was last claimed.
    pub(super) fn newest_at(&self) -> Timestamp {
        self.attempts.iter().map(|attempt| attempt.at).max().unwrap_or(self.at)
    }

    /// When gateways must look whether it is in the log.
    fn due_at(&self) -> Timestamp {
        let first = later(self.newest_at(), UNCONFIRMED_AFTER);
        self.asked_at.map_or(first, |asked_at| later(asked_at, UNCONFIRMED_INTERVAL).max(first))
    }
}

/// The events of one thing, the oldest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Outbox {
    /// How many events there have been.
    count: u32,
    pub(super) events: Vec<StoredEvent>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredEvent {
    pub(super) event: ApprovalEvent,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) recorded: bool,
    /// Until when a gateway's maintenance has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handed_out_until: Option<Timestamp>,
}

impl StoredEvent {
    /// Whether it is, or may be, in the log without its decision.
    pub(super) fn has_left(&self) -> bool {
        self.recorded || self.handed_out_until.is_some()
    }
}

impl Outbox {
    /// Appends an event of `source`, whose id and number make the event's id.
    pub(super) fn push(&mut self, source: &str, mut event: ApprovalEvent) {
        event.event_id = event_id(source, self.count, event.at);
        self.count = self.count.saturating_add(1);
        self.events.push(StoredEvent { event, recorded: false, handed_out_until: None });
    }

    /// Takes over what an ended approval of the same action has not recorded yet.
    pub(super) fn inherit(&mut self, ended: &Self) {
        let mut events: Vec<StoredEvent> = ended.inherited().cloned().collect();
        events.append(&mut self.events);
        self.events = events;
    }

    /// What the next approval of the same action takes over.
    pub(super) fn inherited(&self) -> impl Iterator<Item = &StoredEvent> {
        self.events.iter().filter(|stored| !stored.recorded && stored.event.kind != LineType::ApprovalUsed)
    }

    /// Takes over what happened to an ended approval after this one took its place; whether that was new.
    pub(super) fn adopt(&mut self, ended: &Self) -> bool {
        let is_known = |one: &&StoredEvent| self.events.iter().any(|own| own.event.event_id == one.event.event_id);
        let new: Vec<StoredEvent> = ended.inherited().filter(|one| !is_known(one)).cloned().collect();
        let is_new = !new.is_empty();
        self.events.extend(new);
        is_new
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS
    }

    /// All that is not known to be in the log. That an approval was used is recorded with the decision of that check.
    pub(super) fn unrecorded(&self, check: Option<RequestId>) -> Vec<ApprovalEvent> {
        let is_open = |stored: &&StoredEvent| {
            let event = &stored.event;
            !stored.recorded && (event.kind != LineType::ApprovalUsed || check.is_some() && event.request_id == check)
        };
        self.events.iter().filter(is_open).map(|stored| stored.event.clone()).collect()
    }

    /// Marks an event as recorded; returns its kind if it was not.
    pub(super) fn recorded(&mut self, event_id: Uuid) -> Option<&ApprovalEvent> {
        let is_new = |stored: &&mut StoredEvent| stored.event.event_id == event_id && !stored.recorded;
        let stored = self.events.iter_mut().find(is_new)?;
        stored.recorded = true;
        Some(&stored.event)
    }

    /// Hands out what was not recorded in time. The event that an approval was used is recorded with its decision or
    /// not at all: alone it would say of a decision that it was made.
    pub(super) fn collect(&mut self, now: Timestamp, most: usize) -> Vec<ApprovalEvent> {
        let is_due = |stored: &&mut StoredEvent| stored.is_due(now);
        let until = later(now, HANDED_OUT_TTL);
        let due = self.events.iter_mut().filter(is_due).take(most);
        due.map(|stored| {
            stored.handed_out_until = Some(until);
            stored.event.clone()
        })
        .collect()
    }

    /// When maintenance must look at it.
    pub(super) fn due_at(&self) -> Option<Timestamp> {
        self.events.iter().filter_map(StoredEvent::due_at).min()
    }

    /// Drops uses whose decisions were not confirmed in time: no gateway will record them any more.
    pub(super) fn forget_uses(&mut self, now: Timestamp) {
        let is_over = |event: &ApprovalEvent| later(event.at, UNCONFIRMED_USE_TTL) <= now;
        self.events.retain(|stored| stored.event.kind != LineType::ApprovalUsed || !is_over(&stored.event));
    }

    /// Drops what is in the log: for things whose history is not read here.
    pub(super) fn forget_recorded(&mut self) {
        self.events.retain(|stored| !stored.recorded);
    }
}

impl StoredEvent {
    fn due_at(&self) -> Option<Timestamp> {
        let waits = !self.recorded && self.event.kind != LineType::ApprovalUsed;
        waits.then(|| self.handed_out_until.unwrap_or_else(|| later(self.event.at, RECORDING_TIMEOUT)))
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.due_at().is_some_and(|at| at <= now)
    }
}

/// The word of an action's record: the head of its digest.
pub(super) fn slot_of(digest: &ActionDigest) -> &str {
    digest.as_str().get(..SLOT_DIGITS).unwrap_or_default()
}

/// The id of an approval in a slot. The random part differs from one approval of an action to the next.
pub(super) fn id_in(slot: &str, random: [u8; 4]) -> Option<ApprovalId> {
    ApprovalId::parse(&format!("{ID_PREFIX}{slot}_{}", data_encoding::HEXLOWER.encode(&random))).ok()
}

/// The slot that an id leads to.
pub(super) fn slot_in(id: &ApprovalId) -> Option<&str> {
    let (slot, random) = id.as_str().strip_prefix(ID_PREFIX)?.split_once('_')?;
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (slot.len() == SLOT_DIGITS && random.len() == 8 && is_hex(slot) && is_hex(random)).then_some(slot)
}

pub(super) fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(time)
}

pub(super) fn seconds_later(time: Timestamp, seconds: i64) -> Timestamp {
    later(time, SignedDuration::from_secs(seconds.max(0)))
}

/// An event without what its kind adds.
pub(super) fn blank_event(kind: LineType, at: Timestamp) -> ApprovalEvent {
    ApprovalEvent::new(kind, Uuid::nil(), at)
}

pub(super) fn actor_of(actor: &Actor) -> EventActor {
    EventActor::of(&actor.key_id, actor.holder.member.as_ref())
}

impl StoredApproval {
    /// An event of this approval.
    pub(super) fn event(&self, kind: LineType, at: Timestamp) -> ApprovalEvent {
        ApprovalEvent {
            approval_id: Some(self.id.clone()),
            action_digest: Some(self.action_digest.clone()),
            policy_version: Some(self.policy_version.clone()),
            floor_version: self.floor_version.clone(),
            environment: Some(self.environment.clone()).filter(|name| !name.is_empty()),
            ..blank_event(kind, at)
        }
    }

    pub(super) fn push(&mut self, event: ApprovalEvent) {
        let source = self.id.clone();
        self.outbox.push(source.as_str(), event);
    }

    pub(super) fn slot(&self) -> &str {
        slot_of(&self.action_digest)
    }

    /// Whether the record can be the one that stands under this key; one that was moved or altered cannot.
    pub(super) fn belongs(&self, account: &AccountId, slot: &str) -> bool {
        self.account == *account && self.slot() == slot && slot_in(&self.id) == Some(slot)
    }

    /// Whether the record can be the one that stands under this word: the slot of its action, or its own id once it has
    /// ended.
    pub(super) fn stands_at(&self, account: &AccountId, word: &str) -> bool {
        self.belongs(account, self.slot()) && (word == self.slot() || word == self.id.as_str())
    }

    /// Lets time do its part: what was not decided or used in time expires, and further groups are asked. Returns
    /// whether anything changed.
    pub(crate) fn pass_time(&mut self, now: Timestamp) -> bool {
        let end = match self.status {
            ApprovalStatus::Pending => self.expires_at,
            ApprovalStatus::Approved => self.usable_until.unwrap_or(self.expires_at),
            _ => return false,
        };
        if end <= now {
            let event = self.event(LineType::ApprovalExpired, end);
            let was = self.status.as_str();
            self.status = ApprovalStatus::Expired;
            self.decided_at = Some(end);
            self.push(ApprovalEvent { details: members(json!({"was": was})), ..event });
            return true;
        }
        let mut has_changed = false;
        while let Some(after) = self.next_escalation() {
            let at = seconds_later(self.created_at, after);
            if self.status != ApprovalStatus::Pending || at > now {
                break;
            }
            let due = self.terms.escalations().filter(|escalation| escalation.after_seconds == after);
            let groups: BTreeSet<&String> = due.flat_map(|escalation| &escalation.groups).collect();
            let details = members(json!({"groups": groups}));
            (self.escalated, self.escalated_after) = (true, Some(after));
            let event = ApprovalEvent { details, ..self.event(LineType::ApprovalEscalated, at) };
            self.push(event);
            has_changed = true;
        }
        has_changed
    }

    /// After how many seconds further groups may decide next.
    fn next_escalation(&self) -> Option<i64> {
        let passed = self.escalated_after.or(self.escalated.then_some(i64::MAX));
        let all = self.terms.escalations().map(|escalation| escalation.after_seconds);
        all.filter(|after| passed.is_none_or(|passed| *after > passed)).min()
    }

    /// When maintenance must look at it; none: never again.
    pub(super) fn due_at(&self) -> Option<Timestamp> {
        let by_time = match self.status {
            ApprovalStatus::Pending => {
                let at = self.next_escalation().map(|after| seconds_later(self.created_at, after));
                Some(at.unwrap_or(self.expires_at).min(self.expires_at))
            }
            ApprovalStatus::Approved => Some(self.usable_until.unwrap_or(self.expires_at)),
            ApprovalStatus::Reserved => self.used.as_ref().map(Use::due_at),
            _ => None,
        };
        by_time.into_iter().chain(self.outbox.due_at()).min()
    }

    /// The attempts that no gateway has confirmed in time, the last one first; they are given out again after a while.
    pub(super) fn unconfirmed(&mut self, now: Timestamp) -> Vec<UnconfirmedUse> {
        let is_reserved = self.status == ApprovalStatus::Reserved;
        let Some(used) = self.used.as_mut().filter(|used| is_reserved && used.due_at() <= now) else {
            return Vec::new();
        };
        used.asked_at = Some(now);
        let event = |event_id| EventRef::of_approval(event_id, self.id.clone());
        let attempts = used.attempts.iter().rev().filter(|attempt| !attempt.event_id.is_nil());
        let each = attempts.map(|one| UnconfirmedUse { request_id: one.request_id, event: event(one.event_id) });
        each.collect()
    }

    /// What a decision says of it.
    pub(super) fn reference(&self) -> ApprovalRef {
        let expires_at = match self.status {
            ApprovalStatus::Pending => self.expires_at,
            _ => self.usable_until.unwrap_or(self.expires_at),
        };
        let status = match self.status {
            ApprovalStatus::Reserved => ApprovalStatus::Consumed,
            status => status,
        };
        ApprovalRef {
            id: Some(self.id.clone()),
            grant_id: None,
            status,
            action_digest: self.action_digest.clone(),
            quorum: self.terms.quorum(),
            groups: self.terms.groups(),
            expires_at,
            url: self.url(),
        }
    }

    fn url(&self) -> String {
        format!("/v1/approvals/{}", self.id)
    }

    /// The approval without its action's text.
    pub(super) fn view(&self, eligible: Option<u32>, stopped: Option<String>) -> Approval {
        Approval {
            id: self.id.clone(),
            status: self.status,
            action_digest: self.action_digest.clone(),
            policy_version: self.policy_version.clone(),
            floor_version: self.floor_version.clone(),
            environment: self.environment.clone(),
            key_id: self.key_id.clone(),
            workload: self.asker.workload.clone(),
            request_id: self.request_id,
            issues: self.issues.clone(),
            terms: self.terms.clone(),
            eligible,
            votes: self.votes.iter().map(|stored| stored.vote.clone()).collect(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            decided_at: self.decided_at,
            usable_until: self.usable_until,
            used_by: self.used.as_ref().map(Use::request_id),
            used_at: self.used.as_ref().map(|used| used.at),
            outcome: self.outcome.clone(),
            stopped,
            url: self.url(),
            action: None,
        }
    }

    /// Who approved it, and when it was approved: facts for the decision.
    pub(super) fn approver(&self) -> (String, i64) {
        let last = self.votes.iter().rev().find(|stored| stored.vote.approve);
        let by = last.map(|stored| approver_name(&stored.vote)).unwrap_or_default();
        (by, self.decided_at.unwrap_or(self.created_at).as_second())
    }
}

/// The member who approved, or the first person outside.
pub(super) fn approver_name(vote: &Vote) -> String {
    let outside = || vote.external.as_ref().and_then(|external| external.approved_by.first());
    let member = vote.member_id.as_ref().map(|member| member.as_str().to_owned());
    member.or_else(|| outside().cloned()).unwrap_or_else(|| vote.key_id.to_string())
}

/// The members of an object.
pub(super) fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
