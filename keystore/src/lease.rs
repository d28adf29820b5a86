//! One keystore serves at a time: the holder of a lease in the state store.
//!
//! Each change of the record `keystore.lease` is a compare-and-set: of two keystores that want it one gets it.
//! INVARIANT: the holder counts the lease from before it sends a renewal, by the boot-time clock; a waiting keystore
//! counts from after it read the record. So the holder has stopped before the next one begins, whatever was frozen.
//!
//! Each renewal has a random value. A record of this keystore with neither the value written last nor the one being
//! tried means that the state store or this machine was put back, or that this process was copied: the lease is lost.
//! If a waiting keystore can lock the journal that the record names, the holder has ended, and is replaced at once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stage0_backplane::{PutError, Revision, StateStore};
use stage0_contract::KEYSTORE_RECORDS;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::errors::chain;
use crate::head;
use crate::health::Health;
use crate::records::{self, RETRY_DELAY, believable, seconds, went_back};
use crate::sources::random;
use crate::store::OpenError;
use crate::store::lock::{self, LockedDirectory};

pub(crate) mod tenure;

use tenure::{Loss, Tenure, nanoseconds, now};

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A process that uses the directory without holding the lease is not waited for any longer than this.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// What a waiting keystore adds to the lease's TTL, for the time between reading a clock and acting on it.
const EXPIRY_MARGIN: Duration = Duration::from_millis(250);

/// How long leases last. Deployments use the default; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    /// Counted from before the last renewal was sent.
    pub ttl: Duration,
    /// Time between two renewals.
    pub renew_interval: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(5), renew_interval: Duration::from_secs(1) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseRecord {
    holder: String,
    term: u64,
    /// Identifies the journal that the holder has locked; see [`lock::journal_id`].
    #[serde(rename = "place", default, skip_serializing_if = "Option::is_none")]
    journal_id: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    released: bool,
    /// A random value for each renewal, kept while that renewal is retried.
    #[serde(default)]
    renewal: String,
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) tenure: Tenure,
    pub(crate) term: u64,
    stop: CancellationToken,
    renewing: AbortOnDropHandle<()>,
}

impl Lease {
    /// Lets a waiting keystore take over. Close the files first.
    pub(crate) async fn release(self) {
        self.stop.cancel();
        if self.renewing.await.is_err() {
            tracing::error!("the renewal of the lease ended early");
        }
    }
}

struct Waiting<'a> {
    state_store: &'a Arc<dyn StateStore>,
    dir: &'a Path,
    times: LeaseTimes,
    health: &'a Health,
    own: String,
    /// The renewal value of the last attempt, which may have been stored although the reply was lost.
    tried: Option<String>,
    /// The revision that was read last, and when it was first seen.
    seen: Option<(Option<Revision>, u64)>,
    /// Since when the directory is in use although the lease is free.
    in_use_since: Option<u64>,
}

/// Waits until this keystore is the one that serves, and its directory is locked.
pub(crate) async fn acquire(
    state_store: &Arc<dyn StateStore>,
    dir: &Path,
    times: LeaseTimes,
    health: &Health,
) -> Result<(Lease, LockedDirectory), AcquireError> {
    let own = new_name()?;
    let mut waiting = Waiting { state_store, dir, times, health, own, tried: None, seen: None, in_use_since: None };
    loop {
        if let Some(taken) = waiting.try_once().await? {
            return Ok(taken);
        }
        sleep(POLL_INTERVAL.min(times.renew_interval)).await;
    }
}

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
        let read = async { Ok::<_, String>((read(self.state_store).await?, head::read(self.state_store).await?)) };
        let (found, head) = match read.await {
            Ok(found) => found,
            Err(error) => {
                self.health.set_waiting(&format!("the state store does not answer: {error}"));
                for key in [key(), head::key()] {
                    if went_back(self.state_store, &key).await {
                        return Err(AcquireError::WentBack);
                    }
                }
                return Ok(None);
            }
        };
        let (record, revision) = found.unzip();
        let since = self.seen.filter(|(seen, _)| *seen == revision).map_or_else(now, |(_, since)| since);
        self.seen = Some((revision, since));
        let is_tried = |record: &LeaseRecord| self.tried.as_ref() == Some(&record.renewal);
        let vacant = record.as_ref().is_none_or(|record| record.released || is_tried(record));
        let stale = now().saturating_sub(since) > nanoseconds(self.times.ttl.saturating_add(EXPIRY_MARGIN));
        let here = record.as_ref().and_then(|record| record.journal_id.clone());
        let same_place = here.is_some() && here == lock::journal_id(self.dir);
        let term = record.as_ref().map_or(0, |record| record.term);
        let held = !(vacant || stale);
        let why = if held {
            format!("stands by: another keystore holds the lease (term {term})")
        } else {
            "stands by: another process uses the data directory".to_owned()
        };
        if held && !same_place {
            self.health.set_waiting(&why);
            return Ok(None);
        }
        let Some(directory) = self.lock(vacant, &why).await? else { return Ok(None) };
        // The journal may have been replaced since its id was compared.
        if held && directory.journal_id() != here {
            return Ok(None);
        }
        // At least the clock, so that the term rises even if the state store lost its records.
        let (seconds, head) = (seconds(), head.map_or(0, |(head, _)| head.term));
        let term = believable(term, seconds).max(believable(head, seconds)).saturating_add(1).max(seconds);
        let (holder, journal_id, renewal) = (self.own.clone(), directory.journal_id(), new_name()?);
        self.tried = Some(renewal.clone());
        let record = LeaseRecord { holder, term, journal_id, released: false, renewal };
        let sent = now();
        match records::put(self.state_store, &key(), &record, revision).await {
            Ok(revision) => Ok(Some((self.begin(record, revision, sent), directory))),
            Err(PutError::Conflict) => Ok(None),
            Err(PutError::Failed(error)) => {
                self.health.set_waiting(&format!("the state store does not answer: {error}"));
                Ok(None)
            }
        }
    }

    /// `None` while another process has the directory locked and may still end.
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
                self.health.set_waiting(why);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn begin(&self, record: LeaseRecord, revision: Revision, sent: u64) -> Lease {
        let tenure = Tenure::until(sent.saturating_add(nanoseconds(self.times.ttl)));
        tenure.set_journal_id(record.journal_id.clone());
        let (stop, term) = (CancellationToken::new(), record.term);
        tracing::info!(term, holder = record.holder, "keystore holds the lease");
        let renewal = Renewal {
            state_store: Arc::clone(self.state_store),
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

struct Renewal {
    state_store: Arc<dyn StateStore>,
    record: LeaseRecord,
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
        let journal_changed = Arc::clone(&self.tenure.journal_changed);
        while stop.run_until_cancelled(timeout(pause, journal_changed.notified())).await.is_some() {
            self.record.journal_id = self.tenure.journal_id();
            pause = match self.renew().await {
                Ok(pause) => pause,
                Err(loss) => {
                    self.tenure.lose(loss);
                    return;
                }
            };
        }
        if self.tenure.loss().is_some() {
            return;
        }
        self.tenure.end();
        self.record.released = true;
        if let Err(error) = records::put(&self.state_store, &key(), &self.record, self.revision).await {
            tracing::warn!(error = %chain(&error), "the lease could not be released: it ends by itself");
        }
    }

    async fn renew(&mut self) -> Result<Duration, Loss> {
        if self.record.renewal == self.written {
            match new_name() {
                Ok(renewal) => self.record.renewal = renewal,
                Err(error) => return Ok(self.failed(&error.to_string())),
            }
        }
        let sent = now();
        match records::put(&self.state_store, &key(), &self.record, self.revision).await {
            Ok(revision) => {
                self.revision = Some(revision);
                self.written.clone_from(&self.record.renewal);
                self.renewed(sent);
                Ok(self.times.renew_interval)
            }
            Err(PutError::Conflict) => self.resolve_conflict().await,
            Err(PutError::Failed(error)) => Ok(self.failed(&error.to_string())),
        }
    }

    /// Reads the record that stands where this keystore's last one was expected.
    async fn resolve_conflict(&mut self) -> Result<Duration, Loss> {
        let found = match read(&self.state_store).await {
            Ok(found) => found,
            Err(_) if went_back(&self.state_store, &key()).await => {
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
            // The state store lost its records, or this is our own record whose acknowledgement was lost.
            None => self.revision = None,
            Some((found, revision)) if is_ours(&found) => self.revision = Some(revision),
            Some((found, _)) if found.term > self.record.term => {
                tracing::error!(term = found.term, own_term = self.record.term, "another keystore took over");
                return Err(Loss::TakenOver);
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
        self.tenure.extend(sent.saturating_add(nanoseconds(self.times.ttl)));
        if std::mem::take(&mut self.lapsed) {
            tracing::info!(term = self.record.term, "the lease is renewed, and the keystore serves again");
            self.health.set_serving();
        }
    }

    fn failed(&mut self, error: &str) -> Duration {
        if !self.tenure.is_valid() {
            self.lapsed = true;
            self.health.set_waiting(&format!("the lease cannot be renewed: {error}"));
        }
        RETRY_DELAY
    }
}

fn new_name() -> Result<String, getrandom::Error> {
    random::<8>().map(|random| data_encoding::HEXLOWER.encode(&random))
}

/// Describes the lease's holder for an operator. `None` if it was never held or was released.
pub async fn lease_holder(state_store: &Arc<dyn StateStore>) -> Result<Option<String>, String> {
    let found = read(state_store).await?;
    let held = found.filter(|(record, _)| !record.released);
    Ok(held.map(|(record, _)| format!("held by {} in term {}", record.holder, record.term)))
}

fn key() -> String {
    format!("{KEYSTORE_RECORDS}.lease")
}

async fn read(state_store: &Arc<dyn StateStore>) -> Result<Option<(LeaseRecord, Revision)>, String> {
    records::get(state_store, &key()).await
}

#[cfg(test)]
mod simulated;
