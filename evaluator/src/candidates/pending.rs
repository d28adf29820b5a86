//! What was found and is not in the state store yet. Pure.
//!
//! INVARIANT: what may have been stored is sent again under its own number, so that it is added once.

use std::collections::HashMap;

use stage0_contract::CandidateFindings;

use super::Of;

/// Candidates of which findings wait. With all their disagreements they take about 30 MB.
pub(super) const MAX_PENDING: usize = 1_024;

#[derive(Default)]
pub(super) struct Pending {
    entries: HashMap<Of, Entry>,
    /// The last number that was given.
    last: u64,
}

#[derive(Default)]
struct Entry {
    fresh: CandidateFindings,
    /// It was handed out to be stored, and may have been.
    sent: Option<Sent>,
}

/// Findings that are stored at once, under a number that is unique in this process and grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) findings: CandidateFindings,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns false where there is no room.
    pub(super) fn add(&mut self, of: Of, findings: CandidateFindings) -> bool {
        if self.entries.len() >= MAX_PENDING && !self.entries.contains_key(&of) {
            return false;
        }
        self.entries.entry(of).or_default().fresh.add(findings);
        true
    }

    /// What is to be stored now: first what may have been stored already.
    pub(super) fn take(&mut self) -> Vec<(Of, Sent)> {
        let mut taken = Vec::with_capacity(self.entries.len());
        for (of, entry) in &mut self.entries {
            let sent = entry.sent.get_or_insert_with(|| {
                self.last += 1;
                Sent { number: self.last, findings: std::mem::take(&mut entry.fresh) }
            });
            taken.push((of.clone(), sent.clone()));
        }
        taken
    }

    /// It is in the state store.
    pub(super) fn stored(&mut self, of: &Of) {
        let Some(entry) = self.entries.get_mut(of) else { return };
        entry.sent = None;
        if entry.fresh == CandidateFindings::default() {
            self.entries.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use stage0_contract::AccountId;
    use uuid::Uuid;

    use super::*;
    use crate::candidates::outcome::not_judged;
    use stage0_contract::CandidateMode;

    fn nothing() -> CandidateFindings {
        not_judged(CandidateMode::Shadow, None)
    }

    fn of(account: &str) -> Of {
        Of { account: AccountId::parse(account).unwrap(), candidate: Uuid::nil() }
    }

    fn only(pending: &mut Pending) -> Sent {
        let mut taken = pending.take();
        assert_eq!(taken.len(), 1);
        taken.remove(0).1
    }

    #[test]
    fn what_may_have_been_stored_is_sent_again_as_it_was_and_what_came_since_follows() {
        let mut pending = Pending::new();
        assert!(pending.is_empty() && pending.take().is_empty());
        assert!(pending.add(of("a"), nothing()));
        let first = only(&mut pending);
        assert!(pending.add(of("a"), nothing()) && pending.add(of("a"), nothing()));
        assert_eq!(only(&mut pending), first, "it failed");
        pending.stored(&of("a"));
        let second = only(&mut pending);
        assert!(second.number > first.number);
        assert_eq!((first.findings.counts.not_judged, second.findings.counts.not_judged), (1, 2));
        pending.stored(&of("a"));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_candidate_beyond_the_bound_is_dropped_and_a_known_one_is_not() {
        let mut pending = Pending::new();
        (0..MAX_PENDING).for_each(|number| assert!(pending.add(of(&format!("a{number}")), nothing())));
        assert!(!pending.add(of("b"), nothing()));
        assert!(pending.add(of("a0"), nothing()));
        assert_eq!(pending.take().len(), MAX_PENDING);
    }
}
