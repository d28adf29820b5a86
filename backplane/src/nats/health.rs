//! Counts what the client reports beside its messages, much of which is reported nowhere else.
//!
//! A forbidden publish looks like silence and a forbidden subscription like success; only an event tells. The last
//! violation is kept until the next connection, where the server checks permissions again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Event;

use crate::metrics::{self, ConnectionProblem};

/// Counts since the connection was opened.
#[derive(Debug, Default)]
pub struct Health {
    disconnects: AtomicU64,
    slow_consumers: AtomicU64,
    lame_ducks: AtomicU64,
    violations: AtomicU64,
    errors: AtomicU64,
    texts: Mutex<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    violation: Option<String>,
    problem: Option<String>,
}

impl Health {
    /// Connections that broke.
    #[must_use]
    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }

    /// Messages that the client dropped because one of our queues was full; there may have been more than are counted
    /// here.
    #[must_use]
    pub fn slow_consumers(&self) -> u64 {
        self.slow_consumers.load(Ordering::Relaxed)
    }

    /// Announcements of a server that it is about to stop.
    #[must_use]
    pub fn lame_ducks(&self) -> u64 {
        self.lame_ducks.load(Ordering::Relaxed)
    }

    /// Publishes and subscriptions that the server forbade.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// All other errors of server and client, including failed attempts to reconnect.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// A text for the last of the problems above, for the log.
    #[must_use]
    pub fn last_problem(&self) -> Option<String> {
        self.texts().problem.clone()
    }

    /// What the server forbade on this connection.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.texts().violation.clone()
    }

    /// What the server forbade for this subject since there were `before` violations.
    pub(super) fn violation_of(&self, subject: &str, before: u64) -> Option<String> {
        if self.violations() <= before {
            return None;
        }
        self.violation().filter(|text| text.contains(&format!("\"{subject}\"")))
    }

    pub(super) fn record(&self, event: &Event) {
        let (count, problem) = match event {
            Event::Connected => {
                self.texts().violation = None;
                return;
            }
            Event::Draining | Event::Closed => return,
            Event::Disconnected => (&self.disconnects, ConnectionProblem::Disconnect),
            Event::SlowConsumer(_) => (&self.slow_consumers, ConnectionProblem::SlowConsumer),
            Event::LameDuckMode => (&self.lame_ducks, ConnectionProblem::LameDuck),
            Event::ServerError(error) => {
                let text = error.to_string();
                if text.to_ascii_lowercase().contains("permissions violation") {
                    self.texts().violation = Some(text);
                    (&self.violations, ConnectionProblem::Violation)
                } else {
                    (&self.errors, ConnectionProblem::Error)
                }
            }
            Event::ClientError(_) => (&self.errors, ConnectionProblem::Error),
        };
        count.fetch_add(1, Ordering::Relaxed);
        metrics::problem(problem);
        let problem = event.to_string();
        tracing::warn!(problem, "backplane connection");
        self.texts().problem = Some(problem);
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use async_nats::{ClientError, ServerError};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_violation_stands_until_the_next_connection() {
        let health = Health::default();
        let text = "Permissions Violation for Publish to \"s0.req.evaluate\"".to_owned();
        health.record(&Event::ServerError(ServerError::Other(text)));
        assert!(health.violation().unwrap().contains("s0.req.evaluate"));
        assert_eq!((health.violations(), health.errors()), (1, 0));

        health.record(&Event::Disconnected);
        assert!(health.violation().is_some());
        health.record(&Event::Connected);
        assert_eq!(health.violation(), None);
        assert_eq!(health.last_problem().as_deref(), Some("disconnected"));
    }

    #[test]
    fn each_connection_problem_is_counted_under_its_own_name() {
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            metrics::describe_nats();
            let health = Health::default();
            let violation = "Permissions Violation for Subscription to \"x\"".to_owned();
            for event in [
                Event::Connected,
                Event::Disconnected,
                Event::LameDuckMode,
                Event::LameDuckMode,
                Event::ServerError(ServerError::Other(violation)),
                Event::ServerError(ServerError::Other("something else".to_owned())),
                Event::ClientError(ClientError::MaxReconnects),
                Event::ClientError(ClientError::MaxReconnects),
                Event::Closed,
            ] {
                health.record(&event);
            }
        });
        let page = recorder.handle().render();
        for (name, count) in [("disconnects", 1), ("lame_ducks", 2), ("violations", 1), ("errors", 3)] {
            let line = format!("stage0_nats_{name}_total {count}");
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
            assert!(page.contains(&format!("# HELP stage0_nats_{name}_total ")), "{page}");
        }
        assert!(!page.contains("slow_consumers_total "), "{page}");
    }
}
