//! Whose key is this?
//!
//! Owns the bounded pool in which keys are hashed and the single flight by which a burst of one key costs one hash. Unknown, wrong,
//! revoked and expired cost one hash each and give one answer.
//! INVARIANT: whether a key lives is read after the last who shares a flight has joined it, so nobody is told of a life
//! that had ended before the question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use stage0_contract::{ApiKey, KeyId, KeyIdentity, RefreshKey, RefreshKeyReply, VerifyKey, VerifyKeyReply};
use tokio::sync::{Semaphore, oneshot};

use crate::callers::ProvenKeys;
use crate::hash::{HashError, Hasher, give_way};
use crate::manage::Clock;
use crate::metrics;
use crate::plans::Plans;
use crate::store::{Store, StoreError};
use crate::vault::chain;

/// Judges keys.
pub(crate) struct Verifier {
    store: Store,
    hasher: Arc<Hasher>,
    clock: Clock,
    plans: Plans,
    /// One permit for each hash that runs.
    running: Arc<Semaphore>,
    /// One permit for each hash that runs or waits to.
    admitted: Semaphore,
    /// Of those, how many may wait: fewer permits left than that means that some do.
    queue: usize,
    flights: Mutex<HashMap<Fingerprint, Vec<oneshot::Sender<VerifyKeyReply>>>>,
    proven: ProvenKeys,
}

/// Stands for a key's text where it is looked up; the text itself is kept nowhere.
type Fingerprint = [u8; 32];

#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("the key's record cannot be read")]
    Store(#[from] StoreError),
    #[error("the key cannot be hashed")]
    Hash(#[from] HashError),
    #[error("the hash was not finished")]
    Unfinished(#[from] oneshot::error::RecvError),
    #[error("there is no thread to hash on")]
    Thread(#[from] std::io::Error),
    #[error("the store was not read to the end")]
    Cancelled(#[from] tokio::task::JoinError),
    #[error("the pool is closed")]
    Closed(#[from] tokio::sync::AcquireError),
}

impl Verifier {
    /// `pool`: hashes at a time, and how many more may wait.
    pub(crate) fn new(
        store: Store,
        hasher: Arc<Hasher>,
        clock: Clock,
        plans: Plans,
        pool: (usize, usize),
        proven: ProvenKeys,
    ) -> Self {
        let (workers, queue) = pool;
        metrics::threads(workers);
        let (running, admitted) = (Arc::new(Semaphore::new(workers)), Semaphore::new(workers.saturating_add(queue)));
        Self { store, hasher, clock, plans, running, admitted, queue, flights: Mutex::default(), proven }
    }

    /// Keys whose hash matched.
    pub(crate) fn proven(&self) -> &ProvenKeys {
        &self.proven
    }

    /// Costs one hash, shared by all who ask for the same key meanwhile.
    pub(crate) async fn verify(self: &Arc<Self>, call: VerifyKey) -> VerifyKeyReply {
        let began = Instant::now();
        let reply = self.share(&call).await;
        let (request_id, duration_ms) = (call.request_id.map(tracing::field::display), milliseconds(began));
        tracing::debug!(request_id, key_id = %call.key.id(), outcome = metrics::outcome(&reply), duration_ms, "key verified");
        reply
    }

    /// Flies, or joins who does.
    async fn share(self: &Arc<Self>, call: &VerifyKey) -> VerifyKeyReply {
        let VerifyKey { key, request_id } = call;
        let fingerprint: Fingerprint = Sha256::digest(key.expose().as_bytes()).into();
        if let Some(landing) = self.join(fingerprint) {
            return landing.await.unwrap_or(VerifyKeyReply::Failed);
        }
        let mut flight = Flight { verifier: self, fingerprint, open: true };
        let Ok(_admitted) = self.admitted.try_acquire() else {
            metrics::judged(&VerifyKeyReply::Busy);
            tell(flight.close(), &VerifyKeyReply::Busy);
            return VerifyKeyReply::Busy;
        };
        let queued = metrics::queued();
        let matches = self.hash(key.clone()).await;
        drop(queued);
        let waiting = flight.close();
        if matches!(matches, Ok(true)) {
            self.proven.remember(key);
        }
        let reply = match matches {
            Ok(matches) => self.judge(key.id(), matches).await,
            Err(error) => Err(error),
        };
        let reply = reply.unwrap_or_else(|error| {
            let request_id = request_id.map(tracing::field::display);
            tracing::error!(request_id, key_id = %key.id(), error = %chain(&error), "key cannot be verified");
            VerifyKeyReply::Failed
        });
        metrics::judged(&reply);
        tell(waiting, &reply);
        reply
    }

    /// Costs no hash.
    pub(crate) async fn refresh(self: &Arc<Self>, call: RefreshKey) -> RefreshKeyReply {
        let RefreshKey { key_id, request_id } = call;
        let (began, request_id) = (Instant::now(), request_id.map(tracing::field::display));
        let (reply, outcome) = match self.living(key_id.clone()).await {
            Ok(Some(identity)) => (RefreshKeyReply::Live(identity), "live"),
            Ok(None) => (RefreshKeyReply::Gone, "gone"),
            Err(error) => {
                tracing::error!(request_id, %key_id, error = %chain(&error), "key cannot be refreshed");
                (RefreshKeyReply::Failed, "failed")
            }
        };
        tracing::debug!(request_id, %key_id, outcome, duration_ms = milliseconds(began), "key refreshed");
        reply
    }

    /// Joins a flight that is under way; without one, the caller flies.
    fn join(&self, fingerprint: Fingerprint) -> Option<oneshot::Receiver<VerifyKeyReply>> {
        let mut flights = self.flights();
        if let Some(waiting) = flights.get_mut(&fingerprint) {
            let (sender, landing) = oneshot::channel();
            waiting.push(sender);
            return Some(landing);
        }
        flights.insert(fingerprint, Vec::new());
        None
    }

    async fn hash(self: &Arc<Self>, key: ApiKey) -> Result<bool, VerifyError> {
        let admitted = Instant::now();
        let running = Arc::clone(&self.running).acquire_owned().await?;
        let waited = admitted.elapsed();
        let this = Arc::clone(self);
        let crowded = self.admitted.available_permits() < self.queue;
        let (done, matched) = oneshot::channel();
        let work = move || {
            // Held by the work and not by who waits for it: a cancelled question must not let one more hash run.
            let _running = running;
            let began = Instant::now();
            let matches = || {
                let record = this.store.key(key.id())?;
                // Nothing that others wait for is held from here on.
                if crowded {
                    give_way();
                }
                Ok(this.hasher.matches(&key, record.as_ref().map(|record| &record.hash))?)
            };
            // Whoever asked may be gone.
            drop(done.send((matches(), began.elapsed())));
        };
        // A thread for each: a hash costs a thousand times as much, and it must not have the priority of other threads.
        std::thread::Builder::new().name("hash".to_owned()).spawn(work)?;
        let (matches, took): (Result<bool, VerifyError>, Duration) = matched.await?;
        metrics::hashed(waited, took);
        matches
    }

    async fn judge(self: &Arc<Self>, key_id: &KeyId, matches: bool) -> Result<VerifyKeyReply, VerifyError> {
        // Read in every case: a wrong key must not be told from an ended one by what is left out.
        let identity = self.living(key_id.clone()).await?;
        Ok(identity.filter(|_| matches).map_or(VerifyKeyReply::Invalid, VerifyKeyReply::Valid))
    }

    async fn living(self: &Arc<Self>, key_id: KeyId) -> Result<Option<KeyIdentity>, VerifyError> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let Some(key) = this.store.key(&key_id)? else { return Ok(None) };
            let account = this.store.account(&key.account)?.ok_or(StoreError::Untrue)?;
            Ok(key.lives_at((this.clock)()).then(|| key.identity(&account, &this.plans)))
        })
        .await?
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Fingerprint, Vec<oneshot::Sender<VerifyKeyReply>>>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Open until it is closed, or dropped because whoever flies was cancelled: those who joined then hear that it failed.
struct Flight<'a> {
    verifier: &'a Verifier,
    fingerprint: Fingerprint,
    open: bool,
}

impl Flight<'_> {
    /// From here on nobody joins.
    fn close(&mut self) -> Vec<oneshot::Sender<VerifyKeyReply>> {
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        self.verifier.flights().remove(&self.fingerprint).unwrap_or_default()
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn tell(waiting: Vec<oneshot::Sender<VerifyKeyReply>>, reply: &VerifyKeyReply) {
    for sender in waiting {
        drop(sender.send(reply.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::tests::CHEAP;
    use crate::image::{Image, Lineage};
    use crate::record::tests::{account, at, key};
    use crate::record::{KeyHash, KeyRecord, Record};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::Value;
    use stage0_contract::{RequestId, Scope};
    use std::io;
    use tracing_subscriber::filter::LevelFilter;

    const NOW: i64 = 1_000;
    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    struct Kept {
        verifier: Arc<Verifier>,
        key: ApiKey,
        record: KeyRecord,
        _dir: tempfile::TempDir,
    }

    impl Kept {
        /// A store with one key; `end` makes it what the test needs.
        fn with(end: impl FnOnce(&mut KeyRecord)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let hasher = Arc::new(Hasher::new(CHEAP, [1; 16]).unwrap());
            let text = ApiKey::from_random([1; 10], [2; 20]).unwrap();
            let mut record = key(text.id().as_str(), "a", &[Scope::Check]);
            record.hash = hasher.hash(&text, [3; 16]).unwrap();
            end(&mut record);
            let store = Store::open(&dir.path().join("store")).unwrap();
            let records = vec![Record::Account(account("a")), Record::Key(record.clone())];
            store.fill(&Image::of(Lineage::from_random([1; 16]), 1, records).unwrap()).unwrap();
            let verifier = Arc::new(Verifier::new(
                store,
                hasher,
                Arc::new(|| at(NOW)),
                Plans::built_in().unwrap(),
                (1, 0),
                ProvenKeys::new(&[1; 32]),
            ));
            Self { verifier, key: text, record, _dir: dir }
        }

        fn revoke(&mut self) {
            self.record.revoked_at = Some(at(NOW));
            let records = vec![Record::Account(account("a")), Record::Key(self.record.clone())];
            self.verifier.store.fill(&Image::of(Lineage::from_random([1; 16]), 2, records).unwrap()).unwrap();
        }
    }

    fn of(key: &ApiKey) -> VerifyKey {
        VerifyKey { key: key.clone(), request_id: Some(RequestId::parse(ID).unwrap()) }
    }

    fn refresh(id: &KeyId) -> RefreshKey {
        RefreshKey { key_id: id.clone(), request_id: Some(RequestId::parse(ID).unwrap()) }
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that work leaves in the log, as a role writes them.
    fn lines_of(work: impl Future<Output = ()>) -> Vec<Value> {
        let written = Written::default();
        let lines = written.clone();
        let json = tracing_subscriber::fmt().json().flatten_event(true).with_max_level(LevelFilter::DEBUG);
        let subscriber = json.with_writer(move || lines.clone()).finish();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tracing::subscriber::with_default(subscriber, || runtime.block_on(work));
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs the future until it waits for something.
    async fn once(future: &mut (impl Future<Output = VerifyKeyReply> + Unpin)) {
        tokio::select! {
            biased;
            reply = future => panic!("{reply:?} at once"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn whatever_is_wrong_with_a_key_costs_one_hash_and_gives_one_answer() {
        let wrong = ApiKey::from_random([1; 10], [9; 20]).unwrap();
        let unknown = ApiKey::from_random([8; 10], [2; 20]).unwrap();
        let live = Kept::with(|_| ());
        let revoked = Kept::with(|key| key.revoked_at = Some(at(NOW)));
        let expired = Kept::with(|key| key.expires_at = Some(at(NOW)));
        for (kept, key) in [(&live, &wrong), (&live, &unknown), (&revoked, &revoked.key), (&expired, &expired.key)] {
            let before = kept.verifier.hasher.done();
            assert_eq!(kept.verifier.verify(of(key)).await, VerifyKeyReply::Invalid);
            assert_eq!(kept.verifier.hasher.done() - before, 1);
        }
        assert!(matches!(live.verifier.verify(of(&live.key)).await, VerifyKeyReply::Valid(_)));
        assert_eq!(live.verifier.hasher.done(), 3);
    }

    #[tokio::test]
    async fn a_refresh_costs_no_hash() {
        let mut kept = Kept::with(|_| ());
        let id = kept.key.id().clone();
        assert!(matches!(kept.verifier.refresh(refresh(&id)).await, RefreshKeyReply::Live(_)));
        kept.revoke();
        assert_eq!(kept.verifier.refresh(refresh(&id)).await, RefreshKeyReply::Gone);
        assert_eq!(kept.verifier.hasher.done(), 0);
    }

    #[tokio::test]
    async fn a_burst_of_one_key_costs_one_hash() {
        let kept = Kept::with(|_| ());
        let ask = || kept.verifier.verify(of(&kept.key));
        // The hash starts when all have asked.
        let running = kept.verifier.running.acquire().await.unwrap();
        let (a, b, c, ()) = tokio::join!(ask(), ask(), ask(), async { drop(running) });
        assert!(matches!(a, VerifyKeyReply::Valid(_)));
        assert!(a == b && b == c);
        assert_eq!(kept.verifier.hasher.done(), 1);
        ask().await;
        assert_eq!(kept.verifier.hasher.done(), 2);
        assert!(kept.verifier.flights().is_empty());
    }

    #[tokio::test]
    async fn who_finds_the_queue_full_is_told_to_come_again() {
        let kept = Kept::with(|_| ());
        let other = ApiKey::from_random([8; 10], [2; 20]).unwrap();
        let ask = |key: &ApiKey| kept.verifier.verify(of(key));
        let running = kept.verifier.running.acquire().await.unwrap();
        let (first, second, ()) = tokio::join!(ask(&kept.key), ask(&other), async { drop(running) });
        assert!(matches!(first, VerifyKeyReply::Valid(_)));
        assert_eq!(second, VerifyKeyReply::Busy);
        assert_eq!(kept.verifier.verify(of(&other)).await, VerifyKeyReply::Invalid);
    }

    #[test]
    fn every_outcome_is_counted_and_nobody_stays_in_the_queue() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        ::metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let kept = Kept::with(|_| ());
                let other = ApiKey::from_random([8; 10], [2; 20]).unwrap();
                let ask = |key: &ApiKey| kept.verifier.verify(of(key));
                let running = kept.verifier.running.acquire().await.unwrap();
                tokio::join!(ask(&kept.key), ask(&other), async { drop(running) });
                ask(&other).await;
                // Its turn never comes.
                let _running = kept.verifier.running.acquire().await.unwrap();
                let mut cancelled = Box::pin(ask(&other));
                once(&mut cancelled).await;
                let page = recorder.handle().render();
                assert!(page.contains("stage0_key_hash_queue 1\n"), "{page}");
            });
        });
        let page = recorder.handle().render();
        for line in [
            "stage0_key_hashes_total{outcome=\"valid\"} 1",
            "stage0_key_hashes_total{outcome=\"busy\"} 1",
            "stage0_key_hashes_total{outcome=\"invalid\"} 1",
            "stage0_key_hash_queue 0",
            "stage0_key_hash_threads 1",
            // One that is cancelled while it waits took no time.
            "stage0_key_hash_seconds_count 2",
            "stage0_key_hash_wait_seconds_count 2",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }

    #[tokio::test]
    async fn a_revocation_during_the_hash_counts() {
        let mut kept = Kept::with(|_| ());
        let verifier = Arc::clone(&kept.verifier);
        let running = verifier.running.acquire().await.unwrap();
        let mut asked = Box::pin(verifier.verify(of(&kept.key)));
        once(&mut asked).await;
        kept.revoke();
        drop(running);
        assert_eq!(asked.await, VerifyKeyReply::Invalid);
    }

    #[tokio::test]
    async fn who_shares_a_flight_that_is_cancelled_hears_that_it_failed() {
        let kept = Kept::with(|_| ());
        let running = kept.verifier.running.acquire().await.unwrap();
        let mut flies = Box::pin(kept.verifier.verify(of(&kept.key)));
        once(&mut flies).await;
        let mut joins = Box::pin(kept.verifier.verify(of(&kept.key)));
        once(&mut joins).await;
        drop(flies);
        assert_eq!(joins.await, VerifyKeyReply::Failed);
        drop(running);
        assert!(matches!(kept.verifier.verify(of(&kept.key)).await, VerifyKeyReply::Valid(_)));
    }

    #[test]
    fn a_key_is_found_in_the_log_by_the_request_that_showed_it_and_its_text_never_is() {
        let mut text = String::new();
        let lines = lines_of(async {
            let kept = Kept::with(|_| ());
            let wrong = ApiKey::from_random([1; 10], [9; 20]).unwrap();
            text = kept.key.expose().to_owned();
            kept.verifier.verify(of(&kept.key)).await;
            kept.verifier.verify(of(&wrong)).await;
            kept.verifier.refresh(refresh(kept.key.id())).await;
        });
        let told: Vec<_> = lines
            .iter()
            .filter(|line| line["request_id"] == ID && line["duration_ms"].is_f64())
            .map(|line| (line["message"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
            .collect();
        assert_eq!(told, [("key verified", "valid"), ("key verified", "invalid"), ("key refreshed", "live")]);
        let (id, _) = text.rsplit_once('_').unwrap();
        for line in &lines {
            assert!(id.contains(line["key_id"].as_str().unwrap()) && !line.to_string().contains(&text), "{line}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_verified_is_an_error_with_the_request_that_showed_it() {
        let lines = lines_of(async {
            let kept = Kept::with(|key| key.hash = KeyHash::new("no hash".to_owned()));
            assert_eq!(kept.verifier.verify(of(&kept.key)).await, VerifyKeyReply::Failed);
        });
        let error = lines.iter().find(|line| line["level"] == "ERROR").unwrap();
        assert_eq!(error["request_id"], ID);
    }
}
