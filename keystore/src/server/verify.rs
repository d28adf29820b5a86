//! Verification of API keys.
//!
//! Owns the bounded pool in which keys are hashed, and the sharing of one hash by concurrent requests with the same
//! key. Unknown, wrong, revoked and expired keys cost one hash each and get the same reply.
//! INVARIANT: whether a key is active is read after the last request has joined a shared hash, so no request gets a
//! reply from before it was made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use stage0_contract::{ApiKey, KeyId, KeyIdentity, RefreshKey, RefreshKeyReply, VerifyKey, VerifyKeyReply};
use tokio::sync::{Semaphore, oneshot};

use crate::errors::{chain, lock};
use crate::hash::{HashError, Hasher, lower_priority};
use crate::metrics;
use crate::plans::Plans;
use crate::server::callers::ProvenKeys;
use crate::sources::Clock;
use crate::store::record_store::{RecordStore, StoreError};

pub(crate) struct Verifier {
    store: RecordStore,
    hasher: Arc<Hasher>,
    clock: Clock,
    plans: Plans,
    running: Arc<Semaphore>,
    /// One permit for each hash that runs or waits.
    admitted: Semaphore,
    /// How many of those may wait. If fewer permits are left than this, some do.
    queue: usize,
    in_flight: Mutex<HashMap<Fingerprint, Vec<oneshot::Sender<VerifyKeyReply>>>>,
    proven: ProvenKeys,
}

/// Hash of a key's text, for the look-up of hashes in flight. The text itself is kept nowhere.
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
    /// `pool` is the number of hashes at a time and how many more may wait.
    pub(crate) fn new(
        store: RecordStore,
        hasher: Arc<Hasher>,
        clock: Clock,
        plans: Plans,
        pool: (usize, usize),
        proven: ProvenKeys,
    ) -> Self {
        let (workers, queue) = pool;
        metrics::threads(workers);
        let (running, admitted) = (Arc::new(Semaphore::new(workers)), Semaphore::new(workers.saturating_add(queue)));
        Self { store, hasher, clock, plans, running, admitted, queue, in_flight: Mutex::default(), proven }
    }

    pub(crate) fn proven(&self) -> &ProvenKeys {
        &self.proven
    }

    /// Costs one hash, which concurrent requests with the same key share.
    pub(crate) async fn verify(self: &Arc<Self>, call: VerifyKey) -> VerifyKeyReply {
        let began = Instant::now();
        let reply = self.verify_once(&call).await;
        let (request_id, duration_ms) = (call.request_id.map(tracing::field::display), milliseconds(began));
        let (key_id, outcome) = (call.key.id(), metrics::outcome(&reply));
        tracing::debug!(request_id, %key_id, outcome, duration_ms, "key verified");
        reply
    }

    async fn verify_once(self: &Arc<Self>, call: &VerifyKey) -> VerifyKeyReply {
        let VerifyKey { key, request_id } = call;
        let fingerprint: Fingerprint = Sha256::digest(key.expose().as_bytes()).into();
        if let Some(reply) = self.join(fingerprint) {
            return reply.await.unwrap_or(VerifyKeyReply::Failed);
        }
        let mut in_flight = InFlightHash { verifier: self, fingerprint, open: true };
        let Ok(_admitted) = self.admitted.try_acquire() else {
            metrics::judged(&VerifyKeyReply::Busy);
            answer_waiters(in_flight.close(), &VerifyKeyReply::Busy);
            return VerifyKeyReply::Busy;
        };
        let queued = metrics::queued();
        let matches = self.hash(key.clone()).await;
        drop(queued);
        let waiting = in_flight.close();
        if matches!(matches, Ok(true)) {
            self.proven.remember(key);
        }
        // Read in every case, so that the time taken does not tell a wrong key from an expired one.
        let identity = match matches {
            Ok(matches) => self.active_identity(key.id().clone()).await.map(|identity| identity.filter(|_| matches)),
            Err(error) => Err(error),
        };
        let reply = match identity {
            Ok(identity) => identity.map_or(VerifyKeyReply::Invalid, VerifyKeyReply::Valid),
            Err(error) => {
                let request_id = request_id.map(tracing::field::display);
                tracing::error!(request_id, key_id = %key.id(), error = %chain(&error), "key cannot be verified");
                VerifyKeyReply::Failed
            }
        };
        metrics::judged(&reply);
        answer_waiters(waiting, &reply);
        reply
    }

    /// Reads a key that was verified before. Costs no hash.
    pub(crate) async fn refresh(self: &Arc<Self>, call: RefreshKey) -> RefreshKeyReply {
        let RefreshKey { key_id, request_id } = call;
        let (began, request_id) = (Instant::now(), request_id.map(tracing::field::display));
        let (reply, outcome) = match self.active_identity(key_id.clone()).await {
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

    /// The reply of a hash of this key that is in flight. Without one, the caller starts it.
    fn join(&self, fingerprint: Fingerprint) -> Option<oneshot::Receiver<VerifyKeyReply>> {
        let mut in_flight = lock(&self.in_flight);
        if let Some(waiting) = in_flight.get_mut(&fingerprint) {
            let (sender, reply) = oneshot::channel();
            waiting.push(sender);
            return Some(reply);
        }
        in_flight.insert(fingerprint, Vec::new());
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
            // Held by the thread and not by the waiting task: cancelling a request must not let another hash start.
            let _running = running;
            let began = Instant::now();
            let matches = || {
                let record = this.store.key(key.id())?;
                // From here on this thread holds nothing that others wait for.
                if crowded {
                    lower_priority();
                }
                Ok(this.hasher.matches(&key, record.as_ref().map(|record| &record.hash))?)
            };
            // The caller may have given up.
            drop(done.send((matches(), began.elapsed())));
        };
        // A thread costs a thousandth of a hash, and a pooled thread could not lower its priority for this hash only.
        std::thread::Builder::new().name("hash".to_owned()).spawn(work)?;
        let (matches, took): (Result<bool, VerifyError>, Duration) = matched.await?;
        metrics::hashed(waited, took);
        matches
    }

    async fn active_identity(self: &Arc<Self>, key_id: KeyId) -> Result<Option<KeyIdentity>, VerifyError> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let Some(key) = this.store.key(&key_id)? else { return Ok(None) };
            let account = this.store.account(&key.account)?.ok_or(StoreError::Inconsistent)?;
            let now = (this.clock)();
            let rules = this.store.rules_of(&account, now)?;
            let member = key.member_behind().map(|id| this.store.member(&id)).transpose()?.flatten();
            // A removed member has no groups.
            let groups = member.map(|record| record.member.groups).unwrap_or_default();
            Ok(key.is_active_at(now).then(|| key.identity(&account, &this.plans, rules, groups)))
        })
        .await?
    }
}

/// Requests can join until this is closed. If the request that runs the hash is cancelled, those that joined fail.
struct InFlightHash<'a> {
    verifier: &'a Verifier,
    fingerprint: Fingerprint,
    open: bool,
}

impl InFlightHash<'_> {
    fn close(&mut self) -> Vec<oneshot::Sender<VerifyKeyReply>> {
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        lock(&self.verifier.in_flight).remove(&self.fingerprint).unwrap_or_default()
    }
}

impl Drop for InFlightHash<'_> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn answer_waiters(waiting: Vec<oneshot::Sender<VerifyKeyReply>>, reply: &VerifyKeyReply) {
    for sender in waiting {
        drop(sender.send(reply.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::capture;
    use crate::hash::tests::CHEAP;
    use crate::store::record::tests::{account, at, key};
    use crate::store::record::{KeyHash, KeyRecord, Record};
    use crate::store::snapshot::{Snapshot, StoreId};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use stage0_contract::{RequestId, Scope};

    const NOW: i64 = 1_000;
    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    struct Fixture {
        verifier: Arc<Verifier>,
        key: ApiKey,
        record: KeyRecord,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        /// A store with one key, changed by `end`.
        fn with(end: impl FnOnce(&mut KeyRecord)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let hasher = Arc::new(Hasher::new(CHEAP, [1; 16]).unwrap());
            let text = ApiKey::from_random([1; 10], [2; 20]).unwrap();
            let mut record = key(text.id().as_str(), "a", &[Scope::Check]);
            record.hash = hasher.hash(&text, [3; 16]).unwrap();
            end(&mut record);
            let store = RecordStore::open(&dir.path().join("store")).unwrap();
            let records = vec![Record::Account(account("a")), Record::Key(record.clone())];
            store.fill(&Snapshot::of(StoreId::from_random([1; 16]), 1, records).unwrap()).unwrap();
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
            self.verifier.store.fill(&Snapshot::of(StoreId::from_random([1; 16]), 2, records).unwrap()).unwrap();
        }
    }

    fn of(key: &ApiKey) -> VerifyKey {
        VerifyKey { key: key.clone(), request_id: Some(RequestId::parse(ID).unwrap()) }
    }

    fn refresh(id: &KeyId) -> RefreshKey {
        RefreshKey { key_id: id.clone(), request_id: Some(RequestId::parse(ID).unwrap()) }
    }

    /// Polls the future once.
    async fn once(future: &mut (impl Future<Output = VerifyKeyReply> + Unpin)) {
        tokio::select! {
            biased;
            reply = future => panic!("{reply:?} at once"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn unknown_wrong_revoked_and_expired_keys_cost_one_hash_and_get_the_same_reply() {
        let wrong = ApiKey::from_random([1; 10], [9; 20]).unwrap();
        let unknown = ApiKey::from_random([8; 10], [2; 20]).unwrap();
        let live = Fixture::with(|_| ());
        let revoked = Fixture::with(|key| key.revoked_at = Some(at(NOW)));
        let expired = Fixture::with(|key| key.expires_at = Some(at(NOW)));
        for (fixture, key) in [(&live, &wrong), (&live, &unknown), (&revoked, &revoked.key), (&expired, &expired.key)] {
            let before = fixture.verifier.hasher.done();
            assert_eq!(fixture.verifier.verify(of(key)).await, VerifyKeyReply::Invalid);
            assert_eq!(fixture.verifier.hasher.done() - before, 1);
        }
        assert!(matches!(live.verifier.verify(of(&live.key)).await, VerifyKeyReply::Valid(_)));
        assert_eq!(live.verifier.hasher.done(), 3);
    }

    #[tokio::test]
    async fn a_refresh_costs_no_hash() {
        let mut fixture = Fixture::with(|_| ());
        let id = fixture.key.id().clone();
        assert!(matches!(fixture.verifier.refresh(refresh(&id)).await, RefreshKeyReply::Live(_)));
        fixture.revoke();
        assert_eq!(fixture.verifier.refresh(refresh(&id)).await, RefreshKeyReply::Gone);
        assert_eq!(fixture.verifier.hasher.done(), 0);
    }

    #[tokio::test]
    async fn concurrent_verifications_of_one_key_cost_one_hash() {
        let fixture = Fixture::with(|_| ());
        let ask = || fixture.verifier.verify(of(&fixture.key));
        // The hash starts when all have asked.
        let running = fixture.verifier.running.acquire().await.unwrap();
        let (a, b, c, ()) = tokio::join!(ask(), ask(), ask(), async { drop(running) });
        assert!(matches!(a, VerifyKeyReply::Valid(_)));
        assert!(a == b && b == c);
        assert_eq!(fixture.verifier.hasher.done(), 1);
        ask().await;
        assert_eq!(fixture.verifier.hasher.done(), 2);
        assert!(lock(&fixture.verifier.in_flight).is_empty());
    }

    #[tokio::test]
    async fn a_verification_beyond_the_queue_is_refused_as_busy() {
        let fixture = Fixture::with(|_| ());
        let other = ApiKey::from_random([8; 10], [2; 20]).unwrap();
        let ask = |key: &ApiKey| fixture.verifier.verify(of(key));
        let running = fixture.verifier.running.acquire().await.unwrap();
        let (first, second, ()) = tokio::join!(ask(&fixture.key), ask(&other), async { drop(running) });
        assert!(matches!(first, VerifyKeyReply::Valid(_)));
        assert_eq!(second, VerifyKeyReply::Busy);
        assert_eq!(fixture.verifier.verify(of(&other)).await, VerifyKeyReply::Invalid);
    }

    #[test]
    fn every_outcome_is_counted_and_the_queue_gauge_returns_to_zero() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        ::metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let fixture = Fixture::with(|_| ());
                let other = ApiKey::from_random([8; 10], [2; 20]).unwrap();
                let ask = |key: &ApiKey| fixture.verifier.verify(of(key));
                let running = fixture.verifier.running.acquire().await.unwrap();
                tokio::join!(ask(&fixture.key), ask(&other), async { drop(running) });
                ask(&other).await;
                // Its turn never comes.
                let _running = fixture.verifier.running.acquire().await.unwrap();
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
    async fn a_revocation_during_the_hash_is_noticed() {
        let mut fixture = Fixture::with(|_| ());
        let verifier = Arc::clone(&fixture.verifier);
        let running = verifier.running.acquire().await.unwrap();
        let mut asked = Box::pin(verifier.verify(of(&fixture.key)));
        once(&mut asked).await;
        fixture.revoke();
        drop(running);
        assert_eq!(asked.await, VerifyKeyReply::Invalid);
    }

    #[tokio::test]
    async fn a_verification_that_joined_a_cancelled_hash_fails() {
        let fixture = Fixture::with(|_| ());
        let running = fixture.verifier.running.acquire().await.unwrap();
        let mut flies = Box::pin(fixture.verifier.verify(of(&fixture.key)));
        once(&mut flies).await;
        let mut joins = Box::pin(fixture.verifier.verify(of(&fixture.key)));
        once(&mut joins).await;
        drop(flies);
        assert_eq!(joins.await, VerifyKeyReply::Failed);
        drop(running);
        assert!(matches!(fixture.verifier.verify(of(&fixture.key)).await, VerifyKeyReply::Valid(_)));
    }

    #[test]
    fn the_log_names_a_keys_id_and_request_and_never_its_text() {
        let mut text = String::new();
        let (lines, _) = capture(async {
            let fixture = Fixture::with(|_| ());
            let wrong = ApiKey::from_random([1; 10], [9; 20]).unwrap();
            text = fixture.key.expose().to_owned();
            fixture.verifier.verify(of(&fixture.key)).await;
            fixture.verifier.verify(of(&wrong)).await;
            fixture.verifier.refresh(refresh(fixture.key.id())).await;
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
    fn a_verification_that_fails_is_logged_as_an_error_with_its_request_id() {
        let (lines, _) = capture(async {
            let fixture = Fixture::with(|key| key.hash = KeyHash("no hash".to_owned()));
            assert_eq!(fixture.verifier.verify(of(&fixture.key)).await, VerifyKeyReply::Failed);
        });
        let error = lines.iter().find(|line| line["level"] == "ERROR").unwrap();
        assert_eq!(error["request_id"], ID);
    }
}
