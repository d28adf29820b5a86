//! The client's address of a request: the peer's, or the one that a trusted proxy reports.
//!
//! Owns which address is believed: headers count only if the peer is a trusted proxy, and are read from the right as
//! far as each hop is trusted (see [`Client::of`]). `forwarded` parses the two headers.
//! INVARIANT: no client can choose the address that it is counted under. If headers are malformed or contradict each
//! other, the last trusted proxy counts in its client's place.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::http::header::{FORWARDED, HeaderMap, X_FORWARDED_FOR};
use actix_web::{HttpMessage, HttpRequest};
use ipnet::{IpNet, Ipv4Net};

mod forwarded;

use forwarded::Hop;

/// Proxies whose headers about their clients' addresses are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Items of the trusted proxies that are no address or network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must hold only addresses, and networks without host bits such as `10.0.0.0/8` (wrong: {})", listed(.0))]
pub struct TrustedProxiesError(Vec<String>);

/// The client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(IpAddr);

/// A client as limits count it: an IPv4 address or an IPv6 /64, because a whole /64 usually belongs to one host. An
/// IPv4-mapped address counts as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientNet(IpAddr);

impl TrustedProxies {
    /// Parses addresses and networks.
    ///
    /// # Errors
    /// With every item that is neither. A network with host bits is refused, because either part may be the mistake.
    pub fn parse(items: &[String]) -> Result<Self, TrustedProxiesError> {
        let mut networks = Vec::new();
        let mut bad = Vec::new();
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
    /// Reads the headers only if the peer is trusted. From the right, the first address that is not trusted is the
    /// client. An element that is no address ends the search: the hop that wrote it is the client. If the two kinds of
    /// header disagree, neither is believed.
    pub(crate) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let peer = peer.to_canonical();
        if !trusted.trusts(peer) {
            return Self(peer);
        }
        let lines = |name| headers.get_all(name).map(|value| value.as_bytes()).collect::<Vec<_>>();
        let (standard, de_facto) = (lines(FORWARDED), lines(X_FORWARDED_FOR));
        let standard = (!standard.is_empty()).then(|| last_known(peer, forwarded::forwarded(&standard), trusted));
        let de_facto = (!de_facto.is_empty()).then(|| last_known(peer, forwarded::x_forwarded_for(&de_facto), trusted));
        match (standard, de_facto) {
            (Some(one), None) | (None, Some(one)) => Self(one),
            (Some(one), Some(other)) if one == other => Self(one),
            (Some(_), Some(_)) | (None, None) => Self(peer),
        }
    }

    /// The client that the middleware stored in the request.
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

fn last_known(peer: IpAddr, hops: Vec<Hop>, trusted: &TrustedProxies) -> IpAddr {
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

/// An address is a network with one host.
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

#[cfg(test)]
mod tests;
