//! Who a request comes from: the peer's address, or what a proxy that we trust says of it.
//!
//! Owns the rule: only the peer's own word counts, and a header only while those who wrote it are trusted, read from the right (see
//! [`Client::of`]).
//! INVARIANT: no client is counted under an address of its choice. Where headers are broken or contradict one another,
//! the proxy that we know of counts in its client's place. `forwarded` reads the two headers.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::http::header::{FORWARDED, HeaderMap, X_FORWARDED_FOR};
use actix_web::{HttpMessage, HttpRequest};
use ipnet::{IpNet, Ipv4Net};

mod forwarded;

use forwarded::Hop;

/// Proxies whose word on their clients' addresses is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// What was given as trusted proxies holds something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must hold only addresses, and networks without host bits such as `10.0.0.0/8` (wrong: {})", listed(.0))]
pub struct TrustedProxiesError(Vec<String>);

/// Who a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(IpAddr);

/// One client, as throttles count it. An IPv6 network hands a whole /64 to one host, so that is what is counted; an IPv4 address in
/// IPv6 clothes is that IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientNet(IpAddr);

impl TrustedProxies {
    /// Addresses and networks; the error names every item that is neither. A network's address must not reach into its host part,
    /// as it is not clear then which of the two is the slip.
    pub fn parse(items: &[String]) -> Result<Self, TrustedProxiesError> {
        let (mut networks, mut bad) = (Vec::new(), Vec::new());
        for item in items {
            match network(item) {
                Some(network) => networks.push(network),
                None => bad.push(item.clone()),
            }
        }
        if bad.is_empty() { Ok(Self(networks)) } else { Err(TrustedProxiesError(bad)) }
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Client {
    /// Reads the headers only if the peer is trusted; from the right, the first address that is not trusted is the client. What is
    /// no address ends the walk: who named it is the client then. Two kinds of header with two answers are both not believed.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let peer = peer.to_canonical();
        if !trusted.trusts(peer) {
            return Self(peer);
        }
        let lines = |name| headers.get_all(name).map(|value| value.as_bytes()).collect::<Vec<_>>();
        let (standard, usual) = (lines(FORWARDED), lines(X_FORWARDED_FOR));
        let standard = (!standard.is_empty()).then(|| walk(peer, forwarded::forwarded(&standard), trusted));
        let usual = (!usual.is_empty()).then(|| walk(peer, forwarded::x_forwarded_for(&usual), trusted));
        match (standard, usual) {
            (Some(one), None) | (None, Some(one)) => Self(one),
            (Some(one), Some(other)) if one == other => Self(one),
            (Some(_), Some(_)) | (None, None) => Self(peer),
        }
    }

    /// As it was found out when the request arrived.
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

fn walk(peer: IpAddr, hops: Vec<Hop>, trusted: &TrustedProxies) -> IpAddr {
    let mut known = peer;
    for hop in hops {
        match hop {
            Hop::Address(address) => known = address,
            Hop::Unknown => break,
        }
        if !trusted.trusts(known) {
            break;
        }
    }
    known
}

/// An address is a network of one.
fn network(item: &str) -> Option<IpNet> {
    let network = match item.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => item.parse::<IpNet>().ok().filter(|network| network.trunc() == *network)?,
    };
    // IPv4 in IPv6 clothes, as addresses are compared without them.
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

#[cfg(test)]
mod tests;
