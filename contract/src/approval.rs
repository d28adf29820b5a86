//! Approvals: a deferred action that people decide about, and what crosses the wire for it.
//!
//! An approval is of one action, named by its digest ([`ActionDigest`]). Evaluators own the records; gateways pass
//! calls on, with who calls ([`Actor`]), and write what happened ([`ApprovalEvent`]) into the decision log.
//! INVARIANT: the text of an action is in no event and in no view but that of its workload and of eligible approvers.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

mod digest;
mod floor;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    AccountId, ActivePolicies, ApprovalId, CheckRequest, GrantId, GuardId, Holder, IssueCode, KeyId, LineType,
    MemberId, PolicyCandidate, PolicyVersion, RequestId, Scopes, Severity, Stop, StopId,
};

pub use digest::{ActionDigest, VOLATILE_CONTEXT_MEMBERS, VOLATILE_CONTEXT_PREFIXES};
pub use floor::ApprovalIssueDetails;

/// Approvals of one key that may be pending at the same time.
pub const MAX_PENDING_OF_KEY: usize = 20;
/// Approvals of one account that may be pending at the same time.
pub const MAX_PENDING_OF_ACCOUNT: usize = 1_000;
/// The largest action, as JSON, that can be approved: people cannot read more.
pub const MAX_ACTION_BYTES: usize = 128 << 10;
/// The longest reason, in characters.
pub const MAX_REASON_CHARS: usize = 1_000;
/// How long a wider grant holds at most, in seconds.
pub const MAX_GRANT_SECONDS: i64 = 8 * 3_600;
/// Wider grants of one account at the same time.
pub const MAX_GRANTS: usize = 100;

/// Whose word counts as an approval in an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalMode {
    /// What the caller says in `context.approval_status` counts, and so do approvals that are held here.
    #[default]
    Caller,
    /// Only approvals that are held here count.
    Verified,
}

impl ApprovalMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Verified => "verified",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Caller, Self::Verified].into_iter().find(|mode| mode.as_str() == text)
    }

    pub(crate) fn is_caller(&self) -> bool {
        *self == Self::Caller
    }
}

/// What an account demands of its approvals, what it has stopped, and which policies decide: a part of every caller's
/// identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRules {
    #[serde(default, skip_serializing_if = "ApprovalMode::is_caller")]
    pub approvals: ApprovalMode,
    /// Whether the owner of a workload may not approve what it asks for.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub four_eyes: bool,
    /// The stops that hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<Stop>,
    /// Which published policies decide: the account's, then the deployment's.
    #[serde(default, skip_serializing_if = "ActivePolicies::is_empty")]
    pub policy: ActivePolicies,
    /// The operator's pack that is evaluated beside the one that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<PolicyVersion>,
    /// The account's policies that are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<PolicyCandidate>,
    /// Whether decisions are recorded with their facts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_facts: bool,
}

impl Default for AccountRules {
    fn default() -> Self {
        Self {
            approvals: ApprovalMode::Caller,
            four_eyes: true,
            stops: Vec::new(),
            policy: ActivePolicies::default(),
            floor: None,
            candidates: Vec::new(),
            record_facts: false,
        }
    }
}

impl AccountRules {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
pub(crate) fn is_yes(value: &bool) -> bool {
    *value
}

/// Who makes a call about approvals, as the gateway authenticated it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub key_id: KeyId,
    pub holder: Holder,
    /// The key's name, for rules. None, from a gateway that does not tell, is not an empty name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// The groups of the member behind the key, for rules. None, from a gateway that does not tell, is not "no group".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Scopes::is_empty")]
    pub scopes: Scopes,
    #[serde(default, skip_serializing_if = "AccountRules::is_default")]
    pub rules: AccountRules,
    /// Whether lines about approvals can be recorded: every process that reads the log knows them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub can_record: bool,
    /// Whether the key declares that it reports what came of its actions: it has the scope `outcomes:report`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reports_outcomes: bool,
    /// How long the lines of the account are kept, in days.
    #[serde(
        default = "crate::manage::default_retention_days",
        skip_serializing_if = "crate::manage::is_default_retention"
    )]
    pub retention_days: u32,
}

/// Where an approval counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalSource {
    /// The caller says so in `context`.
    Caller,
    /// People approved this very action here.
    Approval,
    /// A wider grant covers it.
    Grant,
}

/// Where an approval stands. Each end is reached once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalStatus {
    /// It waits for people.
    Pending,
    /// It may be used once, until `usable_until`.
    Approved,
    /// A person said no.
    Denied,
    /// Its time was over before it was decided, or before it was used.
    Expired,
    /// It was taken back.
    Cancelled,
    /// A check uses it, and whether that was recorded is not confirmed yet: it counts as used.
    Reserved,
    /// It was used.
    Consumed,
}

impl ApprovalStatus {
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Approved, Self::Denied, Self::Expired, Self::Cancelled, Self::Reserved, Self::Consumed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Reserved => "reserved",
            Self::Consumed => "consumed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether nothing more is decided or used.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Approved | Self::Reserved)
    }
}

/// The approval that a decision opened, waits for, or used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRef {
    /// The approval's id; null where a wider grant was used.
    pub id: Option<ApprovalId>,
    /// The wider grant that was used; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
    /// `pending` on DEFER, or `approved` where it cannot be used yet; `consumed` on ALLOW.
    pub status: ApprovalStatus,
    /// What exactly is approved.
    pub action_digest: ActionDigest,
    /// How many people must approve.
    #[schemars(extend("minimum" = 1, "maximum" = 10))]
    pub quorum: u32,
    /// Members of which groups may; empty: every member whose key may decide.
    pub groups: Vec<String>,
    /// Until when people may decide; of an approved one, until when it may be used.
    pub expires_at: Timestamp,
    /// Where the approval is read.
    pub url: String,
}

/// What the policy demands of an approval: the rules that deferred, taken together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalTerms {
    /// Each of them must be met.
    #[schemars(extend("minItems" = 1))]
    pub requirements: Vec<Requirement>,
    /// How long people may take, in seconds.
    pub within_seconds: i64,
    /// How long it may be used once it is approved, in seconds.
    pub valid_seconds: i64,
    /// Whether an approval needs a reason, as a denial always does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reason_required: bool,
    /// After a time, members of these groups may decide as well, for each requirement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
}

/// How many members of which groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Requirement {
    /// A member of any of them may approve; empty: every member whose key may decide.
    #[schemars(extend("maxItems" = 50))]
    pub groups: Vec<String>,
    /// How many people.
    #[schemars(extend("minimum" = 1, "maximum" = 10))]
    pub quorum: u32,
    /// After a time, members of these groups may decide as well, for this requirement alone. Absent where all
    /// requirements have the same, which then stands beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
}

/// Which further groups may decide after a time without a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Escalation {
    /// How long after the request, in seconds.
    pub after_seconds: i64,
    /// Members of these groups may then decide as well.
    #[schemars(extend("minItems" = 1, "maxItems" = 50))]
    pub groups: Vec<String>,
}

impl ApprovalTerms {
    /// The largest quorum.
    pub fn quorum(&self) -> u32 {
        self.requirements.iter().map(|requirement| requirement.quorum).max().unwrap_or(1)
    }

    /// Who may decide about a requirement after a time.
    pub fn escalation_of<'t>(&'t self, requirement: &'t Requirement) -> Option<&'t Escalation> {
        requirement.escalation.as_ref().or(self.escalation.as_ref())
    }

    /// All escalations of its requirements.
    pub fn escalations(&self) -> impl Iterator<Item = &Escalation> {
        self.requirements.iter().filter_map(|requirement| self.escalation_of(requirement))
    }

    /// All groups, sorted.
    pub fn groups(&self) -> Vec<String> {
        let mut groups: Vec<String> = self.requirements.iter().flat_map(|one| one.groups.iter().cloned()).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// One person's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vote {
    /// Who; null where a system outside registered it.
    pub member_id: Option<MemberId>,
    /// The key that was used.
    pub key_id: KeyId,
    /// True: approved.
    pub approve: bool,
    /// When it was given.
    pub at: Timestamp,
    /// Why, secrets masked; empty where no reason was given.
    pub reason: String,
    /// The member in whose place it was given; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<MemberId>,
    /// Of a system outside: who approved there, and its evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalApproval>,
}

/// What a system outside says of an approval that it gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExternalApproval {
    /// Who approved there: 1 to 10 names, each counts as one person.
    #[schemars(extend("minItems" = 1, "maxItems" = 10))]
    pub approved_by: Vec<String>,
    /// What proves it there, such as a ticket's address; at most 2,000 characters.
    #[schemars(extend("maxLength" = 2000))]
    pub evidence: String,
}

/// An issue of the decision that opened an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalIssue {
    /// A stable reason code.
    pub code: IssueCode,
    /// How grave.
    pub severity: Severity,
    /// For people; no value of the request in it.
    pub message: String,
    /// Absent: the policy that decides raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ApprovalIssueDetails>,
}

/// An approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Approval {
    /// The approval's id.
    pub id: ApprovalId,
    /// Where it stands.
    pub status: ApprovalStatus,
    /// What exactly is approved: to approve or deny, send this.
    pub action_digest: ActionDigest,
    /// The policy that deferred it. Under another one the action has another digest.
    pub policy_version: PolicyVersion,
    /// The operator's floor that was evaluated beside it; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_version: Option<PolicyVersion>,
    /// Where the action would run; empty when unknown.
    pub environment: String,
    /// The key that asked.
    pub key_id: KeyId,
    /// The workload that asked: the first key of its rotations. Only it can use the approval.
    pub workload: KeyId,
    /// The check that opened it.
    pub request_id: RequestId,
    /// What the policy found, the gravest first.
    pub issues: Vec<ApprovalIssue>,
    /// What the policy demands.
    pub terms: ApprovalTerms,
    /// How many people may approve it now; null where that was not asked.
    pub eligible: Option<u32>,
    /// Every answer, the oldest first.
    pub votes: Vec<Vote>,
    /// When it was opened.
    pub created_at: Timestamp,
    /// Until when people may decide.
    pub expires_at: Timestamp,
    /// When it was approved, denied, expired or cancelled.
    pub decided_at: Option<Timestamp>,
    /// Until when it may be used; null where it is not approved.
    pub usable_until: Option<Timestamp>,
    /// The check that uses or used it.
    pub used_by: Option<RequestId>,
    /// When that was.
    pub used_at: Option<Timestamp>,
    /// What came of the action, as its workload reported; null: nothing was reported.
    pub outcome: Option<Outcome>,
    /// Why it is held up while a stop covers it; null: none does.
    pub stopped: Option<String>,
    /// Where it is read.
    pub url: String,
    /// The whole action, for its workload and for members who may decide about it; null for others, and once the text
    /// is deleted.
    #[serde(deserialize_with = "crate::json::optional_members")]
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub action: Option<Map<String, Value>>,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// How the action ended.
    pub status: OutcomeStatus,
    /// When it was reported.
    pub at: Timestamp,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// It did what it was to do.
    Succeeded,
    /// It did not.
    Failed,
    /// Its workload cannot tell.
    Unknown,
    /// It was allowed, and did not run.
    Skipped,
}

impl OutcomeStatus {
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Unknown, Self::Skipped];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// `GET /v1/approvals`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListApprovals {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: Actor,
    /// Only those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ApprovalStatus>,
    /// Only those that a member of this group may decide about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 64))]
    pub group: Option<String>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 100, "default" = 50))]
    pub limit: u32,
}

/// `GET /v1/approvals/{id}`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShowApproval {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: Actor,
    /// The approval.
    pub id: ApprovalId,
    /// How long the answer may wait for a change, such as `30s`; at most 60 seconds. Only gateways read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// `GET /v1/approvals/{id}/history`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadApprovalHistory {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: Actor,
    /// The approval.
    pub id: ApprovalId,
}

/// All that happened to an approval, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalHistory {
    /// Each is a line of the decision log as well.
    #[schemars(extend("maxItems" = 200))]
    pub items: Vec<ApprovalEvent>,
}

/// A call that changes an approval: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeApproval {
    pub account: AccountId,
    pub actor: Actor,
    pub id: ApprovalId,
    pub change: ApprovalChange,
    /// Secrets in it are masked by the evaluator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalChange {
    Approve {
        action_digest: ActionDigest,
    },
    Deny {
        action_digest: ActionDigest,
    },
    /// A system outside approved it.
    Register {
        action_digest: ActionDigest,
        external: ExternalApproval,
    },
    Cancel {},
    /// Used, but nothing came of it: it may be used again.
    Reopen {},
    Report {
        status: OutcomeStatus,
    },
}

/// A changed approval, and what must be recorded before the answer leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApprovalChanged {
    pub approval: Approval,
    pub unrecorded: Unrecorded,
}

/// Events that are not known to be in the log yet. Recorded twice, an event has the same `event_id`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unrecorded {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<ApprovalEvent>,
}

/// Gateway to evaluator: what came of recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleEvents {
    pub account: AccountId,
    /// These are in the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<EventRef>,
    /// This check's decision is surely not in the log: what it reserved is free again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
}

/// An event of an approval or of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRef {
    pub event_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<ApprovalId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
    /// The decision whose outcome was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome_of: Option<RequestId>,
    /// The guard that went silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_id: Option<GuardId>,
}

impl EventRef {
    pub fn of(event: &ApprovalEvent) -> Self {
        let is_outcome = event.kind == LineType::DecisionOutcome;
        Self {
            event_id: event.event_id,
            approval_id: event.approval_id.clone(),
            grant_id: event.grant_id.clone(),
            outcome_of: event.request_id.filter(|_| is_outcome),
            guard_id: event.guard_id.clone(),
        }
    }

    pub fn of_approval(event_id: Uuid, approval_id: ApprovalId) -> Self {
        Self { event_id, approval_id: Some(approval_id), grant_id: None, outcome_of: None, guard_id: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub request_id: RequestId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<ApprovalId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsSettled {}

/// Gateway to evaluator: `POST /check` with an `approval_id` alone; which action is that?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchAction {
    pub account: AccountId,
    pub actor: Actor,
    pub id: ApprovalId,
}

/// The request as it was deferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchedAction {
    pub request: CheckRequest,
}

/// Gateway to evaluator: which events wait to be recorded, which approvals are past their time?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectEvents {
    /// The last account of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Events by account. The gateway records them and settles them; another gateway gets them again after a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedEvents {
    pub accounts: Vec<AccountEvents>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountEvents {
    pub account: AccountId,
    /// As long as the lines are kept.
    pub retention_days: u32,
    pub events: Vec<ApprovalEvent>,
    /// Uses that no gateway has confirmed in time: one whose decision is in the log is settled as recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<UnconfirmedUse>,
}

/// A use of an approval that may have been recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnconfirmedUse {
    /// The check whose decision says that it was used.
    pub request_id: RequestId,
    /// The event that was to be recorded with that decision.
    pub event: EventRef,
}

/// An evaluator to all gateways: look again, if somebody waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalsChanged {
    pub account: AccountId,
    pub ids: Vec<ApprovalId>,
}

/// What happened to an approval, a grant, a stop or a policy: a line of the decision log, and an event for webhooks.
/// INVARIANT: no text of an action, no name and no mail of a person is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: LineType,
    /// The event's own id: a line that was written twice has the same one.
    pub event_id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// The approval; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<ApprovalId>,
    /// The wider grant; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
    /// The stop; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_id: Option<StopId>,
    /// The guard; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_id: Option<GuardId>,
    /// What exactly it is about: the digest that approvers are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_digest: Option<ActionDigest>,
    /// The policy that deferred the action; of an event of a policy, the version that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    /// The operator's floor that was evaluated beside the policy that deferred the action; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_version: Option<PolicyVersion>,
    /// Where the action would run, or the policy decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The decision that opened, uses or used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Who did it; absent: time did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<EventActor>,
    /// Why, secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Further facts, by kind.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "crate::json::members")]
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub details: Map<String, Value>,
}

impl ApprovalEvent {
    /// An event without further facts.
    pub fn new(kind: LineType, event_id: Uuid, at: Timestamp) -> Self {
        Self {
            kind,
            event_id,
            at,
            approval_id: None,
            grant_id: None,
            stop_id: None,
            guard_id: None,
            action_digest: None,
            policy_version: None,
            floor_version: None,
            environment: None,
            request_id: None,
            actor: None,
            reason: None,
            details: Map::new(),
        }
    }
}

/// Who did something, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventActor {
    /// The key that was used.
    pub key_id: KeyId,
    /// The member; absent: a workload or the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<MemberId>,
    /// How the caller was authenticated: `api_key`.
    pub authenticated_by: String,
}

impl EventActor {
    pub fn of(key_id: &KeyId, member_id: Option<&MemberId>) -> Self {
        Self { key_id: key_id.clone(), member_id: member_id.cloned(), authenticated_by: "api_key".to_owned() }
    }
}

/// A line of the log about an approval, as a reader sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRecord {
    /// Its place in its writer's chain.
    pub chain: crate::Link,
    /// When it was written; RFC 3339.
    pub recorded_at: Timestamp,
    /// From this second on it is not shown any more, since the epoch.
    pub expires_at: i64,
    /// The account.
    pub account: AccountId,
    /// What happened.
    #[serde(flatten)]
    pub event: ApprovalEvent,
}

/// A wider grant: what a workload may do without a new approval, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grant {
    /// The grant's id.
    pub id: GrantId,
    /// The workload that may use it, by the first key of its rotations.
    pub workload: KeyId,
    /// Only in this run; null: in any.
    pub run_id: Option<String>,
    /// Only for this tool; null: for any.
    pub tool: Option<String>,
    /// Only for these effects; null: for any.
    pub effects: Option<Vec<String>>,
    /// Only in this environment; null: in any.
    pub environment: Option<String>,
    /// Until then; at most 8 hours after it was made.
    pub until: Timestamp,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// Who approved it: as many as the policy asks for when it is used.
    pub votes: Vec<Vote>,
    /// When it was revoked; null: it was not.
    pub revoked_at: Option<Timestamp>,
    /// How many checks have used it.
    pub uses: u64,
    /// The last of them, the newest last.
    #[schemars(extend("maxItems" = 20))]
    pub used_by: Vec<RequestId>,
}

/// `POST /v1/grants`: by a member's key; gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateGrant {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: Actor,
    /// Who may use it, for the gateway asked the keystore: not from the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub holder: Option<Holder>,
    /// A key of the workload that may use it.
    pub key_id: KeyId,
    /// Only in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 200))]
    pub run_id: Option<String>,
    /// Only for this tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 200))]
    pub tool: Option<String>,
    /// Only for these effects, each of 1 to 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxItems" = 20))]
    pub effects: Option<Vec<String>>,
    /// Only in this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 200))]
    pub environment: Option<String>,
    /// Until then; at most 8 hours ahead. At least one of `run_id`, `tool` and `effects` must be given.
    pub until: Timestamp,
    /// Why: 1 to 1,000 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 1000))]
    pub reason: String,
}

/// `GET /v1/grants`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListGrants {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: Actor,
}

/// The grants of an account that have not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grants {
    /// The oldest first.
    #[schemars(extend("maxItems" = 100))]
    pub items: Vec<Grant>,
}

/// A call that changes a grant: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeGrant {
    pub account: AccountId,
    pub actor: Actor,
    pub id: GrantId,
    pub change: GrantChange,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantChange {
    /// One more person approves it.
    Approve,
    Revoke,
}

/// A changed grant, and what must be recorded before the answer leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantChanged {
    pub grant: Grant,
    pub unrecorded: Unrecorded,
}

/// `POST /v1/approvals/{id}/approve` and `deny`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub struct DecideApproval {
    /// The approval.
    pub id: ApprovalId,
    /// That of the approval as it was read.
    pub action_digest: ActionDigest,
    /// Why, at most 1,000 characters: required to deny, and to approve where the approval's terms say so.
    #[schemars(with = "Option<String>", extend("maxLength" = 1000))]
    pub reason: String,
}

/// `POST /v1/approvals/{id}/register`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub struct RegisterExternal {
    /// The approval.
    pub id: ApprovalId,
    /// That of the approval as it was read.
    pub action_digest: ActionDigest,
    /// Who approved there, and what proves it.
    #[schemars(flatten)]
    pub external: ExternalApproval,
    /// Why, at most 1,000 characters.
    #[schemars(with = "Option<String>", extend("maxLength" = 1000))]
    pub reason: String,
}

/// `POST /v1/approvals/{id}/cancel` and `reopen`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub struct GiveReason {
    /// The approval.
    pub id: ApprovalId,
    /// Why, at most 1,000 characters: required to reopen.
    #[schemars(with = "Option<String>", extend("maxLength" = 1000))]
    pub reason: String,
}

/// `POST /v1/approvals/{id}/outcome`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub struct ReportOutcome {
    /// The approval.
    pub id: ApprovalId,
    /// How the action ended.
    pub status: OutcomeStatus,
}

/// `POST /v1/grants/{id}/approve` and `revoke`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub struct GrantReason {
    /// The grant.
    pub id: GrantId,
    /// Why, at most 1,000 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 1000))]
    pub reason: String,
}

#[cfg(test)]
mod tests;
