//! API keys and webhook secrets: the parser takes what the formatter writes, and nothing else.
//!
//! A checksum keeps changed texts out, so keys are also made of the input, and one character of each is changed.

use data_encoding::BASE64;
use stage0_contract::{ApiKey, KEY_ALPHABET, WebhookSecret};

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("api_key", check);

const ID_BYTES: usize = 10;
const SECRET_BYTES: usize = 20;

fn check(input: &[u8]) -> bool {
    let text = text(input);
    made_of(input);
    let key = ApiKey::parse(&text);
    if let Ok(key) = &key {
        is_written(key, &text);
    }
    let secret = WebhookSecret::parse(&text);
    if let Some(secret) = &secret {
        assert!((24..=64).contains(&secret.key().len()));
        assert_eq!(format!("whsec_{}", BASE64.encode(secret.key())), text, "another secret has this key");
        assert_eq!(secret.expose(), text);
    }
    key.is_ok() || secret.is_some()
}

/// The key that these random bytes make is the one that was read.
fn is_written(key: &ApiKey, text: &str) {
    assert_eq!(key.expose(), text);
    let (id, rest) = text["s0_".len()..].split_once('_').unwrap();
    let secret = &rest[..SECRET_BYTES * 8 / 5];
    let id = bytes_of::<ID_BYTES>(id);
    let random = ApiKey::from_random(id, bytes_of::<SECRET_BYTES>(secret)).unwrap();
    assert_eq!(random.expose(), text, "the formatter writes another text");
    assert!(!format!("{key:?}").contains(secret), "it is shown");
}

/// The bytes that this text stands for, five bits a character.
fn bytes_of<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let bits = text.bytes().flat_map(|byte| {
        let value = KEY_ALPHABET.iter().position(|known| *known == byte).unwrap();
        (0..5).rev().map(move |bit| (value >> bit) & 1 == 1)
    });
    let bits: Vec<bool> = bits.collect();
    assert_eq!(bits.len(), LENGTH * 8);
    let mut bytes = [0; LENGTH];
    for (at, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
        bytes[at / 8] |= 0x80 >> (at % 8);
    }
    bytes
}

fn made_of(input: &[u8]) {
    let byte = |at: usize| input.get(at).copied().unwrap_or(0);
    let id: [u8; ID_BYTES] = std::array::from_fn(byte);
    let secret: [u8; SECRET_BYTES] = std::array::from_fn(|at| byte(ID_BYTES + at));
    let key = ApiKey::from_random(id, secret).unwrap();
    is_written(&ApiKey::parse(key.expose()).unwrap(), key.expose());
    let mut changed = key.expose().as_bytes().to_vec();
    let at = usize::from(byte(ID_BYTES + SECRET_BYTES)) % changed.len();
    let other = KEY_ALPHABET[usize::from(byte(ID_BYTES + SECRET_BYTES + 1)) % KEY_ALPHABET.len()];
    if changed[at] != other {
        changed[at] = other;
        assert!(ApiKey::parse(std::str::from_utf8(&changed).unwrap()).is_err(), "a changed key is taken");
    }
}
