//! Where a check is decided: an ordinary one on the shard's own thread, a large one on a second thread beside it.
//!
//! Owns that line and the second thread, which gives way to the first: a check of a megabyte costs what hundreds of
//! ordinary ones do, and those of other accounts must not wait for it. Each thread has its own engines.
//! INVARIANT: where the second thread cannot be had, a check is not decided; it never moves to the first.

use std::sync::Arc;
use std::thread;

use stage0_contract::{EvaluateReply, EvaluateRequest, ReviewReply, ReviewRequest};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::answer::Answers;
use crate::facts::Past;
use crate::pack::{PackError, PackSet};
use crate::run::Lesson;
use crate::time_limit::TimeLimit;

/// Bytes of the largest check that is ordinary: with a cost for each byte that is about the same, it takes as long as
/// thirty usual ones.
pub(crate) const MAX_ORDINARY_BYTES: usize = 32_768;
/// Work that waits for the second thread; who has more waits to hand it over.
const MAX_WAITING: usize = 64;
/// On Linux: the share of a busy core is about a tenth.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

type Work = Box<dyn FnOnce(&Answers) + Send>;

/// One shard's threads.
pub(crate) struct Lanes {
    answers: Answers,
    large: mpsc::Sender<Work>,
}

impl Lanes {
    /// Parses every pack for both threads.
    pub(crate) fn open(packs: Arc<PackSet>) -> Result<Self, LanesError> {
        let answers = Answers::new(Arc::clone(&packs)).map_err(LanesError::Prepare)?;
        let (large, mut work) = mpsc::channel::<Work>(MAX_WAITING);
        let (ready, said) = std::sync::mpsc::sync_channel(1);
        let serve = move || {
            give_way();
            let prepared = Answers::new(packs);
            let answers = match prepared {
                Ok(answers) => answers,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            // Ends with the shard, which holds the other end.
            while let Some(work) = work.blocking_recv() {
                work(&answers);
            }
        };
        thread::Builder::new().name("evaluator-large".to_owned()).spawn(serve).map_err(LanesError::Thread)?;
        said.recv().map_err(|_| LanesError::Ended)?.map_err(LanesError::Prepare)?;
        Ok(Self { answers, large })
    }

    /// The engines of the shard's own thread.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Decides a check where its size belongs; `bytes` is what its message had.
    pub(crate) async fn evaluate(
        &self,
        check: &Arc<EvaluateRequest>,
        bytes: usize,
        past: Option<Past>,
        limit: TimeLimit,
    ) -> (EvaluateReply, Option<Lesson>) {
        if bytes <= MAX_ORDINARY_BYTES {
            return self.answers.evaluate(check, past.as_ref(), limit);
        }
        let check = Arc::clone(check);
        let decided = self.large(move |answers| answers.evaluate(&check, past.as_ref(), limit)).await;
        decided.unwrap_or_else(|| (EvaluateReply::Unable("the thread for large checks has ended".to_owned()), None))
    }

    /// Reviews a refused request where its size belongs, unless nobody waits for it any more when it has its turn.
    /// Where the second thread has ended, nothing is added to the refusal.
    pub(crate) async fn review(&self, refused: &Arc<ReviewRequest>, deadline: Instant) -> Option<ReviewReply> {
        let bytes: usize = refused.constraints.iter().map(String::len).sum();
        let refused = Arc::clone(refused);
        let work = move |answers: &Answers| (Instant::now() < deadline).then(|| answers.review(&refused));
        if bytes <= MAX_ORDINARY_BYTES {
            return work(&self.answers);
        }
        self.large(work).await.unwrap_or(Some(ReviewReply { errors: Vec::new() }))
    }

    /// Does something on the second thread; nothing when it has ended.
    pub(crate) async fn large<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Answers) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let work: Work = Box::new(move |answers| {
            // Whoever asked and is gone needs no result.
            let _ = done.send(work(answers));
        });
        self.large.send(work).await.ok()?;
        result.await.ok()
    }
}

/// Why a shard's threads are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LanesError {
    #[error("cannot start the thread for large checks")]
    Thread(#[source] std::io::Error),
    #[error("the thread for large checks ended while it started")]
    Ended,
    #[error("cannot prepare the policy packs")]
    Prepare(#[source] PackError),
}

/// Large checks take a smaller part of the cores than ordinary ones.
fn give_way() {
    // On Linux a priority is the thread's own; elsewhere it would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "large checks have the priority of ordinary ones");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stage0_contract::AccountId;

    use super::*;

    #[tokio::test]
    async fn a_review_that_nobody_waits_for_any_more_is_dropped_whatever_its_size() {
        let lanes = Lanes::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
        for note in [String::new(), "x".repeat(MAX_ORDINARY_BYTES)] {
            let refused = Arc::new(ReviewRequest {
                account: AccountId::parse("acc").unwrap(),
                constraints: vec!["allowed_change_window: blue_moon".to_owned(), note],
                policy_pack_version: None,
            });
            assert_eq!(lanes.review(&refused, Instant::now()).await, None);
            let reply = lanes.review(&refused, Instant::now() + Duration::from_secs(60)).await;
            assert_eq!(reply.unwrap().errors.len(), 1);
        }
    }
}
