//! The header of the PROXY protocol, version 2 (haproxy.org, doc/proxy-protocol.txt, section 2.2): bytes in, an address out.
//!
//! Owns which headers are taken: every command and family that the specification has, and nothing that it reserves. Version 1, a
//! line of text, is not read: its end has to be searched for, and every balancer in use sends version 2. Fields behind the addresses
//! (TLVs) are checked for their length and otherwise left alone; pure, so that the reading of a socket decides nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes up to and including the length of the rest.
pub(super) const START: usize = 16;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// With it a header fills the smallest segment that every host takes (576 - 40 bytes); the specification keeps headers within that.
const MOST_REST: usize = 536 - START;
/// Two paths.
const UNIX_ADDRESSES: usize = 216;

/// Why a connection without an acceptable header is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Something else stands in its place.
    #[error("it does not begin with a PROXY header of version 2")]
    Missing,
    /// It breaks the specification, or has what the specification reserves.
    #[error("its PROXY header is malformed")]
    Malformed,
    /// It is longer than any that we take.
    #[error("its PROXY header is longer than 536 bytes")]
    TooLong,
    /// The connection ended before it did.
    #[error("it ended within its PROXY header")]
    Truncated,
    /// Time is up.
    #[error("its PROXY header did not arrive in time")]
    Late,
}

/// What the first bytes say of the rest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    names: Names,
    rest: usize,
}

/// What kind of client the rest names.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    Ipv4,
    Ipv6,
    Unix,
    /// The balancer itself, or somebody whom it cannot name: the rest means nothing.
    Nobody,
}

impl Start {
    pub(super) fn parse(bytes: &[u8; START]) -> Result<Self, Refused> {
        let [signature @ .., version_and_command, family, high, low] = bytes;
        if signature != SIGNATURE {
            return Err(Refused::Missing);
        }
        let names = match (version_and_command, family) {
            // LOCAL: the family is to be ignored.
            (0x20, _) | (0x21, 0x00) => Names::Nobody,
            // Datagrams too: what a client of HTTP/3 sent arrives here as a stream.
            (0x21, 0x11 | 0x12) => Names::Ipv4,
            (0x21, 0x21 | 0x22) => Names::Ipv6,
            (0x21, 0x31 | 0x32) => Names::Unix,
            _ => return Err(Refused::Malformed),
        };
        let rest = usize::from(u16::from_be_bytes([*high, *low]));
        if rest > MOST_REST { Err(Refused::TooLong) } else { Ok(Self { names, rest }) }
    }

    /// Bytes that follow.
    pub(super) fn rest(&self) -> usize {
        self.rest
    }

    /// Whom the rest names; nobody where the peer of the connection is all that there is.
    pub(super) fn source(&self, rest: &[u8]) -> Result<Option<SocketAddr>, Refused> {
        let parts = match self.names {
            Names::Nobody => return Ok(None),
            Names::Ipv4 => ipv4(rest),
            Names::Ipv6 => ipv6(rest),
            Names::Unix => rest.split_at_checked(UNIX_ADDRESSES).map(|(_, fields)| (None, fields)),
        };
        let (source, fields) = parts.ok_or(Refused::Malformed)?;
        if are_fields(fields) { Ok(source) } else { Err(Refused::Malformed) }
    }
}

type Parts<'a> = Option<(Option<SocketAddr>, &'a [u8])>;

/// Source, destination, and their ports.
fn ipv4(rest: &[u8]) -> Parts<'_> {
    let (source, rest) = rest.split_first_chunk::<4>()?;
    let ([_, _, _, _, high, low, _, _], fields) = rest.split_first_chunk::<8>()?;
    let port = u16::from_be_bytes([*high, *low]);
    Some((Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port)), fields))
}

/// The same; IPv4 in IPv6 clothes is taken out of them.
fn ipv6(rest: &[u8]) -> Parts<'_> {
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (_, rest) = rest.split_first_chunk::<16>()?;
    let ([high, low, _, _], fields) = rest.split_first_chunk::<4>()?;
    let source = IpAddr::from(Ipv6Addr::from(*source)).to_canonical();
    Some((Some(SocketAddr::new(source, u16::from_be_bytes([*high, *low]))), fields))
}

/// Whether the bytes are whole fields: a kind, a length, so many bytes.
fn are_fields(mut bytes: &[u8]) -> bool {
    loop {
        bytes = match bytes {
            [] => return true,
            [_, high, low, rest @ ..] => match rest.split_at_checked(u16::from_be_bytes([*high, *low]).into()) {
                Some((_, rest)) => rest,
                None => return false,
            },
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[version_and_command, family], &length, rest].concat()
    }

    fn read(header: &[u8]) -> Result<Option<SocketAddr>, Refused> {
        let (start, rest) = header.split_first_chunk().unwrap();
        Start::parse(start)?.source(rest)
    }

    fn from(address: &str) -> Result<Option<SocketAddr>, Refused> {
        Ok(Some(address.parse().unwrap()))
    }

    /// 198.51.100.7:4711 to 10.0.0.1:443.
    const IPV4: &[u8] = b"\xc6\x33\x64\x07\x0a\0\0\x01\x12\x67\x01\xbb";
    /// A checksum and an empty name.
    const FIELDS: &[u8] = b"\x03\0\x04\x01\x02\x03\x04\x02\0\0";

    fn ipv6_from(source: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [address(source).as_slice(), &address("2001:db8::2"), b"\x12\x67\x01\xbb"].concat()
    }

    #[test]
    fn the_source_is_read_from_each_family() {
        assert_eq!(read(&header(0x21, 0x11, IPV4)), from("198.51.100.7:4711"));
        assert_eq!(read(&header(0x21, 0x12, IPV4)), from("198.51.100.7:4711"));
        assert_eq!(read(&header(0x21, 0x21, &ipv6_from("2001:db8::1"))), from("[2001:db8::1]:4711"));
        assert_eq!(read(&header(0x21, 0x22, &ipv6_from("2001:db8::1"))), from("[2001:db8::1]:4711"));
        assert_eq!(read(&header(0x21, 0x21, &ipv6_from("::ffff:192.0.2.1"))), from("192.0.2.1:4711"));
    }

    #[test]
    fn whoever_is_not_named_is_nobody() {
        for (version_and_command, family) in [(0x20, 0x00), (0x20, 0x11), (0x20, 0xff), (0x21, 0x00)] {
            for rest in [&b""[..], b"x", IPV4] {
                assert_eq!(read(&header(version_and_command, family, rest)), Ok(None), "{family} {rest:?}");
            }
        }
        for family in [0x31, 0x32] {
            assert_eq!(read(&header(0x21, family, &[b'/'; UNIX_ADDRESSES])), Ok(None));
            assert_eq!(read(&header(0x21, family, &[b'/'; UNIX_ADDRESSES - 1])), Err(Refused::Malformed));
        }
    }

    #[test]
    fn what_the_specification_reserves_is_refused() {
        let families = (0..=u8::MAX).filter(|family| ![0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32].contains(family));
        for family in families {
            assert_eq!(read(&header(0x21, family, IPV4)), Err(Refused::Malformed), "family {family}");
        }
        for version_and_command in (0..=u8::MAX).filter(|byte| ![0x20, 0x21].contains(byte)) {
            let refused = read(&header(version_and_command, 0x11, IPV4));
            assert_eq!(refused, Err(Refused::Malformed), "{version_and_command}");
        }
    }

    #[test]
    fn every_byte_of_the_signature_counts() {
        for index in 0..SIGNATURE.len() {
            let mut bytes = header(0x21, 0x11, IPV4);
            bytes[index] ^= 1;
            assert_eq!(read(&bytes), Err(Refused::Missing), "byte {index}");
        }
    }

    #[test]
    fn fields_behind_the_addresses_are_skipped_if_they_are_whole() {
        let whole = [IPV4, FIELDS].concat();
        assert_eq!(read(&header(0x21, 0x11, &whole)), from("198.51.100.7:4711"));
        let ends = [IPV4.len(), IPV4.len() + 7];
        for length in (0..whole.len()).filter(|length| !ends.contains(length)) {
            assert_eq!(read(&header(0x21, 0x11, &whole[..length])), Err(Refused::Malformed), "{length} bytes");
        }
        let sixth = ipv6_from("2001:db8::1");
        for length in 0..sixth.len() {
            assert_eq!(read(&header(0x21, 0x21, &sixth[..length])), Err(Refused::Malformed), "{length} bytes");
        }
    }

    #[test]
    fn one_segment_holds_every_header_that_is_taken() {
        let padded = |length: usize| {
            let padding = u16::try_from(length - START - IPV4.len() - 3).unwrap();
            let field = [&[4][..], &padding.to_be_bytes(), &vec![0; usize::from(padding)]].concat();
            header(0x21, 0x11, &[IPV4, &field].concat())
        };
        assert_eq!(read(&padded(536)), from("198.51.100.7:4711"));
        assert_eq!(read(&padded(537)), Err(Refused::TooLong));
    }

    proptest! {
        #[test]
        fn no_rest_breaks_the_reader(command in 0x20_u8..=0x21, family: u8, rest in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&header(command, family, &rest));
        }

        #[test]
        fn an_address_is_read_as_it_was_written(source: [u8; 4], port: u16) {
            let rest = [source.as_slice(), &[0; 4], &port.to_be_bytes(), &[0; 2]].concat();
            prop_assert_eq!(read(&header(0x21, 0x11, &rest)), Ok(Some(SocketAddr::from((source, port)))));
        }
    }
}
