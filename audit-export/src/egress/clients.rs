//! HTTP clients, each pinned to the addresses that were checked.
//!
//! Cached clients reuse connections between deliveries to one endpoint; an idle one is dropped with its connections.
//! INVARIANT: a client connects only to the addresses that it was built with and never resolves a name; a lookup with
//! another result gets another client.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moka::sync::Cache;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::{EgressConfig, SendError};
use stage0_contract::{Host, WebhookUrl};

const USER_AGENT: &str = concat!("stage0/", env!("CARGO_PKG_VERSION"));
const MAX_CLIENTS: u64 = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// As many as one endpoint's attempts use at once, so that a burst opens none that the last one closed.
const MAX_IDLE_CONNECTIONS: usize = 16;
/// Addresses that a client tries; all addresses of a name are checked.
const MAX_ADDRESSES: usize = 16;

pub(super) struct Clients {
    cache: Cache<Destination, Client>,
    tls: rustls::ClientConfig,
    https_only: bool,
    connect_timeout: Duration,
}

#[derive(PartialEq, Eq, Hash)]
struct Destination {
    host: Host,
    port: u16,
    addresses: Vec<IpAddr>,
}

impl Clients {
    pub(super) fn new(tls: rustls::ClientConfig, config: &EgressConfig) -> Self {
        Self {
            cache: Cache::builder().max_capacity(MAX_CLIENTS).time_to_idle(IDLE_TIMEOUT).build(),
            tls,
            https_only: !config.dangerous_allow_private,
            connect_timeout: config.connect_timeout,
        }
    }

    pub(super) fn client_for(&self, url: &WebhookUrl, mut addresses: Vec<IpAddr>) -> Result<Client, SendError> {
        // Name servers rotate the order of the addresses: the same set is the same destination.
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        let destination = Destination { host: url.host().clone(), port: url.port(), addresses };
        if let Some(client) = self.cache.get(&destination) {
            return Ok(client);
        }
        let client = self.build(&destination).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "an HTTP client cannot be built");
            SendError::NoClient
        })?;
        self.cache.insert(destination, client.clone());
        Ok(client)
    }

    fn build(&self, destination: &Destination) -> Result<Client, reqwest::Error> {
        let pinned = destination.addresses.iter().map(|ip| SocketAddr::new(*ip, destination.port)).collect();
        Client::builder()
            .user_agent(USER_AGENT)
            .dns_resolver(Pinned(pinned))
            .redirect(Policy::none())
            .no_proxy()
            .https_only(self.https_only)
            .http1_only()
            .referer(false)
            // A decompressed body has no size limit. Another crate's features could switch decompression on.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .tls_backend_preconfigured(self.tls.clone())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build()
    }
}

/// `ClientBuilder::resolve_to_addrs` would ask the system for any other spelling of the name.
struct Pinned(Vec<SocketAddr>);

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        Clients::new(super::super::trust::client_config(None).unwrap(), &EgressConfig::default())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_client_serves_a_destination_in_any_order_of_its_addresses() {
        let (clients, url) = (clients(), WebhookUrl::parse("https://h/", false).unwrap());
        for order in [["8.8.8.8", "8.8.4.4"], ["8.8.4.4", "8.8.8.8"]] {
            clients.client_for(&url, ips(&order)).unwrap();
        }
        clients.cache.run_pending_tasks();
        assert_eq!(clients.cache.entry_count(), 1);
    }

    #[test]
    fn a_client_is_not_shared_between_addresses_ports_or_hosts() {
        let clients = clients();
        for (url, address) in [
            ("https://h/", "8.8.8.8"),
            ("https://h/", "8.8.4.4"),
            ("https://h:444/", "8.8.8.8"),
            ("https://g/", "8.8.8.8"),
        ] {
            clients.client_for(&WebhookUrl::parse(url, false).unwrap(), ips(&[address])).unwrap();
        }
        clients.cache.run_pending_tasks();
        assert_eq!(clients.cache.entry_count(), 4);
    }

    #[tokio::test]
    async fn a_pinned_client_resolves_every_name_to_its_own_addresses() {
        let pinned: SocketAddr = "8.8.8.8:443".parse().unwrap();
        for name in ["h", "localhost"] {
            let found = Pinned(vec![pinned]).resolve(name.parse().unwrap()).await.ok().unwrap();
            assert_eq!(found.collect::<Vec<_>>(), [pinned]);
        }
    }
}
