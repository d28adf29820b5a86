//! Arguments of `stage0 approvals`.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use stage0_contract::{ActionDigest, ApprovalId, ApprovalStatus, GrantId, KeyId, OutcomeStatus};

use super::when::{Ahead, length};

/// The longest that a gateway lets an answer wait.
const MAX_WAIT_SECONDS: i64 = 60;

#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// Lists approvals, newest first
    List {
        /// Only those that are pending, approved, denied, expired, cancelled, reserved or consumed
        #[arg(long, value_name = "STATUS", value_parser = status)]
        status: Option<ApprovalStatus>,
        /// Only those that a member of this group may decide about
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// Maximum number of approvals
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows an approval with the exact action, what is risky in it first
    #[command(after_help = "\
Characters that are invisible, control a terminal or reorder text are shown as \\u{202e}. No text is cut.")]
    Show {
        #[command(flatten)]
        approval: ApprovalArgs,
        /// Waits until the approval changes, at most this long: 1s to 60s
        #[arg(long, value_name = "TIME", value_parser = wait)]
        wait: Option<Duration>,
    },
    /// Shows the action, asks, and approves it
    #[command(after_help = "\
The digest of the action that was shown is sent with the answer, so that nothing else is approved. A program gives
--yes and the digest of what a person read: `stage0 approvals show ID` prints it.

Examples:
  stage0 approvals approve apr_0w3ge1r7 --key-file me.key
  stage0 approvals approve apr_0w3ge1r7 --key-file me.key --yes --digest 9f86d081… --reason 'CHG-12'")]
    Approve(DecideArgs),
    /// Shows the action, asks, and denies it; one person is enough
    #[command(after_help = "\
--reason is required. For an hour the same action is then DENY. A program gives --yes and --digest.")]
    Deny(DecideArgs),
    /// Prints approvals as they are opened and as they change, until Ctrl-C
    #[command(after_help = "Asks the server every two seconds. If the server does not answer, it says so and waits.")]
    Watch {
        /// Only those that a member of this group may decide about
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// Prints each change as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Takes an approval back that is not used yet
    Cancel {
        #[command(flatten)]
        approval: ApprovalArgs,
        /// The reason, which is recorded
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Lets an approval be used again whose check was answered to no one
    #[command(after_help = "Look first whether the action ran: the request that used the approval is shown.")]
    Reopen {
        #[command(flatten)]
        approval: ApprovalArgs,
        /// The reason, which is recorded
        #[arg(long, value_name = "TEXT", required = true)]
        reason: String,
        /// Does not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Shows all that happened to an approval, oldest first
    History(ApprovalArgs),
    /// Reports what came of an approved action; by the workload that used it, once
    Outcome {
        /// The approval
        #[arg(value_parser = ApprovalId::parse)]
        id: ApprovalId,
        /// succeeded, failed or unknown
        #[arg(value_parser = outcome)]
        status: OutcomeStatus,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Registers an approval that another system gave; needs a key with `approvals:grant`
    Register {
        #[command(flatten)]
        approval: ApprovalArgs,
        /// The digest of the action that was approved there
        #[arg(long, value_name = "DIGEST", required = true, value_parser = ActionDigest::parse)]
        digest: ActionDigest,
        /// Who approved there; may be repeated, each counts as one person
        #[arg(long = "approved-by", value_name = "NAME", required = true)]
        approved_by: Vec<String>,
        /// What proves it there, such as the address of a ticket
        #[arg(long, value_name = "TEXT", required = true)]
        evidence: String,
        /// The reason, which is recorded
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Lets a workload act without a new approval, for at most 8 hours
    #[command(after_help = "\
Each use is recorded. Where the policy asks for more people, they add themselves with `stage0 approvals approve-grant`.

Example:
  stage0 approvals grant --key 0w3ge1r70w3ge1r7 --run nightly-7 --tool psql --until 4h \\
    --reason 'migration, reviewed in CHG-12'")]
    Grant(GrantArgs),
    /// Lists wider grants that have not ended
    Grants {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Revokes a wider grant at once
    Revoke(GrantReasonArgs),
    /// Adds one more person's approval to a wider grant
    ApproveGrant {
        #[command(flatten)]
        grant: GrantReasonArgs,
        /// Does not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApprovalArgs {
    /// The approval, `apr_…`
    #[arg(value_parser = ApprovalId::parse)]
    pub(crate) id: ApprovalId,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    #[command(flatten)]
    pub(crate) approval: ApprovalArgs,
    /// Why: required to deny, and to approve where the policy says so
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Does not show the action and does not ask; needs --digest
    #[arg(long, requires = "digest")]
    pub(crate) yes: bool,
    /// The digest of the action that was read: another action is refused
    #[arg(long, value_name = "DIGEST", value_parser = ActionDigest::parse)]
    pub(crate) digest: Option<ActionDigest>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("bound").required(true).multiple(true).args(["run", "tool", "effects"]))]
pub(crate) struct GrantArgs {
    /// A key of the workload that may use it
    #[arg(long, value_name = "ID", required = true, value_parser = KeyId::parse)]
    pub(crate) key: KeyId,
    /// Only in this run
    #[arg(long, value_name = "RUN_ID")]
    pub(crate) run: Option<String>,
    /// Only for this tool
    #[arg(long, value_name = "NAME")]
    pub(crate) tool: Option<String>,
    /// Only for this side effect; may be repeated
    #[arg(long = "effect", value_name = "EFFECT")]
    pub(crate) effects: Vec<String>,
    /// Only in this environment
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// Until when, at most 8 hours ahead: 2026-11-27T20:00:00Z (RFC 3339), or how long from now: 30m, 4h
    #[arg(long, value_name = "TIME", required = true, value_parser = Ahead::parse)]
    pub(crate) until: Ahead,
    /// The reason, which is recorded
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// Does not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GrantReasonArgs {
    /// The grant, `grt_…`
    #[arg(value_parser = GrantId::parse)]
    pub(crate) id: GrantId,
    /// The reason, which is recorded
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn status(text: &str) -> Result<ApprovalStatus, String> {
    let all = || ApprovalStatus::ALL.map(ApprovalStatus::as_str).join(", ");
    ApprovalStatus::parse(text).ok_or_else(|| format!("must be one of {}", all()))
}

fn outcome(text: &str) -> Result<OutcomeStatus, String> {
    match text {
        "succeeded" => Ok(OutcomeStatus::Succeeded),
        "failed" => Ok(OutcomeStatus::Failed),
        "unknown" => Ok(OutcomeStatus::Unknown),
        _ => Err("must be succeeded, failed or unknown".to_owned()),
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let seconds = length(text).map(|length| length.as_secs()).filter(|wait| (1..=MAX_WAIT_SECONDS).contains(wait));
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map(Duration::from_secs).ok_or_else(|| "must be from 1s to 60s, such as 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_one_to_sixty_seconds() {
        assert_eq!(wait("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(wait("1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "0s", "61s", "2m", "30", "-5s"] {
            assert!(wait(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_status_is_refused_with_the_known_ones() {
        assert_eq!(status("pending"), Ok(ApprovalStatus::Pending));
        assert!(status("open").unwrap_err().contains("pending, approved, denied"));
        assert!(outcome("done").is_err() && outcome("failed") == Ok(OutcomeStatus::Failed));
    }
}
