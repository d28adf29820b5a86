//! When requests are due: as soon as the last is answered, or at a steady rate.
//!
//! At a rate each request has its time from the start, and its latency counts from then, also when its connection still
//! waits for an earlier answer: a server that stalls does not keep requests from being counted (coordinated omission).
//! A thread gives the time: tokio's timers have a millisecond, as long as a whole check takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

#[derive(Clone, Copy)]
pub(crate) enum Pace {
    AsAnswered,
    /// All connections together at this rate a second, whatever the answers.
    PerSecond(f64),
}

/// The requests of one connection in one turn.
pub(crate) struct Schedule {
    pace: Pace,
    line: usize,
    count: usize,
    began: Instant,
    time: Duration,
    /// Notified when a request of this connection is due.
    tick: Arc<Notify>,
}

impl Pace {
    /// Begins a turn of this many connections.
    pub(crate) fn begin(self, count: usize, time: Duration) -> Vec<Schedule> {
        let (began, ticks) = (Instant::now(), (0..count).map(|_| Arc::new(Notify::new())).collect::<Vec<_>>());
        if matches!(self, Self::PerSecond(_)) && count > 0 {
            let ticks = ticks.clone();
            std::thread::spawn(move || self.tick(&ticks, began, time));
        }
        let schedule = |(line, tick)| Schedule { pace: self, line, count, began, time, tick };
        ticks.into_iter().enumerate().map(schedule).collect()
    }

    /// When the `step`th request of one of `count` connections is due, from the start of the turn; none: at once.
    fn due(self, line: usize, count: usize, step: usize) -> Option<Duration> {
        match self {
            Self::AsAnswered => None,
            Self::PerSecond(rate) => {
                let before = step.saturating_mul(count).saturating_add(line);
                Some(Duration::from_secs_f64(before as f64 / rate.max(1.0)))
            }
        }
    }

    fn tick(self, ticks: &[Arc<Notify>], began: Instant, time: Duration) {
        for step in 0.. {
            for (line, tick) in ticks.iter().enumerate() {
                match self.due(line, ticks.len(), step) {
                    Some(due) if due < time => std::thread::sleep(due.saturating_sub(began.elapsed())),
                    Some(_) | None => return,
                }
                tick.notify_one();
            }
        }
    }
}

impl Schedule {
    /// Waits until the `step`th request may be sent. From when its latency counts; none: the turn is over.
    pub(crate) async fn wait_for(&self, step: usize) -> Option<Instant> {
        let Some(due) = self.pace.due(self.line, self.count, step) else {
            return (self.began.elapsed() < self.time).then(Instant::now);
        };
        if due >= self.time {
            return None;
        }
        while self.began.elapsed() < due {
            self.tick.notified().await;
        }
        Some(self.began + due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_spread_evenly_over_the_connections() {
        let pace = Pace::PerSecond(500.0);
        let mut due: Vec<_> = (0..25).flat_map(|step| (0..4).filter_map(move |line| pace.due(line, 4, step))).collect();
        due.sort_unstable();
        let even: Vec<_> = (0..100).map(|step| Duration::from_millis(2 * step)).collect();
        assert_eq!(due, even);
        assert_eq!(Pace::AsAnswered.due(3, 4, 9), None);
    }

    #[tokio::test]
    async fn a_late_connection_has_its_requests_count_from_when_they_were_due() {
        let schedules = Pace::PerSecond(1_000.0).begin(2, Duration::from_millis(20));
        let schedule = &schedules[1];
        let first = schedule.wait_for(0).await.unwrap();
        // The answer to the first takes until the turn is over.
        std::thread::sleep(Duration::from_millis(25));
        let mut due = vec![first];
        for step in 1.. {
            let Some(from) = schedule.wait_for(step).await else { break };
            due.push(from);
        }
        let wanted: Vec<_> = (0..10).map(|step| schedule.began + Duration::from_millis(1 + 2 * step)).collect();
        assert_eq!(due, wanted);
    }

    #[tokio::test]
    async fn no_request_is_sent_before_it_is_due() {
        let schedules = Pace::PerSecond(500.0).begin(1, Duration::from_millis(11));
        let mut sent = 0;
        while let Some(due) = schedules[0].wait_for(sent).await {
            assert!(Instant::now() >= due);
            sent += 1;
        }
        assert_eq!(sent, 6);
    }
}
