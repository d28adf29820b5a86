//! What the handlers of one worker thread share.

use std::sync::Arc;

use stage0_backplane::{Backplane, Requests};

use crate::config::GatewayConfig;
use crate::keyring::Keyring;
use crate::routes::Readiness;
use crate::throttle::FailedLogins;

/// One worker's view of the gateway.
#[derive(Clone)]
pub(crate) struct Gate {
    /// This worker's own connection.
    pub(crate) backplane: Backplane,
    pub(crate) config: Arc<GatewayConfig>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) failed_logins: Arc<FailedLogins>,
    pub(crate) readiness: Arc<Readiness>,
}

impl Gate {
    pub(crate) fn requests(&self) -> &dyn Requests {
        &*self.backplane.requests
    }
}
