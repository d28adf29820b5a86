//! A role's message keys: the content of its file, and the same ready for use.
//!
//! One file for each role, with only what that role needs. Generations overlap, so that keys can be replaced while
//! messages are in flight. A retired generation keeps only what checks stored data. No error and no `Debug` shows a
//! secret.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stage0_contract::Role;
use zeroize::Zeroizing;

use super::envelope::Envelope;

const VERSION: u32 = 1;
/// Generations that are accepted at the same time: the one in use and the one before or after it.
const MAX_LIVE: usize = 2;

/// From when on unauthenticated messages are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// From the first message on: nothing in this deployment was ever stored unauthenticated.
    Always,
    /// As soon as every role was seen to authenticate, and for ever after.
    WhenAllCan,
}

/// The content of a role's key file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageKeys {
    pub(super) message_keys: u32,
    pub(super) role: Role,
    pub(super) require: Requirement,
    pub(super) active: u32,
    pub(super) generations: Vec<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generation {
    pub(super) number: u32,
    /// Since then nothing sent with it is accepted, and of stored data only what was stored before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retired_at: Option<Timestamp>,
    /// Shared with each role, including this one; empty once retired.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) pairs: BTreeMap<Role, Secret>,
    pub(super) records: Secret,
    /// Signs what the role appends to the log; none once retired, and for a role that appends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) signing: Option<Secret>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) signers: BTreeMap<Role, Public>,
}

/// A 32-byte secret key; 64 hexadecimal digits in a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Secret(#[serde(with = "hex")] Zeroizing<[u8; 32]>);

/// An Ed25519 public key; 64 hexadecimal digits in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Public(#[serde(with = "hex")] pub(super) [u8; 32]);

/// Why a key file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// The text is not a key file.
    #[error("is no file of message keys: make one with `stage0 nats-keys create`")]
    Malformed,
    /// The file is of another version.
    #[error("is of format {0}, and this version reads format {VERSION}")]
    Version(u32),
    /// The file belongs to another role.
    #[error("holds the keys of `{found}`, and this is `{wanted}`: give each role its own file")]
    Role {
        /// The role in the file.
        found: Role,
        /// The role that reads it.
        wanted: Role,
    },
    /// Its generations are inconsistent.
    #[error("is damaged ({0}): restore it, or make new ones with `stage0 nats-keys create`")]
    Damaged(&'static str),
}

impl MessageKeys {
    /// Parses a file's text.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let keys: Self = serde_json::from_str(text).map_err(|_| KeysError::Malformed)?;
        if keys.message_keys != VERSION {
            return Err(KeysError::Version(keys.message_keys));
        }
        match keys.fault() {
            Some(fault) => Err(KeysError::Damaged(fault)),
            None => Ok(keys),
        }
    }

    /// The text of the file.
    pub fn render(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// The role that the keys belong to.
    pub fn role(&self) -> Role {
        self.role
    }

    /// From when on unauthenticated messages are refused.
    pub fn requirement(&self) -> Requirement {
        self.require
    }

    /// The generation that is used to send, and all that are accepted.
    pub fn generations(&self) -> (u32, Vec<u32>) {
        (self.active, self.live().map(|generation| generation.number).collect())
    }

    pub(super) fn new(role: Role, require: Requirement, first: Generation) -> Self {
        Self { message_keys: VERSION, role, require, active: first.number, generations: vec![first] }
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().filter(|generation| generation.retired_at.is_none())
    }

    fn fault(&self) -> Option<&'static str> {
        let rising = self.generations.is_sorted_by(|one, next| one.number < next.number);
        let whole = |generation: &Generation| {
            Role::ALL.iter().all(|role| generation.pairs.contains_key(role))
                && SIGNERS.iter().all(|role| generation.signers.contains_key(role))
                && generation.signing.is_some() == SIGNERS.contains(&self.role)
        };
        if !rising {
            Some("its generations are out of order")
        } else if !self.live().any(|generation| generation.number == self.active) {
            Some("the active generation is missing or retired")
        } else if self.live().count() > MAX_LIVE {
            Some("more than two generations are in use")
        } else if !self.live().all(whole) {
            Some("a generation lacks keys")
        } else {
            None
        }
    }
}

/// The roles that append to the log.
pub(super) const SIGNERS: [Role; 2] = [Role::Gateway, Role::AuditExport];

impl Secret {
    pub(super) fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// 32 bytes as 64 hexadecimal digits.
mod hex {
    use super::{Deserialize as _, Deserializer, HEXLOWER, HEXLOWER_PERMISSIVE, Serializer, Zeroizing};

    pub(super) fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(HEXLOWER.encode(bytes.as_ref())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, B: From<[u8; 32]>>(deserializer: D) -> Result<B, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap_or_default());
        let bytes = <[u8; 32]>::try_from(bytes.as_slice());
        bytes.map(B::from).map_err(|_| serde::de::Error::custom("must be 64 hexadecimal digits"))
    }
}

pub(super) struct KeyRing {
    pub(super) active: GenerationKeys,
    /// The other generations, including retired ones.
    others: Vec<GenerationKeys>,
}

#[derive(Clone)]
pub(super) struct GenerationKeys {
    pub(super) number: u32,
    pub(super) retired_at: Option<Timestamp>,
    pairs: BTreeMap<Role, hmac::Key>,
    pub(super) records: hmac::Key,
    pub(super) signing: Option<std::sync::Arc<Ed25519KeyPair>>,
    pub(super) signers: BTreeMap<Role, Public>,
}

impl KeyRing {
    pub(super) fn new(keys: &MessageKeys) -> Result<Self, KeysError> {
        let mut live = keys.generations.iter().map(GenerationKeys::new).collect::<Result<Vec<_>, _>>()?;
        let active = live.iter().position(|live| live.number == keys.active);
        let active = active.ok_or(KeysError::Damaged("the active generation is missing or retired"))?;
        let active = live.remove(active);
        Ok(Self { active, others: live })
    }

    pub(super) fn live(&self, number: u32) -> Option<&GenerationKeys> {
        self.any(number).filter(|live| live.retired_at.is_none())
    }

    pub(super) fn live_pair(&self, envelope: &Envelope) -> Option<&hmac::Key> {
        self.live(envelope.generation)?.pair(envelope.sender)
    }

    /// A generation with which something may have been stored at that time.
    pub(super) fn stored(&self, number: u32, at: Timestamp) -> Option<&GenerationKeys> {
        self.any(number).filter(|live| live.retired_at.is_none_or(|retired_at| at < retired_at))
    }

    fn any(&self, number: u32) -> Option<&GenerationKeys> {
        std::iter::once(&self.active).chain(&self.others).find(|live| live.number == number)
    }
}

impl GenerationKeys {
    fn new(generation: &Generation) -> Result<Self, KeysError> {
        let key = |secret: &Secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        let signing = generation.signing.as_ref().map(|seed| Ed25519KeyPair::from_seed_unchecked(seed.expose()));
        let signing = signing.transpose().map_err(|_| KeysError::Damaged("its signing seed is of no use"))?;
        Ok(Self {
            number: generation.number,
            retired_at: generation.retired_at,
            pairs: generation.pairs.iter().map(|(role, secret)| (*role, key(secret))).collect(),
            records: key(&generation.records),
            signing: signing.map(std::sync::Arc::new),
            signers: generation.signers.clone(),
        })
    }

    pub(super) fn pair(&self, role: Role) -> Option<&hmac::Key> {
        self.pairs.get(&role)
    }
}

pub(super) fn public_of(seed: &Secret) -> Option<Public> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).ok()?;
    pair.public_key().as_ref().try_into().ok().map(Public)
}
