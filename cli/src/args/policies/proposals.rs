//! Arguments of the commands about activations that wait for a second member.

use clap::Args;
use stage0_contract::{AccountId, ProposalId, ProposalStatus};

use crate::args::number::at_least;

#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    /// Only those: pending, approved, denied, cancelled, outdated or expired
    #[arg(long, value_name = "STATUS", value_parser = status)]
    pub(crate) status: Option<ProposalStatus>,
    /// Most proposals to list
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least(1u32))]
    pub(crate) limit: u32,
    /// Account; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    /// The proposal, as `stage0 policy proposals` lists it
    #[arg(value_name = "ID", value_parser = ProposalId::parse)]
    pub(crate) id: ProposalId,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DenyArgs {
    /// The proposal, as `stage0 policy proposals` lists it
    #[arg(value_name = "ID", value_parser = ProposalId::parse)]
    pub(crate) id: ProposalId,
    /// Why, for people
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn status(text: &str) -> Result<ProposalStatus, String> {
    let all = ProposalStatus::ALL.map(ProposalStatus::as_str).join(", ");
    ProposalStatus::parse(text).ok_or_else(|| format!("must be one of {all}"))
}
