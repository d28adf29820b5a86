//! Parses the header of the PROXY protocol, version 2 (haproxy.org, doc/proxy-protocol.txt, section 2.2): pure.
//!
//! Every command and family that the specification defines is accepted, and none that it reserves. Version 1, a line of
//! text, is refused: its length is not known in advance. Fields after the addresses (TLVs) are checked for their length
//! and otherwise ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) const PREFIX_BYTES: usize = 16;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The specification limits a header to the smallest segment that every host accepts (576 - 40 bytes).
const MAX_REST_BYTES: usize = 536 - PREFIX_BYTES;
/// Two socket paths of 108 bytes.
const UNIX_ADDRESSES_BYTES: usize = 216;

/// Why a connection without an acceptable header is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it does not begin with a PROXY header of version 2")]
    Missing,
    #[error("its PROXY header is malformed")]
    Malformed,
    #[error("its PROXY header is longer than 536 bytes")]
    TooLong,
    #[error("it ended within its PROXY header")]
    Truncated,
    #[error("its PROXY header did not arrive in time")]
    Late,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    kind: AddressKind,
    rest_bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum AddressKind {
    Ipv4,
    Ipv6,
    Unix,
    /// None: the connection is the balancer's own, or from a client with an unknown address. The rest is ignored.
    None,
}

impl Prefix {
    pub(super) fn parse(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, Refused> {
        let [signature @ .., version_and_command, family, high, low] = bytes;
        if signature != SIGNATURE {
            return Err(Refused::Missing);
        }
        let kind = match (version_and_command, family) {
            // LOCAL: the family is to be ignored.
            (0x20, _) | (0x21, 0x00) => AddressKind::None,
            // Datagrams are accepted, too: a balancer may pass on HTTP/3 as a stream.
            (0x21, 0x11 | 0x12) => AddressKind::Ipv4,
            (0x21, 0x21 | 0x22) => AddressKind::Ipv6,
            (0x21, 0x31 | 0x32) => AddressKind::Unix,
            _ => return Err(Refused::Malformed),
        };
        let rest = usize::from(u16::from_be_bytes([*high, *low]));
        if rest > MAX_REST_BYTES { Err(Refused::TooLong) } else { Ok(Self { kind, rest_bytes: rest }) }
    }

    pub(super) fn rest_bytes(&self) -> usize {
        self.rest_bytes
    }

    /// The client's address; none if the rest holds none.
    pub(super) fn source(&self, rest: &[u8]) -> Result<Option<SocketAddr>, Refused> {
        let parts = match self.kind {
            AddressKind::None => return Ok(None),
            AddressKind::Ipv4 => ipv4(rest),
            AddressKind::Ipv6 => ipv6(rest),
            AddressKind::Unix => rest.split_at_checked(UNIX_ADDRESSES_BYTES).map(|(_, fields)| (None, fields)),
        };
        let (source, fields) = parts.ok_or(Refused::Malformed)?;
        if are_fields(fields) { Ok(source) } else { Err(Refused::Malformed) }
    }
}

type Parts<'a> = Option<(Option<SocketAddr>, &'a [u8])>;

/// The source, and the bytes after source, destination and their ports.
fn ipv4(rest: &[u8]) -> Parts<'_> {
    let (source, rest) = rest.split_first_chunk::<4>()?;
    let ([_, _, _, _, high, low, _, _], fields) = rest.split_first_chunk::<8>()?;
    let port = u16::from_be_bytes([*high, *low]);
    Some((Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port)), fields))
}

/// As [`ipv4`]. An IPv4-mapped address is converted to IPv4.
fn ipv6(rest: &[u8]) -> Parts<'_> {
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (_, rest) = rest.split_first_chunk::<16>()?;
    let ([high, low, _, _], fields) = rest.split_first_chunk::<4>()?;
    let source = IpAddr::from(Ipv6Addr::from(*source)).to_canonical();
    Some((Some(SocketAddr::new(source, u16::from_be_bytes([*high, *low]))), fields))
}

/// Whether the bytes are complete fields: each a kind, a length, and that number of bytes.
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
        Prefix::parse(start)?.source(rest)
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
    fn a_header_without_an_address_has_no_source() {
        for (version_and_command, family) in [(0x20, 0x00), (0x20, 0x11), (0x20, 0xff), (0x21, 0x00)] {
            for rest in [&b""[..], b"x", IPV4] {
                assert_eq!(read(&header(version_and_command, family, rest)), Ok(None), "{family} {rest:?}");
            }
        }
        for family in [0x31, 0x32] {
            assert_eq!(read(&header(0x21, family, &[b'/'; UNIX_ADDRESSES_BYTES])), Ok(None));
            assert_eq!(read(&header(0x21, family, &[b'/'; UNIX_ADDRESSES_BYTES - 1])), Err(Refused::Malformed));
        }
    }

    #[test]
    fn reserved_values_are_refused() {
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
    fn complete_fields_after_the_addresses_are_skipped() {
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
    fn the_longest_header_fits_one_segment() {
        let padded = |length: usize| {
            let padding = u16::try_from(length - PREFIX_BYTES - IPV4.len() - 3).unwrap();
            let field = [&[4][..], &padding.to_be_bytes(), &vec![0; usize::from(padding)]].concat();
            header(0x21, 0x11, &[IPV4, &field].concat())
        };
        assert_eq!(read(&padded(536)), from("198.51.100.7:4711"));
        assert_eq!(read(&padded(537)), Err(Refused::TooLong));
    }

    proptest! {
        #[test]
        fn any_rest_is_parsed_without_a_panic(
            command in 0x20_u8..=0x21,
            family: u8,
            rest in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let _ = read(&header(command, family, &rest));
        }

        #[test]
        fn an_address_is_read_as_it_was_written(source: [u8; 4], port: u16) {
            let rest = [source.as_slice(), &[0; 4], &port.to_be_bytes(), &[0; 2]].concat();
            prop_assert_eq!(read(&header(0x21, 0x11, &rest)), Ok(Some(SocketAddr::from((source, port)))));
        }
    }
}
