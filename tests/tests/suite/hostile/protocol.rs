//! Clients that lie, stall, flood or disguise. None gets a decision it should not have, none stops the others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_tests::{Api, Raw, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Short limits, so that a test of them is short.
const IMPATIENT: [&str; 4] = ["--header-timeout-ms", "1000", "--body-timeout-ms", "1000"];

fn head(stack: &Stack, framing: &str) -> String {
    let key = stack.api.key.clone().unwrap();
    format!(
        "POST /check HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n\
         Content-Type: application/json\r\n{framing}\r\n\r\n"
    )
}

fn harmless() -> String {
    Api::harmless().to_string()
}

async fn alive(stack: &Stack) {
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn stalled_handshakes_headers_and_bodies_end_in_time() {
    let stack = Stack::build().gateway_with(&IMPATIENT).dev().await;
    let started = Instant::now();
    // Half a handshake: the first bytes of a ClientHello.
    assert!(Raw::plain(&stack.address(), b"\x16\x03\x01\x02\x00\x01\x00").await.len() < 100);
    // Headers that never end.
    let mut slow = Raw::connect(&stack.address(), &stack.ca()).await;
    slow.send(b"POST /check HTTP/1.1\r\nHost: localhost\r\nx-a").await;
    let answer = slow.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A body that never ends.
    let mut slow = Raw::connect(&stack.address(), &stack.ca()).await;
    slow.send(format!("{}{{\"goal\"", head(&stack, "Content-Length: 100")).as_bytes()).await;
    let answer = slow.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    alive(&stack).await;
}

#[tokio::test]
async fn headers_that_stall_on_a_second_request_end_in_time_too() {
    let stack = Stack::build().gateway_with(&IMPATIENT).gateway_with(&["--keep-alive-ms", "2000"]).dev().await;
    let mut slow = Raw::connect(&stack.address(), &stack.ca()).await;
    slow.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(slow.until("\"ok\"").await.contains("200 OK"));
    slow.send(b"GET /healthz HTTP/1.1\r\nHost: loc").await;
    let answer = slow.rest().await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_body_that_lies_about_its_length_gets_no_decision() {
    let stack = Stack::build().gateway_with(&IMPATIENT).dev().await;
    let body = harmless();
    // Shorter than said, then closed.
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    raw.send(format!("{}{body}", head(&stack, &format!("Content-Length: {}", body.len() + 5))).as_bytes()).await;
    assert!(!raw.rest().await.contains("verdict"));
    // Longer than said: what is cut off is no JSON, and the rest is no request.
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    raw.send(format!("{}{body}", head(&stack, &format!("Content-Length: {}", body.len() - 3))).as_bytes()).await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400") && !answer.contains("verdict"), "{answer}");
    alive(&stack).await;
}

#[tokio::test]
async fn http_framing_tricks_get_no_decision() {
    let stack = Stack::build().gateway_with(&IMPATIENT).dev().await;
    let body = harmless();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    for (framing, body) in [
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), &chunked),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"), &body),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".into(), &chunked),
        ("Transfer-Encoding: xchunked".into(), &chunked),
        ("Transfer-Encoding: chunked, identity".into(), &chunked),
        ("Transfer-Encoding : chunked".into(), &chunked),
        ("Transfer-Encoding: \x0bchunked".into(), &chunked),
        (format!("Content-Length: {length}\r\nContent-Length: {length}"), &body),
        (format!("Content-Length: +{length}"), &body),
        ("Content-Length: -1".into(), &body),
        ("Content-Length: 99999999999999999999999".into(), &body),
        (format!("Content-Length: {length}, {length}"), &body),
        (format!("Host: other\r\nContent-Length: {length}"), &body),
        (format!(" Folded: x\r\nContent-Length: {length}"), &body),
    ] {
        let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
        raw.send(format!("{}{body}", head(&stack, &framing)).as_bytes()).await;
        let answer = raw.rest().await;
        assert!(!answer.contains("verdict"), "{framing:?}: {answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{framing:?}: {answer}");
    }
    // Honest chunks are fine, endless ones are not.
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    raw.send(format!("{}{chunked}", head(&stack, "Transfer-Encoding: chunked\r\nConnection: close")).as_bytes()).await;
    assert!(raw.rest().await.contains("\"verdict\":\"ALLOW\""));
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    raw.send(head(&stack, "Transfer-Encoding: chunked").as_bytes()).await;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    for _ in 0..400 {
        raw.send(chunk.as_bytes()).await;
    }
    let answer = raw.rest().await;
    assert!(answer.contains("body_too_large") || answer.is_empty(), "{answer}");
    alive(&stack).await;
}

#[tokio::test]
async fn a_request_that_grows_in_normalisation_delays_no_other() {
    let stack = Stack::build().dev().await;
    // One character that NFKC turns into eighteen, as often as the limits allow.
    let item = "\u{fdfa}".repeat(1_000);
    for field in ["tools", "constraints", "side_effects"] {
        let body = json!({"goal": "Summarise the report", field: vec![item.as_str(); 100], "context": {}});
        let harmless = Api::harmless();
        let (grown, neighbour) = tokio::join!(stack.api.check(&body), stack.api.check(&harmless));
        assert!([200, 503].contains(&grown.status), "{field}: {}", grown.text);
        assert_eq!(neighbour.status, 200, "{field}: {}", neighbour.text);
        alive(&stack).await;
    }
}

#[tokio::test]
async fn two_api_keys_in_one_request_count_as_none() {
    let stack = Stack::build().dev().await;
    let other = stack.operator.key.clone().unwrap();
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    let framing = format!("x-api-key: {other}\r\nConnection: close\r\nContent-Length: {}", harmless().len());
    raw.send(format!("{}{}", head(&stack, &framing), harmless()).as_bytes()).await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn strange_text_in_any_field_is_data_and_never_an_allow_for_a_disguised_effect() {
    let stack = Stack::build().dev().await;
    let strange = [
        "\u{0}",
        "\u{1}\u{2}",
        "\u{1b}[31m",
        "\r\nx-injected: 1",
        "\u{202e}yolped",
        "\u{feff}",
        "\u{e0061}",
        "\u{fffd}",
        "{{7*7}}",
        "'; DROP TABLE keys; --",
        "../../etc/passwd",
        "\u{10ffff}",
    ];
    for text in strange {
        for field in [
            "goal",
            "success_criteria",
            "constraints",
            "tools",
            "side_effects",
            "environment",
            "policy_pack_version",
            "actor_role",
            "approval_status",
            "run_id",
            "name",
        ] {
            let mut body = json!({"goal": "Do the thing", "tools": ["t"], "context": {}});
            match field {
                "goal" | "environment" | "policy_pack_version" => body[field] = text.into(),
                "actor_role" | "approval_status" | "run_id" => body["context"][field] = text.into(),
                "name" => body["context"][text] = 1.into(),
                _ => body[field] = json!([text]),
            }
            let answer = stack.api.check(&body).await;
            assert!([200, 422].contains(&answer.status), "{field} {text:?}: {}", answer.text);
            assert!(answer.headers.get("x-injected").is_none());
        }
    }
    for disguise in [
        "DEPLOY",
        " deploy ",
        "ｄｅｐｌｏｙ",
        "de\u{200b}ploy",
        "d\u{435}ploy",
        "deploy\u{0}",
        "dep\u{ad}loy",
        "production-deploy",
        "deploy\u{301}",
        "de ploy",
        "write: deploy",
        "\u{202e}yolped",
    ] {
        let body = json!({"goal": "Do the thing now", "tools": ["t"], "side_effects": [disguise],
            "context": {"approval_status": "approved"}});
        let answer = stack.api.check(&body).await.expect(200);
        assert_eq!(answer["verdict"], "DENY", "{disguise:?}: {answer}");
    }
    for forged in [
        json!(true),
        json!("APPROVED?"),
        json!(["approved"]),
        json!({"status": "approved"}),
        json!("\u{430}pproved"),
        json!("almost approved"),
        json!(1),
        Value::Null,
        json!("approved\u{0}"),
        json!("approved by nobody"),
    ] {
        let body = json!({"goal": "Do the thing now", "tools": ["t"], "side_effects": ["deploy"],
            "constraints": ["approval required"], "context": {"approval_status": forged}});
        let answer = stack.api.check(&body).await.expect(200);
        assert_eq!(answer["verdict"], "DEFER", "{forged}: {answer}");
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_stop_no_other_client() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert!(
        limit.maximum.is_none_or(|most| most > 11_000),
        "the test needs 11,000 open files, `ulimit -Hn` is {:?}",
        limit.maximum
    );
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    )
    .unwrap();
    // Long limits, so that all of them are open at the same time.
    let stack = Stack::build().gateway_with(&["--header-timeout-ms", "60000"]).dev().await;
    let mut idle = Vec::new();
    for _ in 0..10_000 {
        idle.push(TcpStream::connect(stack.address()).await.unwrap());
    }
    let mut greeted = Vec::new();
    for _ in 0..100 {
        greeted.push(Raw::connect(&stack.address(), &stack.ca()).await);
    }
    let started = Instant::now();
    for _ in 0..20 {
        alive(&stack).await;
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop((idle, greeted));
    alive(&stack).await;
}

#[tokio::test]
async fn idle_connections_that_never_shake_hands_are_closed() {
    let stack = Stack::build().gateway_with(&IMPATIENT).dev().await;
    let mut idle = TcpStream::connect(stack.address()).await.unwrap();
    idle.write_all(b"").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut rest)).await;
    assert!(closed.is_ok());
}
