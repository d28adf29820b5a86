//! The ledger in the file of one node. What has ended is as good as absent, and is removed when its place is next used.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use redb::ReadableTable;
use tokio::time::Instant;

use super::store::{LEDGER, Session, micros, next_position};
use crate::ledger::fault;
use crate::{BoxFuture, Ledger, PutError, ReadError, Record, Revision};

/// The ledger as one connection has it.
pub(super) struct FileLedger(pub(super) Session);

/// Long after everything else.
const NEVER: u64 = u64::MAX;

impl Ledger for FileLedger {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        if let Some(why) = fault(key, &[]) {
            return Box::pin(async move { Err(ReadError(why.to_owned())) });
        }
        let key = key.to_owned();
        let read = self.0.read(deadline, move |transaction| {
            let table = transaction.open_table(LEDGER)?;
            let found = table.get(key.as_str())?;
            Ok(found.and_then(|found| {
                let (revision, ends, value) = found.value();
                let lives = ends > micros(Timestamp::now());
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
        let put = self.0.write(deadline, move |transaction| {
            let now = Timestamp::now();
            let mut table = transaction.open_table(LEDGER)?;
            let found = table.get(key.as_str())?.map(|found| (found.value().0, found.value().1));
            let living = found.filter(|(_, ends)| *ends > micros(now)).map(|(revision, _)| Revision(revision));
            if living != expected {
                return Ok(Err(PutError::Conflict));
            }
            let ends = expires_in.and_then(|ends| now.checked_add(ends).ok()).map_or(NEVER, micros);
            let revision = next_position(transaction, now)?;
            table.insert(key.as_str(), (revision, ends, &*value))?;
            Ok(Ok(Revision(revision)))
        });
        Box::pin(async move { put.await.map_err(PutError::Failed)? })
    }
}
