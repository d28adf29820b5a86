//! Members of an account, and who stands behind a key: what approvals need to tell one person from another.
//!
//! The keystore keeps members beside keys and judges who may change them. Evaluators read ids, groups and who made
//! whom, never names or mail. INVARIANT: a member's key is shown to the member
//! alone, in the answer to an invitation's code.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::fmt;

use data_encoding::BASE64;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::{AccountId, ApiKey, Caller, KeyId, MemberId, Scopes};

/// The most members of an account, removed ones not counted.
pub const MAX_MEMBERS: usize = 1_000;
/// The most groups of a member.
pub const MAX_GROUPS: usize = 50;
/// How long an invitation lasts at most, in seconds.
pub const MAX_INVITATION_SECONDS: u64 = 86_400;

/// Somebody, or a workload, that counts as one where approvals ask for another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Person {
    Member(MemberId),
    /// A workload that no member is known to have made, by the first key of its rotations.
    Workload(KeyId),
}

/// Who stands behind a key. Rotation keeps all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The first key of the rotations: the workload's name.
    pub workload: KeyId,
    /// The member whose own key it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// The member who answers for the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MemberId>,
    /// Who made the key and so saw its secret. None: the operator, or an earlier version that kept no note of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<Person>,
    /// Others who saw a secret of it, by rotating it or a key that made it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known_to: Vec<Person>,
}

impl Holder {
    /// The holder of a key of which nothing else is known.
    pub fn of_workload(workload: KeyId) -> Self {
        Self { workload, member: None, owner: None, made_by: None, known_to: Vec::new() }
    }

    /// Who counts as the maker of what this key makes.
    pub fn root(&self) -> Person {
        match (&self.member, &self.made_by) {
            (Some(member), _) => Person::Member(member.clone()),
            (None, Some(maker)) => maker.clone(),
            (None, None) => Person::Workload(self.workload.clone()),
        }
    }

    /// Everybody who asks when this key asks.
    pub fn persons(&self) -> impl Iterator<Item = Person> {
        let members = [self.member.clone(), self.owner.clone()].into_iter().flatten().map(Person::Member);
        let makers = self.made_by.iter().chain(&self.known_to).cloned();
        [Person::Workload(self.workload.clone())].into_iter().chain(members).chain(makers)
    }
}

/// A person of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// The member's id: all that the log has of a person.
    pub id: MemberId,
    /// The account.
    pub account: AccountId,
    /// As given.
    pub name: String,
    /// As given; null where none was.
    pub mail: Option<String>,
    /// What approvals are asked of: `release-managers`, for example.
    #[schemars(extend("maxItems" = 50))]
    pub groups: Vec<String>,
    /// `invited`: the invitation has not been accepted. `active`: the member has had a key.
    pub status: MemberStatus,
    /// What the member's keys may do.
    pub scopes: Scopes,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// Who decides in the member's place, and until when; absent: no other member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
}

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberStatus {
    /// The invitation has not been accepted.
    Invited,
    /// The invitation was accepted.
    Active,
}

/// Who stands in for a member who is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delegate {
    /// The member who decides for the groups of the one who is away.
    pub to: MemberId,
    /// Until then.
    pub until: Timestamp,
}

/// The code of an invitation: `inv_` and 32 characters of base 32. It makes one key, once.
#[derive(Clone, PartialEq, Eq)]
pub struct InvitationCode(Zeroizing<String>);

const CODE_PREFIX: &str = "inv_";
const CODE_CHARS: usize = 32;

impl InvitationCode {
    /// 160 random bits.
    pub fn from_random(bytes: &[u8; 20]) -> Self {
        Self(Zeroizing::new(format!("{CODE_PREFIX}{}", crate::key::base32(bytes))))
    }

    pub fn parse(text: &str) -> Option<Self> {
        let code = text.strip_prefix(CODE_PREFIX)?;
        let is_code = code.len() == CODE_CHARS && code.bytes().all(|byte| crate::KEY_ALPHABET.contains(&byte));
        is_code.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The whole text, for its hash and the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InvitationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InvitationCode(…)")
    }
}

impl Serialize for InvitationCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InvitationCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is not the code of an invitation"))
    }
}

/// `POST /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InviteMember {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// 1 to 200 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    pub name: String,
    /// At most 254 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 254))]
    pub mail: Option<String>,
    /// Each 1 to 64 small letters, digits, `-`, `_` or `.`.
    #[schemars(with = "Option<Vec<String>>", extend("maxItems" = 50))]
    pub groups: Vec<String>,
    /// What the member's key may do: `approvals:decide` unless others are named. Of the others only those that the
    /// caller's key holds; the operator may give any but `operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minItems" = 1))]
    pub scopes: Option<Scopes>,
    /// How long the invitation lasts.
    #[schemars(with = "Option<u64>", extend("minimum" = 60, "maximum" = 86_400, "default" = 86_400))]
    pub valid_seconds: u64,
}

/// A member with an invitation: the only time that its code is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberInvited {
    /// The member.
    #[serde(flatten)]
    pub member: Member,
    /// Give it to the member alone: it makes the member's key, once.
    pub invitation_code: InvitationCode,
    /// Until when the code can be used.
    pub invitation_expires_at: Timestamp,
}

/// `POST /v1/members/{id}/invite`: a new code, for a member who lost the key or the code. Earlier codes end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReinviteMember {
    #[schemars(skip)]
    pub caller: Caller,
    /// The member.
    pub id: MemberId,
    /// How long the invitation lasts.
    #[schemars(with = "Option<u64>", extend("minimum" = 60, "maximum" = 86_400, "default" = 86_400))]
    pub valid_seconds: u64,
}

/// `GET /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListMembers {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `PATCH /v1/members/{id}`: what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateMember {
    #[schemars(skip)]
    pub caller: Caller,
    /// The member.
    pub id: MemberId,
    /// 1 to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    pub name: Option<String>,
    /// At most 254 characters; an empty text takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 254))]
    pub mail: Option<String>,
    /// All groups from now on. Who changes them is not another person for this member afterwards, the operator
    /// excepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxItems" = 50))]
    pub groups: Option<Vec<String>>,
}

/// `POST /v1/members/{id}/delegate`: by the member itself with any of its keys, or by the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DelegateMember {
    #[schemars(skip)]
    pub caller: Caller,
    /// The member who is away.
    pub id: MemberId,
    /// Who decides meanwhile; absent or null ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<MemberId>,
    /// Until when, at most 90 days ahead; required with `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// `DELETE /v1/members/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveMember {
    #[schemars(skip)]
    pub caller: Caller,
    /// The member.
    pub id: MemberId,
}

/// Name and mail are gone, the keys revoked; it was so already if the call was made twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRemoved {}

/// `POST /v1/invitations/accept`: with the code as the proof. It needs no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcceptInvitation {
    /// `inv_…`, as the invitation shows it.
    pub code: InvitationCode,
}

/// The member's key: the only time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InvitationAccepted {
    /// The member.
    #[serde(flatten)]
    pub member: Member,
    /// The key's id.
    pub key_id: KeyId,
    /// The key itself: shown here and never again.
    pub key: ApiKey,
}

/// Evaluator to keystore: who may decide about this account's approvals?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadPeople {
    pub account: AccountId,
}

/// The members of an account without names and mail, and the key that its actions' texts are sealed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct People {
    /// Removed members have no groups and may not decide; they are here because they may have made others.
    pub members: Vec<PersonRecord>,
    pub text_key: TextKey,
}

/// A member as evaluators know one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonRecord {
    pub id: MemberId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// It has a live key that may decide.
    pub may_decide: bool,
    /// Which those are, each by the first key of its rotations: a vote counts while its key is one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyId>,
    /// Who invited the member, or changed its groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<Person>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
}

/// The key that seals the texts of an account's actions: 32 bytes, base64 on the wire, which is encrypted to the
/// evaluator that asked.
#[derive(Clone, PartialEq, Eq)]
pub struct TextKey(Zeroizing<[u8; 32]>);

impl TextKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextKey(…)")
    }
}

impl Serialize for TextKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for TextKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = BASE64.decode(text.as_bytes()).ok().map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        bytes.map(Self::new).ok_or_else(|| serde::de::Error::custom("is not a 32-byte key in base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyId {
        KeyId::parse(text).unwrap()
    }

    fn member(text: &str) -> MemberId {
        MemberId::parse(text).unwrap()
    }

    #[test]
    fn a_key_that_a_member_made_belongs_to_that_member_and_one_of_the_operator_has_no_maker() {
        let unknown = Holder::of_workload(key("k1"));
        assert_eq!(unknown.root(), Person::Workload(key("k1")));
        let made = Holder { made_by: Some(Person::Member(member("m1"))), ..unknown.clone() };
        assert_eq!(made.root(), Person::Member(member("m1")));
        let own = Holder { member: Some(member("m2")), made_by: Some(Person::Member(member("m1"))), ..unknown.clone() };
        assert_eq!(own.root(), Person::Member(member("m2")), "a member's own key is the member's");
        let by_workload = Holder { made_by: Some(Person::Workload(key("k0"))), ..unknown };
        assert_eq!(by_workload.root(), Person::Workload(key("k0")));
    }

    #[test]
    fn everybody_asks_who_owns_made_or_saw_the_key() {
        let holder = Holder {
            member: None,
            owner: Some(member("m1")),
            made_by: Some(Person::Member(member("m2"))),
            known_to: vec![Person::Member(member("m3"))],
            ..Holder::of_workload(key("k1"))
        };
        let persons: Vec<_> = holder.persons().collect();
        let members = ["m1", "m2", "m3"].map(|id| Person::Member(member(id)));
        assert_eq!(persons[0], Person::Workload(key("k1")));
        assert_eq!(persons[1..], members);
        let own = Holder { member: Some(member("m1")), ..Holder::of_workload(key("k2")) };
        assert_eq!(own.persons().collect::<Vec<_>>(), [Person::Workload(key("k2")), Person::Member(member("m1"))]);
    }

    #[test]
    fn an_invitation_code_is_read_as_it_was_made_and_no_other_text_is_one() {
        let code = InvitationCode::from_random(&[0xa5; 20]);
        assert_eq!(InvitationCode::parse(code.expose()), Some(code.clone()));
        assert_ne!(code, InvitationCode::from_random(&[0xa6; 20]));
        let text = code.expose();
        assert_eq!(text.len(), CODE_PREFIX.len() + CODE_CHARS);
        for bad in [
            String::new(),
            text[..text.len() - 1].to_owned(),
            format!("{text}a"),
            format!(" {text}"),
            format!("{text}\n"),
            text.replacen("inv_", "INV_", 1),
            text.replacen("inv_", "", 1),
            format!("{}!", &text[..text.len() - 1]),
        ] {
            assert_eq!(InvitationCode::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_invitation_codes_and_text_keys() {
        let code = InvitationCode::from_random(&[7; 20]);
        assert_eq!(format!("{code:?}"), "InvitationCode(…)");
        let key = TextKey::new([7; 32]);
        assert_eq!(format!("{key:?}"), "TextKey(…)");
    }

    #[test]
    fn a_text_key_is_written_as_it_was_read() {
        let key = TextKey::new([0xa5; 32]);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<TextKey>(&json).unwrap().bytes(), key.bytes());
        for bad in [r#""""#, r#""AAAA""#, "7", &json.replacen('"', "\"!", 1)] {
            assert!(serde_json::from_str::<TextKey>(bad).is_err(), "{bad}");
        }
    }
}
