//! When a request is retried, and when it is not. Time is an argument.
//!
//! After a `Retry-After` the request is repeated at that time; after a broken connection the delay doubles. A refusal,
//! a certificate error, and a server that never answered are final at once.

use std::time::{Duration, Instant};

use crate::client::ConnectionError;

const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The retry delay, which starts again whenever there is progress.
pub(super) struct Retry {
    /// How long a command may go without progress.
    timeout: Duration,
    since: Instant,
    delay: Duration,
    /// Only a server that has answered before is retried.
    has_answered: bool,
}

impl Retry {
    pub(super) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, since: now, delay: MIN_RETRY_DELAY, has_answered: false }
    }

    pub(super) fn answered(&mut self) {
        self.has_answered = true;
    }

    pub(super) fn advanced(&mut self, now: Instant) {
        self.since = now;
        self.delay = MIN_RETRY_DELAY;
    }

    /// The delay before the next attempt; `None` if there is no further attempt.
    pub(super) fn after(&mut self, error: &ConnectionError, now: Instant) -> Option<Duration> {
        let delay = match error.retry_after() {
            Some(named) => named.max(MIN_RETRY_DELAY),
            None if self.has_answered && error.is_retryable() => {
                let delay = self.delay;
                self.delay = (delay * 2).min(MAX_RETRY_DELAY);
                delay
            }
            None => return None,
        };
        let waited = now.saturating_duration_since(self.since);
        (waited.saturating_add(delay) <= self.timeout).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> ConnectionError {
        ConnectionError::Broken { url: "https://h".parse().unwrap(), why: "cut".to_owned() }
    }

    fn refused(status: u16, retry_after: Option<u64>) -> ConnectionError {
        let retry_after = retry_after.map(Duration::from_secs);
        ConnectionError::Refused { status, message: String::new(), request_id: None, fields: Vec::new(), retry_after }
    }

    #[test]
    fn the_delay_doubles_until_there_is_progress_and_ends_with_the_timeout() {
        let start = Instant::now();
        let mut retry = Retry::new(Duration::from_secs(60), start);
        retry.answered();
        let millis = |retry: &mut Retry| retry.after(&broken(), start).map(|delay| delay.as_millis());
        assert_eq!([millis(&mut retry), millis(&mut retry), millis(&mut retry)], [Some(250), Some(500), Some(1_000)]);
        retry.advanced(start);
        assert_eq!(millis(&mut retry), Some(250));
        let late = start + Duration::from_secs(60);
        assert_eq!(retry.after(&broken(), late), None);
        retry.advanced(late);
        assert_eq!(retry.after(&broken(), late), Some(MIN_RETRY_DELAY));
    }

    #[test]
    fn retry_after_is_followed_even_for_the_first_answer() {
        let start = Instant::now();
        let mut retry = Retry::new(Duration::from_secs(60), start);
        assert_eq!(retry.after(&refused(429, Some(7)), start), Some(Duration::from_secs(7)));
        assert_eq!(retry.after(&refused(503, Some(0)), start), Some(MIN_RETRY_DELAY));
        assert_eq!(retry.after(&refused(429, Some(61)), start), None, "later than the timeout");
    }

    #[test]
    fn a_refusal_and_a_server_that_never_answered_are_final() {
        let start = Instant::now();
        let mut retry = Retry::new(Duration::from_secs(60), start);
        assert_eq!(retry.after(&broken(), start), None);
        retry.answered();
        for final_one in [refused(401, None), refused(403, Some(1)), refused(422, None), ConnectionError::UnusableKey] {
            assert_eq!(retry.after(&final_one, start), None);
        }
        assert!(retry.after(&refused(502, None), start).is_some(), "a balancer without a gateway");
    }
}
