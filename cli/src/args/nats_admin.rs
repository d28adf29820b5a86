//! Arguments of `stage0 nats-admin`.

use clap::Subcommand;

/// `stage0 nats-admin …`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum NatsAdminCommand {
    /// Creates missing streams; existing ones are not changed
    Init,
    /// Compares every stream with the required settings; changes nothing
    Check,
    /// Corrects the streams for this version, and moves records of an earlier version to their own streams
    Upgrade,
}
