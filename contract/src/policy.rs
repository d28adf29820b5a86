//! Policies that an organisation publishes and activates: what crosses the wire for it.
//!
//! The keystore keeps published packs and which of them are active. What is active for an account is a part of its
//! [`AccountRules`], so gateways and evaluators learn of it with the caller's identity.
//! INVARIANT: a version names its content. A pack that does not load as the version under which it was published
//! decides nothing.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    AccountId, AccountRules, ApprovalEvent, Caller, CheckRequest, EventActor, FieldError, KeyId, LineType, MemberId,
    PolicyVersion, is_same_environment,
};

mod all_accounts;
mod bundle;
mod compare;
mod loading;
mod proposal;
mod shown;

pub use all_accounts::*;
pub use bundle::*;
pub use compare::*;
pub use loading::*;
pub use proposal::*;
pub use shown::*;

/// The most versions that an account keeps.
pub const MAX_POLICIES_OF_ACCOUNT: usize = 100;
/// The most versions of all accounts together.
pub const MAX_POLICIES: usize = 1_000;
/// The most bytes of all versions that an account keeps.
pub const MAX_POLICY_BYTES_OF_ACCOUNT: usize = 16 << 20;
/// The most bytes of the versions of all accounts together: the keystore reads all of them when it starts.
pub const MAX_POLICY_BYTES: usize = 64 << 20;
/// The most environments for which an account activates a policy of their own.
pub const MAX_POLICY_ENVIRONMENTS: usize = 50;
/// How many activations of a default, an environment or a floor can be rolled back, one after the other.
pub const MAX_ROLLBACKS: usize = 10;
/// Changes of what is active that an account's history keeps.
pub const MAX_POLICY_HISTORY: u64 = 1_000;
/// Deleted versions of an account whose numbers are kept, so that none comes back with other content.
pub const MAX_DELETED_POLICIES: usize = 1_000;

/// What a loaded pack says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicySummary {
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// How many rules decide, inherited ones included.
    pub rules: usize,
    /// How many cases were run, those of extended packs included.
    pub cases: usize,
    /// What of the extended packs it makes milder, by name.
    pub weakens: Vec<String>,
    /// What it extends, the nearest first.
    pub parents: Vec<PolicyVersion>,
}

/// Why a pack is refused, and where its author can mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFault {
    /// Which pack of the bundle, from 0.
    pub pack: usize,
    /// The file; none for a fault of the whole pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The rule's or case's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Gateway to evaluator: does this pack load, and do all of its cases hold?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidatePolicy {
    pub account: AccountId,
    /// True: the operator asks, whose packs have a place of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_operator: bool,
    pub bundle: PolicyBundle,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidatePolicyReply {
    /// It loads as this version.
    Valid(PolicySummary),
    /// It does not; never empty.
    Invalid(Vec<PolicyFault>),
    /// It could not be judged here; the text is for the log.
    Unable(String),
    /// Other packs are being judged; ask again.
    Busy,
}

/// Evaluator to keystore: the content of this version, of the account's own or of those of the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchPolicy {
    /// None: of the deployment's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub version: PolicyVersion,
}

/// The content of a published version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedPolicy {
    pub version: PolicyVersion,
    pub bundle: PolicyBundle,
}

/// Keystore to evaluators: these versions will be asked for. Only a hint to load them ahead of the first check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChanged {
    /// None: of every account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub versions: Vec<PolicyVersion>,
}

/// Which policies decide, for an account or for the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ActivePolicies {
    /// Wherever no environment has its own; absent: the evaluators' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<PolicyVersion>,
    /// For checks in these environments, by any of their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environments: BTreeMap<String, PolicyVersion>,
}

impl ActivePolicies {
    pub fn is_empty(&self) -> bool {
        self.default.is_none() && self.environments.is_empty()
    }

    /// The version that decides a check in this environment; none: the evaluator's own. A check that names no
    /// environment is decided by the default.
    pub fn of(&self, environment: Option<&str>) -> Option<&PolicyVersion> {
        let own =
            environment.and_then(|wanted| self.environments.iter().find(|(at, _)| is_same_environment(at, wanted)));
        own.map(|(_, version)| version).or(self.default.as_ref())
    }

    /// What decides for an account whose own activations these are. An account's default stands over everything that
    /// the deployment has, also over the deployment's environments.
    #[must_use]
    pub fn or(&self, deployment: &Self) -> Self {
        let mut all = self.clone();
        if all.default.is_some() {
            return all;
        }
        for (environment, version) in &deployment.environments {
            if all.environments.keys().all(|own| !is_same_environment(own, environment)) {
                all.environments.insert(environment.clone(), version.clone());
            }
        }
        all.default.clone_from(&deployment.default);
        all
    }

    /// Each version once.
    pub fn versions(&self) -> Vec<PolicyVersion> {
        let mut versions: Vec<_> = self.environments.values().chain(&self.default).cloned().collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }
}

impl AccountRules {
    /// The version that decides this check; none: the evaluator's own.
    pub fn policy_of(&self, check: &CheckRequest) -> Option<&PolicyVersion> {
        self.policy.of(check.environment_name())
    }

    /// Why the policy of this check is unclear, where it depends on the environment: the check names none that can be
    /// read, or two.
    pub fn unclear_environment(&self, check: &CheckRequest) -> Option<FieldError> {
        if self.policy.environments.is_empty() {
            return None;
        }
        let inner = check.context.as_ref().and_then(|context| context.get("environment"));
        let path = if inner.is_some() { "context.environment" } else { "environment" };
        let is_text = inner.is_none_or(|inner| inner.is_null() || inner.is_string());
        let is_word = check.environment_name().is_none_or(|name| is_same_environment(name, name));
        let is_one = check.two_environments().is_none_or(|(outer, inner)| is_same_environment(outer, inner));
        let must = "must be one word in one script, and the same at both places: it selects the policy that decides";
        (!is_text || !is_word || !is_one).then(|| FieldError::new(path, must))
    }

    /// Whether only an evaluator that loads published packs may decide.
    pub fn needs_published(&self) -> bool {
        !self.policy.is_empty() || self.floor.is_some()
    }
}

/// A published version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishedPolicy {
    /// Version, and what was found when it was published.
    #[serde(flatten)]
    pub summary: PolicySummary,
    /// Whose it is; null: the operator's, for every account.
    pub account: Option<AccountId>,
    /// RFC 3339.
    pub published_at: Timestamp,
    /// The key that published it; null for an operator's pack where an account asks.
    pub key_id: Option<KeyId>,
    /// The member that published it; null where it was no member's key.
    pub member_id: Option<MemberId>,
    /// The size of its files.
    pub bytes: usize,
    /// Its files, the extended packs first; absent where they were not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packs: Option<Vec<PolicyFiles>>,
}

/// `GET /v1/policies/{version}`, as a gateway shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShownPolicy {
    /// The version.
    #[serde(flatten)]
    pub policy: PublishedPolicy,
    /// The evaluators that this gateway sees, and whether each has it loaded.
    pub evaluators: Vec<PolicyAtEvaluator>,
}

/// Whether an evaluator has a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyAtEvaluator {
    /// Its name, as in `GET /v1/status`.
    pub instance: String,
    /// Whether it said so in its last heartbeat. One that has not loads it for the first check that needs it.
    pub loaded: bool,
}

/// `POST /v1/policies`. The same content again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishPolicy {
    /// Only the operator names another account. The operator's own packs are for every account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The packs that it extends and that are not compiled in, the first one first; the pack itself last. At most
    /// 768 KiB, 512 KiB of rules and 100 files a pack.
    #[schemars(extend("minItems" = 1, "maxItems" = 4))]
    pub packs: Vec<PolicyFiles>,
}

/// Gateway to keystore: keep this version, which an evaluator has validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePolicy {
    pub caller: Caller,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub summary: PolicySummary,
    pub bundle: PolicyBundle,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_trial: bool,
}

/// The answer to [`StorePolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStored {
    pub policy: PublishedPolicy,
    /// False: it had been published before.
    pub is_new: bool,
    /// How many days lines of its account are kept.
    pub retention_days: u32,
}

/// `GET /v1/policies`: the account's own and the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListPolicies {
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

/// `GET /v1/policies/{version}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShowPolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Whether its files are wanted.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub files: bool,
}

/// `DELETE /v1/policies/{version}`: one that is not active and that no rollback leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgetPolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub is_trial: bool,
}

/// The version is kept no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyForgotten {
    /// Whose it was; none: the operator's, for every account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// How many days lines of its account are kept.
    pub retention_days: u32,
}

/// `GET /v1/policies/active`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadActivePolicies {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
}

/// What decides for an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoliciesInForce {
    /// The account; null: the deployment, for accounts without their own.
    pub account: Option<AccountId>,
    /// What decides: the account's own, then the deployment's.
    pub effective: ActivePolicies,
    /// What the account activated.
    pub own: ActivePolicies,
    /// What the operator activated for every account.
    pub deployment: ActivePolicies,
    /// The operator's pack that is evaluated beside the others, and that none can be milder than; null: none.
    pub floor: Option<PolicyVersion>,
}

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
    /// How much of what changes may be looser: `flips` of `GET /v1/policies/{version}/diff`, where that is not 0; needs
    /// `reason`. Another number is a 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_flips: Option<u64>,
    /// What the version was compared with: if it takes the place of anything else by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub judged: Option<Vec<Option<PolicyVersion>>>,
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
    /// Whether it was a rollback.
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
}

/// Whether something was activated or rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationKind {
    /// A version was activated.
    Activated,
    /// The version before became active again.
    RolledBack,
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
            actor: Some(EventActor::of(&self.key_id, self.member_id.as_ref())),
            reason: self.reason.clone(),
            details: details.collect(),
            ..ApprovalEvent::new(self.kind.line(), event_id, self.at)
        }
    }
}

#[cfg(test)]
mod tests;
