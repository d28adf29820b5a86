//! Verifies the signature and the age of a delivery: pure.
//!
//! Owns the checks of the three headers. The signature is verified by the library of the Standard Webhooks project and
//! not by the code that signs, so that an error of one does not hide an error of the other. INVARIANT: no part of a
//! delivery is parsed before this.

use std::time::Duration;

use actix_web::http::header::HeaderMap;
use jiff::Timestamp;
use reqwest::header::{HeaderMap as LibraryHeaders, HeaderValue};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};

/// The tolerance of the Standard Webhooks libraries. Each attempt has a new signature, so a retry is never too old.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Why a delivery is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The header is missing or repeated.
    #[error("needs one header {0}")]
    Header(&'static str),
    #[error("webhook-timestamp is no number of seconds")]
    Timestamp,
    /// Perhaps a replay of an old delivery.
    #[error("webhook-timestamp is too old")]
    TooOld,
    #[error("webhook-timestamp is in the future")]
    Future,
    /// Signed with another secret, or the body was changed.
    #[error("signature does not match")]
    Signature,
}

/// Returns the `webhook-id` of an authentic delivery.
pub(super) fn verify<'h>(
    headers: &'h HeaderMap,
    body: &[u8],
    secrets: &[Webhook],
    now: Timestamp,
) -> Result<&'h str, Refused> {
    let id = single(headers, HEADER_WEBHOOK_ID)?;
    let stamp = single(headers, HEADER_WEBHOOK_TIMESTAMP)?;
    let signature = single(headers, HEADER_WEBHOOK_SIGNATURE)?;
    // The library does not expect a number that overflows, so it is checked here first.
    let seconds = stamp.parse().map_err(|_| Refused::Timestamp)?;
    let signed_at = Timestamp::from_second(seconds).map_err(|_| Refused::Timestamp)?;
    let age = now.duration_since(signed_at);
    if age.unsigned_abs() > TOLERANCE {
        return Err(if age.is_positive() { Refused::TooOld } else { Refused::Future });
    }
    let mut checked = LibraryHeaders::new();
    for (name, value) in
        [(HEADER_WEBHOOK_ID, id), (HEADER_WEBHOOK_TIMESTAMP, stamp), (HEADER_WEBHOOK_SIGNATURE, signature)]
    {
        checked.insert(name, HeaderValue::from_str(value).map_err(|_| Refused::Header(name))?);
    }
    let matches = secrets.iter().any(|secret| secret.verify(body, &checked).is_ok());
    if matches { Ok(id) } else { Err(Refused::Signature) }
}

fn single<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Refused> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Refused::Header(name)),
        _ => Err(Refused::Header(name)),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const BODY: &[u8] = b"{}";

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
        assert_eq!(verify(&headers, BODY, &[secret(2)], now), Err(Refused::Signature));
        assert_eq!(verify(&headers, BODY, &[], now), Err(Refused::Signature));
        assert_eq!(verify(&headers, b"{ }", &[secret(1)], now), Err(Refused::Signature));
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
        assert_eq!((verified(-301), verified(301)), (Err(Refused::TooOld), Err(Refused::Future)));
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
            assert_eq!(verified, Err(Refused::Timestamp), "{stamp}");
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
                assert_eq!(verify(&headers, BODY, &[secret(1)], now), Err(Refused::Header(name)));
            }
        }
    }
}
