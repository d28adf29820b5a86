//! The one thread that changes anything.
//!
//! Owns the [`Desk`] and two bounded queues before it: what takes rights away is done before what gives some, so that a
//! flood of new keys delays a revocation by the one change in hand. Calls in hand are finished before the thread ends.
//! A call that panics loses only its own answer: its caller hears that it failed, and the next call is served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::manage::Desk;

/// Calls that wait in a lane. In the lane of additions fewer are admitted.
const QUEUE: usize = 64;

type Call = Box<dyn FnOnce(&mut Desk) + Send>;

/// Which calls are done first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Revocations, deletions, and changes of accounts: these wait for a place in the queue.
    Urgent,
    /// Everything else: a full queue refuses at once.
    Ordinary,
}

/// Hands calls to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    urgent: mpsc::Sender<Call>,
    ordinary: mpsc::Sender<Call>,
}

/// The call was not done, or nobody can say whether it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// As many as may wait do.
    #[error("too many calls wait for the writer")]
    Full,
    /// Its turn would have come too late, and so it was not begun.
    #[error("the writer had no time for the call")]
    Late,
    /// It panicked, or the thread has ended.
    #[error("the writer gave no answer")]
    Ended,
}

/// The thread; it ends when every [`Writer`] is dropped.
#[derive(Debug)]
pub(crate) struct WriterThread {
    handle: JoinHandle<()>,
}

pub(crate) fn start(desk: Desk) -> std::io::Result<(Writer, WriterThread)> {
    let (urgent, mut urgent_calls) = mpsc::channel::<Call>(QUEUE);
    let (ordinary, mut ordinary_calls) = mpsc::channel::<Call>(QUEUE);
    // Only to wait for one of two queues: calls block this thread, and nothing else runs on it.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let run = move || {
        let mut desk = desk;
        let mut next = async || {
            tokio::select! {
                biased;
                Some(call) = urgent_calls.recv() => Some(call),
                Some(call) = ordinary_calls.recv() => Some(call),
                else => None,
            }
        };
        while let Some(call) = runtime.block_on(next()) {
            if catch_unwind(AssertUnwindSafe(|| call(&mut desk))).is_err() {
                tracing::error!("management call panicked");
            }
        }
    };
    let handle = std::thread::Builder::new().name("keystore-writer".to_owned()).spawn(run)?;
    Ok((Writer { urgent, ordinary }, WriterThread { handle }))
}

impl Writer {
    /// Has the desk do one thing, after all that was asked before in the same lane; a change that nobody waits for any
    /// more is not begun.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        lane: Lane,
        until: Instant,
        call: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |desk| {
            let answered = if Instant::now() < until { Ok(call(desk)) } else { Err(NoAnswer::Late) };
            // Whoever asked may be gone meanwhile; the change stands all the same.
            drop(answer.send(answered));
        });
        match lane {
            Lane::Urgent => {
                let queued = timeout_at(until, self.urgent.send(call)).await;
                queued.map_err(|_| NoAnswer::Full)?.map_err(|_| NoAnswer::Ended)?;
            }
            Lane::Ordinary => self.ordinary.try_send(call).map_err(|refused| match refused {
                TrySendError::Full(_) => NoAnswer::Full,
                TrySendError::Closed(_) => NoAnswer::Ended,
            })?,
        }
        answered.await.unwrap_or(Err(NoAnswer::Ended))
    }
}

impl WriterThread {
    /// Waits until the queue is empty and the files are closed. Drop every [`Writer`] first.
    pub(crate) async fn finished(self) {
        if tokio::task::spawn_blocking(|| self.handle.join()).await.is_err() {
            tracing::error!("writer thread was not waited for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use crate::image::Lineage;
    use crate::plans::Plans;
    use crate::record::Record;
    use crate::record::tests::{account, at};
    use crate::seal::tests::sealer_of;
    use crate::vault::Vault;

    fn desk(dir: &std::path::Path) -> Desk {
        let vault = Vault::open(dir, Lineage::from_random([1; 16]), at(1)).unwrap();
        Desk::new(vault, Arc::new(sealer_of(1)), Arc::new(|| at(1)), Plans::built_in().unwrap()).unwrap()
    }

    /// Runs it until it waits for its turn.
    async fn is_queued(call: &mut (impl Future<Output = Result<(), NoAnswer>> + Unpin)) {
        tokio::select! {
            biased;
            answered = call => panic!("{answered:?} at once"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn a_call_whose_turn_comes_too_late_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, thread) = start(desk(dir.path())).unwrap();
        let put = |desk: &mut Desk| desk.commit(&[Record::Account(account("a"))]).is_ok();
        assert_eq!(writer.ask(Lane::Ordinary, Instant::now(), put).await, Err(NoAnswer::Late));
        let later = Instant::now() + Duration::from_secs(60);
        let found = writer.ask(Lane::Urgent, later, |desk| desk.store().account(&account("a").id).unwrap().is_some());
        assert_eq!(found.await, Ok(false));
        assert_eq!(writer.ask(Lane::Ordinary, later, put).await, Ok(true));
        drop(writer);
        thread.finished().await;
    }

    #[tokio::test]
    async fn a_call_that_panics_loses_only_its_own_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _thread) = start(desk(dir.path())).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(writer.ask(Lane::Urgent, later, |_| -> u8 { panic!("on purpose") }).await, Err(NoAnswer::Ended));
        assert_eq!(writer.ask(Lane::Urgent, later, |_| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_revocation_overtakes_a_full_queue_of_additions_and_one_more_addition_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _thread) = start(desk(dir.path())).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        let order = Arc::new(Mutex::new(Vec::new()));
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        // The one change in hand, until the test lets it end.
        let first = writer.clone();
        let holding = tokio::spawn(async move {
            let hold = move |_: &mut Desk| {
                begun.send(()).unwrap();
                may_go.recv().unwrap();
            };
            first.ask(Lane::Ordinary, later, hold).await
        });
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
        let note = |name: &'static str| {
            let order = Arc::clone(&order);
            move |_: &mut Desk| order.lock().unwrap().push(name)
        };
        let asked = |lane, name| {
            let (writer, call) = (writer.clone(), note(name));
            async move { writer.ask(lane, later, call).await }
        };
        let mut additions: Vec<_> = (0..QUEUE).map(|_| Box::pin(asked(Lane::Ordinary, "addition"))).collect();
        for addition in &mut additions {
            is_queued(addition).await;
        }
        assert_eq!(asked(Lane::Ordinary, "one too many").await, Err(NoAnswer::Full));
        let mut revocation = Box::pin(asked(Lane::Urgent, "revocation"));
        is_queued(&mut revocation).await;
        go.send(()).unwrap();
        assert_eq!(holding.await.unwrap(), Ok(()));
        assert_eq!(revocation.await, Ok(()));
        for addition in additions {
            assert_eq!(addition.await, Ok(()));
        }
        assert_eq!(order.lock().unwrap()[..2], ["revocation", "addition"]);
        assert_eq!(order.lock().unwrap().len(), QUEUE + 1);
    }
}
