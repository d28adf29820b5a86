//! The exporter's settings: one row each, with name, unit, default and help (`stage0_runtime::settings`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stage0_runtime::settings;
use stage0_runtime::settings::kinds::{addresses, boolean, path, seconds};

settings! {
    /// How far out requests may go, and how long they may take.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct EgressConfig {
        /// PEM file: authorities to trust for webhooks beside the system's
        extra_ca: Option<PathBuf> = "webhook-ca" "FILE" in "Audit", optional, path();
        /// Addresses with ports, separated by commas, of the DNS servers that resolve the hosts of webhooks, beside
        /// the hosts file (default: those of `/etc/resolv.conf`)
        name_servers: Vec<SocketAddr> = "webhook-name-servers" "LIST" in "Audit", or(Vec::new()), addresses();
        /// Lets webhooks reach loopback and private addresses, those also over plain http: for local stacks. With it a
        /// customer can make the exporter call machines of the operator
        dangerous_allow_private: bool = "dangerous-allow-private-webhooks" "BOOL" in "Audit", default(false),
            boolean();
    }
    given {
        /// For a whole attempt, from the look-up to the end of the answer's body.
        timeout: Duration = Duration::from_secs(15);
        /// For TCP and TLS together.
        connect_timeout: Duration = Duration::from_secs(5);
    }
}

settings! {
    /// Settings of one exporter process.
    #[derive(Debug, Clone)]
    pub struct ExportConfig {
        /// How often an account with new decisions gets a signed checkpoint
        checkpoint_interval: Duration = "checkpoint-seconds" "SECONDS" in "Audit", default(Duration::from_secs(10)),
            seconds(86_400);
    }
    given {
        /// How far out requests may go.
        egress: EgressConfig = EgressConfig::default();
        /// How often decisions that are past their retention are removed.
        retention_interval: Duration = Duration::from_secs(60);
    }
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self::defaults()
    }
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self::defaults()
    }
}
