//! `stage0 stack`: what can be typed.

use std::path::PathBuf;

use clap::Subcommand;

use crate::settings::parse::https_url;

/// `stage0 stack …`.
#[derive(Debug, Subcommand)]
pub(crate) enum DoStack {
    /// Makes what is missing of authority, certificates, passwords and NATS' configuration
    Init {
        /// Directory with a folder for each service, of which the service sees its own alone
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Another name or address by which clients reach the gateways; repeat for more
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
    },
    /// Waits until the stack answers, makes an account, a key and the receiver's endpoint once, and says how to ask
    Open {
        /// Server to ask, inside the stack
        #[arg(long, value_name = "URL", value_parser = https_url)]
        url: reqwest::Url,
        /// The same server, as clients outside reach it
        #[arg(long, value_name = "URL")]
        public_url: String,
        /// The receiver's page, as browsers reach it
        #[arg(long, value_name = "URL")]
        page_url: String,
        /// Endpoint for the account's decisions
        #[arg(long, value_name = "URL", value_parser = https_url)]
        endpoint: reqwest::Url,
        /// File with the operator's key, as the keystore wrote it
        #[arg(long, value_name = "FILE")]
        operator_key: PathBuf,
        /// Directory with `ca.pem`; keys and `dev.json` are put beside it
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// File for the endpoint's signing secret
        #[arg(long, value_name = "FILE")]
        secret: PathBuf,
    },
    /// Prints the certificate authority that clients of the stack trust
    Ca {
        /// Directory that `open` filled
        #[arg(long, value_name = "DIR", default_value = "/etc/stage0")]
        dir: PathBuf,
    },
    /// Prints the API key of the account that `open` made
    Key {
        /// Directory that `open` filled
        #[arg(long, value_name = "DIR", default_value = "/etc/stage0")]
        dir: PathBuf,
    },
}
