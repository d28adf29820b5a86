//! The time by which lines expire, and whether it is trusted enough to remove any.
//!
//! The offset that was trusted on this boot of this host is stored, so that a new process can compare with it; without
//! one, the newest record of the log tells the time. While the clock is not trusted, `now` is the best time known.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_backplane::clock::{self, Clocks};
use stage0_backplane::{Backplane, EntryKind, PutError, ReadError};
use stage0_contract::SecondClock;

use crate::clock_trust::{ClockStatus, ClockTrust};
use crate::shared::{Shared, lock};

/// Reads the clocks: the host's, or a test's.
pub type ClockReader = Arc<dyn Fn() -> Clocks + Send + Sync>;

/// Accounts whose newest record is read: a recent record of any one of them tells what time it was.
const MAX_ACCOUNTS: usize = 1_000;
const ANCHOR_TTL: Duration = Duration::from_secs(400 * 86_400);

pub(crate) struct Clock {
    read: ClockReader,
    /// None until the stored offset or the newest record was read.
    trust: Mutex<Option<ClockTrust>>,
}

#[derive(Serialize, Deserialize)]
struct Anchor {
    offset_micros: i64,
}

impl Clock {
    pub(crate) fn new(read: ClockReader) -> Self {
        Self { read, trust: Mutex::default() }
    }

    pub(crate) fn clocks(&self) -> Clocks {
        (self.read)()
    }

    pub(crate) fn now(&self) -> Timestamp {
        let clocks = self.clocks();
        lock(&self.trust).as_ref().map_or(clocks.wall, |trust| trust.time(clocks))
    }

    /// Notes the time that another process just reported. This process's own roles share its clock.
    pub(crate) fn observe(&self, reported: &SecondClock) {
        if reported.process != clock::process()
            && let Some(trust) = lock(&self.trust).as_mut()
        {
            trust.observe(self.clocks(), reported.at);
        }
    }

    pub(crate) async fn load(&self, backplane: &Backplane) -> Result<(), ReadError> {
        if lock(&self.trust).is_some() {
            return Ok(());
        }
        let anchor = stored_offset(backplane).await?;
        let newest = if anchor.is_none() { newest_record(backplane).await? } else { None };
        let mut trust = lock(&self.trust);
        if trust.is_none() {
            *trust = Some(ClockTrust::new(self.clocks(), anchor, newest));
        }
        Ok(())
    }

    /// Compares the clocks; none before [`Clock::load`] has succeeded.
    pub(crate) async fn check(&self, backplane: &Backplane) -> Option<ClockStatus> {
        let (status, anchor) = {
            let mut trust = lock(&self.trust);
            let trust = trust.as_mut()?;
            (trust.check(self.clocks()), trust.anchor)
        };
        if status == ClockStatus::Trusted
            && let Some(anchor) = anchor
        {
            store_offset(backplane, anchor).await;
        }
        Some(status)
    }
}

/// The offset that was trusted on this boot of this host; none after a new boot.
async fn stored_offset(backplane: &Backplane) -> Result<Option<i64>, ReadError> {
    let Some(key) = key() else { return Ok(None) };
    let record = backplane.state_store.get(&key, Shared::store_deadline()).await?;
    let anchor = record.and_then(|record| serde_json::from_slice::<Anchor>(&record.value).ok());
    Ok(anchor.map(|anchor| anchor.offset_micros))
}

/// Best effort: without it, the next process compares with other clocks.
async fn store_offset(backplane: &Backplane, offset_micros: i64) {
    let Some(key) = key() else { return };
    let Ok(value) = serde_json::to_vec(&Anchor { offset_micros }) else { return };
    let found = match backplane.state_store.get(&key, Shared::store_deadline()).await {
        Ok(Some(found)) if found.value == value => return,
        Ok(found) => found.map(|found| found.revision),
        Err(error) => {
            tracing::warn!(error = &error as &dyn Error, "the trusted time cannot be read");
            return;
        }
    };
    match backplane.state_store.put(&key, value.into(), found, Some(ANCHOR_TTL), Shared::store_deadline()).await {
        // Another exporter on this host stored its offset.
        Ok(_) | Err(PutError::Conflict) => {}
        Err(error @ PutError::Failed(_)) => {
            tracing::warn!(error = &error as &dyn Error, "the trusted time cannot be stored");
        }
    }
}

/// Below `cursor.`, where the exporter may write.
fn key() -> Option<String> {
    clock::boot_id().map(|boot| format!("cursor.clock-{boot}"))
}

async fn newest_record(backplane: &Backplane) -> Result<Option<Timestamp>, ReadError> {
    let mut newest = None;
    for account in backplane.log.accounts(Shared::store_deadline()).await?.into_iter().take(MAX_ACCOUNTS) {
        let last = backplane.log.last(&account, EntryKind::Decisions, Shared::store_deadline()).await?;
        newest = newest.max(last.map(|last| last.stored_at));
    }
    Ok(newest)
}
