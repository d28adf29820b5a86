//! Questions in, answers out.
//!
//! Owns the subjects that are served and the bound on questions in hand: each question is a task of its own, so that a slow one
//! keeps no other waiting, and a subject with too many in hand takes the next only when one is answered. When stopped, what had
//! arrived is still answered.

use std::future::Future;
use std::sync::Arc;

use stage0_backplane::{Backplane, BoxFuture, ServeError, Served};
use stage0_contract::{
    CreateAccount, CreateKey, CreateWebhook, DeleteWebhook, DisableWebhook, EnableWebhook, GetWebhook, KeystoreStatus,
    ListAccounts, ListEndpoints, ListKeys, ListRetentions, ListWebhooks, ManageReply, NoteKeyUses, PermitDeletion,
    RefreshKey, Request, RevokeKey, RotateKey, RotateWebhookSecret, SignMark, SigningKeys, UpdateAccount,
    UpdateWebhook, VerifyKey,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::callers::Called;
use crate::counter::Counter;
use crate::manage;

/// Questions of one subject in hand at a time; the backplane holds the rest.
const IN_HAND: usize = 256;

/// Starts the loops of every subject; they end once stopped, in `tasks`.
pub(crate) async fn serve_all(
    backplane: &Backplane,
    counter: &Arc<Counter>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), ServeError> {
    // All are joined before the first is served: a keystore that answers only some questions would look alive.
    let mut joined = Joined { backplane, counter, stop, tasks, loops: Vec::new() };
    join_keys(&mut joined).await?;
    join_webhooks(&mut joined).await?;
    join_exporter(&mut joined).await?;
    for each in joined.loops {
        tasks.spawn(each);
    }
    Ok(())
}

async fn join_keys(joined: &mut Joined<'_>) -> Result<(), ServeError> {
    joined.join(|at, call: VerifyKey, _| async move { at.verifier.verify(call).await }).await?;
    joined.join(|at, call: RefreshKey, _| async move { at.verifier.refresh(call).await }).await?;
    joined.join(|at, call: NoteKeyUses, _| async move { at.note_key_uses(call).await }).await?;
    joined.join(|at, _: KeystoreStatus, _| async move { at.status() }).await?;
    joined.join_managed(|at, call: CreateAccount, until| async move { at.create_account(call, until).await }).await?;
    joined.join_managed(|at, call: ListAccounts, _| async move { at.list_accounts(call).await }).await?;
    joined.join_managed(|at, call: UpdateAccount, until| async move { at.update_account(call, until).await }).await?;
    joined.join_managed(|at, call: CreateKey, until| async move { at.create_key(call, until).await }).await?;
    joined.join_managed(|at, call: ListKeys, _| async move { at.list_keys(call).await }).await?;
    joined.join_managed(|at, call: RotateKey, until| async move { at.rotate_key(call, until).await }).await?;
    joined.join_managed(|at, call: RevokeKey, until| async move { at.revoke_key(call, until).await }).await?;
    joined.join_managed(|at, call: PermitDeletion, _| async move { at.permit_deletion(call).await }).await
}

async fn join_webhooks(joined: &mut Joined<'_>) -> Result<(), ServeError> {
    joined.join_managed(|at, call: CreateWebhook, until| async move { at.create_webhook(call, until).await }).await?;
    joined.join_managed(|at, call: ListWebhooks, _| async move { at.list_webhooks(call).await }).await?;
    joined.join_managed(|at, call: GetWebhook, _| async move { at.get_webhook(call).await }).await?;
    joined.join_managed(|at, call: UpdateWebhook, until| async move { at.update_webhook(call, until).await }).await?;
    joined.join_managed(|at, call: EnableWebhook, until| async move { at.enable_webhook(call, until).await }).await?;
    joined
        .join_managed(|at, call: RotateWebhookSecret, until| async move { at.rotate_webhook(call, until).await })
        .await?;
    joined.join_managed(|at, call: DeleteWebhook, until| async move { at.delete_webhook(call, until).await }).await
}

async fn join_exporter(joined: &mut Joined<'_>) -> Result<(), ServeError> {
    joined.join(|at, call: ListEndpoints, _| async move { at.list_endpoints(call).await }).await?;
    joined.join(|at, call: DisableWebhook, until| async move { at.disable_webhook(call, until).await }).await?;
    joined.join(|at, call: ListRetentions, _| async move { at.list_retentions(call).await }).await?;
    joined.join(|at, call: SignMark, until| async move { at.sign_mark(call, until).await }).await?;
    joined.join(|at, call: SigningKeys, _| async move { at.signing_keys(call).await }).await
}

/// Subjects that are joined, and their loops, which do not run yet.
struct Joined<'a> {
    backplane: &'a Backplane,
    counter: &'a Arc<Counter>,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
    loops: Vec<BoxFuture<'static, ()>>,
}

impl Joined<'_> {
    /// What carries its caller: that is proven before anything is judged.
    async fn join_managed<R, T, Answer>(
        &mut self,
        answer: fn(Arc<Counter>, R, Instant) -> Answer,
    ) -> Result<(), ServeError>
    where
        R: Request<Reply = ManageReply<T>> + Called + Clone,
        T: Send + 'static,
        Answer: Future<Output = ManageReply<T>> + Send + 'static,
    {
        let proven = move |counter: Arc<Counter>, mut call: R, until| async move {
            match counter.callers.prove(&mut call, until).await {
                Ok(()) => answer(counter, call, until).await,
                Err(undone) => manage::reply(R::SUBJECT, Err(undone)),
            }
        };
        self.join(proven).await
    }

    async fn join<R, Answer>(
        &mut self,
        answer: impl Fn(Arc<Counter>, R, Instant) -> Answer + Copy + Send + Sync + 'static,
    ) -> Result<(), ServeError>
    where
        R: Request + Clone,
        Answer: Future<Output = R::Reply> + Send + 'static,
    {
        let served = self.backplane.requests.serve::<R>().await?;
        let (counter, stop, tasks) = (Arc::clone(self.counter), self.stop.clone(), self.tasks.clone());
        self.loops.push(Box::pin(serve(served, counter, stop, tasks, answer)));
        Ok(())
    }
}

async fn serve<R, Answer>(
    mut served: Served<R>,
    counter: Arc<Counter>,
    stop: CancellationToken,
    tasks: TaskTracker,
    answer: impl Fn(Arc<Counter>, R, Instant) -> Answer + Copy + Send + Sync + 'static,
) where
    R: Request + Clone,
    Answer: Future<Output = R::Reply> + Send + 'static,
{
    let in_hand = Arc::new(Semaphore::new(IN_HAND));
    let mut stopped = false;
    while let Ok(room) = Arc::clone(&in_hand).acquire_owned().await {
        let next = if stopped { Some(served.next().await) } else { stop.run_until_cancelled(served.next()).await };
        match next {
            Some(Some(question)) => {
                let counter = Arc::clone(&counter);
                tasks.spawn(async move {
                    let tenure = counter.tenure.clone();
                    let reply = answer(counter, question.request.clone(), question.deadline).await;
                    // After the answer is known: who was frozen meanwhile may have been followed by another keystore.
                    if tenure.holds() {
                        question.answer(&reply).await;
                    } else {
                        tracing::warn!(subject = R::SUBJECT, "question is not answered: the lease is over");
                    }
                    drop(room);
                });
            }
            Some(None) => {
                if !stop.is_cancelled() {
                    tracing::error!(subject = R::SUBJECT, "subject is no longer served: the backplane is closed");
                }
                return;
            }
            None => {
                served.stop().await;
                stopped = true;
            }
        }
    }
}
