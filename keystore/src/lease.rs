//! One keystore at a time: a lease with a term, in the state store.
//!
//! Owns the record `keystore.lease`, the waiting for it, its renewal and its release. Each change is a compare-and-set,
//! so that of two who want it one gets it. INVARIANT: the holder counts its lease from before it sends a renewal, by
//! the clock that runs while the host sleeps; whoever waits counts from after it read the record. So the holder has
//! stopped before the next one begins, whatever was frozen. Each renewal has a random value of its own: a record of the
//! own name that is not the one last written or tried means that the state store or this machine was put back, or that
//! this process was copied, and the lease is lost. A directory that is locked here and that the record says
//! the holder used proves that the holder has ended: a keystore that was killed is followed at once on its own host.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
/// A replica of the state store that lags for that long is one that went back.
pub(crate) const MAX_REPLICA_LAG: Duration = Duration::from_secs(2);
/// Of two clocks that run at the same speed; between reading one and doing what it says.
const MARGIN: Duration = Duration::from_millis(250);

/// As those who ask believe it.
const MAX_TERM_AHEAD_SECONDS: u64 = 86_400;

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

/// Why a lease is lost for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Another keystore serves.
    Followed,
    /// The state store's records are not those that this keystore wrote last.
    WentBack,
}

/// The right to serve, and until when. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Tenure {
    /// Nanoseconds of the kernel's clock.
    until: Arc<AtomicU64>,
    lost: CancellationToken,
    loss: Arc<OnceLock<Loss>>,
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
            loss: Arc::default(),
            place: Arc::default(),
            moved: Arc::default(),
        }
    }

    /// Whether this keystore may serve at this moment.
    pub(crate) fn holds(&self) -> bool {
        now() < self.until.load(Ordering::Acquire)
    }

    /// Another one serves from now on, or may.
    pub(crate) fn lose(&self, why: Loss) {
        self.until.store(0, Ordering::Release);
        self.loss.get_or_init(|| why);
        self.lost.cancel();
    }

    /// Why it is lost for good; none: it is not.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.loss.get().copied()
    }

    /// Resolves when it is lost for good.
    pub(crate) async fn lost(&self) -> Loss {
        self.lost.cancelled().await;
        self.loss().unwrap_or(Loss::Followed)
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
    /// Drawn for each renewal, and kept while it is tried again.
    #[serde(default)]
    renewal: String,
}

/// Terms go by the clock.
pub(crate) fn seconds() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

/// A term that somebody may have had; 0 for one from so far ahead that nobody would believe its keystore.
pub(crate) fn believable(term: u64, seconds: u64) -> u64 {
    if term > seconds.saturating_add(MAX_TERM_AHEAD_SECONDS) { 0 } else { term }
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
    /// Of the last attempt, which may have been stored though nobody said so.
    tried: Option<String>,
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
    let own = draw()?;
    let mut waiting = Waiting { ledger, dir, times, health, own, tried: None, seen: None, in_use_since: None };
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
    #[error("the state store went back to an earlier state")]
    WentBack,
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
                for key in [key(), head::key()] {
                    if went_back(self.ledger, &key).await {
                        return Err(AcquireError::WentBack);
                    }
                }
                return Ok(None);
            }
        };
        let (record, revision) = found.map_or((None, None), |(record, revision)| (Some(record), Some(revision)));
        let since = self.seen.filter(|(seen, _)| *seen == revision).map_or_else(now, |(_, since)| since);
        self.seen = Some((revision, since));
        let is_tried = |record: &LeaseRecord| self.tried.as_ref() == Some(&record.renewal);
        let vacant = record.as_ref().is_none_or(|record| record.released || is_tried(record));
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
        let (seconds, head) = (seconds(), head.map_or(0, |(head, _)| head.term));
        let term = believable(term, seconds).max(believable(head, seconds)).saturating_add(1).max(seconds);
        let (holder, place, renewal) = (self.own.clone(), directory.place(), draw()?);
        self.tried = Some(renewal.clone());
        let record = LeaseRecord { holder, term, place, released: false, renewal };
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
            written: record.renewal.clone(),
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
    /// What is tried next, or was.
    record: LeaseRecord,
    /// The renewal that was acknowledged last.
    written: String,
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
            self.record.place = self.tenure.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
            pause = match self.renew().await {
                Ok(pause) => pause,
                Err(loss) => {
                    self.tenure.lose(loss);
                    return;
                }
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

    /// Asks once; when to ask again.
    async fn renew(&mut self) -> Result<Duration, Loss> {
        if self.record.renewal == self.written {
            match draw() {
                Ok(renewal) => self.record.renewal = renewal,
                Err(error) => return Ok(self.failed(&error.to_string())),
            }
        }
        let sent = now();
        match put(&self.ledger, &self.record, self.revision).await {
            Ok(revision) => {
                self.revision = Some(revision);
                self.written.clone_from(&self.record.renewal);
                self.renewed(sent);
                Ok(self.times.renew_interval)
            }
            Err(PutError::Conflict) => self.look().await,
            Err(PutError::Failed(error)) => Ok(self.failed(&error)),
        }
    }

    /// What is there in the place of what was written last.
    async fn look(&mut self) -> Result<Duration, Loss> {
        let found = match read(&self.ledger).await {
            Ok(found) => found,
            Err(_) if went_back(&self.ledger, &key()).await => {
                tracing::error!(
                    "the state store went back to an earlier state: its lease is older than this keystore's"
                );
                return Err(Loss::WentBack);
            }
            Err(error) => return Ok(self.failed(&error)),
        };
        let is_ours = |found: &LeaseRecord| {
            let last = [&self.record.renewal, &self.written].contains(&&found.renewal);
            last && found.holder == self.record.holder && !found.released
        };
        match found {
            // Ours, of which only the acknowledgement was lost; or the state store lost all it had.
            None => self.revision = None,
            Some((found, revision)) if is_ours(&found) => self.revision = Some(revision),
            Some((found, _)) if found.term > self.record.term => {
                tracing::error!(term = found.term, own_term = self.record.term, "another keystore took over");
                return Err(Loss::Followed);
            }
            Some((found, _)) => {
                tracing::error!(
                    term = found.term,
                    own_term = self.record.term,
                    "the lease is not the one that this keystore wrote last: the state store or this machine was put \
                     back to an earlier state, or this process was copied"
                );
                return Err(Loss::WentBack);
            }
        }
        Ok(Duration::ZERO)
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

fn draw() -> Result<String, getrandom::Error> {
    crate::manage::random::<8>().map(|drawn| data_encoding::HEXLOWER.encode(&drawn))
}

/// Whether the state store holds an older record than this process saw, and goes on saying so.
pub(crate) async fn went_back(ledger: &Arc<dyn Ledger>, key: &str) -> bool {
    let since = Instant::now();
    loop {
        if !ledger.went_back(key, Instant::now() + STORE_TIMEOUT).await {
            return false;
        }
        if since.elapsed() >= MAX_REPLICA_LAG {
            return true;
        }
        sleep(RETRY_DELAY).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_from_far_ahead_counts_for_nothing_and_one_of_a_clock_that_is_ahead_does() {
        assert_eq!(believable(u64::MAX, 1_000), 0);
        assert_eq!(believable(1_000 + MAX_TERM_AHEAD_SECONDS + 1, 1_000), 0);
        assert_eq!(believable(1_000 + MAX_TERM_AHEAD_SECONDS, 1_000), 1_000 + MAX_TERM_AHEAD_SECONDS);
        assert_eq!(believable(7, 1_000), 7);
    }
}
