//! Serves the gateways' requests: test a webhook, replay, list an endpoint's deliveries, delete decisions.
//!
//! Any exporter may answer any request, as everything it needs is in the log and the state store. Each kind of request
//! has its own limit, so that large deletions hold up no test, and each account has a share of it. `Failed` means that
//! the log, the state store or the keystore did not answer.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use stage0_backplane::{EntryKind, IncomingRequest, RequestStream, ServeError};
use stage0_contract::{
    AccountId, ChainedLine, DEFAULT_RETENTION_DAYS, DecisionsDeleted, DeleteDecisions, Deletion, Delivery,
    ListDeliveries, ManageReply, Page, Refusal, ReplayStarted, ReplayWebhook, Request, TestWebhook, WebhookTested,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::classify::{DeliveryOutcome, classify};
use crate::cursor::{Cursor, Replay};
use crate::delivery_worker::{cursor_key, new_id};
use crate::endpoints::{Directory, list};
use crate::event::Event;
use crate::fair::FairSlots;
use crate::marks::{self, DeletionRequest};
use crate::replays::{self, ReplayError};
use crate::send::DeliveryEndpoint;
use crate::shared::Shared;

/// Requests of one kind that are handled at a time.
const MAX_CONCURRENT: usize = 64;
const MAX_CONCURRENT_PER_ACCOUNT: usize = 8;

const TOO_MANY_REQUESTS: &str =
    "8 calls of this kind are under way for this account already; wait until one of them is answered";

pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Directory,
}

impl Admin {
    pub(crate) async fn serve(self, stop: &CancellationToken, tasks: &TaskTracker) -> Result<(), ServeError> {
        let requests = &self.shared.backplane.requests;
        let test = requests.serve::<TestWebhook>().await?;
        let replay = requests.serve::<ReplayWebhook>().await?;
        let list = requests.serve::<ListDeliveries>().await?;
        let delete = requests.serve::<DeleteDecisions>().await?;
        let admin = Arc::new(self);
        tasks.spawn(serve(&admin, stop, test, |r| &r.account, |admin, r| async move { admin.test(r).await }));
        tasks.spawn(serve(&admin, stop, replay, |r| &r.account, |admin, r| async move { admin.replay(r).await }));
        tasks.spawn(serve(&admin, stop, list, |r| &r.account, |admin, r| async move { admin.deliveries(r).await }));
        tasks.spawn(serve(&admin, stop, delete, |r| &r.account, |admin, r| async move { admin.delete(r).await }));
        Ok(())
    }

    async fn test(&self, request: TestWebhook) -> ManageReply<WebhookTested> {
        let Some(endpoint) = self.endpoint(&request).await else { return ManageReply::Refused(Refusal::NotFound) };
        let (now, id) = (Timestamp::now(), format!("test_{}", new_id()));
        let body = Event::test(&request.account, &id, now);
        let began = Instant::now();
        let result = self.shared.send(&endpoint, &id, now, body).await;
        let outcome = classify(&result, now);
        ManageReply::Done(WebhookTested {
            delivered: outcome == DeliveryOutcome::Delivered,
            status: result.as_ref().ok().map(|response| response.status),
            error: outcome.reason().map(str::to_owned),
            latency_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// An endpoint that is not in the directory may be new, so the keystore is asked for the list.
    async fn endpoint(&self, request: &TestWebhook) -> Option<Arc<DeliveryEndpoint>> {
        if let Some(endpoint) = self.directory.find(&request.account, &request.id) {
            return Some(endpoint);
        }
        let all = list(&self.shared).await?;
        all.get(&request.id).filter(|endpoint| endpoint.webhook.account == request.account).cloned()
    }

    async fn replay(&self, request: ReplayWebhook) -> ManageReply<ReplayStarted> {
        let replay = Replay { id: new_id(), from: request.from, to: request.to, offset: None };
        match replays::add(&*self.shared.backplane.state_store, &request.id, replay).await {
            Ok(()) => {
                tracing::info!(webhook = %request.id, account = %request.account, "replay was asked for");
                ManageReply::Done(ReplayStarted {})
            }
            Err(ReplayError::TooMany) => {
                ManageReply::Refused(Refusal::Conflict("too many replays of this endpoint wait already".to_owned()))
            }
            Err(error) => {
                tracing::error!(webhook = %request.id, error = &error as &dyn Error, "replay was not stored");
                ManageReply::Failed
            }
        }
    }

    async fn deliveries(&self, request: ListDeliveries) -> ManageReply<Page<Delivery>> {
        let webhook = &request.id;
        let state_store = &self.shared.backplane.state_store;
        let failed = |error: &(dyn Error + 'static), message| tracing::error!(%webhook, error, "{message}");
        let record = state_store.get(&cursor_key(webhook), Shared::store_deadline()).await;
        let record = record.inspect_err(|error| failed(error, "deliveries cannot be read"));
        let Ok(record) = record else { return ManageReply::Failed };
        let cursor = record.map(|record| serde_json::from_slice::<Cursor>(&record.value)).transpose();
        let cursor = cursor.inspect_err(|error| failed(error, "cursor cannot be parsed"));
        let Ok(cursor) = cursor else { return ManageReply::Failed };
        ManageReply::Done(Page { items: cursor.unwrap_or_default().deliveries(), next_cursor: None })
    }

    async fn delete(&self, request: DeleteDecisions) -> ManageReply<DecisionsDeleted> {
        let DeleteDecisions { account, before, requested_by, permit } = request;
        let Some(permit) = permit else {
            tracing::warn!(
                %account,
                "a deletion without the keystore's permit was refused: a gateway of an older version?"
            );
            return ManageReply::Failed;
        };
        let request = DeletionRequest { before, requested_by, permit };
        let days = self.retention_days(&account).await;
        match marks::delete(&self.shared.backplane, &account, days, &request, self.shared.clock.now()).await {
            Ok((Deletion { count, from, to, .. }, mark)) => {
                ManageReply::Done(DecisionsDeleted { count, before, from, to, mark })
            }
            Err(error) => {
                tracing::error!(%account, error = &error as &dyn Error, "decisions were not deleted");
                ManageReply::Failed
            }
        }
    }

    /// The retention of the newest decision: the mark of the deletion is kept as long as any decision beside it.
    async fn retention_days(&self, account: &AccountId) -> u32 {
        let last = self.shared.backplane.log.last(account, EntryKind::Decisions, Shared::store_deadline()).await;
        let last = last.ok().flatten();
        let line = last.as_ref().and_then(|entry| entry.lines().last());
        let header = line.and_then(ChainedLine::read);
        header.map_or(DEFAULT_RETENTION_DAYS, |header| {
            let seconds = header.expires_at.saturating_sub(header.recorded_at.as_second());
            u32::try_from(seconds / 86_400).unwrap_or(DEFAULT_RETENTION_DAYS).max(1)
        })
    }
}

fn serve<R, T, Reply>(
    admin: &Arc<Admin>,
    stop: &CancellationToken,
    requests: RequestStream<R>,
    account: fn(&R) -> &AccountId,
    handler: fn(Arc<Admin>, R) -> Reply,
) -> impl Future<Output = ()> + Send + 'static
where
    R: Request<Reply = ManageReply<T>>,
    T: Send + Sync + 'static,
    Reply: Future<Output = ManageReply<T>> + Send + 'static,
{
    let (admin, stop) = (Arc::clone(admin), stop.clone());
    let slots = FairSlots::new(MAX_CONCURRENT, MAX_CONCURRENT_PER_ACCOUNT);
    async move {
        let (admin, slots) = (&admin, &slots);
        let handle = move |incoming: IncomingRequest<R>| async move {
            let (request, _, responder) = incoming.into_parts();
            let slot = slots.try_acquire(account(&request));
            let reply = match &slot {
                Some(_) => handler(Arc::clone(admin), request).await,
                None => ManageReply::Refused(Refusal::Conflict(TOO_MANY_REQUESTS.to_owned())),
            };
            responder.answer(&reply).await;
        };
        requests.run(&stop, MAX_CONCURRENT, handle).await;
    }
}
