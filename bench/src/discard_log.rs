//! A decision log that acknowledges every append and stores nothing: what a check costs without the store.

use bytes::Bytes;
use stage0_backplane::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady, Position,
    ReadError, Seek, SeekBack,
};
use stage0_contract::AccountId;
use tokio::time::Instant;

pub(crate) struct DiscardLog;

type Reads<'a, T> = BoxFuture<'a, Result<T, ReadError>>;

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

    fn read<'a>(&'a self, _: &'a AccountId, _: EntryFilter, _: Seek, _: usize, _: Instant) -> Reads<'a, Chunk> {
        Box::pin(async { Ok(Chunk { entries: Vec::new(), more: false, rejected: 0 }) })
    }

    fn read_back<'a>(&'a self, _: &'a AccountId, _: EntryKind, _: SeekBack, _: usize, _: Instant) -> Reads<'a, Chunk> {
        Box::pin(async { Ok(Chunk { entries: Vec::new(), more: false, rejected: 0 }) })
    }

    fn last<'a>(&'a self, _: &'a AccountId, _: EntryKind, _: Instant) -> Reads<'a, Option<Entry>> {
        Box::pin(async { Ok(None) })
    }

    fn remove_through<'a>(&'a self, _: &'a AccountId, _: EntryKind, _: Position, _: Instant) -> Reads<'a, u64> {
        Box::pin(async { Ok(0) })
    }

    fn accounts(&self, _: Instant) -> Reads<'_, Vec<AccountId>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
