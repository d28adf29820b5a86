//! Ids: each a type of its own, so that an account can never stand where a key id belongs.
//!
//! INVARIANT: an id that exists has been parsed; its characters are safe in a NATS subject, a file name and a log line.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {expected}")]
pub struct IdError {
    pub(crate) expected: &'static str,
}

/// An id that is a text: `parse`, serde through `parse`, and the text itself as `Display` and `Debug`.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Parses the text, or says what it must be.
            pub fn parse(text: &str) -> Result<Self, $crate::IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err($crate::IdError { expected: $expected }) }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::IdError;
            fn try_from(text: String) -> Result<Self, $crate::IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use text_id;

text_id!(
    /// An account: 1–64 of `A-Z a-z 0-9 _ -`, so that it can stand in a subject.
    AccountId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// The public part of an API key: 1–64 of `A-Z a-z 0-9 _ -`. Not a secret.
    KeyId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// A webhook endpoint: 1–64 of `A-Z a-z 0-9 _ -`.
    WebhookId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// A member of an account: 1–64 of `A-Z a-z 0-9 _ -`. Names a person and says nothing of one.
    MemberId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// An approval: 1–64 of `A-Z a-z 0-9 _ -`.
    ApprovalId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// A wider grant: 1–64 of `A-Z a-z 0-9 _ -`.
    GrantId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// A stop: 1–64 of `A-Z a-z 0-9 _ -`.
    StopId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// A proposal to activate a policy: 1–64 of `A-Z a-z 0-9 _ -`.
    ProposalId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);
text_id!(
    /// `<pack>@<semver>+<digest>`, at most 100 visible ASCII characters. Names the content that decided.
    PolicyVersion,
    "a policy version: `<pack>@<semver>+<digest>`",
    |text| {
        text.len() <= 100
            && text.bytes().all(|b| b.is_ascii_graphic())
            && text.split_once('@').is_some_and(|(pack, rest)| {
                let number_and_digest = rest.split_once('+');
                let has_both = |(number, digest): (&str, &str)| !number.is_empty() && !digest.is_empty();
                !pack.is_empty() && number_and_digest.is_some_and(has_both)
            })
    }
);
impl PolicyVersion {
    /// Whether it is this version, or one of the same pack with a higher number.
    pub fn is_at_least(&self, other: &Self) -> bool {
        let is_later = self.number().zip(other.number()).is_some_and(|(one, other)| one > other);
        self == other || (self.pack() == other.pack() && is_later)
    }

    fn pack(&self) -> &str {
        self.as_str().split_once('@').map_or("", |(pack, _)| pack)
    }

    /// Major, minor and patch. None for a number of another form, which is neither earlier nor later than another.
    fn number(&self) -> Option<[u64; 3]> {
        let number = self.as_str().split_once('@')?.1.split_once('+')?.0;
        let parts: Result<Vec<u64>, _> = number.split('.').map(str::parse).collect();
        parts.ok()?.try_into().ok()
    }
}

text_id!(
    /// A caller's correlation id or idempotency key: 1–128 visible ASCII characters.
    ClientRequestId,
    "1 to 128 visible ASCII characters",
    |text| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
);

text_id!(
    /// A guard's own name of itself: 1–64 of `A-Z a-z 0-9 _ -`.
    GuardId,
    "1 to 64 letters, digits, `_` or `-`",
    is_token
);

/// Our id of one check: a UUIDv7, so that it carries its time and sorts by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Uuid);

impl RequestId {
    /// Takes a UUID made by the caller; only version 7 carries its time.
    pub fn new(id: Uuid) -> Result<Self, IdError> {
        if id.get_version_num() == 7 { Ok(Self(id)) } else { Err(IdError { expected: "a UUIDv7" }) }
    }

    /// When it was made, in milliseconds since the epoch: the id carries it.
    pub fn unix_millis(self) -> i64 {
        let bytes = self.0.as_bytes();
        bytes.iter().take(6).fold(0, |millis, byte| (millis << 8) | i64::from(*byte))
    }

    /// Its 16 bytes.
    pub fn into_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// Parses the hyphenated form.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        Uuid::try_parse(text).map_err(|_| IdError { expected: "a UUIDv7" }).and_then(Self::new)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_id_cannot_smuggle_a_subject() {
        for bad in ["", "a.b", "a*", ">", "a b", "ä", &"a".repeat(65)] {
            assert!(AccountId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(AccountId::parse("acc_1-Z").unwrap().as_str(), "acc_1-Z");
    }

    #[test]
    fn a_policy_version_names_pack_semver_and_digest() {
        assert!(PolicyVersion::parse("baseline@1.0.0+0123456789ab").is_ok());
        for bad in ["", "baseline", "baseline@1.0.0", "@1+2", "b@+d", "b@1+", "b @1+2"] {
            assert!(PolicyVersion::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_policy_version_is_at_least_itself_and_those_of_its_pack_with_lower_numbers() {
        let version = |text: &str| PolicyVersion::parse(text).unwrap();
        let wanted = version("acme@1.9.0+aa");
        for at_least in ["acme@1.9.0+aa", "acme@1.10.0+bb", "acme@2.0.0+aa", "acme@1.9.1+cc"] {
            assert!(version(at_least).is_at_least(&wanted), "{at_least}");
        }
        for less in ["acme@1.9.0+bb", "acme@1.8.9+aa", "house@2.0.0+aa", "acme@2.0.0-rc.1+aa", "acme@3+aa"] {
            assert!(!version(less).is_at_least(&wanted), "{less}");
        }
    }

    #[test]
    fn a_client_request_id_is_visible_ascii() {
        assert!(ClientRequestId::parse(&"x".repeat(128)).is_ok());
        for bad in ["", "a b", "\u{7f}", "ü", &"x".repeat(129)] {
            assert!(ClientRequestId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_id_is_version_seven() {
        assert!(RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").is_ok());
        assert!(RequestId::parse("936da01f-9abd-4d9d-80c7-02af85c822a8").is_err());
        assert!(RequestId::parse("x").is_err());
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        assert_eq!(id.unix_millis(), 0x0190_163d_8694);
    }
}
