//! Questions in, answers out.
//!
//! Owns the subjects that are served and the bound on questions in hand: each question is a task of its own, so that a slow one
//! keeps no other waiting, and a subject with too many in hand takes the next only when one is answered. When stopped, what had
//! arrived is still answered.

use std::future::Future;
use std::sync::Arc;

use stage0_backplane::{Backplane, ServeError, Served};
use stage0_contract::{
    CreateAccount, CreateKey, KeystoreStatus, ListAccounts, ListKeys, RefreshKey, Request, RevokeKey, RotateKey,
    VerifyKey,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counter::Counter;

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
    let requests = &backplane.requests;
    let (verify, refresh) = (requests.serve::<VerifyKey>().await?, requests.serve::<RefreshKey>().await?);
    let status = requests.serve::<KeystoreStatus>().await?;
    let (new_account, accounts) = (requests.serve::<CreateAccount>().await?, requests.serve::<ListAccounts>().await?);
    let (new_key, keys) = (requests.serve::<CreateKey>().await?, requests.serve::<ListKeys>().await?);
    let (rotate, revoke) = (requests.serve::<RotateKey>().await?, requests.serve::<RevokeKey>().await?);
    let start = Start { counter, stop, tasks };
    start.serving(verify, |at, call, _| async move { at.verifier.verify(call.key).await });
    start.serving(refresh, |at, call, _| async move { at.verifier.refresh(call.key_id).await });
    start.serving(status, |at, _, _| async move { at.status() });
    start.serving(new_account, |at, call, until| async move { at.create_account(call, until).await });
    start.serving(accounts, |at, call, _| async move { at.list_accounts(call).await });
    start.serving(new_key, |at, call, until| async move { at.create_key(call, until).await });
    start.serving(keys, |at, call, _| async move { at.list_keys(call).await });
    start.serving(rotate, |at, call, until| async move { at.rotate_key(call, until).await });
    start.serving(revoke, |at, call, until| async move { at.revoke_key(call, until).await });
    Ok(())
}

/// What every loop shares.
struct Start<'a> {
    counter: &'a Arc<Counter>,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
}

impl Start<'_> {
    fn serving<R, Answer>(&self, served: Served<R>, answer: fn(Arc<Counter>, R, Instant) -> Answer)
    where
        R: Request + Clone,
        Answer: Future<Output = R::Reply> + Send + 'static,
    {
        let (counter, stop, tasks) = (Arc::clone(self.counter), self.stop.clone(), self.tasks.clone());
        self.tasks.spawn(serve(served, counter, stop, tasks, answer));
    }
}

async fn serve<R, Answer>(
    mut served: Served<R>,
    counter: Arc<Counter>,
    stop: CancellationToken,
    tasks: TaskTracker,
    answer: fn(Arc<Counter>, R, Instant) -> Answer,
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
                    let reply = answer(counter, question.request.clone(), question.deadline).await;
                    question.answer(&reply).await;
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
