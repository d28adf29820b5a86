//! Which addresses may be connected to: customers choose the URLs, and must not reach our internal network.
//!
//! Owns the check of one address. Does not resolve names and knows no settings: the egress decides when a refusal is
//! lifted. A network's own NAT64 prefix (RFC 6052, section 2.2) looks like any other address: block it at the network.
//! INVARIANT: an address that is not known to be global unicast is refused, and so is one that embeds another address.
//! Sources: all entries of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190), including
//! the few that are globally reachable, <https://www.iana.org/assignments/iana-ipv4-special-registry> and
//! `…/iana-ipv6-special-registry`; IANA's IPv6 address space (only 2000::/3 is unicast); RFC 5214 for ISATAP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first entry that matches gives the reason.
const IPV4: [(Ipv4Addr, u32, &str); 20] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private use"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared by carriers"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    // Azure's platform service, within public address space (Microsoft: "What is IP address 168.63.129.16?").
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud's own service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private use"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "AS112"),
    (Ipv4Addr::new(192, 52, 193, 0), 24, "AMT"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private use"),
    (Ipv4Addr::new(192, 175, 48, 0), 24, "AS112"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(255, 255, 255, 255), 32, "broadcast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// The first entry that matches gives the reason. An address that matches no entry and is outside 2000::/3 is refused.
const IPV6: [(Ipv6Addr, u32, &str); 20] = [
    (v6(0, 0, 0, 0, 0), 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (v6(0, 0, 0, 0, 0), 96, "IPv4 inside of IPv6"), // IPv4-compatible
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4 inside of IPv6"), // IPv4-mapped
    (v6(0, 0, 0, 0, 0xffff), 96, "IPv4 inside of IPv6"), // SIIT, RFC 2765
    (v6(0x64, 0xff9b, 0, 0, 0), 96, "NAT64"),
    (v6(0x64, 0xff9b, 1, 0, 0), 48, "NAT64"),
    (v6(0x100, 0, 0, 0, 0), 64, "discarded"),
    (v6(0x100, 0, 0, 1, 0), 64, "a dummy"),
    (v6(0x2001, 0, 0, 0, 0), 32, "Teredo"),
    (v6(0x2001, 0, 0, 0, 0), 23, "protocol assignments"),
    (v6(0x2001, 0xdb8, 0, 0, 0), 32, "documentation"),
    (v6(0x2002, 0, 0, 0, 0), 16, "6to4"),
    (v6(0x2620, 0x4f, 0x8000, 0, 0), 48, "AS112"),
    (v6(0x3fff, 0, 0, 0, 0), 20, "documentation"),
    (v6(0x5f00, 0, 0, 0, 0), 16, "segment routing"),
    (v6(0xfc00, 0, 0, 0, 0), 7, "private use"),
    (v6(0xfe80, 0, 0, 0, 0), 10, "link-local"),
    (v6(0xfec0, 0, 0, 0, 0), 10, "site-local"),
    (v6(0xff00, 0, 0, 0, 0), 8, "multicast"),
];

/// Private addresses that stay refused in the local mode: the metadata services of AWS and Google Cloud.
const IPV6_METADATA: [(Ipv6Addr, u32); 2] = [(v6(0xfd00, 0xec2, 0, 0, 0), 32), (v6(0xfd20, 0xce, 0, 0, 0), 32)];

/// An address from its first five groups; the others are zero.
const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, 0, 0, 0)
}

/// Returns a few words that name no address; none if it may be connected to.
pub(crate) fn refuse(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => IPV4.iter().find(|(base, length, _)| in_v4(ip, *base, *length)).map(|(_, _, why)| *why),
        IpAddr::V6(ip) => {
            let listed = IPV6.iter().find(|(base, length, _)| in_v6(ip, *base, *length)).map(|(_, _, why)| *why);
            listed
                .or_else(|| (!in_v6(ip, v6(0x2000, 0, 0, 0, 0), 3)).then_some("not assigned"))
                .or_else(|| is_isatap(ip).then_some("ISATAP"))
        }
    }
}

/// The dangerous local mode allows loopback, RFC 1918, fc00::/7, and these mapped into IPv6; never link-local addresses
/// and the clouds' metadata services.
pub(crate) fn is_private_or_loopback(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => {
            let metadata = IPV6_METADATA.iter().any(|(base, length)| in_v6(ip, *base, *length));
            ip.is_loopback() || (ip.is_unique_local() && !metadata)
        }
    }
}

fn in_v4(ip: Ipv4Addr, base: Ipv4Addr, length: u32) -> bool {
    (ip.to_bits() ^ base.to_bits()).leading_zeros() >= length
}

fn in_v6(ip: Ipv6Addr, base: Ipv6Addr, length: u32) -> bool {
    (ip.to_bits() ^ base.to_bits()).leading_zeros() >= length
}

/// The interface identifier is `0:5efe` and an IPv4 address, or `200:5efe` if that address is globally unique.
fn is_isatap(ip: Ipv6Addr) -> bool {
    let [.., first, second, _, _] = ip.segments();
    matches!((first, second), (0 | 0x200, 0x5efe))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    /// Both ends of every range, and addresses that embed another one, in each spelling.
    const REFUSED: [(&str, &[&str]); 26] = [
        ("this network", &["0.0.0.0", "0.0.0.1", "0.255.255.255"]),
        (
            "private use",
            &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"],
        ),
        ("private use", &["fc00::", "fd00:ec2::254", "fd20:ce::254", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
        ("shared by carriers", &["100.64.0.0", "100.100.100.200", "100.127.255.255"]),
        ("loopback", &["127.0.0.0", "127.0.0.1", "127.255.255.255", "::1", "0:0:0:0:0:0:0:1"]),
        ("a cloud's own service", &["168.63.129.16"]),
        ("link-local", &["169.254.0.0", "169.254.169.254", "169.254.255.255"]),
        ("link-local", &["fe80::", "fe80::1", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
        ("protocol assignments", &["192.0.0.0", "192.0.0.9", "192.0.0.10", "192.0.0.192", "192.0.0.255"]),
        (
            "protocol assignments",
            &["2001:1::1", "2001:2::", "2001:20::", "2001:30::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ),
        (
            "documentation",
            &["192.0.2.0", "192.0.2.255", "198.51.100.0", "198.51.100.255", "203.0.113.0", "203.0.113.255"],
        ),
        (
            "documentation",
            &[
                "2001:db8::",
                "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
                "3fff::",
                "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            ],
        ),
        (
            "AS112",
            &[
                "192.31.196.0",
                "192.31.196.255",
                "192.175.48.0",
                "192.175.48.255",
                "2620:4f:8000::",
                "2620:4f:8000:ffff::",
            ],
        ),
        ("AMT", &["192.52.193.0", "192.52.193.255"]),
        ("6to4 relay", &["192.88.99.0", "192.88.99.255"]),
        ("benchmarking", &["198.18.0.0", "198.19.255.255"]),
        (
            "multicast",
            &["224.0.0.0", "239.255.255.255", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ),
        ("reserved", &["240.0.0.0", "255.255.255.254"]),
        ("broadcast", &["255.255.255.255"]),
        ("unspecified", &["::", "0:0:0:0:0:0:0:0"]),
        (
            "IPv4 inside of IPv6",
            &[
                "::127.0.0.1",
                "::2",
                "::7f00:1",
                "::8.8.8.8",
                "::ffff:127.0.0.1",
                "::ffff:7f00:1",
                "::ffff:a9fe:a9fe",
                "0:0:0:0:0:ffff:10.0.0.1",
                "::ffff:8.8.8.8",
                "::ffff:0:127.0.0.1",
                "::ffff:0:7f00:1",
                "::ffff:0:8.8.8.8",
            ],
        ),
        (
            "NAT64",
            &[
                "64:ff9b::127.0.0.1",
                "64:ff9b::7f00:1",
                "64:ff9b::8.8.8.8",
                "64:ff9b:1::",
                "64:ff9b:1:ffff:ffff:ffff:7f00:1",
            ],
        ),
        ("Teredo", &["2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"]),
        (
            "6to4",
            &[
                "2002::",
                "2002:7f00:1::",
                "2002:a9fe:a9fe::1",
                "2002:808:808::1",
                "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ],
        ),
        ("ISATAP", &["2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:7f00:1", "2a00:1:2:3:0:5efe:10.0.0.1"]),
        (
            "not assigned",
            &[
                "::1:0:0:0",
                "64:ff9b::1:0:0",
                "64:ff9b:2::",
                "101::",
                "200::",
                "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "4000::",
                "8000::1",
                "e000::",
                "fe00::1",
                "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ],
        ),
    ];

    #[test]
    fn every_special_address_is_refused_for_its_own_reason() {
        for (why, addresses) in REFUSED {
            for address in addresses {
                assert_eq!(refuse(ip(address)), Some(why), "{address}");
            }
        }
        for (address, why) in [
            ("100::1", "discarded"),
            ("100:0:0:1::1", "a dummy"),
            ("5f00::1", "segment routing"),
            ("5f00:ffff::", "segment routing"),
            ("fec0::1", "site-local"),
            ("feff::1", "site-local"),
        ] {
            assert_eq!(refuse(ip(address)), Some(why), "{address}");
        }
    }

    #[test]
    fn the_neighbours_of_every_special_range_are_permitted() {
        let permitted = [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.1.255",
            "192.0.3.0",
            "192.31.195.255",
            "192.31.197.0",
            "192.52.192.255",
            "192.52.194.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "192.175.47.255",
            "192.175.49.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "8.8.8.8",
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2001:4860:4860::8888",
            "2003::",
            "2606:4700:4700::1111",
            "2620:4f:7fff::",
            "2620:4f:8001::",
            "3ffe:ffff::",
            "3fff:1000::",
            "2606:4700::100:5efe:7f00:1",
            "2606:4700::5eff:7f00:1",
            "2606:4700:0:5efe::1",
        ];
        for address in permitted {
            assert_eq!(refuse(ip(address)), None, "{address}");
            assert!(!is_private_or_loopback(ip(address)), "{address}");
        }
    }

    #[test]
    fn the_local_mode_allows_only_loopback_and_private_addresses() {
        let local = [
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "::1",
            "fc00::1",
            "fd12::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "::ffff:c0a8:1",
        ];
        for address in local {
            assert!(is_private_or_loopback(ip(address)), "{address}");
            assert!(refuse(ip(address)).is_some(), "{address}");
        }
        let never = [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "::",
            "192.0.0.192",
            "172.32.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::ffff:0:127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "fec0::1",
        ];
        for address in never {
            assert!(!is_private_or_loopback(ip(address)), "{address}");
        }
    }
}
