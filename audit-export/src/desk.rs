//! What gateways ask: a test, a replay, the deliveries of an endpoint, a deletion.
//!
//! Owns the answers; any worker may give them, as everything they need stands in the log and the ledger. Questions are
//! served a few at a time, so that a deletion of much keeps no test waiting, and fewer of one account, so that tests of
//! a receiver that hangs keep no other account waiting. "Failed" is said when something of ours does not answer.

use std::sync::Arc;

use jiff::Timestamp;
use stage0_backplane::{Backplane, ServeError, Served};
use stage0_contract::{
    AccountId, DEFAULT_RETENTION_DAYS, DecisionsDeleted, DeleteDecisions, Delivery, Endpoint, ListDeliveries,
    ManageReply, Page, Refusal, ReplayStarted, ReplayWebhook, Request, TestWebhook, WebhookTested,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::courier::{key, new_id};
use crate::cursor::{Cursor, Replay};
use crate::endpoints::{Directory, list};
use crate::event::Event;
use crate::fair::FairSlots;
use crate::marks::{self, Demand};
use crate::post;
use crate::replays::{self, ReplayError};
use crate::shared::Shared;
use crate::verdict::{Outcome, outcome};

/// Questions of one kind that are worked on at a time.
const IN_HAND: usize = 64;
/// Of these, those of one account.
const IN_HAND_PER_ACCOUNT: usize = 8;

const TOO_MANY: &str =
    "8 calls of this kind are under way for this account already; wait until one of them is answered";

/// Answers questions.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Directory,
}

/// Starts a loop for each kind of question; they end once stopped, in `tasks`.
pub(crate) async fn serve_all(
    backplane: &Backplane,
    desk: &Arc<Desk>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), ServeError> {
    let requests = &backplane.requests;
    let (test, replay) = (requests.serve::<TestWebhook>().await?, requests.serve::<ReplayWebhook>().await?);
    let (deliveries, delete) = (requests.serve::<ListDeliveries>().await?, requests.serve::<DeleteDecisions>().await?);
    let start = Start { desk, stop, tasks };
    start.serving(test, |call| &call.account, |desk, call| async move { desk.test(call).await });
    start.serving(replay, |call| &call.account, |desk, call| async move { desk.replay(call).await });
    start.serving(deliveries, |call| &call.account, |desk, call| async move { desk.deliveries(call).await });
    start.serving(delete, |call| &call.account, |desk, call| async move { desk.delete(call).await });
    Ok(())
}

impl Desk {
    async fn test(&self, call: TestWebhook) -> ManageReply<WebhookTested> {
        let Some(endpoint) = self.endpoint(&call).await else { return ManageReply::Refused(Refusal::NotFound) };
        let (now, id) = (Timestamp::now(), format!("test_{}", new_id()));
        let body = Event::test(&call.account, &id, now);
        let began = std::time::Instant::now();
        let answer = post::post(&self.shared, &endpoint, &id, now, body).await;
        let judged = outcome(&answer, now);
        ManageReply::Done(WebhookTested {
            delivered: judged == Outcome::Delivered,
            status: answer.as_ref().ok().map(|response| response.status),
            error: post::reason(&judged),
            latency_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// A new endpoint may not be on the list yet.
    async fn endpoint(&self, call: &TestWebhook) -> Option<Arc<Endpoint>> {
        if let Some(endpoint) = self.directory.find(&call.account, &call.id) {
            return Some(endpoint);
        }
        let all = list(&self.shared).await?;
        all.get(&call.id).filter(|endpoint| endpoint.webhook.account == call.account).cloned()
    }

    async fn replay(&self, call: ReplayWebhook) -> ManageReply<ReplayStarted> {
        let replay = Replay { id: new_id(), from: call.from, to: call.to, place: None };
        match replays::put(&*self.shared.backplane.ledger, &call.id, replay).await {
            Ok(()) => {
                tracing::info!(webhook = %call.id, account = %call.account, "replay was asked for");
                ManageReply::Done(ReplayStarted {})
            }
            Err(ReplayError::TooMany) => {
                ManageReply::Refused(Refusal::Conflict("too many replays of this endpoint wait already".to_owned()))
            }
            Err(error) => {
                tracing::error!(webhook = %call.id, %error, "replay was not stored");
                ManageReply::Failed
            }
        }
    }

    async fn deliveries(&self, call: ListDeliveries) -> ManageReply<Page<Delivery>> {
        let found = self.shared.backplane.ledger.get(&key(&call.id), Shared::soon()).await;
        let cursor = match found {
            Ok(record) => record.map(|record| serde_json::from_slice::<Cursor>(&record.value)).transpose(),
            Err(error) => {
                tracing::error!(webhook = %call.id, %error, "deliveries cannot be read");
                return ManageReply::Failed;
            }
        };
        match cursor {
            Ok(cursor) => {
                let items = cursor.unwrap_or_default().deliveries();
                ManageReply::Done(Page { items, next_cursor: None })
            }
            Err(error) => {
                tracing::error!(webhook = %call.id, %error, "cursor cannot be understood");
                ManageReply::Failed
            }
        }
    }

    async fn delete(&self, call: DeleteDecisions) -> ManageReply<DecisionsDeleted> {
        let DeleteDecisions { account, before, requested_by, permit } = call;
        let Some(permit) = permit else {
            tracing::warn!(%account, "a deletion without the keystore's permit was refused: a gateway of an older version?");
            return ManageReply::Failed;
        };
        let asked = Demand { before, requested_by, permit };
        // The mark lives as long as any decision beside it could.
        let days = self.retention(&account).await;
        match marks::delete(&self.shared.backplane, &account, days, &asked, self.shared.clock.now()).await {
            Ok((deletion, mark)) => ManageReply::Done(DecisionsDeleted {
                count: deletion.count,
                before,
                from: deletion.from,
                to: deletion.to,
                mark,
            }),
            Err(error) => {
                tracing::error!(%account, %error, "decisions were not deleted");
                ManageReply::Failed
            }
        }
    }

    async fn retention(&self, account: &AccountId) -> u32 {
        let last = self.shared.backplane.log.last(account, stage0_backplane::Kind::Decisions, Shared::soon()).await;
        let line = last.ok().flatten();
        let start = line
            .as_ref()
            .and_then(|entry| entry.lines().last())
            .and_then(|line| serde_json::from_slice::<stage0_contract::LineStart>(line).ok());
        start.map_or(DEFAULT_RETENTION_DAYS, |start| {
            let seconds = start.expires_at.saturating_sub(start.recorded_at.as_second());
            u32::try_from(seconds / 86_400).unwrap_or(DEFAULT_RETENTION_DAYS).max(1)
        })
    }
}

/// What every loop shares.
struct Start<'a> {
    desk: &'a Arc<Desk>,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
}

impl Start<'_> {
    fn serving<R, T, Answer>(&self, served: Served<R>, whose: fn(&R) -> &AccountId, answer: fn(Arc<Desk>, R) -> Answer)
    where
        R: Request<Reply = ManageReply<T>> + Clone,
        T: Send + Sync + 'static,
        Answer: Future<Output = ManageReply<T>> + Send + 'static,
    {
        let (desk, stop, tasks) = (Arc::clone(self.desk), self.stop.clone(), self.tasks.clone());
        self.tasks.spawn(serve(served, desk, stop, tasks, Kind { whose, answer }));
    }
}

/// How questions of one kind are answered.
struct Kind<R, Answer> {
    whose: fn(&R) -> &AccountId,
    answer: fn(Arc<Desk>, R) -> Answer,
}

async fn serve<R, T, Answer>(
    mut served: Served<R>,
    desk: Arc<Desk>,
    stop: CancellationToken,
    tasks: TaskTracker,
    kind: Kind<R, Answer>,
) where
    R: Request<Reply = ManageReply<T>> + Clone,
    T: Send + Sync + 'static,
    Answer: Future<Output = ManageReply<T>> + Send + 'static,
{
    let in_hand = Arc::new(Semaphore::new(IN_HAND));
    let shares = FairSlots::new(IN_HAND, IN_HAND_PER_ACCOUNT);
    let mut stopped = false;
    while let Ok(room) = Arc::clone(&in_hand).acquire_owned().await {
        let next = if stopped { Some(served.next().await) } else { stop.run_until_cancelled(served.next()).await };
        match next {
            Some(Some(question)) => {
                let share = shares.try_acquire((kind.whose)(&question.request));
                let (desk, answer) = (Arc::clone(&desk), kind.answer);
                tasks.spawn(async move {
                    let reply = match &share {
                        Some(_) => answer(desk, question.request.clone()).await,
                        None => ManageReply::Refused(Refusal::Conflict(TOO_MANY.to_owned())),
                    };
                    question.answer(&reply).await;
                    drop((share, room));
                });
            }
            Some(None) => return,
            None => {
                served.stop().await;
                stopped = true;
            }
        }
    }
}
