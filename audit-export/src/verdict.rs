//! What came of an attempt: delivered, to be tried again, or an endpoint that wants no more.
//!
//! Owns that judgement and the texts that an endpoint's owner reads. Refuses to send and to schedule: the status and the failure
//! are arguments, the wait is the backoff's. Invariant: only a 2xx is a delivery, and only a 410 switches an endpoint off at
//! once; all else is tried again, since a receiver that is misconfigured today may be mended tomorrow.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::parse_retry_after;
use crate::egress::{Response, SendError};

/// What an attempt means for its message and its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver does not have it, or has not said so.
    Retry {
        /// For the endpoint's owner: lower case, names no address.
        reason: String,
        /// The wait that the receiver asks for.
        retry_after: Option<Duration>,
    },
    /// The endpoint is gone: nothing more is sent to it until its owner says so.
    Disable {
        /// For the endpoint's owner.
        reason: String,
    },
}

/// Judges an attempt.
///
/// `Retry-After` counts with 429 and 503, where a receiver says that it is busy.
pub fn outcome(attempt: &Result<Response, SendError>, now: Timestamp) -> Outcome {
    let response = match attempt {
        Ok(response) => response,
        Err(error) => return Outcome::Retry { reason: error.to_string(), retry_after: None },
    };
    let reason = |status: u16| format!("the endpoint answered {status}");
    match response.status {
        200..=299 => Outcome::Delivered,
        410 => Outcome::Disable { reason: "the endpoint answered 410: it is gone".to_owned() },
        status @ 300..=399 => {
            Outcome::Retry { reason: format!("{}: redirects are not followed", reason(status)), retry_after: None }
        }
        status @ (429 | 503) => {
            let asked = response.retry_after.as_deref();
            Outcome::Retry {
                reason: reason(status),
                retry_after: asked.and_then(|value| parse_retry_after(value, now)),
            }
        }
        status => Outcome::Retry { reason: reason(status), retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, retry_after: Option<&str>) -> Outcome {
        let response = Response { status, retry_after: retry_after.map(str::to_owned), took: Duration::ZERO };
        outcome(&Ok(response), Timestamp::UNIX_EPOCH)
    }

    fn retry(reason: &str, seconds: Option<u64>) -> Outcome {
        Outcome::Retry { reason: reason.to_owned(), retry_after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn only_a_2xx_is_a_delivery() {
        for status in 100..=999 {
            let delivered = judge(status, None) == Outcome::Delivered;
            assert_eq!(delivered, (200..300).contains(&status), "{status}");
        }
    }

    #[test]
    fn only_a_410_switches_the_endpoint_off() {
        for status in 100..=999 {
            assert_eq!(matches!(judge(status, Some("5")), Outcome::Disable { .. }), status == 410, "{status}");
        }
    }

    #[test]
    fn a_redirect_is_tried_again_and_says_why() {
        assert_eq!(judge(302, Some("60")), retry("the endpoint answered 302: redirects are not followed", None));
    }

    #[test]
    fn a_busy_receiver_is_given_the_time_that_it_asks_for() {
        for status in [429, 503] {
            let reason = format!("the endpoint answered {status}");
            assert_eq!(judge(status, Some("120")), retry(&reason, Some(120)));
            assert_eq!(judge(status, Some("Thu, 01 Jan 1970 00:01:00 GMT")), retry(&reason, Some(60)));
            assert_eq!(judge(status, Some("soon")), retry(&reason, None));
            assert_eq!(judge(status, None), retry(&reason, None));
        }
        assert_eq!(judge(500, Some("120")), retry("the endpoint answered 500", None));
    }

    #[test]
    fn what_was_not_sent_is_tried_again_with_the_failure_as_reason() {
        let outcome = outcome(&Err(SendError::Unresolved), Timestamp::UNIX_EPOCH);
        assert_eq!(outcome, retry("the host cannot be resolved, or has an address that is not public", None));
    }
}
