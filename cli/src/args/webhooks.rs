//! `stage0 webhooks …`: what can be typed.
//!
//! An endpoint's address is `--endpoint`, because `--url` names the server that is asked, here as everywhere.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use stage0_contract::{AccountId, Verdict, WebhookId};

use super::decisions::verdict;
use super::when::When;

/// `stage0 webhooks …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DoWebhooks {
    /// Makes an endpoint and shows its secret, once
    Create(CreateArgs),
    /// Lists endpoints, without their secrets
    List {
        /// Account whose endpoints are listed; needs an operator's key
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows one endpoint
    Show {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Changes what is named, and leaves the rest
    Update(UpdateArgs),
    /// Sends events to it again, from where it stopped
    Enable {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Sends it nothing until it is enabled
    Disable {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes a new secret, and shows it once
    RotateSecret {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// How long the old secret signs beside the new one; absent: the server's default
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u64>,
        #[command(flatten)]
        shown: NewSecret,
    },
    /// Sends one event now and says what came of it; exit code 1 when it was not delivered
    Test {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Sends what was recorded in a time once more
    Replay {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// From this time on: 2026-01-31T12:00:00Z (RFC 3339), or how long ago: -30s, -15m, -1h, -7d, -2w
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        from: When,
        /// Until this time, that moment not included; in the same forms
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        to: When,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists what was sent lately and what came of it
    Deliveries {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Removes an endpoint
    Delete {
        /// The endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

/// `stage0 webhooks create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Where events go, such as `https://receiver.example.com/stage0`
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: String,
    /// Only decisions with this verdict; repeat for more; absent: all
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdicts: Vec<Verdict>,
    /// Only decisions of this environment; repeat for more; absent: all
    #[arg(long = "environment", value_name = "NAME")]
    pub(crate) environments: Vec<String>,
    /// What it is for; shown in lists
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Most events a second; absent: no limit
    #[arg(long, value_name = "N")]
    pub(crate) rate_limit: Option<u32>,
    /// Account that it belongs to; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    #[command(flatten)]
    pub(crate) shown: NewSecret,
}

/// `stage0 webhooks update`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(CHANGES))]
pub(crate) struct UpdateArgs {
    /// The endpoint
    #[arg(value_parser = WebhookId::parse)]
    pub(crate) id: WebhookId,
    /// Where events go from now on
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Only decisions with this verdict; repeat for more
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdicts: Vec<Verdict>,
    /// Decisions with any verdict again
    #[arg(long, conflicts_with = "verdicts")]
    pub(crate) all_verdicts: bool,
    /// Only decisions of this environment; repeat for more
    #[arg(long = "environment", value_name = "NAME")]
    pub(crate) environments: Vec<String>,
    /// Decisions of any environment again
    #[arg(long, conflicts_with = "environments")]
    pub(crate) all_environments: bool,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Most events a second; 0 takes the limit away
    #[arg(long, value_name = "N")]
    pub(crate) rate_limit: Option<u32>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// At least one of them makes it an update.
const CHANGES: [&str; 7] =
    ["endpoint", "verdicts", "all_verdicts", "environments", "all_environments", "description", "rate_limit"];

/// Where a new secret goes.
#[derive(Debug, Args)]
pub(crate) struct NewSecret {
    /// Writes the secret to this new file (mode 0600) and prints the endpoint's id alone
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Prints the server's answer as JSON
    #[arg(long, conflicts_with = "out")]
    pub(crate) json: bool,
}
