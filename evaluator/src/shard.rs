//! One worker thread: its own runtime, its own connection, its own engines; it evaluates inline.
//!
//! Owns the inboxes and their draining: on stop no new question is taken, what had arrived is answered, then the connection is
//! closed. Nothing is shared with other shards but the ledger, so none waits for another; only a check that names a run waits for it.
//! In which order checks are decided is for `checks` to say, how many reviews are taken for `reviews`.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{Backplane, ServeError, Served, follow_store_clock};
use stage0_contract::{
    EndRun, EvaluateRequest, EvaluatorStatus, ListRuns, Request, ReviewRequest, SettleRun, ShowRun, VocabularyRequest,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::checks::{self, Share};
use crate::in_hand::InHand;
use crate::lanes::{Lanes, LanesError};
use crate::pack::{PackError, PackSet};
use crate::reviews;
use crate::run::{RunConfig, Runs};
use crate::worker::{Connect, ConnectError};

/// Questions of one kind that one shard has in hand; more wait in the inbox.
const MOST_IN_HAND: usize = 4_096;

/// Why a shard cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// No runtime for the thread.
    #[error("cannot start the runtime of a worker thread")]
    Runtime(#[source] std::io::Error),
    /// No thread for large checks.
    #[error("cannot start the thread for large checks")]
    Thread(#[source] std::io::Error),
    /// That thread ended before it said anything.
    #[error("the thread for large checks ended while it started")]
    Ended,
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

impl From<LanesError> for ShardError {
    fn from(error: LanesError) -> Self {
        match error {
            LanesError::Thread(error) => Self::Thread(error),
            LanesError::Ended => Self::Ended,
            LanesError::Prepare(error) => Self::Prepare(error),
        }
    }
}

/// Runs one shard until `stop`. `ready` hears whether it serves.
pub(crate) fn run(
    packs: Arc<PackSet>,
    runs: RunConfig,
    connect: &Connect,
    share: Share,
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
        match Shard::open(packs, runs, connect).await {
            Ok(shard) => {
                let _ = ready.send(Ok(()));
                shard.serve(stop, share).await;
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
}

struct Shard {
    backplane: Backplane,
    lanes: Lanes,
    runs: Runs,
    evaluate: Served<EvaluateRequest>,
    review: Served<ReviewRequest>,
    status: Served<EvaluatorStatus>,
    vocabulary: Served<VocabularyRequest>,
    show: Served<ShowRun>,
    list: Served<ListRuns>,
    end: Served<EndRun>,
    settle: Served<SettleRun>,
}

impl Shard {
    async fn open(packs: Arc<PackSet>, runs: RunConfig, connect: &Connect) -> Result<Self, ShardError> {
        let lanes = Lanes::open(packs)?;
        let backplane = connect().await.map_err(ShardError::Connect)?;
        let runs = Runs::new(Arc::clone(&backplane.ledger), runs);
        let requests = &backplane.requests;
        let review = requests.serve().await.map_err(ShardError::Serve)?;
        let status = requests.serve().await.map_err(ShardError::Serve)?;
        let vocabulary = requests.serve().await.map_err(ShardError::Serve)?;
        let show = requests.serve().await.map_err(ShardError::Serve)?;
        let list = requests.serve().await.map_err(ShardError::Serve)?;
        let end = requests.serve().await.map_err(ShardError::Serve)?;
        let settle = requests.serve().await.map_err(ShardError::Serve)?;
        // Last: whoever is asked to decide can answer everything else too.
        let evaluate = requests.serve().await.map_err(ShardError::Serve)?;
        Ok(Self { backplane, lanes, runs, evaluate, review, status, vocabulary, show, list, end, settle })
    }

    async fn serve(self, stop: &CancellationToken, share: Share) {
        let (lanes, answers, runs) = (&self.lanes, self.lanes.answers(), &self.runs);
        tokio::join!(
            stop.run_until_cancelled(follow_store_clock(runs.ledger())),
            checks::until_stopped(self.evaluate, stop, lanes, runs, share),
            reviews::until_stopped(self.review, stop, lanes),
            until_stopped(self.status, stop, async |asked: InHand<EvaluatorStatus>| {
                asked.answer(&answers.status()).await;
            }),
            until_stopped(self.vocabulary, stop, async |asked: InHand<VocabularyRequest>| {
                asked.answer(&answers.vocabulary()).await;
            }),
            until_stopped(self.show, stop, async |asked: InHand<ShowRun>| {
                let reply = runs.show(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            until_stopped(self.list, stop, async |asked: InHand<ListRuns>| {
                let reply = runs.list(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            until_stopped(self.end, stop, async |asked: InHand<EndRun>| {
                let reply = runs.end(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            until_stopped(self.settle, stop, async |asked: InHand<SettleRun>| {
                let reply = runs.settle(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
        );
        self.runs.drain().await;
        self.backplane.requests.close().await;
    }
}

/// Answers until `stop`, then what had arrived before it. What needs the ledger waits for it beside the others; the rest is answered
/// where it arrives.
async fn until_stopped<R: Request>(mut inbox: Served<R>, stop: &CancellationToken, answer: impl AsyncFn(InHand<R>)) {
    let mut in_hand = FuturesUnordered::new();
    let (mut stopping, mut emptied) = (false, false);
    while !(emptied && in_hand.is_empty()) {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            Some(()) = in_hand.next(), if !in_hand.is_empty() => {}
            question = inbox.next(), if !emptied && in_hand.len() < MOST_IN_HAND => match question {
                Some(question) => in_hand.push(answer(InHand::new(question))),
                None => emptied = true,
            },
        }
    }
}
