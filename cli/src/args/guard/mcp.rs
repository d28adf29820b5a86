//! Arguments of `stage0 guard mcp`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::AboutAgent;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct McpArgs {
    #[command(subcommand)]
    pub(crate) pins: Option<McpCommand>,
    /// Name of the guarded server in checks and pins (default: `mcp`)
    #[arg(long, value_name = "SERVER", default_value = "mcp")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) about: AboutAgent,
    #[command(flatten)]
    pub(crate) pins_file: PinsFile,
    /// Shows every tool in lists, also those that the policy can never allow. Each call is decided all the same
    #[arg(long)]
    pub(crate) whole_lists: bool,
    /// Asks a client that can open pages to open the approval of a deferred call, once, instead of answering the call.
    /// Only where the server's public URL shows people that page
    #[arg(long)]
    pub(crate) elicit: bool,
    /// Server to guard, reached over streamable HTTP
    #[arg(long, value_name = "URL", requires = "listen", conflicts_with = "server")]
    pub(crate) upstream: Option<reqwest::Url>,
    /// PEM file: the authority of the upstream, instead of the system's
    #[arg(long, value_name = "FILE", requires = "upstream")]
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Address for clients of the upstream
    #[arg(long, value_name = "ADDR", requires = "upstream")]
    pub(crate) listen: Option<SocketAddr>,
    /// Lets --listen be an address that other machines reach
    #[arg(long, requires = "listen")]
    pub(crate) listen_beyond_loopback: bool,
    /// Web page that may use the guard, such as `https://inspector.example`; may be given again
    #[arg(long, value_name = "ORIGIN", requires = "listen")]
    pub(crate) allow_origin: Vec<String>,
    /// Further name of this machine in clients' URLs; may be given again
    #[arg(long, value_name = "NAME", requires = "listen")]
    pub(crate) allow_host: Vec<String>,
    /// Program of the server to guard, with its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "upstream")]
    pub(crate) server: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct PinsFile {
    /// File with the hashes of the tools' definitions (default: $XDG_STATE_HOME/stage0/guard/mcp-pins.json, else
    /// ~/.local/state/stage0/guard/mcp-pins.json)
    #[arg(long = "pins", value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum McpCommand {
    /// Lists and accepts the definitions of tools that the guard has seen
    #[command(subcommand)]
    Pins(PinsCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PinsCommand {
    /// Lists every tool that was seen: since when its definition is trusted, and whether it has changed
    #[command(after_help = "\
DEFINITION is the beginning of a SHA-256; JSON has all of it. The file keeps no text of a definition, because a changed
one could tell anything to a model that reads the file.")]
    List {
        #[command(flatten)]
        file: PinsFile,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Accepts the changed definition of one tool, or of all tools of a server
    Accept {
        /// Name of the guarded server
        #[arg(long, value_name = "SERVER")]
        name: String,
        /// Tool (default: all tools of the server)
        tool: Option<String>,
        #[command(flatten)]
        file: PinsFile,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}
