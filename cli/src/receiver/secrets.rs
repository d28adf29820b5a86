//! The file with the secrets that deliveries are verified with: one a line.
//!
//! A fault names the file's lines and never quotes them: a line may be a secret with a typing mistake.

use std::io::{self, Read as _};
use std::path::Path;

use stage0_backplane::check_secret_file;
use stage0_contract::WebhookSecret;
use standardwebhooks::Webhook;

/// Room for hundreds of secrets.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The usable secrets, often one, and what is wrong with the file or with some of its lines.
pub(super) fn read(file: &Path) -> (Vec<Webhook>, Option<String>) {
    match read_text(file) {
        Ok(text) => parse(&text),
        Err(error) => (Vec::new(), Some(format!("cannot be read: {error}"))),
    }
}

fn read_text(file: &Path) -> io::Result<String> {
    check_secret_file(file).map_err(io::Error::other)?;
    let mut text = String::new();
    let length = std::fs::File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

fn parse(text: &str) -> (Vec<Webhook>, Option<String>) {
    let mut secrets = Vec::new();
    let mut bad_lines = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        // The library accepts any base64, even an empty key; the contract's type does not.
        match WebhookSecret::parse(line).and_then(|secret| Webhook::new(secret.expose()).ok()) {
            Some(secret) => secrets.push(secret),
            None => bad_lines.push((index + 1).to_string()),
        }
    }
    let fault = match (bad_lines.is_empty(), secrets.is_empty()) {
        (false, _) => Some(format!("no secret (`whsec_…`) in line {}", bad_lines.join(", "))),
        (true, true) => Some("holds no secret".to_owned()),
        (true, false) => None,
    };
    (secrets, fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn each_line_may_hold_a_secret_and_bad_lines_are_named_by_number() {
        let (found, fault) = parse(&format!("\n{GOOD}\r\n  {GOOD}\n"));
        assert_eq!((found.len(), fault), (2, None));
        let (found, fault) = parse(&format!("whsec_\n{GOOD}\nMfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        assert_eq!((found.len(), fault.as_deref()), (1, Some("no secret (`whsec_…`) in line 1, 3")));
        let (found, fault) = parse("");
        assert_eq!((found.len(), fault.as_deref()), (0, Some("holds no secret")));
    }
}
