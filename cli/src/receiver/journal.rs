//! What has arrived: counts, the newest decisions, and the ids that tell a repeated delivery.
//!
//! Deliveries are at least once, so a `webhook-id` that was here is not counted again. Everything is bounded; an id that is older
//! than the last 10,000 would count as new. A receiver that acts on events keeps these ids where it keeps what it did.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use serde::Serialize;

use super::event::{About, Decision, Event};
use super::sequence::{Place, Sequences};

const MOST_DECISIONS: usize = 200;
const MOST_IDS: usize = 10_000;

/// All that is remembered.
#[derive(Debug, Default)]
pub(super) struct Journal {
    counts: Counts,
    ids: HashSet<String>,
    oldest_first: VecDeque<String>,
    sequences: Sequences,
    decisions: VecDeque<Shown>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// Verified and new.
    received: u64,
    /// Verified and here before.
    repeated: u64,
    /// Not verified.
    refused: u64,
}

/// A decision on the page.
#[derive(Debug, Serialize)]
struct Shown {
    arrived_at: Timestamp,
    account: String,
    sequence: Option<u64>,
    /// From its record to its arrival; none when it does not say.
    delay_ms: Option<i64>,
    #[serde(flatten)]
    decision: Decision,
}

/// What the page asks for.
#[derive(Debug, Serialize)]
pub(super) struct View<'j> {
    #[serde(flatten)]
    counts: Counts,
    /// Numbers that are not here yet.
    missing: u64,
    /// The newest first.
    decisions: Vec<&'j Shown>,
}

/// What became of a verified event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// It was here before.
    pub(super) again: bool,
    /// Of its number.
    pub(super) place: Place,
}

impl Journal {
    /// A verified event.
    pub(super) fn take(&mut self, path: &str, id: &str, event: &Event, now: Timestamp) -> Taken {
        // A replayed event has its old id and a new number.
        let place = event.sequence.map(|number| self.sequences.arrived(path, &event.account, number, now));
        let again = !self.is_new(id);
        if again {
            self.counts.repeated += 1;
        } else {
            self.counts.received += 1;
            if let About::Decision(decision) = &event.about {
                self.show(event, decision, now);
            }
        }
        Taken { again, place: place.unwrap_or_default() }
    }

    /// One that was not verified; nothing of it is kept.
    pub(super) fn refuse(&mut self) {
        self.counts.refused += 1;
    }

    /// What the page shows.
    pub(super) fn view(&self) -> View<'_> {
        View { counts: self.counts, missing: self.sequences.missing(), decisions: self.decisions.iter().collect() }
    }

    fn is_new(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.oldest_first.push_back(id.to_owned());
        if self.oldest_first.len() > MOST_IDS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    fn show(&mut self, event: &Event, decision: &Decision, now: Timestamp) {
        let delay = decision.recorded_at.map(|recorded| now.as_millisecond() - recorded.as_millisecond());
        self.decisions.push_front(Shown {
            arrived_at: now,
            account: event.account.clone(),
            sequence: event.sequence,
            delay_ms: delay,
            decision: decision.clone(),
        });
        self.decisions.truncate(MOST_DECISIONS);
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

    fn take(journal: &mut Journal, id: &str, sequence: u64) -> Taken {
        journal.take("/", id, &event(sequence), "2026-01-02T00:00:01.75Z".parse().unwrap())
    }

    fn view(journal: &Journal) -> Value {
        serde_json::to_value(journal.view()).unwrap()
    }

    #[test]
    fn a_repeated_id_counts_once_and_its_new_number_is_seen() {
        let mut journal = Journal::default();
        assert_eq!(take(&mut journal, "dec_1", 1), Taken { again: false, place: Place::default() });
        assert_eq!(take(&mut journal, "dec_1", 1), Taken { again: true, place: Place::default() });
        assert_eq!(take(&mut journal, "dec_1", 3), Taken { again: true, place: Place::default() });
        journal.refuse();
        let view = view(&journal);
        assert_eq!((&view["received"], &view["repeated"], &view["refused"]), (&json!(1), &json!(2), &json!(1)));
        assert_eq!((&view["missing"], view["decisions"].as_array().unwrap().len()), (&json!(1), 1));
    }

    #[test]
    fn the_page_has_the_newest_200_and_how_long_each_took() {
        let mut journal = Journal::default();
        (1..=201).for_each(|n| drop(take(&mut journal, &n.to_string(), n)));
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
        (0..=10_000).for_each(|n| drop(take(&mut journal, &n.to_string(), 1)));
        assert_eq!((journal.ids.len(), journal.oldest_first.len()), (10_000, 10_000));
        assert!(take(&mut journal, "1", 1).again);
        assert!(!take(&mut journal, "0", 1).again, "it is forgotten");
    }
}
