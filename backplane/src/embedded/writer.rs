//! The writer thread: everything queued when it returns from the disk becomes the next transaction, and so one fsync.
//!
//! Each write sees the effects of the writes before it in the same transaction.
//! INVARIANT: no caller gets `Ok` before the transaction is on disk. If it fails, all writes in it fail; a write whose
//! caller gave up before its turn is not started.

use std::sync::Arc;
use std::thread;

use redb::WriteTransaction;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::store::Core;
use crate::Cause;

/// Queued writes; further callers wait for room.
const QUEUE_CAPACITY: usize = 1_024;
const MAX_WRITES_PER_COMMIT: usize = 128;

pub(super) struct Writer {
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Returns whether anything has changed.
type Work = Box<dyn FnOnce(&WriteTransaction) -> Result<bool, redb::Error> + Send>;

struct Job {
    deadline: Instant,
    work: Work,
    done: oneshot::Sender<Result<(), Cause>>,
}

impl Writer {
    /// Without a thread every write fails.
    pub(super) fn start(core: Arc<Core>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_CAPACITY);
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(move || run(&core, jobs));
        Self { queue: Some(queue), thread: thread.ok() }
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), redb::Error> + Send + 'static,
    ) -> Result<T, Cause> {
        let ended = || Cause::from("the writer ended");
        let (sender, mut result) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        let work = Box::new(move |transaction: &WriteTransaction| {
            let (result, changed) = work(transaction)?;
            // The caller may have gone.
            let _ = sender.send(result);
            Ok(changed)
        });
        let job = Job { deadline, work, done };
        self.queue.as_ref().ok_or_else(ended)?.send(job).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())??;
        result.try_recv().map_err(|_| ended())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Finished writes are on disk, and the file is free to be opened again.
            drop(thread.join());
        }
    }
}

fn run(core: &Core, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < MAX_WRITES_PER_COMMIT
            && let Ok(next) = queue.try_recv()
        {
            jobs.push(next);
        }
        let now = Instant::now();
        let (jobs, overdue): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.deadline > now);
        complete(overdue.into_iter().map(|job| job.done), &Err(timed_out()));
        if jobs.is_empty() {
            continue;
        }
        let (work, done): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.work, job.done)).unzip();
        let outcome = core.attempt(|database| {
            let transaction = database.begin_write()?;
            let mut changed = false;
            for work in work {
                changed |= work(&transaction)?;
            }
            if changed {
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(())
        });
        complete(done, &outcome);
    }
}

fn complete(done: impl IntoIterator<Item = oneshot::Sender<Result<(), Cause>>>, outcome: &Result<(), Cause>) {
    for done in done {
        // The caller may have gone.
        let _ = done.send(outcome.clone());
    }
}

fn timed_out() -> Cause {
    "the disk did not answer in time".into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redb::{ReadableTable, TableDefinition};

    use super::*;

    const NUMBERS: TableDefinition<'static, u64, u64> = TableDefinition::new("numbers");

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn count(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
        let mut table = transaction.open_table(NUMBERS)?;
        let next = table.get(0)?.map_or(1, |found| found.value() + 1);
        table.insert(0, next)?;
        Ok(next)
    }

    #[tokio::test]
    async fn a_write_sees_earlier_writes_of_its_transaction_and_an_unchanged_one_commits_nothing() {
        let writer = Writer::start(Arc::new(Core::in_memory()));
        let mut writes = Vec::new();
        for number in 0..50_u64 {
            writes.push(writer.write(soon(), move |transaction| {
                if number % 5 == 0 {
                    return Ok((0, false));
                }
                Ok((count(transaction)?, true))
            }));
        }
        let counts: Vec<u64> = futures_util::future::try_join_all(writes).await.unwrap();
        let mut counted: Vec<u64> = counts.into_iter().filter(|count| *count > 0).collect();
        counted.sort_unstable();
        assert_eq!(counted, (1..=40).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_late_write_is_not_started_and_does_not_delay_others() {
        let writer = Writer::start(Arc::new(Core::in_memory()));
        let timed_out = writer.write(Instant::now(), |transaction| Ok((count(transaction)?, true)));
        let good = writer.write(soon(), |transaction| Ok((count(transaction)?, true)));
        let (timed_out, good) = tokio::join!(timed_out, good);
        assert!(timed_out.is_err());
        assert_eq!(good, Ok(1));
    }

    #[tokio::test]
    async fn a_write_that_panics_fails_its_transaction_and_no_other() {
        let writer = Writer::start(Arc::new(Core::in_memory()));
        let broken = writer.write(soon(), |_| -> Result<((), bool), redb::Error> { panic!("broken") });
        assert!(broken.await.is_err());
        assert_eq!(writer.write(soon(), |transaction| Ok((count(transaction)?, true))).await, Ok(1));
    }
}
