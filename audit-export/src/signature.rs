//! Signatures of deliveries, as the Standard Webhooks specification has them (symmetric, version 1).
//!
//! Owns the form of a secret (`whsec_` and base 64 of 24 to 64 bytes; ours have 32) and the bytes that are signed:
//! `<id>.<timestamp>.<body>`. Refuses to keep secrets, to choose which of them are valid, and to know the time.
//! Invariant: a secret is in no `Debug`, no error and no memory after its drop; it is shown by `expose` alone.
//! Nothing here fails but parsing, and that does not say in which way.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::fmt;

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The message's id, the same at every attempt.
pub const ID_HEADER: &str = "webhook-id";
/// Seconds since 1970 of this attempt.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// What [`sign`] makes.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

const PREFIX: &str = "whsec_";
const LEAST_BYTES: usize = 24;
/// The specification's bound, and the block of SHA-256: no key of ours is hashed before it is used.
const MOST_BYTES: usize = 64;

/// What a receiver and we share.
#[derive(Clone)]
pub struct EndpointSecret {
    /// Zeros follow the secret: HMAC pads a key in just this way (RFC 2104, section 2).
    block: Zeroizing<[u8; MOST_BYTES]>,
    length: usize,
}

/// The text is not a secret; nothing says in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a webhook secret")]
pub struct EndpointSecretError;

impl EndpointSecret {
    /// A new secret of 256 random bits.
    pub fn from_random(random: [u8; 32]) -> Self {
        let mut block = Zeroizing::new([0; MOST_BYTES]);
        block.iter_mut().zip(random).for_each(|(to, from)| *to = from);
        Self { block, length: random.len() }
    }

    /// Reads `whsec_` and canonical, padded base 64.
    pub fn parse(text: &str) -> Result<Self, EndpointSecretError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(EndpointSecretError)?;
        let bytes = Zeroizing::new(BASE64.decode(encoded.as_bytes()).map_err(|_| EndpointSecretError)?);
        if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes.len()) {
            return Err(EndpointSecretError);
        }
        let mut block = Zeroizing::new([0; MOST_BYTES]);
        block.iter_mut().zip(bytes.iter()).for_each(|(to, from)| *to = *from);
        Ok(Self { block, length: bytes.len() })
    }

    /// The whole secret. For storage and for the one answer that shows it.
    pub fn expose(&self) -> Zeroizing<String> {
        let bytes = self.block.get(..self.length).unwrap_or_default();
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + BASE64.encode_len(bytes.len())));
        text.push_str(PREFIX);
        BASE64.encode_append(bytes, &mut text);
        text
    }
}

impl fmt::Debug for EndpointSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointSecret({PREFIX}…)")
    }
}

/// The value of [`SIGNATURE_HEADER`]: one `v1,<base 64>` for each secret, in their order, with a space between.
///
/// While a secret is rotated there are two, and the receiver accepts either. `timestamp` is in seconds; `id` holds no dot.
pub fn sign(secrets: &[EndpointSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp}.");
    let mut value = String::new();
    for secret in secrets {
        if !value.is_empty() {
            value.push(' ');
        }
        let mut mac = Hmac::<Sha256>::new((&*secret.block).into());
        mac.update(head.as_bytes());
        mac.update(body);
        value.push_str("v1,");
        BASE64.encode_append(&mac.finalize().into_bytes(), &mut value);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;

    /// (secret, id, timestamp, body, signature). The first is the specification's, the second its reference library's, the last
    /// two were computed with Python's `hmac`: shortest and longest secret, and a body that is not ASCII.
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

    fn secret(text: &str) -> EndpointSecret {
        EndpointSecret::parse(text).unwrap()
    }

    #[test]
    fn known_messages_have_known_signatures() {
        for (text, id, timestamp, body, signature) in VECTORS {
            assert_eq!(sign(&[secret(text)], id, timestamp, body.as_bytes()), signature, "{id}");
        }
    }

    #[test]
    fn while_a_secret_is_rotated_both_sign_in_order_with_one_space_between() {
        let (old, new) = (VECTORS[0].0, VECTORS[1].0);
        let (id, timestamp, body) = (VECTORS[0].1, VECTORS[0].2, VECTORS[0].3.as_bytes());
        let both = sign(&[secret(new), secret(old)], id, timestamp, body);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(first, sign(&[secret(new)], id, timestamp, body));
        assert_eq!(second, VECTORS[0].4);
    }

    #[test]
    fn an_independent_implementation_verifies_what_we_sign_and_refuses_what_was_altered() {
        let (old, new) = (EndpointSecret::from_random([7; 32]), EndpointSecret::from_random([9; 32]));
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
            let receiver = Webhook::new(&secret.expose()).unwrap();
            let secret = [secret];
            receiver.verify(body, &signed).unwrap();
            assert!(receiver.verify(br#"{"type":"decision.forged"}"#, &signed).is_err());
            assert!(receiver.verify(body, &headers(&sign(&secret, "evt_2", now, body))).is_err());
            assert!(receiver.verify(body, &headers(&sign(&secret, "evt_1", now - 1, body))).is_err());
        }
        let stranger = Webhook::new(&EndpointSecret::from_random([8; 32]).expose()).unwrap();
        assert!(stranger.verify(body, &signed).is_err());
    }

    #[test]
    fn a_secret_survives_being_written_and_read() {
        for (text, ..) in VECTORS {
            assert_eq!(*secret(text).expose(), text);
        }
        let ours = EndpointSecret::from_random([0xa5; 32]).expose();
        assert_eq!(*secret(&ours).expose(), *ours);
        assert_eq!(ours.len(), "whsec_".len() + 44);
    }

    #[test]
    fn what_is_not_a_secret_is_refused() {
        let of = |count: usize| format!("whsec_{}", BASE64.encode(&vec![1; count]));
        assert!(EndpointSecret::parse(&of(24)).is_ok() && EndpointSecret::parse(&of(64)).is_ok());
        let padded = of(32);
        let bad = [
            of(23),
            of(65),
            of(0),
            String::new(),
            padded.trim_start_matches("whsec_").to_owned(),
            padded.trim_end_matches('=').to_owned(),
            padded.replace("whsec_", "WHSEC_"),
            format!("{padded}\n"),
            format!(" {padded}"),
            padded.replace("AQ", "-_"),
            // The unused bits of the last character are not zero: a second spelling of the same bytes.
            padded.replace("E=", "F="),
        ];
        for text in bad {
            assert_eq!(EndpointSecret::parse(&text).err(), Some(EndpointSecretError), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_nothing_of_a_secret() {
        assert_eq!(format!("{:?}", secret(VECTORS[0].0)), "EndpointSecret(whsec_…)");
    }
}
