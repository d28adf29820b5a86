//! One worker thread with its own runtime, connection and engines; it evaluates checks inline.
//!
//! Owns the request streams and their draining: on stop no new request is received, received ones are answered, then
//! the connection is closed. Shards share only the state store, and only checks that name a run wait for it.

mod outcome_requests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{Backplane, Event, RequestStream, ServeError, Subscription, follow_store_clock};
use stage0_contract::{
    ChangeApproval, ChangeGrant, CollectEvents, ComparePolicies, CoveredByStop, CreateGrant, EndRun, EvaluateRequest,
    EvaluatorStatus, FetchAction, ListApprovals, ListGrants, ListRuns, MAX_LISTED_POLICIES, MaskText, PolicyChanged,
    ProbeTools, ReadApprovalHistory, ReadCandidates, ReplayDecisions, Request, ReviewRequest, SettleRun, ShowApproval,
    ShowRun, ValidatePolicy, VocabularyRequest,
};
use stage0_policy::{PackError, PackSet};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::approval::Approvals;
use crate::candidates::{self, Candidates};
use crate::checks::{self, Deciders, ShardLimits};
use crate::compare::Comparer;
use crate::config::RunConfig;
use crate::engines::Engines;
use crate::guards::Guards;
use crate::in_flight::InFlightRequest;
use crate::outcomes::{Outcomes, Reporting};
use crate::preload::Preload;
use crate::probe::Prober;
use crate::published::{Preloading, Published, SharedPolicies};
use crate::replay::Replayer;
use crate::reviews;
use crate::run::{Journal, RunCoordinator};
use crate::validate::Validator;
use crate::worker::{Connect, ConnectError};
use outcome_requests::{Answering, OutcomeRequests};

/// Requests in flight per kind and shard; more wait in the stream.
const MAX_IN_FLIGHT: usize = 4_096;

/// How long loading a policy ahead of its first check may take.
const PRELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a shard cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The thread has no runtime.
    #[error("cannot start the runtime of a worker thread")]
    Runtime(#[source] std::io::Error),
    /// The thread for large checks cannot be started.
    #[error("cannot start the thread for large checks")]
    Thread(#[source] std::io::Error),
    /// The thread for large checks ended before it reported anything.
    #[error("the thread for large checks ended while it started")]
    Ended,
    /// The backplane cannot be reached.
    #[error("cannot connect to the backplane")]
    Connect(#[source] ConnectError),
    /// A request stream cannot be opened.
    #[error("cannot serve")]
    Serve(#[source] ServeError),
    /// A pack that loaded cannot be parsed again.
    #[error("cannot prepare the policy packs")]
    Prepare(#[source] PackError),
}

/// What a shard is made of; all but the settings is shared with the other shards of its process.
pub(crate) struct ShardParts {
    pub(crate) packs: Arc<PackSet>,
    pub(crate) policies: Arc<SharedPolicies>,
    pub(crate) preload: Preloading,
    pub(crate) validator: Arc<Validator>,
    pub(crate) comparer: Arc<Comparer>,
    pub(crate) replayer: Arc<Replayer>,
    pub(crate) candidates: Candidates,
    pub(crate) runs: RunConfig,
    pub(crate) journal: Arc<Journal>,
}

/// Runs one shard until `stop`. Reports on `ready` once it serves, or why it cannot; the receiver may be gone.
pub(crate) fn run(
    parts: ShardParts,
    connect: &Connect,
    limits: ShardLimits,
    ready: oneshot::Sender<Result<(), ShardError>>,
    stop: &CancellationToken,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(ShardError::Runtime(error)));
            return;
        }
    };
    runtime.block_on(async {
        match Shard::open(parts, connect).await {
            Ok(shard) => {
                let _ = ready.send(Ok(()));
                shard.serve(stop, limits).await;
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
    validate: RequestStream<ValidatePolicy>,
    validator: Arc<Validator>,
    compare: RequestStream<ComparePolicies>,
    comparer: Arc<Comparer>,
    replay: RequestStream<ReplayDecisions>,
    replayer: Arc<Replayer>,
    probe: RequestStream<ProbeTools>,
    prober: Prober,
    read_candidates: RequestStream<ReadCandidates>,
    candidates: Candidates,
    published: Published,
    /// None where the backplane does not let it subscribe: then policies are loaded for the first check alone.
    policy_changes: Option<Subscription<PolicyChanged>>,
    /// What is active, where the keystore did not answer yet.
    preload: Option<Preload>,
    approvals: Approvals,
    approval_requests: ApprovalRequests,
    outcomes: Outcomes,
    guards: Guards,
    outcome_requests: OutcomeRequests,
}

/// The requests about approvals, wider grants and stops.
struct ApprovalRequests {
    covered: RequestStream<CoveredByStop>,
    mask: RequestStream<MaskText>,
    fetch: RequestStream<FetchAction>,
    list: RequestStream<ListApprovals>,
    show: RequestStream<ShowApproval>,
    history: RequestStream<ReadApprovalHistory>,
    change: RequestStream<ChangeApproval>,
    collect: RequestStream<CollectEvents>,
    create_grant: RequestStream<CreateGrant>,
    list_grants: RequestStream<ListGrants>,
    change_grant: RequestStream<ChangeGrant>,
}

impl ApprovalRequests {
    async fn open(backplane: &Backplane) -> Result<Self, ServeError> {
        let requests = &backplane.requests;
        Ok(Self {
            covered: requests.serve().await?,
            mask: requests.serve().await?,
            fetch: requests.serve().await?,
            list: requests.serve().await?,
            show: requests.serve().await?,
            history: requests.serve().await?,
            change: requests.serve().await?,
            collect: requests.serve().await?,
            create_grant: requests.serve().await?,
            list_grants: requests.serve().await?,
            change_grant: requests.serve().await?,
        })
    }

    fn serve<'a>(
        self,
        stop: &'a CancellationToken,
        engines: &'a Engines,
        approvals: &'a Approvals,
    ) -> [LocalBoxFuture<'a, ()>; 11] {
        [
            serve_until(self.covered, stop, async |request, deadline| {
                approvals.covered(engines, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.mask, stop, async |request, deadline| approvals.masked(engines, request, deadline).await)
                .boxed_local(),
            serve_until(self.fetch, stop, async |request, deadline| approvals.fetch(request, deadline).await)
                .boxed_local(),
            serve_until(self.list, stop, async |request, deadline| approvals.list(request, deadline).await)
                .boxed_local(),
            serve_until(self.show, stop, async |request, deadline| approvals.show(engines, request, deadline).await)
                .boxed_local(),
            serve_until(self.history, stop, async |request, deadline| approvals.history(request, deadline).await)
                .boxed_local(),
            serve_until(self.change, stop, async |request, deadline| {
                approvals.change(engines, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.collect, stop, async |request, deadline| approvals.collect(request, deadline).await)
                .boxed_local(),
            serve_until(self.create_grant, stop, async |request, deadline| {
                approvals.create_grant(engines, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.list_grants, stop, async |request, deadline| {
                approvals.list_grants(request, deadline).await
            })
            .boxed_local(),
            serve_until(self.change_grant, stop, async |request, deadline| {
                approvals.change_grant(engines, request, deadline).await
            })
            .boxed_local(),
        ]
    }
}

impl Shard {
    async fn open(parts: ShardParts, connect: &Connect) -> Result<Self, ShardError> {
        let ShardParts { packs, policies, preload, validator, comparer, replayer, candidates, runs, journal } = parts;
        let engines = Engines::open(packs)?;
        let backplane = connect().await.map_err(ShardError::Connect)?;
        let published = Published::new(policies, Arc::clone(&backplane.requests));
        let engines = engines.with_published(published.clone());
        let policy_changes = backplane.notices.subscribe::<PolicyChanged>().await;
        let policy_changes = policy_changes
            .inspect_err(|error| tracing::warn!(%error, "policies are not loaded before the first check needs them"))
            .ok();
        // Before any request can arrive, which would wait for it, and after the notices, so that none is missed.
        let preload = Preload::new(preload).begin(&*backplane.requests, &engines).await;
        let approvals = Approvals::new(&backplane, runs);
        let runs = RunCoordinator::new(Arc::clone(&backplane.state_store), runs).with_journal(journal);
        let approval_requests = ApprovalRequests::open(&backplane).await.map_err(ShardError::Serve)?;
        let outcomes = Outcomes::new(Arc::clone(&backplane.state_store));
        let guards = Guards::new(Arc::clone(&backplane.state_store));
        let outcome_requests = OutcomeRequests::open(&backplane).await.map_err(ShardError::Serve)?;
        let requests = &backplane.requests;
        let review = requests.serve().await.map_err(ShardError::Serve)?;
        let status = requests.serve().await.map_err(ShardError::Serve)?;
        let vocabulary = requests.serve().await.map_err(ShardError::Serve)?;
        let show = requests.serve().await.map_err(ShardError::Serve)?;
        let list = requests.serve().await.map_err(ShardError::Serve)?;
        let end = requests.serve().await.map_err(ShardError::Serve)?;
        let settle = requests.serve().await.map_err(ShardError::Serve)?;
        let validate = requests.serve().await.map_err(ShardError::Serve)?;
        let compare = requests.serve().await.map_err(ShardError::Serve)?;
        let replay = requests.serve().await.map_err(ShardError::Serve)?;
        let probe = requests.serve().await.map_err(ShardError::Serve)?;
        let read_candidates = requests.serve().await.map_err(ShardError::Serve)?;
        // Last, so that a shard which receives checks can answer every other request too.
        let evaluate = requests.serve().await.map_err(ShardError::Serve)?;
        Ok(Self {
            backplane,
            engines,
            runs,
            evaluate,
            review,
            status,
            vocabulary,
            show,
            list,
            end,
            settle,
            validate,
            validator,
            compare,
            comparer,
            replay,
            replayer,
            probe,
            prober: Prober::default(),
            read_candidates,
            candidates,
            published,
            policy_changes,
            preload,
            approvals,
            approval_requests,
            outcomes,
            guards,
            outcome_requests,
        })
    }

    async fn serve(self, stop: &CancellationToken, limits: ShardLimits) {
        let (engines, handler, runs) = (&self.engines, self.engines.handler(), &self.runs);
        let (approvals, validator) = (&self.approvals, &self.validator);
        let (comparer, published) = (&self.comparer, &self.published);
        let (replayer, state_store) = (&self.replayer, &*self.backplane.state_store);
        let prober = &self.prober;
        let with = Reporting { engines, runs, approvals };
        let answering = Answering { with, outcomes: &self.outcomes, guards: &self.guards };
        let deciders = Deciders { engines, runs, approvals, candidates: &self.candidates };
        // Each is polled only when it was woken itself: a check must not pay for every kind of request beside it.
        let tasks: FuturesUnordered<LocalBoxFuture<'_, ()>> = [
            stop.run_until_cancelled(follow_store_clock(runs.state_store())).map(drop).boxed_local(),
            stop.run_until_cancelled(runs.tend_journal()).map(drop).boxed_local(),
            checks::serve_until(self.evaluate, stop, deciders, limits).boxed_local(),
            reviews::serve_until(self.review, stop, engines).boxed_local(),
            serve_until(self.status, stop, async |_, _| handler.status()).boxed_local(),
            serve_until(self.vocabulary, stop, async |request, deadline| engines.vocabulary(request, deadline).await)
                .boxed_local(),
            serve_until(self.show, stop, async |request, deadline| runs.show(request, deadline).await).boxed_local(),
            serve_until(self.list, stop, async |request, deadline| runs.list(request, deadline).await).boxed_local(),
            serve_until(self.end, stop, async |request, deadline| runs.end(request, deadline).await).boxed_local(),
            serve_until(self.settle, stop, async |request, deadline| runs.settle(request, deadline).await)
                .boxed_local(),
            serve_until(self.validate, stop, async |request, deadline| validator.validate(request, deadline).await)
                .boxed_local(),
            serve_until(self.compare, stop, async |request, deadline| {
                comparer.compare(published, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.replay, stop, async |request, deadline| {
                replayer.replay(published, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.probe, stop, async |request, deadline| prober.probe(engines, request, deadline).await)
                .boxed_local(),
            serve_until(self.read_candidates, stop, async |request, deadline| {
                candidates::store::read(state_store, request, deadline).await
            })
            .boxed_local(),
            stop.run_until_cancelled(preload(self.policy_changes, engines)).map(drop).boxed_local(),
            stop.run_until_cancelled(finish_preload(self.preload, &self.backplane, engines)).map(drop).boxed_local(),
        ]
        .into_iter()
        .chain(self.approval_requests.serve(stop, engines, approvals))
        .chain(self.outcome_requests.serve(stop, answering))
        .collect();
        tasks.collect::<()>().await;
        self.runs.drain().await;
        self.backplane.requests.close().await;
    }
}

async fn finish_preload(preload: Option<Preload>, backplane: &Backplane, engines: &Engines) {
    if let Some(preload) = preload {
        preload.finish(&*backplane.requests, engines).await;
    }
}

/// Loads policies when they are published or activated, so that no check has to wait for them. Best effort: a version
/// that was missed is loaded for the first check that needs it.
async fn preload(changes: Option<Subscription<PolicyChanged>>, engines: &Engines) {
    let Some(mut changes) = changes else { return };
    while let Some(event) = changes.next().await {
        let Event::Message(PolicyChanged { account, versions }) = event else { continue };
        for version in versions.iter().take(MAX_LISTED_POLICIES) {
            let loaded = engines.preload(account.as_ref(), version, Instant::now() + PRELOAD_TIMEOUT).await;
            if let Err(error) = loaded {
                tracing::debug!(policy_version = %version, %error, "policy was not loaded ahead");
            }
        }
    }
}

/// Serves requests until `stop`, then those that arrived before it; several may wait for the state store at a time.
pub(crate) async fn serve_until<R: Request>(
    mut inbox: RequestStream<R>,
    stop: &CancellationToken,
    answer: impl AsyncFn(&R, Instant) -> R::Reply,
) {
    let serve = async |received: InFlightRequest<R>| {
        let reply = answer(&received.request, received.deadline).await;
        received.answer(reply).await;
    };
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
            request = inbox.next(), if !drained && in_flight.len() < MAX_IN_FLIGHT => match request {
                Some(request) => in_flight.push(serve(InFlightRequest::new(request))),
                None => drained = true,
            },
        }
    }
}
