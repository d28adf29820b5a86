//! Arguments of `stage0 accounts`.

use clap::{ArgGroup, Args, Subcommand};
use stage0_contract::{AccountId, ApprovalMode, Change, Plan, PolicyChanges, UNLIMITED};

use super::Json;

#[derive(Debug, Subcommand)]
pub(crate) enum AccountsCommand {
    /// Creates an account
    Create {
        /// Name of the account
        #[arg(long)]
        name: String,
        /// free, pro or unlimited (default: unlimited)
        #[arg(long, value_parser = plan)]
        plan: Option<Plan>,
        /// Whose approvals count: `verified`, only those that members give here, or `caller`, what a check says as well
        #[arg(long, value_name = "MODE", default_value = "verified", value_parser = approval_mode)]
        approvals: ApprovalMode,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists accounts
    List(Json),
    /// Sets how long the decisions of an account are kept
    #[command(after_help = "\
Decisions older than a shortened retention are hidden at once and then deleted.")]
    SetRetention {
        /// Id of the account
        #[arg(value_parser = AccountId::parse)]
        account: AccountId,
        #[command(flatten)]
        retention: Retention,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Changes the plan of an account
    SetPlan {
        /// Id of the account
        #[arg(value_parser = AccountId::parse)]
        account: AccountId,
        /// free, pro or unlimited
        #[arg(value_parser = plan)]
        plan: Plan,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Replaces limits of the account's plan; limits that are not named stay
    SetLimits {
        /// Id of the account
        #[arg(value_parser = AccountId::parse)]
        account: AccountId,
        #[command(flatten)]
        limits: OwnLimits,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Changes whose approvals count, whether owners may approve, who activates policies, and what decisions are
    /// recorded with
    #[command(group = ArgGroup::new("change").required(true).multiple(true)
        .args(["approvals", "four_eyes", "policy_changes", "record_facts"]))]
    Update {
        /// Id of the account
        #[arg(value_parser = AccountId::parse)]
        account: AccountId,
        /// Whose approvals count: `verified`, only those that members give here, or `caller`, what a check says as well
        #[arg(long, value_name = "MODE", value_parser = approval_mode)]
        approvals: Option<ApprovalMode>,
        /// `on`: a workload's owner and maker may not approve what it asks for; `off`: they may, and only the workload
        /// itself may not
        #[arg(long, value_name = "SWITCH", value_parser = on_or_off, action = clap::ArgAction::Set)]
        four_eyes: Option<bool>,
        /// Who activates a policy: `single`, one key with `policies:manage`, or `second_member`, one key and a member
        /// who is another person
        #[arg(long, value_name = "MODE", value_parser = policy_changes)]
        policy_changes: Option<PolicyChanges>,
        /// Records decisions with their facts, typed and without free text, so that another policy can decide them
        /// again: true or false
        #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
        record_facts: Option<bool>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Sets whether each check of an account must name its run
    RequireRunId {
        /// Id of the account
        #[arg(value_parser = AccountId::parse)]
        account: AccountId,
        /// on or off
        #[arg(value_parser = on_or_off, action = clap::ArgAction::Set)]
        switch: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct OwnLimits {
    /// Checks in a minute: a number, `plan` for the plan's, or `unlimited`
    #[arg(long, value_name = "N", value_parser = own_limit)]
    pub(crate) per_minute: Option<Change<u64>>,
    /// Checks in a day (UTC)
    #[arg(long, value_name = "N", value_parser = own_limit)]
    pub(crate) daily: Option<Change<u64>>,
    /// Checks in a month (UTC)
    #[arg(long, value_name = "N", value_parser = own_limit)]
    pub(crate) monthly: Option<Change<u64>>,
    /// Active keys
    #[arg(long, value_name = "N", value_parser = own_cap)]
    pub(crate) max_keys: Option<Change<u64>>,
    /// Webhook endpoints
    #[arg(long, value_name = "N", value_parser = own_cap)]
    pub(crate) max_endpoints: Option<Change<u64>>,
    /// Different runs named in a day (UTC)
    #[arg(long, value_name = "N", value_parser = own_cap)]
    pub(crate) max_runs: Option<Change<u64>>,
    /// Bytes of input stored by `debug_store_input` in a day (UTC)
    #[arg(long, value_name = "N", value_parser = own_cap)]
    pub(crate) stored_bytes: Option<Change<u64>>,
}

fn own_cap(text: &str) -> Result<Change<u64>, String> {
    if text == "0" {
        return Ok(Change::Own(0));
    }
    own_limit(text).map_err(|_| "must be a whole number, `plan` or `unlimited`".to_owned())
}

fn own_limit(text: &str) -> Result<Change<u64>, String> {
    match text {
        "plan" => Ok(Change::Plans),
        "unlimited" => Ok(Change::Own(UNLIMITED)),
        _ => {
            let limit = text.parse().ok().filter(|limit| (1..UNLIMITED).contains(limit));
            limit.map(Change::Own).ok_or_else(|| "must be a whole number from 1, `plan` or `unlimited`".to_owned())
        }
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be `on` or `off`".to_owned()),
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Retention {
    /// Days, 1 to 3650
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: Option<u32>,
    /// The retention of the account's plan
    #[arg(long)]
    pub(crate) plan_default: bool,
}

fn plan(text: &str) -> Result<Plan, String> {
    Plan::parse(text).ok_or_else(|| "must be free, pro or unlimited".to_owned())
}

fn policy_changes(text: &str) -> Result<PolicyChanges, String> {
    PolicyChanges::parse(text).ok_or_else(|| "must be `single` or `second_member`".to_owned())
}

pub(crate) fn approval_mode(text: &str) -> Result<ApprovalMode, String> {
    ApprovalMode::parse(text).ok_or_else(|| "must be `caller` or `verified`".to_owned())
}
