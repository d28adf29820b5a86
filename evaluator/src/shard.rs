//! One worker thread with its own runtime, connection and engines; it evaluates checks inline.
//!
//! Owns the request streams and their draining: on stop no new request is received, received ones are answered, then
//! the connection is closed. Shards share only the state store, and only checks that name a run wait for it. `checks`
//! decides the order of checks, `reviews` limits the reviews in flight.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{Backplane, RequestStream, ServeError, follow_store_clock};
use stage0_contract::{
    EndRun, EvaluateRequest, EvaluatorStatus, ListRuns, Request, ReviewRequest, SettleRun, ShowRun, VocabularyRequest,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::checks::{self, Share};
use crate::config::RunConfig;
use crate::engines::{Engines, EnginesError};
use crate::in_flight::InFlightRequest;
use crate::reviews;
use crate::run::RunCoordinator;
use crate::worker::{Connect, ConnectError};
use stage0_policy::{PackError, PackSet};

/// Requests in flight per kind and shard; more wait in the stream.
const MAX_IN_FLIGHT: usize = 4_096;

/// Why a shard cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// No runtime for the thread.
    #[error("cannot start the runtime of a worker thread")]
    Runtime(#[source] std::io::Error),
    /// No thread for large checks.
    #[error("cannot start the thread for large checks")]
    Thread(#[source] std::io::Error),
    /// That thread ended before it reported anything.
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

impl From<EnginesError> for ShardError {
    fn from(error: EnginesError) -> Self {
        match error {
            EnginesError::Thread(error) => Self::Thread(error),
            EnginesError::Ended => Self::Ended,
            EnginesError::Prepare(error) => Self::Prepare(error),
        }
    }
}

/// Runs one shard until `stop`. Sends on `ready` once it serves, or why it cannot.
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
            // The receiver may be gone.
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
    engines: Engines,
    runs: RunCoordinator,
    evaluate: RequestStream<EvaluateRequest>,
    review: RequestStream<ReviewRequest>,
    status: RequestStream<EvaluatorStatus>,
    vocabulary: RequestStream<VocabularyRequest>,
    show: RequestStream<ShowRun>,
    list: RequestStream<ListRuns>,
    end: RequestStream<EndRun>,
    settle: RequestStream<SettleRun>,
}

impl Shard {
    async fn open(packs: Arc<PackSet>, runs: RunConfig, connect: &Connect) -> Result<Self, ShardError> {
        let engines = Engines::open(packs)?;
        let backplane = connect().await.map_err(ShardError::Connect)?;
        let runs = RunCoordinator::new(Arc::clone(&backplane.state_store), runs);
        let requests = &backplane.requests;
        let review = requests.serve().await.map_err(ShardError::Serve)?;
        let status = requests.serve().await.map_err(ShardError::Serve)?;
        let vocabulary = requests.serve().await.map_err(ShardError::Serve)?;
        let show = requests.serve().await.map_err(ShardError::Serve)?;
        let list = requests.serve().await.map_err(ShardError::Serve)?;
        let end = requests.serve().await.map_err(ShardError::Serve)?;
        let settle = requests.serve().await.map_err(ShardError::Serve)?;
        // Last, so that a shard which receives checks can answer every other request too.
        let evaluate = requests.serve().await.map_err(ShardError::Serve)?;
        Ok(Self { backplane, engines, runs, evaluate, review, status, vocabulary, show, list, end, settle })
    }

    async fn serve(self, stop: &CancellationToken, share: Share) {
        let (engines, answers, runs) = (&self.engines, self.engines.answers(), &self.runs);
        tokio::join!(
            stop.run_until_cancelled(follow_store_clock(runs.state_store())),
            checks::serve_until(self.evaluate, stop, engines, runs, share),
            reviews::serve_until(self.review, stop, engines),
            serve_until(self.status, stop, async |asked: InFlightRequest<EvaluatorStatus>| {
                asked.answer(&answers.status()).await;
            }),
            serve_until(self.vocabulary, stop, async |asked: InFlightRequest<VocabularyRequest>| {
                asked.answer(&answers.vocabulary()).await;
            }),
            serve_until(self.show, stop, async |asked: InFlightRequest<ShowRun>| {
                let reply = runs.show(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            serve_until(self.list, stop, async |asked: InFlightRequest<ListRuns>| {
                let reply = runs.list(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            serve_until(self.end, stop, async |asked: InFlightRequest<EndRun>| {
                let reply = runs.end(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
            serve_until(self.settle, stop, async |asked: InFlightRequest<SettleRun>| {
                let reply = runs.settle(&asked.request, asked.deadline).await;
                asked.answer(&reply).await;
            }),
        );
        self.runs.drain().await;
        self.backplane.requests.close().await;
    }
}

/// Serves requests until `stop`, then those that arrived before it. Requests that wait for the state store do so
/// concurrently; the others are answered inline.
async fn serve_until<R: Request>(
    mut inbox: RequestStream<R>,
    stop: &CancellationToken,
    answer: impl AsyncFn(InFlightRequest<R>),
) {
    let mut in_flight = FuturesUnordered::new();
    let (mut stopping, mut drained) = (false, false);
    while !(drained && in_flight.is_empty()) {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                inbox.stop().await;
            }
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            question = inbox.next(), if !drained && in_flight.len() < MAX_IN_FLIGHT => match question {
                Some(question) => in_flight.push(answer(InFlightRequest::new(question))),
                None => drained = true,
            },
        }
    }
}
