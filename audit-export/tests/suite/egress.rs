//! Single attempts against receivers that work, misbehave or do not exist.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use stage0_audit_export::egress::{Egress, EgressConfig, Resolver, Response, SendError};
use stage0_contract::{AccountId, WebhookUrl};

use crate::authority::Authority;
use crate::receiver::{Answer, Receiver};

/// For attempts that end with the timeout; the others here take far less.
const SHORT_TIMEOUT: Duration = Duration::from_millis(300);
/// A public address in an unassigned block: packets to it are lost.
const UNREACHABLE: &str = "2d00::1";

fn local() -> EgressConfig {
    EgressConfig { dangerous_allow_private: true, ..EgressConfig::default() }
}

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn egress(config: &EgressConfig) -> Egress {
    Egress::build(config, Resolver::System).unwrap()
}

/// Answers each lookup with the next line, then always with the last one, and counts the lookups.
fn script(answers: &'static [&'static [&'static str]]) -> (Resolver, Arc<AtomicUsize>) {
    let lookups = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&lookups);
    let resolver = Resolver::Scripted(Box::new(move |_| {
        let answer = answers[counter.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
        Ok(answer.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect())
    }));
    (resolver, lookups)
}

async fn post(egress: &Egress, url: &str) -> Result<Response, SendError> {
    let url = WebhookUrl::parse(url, true).unwrap();
    egress.post(&account(), &url, HeaderMap::new(), Bytes::from_static(b"{}")).await
}

async fn status(egress: &Egress, url: &str) -> u16 {
    post(egress, url).await.unwrap().status
}

#[tokio::test]
async fn a_request_arrives_as_it_was_given() {
    let mut receiver = Receiver::plain().await;
    let url = WebhookUrl::parse(&receiver.url("/in/secret?x=1"), true).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", HeaderValue::from_static("evt_1"));
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    let body = Bytes::from_static(b"{\"type\":\"decision.recorded\"}");
    let response = egress(&local()).post(&account(), &url, headers, body.clone()).await.unwrap();
    assert_eq!((response.status, response.retry_after), (200, None));

    let request = receiver.next().await;
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/in/secret?x=1"));
    assert_eq!(request.body, body);
    assert_eq!(request.header("webhook-id"), Some("evt_1"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("host"), Some(receiver.address.to_string().as_str()));
    assert_eq!(request.header("user-agent"), Some(concat!("stage0/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(request.header("accept-encoding"), None);
    assert_eq!(request.header("referer"), None);
    assert!(receiver.another().is_none());
}

#[tokio::test]
async fn a_connection_is_reused_between_deliveries_when_responses_have_small_bodies() {
    let mut receiver = Receiver::plain().await;
    receiver.answer([Answer::status(200).body(&[b'x'; 1000]), Answer::status(500).body(b"sorry"), Answer::status(200)]);
    let egress = egress(&local());
    for expected in [200, 500, 200] {
        assert_eq!(status(&egress, &receiver.url("/")).await, expected);
        assert_eq!(receiver.next().await.connection, 0);
    }
}

#[tokio::test]
async fn every_status_is_a_response_and_retry_after_is_returned() {
    let receiver = Receiver::plain().await;
    receiver.answer([
        Answer::status(410),
        Answer::status(429).with("retry-after", "120"),
        Answer::status(503).with("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"),
        Answer::status(503).with("retry-after", &"1".repeat(1000)),
        Answer::status(500),
    ]);
    let egress = egress(&local());
    for (status, retry_after) in
        [(410, None), (429, Some("120")), (503, Some("Fri, 31 Dec 1999 23:59:59 GMT")), (503, None), (500, None)]
    {
        let response = post(&egress, &receiver.url("/")).await.unwrap();
        assert_eq!((response.status, response.retry_after.as_deref()), (status, retry_after));
    }
}

#[tokio::test]
async fn an_attempt_times_out_when_the_receiver_answers_late_or_never() {
    let receiver = Receiver::plain().await;
    receiver.answer([Answer::Late(Duration::from_secs(20)), Answer::Hang]);
    let egress = egress(&EgressConfig { timeout: SHORT_TIMEOUT, ..local() });
    for _ in 0..2 {
        assert_eq!(post(&egress, &receiver.url("/")).await, Err(SendError::Timeout));
    }
}

#[tokio::test]
async fn a_status_counts_even_if_the_body_never_arrives() {
    let receiver = Receiver::plain().await;
    receiver.answer([Answer::HangInBody]);
    let egress = egress(&EgressConfig { timeout: SHORT_TIMEOUT, ..local() });
    assert_eq!(status(&egress, &receiver.url("/")).await, 200);
}

#[tokio::test]
async fn an_endless_response_body_is_cut_off() {
    let mut receiver = Receiver::plain().await;
    receiver.answer([Answer::Endless(200), Answer::Endless(500)]);
    let egress = egress(&local());
    for expected in [200, 500] {
        let began = Instant::now();
        assert_eq!(status(&egress, &receiver.url("/")).await, expected);
        assert!(began.elapsed() < Duration::from_secs(10), "it ended by the timeout, not by the size");
        // It could fill the socket buffers on both sides.
        let streamed = receiver.streamed().await;
        assert!(streamed < 64 * 1024 * 1024, "{streamed} bytes were taken");
    }
}

#[tokio::test]
async fn a_compressed_response_body_is_not_decompressed() {
    let receiver = Receiver::plain().await;
    receiver.answer([Answer::status(200).with("content-encoding", "gzip").body(b"this is no gzip")]);
    assert_eq!(status(&egress(&local()), &receiver.url("/")).await, 200);
}

#[tokio::test]
async fn a_redirect_is_a_response_and_is_not_followed() {
    let mut receiver = Receiver::plain().await;
    let own = receiver.url("/elsewhere");
    let locations = ["http://169.254.169.254/", "http://169.254.169.254/latest/meta-data/", own.as_str()];
    let egress = egress(&local());
    for (expected, location) in
        [301, 302, 303, 307, 308].into_iter().flat_map(|s| locations.map(|location| (s, location)))
    {
        receiver.answer([Answer::status(expected).with("location", location)]);
        assert_eq!(status(&egress, &receiver.url("/first")).await, expected);
        assert_eq!(receiver.next().await.path, "/first");
        assert!(receiver.another().is_none(), "{location} was followed");
    }
}

#[tokio::test]
async fn a_name_is_resolved_once_so_it_cannot_change_between_check_and_connection() {
    let mut receiver = Receiver::plain().await;
    let (resolver, lookups) = script(&[&[UNREACHABLE], &["127.0.0.1"]]);
    let egress = Egress::build(&EgressConfig { timeout: SHORT_TIMEOUT, ..EgressConfig::default() }, resolver).unwrap();
    let url = receiver.url_of("rebind.example", "/").replace("http:", "https:");

    let first = post(&egress, &url).await;
    assert!(matches!(first, Err(SendError::Timeout | SendError::Unreachable(_))), "{first:?}");
    assert_eq!(lookups.load(Ordering::Relaxed), 1);
    assert_eq!(post(&egress, &url).await, Err(SendError::Refused("loopback")));
    assert_eq!(lookups.load(Ordering::Relaxed), 2);
    receiver.assert_untouched().await;
}

#[tokio::test]
async fn one_refused_address_among_public_ones_refuses_the_host() {
    let mut receiver = Receiver::plain().await;
    let answers: [&'static [&'static str]; 3] =
        [&[UNREACHABLE, "127.0.0.1"], &["127.0.0.1", UNREACHABLE], &["8.8.8.8", UNREACHABLE, "::ffff:127.0.0.1"]];
    for answer in answers {
        let resolver = Resolver::Scripted(Box::new(move |_| Ok(answer.iter().map(|ip| ip.parse().unwrap()).collect())));
        let egress = Egress::build(&EgressConfig::default(), resolver).unwrap();
        let url = receiver.url_of("mixed.example", "/").replace("http:", "https:");
        assert!(matches!(post(&egress, &url).await, Err(SendError::Refused(_))), "{answer:?}");
    }
    receiver.assert_untouched().await;
}

#[tokio::test]
async fn a_host_is_checked_again_although_its_connection_is_still_open() {
    let mut receiver = Receiver::plain().await;
    let (resolver, _) = script(&[&["127.0.0.1"], &["169.254.169.254"], &["127.0.0.1"]]);
    let egress = Egress::build(&local(), resolver).unwrap();
    let url = receiver.url_of("moving.example", "/");
    assert_eq!(status(&egress, &url).await, 200);
    assert_eq!(post(&egress, &url).await, Err(SendError::Refused("link-local")));
    assert_eq!(status(&egress, &url).await, 200);
    assert_eq!([receiver.next().await.connection, receiver.next().await.connection], [0, 0]);
    assert!(receiver.another().is_none());
}

#[tokio::test]
async fn a_host_that_moves_is_reached_only_at_its_new_address() {
    let mut receiver = Receiver::plain().await;
    let (resolver, _) = script(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let egress = Egress::build(&local(), resolver).unwrap();
    let url = receiver.url_of("moving.example", "/");
    assert_eq!(status(&egress, &url).await, 200);
    // The receiver listens only on the first address.
    assert_eq!(post(&egress, &url).await, Err(SendError::Unreachable("it was refused")));
    receiver.next().await;
    assert!(receiver.another().is_none());
}

#[tokio::test]
async fn no_spelling_of_a_local_address_is_allowed() {
    let mut receiver = Receiver::plain().await;
    let egress = egress(&EgressConfig::default());
    let hosts = [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
        "0",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2606:4700::5efe:127.0.0.1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "localhost",
        "LOCALHOST",
    ];
    for host in hosts {
        let url = receiver.url_of(host, "/").replace("http:", "https:");
        assert!(matches!(post(&egress, &url).await, Err(SendError::Refused(_))), "{host}");
    }
    receiver.assert_untouched().await;
}

#[tokio::test]
async fn plain_http_is_allowed_only_to_local_addresses_and_only_in_the_dangerous_mode() {
    let mut receiver = Receiver::plain().await;
    // The URL was created in the dangerous mode, and the service was restarted without it.
    assert_eq!(post(&egress(&EgressConfig::default()), &receiver.url("/")).await, Err(SendError::Refused("loopback")));
    let (resolver, _) = script(&[&[UNREACHABLE]]);
    let strict = Egress::build(&EgressConfig::default(), resolver).unwrap();
    assert_eq!(post(&strict, "http://public.example/").await, Err(SendError::PlainHttp));
    let (resolver, _) = script(&[&[UNREACHABLE], &["127.0.0.1", UNREACHABLE], &["169.254.169.254"]]);
    let dangerous = Egress::build(&local(), resolver).unwrap();
    for why in [SendError::PlainHttp, SendError::PlainHttp, SendError::Refused("link-local")] {
        let url = receiver.url_of("public.example", "/");
        assert_eq!(post(&dangerous, &url).await, Err(why));
    }
    receiver.assert_untouched().await;
    assert_eq!(status(&dangerous, &receiver.url("/")).await, 200);
}

#[tokio::test]
async fn a_certificate_must_be_signed_by_a_trusted_authority_for_that_host() {
    let (authority, stranger) = (Authority::default(), Authority::default());
    let mut receiver = Receiver::tls(&authority, &["hooks.example", "127.0.0.1"]).await;
    let trusting = |authority: &Authority| {
        let config = EgressConfig { extra_ca: Some(authority.file()), ..local() };
        Egress::build(&config, script(&[&["127.0.0.1"]]).0).unwrap()
    };
    let good = trusting(&authority);
    for host in ["hooks.example", "127.0.0.1"] {
        assert_eq!(status(&good, &receiver.url_of(host, "/")).await, 200);
        receiver.next().await;
    }
    let wrong_name = Err(SendError::Tls("its certificate is for another name"));
    assert_eq!(post(&good, &receiver.url_of("other.example", "/")).await, wrong_name);
    let unknown = Err(SendError::Tls("its certificate is not signed by a trusted authority"));
    assert_eq!(post(&trusting(&stranger), &receiver.url_of("hooks.example", "/")).await, unknown);
    assert_eq!(post(&egress(&local()), &receiver.url("/")).await, unknown);
    assert!(receiver.another().is_none());
}

#[tokio::test]
async fn an_endless_response_body_over_tls_is_cut_off_too() {
    let authority = Authority::default();
    let mut receiver = Receiver::tls(&authority, &["127.0.0.1"]).await;
    receiver.answer([Answer::Endless(200)]);
    let egress = egress(&EgressConfig { extra_ca: Some(authority.file()), ..local() });
    assert_eq!(status(&egress, &receiver.url("/")).await, 200);
    assert!(receiver.streamed().await < 64 * 1024 * 1024);
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_or_tls_gives_a_specific_error() {
    let receiver = Receiver::plain().await;
    let egress = egress(&EgressConfig { timeout: Duration::from_secs(10), ..local() });
    receiver.answer([
        Answer::Close,
        Answer::Raw(b"220 mail.example ESMTP\r\n"),
        Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-le"),
    ]);
    for _ in 0..3 {
        assert_eq!(post(&egress, &receiver.url("/")).await, Err(SendError::Broken));
    }
    let secured = receiver.url("/").replace("http:", "https:");
    assert_eq!(post(&egress, &secured).await, Err(SendError::Tls("the TLS handshake failed")));
    let url = receiver.url("/");
    drop(receiver);
    assert!(matches!(post(&egress, &url).await, Err(SendError::Unreachable(_))));
}

#[tokio::test]
async fn a_stalled_tls_handshake_ends_with_the_connect_timeout() {
    // The kernel accepts the connection; no byte is ever sent on it.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let egress = egress(&EgressConfig { connect_timeout: SHORT_TIMEOUT, ..local() });
    let url = format!("https://{}/", silent.local_addr().unwrap());
    assert_eq!(post(&egress, &url).await, Err(SendError::Unreachable("it took too long")));
}

#[tokio::test]
async fn a_name_without_addresses_is_not_resolved() {
    let failing = Resolver::Scripted(Box::new(|_| Err(std::io::Error::other("no such host"))));
    let (empty, _) = script(&[&[]]);
    for resolver in [failing, empty] {
        let egress = Egress::build(&EgressConfig::default(), resolver).unwrap();
        assert_eq!(post(&egress, "https://gone.example/").await, Err(SendError::Unresolved));
    }
    // The resolver refuses a label of this length without a query.
    let impossible = format!("https://{}.example/", "x".repeat(64));
    assert_eq!(post(&egress(&EgressConfig::default()), &impossible).await, Err(SendError::Unresolved));
}
