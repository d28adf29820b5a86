//! Kinds of values: how the text of a setting becomes a value, and how a default is written. Each says what the text
//! must be; the reader adds what it was, unless that is a secret.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use stage0_secret_file::check_secret_file;

type Parse<T> = Box<dyn Fn(&str) -> Result<T, String>>;
type Text<T> = Box<dyn Fn(&T) -> String>;

/// Reads and writes values of one kind.
pub struct Kind<T> {
    parse: Parse<T>,
    text: Text<T>,
    /// Not for a value in a file: a mistake is about the file that the text names, so the text is not shown beside it.
    pub(super) is_about_text: bool,
}

impl<T: 'static> Kind<T> {
    /// `parse` says what the text must be; `text` writes a default as an operator would.
    pub fn new(parse: impl Fn(&str) -> Result<T, String> + 'static, text: impl Fn(&T) -> String + 'static) -> Self {
        Self { parse: Box::new(parse), text: Box::new(text), is_about_text: true }
    }

    /// For settings without a default.
    pub fn parsed(parse: impl Fn(&str) -> Result<T, String> + 'static) -> Self {
        Self::new(parse, |_| String::new())
    }

    /// Reads a value.
    pub fn parse(&self, text: &str) -> Result<T, String> {
        (self.parse)(text)
    }

    /// Writes a value.
    pub fn text(&self, value: &T) -> String {
        (self.text)(value)
    }
}

/// Any text.
pub fn text() -> Kind<String> {
    Kind::new(|text| Ok(text.to_owned()), String::clone)
}

/// A path; whether it exists shows where it is used.
pub fn path() -> Kind<PathBuf> {
    Kind::parsed(|text| Ok(PathBuf::from(text)))
}

/// A file with a secret, which no other user may read. Whether it exists shows where it is used.
pub fn secret_file() -> Kind<PathBuf> {
    let parse = |text: &str| {
        let path = PathBuf::from(text);
        check_secret_file(&path).map_err(|exposed| exposed.to_string())?;
        Ok(path)
    };
    Kind { is_about_text: false, ..Kind::parsed(parse) }
}

/// Address and port.
pub fn address() -> Kind<SocketAddr> {
    Kind::new(parse_address, ToString::to_string)
}

/// Addresses with ports, separated by commas.
pub fn addresses() -> Kind<Vec<SocketAddr>> {
    Kind::parsed(|text| {
        let items = parse_list(text)?;
        items.iter().map(|item| parse_address(item).map_err(|why| format!("each {why}"))).collect()
    })
}

/// A whole number from 1 to `max`.
pub fn count<T: FromStr + Display + 'static>(max: u32) -> Kind<T> {
    between(1, max)
}

/// A whole number from `min` to `max`.
pub fn between<T: FromStr + Display + 'static>(min: u32, max: u32) -> Kind<T> {
    let parse = move |text: &str| {
        let count = text.parse().ok().filter(|count| (min..=max).contains(count));
        count.and_then(|_: u32| text.parse().ok()).ok_or_else(|| format!("must be a whole number from {min} to {max}"))
    };
    Kind::new(parse, ToString::to_string)
}

/// A limit from 1 to `max`, or 0 for none.
pub fn limit(max: u32) -> Kind<Option<NonZeroU32>> {
    let parse = move |text: &str| match text {
        "0" => Ok(None),
        text => count(max).parse(text).map(Some).map_err(|why| format!("{why}, or 0 for no limit")),
    };
    Kind::new(parse, |limit| limit.map_or(0, NonZeroU32::get).to_string())
}

/// A time in whole milliseconds, up to an hour.
pub fn milliseconds() -> Kind<Duration> {
    let parse = |text: &str| {
        let milliseconds = count(3_600_000).parse(text).map_err(|why| format!("{why} (milliseconds)"))?;
        Ok(Duration::from_millis(milliseconds))
    };
    Kind::new(parse, |time| time.as_millis().to_string())
}

/// A time in whole seconds, up to `max`.
pub fn seconds(max: u32) -> Kind<Duration> {
    Kind::new(move |text| count(max).parse(text).map(Duration::from_secs), |time| time.as_secs().to_string())
}

/// A time in seconds, fractions allowed, up to an hour.
pub fn fractional_seconds() -> Kind<Duration> {
    let parse = |text: &str| {
        let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=3600.0).contains(s));
        seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds from 0.001 to 3600".to_owned())
    };
    Kind::new(parse, |time| time.as_secs_f64().to_string())
}

/// `true` or `false`.
pub fn boolean() -> Kind<bool> {
    Kind::new(|text| text.parse().map_err(|_| "must be `true` or `false`".to_owned()), ToString::to_string)
}

/// One of a few words.
pub fn choice<T: Copy + PartialEq>(choices: &'static [(&'static str, T)]) -> Kind<T> {
    let parse = move |text: &str| {
        let found = choices.iter().find(|(word, _)| *word == text);
        let words = || choices.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(" or ");
        found.map(|(_, value)| *value).ok_or_else(|| format!("must be {}", words()))
    };
    let text = move |value: &T| {
        choices.iter().find(|(_, choice)| choice == value).map_or_else(String::new, |(word, _)| (*word).to_owned())
    };
    Kind::new(parse, text)
}

/// Items separated by commas.
pub fn list() -> Kind<Vec<String>> {
    Kind::parsed(parse_list)
}

/// A list whose items become a value together.
pub fn list_of<T: 'static>(parse: impl Fn(&[String]) -> Result<T, String> + 'static) -> Kind<T> {
    Kind::parsed(move |text| parse(&parse_list(text)?))
}

/// `/prefix` without a slash at its end.
pub fn base_path() -> Kind<String> {
    Kind::parsed(|text| {
        let segments = text.strip_prefix('/').unwrap_or_default();
        let plain =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let rule =
            "must be a path such as `/stage0`: a slash, then letters, digits, `-`, `_` or `.`, no slash at the end";
        if segments.split('/').all(plain) { Ok(text.to_owned()) } else { Err(rule.to_owned()) }
    })
}

/// An https URL without credentials, query or fragment.
pub fn https_url() -> Kind<reqwest::Url> {
    Kind::parsed(|text| stage0_contract::https_url(text).map_err(str::to_owned))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an address and a port such as 127.0.0.1:8443 or [::1]:8443".to_owned())
}

fn parse_list(text: &str) -> Result<Vec<String>, String> {
    let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    if items.iter().any(String::is_empty) { Err("must not have an empty item".to_owned()) } else { Ok(items) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_refused_with_the_range() {
        for bad in ["0", "-1", "11", "1.5", "x", " 1"] {
            let refused = count::<u32>(10).parse(bad);
            assert_eq!(refused, Err("must be a whole number from 1 to 10".to_owned()), "{bad:?}");
        }
        assert_eq!(count(10).parse("10"), Ok(10));
        assert_eq!([limit(10).parse("0"), limit(10).parse("10")], [Ok(None), Ok(NonZeroU32::new(10))]);
        assert_eq!(limit(10).parse("11"), Err("must be a whole number from 1 to 10, or 0 for no limit".to_owned()));
        assert_eq!(milliseconds().parse("2000"), Ok(Duration::from_secs(2)));
        for bad in ["NaN", "inf", "0", "-1", "3601"] {
            assert!(fractional_seconds().parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(fractional_seconds().parse("0.5"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn a_default_is_written_as_it_is_read() {
        assert_eq!(milliseconds().text(&Duration::from_secs(2)), "2000");
        assert_eq!(fractional_seconds().text(&Duration::from_secs(5)), "5");
        assert_eq!(seconds(9).text(&Duration::from_secs(5)), "5");
        assert_eq!([limit(9).text(&None), limit(9).text(&NonZeroU32::new(9))], ["0", "9"]);
        let word = choice(&[("on", true), ("off", false)]);
        assert_eq!((word.text(&false), word.parse("off")), ("off".to_owned(), Ok(false)));
        assert_eq!(word.parse("x"), Err("must be `on` or `off`".to_owned()));
    }

    #[test]
    fn a_base_path_has_no_slash_at_its_end() {
        for bad in ["", "/", "x", "/x/", "//x", "/x y", "/x?"] {
            assert!(base_path().parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(base_path().parse("/a/b-1"), Ok("/a/b-1".to_owned()));
    }

    #[test]
    fn a_list_has_no_empty_items() {
        assert_eq!(list().parse("a, b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(list().parse("a,,b").is_err());
    }
}
