//! What an exporter needs to be told.

use std::time::Duration;

use crate::egress::EgressConfig;

/// Settings of one exporter process.
#[derive(Debug, Clone)]
pub struct ExportConfig {
    /// How far out requests may go.
    pub egress: EgressConfig,
    /// How often an account whose decisions grew gets a checkpoint.
    pub checkpoint_every: Duration,
    /// How often what is past its retention is removed.
    pub retention_every: Duration,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            egress: EgressConfig::default(),
            checkpoint_every: Duration::from_secs(10),
            retention_every: Duration::from_secs(60),
        }
    }
}
