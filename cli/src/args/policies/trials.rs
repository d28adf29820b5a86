//! Arguments of the commands that try a policy before it decides everything: replay, shadow and canary.

use clap::Args;
use jiff::Timestamp;
use stage0_contract::{AccountId, CanaryTerms, MAX_REPLAYED, ReturnAt};

use crate::args::number::whole;
use crate::args::when::When;

/// How an activation begins as a canary.
#[derive(Debug, Args)]
pub(crate) struct CanaryArgs {
    /// Begins as a canary, which decides this share of the runs
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["floor", "all_accounts"],
        value_parser = whole(1u8, 100))]
    pub(crate) canary: Option<u8>,
    /// The canary ends when more than this percentage of its verdicts differ from the active policy's [default: 2]
    #[arg(long, value_name = "PERCENT", requires = "canary", value_parser = whole(0u8, 100))]
    pub(crate) return_at_disagreement: Option<u8>,
    /// The canary ends when a rule fails in more than this percentage of its checks [default: 0]
    #[arg(long, value_name = "PERCENT", requires = "canary", value_parser = whole(0u8, 100))]
    pub(crate) return_at_errors: Option<u8>,
    /// The fewest checks that these percentages are taken of [default: 50]
    #[arg(long, value_name = "N", requires = "canary", value_parser = whole(1u32, 1_000_000))]
    pub(crate) min_checks: Option<u32>,
    /// Replays the decisions that were recorded before this time (RFC 3339), as the refusal names it
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) replayed_until: Option<Timestamp>,
}

impl CanaryArgs {
    /// What the activation asks for; none: it decides all runs.
    pub(crate) fn terms(&self) -> Option<CanaryTerms> {
        let default = ReturnAt::default();
        let return_at = ReturnAt {
            disagreement_percent: self.return_at_disagreement.unwrap_or(default.disagreement_percent),
            error_percent: self.return_at_errors.unwrap_or(default.error_percent),
            min_checks: self.min_checks.unwrap_or(default.min_checks),
        };
        self.canary.map(|percent| CanaryTerms { percent, return_at })
    }
}

/// Where a policy is tried, and in which form the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct TrialPlace {
    /// Only for checks in this environment, by any of its names
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Account, which an operator's key must name; the account of `stage0 dev` where dev.json names one
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShadowArgs {
    /// The version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    /// The share of runs that it judges [default: 100]
    #[arg(long, value_name = "N", value_parser = whole(1u8, 100))]
    pub(crate) percent: Option<u8>,
    #[command(flatten)]
    pub(crate) place: TrialPlace,
}

#[derive(Debug, Args)]
pub(crate) struct WithdrawArgs {
    #[command(flatten)]
    pub(crate) place: TrialPlace,
}

#[derive(Debug, Args)]
pub(crate) struct CandidatesArgs {
    /// Account; needs an operator's key, which is shown counts only
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Shows those that ended in the last 30 days instead, with what was found
    #[arg(long)]
    pub(crate) ended: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    /// Only decisions in this environment; without it, those in environments without an activation of their own
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// Recorded at this time or later: 2026-01-31T12:00:00Z (RFC 3339), or how long ago, such as -7d [default: seven
    /// days before --until]
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    pub(crate) from: Option<When>,
    /// Recorded before this time, in the same forms [default: now]
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true)]
    pub(crate) until: Option<When>,
    /// Replays what an activation replays: decisions that were not allowed, 10,000 at most
    #[arg(long)]
    pub(crate) gate: bool,
    /// Most decisions to replay, the newest first; at most 10,000 [default: 1000, with --gate 10000]
    #[arg(long, value_name = "N", value_parser = whole(1, MAX_REPLAYED))]
    pub(crate) limit: Option<usize>,
    /// Ends with exit code 0 even if something is looser, but not if nothing was replayed
    #[arg(long)]
    pub(crate) allow_looser: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "must be a time such as 2026-03-16T12:00:00Z".to_owned())
}
