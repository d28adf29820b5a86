//! The PROXY header of a balancer's connection: read up to the length that it says and no further, wherever it is
//! split.
//!
//! The address is read a second time here, at the places of the specification (haproxy.org, doc/proxy-protocol.txt,
//! section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stage0_gateway::fuzz_support::{ProxyHeader, proxy_header};

use crate::Target;

pub(crate) const TARGET: Target = Target::new("proxy_header", check);

const PREFIX_BYTES: usize = 16;
const MAX_BYTES: usize = 536;

fn check(input: &[u8]) -> bool {
    let whole = proxy_header([input]);
    for pieces in [1, 3, 7, PREFIX_BYTES] {
        assert_eq!(proxy_header(input.chunks(pieces)), whole, "in pieces of {pieces}");
    }
    let at = input.first().map_or(0, |first| usize::from(*first) % input.len());
    assert_eq!(proxy_header([&input[..at], &input[at..]]), whole, "split at {at}");
    is_within(&whole, input);
    match &whole.source {
        Ok(source) => {
            is_what_it_says(*source, input);
            true
        }
        Err(_) => false,
    }
}

fn is_within(header: &ProxyHeader, input: &[u8]) {
    let ProxyHeader { source, read_bytes } = header;
    assert!(*read_bytes <= input.len().min(MAX_BYTES), "{header:?}");
    let Some(prefix) = input.first_chunk::<PREFIX_BYTES>() else {
        return assert!(source.is_err() && *read_bytes == input.len(), "{header:?}");
    };
    let said = PREFIX_BYTES + usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    assert!(*read_bytes == PREFIX_BYTES || *read_bytes <= said, "{header:?} of {said} bytes");
    assert!(source.is_err() || (*read_bytes == said && said <= MAX_BYTES), "{header:?} of {said} bytes");
}

fn is_what_it_says(source: Option<SocketAddr>, input: &[u8]) {
    let port = |at: usize| u16::from_be_bytes([input[at], input[at + 1]]);
    let found = match (input[12], input[13]) {
        (0x21, 0x11 | 0x12) => {
            let octets: [u8; 4] = *input[PREFIX_BYTES..].first_chunk().unwrap();
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port(PREFIX_BYTES + 8)))
        }
        (0x21, 0x21 | 0x22) => {
            let octets: [u8; 16] = *input[PREFIX_BYTES..].first_chunk().unwrap();
            Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(octets)).to_canonical(), port(PREFIX_BYTES + 32)))
        }
        _ => None,
    };
    assert_eq!(source, found);
}
