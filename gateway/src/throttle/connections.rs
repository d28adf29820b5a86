//! Open connections, all of them and for each address.
//!
//! Owns the table, shared by all workers: a connection counts from its place until its stream is dropped or it is
//! evicted. The peer counts and not what a request's header says, as there is no request yet; proxies that are trusted,
//! and balancers for themselves, have no limit and are not evicted.
//! INVARIANT: there are never more than `total`. Where one more would exceed a limit, one that waits for its client
//! gives way (`slot` says which states these are, [`Group::victim`] which one), so that a flood takes nobody's place
//! but its own; whoever finds none to evict is closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::rt::net::{ActixStream, Ready, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::slot::Slot;
use crate::address::{ClientNet, TrustedProxies};
use crate::metrics::{self, Throttle};
use crate::proxy_protocol::Peer;

/// A handshake without client certificates takes some 2 KiB of the client's bytes; TLS would buffer 64 KiB of one that
/// never ends. What is read before it is known to be done may hold the first record of the first request too, which has
/// up to 16 KiB.
const MAX_HANDSHAKE_BYTES: usize = 40 << 10;
/// A connection that has shown no key within this time is not about to.
const STRANGER_GRACE: Duration = Duration::from_secs(2);
/// Groups and strangers that are looked at for one new connection.
const MAX_LOOKED_AT: usize = 64;

/// The table.
pub(crate) struct Connections {
    /// None: no limit.
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
    /// The same groups by their size.
    sizes: BTreeSet<(usize, ClientNet)>,
    /// Those that have shown no key, the oldest first.
    strangers: BTreeMap<u64, ClientNet>,
}

/// The connections of one address, the oldest first.
#[derive(Default)]
struct Group(BTreeMap<u64, Arc<Slot>>);

/// Gives its place back when it is dropped.
struct Place {
    connections: Arc<Connections>,
    id: u64,
    /// None for proxies and balancers.
    client: Option<ClientNet>,
    slot: Arc<Slot>,
}

/// What a connection tells the table about itself.
#[derive(Clone)]
pub(crate) struct Seat {
    connections: Arc<Connections>,
    id: u64,
    client: Option<ClientNet>,
    slot: Arc<Slot>,
}

/// A stream that has its place, until it is evicted.
pub(crate) struct Counted<S> {
    stream: S,
    peer: Option<Peer>,
    place: Place,
    /// Bytes that may still come before the handshake is done; none: it is.
    handshake: Option<usize>,
}

impl Connections {
    pub(crate) fn new(per_address: Option<NonZeroU32>, total: usize, trusted: TrustedProxies) -> Self {
        Self { per_address, total: total.max(1), trusted, epoch: Instant::now(), open: Mutex::default() }
    }

    /// Counts a connection; gives none, and closes it by that, when a limit is reached and nobody gives way.
    pub(crate) fn admit<S>(self: &Arc<Self>, stream: S, peer: Option<Peer>, now: Instant) -> Option<Counted<S>> {
        let client = self.limited(peer);
        let slot = Arc::new(Slot::new(self.epoch, now));
        let id = self.open().enter(client, &slot, self.per_address, self.total, now)?;
        metrics::connection_opened();
        let place = Place { connections: Arc::clone(self), id, client, slot };
        Some(Counted { stream, peer, place, handshake: Some(MAX_HANDSHAKE_BYTES) })
    }

    fn limited(&self, peer: Option<Peer>) -> Option<ClientNet> {
        match peer? {
            Peer::Client(client) => (!self.trusted.trusts(client.ip())).then(|| ClientNet::of(client.ip())),
            Peer::Balancer(_) => None,
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Each use is a few steps on maps that cannot panic between two of them.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The id of a connection that has found its place.
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
            self.strangers.insert(id, client);
            let group = self.groups.entry(client).or_default();
            let size = group.0.len();
            group.0.insert(id, Arc::clone(slot));
            self.sizes.remove(&(size, client));
            self.sizes.insert((size + 1, client));
        }
        Some(id)
    }

    /// Who gives way to a connection of another address: a stranger that stays one, else one of the address that has
    /// most.
    fn victim(&self, now: Instant) -> Option<(u64, ClientNet)> {
        let gives_way = |id: u64, client: ClientNet| {
            let slot = self.groups.get(&client)?.0.get(&id)?;
            (slot.waits_for_client() && slot.age(now) >= STRANGER_GRACE).then_some((id, client))
        };
        let strangers = self.strangers.iter().take(MAX_LOOKED_AT);
        let stranger = strangers.filter_map(|(id, client)| gives_way(*id, *client)).next();
        let largest = || {
            let groups = self.sizes.iter().rev().take(MAX_LOOKED_AT);
            groups.filter_map(|(_, client)| Some((self.groups.get(client)?.victim(now)?, *client))).next()
        };
        stranger.or_else(largest)
    }

    fn evict(&mut self, id: u64, client: ClientNet) {
        if let Some(slot) = self.remove(id, Some(client)) {
            metrics::throttled(Throttle::Evicted);
            slot.evict();
        }
    }

    /// Takes a connection out, if it is still in.
    fn remove(&mut self, id: u64, client: Option<ClientNet>) -> Option<Arc<Slot>> {
        let Some(client) = client else {
            self.total -= 1;
            return None;
        };
        let group = self.groups.get_mut(&client)?;
        let size = group.0.len();
        let slot = group.0.remove(&id)?;
        self.total -= 1;
        self.strangers.remove(&id);
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
    /// Of the connections that wait for their client: the oldest that has shown no key for a while; else, of the
    /// account with most connections, the one that was used least lately; else, where more have shown no key yet than
    /// any account has, the oldest of those.
    fn victim(&self, now: Instant) -> Option<u64> {
        let waiting = || self.0.iter().filter(|(_, slot)| slot.waits_for_client());
        let stranger = waiting().find(|(_, slot)| slot.account().is_none() && slot.age(now) >= STRANGER_GRACE);
        if let Some((id, _)) = stranger {
            return Some(*id);
        }
        let mut accounts: HashMap<u64, (usize, u64, u64)> = HashMap::new();
        let (mut strangers, mut oldest) = (0, None);
        for (id, slot) in waiting() {
            let Some(account) = slot.account() else {
                strangers += 1;
                oldest = oldest.or(Some(*id));
                continue;
            };
            let used = slot.used_at();
            let entry = accounts.entry(account).or_insert((0, used, *id));
            entry.0 += 1;
            if used < entry.1 {
                (entry.1, entry.2) = (used, *id);
            }
        }
        let largest = accounts.values().max_by_key(|(count, ..)| *count).filter(|(count, ..)| *count > strangers);
        largest.map(|(.., id)| *id).or(oldest)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::connection_closed();
        self.connections.open().remove(self.id, self.client);
    }
}

impl Seat {
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Ends the connection, whatever it does.
    pub(crate) fn evict(&self) {
        // A proxy's place comes back when its stream is dropped.
        if let Some(client) = self.client {
            self.connections.open().evict(self.id, client);
        }
        self.slot.evict();
    }

    /// A key of this account (as a hash) was shown and is valid.
    pub(crate) fn belongs_to(&self, account: u64) {
        if self.slot.belongs_to(account).is_none() {
            self.connections.open().strangers.remove(&self.id);
        }
    }
}

impl<S> Counted<S> {
    /// Who is at the other end; unknown where the system cannot tell.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(Peer::address)
    }

    pub(crate) fn seat(&self) -> Seat {
        let Place { connections, id, client, slot } = &self.place;
        Seat { connections: Arc::clone(connections), id: *id, client: *client, slot: Arc::clone(slot) }
    }

    /// TLS is there: what comes now is bounded elsewhere.
    pub(crate) fn established(&mut self) {
        self.handshake = None;
    }

    fn stream(self: Pin<&mut Self>, context: &Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        let this = self.get_mut();
        this.place.slot.check(context)?;
        Ok(Pin::new(&mut this.stream))
    }
}

impl Counted<TcpStream> {
    /// The first byte of the connection, which stays where it is; none: the client said nothing and is done.
    pub(crate) async fn first_byte(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let count = poll_fn(|context| {
            self.place.slot.check(context)?;
            self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte))
        })
        .await?;
        Ok((count > 0).then_some(byte).map(|[first]| first))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
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

impl<S: ActixStream> ActixStream for Counted<S> {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_read_ready(context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_write_ready(context)
    }
}

#[cfg(test)]
mod tests;
