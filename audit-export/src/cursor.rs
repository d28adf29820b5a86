//! One endpoint's place in the log, and what is on its way: the durable part of a delivery. Pure.
//!
//! Owns numbering (each event gets the endpoint's next sequence when it is read), retries, exhaustion and the account of both. It is
//! kept in the ledger as a whole: whoever takes an endpoint over goes on from the last state that was stored, reads the same events
//! in the same order and gives them the same numbers; what was delivered since is sent once more, with its old id.
//! INVARIANT: an event that was read stays open until it is delivered, exhausted, or gone from the log.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use stage0_contract::{Delivery, DeliveryState};
use uuid::Uuid;

use crate::backoff::{Next, next};
use crate::verdict::Outcome;

/// Events that were read and not tried yet.
const MOST_FRESH: usize = 64;
/// Events that wait for another try. When there are more, the endpoint reads no further: they stay in the log.
const MOST_WAITING: usize = 1_000;
/// Settled deliveries that are remembered.
const MOST_RECENT: usize = 100;
/// Exhausted deliveries that are remembered by name; more are counted.
const MOST_PARKED: usize = 1_000;
const MOST_REPLAYS: usize = 32;
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

    /// Takes an event in; its number.
    pub(crate) fn take(&mut self, event: String, at: Place) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        self.open.push(Open { sequence, at, event, attempts: 0, last: None, next_at: None });
        sequence
    }

    /// What is to be sent now, in the order of its numbers.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = &Open> {
        self.open.iter().filter(move |open| open.next_at.is_none_or(|at| at <= now))
    }

    /// When the next one is due that is not yet.
    pub(crate) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.open.iter().filter_map(|open| open.next_at).filter(|at| *at > now).min()
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
                // It is open still: whoever enables the endpoint gets it.
                open.next_at = None;
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

    /// Whoever enabled a disabled endpoint thinks that it works: what waits is tried at once, and its failures count anew.
    pub(crate) fn enabled_again(&mut self) {
        if !std::mem::take(&mut self.disabled) {
            return;
        }
        self.failing_since = None;
        for open in &mut self.open {
            open.next_at = None;
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
