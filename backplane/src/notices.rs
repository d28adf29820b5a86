//! *Notices*: events that every process hears, at most once, in no promised order.
//!
//! A listener that may have missed something is told so ([`Event::Gap`]) and empties what it cached: after a reconnect, when it
//! fell behind, when in doubt. Expiry of caches is the second net, never the first. Whoever cannot afford to miss one
//! without knowing lets its listeners prove that notices still arrive ([`Liveness`]).

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;

use crate::{BoxFuture, Liveness};
use stage0_contract::Notice;

/// Fan-out between services.
pub trait Notices: Send + Sync {
    /// Tells everybody who listens now. `Ok` means handed to the backplane, not heard.
    fn tell_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), TellError>>;

    /// Waits until the backplane has all that was told on this connection before. Without it, what was told is lost when
    /// the connection breaks in that moment, although the teller goes on by the next one.
    fn settle(&self) -> BoxFuture<'_, Result<(), TellError>>;

    /// Hears every notice of a subject from now on.
    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, crate::ServeError>>;
}

/// What one listener hears.
pub trait Hearing: Send {
    /// The next notice, or `Gap` when some may have been missed; `None` once the backplane is closed.
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>>;

    /// From now on, proves to `liveness` that notices arrive here, for as long as `next` is called. Listeners of one
    /// process that share one `liveness` take turns.
    fn prove(&mut self, liveness: Arc<Liveness>);
}

/// Something heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<N> {
    /// A notice.
    Heard(N),
    /// Notices may have been missed: forget what was cached.
    Gap,
}

/// A notice was not handed over: what it says must be told again or expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the notice could not be told")]
pub struct TellError;

impl dyn Notices + '_ {
    /// Tells a typed notice.
    pub async fn tell<N: Notice>(&self, notice: &N) -> Result<(), TellError> {
        let bytes = serde_json::to_vec(notice).map_err(|_| TellError)?;
        self.tell_bytes(N::SUBJECT, bytes.into()).await
    }

    /// Listens for a typed notice.
    pub async fn listen<N: Notice>(&self) -> Result<Listener<N>, crate::ServeError> {
        Ok(Listener { hearing: self.listen_bytes(N::SUBJECT).await?, message: PhantomData })
    }
}

/// Typed notices of one kind.
pub struct Listener<N> {
    hearing: Box<dyn Hearing>,
    message: PhantomData<fn() -> N>,
}

impl<N: Notice> Listener<N> {
    /// The same listener, which proves from now on that notices arrive (see [`Hearing::prove`]).
    #[must_use]
    pub fn proving(mut self, liveness: &Arc<Liveness>) -> Self {
        self.hearing.prove(Arc::clone(liveness));
        self
    }

    /// The next event. A notice that cannot be read is a gap.
    pub async fn next(&mut self) -> Option<Event<N>> {
        Some(match self.hearing.next().await? {
            Event::Gap => Event::Gap,
            Event::Heard(bytes) => serde_json::from_slice(&bytes).map_or(Event::Gap, Event::Heard),
        })
    }
}
