//! What services plug into: *Requests* (typed request-reply with a deadline), *Notices* (fan-out to every process), the *Decision
//! log* and the *Ledger*, each with a NATS and an embedded implementation and one behavioural suite that runs on both.
//!
//! Owns subjects' prefixes, framing, deadlines, connection state and the order of draining. Refuses to know what a message means:
//! no decisions, no keys, no HTTP.
//! INVARIANT: a question gets one answer or one error within its deadline. No responder, a late reply and a lost connection are
//! three different errors; a caller fails closed on each.

pub mod clock;
pub mod embedded;
mod ledger;
mod liveness;
mod log;
mod metrics;
pub mod nats;
mod notices;
mod requests;
mod secret_file;
mod store_clock;
#[cfg(feature = "testing")]
pub mod testing;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use ledger::{Added, Ledger, ListError, Listed, MAX_LISTS, PutError, Record, Revision};
pub use liveness::{ECHO_INTERVAL, Liveness};
pub use log::{
    AppendError, Batch, Chunk, DecisionLog, Entry, Kind, MarkError, Position, ReadError, Seek, SeekBack, Which,
};
pub use notices::{Event, Hearing, Listener, Notices, TellError};
pub use requests::{
    AskError, Asked, Inbox, NotReady, Pending, Question, Replier, Requests, ServeError, Served, Unread, read_question,
};
pub use secret_file::{Exposed, check_secret_file};
pub use store_clock::{
    CLOCK_READ_INTERVAL, ClockError, MAX_FRESH_CLOCK, MAX_STORE_CLOCK_SKEW, StoreClock, follow_store_clock,
};

/// The largest question, answer, notice, batch or record, on every backplane: a check's body may be 1,000,000 bytes and grows when it is written
/// as JSON again. A NATS server needs a `max_payload` above it (8 MB); a server that carries less lowers the bound for its clients.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// A future behind a pointer, so that the capabilities are object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One process's (or one worker thread's) connection to the others.
#[derive(Clone)]
pub struct Backplane {
    /// Questions.
    pub requests: Arc<dyn Requests>,
    /// Events.
    pub notices: Arc<dyn Notices>,
    /// Decisions, for good.
    pub log: Arc<dyn DecisionLog>,
    /// Small shared records.
    pub ledger: Arc<dyn Ledger>,
}
