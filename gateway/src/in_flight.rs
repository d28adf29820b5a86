//! Bytes in flight: request bodies that arrive, and answers that wait for their reader.
//!
//! Owns the count, for the gateway, each account and each address. A hold grows as bytes arrive, whatever
//! `Content-Length` says, and ends with the request.
//! INVARIANT: what is held never exceeds a limit. Where one more byte would, whoever stalls loses its place first, then
//! the largest; the newcomer is refused only if nobody holds more for longer. An ordinary check is small and fast, so
//! it finds room beside bodies that never end.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use stage0_contract::AccountId;
use tokio::sync::Notify;

use crate::address::ClientNet;
use crate::throttle::Seat;

/// So many bytes are progress; fewer do not show that the other side is alive.
const PROGRESS_BYTES: usize = 16 << 10;
/// A hold without progress for so long stalls.
const STALLED_AFTER: Duration = Duration::from_millis(500);
/// A hold that is cut for a smaller one is at least so many times as large.
const LARGER_BY: usize = 2;

/// How much may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteLimits {
    pub(crate) gateway: usize,
    pub(crate) account: usize,
    pub(crate) address: usize,
}

/// Whose limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Account,
    Address,
    Gateway,
}

/// The table of holds.
pub(crate) struct BytesInFlight {
    limits: ByteLimits,
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    gateway: usize,
    accounts: HashMap<u64, usize>,
    addresses: HashMap<ClientNet, usize>,
    holders: HashMap<u64, Holder>,
    next: u64,
}

struct Holder {
    /// A hash: the id itself is not needed.
    account: Option<u64>,
    address: Option<ClientNet>,
    bytes: usize,
    /// Since which there was no progress.
    since: Instant,
    /// Bytes that came after that.
    came: usize,
    cut: Arc<Cut>,
}

#[derive(Default)]
struct Cut {
    over: OnceLock<Over>,
    told: Notify,
    /// The connection that ends with the hold; none: somebody waits for `told`.
    seat: OnceLock<Seat>,
}

/// What one request holds; given back when it is dropped.
pub(crate) struct Hold {
    bytes: Arc<BytesInFlight>,
    id: u64,
    cut: Arc<Cut>,
}

impl ByteLimits {
    /// A quarter for each account and each address: four of them are needed to use the gateway's up.
    pub(crate) fn of(gateway: usize) -> Self {
        Self { gateway, account: gateway / 4, address: gateway / 4 }
    }
}

impl BytesInFlight {
    pub(crate) fn new(limits: ByteLimits) -> Arc<Self> {
        Arc::new(Self { limits, hasher: RandomState::new(), table: Mutex::default() })
    }

    /// What stands for an account where only equality counts; never 0.
    pub(crate) fn key_of(&self, account: &AccountId) -> u64 {
        self.hasher.hash_one(account).max(1)
    }

    /// A hold of nothing yet.
    pub(crate) fn begin(
        self: &Arc<Self>,
        account: Option<&AccountId>,
        address: Option<ClientNet>,
        now: Instant,
    ) -> Hold {
        let account = account.map(|account| self.key_of(account));
        let cut = Arc::new(Cut::default());
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        table.holders.insert(id, Holder { account, address, bytes: 0, since: now, came: 0, cut: Arc::clone(&cut) });
        Hold { bytes: Arc::clone(self), id, cut }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first limit that `more` bytes of this holder would exceed.
    fn exceeded(&self, table: &Table, holder: &Holder, more: usize) -> Option<Over> {
        let used = |account| table.accounts.get(account).copied().unwrap_or(0);
        let account = holder.account.as_ref().is_some_and(|account| used(account) + more > self.limits.account);
        let used = |address| table.addresses.get(address).copied().unwrap_or(0);
        let address = holder.address.as_ref().is_some_and(|address| used(address) + more > self.limits.address);
        if account {
            Some(Over::Account)
        } else if address {
            Some(Over::Address)
        } else {
            (table.gateway + more > self.limits.gateway).then_some(Over::Gateway)
        }
    }
}

impl Table {
    /// Who makes room for `mine`, which wants to hold `wanted` bytes: the one that held most for longest without
    /// progress, else the largest. None: `mine` itself.
    fn victim(&self, mine: u64, over: Over, wanted: usize, now: Instant) -> Option<u64> {
        let own = self.holders.get(&mine)?;
        let beside = |other: &Holder| match over {
            Over::Account => other.account == own.account,
            Over::Address => other.address == own.address,
            Over::Gateway => true,
        };
        let others = || self.holders.iter().filter(|(id, other)| **id != mine && other.bytes > 0 && beside(other));
        let stall = |holder: &Holder| now.saturating_duration_since(holder.since);
        let stalled = others().filter(|(_, other)| stall(other) >= STALLED_AFTER && stall(other) >= stall(own));
        let longest = stalled.max_by_key(|(_, other)| stall(other).as_millis().saturating_mul(other.bytes as u128));
        let largest = || others().max_by_key(|(_, other)| other.bytes).filter(|(_, o)| o.bytes / LARGER_BY >= wanted);
        longest.or_else(largest).map(|(id, _)| *id)
    }

    fn add(&mut self, id: u64, bytes: usize) {
        let Some(holder) = self.holders.get_mut(&id) else { return };
        holder.bytes += bytes;
        self.gateway += bytes;
        if let Some(account) = holder.account {
            *self.accounts.entry(account).or_default() += bytes;
        }
        if let Some(address) = holder.address {
            *self.addresses.entry(address).or_default() += bytes;
        }
    }

    fn give_back(&mut self, id: u64, bytes: usize) {
        let Some(holder) = self.holders.get_mut(&id) else { return };
        let bytes = bytes.min(holder.bytes);
        holder.bytes -= bytes;
        self.gateway -= bytes;
        if let Some(account) = holder.account {
            take(&mut self.accounts, &account, bytes);
        }
        if let Some(address) = holder.address {
            take(&mut self.addresses, &address, bytes);
        }
    }

    /// Ends a hold.
    fn end(&mut self, id: u64) -> Option<Holder> {
        self.give_back(id, usize::MAX);
        self.holders.remove(&id)
    }
}

/// Nobody is remembered who holds nothing.
fn take<K: std::hash::Hash + Eq>(used: &mut HashMap<K, usize>, who: &K, bytes: usize) {
    if let Some(left) = used.get_mut(who) {
        *left -= bytes.min(*left);
        if *left == 0 {
            used.remove(who);
        }
    }
}

impl Cut {
    fn now(&self, over: Over) {
        let _ = self.over.set(over);
        self.told.notify_one();
        if let Some(seat) = self.seat.get() {
            seat.evict();
        }
    }
}

impl Hold {
    /// Ends this connection too when the hold is cut: its client may never take another byte.
    pub(crate) fn ends_with(&self, seat: Seat) {
        let _ = self.cut.seat.set(seat);
    }

    /// Holds `more` bytes. An error ends the hold: what it held belongs to others then.
    pub(crate) fn grow(&self, more: usize, now: Instant) -> Result<(), Over> {
        let mut table = self.bytes.lock();
        loop {
            let Some(holder) = table.holders.get(&self.id) else {
                return Err(self.cut.over.get().copied().unwrap_or(Over::Gateway));
            };
            let Some(over) = self.bytes.exceeded(&table, holder, more) else {
                table.add(self.id, more);
                return Ok(());
            };
            let victim = table.victim(self.id, over, holder.bytes + more, now);
            if let Some(holder) = table.end(victim.unwrap_or(self.id)) {
                holder.cut.now(over);
            }
        }
    }

    /// Gives bytes back before the end.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.bytes.lock().give_back(self.id, bytes);
    }

    /// Bytes came, or left.
    pub(crate) fn progressed(&self, bytes: usize, now: Instant) {
        if let Some(holder) = self.bytes.lock().holders.get_mut(&self.id) {
            holder.came += bytes;
            if holder.came >= PROGRESS_BYTES {
                (holder.came, holder.since) = (0, now);
            }
        }
    }

    /// Resolves when this hold has lost its place to another.
    pub(crate) async fn cut(&self) -> Over {
        loop {
            if let Some(over) = self.cut.over.get() {
                return *over;
            }
            self.cut.told.notified().await;
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.over.get().is_some()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.bytes.lock().end(self.id);
    }
}

#[cfg(test)]
mod tests;
