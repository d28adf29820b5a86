//! Arguments of `stage0 decisions`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use stage0_contract::{IssueCode, MarkRef, RequestId, Verdict};

use super::when::When;
use crate::exit::UsageError;

#[derive(Debug, Subcommand)]
pub(crate) enum DecisionsCommand {
    /// Lists decisions, newest first
    List {
        #[command(flatten)]
        period: Period,
        #[command(flatten)]
        filter: Filter,
        /// Only decisions with an issue of this code
        #[arg(long, value_name = "CODE", value_parser = IssueCode::parse)]
        code: Option<IssueCode>,
        /// Only decisions of this run
        #[arg(long, value_name = "ID")]
        run_id: Option<String>,
        /// Maximum number of decisions
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Lists oldest first
        #[arg(long)]
        oldest_first: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows one decision with its request, key and account
    Show {
        /// The `request_id` of the decision
        #[arg(value_parser = RequestId::parse)]
        request_id: RequestId,
        /// Prints the record as JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints decisions as they are recorded, until Ctrl-C
    #[command(after_help = "Asks the server once a second. If the server does not answer, it says so and waits.")]
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// Prints each decision as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Downloads the log: one JSON object per line, with checkpoints and deletions
    #[command(after_help = "\
The lines are the bytes of the log: `stage0 decisions verify --file` proves that none is missing or altered.
A download that breaks off resumes by itself after the last complete decision, and no line occurs twice. It
fails if no line arrives for --timeout seconds (default: 600), and leaves no file.")]
    Export {
        #[command(flatten)]
        period: Period,
        /// File to create (mode 0600); `-` is standard output
        #[arg(long, value_name = "FILE", required = true)]
        out: PathBuf,
        /// Prints progress even if standard error is not a terminal
        #[arg(long)]
        progress: bool,
        /// Prints the summary as JSON, unless the log goes to standard output
        #[arg(long)]
        json: bool,
    },
    /// Proves that no recorded decision is missing, altered, out of order or duplicated
    #[command(after_help = "\
Exit codes: 0 the log is complete, 1 something was found, or the log could not be verified.

Without --file the server verifies its own log. With --file an export is verified on this machine, with public
keys that you saved before (`stage0 decisions keys`), so the server need not be trusted. If the export had --from
or --to, give the same again. If the end of the log was cut off together with its checkpoints, only --kept
detects it.

Examples:
  stage0 decisions verify --from -7d
  stage0 decisions verify --kept 41:5f0c…
  stage0 decisions verify --file decisions.ndjson --keys signing-keys.json")]
    Verify(Verify),
    /// Prints the public keys that verify checkpoints, as JSON to save elsewhere
    Keys {
        /// Has no effect: the output is always JSON
        #[arg(long)]
        json: bool,
    },
    /// Deletes decisions recorded before a time; a signed mark in the log records it
    #[command(after_help = "\
The key needs the scope `decisions:delete`. Deleted decisions cannot be restored; the remaining log still
verifies.")]
    Delete {
        /// Deletes decisions recorded before this time: RFC 3339, or how long ago, such as -30d
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        before: When,
        /// Does not ask for confirmation
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Period {
    /// Recorded at this time or later: 2026-01-31T12:00:00Z (RFC 3339), or how long ago: -30s, -15m, -1h, -7d, -2w
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    from: Option<When>,
    /// Recorded at this time or earlier, in the same forms
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    to: Option<When>,
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only decisions with this verdict: ALLOW, DENY or DEFER
    #[arg(long, value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdict: Option<Verdict>,
    /// Only decisions of this environment
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) period: Period,
    /// The last mark of an earlier verification, which must still be in the log
    #[arg(long, value_name = "NUMBER:HASH", value_parser = MarkRef::parse)]
    pub(crate) kept: Option<MarkRef>,
    /// Verifies this export on this machine; it is read twice, so it cannot be a pipe
    #[arg(long, value_name = "FILE", requires = "Trust")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: Trust,
    /// Prints the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Prints progress even if standard error is not a terminal
    #[arg(long)]
    pub(crate) progress: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Trust {
    /// File with the public keys, from `stage0 decisions keys`
    #[arg(long, value_name = "FILE", requires = "file")]
    pub(crate) keys: Option<PathBuf>,
    /// Trusts the public keys that the server gives now
    #[arg(long, requires = "file")]
    pub(crate) keys_from_server: bool,
}

impl Period {
    /// Both ends; relative times count back from `now`.
    pub(crate) fn at(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), UsageError> {
        let from = self.from.map(|from| from.at(now));
        let to = self.to.map(|to| to.at(now));
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(UsageError("--to must not be before --from"));
        }
        Ok((from, to))
    }
}

pub(super) fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::parse(&text.to_ascii_uppercase()).ok_or_else(|| "must be ALLOW, DENY or DEFER".to_owned())
}
