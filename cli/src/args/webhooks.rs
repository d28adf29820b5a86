//! Arguments of `stage0 webhooks`.
//!
//! The URL of an endpoint is `--endpoint`, because `--url` names the server, as in every command.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use stage0_contract::{AccountId, Verdict, WebhookId};

use super::decisions::verdict;
use super::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum WebhooksCommand {
    /// Creates an endpoint and shows its secret once
    Create(CreateArgs),
    /// Lists endpoints, without their secrets
    List {
        /// Account whose endpoints to list; needs an operator's key
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows one endpoint
    Show(EndpointArgs),
    /// Changes the given properties of an endpoint
    Update(UpdateArgs),
    /// Resumes deliveries from where they stopped
    Enable(EndpointArgs),
    /// Stops deliveries until the endpoint is enabled
    Disable(EndpointArgs),
    /// Creates a new secret and shows it once
    RotateSecret {
        /// The id of the endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// How long the old secret also signs (default: the server's)
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u64>,
        #[command(flatten)]
        shown: NewSecret,
    },
    /// Sends a test event now and prints the result; exit code 1 if it was not delivered
    Test(EndpointArgs),
    /// Sends the events of a period again
    Replay {
        /// The id of the endpoint
        #[arg(value_parser = WebhookId::parse)]
        id: WebhookId,
        /// Start: 2026-01-31T12:00:00Z (RFC 3339), or how long ago: -30s, -15m, -1h, -7d, -2w
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        from: When,
        /// End, not included, in the same forms
        #[arg(long, value_name = "TIME", required = true, value_parser = When::parse, allow_hyphen_values = true)]
        to: When,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists recent deliveries and their results
    Deliveries(EndpointArgs),
    /// Removes an endpoint
    Delete(EndpointArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    /// The id of the endpoint
    #[arg(value_parser = WebhookId::parse)]
    pub(crate) id: WebhookId,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// URL to send events to, such as `https://receiver.example.com/stage0`
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: String,
    /// Only decisions with this verdict; may be repeated (default: all)
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdicts: Vec<Verdict>,
    /// Only decisions of this environment; may be repeated (default: all)
    #[arg(long = "environment", value_name = "NAME")]
    pub(crate) environments: Vec<String>,
    /// Only events of this type, such as `approval.requested`, `approval.*` or `stop.*`; may be repeated (default:
    /// decisions and signed marks)
    #[arg(long = "event", value_name = "TYPE")]
    pub(crate) events: Vec<String>,
    /// Description for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Maximum events per second (default: unlimited)
    #[arg(long, value_name = "N")]
    pub(crate) rate_limit: Option<u32>,
    /// Account of the endpoint; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    #[command(flatten)]
    pub(crate) shown: NewSecret,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(CHANGES))]
pub(crate) struct UpdateArgs {
    /// The id of the endpoint
    #[arg(value_parser = WebhookId::parse)]
    pub(crate) id: WebhookId,
    /// New URL to send events to
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Only decisions with this verdict; may be repeated
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = verdict)]
    pub(crate) verdicts: Vec<Verdict>,
    /// Removes the filter by verdict
    #[arg(long, conflicts_with = "verdicts")]
    pub(crate) all_verdicts: bool,
    /// Only decisions of this environment; may be repeated
    #[arg(long = "environment", value_name = "NAME")]
    pub(crate) environments: Vec<String>,
    /// Removes the filter by environment
    #[arg(long, conflicts_with = "environments")]
    pub(crate) all_environments: bool,
    /// Only events of this type, such as `approval.*`; may be repeated
    #[arg(long = "event", value_name = "TYPE")]
    pub(crate) events: Vec<String>,
    /// Removes the filter by type: decisions and signed marks are sent, nothing of approvals and stops
    #[arg(long, conflicts_with = "events")]
    pub(crate) default_events: bool,
    /// Description for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Maximum events per second; 0 removes the limit
    #[arg(long, value_name = "N")]
    pub(crate) rate_limit: Option<u32>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// An update needs at least one of them.
const CHANGES: [&str; 9] = [
    "endpoint",
    "verdicts",
    "all_verdicts",
    "environments",
    "all_environments",
    "events",
    "default_events",
    "description",
    "rate_limit",
];

#[derive(Debug, Args)]
pub(crate) struct NewSecret {
    /// Writes the secret to this new file (mode 0600) and prints only the endpoint's id
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Prints the server's answer as JSON
    #[arg(long, conflicts_with = "out")]
    pub(crate) json: bool,
}
