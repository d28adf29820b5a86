//! `stage0 nats-admin`: what can be typed.

use clap::Subcommand;

/// `stage0 nats-admin …`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DoNatsAdmin {
    /// Makes the streams that are missing; those that are there stay as they are
    Init,
    /// Looks at every stream and says what differs from what it has to be; changes nothing
    Check,
    /// Makes the streams what this version needs, and moves the records of an earlier version into streams of their own
    Upgrade,
}
