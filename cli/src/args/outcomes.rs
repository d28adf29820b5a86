//! Arguments of `stage0 outcomes`.

use clap::{Args, Subcommand};
use stage0_contract::{OutcomeFilter, OutcomeStatus, RequestId};

use super::decisions::Period;

#[derive(Debug, Subcommand)]
pub(crate) enum OutcomesCommand {
    /// Counts what came of allowed actions, and what nothing is known of
    Summary {
        #[command(flatten)]
        period: Period,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists allowed actions by what came of them, newest first
    List {
        #[command(flatten)]
        period: Period,
        /// succeeded, failed, unknown, skipped, none (nothing was reported) or any
        #[arg(long, value_name = "OUTCOME", default_value = "any", value_parser = filter)]
        outcome: OutcomeFilter,
        /// Maximum number of decisions
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Reports what came of an allowed action; also resolves one whose end was unknown
    Report(Report),
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The `request_id` of the decision
    #[arg(value_parser = RequestId::parse)]
    pub(crate) request_id: RequestId,
    /// succeeded, failed, unknown or skipped
    #[arg(value_parser = status)]
    pub(crate) status: OutcomeStatus,
    /// The tool call as the agent names it
    #[arg(long, value_name = "ID")]
    pub(crate) tool_call_id: Option<String>,
    /// How long the action took, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) duration_ms: Option<u64>,
    /// What the action cost, in US dollars: settles the check in its run
    #[arg(long, value_name = "USD")]
    pub(crate) cost_usd: Option<f64>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn filter(text: &str) -> Result<OutcomeFilter, String> {
    let known = OutcomeFilter::parse(&text.to_ascii_lowercase());
    known.ok_or_else(|| "must be succeeded, failed, unknown, skipped, none or any".to_owned())
}

fn status(text: &str) -> Result<OutcomeStatus, String> {
    let known = OutcomeStatus::parse(&text.to_ascii_lowercase());
    known.ok_or_else(|| "must be succeeded, failed, unknown or skipped".to_owned())
}
