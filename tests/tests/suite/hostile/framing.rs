//! HTTP that two readers could divide differently, and clients that send a byte at a time. What a balancer in front
//! takes for a part of one request must not be another request to the gateway.
//!
//! Each case counts the answers: one too many is to a request that no client sent.

use std::time::{Duration, Instant};

use stage0_tests::{Api, Raw, Stack};

/// Short limits, so that a test of them is short.
const IMPATIENT: [&str; 4] = ["--header-timeout-ms", "1000", "--body-timeout-ms", "1000"];
/// Between two bytes of a slow client.
const BYTE_INTERVAL: Duration = Duration::from_millis(40);
/// Longer than the limits, at one byte in each interval.
const SLOW_BYTES: usize = 75;

struct Gateway {
    stack: Stack,
    key: String,
    body: String,
}

impl Gateway {
    async fn start() -> Self {
        let stack = Stack::build().gateway_with(&IMPATIENT).gateway_with(&["--keep-alive-ms", "1000"]).dev().await;
        let key = stack.api.key.clone().unwrap();
        Self { stack, key, body: Api::harmless().to_string() }
    }

    /// The head of a check with these headers, each with its line end.
    fn head(&self, version: &str, headers: &str) -> String {
        format!(
            "POST /check HTTP/{version}\r\nHost: localhost\r\nx-api-key: {}\r\nContent-Type: application/json\r\n\
             {headers}\r\n",
            self.key
        )
    }

    fn length(&self) -> String {
        format!("Content-Length: {}\r\n", self.body.len())
    }

    /// A whole check, as it could stand hidden in another request.
    fn check(&self) -> String {
        format!("{}{}", self.head("1.1", &self.length()), self.body)
    }

    /// A check whose body begins with this line for its chunk, and ends as given.
    fn chunked(&self, size: &str, end: &str) -> String {
        let head = self.head("1.1", "Transfer-Encoding: chunked\r\nConnection: close\r\n");
        format!("{head}{size}{}{end}", self.body)
    }

    /// All that comes back until the gateway closes the connection.
    async fn sent(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut raw = Raw::connect(&self.stack.address(), &self.stack.ca()).await;
        raw.send(bytes.as_ref()).await;
        raw.rest().await
    }

    /// The same, a byte at a time.
    async fn trickled(&self, at_once: &str, slowly: &str) -> String {
        assert!(slowly.len() >= SLOW_BYTES, "the test is slower than the limits");
        let mut raw = Raw::connect(&self.stack.address(), &self.stack.ca()).await;
        raw.send(at_once.as_bytes()).await;
        let mut pace = tokio::time::interval(BYTE_INTERVAL);
        for byte in slowly.bytes().take(SLOW_BYTES) {
            pace.tick().await;
            raw.send(&[byte]).await;
        }
        raw.rest().await
    }

    async fn is_alive(&self) {
        self.stack.api.check(&Api::harmless()).await.expect(200);
    }
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count() + text.matches("HTTP/1.0 ").count()
}

#[tokio::test]
async fn headers_and_bodies_that_come_byte_by_byte_end_at_the_deadline_of_the_whole() {
    let gateway = Gateway::start().await;
    let started = Instant::now();
    let head = gateway.head("1.1", "Content-Length: 2000\r\n");
    let blanks = " ".repeat(2_000);
    let (heads, body) = tokio::join!(gateway.trickled("", &head), gateway.trickled(&head, &blanks));
    assert!(heads.is_empty() || heads.starts_with("HTTP/1.1 408"), "{heads}");
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("request_timeout"), "{body}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    gateway.is_alive().await;
}

#[tokio::test]
async fn a_head_that_readers_divide_differently_gets_no_decision() {
    let gateway = Gateway::start().await;
    let length = gateway.length();
    let body = &gateway.body;
    for headers in [
        // A carriage return or a line feed by itself, which some readers take for the end of a line.
        format!("X-A: a\rTransfer-Encoding: chunked\r\n{length}"),
        format!("X-A: a\nTransfer-Encoding: chunked\r\n{length}"),
        format!("X-A: a\r\r\n{length}"),
        // Lines that continue the one before.
        format!("Transfer-Encoding:\r\n chunked\r\n{length}"),
        format!("X-A: a\r\n\tb\r\n{length}"),
        // Names that are none.
        format!("X-A: a\0b\r\n{length}"),
        format!("X\0A: a\r\n{length}"),
        format!("Content-Length : {}\r\n", body.len()),
        format!(" Content-Length: {}\r\n", body.len()),
        format!(": x\r\n{length}"),
        format!("garbage\r\n{length}"),
        // Two lengths, or one that is none.
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        format!("{length}Content-Length: 0\r\n"),
        format!("Content-Length: 0x{:x}\r\n", body.len()),
        format!("Content-Length: {}.0\r\n", body.len()),
        "Content-Length:\r\n".to_owned(),
        // Chunks under other names.
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        format!("Transfer-Encoding: identity, chunked\r\n{length}"),
        format!("Transfer-Encoding: \"chunked\"\r\n{length}"),
        format!("Transfer-Encoding: chunked;q=1\r\n{length}"),
    ] {
        let answer = gateway.sent(format!("{}{body}", gateway.head("1.1", &headers))).await;
        assert!(!answer.contains("verdict") && answers(&answer) <= 1, "{headers:?}: {answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{headers:?}: {answer}");
    }
    let carriage_returns = gateway.head("1.1", &length).replace("\r\n", "\r");
    let answer = gateway.sent(format!("{carriage_returns}{body}")).await;
    assert!(!answer.contains("verdict") && answers(&answer) <= 1, "{answer}");
    gateway.is_alive().await;
}

#[tokio::test]
async fn chunks_that_are_not_quite_chunks_get_no_decision() {
    let gateway = Gateway::start().await;
    let size = gateway.body.len();
    let end = "\r\n0\r\n\r\n";
    for (line, end) in [
        (format!("0x{size:x}\r\n"), end),
        (format!("+{size:x}\r\n"), end),
        (format!("-{size:x}\r\n"), end),
        (format!(" {size:x}\r\n"), end),
        (format!("{size:x}\n"), end),
        (format!("{size:x}\r"), end),
        (format!("{size:x};a\nb\r\n"), end),
        (format!("{size:x};a\rb\r\n"), end),
        (format!("{size:x} {size:x}\r\n"), end),
        ("\r\n".to_owned(), end),
        ("fffffffffffffffff\r\n".to_owned(), end),
        (format!("1{size:016x}\r\n"), end),
        (format!("{:x}\r\n", size - 3), end),
        (format!("{size:x}\r\n"), "0\r\n\r\n"),
        (format!("{size:x}\r\n"), "\n0\r\n\r\n"),
        // The body's end does not come.
        (format!("{:x}\r\n", size + 100), end),
        (format!("{size:x}\r\n"), "\r\n0\r\n"),
    ] {
        let answer = gateway.sent(gateway.chunked(&line, end)).await;
        assert!(!answer.contains("verdict") && answers(&answer) <= 1, "{line:?} {end:?}: {answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{line:?} {end:?}: {answer}");
    }
    for line in [format!("{size:x}\r\n"), format!("{size:X};name=value\r\n"), format!("000{size:x}\r\n")] {
        let answer = gateway.sent(gateway.chunked(&line, end)).await;
        assert!(answer.contains("\"verdict\":\"ALLOW\"") && answers(&answer) == 1, "{line:?}: {answer}");
    }
}

#[tokio::test]
async fn what_stands_in_the_body_or_the_trailer_of_a_request_is_no_request() {
    let gateway = Gateway::start().await;
    let hidden = gateway.check();
    let framed = format!("Content-Length: {}\r\n\r\n{hidden}", hidden.len());
    let chunks = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for (start, status) in [
        ("POST /check HTTP/1.1\r\nHost: l\r\nx-api-key: x\r\nContent-Type: application/json\r\n", 401),
        ("POST /nowhere HTTP/1.1\r\nHost: l\r\n", 404),
        ("PUT /check HTTP/1.1\r\nHost: l\r\n", 405),
        ("GET /healthz HTTP/1.1\r\nHost: l\r\n", 200),
        ("CONNECT localhost:22 HTTP/1.1\r\nHost: l\r\n", 404),
    ] {
        for body in [&framed, &chunks] {
            let answer = gateway.sent(format!("{start}{body}")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{start:?}: {answer}");
            assert!(answers(&answer) == 1 && !answer.contains("verdict"), "{start:?}: {answer}");
        }
    }
    // Of two lengths neither counts: the hidden check is in the rest by the one, in the body by the other.
    for start in
        ["Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"]
    {
        for body in [format!("0\r\n\r\nG{hidden}"), format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())] {
            let answer = gateway.sent(format!("{}{body}", gateway.head("1.1", start))).await;
            assert!(answers(&answer) <= 1 && !answer.contains("verdict"), "{start:?}: {answer}");
        }
    }
    // A head in the place of a trailer: its lines are skipped, and its body is no request.
    let size = format!("{:x}\r\n", gateway.body.len());
    let answer = gateway.sent(gateway.chunked(&size, &format!("\r\n0\r\n{hidden}"))).await;
    assert_eq!(answer.matches("\"verdict\"").count(), 1, "{answer}");
    gateway.is_alive().await;
}

#[tokio::test]
async fn a_request_behind_a_refused_one_is_read_only_where_both_ends_are_known() {
    let gateway = Gateway::start().await;
    let check = gateway.head("1.1", &format!("{}Connection: close\r\n", gateway.length())) + &gateway.body;
    for (first, status) in [
        ("GET /usage HTTP/1.1\r\nHost: l\r\n\r\n".to_owned(), 401),
        (gateway.head("1.1", "Content-Length: 2\r\n") + "{}", 422),
        (gateway.head("1.1", "Content-Length: 1\r\n") + "{", 400),
    ] {
        let answer = gateway.sent(first + &check).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answers(&answer) == 2 && answer.contains("\"verdict\":\"ALLOW\""), "{answer}");
    }
    for first in ["GET / HTTP/1.1\r\nbad header\r\n\r\n", "G\0T / HTTP/1.1\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n"] {
        let answer = gateway.sent(format!("{first}{check}")).await;
        assert!(answers(&answer) <= 1 && !answer.contains("verdict"), "{first:?}: {answer}");
    }
}

#[tokio::test]
async fn other_versions_of_http_get_no_decision_by_tricks_of_their_own() {
    let gateway = Gateway::start().await;
    let (length, body) = (gateway.length(), &gateway.body);
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for request in [
        // HTTP/1.0 knows no chunks, and no body without a length.
        gateway.head("1.0", "Transfer-Encoding: chunked\r\n") + &chunks,
        gateway.head("1.0", &format!("{length}Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n")) + body,
        gateway.head("1.0", "") + body,
        gateway.head("1.2", &length) + body,
        gateway.head("2.0", &length) + body,
        gateway.head("1", &length) + body,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(),
        "POST /check\r\n\r\n".to_owned(),
        gateway.head("1.1", &length).replace("Host: localhost\r\n", "") + body,
    ] {
        let answer = gateway.sent(&request).await;
        assert!(!answer.contains("verdict") && answers(&answer) <= 1, "{request:?}: {answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request:?}: {answer}");
    }
    let honest = gateway.head("1.0", &length) + body;
    for request in [honest.clone(), gateway.head("1.0", &format!("{length}Connection: keep-alive\r\n")) + body] {
        let answer = gateway.sent(request).await;
        assert!(answers(&answer) == 1 && answer.contains("\"verdict\":\"ALLOW\""), "{answer}");
    }
}
