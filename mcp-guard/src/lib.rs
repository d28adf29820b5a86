//! The guard between an MCP client and an MCP server: each tool call is decided before the server sees it.
//!
//! `guard` decides what happens to a message, whatever carried it; `stdio` and `http` carry them; `ask` asks the Stage0
//! server; `pins` keeps what each server's tools looked like when they were first seen.
//! INVARIANT: what is passed on is passed on byte for byte, and a tool call only after a complete, recorded ALLOW. If
//! anything fails, the tool does not run, and the client reads why.

mod answer;
mod ask;
#[doc(hidden)]
pub mod fuzz_support;
mod guard;
mod headers;
mod heartbeat;
mod http;
mod instance;
mod json;
mod lines;
mod message;
mod method;
mod outcome;
mod pending;
mod pins;
mod refused;
mod sealed;
mod stdio;
mod tools;
mod version;

pub use ask::{Asker, KIND};
pub use guard::{Guard, GuardError};
pub use heartbeat::Reporter;
pub use http::{HttpError, HttpGuard, Listen};
pub use message::{MAX_REQUEST_BYTES, MAX_RESULT_BYTES};
pub use pins::{Changed, Compared, MAX_TOOLS, Pin, Pins, PinsError, ServerPins};
pub use stdio::{Command, StdioError, run as run_stdio};
