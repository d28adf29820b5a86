//! The requests about outcomes and guards, and what came of recording events of any kind.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use stage0_backplane::{Backplane, RequestStream, ServeError};
use stage0_contract::{
    CollectSilentGuards, EventsSettled, ForgetGuard, ListGuards, ManageReply, ReadOutcomes, ReportDecisionOutcome,
    ReportGuard, SettleEvents,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::serve_until;
use crate::approval::Approvals;
use crate::guards::Guards;
use crate::outcomes::{Outcomes, Reporting};

pub(super) struct OutcomeRequests {
    report: RequestStream<ReportDecisionOutcome>,
    read: RequestStream<ReadOutcomes>,
    report_guard: RequestStream<ReportGuard>,
    list_guards: RequestStream<ListGuards>,
    forget_guard: RequestStream<ForgetGuard>,
    collect_silent: RequestStream<CollectSilentGuards>,
    settle: RequestStream<SettleEvents>,
}

/// What answers them.
#[derive(Clone, Copy)]
pub(super) struct Answering<'a> {
    pub(super) with: Reporting<'a>,
    pub(super) outcomes: &'a Outcomes,
    pub(super) guards: &'a Guards,
}

impl OutcomeRequests {
    pub(super) async fn open(backplane: &Backplane) -> Result<Self, ServeError> {
        let requests = &backplane.requests;
        Ok(Self {
            report: requests.serve().await?,
            read: requests.serve().await?,
            report_guard: requests.serve().await?,
            list_guards: requests.serve().await?,
            forget_guard: requests.serve().await?,
            collect_silent: requests.serve().await?,
            settle: requests.serve().await?,
        })
    }

    pub(super) fn serve<'a>(
        self,
        stop: &'a CancellationToken,
        answering: Answering<'a>,
    ) -> [LocalBoxFuture<'a, ()>; 7] {
        let Answering { with, outcomes, guards } = answering;
        [
            serve_until(self.report, stop, async move |request, deadline| {
                outcomes.report(with, request, deadline).await
            })
            .boxed_local(),
            serve_until(self.read, stop, async move |request, deadline| outcomes.read(request, deadline).await)
                .boxed_local(),
            serve_until(self.report_guard, stop, async move |request, deadline| guards.report(request, deadline).await)
                .boxed_local(),
            serve_until(self.list_guards, stop, async move |request, deadline| guards.list(request, deadline).await)
                .boxed_local(),
            serve_until(self.forget_guard, stop, async move |request, deadline| guards.forget(request, deadline).await)
                .boxed_local(),
            serve_until(self.collect_silent, stop, async move |request, deadline| {
                guards.collect(request, deadline).await
            })
            .boxed_local(),
            serve_until(self.settle, stop, async move |request, deadline| {
                settle(with.approvals, outcomes, guards, request, deadline).await
            })
            .boxed_local(),
        ]
    }
}

/// Settles what is of each kind; one that fails does not keep the others from being settled.
async fn settle(
    approvals: &Approvals,
    outcomes: &Outcomes,
    guards: &Guards,
    message: &SettleEvents,
    deadline: Instant,
) -> ManageReply<EventsSettled> {
    let of_approvals = approvals.settle(message, deadline).await;
    let of_outcomes = outcomes.settle(message, deadline).await;
    let of_guards = guards.settle(message, deadline).await;
    if of_outcomes.is_err() || of_guards.is_err() { ManageReply::Failed } else { of_approvals }
}
