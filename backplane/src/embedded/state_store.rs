//! The state store in the file of one node.
//!
//! An expired record counts as absent. Each put removes a few expired records in its own transaction, so that records
//! whose names are used once, such as runs and minutes, do not fill the file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};
use tokio::time::Instant;

use super::store::{LEDGER, LEDGER_ENDS, Session, micros, next_position};
use super::threads::Lane;
use crate::clock::settled;
use crate::state_store::{MAX_PAGE_BYTES, fault};
use crate::{
    BoxFuture, ClockError, ListError, PutError, ReadError, Record, RecordPage, Revision, StateStore, StoreClock,
};

pub(super) struct FileStateStore(pub(super) Session);

const NEVER: u64 = u64::MAX;
/// Expired records that one put removes: more than it adds, and few enough that other writes do not wait.
const SWEEP_BATCH: usize = 16;

impl StateStore for FileStateStore {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        if let Some(why) = fault(key, &[]) {
            return Box::pin(async move { Err(ReadError(why.into())) });
        }
        let key = key.to_owned();
        let read = self.0.read(Lane::Quick, deadline, move |transaction| {
            let table = transaction.open_table(LEDGER)?;
            let found = table.get(key.as_str())?;
            Ok(found.and_then(|found| {
                let (revision, expires_at, value) = found.value();
                let is_current = expires_at > micros(settled());
                is_current.then(|| Record { revision: Revision(revision), value: Bytes::copy_from_slice(value) })
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
            return Box::pin(async move { Err(PutError::Failed(why.into())) });
        }
        let key = key.to_owned();
        let put = self.0.write_if(deadline, move |transaction| {
            let now = settled();
            remove_expired(transaction, micros(now))?;
            let (mut table, mut by_expiry) = (transaction.open_table(LEDGER)?, transaction.open_table(LEDGER_ENDS)?);
            let found = table.get(key.as_str())?.map(|found| (found.value().0, found.value().1));
            let current =
                found.filter(|(_, expires_at)| *expires_at > micros(now)).map(|(revision, _)| Revision(revision));
            if current != expected {
                return Ok((Err(PutError::Conflict), false));
            }
            if let Some((_, expires_at)) = found {
                by_expiry.remove((expires_at, key.as_str()))?;
            }
            let expires_at = expires_in.and_then(|expires_at| now.checked_add(expires_at).ok()).map_or(NEVER, micros);
            let revision = next_position(transaction, now)?;
            table.insert(key.as_str(), (revision, expires_at, &*value))?;
            if expires_at != NEVER {
                by_expiry.insert((expires_at, key.as_str()), ())?;
            }
            Ok((Ok(Revision(revision)), true))
        });
        Box::pin(async move { put.await.map_err(PutError::Failed)? })
    }

    /// In the order of the keys; the cursor is the part after `under` of the last key that was looked at.
    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        max_records: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        if let Some(why) = fault(under, &[]) {
            return Box::pin(async move { Err(ReadError(why.into()).into()) });
        }
        // A cursor that is a valid key cannot point outside of `under`.
        if after.is_some_and(|after| fault(after, &[]).is_some()) {
            return Box::pin(async { Err(ListError::Cursor) });
        }
        let prefix = format!("{under}.");
        // No key holds a zero byte.
        let start = after.map_or_else(|| prefix.clone(), |after| format!("{prefix}{after}\0"));
        let read = self.0.read(Lane::Quick, deadline, move |transaction| {
            let table = transaction.open_table(LEDGER)?;
            let (mut listed, mut examined, mut bytes, now) = (RecordPage::default(), 0, 0, micros(settled()));
            for found in table.range(start.as_str()..)? {
                let (key, found) = found?;
                let Some(word) = key.value().strip_prefix(&prefix) else { break };
                if examined >= max_records || bytes >= MAX_PAGE_BYTES {
                    return Ok(listed);
                }
                examined += 1;
                listed.next = Some(word.to_owned());
                let (revision, expires_at, value) = found.value();
                if expires_at > now && !word.contains('.') {
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

fn remove_expired(transaction: &WriteTransaction, now: u64) -> Result<(), redb::Error> {
    let (mut table, mut by_expiry) = (transaction.open_table(LEDGER)?, transaction.open_table(LEDGER_ENDS)?);
    for found in by_expiry.extract_from_if(..(now, ""), |_, ()| true)?.take(SWEEP_BATCH) {
        let found = found?.0;
        let (expires_at, key) = found.value();
        if table.get(key)?.is_some_and(|found| found.value().1 == expires_at) {
            table.remove(key)?;
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
    async fn expired_records_whose_names_are_used_once_do_not_pile_up() {
        let session = Session { store: Arc::new(Store::in_memory()), closed: CancellationToken::new() };
        let state_store = FileStateStore(session.clone());
        let soon = || Instant::now() + Duration::from_secs(30);
        for number in 0..200 {
            let brief = Some(Duration::from_micros(1));
            state_store.put(&format!("brief.{number}"), "x".into(), None, brief, soon()).await.unwrap();
        }
        state_store.put("lasting", "x".into(), None, None, soon()).await.unwrap();
        let counted = session.read(Lane::Quick, soon(), |transaction| {
            Ok((transaction.open_table(LEDGER)?.len()?, transaction.open_table(LEDGER_ENDS)?.len()?))
        });
        let (records, expires_at) = counted.await.unwrap();
        assert!(records <= 3 && expires_at <= 2, "{records} records, {expires_at} ends");
        assert!(state_store.get("lasting", soon()).await.unwrap().is_some());
    }
}
