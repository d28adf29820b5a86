//! What hostile and honest chains of proxies come to.

use actix_web::http::header::{HeaderName, HeaderValue};

use super::*;

const PROXY: &str = "10.0.0.1";

fn net(text: &str) -> ClientNet {
    ClientNet::of(text.parse().unwrap())
}

fn trusted(items: &[&str]) -> Result<TrustedProxies, String> {
    let items: Vec<_> = items.iter().map(|item| (*item).to_owned()).collect();
    TrustedProxies::parse(&items).map_err(|error| error.to_string())
}

/// Who is behind `peer`, with 10.0.0.0/8 and 2001:db8:f::/48 trusted.
fn client(peer: &str, headers: &[(HeaderName, &str)]) -> String {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let trusted = trusted(&["10.0.0.0/8", "2001:db8:f::/48"]).unwrap();
    Client::of(peer.parse().unwrap(), &map, &trusted).address().to_string()
}

fn usual(value: &str) -> String {
    client(PROXY, &[(X_FORWARDED_FOR, value)])
}

fn standard(value: &str) -> String {
    client(PROXY, &[(FORWARDED, value)])
}

#[test]
fn a_host_cannot_evade_limits_within_its_64() {
    assert_eq!(net("2001:db8::1"), net("2001:db8::ffff:2"));
    assert_ne!(net("2001:db8::1"), net("2001:db8:0:1::1"));
    assert_eq!(net("::ffff:192.0.2.1"), net("192.0.2.1"));
    assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
}

#[test]
fn headers_of_an_untrusted_peer_are_ignored() {
    for peer in ["192.0.2.1", "::ffff:192.0.2.1", "11.0.0.1", "2001:db8:e::1"] {
        let shown = peer.trim_start_matches("::ffff:");
        assert_eq!(client(peer, &[(X_FORWARDED_FOR, "198.51.100.1")]), shown);
        assert_eq!(client(peer, &[(FORWARDED, "for=198.51.100.1")]), shown);
    }
}

#[test]
fn x_forwarded_for_is_read_from_the_right() {
    for (value, expected) in [
        ("198.51.100.1", "198.51.100.1"),
        ("203.0.113.9, 198.51.100.1", "198.51.100.1"),
        ("203.0.113.9,198.51.100.1,10.2.3.4,2001:db8:f::2", "198.51.100.1"),
        ("10.0.0.9, 10.0.0.8", "10.0.0.9"),
        ("198.51.100.1:4711", "198.51.100.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("203.0.113.9, ::ffff:10.0.0.7", "203.0.113.9"),
        (", 198.51.100.1", "198.51.100.1"),
        ("\"\"\",;=[, \t198.51.100.1\t", "198.51.100.1"),
    ] {
        assert_eq!(usual(value), expected, "{value:?}");
    }
}

#[test]
fn an_element_without_an_address_makes_the_hop_that_wrote_it_the_client() {
    for junk in [
        "",
        " ",
        ",",
        "unknown",
        "_hidden",
        "localhost",
        "198.51.100",
        "198.51.100.01",
        "198.51.100.1.",
        "0x7f.1",
        "198.51.100.256",
        "198.51.100.1:",
        "198.51.100.1:x",
        "198.51.100.1:123456",
        "[198.51.100.1]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]x",
        "fe80::1%eth0",
        "198.51.100.1 203.0.113.9",
        "198.51.100.1;203.0.113.9",
        "for=198.51.100.1",
        "\"198.51.100.1\"",
        "١٩٨.51.100.1",
        "198.51.100.1/32",
        "é",
    ] {
        assert_eq!(usual(junk), PROXY, "{junk:?}");
        assert_eq!(usual(&format!("203.0.113.9, {junk}, 10.0.0.8")), "10.0.0.8", "{junk:?}");
    }
}

#[test]
fn forwarded_is_read_from_the_right() {
    for (value, expected) in [
        ("for=198.51.100.1", "198.51.100.1"),
        ("FOR=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        ("proto=http; by=_x ;For=\"198.51.100.1:80\"", "198.51.100.1"),
        ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
        ("for=\"[2001:db8::1]\"", "2001:db8::1"),
        (";for=198.51.100.1; ;", "198.51.100.1"),
        ("for=\"198.51.100.1:_port\"", "198.51.100.1"),
        ("for=\"198\\.51.100.1\"", "198.51.100.1"),
        ("for=203.0.113.9, for=198.51.100.1, for=10.0.0.8;host=a", "198.51.100.1"),
        ("for=198.51.100.1;host=\"a, for=203.0.113.9\"", "198.51.100.1"),
        ("for=198.51.100.1;host=\"\\\", for=203.0.113.9\"", "198.51.100.1"),
        ("for=198.51.100.1;host=\"\\\\\", for=10.0.0.8", "198.51.100.1"),
        ("for=10.0.0.9, for=10.0.0.8", "10.0.0.9"),
        // What a client put in front to hide what its proxy adds.
        ("for=\"203.0.113.9, for=198.51.100.1", "198.51.100.1"),
        ("for=203.0.113.9;x=\"\\, for=\"198.51.100.1:80\"", "198.51.100.1"),
        ("\"\"\", for=198.51.100.1", "198.51.100.1"),
    ] {
        assert_eq!(standard(value), expected, "{value:?}");
    }
}

#[test]
fn an_element_of_forwarded_without_an_address_ends_the_search_too() {
    for junk in [
        "",
        "for",
        "for=",
        "for=unknown",
        "for=_hidden",
        "for=\"unknown\"",
        "for=2001:db8::1",
        "for=\"2001:db8::1\"",
        "for=198.51.100.1:80",
        "for=\"198.51.100.1",
        "for=198.51.100.1\"",
        "for =198.51.100.1",
        "for= 198.51.100.1",
        "for=198.51.100.1;for=198.51.100.1",
        "for=198.51.100.1;x",
        "for=198.51.100.1;=x",
        "by=198.51.100.1",
        "198.51.100.1",
        "for=198.51.100.1 x",
        "for=\"198.51.100.1\"x",
        "xfor=198.51.100.1",
        "for=\"\\\"198.51.100.1\"",
        "for=\"[2001:db8::1]4711\"",
        "for=é",
    ] {
        assert_eq!(standard(junk), PROXY, "{junk:?}");
        assert_eq!(standard(&format!("for=203.0.113.9, {junk}, for=10.0.0.8")), "10.0.0.8", "{junk:?}");
    }
}

#[test]
fn several_headers_are_one_list() {
    let two = [(X_FORWARDED_FOR, "203.0.113.9"), (X_FORWARDED_FOR, "198.51.100.1, 10.0.0.8")];
    assert_eq!(client(PROXY, &two), "198.51.100.1");
    let two = [(X_FORWARDED_FOR, "203.0.113.9, 198.51.100.1"), (X_FORWARDED_FOR, "10.0.0.8")];
    assert_eq!(client(PROXY, &two), "198.51.100.1");
    let two = [(FORWARDED, "for=\"203.0.113.9"), (FORWARDED, "for=198.51.100.1")];
    assert_eq!(client(PROXY, &two), "198.51.100.1");
}

#[test]
fn two_kinds_of_header_are_believed_only_if_they_agree() {
    let both = |standard, usual| client(PROXY, &[(FORWARDED, standard), (X_FORWARDED_FOR, usual)]);
    assert_eq!(both("for=198.51.100.1", "203.0.113.9, 198.51.100.1"), "198.51.100.1");
    assert_eq!(both("for=198.51.100.1", "203.0.113.9"), PROXY);
    assert_eq!(both("for=unknown", "203.0.113.9"), PROXY);
    assert_eq!(both("for=198.51.100.1", ""), PROXY);
    assert_eq!(client(PROXY, &[]), PROXY);
}

#[test]
fn a_chain_is_read_from_the_right_up_to_its_limits() {
    let chain = |length: usize| format!("198.51.100.1{}", ", 10.0.0.8".repeat(length - 1));
    assert_eq!(usual(&chain(MAX_HOPS)), "198.51.100.1");
    assert_eq!(usual(&chain(MAX_HOPS + 1)), "10.0.0.8");
    let padded = |bytes: usize| format!("198.51.100.1,{}10.0.0.8", " ".repeat(bytes - "198.51.100.1,10.0.0.8,".len()));
    assert_eq!(usual(&padded(MAX_BYTES)), "198.51.100.1");
    assert_eq!(usual(&padded(MAX_BYTES + 1)), "10.0.0.8");
    // A client that fills the header does not keep its proxy's word from being read.
    let stuffing = "x".repeat(MAX_BYTES * 2);
    assert_eq!(usual(&format!("{stuffing}, 198.51.100.1")), "198.51.100.1");
    assert_eq!(standard(&format!("for=\"{stuffing}, for=198.51.100.1")), "198.51.100.1");
}

#[test]
fn the_error_lists_every_bad_trusted_proxy() {
    let error = trusted(&["10.0.0.0/8", "10.0.0.1/8", "::1", "x", "192.0.2.0/33"]).unwrap_err();
    assert!(error.ends_with("(wrong: `10.0.0.1/8`, `x`, `192.0.2.0/33`)"), "{error}");
    assert!(trusted(&["fe80::1%1"]).unwrap_err().ends_with("(wrong: `fe80::1%1`)"));
}

#[test]
fn an_ipv4_mapped_network_equals_its_ipv4_network() {
    let trusts = |item: &str, address: &str| trusted(&[item]).unwrap().trusts(address.parse().unwrap());
    for item in ["10.0.0.0/8", "::ffff:10.0.0.0/104"] {
        assert!(trusts(item, "10.1.2.3") && trusts(item, "::ffff:10.1.2.3"), "{item}");
        assert!(!trusts(item, "11.1.2.3") && !trusts(item, "::ffff:11.1.2.3"), "{item}");
    }
    assert!(trusts("::ffff:10.0.0.1", "10.0.0.1") && !trusts("::ffff:10.0.0.1", "10.0.0.2"));
    assert!(trusts("::1", "::1") && !trusts("::1", "::2"));
}
