//! The durable state of one endpoint's deliveries: how far its log was read, and which events are open. Pure.
//!
//! Each event gets the endpoint's next sequence number when it is read, and the whole cursor is stored before anything
//! in it is sent: a worker that takes the endpoint over sends the open events under the same numbers, whatever the
//! filters are by then. Events that were read but not stored were not sent either, and are read and numbered again.
//! INVARIANT: an event that was read stays open until it is delivered, dead-lettered, or gone from the log.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use stage0_contract::{Delivery, DeliveryState};
use uuid::Uuid;

use crate::backoff::{MAX_RETRY_DELAY, NextAttempt, next_attempt};
use crate::classify::DeliveryOutcome;
use crate::event::DECISION;
use crate::lag::EndpointLag;

const MAX_PENDING: usize = 256;
/// Events that are retried. Beyond this the endpoint reads no further, and newer events stay in the log.
const MAX_RETRYING: usize = 1_000;
const MAX_RECENT: usize = 100;
const MAX_DEAD_LETTERS: usize = 1_000;
const MAX_REPLAYS: usize = 32;
/// When an endpoint asked to be disabled and could not be, its event is tried again after this delay.
const DISABLE_RETRY_DELAY: SignedDuration = SignedDuration::from_secs(60);
/// A longer time without an attempt means that the owner had disabled the endpoint, not that it failed.
const PAUSED_AFTER: SignedDuration = SignedDuration::from_hours(36);
/// An endpoint that fails for this long without one success is disabled.
const DISABLE_AFTER: SignedDuration = SignedDuration::from_hours(5 * 24);

// INVARIANT: no retry delay is taken for a pause.
const _: () = assert!(PAUSED_AFTER.as_secs().unsigned_abs() > MAX_RETRY_DELAY.as_secs());

/// How far a log is read: this many lines of the entry at this position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogOffset {
    pub(crate) position: u64,
    pub(crate) lines: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseHolder {
    pub(crate) worker: Uuid,
    pub(crate) until: Timestamp,
}

/// A time range of the log that is delivered once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replay {
    pub(crate) id: Uuid,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// None before the first line.
    #[serde(default, rename = "place")]
    pub(crate) offset: Option<LogOffset>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenEvent {
    pub(crate) sequence: u64,
    /// Where its line is; `lines` is the line's index.
    pub(crate) at: LogOffset,
    pub(crate) event: String,
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) last: Option<Attempt>,
    #[serde(default)]
    pub(crate) next_at: Option<Timestamp>,
    /// None for a replayed event, and for one that a version without this member stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recorded_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) at: Timestamp,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
    pub(crate) latency_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Completion {
    Delivered,
    RetryScheduled,
    DeadLettered,
    Disable(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) holder: Option<LeaseHolder>,
    #[serde(rename = "place")]
    pub(crate) offset: Option<LogOffset>,
    next_sequence: u64,
    open: Vec<OpenEvent>,
    recent: VecDeque<Delivery>,
    #[serde(rename = "parked")]
    dead_letters: VecDeque<Delivery>,
    /// All dead letters there ever were, including those that are not listed any more.
    exhausted: u64,
    failing_since: Option<Timestamp>,
    pub(crate) replays: VecDeque<Replay>,
    taken_replays: VecDeque<Uuid>,
    /// The endpoint was disabled when it was last served.
    #[serde(default)]
    pub(crate) disabled: bool,
}

impl Default for Cursor {
    fn default() -> Self {
        Self {
            holder: None,
            offset: None,
            next_sequence: 1,
            open: Vec::new(),
            recent: VecDeque::new(),
            dead_letters: VecDeque::new(),
            exhausted: 0,
            failing_since: None,
            replays: VecDeque::new(),
            taken_replays: VecDeque::new(),
            disabled: false,
        }
    }
}

impl Completion {
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RetryScheduled => "retried",
            Self::DeadLettered => "exhausted",
            Self::Disable(_) => "refused",
        }
    }
}

impl Cursor {
    pub(crate) fn room(&self) -> usize {
        let pending = self.open.iter().filter(|open| open.attempts == 0).count();
        if self.open.len() - pending >= MAX_RETRYING { 0 } else { MAX_PENDING.saturating_sub(pending) }
    }

    /// Whether to read: one read brings many events, so it waits until there is room for many.
    pub(crate) fn wants_more(&self) -> bool {
        self.room() >= MAX_PENDING / 2
    }

    pub(crate) fn add_event(&mut self, event: String, at: LogOffset, recorded_at: Option<Timestamp>) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        self.open.push(OpenEvent { sequence, at, event, attempts: 0, last: None, next_at: None, recorded_at });
        sequence
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = &OpenEvent> {
        self.open.iter().filter(move |open| open.next_at.is_none_or(|at| at <= now))
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    pub(crate) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.open.iter().filter_map(|open| open.next_at).filter(|at| *at > now).min()
    }

    pub(crate) fn endpoint_lag(&self) -> EndpointLag {
        let untried = self.open.iter().filter(|open| open.attempts == 0);
        EndpointLag {
            oldest: self.open.iter().filter_map(|open| open.recorded_at).min(),
            untried: untried.filter_map(|open| open.recorded_at).min(),
        }
    }

    pub(crate) fn remove(&mut self, sequence: u64) {
        self.open.retain(|open| open.sequence != sequence);
    }

    pub(crate) fn complete(
        &mut self,
        sequence: u64,
        outcome: &DeliveryOutcome,
        attempt: Attempt,
        random: f64,
    ) -> Completion {
        let mut open = self.open.iter_mut().enumerate();
        let Some((index, open)) = open.find(|(_, open)| open.sequence == sequence) else {
            return Completion::Delivered;
        };
        let now = attempt.at;
        open.attempts = open.attempts.saturating_add(1);
        open.last = Some(attempt);
        match outcome {
            DeliveryOutcome::Delivered => {
                let open = self.open.remove(index);
                self.failing_since = None;
                push_bounded(&mut self.recent, MAX_RECENT, open.delivery(DeliveryState::Delivered));
                Completion::Delivered
            }
            DeliveryOutcome::Disable { reason } => {
                // The event stays open: it is sent when the endpoint is enabled again, or if it could not be disabled.
                open.next_at = Some(now.checked_add(DISABLE_RETRY_DELAY).unwrap_or(Timestamp::MAX));
                Completion::Disable(reason.clone())
            }
            DeliveryOutcome::Retry { reason: _, retry_after } => {
                let since = *self.failing_since.get_or_insert(now);
                let completion = match next_attempt(open.attempts, *retry_after, random) {
                    NextAttempt::After(delay) => {
                        open.next_at = Some(now.checked_add(delay).unwrap_or(Timestamp::MAX));
                        Completion::RetryScheduled
                    }
                    NextAttempt::Exhausted => {
                        let open = self.open.remove(index);
                        self.exhausted = self.exhausted.saturating_add(1);
                        let dead_letter = open.delivery(DeliveryState::Exhausted);
                        push_bounded(&mut self.dead_letters, MAX_DEAD_LETTERS, dead_letter);
                        Completion::DeadLettered
                    }
                };
                if now.duration_since(since) >= DISABLE_AFTER {
                    let days = DISABLE_AFTER.as_hours() / 24;
                    return Completion::Disable(format!("the endpoint failed for {days} days without a success"));
                }
                completion
            }
        }
    }

    /// An endpoint that was enabled again is assumed to work.
    pub(crate) fn resume_if_disabled(&mut self) {
        if !std::mem::take(&mut self.disabled) {
            return;
        }
        self.failing_since = None;
        for open in &mut self.open {
            open.next_at = None;
        }
    }

    /// The time during which its owner had disabled the endpoint does not count as failing.
    pub(crate) fn reset_failures_after_pause(&mut self, now: Timestamp) {
        let last = self.open.iter().filter_map(|open| open.last.as_ref()).map(|last| last.at).max();
        if last.is_none_or(|last| now.duration_since(last) > PAUSED_AFTER) {
            self.failing_since = None;
        }
    }

    pub(crate) fn add_replay(&mut self, replay: Replay) {
        if self.taken_replays.contains(&replay.id) {
            return;
        }
        push_bounded(&mut self.taken_replays, MAX_REPLAYS, replay.id);
        self.replays.push_back(replay);
    }

    /// The deliveries that are listed, the newest first: retried events, dead letters and recent successes.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let retrying = self.open.iter().filter(|open| open.attempts > 0);
        let retrying = retrying.map(|open| open.clone().delivery(DeliveryState::Waiting));
        let mut all: Vec<Delivery> =
            retrying.chain(self.dead_letters.iter().cloned()).chain(self.recent.iter().cloned()).collect();
        all.sort_by_key(|delivery| std::cmp::Reverse(delivery.sequence));
        all
    }
}

impl OpenEvent {
    /// The decision's `request_id`; none for a mark.
    pub(crate) fn request_id(&self) -> Option<&str> {
        self.event.strip_prefix(DECISION)
    }

    fn delivery(self, state: DeliveryState) -> Delivery {
        let last = self.last.unwrap_or(Attempt { at: Timestamp::UNIX_EPOCH, status: None, error: None, latency_ms: 0 });
        Delivery {
            event: self.event,
            sequence: self.sequence,
            state,
            attempts: self.attempts,
            status: last.status,
            error: last.error,
            latency_ms: last.latency_ms,
            last_attempt_at: last.at,
            next_attempt_at: self.next_at.filter(|_| state == DeliveryState::Waiting),
        }
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, max: usize, item: T) {
    list.push_back(item);
    while list.len() > max {
        list.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn offset(position: u64) -> LogOffset {
        LogOffset { position, lines: 0 }
    }

    fn attempt(second: i64) -> Attempt {
        Attempt { at: at(second), status: Some(500), error: Some("e".to_owned()), latency_ms: 3 }
    }

    fn failed() -> DeliveryOutcome {
        DeliveryOutcome::Retry { reason: "e".to_owned(), retry_after: None }
    }

    fn due(cursor: &Cursor, second: i64) -> Vec<u64> {
        cursor.due(at(second)).map(|open| open.sequence).collect()
    }

    #[test]
    fn events_are_numbered_as_they_are_read_and_a_new_holder_continues_from_the_stored_cursor() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.add_event("a".to_owned(), offset(1), None), 1);
        let stored = serde_json::to_vec(&cursor).unwrap();
        assert_eq!(cursor.add_event("b".to_owned(), offset(2), None), 2);
        let mut again: Cursor = serde_json::from_slice(&stored).unwrap();
        assert_eq!(
            again.add_event("b".to_owned(), offset(2), None),
            2,
            "the next lease holder gives it the same number"
        );
        assert_eq!(again, cursor);
    }

    #[test]
    fn a_failed_event_waits_for_its_retry_while_others_are_sent() {
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        cursor.add_event("b".to_owned(), offset(2), None);
        assert_eq!(cursor.complete(1, &failed(), attempt(100), 0.5), Completion::RetryScheduled);
        assert_eq!(due(&cursor, 101), [2]);
        assert_eq!(cursor.complete(2, &DeliveryOutcome::Delivered, attempt(101), 0.5), Completion::Delivered);
        assert_eq!(cursor.next_due(at(101)), Some(at(105)));
        assert_eq!(due(&cursor, 105), [1]);
    }

    #[test]
    fn a_retry_waits_as_long_as_the_receiver_asks() {
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        let busy = DeliveryOutcome::Retry { reason: "e".to_owned(), retry_after: Some(Duration::from_secs(600)) };
        cursor.complete(1, &busy, attempt(0), 0.5);
        assert!(due(&cursor, 599).is_empty());
        assert_eq!(due(&cursor, 600), [1]);
    }

    #[test]
    fn an_event_that_fails_eight_times_becomes_a_listed_dead_letter() {
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        let mut now = 0;
        let tries = (1..20).find(|_| {
            now = cursor.next_due(at(now)).map_or(now, Timestamp::as_second);
            cursor.complete(1, &failed(), attempt(now), 0.5) == Completion::DeadLettered
        });
        assert_eq!(tries, Some(8));
        assert!((26 * 3_600..30 * 3_600).contains(&now), "about 28 hours: {now}");
        assert!(due(&cursor, i64::from(u32::MAX)).is_empty());
        let dead_letters = cursor.deliveries();
        assert_eq!(
            (dead_letters.len(), dead_letters[0].state, dead_letters[0].attempts),
            (1, DeliveryState::Exhausted, 8)
        );
    }

    #[test]
    fn five_days_of_failure_disable_an_endpoint_and_one_success_resets_the_count() {
        let day = 86_400;
        let mut cursor = Cursor::default();
        for event in 0..7 {
            cursor.add_event(event.to_string(), offset(event), None);
        }
        assert_eq!(cursor.complete(1, &failed(), attempt(0), 0.5), Completion::RetryScheduled);
        assert_eq!(cursor.complete(2, &failed(), attempt(4 * day), 0.5), Completion::RetryScheduled);
        assert_eq!(cursor.complete(3, &DeliveryOutcome::Delivered, attempt(4 * day), 0.5), Completion::Delivered);
        assert_eq!(cursor.complete(4, &failed(), attempt(5 * day), 0.5), Completion::RetryScheduled);
        assert!(matches!(cursor.complete(5, &failed(), attempt(10 * day), 0.5), Completion::Disable(_)));
    }

    #[test]
    fn the_time_an_endpoint_was_disabled_does_not_count_as_failing() {
        let day = 86_400;
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        cursor.complete(1, &failed(), attempt(0), 0.5);
        let mut paused = cursor.clone();
        paused.reset_failures_after_pause(at(6 * day));
        assert_eq!(paused.complete(1, &failed(), attempt(6 * day), 0.5), Completion::RetryScheduled);
        cursor.reset_failures_after_pause(at(day));
        assert!(matches!(cursor.complete(1, &failed(), attempt(6 * day), 0.5), Completion::Disable(_)));
    }

    #[test]
    fn open_events_of_a_disabled_endpoint_are_sent_when_it_is_enabled_again() {
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        cursor.add_event("b".to_owned(), offset(2), None);
        cursor.complete(1, &failed(), attempt(0), 0.5);
        let gone = DeliveryOutcome::Disable { reason: "410".to_owned() };
        assert_eq!(cursor.complete(2, &gone, attempt(1), 0.5), Completion::Disable("410".to_owned()));
        cursor.disabled = true;
        cursor.resume_if_disabled();
        assert_eq!(due(&cursor, 1), [1, 2]);
        assert!(!cursor.disabled);
    }

    #[test]
    fn reading_stops_while_too_many_events_are_retried() {
        let mut cursor = Cursor::default();
        let mut sequences = Vec::new();
        while cursor.room() > 0 {
            sequences.push(cursor.add_event("x".to_owned(), offset(1), None));
            if sequences.len() % MAX_PENDING == 0 {
                for sequence in sequences.iter().rev().take(MAX_PENDING) {
                    cursor.complete(*sequence, &failed(), attempt(0), 0.5);
                }
            }
        }
        assert!((MAX_RETRYING..MAX_RETRYING + MAX_PENDING).contains(&sequences.len()), "{}", sequences.len());
        for sequence in sequences {
            cursor.complete(sequence, &DeliveryOutcome::Delivered, attempt(9), 0.5);
        }
        assert_eq!(cursor.room(), MAX_PENDING);
        assert_eq!(cursor.deliveries().len(), MAX_RECENT);
    }

    #[test]
    fn a_replay_that_is_found_twice_is_imported_once() {
        let mut cursor = Cursor::default();
        let replay = Replay { id: Uuid::from_u128(7), from: at(0), to: at(9), offset: None };
        cursor.add_replay(replay.clone());
        cursor.replays.clear();
        cursor.add_replay(replay);
        assert!(cursor.replays.is_empty());
    }

    #[test]
    fn an_event_that_left_the_log_is_removed() {
        let mut cursor = Cursor::default();
        cursor.add_event("a".to_owned(), offset(1), None);
        cursor.remove(1);
        assert!(due(&cursor, 0).is_empty());
        assert_eq!(cursor.add_event("b".to_owned(), offset(2), None), 2);
    }

    #[test]
    fn lag_counts_from_the_recording_and_leaves_replays_out() {
        let mut cursor = Cursor::default();
        cursor.add_event("replayed".to_owned(), offset(1), None);
        assert_eq!(cursor.endpoint_lag(), EndpointLag::default());
        cursor.add_event("a".to_owned(), offset(2), Some(at(5)));
        cursor.add_event("b".to_owned(), offset(3), Some(at(7)));
        assert_eq!(cursor.endpoint_lag(), EndpointLag { oldest: Some(at(5)), untried: Some(at(5)) });
        cursor.complete(2, &failed(), attempt(9), 0.5);
        assert_eq!(cursor.endpoint_lag(), EndpointLag { oldest: Some(at(5)), untried: Some(at(7)) });
        cursor.complete(3, &DeliveryOutcome::Delivered, attempt(9), 0.5);
        cursor.complete(2, &DeliveryOutcome::Delivered, attempt(9), 0.5);
        assert_eq!(cursor.endpoint_lag(), EndpointLag::default());
    }

    /// A cursor as version 0.1 stored it.
    const CURSOR_0_1: &str = include_str!("../tests/fixtures/cursor_0_1.json");

    #[test]
    fn a_cursor_stored_by_version_0_1_is_read_and_written_unchanged() {
        let cursor: Cursor = serde_json::from_str(CURSOR_0_1).unwrap();
        assert_eq!((cursor.next_sequence(), due(&cursor, 0)), (8, vec![7]));
        assert_eq!(due(&cursor, i64::from(u32::MAX)), [5, 7]);
        assert_eq!((cursor.replays.len(), cursor.offset), (1, Some(LogOffset { position: 9, lines: 2 })));
        // During an upgrade, an exporter of the older version may take the endpoint over again.
        let mut written: serde_json::Value = serde_json::to_value(&cursor).unwrap();
        assert_eq!(written["disabled"].take(), false);
        written.as_object_mut().unwrap().remove("disabled");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(CURSOR_0_1).unwrap());
    }

    #[test]
    fn an_open_event_without_newer_members_is_read_and_only_decisions_have_a_request_id() {
        let open = r#"{"sequence":1,"at":{"position":1,"lines":0},"event":"mark_acc_1","attempts":0}"#;
        let mut open: OpenEvent = serde_json::from_str(open).unwrap();
        assert_eq!((open.recorded_at, open.request_id()), (None, None));
        open.event = "dec_1".to_owned();
        assert_eq!(open.request_id(), Some("1"));
    }
}
