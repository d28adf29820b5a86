//! Webhook URLs: one that is taken is https, holds no credentials, and if its host is an address, that one is global.
//!
//! Whether an address may be connected to is compared with what the standard library says of it. A host that is a name
//! is no address in any spelling that a resolver could know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use stage0_audit_export::fuzz_support::refuse;
use stage0_contract::{Host, MAX_URL_CHARS, WebhookUrl};

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("webhook_url", check);

fn check(input: &[u8]) -> bool {
    addresses_in(input);
    let text = text(input);
    let strict = WebhookUrl::parse(&text, false);
    for (url, is_dangerous) in [(&strict, false), (&WebhookUrl::parse(&text, true), true)] {
        if let Ok(url) = url {
            is_acceptable(url, is_dangerous);
        }
    }
    strict.is_ok()
}

fn is_acceptable(url: &WebhookUrl, is_dangerous: bool) {
    let shown = url.as_str();
    assert!(shown.starts_with("https://") || (is_dangerous && shown.starts_with("http://")), "{shown}");
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "{shown}");
    assert!(url.url().username().is_empty() && url.url().password().is_none(), "{shown}");
    assert!(url.url().fragment().is_none(), "{shown}");
    // Escapes make a long one longer than it may be.
    if shown.chars().count() <= MAX_URL_CHARS {
        assert_eq!(WebhookUrl::parse(shown, is_dangerous).as_ref(), Ok(url), "the stored form is another URL");
    }
    match url.host() {
        Host::Address(address) => is_judged(*address),
        Host::Name(name) => {
            assert!(!name.is_empty() && name.parse::<IpAddr>().is_err(), "{shown}");
            let last = name.strip_suffix('.').unwrap_or(name).rsplit('.').next().unwrap_or_default();
            let is_hex = last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            let is_number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
            assert!(!is_hex && !is_number, "{shown} is an address to some resolvers");
        }
    }
}

/// The first bytes of an input as addresses.
fn addresses_in(input: &[u8]) {
    if let Some(octets) = input.first_chunk::<4>() {
        is_judged(Ipv4Addr::from(*octets).into());
    }
    if let Some(octets) = input.first_chunk::<16>() {
        is_judged(Ipv6Addr::from(*octets).into());
    }
}

fn is_judged(address: IpAddr) {
    if refuse(address).is_some() {
        return;
    }
    let is_special = match address {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_broadcast()
                || ip.is_documentation()
                || ip.is_unspecified()
                || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            let [first, second, ..] = ip.segments();
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.to_ipv4().is_some()
                || first == 0x2002
                || (first, second) == (0x64, 0xff9b)
        }
    };
    assert!(!is_special, "{address} may be connected to");
}
