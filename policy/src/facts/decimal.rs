//! Decimals with at most four places, exactly as Cedar's `decimal` holds them.
//!
//! INVARIANT: a number that would have to be rounded is none; a rule never compares with another amount than was sent.

use std::fmt;

use serde_json::Number;

/// Places after the point.
const PLACES: usize = 4;
const UNIT: i64 = 10_000;
/// From here on a JSON number with a fraction may have been rounded when it was read: 2^53 ten-thousandths.
const MAX_EXACT: f64 = 900_719_925_474.0;

/// A number of ten-thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Decimal(i64);

impl Decimal {
    /// Reads `12`, `-0.5` or `19.99`; `None` for more than four places and for what is no decimal.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(fraction) || fraction.len() > PLACES {
            return None;
        }
        let places = format!("{fraction:0<PLACES$}").parse::<i128>().ok()?;
        let units = whole.parse::<i128>().ok()?.checked_mul(UNIT.into())?.checked_add(places)?;
        i64::try_from(if is_negative { -units } else { units }).ok().map(Self)
    }

    /// A JSON number. One with a fraction must be small enough that reading it cannot have rounded it; a larger one is
    /// sent as a text.
    pub(crate) fn of_number(number: &Number) -> Option<Self> {
        if number.is_i64() || number.is_u64() {
            return Self::parse(&number.to_string());
        }
        let float = number.as_f64().filter(|float| float.abs() < MAX_EXACT)?;
        // Rust prints the shortest decimal that reads back as the same float: `2.34` stays 2.34, exactly.
        Self::parse(&format!("{float}"))
    }
}

impl fmt::Display for Decimal {
    /// With one to four places, as Cedar writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let unit = UNIT.unsigned_abs();
        let (whole, fraction) = (self.0.unsigned_abs() / unit, self.0.unsigned_abs() % unit);
        let places = format!("{fraction:0PLACES$}");
        let places = places.trim_end_matches('0');
        write!(f, "{sign}{whole}.{}", if places.is_empty() { "0" } else { places })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_json(json: &str) -> Option<String> {
        Decimal::of_number(&serde_json::from_str(json).unwrap()).map(|decimal| decimal.to_string())
    }

    #[test]
    fn a_decimal_is_kept_exactly() {
        for (text, kept) in [
            ("12", "12.0"),
            ("19.99", "19.99"),
            ("-0.5", "-0.5"),
            ("0.0001", "0.0001"),
            ("007.10", "7.1"),
            ("922337203685477.5807", "922337203685477.5807"),
            ("-922337203685477.5808", "-922337203685477.5808"),
        ] {
            assert_eq!(Decimal::parse(text).unwrap().to_string(), kept);
        }
        for (json, kept) in [("19.99", "19.99"), ("500", "500.0"), ("5e2", "500.0"), ("-0.25", "-0.25"), ("0.1", "0.1")]
        {
            assert_eq!(of_json(json).as_deref(), Some(kept), "{json}");
        }
    }

    #[test]
    fn what_would_have_to_be_rounded_is_no_decimal() {
        for text in ["0.12345", "922337203685477.5808", "", "1.", ".5", "1e3", "+1", "1,5", "1.2.3", "--1", "NaN", "١"]
        {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
        for json in ["0.12345", "900719925474.5", "1e15", "18446744073709551615"] {
            assert_eq!(of_json(json), None, "{json}");
        }
        assert!(of_json("900719925473.5").is_some());
    }

    proptest! {
        #[test]
        fn a_decimal_that_is_written_reads_as_itself(units in any::<i64>()) {
            prop_assert_eq!(Decimal::parse(&Decimal(units).to_string()), Some(Decimal(units)));
        }
    }
}
