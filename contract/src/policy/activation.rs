//! Activations and rollbacks: the calls that change what is active, and the changes themselves.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApprovedProposal, CanaryTerms, CandidateCounts, PolicyActor, PolicyCandidate, PolicyProposal, ReplaySummary,
};
use crate::{AccountId, ApprovalEvent, Caller, EventActor, KeyId, LineType, MemberId, PolicyVersion};

/// `POST /v1/policies/{version}/activate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActivatePolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// Only the operator names another account. An operator that names none activates for every account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Only for checks in this environment; absent or null: for those without an activation of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// True: as the floor of every account, which only the operator sets; without `account` and `environment`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub floor: bool,
    /// Why, for people; secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: Option<String>,
    /// The version that is active now, as the caller believes: another one is a 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<PolicyVersion>,
    /// SHA-256 of the difference that was reviewed, in hex: another difference is a 409. It is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub diff_digest: Option<String>,
    /// How much of what changes may be looser: `flips` of `GET /v1/policies/{version}/diff`, and those of the recorded
    /// decisions that are replayed, where the sum is not 0; needs `reason`. Another number is a 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_flips: Option<u64>,
    /// Replay the decisions that were recorded before; RFC 3339, of the last 24 hours, as the 409 or
    /// `GET /v1/policies/{version}/replay` names it. Absent: before now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_until: Option<Timestamp>,
    /// Begin as a canary, which decides a share of the runs; absent or null: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTerms>,
    /// What the replay before it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub replayed: Option<ReplaySummary>,
    /// What the version was compared with: if it takes the place of anything else by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub judged: Option<Vec<Option<PolicyVersion>>>,
    /// Of a canary, the place among the changes that it had when it was tried, which its id comes from: if another
    /// change has it by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub sequence: Option<u64>,
    /// Proposes it where the account wants a second member. Without it, or where the account wants none, a call that
    /// would do the other thing does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub proposes: bool,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub is_trial: bool,
}

/// `POST /v1/policies/rollback`: back to what was active before the last activation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RollbackPolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account. An operator that names none rolls back what holds for every account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// What is active in this environment; absent or null: what is active for those without their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// True: the floor of every account.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub floor: bool,
    /// Why, for people; secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: Option<String>,
    /// The version that is active now, as the caller believes: another one is a 409, so that a repeated call does not
    /// go back twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<PolicyVersion>,
    /// The place among the changes that it had when it was tried: if another change has it by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub sequence: Option<u64>,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub is_trial: bool,
}

/// A change of what is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Activation {
    /// Its place among the changes of the account, from 1.
    #[schemars(extend("minimum" = 1))]
    pub sequence: u64,
    /// When it was made; RFC 3339.
    pub at: Timestamp,
    /// What was done.
    pub kind: ActivationKind,
    /// The account; null: the deployment, for every account.
    pub account: Option<AccountId>,
    /// The environment; null: wherever none has its own.
    pub environment: Option<String>,
    /// Whether it is of the floor.
    pub floor: bool,
    /// What is active from then on; null: none of this account.
    pub version: Option<PolicyVersion>,
    /// What was active before; null: none of this account.
    pub from: Option<PolicyVersion>,
    /// Why; null where no reason was given.
    pub reason: Option<String>,
    /// SHA-256 of the difference to what was in force; null where nothing was compared.
    pub diff_digest: Option<String>,
    /// How much was looser, and was accepted; null where nothing was.
    pub accepted_flips: Option<u64>,
    /// The key that made it.
    pub key_id: KeyId,
    /// The member that made it; null where it was no member's key.
    pub member_id: Option<MemberId>,
    /// The proposal that the key's member approved; absent where no second member was needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<ApprovedProposal>,
    /// The candidate that it begins or ends; absent for what is about the active version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<PolicyCandidate>,
    /// What was found of the canary that ended by its own terms, or because it was not counted; absent otherwise. Then
    /// `key_id` is the key that set them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_for: Option<CandidateCounts>,
    /// The recorded decisions that it was checked against; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<ReplaySummary>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationKind {
    /// A version was activated.
    Activated,
    /// The version before became active again.
    RolledBack,
    /// A version began to judge as a shadow.
    ShadowStarted,
    /// A version judges as a shadow no longer.
    ShadowEnded,
    /// A version began to decide a share of the runs.
    CanaryStarted,
    /// A version decides a share of the runs no longer.
    CanaryEnded,
}

/// The keystore's answer to an activation or a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationDone {
    pub activation: Activation,
    /// False: it was active already, and nothing changed.
    pub is_new: bool,
    /// How many days lines of its account are kept.
    pub retention_days: u32,
    /// The versions of which it takes the place, null for the evaluators' own: at an empty place, what stood behind it.
    /// None where it only adds, as the first floor does.
    pub replaces: Vec<Option<PolicyVersion>>,
    /// It would take the place of something else than what was judged, and nothing changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_outdated: bool,
    /// The account wants a second member: nothing is activated, and this waits for one. A trial makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<PolicyProposal>,
    /// The account's decisions are recorded with their facts, so that the version can decide them again before it
    /// decides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_facts: bool,
}

/// `GET /v1/policies/history`: the newest change first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadPolicyHistory {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account. An operator that names none reads the deployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

impl ActivationKind {
    /// The line that records it.
    pub fn line(self) -> LineType {
        match self {
            Self::Activated => LineType::PolicyActivated,
            Self::RolledBack => LineType::PolicyRolledBack,
            Self::ShadowStarted => LineType::PolicyShadowStarted,
            Self::ShadowEnded => LineType::PolicyShadowEnded,
            Self::CanaryStarted => LineType::PolicyCanaryStarted,
            Self::CanaryEnded => LineType::PolicyCanaryEnded,
        }
    }
}

impl Activation {
    fn by(&self) -> PolicyActor {
        PolicyActor { key_id: self.key_id.clone(), member_id: self.member_id.clone() }
    }

    /// The line which says that it was not made, although the line with this id says so.
    pub fn not_made_event(&self, event_id: uuid::Uuid, recorded: uuid::Uuid) -> ApprovalEvent {
        let mut event = ApprovalEvent { kind: LineType::PolicyNotChanged, ..self.event(event_id) };
        event.details.insert("event_id".to_owned(), recorded.to_string().into());
        event
    }

    /// The line that records it.
    pub fn event(&self, event_id: uuid::Uuid) -> ApprovalEvent {
        let text = |value: &Option<String>| value.clone().map(Into::into);
        let version = |value: &Option<PolicyVersion>| value.as_ref().map(|version| version.as_str().into());
        let members = [
            ("from", version(&self.from)),
            ("floor", self.floor.then_some(true.into())),
            ("diff_digest", text(&self.diff_digest)),
            ("accepted_flips", self.accepted_flips.map(Into::into)),
            ("candidate", self.candidate.as_ref().map(candidate_details)),
            ("returned_for", self.returned_for.and_then(|counts| serde_json::to_value(counts).ok())),
            ("replayed", self.replayed.and_then(|replayed| serde_json::to_value(replayed).ok())),
            ("of_all", self.account.is_none().then_some(true.into())),
            ("proposal_id", self.proposal.as_ref().map(|proposal| proposal.id.as_str().into())),
            ("proposed_by", self.proposal.as_ref().and_then(|of| serde_json::to_value(&of.proposed_by).ok())),
            ("approved_by", self.proposal.as_ref().and_then(|_| serde_json::to_value(self.by()).ok())),
            ("approval_reason", self.proposal.as_ref().and_then(|of| of.approval_reason.clone().map(Into::into))),
        ];
        let details = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        ApprovalEvent {
            policy_version: self.version.clone(),
            environment: self.environment.clone(),
            // What ends by its own terms is done by no caller: `candidate` names the key that set them.
            actor: self.returned_for.is_none().then(|| EventActor::of(&self.key_id, self.member_id.as_ref())),
            reason: self.reason.clone(),
            details: details.collect(),
            ..ApprovalEvent::new(self.kind.line(), event_id, self.at)
        }
    }
}

/// What a line says of a candidate beside its version and environment.
fn candidate_details(candidate: &PolicyCandidate) -> serde_json::Value {
    let PolicyCandidate { id, mode, percent, return_at, started_at, key_id, .. } = candidate;
    serde_json::json!({
        "id": id, "mode": mode, "percent": percent, "return_at": return_at, "started_at": started_at, "key_id": key_id,
    })
}
