//! Behind a layer-4 balancer: each client counts under the address in the balancer's PROXY header, and no other peer
//! may send one.

use reqwest::Method;
use serde_json::json;
use stage0_tests::{Answer, Api, Balancer, Stack};

/// A balancer has an address that no other client here has, so that both ways in are open in every test.
const BALANCER: &str = "127.0.0.2";

async fn stack(settings: &[&str]) -> Stack {
    Stack::build().gateway_with(&["--proxy-protocol-from", BALANCER]).gateway_with(settings).dev().await
}

async fn behind(stack: &Stack, header: Vec<u8>) -> (Balancer, Api) {
    let balancer = Balancer::start(BALANCER, &stack.address(), header).await;
    let api = stack.api.at(&balancer.url);
    (balancer, api)
}

async fn check(api: &Api, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    api.send(Method::POST, "/check", &headers, Some(Api::harmless().to_string().into_bytes())).await
}

/// The address that the record of a check names.
async fn recorded(stack: &Stack, api: &Api, headers: &[(&str, &str)]) -> String {
    let answer = check(api, headers).await.expect(200);
    let path = format!("/v1/decisions/{}", answer["request_id"].as_str().unwrap());
    stack.api.get(&path).await.expect(200)["client"]["address"].as_str().unwrap().to_owned()
}

/// A well-formed key that no longer exists.
async fn revoked(stack: &Stack) -> String {
    let body = json!({"account": stack.account, "name": "k", "scopes": ["check"]});
    let made = stack.operator.post("/v1/keys", &body).await.expect(201);
    stack.operator.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await;
    made["key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn clients_behind_a_balancer_are_recorded_and_held_back_each_by_their_own_address() {
    let stack = stack(&["--failed-logins-per-minute", "3"]).await;
    let (_one, guesser) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    let (_other, honest) = behind(&stack, Balancer::header_of("2001:db8::1")).await;
    assert_eq!(recorded(&stack, &guesser, &[]).await, "198.51.100.7");
    assert_eq!(recorded(&stack, &honest, &[]).await, "2001:db8::1");
    for _ in 0..3 {
        let key = revoked(&stack).await;
        check(&guesser.with_key(&key), &[]).await.assert_error(401, "unauthorized");
    }
    let key = revoked(&stack).await;
    check(&guesser.with_key(&key), &[]).await.assert_error(429, "too_many_failed_logins");
    check(&honest.with_key(&key), &[]).await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn what_a_client_behind_a_balancer_says_of_itself_counts_only_if_it_is_a_trusted_proxy() {
    let stack = stack(&["--trusted-proxies", "198.51.100.0/24"]).await;
    let forwarded = [("x-forwarded-for", "203.0.113.9")];
    let (_proxy, proxy) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    assert_eq!(recorded(&stack, &proxy, &forwarded).await, "203.0.113.9");
    let (_client, client) = behind(&stack, Balancer::header_of("192.0.2.1")).await;
    assert_eq!(recorded(&stack, &client, &forwarded).await, "192.0.2.1");
}

#[tokio::test]
async fn a_balancer_that_asks_for_itself_is_served_under_its_own_address_and_without_a_limit_of_connections() {
    let stack = stack(&["--max-connections-per-address", "1"]).await;
    let mut balancers = Vec::new();
    for _ in 0..4 {
        let (balancer, api) = behind(&stack, Balancer::local_header()).await;
        api.get("/healthz").await.expect(200);
        balancers.push((balancer, api));
    }
    let (_balancer, api) = balancers.pop().unwrap();
    assert_eq!(recorded(&stack, &api, &[]).await, BALANCER);
    // Its clients have one, each for itself: a second takes the place of the first.
    let (_first, first) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    first.get("/healthz").await.expect(200);
    let (_other, other) = behind(&stack, Balancer::header_of("198.51.100.8")).await;
    other.get("/healthz").await.expect(200);
    let (_second, second) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    second.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn a_forwarded_header_from_an_untrusted_peer_is_ignored() {
    let stack = stack(&[]).await;
    let forger = Balancer::start("127.0.0.3", &stack.address(), Balancer::header_of("198.51.100.7")).await;
    let forged = stack.api.at(&forger.url).try_send(Method::GET, "/healthz", &[], None).await;
    assert!(forged.is_err(), "{forged:?}");
    assert_eq!(recorded(&stack, &stack.api, &[]).await, "127.0.0.1", "without a header it is served");
}

#[tokio::test]
async fn a_balancer_without_a_header_or_with_another_is_closed_and_the_next_is_served() {
    let stack = stack(&["--header-timeout-ms", "500"]).await;
    let old = b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\n".to_vec();
    let mut long = Balancer::header_of("198.51.100.7");
    long[14..16].copy_from_slice(&600_u16.to_be_bytes());
    let mut unfinished = Balancer::header_of("198.51.100.7");
    unfinished[14..16].copy_from_slice(&500_u16.to_be_bytes());
    unfinished.truncate(16);
    for header in [vec![], old, long, Balancer::header_of("198.51.100.7")[..15].to_vec(), vec![0; 16], unfinished] {
        let (_balancer, api) = behind(&stack, header.clone()).await;
        let refused = api.try_send(Method::GET, "/healthz", &[], None).await;
        assert!(refused.is_err(), "{header:?}: {refused:?}");
    }
    let (_balancer, api) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    api.get("/healthz").await.expect(200);
    let said = stack.said();
    assert_eq!(said.matches("connection of a balancer closed").count(), 1, "one warning a minute\n{said}");
}

#[tokio::test]
async fn balancers_that_never_send_their_headers_delay_no_other_client() {
    let stack = stack(&["--workers", "1", "--header-timeout-ms", "60000"]).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{BALANCER}:0").parse().unwrap()).unwrap();
        silent.push(socket.connect(stack.address().parse().unwrap()).await.unwrap());
    }
    let (_balancer, api) = behind(&stack, Balancer::header_of("198.51.100.7")).await;
    api.get("/healthz").await.expect(200);
    stack.api.get("/healthz").await.expect(200);
    drop(silent);
}
