//! Plain HTTP on the TLS port: one readable refusal, whatever is asked, and never a decision.

use std::time::{Duration, Instant};

use serde_json::Value;
use stage0_tests::{Api, Balancer, Raw, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The one answer: its status line, headers and body.
fn refused(answer: &[u8]) {
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer: {text:?}"));
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name);
        lines.unwrap_or_else(|| panic!("{name} in {head}")).1.to_owned()
    };
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("content-length"), body.len().to_string(), "and nothing else");
    assert_eq!(header("connection"), "close");
    assert!(!head.to_ascii_lowercase().contains("location"));
    let body: Value = serde_json::from_str(body).unwrap();
    assert!(body["message"].as_str().unwrap().contains("`https://`"), "{body}");
    assert_eq!(body["error"], "bad_request");
    assert_eq!(body["detail"]["detail"], body["message"]);
    assert_eq!(body["detail"]["request_id"], body["request_id"]);
    assert_eq!(body["request_id"], header("x-request-id"));
    assert!(body.get("verdict").is_none() && body.get("decision").is_none());
}

fn check(stack: &Stack) -> Vec<u8> {
    let (body, key) = (Api::harmless().to_string(), stack.api.key.as_ref().unwrap());
    let length = body.len();
    format!(
        "POST /check HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn plain_http_is_told_to_use_https_and_is_never_decided() {
    let stack = Stack::build().dev().await;
    let large = [&b"POST /check HTTP/1.1\r\nContent-Length: 900000\r\n\r\n"[..], &vec![b'x'; 900_000]].concat();
    for request in [
        check(&stack),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"OPTIONS * HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"get /healthz\r\n".to_vec(),
        large,
    ] {
        refused(&Raw::plain(&stack.address(), &request).await);
    }
    assert!(stack.api.decisions("").await.is_empty(), "nothing was decided");
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn a_first_byte_that_starts_no_http_method_is_handled_as_tls() {
    let stack = Stack::build().dev().await;
    for bytes in [&b"\x16\x03\x01\0\x05hello"[..], b"\0\0\0\0\0\0", b"\r\nGET / HTTP/1.1\r\n\r\n", b"{\"goal\": 1}\r\n"]
    {
        let answer = Raw::plain(&stack.address(), bytes).await;
        assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    }
}

#[tokio::test]
async fn plain_http_that_trickles_or_says_nothing_is_cut_by_the_time_of_a_handshake() {
    let stack = Stack::build().gateway_with(&["--header-timeout-ms", "500"]).dev().await;
    let began = Instant::now();
    // It has its answer at once, and then no more time than a handshake.
    let mut trickling = TcpStream::connect(stack.address()).await.unwrap();
    trickling.write_all(b"P").await.unwrap();
    let mut answer = Vec::new();
    trickling.read_to_end(&mut answer).await.unwrap();
    refused(&answer);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while trickling.write_all(b"O").await.is_ok() {
        ticks.tick().await;
        assert!(began.elapsed() < Duration::from_secs(20), "the connection is still open");
    }
    assert!(Raw::plain(&stack.address(), b"").await.is_empty(), "who says nothing gets nothing");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn plain_http_behind_a_balancer_gets_the_same_answer() {
    let stack = Stack::build().gateway_with(&["--proxy-protocol-from", "127.0.0.2"]).dev().await;
    let balancer = Balancer::start("127.0.0.2", &stack.address(), Balancer::header_of("198.51.100.7")).await;
    let address = balancer.url.replace("https://localhost", "127.0.0.1");
    refused(&Raw::plain(&address, &check(&stack)).await);
    refused(&Raw::plain(&stack.address(), &check(&stack)).await);
    stack.api.at(&balancer.url).check(&Api::harmless()).await.expect(200);
    assert_eq!(stack.api.decisions("").await.len(), 1);
}
