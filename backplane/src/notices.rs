//! *Notices*: events that every subscribed process receives, at most once, in no guaranteed order.
//!
//! A subscriber that may have missed one receives [`Event::Gap`] and empties its caches: after a reconnect, when it
//! fell behind, or in doubt. The TTLs of caches are only the second line of defence. A service that must know when it
//! misses one lets its subscribers prove that notices still arrive ([`Liveness`]).

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;

use crate::{BoxFuture, Liveness};
use stage0_contract::Notice;

/// Publish/subscribe between services.
pub trait Notices: Send + Sync {
    /// Publishes to all current subscribers. `Ok` means handed to the backplane, not received.
    fn publish_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), PublishError>>;

    /// Waits until the backplane has everything published on this connection so far. Without it, a notice is lost when
    /// the connection breaks at that moment, although its publisher goes on over the next one.
    fn flush(&self) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Subscribes to every notice of a subject from now on.
    fn subscribe_bytes<'a>(
        &'a self,
        subject: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn RawSubscription>, crate::ServeError>>;
}

/// The notices of one subscription.
pub trait RawSubscription: Send {
    /// The next notice, or `Gap` if some may have been missed; `None` once the backplane is closed.
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>>;

    /// From now on, proves to `liveness` that notices arrive here, for as long as `next` is called. Subscribers of one
    /// process that share one `liveness` take turns.
    fn prove(&mut self, liveness: Arc<Liveness>);
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<N> {
    /// A notice.
    Message(N),
    /// Notices may have been missed: empty the caches.
    Gap,
}

/// A notice was not handed over: its content must be published again or expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the notice could not be told")]
pub struct PublishError;

impl dyn Notices + '_ {
    /// Publishes a typed notice.
    pub async fn publish<N: Notice>(&self, notice: &N) -> Result<(), PublishError> {
        let bytes = serde_json::to_vec(notice).map_err(|_| PublishError)?;
        self.publish_bytes(N::SUBJECT, bytes.into()).await
    }

    /// Subscribes to a type of notice.
    pub async fn subscribe<N: Notice>(&self) -> Result<Subscription<N>, crate::ServeError> {
        Ok(Subscription { inner: self.subscribe_bytes(N::SUBJECT).await?, message: PhantomData })
    }
}

/// A typed subscription.
pub struct Subscription<N> {
    inner: Box<dyn RawSubscription>,
    message: PhantomData<fn() -> N>,
}

impl<N: Notice> Subscription<N> {
    /// The same subscription, which from now on proves that notices arrive (see [`RawSubscription::prove`]).
    #[must_use]
    pub fn proving(mut self, liveness: &Arc<Liveness>) -> Self {
        self.inner.prove(Arc::clone(liveness));
        self
    }

    /// The next event. A notice that cannot be parsed is a gap.
    pub async fn next(&mut self) -> Option<Event<N>> {
        Some(match self.inner.next().await? {
            Event::Gap => Event::Gap,
            Event::Message(bytes) => serde_json::from_slice(&bytes).map_or(Event::Gap, Event::Message),
        })
    }
}
