//! One endpoint's place in the log, and what is on its way: the durable part of a delivery. Pure.
//!
//! Owns numbering (each event gets the endpoint's next sequence when it is read), retries, exhaustion and the account of both. It is
//! kept in the ledger as a whole, before anything of it is sent: whoever takes an endpoint over goes on from the last state that was
//! stored and sends what is open in it under the numbers that it has, whatever the filters are by then. What was read and not stored
//! was not sent either, and is read and numbered again.
//! INVARIANT: an event that was read stays open until it is delivered, exhausted, or gone from the log.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use stage0_contract::{Delivery, DeliveryState};
use uuid::Uuid;

use crate::backoff::{Next, next};
use crate::event::DECISION;
use crate::lag::Standing;
use crate::verdict::Outcome;

/// Events that were read and not tried yet.
const MOST_FRESH: usize = 256;
/// Events that wait for another try. When there are more, the endpoint reads no further: they stay in the log.
const MOST_WAITING: usize = 1_000;
/// Settled deliveries that are remembered.
const MOST_RECENT: usize = 100;
/// Exhausted deliveries that are remembered by name; more are counted.
const MOST_PARKED: usize = 1_000;
const MOST_REPLAYS: usize = 32;
/// An endpoint that wants no more but could not be disabled is tried again.
const TRY_DISABLED_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Longer than any wait between two tries: who made none for so long was paused, and did not fail meanwhile.
const PAUSED_AFTER: SignedDuration = SignedDuration::from_hours(36);
/// An endpoint that fails for so long without one success is disabled.
const DISABLE_AFTER: SignedDuration = SignedDuration::from_hours(5 * 24);

/// Behind how many lines of which entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) lines: usize,
}

/// Who works on the endpoint, and until when without saying so again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) worker: Uuid,
    pub(crate) until: Timestamp,
}

/// A stretch of the log that is sent once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replay {
    pub(crate) id: Uuid,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// None before the first line.
    #[serde(default)]
    pub(crate) place: Option<Place>,
}

/// An event on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) sequence: u64,
    /// The line before which it stands: `lines` is its index.
    pub(crate) at: Place,
    pub(crate) event: String,
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) last: Option<Attempt>,
    #[serde(default)]
    pub(crate) next_at: Option<Timestamp>,
    /// None for one that is replayed, or was taken before this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recorded_at: Option<Timestamp>,
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) at: Timestamp,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
    pub(crate) latency_ms: u64,
}

/// What an endpoint's owner or we should do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    Delivered,
    Waiting,
    Exhausted,
    /// The endpoint gets nothing more.
    Disable(String),
}

/// The state of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pub(crate) holder: Option<Holder>,
    /// None before the first line.
    pub(crate) place: Option<Place>,
    next_sequence: u64,
    open: Vec<Open>,
    recent: VecDeque<Delivery>,
    parked: VecDeque<Delivery>,
    /// All that ever were, also those that are not remembered.
    exhausted: u64,
    failing_since: Option<Timestamp>,
    pub(crate) replays: VecDeque<Replay>,
    taken_replays: VecDeque<Uuid>,
    /// It was disabled when it was served last.
    #[serde(default)]
    pub(crate) disabled: bool,
}

impl Default for Cursor {
    fn default() -> Self {
        Self {
            holder: None,
            place: None,
            next_sequence: 1,
            open: Vec::new(),
            recent: VecDeque::new(),
            parked: VecDeque::new(),
            exhausted: 0,
            failing_since: None,
            replays: VecDeque::new(),
            taken_replays: VecDeque::new(),
            disabled: false,
        }
    }
}

impl Cursor {
    /// How many more events may be read now.
    pub(crate) fn room(&self) -> usize {
        let fresh = self.open.iter().filter(|open| open.attempts == 0).count();
        if self.open.len() - fresh >= MOST_WAITING { 0 } else { MOST_FRESH.saturating_sub(fresh) }
    }

    /// Whether it is time to read: a question to the log brings many events, so it is asked only when many have room.
    pub(crate) fn is_hungry(&self) -> bool {
        self.room() >= MOST_FRESH / 2
    }

    /// Takes an event in; its number.
    pub(crate) fn take(&mut self, event: String, at: Place, recorded_at: Option<Timestamp>) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        self.open.push(Open { sequence, at, event, attempts: 0, last: None, next_at: None, recorded_at });
        sequence
    }

    /// The number that the next event gets.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// What is to be sent now, in the order of its numbers.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = &Open> {
        self.open.iter().filter(move |open| open.next_at.is_none_or(|at| at <= now))
    }

    /// Whether the last attempt failed: no success since.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// When the next one is due that is not yet.
    pub(crate) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.open.iter().filter_map(|open| open.next_at).filter(|at| *at > now).min()
    }

    /// How long events wait already.
    pub(crate) fn standing(&self) -> Standing {
        let untried = self.open.iter().filter(|open| open.attempts == 0);
        Standing {
            oldest: self.open.iter().filter_map(|open| open.recorded_at).min(),
            untried: untried.filter_map(|open| open.recorded_at).min(),
        }
    }

    /// The event is not in the log any more: it expired or was deleted.
    pub(crate) fn gone(&mut self, sequence: u64) {
        self.open.retain(|open| open.sequence != sequence);
    }

    /// Notes what came of an attempt.
    pub(crate) fn settle(&mut self, sequence: u64, outcome: &Outcome, attempt: Attempt, random: f64) -> Settled {
        let Some(index) = self.open.iter().position(|open| open.sequence == sequence) else {
            return Settled::Delivered;
        };
        let Some(open) = self.open.get_mut(index) else { return Settled::Delivered };
        let now = attempt.at;
        open.attempts = open.attempts.saturating_add(1);
        open.last = Some(attempt);
        match outcome {
            Outcome::Delivered => {
                let open = self.open.remove(index);
                self.failing_since = None;
                remember(&mut self.recent, MOST_RECENT, open.delivery(DeliveryState::Delivered));
                Settled::Delivered
            }
            Outcome::Disable { reason } => {
                // It is open still: whoever enables the endpoint gets it, and so does one that could not be disabled.
                open.next_at = Some(now.checked_add(TRY_DISABLED_AFTER).unwrap_or(Timestamp::MAX));
                Settled::Disable(reason.clone())
            }
            Outcome::Retry { reason: _, retry_after } => {
                let since = *self.failing_since.get_or_insert(now);
                let settled = match next(open.attempts, *retry_after, random) {
                    Next::After(delay) => {
                        open.next_at = Some(now.checked_add(delay).unwrap_or(Timestamp::MAX));
                        Settled::Waiting
                    }
                    Next::Exhausted => {
                        let open = self.open.remove(index);
                        self.exhausted = self.exhausted.saturating_add(1);
                        remember(&mut self.parked, MOST_PARKED, open.delivery(DeliveryState::Exhausted));
                        Settled::Exhausted
                    }
                };
                if now.duration_since(since) >= DISABLE_AFTER {
                    let days = DISABLE_AFTER.as_hours() / 24;
                    return Settled::Disable(format!("the endpoint failed for {days} days without a success"));
                }
                settled
            }
        }
    }

    /// An endpoint that was enabled again is taken to work: what waits is tried at once, and failures are counted from
    /// zero.
    pub(crate) fn enabled_again(&mut self) {
        if !std::mem::take(&mut self.disabled) {
            return;
        }
        self.failing_since = None;
        for open in &mut self.open {
            open.next_at = None;
        }
    }

    /// Time in which its owner had switched the endpoint off is no time of failure.
    pub(crate) fn forget_pause(&mut self, now: Timestamp) {
        let last = self.open.iter().filter_map(|open| open.last.as_ref()).map(|last| last.at).max();
        if last.is_none_or(|last| now.duration_since(last) > PAUSED_AFTER) {
            self.failing_since = None;
        }
    }

    /// Takes a replay, unless it was taken before.
    pub(crate) fn take_replay(&mut self, replay: Replay) {
        if self.taken_replays.contains(&replay.id) {
            return;
        }
        self.taken_replays.push_back(replay.id);
        while self.taken_replays.len() > MOST_REPLAYS {
            self.taken_replays.pop_front();
        }
        self.replays.push_back(replay);
    }

    /// All that is remembered of deliveries: what waits, what was given up, what was settled last.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let waiting = self.open.iter().filter(|open| open.attempts > 0);
        let waiting = waiting.map(|open| open.clone().delivery(DeliveryState::Waiting));
        let mut all: Vec<Delivery> =
            waiting.chain(self.parked.iter().cloned()).chain(self.recent.iter().cloned()).collect();
        all.sort_by_key(|delivery| std::cmp::Reverse(delivery.sequence));
        all
    }
}

impl Open {
    /// The decision's, where it is one.
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

fn remember(list: &mut VecDeque<Delivery>, most: usize, delivery: Delivery) {
    list.push_back(delivery);
    while list.len() > most {
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

    fn place(position: u64) -> Place {
        Place { position, lines: 0 }
    }

    fn attempt(second: i64) -> Attempt {
        Attempt { at: at(second), status: Some(500), error: Some("e".to_owned()), latency_ms: 3 }
    }

    fn failed() -> Outcome {
        Outcome::Retry { reason: "e".to_owned(), retry_after: None }
    }

    fn due(cursor: &Cursor, second: i64) -> Vec<u64> {
        cursor.due(at(second)).map(|open| open.sequence).collect()
    }

    #[test]
    fn events_are_numbered_in_the_order_in_which_they_are_read_and_from_the_stored_state_again() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.take("a".to_owned(), place(1), None), 1);
        let stored = serde_json::to_vec(&cursor).unwrap();
        assert_eq!(cursor.take("b".to_owned(), place(2), None), 2);
        let mut again: Cursor = serde_json::from_slice(&stored).unwrap();
        assert_eq!(again.take("b".to_owned(), place(2), None), 2, "whoever takes over gives it the same number");
        assert_eq!(again, cursor);
    }

    #[test]
    fn a_failed_event_waits_for_its_time_while_others_go_on() {
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        cursor.take("b".to_owned(), place(2), None);
        assert_eq!(cursor.settle(1, &failed(), attempt(100), 0.5), Settled::Waiting);
        assert_eq!(due(&cursor, 101), [2]);
        assert_eq!(cursor.settle(2, &Outcome::Delivered, attempt(101), 0.5), Settled::Delivered);
        assert_eq!(cursor.next_due(at(101)), Some(at(105)));
        assert_eq!(due(&cursor, 105), [1]);
    }

    #[test]
    fn a_receiver_that_asks_for_time_gets_it() {
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        let busy = Outcome::Retry { reason: "e".to_owned(), retry_after: Some(Duration::from_secs(600)) };
        cursor.settle(1, &busy, attempt(0), 0.5);
        assert!(due(&cursor, 599).is_empty());
        assert_eq!(due(&cursor, 600), [1]);
    }

    #[test]
    fn an_event_that_fails_to_the_end_is_parked_by_name_and_in_nobodys_way() {
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        let mut now = 0;
        let tries = (1..20).find(|_| {
            now = cursor.next_due(at(now)).map_or(now, Timestamp::as_second);
            cursor.settle(1, &failed(), attempt(now), 0.5) == Settled::Exhausted
        });
        assert_eq!(tries, Some(8));
        assert!((26 * 3_600..30 * 3_600).contains(&now), "about 28 hours: {now}");
        assert!(due(&cursor, i64::from(u32::MAX)).is_empty());
        let parked = cursor.deliveries();
        assert_eq!((parked.len(), parked[0].state, parked[0].attempts), (1, DeliveryState::Exhausted, 8));
    }

    #[test]
    fn days_of_failure_without_one_success_disable_and_one_success_starts_the_count_anew() {
        let day = 86_400;
        let mut cursor = Cursor::default();
        for event in 0..7 {
            cursor.take(event.to_string(), place(event), None);
        }
        assert_eq!(cursor.settle(1, &failed(), attempt(0), 0.5), Settled::Waiting);
        assert_eq!(cursor.settle(2, &failed(), attempt(4 * day), 0.5), Settled::Waiting);
        assert_eq!(cursor.settle(3, &Outcome::Delivered, attempt(4 * day), 0.5), Settled::Delivered);
        assert_eq!(cursor.settle(4, &failed(), attempt(5 * day), 0.5), Settled::Waiting);
        assert!(matches!(cursor.settle(5, &failed(), attempt(10 * day), 0.5), Settled::Disable(_)));
    }

    #[test]
    fn a_pause_is_no_failure() {
        let day = 86_400;
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        cursor.settle(1, &failed(), attempt(0), 0.5);
        let mut paused = cursor.clone();
        paused.forget_pause(at(6 * day));
        assert_eq!(paused.settle(1, &failed(), attempt(6 * day), 0.5), Settled::Waiting);
        cursor.forget_pause(at(day));
        assert!(matches!(cursor.settle(1, &failed(), attempt(6 * day), 0.5), Settled::Disable(_)));
    }

    #[test]
    fn what_a_disabled_endpoint_had_open_is_sent_when_it_is_enabled() {
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        cursor.take("b".to_owned(), place(2), None);
        cursor.settle(1, &failed(), attempt(0), 0.5);
        let gone = Outcome::Disable { reason: "410".to_owned() };
        assert_eq!(cursor.settle(2, &gone, attempt(1), 0.5), Settled::Disable("410".to_owned()));
        cursor.disabled = true;
        cursor.enabled_again();
        assert_eq!(due(&cursor, 1), [1, 2]);
        assert!(!cursor.disabled);
    }

    #[test]
    fn reading_stops_when_too_much_waits_and_goes_on_when_it_is_through() {
        let mut cursor = Cursor::default();
        let mut sequences = Vec::new();
        while cursor.room() > 0 {
            sequences.push(cursor.take("x".to_owned(), place(1), None));
            if sequences.len() % MOST_FRESH == 0 {
                for sequence in sequences.iter().rev().take(MOST_FRESH) {
                    cursor.settle(*sequence, &failed(), attempt(0), 0.5);
                }
            }
        }
        assert!((MOST_WAITING..MOST_WAITING + MOST_FRESH).contains(&sequences.len()), "{}", sequences.len());
        for sequence in sequences {
            cursor.settle(sequence, &Outcome::Delivered, attempt(9), 0.5);
        }
        assert_eq!(cursor.room(), MOST_FRESH);
        assert_eq!(cursor.deliveries().len(), MOST_RECENT);
    }

    #[test]
    fn a_replay_that_is_found_twice_is_taken_once() {
        let mut cursor = Cursor::default();
        let replay = Replay { id: Uuid::from_u128(7), from: at(0), to: at(9), place: None };
        cursor.take_replay(replay.clone());
        cursor.replays.clear();
        cursor.take_replay(replay);
        assert!(cursor.replays.is_empty());
    }

    #[test]
    fn an_event_that_left_the_log_is_forgotten() {
        let mut cursor = Cursor::default();
        cursor.take("a".to_owned(), place(1), None);
        cursor.gone(1);
        assert!(due(&cursor, 0).is_empty());
        assert_eq!(cursor.take("b".to_owned(), place(2), None), 2);
    }

    #[test]
    fn what_is_open_waits_since_it_was_recorded_and_a_replay_does_not() {
        let mut cursor = Cursor::default();
        cursor.take("replayed".to_owned(), place(1), None);
        assert_eq!(cursor.standing(), Standing::default());
        cursor.take("a".to_owned(), place(2), Some(at(5)));
        cursor.take("b".to_owned(), place(3), Some(at(7)));
        assert_eq!(cursor.standing(), Standing { oldest: Some(at(5)), untried: Some(at(5)) });
        cursor.settle(2, &failed(), attempt(9), 0.5);
        assert_eq!(cursor.standing(), Standing { oldest: Some(at(5)), untried: Some(at(7)) });
        cursor.settle(3, &Outcome::Delivered, attempt(9), 0.5);
        cursor.settle(2, &Outcome::Delivered, attempt(9), 0.5);
        assert_eq!(cursor.standing(), Standing::default());
    }

    /// As version 0.1 stored it.
    const CURSOR_0_1: &str = include_str!("../tests/fixtures/cursor_0_1.json");

    #[test]
    fn the_cursor_of_an_older_version_is_read_with_its_numbers_and_written_as_it_was() {
        let cursor: Cursor = serde_json::from_str(CURSOR_0_1).unwrap();
        assert_eq!((cursor.next_sequence(), due(&cursor, 0)), (8, vec![7]));
        assert_eq!(due(&cursor, i64::from(u32::MAX)), [5, 7]);
        assert_eq!((cursor.replays.len(), cursor.place), (1, Some(Place { position: 9, lines: 2 })));
        // An exporter of the older version may take the endpoint over again.
        let mut written: serde_json::Value = serde_json::to_value(&cursor).unwrap();
        assert_eq!(written["disabled"].take(), false);
        written.as_object_mut().unwrap().remove("disabled");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(CURSOR_0_1).unwrap());
    }

    #[test]
    fn a_cursor_of_before_is_read_and_only_a_decision_has_a_request_id() {
        let open = r#"{"sequence":1,"at":{"position":1,"lines":0},"event":"mark_acc_1","attempts":0}"#;
        let mut open: Open = serde_json::from_str(open).unwrap();
        assert_eq!((open.recorded_at, open.request_id()), (None, None));
        open.event = "dec_1".to_owned();
        assert_eq!(open.request_id(), Some("1"));
    }
}
