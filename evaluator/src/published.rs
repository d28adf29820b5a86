//! Published policies: fetched from the keystore for the first check that needs one, loaded once in a process, and kept
//! while they are used.
//!
//! All shards share the packs. A version that is loading is waited for by every check that needs it; one that cannot be
//! loaded decides nothing, and is tried again after a few seconds.
//! INVARIANT: a check that names a version is decided by the content that was published under it for its account, or
//! not at all.

mod kept;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stage0_backplane::Requests;
use stage0_contract::{
    AccountId, AccountRules, CheckRequest, EvaluateReply, FetchPolicy, FetchedPolicy, ManageReply, PolicyVersion,
};
use stage0_policy::Pack;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::differences;
use crate::metrics;
use crate::own_thread::on_own_thread;
use kept::{Content, Found, Kept, Key};

/// Timeout for the keystore's answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Packs that are loaded at the same time. Shards load what is announced one after the other, so that a row of heavy
/// packs leaves room for one that a check waits for.
const MAX_LOADING: usize = 2;
/// How long a check's deadline is ahead when it is answered that its policy is not there yet.
pub(crate) const ANSWER_TIME: Duration = Duration::from_millis(100);

/// The packs that decide a check.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen {
    /// Whose check it is; none: the process's own pack decides.
    pub(crate) account: Option<AccountId>,
    /// The version that is active for the check; none: the process's own.
    pub(crate) own: Option<Arc<Pack>>,
    /// The operator's, which is evaluated beside it.
    pub(crate) floor: Option<Arc<Pack>>,
}

impl Chosen {
    /// Whether a published policy decides.
    pub(crate) fn is_published(&self) -> bool {
        self.own.is_some() || self.floor.is_some()
    }
}

/// Why a policy decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {version} cannot be loaded: {why}")]
pub(crate) struct NotLoaded {
    version: PolicyVersion,
    why: String,
    is_loading: bool,
}

impl NotLoaded {
    /// One that is loaded, and cannot be used.
    pub(crate) fn unusable(version: &PolicyVersion, why: String) -> Self {
        Self { version: version.clone(), why, is_loading: false }
    }

    /// One that is loaded, and whose rules are still being parsed.
    pub(crate) fn not_prepared(version: &PolicyVersion) -> Self {
        let why = "it is still being prepared: try again".to_owned();
        Self { version: version.clone(), why, is_loading: true }
    }

    /// The answer to a check: the version alone.
    pub(crate) fn reply(&self) -> EvaluateReply {
        EvaluateReply::PolicyMissing { version: self.version.clone(), is_loading: self.is_loading }
    }
}

type Outcome = Result<Arc<Pack>, String>;

/// The published policies of a process.
#[derive(Debug)]
pub(crate) struct SharedPolicies {
    kept: Mutex<Kept>,
    /// One permit per load: each takes a core and many times its size in memory.
    loading: Semaphore,
    /// Shards that have not loaded yet what was active when they started.
    preloading: watch::Sender<usize>,
}

/// A shard that has not loaded yet what is active. It counts until it is dropped.
pub(crate) struct Preloading(Arc<SharedPolicies>);

impl Drop for Preloading {
    fn drop(&mut self) {
        self.0.preloading.send_modify(|shards| *shards = shards.saturating_sub(1));
    }
}

/// The published policies as a shard reaches them.
#[derive(Clone)]
pub(crate) struct Published {
    shared: Arc<SharedPolicies>,
    requests: Arc<dyn Requests>,
}

/// Which published policies an evaluator has loaded.
#[derive(Debug, Clone)]
pub struct LoadedPolicies(Arc<SharedPolicies>);

impl LoadedPolicies {
    pub(crate) fn new(shared: Arc<SharedPolicies>) -> Self {
        Self(shared)
    }

    /// Each version once, the most recently used first.
    pub fn versions(&self) -> Vec<PolicyVersion> {
        self.0.lock().versions()
    }

    /// Whether what was active at the start is loaded, as far as it can be.
    pub fn is_preloaded(&self) -> bool {
        *self.0.preloading.borrow() == 0
    }

    /// Waits until [`LoadedPolicies::is_preloaded`], which takes seconds at most.
    pub async fn preloaded(&self) {
        // The sender lives as long as this.
        let _ = self.0.preloading.subscribe().wait_for(|shards| *shards == 0).await;
    }
}

impl SharedPolicies {
    pub(crate) fn new() -> Arc<Self> {
        let preloading = watch::Sender::new(0);
        Arc::new(Self { kept: Mutex::default(), loading: Semaphore::new(MAX_LOADING), preloading })
    }

    pub(crate) fn preloading(self: &Arc<Self>) -> Preloading {
        self.preloading.send_modify(|shards| *shards += 1);
        Preloading(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Published {
    pub(crate) fn new(shared: Arc<SharedPolicies>, requests: Arc<dyn Requests>) -> Self {
        Self { shared, requests }
    }

    /// The packs that decide a check under these rules. Costs nothing where no published policy is active.
    pub(crate) async fn choose(
        &self,
        account: &AccountId,
        rules: &AccountRules,
        request: &CheckRequest,
        deadline: Instant,
    ) -> Result<Chosen, NotLoaded> {
        if !rules.needs_published() {
            return Ok(Chosen::default());
        }
        let deadline = deadline.checked_sub(ANSWER_TIME).unwrap_or(deadline);
        let own = async {
            match rules.policy_of(request) {
                Some(version) => self.load(Some(account), version, deadline).await.map(Some),
                None => Ok(None),
            }
        };
        let floor = async {
            match &rules.floor {
                Some(version) => self.load(None, version, deadline).await.map(Some),
                None => Ok(None),
            }
        };
        let (own, floor) = tokio::join!(own, floor);
        Ok(Chosen { account: Some(account.clone()), own: own?, floor: floor? })
    }

    /// The pack of a version as this account sees it; none: as the deployment does.
    pub(crate) async fn load(
        &self,
        account: Option<&AccountId>,
        version: &PolicyVersion,
        deadline: Instant,
    ) -> Result<Arc<Pack>, NotLoaded> {
        let failed = |why: String| NotLoaded { version: version.clone(), why, is_loading: false };
        let mut waiting = match self.begin(account, version) {
            Found::Loaded(pack) => return Ok(pack),
            Found::Failed(why) => return Err(failed(why)),
            Found::Loading(waiting) => waiting,
        };
        match timeout_at(deadline, waiting.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(INTERRUPTED.to_owned())).map_err(failed),
            Ok(Err(_)) => Err(failed(INTERRUPTED.to_owned())),
            Err(_) => Err(NotLoaded { is_loading: true, ..failed("it is still being loaded: try again".to_owned()) }),
        }
    }

    /// As [`Published::load`], or what the files of the version come to in this release if it compiles in another pack
    /// than the release under which they were published. No check is decided by that.
    pub(crate) async fn load_or_renew(
        &self,
        account: Option<&AccountId>,
        version: &PolicyVersion,
        deadline: Instant,
    ) -> Result<Arc<Pack>, NotLoaded> {
        let failed = match self.load(account, version, deadline).await {
            Ok(pack) => return Ok(pack),
            Err(failed) => failed,
        };
        let renewed = async {
            let FetchedPolicy { bundle, .. } =
                self.fetch(&Key { account: account.cloned(), version: version.clone() }).await.ok()?;
            let _turn = self.shared.loading.acquire().await.ok()?;
            on_own_thread("policy-load", move || Pack::from_bundle(&bundle)).await?.ok()
        };
        timeout_at(deadline, renewed).await.ok().flatten().ok_or(failed)
    }

    /// Looks a version up, and begins to load it where it is neither loaded nor loading.
    fn begin(&self, account: Option<&AccountId>, version: &PolicyVersion) -> Found {
        let key = Key { account: account.cloned(), version: version.clone() };
        let mut kept = self.shared.lock();
        if let Some(found) = kept.find(&key, Instant::now()) {
            return found;
        }
        let (done, waiting) = watch::channel(None);
        kept.loading(key.clone(), waiting.clone());
        drop(kept);
        // A task of its own: the check that asked first may give up before the others.
        let work = self.clone();
        tokio::spawn(async move {
            let outcome = work.fetch_and_load(&key).await;
            metrics::policy_load(outcome.is_ok());
            if let Err(why) = &outcome {
                let account = key.account.as_ref().map(tracing::field::display);
                tracing::warn!(account, policy_version = %key.version, reason = why, "policy cannot be loaded");
                work.shared.lock().failed(key, why.clone(), Instant::now());
            }
            // Every check that waited may have given up.
            let _ = done.send(Some(outcome));
        });
        Found::Loading(waiting)
    }

    async fn fetch_and_load(&self, key: &Key) -> Outcome {
        let FetchedPolicy { version, bundle } = self.fetch(key).await?;
        if version != key.version {
            return Err(format!("the keystore answers with {version}"));
        }
        let content = Content::of(&version, &bundle)?;
        if let Some(pack) = self.shared.lock().known(key, &content) {
            return Ok(pack);
        }
        let Ok(_turn) = self.shared.loading.acquire().await else { return Err(INTERRUPTED.to_owned()) };
        // It may have been loaded for another account meanwhile.
        if let Some(pack) = self.shared.lock().known(key, &content) {
            return Ok(pack);
        }
        let (began, bytes) = (Instant::now(), bundle.bytes());
        let loading = on_own_thread("policy-load", move || Pack::published(&bundle, &version));
        let Some(loaded) = loading.await else { return Err("the thread that loads it ended".to_owned()) };
        let pack = loaded.map_err(|error| first_fault(&error))?;
        let duration_ms = began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(policy_version = %key.version, duration_ms, "published policy loaded");
        differences::found_by_cases(&pack);
        self.shared.lock().loaded(key, content, &pack, bytes);
        Ok(pack)
    }

    async fn fetch(&self, key: &Key) -> Result<FetchedPolicy, String> {
        let message = FetchPolicy { account: key.account.clone(), version: key.version.clone() };
        match self.requests.request_until(&message, Instant::now() + FETCH_TIMEOUT).await {
            Ok(ManageReply::Done(fetched)) => Ok(fetched),
            Ok(ManageReply::Refused(_)) => Err("the keystore has no such policy".to_owned()),
            Ok(ManageReply::Failed) => Err("the keystore cannot read it".to_owned()),
            Ok(ManageReply::Busy) => Err("the keystore has too much to do".to_owned()),
            Err(error) => Err(format!("the keystore does not answer: {error}")),
        }
    }
}

const INTERRUPTED: &str = "loading it was interrupted";

/// The first fault of a pack that does not load here.
fn first_fault(error: &stage0_policy::BundleError) -> String {
    let first = error.refused.faults.first();
    first.map_or_else(|| error.to_string(), |fault| fault.message.clone())
}
