//! What is kept of one decision: what came of its action, and which actions wait for that.
//!
//! Pure. INVARIANT: an outcome that is known to be recorded is replaced only where it is `unknown`; one that is not yet
//! known to be recorded, only once no gateway can still be recording it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use stage0_contract::{
    AccountId, ActionDigest, ApprovalEvent, DecisionOutcome, KeyId, LATE_AFTER_SECONDS, LineType, OutcomeStatus,
    Refusal, ReportDecisionOutcome, RequestId,
};
use uuid::Uuid;

use crate::event_id::event_id;
use crate::records::later;

/// How long a gateway may still be recording an outcome that it was given: then another one may take its place.
const RECORDING_TIMEOUT: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredOutcome {
    pub(super) account: AccountId,
    pub(super) request_id: RequestId,
    /// Until when it is kept.
    pub(super) ends_at: Timestamp,
    /// None: nothing was reported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reported: Option<Reported>,
    /// How many events there have been.
    #[serde(default)]
    events: u32,
    /// The actions that are not allowed again before the outcome is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) holds: Vec<ActionDigest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reported {
    pub(super) status: OutcomeStatus,
    at: Timestamp,
    late: bool,
    key_id: KeyId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost_micros: Option<i64>,
    /// None: of a decision that is in no log, where no line may tell of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<ApprovalEvent>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recorded: bool,
    /// When its event was last given to a gateway.
    given_at: Timestamp,
}

/// What a report is, beside what was reported before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    New,
    /// The same was reported before.
    Again,
}

impl StoredOutcome {
    pub(super) fn new(account: AccountId, request_id: RequestId, ends_at: Timestamp) -> Self {
        Self { account, request_id, ends_at, reported: None, events: 0, holds: Vec::new() }
    }

    /// Whether the record can be the one of this decision; one that was moved cannot.
    pub(super) fn belongs(&self, account: &AccountId, request_id: RequestId) -> bool {
        self.account == *account && self.request_id == request_id
    }

    /// `is_logged`: the decision is in the log.
    pub(super) fn judge(
        &self,
        report: &ReportDecisionOutcome,
        is_logged: bool,
        now: Timestamp,
    ) -> Result<Report, Refusal> {
        let Some(known) = &self.reported else { return Ok(Report::New) };
        if is_logged && known.event.is_none() {
            // It came before the decision could be seen in the log: now there is a line to write.
            return Ok(Report::New);
        }
        let is_same = known.status == report.status;
        if is_same && report.actual_micros.is_some_and(|cost| known.cost_micros != Some(cost)) {
            let text = "the outcome was reported already, with another `cost_usd` or none: settle it with the run";
            return Err(Refusal::Conflict(text.to_owned()));
        }
        if is_same {
            return Ok(Report::Again);
        }
        let may_replace = if known.recorded {
            known.status == OutcomeStatus::Unknown
        } else {
            later(known.given_at, RECORDING_TIMEOUT) <= now
        };
        if may_replace {
            return Ok(Report::New);
        }
        Err(Refusal::Conflict(format!("another outcome was reported already: `{}`", known.status.as_str())))
    }

    /// Keeps what was reported. `tool_call_id` is without secrets.
    pub(super) fn report(
        &mut self,
        report: &ReportDecisionOutcome,
        tool_call_id: Option<String>,
        is_logged: bool,
        now: Timestamp,
    ) {
        let late = now.duration_since(report.decided_at) > SignedDuration::from_secs(LATE_AFTER_SECONDS);
        let mut reported = Reported {
            status: report.status,
            at: now,
            late,
            key_id: report.actor.key_id.clone(),
            tool_call_id,
            duration_ms: report.duration_ms,
            cost_micros: report.actual_micros,
            event: None,
            // Nothing waits to be recorded where there is no event.
            recorded: !is_logged,
            given_at: now,
        };
        if is_logged {
            let source = format!("outcome|{}|{}", self.account, self.request_id);
            let kind = LineType::DecisionOutcome;
            reported.event = Some(ApprovalEvent {
                request_id: Some(self.request_id),
                actor: Some(report.actor.clone()),
                details: reported.details(),
                ..ApprovalEvent::new(kind, event_id(&source, self.events, now), now)
            });
            self.events = self.events.saturating_add(1);
        }
        self.reported = Some(reported);
    }

    /// The event that is not known to be recorded, given to a gateway again; whether that changed the record.
    pub(super) fn give_again(&mut self, now: Timestamp) -> bool {
        let Some(reported) = self.reported.as_mut().filter(|reported| !reported.recorded) else { return false };
        reported.given_at = now;
        true
    }

    pub(super) fn unrecorded(&self) -> Option<ApprovalEvent> {
        self.reported.as_ref().filter(|reported| !reported.recorded)?.event.clone()
    }

    /// The event's line is in the log; whether that was news.
    pub(super) fn confirm(&mut self, event_id: Uuid) -> bool {
        let is_it = |event: &ApprovalEvent| event.event_id == event_id;
        let Some(reported) = &mut self.reported else { return false };
        let is_news = !reported.recorded && reported.event.as_ref().is_some_and(is_it);
        reported.recorded |= is_news;
        is_news
    }

    /// Whether it is known how the action ended.
    pub(super) fn has_ended(&self) -> bool {
        self.reported.as_ref().is_some_and(|reported| reported.status != OutcomeStatus::Unknown)
    }

    pub(super) fn view(&self) -> Option<DecisionOutcome> {
        let Reported { status, at, late, key_id, tool_call_id, duration_ms, cost_micros, .. } =
            self.reported.clone()?;
        Some(DecisionOutcome {
            request_id: self.request_id,
            status,
            reported_at: at,
            late,
            key_id,
            tool_call_id,
            duration_ms,
            cost_usd: cost_micros.map(dollars),
        })
    }
}

impl Reported {
    fn details(&self) -> Map<String, serde_json::Value> {
        let mut details = Map::new();
        details.insert("status".to_owned(), json!(self.status));
        details.insert("late".to_owned(), self.late.into());
        if let Some(id) = &self.tool_call_id {
            details.insert("tool_call_id".to_owned(), id.as_str().into());
        }
        if let Some(duration) = self.duration_ms {
            details.insert("duration_ms".to_owned(), duration.into());
        }
        if let Some(cost) = self.cost_micros {
            details.insert("cost_usd".to_owned(), dollars(cost).into());
        }
        details
    }
}

/// For display only; the run is settled by the exact cost.
#[expect(clippy::cast_precision_loss, reason = "exact below nine billion dollars")]
fn dollars(micros: i64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::EventActor;

    const LONG: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id() -> RequestId {
        RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap()
    }

    fn report(status: OutcomeStatus) -> ReportDecisionOutcome {
        ReportDecisionOutcome {
            account: AccountId::parse("acc").unwrap(),
            actor: EventActor::of(&KeyId::parse("agent").unwrap(), None),
            request_id: id(),
            status,
            tool_call_id: None,
            duration_ms: None,
            actual_micros: None,
            may_lower: false,
            run_id: None,
            approval_id: None,
            decided_at: at(0),
            expires_at: LONG,
        }
    }

    fn reported(status: OutcomeStatus, second: i64) -> StoredOutcome {
        let mut stored = StoredOutcome::new(AccountId::parse("acc").unwrap(), id(), at(LONG));
        stored.report(&report(status), None, true, at(second));
        stored
    }

    fn recorded(status: OutcomeStatus) -> StoredOutcome {
        let mut stored = reported(status, 10);
        let event = stored.unrecorded().unwrap();
        assert!(stored.confirm(event.event_id) && !stored.confirm(event.event_id));
        assert!(stored.unrecorded().is_none());
        stored
    }

    #[test]
    fn what_is_recorded_stays_unless_it_is_unknown() {
        for known in OutcomeStatus::ALL {
            let stored = recorded(known);
            for status in OutcomeStatus::ALL {
                let judged = stored.judge(&report(status), true, at(LONG));
                match (known == status, known == OutcomeStatus::Unknown) {
                    (true, _) => assert_eq!(judged, Ok(Report::Again)),
                    (false, true) => assert_eq!(judged, Ok(Report::New)),
                    (false, false) => {
                        let text = format!("another outcome was reported already: `{}`", known.as_str());
                        assert_eq!(judged, Err(Refusal::Conflict(text)));
                    }
                }
            }
        }
    }

    #[test]
    fn one_that_may_be_recorded_at_this_moment_is_replaced_only_a_minute_after_it_was_last_given() {
        for known in [OutcomeStatus::Succeeded, OutcomeStatus::Unknown] {
            let mut stored = reported(known, 10);
            let other = report(OutcomeStatus::Failed);
            assert!(stored.judge(&other, true, at(69)).is_err());
            assert_eq!(stored.judge(&other, true, at(70)), Ok(Report::New));
            assert_eq!(stored.judge(&report(known), true, at(60)), Ok(Report::Again));
            let first = stored.unrecorded().unwrap();
            assert!(stored.give_again(at(60)));
            assert_eq!(stored.unrecorded().unwrap(), first, "the same event");
            assert!(stored.judge(&other, true, at(119)).is_err());
            assert_eq!(stored.judge(&other, true, at(120)), Ok(Report::New));
            stored.report(&other, None, true, at(120));
            let second = stored.unrecorded().unwrap();
            assert_ne!(second.event_id, first.event_id, "another event");
            assert!(!stored.confirm(first.event_id), "the late line of the one that was replaced changes nothing");
        }
    }

    #[test]
    fn an_hour_after_the_decision_a_report_is_late_and_a_second_earlier_it_is_not() {
        for (second, late) in [(LATE_AFTER_SECONDS, false), (LATE_AFTER_SECONDS + 1, true)] {
            let stored = reported(OutcomeStatus::Succeeded, second);
            assert_eq!(stored.view().unwrap().late, late);
            assert_eq!(stored.unrecorded().unwrap().details["late"], late);
        }
    }

    #[test]
    fn the_same_outcome_with_another_cost_is_a_conflict_and_with_the_same_or_none_it_is_not() {
        let with = |cost| ReportDecisionOutcome { actual_micros: cost, ..report(OutcomeStatus::Succeeded) };
        let mut stored = reported(OutcomeStatus::Succeeded, 1);
        assert!(stored.judge(&with(Some(5)), true, at(2)).is_err());
        stored.report(&with(Some(5)), None, true, at(1));
        assert_eq!(stored.view().unwrap().cost_usd, Some(0.000_005));
        assert!(stored.judge(&with(Some(6)), true, at(2)).is_err());
        for cost in [Some(5), None] {
            assert_eq!(stored.judge(&with(cost), true, at(2)), Ok(Report::Again));
        }
    }

    #[test]
    fn of_a_decision_in_no_log_no_event_is_given_until_it_is_in_the_log() {
        let mut stored = StoredOutcome::new(AccountId::parse("acc").unwrap(), id(), at(LONG));
        let succeeded = report(OutcomeStatus::Succeeded);
        stored.report(&succeeded, None, false, at(1));
        assert!(stored.unrecorded().is_none() && stored.has_ended() && !stored.give_again(at(2)));
        assert_eq!(stored.judge(&succeeded, false, at(2)), Ok(Report::Again));
        assert!(stored.judge(&report(OutcomeStatus::Failed), false, at(2)).is_err());
        assert_eq!(stored.judge(&succeeded, true, at(2)), Ok(Report::New));
        stored.report(&succeeded, None, true, at(2));
        assert!(stored.unrecorded().is_some());
    }

    #[test]
    fn an_event_says_what_was_reported_and_the_record_is_read_as_it_was_written() {
        let mut stored = StoredOutcome::new(AccountId::parse("acc").unwrap(), id(), at(LONG));
        let told = ReportDecisionOutcome {
            duration_ms: Some(420),
            actual_micros: Some(420_000),
            ..report(OutcomeStatus::Failed)
        };
        stored.report(&told, Some("toolu_01".to_owned()), true, at(1));
        let event = stored.unrecorded().unwrap();
        assert_eq!((event.kind, event.request_id), (LineType::DecisionOutcome, Some(id())));
        let wanted = json!({"status": "failed", "late": false, "tool_call_id": "toolu_01", "duration_ms": 420,
            "cost_usd": 0.42});
        assert_eq!(serde_json::Value::from(event.details), wanted);
        let written = serde_json::to_vec(&stored).unwrap();
        assert_eq!(serde_json::from_slice::<StoredOutcome>(&written).unwrap(), stored);
        let bare = reported(OutcomeStatus::Skipped, 1).unrecorded().unwrap().details;
        assert_eq!(serde_json::Value::from(bare), json!({"status": "skipped", "late": false}));
    }
}
