//! Usage: how many checks an account may make, and has made (contract, section 5).
//!
//! Owns the limits as a plan or an account sets them, and the answer to `GET /usage`. Windows are UTC; counting is the gateway's.

use serde::{Deserialize, Serialize};

use crate::{KeyId, Plan, RequestId};

/// What unlimited is on the wire: the largest integer that every client reads exactly (2⁵³ − 1).
pub const UNLIMITED: u64 = 9_007_199_254_740_991;

/// Checks that an account may make; none means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// In a minute of the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u64>,
    /// In a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<u64>,
    /// In a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// The answer to `GET /usage`. No number is null; unlimited is [`UNLIMITED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of this answer.
    pub request_id: RequestId,
    /// The asking key.
    pub api_key_id: KeyId,
    /// The account's plan.
    pub plan: Plan,
    /// `YYYY-MM`.
    pub month_key: String,
    /// Checks this month.
    pub monthly_used: u64,
    /// The most.
    pub monthly_quota: u64,
    /// `monthly_quota − monthly_used`.
    pub monthly_remaining: u64,
    /// `YYYY-MM-DD`.
    pub day_key: String,
    /// Checks today.
    pub daily_used: u64,
    /// The most.
    pub daily_quota: u64,
    /// `daily_quota − daily_used`.
    pub daily_remaining: u64,
    /// Checks that a minute may have.
    pub per_minute_limit: u64,
    /// Checks in this minute.
    pub minute_used: u64,
    /// `per_minute_limit − minute_used`.
    pub minute_remaining: u64,
    /// Empty: a key is not bound to one.
    pub environment: String,
    /// Always `stage0`.
    pub source: String,
    /// Whole seconds since the epoch.
    pub evaluated_at: i64,
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
}
