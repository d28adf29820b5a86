//! The one thread that changes anything.
//!
//! Owns the [`Desk`] and a bounded queue before it; whoever asks waits for its turn. Calls in hand are finished before the thread
//! ends. A call that panics loses only its own answer: its caller hears that it failed, and the next call is served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::manage::Desk;

/// Calls that wait; each costs a hash and two fsyncs, so that more would be late anyway.
const QUEUE: usize = 64;

type Call = Box<dyn FnOnce(&mut Desk) + Send>;

/// Hands calls to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    calls: mpsc::Sender<Call>,
}

/// The call was not answered: the thread has ended, or the call panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the writer gave no answer")]
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
    /// Has the desk do one thing, after all that was asked before.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |desk| {
            // Whoever asked may be gone; the change stands all the same.
            drop(answer.send(call(desk)));
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
