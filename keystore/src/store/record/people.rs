//! The records of members and stops.
//!
//! A removed member leaves its id and who made it: both are needed to tell one person from another for as long as keys
//! and members that it made live. Of an invitation's code only a hash is kept.

use std::fmt;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stage0_contract::{AccountId, InvitationCode, KeyId, Member, Person, PersonRecord, Scopes, Stop};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRecord {
    pub(crate) member: Member,
    /// Who invited the member, or changed its groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) made_by: Vec<Person>,
    /// The newest one, until it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invitation: Option<Invitation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) removed_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    pub(crate) hash: CodeHash,
    pub(crate) expires_at: Timestamp,
}

/// SHA-256 of a code, which has 160 random bits, so that a slow hash would protect it no better.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct CodeHash(pub(crate) String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StopRecord {
    pub(crate) stop: Stop,
    /// The account that lists it: its own, or the operator's if it covers all.
    pub(crate) account: AccountId,
    /// When somebody resumed it, or `until` if that was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_at: Option<Timestamp>,
}

impl CodeHash {
    pub(crate) fn of(code: &InvitationCode) -> Self {
        Self(HEXLOWER.encode(&Sha256::digest(code.expose().as_bytes())))
    }
}

impl fmt::Debug for CodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeHash(…)")
    }
}

impl MemberRecord {
    pub(crate) fn exists(&self) -> bool {
        self.removed_at.is_none()
    }

    /// What a removed member leaves.
    pub(crate) fn tombstone(self, removed_at: Timestamp) -> Self {
        let member = Member {
            name: String::new(),
            mail: None,
            groups: Vec::new(),
            scopes: Scopes::new(),
            delegate: None,
            ..self.member
        };
        Self { member, made_by: self.made_by, invitation: None, removed_at: Some(removed_at) }
    }

    /// As the account sees the member: without a delegate whose time is over.
    pub(crate) fn shown(self, now: Timestamp) -> Member {
        let mut member = self.member;
        member.delegate = member.delegate.filter(|delegate| delegate.until > now);
        member
    }

    /// `keys` are those with which the member may decide, each by the first key of its rotations.
    pub(crate) fn person(self, keys: Vec<KeyId>, now: Timestamp) -> PersonRecord {
        let keys = if self.exists() { keys } else { Vec::new() };
        let made_by = self.made_by.clone();
        let Member { id, groups, delegate, .. } = self.shown(now);
        PersonRecord { id, groups, may_decide: !keys.is_empty(), keys, made_by, delegate }
    }
}

impl StopRecord {
    /// A stop ends at the beginning of its last second.
    pub(crate) fn holds_at(&self, now: Timestamp) -> bool {
        self.ends().is_none_or(|end| end > now)
    }

    pub(crate) fn ends(&self) -> Option<Timestamp> {
        self.ended_at.into_iter().chain(self.stop.until).min()
    }

    /// Whether storing it allows nothing: it holds, or it had ended by itself.
    pub(super) fn takes_away(&self) -> bool {
        self.ended_at.is_none_or(|ended| self.stop.until.is_some_and(|until| until <= ended))
    }
}
