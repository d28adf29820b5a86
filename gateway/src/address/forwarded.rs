//! Parses the headers in which proxies report their clients: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Owns their grammar and limits. Both are read from the right, because the nearest proxy wrote the last element: what
//! a client put before it, such as an unclosed quote, does not change how it is read. An element that is not an address
//! is [`Hop::Unknown`], never an error.

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Far more than any real chain of proxies.
pub(super) const MAX_HOPS: usize = 50;
/// The most that is read of one kind of header, from the right.
pub(super) const MAX_BYTES: usize = 8 * 1024;

/// One element of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hop {
    /// An address without its port.
    Address(IpAddr),
    /// An obfuscated identifier, nothing, or garbage.
    Unknown,
}

/// The hops from the right; several headers are one list.
pub(super) fn forwarded(lines: &[&[u8]]) -> Vec<Hop> {
    hops(lines, unquoted_comma, |element| forwarded_for(element).and_then(|node| node_address(&node)))
}

/// The hops from the right; several headers are one list.
pub(super) fn x_forwarded_for(lines: &[&[u8]]) -> Vec<Hop> {
    let comma = |line: &[u8]| line.iter().rposition(|byte| *byte == b',');
    // IPv6 addresses are usually written without brackets here.
    let plain = |element: &str| element.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    hops(lines, comma, |element| plain(element).or_else(|| node_address(element)))
}

fn hops(
    lines: &[&[u8]],
    last_comma: impl Fn(&[u8]) -> Option<usize>,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Vec<Hop> {
    let mut hops = Vec::new();
    let mut left = MAX_BYTES;
    for element in lines.iter().rev().flat_map(|line| from_right(line, &last_comma)) {
        // The element and its comma.
        match left.checked_sub(element.len() + 1) {
            Some(less) if hops.len() < MAX_HOPS => left = less,
            Some(_) | None => break,
        }
        let text = std::str::from_utf8(element.trim_ascii()).ok();
        hops.push(text.and_then(&address).map_or(Hop::Unknown, Hop::Address));
    }
    hops
}

/// The elements of a list, the last one first.
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
