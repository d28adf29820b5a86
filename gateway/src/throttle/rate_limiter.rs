//! A token bucket for each key: an address, an account or an API key.
//!
//! A bucket holds a period's worth of requests and fills evenly. It is stored as the instant at which it is full again
//! (the "generic cell rate algorithm" of ITU-T I.371), so counting is one atomic step without a lock. The `governor`
//! crate does the same, but its tables grow without a bound between two sweeps.
//! INVARIANT: memory is bounded. A bucket is dropped when it was idle for two periods, and is full by then; beyond
//! [`MAX_REMEMBERED`] keys the least used are dropped.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use super::MAX_REMEMBERED;

pub(crate) struct RateLimiter<K> {
    period_ns: u64,
    request_ns: u64,
    began: Instant,
    /// When each bucket is full again, in nanoseconds since `began`.
    full_at: Cache<K, Arc<AtomicU64>>,
}

impl<K: Clone + Hash + Eq + Send + Sync + 'static> RateLimiter<K> {
    pub(crate) fn new(limit: NonZeroU32, period: Duration, began: Instant) -> Self {
        let full_at = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_idle(period * 2).build();
        let period_ns = nanos(period);
        Self { period_ns, request_ns: period_ns / u64::from(limit.get()), began, full_at }
    }

    /// Takes one request out of the key's bucket. An error says how long it takes until there is one.
    pub(crate) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.began));
        let bucket = self.full_at.get(key).unwrap_or_else(|| self.full_at.get_with(key.clone(), Arc::default));
        let full_then = |full_at: u64| full_at.max(now).saturating_add(self.request_ns);
        let latest = now.saturating_add(self.period_ns);
        let take = |full_at: u64| Some(full_then(full_at)).filter(|then| *then <= latest);
        let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|full_at| Duration::from_nanos(full_then(full_at).saturating_sub(latest)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientNet;

    fn limiter(per_second: u32) -> (RateLimiter<ClientNet>, Instant) {
        let now = Instant::now();
        (RateLimiter::new(NonZeroU32::new(per_second).unwrap(), Duration::from_secs(1), now), now)
    }

    fn net(text: &str) -> ClientNet {
        ClientNet::of(text.parse().unwrap())
    }

    #[test]
    fn a_full_bucket_allows_a_burst_and_then_the_steady_rate() {
        let (limiter, began) = limiter(100);
        let client = net("192.0.2.1");
        for after in [Duration::ZERO, Duration::from_secs(3600)] {
            let now = began + after;
            assert!((0..100).all(|_| limiter.take(&client, now).is_ok()));
            assert!(
                limiter.take(&client, now).is_err() && limiter.take(&client, now + Duration::from_millis(9)).is_err()
            );
            assert!(limiter.take(&client, now + Duration::from_millis(10)).is_ok());
            assert!(limiter.take(&client, now + Duration::from_millis(10)).is_err());
        }
    }

    #[test]
    fn a_refused_request_takes_nothing_out_of_the_bucket() {
        let (limiter, now) = limiter(2);
        let client = net("192.0.2.1");
        let passed = |ms| (0..1_000).filter(|_| limiter.take(&client, now + Duration::from_millis(ms)).is_ok()).count();
        assert_eq!([passed(0), passed(499), passed(500), passed(1_000), passed(3_000)], [2, 0, 1, 1, 2]);
    }

    #[test]
    fn each_address_has_its_own_bucket() {
        let (limiter, now) = limiter(1);
        assert!(limiter.take(&net("2001:db8::1"), now).is_ok());
        assert!(limiter.take(&net("2001:db8::2"), now).is_err(), "the same /64");
        assert!(limiter.take(&net("2001:db8:0:1::1"), now).is_ok());
    }
}
