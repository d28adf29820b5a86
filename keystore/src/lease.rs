//! One keystore at a time: a lease with a term, in the state store.
//!
//! Owns the record `keystore.lease`, the waiting for it, its renewal and its release. Each change is a compare-and-set,
//! so that of two who want it one gets it. INVARIANT: the holder counts its lease from before it sends a renewal, by
//! the clock that runs while the host sleeps; whoever waits counts from after it read the record. So the holder has
//! stopped before the next one begins, whatever was frozen. A directory that is locked here and that the record says
//! the holder used proves that the holder has ended: a keystore that was killed is followed at once on its own host.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use stage0_backplane::{Ledger, PutError, Record, Revision};
use stage0_contract::KEYSTORE_RECORDS;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::head;
use crate::health::Health;
use crate::lock::{self, LockedDirectory};
use crate::vault::OpenError;

/// How long a keystore serves after it last asked to go on.
const LEASE_TTL: Duration = Duration::from_secs(5);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Of those who wait.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// For one question to the state store.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Whoever uses the directory without the lease is not waited for any longer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Of two clocks that run at the same speed; between reading one and doing what it says.
const MARGIN: Duration = Duration::from_millis(250);

/// How long leases last; a deployment's are fixed.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    /// From before the last renewal was sent.
    pub ttl: Duration,
    /// Between two renewals.
    pub renew_interval: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { ttl: LEASE_TTL, renew_interval: RENEW_INTERVAL }
    }
}

/// The right to serve, and until when. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Tenure {
    /// Nanoseconds of the kernel's clock.
    until: Arc<AtomicU64>,
    lost: CancellationToken,
    place: Arc<Mutex<Option<String>>>,
    /// Notified when the place is another one.
    moved: Arc<Notify>,
}

impl Tenure {
    /// Of a keystore beside which there can be no other: its directory's lock is all there is.
    pub(crate) fn for_life() -> Self {
        Self::until(u64::MAX)
    }

    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self::until(0)
    }

    fn until(nanoseconds: u64) -> Self {
        Self {
            until: Arc::new(AtomicU64::new(nanoseconds)),
            lost: CancellationToken::new(),
            place: Arc::default(),
            moved: Arc::default(),
        }
    }

    /// Whether this keystore may serve at this moment.
    pub(crate) fn holds(&self) -> bool {
        now() < self.until.load(Ordering::Acquire)
    }

    /// Another one serves from now on, or may.
    pub(crate) fn lose(&self) {
        self.until.store(0, Ordering::Release);
        self.lost.cancel();
    }

    /// Whether it is lost for good.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Resolves when it is lost for good.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Which journal is locked: said with a renewal at once.
    pub(crate) fn stands_at(&self, place: Option<String>) {
        let mut known = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != place {
            *known = place;
            self.moved.notify_one();
        }
    }
}

/// What the record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseRecord {
    /// Drawn by each process.
    holder: String,
    /// Rises with each holder.
    term: u64,
    /// The journal that the holder has locked, where another process of its host can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// The holder ended in order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    released: bool,
}

/// The lease of this process, renewed until it is released.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) tenure: Tenure,
    pub(crate) term: u64,
    stop: CancellationToken,
    renewing: AbortOnDropHandle<()>,
}

impl Lease {
    /// Leaves the place to whoever waits. Close the files first.
    pub(crate) async fn release(self) {
        self.stop.cancel();
        if self.renewing.await.is_err() {
            tracing::error!("the renewal of the lease ended early");
        }
    }
}

/// Who waits, and for what.
struct Waiting<'a> {
    ledger: &'a Arc<dyn Ledger>,
    dir: &'a Path,
    times: LeaseTimes,
    health: &'a Health,
    own: String,
    /// The record as it was first seen in its state, and when.
    seen: Option<(Option<Revision>, u64)>,
    /// Since when the directory is in use though nobody holds the lease.
    in_use_since: Option<u64>,
}

/// Waits until this keystore is the one that serves, and its directory is locked.
pub(crate) async fn acquire(
    ledger: &Arc<dyn Ledger>,
    dir: &Path,
    times: LeaseTimes,
    health: &Health,
) -> Result<(Lease, LockedDirectory), AcquireError> {
    let own = data_encoding::HEXLOWER.encode(&crate::manage::random::<8>()?);
    let mut waiting = Waiting { ledger, dir, times, health, own, seen: None, in_use_since: None };
    loop {
        if let Some(taken) = waiting.try_once().await? {
            return Ok(taken);
        }
        sleep(POLL_INTERVAL.min(times.renew_interval)).await;
    }
}

/// There is no lease for this keystore.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error("there is no randomness")]
    Random(#[from] getrandom::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the directory was not locked to the end")]
    Cancelled(#[from] tokio::task::JoinError),
}

impl Waiting<'_> {
    async fn try_once(&mut self) -> Result<Option<(Lease, LockedDirectory)>, AcquireError> {
        let read = async { Ok::<_, String>((read(self.ledger).await?, head::read(self.ledger).await?)) };
        let (found, head) = match read.await {
            Ok(found) => found,
            Err(error) => {
                self.health.waits(&format!("the state store does not answer: {error}"));
                return Ok(None);
            }
        };
        let (record, revision) = found.map_or((None, None), |(record, revision)| (Some(record), Some(revision)));
        let since = self.seen.filter(|(seen, _)| *seen == revision).map_or_else(now, |(_, since)| since);
        self.seen = Some((revision, since));
        let vacant = record.as_ref().is_none_or(|record| record.released || record.holder == self.own);
        let stale = now().saturating_sub(since) > nanoseconds(self.times.ttl.saturating_add(MARGIN));
        let here = record.as_ref().and_then(|record| record.place.clone());
        let same_place = here.is_some() && here == lock::place(self.dir);
        let term = record.as_ref().map_or(0, |record| record.term);
        let held = !(vacant || stale);
        let why = if held {
            format!("stands by: another keystore holds the lease (term {term})")
        } else {
            "stands by: another process uses the data directory".to_owned()
        };
        if held && !same_place {
            self.health.waits(&why);
            return Ok(None);
        }
        let Some(directory) = self.lock(vacant, &why).await? else { return Ok(None) };
        // Locked, but perhaps not what was looked at before.
        if held && directory.place() != here {
            return Ok(None);
        }
        // By the clock, so that it rises also where the state store has lost what it knew: gateways remember the last
        // one.
        let seconds = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let term = term.max(head.map_or(0, |(head, _)| head.term)).saturating_add(1).max(seconds);
        let record = LeaseRecord { holder: self.own.clone(), term, place: directory.place(), released: false };
        let sent = now();
        match put(self.ledger, &record, revision).await {
            Ok(revision) => Ok(Some((self.begin(record, revision, sent), directory))),
            Err(PutError::Conflict) => Ok(None),
            Err(PutError::Failed(error)) => {
                self.health.waits(&format!("the state store does not answer: {error}"));
                Ok(None)
            }
        }
    }

    /// None: another process has it locked, and may yet end.
    async fn lock(&mut self, vacant: bool, why: &str) -> Result<Option<LockedDirectory>, AcquireError> {
        let dir = self.dir.to_owned();
        match tokio::task::spawn_blocking(move || LockedDirectory::take(&dir)).await? {
            Ok(directory) => Ok(Some(directory)),
            Err(OpenError::Locked(dir)) => {
                let since = *self.in_use_since.get_or_insert_with(now);
                if !vacant {
                    self.in_use_since = None;
                } else if now().saturating_sub(since) > nanoseconds(LOCK_TIMEOUT) {
                    return Err(OpenError::Locked(dir).into());
                }
                self.health.waits(why);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn begin(&self, record: LeaseRecord, revision: Revision, sent: u64) -> Lease {
        let tenure = Tenure::until(sent.saturating_add(nanoseconds(self.times.ttl)));
        tenure.stands_at(record.place.clone());
        let (stop, term) = (CancellationToken::new(), record.term);
        tracing::info!(term, holder = record.holder, "keystore holds the lease");
        let renewal = Renewal {
            ledger: Arc::clone(self.ledger),
            record,
            revision: Some(revision),
            times: self.times,
            tenure: tenure.clone(),
            health: self.health.clone(),
            lapsed: false,
        };
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewal.run(stop.clone())));
        Lease { tenure, term, stop, renewing }
    }
}

/// Asks to go on, again and again.
struct Renewal {
    ledger: Arc<dyn Ledger>,
    record: LeaseRecord,
    revision: Option<Revision>,
    times: LeaseTimes,
    tenure: Tenure,
    health: Health,
    lapsed: bool,
}

impl Renewal {
    async fn run(mut self, stop: CancellationToken) {
        let mut pause = self.times.renew_interval;
        let moved = Arc::clone(&self.tenure.moved);
        while stop.run_until_cancelled(timeout(pause, moved.notified())).await.is_some() {
            let place = self.tenure.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.record.place = place;
            let sent = now();
            pause = match put(&self.ledger, &self.record, self.revision).await {
                Ok(revision) => {
                    self.revision = Some(revision);
                    self.renewed(sent);
                    self.times.renew_interval
                }
                Err(PutError::Conflict) => match read(&self.ledger).await {
                    // Ours, of which only the acknowledgement was lost; or nobody's.
                    Ok(found) if found.as_ref().is_none_or(|(found, _)| found.holder == self.record.holder) => {
                        self.revision = found.map(|(_, revision)| revision);
                        Duration::ZERO
                    }
                    Ok(found) => {
                        let term = found.map_or(0, |(found, _)| found.term);
                        tracing::error!(term, own_term = self.record.term, "another keystore took over");
                        self.tenure.lose();
                        return;
                    }
                    Err(error) => self.failed(&error),
                },
                Err(PutError::Failed(error)) => self.failed(&error),
            };
        }
        if self.tenure.lost.is_cancelled() {
            return;
        }
        self.tenure.until.store(0, Ordering::Release);
        self.record.released = true;
        if let Err(error) = put(&self.ledger, &self.record, self.revision).await {
            tracing::warn!(%error, "the lease could not be released: it ends by itself");
        }
    }

    fn renewed(&mut self, sent: u64) {
        let until = sent.saturating_add(nanoseconds(self.times.ttl));
        self.tenure.until.fetch_max(until, Ordering::AcqRel);
        if std::mem::take(&mut self.lapsed) {
            tracing::info!(term = self.record.term, "the lease is renewed, and the keystore serves again");
            self.health.serves();
        }
    }

    fn failed(&mut self, error: &str) -> Duration {
        if !self.tenure.holds() {
            self.lapsed = true;
            self.health.waits(&format!("the lease cannot be renewed: {error}"));
        }
        RETRY_DELAY
    }
}

/// Who holds the lease, in words for an operator; none: nobody ever did, or the last one left in order.
pub async fn lease_holder(ledger: &Arc<dyn Ledger>) -> Result<Option<String>, String> {
    let found = read(ledger).await?;
    let held = found.filter(|(record, _)| !record.released);
    Ok(held.map(|(record, _)| format!("held by {} in term {}", record.holder, record.term)))
}

fn key() -> String {
    format!("{KEYSTORE_RECORDS}.lease")
}

async fn read(ledger: &Arc<dyn Ledger>) -> Result<Option<(LeaseRecord, Revision)>, String> {
    let found = ledger.get(&key(), Instant::now() + STORE_TIMEOUT).await.map_err(|error| error.to_string())?;
    let Some(Record { revision, value }) = found else { return Ok(None) };
    let record = serde_json::from_slice(&value).map_err(|_| "the lease cannot be read".to_owned())?;
    Ok(Some((record, revision)))
}

async fn put(ledger: &Arc<dyn Ledger>, record: &LeaseRecord, expected: Option<Revision>) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(record).map_err(|error| PutError::Failed(error.to_string()))?;
    ledger.put(&key(), value.into(), expected, None, Instant::now() + STORE_TIMEOUT).await
}

/// By the kernel's clock, which goes on while the host sleeps or the process is frozen.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
