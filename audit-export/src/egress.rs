//! The one way out to customers' hosts: a POST that reaches the internet, and nothing that only we can reach.
//!
//! Owns a single attempt: look-up, judgement of every address, a connection to those addresses and no others, time and size
//! limits. Refuses to sign, to try again and to judge what an answer means (`verdict.rs`). Invariant: names are looked up anew
//! at every attempt, once, and what was checked is what is connected to (`egress/clients.rs`); one refused address refuses the
//! host. Every failure is a [`SendError`] with a text that may be shown to the endpoint's owner.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::timeout;

mod clients;
mod failure;
mod resolver;
mod trust;

pub use failure::SendError;
pub use resolver::{Resolver, Script};
pub use trust::TrustError;

use crate::address::{is_private_or_loopback, refuse};
use clients::Clients;
use stage0_contract::{Host, WebhookUrl};

/// An answer's body means nothing to us; so much of it is read, for the sake of the connection, and the rest is not.
const MOST_BODY: usize = 16 * 1024;
/// Longer than any wait that could be asked for in good faith, as seconds or as a date.
const MOST_RETRY_AFTER: usize = 64;
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// How far out requests may go, and how long they may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressConfig {
    /// Also loopback and private addresses, and plain http to those. For tests and closed networks: with it a customer can make
    /// us call our own machines.
    pub dangerous_allow_private: bool,
    /// A PEM file of authorities to trust besides the system's.
    pub extra_ca: Option<PathBuf>,
    /// Of an attempt in all, from the look-up to the end of the answer's body.
    pub timeout: Duration,
    /// Of TCP and TLS together.
    pub connect_timeout: Duration,
}

/// Sends requests to endpoints.
pub struct Egress {
    dangerous_allow_private: bool,
    timeout: Duration,
    resolver: Resolver,
    clients: Clients,
}

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP; a redirect is an answer like others.
    pub status: u16,
    /// As it was sent; `backoff::parse_retry_after` reads it.
    pub retry_after: Option<String>,
    /// The whole attempt.
    pub took: Duration,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            dangerous_allow_private: false,
            extra_ca: None,
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl Egress {
    /// Reads the certificates, so it blocks: for the start of a service. Connects to nobody.
    pub fn build(config: &EgressConfig, resolver: Resolver) -> Result<Self, TrustError> {
        let tls = trust::client_config(config.extra_ca.as_deref())?;
        Ok(Self {
            dangerous_allow_private: config.dangerous_allow_private,
            timeout: config.timeout,
            resolver,
            clients: Clients::new(tls, config),
        })
    }

    /// Makes one attempt. The status decides, so an answer whose body is too long, too slow or broken off is an answer.
    pub async fn post(&self, url: &WebhookUrl, headers: HeaderMap, body: Bytes) -> Result<Response, SendError> {
        let began = Instant::now();
        let answer =
            timeout(self.timeout, self.exchange(url, headers, body)).await.map_err(|_| SendError::Timeout)??;
        let status = answer.status().as_u16();
        let retry_after = retry_after(answer.headers());
        let left = self.timeout.saturating_sub(began.elapsed());
        if timeout(left, drain(answer)).await.is_err() {
            tracing::debug!(status, "an endpoint's answer has a body that does not end in time");
        }
        Ok(Response { status, retry_after, took: began.elapsed() })
    }

    async fn exchange(
        &self,
        url: &WebhookUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<reqwest::Response, SendError> {
        let addresses = self.look_up(url).await?;
        for address in &addresses {
            self.permit(url, *address)?;
        }
        let client = self.clients.to(url, addresses)?;
        let request = client.post(url.url().clone()).headers(headers).body(body);
        request.send().await.map_err(|error| SendError::of(&error))
    }

    async fn look_up(&self, url: &WebhookUrl) -> Result<Vec<IpAddr>, SendError> {
        let name = match url.host() {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        match timeout(LOOK_UP_TIMEOUT, self.resolver.look_up(name, url.port())).await {
            Ok(Ok(found)) if !found.is_empty() => Ok(found),
            Ok(Ok(_) | Err(_)) | Err(_) => Err(SendError::Unresolved),
        }
    }

    /// The dangerous mode adds local addresses to https, and http to local addresses.
    fn permit(&self, url: &WebhookUrl, address: IpAddr) -> Result<(), SendError> {
        if self.dangerous_allow_private && is_private_or_loopback(address) {
            return Ok(());
        }
        match refuse(address) {
            Some(why) => Err(SendError::Refused(why)),
            None if url.is_plain() => Err(SendError::Refused("not encrypted")),
            None => Ok(()),
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    (value.len() <= MOST_RETRY_AFTER).then(|| value.to_owned())
}

/// A connection whose answer was read to its end can be used again. Any other is closed when the answer is dropped.
async fn drain(mut answer: reqwest::Response) {
    let mut left = MOST_BODY;
    while let Ok(Some(chunk)) = answer.chunk().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
