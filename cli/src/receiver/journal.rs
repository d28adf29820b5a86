//! The receiver's memory: counts, the newest decisions, and the ids by which a repeated delivery is recognised.
//!
//! Delivery is at least once, so a `webhook-id` that arrived before is not counted again. Everything is bounded: an id
//! older than the last 10,000 would count as new. A receiver that acts on events must store the ids together with the
//! results of its actions.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use serde::Serialize;

use super::event::{Content, Decision, Event};
use super::sequence::{Arrival, Sequences};

const MAX_DECISIONS: usize = 200;
const MAX_IDS: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Journal {
    counts: Counts,
    ids: HashSet<String>,
    ids_by_age: VecDeque<String>,
    sequences: Sequences,
    decisions: VecDeque<ShownDecision>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// Verified, with a new id.
    received: u64,
    /// Verified, with an id that arrived before.
    repeated: u64,
    refused: u64,
}

/// A decision on the page.
#[derive(Debug, Serialize)]
struct ShownDecision {
    arrived_at: Timestamp,
    account: String,
    sequence: Option<u64>,
    /// The time from its record to its arrival, if the event says when it was recorded.
    delay_ms: Option<i64>,
    #[serde(flatten)]
    decision: Decision,
}

/// The content of the page, as `decisions.json`.
#[derive(Debug, Serialize)]
pub(super) struct View<'j> {
    #[serde(flatten)]
    counts: Counts,
    /// Sequence numbers that have not arrived.
    missing: u64,
    /// Newest first.
    decisions: &'j VecDeque<ShownDecision>,
}

/// The result of recording a verified event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) is_repeated: bool,
    pub(super) arrival: Arrival,
}

impl Journal {
    /// Records a verified event.
    pub(super) fn record(&mut self, path: &str, id: &str, event: &Event, now: Timestamp) -> Recorded {
        // A replayed event has its old id and a new number, so the number counts even if the id is known.
        let arrival = event.sequence.map(|number| self.sequences.arrived(path, &event.account, number, now));
        let is_repeated = !self.insert_id(id);
        if is_repeated {
            self.counts.repeated += 1;
        } else {
            self.counts.received += 1;
            if let Content::Decision(decision) = &event.content {
                self.show(event, decision, now);
            }
        }
        Recorded { is_repeated, arrival: arrival.unwrap_or_default() }
    }

    /// Counts an unverified delivery, of which nothing is kept.
    pub(super) fn refuse(&mut self) {
        self.counts.refused += 1;
    }

    pub(super) fn view(&self) -> View<'_> {
        View { counts: self.counts, missing: self.sequences.missing(), decisions: &self.decisions }
    }

    /// Returns false if the id is known already.
    fn insert_id(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.ids_by_age.push_back(id.to_owned());
        if self.ids_by_age.len() > MAX_IDS
            && let Some(oldest) = self.ids_by_age.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    fn show(&mut self, event: &Event, decision: &Decision, now: Timestamp) {
        let delay = decision.recorded_at.map(|recorded| now.as_millisecond() - recorded.as_millisecond());
        self.decisions.push_front(ShownDecision {
            arrived_at: now,
            account: event.account.clone(),
            sequence: event.sequence,
            delay_ms: delay,
            decision: decision.clone(),
        });
        self.decisions.truncate(MAX_DECISIONS);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(sequence: u64) -> Event {
        let body = json!({"type": "decision.recorded", "data": {
            "account": "acc_1", "verdict": "ALLOW", "request_id": sequence.to_string(), "sequence": sequence,
            "recorded_at": "2026-01-02T00:00:01.25Z", "evaluated_at": 1_767_312_001}});
        Event::read(body.to_string().as_bytes()).unwrap()
    }

    fn record(journal: &mut Journal, id: &str, sequence: u64) -> Recorded {
        journal.record("/", id, &event(sequence), "2026-01-02T00:00:01.75Z".parse().unwrap())
    }

    fn view(journal: &Journal) -> Value {
        serde_json::to_value(journal.view()).unwrap()
    }

    #[test]
    fn a_repeated_id_counts_once_and_its_new_number_still_counts() {
        let mut journal = Journal::default();
        assert_eq!(record(&mut journal, "dec_1", 1), Recorded { is_repeated: false, arrival: Arrival::default() });
        assert_eq!(record(&mut journal, "dec_1", 1), Recorded { is_repeated: true, arrival: Arrival::default() });
        assert_eq!(record(&mut journal, "dec_1", 3), Recorded { is_repeated: true, arrival: Arrival::default() });
        journal.refuse();
        let view = view(&journal);
        assert_eq!((&view["received"], &view["repeated"], &view["refused"]), (&json!(1), &json!(2), &json!(1)));
        assert_eq!((&view["missing"], view["decisions"].as_array().unwrap().len()), (&json!(1), 1));
    }

    #[test]
    fn the_page_shows_the_newest_200_decisions_with_their_delay() {
        let mut journal = Journal::default();
        (1..=201).for_each(|n| drop(record(&mut journal, &n.to_string(), n)));
        let view = view(&journal);
        let decisions = view["decisions"].as_array().unwrap();
        assert_eq!(
            (decisions.len(), &decisions[0]["sequence"], &decisions[199]["sequence"]),
            (200, &json!(201), &json!(2))
        );
        assert_eq!((&decisions[0]["delay_ms"], &decisions[0]["verdict"]), (&json!(500), &json!("ALLOW")));
    }

    #[test]
    fn ten_thousand_ids_are_remembered_and_no_more() {
        let mut journal = Journal::default();
        (0..=10_000).for_each(|n| drop(record(&mut journal, &n.to_string(), 1)));
        assert_eq!((journal.ids.len(), journal.ids_by_age.len()), (10_000, 10_000));
        assert!(record(&mut journal, "1", 1).is_repeated);
        assert!(!record(&mut journal, "0", 1).is_repeated, "it is forgotten");
    }
}
