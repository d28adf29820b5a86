//! `stage0 runs`: what can be typed.

use clap::Subcommand;
use stage0_contract::RequestId;

/// `stage0 runs …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DoRuns {
    /// Lists the runs that the server remembers
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows what was counted of a run
    Show {
        /// The run, as its checks name it
        run_id: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Forgets a run: the next check with its name begins a new one
    End {
        /// The run
        run_id: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Says what an allowed check has cost, in the place of its estimate
    Settle {
        /// The run
        run_id: String,
        /// The check's `request_id`
        #[arg(long, value_name = "ID", value_parser = RequestId::parse)]
        request_id: RequestId,
        /// US dollars
        #[arg(long, value_name = "USD")]
        cost_usd: f64,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}
