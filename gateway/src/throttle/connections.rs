//! Open connections, all of them and for each address.
//!
//! A connection counts until its stream is dropped or it is evicted. It counts for its peer, not for the address in a
//! request's header, because there is no request yet. Trusted proxies, and balancers that connect for themselves, have
//! no limit per address and are not evicted.
//! INVARIANT: there are never more than `total`. Where one more would exceed a limit, a connection that waits for its
//! client is evicted ([`Group::victim`] chooses it), so that a flood displaces only its own
//! connections. If none can be evicted, the new connection is closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::rt::net::{ActixStream, Ready, TcpStream};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::address::{ClientNet, TrustedProxies};
use crate::metrics::{self, Throttle};
use crate::proxy_protocol::Peer;

/// A handshake has about 2 KiB; TLS would buffer 64 KiB of one that never ends. Its last read may include the first
/// record of the first request, which has up to 16 KiB.
const MAX_HANDSHAKE_BYTES: usize = 40 << 10;
/// A connection that has shown no valid key by this age is evicted before others.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Groups, and unauthenticated connections, that are examined for one new connection.
const MAX_CANDIDATES: usize = 64;

pub(crate) struct Connections {
    per_address: Option<NonZeroU32>,
    total: usize,
    trusted: TrustedProxies,
    epoch: Instant,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    next: u64,
    groups: HashMap<ClientNet, Group>,
    sizes: BTreeSet<(usize, ClientNet)>,
    unauthenticated: BTreeMap<u64, ClientNet>,
}

/// The connections of one address, the oldest first.
#[derive(Default)]
struct Group(BTreeMap<u64, Arc<Slot>>);

/// Removes the connection from the table when it is dropped.
struct ConnectionPermit(ConnectionHandle);

/// Lets a connection's requests update its entry in the table.
#[derive(Clone)]
pub(crate) struct ConnectionHandle {
    connections: Arc<Connections>,
    id: u64,
    /// None for proxies and balancers.
    client: Option<ClientNet>,
    slot: Arc<Slot>,
}

/// A stream that is counted in the table and fails once it is evicted.
pub(crate) struct CountedStream<S> {
    stream: S,
    peer: Option<Peer>,
    permit: ConnectionPermit,
    /// Bytes that the client may still send in the handshake; none once it is complete.
    handshake: Option<usize>,
}

impl Connections {
    pub(crate) fn new(per_address: Option<NonZeroU32>, total: usize, trusted: TrustedProxies) -> Self {
        Self { per_address, total: total.max(1), trusted, epoch: Instant::now(), open: Mutex::default() }
    }

    /// Counts a connection. Returns none, which closes it, when a limit is reached and no other can be evicted.
    pub(crate) fn admit<S>(self: &Arc<Self>, stream: S, peer: Option<Peer>, now: Instant) -> Option<CountedStream<S>> {
        let client = self.limited(peer);
        let slot = Arc::new(Slot::new(self.epoch, now));
        let id = self.open().enter(client, &slot, self.per_address, self.total, now)?;
        metrics::connection_opened();
        let permit = ConnectionPermit(ConnectionHandle { connections: Arc::clone(self), id, client, slot });
        Some(CountedStream { stream, peer, permit, handshake: Some(MAX_HANDSHAKE_BYTES) })
    }

    fn limited(&self, peer: Option<Peer>) -> Option<ClientNet> {
        match peer? {
            Peer::Client(client) => (!self.trusted.trusts(client.ip())).then(|| ClientNet::of(client.ip())),
            Peer::Balancer(_) => None,
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Adds a connection and returns its id, or none if there is no room for it.
    fn enter(
        &mut self,
        client: Option<ClientNet>,
        slot: &Arc<Slot>,
        per_address: Option<NonZeroU32>,
        total: usize,
        now: Instant,
    ) -> Option<u64> {
        if let Some((most, client)) = per_address.zip(client)
            && let Some(group) = self.groups.get(&client)
            && group.0.len() >= usize::try_from(most.get()).unwrap_or(usize::MAX)
        {
            let victim = group.victim(now)?;
            self.evict(victim, client);
        }
        if self.total >= total {
            let (victim, address) = self.victim(now)?;
            self.evict(victim, address);
        }
        let id = self.next;
        self.next += 1;
        self.total += 1;
        if let Some(client) = client {
            self.unauthenticated.insert(id, client);
            let group = self.groups.entry(client).or_default();
            let size = group.0.len();
            group.0.insert(id, Arc::clone(slot));
            self.sizes.remove(&(size, client));
            self.sizes.insert((size + 1, client));
        }
        Some(id)
    }

    /// The connection to evict for one of another address: one that stays unauthenticated, else one of the address that
    /// has the most.
    fn victim(&self, now: Instant) -> Option<(u64, ClientNet)> {
        let evictable = |id: u64, client: ClientNet| {
            let slot = self.groups.get(&client)?.0.get(&id)?;
            (slot.waits_for_client() && slot.age(now) >= AUTHENTICATION_TIMEOUT).then_some((id, client))
        };
        let unauthenticated = self.unauthenticated.iter().take(MAX_CANDIDATES);
        let unauthenticated = unauthenticated.filter_map(|(id, client)| evictable(*id, *client)).next();
        let largest = || {
            let groups = self.sizes.iter().rev().take(MAX_CANDIDATES);
            groups.filter_map(|(_, client)| Some((self.groups.get(client)?.victim(now)?, *client))).next()
        };
        unauthenticated.or_else(largest)
    }

    fn evict(&mut self, id: u64, client: ClientNet) {
        if let Some(slot) = self.remove(id, Some(client)) {
            metrics::throttled(Throttle::Evicted);
            slot.evict();
        }
    }

    /// Does nothing if the connection was removed before.
    fn remove(&mut self, id: u64, client: Option<ClientNet>) -> Option<Arc<Slot>> {
        let Some(client) = client else {
            self.total -= 1;
            return None;
        };
        let group = self.groups.get_mut(&client)?;
        let size = group.0.len();
        let slot = group.0.remove(&id)?;
        self.total -= 1;
        self.unauthenticated.remove(&id);
        self.sizes.remove(&(size, client));
        if size > 1 {
            self.sizes.insert((size - 1, client));
        } else {
            self.groups.remove(&client);
        }
        Some(slot)
    }
}

impl Group {
    /// Of the connections that wait for their client: the oldest that is past [`AUTHENTICATION_TIMEOUT`]; else the
    /// least recently used one of the account with the most connections; else, if there are more young unauthenticated
    /// ones than of any account, the oldest of those.
    fn victim(&self, now: Instant) -> Option<u64> {
        let waiting = || self.0.iter().filter(|(_, slot)| slot.waits_for_client());
        let expired = waiting().find(|(_, slot)| slot.account().is_none() && slot.age(now) >= AUTHENTICATION_TIMEOUT);
        if let Some((id, _)) = expired {
            return Some(*id);
        }
        let mut accounts: HashMap<u64, (usize, u64, u64)> = HashMap::new();
        let (mut unauthenticated, mut oldest) = (0, None);
        for (id, slot) in waiting() {
            let Some(account) = slot.account() else {
                unauthenticated += 1;
                oldest = oldest.or(Some(*id));
                continue;
            };
            let used = slot.used.load(Ordering::Relaxed);
            let entry = accounts.entry(account).or_insert((0, used, *id));
            entry.0 += 1;
            if used < entry.1 {
                (entry.1, entry.2) = (used, *id);
            }
        }
        let largest = accounts.values().max_by_key(|(count, ..)| *count).filter(|(count, ..)| *count > unauthenticated);
        largest.map(|(.., id)| *id).or(oldest)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        metrics::connection_closed();
        self.0.connections.open().remove(self.0.id, self.0.client);
    }
}

impl ConnectionHandle {
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(crate) fn evict(&self) {
        // A trusted proxy's connection leaves the table when its stream is dropped.
        if let Some(client) = self.client {
            self.connections.open().evict(self.id, client);
        }
        self.slot.evict();
    }

    /// Called when a valid key of this account (as a hash) was shown.
    pub(crate) fn set_account(&self, account: u64) {
        if self.slot.set_account(account) {
            self.connections.open().unauthenticated.remove(&self.id);
        }
    }
}

impl<S> CountedStream<S> {
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(Peer::address)
    }

    pub(crate) fn handle(&self) -> ConnectionHandle {
        self.permit.0.clone()
    }

    /// The TLS handshake is complete: from now on `idle_timeout` bounds what is read.
    pub(crate) fn established(&mut self) {
        self.handshake = None;
    }

    fn stream(self: Pin<&mut Self>, context: &Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        let this = self.get_mut();
        this.permit.0.slot.check(context)?;
        Ok(Pin::new(&mut this.stream))
    }
}

impl CountedStream<TcpStream> {
    /// Peeks at the first byte; none if the client closed without sending one.
    pub(crate) async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let count = poll_fn(|context| {
            self.permit.0.slot.check(context)?;
            self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte))
        })
        .await?;
        Ok((count > 0).then_some(byte).map(|[first]| first))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.as_mut().stream(context)?.poll_read(context, buffer);
        if let Some(left) = &mut self.handshake {
            let Some(less) = left.checked_sub(buffer.filled().len() - before) else {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            };
            *left = less;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: ActixStream> ActixStream for CountedStream<S> {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_read_ready(context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_write_ready(context)
    }
}

/// What a connection's worker writes and other workers read. "Serving" means that it does not wait for its client.
pub(crate) struct Slot {
    /// The table's, so that times of different connections compare.
    epoch: Instant,
    began: Instant,
    /// When the connection last began to wait for its client, in milliseconds after `epoch`.
    used: AtomicU64,
    serving: AtomicBool,
    /// 0 until a valid key was shown.
    account: AtomicU64,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

impl Slot {
    fn new(epoch: Instant, now: Instant) -> Self {
        Self {
            epoch,
            began: now,
            used: AtomicU64::new(millis(epoch, now)),
            serving: AtomicBool::new(false),
            account: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    pub(crate) fn mark_serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn mark_waiting(&self, now: Instant) {
        self.used.store(millis(self.epoch, now), Ordering::Relaxed);
        self.serving.store(false, Ordering::Relaxed);
    }

    fn waits_for_client(&self) -> bool {
        !self.serving.load(Ordering::Relaxed)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn account(&self) -> Option<u64> {
        Some(self.account.load(Ordering::Relaxed)).filter(|account| *account != 0)
    }

    /// Returns whether it is the connection's first.
    fn set_account(&self, account: u64) -> bool {
        self.account.load(Ordering::Relaxed) != account && self.account.swap(account.max(1), Ordering::Relaxed) == 0
    }

    /// Wakes the connection's task; its stream fails when it is polled.
    fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Fails once the connection is evicted. Registers the task to be woken for that.
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.waker.register(context.waker());
        if self.is_evicted() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

fn millis(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
