//! What the handlers of one worker thread share.

use std::sync::Arc;

use moka::future::Cache;
use stage0_backplane::{Backplane, DecisionLog, Ledger, Requests};
use stage0_contract::PublicKeys;

use crate::config::GatewayConfig;
use crate::idempotency::Sightings;
use crate::in_flight::BytesInFlight;
use crate::in_hand::InHand;
use crate::instances::Instances;
use crate::key_uses::KeyUses;
use crate::keyring::Keyring;
use crate::quota::Quotas;
use crate::readers::Readers;
use crate::recorder::Recorder;
use crate::routes::Readiness;
use crate::throttle::{Bursts, FailedLogins, ManagementCalls};

/// One worker's view of the gateway.
#[derive(Clone)]
pub(crate) struct Gate {
    /// This worker's own connection.
    pub(crate) backplane: Backplane,
    pub(crate) config: Arc<GatewayConfig>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) key_uses: Arc<KeyUses>,
    pub(crate) failed_logins: Arc<FailedLogins>,
    /// None where there is no limit.
    pub(crate) bursts: Option<Arc<Bursts>>,
    /// None where there is no limit.
    pub(crate) management_calls: Option<Arc<ManagementCalls>>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) instances: Arc<Instances>,
    /// None only where nothing is recorded.
    pub(crate) recorder: Option<Recorder>,
    /// The public keys of marks: anybody may ask, so the keystore is asked once a second.
    pub(crate) signing_keys: Cache<(), PublicKeys>,
    /// Of the keys of requests whose time is still to come.
    pub(crate) sightings: Sightings,
    pub(crate) bytes: Arc<BytesInFlight>,
    pub(crate) in_hand: Arc<InHand>,
    pub(crate) readers: Arc<Readers>,
    /// The connection of long reads: an answer to a check does not wait behind a megabyte of log.
    pub(crate) reading: Backplane,
}

impl Gate {
    pub(crate) fn requests(&self) -> &dyn Requests {
        &*self.backplane.requests
    }

    pub(crate) fn ledger(&self) -> &dyn Ledger {
        &*self.backplane.ledger
    }

    pub(crate) fn log(&self) -> &dyn DecisionLog {
        &*self.backplane.log
    }
}
