//! One worker thread: its own runtime, its own connection, its own engines; it evaluates inline.
//!
//! Owns the three inboxes and their draining: on stop no new question is taken, what had arrived is answered, then the connection is
//! closed. Nothing is shared with other shards, so none waits for another.

use std::sync::Arc;

use stage0_backplane::{Backplane, Question, ServeError, Served};
use stage0_contract::{EvaluateRequest, EvaluatorStatus, Request, ReviewRequest};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::answer::Answers;
use crate::pack::{PackError, PackSet};
use crate::worker::{Connect, ConnectError};

/// Why a shard cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// No runtime for the thread.
    #[error("cannot start the runtime of a worker thread")]
    Runtime(#[source] std::io::Error),
    /// No connection.
    #[error("cannot connect to the backplane")]
    Connect(#[source] ConnectError),
    /// A subject cannot be joined.
    #[error("cannot serve")]
    Serve(#[source] ServeError),
    /// A pack that loaded cannot be parsed again.
    #[error("cannot prepare the policy packs")]
    Prepare(#[source] PackError),
}

/// Runs one shard until `stop`. `ready` hears whether it serves.
pub(crate) fn run(
    packs: Arc<PackSet>,
    connect: &Connect,
    ready: oneshot::Sender<Result<(), ShardError>>,
    stop: &CancellationToken,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever asked and is gone needs no answer.
            let _ = ready.send(Err(ShardError::Runtime(error)));
            return;
        }
    };
    runtime.block_on(async {
        match Shard::open(packs, connect).await {
            Ok(shard) => {
                let _ = ready.send(Ok(()));
                shard.serve(stop).await;
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
}

struct Shard {
    backplane: Backplane,
    answers: Answers,
    evaluate: Served<EvaluateRequest>,
    review: Served<ReviewRequest>,
    status: Served<EvaluatorStatus>,
}

impl Shard {
    async fn open(packs: Arc<PackSet>, connect: &Connect) -> Result<Self, ShardError> {
        let answers = Answers::new(packs).map_err(ShardError::Prepare)?;
        let backplane = connect().await.map_err(ShardError::Connect)?;
        let requests = &backplane.requests;
        let review = requests.serve().await.map_err(ShardError::Serve)?;
        let status = requests.serve().await.map_err(ShardError::Serve)?;
        // Last: whoever is asked to decide can answer everything else too.
        let evaluate = requests.serve().await.map_err(ShardError::Serve)?;
        Ok(Self { backplane, answers, evaluate, review, status })
    }

    async fn serve(self, stop: &CancellationToken) {
        let answers = &self.answers;
        tokio::join!(
            until_stopped(self.evaluate, stop, |question| answers.evaluate(question)),
            until_stopped(self.review, stop, |question| answers.review(question)),
            until_stopped(self.status, stop, |_| answers.status()),
        );
        self.backplane.requests.close().await;
    }
}

/// Answers until `stop`, then what had arrived before it.
async fn until_stopped<R: Request>(mut inbox: Served<R>, stop: &CancellationToken, answer: impl Fn(&R) -> R::Reply) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            question = inbox.next() => match question {
                Some(question) => reply(question, &answer).await,
                None => return,
            },
        }
    }
    inbox.stop().await;
    while let Some(question) = inbox.next().await {
        reply(question, &answer).await;
    }
}

async fn reply<R: Request>(question: Question<R>, answer: &impl Fn(&R) -> R::Reply) {
    let reply = answer(&question.request);
    question.answer(&reply).await;
}
