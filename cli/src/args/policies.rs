//! Arguments of the commands of `stage0 policy` that ask a server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use stage0_contract::AccountId;

pub(crate) mod proposals;
pub(crate) mod trials;

use super::number::at_least;
use proposals::{DecideArgs, DenyArgs, ProposalsArgs};
use trials::{CanaryArgs, CandidatesArgs, ReplayArgs, ShadowArgs, WithdrawArgs};

/// The names of these commands, which take the settings of a connection.
pub(crate) const POLICY_SERVER_COMMANDS: [&str; 17] = [
    "publish",
    "activate",
    "rollback",
    "history",
    "list",
    "show",
    "active",
    "delete",
    "compare",
    "proposals",
    "approve",
    "deny",
    "cancel",
    "replay",
    "shadow",
    "candidates",
    "withdraw",
];

#[derive(Debug, Subcommand)]
pub(crate) enum PoliciesCommand {
    /// Publishes a pack: validates it, runs its cases, and brings it to every evaluator; nothing decides by it yet
    #[command(after_help = "\
The packs that it extends are published with it, except those that are compiled in. What is published never changes:
raise `version` in pack.toml for other content.

Uses the key of --key-file, else of STAGE0_API_KEY, else `<data-dir>/operator.key`. It needs the scope
`policies:manage`, or `operator`.

Example:
  stage0 policy publish ./packs/my-pack")]
    Publish(PublishArgs),
    /// Makes a published pack decide: every check of the account, or those in one environment
    #[command(after_help = "\
It holds at every gateway within a second. Takes `name@1.0.0` or the whole version. What is looser than what decides
there now is refused with the cases, rules and words, until it is accepted by its number. Where decisions are recorded
with their facts, the newest of them are replayed too, and count. With --canary it decides a share of the runs, until it
is activated as a whole, withdrawn, or differs too often. Uses the same keys as `publish`.

Examples:
  stage0 policy activate my-pack@1.2.0 --environment staging --reason 'try the limit of refunds'
  stage0 policy activate my-pack@1.2.0 --wait
  stage0 policy activate my-pack@1.2.0 --accept-flips 3 --reason 'partners may refund 600'
  stage0 policy activate my-pack@1.2.0 --canary 10 --return-at-disagreement 5
  stage0 policy activate house-rules@3.0.0 --floor --key-file operator.key")]
    Activate(ActivateArgs),
    /// Shows what changes if a published pack takes the place of another, or of what decides now
    #[command(after_help = "\
Takes `name@1.0.0` or the whole version. Anything looser is exit code 1. Uses the same keys as `publish`.

Examples:
  stage0 policy compare my-pack@1.2.0
  stage0 policy compare my-pack@1.2.0 --environment staging
  stage0 policy compare my-pack@1.2.0 --from my-pack@1.1.0 --json")]
    Compare(CompareArgs),
    /// Makes active what was active before the last activation
    #[command(after_help = "\
Uses the same keys as `publish`.

Example:
  stage0 policy rollback --environment staging --reason 'refunds of partners were denied'")]
    Rollback(RollbackArgs),
    /// Lists what was active when, and who changed it; the newest first
    #[command(after_help = "\
Uses the same keys as `publish`.

Example:
  stage0 policy history --limit 20")]
    History(HistoryArgs),
    /// Lists published packs, and where each is active
    #[command(after_help = "\
Uses the same keys as `publish`.

Example:
  stage0 policy list")]
    List(OfAccount),
    /// Shows what decides now: by environment, whose it is, and the floor
    #[command(after_help = "\
Uses the same keys as `publish`.

Example:
  stage0 policy active")]
    Active(OfAccount),
    /// Deletes a published pack that is not active and that no rollback leads to
    #[command(after_help = "\
Takes `name@1.0.0` or the whole version. Uses the same keys as `publish`.

Example:
  stage0 policy delete my-pack@1.0.0")]
    Delete(DeleteArgs),
    /// Shows a published pack, and which evaluators have it
    #[command(after_help = "\
Takes `name@1.0.0` or the whole version. Uses the same keys as `publish`.

Examples:
  stage0 policy show my-pack@1.2.0
  stage0 policy show my-pack@1.2.0 --files --json")]
    Show(ShowArgs),
    /// Lists activations that wait for a second member, and those that waited
    #[command(after_help = "\
Where an account wants it (`stage0 accounts update --policy-changes second_member`), `activate` only proposes. Uses the
same keys as `publish`.

Example:
  stage0 policy proposals --status pending")]
    Proposals(ProposalsArgs),
    /// Approves a proposed activation, as a member who is another person than the one that proposed it
    #[command(after_help = "\
Needs the key of a member with `policies:manage`: give it with --key-file. Look first at what it changes:
`stage0 policy compare`.

Example:
  stage0 policy approve prop_0123456789abcdef --key-file bo.key --reason 'as we agreed'")]
    Approve(DecideArgs),
    /// Denies a proposed activation
    #[command(after_help = "\
Needs the key of a member with `policies:manage`.

Example:
  stage0 policy deny prop_0123456789abcdef --reason 'partners need more'")]
    Deny(DenyArgs),
    /// Takes a proposed activation back
    #[command(after_help = "\
Uses the same keys as `publish`: the one that proposed it, a member's, or the operator's.

Example:
  stage0 policy cancel prop_0123456789abcdef")]
    Cancel(DecideArgs),
    /// Decides recorded decisions again by a published pack, and shows what would have been decided otherwise
    #[command(after_help = "\
Replays decisions of the account that were recorded with their facts (`stage0 accounts update --record-facts true`).
What cannot be replayed is counted, and why. Exit code 1: something is looser, or nothing at all could be replayed. Uses
the account's key, as `decisions` does, with the scope `policies:manage`; an operator's key replays nothing.

Examples:
  stage0 policy replay my-pack@1.2.0
  stage0 policy replay my-pack@1.2.0 --environment production --from -30d --limit 10000")]
    Replay(ReplayArgs),
    /// Lets a published pack judge checks beside the active one, without effect on any answer
    #[command(after_help = "\
It takes the place of what is tried there. `stage0 policy candidates` shows where it differs. Uses the same keys as
`publish`.

Examples:
  stage0 policy shadow my-pack@1.2.0
  stage0 policy shadow my-pack@1.2.0 --percent 20 --environment production")]
    Shadow(ShadowArgs),
    /// Shows the packs that are tried, and how they differ from the active one
    #[command(after_help = "\
Uses the account's key, as `decisions` does, with the scope `policies:manage`; with --account the operator's, which is
shown counts only.

Examples:
  stage0 policy candidates
  stage0 policy candidates --ended")]
    Candidates(CandidatesArgs),
    /// Ends what is tried at a place: the active pack decides all of it again
    #[command(after_help = "\
Uses the same keys as `publish`.

Example:
  stage0 policy withdraw --environment production --reason 'it denies too many refunds'")]
    Withdraw(WithdrawArgs),
}

/// Whose policies, and in which form they are printed.
#[derive(Debug, Args)]
pub(crate) struct OfAccount {
    /// Account, with an operator's key; the account of `stage0 dev` where dev.json names one
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Every account; needs an operator's key, which changes nothing without this, --account or --floor
    #[arg(long, conflicts_with = "account")]
    pub(crate) all_accounts: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Directory of the pack
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}

/// What an activation or a rollback is about.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Only for checks in this environment, by any of its names
    #[arg(long, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// The floor: a pack that is evaluated beside every other, and that none can be milder than; needs an operator's
    /// key
    #[arg(long, conflicts_with_all = ["environment", "account"])]
    pub(crate) floor: bool,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// The version that is active now: if another one is, nothing changes
    #[arg(long, value_name = "VERSION")]
    pub(crate) expected: Option<String>,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}

#[derive(Debug, Args)]
pub(crate) struct ActivateArgs {
    /// The version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Accepts so many looser changes: what `stage0 policy compare` counts and, where decisions are recorded with their
    /// facts, what `stage0 policy replay` counts, added up; needs --reason
    #[arg(long, value_name = "N", requires = "reason", value_parser = at_least(0u64))]
    pub(crate) accept_flips: Option<u64>,
    /// The digest of the difference that was reviewed: if it is another one now, nothing changes
    #[arg(long, value_name = "DIGEST")]
    pub(crate) diff_digest: Option<String>,
    #[command(flatten)]
    pub(crate) canary: CanaryArgs,
    /// Returns when every evaluator has loaded it; exit code 1 if one has not within a minute, or if it waits for a
    /// second member
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The new version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    /// The old version; without it, what decides now
    #[arg(long, value_name = "VERSION")]
    pub(crate) from: Option<String>,
    /// What decides in this environment
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub(crate) environment: Option<String>,
    /// The floor
    #[arg(long, conflicts_with_all = ["from", "environment"])]
    pub(crate) floor: bool,
    /// Ends with exit code 0 even if something is looser
    #[arg(long)]
    pub(crate) allow_looser: bool,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Most changes to list
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least(1u32))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The version, as `stage0 policy list` lists it; the digest may be left out
    pub(crate) version: String,
    /// Shows its files too
    #[arg(long)]
    pub(crate) files: bool,
    #[command(flatten)]
    pub(crate) of: OfAccount,
}
