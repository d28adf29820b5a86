//! Usage: how many checks an account may make, and has made, and how much it may hold.
//!
//! Windows are UTC. The gateway counts checks and stored bytes, the evaluator runs, the keystore keys and endpoints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{KeyId, Plan, RequestId};

/// What unlimited is on the wire: the largest integer that every client reads exactly (2⁵³ − 1).
pub const UNLIMITED: u64 = 9_007_199_254_740_991;

/// Checks that an account may make; none means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Checks in a minute; 9007199254740991 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub per_minute: Option<u64>,
    /// Checks in a day (UTC); likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub daily: Option<u64>,
    /// Checks in a month (UTC); likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = crate::UNLIMITED))]
    pub monthly: Option<u64>,
}

impl Limits {
    /// No limit at all.
    pub const NONE: Self = Self { per_minute: None, daily: None, monthly: None };

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// These, where an account has none of its own. [`UNLIMITED`] of its own lifts a plan's limit.
    #[must_use]
    pub fn unless(self, own: Self) -> Self {
        let either = |own: Option<u64>, plans: Option<u64>| own.or(plans).filter(|limit| *limit < UNLIMITED);
        Self {
            per_minute: either(own.per_minute, self.per_minute),
            daily: either(own.daily, self.daily),
            monthly: either(own.monthly, self.monthly),
        }
    }
}

/// How much an account may hold, beside how often it may ask. None means the default: nothing is without a cap unless
/// an operator says [`UNLIMITED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Caps {
    /// Keys that live at the same time; 9007199254740991 means no cap. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_keys: Option<u64>,
    /// Webhook endpoints; 9007199254740991 means no cap. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_endpoints: Option<u64>,
    /// Runs that checks name in a day (UTC); 9007199254740991 means no cap. Default: 50000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub max_runs: Option<u64>,
    /// Bytes of input that `debug_store_input` keeps in a day (UTC); 9007199254740991 means no cap. Default:
    /// 100000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub stored_bytes: Option<u64>,
}

impl Caps {
    /// Only the defaults.
    pub const NONE: Self = Self { max_keys: None, max_endpoints: None, max_runs: None, stored_bytes: None };
    /// Keys of an account whose plan says nothing.
    pub const DEFAULT_MAX_KEYS: u64 = 1_000;
    /// Endpoints of an account whose plan says nothing.
    pub const DEFAULT_MAX_ENDPOINTS: u64 = 100;
    /// Runs in a day of an account whose plan says nothing.
    pub const DEFAULT_MAX_RUNS: u64 = 50_000;
    /// Bytes of stored input in a day of an account whose plan says nothing.
    pub const DEFAULT_STORED_BYTES: u64 = 100_000_000;

    /// Whether nothing is set.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// These, where an account has none of its own.
    #[must_use]
    pub fn unless(self, own: Self) -> Self {
        Self {
            max_keys: own.max_keys.or(self.max_keys),
            max_endpoints: own.max_endpoints.or(self.max_endpoints),
            max_runs: own.max_runs.or(self.max_runs),
            stored_bytes: own.stored_bytes.or(self.stored_bytes),
        }
    }

    /// Keys that live at the same time; [`UNLIMITED`] for any number.
    pub fn keys(&self) -> u64 {
        self.max_keys.unwrap_or(Self::DEFAULT_MAX_KEYS)
    }

    /// Endpoints; [`UNLIMITED`] for any number.
    pub fn endpoints(&self) -> u64 {
        self.max_endpoints.unwrap_or(Self::DEFAULT_MAX_ENDPOINTS)
    }

    /// Runs in a day; [`UNLIMITED`] for any number.
    pub fn runs(&self) -> u64 {
        self.max_runs.unwrap_or(Self::DEFAULT_MAX_RUNS)
    }

    /// Bytes of stored input in a day; none for any number.
    pub fn stored_bytes(&self) -> Option<u64> {
        Some(self.stored_bytes.unwrap_or(Self::DEFAULT_STORED_BYTES)).filter(|bytes| *bytes < UNLIMITED)
    }
}

/// The answer to `GET /usage`. No number is null; unlimited is [`UNLIMITED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Of this answer.
    pub request_id: RequestId,
    /// The asking key.
    pub api_key_id: KeyId,
    /// The account's plan.
    pub plan: Plan,
    /// The month that is counted, as `YYYY-MM` (UTC).
    #[schemars(extend("pattern" = "^[0-9]{4}-[0-9]{2}$"))]
    pub month_key: String,
    /// Checks decided in this month.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub monthly_used: u64,
    /// The most.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub monthly_quota: u64,
    /// `monthly_quota` minus `monthly_used`.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub monthly_remaining: u64,
    /// The day that is counted, as `YYYY-MM-DD` (UTC).
    pub day_key: String,
    /// Checks decided today.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub daily_used: u64,
    /// The most.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub daily_quota: u64,
    /// `daily_quota` minus `daily_used`.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub daily_remaining: u64,
    /// Checks that a minute may have.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub per_minute_limit: u64,
    /// Checks in this minute; without a limit, this gateway's.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub minute_used: u64,
    /// `per_minute_limit` minus `minute_used`.
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub minute_remaining: u64,
    /// Empty: a key is not bound to one.
    pub environment: String,
    /// Always `stage0`.
    #[schemars(extend("enum" = ["stage0"]))]
    pub source: String,
    /// Whole seconds since the epoch.
    pub evaluated_at: i64,
    /// Absent from a gateway that does not count them.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<StoredBytes>,
    /// Counts of other gateways may be missing above for this many seconds: 10 where the day, the month or the stored
    /// bytes have no limit, else 0, as of a limit a gateway takes its share before it uses it (`used` is then too
    /// high rather than too low). The minute of an account without a limit is this gateway's alone. Absent from
    /// older gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_lag_seconds: Option<u64>,
}

/// Bytes of input that `debug_store_input` keeps, in the day that [`Usage::day_key`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredBytes {
    /// Bytes of input that `debug_store_input` had kept today.
    #[serde(rename = "stored_bytes_used")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub used: u64,
    /// The most in a day.
    #[serde(rename = "stored_bytes_quota")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub quota: u64,
    /// `stored_bytes_quota` minus `stored_bytes_used`.
    #[serde(rename = "stored_bytes_remaining")]
    #[schemars(extend("maximum" = crate::UNLIMITED))]
    pub remaining: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accounts_own_limit_counts_and_may_lift_its_plans() {
        let plan = Limits { per_minute: Some(60), daily: Some(1_000), monthly: None };
        assert_eq!(plan.unless(Limits::NONE), plan);
        let own = Limits { per_minute: Some(UNLIMITED), daily: Some(5), monthly: Some(7) };
        assert_eq!(plan.unless(own), Limits { per_minute: None, daily: Some(5), monthly: Some(7) });
    }

    #[test]
    fn what_neither_account_nor_plan_caps_has_the_default_and_only_unlimited_has_no_end() {
        let caps = Caps { max_keys: Some(5), ..Caps::NONE }.unless(Caps { max_keys: Some(7), ..Caps::NONE });
        assert_eq!((caps.keys(), caps.endpoints()), (7, Caps::DEFAULT_MAX_ENDPOINTS));
        assert_eq!((caps.runs(), caps.stored_bytes()), (Caps::DEFAULT_MAX_RUNS, Some(Caps::DEFAULT_STORED_BYTES)));
        let unlimited = Caps { stored_bytes: Some(5), ..Caps::NONE };
        let unlimited = unlimited.unless(Caps { stored_bytes: Some(UNLIMITED), ..Caps::NONE });
        assert_eq!(unlimited.stored_bytes(), None);
    }
}
