//! The one thread that changes anything.
//!
//! Owns the [`Desk`] and a bounded queue before it; whoever asks waits for its turn. Calls in hand are finished before the thread
//! ends. A call that panics loses only its own answer: its caller hears that it failed, and the next call is served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::manage::Desk;

/// Calls that wait; each costs a hash and two fsyncs, so that more would be late anyway.
const QUEUE: usize = 64;

type Call = Box<dyn FnOnce(&mut Desk) + Send>;

/// Hands calls to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    calls: mpsc::Sender<Call>,
}

/// The call was not answered: its turn came too late, it panicked, or the thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the writer gave no answer in time")]
pub(crate) struct NoAnswer;

/// The thread; it ends when every [`Writer`] is dropped.
#[derive(Debug)]
pub(crate) struct WriterThread {
    handle: JoinHandle<()>,
}

pub(crate) fn start(desk: Desk) -> std::io::Result<(Writer, WriterThread)> {
    let (calls, mut queue) = mpsc::channel::<Call>(QUEUE);
    let run = move || {
        let mut desk = desk;
        while let Some(call) = queue.blocking_recv() {
            if catch_unwind(AssertUnwindSafe(|| call(&mut desk))).is_err() {
                tracing::error!("management call panicked");
            }
        }
    };
    let handle = std::thread::Builder::new().name("keystore-writer".to_owned()).spawn(run)?;
    Ok((Writer { calls }, WriterThread { handle }))
}

impl Writer {
    /// Has the desk do one thing, after all that was asked before; a change that nobody waits for any more is not begun.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        until: Instant,
        call: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |desk| {
            if Instant::now() < until {
                // Whoever asked may be gone meanwhile; the change stands all the same.
                drop(answer.send(call(desk)));
            }
        });
        self.calls.send(call).await.map_err(|_| NoAnswer)?;
        answered.await.map_err(|_| NoAnswer)
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
    use std::sync::Arc;
    use std::time::Duration;

    use crate::hash::{Hasher, tests::CHEAP};
    use crate::image::Lineage;
    use crate::record::Record;
    use crate::record::tests::{account, at};
    use crate::seal::tests::sealer_of;
    use crate::vault::Vault;

    fn desk(dir: &std::path::Path) -> Desk {
        let vault = Vault::open(dir, Lineage::from_random([1; 16]), at(1)).unwrap();
        let hasher = Arc::new(Hasher::new(CHEAP, [1; 16]).unwrap());
        Desk { vault, hasher, sealer: Arc::new(sealer_of(1)), clock: Arc::new(|| at(1)) }
    }

    #[tokio::test]
    async fn a_call_whose_turn_comes_too_late_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, thread) = start(desk(dir.path())).unwrap();
        let put = |desk: &mut Desk| desk.vault.commit(&[Record::Account(account("a"))]).is_ok();
        assert_eq!(writer.ask(Instant::now(), put).await, Err(NoAnswer));
        let later = Instant::now() + Duration::from_secs(60);
        let found = writer.ask(later, |desk| desk.vault.store().account(&account("a").id).unwrap().is_some());
        assert_eq!(found.await, Ok(false));
        assert_eq!(writer.ask(later, put).await, Ok(true));
        drop(writer);
        thread.finished().await;
    }

    #[tokio::test]
    async fn a_call_that_panics_loses_only_its_own_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _thread) = start(desk(dir.path())).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(writer.ask(later, |_| -> u8 { panic!("on purpose") }).await, Err(NoAnswer));
        assert_eq!(writer.ask(later, |_| 7).await, Ok(7));
    }
}
