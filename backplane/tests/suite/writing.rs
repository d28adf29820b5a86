//! Shared by tests of the log: accounts, batches, and reading all of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use stage0_backplane::nats::{Connection, NatsConfig, SyncMode};
use stage0_backplane::testing::NatsServer;
use stage0_backplane::{AppendError, Batch, DecisionLog, Entry, EntryFilter, EntryKind, Position, Seek};
use stage0_contract::AccountId;
use tokio::time::Instant;

use crate::PATIENT;

pub(crate) const DECISIONS: EntryFilter = EntryFilter::Only(EntryKind::Decisions);
pub(crate) const MARKS: EntryFilter = EntryFilter::Only(EntryKind::Mark);

/// A connection that verifies the server's sync mode, with its streams created.
pub(crate) async fn recorder(nats: &NatsServer) -> Connection {
    let connection = Connection::open(&verified(nats)).await.unwrap();
    connection.prepare_log(1).await.unwrap();
    connection
}

/// How to reach a server whose sync mode is to be verified.
pub(crate) fn verified(nats: &NatsServer) -> NatsConfig {
    let sync = SyncMode { monitors: vec![nats.monitor()], dangerous_relaxed: false };
    NatsConfig { sync, ..nats.config("suite") }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENT
}

pub(crate) fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

/// With an id of its own.
pub(crate) fn batch(account: &AccountId, lines: impl Into<Bytes>) -> Batch {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let id = format!("{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
    Batch { account: account.clone(), id, lines: lines.into() }
}

/// Appends one batch.
pub(crate) async fn append(log: &dyn DecisionLog, batch: Batch, deadline: Instant) -> Result<(), AppendError> {
    let mut answers = log.append(vec![batch], deadline).await;
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

pub(crate) async fn write(log: &dyn DecisionLog, account: &AccountId, lines: impl Into<Bytes>) {
    append(log, batch(account, lines), soon()).await.unwrap();
}

pub(crate) async fn mark(log: &dyn DecisionLog, account: &AccountId, line: &str, after: Option<Position>) -> Position {
    log.append_mark(account, line.to_owned().into(), after, soon()).await.unwrap()
}

/// Reads everything, in pieces of this size.
pub(crate) async fn in_pieces(
    log: &dyn DecisionLog,
    account: &AccountId,
    filter: EntryFilter,
    size: usize,
) -> Vec<Entry> {
    let (mut all, mut from) = (Vec::new(), Seek::Start);
    loop {
        let chunk = log.read(account, filter, from, size, soon()).await.unwrap();
        let bytes: usize = chunk.entries.iter().map(|entry| entry.lines.len()).sum();
        assert!(bytes <= size || chunk.entries.len() == 1, "{bytes} bytes instead of {size}");
        assert!(!chunk.entries.is_empty() || !chunk.more, "more, but nothing read");
        from = chunk.entries.last().map_or(from, |entry| Seek::After(entry.position));
        all.extend(chunk.entries);
        if !chunk.more {
            return all;
        }
    }
}

pub(crate) async fn everything(log: &dyn DecisionLog, account: &AccountId, filter: EntryFilter) -> Vec<Entry> {
    in_pieces(log, account, filter, usize::MAX).await
}

/// As text, so that a failure can be read.
pub(crate) fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.lines).into_owned()).collect()
}

pub(crate) async fn decisions(log: &dyn DecisionLog, account: &AccountId) -> Vec<String> {
    texts(&everything(log, account, DECISIONS).await)
}
