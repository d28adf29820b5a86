//! What guards beside an agent share: which effects a tool call has, how each agent asks, and how it is answered.
//!
//! The path of one call: bytes of an event → [`read`] → [`Event::Call`] → [`ask::body`] → a check → [`Decision`] →
//! [`answer`]. Pure: it reads no file, no clock and no environment, and asks no server.
//! INVARIANT: what it cannot read is asked about as high risk or refused, and never left out. Only
//! [`Decision::Allow`] lets a tool run.

pub mod ask;
pub mod table;

mod agents;
mod decision;
mod effects;
mod event;
mod path;
mod shell;

pub use agents::{Agent, Answer, UnknownAgent, answer, read};
pub use ask::{MUST_DENY_TOOL, Options};
pub use decision::Decision;
pub use event::{Ended, Event, MAX_EVENT_BYTES, Status, ToolCall, Unreadable};
pub use shell::{Reading, classify};
pub use table::{NamedEffect, Table, TableError};
