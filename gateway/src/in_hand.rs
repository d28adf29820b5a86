//! Requests in hand: what a body becomes once it has arrived, from its parsing to its answer.
//!
//! Owns the sum of what such requests may need, estimated by the size of their bodies, for the gateway and each
//! account. Whoever finds no room waits until others are answered, which is soon, and is refused at its deadline.
//! INVARIANT: large bodies never take all: a part is kept for ordinary ones, which need little of it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::in_flight::Over;

/// What a request that is parsed and under evaluation is reckoned to need, as a multiple of its body. It is an estimate
/// of ordinary large bodies: of the densest lawful ones up to 40 are allowed for each process.
const BYTES_FOR_EACH: usize = 16;
/// The least that one needs, whatever its body.
const MIN_BYTES: usize = 4 << 10;
/// A request that needs more is large.
const LARGE_BYTES: usize = 512 << 10;

/// The sums.
pub(crate) struct InHand {
    /// Of all, of the large ones, of one account.
    most: usize,
    most_large: usize,
    most_of_account: usize,
    hasher: RandomState,
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Default)]
struct Used {
    all: usize,
    large: usize,
    accounts: HashMap<u64, usize>,
}

/// A request that has its place; given back when it is dropped.
pub(crate) struct Place {
    hand: Arc<InHand>,
    account: Option<u64>,
    bytes: usize,
}

impl InHand {
    /// An account has half, large requests three quarters.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_large: most / 4 * 3,
            most_of_account: most / 2,
            hasher: RandomState::new(),
            used: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Waits until there is room for a request with so large a body.
    pub(crate) async fn place(
        self: &Arc<Self>,
        account: Option<&AccountId>,
        body: usize,
        deadline: Instant,
    ) -> Result<Place, Over> {
        // The largest body fits in alone, however little may be used.
        let bytes = (body * BYTES_FOR_EACH).max(MIN_BYTES).min(self.most_of_account).min(self.most_large);
        let account = account.map(|account| self.hasher.hash_one(account));
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // What is freed between the look and the wait must not be missed.
            freed.as_mut().enable();
            match self.take(account, bytes) {
                Ok(()) => return Ok(Place { hand: Arc::clone(self), account, bytes }),
                Err(over) => timeout_at(deadline, freed).await.map_err(|_| over)?,
            }
        }
    }

    fn take(&self, account: Option<u64>, bytes: usize) -> Result<(), Over> {
        let mut used = self.lock();
        let large = if bytes > LARGE_BYTES { bytes } else { 0 };
        let of_account = account.and_then(|account| used.accounts.get(&account).copied()).unwrap_or(0);
        if of_account + bytes > self.most_of_account {
            return Err(Over::Account);
        }
        if used.all + bytes > self.most || used.large + large > self.most_large {
            return Err(Over::Gateway);
        }
        used.all += bytes;
        used.large += large;
        if let Some(account) = account {
            *used.accounts.entry(account).or_default() += bytes;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut used = self.hand.lock();
        used.all -= self.bytes;
        if self.bytes > LARGE_BYTES {
            used.large -= self.bytes;
        }
        if let Some(account) = self.account
            && let Some(left) = used.accounts.get_mut(&account)
        {
            *left -= self.bytes.min(*left);
            if *left == 0 {
                used.accounts.remove(&account);
            }
        }
        drop(used);
        self.hand.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MIB: usize = 1 << 20;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    async fn now(hand: &Arc<InHand>, name: &str, body: usize) -> Result<Place, Over> {
        hand.place(Some(&account(name)), body, Instant::now()).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_has_half_and_large_ones_leave_room_for_ordinary_ones() {
        let hand = InHand::new(128 * MIB);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(now(&hand, "a", MIB).await.unwrap());
        }
        assert_eq!(now(&hand, "a", 1_000).await.err(), Some(Over::Account));
        held.push(now(&hand, "b", MIB).await.unwrap());
        held.push(now(&hand, "b", MIB).await.unwrap());
        assert_eq!(now(&hand, "c", MIB).await.err(), Some(Over::Gateway));
        for _ in 0..1_000 {
            held.push(now(&hand, "c", 1_000).await.unwrap());
        }
        drop(held);
        let used = hand.lock();
        assert!(used.all == 0 && used.large == 0 && used.accounts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_until_another_is_answered_or_the_deadline() {
        let hand = InHand::new(32 * MIB);
        let first = now(&hand, "a", MIB).await.unwrap();
        let a = account("a");
        let second = hand.place(Some(&a), MIB, Instant::now() + Duration::from_secs(2));
        let (second, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(second.is_ok());
        let started = Instant::now();
        let third = hand.place(Some(&account("a")), MIB, started + Duration::from_secs(2)).await;
        assert_eq!((third.err(), started.elapsed()), (Some(Over::Account), Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_body_fits_in_alone() {
        assert!(now(&InHand::new(MIB), "a", MIB).await.is_ok());
    }
}
