//! The two threads that evaluate a shard's checks: ordinary checks run on the shard's own thread, large ones on a
//! second thread with a lower priority.
//!
//! A check of a megabyte costs as much as hundreds of ordinary ones, and checks of other accounts must not wait for it.
//! Each thread has its own engines.
//! INVARIANT: if the second thread is not available, a large check is not decided; it never moves to the first thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use stage0_contract::{
    AccountId, AccountRules, CheckRequest, EvaluateReply, PolicyVersion, ReviewReply, ReviewRequest, VocabularyReply,
    VocabularyRequest,
};
use stage0_policy::{Engine, Pack, PackError, PackSet, RunSnapshot};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::handler::{Decided, Handler, Held};
use crate::in_flight::InFlightCheck;
use crate::own_thread::{lower_priority, on_own_thread};
use crate::published::{Chosen, NotLoaded, Published};
use crate::shard::ShardError;

/// The largest ordinary check in bytes. At about the same cost per byte it takes as long as thirty typical ones.
pub(crate) const MAX_ORDINARY_BYTES: usize = 32_768;
/// Work queued for the second thread; senders wait when the queue is full.
const MAX_WAITING: usize = 64;
type Work = Box<dyn FnOnce(&Handler) + Send>;

pub(crate) struct Engines {
    handler: Handler,
    large: mpsc::Sender<Work>,
    /// None where only the process's own packs decide.
    published: Option<Published>,
    /// Held while the rules of a published pack are parsed, so that all checks that need them wait for one engine.
    preparing: Mutex<()>,
}

/// Why the packs of a check are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotChosen {
    #[error(transparent)]
    NotLoaded(#[from] NotLoaded),
    #[error("published policies cannot be read here")]
    NoneHere,
    #[error("policy cannot be prepared: {0}")]
    NotPrepared(PackError),
    #[error("the thread that prepares the policy ended")]
    Ended,
}

impl Engines {
    pub(crate) fn open(packs: Arc<PackSet>) -> Result<Self, ShardError> {
        let handler = Handler::new(Arc::clone(&packs)).map_err(ShardError::Prepare)?;
        let (large, mut work) = mpsc::channel::<Work>(MAX_WAITING);
        let (ready, reported) = std::sync::mpsc::sync_channel(1);
        let serve = move || {
            lower_priority();
            let handler = match Handler::new(packs) {
                Ok(handler) => handler,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            // The channel closes when the shard ends.
            while let Some(work) = work.blocking_recv() {
                work(&handler);
            }
        };
        thread::Builder::new().name("evaluator-large".to_owned()).spawn(serve).map_err(ShardError::Thread)?;
        reported.recv().map_err(|_| ShardError::Ended)?.map_err(ShardError::Prepare)?;
        Ok(Self { handler, large, published: None, preparing: Mutex::new(()) })
    }

    /// The same engines, with those of published policies.
    #[must_use]
    pub(crate) fn with_published(self, published: Published) -> Self {
        Self { published: Some(published), ..self }
    }

    /// The packs that decide a check under these rules, ready for it.
    pub(crate) async fn choose(
        &self,
        account: &AccountId,
        rules: &AccountRules,
        request: &CheckRequest,
        deadline: Instant,
    ) -> Result<Chosen, NotChosen> {
        if !rules.needs_published() {
            return Ok(Chosen::default());
        }
        let Some(published) = &self.published else { return Err(NotChosen::NoneHere) };
        let chosen = published.choose(account, rules, request, deadline).await?;
        for pack in chosen.own.iter().chain(&chosen.floor) {
            self.prepare(pack).await?;
        }
        Ok(chosen)
    }

    /// Loads a version ahead of the first check that needs it.
    pub(crate) async fn preload(
        &self,
        account: Option<&AccountId>,
        version: &PolicyVersion,
        deadline: Instant,
    ) -> Result<(), NotChosen> {
        let Some(published) = &self.published else { return Ok(()) };
        let pack = published.load(account, version, deadline).await?;
        self.prepare(&pack).await
    }

    /// Has the rules of a pack parsed for the shard's own thread by another one: else every check of the shard would
    /// wait for it.
    async fn prepare(&self, pack: &Arc<Pack>) -> Result<(), NotChosen> {
        if self.handler.has_engine(pack) {
            return Ok(());
        }
        let _turn = self.preparing.lock().await;
        if self.handler.has_engine(pack) {
            return Ok(());
        }
        let parsed = Arc::clone(pack);
        let engine = on_own_thread("policy-prepare", move || Engine::new(parsed)).await.ok_or(NotChosen::Ended)?;
        self.handler.keep(engine.map_err(NotChosen::NotPrepared)?);
        Ok(())
    }

    /// The words of the version that is asked for. Where it cannot be loaded, the answer names another one.
    pub(crate) async fn vocabulary(&self, request: &VocabularyRequest, deadline: Instant) -> VocabularyReply {
        let (Some(published), Some(version)) = (&self.published, &request.policy) else {
            return self.handler.vocabulary(None);
        };
        let loaded = published.load(Some(&request.account), version, deadline).await;
        self.handler.vocabulary(loaded.ok().as_deref())
    }

    /// The engines of the shard's own thread.
    pub(crate) fn handler(&self) -> &Handler {
        &self.handler
    }

    /// Decides a check by the packs that were chosen for it.
    pub(crate) async fn evaluate(
        &self,
        check: &InFlightCheck,
        snapshot: Option<&RunSnapshot>,
        held: Option<Held>,
    ) -> Decided {
        let (message, limit) = (check.request(), check.limit);
        if check.bytes <= MAX_ORDINARY_BYTES {
            return self.handler.evaluate(message, &check.chosen, snapshot, held.as_ref(), limit);
        }
        let (message, chosen, snapshot) = (Arc::clone(message), check.chosen.clone(), snapshot.cloned());
        let work =
            move |handler: &Handler| handler.evaluate(&message, &chosen, snapshot.as_ref(), held.as_ref(), limit);
        let ended = || Decided::without(EvaluateReply::Unable("the thread for large checks has ended".to_owned()));
        self.large(work).await.unwrap_or_else(ended)
    }

    /// What a handler says of a request of this size, on the thread for it; none if it panics.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Handler) -> T + Send + 'static,
    ) -> Option<T> {
        let guarded = move |handler: &Handler| {
            let result = catch_unwind(AssertUnwindSafe(|| work(handler)));
            if result.is_err() {
                tracing::error!("inspecting a request panicked");
            }
            result.ok()
        };
        if bytes <= MAX_ORDINARY_BYTES { guarded(&self.handler) } else { self.large(guarded).await.flatten() }
    }

    /// Reviews a refused request on the thread for its size; `None` if its deadline has passed by then.
    pub(crate) async fn review(&self, refused: &Arc<ReviewRequest>, deadline: Instant) -> Option<ReviewReply> {
        let bytes: usize = refused.constraints.iter().map(String::len).sum();
        let refused = Arc::clone(refused);
        let work = move |handler: &Handler| (Instant::now() < deadline).then(|| handler.review(&refused));
        if bytes <= MAX_ORDINARY_BYTES {
            return work(&self.handler);
        }
        self.large(work).await.unwrap_or(Some(ReviewReply { errors: Vec::new() }))
    }

    /// Runs `work` on the second thread; `None` if that thread has ended.
    pub(crate) async fn large<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Handler) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let work: Work = Box::new(move |handler| {
            // The caller may be gone.
            let _ = done.send(work(handler));
        });
        self.large.send(work).await.ok()?;
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_review_past_its_deadline_is_dropped_whatever_its_size() {
        let engines = Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        for note in [String::new(), "x".repeat(MAX_ORDINARY_BYTES)] {
            let refused = Arc::new(ReviewRequest {
                account: AccountId::parse("acc").unwrap(),
                constraints: vec!["allowed_change_window: blue_moon".to_owned(), note],
                policy_pack_version: None,
            });
            assert_eq!(engines.review(&refused, Instant::now()).await, None);
            let reply = engines.review(&refused, Instant::now() + Duration::from_secs(60)).await;
            assert_eq!(reply.unwrap().errors.len(), 1);
        }
    }
}
