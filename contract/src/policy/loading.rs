//! What an evaluator that starts loads before it says that it is ready, and what an activation that changed nothing
//! answers.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Activation;
use crate::{AccountId, PolicyVersion};

/// Evaluator to keystore: which published versions decide anywhere? For an evaluator that starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListActiveVersions {}

/// The answer to [`ListActiveVersions`]: those of the deployment first, each version once, and no more than an
/// evaluator keeps ([`crate::MAX_LISTED_POLICIES`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ActiveVersions {
    pub versions: Vec<ActiveVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveVersion {
    /// An account that has it active; none: it is active for the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub version: PolicyVersion,
}

/// The answer to `POST /v1/policies/{version}/activate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActivationAnswer {
    /// The activation.
    #[serde(flatten)]
    pub activation: Activation,
    /// True: the version was active already, and this is the activation that made it so. Absent otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub unchanged: bool,
}
