//! Arguments of `stage0 runs`.

use clap::Subcommand;
use stage0_contract::RequestId;

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// Lists the runs that the server remembers
    List {
        /// Maximum number of runs
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the counts and costs of a run
    Show {
        /// The `run_id` of its checks
        run_id: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Ends a run: the next check with its `run_id` starts a new one
    End {
        /// The `run_id`
        run_id: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Replaces the estimated cost of an allowed check by the actual one
    Settle {
        /// The `run_id`
        run_id: String,
        /// The `request_id` of the check
        #[arg(long, value_name = "ID", value_parser = RequestId::parse)]
        request_id: RequestId,
        /// The actual cost in US dollars
        #[arg(long, value_name = "USD")]
        cost_usd: f64,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}
