//! `stage0 nats-keys`: what can be typed.

use std::path::PathBuf;

use clap::Subcommand;

/// `stage0 nats-keys …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DoNatsKeys {
    /// Makes a file of keys for each role
    Create {
        /// Directory for the files, one a role
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// For a deployment that runs already: what is stored without keys stays readable, and roles may be started one
        /// by one
        #[arg(long)]
        upgrade: bool,
    },
    /// Replaces the keys, one of three steps at each call
    Rotate {
        /// Directory with the files of all roles
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Shows which generations are used and accepted
    Show {
        /// Directory with the files of all roles
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}
