//! The client's address of a request: the peer's, or the one that a trusted proxy reports.
//!
//! `Forwarded` (RFC 7239) and `X-Forwarded-For` count only if the peer is a trusted proxy. They are read from the
//! right: the nearest proxy wrote the last element, and what a client put before it does not change how it is read.
//! INVARIANT: no client can choose the address that it is counted under. If headers are malformed or contradict each
//! other, the last trusted proxy counts in its client's place.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use actix_web::http::header::{FORWARDED, HeaderMap, X_FORWARDED_FOR};
use actix_web::{HttpMessage, HttpRequest};
use ipnet::{IpNet, Ipv4Net};

/// In one kind of header, like the bytes.
const MAX_HOPS: usize = 50;
const MAX_BYTES: usize = 8 * 1024;

/// Proxies whose headers about their clients' addresses are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Items of the trusted proxies that are no address or network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must hold only addresses, and networks without host bits such as `10.0.0.0/8` (wrong: {})", listed(.0))]
pub struct TrustedProxiesError(Vec<String>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(IpAddr);

/// A client as limits count it: an IPv4 address or an IPv6 /64, because a whole /64 usually belongs to one host. An
/// IPv4-mapped address counts as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientNet(IpAddr);

impl TrustedProxies {
    /// Parses addresses and networks. A network with host bits is refused, because either part may be the mistake.
    pub fn parse(items: &[String]) -> Result<Self, TrustedProxiesError> {
        let bad: Vec<String> = items.iter().filter(|item| network(item).is_none()).cloned().collect();
        if bad.is_empty() {
            Ok(Self(items.iter().filter_map(|item| network(item)).collect()))
        } else {
            Err(TrustedProxiesError(bad))
        }
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Client {
    /// From the right, the first address that is not trusted is the client. An element that is no address ends the
    /// search: the hop that wrote it is the client. If the two kinds of header disagree, neither is believed.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let peer = peer.to_canonical();
        if !trusted.trusts(peer) {
            return Self(peer);
        }
        let lines = |name| headers.get_all(name).map(|value| value.as_bytes()).collect::<Vec<_>>();
        let (standard, de_facto) = (lines(FORWARDED), lines(X_FORWARDED_FOR));
        let standard = (!standard.is_empty()).then(|| last_known(peer, forwarded(&standard), trusted));
        let de_facto = (!de_facto.is_empty()).then(|| last_known(peer, x_forwarded_for(&de_facto), trusted));
        match (standard, de_facto) {
            (Some(one), None) | (None, Some(one)) => Self(one),
            (Some(one), Some(other)) if one == other => Self(one),
            (Some(_), Some(_)) | (None, None) => Self(peer),
        }
    }

    pub(crate) fn of_request(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().copied()
    }

    pub(crate) fn address(self) -> IpAddr {
        self.0
    }

    pub(crate) fn net(self) -> ClientNet {
        ClientNet::of(self.0)
    }
}

impl ClientNet {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))),
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

fn last_known(peer: IpAddr, hops: Vec<Option<IpAddr>>, trusted: &TrustedProxies) -> IpAddr {
    let mut known = peer;
    for hop in hops {
        let Some(address) = hop else { break };
        known = address;
        if !trusted.trusts(known) {
            break;
        }
    }
    known
}

fn network(item: &str) -> Option<IpNet> {
    let network = match item.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => item.parse::<IpNet>().ok().filter(|network| network.trunc() == *network)?,
    };
    // IPv4-mapped networks become IPv4, as addresses do before they are compared.
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).ok().map(IpNet::V4),
            None => Some(network),
        },
        IpNet::V4(_) | IpNet::V6(_) => Some(network),
    }
}

fn listed(items: &[String]) -> String {
    items.iter().map(|item| format!("`{}`", item.escape_debug())).collect::<Vec<_>>().join(", ")
}

/// The hops from the right; several headers are one list. None is an obfuscated identifier, nothing, or garbage.
fn forwarded(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    hops(lines, unquoted_comma, |element| forwarded_for(element).and_then(|node| node_address(&node)))
}

fn x_forwarded_for(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    let comma = |line: &[u8]| line.iter().rposition(|byte| *byte == b',');
    // IPv6 addresses are usually written without brackets here.
    let plain = |element: &str| element.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    hops(lines, comma, |element| plain(element).or_else(|| node_address(element)))
}

fn hops(
    lines: &[&[u8]],
    last_comma: impl Fn(&[u8]) -> Option<usize>,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    let mut left = MAX_BYTES;
    for element in lines.iter().rev().flat_map(|line| from_right(line, &last_comma)) {
        // The element and its comma.
        match left.checked_sub(element.len() + 1) {
            Some(less) if hops.len() < MAX_HOPS => left = less,
            Some(_) | None => break,
        }
        let text = std::str::from_utf8(element.trim_ascii()).ok();
        hops.push(text.and_then(&address));
    }
    hops
}

fn from_right<'a>(line: &'a [u8], last_comma: &impl Fn(&[u8]) -> Option<usize>) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(line);
    iter::from_fn(move || {
        let line = rest?;
        let comma = last_comma(line);
        rest = comma.and_then(|at| line.get(..at));
        line.get(comma.map_or(0, |at| at + 1)..)
    })
}

/// The comma before the last element. Backslashes occur only within quotes, so that an escaped quote is recognised from
/// the right, too.
fn unquoted_comma(line: &[u8]) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        match byte {
            b'"' => {
                let before = line.get(..at).unwrap_or_default();
                let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
                if !quoted || backslashes % 2 == 0 {
                    quoted = !quoted;
                }
            }
            b',' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The value of `for` in an element; none if the element is malformed or has two.
fn forwarded_for(element: &str) -> Option<String> {
    let mut named = None;
    let mut rest = element;
    loop {
        rest = rest.trim_ascii_start();
        // Empty pairs are allowed.
        if let Some(after) = rest.strip_prefix(';') {
            rest = after;
            continue;
        }
        if rest.is_empty() {
            return named;
        }
        let (name, after) = rest.split_once('=')?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        let (value, after) = value(after)?;
        if name.eq_ignore_ascii_case("for") && named.replace(value).is_some() {
            return None;
        }
        rest = after.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
    }
}

/// A token or a quoted string, and the text after it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !c.is_ascii() || !is_token(c as u8)).unwrap_or(text.len());
        let (token, after) = text.split_at_checked(end)?;
        return (!token.is_empty()).then(|| (token.to_owned(), after));
    };
    let mut unquoted = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((unquoted, quoted.get(at + 1..)?)),
            '\\' => unquoted.push(chars.next()?.1),
            c => unquoted.push(c),
        }
    }
    None
}

/// RFC 7239, section 6: `192.0.2.1` or `[2001:db8::1]`, optionally with a port or an obfuscated port.
fn node_address(node: &str) -> Option<IpAddr> {
    let (address, port) = match node.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (address, port) = node.split_at_checked(node.find(':').unwrap_or(node.len()))?;
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| address.to_canonical())
}

fn is_port(port: &str) -> bool {
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let obfuscated =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    digits || port.strip_prefix('_').is_some_and(obfuscated)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
