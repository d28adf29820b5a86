//! Bytes on the TLS port that are no handshake of today: older protocols, garbage, records that lie about their length.
//!
//! Each ends with an alert or a close, in time, and nothing of HTTP is answered. There is no renegotiation to try:
//! rustls has none.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stage0_tests::{Api, Raw, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEADER_TIMEOUT: [&str; 2] = ["--header-timeout-ms", "1000"];
/// Longer than any limit of the gateway here.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
const BYTE_INTERVAL: Duration = Duration::from_millis(40);
/// A fatal alert, in a record of its own.
const ALERT_BYTES: usize = 7;
const PROTOCOL_VERSION: u8 = 70;
const HANDSHAKE_FAILURE: u8 = 40;

/// What comes back until the gateway closes the connection. It may do so before all is sent.
async fn answer(address: &str, bytes: &[u8], pace: Option<Duration>) -> Vec<u8> {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    match pace {
        None => drop(tcp.write_all(bytes).await),
        Some(pace) => {
            let mut pace = tokio::time::interval(pace);
            for byte in bytes {
                pace.tick().await;
                if tcp.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
        }
    }
    let mut all = Vec::new();
    let read = tokio::time::timeout(CLOSE_TIMEOUT, tcp.read_to_end(&mut all)).await;
    // A reset is a close as well.
    drop(read.expect("the gateway closes the connection"));
    all
}

fn u16_bytes(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap().to_be_bytes()
}

fn record(kind: u8, version: [u8; 2], content: &[u8]) -> Vec<u8> {
    [&[kind][..], &version, &u16_bytes(content.len()), content].concat()
}

/// A ClientHello of this version, with these cipher suites and this server name.
fn hello(version: [u8; 2], ciphers: &[u8], name: Option<&[u8]>) -> Vec<u8> {
    let mut body = [&version[..], &[0x5a; 32], &[0], &u16_bytes(ciphers.len()), ciphers, &[1, 0]].concat();
    if let Some(name) = name {
        let entry = [&[0][..], &u16_bytes(name.len()), name].concat();
        let list = [&u16_bytes(entry.len())[..], &entry].concat();
        let server_name = [&[0, 0][..], &u16_bytes(list.len()), &list].concat();
        let groups: [u8; 8] = [0, 10, 0, 4, 0, 2, 0, 0x1d];
        let signatures: [u8; 8] = [0, 13, 0, 4, 0, 2, 4, 3];
        let extensions = [&server_name[..], &groups, &signatures].concat();
        body = [&body[..], &u16_bytes(extensions.len()), &extensions].concat();
    }
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    message.chunks(16_000).flat_map(|part| record(22, [3, 1], part)).collect()
}

const TODAY: &[u8] = &[0xc0, 0x2b, 0xc0, 0x2f];
const NAME: Option<&[u8]> = Some(b"localhost");

#[tokio::test]
async fn older_protocols_end_with_an_alert() {
    let stack = Stack::build().gateway_with(&HEADER_TIMEOUT).dev().await;
    let address = stack.address();
    for (protocol, bytes) in [
        ("SSL 3.0", hello([3, 0], TODAY, None)),
        ("TLS 1.0", hello([3, 1], TODAY, NAME)),
        ("TLS 1.1", hello([3, 2], TODAY, NAME)),
        ("TLS 1.2 with RC4", hello([3, 3], &[0, 5], NAME)),
        ("TLS 1.2 without forward secrecy", hello([3, 3], &[0, 0x2f], NAME)),
        ("TLS 1.2 without a cipher", hello([3, 3], &[0, 0], NAME)),
    ] {
        let answer = answer(&address, &bytes, None).await;
        assert!(answer.len() == ALERT_BYTES && answer[0] == 21 && answer[5] == 2, "{protocol}: {answer:?}");
        assert!([PROTOCOL_VERSION, HANDSHAKE_FAILURE].contains(&answer[6]), "{protocol}: {answer:?}");
    }
    // The same hello of a protocol that is spoken goes on: the gateway's own hello, in a handshake record.
    let spoken = answer(&address, &hello([3, 3], TODAY, NAME), None).await;
    assert!(spoken.len() > 100 && spoken[0] == 22, "{spoken:?}");
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn what_is_no_handshake_ends_at_once_and_is_answered_by_no_http() {
    let stack = Stack::build().gateway_with(&HEADER_TIMEOUT).dev().await;
    let address = stack.address();
    let ssl2 = [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[7; 37]].concat();
    let cases = [
        ("SSL 2.0", ssl2),
        ("garbage", (128..=255).cycle().take(1_000).collect()),
        ("zeros", vec![0; 10_000]),
        ("application data first", record(23, [3, 3], b"GET / HTTP/1.1\r\n\r\n")),
        ("a record longer than any", [&[22, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat()),
        ("a hello of 16 MB", record(22, [3, 1], &[1, 0xff, 0xff, 0xff])),
        ("empty records", [22, 3, 1, 0, 0].repeat(5_000)),
        ("warnings without end", record(21, [3, 1], &[1, 90]).repeat(5_000)),
        ("changes of a cipher", record(20, [3, 3], &[1]).repeat(5_000)),
        ("a heartbeat that lies", record(24, [3, 2], &[1, 0x40, 0])),
        ("two hellos", hello([3, 3], TODAY, NAME).repeat(2)),
        ("a name of 60,000 bytes", hello([3, 3], TODAY, Some(&[b'a'; 60_000]))),
        ("an empty name", hello([3, 3], TODAY, Some(b""))),
        ("a name that is none", hello([3, 3], TODAY, Some(b"\xff\0\r\nHost: x"))),
        ("a hello, then HTTP", [hello([3, 3], TODAY, NAME), b"GET /healthz HTTP/1.1\r\n\r\n".to_vec()].concat()),
    ];
    for (what, bytes) in &cases {
        let started = Instant::now();
        let answer = answer(&address, bytes, None).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
        // Nothing, an alert, or first the gateway's own hello.
        assert!(answer.is_empty() || [21, 22].contains(&answer[0]), "{what}: {answer:?}");
        assert!(!answer.windows(5).any(|part| part == b"HTTP/"), "{what}: {}", answer.escape_ascii());
    }
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn handshakes_that_break_off_or_come_byte_by_byte_end_at_the_deadline() {
    let stack = Stack::build().gateway_with(&HEADER_TIMEOUT).dev().await;
    let address = stack.address();
    let whole = hello([3, 3], TODAY, NAME);
    let started = Instant::now();
    let cut = [1, 4, 5, 6, 40, whole.len() - 1].map(|length| answer(&address, &whole[..length], None));
    let (cut, slow) = tokio::join!(join_all(cut), answer(&address, &whole, Some(BYTE_INTERVAL)));
    assert!(cut.iter().chain([&slow]).all(|answer| answer.len() <= ALERT_BYTES), "{cut:?} {slow:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    // Those that are in time are served.
    let mut raw = Raw::connect(&address, &stack.ca()).await;
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 200"));
}
