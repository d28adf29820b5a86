//! The receiver's memory: counts, the newest decisions, and the ids by which a repeated delivery is recognised.
//!
//! Everything is bounded: an id older than the last 10,000 would count as new. A receiver that acts on events must
//! store the ids together with the results of its actions.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::event::Event;
use super::sequence::{Arrival, Sequences};

const MAX_DECISIONS: usize = 200;
const MAX_IDS: usize = 10_000;

/// Serialized as the page's `decisions.json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Journal {
    /// Verified, with a new id.
    received: u64,
    /// Verified, with an id that arrived before.
    repeated: u64,
    refused: u64,
    missing: u64,
    /// Newest first.
    decisions: VecDeque<Value>,
    #[serde(skip)]
    ids: HashSet<String>,
    #[serde(skip)]
    ids_by_age: VecDeque<String>,
    #[serde(skip)]
    sequences: Sequences,
}

impl Journal {
    pub(super) fn record(&mut self, path: &str, id: &str, event: &Event, now: Timestamp) -> Arrival {
        // A replayed event has its old id and a new number, so the number counts even if the id is known.
        let arrival = event.sequence.map(|number| self.sequences.arrived(path, &event.account, number, now));
        self.missing = self.sequences.missing();
        let is_repeated = !self.insert_id(id);
        if is_repeated {
            self.repeated += 1;
        } else {
            self.received += 1;
            if let Some(row) = &event.row {
                self.decisions.push_front(row.clone());
                self.decisions.truncate(MAX_DECISIONS);
            }
        }
        Arrival { is_repeated, ..arrival.unwrap_or_default() }
    }

    /// Counts an unverified delivery, of which nothing is kept.
    pub(super) fn refuse(&mut self) {
        self.refused += 1;
    }

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
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(journal: &mut Journal, id: &str, sequence: u64) -> Arrival {
        let now = "2026-01-02T00:00:01.75Z".parse().unwrap();
        let body = json!({"type": "decision.recorded", "data": {
            "account": "acc_1", "verdict": "ALLOW", "request_id": sequence.to_string(), "sequence": sequence,
            "recorded_at": "2026-01-02T00:00:01.25Z", "evaluated_at": 1_767_312_001}});
        journal.record("/", id, &Event::read(body.to_string().as_bytes(), now).unwrap(), now)
    }

    fn view(journal: &Journal) -> Value {
        serde_json::to_value(journal).unwrap()
    }

    #[test]
    fn a_repeated_id_counts_once_and_its_new_number_still_counts() {
        let mut journal = Journal::default();
        assert_eq!(record(&mut journal, "dec_1", 1), Arrival::default());
        assert_eq!(record(&mut journal, "dec_1", 1), Arrival { is_repeated: true, ..Arrival::default() });
        assert_eq!(record(&mut journal, "dec_1", 3), Arrival { is_repeated: true, ..Arrival::default() });
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
