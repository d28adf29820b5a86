//! The retry schedule, and the delay that a receiver asks for in `Retry-After`.
//!
//! The cursor dead-letters an event that has no attempt left.
//! INVARIANT: no delay is longer than [`MAX_RETRY_DELAY`], whatever a receiver asks for.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// A day.
pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 3600);

/// After the first attempt, after the second, and so on: 27.6 hours for eight attempts, the schedule that Svix made
/// customary (<https://docs.svix.com/retries>). An outage of a day loses nothing; a hiccup costs seconds.
const DELAYS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(10 * 3600),
];

/// Up to a fifth in either direction, so that receivers that failed together are not retried together.
const JITTER: f64 = 0.2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextAttempt {
    After(Duration),
    Exhausted,
}

/// What follows the failed attempt number `attempt`, counted from 1. `random` is uniform in 0 to 1. The delay is at
/// least `retry_after`, up to [`MAX_RETRY_DELAY`]; a long `retry_after` adds no attempt.
pub(crate) fn next_attempt(attempt: u32, retry_after: Option<Duration>, random: f64) -> NextAttempt {
    let failed = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let Some(delay) = DELAYS.get(failed) else { return NextAttempt::Exhausted };
    // `mul_f64` panics on NaN.
    let random = if random.is_nan() { 0.5 } else { random.clamp(0.0, 1.0) };
    let jittered = delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * random);
    NextAttempt::After(jittered.max(retry_after.unwrap_or_default()).min(MAX_RETRY_DELAY))
}

/// Reads the value of a `Retry-After` header: seconds, or a date, of which one in the past gives no delay. Source: RFC
/// 9110, section 10.2.3. Of its three date formats only the one that senders must use is read.
pub(crate) fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim_matches([' ', '\t']);
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean a very long delay.
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let until = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The delays of an event that fails every time.
    fn delays(random: f64) -> Vec<Duration> {
        let after = |attempt| match next_attempt(attempt, None, random) {
            NextAttempt::After(delay) => Some(delay),
            NextAttempt::Exhausted => None,
        };
        (1..).map_while(after).collect()
    }

    #[test]
    fn an_event_is_tried_eight_times_over_about_28_hours_and_then_is_exhausted() {
        let middle = delays(0.5);
        assert_eq!(middle, DELAYS);
        let total: Duration = middle.iter().sum();
        assert!(total > 27 * HOUR && total < 28 * HOUR, "{total:?}");
        assert_eq!(next_attempt(8, None, 0.5), NextAttempt::Exhausted);
        assert_eq!(next_attempt(u32::MAX, Some(HOUR), 0.5), NextAttempt::Exhausted);
    }

    #[test]
    fn an_attempt_zero_counts_as_the_first() {
        assert_eq!(next_attempt(0, None, 0.5), next_attempt(1, None, 0.5));
    }

    #[test]
    fn jitter_changes_a_delay_by_a_fifth_at_most() {
        for (delay, (least, most)) in DELAYS.into_iter().zip(delays(0.0).into_iter().zip(delays(1.0))) {
            assert_eq!((least, most), (delay * 4 / 5, delay * 6 / 5));
        }
        assert_eq!(next_attempt(2, None, 0.25), NextAttempt::After(Duration::from_secs(270)));
    }

    #[test]
    fn a_random_value_out_of_range_is_clamped() {
        for (wild, like) in [(-1.0, 0.0), (2.0, 1.0), (f64::INFINITY, 1.0), (f64::NEG_INFINITY, 0.0), (f64::NAN, 0.5)] {
            assert_eq!(next_attempt(1, None, wild), next_attempt(1, None, like), "{wild}");
        }
    }

    #[test]
    fn retry_after_lengthens_a_delay_up_to_a_day() {
        assert_eq!(next_attempt(1, Some(HOUR), 0.5), NextAttempt::After(HOUR));
        assert_eq!(next_attempt(1, Some(Duration::from_secs(1)), 0.5), NextAttempt::After(Duration::from_secs(5)));
        assert_eq!(next_attempt(7, Some(HOUR), 1.0), NextAttempt::After(12 * HOUR));
        assert_eq!(next_attempt(1, Some(25 * HOUR), 0.5), NextAttempt::After(MAX_RETRY_DELAY));
        assert_eq!(next_attempt(1, Some(Duration::MAX), 0.5), NextAttempt::After(MAX_RETRY_DELAY));
        assert_eq!(next_attempt(8, Some(HOUR), 0.5), NextAttempt::Exhausted);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:48:37Z".parse().unwrap();
        let cases = [
            ("0", Some(0)),
            ("120", Some(120)),
            ("\t120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1e3", None),
            ("120 seconds", None),
            ("soon", None),
            ("Sun, 31 Nov 1994 08:49:37 GMT", None),
            ("１２０", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(parse_retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(parse_retry_after(&"9".repeat(40), now), Some(Duration::MAX));
    }
}
