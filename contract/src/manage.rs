//! Accounts and keys: what the control API and the keystore say to each other.
//!
//! INVARIANT: each message carries its [`Caller`] with the key as it was presented; the keystore alone judges whose key
//! that is and what it may do, beside the data it protects.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    AccountId, AccountRules, ApiKey, ApprovalMode, Caps, FieldError, Holder, KeyId, Limits, MemberId, PolicyChanges,
};

/// What a key may do. None implies another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// Ask for decisions.
    #[serde(rename = "check")]
    Check,
    /// Read recorded decisions.
    #[serde(rename = "decisions:read")]
    DecisionsRead,
    /// Delete recorded decisions.
    #[serde(rename = "decisions:delete")]
    DecisionsDelete,
    /// End and settle runs.
    #[serde(rename = "runs:manage")]
    RunsManage,
    /// Manage webhook endpoints.
    #[serde(rename = "webhooks:manage")]
    WebhooksManage,
    /// Manage the account's keys.
    #[serde(rename = "keys:manage")]
    KeysManage,
    /// Publish and activate policies.
    #[serde(rename = "policies:manage")]
    PoliciesManage,
    /// Manage the account's members.
    #[serde(rename = "members:manage")]
    MembersManage,
    /// Approve and deny: for keys of members alone.
    #[serde(rename = "approvals:decide")]
    ApprovalsDecide,
    /// Register approvals that a system outside gave.
    #[serde(rename = "approvals:grant")]
    ApprovalsGrant,
    /// Stop checks and resume them.
    #[serde(rename = "stops:manage")]
    StopsManage,
    /// Report what came of allowed actions. A workload whose key has it declares that it reports them.
    #[serde(rename = "outcomes:report")]
    OutcomesReport,
    /// Manage accounts; neither checks nor reads decisions.
    #[serde(rename = "operator")]
    Operator,
}

pub type Scopes = BTreeSet<Scope>;

impl Scope {
    pub const ALL: [Self; 13] = [
        Self::Check,
        Self::DecisionsRead,
        Self::DecisionsDelete,
        Self::RunsManage,
        Self::WebhooksManage,
        Self::KeysManage,
        Self::PoliciesManage,
        Self::MembersManage,
        Self::ApprovalsDecide,
        Self::ApprovalsGrant,
        Self::StopsManage,
        Self::OutcomesReport,
        Self::Operator,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::DecisionsRead => "decisions:read",
            Self::DecisionsDelete => "decisions:delete",
            Self::RunsManage => "runs:manage",
            Self::WebhooksManage => "webhooks:manage",
            Self::KeysManage => "keys:manage",
            Self::PoliciesManage => "policies:manage",
            Self::MembersManage => "members:manage",
            Self::ApprovalsDecide => "approvals:decide",
            Self::ApprovalsGrant => "approvals:grant",
            Self::StopsManage => "stops:manage",
            Self::OutcomesReport => "outcomes:report",
            Self::Operator => "operator",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an account has bought. A plan never changes what is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Checks, without `pro`.
    Free,
    /// With `pro`.
    Pro,
    /// Every feature, no quota.
    #[default]
    Unlimited,
}

impl Plan {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Free, Self::Pro, Self::Unlimited].into_iter().find(|plan| plan.as_str() == text)
    }

    /// Whether a request may say `pro: true`.
    pub fn has_pro(self) -> bool {
        match self {
            Self::Free => false,
            Self::Pro | Self::Unlimited => true,
        }
    }

    /// How many days decisions are kept, unless the account says otherwise.
    pub fn retention_days(self) -> u32 {
        match self {
            Self::Free | Self::Pro | Self::Unlimited => DEFAULT_RETENTION_DAYS,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Unlimited => "unlimited",
        }
    }
}

/// The default retention of decisions, in days.
pub const DEFAULT_RETENTION_DAYS: u32 = 30;

pub(crate) fn default_retention_days() -> u32 {
    DEFAULT_RETENTION_DAYS
}

pub(crate) fn is_default_retention(days: &u32) -> bool {
    *days == DEFAULT_RETENTION_DAYS
}

/// Who a verified key speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyIdentity {
    pub key_id: KeyId,
    pub account: AccountId,
    pub scopes: Scopes,
    pub plan: Plan,
    /// From then on the key is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(default = "default_retention_days", skip_serializing_if = "is_default_retention")]
    pub retention_days: u32,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_run_id: bool,
    #[serde(default, skip_serializing_if = "Caps::is_none")]
    pub caps: Caps,
    /// Who stands behind the key; none from a keystore that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// None from a keystore that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// Of the member whose own key it is, otherwise of the one who answers for the workload; empty where there is
    /// neither. None from a keystore that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "AccountRules::is_default")]
    pub rules: AccountRules,
}

/// On whose behalf a management call is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    pub account: AccountId,
    pub key_id: KeyId,
    pub scopes: Scopes,
    /// The key as presented: the proof that this caller makes the call. None, from an older gateway, proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ApiKey>,
}

impl Caller {
    pub fn new(identity: &KeyIdentity, key: &ApiKey) -> Self {
        let KeyIdentity { account, key_id, scopes, .. } = identity;
        Self { account: account.clone(), key_id: key_id.clone(), scopes: scopes.clone(), key: Some(key.clone()) }
    }
}

/// Why a management call was not done. Data, not a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is none, or it is another account's.
    NotFound,
    /// There is none, and the text says what there is instead: only of what the caller may see.
    Missing(String),
    ScopeMissing(Scope),
    /// The body is at fault.
    Invalid(Vec<FieldError>),
    /// The state does not allow it.
    Conflict(String),
}

/// The reply to a management call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManageReply<T> {
    /// It is done, and will survive a crash.
    Done(T),
    Refused(Refusal),
    Failed,
    /// Too many calls wait; ask again.
    Busy,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// The account's id.
    pub id: AccountId,
    /// The operator's name for it.
    pub name: String,
    /// Its plan.
    pub plan: Plan,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// How many days decisions are kept; absent: as long as the plan says (30).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = 3650))]
    pub retention_days: Option<u32>,
    /// Limits of its own; absent: all are the plan's.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Whether each check must name its run; absent: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_run_id: bool,
    /// Caps of its own; absent: all are the plan's.
    #[serde(default, skip_serializing_if = "Caps::is_none")]
    pub caps: Caps,
    /// `caller`: what a check says of its approval counts, and so do approvals that are held here. `verified`: only
    /// those that are held here. Absent: `caller`.
    #[serde(default, skip_serializing_if = "ApprovalMode::is_caller")]
    pub approvals: ApprovalMode,
    /// Whether the owner of a workload may not approve what it asks for; absent: true.
    #[serde(default = "crate::approval::yes", skip_serializing_if = "crate::approval::is_yes")]
    pub four_eyes: bool,
    /// `single`: one key with `policies:manage` activates a policy. `second_member`: a member who is another person
    /// approves it. Absent: `single`.
    #[serde(default, skip_serializing_if = "PolicyChanges::is_single")]
    pub policy_changes: PolicyChanges,
    /// Whether its decisions are recorded with their facts, so that another policy can decide them again; absent:
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_facts: bool,
}

impl Account {
    pub fn retention(&self) -> u32 {
        self.retention_days.unwrap_or_else(|| self.plan.retention_days())
    }
}

/// The answer to `POST /v1/accounts`.
pub type AccountCreated = Account;

/// `POST /v1/accounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateAccount {
    #[schemars(skip)]
    pub caller: Caller,
    /// 1 to 200 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    pub name: String,
    /// None means unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Whose word counts as an approval: absent means `caller`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalMode>,
}

/// `PATCH /v1/accounts/{id}`: the operator's. What is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateAccount {
    #[schemars(skip)]
    pub caller: Caller,
    /// The account to change.
    #[schemars(rename = "id")]
    pub account: AccountId,
    /// Its plan from now on; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Days; null means the plan's (30).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = 3650))]
    pub retention_days: Option<Change<u32>>,
    /// Checks in a minute; null means the plan's, 9007199254740991 none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub per_minute: Option<Change<u64>>,
    /// Checks in a day (UTC); null means the plan's, 9007199254740991 none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub daily: Option<Change<u64>>,
    /// Checks in a month (UTC); null means the plan's, 9007199254740991 none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub monthly: Option<Change<u64>>,
    /// Whether each check must name its run in `context.run_id`, else 422; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_run_id: Option<bool>,
    /// Whose word counts as an approval: `caller` or `verified`; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalMode>,
    /// Whether the owner of a workload may not approve what it asks for; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub four_eyes: Option<bool>,
    /// Who activates a policy: `single` or `second_member`; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_changes: Option<PolicyChanges>,
    /// Whether decisions are recorded with their facts: typed, without free text; null changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_facts: Option<bool>,
    /// Caps; [`crate::UNLIMITED`] for none.
    #[serde(flatten)]
    pub caps: CapChanges,
}

/// What becomes of an account's own [`Caps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CapChanges {
    /// Keys that live at the same time; null means the plan's, 9007199254740991 no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_keys: Option<Change<u64>>,
    /// Webhook endpoints; null means the plan's, 9007199254740991 no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_endpoints: Option<Change<u64>>,
    /// Runs that checks name in a day (UTC); null means the plan's, 9007199254740991 no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_runs: Option<Change<u64>>,
    /// Bytes of input that `debug_store_input` keeps in a day (UTC); null means the plan's, 9007199254740991 no
    /// cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub stored_bytes: Option<Change<u64>>,
}

impl CapChanges {
    /// An account's own caps afterwards.
    #[must_use]
    pub fn of(self, own: Caps) -> Caps {
        let changed = |change: Option<Change<u64>>, own| change.map_or(own, Change::own);
        Caps {
            max_keys: changed(self.max_keys, own.max_keys),
            max_endpoints: changed(self.max_endpoints, own.max_endpoints),
            max_runs: changed(self.max_runs, own.max_runs),
            stored_bytes: changed(self.stored_bytes, own.stored_bytes),
        }
    }
}

/// What becomes of an account's own setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change<T> {
    /// The account has none of its own: the plan's holds.
    Plans,
    Own(T),
}

impl<T> Change<T> {
    /// The account's own setting afterwards.
    pub fn own(self) -> Option<T> {
        match self {
            Self::Plans => None,
            Self::Own(value) => Some(value),
        }
    }
}

/// `GET /v1/accounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListAccounts {
    #[schemars(skip)]
    pub caller: Caller,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub struct Page<T> {
    /// In the order of their ids.
    pub items: Vec<T>,
    /// For the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateKey {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// 1 to 200 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    pub name: String,
    /// Only scopes that the caller's key holds; the operator may grant any in a named account.
    #[schemars(extend("minItems" = 1))]
    pub scopes: Scopes,
    /// Absent or null: never, or where the key that grants it ends, then. A later end than that is a 422; only the
    /// operator, in an account that it names, grants more than its own key has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The member who answers for the workload: never another person for what it asks, unless the account's
    /// `four_eyes` is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MemberId>,
}

/// A new key, with its text: the only time that it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyCreated {
    /// The key's id.
    pub id: KeyId,
    /// The key itself: shown here and never again.
    pub key: ApiKey,
    /// Its account.
    pub account: AccountId,
    /// As given.
    pub name: String,
    /// As given.
    pub scopes: Scopes,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// RFC 3339 or null.
    pub expires_at: Option<Timestamp>,
    /// Of a rotation only: when the replaced key ends; without an overlap it has just ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_key_expires_at: Option<Timestamp>,
}

/// `GET /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListKeys {
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

/// A key without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Key")]
pub struct KeySummary {
    /// The key's id.
    pub id: KeyId,
    /// What the key begins with.
    pub prefix: String,
    /// As given.
    pub name: String,
    /// As given.
    pub scopes: Scopes,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// RFC 3339 or null.
    pub expires_at: Option<Timestamp>,
    /// RFC 3339 or null.
    pub revoked_at: Option<Timestamp>,
    /// When the hour began in which the key was last used, as gateways tell. Absent: not used since it was made, or
    /// unknown. It shows up to a minute later, and after a failure in a later hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
    /// The member whose key it is; absent: a workload's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// The member who answers for the workload; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MemberId>,
}

/// `POST /v1/keys/{id}/rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateKey {
    #[schemars(skip)]
    pub caller: Caller,
    /// The key to replace.
    pub id: KeyId,
    /// How long the old key lives on; 0 ends it at once.
    #[schemars(with = "Option<u64>", extend("maximum" = 2_592_000, "default" = 0))]
    pub overlap_seconds: u64,
}

/// `DELETE /v1/keys/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevokeKey {
    #[schemars(skip)]
    pub caller: Caller,
    /// The key.
    pub id: KeyId,
}

/// The key is revoked; it was so already if the call was made twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {}
