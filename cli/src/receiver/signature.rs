//! Verifies the signature and the age of a delivery with the secrets of a file, one a line.
//!
//! The signature is verified by the library of the Standard Webhooks project and not by the code that signs, so that an
//! error of one does not hide an error of the other. INVARIANT: no part of a delivery is parsed before this. A fault of
//! the file names its lines and never quotes them: a line may be a secret with a typing mistake.

use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use actix_web::http::header::HeaderMap;
use jiff::Timestamp;
use reqwest::header::{HeaderMap as LibraryHeaders, HeaderValue};
use stage0_contract::WebhookSecret;
use stage0_secret_file::check_secret_file;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};

const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The tolerance of the Standard Webhooks libraries. Each attempt has a new signature, so a retry is never too old.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The usable secrets, and what is wrong with the file or with some of its lines.
pub(super) fn read_secrets(file: &Path) -> (Vec<Webhook>, Option<String>) {
    let unreadable = |error| (Vec::new(), Some(format!("cannot be read: {error}")));
    read_text(file).map_or_else(unreadable, |text| parse(&text))
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

/// Returns the `webhook-id` of an authentic delivery, else why it is refused.
pub(super) fn verify<'h>(
    headers: &'h HeaderMap,
    body: &[u8],
    secrets: &[Webhook],
    now: Timestamp,
) -> Result<&'h str, String> {
    let mut checked = LibraryHeaders::new();
    for name in [HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, HEADER_WEBHOOK_SIGNATURE] {
        let value = HeaderValue::from_str(single(headers, name)?);
        checked.insert(name, value.map_err(|_| format!("needs one header {name}"))?);
    }
    // The library does not expect a number that overflows, so it is checked here first.
    let stamp = single(headers, HEADER_WEBHOOK_TIMESTAMP)?.parse().ok();
    let signed_at = stamp.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let age = now.duration_since(signed_at.ok_or("webhook-timestamp is no number of seconds")?);
    if age.unsigned_abs() > TOLERANCE {
        let why = if age.is_positive() { "is too old" } else { "is in the future" };
        return Err(format!("webhook-timestamp {why}"));
    }
    let matches = secrets.iter().any(|secret| secret.verify(body, &checked).is_ok());
    if matches { single(headers, HEADER_WEBHOOK_ID) } else { Err("signature does not match".to_owned()) }
}

/// The value of a header that occurs exactly once.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, String> {
    let mut values = headers.get_all(name);
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        _ => Err(format!("needs one header {name}")),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const BODY: &[u8] = b"{}";
    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn secret(byte: u8) -> Webhook {
        Webhook::from_bytes(vec![byte; 32]).unwrap()
    }

    fn signed(at: Timestamp, by: &Webhook) -> HeaderMap {
        let signature = by.sign("dec_1", at.as_second(), BODY).unwrap();
        headers(&[
            (HEADER_WEBHOOK_ID, "dec_1"),
            (HEADER_WEBHOOK_TIMESTAMP, &at.as_second().to_string()),
            (HEADER_WEBHOOK_SIGNATURE, &signature),
        ])
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        pairs.iter().map(pair).for_each(|(name, value)| map.append(name, value));
        map
    }

    #[test]
    fn a_signature_by_any_of_the_secrets_is_accepted() {
        let now = Timestamp::now();
        let headers = signed(now, &secret(1));
        assert_eq!(verify(&headers, BODY, &[secret(2), secret(1)], now), Ok("dec_1"));
        assert_eq!(verify(&headers, BODY, &[secret(2)], now), Err("signature does not match".to_owned()));
        assert_eq!(verify(&headers, BODY, &[], now), Err("signature does not match".to_owned()));
        assert_eq!(verify(&headers, b"{ }", &[secret(1)], now), Err("signature does not match".to_owned()));
    }

    #[test]
    fn a_signature_is_valid_five_minutes_before_and_after_its_time() {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let verified = |offset: i64| {
            let at = Timestamp::from_second(now.as_second() + offset).unwrap();
            verify(&signed(at, &secret(1)), BODY, &[secret(1)], now).map(|_| ())
        };
        // Not at the bound itself: there the library's own clock would decide.
        assert_eq!((verified(-290), verified(290)), (Ok(()), Ok(())));
        assert_eq!(verified(-301), Err("webhook-timestamp is too old".to_owned()));
        assert_eq!(verified(301), Err("webhook-timestamp is in the future".to_owned()));
    }

    #[test]
    fn a_malformed_timestamp_is_refused_before_the_library_sees_it() {
        for stamp in ["", "soon", "1.5", "-9223372036854775808", "9223372036854775807", "99999999999999999999"] {
            let headers = headers(&[
                (HEADER_WEBHOOK_ID, "a"),
                (HEADER_WEBHOOK_TIMESTAMP, stamp),
                (HEADER_WEBHOOK_SIGNATURE, "v1,x"),
            ]);
            let verified = verify(&headers, BODY, &[secret(1)], Timestamp::now());
            assert_eq!(verified, Err("webhook-timestamp is no number of seconds".to_owned()), "{stamp}");
        }
    }

    #[test]
    fn each_header_must_occur_exactly_once() {
        let now = Timestamp::now();
        for name in [HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, HEADER_WEBHOOK_SIGNATURE] {
            let mut missing = signed(now, &secret(1));
            missing.remove(name);
            let mut twice = signed(now, &secret(1));
            twice.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            for headers in [missing, twice] {
                assert_eq!(verify(&headers, BODY, &[secret(1)], now), Err(format!("needs one header {name}")));
            }
        }
    }

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
