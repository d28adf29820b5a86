//! The one thread that writes: whatever waits when it comes back from the disk becomes the next transaction, and so one fsync.
//!
//! Owns the queue and the thread, which ends with the store. Each write sees what those before it in the same transaction did.
//! INVARIANT: nobody hears `Ok` before the transaction is on disk. When it fails, all in it failed; a write that nobody waits for any
//! more when its turn comes is not begun.

use std::sync::Arc;
use std::thread;

use redb::WriteTransaction;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::store::{Core, Failure};

/// Writes that wait; more wait to wait.
const QUEUE: usize = 1_024;
/// Writes of one transaction.
const MOST_TOGETHER: usize = 128;

/// Hands writes to the thread.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A write of any kind.
trait Job: Send {
    fn deadline(&self) -> Instant;
    /// Does it; whether anything has changed.
    fn work(&mut self, transaction: &WriteTransaction) -> Result<bool, redb::Error>;
    /// Tells whoever asked.
    fn done(self: Box<Self>, outcome: Result<(), Failure>);
}

struct Write<T, F> {
    deadline: Instant,
    work: Option<F>,
    result: Option<T>,
    told: oneshot::Sender<Result<T, Failure>>,
}

impl<T, F> Job for Write<T, F>
where
    T: Send,
    F: FnOnce(&WriteTransaction) -> Result<(T, bool), redb::Error> + Send,
{
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn work(&mut self, transaction: &WriteTransaction) -> Result<bool, redb::Error> {
        let Some(work) = self.work.take() else { return Ok(false) };
        let (result, changed) = work(transaction)?;
        self.result = Some(result);
        Ok(changed)
    }

    fn done(self: Box<Self>, outcome: Result<(), Failure>) {
        let Self { result, told, .. } = *self;
        // Whoever asked may be gone.
        drop(told.send(outcome.and_then(|()| result.ok_or_else(late))));
    }
}

impl Writer {
    /// Without a thread every write fails.
    pub(super) fn start(core: Arc<Core>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(move || run(&core, jobs));
        Self { queue: Some(queue), thread: thread.ok() }
    }

    /// Resolves when the write is on disk, or failed as a whole.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), redb::Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let ended = || "the writer ended".to_owned();
        let (told, outcome) = oneshot::channel();
        let job = Box::new(Write { deadline, work: Some(work), result: None, told });
        self.queue.as_ref().ok_or_else(ended)?.send(job).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // What it had in hand is on disk, and the file is free for the next to open it.
            drop(thread.join());
        }
    }
}

fn run(core: &Core, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < MOST_TOGETHER
            && let Ok(next) = queue.try_recv()
        {
            jobs.push(next);
        }
        let now = Instant::now();
        let (mut jobs, overdue): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.deadline() > now);
        overdue.into_iter().for_each(|job| job.done(Err(late())));
        if jobs.is_empty() {
            continue;
        }
        let outcome = core.attempt(|database| {
            let transaction = database.begin_write()?;
            let mut changed = false;
            for job in &mut jobs {
                changed |= job.work(&transaction)?;
            }
            if changed {
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(())
        });
        jobs.into_iter().for_each(|job| job.done(outcome.clone()));
    }
}

fn late() -> Failure {
    "the disk did not answer in time".to_owned()
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
    async fn each_sees_what_those_before_it_did_and_what_changes_nothing_changes_nothing() {
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
    async fn what_is_late_is_not_begun_and_does_not_hold_up_the_others() {
        let writer = Writer::start(Arc::new(Core::in_memory()));
        let late = writer.write(Instant::now(), |transaction| Ok((count(transaction)?, true)));
        let good = writer.write(soon(), |transaction| Ok((count(transaction)?, true)));
        let (late, good) = tokio::join!(late, good);
        assert!(late.is_err());
        assert_eq!(good, Ok(1));
    }

    #[tokio::test]
    async fn one_that_panics_fails_those_that_were_together_with_it_and_no_others() {
        let writer = Writer::start(Arc::new(Core::in_memory()));
        let broken = writer.write(soon(), |_| -> Result<((), bool), redb::Error> { panic!("broken") });
        assert!(broken.await.is_err());
        assert_eq!(writer.write(soon(), |transaction| Ok((count(transaction)?, true))).await, Ok(1));
    }
}
