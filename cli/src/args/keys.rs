//! Arguments of `stage0 keys`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use stage0_contract::{AccountId, KeyId, MemberId, Scope};

use super::scope;

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Creates a key and shows it, once
    Create {
        /// What it is for; shown in lists
        #[arg(long)]
        name: String,
        /// What it may do; repeat for more
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = scope)]
        scopes: Vec<Scope>,
        /// Account that it belongs to
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// When it expires, such as 2027-01-31T00:00:00Z (default: never)
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        /// Member who answers for the workload, and so may not approve what it asks for
        #[arg(long, value_name = "MEMBER", value_parser = MemberId::parse)]
        owner: Option<MemberId>,
        #[command(flatten)]
        shown: NewKey,
    },
    /// Lists keys, without their secrets
    List {
        /// Account whose keys are listed
        #[arg(long, value_parser = AccountId::parse)]
        account: Option<AccountId>,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Creates a key that replaces another
    Rotate {
        /// The key to replace
        #[arg(value_parser = KeyId::parse)]
        id: KeyId,
        /// How long the old key still works (default: it ends at once)
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u64>,
        #[command(flatten)]
        shown: NewKey,
    },
    /// Revokes a key at once
    Revoke {
        /// The key
        #[arg(value_parser = KeyId::parse)]
        id: KeyId,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewKey {
    /// Writes the key to this new file (mode 0600) and prints only its id
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Prints the server's answer as JSON
    #[arg(long, conflicts_with = "out")]
    pub(crate) json: bool,
}
