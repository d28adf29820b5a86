//! The log of a role: standard error, as JSON for programs or as text for people.
//!
//! INVARIANT: no body, key or goal reaches the log at any level.

use std::io::{self, IsTerminal as _};

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::Kind;
use crate::settings::kinds::choice;

/// Libraries log their own failures and retries; ours say what matters of them.
const DEFAULT_FILTER: &str = "info,actix_server=warn,async_nats=off";

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for people, with colours on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

crate::settings! {
    /// What is logged, and how.
    #[derive(Debug)]
    pub struct LogSettings {
        /// What is logged: a level, or directives such as `info,stage0_gateway=debug`
        filter: String = "log" "FILTER" in "Logs", default(DEFAULT_FILTER.to_owned()), filter();
        /// `text` for people or `json` for programs, on standard error
        format: Format = "log-format" "FORMAT" in "Logs", default(Format::Json),
            choice(&[("text", Format::Text), ("json", Format::Json)]);
    }
}

/// The parser's own error would quote the directives.
fn filter() -> Kind<String> {
    let why = "must be a level (error, warn, info, debug, trace) or directives such as `info,stage0_gateway=debug`";
    let parse = move |text: &str| match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(why.to_owned()),
    };
    Kind::new(parse, String::clone)
}

/// Whether standard error is a terminal, so that a person reads the log.
pub fn is_on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Starts logging; once per process.
pub fn start(settings: LogSettings) {
    // INVARIANT: below `info` only our own crates log, whatever the filter says: a client library at `trace` writes
    // whole messages, and with them keys and goals.
    let discreet = filter_fn(|about| *about.level() <= Level::INFO || about.target().starts_with("stage0"));
    // `filter()` has accepted every directive, so none is lost.
    let filter = EnvFilter::builder().parse_lossy(settings.filter).and(discreet);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match settings.format {
        Format::Text => layer.with_ansi(is_on_terminal()).boxed(),
        Format::Json => layer.json().flatten_event(true).with_span_list(false).with_current_span(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    // The usual hook prints the panic's message, which may quote the data at hand.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}
