//! The chain by which a reader proves that no recorded decision is missing, altered, out of order or doubled.
//!
//! Each gateway numbers the lines that it writes for an account, decisions and events of approvals alike, and puts the
//! hash of the previous one into each; marks, signed by the keystore, name the last line of every writer. A hash is the
//! SHA-256 of a line's bytes without its line feed; a signature is Ed25519 (RFC 8032) over the line without its
//! signature.

use std::fmt;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::IdError;
use crate::record::Mark;

mod sign;
mod verifier;

pub use sign::{PublicKey, SigningKeyId, Unsigned, signed_part};
pub use verifier::{ChainVerifier, Finding, FindingKind, Report, Window};

/// SHA-256 of a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// Hashes the line's bytes, without its line feed.
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    /// Reads 64 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(IdError { expected: "a SHA-256: 64 hexadecimal digits in lower case" })
    }
}

impl TryFrom<String> for LineHash {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<LineHash> for String {
    fn from(hash: LineHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of one gateway's chain. A new one begins when the gateway starts or when the outcome of an append is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriterId(Uuid);

impl WriterId {
    /// Takes a UUID made by the caller.
    pub fn new(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A line's place in its writer's chain for one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// The chain that it belongs to.
    pub writer: WriterId,
    /// Counts from 1 without gaps.
    pub sequence: u64,
    /// The writer's line before this one; null only for its first.
    pub previous: Option<Previous>,
    /// Of a writer's first line only: the last line of another writer that was there already; absent when there was
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Head>,
    /// Of a writer's first line only: the last mark of the account that was there already; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<MarkRef>,
}

/// What a line says of the one before it; the times tell whether that one may be gone by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Previous {
    /// The hash of its line.
    pub hash: LineHash,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// It may be removed from this second on (Unix time).
    pub expires_at: i64,
}

/// The last line of a writer at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// The writer.
    pub writer: WriterId,
    /// Its number in the writer's chain.
    pub sequence: u64,
    /// The hash of its line.
    pub hash: LineHash,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// It may be removed from this second on (Unix time).
    pub expires_at: i64,
}

impl Head {
    /// What the writer's next line says about this one.
    pub fn as_previous(&self) -> Previous {
        Previous { hash: self.hash, recorded_at: self.recorded_at, expires_at: self.expires_at }
    }
}

/// A mark by number and hash. Kept outside, it shows whether the log that is looked at later still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MarkRef {
    /// Its number in the writer's chain.
    #[schemars(extend("minimum" = 1))]
    pub number: u64,
    /// The hash of its line.
    pub hash: LineHash,
}

impl MarkRef {
    /// The reference to the mark on a line; `None` if the line is not a mark.
    pub fn of(line: &[u8]) -> Option<Self> {
        let mark: Mark = serde_json::from_slice(line).ok()?;
        Some(Self { number: mark.number, hash: LineHash::of(line) })
    }

    /// Reads `number:hash`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let parsed = text
            .split_once(':')
            .and_then(|(number, hash)| Some(Self { number: number.parse().ok()?, hash: LineHash::parse(hash).ok()? }));
        parsed.ok_or(IdError { expected: "`number:hash` of a mark" })
    }
}

impl fmt::Display for MarkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}
