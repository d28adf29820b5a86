//! The one way out to customers' hosts: a POST that reaches the internet, and nothing that only we can reach.
//!
//! Owns a single attempt: its place among those of all accounts, look-up, judgement of every address, a connection to
//! those addresses and no others, time and size limits. Refuses to sign, to try again and to judge what an answer means
//! (`verdict.rs`). Invariant: what was checked is what is connected to (`egress/clients.rs`); one refused address
//! refuses the host; and neither the text of a failure nor the time that it takes tells a name that is known inside
//! from one that is not. Every failure is a [`SendError`] with a text that may be shown to the endpoint's owner.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep, timeout};

mod clients;
mod failure;
mod look_ups;
mod resolver;
mod trust;

pub use failure::SendError;
pub use resolver::{Resolver, Script};
pub use trust::TrustError;

use crate::address::{is_private_or_loopback, refuse};
use crate::fair::FairSlots;
use clients::Clients;
use look_ups::{LOOK_UP_TIMEOUT, LookUps};
use resolver::Names;
use stage0_contract::{AccountId, Host, WebhookUrl};

/// An answer's body means nothing to us; so much of it is read, for the sake of the connection, and the rest is not.
const MOST_BODY: usize = 16 * 1024;
/// Longer than any wait that could be asked for in good faith, as seconds or as a date.
const MOST_RETRY_AFTER: usize = 64;
/// Attempts in flight, of all accounts: each may hold a socket for as long as an attempt lasts.
const MAX_IN_FLIGHT: usize = 512;
/// Of one account. An endpoint alone has no more than 16.
const MAX_IN_FLIGHT_PER_ACCOUNT: usize = 64;

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
    /// DNS servers to ask instead of the system's; none: the system's.
    pub name_servers: Vec<SocketAddr>,
}

/// Sends requests to endpoints.
pub struct Egress {
    dangerous_allow_private: bool,
    timeout: Duration,
    in_flight: FairSlots,
    look_ups: LookUps,
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
            name_servers: Vec::new(),
        }
    }
}

impl Egress {
    /// Reads the certificates and the system's name servers, so it blocks: for the start of a service. Connects to
    /// nobody.
    pub fn build(config: &EgressConfig, resolver: Resolver) -> Result<Self, TrustError> {
        let tls = trust::client_config(config.extra_ca.as_deref())?;
        Ok(Self {
            dangerous_allow_private: config.dangerous_allow_private,
            timeout: config.timeout,
            in_flight: FairSlots::new(MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_ACCOUNT),
            look_ups: LookUps::new(Names::new(resolver, &config.name_servers)),
            clients: Clients::new(tls, config),
        })
    }

    /// Makes one attempt for an account, when it is its turn. The status decides, so an answer whose body is too long,
    /// too slow or broken off is an answer.
    pub async fn post(
        &self,
        account: &AccountId,
        url: &WebhookUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, SendError> {
        let slot = self.in_flight.acquire(account).await;
        let began = Instant::now();
        let attempt = timeout(self.timeout, self.exchange(account, url, headers, body)).await;
        let answer = match attempt.unwrap_or(Err(SendError::Timeout)) {
            Ok(answer) => answer,
            Err(error) => {
                drop(slot);
                if self.tells_of_names(url, error) {
                    sleep(LOOK_UP_TIMEOUT.saturating_sub(began.elapsed())).await;
                }
                return Err(error);
            }
        };
        let status = answer.status().as_u16();
        let retry_after = retry_after(answer.headers());
        let left = self.timeout.saturating_sub(began.elapsed());
        if timeout(left, drain(answer)).await.is_err() {
            tracing::debug!(status, "an endpoint's answer has a body that does not end in time");
        }
        Ok(Response { status, retry_after, took: began.elapsed() })
    }

    /// Whether an early answer would tell what our resolver knows: a name inside is found at once, one that nobody
    /// knows is not.
    fn tells_of_names(&self, url: &WebhookUrl, error: SendError) -> bool {
        !self.dangerous_allow_private
            && matches!(url.host(), Host::Name(_))
            && matches!(error, SendError::Unresolved | SendError::Refused(_))
    }

    async fn exchange(
        &self,
        account: &AccountId,
        url: &WebhookUrl,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<reqwest::Response, SendError> {
        let addresses = self.look_up(account, url).await?;
        for address in &addresses {
            self.permit(url, *address)?;
        }
        let client = self.clients.to(url, addresses)?;
        let request = client.post(url.url().clone()).headers(headers).body(body);
        request.send().await.map_err(|error| SendError::of(&error))
    }

    async fn look_up(&self, account: &AccountId, url: &WebhookUrl) -> Result<Vec<IpAddr>, SendError> {
        match url.host() {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) => {
                self.look_ups.find(account, name).await.map(|found| found.to_vec()).ok_or(SendError::Unresolved)
            }
        }
    }

    /// The dangerous mode adds local addresses to https, and http to local addresses.
    fn permit(&self, url: &WebhookUrl, address: IpAddr) -> Result<(), SendError> {
        if self.dangerous_allow_private && is_private_or_loopback(address) {
            return Ok(());
        }
        match refuse(address) {
            Some(why) => Err(SendError::Refused(why)),
            None if url.is_plain() => Err(SendError::Plain),
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
