//! Times as people type them: RFC 3339, or how long ago, or how long from now.
//!
//! The current time is an argument and the same for both ends of a period.

use jiff::{SignedDuration, Timestamp};

/// A hundred years, so that a relative time cannot overflow.
const MAX_SECONDS: i64 = 100 * 366 * 86_400;
const EXPECTED: &str =
    "must be a time such as 2026-01-31T12:00:00Z (RFC 3339), or how long ago: -30s, -15m, -1h, -7d, -2w";
const EXPECTED_AHEAD: &str =
    "must be a time such as 2026-12-24T08:00:00Z (RFC 3339), or how long from now: 30m, 8h, 3d, 2w";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    At(Timestamp),
    /// A time before the command started.
    Ago(SignedDuration),
}

impl When {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let read = match text.strip_prefix('-') {
            Some(ago) => length(ago).map(Self::Ago),
            None => text.parse().ok().map(Self::At),
        };
        read.ok_or_else(|| EXPECTED.to_owned())
    }

    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(length) => now.checked_sub(length).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }
}

/// A time ahead of us, as people type it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    At(Timestamp),
    /// A time after the command started.
    In(SignedDuration),
}

impl Ahead {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let read = match length(text).filter(SignedDuration::is_positive) {
            Some(length) => Some(Self::In(length)),
            None => text.parse().ok().map(Self::At),
        };
        read.ok_or_else(|| EXPECTED_AHEAD.to_owned())
    }

    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            // The server takes whole seconds as well as parts of them; whole ones are easier to read.
            Self::In(length) => {
                let at = now.checked_add(length).unwrap_or(Timestamp::MAX);
                Timestamp::from_second(at.as_second()).unwrap_or(at)
            }
        }
    }
}

/// A length of time such as `30s`, `15m`, `1h`, `7d` or `2w`.
pub(crate) fn length(text: &str) -> Option<SignedDuration> {
    let unit = text.chars().next_back()?;
    let number = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let seconds = number.parse::<i64>().ok()?.checked_mul(seconds).filter(|seconds| *seconds <= MAX_SECONDS)?;
    Some(SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_time_is_counted_back_from_the_clock() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, at) in [
            ("-30s", "2026-01-31T11:59:30Z"),
            ("-15m", "2026-01-31T11:45:00Z"),
            ("-1h", "2026-01-31T11:00:00Z"),
            ("-7d", "2026-01-24T12:00:00Z"),
            ("-2w", "2026-01-17T12:00:00Z"),
            ("-0s", "2026-01-31T12:00:00Z"),
            ("2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00Z"),
        ] {
            assert_eq!(When::parse(text).unwrap().at(now).to_string(), at, "{text}");
        }
    }

    #[test]
    fn a_malformed_time_is_refused_with_both_forms() {
        for bad in ["", "-", "-h", "-1", "1h", "-1y", "--1h", "-+1h", "-1.5h", "yesterday", "2026-01-31", "-99999999w"]
        {
            let why = When::parse(bad).unwrap_err();
            assert!(why.contains("RFC 3339") && why.contains("-1h"), "{bad}: {why}");
        }
    }

    #[test]
    fn a_time_ahead_is_counted_from_the_clock() {
        let now: Timestamp = "2026-01-31T12:00:00.25Z".parse().unwrap();
        for (text, at) in [
            ("30m", "2026-01-31T12:30:00Z"),
            ("8h", "2026-01-31T20:00:00Z"),
            ("3d", "2026-02-03T12:00:00Z"),
            ("2026-12-24T08:00:00Z", "2026-12-24T08:00:00Z"),
        ] {
            assert_eq!(Ahead::parse(text).unwrap().at(now).to_string(), at, "{text}");
        }
        for bad in ["", "h", "-1h", "0h", "8", "tomorrow", "99999999w"] {
            let why = Ahead::parse(bad).unwrap_err();
            assert!(why.contains("RFC 3339") && why.contains("8h"), "{bad}: {why}");
        }
    }
}
