//! How the text of a setting becomes a value. Each says what it must be; the reader adds what it was, unless that is a secret.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

type Parsed<T> = Result<T, String>;

/// Any text.
pub(crate) fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// A path; whether it exists is seen where it is used.
pub(crate) fn path(text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

/// Address and port.
pub(crate) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "must be an address and a port such as 127.0.0.1:8443 or [::1]:8443".to_owned())
}

/// Addresses and ports, separated by commas.
pub(crate) fn addresses(text: &str) -> Parsed<Vec<SocketAddr>> {
    list(text)?.iter().map(|item| address(item).map_err(|why| format!("each {why}"))).collect()
}

/// A count from 1 to `most`.
pub(crate) fn count(most: u32) -> impl FnOnce(&str) -> Parsed<u32> {
    move |text| {
        let count = text.parse().ok().filter(|n| (1..=most).contains(n));
        count.ok_or_else(|| format!("must be a whole number from 1 to {most}"))
    }
}

/// A count from 1 to `most`, or 0 for none.
pub(crate) fn count_or_off(most: u32) -> impl FnOnce(&str) -> Parsed<u32> {
    move |text| match text {
        "0" => Ok(0),
        text => count(most)(text).map_err(|why| format!("{why}, or 0 for no limit")),
    }
}

/// A time in whole milliseconds, up to an hour.
pub(crate) fn milliseconds(text: &str) -> Parsed<Duration> {
    count(3_600_000)(text).map(|ms| Duration::from_millis(ms.into())).map_err(|why| format!("{why} (milliseconds)"))
}

/// A time in seconds, fractions allowed, up to an hour.
pub(crate) fn seconds(text: &str) -> Parsed<Duration> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=3600.0).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds from 0.001 to 3600".to_owned())
}

/// Yes or no.
pub(crate) fn boolean(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "must be `true` or `false`".to_owned())
}

/// Items separated by commas.
pub(crate) fn list(text: &str) -> Parsed<Vec<String>> {
    let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    if items.iter().any(String::is_empty) { Err("must not have an empty item".to_owned()) } else { Ok(items) }
}

/// `/prefix` without a slash at its end.
pub(crate) fn base_path(text: &str) -> Parsed<String> {
    let segments = text.strip_prefix('/').unwrap_or_default();
    let plain =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if segments.split('/').all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be a path such as `/stage0`: a slash, then letters, digits, `-`, `_` or `.`, no slash at the end"
            .to_owned())
    }
}

/// An https URL without anything that does not belong into a base.
pub(crate) fn https_url(text: &str) -> Parsed<reqwest::Url> {
    let usable = |url: &reqwest::Url| {
        url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let url = text.parse::<reqwest::Url>().ok().filter(usable);
    url.ok_or_else(|| "must be an https URL such as https://localhost:8443".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_refused_with_the_range() {
        for bad in ["0", "-1", "11", "1.5", "x", " 1"] {
            assert_eq!(count(10)(bad), Err("must be a whole number from 1 to 10".to_owned()), "{bad:?}");
        }
        assert_eq!(count(10)("10"), Ok(10));
        assert_eq!([count_or_off(10)("0"), count_or_off(10)("10")], [Ok(0), Ok(10)]);
        assert_eq!(count_or_off(10)("11"), Err("must be a whole number from 1 to 10, or 0 for no limit".to_owned()));
        assert_eq!(milliseconds("2000"), Ok(Duration::from_secs(2)));
        for bad in ["NaN", "inf", "0", "-1", "3601"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn only_https_urls_name_a_server() {
        for bad in
            ["http://localhost", "localhost:8443", "https://user:pw@h", "https://h/?q", "https://h/#f", "https://"]
        {
            assert!(https_url(bad).is_err(), "{bad:?}");
        }
        assert!(https_url("https://localhost:8443/base/").is_ok());
    }

    #[test]
    fn a_base_path_has_no_slash_at_its_end() {
        for bad in ["", "/", "x", "/x/", "//x", "/x y", "/x?"] {
            assert!(base_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(base_path("/a/b-1"), Ok("/a/b-1".to_owned()));
    }

    #[test]
    fn a_list_has_no_holes() {
        assert_eq!(list("a, b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(list("a,,b").is_err());
    }
}
