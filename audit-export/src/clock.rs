//! The time by which things end here, and whether it may destroy.
//!
//! Owns reading the clocks, what was believed on this boot of this host (kept in the ledger, so that a new process
//! compares with it), and the newest record of the log where nothing was kept. `trust` judges. While the clock is not
//! believed, `now` is the best that is known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_backplane::clock::{self, Clocks};
use stage0_backplane::{Backplane, Kind, PutError, ReadError};
use stage0_contract::VouchedTime;

use crate::shared::Shared;
use crate::trust::{Trust, Verdict};

/// Reads the clocks: the host's, or a test's.
pub type ClockReader = Arc<dyn Fn() -> Clocks + Send + Sync>;

/// Accounts whose newest record is looked at: a few minutes' records of any of them tell what time it was.
const MAX_ACCOUNTS: usize = 1_000;
const ANCHOR_TTL: Duration = Duration::from_secs(400 * 86_400);

pub(crate) struct Clock {
    read: ClockReader,
    /// None until what is known was read.
    trust: Mutex<Option<Trust>>,
}

/// As it is kept.
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

    /// The time by which things end.
    pub(crate) fn now(&self) -> Timestamp {
        let clocks = self.clocks();
        self.lock().as_ref().map_or(clocks.wall, |trust| trust.time(clocks))
    }

    /// Another process answered just now. This one's own roles are no second clock.
    pub(crate) fn hear(&self, said: &VouchedTime) {
        if said.process != clock::process()
            && let Some(trust) = self.lock().as_mut()
        {
            trust.hear(self.clocks(), said.at);
        }
    }

    /// Reads what is known, unless it was read already.
    pub(crate) async fn load(&self, backplane: &Backplane) -> Result<(), ReadError> {
        if self.lock().is_some() {
            return Ok(());
        }
        let anchor = kept(backplane).await?;
        let newest = if anchor.is_none() { newest_record(backplane).await? } else { None };
        let mut trust = self.lock();
        if trust.is_none() {
            *trust = Some(Trust::new(self.clocks(), anchor, newest));
        }
        Ok(())
    }

    /// Compares the clocks; none while what is known was not read.
    pub(crate) async fn judge(&self, backplane: &Backplane) -> Option<Verdict> {
        let (verdict, anchor) = {
            let mut trust = self.lock();
            let trust = trust.as_mut()?;
            (trust.judge(self.clocks()), trust.anchor())
        };
        if verdict == Verdict::Believed
            && let Some(anchor) = anchor
        {
            keep(backplane, anchor).await;
        }
        Some(verdict)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trust>> {
        // Each use is one step: a panic elsewhere cannot leave it half done.
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was believed on this boot of this host; none on a new one.
async fn kept(backplane: &Backplane) -> Result<Option<i64>, ReadError> {
    let Some(key) = key() else { return Ok(None) };
    let record = backplane.ledger.get(&key, Shared::soon()).await?;
    let anchor = record.and_then(|record| serde_json::from_slice::<Anchor>(&record.value).ok());
    Ok(anchor.map(|anchor| anchor.offset_micros))
}

/// Best effort: without it, the next process compares with others.
async fn keep(backplane: &Backplane, offset_micros: i64) {
    let Some(key) = key() else { return };
    let Ok(value) = serde_json::to_vec(&Anchor { offset_micros }) else { return };
    let found = match backplane.ledger.get(&key, Shared::soon()).await {
        Ok(Some(found)) if found.value == value => return,
        Ok(found) => found.map(|found| found.revision),
        Err(error) => {
            tracing::warn!(%error, "what the time was could not be read");
            return;
        }
    };
    match backplane.ledger.put(&key, value.into(), found, Some(ANCHOR_TTL), Shared::soon()).await {
        // Another exporter on this host wrote as much.
        Ok(_) | Err(PutError::Conflict) => {}
        Err(error @ PutError::Failed(_)) => tracing::warn!(%error, "what the time is could not be kept"),
    }
}

/// Among the exporter's own records.
fn key() -> Option<String> {
    clock::boot_id().map(|boot| format!("cursor.clock-{boot}"))
}

/// When the newest decision was stored, by the store's clock.
async fn newest_record(backplane: &Backplane) -> Result<Option<Timestamp>, ReadError> {
    let mut newest = None;
    for account in backplane.log.accounts(Shared::soon()).await?.into_iter().take(MAX_ACCOUNTS) {
        let last = backplane.log.last(&account, Kind::Decisions, Shared::soon()).await?;
        newest = newest.max(last.map(|last| last.stored_at));
    }
    Ok(newest)
}
