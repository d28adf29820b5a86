//! A guard as it reported last, and its silence.
//!
//! Pure. INVARIANT: each silence is one event with one id, handed out until a gateway has recorded it; a guard that
//! reports again and goes silent again has another one.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, ApprovalEvent, GUARD_TTL_DAYS, Guard, GuardCounts, GuardId, GuardState, KeyId, LineType, ReportGuard,
};
use uuid::Uuid;

use crate::event_id::event_id;
use crate::records::later;

/// A guard is silent only this long after its report was due: reports travel, and clocks differ.
const SILENT_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// How long an event that was handed to one gateway is handed to no other.
const HANDED_OUT_TTL: SignedDuration = SignedDuration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredGuard {
    account: AccountId,
    guard_id: GuardId,
    kind: String,
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    key_id: KeyId,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// None: it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due_at: Option<Timestamp>,
    counts: GuardCounts,
    pub(super) retention_days: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    silence: Option<Silence>,
    /// It is as good as absent, and is about to expire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) forgotten: bool,
}

/// A time without the report that was due.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Silence {
    due_at: Timestamp,
    event: ApprovalEvent,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recorded: bool,
    /// Until when a gateway has it.
    handed_out_until: Timestamp,
}

/// An event that is handed out, and whether it is the first time.
pub(super) struct HandedOut {
    pub(super) event: ApprovalEvent,
    pub(super) is_new: bool,
}

impl StoredGuard {
    /// The guard after a report.
    pub(super) fn reported(before: Option<&Self>, report: &ReportGuard, now: Timestamp) -> Self {
        let next = i64::from(report.next_within_seconds);
        // One that is not recorded yet is handed out until it is.
        let silence = before.and_then(|before| before.silence.clone()).filter(|silence| !silence.recorded);
        Self {
            account: report.account.clone(),
            guard_id: report.guard_id.clone(),
            kind: report.kind.clone(),
            version: report.version.clone(),
            agent_version: report.agent_version.clone(),
            host: report.host.clone(),
            key_id: report.key_id.clone(),
            first_seen: before.map_or(now, |before| before.first_seen),
            last_seen: now,
            due_at: (next > 0).then(|| later(now, SignedDuration::from_secs(next))),
            counts: report.counts,
            retention_days: report.retention_days,
            silence,
            forgotten: false,
        }
    }

    /// Whether the record can be the one of this guard; one that was moved cannot.
    pub(super) fn belongs(&self, account: &AccountId, guard_id: &str) -> bool {
        self.account == *account && self.guard_id.as_str() == guard_id
    }

    pub(super) fn id(&self) -> &GuardId {
        &self.guard_id
    }

    pub(super) fn state(&self, now: Timestamp) -> GuardState {
        match self.due_at {
            None => GuardState::Ended,
            Some(due_at) if later(due_at, SILENT_AFTER) <= now => GuardState::Silent,
            Some(_) => GuardState::Alive,
        }
    }

    /// When it must be looked at next: its event is not recorded, or it will be silent; none: never.
    pub(super) fn look_at(&self) -> Option<Timestamp> {
        if let Some(silence) = self.silence.as_ref().filter(|silence| !silence.recorded) {
            return Some(silence.handed_out_until);
        }
        let is_told = |due_at: &Timestamp| self.silence.as_ref().is_some_and(|silence| silence.due_at == *due_at);
        self.due_at.filter(|due_at| !is_told(due_at)).map(|due_at| later(due_at, SILENT_AFTER))
    }

    /// The event that must be recorded, if one must be now.
    pub(super) fn hand_out(&mut self, now: Timestamp) -> Option<HandedOut> {
        if self.look_at().is_none_or(|at| at > now) {
            return None;
        }
        let handed_out_until = later(now, HANDED_OUT_TTL);
        if let Some(silence) = self.silence.as_mut().filter(|silence| !silence.recorded) {
            silence.handed_out_until = handed_out_until;
            return Some(HandedOut { event: silence.event.clone(), is_new: false });
        }
        let due_at = self.due_at?;
        let event = self.silent(due_at);
        self.silence = Some(Silence { due_at, event: event.clone(), recorded: false, handed_out_until });
        Some(HandedOut { event, is_new: true })
    }

    fn silent(&self, due_at: Timestamp) -> ApprovalEvent {
        let source = format!("guard|{}|{}", self.account, self.guard_id);
        let mut details = Map::new();
        let mut tell = |name: &str, value: Value| drop(details.insert(name.to_owned(), value));
        tell("kind", self.kind.as_str().into());
        tell("version", self.version.as_str().into());
        if let Some(version) = &self.agent_version {
            tell("agent_version", version.as_str().into());
        }
        if let Some(host) = &self.host {
            tell("host", host.as_str().into());
        }
        tell("last_seen", json!(self.last_seen));
        tell("due_at", json!(due_at));
        ApprovalEvent {
            guard_id: Some(self.guard_id.clone()),
            details,
            ..ApprovalEvent::new(LineType::GuardSilent, event_id(&source, 0, due_at), due_at)
        }
    }

    /// The event's line is in the log; whether that was news.
    pub(super) fn confirm(&mut self, event_id: Uuid) -> bool {
        let Some(silence) = self.silence.as_mut().filter(|silence| silence.event.event_id == event_id) else {
            return false;
        };
        !std::mem::replace(&mut silence.recorded, true)
    }

    /// When it is forgotten, unless it reports.
    pub(super) fn ends_at(&self) -> Timestamp {
        let days = SignedDuration::from_hours(i64::from(GUARD_TTL_DAYS).saturating_mul(24));
        later(self.due_at.unwrap_or(self.last_seen), days)
    }

    pub(super) fn view(self, now: Timestamp) -> Guard {
        Guard {
            state: self.state(now),
            guard_id: self.guard_id,
            kind: self.kind,
            version: self.version,
            agent_version: self.agent_version,
            host: self.host,
            key_id: self.key_id,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            due_at: self.due_at,
            counts: self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn report(next_within_seconds: u32) -> ReportGuard {
        ReportGuard {
            account: AccountId::parse("acc").unwrap(),
            key_id: KeyId::parse("agent").unwrap(),
            retention_days: 30,
            guard_id: GuardId::parse("laptop-7").unwrap(),
            kind: "codex".to_owned(),
            version: "0.1.0".to_owned(),
            agent_version: None,
            host: Some("laptop-7".to_owned()),
            next_within_seconds,
            counts: GuardCounts { asked: 3, ..GuardCounts::default() },
        }
    }

    fn guard() -> StoredGuard {
        StoredGuard::reported(None, &report(60), at(0))
    }

    #[test]
    fn a_guard_is_silent_ten_seconds_after_its_report_was_due_and_a_second_earlier_it_is_not() {
        let guard = guard();
        for (second, state) in [(60, GuardState::Alive), (69, GuardState::Alive), (70, GuardState::Silent)] {
            assert_eq!(guard.state(at(second)), state, "{second}");
            assert_eq!(guard.clone().hand_out(at(second)).is_some(), state == GuardState::Silent, "{second}");
        }
    }

    #[test]
    fn one_that_ends_in_order_is_never_silent() {
        let mut ended = StoredGuard::reported(Some(&guard()), &report(0), at(30));
        assert_eq!((ended.state(at(1 << 30)), ended.look_at()), (GuardState::Ended, None));
        assert!(ended.hand_out(at(1 << 30)).is_none());
        assert_eq!(ended.clone().view(at(40)).due_at, None);
        let back = StoredGuard::reported(Some(&ended), &report(60), at(40));
        assert_eq!((back.state(at(50)), back.first_seen), (GuardState::Alive, at(0)));
    }

    #[test]
    fn a_silence_is_one_event_that_is_handed_out_until_it_is_recorded() {
        let mut guard = guard();
        let first = guard.hand_out(at(70)).unwrap();
        assert!(first.is_new && guard.hand_out(at(84)).is_none(), "another gateway has it");
        let again = guard.hand_out(at(85)).unwrap();
        assert_eq!((again.event.event_id, again.is_new), (first.event.event_id, false));
        assert!(guard.confirm(first.event.event_id) && !guard.confirm(first.event.event_id));
        assert!(guard.hand_out(at(1 << 30)).is_none(), "it is recorded");
        assert_eq!(guard.state(at(100)), GuardState::Silent, "it is shown as silent all the same");
    }

    #[test]
    fn a_guard_that_reports_and_goes_silent_again_is_another_event() {
        let mut guard = guard();
        let first = guard.hand_out(at(70)).unwrap().event;
        guard.confirm(first.event_id);
        let mut guard = StoredGuard::reported(Some(&guard), &report(60), at(100));
        assert!(guard.state(at(101)) == GuardState::Alive && guard.hand_out(at(169)).is_none());
        let second = guard.hand_out(at(170)).unwrap();
        assert!(second.is_new && second.event.event_id != first.event_id);
    }

    #[test]
    fn a_silence_that_was_not_recorded_before_the_guard_is_back_is_handed_out_all_the_same() {
        let mut guard = guard();
        let first = guard.hand_out(at(70)).unwrap().event;
        let mut guard = StoredGuard::reported(Some(&guard), &report(600), at(71));
        assert_eq!(guard.hand_out(at(85)).unwrap().event, first);
        guard.confirm(first.event_id);
        assert_eq!(guard.look_at(), Some(at(681)));
        assert!(guard.hand_out(at(680)).is_none() && guard.hand_out(at(681)).unwrap().is_new);
    }

    #[test]
    fn an_event_names_the_guard_and_its_times_and_no_text_of_an_action() {
        let event = guard().hand_out(at(70)).unwrap().event;
        assert_eq!((event.kind, event.at), (LineType::GuardSilent, at(60)));
        let wanted = json!({"kind": "codex", "version": "0.1.0", "host": "laptop-7",
            "last_seen": "1970-01-01T00:00:00Z", "due_at": "1970-01-01T00:01:00Z"});
        assert_eq!((Value::from(event.details), event.guard_id.unwrap().as_str()), (wanted, "laptop-7"));
    }
}
