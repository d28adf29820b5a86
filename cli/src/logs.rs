//! The log of a role: standard error, as JSON for programs or as text for people.
//!
//! Owns format and filter, and what is said of a panic. Fields are named where they are logged; INVARIANT: no body, key or goal
//! reaches the log at any level.

use std::io;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::out;

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// Reads the setting.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `text` or `json`".to_owned()),
        }
    }
}

/// What is logged, and how.
#[derive(Debug)]
pub(crate) struct Logs {
    pub(crate) filter: EnvFilter,
    pub(crate) format: Format,
}

/// Reads the filter; its own error would quote it.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    let why = "must be a level (error, warn, info, debug, trace) or directives such as `info,stage0_gateway=debug`";
    EnvFilter::builder().parse(text).map_err(|_| why.to_owned())
}

/// Starts logging; once per process.
pub(crate) fn start(logs: Logs) {
    // INVARIANT: below `info` only our own crates speak, whatever the filter says: a client library at `trace` writes whole
    // messages, and with them keys and goals.
    let discreet = filter_fn(|about| *about.level() <= Level::INFO || about.target().starts_with("stage0"));
    let filter = logs.filter.and(discreet);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match logs.format {
        Format::Text => layer.with_ansi(out::stderr_is_terminal()).boxed(),
        Format::Json => layer.json().flatten_event(true).with_span_list(false).with_current_span(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    // The usual hook prints the panic's message, which may quote what was being worked on.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}
