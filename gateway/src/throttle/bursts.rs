//! Requests per second: of an address, counted before the key is looked at, or of an account.
//!
//! Owns one bucket for each of them: a second's worth of requests fits in, and it fills evenly. A bucket is one number,
//! the instant at which it is full again (the "generic cell rate algorithm" of ITU-T I.371), so counting is one atomic
//! step and holds no lock. Whoever was forgotten starts with a full bucket, as one has after a second without requests.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use super::MOST_REMEMBERED;
use crate::address::ClientNet;

const SECOND: u64 = 1_000_000_000;
/// A bucket is full after one second; a second more costs nothing.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// The buckets.
pub(crate) struct Bursts<K = ClientNet> {
    /// Nanoseconds that one request takes out.
    each: u64,
    began: Instant,
    /// When each bucket is full again, in nanoseconds since `began`.
    full_at: Cache<K, Arc<AtomicU64>>,
}

impl<K: Hash + Eq + Send + Sync + 'static> Bursts<K> {
    pub(crate) fn new(per_second: NonZeroU32, began: Instant) -> Self {
        let full_at = Cache::builder().max_capacity(MOST_REMEMBERED).time_to_idle(FORGOTTEN_AFTER).build();
        Self { each: SECOND / u64::from(per_second.get()), began, full_at }
    }

    /// Takes one request out of the bucket, if there is one.
    pub(crate) fn admits(&self, who: K, now: Instant) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.full_at.get(&who).unwrap_or_else(|| self.full_at.get_with(who, Arc::default));
        let take = |full_at: u64| {
            let then = full_at.max(now).saturating_add(self.each);
            (then <= now.saturating_add(SECOND)).then_some(then)
        };
        bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bursts(per_second: u32) -> (Bursts, Instant) {
        let now = Instant::now();
        (Bursts::new(NonZeroU32::new(per_second).unwrap(), now), now)
    }

    fn net(text: &str) -> ClientNet {
        ClientNet::of(text.parse().unwrap())
    }

    #[test]
    fn a_seconds_worth_passes_at_once_and_then_one_at_a_time() {
        let (bursts, began) = bursts(100);
        let client = net("192.0.2.1");
        for after in [Duration::ZERO, Duration::from_secs(3600)] {
            let now = began + after;
            assert!((0..100).all(|_| bursts.admits(client, now)));
            assert!(!bursts.admits(client, now) && !bursts.admits(client, now + Duration::from_millis(9)));
            assert!(bursts.admits(client, now + Duration::from_millis(10)));
            assert!(!bursts.admits(client, now + Duration::from_millis(10)));
        }
    }

    #[test]
    fn who_was_refused_pays_nothing_for_it() {
        let (bursts, now) = bursts(2);
        let client = net("192.0.2.1");
        let passed = |ms| (0..1_000).filter(|_| bursts.admits(client, now + Duration::from_millis(ms))).count();
        assert_eq!([passed(0), passed(499), passed(500), passed(1_000), passed(3_000)], [2, 0, 1, 1, 2]);
    }

    #[test]
    fn one_address_takes_nothing_from_another() {
        let (bursts, now) = bursts(1);
        assert!(bursts.admits(net("2001:db8::1"), now));
        assert!(!bursts.admits(net("2001:db8::2"), now), "the same /64");
        assert!(bursts.admits(net("2001:db8:0:1::1"), now));
    }
}
