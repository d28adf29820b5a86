//! `Forwarded` and `X-Forwarded-For`: whatever a client sends, it is counted under the address that a trusted proxy
//! saw.
//!
//! Lines of an input that begin with `F` are of the one header, the others of the other. The nearest proxy appends what
//! it saw, to the last line or as a line of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use stage0_gateway::TrustedProxies;
use stage0_gateway::fuzz_support::client_address;

use crate::Target;

pub(crate) const TARGET: Target = Target::new("client_address", check);

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

static TRUSTED: LazyLock<TrustedProxies> =
    LazyLock::new(|| TrustedProxies::parse(&["10.0.0.0/8", "127.0.0.0/8", "fd00::/8"].map(str::to_owned)).unwrap());

fn check(input: &[u8]) -> bool {
    let (mut forwarded, mut de_facto) = (Vec::new(), Vec::new());
    for line in input.split(|byte| *byte == b'\n') {
        match line.strip_prefix(b"F") {
            Some(line) => forwarded.push(line),
            None => de_facto.push(line),
        }
    }
    let of = |peer, one: &[&[u8]], other: &[&[u8]]| client_address(peer, one, other, &TRUSTED);
    assert_eq!(of(STRANGER, &forwarded, &de_facto), STRANGER, "a peer that is not trusted says who it is");
    for (lines, appended, is_standard) in
        [(&forwarded, &b"for=198.51.100.7"[..], true), (&de_facto, &b"198.51.100.7"[..], false)]
    {
        let seen = |lines: &[&[u8]]| if is_standard { of(PROXY, lines, &[]) } else { of(PROXY, &[], lines) };
        let own_line = [lines.as_slice(), &[appended]].concat();
        assert_eq!(seen(&own_line), CLIENT, "by a line of the proxy's own");
        if let Some((last, before)) = lines.split_last() {
            let joined = [*last, b", ", appended].concat();
            let is_sent = joined.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f));
            if is_sent {
                assert_eq!(seen(&[before, &[joined.as_slice()]].concat()), CLIENT, "appended to {last:?}");
            }
        }
    }
    of(PROXY, &forwarded, &[]) != PROXY || of(PROXY, &[], &de_facto) != PROXY
}
