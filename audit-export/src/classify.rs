//! Classifies an attempt: delivered, to be retried, or an endpoint that wants no more events.
//!
//! The reasons are read by the endpoint's owner.
//! INVARIANT: only a 2xx is a delivery, and only a 410 disables an endpoint at once. Everything else is retried, since
//! a receiver that is misconfigured today may be fixed tomorrow.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::parse_retry_after;
use crate::egress::{Response, SendError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeliveryOutcome {
    Delivered,
    Retry {
        /// Shown to the endpoint's owner: lower case, names no address.
        reason: String,
        retry_after: Option<Duration>,
    },
    /// The endpoint is gone: nothing more is sent until its owner enables it again.
    Disable {
        reason: String,
    },
}

impl DeliveryOutcome {
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Delivered => None,
            Self::Retry { reason, .. } | Self::Disable { reason } => Some(reason),
        }
    }
}

/// `Retry-After` is read only from 429 and 503, with which a receiver says that it is busy.
pub(crate) fn classify(result: &Result<Response, SendError>, now: Timestamp) -> DeliveryOutcome {
    let response = match result {
        Ok(response) => response,
        Err(error) => return DeliveryOutcome::Retry { reason: error.to_string(), retry_after: None },
    };
    let status = response.status;
    let reason = format!("the endpoint answered {status}");
    let (reason, retry_after) = match status {
        200..=299 => return DeliveryOutcome::Delivered,
        410 => return DeliveryOutcome::Disable { reason: format!("{reason}: it is gone") },
        300..=399 => (format!("{reason}: redirects are not followed"), None),
        429 | 503 => (reason, response.retry_after.as_deref().and_then(|value| parse_retry_after(value, now))),
        _ => (reason, None),
    };
    DeliveryOutcome::Retry { reason, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(status: u16, retry_after: Option<&str>) -> DeliveryOutcome {
        let response = Response { status, retry_after: retry_after.map(str::to_owned) };
        super::classify(&Ok(response), Timestamp::UNIX_EPOCH)
    }

    fn retry(reason: &str, seconds: Option<u64>) -> DeliveryOutcome {
        DeliveryOutcome::Retry { reason: reason.to_owned(), retry_after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn only_a_2xx_is_a_delivery() {
        for status in 100..=999 {
            let delivered = classify(status, None) == DeliveryOutcome::Delivered;
            assert_eq!(delivered, (200..300).contains(&status), "{status}");
        }
    }

    #[test]
    fn only_a_410_disables_the_endpoint() {
        for status in 100..=999 {
            assert_eq!(
                matches!(classify(status, Some("5")), DeliveryOutcome::Disable { .. }),
                status == 410,
                "{status}"
            );
        }
    }

    #[test]
    fn a_redirect_is_retried_and_the_reason_says_so() {
        assert_eq!(classify(302, Some("60")), retry("the endpoint answered 302: redirects are not followed", None));
    }

    #[test]
    fn retry_after_of_a_busy_receiver_is_honoured() {
        for status in [429, 503] {
            let reason = format!("the endpoint answered {status}");
            assert_eq!(classify(status, Some("120")), retry(&reason, Some(120)));
            assert_eq!(classify(status, Some("Thu, 01 Jan 1970 00:01:00 GMT")), retry(&reason, Some(60)));
            assert_eq!(classify(status, Some("soon")), retry(&reason, None));
            assert_eq!(classify(status, None), retry(&reason, None));
        }
        assert_eq!(classify(500, Some("120")), retry("the endpoint answered 500", None));
    }

    #[test]
    fn an_attempt_that_was_not_sent_is_retried_with_the_failure_as_reason() {
        let outcome = super::classify(&Err(SendError::Unresolved), Timestamp::UNIX_EPOCH);
        assert_eq!(outcome, retry("the host cannot be resolved, or has an address that is not public", None));
    }
}
