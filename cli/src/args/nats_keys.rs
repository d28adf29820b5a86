//! Arguments of `stage0 nats-keys`.

use std::path::PathBuf;

use clap::Subcommand;

/// `stage0 nats-keys …`.
#[derive(Debug, Subcommand)]
pub(crate) enum NatsKeysCommand {
    /// Creates a key file for each role
    Create {
        /// Directory for the files
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// For a running deployment: data stored without keys stays readable, and roles may be restarted one by one
        #[arg(long)]
        upgrade: bool,
    },
    /// Replaces the keys in three steps, one per call
    Rotate {
        /// Directory with the files of all roles
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Shows which generations of keys are used and accepted
    Show {
        /// Directory with the files of all roles
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}
