//! What a nats-server's monitor says of JetStream (`/jsz`): whether it syncs each message, and what room it has.
//!
//! Owns how that is read and when room counts as gone; who asks how often, and what follows, is the asker's.

use serde::Deserialize;

use crate::MAX_MESSAGE_BYTES;

/// What the monitor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "Jsz")]
pub struct JetStreamState {
    /// Whether there is JetStream.
    pub enabled: bool,
    /// Each message is on disk before it is acknowledged.
    pub sync_always: bool,
    /// Bytes that are taken.
    pub taken: u64,
    /// Bytes that may be taken; none: the server does not say.
    pub most: Option<u64>,
}

#[derive(Deserialize)]
struct Jsz {
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    storage: u64,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    sync_always: bool,
    max_storage: Option<u64>,
}

impl JetStreamState {
    /// Asks the monitor at this address; the error ends a sentence that begins with "its monitor".
    ///
    /// # Errors
    /// When nobody answers there, or something else than a monitor.
    pub async fn ask(client: &reqwest::Client, monitor: &str) -> Result<Self, String> {
        let unanswered = |error: reqwest::Error| format!("does not answer: {}", error.without_url());
        let url = format!("{}/jsz?config=1", monitor.trim_end_matches('/'));
        let answer = client.get(url).send().await.map_err(unanswered)?;
        let bytes = answer.error_for_status().map_err(unanswered)?.bytes().await.map_err(unanswered)?;
        serde_json::from_slice(&bytes).map_err(|_| "is no monitor of nats with JetStream".to_owned())
    }

    /// That the largest batch finds no room any more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let largest = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
        self.most.is_some_and(|most| most.saturating_sub(self.taken) < largest)
    }
}

impl From<Jsz> for JetStreamState {
    fn from(Jsz { disabled, storage, config }: Jsz) -> Self {
        Self { enabled: !disabled, sync_always: config.sync_always, taken: storage, most: config.max_storage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_room_until_the_largest_batch_would_not_fit() {
        let full = |text: &str| serde_json::from_str::<JetStreamState>(text).unwrap().is_full();
        assert!(!full(r#"{"storage":6000000,"config":{"max_storage":20000000000}}"#));
        assert!(full(r#"{"storage":5000000,"config":{"max_storage":6000000}}"#));
        assert!(!full(r#"{"storage":5000000,"config":{}}"#), "it does not say");
    }
}
