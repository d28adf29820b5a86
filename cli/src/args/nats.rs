//! Arguments of `stage0 nats-config`, `nats-admin` and `nats-keys`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use stage0_backplane::nats::{ClusterRoute, Logins};

use crate::settings::stream_size;

/// For each role. The server accepts a thousand connections in total.
const MAX_LOGINS: u16 = 100;

#[derive(Debug, Args)]
pub(crate) struct NatsConfigArgs {
    /// First part of every subject: the roles' `nats-prefix`
    #[arg(long, value_name = "WORD", default_value = "s0", value_parser = prefix)]
    pub(crate) prefix: String,
    /// Name of the server, unique in a cluster
    #[arg(long, value_name = "NAME", default_value = "n1", value_parser = word)]
    pub(crate) name: String,
    /// Address to serve NATS on
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:4222")]
    pub(crate) listen: SocketAddr,
    /// Address of the monitor; only gateways and audit-export should reach it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8222")]
    pub(crate) monitor: SocketAddr,
    /// Directory with `server.pem`, `server.key` and `ca.pem`
    #[arg(long, value_name = "DIR", default_value = "/etc/nats")]
    pub(crate) tls_dir: PathBuf,
    /// Directory of JetStream's data
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nats")]
    pub(crate) store_dir: PathBuf,
    /// Disk space that JetStream may use on this server
    #[arg(long, value_name = "SIZE", default_value = "20GB", value_parser = size)]
    pub(crate) max_store: String,
    /// Makes the server one of a cluster with this name, which is the same on each of its servers; needs --route
    #[arg(long, value_name = "NAME", value_parser = word)]
    pub(crate) cluster: Option<String>,
    /// Address to serve the routes of the cluster's other servers on (default: 0.0.0.0:6222)
    #[arg(long, value_name = "ADDR")]
    pub(crate) cluster_listen: Option<SocketAddr>,
    /// Another server of the cluster, by a DNS name in its certificate; repeated for each of them
    #[arg(long = "route", value_name = "NAME:PORT", value_parser = route)]
    pub(crate) routes: Vec<ClusterRoute>,
    /// Directory with `server.pem`, `server.key` and `ca.pem` for routes (default: the one of --tls-dir)
    #[arg(long, value_name = "DIR")]
    pub(crate) cluster_tls_dir: Option<PathBuf>,
    /// File beside the configuration that sets the password variables (default: the environment sets them)
    #[arg(long, value_name = "FILE", value_parser = word)]
    pub(crate) passwords: Option<String>,
    /// Directory for the roles' message keys, which are created if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) keys_dir: Option<PathBuf>,
    /// Directory for the passwords: `gateway/gateway-1.password` and so on, created if missing, and `passwords.conf`,
    /// which sets all password variables
    #[arg(long, value_name = "DIR")]
    pub(crate) logins_dir: Option<PathBuf>,
    /// Logins for gateways, one for each process; 0: all share the login `gateway`
    #[arg(long, value_name = "N", default_value_t = Logins::default().gateways, value_parser = count)]
    pub(crate) gateways: u16,
    /// Logins for evaluators
    #[arg(long, value_name = "N", default_value_t = Logins::default().evaluators, value_parser = count)]
    pub(crate) evaluators: u16,
    /// Logins for keystores
    #[arg(long, value_name = "N", default_value_t = Logins::default().keystores, value_parser = count)]
    pub(crate) keystores: u16,
    /// Logins for audit-export
    #[arg(long, value_name = "N", default_value_t = Logins::default().audit_exports, value_parser = count)]
    pub(crate) audit_exports: u16,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum NatsAdminCommand {
    /// Creates missing streams; existing ones are not changed
    Init,
    /// Compares every stream with the required settings; changes nothing
    Check,
    /// Corrects the streams for this version, and moves records of an earlier version to their own streams
    Upgrade,
}

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

fn prefix(text: &str) -> Result<String, String> {
    let is_usable = text.split('.').all(|part| word(part).is_ok());
    let rule = "must be letters, digits, `-` and `_`, in parts joined by dots";
    is_usable.then(|| text.to_owned()).ok_or_else(|| rule.to_owned())
}

/// A word that needs no quotes in nats-server's configuration.
fn word(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_usable = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain);
    let rule = "must be a letter, then letters, digits, `-`, `_` and `.`";
    is_usable.then(|| text.to_owned()).ok_or_else(|| rule.to_owned())
}

fn route(text: &str) -> Result<ClusterRoute, String> {
    let rule = "must be a DNS name and a port, such as n2.example:6222; not an address, as servers know each other by \
                the names in their certificates";
    ClusterRoute::parse(text).ok_or_else(|| rule.to_owned())
}

fn count(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|count| *count <= MAX_LOGINS).ok_or_else(|| format!("must be 0 to {MAX_LOGINS}"))
}

fn size(text: &str) -> Result<String, String> {
    stream_size().parse(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_would_break_the_configuration_are_refused() {
        for bad in ["", "a b", "$JS", "1", "a\"", "a}", "a\n"] {
            assert!(word(bad).is_err() && prefix(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a..b", "a.", ".a"] {
            assert!(prefix(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "20", "GB", "0GB", "-1GB", "2 GB", "20GB }"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "n2", "10.0.0.2:6222", "nats-route://n2:6222", "n2:0"] {
            assert!(route(bad).unwrap_err().contains("DNS name"), "{bad:?}");
        }
        assert_eq!((prefix("a.b-1").unwrap(), size("20GB").unwrap()), ("a.b-1".to_owned(), "20GB".to_owned()));
    }
}
