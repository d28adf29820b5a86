//! Arguments of `stage0 stop`, `resume` and `stops`.

use clap::{ArgGroup, Args};
use stage0_contract::{AccountId, KeyId, StopId};

use super::when::Ahead;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("covered").required(true).multiple(false).args(COVERED))]
pub(crate) struct StopArgs {
    /// Every check of the account
    #[arg(long)]
    pub(crate) account_wide: bool,
    /// Checks in this environment, by any of its names, and checks that name none
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// Checks that propose this tool
    #[arg(long, value_name = "NAME")]
    pub(crate) tool: Option<String>,
    /// Checks of this key, and of the keys that it was rotated to or from
    #[arg(long, value_name = "ID", value_parser = KeyId::parse)]
    pub(crate) key: Option<KeyId>,
    /// Every check of every account; needs an operator's key
    #[arg(long, conflicts_with = "account")]
    pub(crate) all: bool,
    /// Why, for the people who meet it
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// When it ends by itself: 2026-12-24T08:00:00Z (RFC 3339), or how long from now: 30m, 8h (default: when it is
    /// resumed)
    #[arg(long, value_name = "TIME", value_parser = Ahead::parse)]
    pub(crate) until: Option<Ahead>,
    /// Account to stop; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A stop covers exactly one of them.
const COVERED: [&str; 5] = ["account_wide", "environment", "tool", "key", "all"];

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The stop, as `stage0 stops` lists it
    #[arg(value_parser = StopId::parse)]
    pub(crate) stop: StopId,
    /// Why it is over
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopsArgs {
    /// Account whose stops are listed; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}
