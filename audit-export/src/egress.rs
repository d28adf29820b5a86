//! The only way out to customers' hosts: a POST that reaches public addresses and nothing inside our network.
//!
//! An attempt is a slot, a lookup, the check of every address and a connection to exactly those addresses, with limits
//! on time and size. The text of a [`SendError`] may be shown to the endpoint's owner.
//! INVARIANT: the addresses that were checked are those that are connected to (`egress/clients.rs`), and one refused
//! address refuses the host. Neither the text nor the time of a failure tells an internal name from an unknown one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep, timeout};

mod clients;
mod failure;
mod lookups;
mod resolver;
mod trust;

pub use failure::SendError;
pub use resolver::Resolver;
pub(crate) use trust::TrustError;

use crate::address::{is_private_or_loopback, refuse};
pub use crate::config::EgressConfig;
use crate::fair::FairSlots;
use clients::Clients;
use lookups::{LOOKUP_TIMEOUT, Lookups};
use resolver::NameResolver;
use stage0_contract::{AccountId, Host, WebhookUrl};

/// A response body is read only so that the connection can be reused, and only up to this size.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;
/// Longer than any honest `Retry-After` value, in seconds or as a date.
const MAX_RETRY_AFTER_BYTES: usize = 64;
/// Attempts in flight of all accounts: each may hold a socket for as long as it lasts.
const MAX_IN_FLIGHT: usize = 512;
/// The same for one account. A single endpoint has at most 16.
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 64;

/// Sends requests to endpoints.
pub struct Egress {
    dangerous_allow_private: bool,
    timeout: Duration,
    in_flight: Arc<FairSlots>,
    lookups: Arc<Lookups>,
    clients: Clients,
}

/// A receiver's response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status; redirects are not followed.
    pub status: u16,
    /// The raw `Retry-After` header, for `backoff::parse_retry_after`.
    pub retry_after: Option<String>,
}

impl Egress {
    /// Reads the certificates and the system's name servers from files, so it blocks. It opens no connection.
    pub fn build(config: &EgressConfig, resolver: Resolver) -> Result<Self, TrustError> {
        let tls = trust::client_config(config.extra_ca.as_deref())?;
        Ok(Self {
            dangerous_allow_private: config.dangerous_allow_private,
            timeout: config.timeout,
            in_flight: FairSlots::new(MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ACCOUNT),
            lookups: Lookups::new(NameResolver::new(resolver, &config.name_servers)),
            clients: Clients::new(tls, config),
        })
    }

    /// A response with a status counts, even if its body is too long, too slow or incomplete.
    pub async fn post(
        &self,
        account: &AccountId,
        url: &WebhookUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, SendError> {
        let slot = self.in_flight.acquire(account).await;
        let began = Instant::now();
        let attempt = timeout(self.timeout, self.request(account, url, headers, body)).await;
        let response = match attempt.unwrap_or(Err(SendError::Timeout)) {
            Ok(response) => response,
            Err(error) => {
                drop(slot);
                if self.would_reveal_names(url, error) {
                    sleep(LOOKUP_TIMEOUT.saturating_sub(began.elapsed())).await;
                }
                return Err(error);
            }
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.filter(|value| value.len() <= MAX_RETRY_AFTER_BYTES).map(str::to_owned);
        let left = self.timeout.saturating_sub(began.elapsed());
        if timeout(left, drain(response)).await.is_err() {
            tracing::debug!(status, "an endpoint's response body did not end in time");
        }
        Ok(Response { status, retry_after })
    }

    /// An internal name is found at once, an unknown one is not: the time of a failure would tell them apart.
    fn would_reveal_names(&self, url: &WebhookUrl, error: SendError) -> bool {
        !self.dangerous_allow_private
            && matches!(url.host(), Host::Name(_))
            && matches!(error, SendError::Unresolved | SendError::Refused(_))
    }

    async fn request(
        &self,
        account: &AccountId,
        url: &WebhookUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<reqwest::Response, SendError> {
        let addresses = self.resolve(account, url).await?;
        for address in &addresses {
            self.permit(url, *address)?;
        }
        let client = self.clients.client_for(url, addresses)?;
        let request = client.post(url.url().clone()).headers(headers).body(body);
        request.send().await.map_err(|error| SendError::from_client(&error))
    }

    async fn resolve(&self, account: &AccountId, url: &WebhookUrl) -> Result<Vec<IpAddr>, SendError> {
        match url.host() {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) => {
                self.lookups.find(account, name).await.map(|found| found.to_vec()).ok_or(SendError::Unresolved)
            }
        }
    }

    /// The dangerous mode allows private addresses, and plain http only to those.
    fn permit(&self, url: &WebhookUrl, address: IpAddr) -> Result<(), SendError> {
        if self.dangerous_allow_private && is_private_or_loopback(address) {
            return Ok(());
        }
        match refuse(address) {
            Some(why) => Err(SendError::Refused(why)),
            None if url.is_plain() => Err(SendError::PlainHttp),
            None => Ok(()),
        }
    }
}

/// Reads the response to its end, so that its connection can be reused; otherwise dropping it closes the connection.
async fn drain(mut response: reqwest::Response) {
    let mut left = MAX_RESPONSE_BYTES;
    while let Ok(Some(chunk)) = response.chunk().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
