//! The secrets that deliveries are verified with, from a file with one a line.
//!
//! Owns when the file is read: at each delivery, so that a secret that was just written counts, and an old one that was taken out
//! does not. The file is small, and a receiver that holds it in memory would have to be told. What is wrong with it is logged when
//! that changes; a secret is in no message.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use stage0_backplane::check_secret_file;
use stage0_contract::WebhookSecret;
use standardwebhooks::Webhook;

/// Hundreds of secrets; whatever is longer is another file.
const MOST_BYTES: u64 = 64 * 1024;

/// Where they are.
pub(super) struct Secrets {
    file: PathBuf,
    /// What was logged last.
    said: Mutex<Option<String>>,
}

impl Secrets {
    /// The file need not be there yet.
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, said: Mutex::default() }
    }

    /// The file, for messages.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Those that can be used now; often one, and none while the file is missing.
    pub(super) async fn read(&self) -> Vec<Webhook> {
        let file = self.file.clone();
        let text = match tokio::task::spawn_blocking(move || text(&file)).await {
            Ok(read) => read.map_err(|error| format!("cannot be read: {error}")),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        let (found, trouble) = text.map_or_else(|trouble| (Vec::new(), Some(trouble)), |text| parse(&text));
        self.say(trouble);
        found
    }

    /// Once for each trouble, not once for each delivery.
    fn say(&self, trouble: Option<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said == trouble {
            return;
        }
        let file = self.file.display();
        match &trouble {
            Some(trouble) => tracing::warn!(%file, trouble, "secrets cannot be used"),
            None => tracing::info!(%file, "secrets are in order"),
        }
        *said = trouble;
    }
}

fn text(file: &Path) -> io::Result<String> {
    check_secret_file(file).map_err(io::Error::other)?;
    let mut text = String::new();
    let read = std::fs::File::open(file)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read <= MOST_BYTES) {
        Ok(text)
    } else {
        Err(io::Error::other(format!("it has more than {MOST_BYTES} bytes")))
    }
}

/// What can be used, and what is wrong with the rest.
fn parse(text: &str) -> (Vec<Webhook>, Option<String>) {
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        // The library takes any base64, an empty key too.
        match WebhookSecret::parse(line).and_then(|secret| Webhook::new(secret.expose()).ok()) {
            Some(secret) => found.push(secret),
            None => bad.push((index + 1).to_string()),
        }
    }
    let trouble = match (bad.is_empty(), found.is_empty()) {
        (false, _) => Some(format!("no secret (`whsec_…`) in line {}", bad.join(", "))),
        (true, true) => Some("holds no secret".to_owned()),
        (true, false) => None,
    };
    (found, trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn every_line_with_a_secret_counts_and_the_others_are_named_without_their_text() {
        let (found, trouble) = parse(&format!("\n{GOOD}\r\n  {GOOD}\n"));
        assert_eq!((found.len(), trouble), (2, None));
        let (found, trouble) = parse(&format!("whsec_\n{GOOD}\nMfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        assert_eq!((found.len(), trouble.as_deref()), (1, Some("no secret (`whsec_…`) in line 1, 3")));
        let (found, trouble) = parse("");
        assert_eq!((found.len(), trouble.as_deref()), (0, Some("holds no secret")));
    }
}
