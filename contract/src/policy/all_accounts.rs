//! What the document says of calls that an operator may make about every account.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A call about policies as the API takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OfAllAccounts<T> {
    /// The call itself.
    #[serde(flatten)]
    pub call: T,
    /// True, with an operator's key: for every account. What such a key changes names an account, says this, or is the
    /// floor: a forgotten `account` must not change every account.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub all_accounts: bool,
}
