//! Activations that wait for a second member, where an account wants one.
//!
//! The keystore keeps a proposal and judges who is another person. Approving one makes the activation that was
//! proposed, or none: what it would take the place of must be what it was when it was proposed.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Activation, CanaryTerms, ReplaySummary};
use crate::{
    AccountId, ApprovalEvent, Caller, EventActor, Holder, KeyId, LineType, MemberId, Person, PolicyVersion, ProposalId,
};

/// Proposals of an account that may be pending at the same time.
pub const MAX_PENDING_PROPOSALS: usize = 20;
/// Proposals that an account keeps, those that have ended included.
pub const MAX_PROPOSALS: usize = 200;
/// For how long a proposal can be approved.
pub const PROPOSAL_TTL_SECONDS: i64 = 24 * 3_600;

/// Who activates a policy of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyChanges {
    /// One key with `policies:manage`.
    #[default]
    Single,
    /// One key proposes it, and a member who is another person approves it.
    SecondMember,
}

impl PolicyChanges {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::SecondMember => "second_member",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Single, Self::SecondMember].into_iter().find(|mode| mode.as_str() == text)
    }

    pub(crate) fn is_single(&self) -> bool {
        *self == Self::Single
    }
}

/// Where a proposal stands. Each end is reached once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProposalStatus {
    /// It waits for a second member.
    Pending,
    /// A second member approved it, and it was activated.
    Approved,
    /// A member said no.
    Denied,
    /// It was taken back.
    Cancelled,
    /// When a member approved it, another version was in force than when it was proposed.
    Outdated,
    /// Its time was over.
    Expired,
}

impl ProposalStatus {
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Approved, Self::Denied, Self::Cancelled, Self::Outdated, Self::Expired];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Outdated => "outdated",
            Self::Expired => "expired",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// Whose key did something about a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyActor {
    /// The key.
    pub key_id: KeyId,
    /// The member; null where it was no member's key.
    pub member_id: Option<MemberId>,
}

/// An activation that waits for a second member, or waited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyProposal {
    /// Its id.
    pub id: ProposalId,
    /// The account.
    pub account: AccountId,
    /// Where it stands.
    pub status: ProposalStatus,
    /// What is to be active.
    pub version: PolicyVersion,
    /// The environment; null: wherever none has its own.
    pub environment: Option<String>,
    /// What was active there when it was proposed; null: none of this account.
    pub from: Option<PolicyVersion>,
    /// Why; null where no reason was given.
    pub reason: Option<String>,
    /// SHA-256 of the difference to what was in force; null where nothing was compared.
    pub diff_digest: Option<String>,
    /// How much is looser, and was accepted; null where nothing is.
    pub accepted_flips: Option<u64>,
    /// The canary that it begins; absent where it is activated as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryTerms>,
    /// The recorded decisions that it was checked against; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<ReplaySummary>,
    /// Who proposed it.
    pub proposed_by: PolicyActor,
    /// RFC 3339.
    pub proposed_at: Timestamp,
    /// From then on it cannot be approved; 24 hours after it was proposed.
    pub expires_at: Timestamp,
    /// Who approved, denied or cancelled it, or found it outdated; null: it was not decided.
    pub decided_by: Option<PolicyActor>,
    /// When; null: it was not decided.
    pub decided_at: Option<Timestamp>,
    /// Why, of the one who decided; null where no reason was given.
    pub decision_reason: Option<String>,
}

impl PolicyProposal {
    /// The line that records it as it stands; none for what needs none. An approval is recorded as the activation.
    pub fn event(&self, is_repeated: bool, event_id: uuid::Uuid, at: Timestamp) -> Option<ApprovalEvent> {
        let (kind, by, reason) = match self.status {
            ProposalStatus::Pending => (LineType::PolicyProposed, Some(&self.proposed_by), &self.reason),
            ProposalStatus::Denied => (LineType::PolicyProposalDenied, self.decided_by.as_ref(), &self.decision_reason),
            ProposalStatus::Cancelled => {
                (LineType::PolicyProposalCancelled, self.decided_by.as_ref(), &self.decision_reason)
            }
            ProposalStatus::Outdated => {
                (LineType::PolicyProposalOutdated, self.decided_by.as_ref(), &self.decision_reason)
            }
            ProposalStatus::Approved | ProposalStatus::Expired => return None,
        };
        let members = [
            ("proposal_id", Some(self.id.as_str().into())),
            ("proposed_by", serde_json::to_value(&self.proposed_by).ok()),
            ("expires_at", Some(self.expires_at.to_string().into())),
            ("from", self.from.as_ref().map(|version| version.as_str().into())),
            ("diff_digest", self.diff_digest.clone().map(Into::into)),
            ("accepted_flips", self.accepted_flips.map(Into::into)),
            ("canary", self.canary.and_then(|terms| serde_json::to_value(terms).ok())),
            ("replayed", self.replayed.and_then(|replayed| serde_json::to_value(replayed).ok())),
            ("again", is_repeated.then_some(true.into())),
        ];
        Some(ApprovalEvent {
            policy_version: Some(self.version.clone()),
            environment: self.environment.clone(),
            actor: by.map(|by| EventActor::of(&by.key_id, by.member_id.as_ref())),
            reason: reason.clone(),
            details: members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
            ..ApprovalEvent::new(kind, event_id, at)
        })
    }
}

/// The proposal that an activation came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovedProposal {
    /// Its id.
    pub id: ProposalId,
    /// Who proposed it; the activation itself names who approved it.
    pub proposed_by: PolicyActor,
    /// Why it was approved; null where no reason was given.
    pub approval_reason: Option<String>,
}

/// The answer to `POST /v1/policies/{version}/activate` where a second member must approve: nothing is activated yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActivationProposed {
    /// What waits for a second member.
    pub proposal: PolicyProposal,
}

/// `GET /v1/policies/proposals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListProposals {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Only those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ProposalStatus>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `GET /v1/policies/proposals/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShowProposal {
    #[schemars(skip)]
    pub caller: Caller,
    /// The proposal.
    pub id: ProposalId,
}

/// What becomes of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProposalDecision {
    Approve,
    Deny,
    Cancel,
}

/// Gateway to keystore: a member decides about a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideProposal {
    pub caller: Caller,
    pub id: ProposalId,
    pub decision: ProposalDecision,
    /// Why; required to deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of an approval: says what would be activated, and activates nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_trial: bool,
}

/// The answer to [`DecideProposal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalDecided {
    pub proposal: PolicyProposal,
    /// What an approval activates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// False: the same key had ended it so before.
    pub is_new: bool,
    /// How many days lines of its account are kept.
    pub retention_days: u32,
}

/// `POST /v1/policies/proposals/{id}/approve`, and `…/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProposalReason {
    /// The proposal.
    pub id: ProposalId,
    /// Why, for people; secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: Option<String>,
}

/// `POST /v1/policies/proposals/{id}/deny`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DenyProposal {
    /// The proposal.
    pub id: ProposalId,
    /// Why, for people; secrets masked.
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: String,
}

/// Whether no person stands behind both keys: as holder, owner or maker, or as the maker of such a member, at whatever
/// remove (ADR 0029). `makers` says who made a member.
pub fn are_different_persons(one: &Holder, other: &Holder, makers: impl Fn(&MemberId) -> Vec<Person>) -> bool {
    let [one, other] = [one, other].map(|holder| behind(holder, &makers));
    one.is_disjoint(&other)
}

/// Everybody behind a key: those whom it names, and their makers.
fn behind(holder: &Holder, makers: &impl Fn(&MemberId) -> Vec<Person>) -> std::collections::BTreeSet<Person> {
    let mut found = std::collections::BTreeSet::new();
    let mut open: Vec<Person> = holder.persons().collect();
    while let Some(next) = open.pop() {
        if found.insert(next.clone())
            && let Person::Member(member) = &next
        {
            open.extend(makers(member));
        }
    }
    found
}
