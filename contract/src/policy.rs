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
    AccountId, AccountRules, Caller, CheckRequest, FieldError, KeyId, MemberId, PolicyVersion, is_same_environment,
};

mod activation;
mod all_accounts;
mod bundle;
mod candidate;
mod compare;
mod loading;
mod proposal;
mod replay;
mod shown;

pub use activation::*;
pub use all_accounts::*;
pub use bundle::*;
pub use candidate::*;
pub use compare::*;
pub use loading::*;
pub use proposal::*;
pub use replay::*;
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
        self.canary_of(check).map(|canary| &canary.version).or_else(|| self.active_policy_of(check))
    }

    /// Why the policy of this check is unclear, where it depends on the environment: the check names none that can be
    /// read, or two.
    pub fn unclear_environment(&self, check: &CheckRequest) -> Option<FieldError> {
        let canary = |candidate: &PolicyCandidate| candidate.mode == CandidateMode::Canary;
        let of_environment = |candidate: &PolicyCandidate| canary(candidate) && candidate.environment.is_some();
        if self.policy.environments.is_empty() && !self.candidates.iter().any(of_environment) {
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
        let canary = |candidate: &PolicyCandidate| candidate.mode == CandidateMode::Canary;
        !self.policy.is_empty() || self.floor.is_some() || self.candidates.iter().any(canary)
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
    /// The account's versions that are tried, one at each place at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<PolicyCandidate>,
}

#[cfg(test)]
mod tests;
