//! How often in a row this process has changed a run: only a run whose checks keep coming here is worth holding.
//!
//! Where several evaluators share the checks of a run, each would have to take it from the other; and a run that rests
//! between its checks would be given up each time.

use std::collections::HashMap;
use std::time::Duration;

use stage0_backplane::Revision;
use tokio::time::Instant;

/// Changes in a row after which a run is held, and the longest time between two of them.
const MIN_STREAK: i32 = 3;
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Where a run begins again that another evaluator has taken.
const AFTER_LOSS: i32 = -32;
/// Runs that are remembered; then all are forgotten.
const MAX_RUNS: usize = 8_192;

#[derive(Debug, Default)]
pub(super) struct Streaks(HashMap<String, Streak>);

#[derive(Debug, Clone, Copy)]
struct Streak {
    /// What this process wrote last, and when.
    last: Option<Revision>,
    at: Instant,
    length: i32,
}

impl Streaks {
    pub(super) fn is_long(&self, key: &str, from: Revision, now: Instant) -> bool {
        let streak = self.0.get(key).filter(|streak| now.duration_since(streak.at) <= MAX_PAUSE);
        streak.is_some_and(|streak| streak.last == Some(from) && streak.length >= MIN_STREAK)
    }

    pub(super) fn note(&mut self, key: &str, replaced: Option<Revision>, by: Revision, now: Instant) {
        if let Some(streak) = self.0.get_mut(key) {
            let goes_on = replaced.is_some() && streak.last == replaced && now.duration_since(streak.at) <= MAX_PAUSE;
            streak.length = if goes_on || streak.length < 0 { streak.length.saturating_add(1) } else { 1 };
            (streak.last, streak.at) = (Some(by), now);
            return;
        }
        if self.0.len() >= MAX_RUNS {
            self.0.clear();
        }
        self.0.insert(key.to_owned(), Streak { last: Some(by), at: now, length: 1 });
    }

    /// It is given up, as it rests.
    pub(super) fn end(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Another evaluator took the run.
    pub(super) fn lose(&mut self, key: &str, now: Instant) {
        self.0.insert(key.to_owned(), Streak { last: None, at: now, length: AFTER_LOSS });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "r";

    fn rev(number: u64) -> Revision {
        Revision(number)
    }

    #[test]
    fn a_run_is_held_after_changes_in_a_row_and_much_later_once_it_was_taken() {
        let (mut streaks, now) = (Streaks::default(), Instant::now());
        streaks.note(KEY, None, rev(1), now);
        streaks.note(KEY, Some(rev(1)), rev(2), now);
        assert!(!streaks.is_long(KEY, rev(2), now));
        streaks.note(KEY, Some(rev(2)), rev(3), now);
        assert!(streaks.is_long(KEY, rev(3), now));
        assert!(!streaks.is_long(KEY, rev(4), now), "another process has written it");
        streaks.note(KEY, Some(rev(4)), rev(5), now);
        assert!(!streaks.is_long(KEY, rev(5), now), "it begins again");
        streaks.lose(KEY, now);
        let long = |at: u64| {
            streaks.note(KEY, Some(rev(at)), rev(at + 1), now);
            streaks.is_long(KEY, rev(at + 1), now)
        };
        assert_eq!((10..60).position(long), Some(34));
    }

    #[test]
    fn a_run_that_rests_between_its_changes_is_not_held() {
        let (mut streaks, mut now) = (Streaks::default(), Instant::now());
        for number in 1..20 {
            streaks.note(KEY, Some(rev(number)), rev(number + 1), now);
            assert!(number < 3 || streaks.is_long(KEY, rev(number + 1), now + MAX_PAUSE));
            assert!(!streaks.is_long(KEY, rev(number + 1), now + MAX_PAUSE * 2));
        }
        for number in 20..40 {
            now += MAX_PAUSE * 2;
            streaks.note(KEY, Some(rev(number)), rev(number + 1), now);
            assert!(!streaks.is_long(KEY, rev(number + 1), now));
        }
        streaks.end(KEY);
        assert!(!streaks.is_long(KEY, rev(40), now));
    }
}
