//! Arguments of `stage0 stack`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use stage0_runtime::settings::kinds::https_url;

#[derive(Debug, Subcommand)]
pub(crate) enum StackCommand {
    /// Creates missing certificates, passwords and the NATS configuration
    Init {
        /// Directory with a subdirectory for each service, which sees only its own
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Additional name or address of the gateways for clients; may be repeated
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
        /// Servers of NATS: 1, or 3 or 5 that are a cluster, `nats`, `nats-2` and so on, each with a subdirectory
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = nodes)]
        nats_nodes: u16,
    },
    /// Waits until the stack is ready, creates an account, a key and the receiver's endpoint once, and prints how to
    /// use it
    Open(Box<OpenArgs>),
    /// Prints the certificate authority for clients of the stack
    Ca {
        /// Directory of `stage0 stack open`
        #[arg(long, value_name = "DIR", default_value = "/etc/stage0")]
        dir: PathBuf,
    },
    /// Prints the API key that `open` created
    Key {
        /// Directory of `stage0 stack open`
        #[arg(long, value_name = "DIR", default_value = "/etc/stage0")]
        dir: PathBuf,
    },
}

fn nodes(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|count| [1, 3, 5].contains(count)).ok_or_else(|| "must be 1, 3 or 5".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// URL of the server inside the stack
    #[arg(long, value_name = "URL", value_parser = |text: &str| https_url().parse(text))]
    pub(crate) url: reqwest::Url,
    /// Where the server is published: a port, or an address and a port
    #[arg(long, value_name = "ADDR", value_parser = Published::parse)]
    pub(crate) published: Published,
    /// Where the receiver's page is published
    #[arg(long, value_name = "ADDR", value_parser = Published::parse)]
    pub(crate) page: Published,
    /// Name of this machine for clients, if the server is published beyond the loopback addresses
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub(crate) host: String,
    /// Webhook endpoint for the account's decisions
    #[arg(long, value_name = "URL", value_parser = |text: &str| https_url().parse(text))]
    pub(crate) endpoint: reqwest::Url,
    /// File with the operator's key, from the keystore
    #[arg(long, value_name = "FILE")]
    pub(crate) operator_key: PathBuf,
    /// Directory with `ca.pem`; keys and `dev.json` are written beside it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// File for the endpoint's signing secret
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    /// `None` means every address.
    address: Option<IpAddr>,
    port: u16,
}

impl Published {
    fn parse(text: &str) -> Result<Self, String> {
        let (address, port) = match text.rsplit_once(':') {
            None => (None, text),
            Some((address, port)) => (Some(address.trim_start_matches('[').trim_end_matches(']')), port),
        };
        let address = address.map(str::parse::<IpAddr>).transpose().ok();
        let parsed = address.zip(port.parse().ok().filter(|port| *port > 0));
        let rule = "must be a port, or an address and a port, such as 8443, 127.0.0.1:8443 or [::1]:8443";
        parsed.map(|(address, port)| Self { address, port }).ok_or_else(|| rule.to_owned())
    }

    /// The host and port for a client: `localhost` for a loopback address, the given host name for any address.
    pub(crate) fn at(self, host: &str) -> String {
        let port = self.port;
        match self.address {
            Some(address) if address.is_loopback() => format!("localhost:{port}"),
            Some(address) if !address.is_unspecified() && host == "localhost" => match address {
                IpAddr::V4(v4) => format!("{v4}:{port}"),
                IpAddr::V6(v6) => format!("[{v6}]:{port}"),
            },
            Some(_) | None => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_becomes_the_address_for_clients() {
        let at = |text: &str, host| Published::parse(text).unwrap().at(host);
        assert_eq!(at("127.0.0.1:8443", "x.example"), "localhost:8443");
        assert_eq!(at("[::1]:8443", "localhost"), "localhost:8443");
        for everywhere in ["8443", "0.0.0.0:8443", "[::]:8443"] {
            assert_eq!(at(everywhere, "x.example"), "x.example:8443");
            assert_eq!(at(everywhere, "localhost"), "localhost:8443");
        }
        assert_eq!(
            (at("192.0.2.7:1", "localhost"), at("192.0.2.7:1", "x")),
            ("192.0.2.7:1".to_owned(), "x:1".to_owned())
        );
    }

    #[test]
    fn a_malformed_port_is_refused() {
        for bad in ["", "x", "0", "65536", "localhost:8443", "127.0.0.1:", ":8443", "1-2"] {
            assert!(Published::parse(bad).is_err(), "{bad:?}");
        }
    }
}
