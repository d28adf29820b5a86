//! Open connections, all of them and for each address.
//!
//! Owns the count, shared by all workers: a connection counts from its place until its stream is dropped, however it ends. The
//! peer counts and not what a request's header says, as there is no request yet; proxies that are trusted, and balancers for themselves,
//! have no limit. Memory is bounded by what is open: an address without a connection is not in the table.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use actix_web::rt::net::{ActixStream, Ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::address::{ClientNet, TrustedProxies};
use crate::metrics;
use crate::proxy_protocol::Peer;

/// The table.
pub(crate) struct Connections {
    /// None: no limit.
    most: Option<NonZeroU32>,
    trusted: TrustedProxies,
    open: Mutex<HashMap<ClientNet, u32>>,
}

/// Gives its place back when it is dropped.
struct Place {
    connections: Arc<Connections>,
    /// None where there is no limit.
    client: Option<ClientNet>,
}

/// A stream that has its place.
pub(crate) struct Counted<S> {
    stream: S,
    peer: Option<Peer>,
    _place: Place,
}

impl Connections {
    pub(crate) fn new(most: Option<NonZeroU32>, trusted: TrustedProxies) -> Self {
        Self { most, trusted, open: Mutex::default() }
    }

    /// Counts a connection; gives none when its address has too many, and closes it by that.
    pub(crate) fn admit<S>(self: &Arc<Self>, stream: S, peer: Option<Peer>) -> Option<Counted<S>> {
        let client = match self.most.zip(self.limited(peer)) {
            None => None,
            Some((most, client)) => {
                let mut open = self.open();
                let count = open.entry(client).or_insert(0);
                if *count >= most.get() {
                    return None;
                }
                *count += 1;
                Some(client)
            }
        };
        metrics::connection_opened();
        Some(Counted { stream, peer, _place: Place { connections: Arc::clone(self), client } })
    }

    fn limited(&self, peer: Option<Peer>) -> Option<ClientNet> {
        match peer? {
            Peer::Client(client) => (!self.trusted.trusts(client.ip())).then(|| ClientNet::of(client.ip())),
            Peer::Balancer(_) => None,
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ClientNet, u32>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::connection_closed();
        let Some(client) = self.client else { return };
        let mut open = self.connections.open();
        if let Some(count) = open.get_mut(&client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&client);
            }
        }
    }
}

impl<S> Counted<S> {
    /// Who is at the other end; unknown where the system cannot tell.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(Peer::address)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
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
mod tests {
    use super::*;

    fn connections(most: u32) -> Arc<Connections> {
        let trusted = TrustedProxies::parse(&["10.0.0.0/8".to_owned()]).unwrap();
        Arc::new(Connections::new(NonZeroU32::new(most), trusted))
    }

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 4711)
    }

    fn peer(text: &str) -> Option<Peer> {
        Some(Peer::Client(at(text)))
    }

    #[test]
    fn one_more_than_the_limit_is_closed_and_a_place_comes_back() {
        let connections = connections(2);
        let first = connections.admit((), peer("192.0.2.1"));
        let second = connections.admit((), peer("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(connections.admit((), peer("192.0.2.1")).is_none());
        assert!(connections.admit((), peer("192.0.2.2")).is_some(), "another address");
        drop(first);
        let third = connections.admit((), peer("192.0.2.1"));
        assert!(third.is_some() && connections.admit((), peer("192.0.2.1")).is_none());
        drop((second, third));
        assert!(connections.open().is_empty(), "nobody is remembered who is gone");
    }

    #[test]
    fn trusted_proxies_and_a_limit_of_none_hold_what_they_like() {
        for (most, address) in [(1, "10.0.0.1"), (0, "192.0.2.1")] {
            let connections = connections(most);
            let held: Vec<_> = (0..10).map(|_| connections.admit((), peer(address))).collect();
            assert!(held.iter().all(Option::is_some), "{address}");
            assert!(connections.open().is_empty());
        }
    }

    #[test]
    fn a_balancer_has_no_limit_for_itself_and_each_of_its_clients_has() {
        let connections = connections(1);
        let balancer = Some(Peer::Balancer(at("192.0.2.1")));
        let held: Vec<_> = (0..10).map(|_| connections.admit((), balancer)).collect();
        assert!(held.iter().all(Option::is_some));
        let client = connections.admit((), peer("198.51.100.7")).unwrap();
        assert_eq!(client.peer(), Some(at("198.51.100.7")));
        assert!(connections.admit((), peer("198.51.100.7")).is_none());
        assert!(connections.admit((), peer("198.51.100.8")).is_some());
    }
}
