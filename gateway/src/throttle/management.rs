//! Calls of the control API, counted by key and by account before the keystore is asked.
//!
//! Owns buckets that hold a minute's worth of calls and fill evenly (the "generic cell rate algorithm" of ITU-T I.371).
//! Revocations have buckets of their own, likewise of the key and of the account: a key that floods with anything else
//! can still be revoked, also by itself, and so can the keys that it made. Of this gateway alone and in bounded memory:
//! a bucket that is forgotten is a full one.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use stage0_contract::{AccountId, KeyId, KeyIdentity, Scope};

use super::MOST_REMEMBERED;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
/// A bucket is full after a minute; more costs nothing.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// What all keys of an account may do together, as a multiple of what one may.
const KEYS_OF_ACCOUNT: u32 = 4;

/// Whose calls count for their account. Others are refused for their scope, and must not use up what those have.
const MANAGERS: [Scope; 3] = [Scope::KeysManage, Scope::WebhooksManage, Scope::Operator];

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ManagementCall {
    /// Revokes a key.
    Revocation,
    /// Anything else.
    Other,
}

/// Who made too many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallsBy {
    /// One key.
    Key,
    /// All keys of an account together.
    Account,
}

/// A call too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyCalls {
    pub(crate) by: CallsBy,
    /// How long to wait.
    pub(crate) seconds: u64,
}

/// The buckets of keys and accounts.
pub(crate) struct ManagementCalls {
    revocations: Callers,
    others: Callers,
}

/// Calls of one kind.
struct Callers {
    keys: Buckets<KeyId>,
    accounts: Buckets<AccountId>,
}

struct Buckets<K> {
    /// Nanoseconds that one call takes out.
    each: u64,
    began: Instant,
    /// When each bucket is full again, in nanoseconds since `began`.
    full_at: Cache<K, Arc<AtomicU64>>,
}

impl ManagementCalls {
    /// So many calls a minute of each key.
    pub(crate) fn new(per_minute: NonZeroU32, began: Instant) -> Self {
        Self { revocations: Callers::new(per_minute, began), others: Callers::new(per_minute, began) }
    }

    /// Counts a call.
    pub(crate) fn admit(&self, identity: &KeyIdentity, call: ManagementCall, now: Instant) -> Result<(), TooManyCalls> {
        match call {
            ManagementCall::Revocation => self.revocations.admit(identity, now),
            ManagementCall::Other => self.others.admit(identity, now),
        }
    }
}

impl Callers {
    fn new(per_minute: NonZeroU32, began: Instant) -> Self {
        let of_account = per_minute.saturating_mul(NonZeroU32::MIN.saturating_add(KEYS_OF_ACCOUNT - 1));
        Self { keys: Buckets::new(per_minute, began), accounts: Buckets::new(of_account, began) }
    }

    fn admit(&self, identity: &KeyIdentity, now: Instant) -> Result<(), TooManyCalls> {
        let by_key = |seconds| TooManyCalls { by: CallsBy::Key, seconds };
        self.keys.take(&identity.key_id, now).map_err(by_key)?;
        if !MANAGERS.iter().any(|scope| identity.scopes.contains(scope)) {
            return Ok(());
        }
        let by_account = |seconds| TooManyCalls { by: CallsBy::Account, seconds };
        self.accounts.take(&identity.account, now).map_err(by_account)
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Buckets<K> {
    fn new(per_minute: NonZeroU32, began: Instant) -> Self {
        let full_at = Cache::builder().max_capacity(MOST_REMEMBERED).time_to_idle(FORGOTTEN_AFTER).build();
        Self { each: MINUTE / u64::from(per_minute.get()), began, full_at }
    }

    /// Takes one call out of a bucket, or says in how many seconds there is one.
    fn take(&self, key: &K, now: Instant) -> Result<(), u64> {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.full_at.get(key).unwrap_or_else(|| self.full_at.get_with(key.clone(), Arc::default));
        let full_then = |full_at: u64| full_at.max(now).saturating_add(self.each);
        let latest = now.saturating_add(MINUTE);
        let take = |full_at: u64| Some(full_then(full_at)).filter(|then| *then <= latest);
        let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|full_at| full_then(full_at).saturating_sub(latest).div_ceil(SECOND).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{Caps, Limits, Plan, Scopes};

    fn of(account: &str, key: &str) -> KeyIdentity {
        KeyIdentity {
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
    fn a_minutes_worth_of_a_key_passes_and_then_one_at_a_time() {
        let (calls, now) = calls(6);
        let passes = |key, after| calls.admit(&of("a", key), ManagementCall::Other, now + Duration::from_secs(after));
        assert!((0..6).all(|_| passes("k1", 0).is_ok()));
        assert_eq!(passes("k1", 0), Err(TooManyCalls { by: CallsBy::Key, seconds: 10 }));
        assert_eq!(passes("k1", 9), Err(TooManyCalls { by: CallsBy::Key, seconds: 1 }));
        assert_eq!(passes("k1", 10), Ok(()));
        assert!(passes("k1", 10).is_err() && passes("k2", 10).is_ok(), "another key is another");
    }

    #[test]
    fn many_keys_of_one_account_have_a_limit_together_and_other_accounts_have_their_own() {
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
    fn keys_that_manage_nothing_use_up_their_own_calls_alone() {
        let (calls, now) = calls(2);
        for number in 0..20 {
            let agent = KeyIdentity { scopes: Scopes::from([Scope::Check]), ..of("a", &format!("k{number}")) };
            while calls.admit(&agent, ManagementCall::Other, now).is_ok() {}
        }
        assert!(calls.admit(&of("a", "manager"), ManagementCall::Other, now).is_ok());
    }

    #[test]
    fn who_has_no_call_left_revokes_all_the_same() {
        let (calls, now) = calls(2);
        let flood = of("a", "k1");
        while calls.admit(&flood, ManagementCall::Other, now).is_ok() {}
        assert!((0..2).all(|_| calls.admit(&flood, ManagementCall::Revocation, now).is_ok()));
        assert!(calls.admit(&flood, ManagementCall::Revocation, now).is_err());
    }

    #[test]
    fn revocations_of_many_keys_of_one_account_have_a_limit_together() {
        let (calls, now) = calls(5);
        let revoke = |account, key: &str| calls.admit(&of(account, key), ManagementCall::Revocation, now);
        let tried = (0..10).flat_map(|number| std::iter::repeat_n(format!("k{number}"), 5));
        assert_eq!(tried.filter(|key| revoke("a", key).is_ok()).count(), 20, "four keys' worth");
        assert_eq!(revoke("a", "fresh"), Err(TooManyCalls { by: CallsBy::Account, seconds: 3 }));
        assert!(revoke("b", "other").is_ok(), "another account is another");
        assert!(calls.admit(&of("a", "fresh"), ManagementCall::Other, now).is_ok(), "other calls have their own");
    }
}
