//! Messages between services: each owns its subject and its reply.
//!
//! A subject here is relative: the backplane puts a deployment's prefix before it. Requests are imperative, events in
//! the past tense. "Denied" is data in a reply; "could not decide" is an error or `Unable`.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use serde_json::{Map, Value};

use crate::{AccountId, ApiKey, CheckRequest, Decision, FieldError, KeyId, KeyIdentity, PolicyVersion, RequestId};

mod sealed {
    /// A message that the table in `traffic.rs` lists.
    pub trait Listed {}
}

pub(crate) use sealed::Listed;
/// Implemented by the messages of tests and benchmarks, which no role sends and which no table lists.
#[doc(hidden)]
pub use sealed::Listed as TestMessage;

/// A request with one reply, given by any one of the processes that serve its subject. Only the table of messages
/// implements it.
pub trait Request: Listed + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is sent, without the deployment's prefix.
    const SUBJECT: &'static str;
    /// What comes back.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// An event that every subscribed process receives. Only the table of messages implements it.
pub trait Notice: Listed + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is published, without the deployment's prefix.
    const SUBJECT: &'static str;
}

/// Gateway to evaluator: decide this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateRequest {
    /// For the logs of both.
    pub request_id: RequestId,
    /// Whose active policy decides.
    pub account: AccountId,
    /// The proposed action.
    pub request: CheckRequest,
    /// The state store's time as the gateway knows it, whole seconds since the epoch: windows are judged at this time.
    /// An evaluator that knows it to be another by more than 10 s decides nothing.
    pub evaluated_at: i64,
    /// The check that this one repeats: what it counted in its run is not counted again. None means that this is its
    /// first attempt under its own `request_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<RequestId>,
    /// Texts of the caller that will be recorded: the evaluator, which knows secrets, masks them.
    #[serde(default, skip_serializing_if = "CallerTexts::is_empty")]
    pub caller: CallerTexts,
    /// Runs that the account's checks may name in a day. None, from a gateway that knows of no cap, means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runs: Option<u64>,
}

/// What a caller said of itself in headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallerTexts {
    /// The text of the header `X-Request-Id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<String>,
    /// `User-Agent`, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl CallerTexts {
    fn is_empty(&self) -> bool {
        self.client_request_id.is_none() && self.user_agent.is_none()
    }
}

/// What an evaluator says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluateReply {
    /// The policy decided.
    Decided(Box<Evaluation>),
    /// The request asks for what the policy does not know: a window, a version.
    Invalid(Vec<FieldError>),
    /// No decision could be made; the text is for the log.
    Unable(String),
    /// The evaluator reached its deadline and gave up. Final: another one would take as long. A gateway that does not
    /// know this reply cannot read it, and answers 503 too.
    TimedOut,
    /// As many checks of the account wait at this evaluator as may. Final: to ask the next evaluator would only move
    /// the flood.
    Busy,
    /// The check names a run that would be one too many for the account today: not decided.
    TooManyRuns {
        /// The account's daily limit.
        limit: u64,
    },
}

/// A decision, and what may be recorded beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What the policy decided.
    #[serde(flatten)]
    pub decision: Decision,
    /// None from an evaluator that does not know of records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recordable: Option<RedactedTexts>,
}

/// Texts of a request with every secret in them masked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RedactedTexts {
    /// `context.run_id`, or that of `context.loop_state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The risk classes of the declared side effects, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effect_classes: Vec<String>,
    /// Names of the proposed tools, normalised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// What the caller said of itself.
    #[serde(default)]
    pub caller: CallerTexts,
    /// The request's text: only when it said `debug_store_input: true`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::optional_members")]
    pub input: Option<Map<String, Value>>,
}

/// Gateway to evaluator: the request is bad already; what more does the policy find wrong?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewRequest {
    /// Whose active policy is asked.
    pub account: AccountId,
    /// The constraints, by index; bad ones are empty.
    pub constraints: Vec<String>,
    /// The wanted version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_pack_version: Option<String>,
}

/// What only the policy could know to be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewReply {
    /// Often none.
    pub errors: Vec<FieldError>,
}

/// Gateway to evaluator: which words does the account's policy know?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VocabularyRequest {
    /// Whose active policy is asked.
    pub account: AccountId,
}

/// What callers may write so that the policy understands it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VocabularyReply {
    /// The policy whose words they are.
    pub policy_version: PolicyVersion,
    /// Words by class, constraints with aliases and forms, members of `context`, codes.
    #[serde(deserialize_with = "crate::json::members")]
    pub vocabulary: Map<String, Value>,
}

/// To an evaluator: are you there, and what would decide?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatorStatus {}

/// One evaluator's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatorStatusReply {
    /// What decides when nothing else is asked for.
    pub active: PolicyVersion,
    /// All that are loaded.
    pub loaded: Vec<PolicyVersion>,
}

/// Gateway to keystore: whose key is this? Costs a hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyKey {
    /// As presented.
    pub key: ApiKey,
    /// For the logs of both: the request for which this is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

/// Unknown, wrong, revoked and expired are one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyKeyReply {
    /// It lives.
    Valid(KeyIdentity),
    /// It is revoked, expired or unknown.
    Invalid,
    /// Too many hashes wait; ask again.
    Busy,
    /// The keystore could not tell.
    Failed,
}

/// Gateway to keystore: a key that I verified before, does it still live? Costs no hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshKey {
    /// The key's id.
    pub key_id: KeyId,
    /// For the logs of both: the request for which this is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

/// The answer to [`RefreshKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshKeyReply {
    /// It is active, with these rights.
    Live(KeyIdentity),
    /// It is revoked, expired or unknown.
    Gone,
    /// The keystore could not tell.
    Failed,
}

/// Gateway to keystore: these keys were used in this hour. A gateway reports each key at most once per
/// hour, best effort: a lost report is made up for when the key is used in a later hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteKeyUses {
    /// When the hour began.
    pub hour: Timestamp,
    /// At most [`NoteKeyUses::MAX_KEYS`].
    pub keys: Vec<KeyId>,
}

impl NoteKeyUses {
    /// Of one message.
    pub const MAX_KEYS: usize = 1_000;

    /// When the hour of this time began.
    #[must_use]
    pub fn hour_of(at: Timestamp) -> Timestamp {
        const HOUR: i64 = 3_600;
        Timestamp::from_second(at.as_second().div_euclid(HOUR) * HOUR).unwrap_or(at)
    }
}

/// The answer to [`NoteKeyUses`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKeyUsesReply {
    /// It will be shown, for the keys that there are.
    Noted,
    /// The keystore has no time or no room for it now.
    Failed,
}

/// To the keystore: are you there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreStatus {}

/// The keystore's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreStatusReply {
    /// Whether changes can be stored.
    pub writable: bool,
    /// Whether the disk is nearly full, so that only revocations and deletions are stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_low: bool,
    /// The public key of this process, in base64url: questions that hold secrets are sealed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
}

/// The keystore to all: forget what you know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyChanged {
    /// Of this key, and of its account: it was revoked, its end was moved, or what the account may do was changed.
    One {
        /// The key's account.
        account: AccountId,
        /// The key's id.
        key_id: KeyId,
    },
    /// Of every key: a keystore begins to serve, and an earlier one may have stored what it did not tell.
    Any {},
}
