//! Arguments of `stage0 guards`.

use clap::Subcommand;
use stage0_contract::{GuardId, GuardState};

#[derive(Debug, Subcommand)]
pub(crate) enum GuardsCommand {
    /// Lists guards, with when each reported last
    List {
        /// Only guards in this state: alive, silent or ended
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<GuardState>,
        /// Maximum number of guards
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Forgets a guard whose machine is gone; it comes back with its next report
    Forget {
        /// The guard, as `guards list` shows it
        #[arg(value_parser = GuardId::parse)]
        guard_id: GuardId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

fn state(text: &str) -> Result<GuardState, String> {
    GuardState::parse(&text.to_ascii_lowercase()).ok_or_else(|| "must be alive, silent or ended".to_owned())
}
