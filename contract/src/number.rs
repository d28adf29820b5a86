//! Exact numbers: money in micro-dollars and seconds in microseconds, as whole `i64`s. No floats in a decision.
//!
//! INVARIANT: a number that does not fit is an error, never rounded into range.

use serde_json::Number;

/// The largest estimate, cost or limit that a request may name, in whole US dollars.
pub const MAX_USD: i64 = 1_000_000_000;

/// Millionths of a unit (a dollar, a second); never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(i64);

/// Why a text or JSON number cannot be used as a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// Not decimal digits with an optional fraction.
    #[error("is not a number")]
    NotANumber,
    /// Negative, or too large to be kept exactly.
    #[error("is out of range")]
    OutOfRange,
}

impl Micros {
    pub(crate) const UNIT: i64 = 1_000_000;

    /// Reads `12`, `12.5` or `0.000001`. Digits past the sixth are cut for a limit (`round_up` false) and round
    /// evidence up, so that rounding never allows more.
    pub fn parse(text: &str, round_up: bool) -> Result<Self, NumberError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(NumberError::NotANumber);
        }
        let whole: i64 = whole.parse().map_err(|_| NumberError::OutOfRange)?;
        let (kept, rest) = fraction.split_at(fraction.len().min(6));
        let mut micros: i64 = kept.parse().map_err(|_| NumberError::NotANumber)?;
        for _ in kept.len()..6 {
            micros *= 10;
        }
        if round_up && rest.bytes().any(|b| b != b'0') {
            micros += 1;
        }
        whole.checked_mul(Self::UNIT).and_then(|w| w.checked_add(micros)).map(Self).ok_or(NumberError::OutOfRange)
    }

    /// Evidence from a request: finite, not negative, at most about 9.2 · 10¹² units; rounded up.
    pub fn from_evidence(number: &Number) -> Result<Self, NumberError> {
        if let Some(whole) = number.as_i64() {
            return whole.checked_mul(Self::UNIT).ok_or(NumberError::OutOfRange).and_then(Self::from_micros);
        }
        match number.as_f64() {
            Some(float) if (0.0..9.0e12).contains(&float) => {
                // Rust prints the shortest decimal that reads back as the same float: `2.34` stays 2.34, exactly.
                // Adding zero drops the sign of a negative zero.
                Self::parse(&format!("{}", float + 0.0), true)
            }
            _ => Err(NumberError::OutOfRange),
        }
    }

    /// An amount of US dollars from a request, as [`Self::from_evidence`]: at most [`MAX_USD`].
    pub fn usd(number: &Number) -> Result<Self, NumberError> {
        Self::from_evidence(number)?.at_most_usd()
    }

    /// The amount, if it is at most [`MAX_USD`].
    pub fn at_most_usd(self) -> Result<Self, NumberError> {
        if self.0 <= MAX_USD * Self::UNIT { Ok(self) } else { Err(NumberError::OutOfRange) }
    }

    /// A quantity of whole millionths.
    pub fn from_micros(micros: i64) -> Result<Self, NumberError> {
        if micros < 0 { Err(NumberError::OutOfRange) } else { Ok(Self(micros)) }
    }

    /// The number of millionths.
    pub fn get(self) -> i64 {
        self.0
    }

    /// As a decimal without needless zeros: `2.34`.
    pub fn to_decimal(self) -> String {
        decimal(self.0)
    }
}

/// Millionths as a decimal without needless zeros.
pub(crate) fn decimal(micros: i64) -> String {
    let (whole, fraction) = (micros / Micros::UNIT, micros % Micros::UNIT);
    if fraction == 0 {
        return whole.to_string();
    }
    format!("{whole}.{fraction:06}").trim_end_matches('0').to_owned()
}

/// A whole number as decimal text. `7.0` becomes `7`, because some clients write whole numbers that way.
pub fn whole_text(number: &Number) -> Option<String> {
    if number.is_i64() || number.is_u64() {
        return Some(number.to_string());
    }
    /// Above 2^53 a double can no longer represent every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < EXACT)?;
    // Adding zero drops the sign of a negative zero.
    Some(format!("{:.0}", float + 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_round_down_and_evidence_up() {
        assert_eq!(Micros::parse("2.0000009", false).unwrap().get(), 2_000_000);
        assert_eq!(Micros::parse("2.0000009", true).unwrap().get(), 2_000_001);
        assert_eq!(Micros::parse("2.5", false).unwrap().to_decimal(), "2.5");
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for bad in ["", "-1", "+1", "1e3", "1.", ".5", "1.2.3", "inf", "NaN", "0x1", "1_000", "١"] {
            assert_eq!(Micros::parse(bad, false), Err(NumberError::NotANumber), "{bad:?}");
        }
        assert_eq!(Micros::parse("99999999999999999999", false), Err(NumberError::OutOfRange));
        assert_eq!(Micros::parse("9223372036854", false).map(Micros::get), Ok(9_223_372_036_854_000_000));
        assert_eq!(Micros::parse("9223372036855", false), Err(NumberError::OutOfRange));
    }

    #[test]
    fn an_amount_is_at_most_a_billion_dollars() {
        let usd = |json: &str| Micros::usd(&serde_json::from_str::<Number>(json).unwrap()).map(Micros::get);
        assert_eq!(usd("1000000000"), Ok(1_000_000_000_000_000));
        assert_eq!(usd("0.000001"), Ok(1));
        for bad in ["1000000000.000001", "1000000001", "1e12", "-1"] {
            assert_eq!(usd(bad), Err(NumberError::OutOfRange), "{bad}");
        }
    }

    #[test]
    fn json_numbers_are_read_exactly_or_not_at_all() {
        let read = |json: &str| Micros::from_evidence(&serde_json::from_str::<Number>(json).unwrap()).map(Micros::get);
        assert_eq!(read("2.34"), Ok(2_340_000));
        assert_eq!(read("0"), Ok(0));
        assert_eq!((read("-0"), read("-0.0")), (Ok(0), Ok(0)));
        assert_eq!(read("1e-9"), Ok(1));
        assert_eq!(read("2.01"), Ok(2_010_000));
        for bad in ["-1", "-0.5", "1e300", "18446744073709551615", "9223372036855"] {
            assert_eq!(read(bad), Err(NumberError::OutOfRange), "{bad}");
        }
    }
}
