//! The one thread that makes changes.
//!
//! Owns the [`AdminService`] and two bounded queues before it. The urgent lane, which takes rights away, is served
//! first, so a flood of new keys delays a revocation by no more than the change in progress. Queued calls are finished
//! before the thread ends. A call that panics loses only its own reply; the next call is served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::admin::AdminService;

/// Calls that wait in each lane. Admission lets fewer into the ordinary lane.
const QUEUE_LENGTH: usize = 64;

type Call = Box<dyn FnOnce(&mut AdminService) + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Revocations, deletions, removals, stops, activations and account updates: served first, and they wait while
    /// their queue is full.
    Urgent,
    /// Everything else: refused at once while the queue is full.
    Ordinary,
}

#[derive(Debug, Clone)]
pub(crate) struct Writer {
    urgent: mpsc::Sender<Call>,
    ordinary: mpsc::Sender<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriterError {
    #[error("too many calls wait for the writer")]
    QueueFull,
    /// Its deadline passed in the queue, so it was not begun.
    #[error("the writer had no time for the call")]
    Timeout,
    /// It panicked, or the thread has ended: its outcome is unknown.
    #[error("the writer gave no answer")]
    Ended,
}

pub(crate) fn start(admin: AdminService) -> std::io::Result<(Writer, JoinHandle<()>)> {
    let (urgent, mut urgent_calls) = mpsc::channel::<Call>(QUEUE_LENGTH);
    let (ordinary, mut ordinary_calls) = mpsc::channel::<Call>(QUEUE_LENGTH);
    // The runtime only waits for the two queues. Calls block this thread, and nothing else runs on it.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let run = move || {
        let mut admin = admin;
        let mut next = async || {
            tokio::select! {
                biased;
                Some(call) = urgent_calls.recv() => Some(call),
                Some(call) = ordinary_calls.recv() => Some(call),
                else => None,
            }
        };
        while let Some(call) = runtime.block_on(next()) {
            if catch_unwind(AssertUnwindSafe(|| call(&mut admin))).is_err() {
                tracing::error!("management call panicked");
            }
        }
    };
    let thread = std::thread::Builder::new().name("keystore-writer".to_owned()).spawn(run)?;
    Ok((Writer { urgent, ordinary }, thread))
}

impl Writer {
    /// Runs one call after all earlier calls of its lane. It is not begun once `deadline` has passed.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Instant,
        call: impl FnOnce(&mut AdminService) -> T + Send + 'static,
    ) -> Result<T, WriterError> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |admin| {
            let answered = if Instant::now() < deadline { Ok(call(admin)) } else { Err(WriterError::Timeout) };
            // The caller may have given up meanwhile; the change stands all the same.
            drop(answer.send(answered));
        });
        match lane {
            Lane::Urgent => {
                let queued = timeout_at(deadline, self.urgent.send(call)).await;
                queued.map_err(|_| WriterError::QueueFull)?.map_err(|_| WriterError::Ended)?;
            }
            Lane::Ordinary => self.ordinary.try_send(call).map_err(|refused| match refused {
                TrySendError::Full(_) => WriterError::QueueFull,
                TrySendError::Closed(_) => WriterError::Ended,
            })?,
        }
        answered.await.unwrap_or(Err(WriterError::Ended))
    }
}

/// Waits until the queues are empty and the files are closed. Drop every [`Writer`] first.
pub(crate) async fn finished(thread: JoinHandle<()>) {
    if tokio::task::spawn_blocking(|| thread.join()).await.is_err() {
        tracing::error!("writer thread was not waited for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use crate::plans::Plans;
    use crate::seal::tests::sealer_of;
    use crate::store::DurableStore;
    use crate::store::record::Record;
    use crate::store::record::tests::{account, at};
    use crate::store::snapshot::StoreId;

    fn admin(dir: &std::path::Path) -> AdminService {
        let durable = DurableStore::open(dir, StoreId::from_random([1; 16]), at(1)).unwrap();
        AdminService::new(durable, Arc::new(sealer_of(1)), Arc::new(|| at(1)), Plans::built_in().unwrap()).unwrap()
    }

    /// Polls the call once, which queues it.
    async fn is_queued(call: &mut (impl Future<Output = Result<(), WriterError>> + Unpin)) {
        tokio::select! {
            biased;
            answered = call => panic!("{answered:?} at once"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn a_call_whose_deadline_passed_in_the_queue_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, thread) = start(admin(dir.path())).unwrap();
        let put = |admin: &mut AdminService| admin.commit(&[Record::Account(account("a"))]).is_ok();
        assert_eq!(writer.run(Lane::Ordinary, Instant::now(), put).await, Err(WriterError::Timeout));
        let later = Instant::now() + Duration::from_secs(60);
        let found = writer.run(Lane::Urgent, later, |admin| admin.store().account(&account("a").id).unwrap().is_some());
        assert_eq!(found.await, Ok(false));
        assert_eq!(writer.run(Lane::Ordinary, later, put).await, Ok(true));
        drop(writer);
        finished(thread).await;
    }

    #[tokio::test]
    async fn a_call_that_panics_loses_only_its_own_reply() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _thread) = start(admin(dir.path())).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(writer.run(Lane::Urgent, later, |_| -> u8 { panic!("on purpose") }).await, Err(WriterError::Ended));
        assert_eq!(writer.run(Lane::Urgent, later, |_| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_revocation_overtakes_a_full_queue_of_additions_and_further_additions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _thread) = start(admin(dir.path())).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        let order = Arc::new(Mutex::new(Vec::new()));
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        // A change that is in progress until the test lets it end.
        let first = writer.clone();
        let holding = tokio::spawn(async move {
            let hold = move |_: &mut AdminService| {
                begun.send(()).unwrap();
                may_go.recv().unwrap();
            };
            first.run(Lane::Ordinary, later, hold).await
        });
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
        let note = |name: &'static str| {
            let order = Arc::clone(&order);
            move |_: &mut AdminService| order.lock().unwrap().push(name)
        };
        let run_named = |lane, name| {
            let (writer, call) = (writer.clone(), note(name));
            async move { writer.run(lane, later, call).await }
        };
        let mut additions: Vec<_> =
            (0..QUEUE_LENGTH).map(|_| Box::pin(run_named(Lane::Ordinary, "addition"))).collect();
        for addition in &mut additions {
            is_queued(addition).await;
        }
        assert_eq!(run_named(Lane::Ordinary, "one too many").await, Err(WriterError::QueueFull));
        let mut revocation = Box::pin(run_named(Lane::Urgent, "revocation"));
        is_queued(&mut revocation).await;
        go.send(()).unwrap();
        assert_eq!(holding.await.unwrap(), Ok(()));
        assert_eq!(revocation.await, Ok(()));
        for addition in additions {
            assert_eq!(addition.await, Ok(()));
        }
        assert_eq!(order.lock().unwrap()[..2], ["revocation", "addition"]);
        assert_eq!(order.lock().unwrap().len(), QUEUE_LENGTH + 1);
    }
}
