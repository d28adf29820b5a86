//! Host names that do not resolve, by a DNS server that does not answer for them: whose attempts they delay, and what
//! their failures reveal.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use stage0_audit_export::egress::{Egress, EgressConfig, Resolver, Response, SendError};
use stage0_contract::{AccountId, WebhookUrl};
use tokio::time::Instant;

use crate::dns::{Dns, Known};
use crate::receiver::Receiver;

/// Knows names that begin with `here`, denies those that begin with `nowhere`.
async fn dns() -> Dns {
    Dns::start(|name| match name.split('-').next() {
        Some("here") => Known::At(Ipv4Addr::LOCALHOST),
        Some("nowhere") => Known::Nowhere,
        _ => Known::Silence,
    })
    .await
}

fn egress(dns: &Dns) -> Arc<Egress> {
    let config =
        EgressConfig { dangerous_allow_private: true, name_servers: vec![dns.address], ..EgressConfig::default() };
    Arc::new(Egress::build(&config, Resolver::System).unwrap())
}

async fn post(egress: &Egress, account: &str, url: &str) -> Result<Response, SendError> {
    let (account, url) = (AccountId::parse(account).unwrap(), WebhookUrl::parse(url, true).unwrap());
    egress.post(&account, &url, HeaderMap::new(), Bytes::from_static(b"{}")).await
}

fn distinct(asked: &[String]) -> Vec<&String> {
    let mut names: Vec<_> = asked.iter().collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[tokio::test]
async fn unresolvable_names_of_one_account_delay_no_other_account() {
    let (dns, receiver) = (dns().await, Receiver::plain().await);
    let (egress, failed) = (egress(&dns), Arc::new(AtomicUsize::new(0)));
    let mut greedy = tokio::task::JoinSet::new();
    for n in 0..1_000 {
        let (egress, failed) = (Arc::clone(&egress), Arc::clone(&failed));
        greedy.spawn(async move {
            let url = format!("http://dead-{}.example/", n % 100);
            let outcome = post(&egress, "greedy", &url).await;
            failed.fetch_add(1, Ordering::Relaxed);
            outcome
        });
    }
    while dns.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    for n in 0..10 {
        let url = receiver.url_of(&format!("here-{n}.example"), "/in");
        assert_eq!(post(&egress, "other", &url).await.unwrap().status, 200);
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0, "the other account's attempts finish first");
    let asked = dns.asked();
    let dead: Vec<String> = asked.into_iter().filter(|name| name.starts_with("dead")).collect();
    assert!(distinct(&dead).len() <= 4, "an account has at most four lookups at a time: {dead:?}");
    greedy.abort_all();
    while greedy.join_next().await.is_some() {}
    assert_eq!(post(&egress, "greedy", &receiver.url("/in")).await.unwrap().status, 200, "the slots are free again");
}

#[tokio::test]
async fn concurrent_attempts_share_one_lookup_and_a_failed_name_is_cached_briefly() {
    let dns = dns().await;
    let egress = egress(&dns);
    for name in ["nowhere-1.example", "dead-1.example"] {
        let url = format!("http://{name}/");
        let all = futures_util::future::join_all((0..20).map(|_| post(&egress, "acc_1", &url))).await;
        assert!(all.iter().all(|outcome| *outcome == Err(SendError::Unresolved)), "{all:?}");
        let asked = dns.asked().iter().filter(|asked| *asked == name).count();
        // A and AAAA, each sent a few times to a server that does not answer.
        assert!((2..=16).contains(&asked), "{asked} queries for {name}");
        assert_eq!(post(&egress, "acc_1", &url).await, Err(SendError::Unresolved));
        assert_eq!(dns.asked().iter().filter(|asked| *asked == name).count(), asked, "{name}");
    }
}

#[tokio::test]
async fn a_resolvable_name_is_looked_up_at_every_attempt() {
    let (dns, mut receiver) = (dns().await, Receiver::plain().await);
    let egress = egress(&dns);
    for attempt in 1..=3 {
        assert_eq!(post(&egress, "acc_1", &receiver.url_of("here-1.example", "/")).await.unwrap().status, 200);
        receiver.next().await;
        assert_eq!(dns.asked().len(), 2 * attempt, "A and AAAA each time");
    }
}

#[tokio::test]
async fn the_hosts_file_is_used_without_a_dns_query() {
    let (dns, receiver) = (dns().await, Receiver::plain().await);
    assert_eq!(post(&egress(&dns), "acc_1", &receiver.url_of("localhost", "/")).await.unwrap().status, 200);
    assert!(dns.asked().is_empty());
}

/// The duration of an attempt, by a paused clock, and the text of its error.
async fn failure(resolver: Resolver, host: &str) -> (Duration, String) {
    let egress = Egress::build(&EgressConfig::default(), resolver).unwrap();
    let began = Instant::now();
    let outcome = post(&egress, "acc_1", &format!("https://{host}/")).await;
    (began.elapsed(), outcome.unwrap_err().to_string())
}

#[tokio::test(start_paused = true)]
async fn neither_text_nor_time_tells_an_internal_host_from_one_that_does_not_exist() {
    let at = |addresses: &'static [&'static str]| {
        Resolver::Scripted(Box::new(move |_| Ok(addresses.iter().map(|address| address.parse().unwrap()).collect())))
    };
    let unknown =
        failure(Resolver::Scripted(Box::new(|_| Err(std::io::Error::other("no such host")))), "a.example").await;
    for addresses in
        [&["10.0.0.1"][..], &["127.0.0.1"], &["169.254.169.254"], &["8.8.8.8", "192.168.0.1"], &["fd00::1"], &[]]
    {
        let (took, text) = failure(at(addresses), "a.example").await;
        assert_eq!(text, unknown.1, "{addresses:?}");
        let difference = took.abs_diff(unknown.0);
        assert!(difference < Duration::from_millis(5), "{addresses:?}: {difference:?}");
    }
    // An address in the URL reveals nothing, as its owner wrote it.
    let (took, text) = failure(at(&[]), "10.0.0.1").await;
    assert!(took < Duration::from_millis(5) && text == unknown.1, "{took:?}: {text}");
}
