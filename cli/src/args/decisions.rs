//! `stage0 decisions …`: what can be typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use stage0_contract::{IssueCode, MarkRef, RequestId, Verdict};

use super::when::When;
use crate::exit::AskedWrongly;

/// `stage0 decisions …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DoDecisions {
    /// Lists decisions, the newest first
    List {
        #[command(flatten)]
        period: Period,
        #[command(flatten)]
        filter: Filter,
        /// Only with an issue of this code
        #[arg(long, value_name = "CODE", value_parser = IssueCode::parse)]
        code: Option<IssueCode>,
        /// Only of this run
        #[arg(long, value_name = "ID")]
        run_id: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Lists the oldest first
        #[arg(long)]
        oldest_first: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows one decision, and who asked for it
    Show {
        /// The `request_id` of the answer
        #[arg(value_parser = RequestId::parse)]
        request_id: RequestId,
        /// Prints the record as JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints decisions as they are recorded, until Ctrl-C
    #[command(after_help = "Asks once a second. When the server goes away, it says so and waits for it to come back.")]
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// Prints each as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Downloads the log as it is, one JSON object a line: decisions, checkpoints, deletions
    #[command(after_help = "\
The lines are the log's own bytes: `stage0 decisions verify --file` proves that none is missing or
altered. A download that is cut goes on by itself behind the last decision that came whole, and no line
comes twice. It gives up when no line came for --timeout seconds (600), and leaves no file behind.")]
    Export {
        #[command(flatten)]
        period: Period,
        /// New file (mode 0600); `-` is standard output
        #[arg(long, value_name = "FILE", required = true)]
        out: PathBuf,
        /// Says how far it is also where standard error is no terminal
        #[arg(long)]
        progress: bool,
        /// Says as JSON what was written, unless that goes to standard output
        #[arg(long)]
        json: bool,
    },
    /// Proves that no recorded decision is missing, altered, out of order or there twice
    #[command(after_help = "\
Exit codes: 0 nothing was found, 1 something was found, or it could not be verified.

Without --file the server walks its own log. With --file an export is verified here, with keys that
were kept (`stage0 decisions keys`): nobody is trusted but whoever kept them. If the export had --from
or --to, give the same again. A log whose end was cut off together with its checkpoints shows that
only to --kept.

Examples:
  stage0 decisions verify --from -7d
  stage0 decisions verify --kept 41:5f0c…
  stage0 decisions verify --file decisions.ndjson --keys signing-keys.json")]
    Verify(Verify),
    /// Prints the public keys that sign checkpoints, as JSON to be kept outside
    Keys {
        /// As without it: they are always JSON
        #[arg(long)]
        json: bool,
    },
    /// Deletes what was recorded before a time; a signed mark in the log says so
    #[command(after_help = "\
The key needs the scope `decisions:delete`. What was deleted cannot be brought back; what remains
still verifies.")]
    Delete {
        /// What was recorded before this goes: RFC 3339, or how long ago, such as -30d
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        before: When,
        /// Does not ask
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

/// From when to when.
#[derive(Debug, Args)]
pub(crate) struct Period {
    /// Recorded at this time or later: 2026-01-31T12:00:00Z (RFC 3339), or how long ago: -30s, -15m, -1h, -7d, -2w
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    from: Option<When>,
    /// Recorded at this time or earlier; in the same forms
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    to: Option<When>,
}

/// Which of the decisions.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only ALLOW, DENY or DEFER
    #[arg(long, value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdict: Option<Verdict>,
    /// Only of this environment
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
}

/// `stage0 decisions verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) period: Period,
    /// The last mark of an earlier verification: it must still be there
    #[arg(long, value_name = "NUMBER:HASH", value_parser = MarkRef::parse)]
    pub(crate) kept: Option<MarkRef>,
    /// Verifies this export, here; it is read twice, so it cannot be a pipe
    #[arg(long, value_name = "FILE", requires = "Trust")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    /// Prints the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Says how far it is also where standard error is no terminal
    #[arg(long)]
    pub(crate) progress: bool,
}

/// Whose signatures are believed.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Trust {
    /// File with the public keys, as `stage0 decisions keys` printed them
    #[arg(long, value_name = "FILE", requires = "file")]
    pub(crate) keys: Option<PathBuf>,
    /// Believes the keys that the server names now
    #[arg(long, requires = "file")]
    pub(crate) keys_from_server: bool,
}

impl Period {
    /// Both ends, by the clock that says `now`.
    pub(crate) fn at(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), AskedWrongly> {
        let (from, to) = (self.from.map(|from| from.at(now)), self.to.map(|to| to.at(now)));
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(AskedWrongly("--to must not be before --from"));
        }
        Ok((from, to))
    }
}

pub(super) fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::parse(&text.to_ascii_uppercase()).ok_or_else(|| "must be ALLOW, DENY or DEFER".to_owned())
}
