//! Whole numbers as people type them, refused with the range that they must be in.

use std::fmt::Display;
use std::str::FromStr;

/// A whole number from `min` to `max`.
pub(crate) fn whole<T>(min: T, max: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Copy,
{
    move |text| {
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("must be a whole number from {min} to {max}"))
    }
}

/// A whole number that is not less than `min`.
pub(crate) fn at_least<T>(min: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Copy,
{
    move |text| {
        let number = text.parse().ok().filter(|number| *number >= min);
        number.ok_or_else(|| format!("must be a whole number of at least {min}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_refused_with_its_range() {
        for text in ["1", "20", "100"] {
            assert_eq!(whole(1u8, 100)(text), Ok(text.parse().unwrap()));
        }
        for text in ["", "0", "101", "300", "20%", "12.5", "-1", "ten"] {
            assert_eq!(whole(1u8, 100)(text), Err("must be a whole number from 1 to 100".to_owned()), "{text}");
        }
        assert_eq!(at_least(1u32)("1"), Ok(1));
        assert_eq!(at_least(1u32)("0"), Err("must be a whole number of at least 1".to_owned()));
    }
}
