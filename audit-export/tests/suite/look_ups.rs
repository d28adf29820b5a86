//! Host names that nobody answers for, by a DNS server that is silent about them: whom they keep waiting, and what they
//! tell.

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

fn names(asked: &[String]) -> Vec<&String> {
    let mut names: Vec<_> = asked.iter().collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[tokio::test]
async fn dead_names_of_one_account_keep_no_other_account_waiting() {
    let (dns, receiver) = (dns().await, Receiver::plain().await);
    let (egress, given_up) = (egress(&dns), Arc::new(AtomicUsize::new(0)));
    let mut greedy = tokio::task::JoinSet::new();
    for n in 0..1_000 {
        let (egress, given_up) = (Arc::clone(&egress), Arc::clone(&given_up));
        greedy.spawn(async move {
            let url = format!("http://dead-{}.example/", n % 100);
            let outcome = post(&egress, "greedy", &url).await;
            given_up.fetch_add(1, Ordering::Relaxed);
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
    assert_eq!(given_up.load(Ordering::Relaxed), 0, "the other account's came first");
    let asked = dns.asked();
    let dead: Vec<String> = asked.into_iter().filter(|name| name.starts_with("dead")).collect();
    assert!(names(&dead).len() <= 4, "the look-ups of an account are few at a time: {dead:?}");
    greedy.abort_all();
    while greedy.join_next().await.is_some() {}
    assert_eq!(post(&egress, "greedy", &receiver.url("/in")).await.unwrap().status, 200, "nothing is held for ever");
}

#[tokio::test]
async fn many_attempts_make_one_look_up_and_a_name_that_failed_is_not_asked_for_again_at_once() {
    let dns = dns().await;
    let egress = egress(&dns);
    for name in ["nowhere-1.example", "dead-1.example"] {
        let url = format!("http://{name}/");
        let all = futures_util::future::join_all((0..20).map(|_| post(&egress, "acc_1", &url))).await;
        assert!(all.iter().all(|outcome| *outcome == Err(SendError::Unresolved)), "{all:?}");
        let asked = dns.asked().iter().filter(|asked| *asked == name).count();
        // A and AAAA, each sent a few times to a server that does not answer.
        assert!((2..=16).contains(&asked), "{asked} questions for {name}");
        assert_eq!(post(&egress, "acc_1", &url).await, Err(SendError::Unresolved));
        assert_eq!(dns.asked().iter().filter(|asked| *asked == name).count(), asked, "{name}");
    }
}

#[tokio::test]
async fn a_name_that_is_found_is_looked_up_at_every_attempt() {
    let (dns, mut receiver) = (dns().await, Receiver::plain().await);
    let egress = egress(&dns);
    for attempt in 1..=3 {
        assert_eq!(post(&egress, "acc_1", &receiver.url_of("here-1.example", "/")).await.unwrap().status, 200);
        receiver.next().await;
        assert_eq!(dns.asked().len(), 2 * attempt, "A and AAAA each time");
    }
}

#[tokio::test]
async fn the_hosts_file_is_known_without_a_server() {
    let (dns, receiver) = (dns().await, Receiver::plain().await);
    assert_eq!(post(&egress(&dns), "acc_1", &receiver.url_of("localhost", "/")).await.unwrap().status, 200);
    assert!(dns.asked().is_empty());
}

/// How long the attempt took by a clock that moves only when everybody waits, and what it said.
async fn told(resolver: Resolver, host: &str) -> (Duration, String) {
    let egress = Egress::build(&EgressConfig::default(), resolver).unwrap();
    let began = Instant::now();
    let outcome = post(&egress, "acc_1", &format!("https://{host}/")).await;
    (began.elapsed(), outcome.unwrap_err().to_string())
}

#[tokio::test(start_paused = true)]
async fn neither_words_nor_time_tell_a_host_inside_from_one_that_does_not_exist() {
    let at = |addresses: &'static [&'static str]| {
        Resolver::Scripted(Box::new(move |_| Ok(addresses.iter().map(|address| address.parse().unwrap()).collect())))
    };
    let unknown = told(Resolver::Scripted(Box::new(|_| Err(std::io::Error::other("no such host")))), "a.example").await;
    for addresses in
        [&["10.0.0.1"][..], &["127.0.0.1"], &["169.254.169.254"], &["8.8.8.8", "192.168.0.1"], &["fd00::1"], &[]]
    {
        let (took, said) = told(at(addresses), "a.example").await;
        assert_eq!(said, unknown.1, "{addresses:?}");
        let difference = took.abs_diff(unknown.0);
        assert!(difference < Duration::from_millis(5), "{addresses:?}: {difference:?}");
    }
    // An address in the URL tells nothing that its owner did not write.
    let (took, said) = told(at(&[]), "10.0.0.1").await;
    assert!(took < Duration::from_millis(5) && said == unknown.1, "{took:?}: {said}");
}
