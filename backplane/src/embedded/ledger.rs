//! The ledger in the file of one node.
//!
//! What has ended is as good as absent. Each put removes a few of those, in its own transaction: records of names that are used
//! once, such as runs and minutes, do not fill the file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};
use tokio::time::Instant;

use super::store::{LEDGER, LEDGER_ENDS, Session, micros, next_position};
use super::threads::Lane;
use crate::clock::settled;
use crate::ledger::{MAX_PAGE_BYTES, fault};
use crate::{BoxFuture, ClockError, Ledger, ListError, Listed, PutError, ReadError, Record, Revision, StoreClock};

/// The ledger as one connection has it.
pub(super) struct FileLedger(pub(super) Session);

/// Long after everything else.
const NEVER: u64 = u64::MAX;
/// Ended records that one put removes: more than it adds, and never so many that others wait.
const SWEEP: usize = 16;

impl Ledger for FileLedger {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        if let Some(why) = fault(key, &[]) {
            return Box::pin(async move { Err(ReadError(why.to_owned())) });
        }
        let key = key.to_owned();
        let read = self.0.read(Lane::Quick, deadline, move |transaction| {
            let table = transaction.open_table(LEDGER)?;
            let found = table.get(key.as_str())?;
            Ok(found.and_then(|found| {
                let (revision, ends, value) = found.value();
                let lives = ends > micros(settled());
                lives.then(|| Record { revision: Revision(revision), value: Bytes::copy_from_slice(value) })
            }))
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        if let Some(why) = fault(key, &value) {
            return Box::pin(async move { Err(PutError::Failed(why.to_owned())) });
        }
        let key = key.to_owned();
        let put = self.0.write_if(deadline, move |transaction| {
            let now = settled();
            sweep(transaction, micros(now))?;
            let (mut table, mut by_end) = (transaction.open_table(LEDGER)?, transaction.open_table(LEDGER_ENDS)?);
            let found = table.get(key.as_str())?.map(|found| (found.value().0, found.value().1));
            let living = found.filter(|(_, ends)| *ends > micros(now)).map(|(revision, _)| Revision(revision));
            if living != expected {
                return Ok((Err(PutError::Conflict), false));
            }
            if let Some((_, ends)) = found {
                by_end.remove((ends, key.as_str()))?;
            }
            let ends = expires_in.and_then(|ends| now.checked_add(ends).ok()).map_or(NEVER, micros);
            let revision = next_position(transaction, now)?;
            table.insert(key.as_str(), (revision, ends, &*value))?;
            if ends != NEVER {
                by_end.insert((ends, key.as_str()), ())?;
            }
            Ok((Ok(Revision(revision)), true))
        });
        Box::pin(async move { put.await.map_err(PutError::Failed)? })
    }

    /// In the order of their keys; a cursor is what the last one that was looked at has behind `under`.
    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Listed, ListError>> {
        if let Some(why) = fault(under, &[]) {
            return Box::pin(async move { Err(ReadError(why.to_owned()).into()) });
        }
        // Whatever it says, it begins no place outside of this one.
        if after.is_some_and(|after| fault(after, &[]).is_some()) {
            return Box::pin(async { Err(ListError::Cursor) });
        }
        let prefix = format!("{under}.");
        // No key holds a zero byte.
        let start = after.map_or_else(|| prefix.clone(), |after| format!("{prefix}{after}\0"));
        let read = self.0.read(Lane::Quick, deadline, move |transaction| {
            let table = transaction.open_table(LEDGER)?;
            let (mut listed, mut looked, mut bytes, now) = (Listed::default(), 0, 0, micros(settled()));
            for found in table.range(start.as_str()..)? {
                let (key, found) = found?;
                let Some(word) = key.value().strip_prefix(&prefix) else { break };
                if looked >= most || bytes >= MAX_PAGE_BYTES {
                    return Ok(listed);
                }
                looked += 1;
                listed.next = Some(word.to_owned());
                let (revision, ends, value) = found.value();
                if ends > now && !word.contains('.') {
                    bytes += value.len();
                    let record = Record { revision: Revision(revision), value: Bytes::copy_from_slice(value) };
                    listed.records.push((word.to_owned(), record));
                }
            }
            listed.next = None;
            Ok(listed)
        });
        Box::pin(async move { read.await.map_err(|error| ReadError(error).into()) })
    }

    fn clock(&self) -> &Arc<StoreClock> {
        StoreClock::own()
    }

    fn read_clock(&self, _: Duration, _: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Removes some of what has ended.
fn sweep(transaction: &WriteTransaction, now: u64) -> Result<(), redb::Error> {
    let (mut table, mut by_end) = (transaction.open_table(LEDGER)?, transaction.open_table(LEDGER_ENDS)?);
    let ended = by_end.range(..(now, ""))?.take(SWEEP).map(|found| {
        let found = found?;
        let (ends, key) = found.0.value();
        Ok((ends, key.to_owned()))
    });
    let ended: Vec<(u64, String)> = ended.collect::<Result<_, redb::StorageError>>()?;
    for (ends, key) in ended {
        by_end.remove((ends, key.as_str()))?;
        let same = table.get(key.as_str())?.is_some_and(|found| found.value().1 == ends);
        if same {
            table.remove(key.as_str())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::store::Store;
    use redb::ReadableTableMetadata as _;
    use std::sync::Arc;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn records_of_names_that_are_used_once_do_not_pile_up() {
        let session = Session { store: Arc::new(Store::in_memory()), closed: CancellationToken::new() };
        let ledger = FileLedger(session.clone());
        let soon = || Instant::now() + Duration::from_secs(30);
        for number in 0..200 {
            let brief = Some(Duration::from_micros(1));
            ledger.put(&format!("brief.{number}"), "x".into(), None, brief, soon()).await.unwrap();
        }
        ledger.put("lasting", "x".into(), None, None, soon()).await.unwrap();
        let counted = session.read(Lane::Quick, soon(), |transaction| {
            Ok((transaction.open_table(LEDGER)?.len()?, transaction.open_table(LEDGER_ENDS)?.len()?))
        });
        let (records, ends) = counted.await.unwrap();
        assert!(records <= 3 && ends <= 2, "{records} records, {ends} ends");
        assert!(ledger.get("lasting", soon()).await.unwrap().is_some());
    }
}
