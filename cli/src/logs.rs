//! The log of a role: standard error, as JSON for programs or as text for people.
//!
//! Owns format and filter only. Fields are named where they are logged; no layer here sees a body, a key or a goal.

use std::io;

use tracing_subscriber::EnvFilter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(logs.filter).with_writer(io::stderr);
    match logs.format {
        Format::Text => builder.with_ansi(out::stderr_is_terminal()).init(),
        Format::Json => builder.json().flatten_event(true).with_span_list(false).with_current_span(true).init(),
    }
}
