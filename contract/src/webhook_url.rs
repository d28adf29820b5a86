//! The URL of a webhook endpoint: the checks that need only its text.
//!
//! Does not resolve names or check addresses: DNS changes, so the exporter's egress does that at every attempt. A path
//! may be a secret, so `Debug` and `Display` show only scheme, host and port.
//! INVARIANT: the parsed form is what is checked, stored and connected to; in it every spelling of an IPv4 address has
//! become that address.

use std::fmt;
use std::net::IpAddr;

use url::Url;

/// The longest URL, in characters as they were written.
pub const MAX_URL_CHARS: usize = 2000;

/// Where an endpoint's events go.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WebhookUrl {
    url: Url,
    host: Host,
}

/// The host part of a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name in lower case, with international names in their ASCII form.
    Name(String),
    /// An IP address, however it was spelt.
    Address(IpAddr),
}

/// Why events cannot be sent to a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum WebhookUrlError {
    #[error("must have at most {MAX_URL_CHARS} characters")]
    TooLong,
    /// White space or control characters, which a URL parser would silently drop.
    #[error("must be an absolute URL without white space")]
    NotAUrl,
    #[error("must begin with `https://`")]
    NotHttps,
    /// Credentials, which would be sent, stored and logged.
    #[error("must not hold a user name or a password")]
    Credentials,
    /// A fragment, which is never sent.
    #[error("must not have a fragment (`#…`)")]
    Fragment,
}

impl WebhookUrl {
    /// Parses a URL. With `dangerous_allow_private` plain http is accepted; the egress then sends only to local
    /// addresses.
    pub fn parse(text: &str, dangerous_allow_private: bool) -> Result<Self, WebhookUrlError> {
        if text.chars().count() > MAX_URL_CHARS {
            return Err(WebhookUrlError::TooLong);
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(WebhookUrlError::NotAUrl);
        }
        let url = Url::parse(text).map_err(|_| WebhookUrlError::NotAUrl)?;
        if url.scheme() != "https" && !(dangerous_allow_private && url.scheme() == "http") {
            return Err(WebhookUrlError::NotHttps);
        }
        // The parser would take `https:///host` and `https:host` for `https://host`.
        if text.split_once("://").is_none_or(|(_, rest)| rest.starts_with(['/', '\\'])) {
            return Err(WebhookUrlError::NotAUrl);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebhookUrlError::Credentials);
        }
        if url.fragment().is_some() {
            return Err(WebhookUrlError::Fragment);
        }
        let host = Host::of(&url).ok_or(WebhookUrlError::NotAUrl)?;
        Ok(Self { url, host })
    }

    /// The whole URL, for storage and for its owner.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// The host to connect to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, explicit or the scheme's default.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(if self.is_plain() { 80 } else { 443 })
    }

    /// Whether it is http.
    pub fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// The `url` crate's form, for the HTTP client.
    pub fn url(&self) -> &Url {
        &self.url
    }
}

impl Host {
    /// `Url::host` has a type of a crate that is not ours to name; its text is as clear: brackets mean IPv6, and in a
    /// special scheme a host that ends in a number is an IPv4 address or no host at all.
    fn of(url: &Url) -> Option<Self> {
        let text = url.host_str().filter(|host| !host.is_empty())?;
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        Some(bare.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address))
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url.origin().ascii_serialization())
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookUrl({self}/…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(text: &str) -> Result<WebhookUrl, WebhookUrlError> {
        WebhookUrl::parse(text, false)
    }

    #[test]
    fn an_https_url_is_kept_with_its_host_and_port() {
        let url = strict("https://Hooks.Example.com/in/secret?x=1").unwrap();
        assert_eq!(url.as_str(), "https://hooks.example.com/in/secret?x=1");
        assert_eq!((url.host(), url.port()), (&Host::Name("hooks.example.com".to_owned()), 443));
        assert_eq!(strict("https://h:8443").unwrap().port(), 8443);
        assert_eq!(strict("https://bücher.example").unwrap().host(), &Host::Name("xn--bcher-kva.example".to_owned()));
    }

    #[test]
    fn what_breaks_a_rule_is_refused_for_that_rule() {
        use WebhookUrlError::{Credentials, Fragment, NotAUrl, NotHttps};
        let cases = [
            ("http://h/", NotHttps),
            ("ftp://h/", NotHttps),
            ("file:///etc/passwd", NotHttps),
            ("gopher://h/", NotHttps),
            ("data:,x", NotHttps),
            ("https://user@h/", Credentials),
            ("https://:password@h/", Credentials),
            ("https://user:password@h/", Credentials),
            ("https://h/#part", Fragment),
            ("https://h/#", Fragment),
            ("", NotAUrl),
            ("h", NotAUrl),
            ("/path", NotAUrl),
            ("//h/", NotAUrl),
            ("https://", NotAUrl),
            ("https://:443/", NotAUrl),
            ("https://h:65536/", NotAUrl),
            ("https://h:x/", NotAUrl),
            ("https://[::1/", NotAUrl),
            ("https://[fe80::1%25eth0]/", NotAUrl),
            ("https://256.1.1.1/", NotAUrl),
            ("https://1.2.3.4.5/", NotAUrl),
            (" https://h/", NotAUrl),
            ("https://h/\n", NotAUrl),
            ("https://h\t/", NotAUrl),
            ("ht\ntps://h/", NotAUrl),
            ("https://h/\u{a0}", NotAUrl),
            ("https://h/\0", NotAUrl),
        ];
        for (text, error) in cases {
            assert_eq!(strict(text).err(), Some(error), "{text:?}");
        }
    }

    #[test]
    fn plain_http_is_read_in_the_dangerous_mode_alone() {
        let url = WebhookUrl::parse("http://h/", true).unwrap();
        assert!(url.is_plain());
        assert_eq!(url.port(), 80);
        assert!(!WebhookUrl::parse("https://h/", true).unwrap().is_plain());
        assert_eq!(WebhookUrl::parse("ftp://h/", true), Err(WebhookUrlError::NotHttps));
    }

    #[test]
    fn a_url_has_at_most_2000_characters() {
        let of = |count: usize| format!("https://h/{}", "é".repeat(count - "https://h/".len()));
        assert!(strict(&of(2000)).is_ok());
        assert_eq!(strict(&of(2001)).err(), Some(WebhookUrlError::TooLong));
    }

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        let loopback = [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0X7F.0.0.0x1",
            "017700000001",
            "0177.0.0.01",
            "%31%32%37.0.0.1",
            "１２７.０.０.１",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
        ];
        for spelling in loopback {
            let url = strict(&format!("https://{spelling}/")).unwrap();
            assert_eq!(url.host(), &Host::Address("127.0.0.1".parse().unwrap()), "{spelling}");
            assert_eq!(url.as_str(), "https://127.0.0.1/", "{spelling}");
        }
        for (spelling, address) in [
            ("[::1]", "::1"),
            ("[0:0::0:1]", "::1"),
            ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
            ("[::FFFF:7f00:1]", "::ffff:127.0.0.1"),
            ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1"),
        ] {
            let url = strict(&format!("https://{spelling}/")).unwrap();
            assert_eq!(url.host(), &Host::Address(address.parse().unwrap()), "{spelling}");
        }
    }

    #[test]
    fn neither_debug_nor_display_shows_the_path() {
        let url = strict("https://h:8443/services/T0/secret?token=x").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://h:8443 WebhookUrl(https://h:8443/…)");
    }

    #[test]
    fn no_host_is_made_of_a_path() {
        for bad in ["https:///x", "https:x.example", "https:/x.example", "https://\\x.example"] {
            assert_eq!(WebhookUrl::parse(bad, false).unwrap_err(), WebhookUrlError::NotAUrl, "{bad}");
        }
        assert!(WebhookUrl::parse("https://x.example//y", false).is_ok());
    }
}
