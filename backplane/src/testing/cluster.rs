//! Three nats-servers on this machine that are one cluster: routes between them, JetStream, synced writes. Each can be
//! killed, frozen and started again at its addresses.
//!
//! Runs processes only: containers would need a network of their own. Where a container is all that may run there is no
//! cluster, and the caller reports that it tested nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::process::{Place, Process};
use super::{SYNCED, find_binary};
use crate::nats::NatsConfig;

/// The servers of a cluster.
pub const NODES: usize = 3;
/// Elections take up to nine seconds, and a busy machine adds to it.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A test's three nats-servers. Servers are counted from 0 and called `n1` to `n3`.
pub struct NatsCluster {
    nodes: Vec<Node>,
    routes: Vec<u16>,
    http: reqwest::Client,
}

struct Node {
    process: Process,
    /// Neither killed nor frozen by the test.
    is_up: bool,
}

/// What a server has of a stream: number of messages, first and last sequence.
type Held = (u64, u64, u64);

impl NatsCluster {
    /// Servers without logins, with [`SYNCED`]. None: only a container may run.
    pub async fn start() -> Option<Self> {
        Self::start_each(|node, routes| format!("{}\n{SYNCED}", block(node, routes))).await
    }

    /// Servers with these settings of their own, of the server's number and the ports of all servers for routes. The
    /// addresses for clients and monitor, pings and JetStream's directory are added.
    pub async fn start_each(settings: impl Fn(usize, &[u16]) -> String) -> Option<Self> {
        Self::start_each_in(Default::default(), settings).await
    }

    /// Servers with [`SYNCED`] and these further settings, each in its place.
    pub async fn start_in(places: [Place; NODES], settings: &str) -> Option<Self> {
        Self::start_each_in(places, |node, routes| format!("{}\n{SYNCED}\n{settings}", block(node, routes))).await
    }

    async fn start_each_in(places: [Place; NODES], settings: impl Fn(usize, &[u16]) -> String) -> Option<Self> {
        let binary = find_binary().await?;
        let routes = route_ports();
        let mut nodes = Vec::new();
        for (node, place) in places.into_iter().enumerate() {
            let settings = format!("server_name: {}\n{}", name(node), settings(node, &routes));
            nodes.push(Node { process: Process::start(binary.clone(), place, &settings).await, is_up: true });
        }
        let http = reqwest::Client::builder().no_proxy().timeout(MONITOR_TIMEOUT).build().expect("an HTTP client");
        let cluster = Self { nodes, routes, http };
        cluster.wait_until_current().await;
        Some(cluster)
    }

    /// A server's address for clients, which stays the same after a restart.
    pub fn url(&self, node: usize) -> String {
        format!("nats://127.0.0.1:{}", self.node(node).process.ports().clients)
    }

    /// A server's monitor, which stays the same after a restart.
    pub fn monitor(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.node(node).process.ports().monitor)
    }

    /// Every port on which a server listens: for clients, its monitor, and for the other servers.
    pub fn ports(&self, node: usize) -> Vec<u16> {
        let ports = self.node(node).process.ports();
        [ports.clients, ports.monitor].into_iter().chain(self.routes.get(node).copied()).collect()
    }

    /// The monitors of all servers.
    pub fn monitors(&self) -> Vec<String> {
        (0..NODES).map(|node| self.monitor(node)).collect()
    }

    /// A client configuration with all servers, this one first, and short timeouts.
    pub fn config(&self, name: &str, first: usize) -> NatsConfig {
        NatsConfig {
            servers: (0..NODES).map(|turn| self.url((first + turn) % NODES)).collect(),
            ping_interval: Duration::from_millis(200),
            attempt_timeout: Duration::from_secs(1),
            ..NatsConfig::new(String::new(), name)
        }
    }

    /// Kills a server as a crash would, and waits until it is gone.
    pub fn kill(&mut self, node: usize) {
        let node = self.node_mut(node);
        node.process.kill();
        node.is_up = false;
    }

    /// Ends a server in lame duck mode, as an operator does before an upgrade.
    pub async fn retire(&mut self, node: usize) {
        let node = self.node_mut(node);
        node.is_up = false;
        node.process.retire().await;
    }

    /// Starts a server again on the same ports; only what it had on disk is left. Does not wait for the others.
    pub async fn restart(&mut self, node: usize) {
        let node = self.node_mut(node);
        node.process.restart().await;
        node.is_up = true;
    }

    /// Freezes a server; connections stay open.
    pub fn freeze(&mut self, node: usize) {
        let node = self.node_mut(node);
        node.process.freeze();
        node.is_up = false;
    }

    /// Lets a frozen server run again.
    pub fn thaw(&mut self, node: usize) {
        let node = self.node_mut(node);
        node.process.thaw();
        node.is_up = true;
    }

    /// The server that leads a stream and says so itself; none during an election.
    pub async fn leader_of(&self, stream: &str) -> Option<usize> {
        for node in self.up() {
            let Some(jsz) = self.jsz(node).await else { continue };
            if streams(&jsz).any(|detail| text(detail, "/name") == Some(stream) && leads(detail, node)) {
                return Some(node);
            }
        }
        None
    }

    /// Waits until a stream has a leader; which server it is.
    pub async fn wait_for_leader(&self, stream: &str) -> usize {
        let started = Instant::now();
        loop {
            if let Some(leader) = self.leader_of(stream).await {
                return leader;
            }
            wait("a stream has a leader", started).await;
        }
    }

    /// Waits until the servers that run have one leader, and it and the leaders of all streams say that each of them is
    /// current.
    pub async fn wait_until_current(&self) {
        let started = Instant::now();
        while !self.are_current().await {
            wait("every server is current", started).await;
        }
    }

    /// Waits until the servers that run hold the same messages of every stream. What was acknowledged before is then
    /// found whichever of them answers.
    pub async fn settle(&self) {
        let started = Instant::now();
        while !self.are_same().await {
            wait("every server has the same messages", started).await;
        }
    }

    /// What the servers that run have of each stream of which they have not the same.
    pub async fn differences(&self) -> Vec<String> {
        let Some(all) = self.jsz_of_all().await else { return vec!["a server does not answer".to_owned()] };
        let each: Vec<_> = all.iter().map(|(node, jsz)| (name(*node), held(jsz))).collect();
        let names: BTreeSet<&str> = each.iter().flat_map(|(_, held)| held.keys().copied()).collect();
        let of = |stream: &str| each.iter().map(|(_, held)| held.get(stream).copied()).collect::<BTreeSet<_>>();
        let told = |stream: &str| {
            let each = each.iter().map(|(node, held)| format!("{node} {:?}", held.get(stream)));
            format!("{stream} (messages, first, last): {}", each.collect::<Vec<_>>().join(", "))
        };
        names.into_iter().filter(|stream| of(stream).len() > 1).map(told).collect()
    }

    async fn are_current(&self) -> bool {
        let Some(all) = self.jsz_of_all().await else { return false };
        let leader = |jsz: &Value| text(jsz, "/meta_cluster/leader").filter(|name| !name.is_empty()).map(str::to_owned);
        let leaders: Vec<_> = all.iter().map(|(_, jsz)| leader(jsz)).collect();
        let Some(Some(first)) = leaders.first() else { return false };
        let agree = leaders.iter().all(|leader| leader.as_ref() == Some(first));
        let of_leader = all.iter().find(|(node, _)| name(*node) == *first);
        let follow = of_leader.is_some_and(|(node, jsz)| self.are_followed(jsz.pointer("/meta_cluster"), *node));
        let mut led = all.iter().flat_map(|(node, jsz)| streams(jsz).map(move |detail| (*node, detail)));
        // A stream without a leader is missed by those that use it.
        let are_led = led.all(|(node, detail)| !leads(detail, node) || self.are_followed(detail.get("cluster"), node));
        agree && follow && are_led
    }

    /// Whether a leader's list says that every other server that runs is current.
    fn are_followed(&self, group: Option<&Value>, leader: usize) -> bool {
        let replicas = group.and_then(|group| group.get("replicas")).and_then(Value::as_array);
        let is_current = |node: usize| {
            let mut all = replicas.into_iter().flatten();
            all.any(|replica| {
                let is = |what: &str| replica.get(what).and_then(Value::as_bool).unwrap_or(false);
                text(replica, "/name").is_some_and(|found| found == name(node)) && is("current") && !is("offline")
            })
        };
        self.up().filter(|node| *node != leader).all(is_current)
    }

    async fn are_same(&self) -> bool {
        let Some(all) = self.jsz_of_all().await else { return false };
        let mut held = all.iter().map(|(_, jsz)| held(jsz));
        let Some(first) = held.next() else { return false };
        held.all(|other| other == first)
    }

    /// None: one of those that run does not answer.
    async fn jsz_of_all(&self) -> Option<Vec<(usize, Value)>> {
        let mut all = Vec::new();
        for node in self.up() {
            all.push((node, self.jsz(node).await?));
        }
        Some(all)
    }

    async fn jsz(&self, node: usize) -> Option<Value> {
        let url = format!("{}/jsz?accounts=true&streams=true", self.monitor(node));
        let answer = self.http.get(url).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }

    fn up(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.is_up).map(|(number, _)| number)
    }

    fn node(&self, node: usize) -> &Node {
        self.nodes.get(node).expect("a server of the cluster")
    }

    fn node_mut(&mut self, node: usize) -> &mut Node {
        self.nodes.get_mut(node).expect("a server of the cluster")
    }
}

/// Before the servers are asked again. Panics once that has taken too long.
async fn wait(what: &str, since: Instant) {
    assert!(since.elapsed() < AGREEMENT_TIMEOUT, "waited {AGREEMENT_TIMEOUT:?} in vain for: {what}");
    sleep(POLL_INTERVAL).await;
}

/// What a server is called.
pub fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// The block `cluster` of a server's configuration, without TLS, with the ports of all servers for routes.
pub fn block(node: usize, routes: &[u16]) -> String {
    let own = routes.get(node).expect("a port for each server");
    let others = routes.iter().filter(|port| *port != own).map(|port| format!("\"nats-route://127.0.0.1:{port}\""));
    let others = others.collect::<Vec<_>>().join(", ");
    format!("cluster {{\n  name: test\n  listen: \"127.0.0.1:{own}\"\n  no_advertise: true\n  routes: [{others}]\n}}")
}

/// A port for the routes of each server. They must be known before the first server starts. Held together, so that they
/// differ; another process may still take one before its server does, and then the test fails and says so.
pub fn route_ports() -> Vec<u16> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let held: Vec<_> = (0..NODES).map(bind).collect();
    held.iter().map(|listener| listener.local_addr().expect("a bound listener has an address").port()).collect()
}

fn streams(jsz: &Value) -> impl Iterator<Item = &Value> {
    let accounts = jsz.get("account_details").and_then(Value::as_array).into_iter().flatten();
    accounts.filter_map(|account| account.get("stream_detail")?.as_array()).flatten()
}

fn leads(detail: &Value, node: usize) -> bool {
    text(detail, "/cluster/leader").is_some_and(|leader| leader == name(node))
}

fn held(jsz: &Value) -> BTreeMap<&str, Held> {
    let number = |detail: &Value, pointer| detail.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let of = |detail| {
        (number(detail, "/state/messages"), number(detail, "/state/first_seq"), number(detail, "/state/last_seq"))
    };
    streams(jsz).filter_map(|detail| Some((text(detail, "/name")?, of(detail)))).collect()
}

fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer)?.as_str()
}
