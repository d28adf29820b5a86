//! Who may talk to the guard over HTTP: no web page that a browser shows, unless it was named.
//!
//! A page can make a browser send requests to this machine. `Origin` says which page; `Host` says by which name the
//! browser came, so that a name that was made to point here is noticed.

use std::net::IpAddr;

use url::{Host, Url};

/// The names under which the guard answers, and the pages that may use it.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed {
    /// Origins as browsers write them, such as `https://inspector.example`.
    pub(super) origins: Vec<String>,
    /// Further names of this machine.
    pub(super) hosts: Vec<String>,
    pub(super) listen: Option<IpAddr>,
}

impl Allowed {
    /// Whether a request with these headers is answered. `Err`: the text of the refusal.
    pub(super) fn check(&self, host: Option<&str>, origin: Option<&str>) -> Result<(), &'static str> {
        if !host.is_some_and(|host| self.is_own(host)) {
            return Err("the `Host` is not a name of this guard");
        }
        match origin {
            None => Ok(()),
            Some(origin) if self.origins.iter().any(|own| own == origin) || is_loopback_origin(origin) => Ok(()),
            Some(_) => Err("the `Origin` is not allowed to use this guard"),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let Ok(url) = Url::parse(&format!("http://{host}/")) else { return false };
        let is_bare = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        is_bare
            && url.host().is_some_and(|host| {
                is_loopback(&host)
                    || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(&host.to_string()))
                    || self.listen.is_some_and(|own| ip(&host) == Some(own))
            })
    }
}

fn is_loopback_origin(origin: &str) -> bool {
    let Ok(url) = Url::parse(origin) else { return false };
    matches!(url.scheme(), "http" | "https") && url.host().is_some_and(|host| is_loopback(&host))
}

/// A name or an address that only this machine can have.
pub(super) fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(_) | Host::Ipv6(_) => ip(host).is_some_and(|address| address.is_loopback()),
    }
}

fn ip(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let allowed = Allowed { hosts: vec!["guard.lan".to_owned()], ..Allowed::default() };
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:9", "LOCALHOST:1", "guard.lan:8080"] {
            assert_eq!(allowed.check(Some(host), None), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "localhost@evil.example", "", "10.0.0.1"]
        {
            assert!(allowed.check(Some(host), None).is_err(), "{host}");
        }
        assert!(allowed.check(None, None).is_err());
        let listens = Allowed { listen: Some("10.0.0.1".parse().unwrap()), ..Allowed::default() };
        assert_eq!(listens.check(Some("10.0.0.1:80"), None), Ok(()));
    }

    #[test]
    fn a_page_of_elsewhere_is_refused() {
        let allowed = Allowed { origins: vec!["https://inspector.example".to_owned()], ..Allowed::default() };
        for origin in ["http://localhost:6274", "http://127.0.0.1", "https://inspector.example"] {
            assert_eq!(allowed.check(Some("localhost"), Some(origin)), Ok(()), "{origin}");
        }
        for origin in
            ["https://evil.example", "null", "", "http://localhost.evil.example", "https://inspector.example:8"]
        {
            assert!(allowed.check(Some("localhost"), Some(origin)).is_err(), "{origin}");
        }
    }
}
