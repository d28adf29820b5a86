//! Bytes in flight: request bodies that arrive, and answers until their client has taken them.
//!
//! A request's hold grows as bytes arrive, whatever `Content-Length` says, and ends with the request.
//! INVARIANT: the bytes held never exceed a limit. Where one more byte would, the hold that stalled is cut first, then
//! the largest; the growing request is refused only if no other one stalled for longer or is much larger. An ordinary
//! check is small and fast, so there is room for it beside bodies that never end.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use stage0_contract::AccountId;
use tokio::sync::Notify;

use crate::address::ClientNet;
use crate::throttle::ConnectionHandle;

/// A client that moves at least this much makes progress; fewer bytes do not show that it is alive.
const STALL_RESET_BYTES: usize = 16 << 10;
const STALLED_AFTER: Duration = Duration::from_millis(500);
/// A hold that makes progress is cut only for one that is at least this many times smaller.
const CUT_RATIO: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteLimits {
    pub(crate) gateway: usize,
    pub(crate) account: usize,
    pub(crate) address: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteLimit {
    Account,
    Address,
    Gateway,
}

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
    /// A hash, because only equality counts.
    account: Option<u64>,
    address: Option<ClientNet>,
    bytes: usize,
    progressed_at: Instant,
    since_progress: usize,
    cut: Arc<Cut>,
}

#[derive(Default)]
struct Cut {
    limit: OnceLock<ByteLimit>,
    notify: Notify,
    /// The connection to close, for an answer whose client may never take another byte.
    handle: OnceLock<ConnectionHandle>,
}

/// The bytes that one request holds; released when it is dropped.
pub(crate) struct Hold {
    bytes: Arc<BytesInFlight>,
    id: u64,
    cut: Arc<Cut>,
}

impl ByteLimits {
    /// Each account and each address gets a quarter, so that it takes four of them to use up the gateway's limit.
    pub(crate) fn of(gateway: usize) -> Self {
        Self { gateway, account: gateway / 4, address: gateway / 4 }
    }
}

impl BytesInFlight {
    pub(crate) fn new(limits: ByteLimits) -> Arc<Self> {
        Arc::new(Self { limits, hasher: RandomState::new(), table: Mutex::default() })
    }

    /// A hash that stands for an account where only equality counts; never 0.
    pub(crate) fn key_of(&self, account: &AccountId) -> u64 {
        self.hasher.hash_one(account).max(1)
    }

    pub(crate) fn begin(
        self: &Arc<Self>,
        account: Option<&AccountId>,
        address: Option<ClientNet>,
        now: Instant,
    ) -> Hold {
        let account = account.map(|account| self.key_of(account));
        let cut = Arc::<Cut>::default();
        let holder =
            Holder { account, address, bytes: 0, progressed_at: now, since_progress: 0, cut: Arc::clone(&cut) };
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        table.holders.insert(id, holder);
        Hold { bytes: Arc::clone(self), id, cut }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exceeded(&self, table: &Table, holder: &Holder, more: usize) -> Option<ByteLimit> {
        let of_account = holder.account.and_then(|account| table.accounts.get(&account)).unwrap_or(&0);
        let of_address = holder.address.and_then(|address| table.addresses.get(&address)).unwrap_or(&0);
        if of_account + more > self.limits.account && holder.account.is_some() {
            Some(ByteLimit::Account)
        } else if of_address + more > self.limits.address && holder.address.is_some() {
            Some(ByteLimit::Address)
        } else {
            (table.gateway + more > self.limits.gateway).then_some(ByteLimit::Gateway)
        }
    }
}

impl Table {
    /// The hold to cut so that `own_id` can hold `wanted` bytes: the one with the greatest product of bytes and time
    /// without progress, else the largest. None means that `own_id` itself is cut.
    fn victim(&self, own_id: u64, limit: ByteLimit, wanted: usize, now: Instant) -> Option<u64> {
        let own = self.holders.get(&own_id)?;
        let beside = |other: &Holder| match limit {
            ByteLimit::Account => other.account == own.account,
            ByteLimit::Address => other.address == own.address,
            ByteLimit::Gateway => true,
        };
        let others = || self.holders.iter().filter(|(id, other)| **id != own_id && other.bytes > 0 && beside(other));
        let stall = |holder: &Holder| now.saturating_duration_since(holder.progressed_at);
        let stalled = others().filter(|(_, other)| stall(other) >= STALLED_AFTER && stall(other) >= stall(own));
        let longest = stalled.max_by_key(|(_, other)| stall(other).as_millis().saturating_mul(other.bytes as u128));
        let largest = || others().max_by_key(|(_, other)| other.bytes).filter(|(_, o)| o.bytes / CUT_RATIO >= wanted);
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

    fn release(&mut self, id: u64, bytes: usize) {
        let Some(holder) = self.holders.get_mut(&id) else { return };
        let bytes = bytes.min(holder.bytes);
        holder.bytes -= bytes;
        self.gateway -= bytes;
        if let Some(account) = holder.account {
            subtract(&mut self.accounts, &account, bytes);
        }
        if let Some(address) = holder.address {
            subtract(&mut self.addresses, &address, bytes);
        }
    }

    fn end(&mut self, id: u64) -> Option<Holder> {
        self.release(id, usize::MAX);
        self.holders.remove(&id)
    }
}

/// Removes entries that reach zero, so that the table stays as small as the traffic.
pub(crate) fn subtract<K: Hash + Eq>(used: &mut HashMap<K, usize>, key: &K, bytes: usize) {
    if let Some(left) = used.get_mut(key) {
        *left -= bytes.min(*left);
        if *left == 0 {
            used.remove(key);
        }
    }
}

impl Cut {
    fn set(&self, limit: ByteLimit) {
        let _ = self.limit.set(limit);
        self.notify.notify_one();
        if let Some(handle) = self.handle.get() {
            handle.evict();
        }
    }
}

impl Hold {
    /// Closes the connection, too, when the hold is cut.
    pub(crate) fn close_when_cut(&self, handle: ConnectionHandle) {
        let _ = self.cut.handle.set(handle);
    }

    /// Adds `more` bytes. On an error the hold has ended and its bytes are released.
    pub(crate) fn grow(&self, more: usize, now: Instant) -> Result<(), ByteLimit> {
        let mut table = self.bytes.lock();
        loop {
            let Some(holder) = table.holders.get(&self.id) else {
                return Err(self.cut.limit.get().copied().unwrap_or(ByteLimit::Gateway));
            };
            let Some(limit) = self.bytes.exceeded(&table, holder, more) else {
                table.add(self.id, more);
                return Ok(());
            };
            let victim = table.victim(self.id, limit, holder.bytes + more, now);
            if let Some(holder) = table.end(victim.unwrap_or(self.id)) {
                holder.cut.set(limit);
            }
        }
    }

    /// Releases some bytes before the request ends.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.bytes.lock().release(self.id, bytes);
    }

    pub(crate) fn progressed(&self, bytes: usize, now: Instant) {
        if let Some(holder) = self.bytes.lock().holders.get_mut(&self.id) {
            holder.since_progress += bytes;
            if holder.since_progress >= STALL_RESET_BYTES {
                holder.since_progress = 0;
                holder.progressed_at = now;
            }
        }
    }

    /// Resolves when this hold was cut for another.
    pub(crate) async fn cut(&self) -> ByteLimit {
        loop {
            if let Some(limit) = self.cut.limit.get() {
                return *limit;
            }
            self.cut.notify.notified().await;
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.limit.get().is_some()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.bytes.lock().end(self.id);
    }
}

#[cfg(test)]
mod tests;
