//! JetStream's state by a nats-server's monitor (`/jsz`): whether it syncs each message, and how much space it has.

use serde::Deserialize;

use crate::MAX_MESSAGE_BYTES;

/// The state of a server's JetStream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "Jsz")]
pub struct JetStreamState {
    /// Whether JetStream is enabled.
    pub enabled: bool,
    /// Whether each message is on disk before it is acknowledged.
    pub sync_always: bool,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that may be used; none: the server does not say.
    pub max_bytes: Option<u64>,
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
    /// Asks the monitor at this address; the error continues a sentence that starts with "its monitor".
    pub async fn fetch(client: &reqwest::Client, monitor: &str) -> Result<Self, String> {
        let unanswered = |error: reqwest::Error| format!("does not answer: {}", error.without_url());
        let url = format!("{}/jsz?config=1", monitor.trim_end_matches('/'));
        let answer = client.get(url).send().await.map_err(unanswered)?;
        let bytes = answer.error_for_status().map_err(unanswered)?.bytes().await.map_err(unanswered)?;
        serde_json::from_slice(&bytes).map_err(|_| "is no monitor of nats with JetStream".to_owned())
    }

    /// Whether the largest batch would not fit any more.
    pub fn is_full(&self) -> bool {
        let largest = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
        self.max_bytes.is_some_and(|max_bytes| max_bytes.saturating_sub(self.used_bytes) < largest)
    }
}

impl From<Jsz> for JetStreamState {
    fn from(Jsz { disabled, storage, config }: Jsz) -> Self {
        Self { enabled: !disabled, sync_always: config.sync_always, used_bytes: storage, max_bytes: config.max_storage }
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
