//! The rate limit of the control API, counted by key and by account before the keystore is asked.
//!
//! Revocations have buckets of their own: a key that floods with anything else can still be revoked, also by itself,
//! and so can the keys that it made. Each gateway counts for itself.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use stage0_contract::{AccountId, KeyId, KeyIdentity, Scope};

use super::RateLimiter;

const PERIOD: Duration = Duration::from_secs(60);
/// All keys of an account may together make this many times the calls of one key.
const ACCOUNT_FACTOR: u32 = 4;

/// Calls of keys with one of these scopes count against their account. Other keys are refused for their scope and must
/// not use up the account's calls.
const MANAGERS: [Scope; 5] =
    [Scope::KeysManage, Scope::WebhooksManage, Scope::MembersManage, Scope::StopsManage, Scope::Operator];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ManagementCall {
    Revocation,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallsBy {
    Key,
    Account,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyCalls {
    pub(crate) by: CallsBy,
    pub(crate) seconds: u64,
}

pub(crate) struct ManagementCalls {
    revocations: Callers,
    others: Callers,
}

struct Callers {
    keys: RateLimiter<KeyId>,
    accounts: RateLimiter<AccountId>,
}

impl ManagementCalls {
    pub(crate) fn new(per_minute: NonZeroU32, began: Instant) -> Self {
        Self { revocations: Callers::new(per_minute, began), others: Callers::new(per_minute, began) }
    }

    pub(crate) fn admit(&self, identity: &KeyIdentity, call: ManagementCall, now: Instant) -> Result<(), TooManyCalls> {
        match call {
            ManagementCall::Revocation => self.revocations.admit(identity, now),
            ManagementCall::Other => self.others.admit(identity, now),
        }
    }
}

impl Callers {
    fn new(per_minute: NonZeroU32, began: Instant) -> Self {
        let of_account = per_minute.saturating_mul(NonZeroU32::MIN.saturating_add(ACCOUNT_FACTOR - 1));
        Self {
            keys: RateLimiter::new(per_minute, PERIOD, began),
            accounts: RateLimiter::new(of_account, PERIOD, began),
        }
    }

    fn admit(&self, identity: &KeyIdentity, now: Instant) -> Result<(), TooManyCalls> {
        let refusal = |by| move |wait: Duration| TooManyCalls { by, seconds: whole_seconds(wait) };
        self.keys.take(&identity.key_id, now).map_err(refusal(CallsBy::Key))?;
        if !MANAGERS.iter().any(|scope| identity.scopes.contains(scope)) {
            return Ok(());
        }
        self.accounts.take(&identity.account, now).map_err(refusal(CallsBy::Account))
    }
}

/// Rounded up, and at least one.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{Caps, Limits, Plan, Scopes};

    fn of(account: &str, key: &str) -> KeyIdentity {
        KeyIdentity {
            holder: None,
            key_name: None,
            groups: None,
            rules: stage0_contract::AccountRules::default(),
            key_id: KeyId::parse(key).unwrap(),
            account: AccountId::parse(account).unwrap(),
            scopes: Scopes::from([Scope::KeysManage]),
            plan: Plan::Free,
            expires_at: None,
            retention_days: 30,
            limits: Limits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
        }
    }

    fn calls(per_minute: u32) -> (ManagementCalls, Instant) {
        let now = Instant::now();
        (ManagementCalls::new(NonZeroU32::new(per_minute).unwrap(), now), now)
    }

    #[test]
    fn a_key_may_burst_a_minutes_calls_and_then_gets_the_steady_rate() {
        let (calls, now) = calls(6);
        let passes = |key, after| calls.admit(&of("a", key), ManagementCall::Other, now + Duration::from_secs(after));
        assert!((0..6).all(|_| passes("k1", 0).is_ok()));
        assert_eq!(passes("k1", 0), Err(TooManyCalls { by: CallsBy::Key, seconds: 10 }));
        assert_eq!(passes("k1", 9), Err(TooManyCalls { by: CallsBy::Key, seconds: 1 }));
        assert_eq!(passes("k1", 10), Ok(()));
        assert!(passes("k1", 10).is_err() && passes("k2", 10).is_ok(), "another key is another");
    }

    #[test]
    fn all_keys_of_an_account_share_a_limit_that_other_accounts_do_not() {
        let (calls, now) = calls(5);
        let keys: Vec<_> = (0..5).map(|number| format!("k{number}")).collect();
        let pass = |account, keys: &[String]| {
            let tried = keys.iter().flat_map(|key| std::iter::repeat_n(key, 5));
            tried.filter(|key| calls.admit(&of(account, key), ManagementCall::Other, now).is_ok()).count()
        };
        assert_eq!(pass("a", &keys), 20, "four keys' worth");
        let over = calls.admit(&of("a", "fresh"), ManagementCall::Other, now);
        assert_eq!(over, Err(TooManyCalls { by: CallsBy::Account, seconds: 3 }));
        assert!(calls.admit(&of("b", "other"), ManagementCall::Other, now).is_ok());
    }

    #[test]
    fn keys_without_a_management_scope_do_not_use_up_their_accounts_calls() {
        let (calls, now) = calls(2);
        for number in 0..20 {
            let agent = KeyIdentity { scopes: Scopes::from([Scope::Check]), ..of("a", &format!("k{number}")) };
            while calls.admit(&agent, ManagementCall::Other, now).is_ok() {}
        }
        assert!(calls.admit(&of("a", "manager"), ManagementCall::Other, now).is_ok());
    }

    #[test]
    fn a_key_that_used_up_its_calls_can_still_revoke() {
        let (calls, now) = calls(2);
        let flood = of("a", "k1");
        while calls.admit(&flood, ManagementCall::Other, now).is_ok() {}
        assert!((0..2).all(|_| calls.admit(&flood, ManagementCall::Revocation, now).is_ok()));
        assert!(calls.admit(&flood, ManagementCall::Revocation, now).is_err());
    }

    #[test]
    fn revocations_by_all_keys_of_an_account_share_a_limit() {
        let (calls, now) = calls(5);
        let revoke = |account, key: &str| calls.admit(&of(account, key), ManagementCall::Revocation, now);
        let tried = (0..10).flat_map(|number| std::iter::repeat_n(format!("k{number}"), 5));
        assert_eq!(tried.filter(|key| revoke("a", key).is_ok()).count(), 20, "four keys' worth");
        assert_eq!(revoke("a", "fresh"), Err(TooManyCalls { by: CallsBy::Account, seconds: 3 }));
        assert!(revoke("b", "other").is_ok(), "another account is another");
        assert!(calls.admit(&of("a", "fresh"), ManagementCall::Other, now).is_ok(), "other calls have their own");
    }
}
