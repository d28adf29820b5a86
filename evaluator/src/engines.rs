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
use stage0_policy::{Engine, Pack, PackSet, RunSnapshot};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::handler::{Decided, Handler, Held};
use crate::in_flight::InFlightCheck;
use crate::own_thread::{lower_priority, on_own_thread};
use crate::preparing::Preparing;
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
    preparing: Preparing,
}

/// By whose forms secrets are found, beside those of the process's own policy.
pub(crate) struct SecretForms<'a> {
    pub(crate) account: &'a AccountId,
    /// The versions that are active for the account.
    pub(crate) policies: Vec<PolicyVersion>,
    pub(crate) floor: Option<&'a PolicyVersion>,
}

impl<'a> SecretForms<'a> {
    pub(crate) fn of(account: &'a AccountId, rules: &'a AccountRules) -> Self {
        Self { account, policies: rules.policy.versions(), floor: rules.floor.as_ref() }
    }
}

/// Why the packs of a check are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotChosen {
    #[error(transparent)]
    NotLoaded(#[from] NotLoaded),
    #[error("published policies cannot be read here")]
    NoneHere,
}

impl NotChosen {
    /// The answer to a check.
    pub(crate) fn reply(&self) -> EvaluateReply {
        match self {
            Self::NotLoaded(not_loaded) => not_loaded.reply(),
            Self::NoneHere => EvaluateReply::Unable(self.to_string()),
        }
    }
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
        Ok(Self { handler, large, published: None, preparing: Preparing::new() })
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
        self.prepare_all(&chosen, deadline).await?;
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
        self.prepare(&pack, account, deadline).await
    }

    /// Has the rules of all packs that decide a check parsed, as far as they are not.
    async fn prepare_all(&self, chosen: &Chosen, deadline: Instant) -> Result<(), NotChosen> {
        if let Some(own) = &chosen.own {
            self.prepare(own, chosen.account.as_ref(), deadline).await?;
        }
        if let Some(floor) = &chosen.floor {
            self.prepare(floor, None, deadline).await?;
        }
        Ok(())
    }

    async fn load(
        &self,
        account: &AccountId,
        version: &PolicyVersion,
        deadline: Instant,
    ) -> Result<Arc<Pack>, NotChosen> {
        let Some(published) = &self.published else { return Err(NotChosen::NoneHere) };
        Ok(published.load(Some(account), version, deadline).await?)
    }

    /// Has the rules of a pack parsed for the shard's own thread by another one: else every check of the shard would
    /// wait for it.
    async fn prepare(&self, pack: &Arc<Pack>, account: Option<&AccountId>, deadline: Instant) -> Result<(), NotChosen> {
        let is_prepared = || self.handler.has_engine(pack, account);
        if is_prepared() {
            return Ok(());
        }
        let turn = self.preparing.turn(account, deadline, is_prepared).await;
        if is_prepared() {
            return Ok(());
        }
        let Some(_turn) = turn else { return Err(NotLoaded::not_prepared(pack.version()).into()) };
        let parsed = Arc::clone(pack);
        let unusable = |why: String| NotLoaded::unusable(pack.version(), why);
        let engine = on_own_thread("policy-prepare", move || Engine::new(parsed)).await;
        let engine = engine.ok_or_else(|| unusable("the thread that prepares it ended".to_owned()))?;
        self.handler.keep(engine.map_err(|error| unusable(format!("it cannot be prepared: {error}")))?, account);
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
            // Since they were chosen, others may have taken the room of their engines.
            if check.chosen.is_published()
                && let Err(error) = self.prepare_all(&check.chosen, check.deadline()).await
            {
                return Decided::without(error.reply());
            }
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

    /// Works on texts of an account with what masks their secrets; none where that cannot be known, because a policy of
    /// the account is not there.
    pub(crate) async fn with_mask<T: Send + 'static>(
        &self,
        forms: SecretForms<'_>,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce(&dyn Fn(&str) -> String) -> T + Send + 'static,
    ) -> Option<T> {
        let SecretForms { account, policies, floor } = forms;
        // The rest is for what is done with the texts.
        let deadline = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let own = policies.iter().map(|version| (Some(account), version));
        let mut packs = Vec::new();
        for (account, version) in own.chain(floor.map(|version| (None, version))) {
            let loaded = match &self.published {
                Some(published) => published.load(account, version, deadline).await.map_err(NotChosen::from),
                None => Err(NotChosen::NoneHere),
            };
            let failed = |error: &NotChosen| tracing::warn!(account = %forms.account, %error, "a text is not masked");
            packs.push(loaded.inspect_err(failed).ok()?);
        }
        self.inspect(bytes, move |handler| work(&|text: &str| handler.mask(text, &packs))).await
    }

    /// Reviews a refused request on the thread for its size, by the policy that would decide it; `None` if its deadline
    /// has passed by then.
    pub(crate) async fn review(&self, refused: &Arc<ReviewRequest>, deadline: Instant) -> Option<ReviewReply> {
        let published = match &refused.policy {
            None => None,
            Some(version) => match self.load(&refused.account, version, deadline).await {
                Ok(pack) => Some(pack),
                // Another policy would name faults that are none.
                Err(error) => {
                    tracing::debug!(account = %refused.account, %error, "bad request is not reviewed");
                    return Some(ReviewReply { errors: Vec::new() });
                }
            },
        };
        let bytes: usize = refused.constraints.iter().map(String::len).sum();
        let refused = Arc::clone(refused);
        let work = move |handler: &Handler| (Instant::now() < deadline).then(|| handler.review(&refused, published));
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
                policy: None,
            });
            assert_eq!(engines.review(&refused, Instant::now()).await, None);
            let reply = engines.review(&refused, Instant::now() + Duration::from_secs(60)).await;
            assert_eq!(reply.unwrap().errors.len(), 1);
        }
    }
}
