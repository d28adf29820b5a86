//! What services communicate through: *Requests* (typed request/reply with a deadline), *Notices* (publish/subscribe to
//! every process), the *Decision log* and the *State store*. Each has a NATS and an embedded implementation, and one
//! behavioural suite runs on both. Does not know what a message means.
//!
//! INVARIANT: a request gets one reply or one error within its deadline. No responder, a timeout and a lost connection
//! are three different errors; a caller fails closed on each.

pub mod clock;
pub mod embedded;
mod layers;
mod liveness;
mod log;
mod metrics;
pub mod nats;
mod notices;
mod requests;
#[cfg(feature = "simulation")]
pub mod sim;
mod state_store;
mod store_clock;
#[cfg(feature = "testing")]
pub mod testing;
mod wait_reason;

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use layers::{DecisionLogLayer, StateStoreLayer};
pub use liveness::{ECHO_INTERVAL, Liveness};
pub use log::{
    AppendError, Batch, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, Position, ReadError, Seek,
    SeekBack,
};
pub use notices::{Event, Notices, PublishError, RawSubscription, Subscription};
pub use requests::{
    Content, IncomingRequest, LocalRequests, NotReady, NotTaken, RawRequest, Replier, Reply, RequestError,
    RequestQueue, RequestStream, Requests, Responder, ServeError, SharedValue, Unparsed, UnparsedRequest,
    parse_request,
};
pub use state_store::{Added, ListError, MAX_CONCURRENT_LISTS, PutError, Record, RecordPage, Revision, StateStore};
pub use store_clock::{
    CLOCK_READ_INTERVAL, CLOCK_READING_TTL, ClockError, MAX_STORE_CLOCK_SKEW, StoreClock, follow_store_clock,
};
pub use wait_reason::WaitReason;

/// The largest request, reply, notice, batch or record on every backplane. A check's body may be 1,000,000 bytes and
/// grows when it is serialised again. A NATS server needs a larger `max_payload` (8 MB); one with a smaller
/// `max_payload` lowers the limit for its clients.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// A boxed future, which keeps the traits object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The connection of one process, or of one worker thread, to the other services.
#[derive(Clone)]
pub struct Backplane {
    /// Sends requests and serves them.
    pub requests: Arc<dyn Requests>,
    /// Publishes notices and subscribes to them.
    pub notices: Arc<dyn Notices>,
    /// The append-only log of decisions.
    pub log: Arc<dyn DecisionLog>,
    /// Small shared records that change by compare-and-set.
    pub state_store: Arc<dyn StateStore>,
}

/// What made a connection or a store fail: an error with sources of its own, or a text.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Of an error or a text.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into().into())
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl Eq for Cause {}

/// Uniform between 0 and 1, to spread delays; 0.5 where the system has no randomness.
pub fn random_fraction() -> f64 {
    #[cfg(feature = "simulation")]
    if let Some(drawn) = sim::fraction() {
        return drawn;
    }
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}

/// None: the system gives no random bytes.
fn random<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).ok().map(|()| bytes)
}
