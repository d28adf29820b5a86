//! A decision log that acknowledges every append and stores nothing: what a check costs without the store.

use bytes::Bytes;
use stage0_backplane::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady, Position,
    ReadError, Seek, SeekBack,
};
use stage0_contract::AccountId;
use tokio::time::Instant;

pub(crate) struct DiscardLog;

impl DecisionLog for DiscardLog {
    fn append(&self, batches: Vec<Batch>, _: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move { batches.iter().map(|_| Ok(())).collect() })
    }

    fn append_mark<'a>(
        &'a self,
        _: &'a AccountId,
        _: Bytes,
        _: Option<Position>,
        _: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        Box::pin(async { Ok(Position(0)) })
    }

    fn read<'a>(
        &'a self,
        _: &'a AccountId,
        _: EntryFilter,
        _: Seek,
        _: usize,
        _: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async { Ok(Chunk { entries: Vec::new(), more: false, rejected: 0 }) })
    }

    fn read_back<'a>(
        &'a self,
        _: &'a AccountId,
        _: EntryKind,
        _: SeekBack,
        _: usize,
        _: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async { Ok(Chunk { entries: Vec::new(), more: false, rejected: 0 }) })
    }

    fn last<'a>(
        &'a self,
        _: &'a AccountId,
        _: EntryKind,
        _: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        Box::pin(async { Ok(None) })
    }

    fn remove_through<'a>(
        &'a self,
        _: &'a AccountId,
        _: EntryKind,
        _: Position,
        _: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async { Ok(0) })
    }

    fn accounts(&self, _: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
