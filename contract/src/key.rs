//! API keys as text: `s0_<key id>_<secret><checksum>`.
//!
//! The prefix lets secret scanners find a leaked key, the id finds its record, the checksum lets a typo be refused
//! without a hash. Making the random parts and judging a key are the keystore's.
//! INVARIANT: the text never reaches `Debug`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::KeyId;

/// Crockford's base 32 in lower case: no letter that is mistaken for a digit.
pub const KEY_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

const PREFIX: &str = "s0_";
const ID_CHARS: usize = 16;
const SECRET_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 7;

/// A well-formed API key: right prefix, lengths, alphabet and checksum. Says nothing about whether it lives.
/// Two are compared only in fixtures: judging a key compares hashes, in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    id: KeyId,
    text: Zeroizing<String>,
}

/// The text is not a key; nothing says in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an API key")]
pub struct ApiKeyError;

impl ApiKey {
    /// 80 random bits for the id, 160 for the secret.
    pub fn from_random(id: [u8; 10], secret: [u8; 20]) -> Result<Self, ApiKeyError> {
        let body = Zeroizing::new(format!("{PREFIX}{}_{}", base32(&id), *Zeroizing::new(base32(&secret))));
        let checksum = checksum(&body);
        Self::parse(&Zeroizing::new(format!("{}{checksum}", *body)))
    }

    /// Checks form and checksum; costs no hash.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        let rest = text.strip_prefix(PREFIX).ok_or(ApiKeyError)?;
        let (id, tail) = rest.split_once('_').ok_or(ApiKeyError)?;
        let alphabet = |part: &str| part.bytes().all(|b| KEY_ALPHABET.contains(&b));
        if id.len() != ID_CHARS || tail.len() != SECRET_CHARS + CHECKSUM_CHARS || !alphabet(id) || !alphabet(tail) {
            return Err(ApiKeyError);
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM_CHARS);
        if checksum(body) != sum {
            return Err(ApiKeyError);
        }
        let id = KeyId::parse(id).map_err(|_| ApiKeyError)?;
        Ok(Self { id, text: Zeroizing::new(text.to_owned()) })
    }

    /// The public part.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The whole key. For the hash, the wire to the keystore and the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What may be shown of it: `s0_<key id>`.
    pub fn prefix(id: &KeyId) -> String {
        format!("{PREFIX}{id}")
    }
}

fn checksum(body: &str) -> String {
    base32(&crc32fast::hash(body.as_bytes()).to_be_bytes())
}

/// Most significant bits first; the last character is filled up with zero bits.
pub(crate) fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    let mut push = |value: u32| text.push(KEY_ALPHABET.get((value & 31) as usize).copied().map_or('0', char::from));
    for &byte in bytes {
        buffer = (buffer << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            push(buffer >> bits);
        }
        buffer &= (1 << bits) - 1;
    }
    if bits > 0 {
        push(buffer << (5 - bits));
    }
    text
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({PREFIX}{}_…)", self.id)
    }
}

impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ApiKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::from_random([7; 10], [9; 20]).unwrap()
    }

    #[test]
    fn a_key_reads_back_and_shows_only_its_id() {
        let key = key();
        let again = ApiKey::parse(key.expose()).unwrap();
        assert_eq!(again.id(), key.id());
        assert!(key.expose().starts_with(&ApiKey::prefix(key.id())));
        let (_, secret) = key.expose().rsplit_once('_').unwrap();
        assert!(!format!("{key:?}").contains(secret));
    }

    #[test]
    fn the_text_of_a_key_is_this() {
        assert_eq!(key().expose(), "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328");
    }

    #[test]
    fn any_changed_character_is_refused() {
        let text = key().expose().to_owned();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'2' { b'3' } else { b'2' };
            assert!(ApiKey::parse(std::str::from_utf8(&bytes).unwrap()).is_err(), "at {at}");
        }
        for bad in ["", "s0_", "s0__", &text[1..], &format!("{text}0"), &text.to_uppercase(), &format!(" {text}")] {
            assert!(ApiKey::parse(bad).is_err(), "{bad:?}");
        }
    }
}
