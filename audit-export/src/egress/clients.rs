//! HTTP clients, each bound to the addresses that were checked.
//!
//! Owns how a client is made and the few that are kept, so that connections live on between deliveries to one endpoint. Refuses
//! to judge addresses. Invariant: a client of a host connects to the addresses that it was made with and asks no resolver; a
//! look-up with another answer gets another client. What is not used for a while is forgotten and its connections are closed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moka::sync::Cache;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::{EgressConfig, SendError};
use stage0_contract::{Host, WebhookUrl};

const USER_AGENT: &str = concat!("stage0/", env!("CARGO_PKG_VERSION"));
const MOST_CLIENTS: u64 = 256;
const IDLE: Duration = Duration::from_secs(60);
const MOST_IDLE_CONNECTIONS: usize = 4;
/// All addresses are checked, so many are tried.
const MOST_ADDRESSES: usize = 16;

pub(super) struct Clients {
    kept: Cache<Place, Client>,
    tls: rustls::ClientConfig,
    https_only: bool,
    connect_timeout: Duration,
}

#[derive(PartialEq, Eq, Hash)]
struct Place {
    host: Host,
    port: u16,
    addresses: Vec<IpAddr>,
}

impl Clients {
    pub(super) fn new(tls: rustls::ClientConfig, config: &EgressConfig) -> Self {
        Self {
            kept: Cache::builder().max_capacity(MOST_CLIENTS).time_to_idle(IDLE).build(),
            tls,
            https_only: !config.dangerous_allow_private,
            connect_timeout: config.connect_timeout,
        }
    }

    /// A client that connects to these addresses alone. They must have been checked.
    pub(super) fn to(&self, url: &WebhookUrl, mut addresses: Vec<IpAddr>) -> Result<Client, SendError> {
        // Name servers turn the order at every answer: the same set is the same place.
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MOST_ADDRESSES);
        let place = Place { host: url.host().clone(), port: url.port(), addresses };
        if let Some(client) = self.kept.get(&place) {
            return Ok(client);
        }
        let client = self.make(&place).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "an HTTP client cannot be made");
            SendError::NoClient
        })?;
        // Two attempts at once may both make one; the later is kept, and either is right.
        self.kept.insert(place, client.clone());
        Ok(client)
    }

    fn make(&self, place: &Place) -> Result<Client, reqwest::Error> {
        let pinned = place.addresses.iter().map(|ip| SocketAddr::new(*ip, place.port)).collect();
        Client::builder()
            .user_agent(USER_AGENT)
            .dns_resolver(Pinned(pinned))
            .redirect(Policy::none())
            .no_proxy()
            .https_only(self.https_only)
            .http1_only()
            .referer(false)
            // Off unless another crate's features switch them on; a decompressed body has no bound.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .tls_backend_preconfigured(self.tls.clone())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE_CONNECTIONS)
            .build()
    }
}

/// Gives the checked addresses for whatever name. `ClientBuilder::resolve_to_addrs` would ask the system for any other spelling of
/// the name than the one that it was given.
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
    fn one_client_serves_a_place_in_whatever_order_its_addresses_come() {
        let (clients, url) = (clients(), WebhookUrl::parse("https://h/", false).unwrap());
        for order in [["8.8.8.8", "8.8.4.4"], ["8.8.4.4", "8.8.8.8"]] {
            clients.to(&url, ips(&order)).unwrap();
        }
        clients.kept.run_pending_tasks();
        assert_eq!(clients.kept.entry_count(), 1);
    }

    #[test]
    fn another_address_port_or_host_gets_another_client() {
        let clients = clients();
        for (url, address) in [
            ("https://h/", "8.8.8.8"),
            ("https://h/", "8.8.4.4"),
            ("https://h:444/", "8.8.8.8"),
            ("https://g/", "8.8.8.8"),
        ] {
            clients.to(&WebhookUrl::parse(url, false).unwrap(), ips(&[address])).unwrap();
        }
        clients.kept.run_pending_tasks();
        assert_eq!(clients.kept.entry_count(), 4);
    }

    #[tokio::test]
    async fn a_pinned_client_knows_no_other_addresses_whatever_it_asks_for() {
        let pinned: SocketAddr = "8.8.8.8:443".parse().unwrap();
        for name in ["h", "localhost"] {
            let found = Pinned(vec![pinned]).resolve(name.parse().unwrap()).await.ok().unwrap();
            assert_eq!(found.collect::<Vec<_>>(), [pinned]);
        }
    }
}
