//! Signatures of deliveries as the Standard Webhooks specification defines them (symmetric, version 1).
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use stage0_contract::WebhookSecret;
use zeroize::Zeroizing;

/// The event's id, the same at every attempt.
pub(crate) const ID_HEADER: &str = "webhook-id";
/// The time of this attempt, in seconds since 1970.
pub(crate) const TIMESTAMP_HEADER: &str = "webhook-timestamp";
pub(crate) const SIGNATURE_HEADER: &str = "webhook-signature";

/// Signs `<id>.<timestamp>.<body>`: one `v1,<base64>` for each secret, in their order, with a space between. While a
/// secret is rotated there are two, and the receiver accepts either. `timestamp` is in seconds; `id` has no dot.
pub(crate) fn sign(secrets: &[WebhookSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp}.");
    let mut value = String::new();
    for secret in secrets {
        if !value.is_empty() {
            value.push(' ');
        }
        let mut mac = Hmac::<Sha256>::new((&*padded(secret)).into());
        mac.update(head.as_bytes());
        mac.update(body);
        value.push_str("v1,");
        BASE64.encode_append(&mac.finalize().into_bytes(), &mut value);
    }
    value
}

/// The key, padded with zeros to a block of SHA-256, as HMAC pads it too (RFC 2104, section 2). No secret is longer.
fn padded(secret: &WebhookSecret) -> Zeroizing<[u8; 64]> {
    let mut block = Zeroizing::new([0; 64]);
    block.iter_mut().zip(secret.key()).for_each(|(to, from)| *to = *from);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;

    /// (secret, id, timestamp, body, signature). The first is the specification's, the second its reference library's.
    /// The last two were computed with Python's `hmac`: shortest and longest secret, and a body that is not ASCII.
    const VECTORS: [(&str, &str, i64, &str, &str); 4] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        ("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", "evt_1", 0, "", "v1,Eu1SkOEEeebwJEabFkdmkHT5S3G5rUj/VZseteylmpY="),
        (
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==",
            "evt_2",
            1_893_456_000,
            "{\"text\":\"§ é 漢\"}",
            "v1,lmhgfED7j8J4IVxSrmsfEKtDNBMuoR0DI2LuIi6qiY0=",
        ),
    ];

    fn secret(text: &str) -> WebhookSecret {
        WebhookSecret::parse(text).unwrap()
    }

    #[test]
    fn known_messages_have_known_signatures() {
        for (text, id, timestamp, body, signature) in VECTORS {
            assert_eq!(sign(&[secret(text)], id, timestamp, body.as_bytes()), signature, "{id}");
        }
    }

    #[test]
    fn both_secrets_sign_during_a_rotation_in_order_with_one_space_between() {
        let (old, new) = (VECTORS[0].0, VECTORS[1].0);
        let (id, timestamp, body) = (VECTORS[0].1, VECTORS[0].2, VECTORS[0].3.as_bytes());
        let both = sign(&[secret(new), secret(old)], id, timestamp, body);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(first, sign(&[secret(new)], id, timestamp, body));
        assert_eq!(second, VECTORS[0].4);
    }

    #[test]
    fn the_standard_webhooks_library_accepts_our_signatures_and_refuses_altered_ones() {
        let (old, new) = (WebhookSecret::from_random(&[7; 32]), WebhookSecret::from_random(&[9; 32]));
        let (body, now) = (br#"{"type":"decision.recorded"}"#, jiff::Timestamp::now().as_second());
        let headers = |signature: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ID_HEADER, "evt_1".parse().unwrap());
            headers.insert(TIMESTAMP_HEADER, now.to_string().parse().unwrap());
            headers.insert(SIGNATURE_HEADER, signature.parse().unwrap());
            headers
        };
        let signed = headers(&sign(&[new.clone(), old.clone()], "evt_1", now, body));
        for secret in [old, new] {
            let receiver = Webhook::new(secret.expose()).unwrap();
            let secret = [secret];
            receiver.verify(body, &signed).unwrap();
            assert!(receiver.verify(br#"{"type":"decision.forged"}"#, &signed).is_err());
            assert!(receiver.verify(body, &headers(&sign(&secret, "evt_2", now, body))).is_err());
            assert!(receiver.verify(body, &headers(&sign(&secret, "evt_1", now - 1, body))).is_err());
        }
        let stranger = Webhook::new(WebhookSecret::from_random(&[8; 32]).expose()).unwrap();
        assert!(stranger.verify(body, &signed).is_err());
    }
}
