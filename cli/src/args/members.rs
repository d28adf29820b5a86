//! Arguments of `stage0 members`.

use clap::{ArgGroup, Args, Subcommand};
use stage0_contract::{AccountId, MAX_INVITATION_SECONDS, MemberId, Scope};

use super::scope;
use super::when::{Ahead, length};

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// Invites a person and shows the invitation's code, once
    #[command(after_help = "\
Give the code to the person alone. With it the person makes the key that approves (`stage0 members accept`), and
you never see that key. A member whom you invite cannot approve what your own workloads ask for, unless you are an
operator.")]
    Invite(InviteArgs),
    /// Lists members
    List {
        /// Account whose members are listed; needs an operator's key
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Adds a member to groups, or removes it from groups
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args(["add", "remove", "set"]))]
    Groups {
        /// The member
        #[arg(value_parser = MemberId::parse)]
        member: MemberId,
        /// Adds the member to this group; may be repeated
        #[arg(long, value_name = "GROUP")]
        add: Vec<String>,
        /// Removes the member from this group; may be repeated
        #[arg(long, value_name = "GROUP")]
        remove: Vec<String>,
        /// All groups from now on, separated by commas; an empty text removes every group
        #[arg(long, value_name = "GROUP,…", conflicts_with_all = ["add", "remove"])]
        set: Option<String>,
        /// Account of the member; needs an operator's key
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Removes a member: deletes name and mail, and revokes its keys
    Remove {
        /// The member
        #[arg(value_parser = MemberId::parse)]
        member: MemberId,
        /// Does not ask for confirmation
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes a new code for a member who lost the code or the key; earlier codes end
    InviteAgain {
        /// The member
        #[arg(value_parser = MemberId::parse)]
        member: MemberId,
        #[command(flatten)]
        valid: Valid,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Lets another member decide for the groups of one who is away
    #[command(after_help = "A member does so with its own key: --key-file. Of others, only the operator can.")]
    Delegate {
        /// The member who is away
        #[arg(value_parser = MemberId::parse)]
        member: MemberId,
        /// The member who decides meanwhile
        #[arg(long, value_name = "MEMBER", value_parser = MemberId::parse, required_unless_present = "end",
            requires = "until")]
        to: Option<MemberId>,
        /// Until when: 2026-12-24T08:00:00Z (RFC 3339), or how long from now: 8h, 3d, 2w
        #[arg(long, value_name = "TIME", value_parser = Ahead::parse, requires = "to")]
        until: Option<Ahead>,
        /// Ends it now
        #[arg(long, conflicts_with_all = ["to", "until"])]
        end: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes the key of an invited member from the invitation's code; needs no key
    #[command(after_help = "\
Without CODE the code is read from standard input: others on the machine can read a command line. --key-file names the
new file for the key (mode 0600); without it the key is printed, once.

Examples:
  stage0 members accept --key-file me.key
  stage0 members accept --url https://stage0.example.com --key-file me.key < code")]
    Accept {
        /// The code, `inv_…` (default: it is read from standard input)
        code: Option<String>,
        /// Prints the server's answer as JSON, without the key if that goes to a file
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Name of the person, for lists
    pub(crate) name: String,
    /// Mail address, for lists; nothing is sent to it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mail: Option<String>,
    /// Group that approvals are asked of, such as `release-managers`; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// What the person's key may do; may be repeated (default: approvals:decide)
    #[arg(long = "scope", value_name = "SCOPE", value_parser = scope)]
    pub(crate) scopes: Vec<Scope>,
    #[command(flatten)]
    pub(crate) valid: Valid,
    /// Account of the member; needs an operator's key
    #[arg(long, value_parser = AccountId::parse)]
    pub(crate) account: Option<AccountId>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Valid {
    /// How long the code can be used: 60s to 24h (default: 24h)
    #[arg(long = "valid", value_name = "TIME", value_parser = valid)]
    pub(crate) seconds: Option<u64>,
}

fn valid(text: &str) -> Result<u64, String> {
    let seconds = length(text).and_then(|length| u64::try_from(length.as_secs()).ok());
    let seconds = seconds.filter(|seconds| (60..=MAX_INVITATION_SECONDS).contains(seconds));
    seconds.ok_or_else(|| "must be from 60s to 24h, such as 30m or 8h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_lasts_from_a_minute_to_a_day() {
        for (text, seconds) in [("60s", 60), ("30m", 1_800), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(valid(text), Ok(seconds), "{text}");
        }
        for bad in ["", "59s", "25h", "-1h", "1", "1y"] {
            assert!(valid(bad).unwrap_err().contains("24h"), "{bad}");
        }
    }
}
