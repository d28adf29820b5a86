//! Counts what the client reports beside its messages, much of which is reported nowhere else.
//!
//! A forbidden publish looks like silence and a forbidden subscription like success; only an event tells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Event;

use crate::metrics::{self, DISCONNECTS, ERRORS, LAME_DUCKS, SLOW_CONSUMERS, VIOLATIONS};

/// Counts since the connection was opened.
#[derive(Debug, Default)]
pub struct Health {
    disconnects: AtomicU64,
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
    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }

    /// Publishes and subscriptions that the server forbade.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// All other errors of server and client, including failed attempts to reconnect.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// A text for the last of the problems above, for the log.
    pub fn last_problem(&self) -> Option<String> {
        self.texts().problem.clone()
    }

    /// What the server forbade on this connection; after a reconnect it checks permissions again.
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
        let (metric, count) = match event {
            Event::Connected => {
                self.texts().violation = None;
                return;
            }
            Event::Draining | Event::Closed => return,
            Event::Disconnected => (DISCONNECTS, Some(&self.disconnects)),
            Event::SlowConsumer(_) => (SLOW_CONSUMERS, None),
            Event::LameDuckMode => (LAME_DUCKS, None),
            Event::ServerError(error) => {
                let text = error.to_string();
                if text.to_ascii_lowercase().contains("permissions violation") {
                    self.texts().violation = Some(text);
                    (VIOLATIONS, Some(&self.violations))
                } else {
                    (ERRORS, Some(&self.errors))
                }
            }
            Event::ClientError(_) => (ERRORS, Some(&self.errors)),
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        metrics::problem(metric);
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
        let counts = [("disconnects", 1), ("lame_ducks", 2), ("violations", 1), ("errors", 3), ("slow_consumers", 0)];
        for (name, count) in counts {
            let line = format!("stage0_nats_{name}_total {count}");
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
            assert!(page.contains(&format!("# HELP stage0_nats_{name}_total ")), "{page}");
        }
    }
}
