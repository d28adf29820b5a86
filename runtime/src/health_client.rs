//! Asks a role on this machine whether it is ready: the client of `/readyz` that the metrics server serves.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const TIMEOUT: Duration = Duration::from_secs(3);

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether the role can do its part.
    pub ready: bool,
    /// Why not, and what an operator should know.
    pub reasons: Vec<String>,
}

/// No answer about readiness.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum HealthError {
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("nothing answers at {address}")]
    NoAnswer { address: SocketAddr, source: reqwest::Error },
    #[error("the answer is not that of a stage0 role")]
    Malformed(#[source] serde_json::Error),
}

/// Asks once.
pub async fn readiness(address: SocketAddr) -> Result<Readiness, HealthError> {
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(HealthError::Client)?;
    let answer = async { client.get(format!("http://{address}/readyz")).send().await?.bytes().await };
    let answer = answer.await.map_err(|source| HealthError::NoAnswer { address, source })?;
    serde_json::from_slice(&answer).map_err(HealthError::Malformed)
}
