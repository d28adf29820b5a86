//! Three servers that replicate each stream, for behaviours that all implementations share.
//!
//! Any replica answers a read and may be milliseconds behind, as the traits say; `cluster` is about that. The shared
//! behaviours are about what is read and not about when, so here a read waits until all servers have what was stored.
//! Each connection begins at another server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::nats::{Connection, NatsConfig, SyncMode};
use stage0_backplane::testing::{NODES, NatsCluster};
use stage0_backplane::{
    AppendError, Backplane, Batch, BoxFuture, Chunk, DecisionLog, DecisionLogLayer, Entry, EntryFilter, EntryKind,
    ListError, MarkError, Position, PutError, ReadError, Record, RecordPage, Revision, Seek, SeekBack, StateStore,
    StateStoreLayer,
};
use stage0_contract::AccountId;
use tokio::time::Instant;

pub(crate) struct Replicas {
    servers: Arc<Servers>,
    connections: AtomicUsize,
}

struct Servers {
    cluster: NatsCluster,
    /// Something was stored since all servers were seen to hold the same.
    changed: AtomicBool,
    settling: tokio::sync::Mutex<()>,
}

/// What is read and written on one connection.
struct Settled {
    inner: Backplane,
    servers: Arc<Servers>,
}

/// A cluster, or a line that nothing was tested, where only a container may run.
pub(crate) async fn cluster() -> Option<NatsCluster> {
    let cluster = NatsCluster::start().await;
    if cluster.is_none() {
        eprintln!("NOT TESTED: a cluster needs the binary of nats-server");
    }
    cluster
}

/// How to reach a cluster whose servers' sync modes are to be verified, this server first.
pub(crate) fn verified(cluster: &NatsCluster, name: &str, first: usize) -> NatsConfig {
    let sync = SyncMode { monitors: cluster.monitors(), dangerous_relaxed: false };
    NatsConfig { sync, ..cluster.config(name, first) }
}

impl Replicas {
    pub(crate) async fn start() -> Option<Self> {
        let servers =
            Servers { cluster: cluster().await?, changed: AtomicBool::default(), settling: Default::default() };
        Some(Self { servers: Arc::new(servers), connections: AtomicUsize::new(0) })
    }

    pub(crate) async fn connect(&self) -> Backplane {
        Backplane::connect(&self.servers.cluster.config("suite", self.next())).await.unwrap()
    }

    pub(crate) async fn recorder(&self) -> Backplane {
        let connection = Connection::open(&verified(&self.servers.cluster, "suite", self.next())).await.unwrap();
        connection.prepare_log(NODES).await.unwrap();
        let inner = connection.backplane();
        let settled = Arc::new(Settled { inner: inner.clone(), servers: Arc::clone(&self.servers) });
        Backplane { log: settled.clone(), state_store: settled, ..inner }
    }

    fn next(&self) -> usize {
        self.connections.fetch_add(1, Ordering::Relaxed) % NODES
    }
}

impl Servers {
    async fn settle(&self) {
        let _turn = self.settling.lock().await;
        if self.changed.swap(false, Ordering::SeqCst) {
            self.cluster.settle().await;
        }
    }

    fn note_change(&self) {
        self.changed.store(true, Ordering::SeqCst);
    }
}

impl DecisionLogLayer for Settled {
    fn inner(&self) -> &dyn DecisionLog {
        &*self.inner.log
    }

    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move {
            let appended = self.inner.log.append(batches, deadline).await;
            self.servers.note_change();
            appended
        })
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        Box::pin(async move {
            let appended = self.inner.log.append_mark(account, line, after, deadline).await;
            self.servers.note_change();
            appended
        })
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            self.servers.settle().await;
            self.inner.log.read(account, filter, from, max_bytes, deadline).await
        })
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(async move {
            self.servers.settle().await;
            self.inner.log.read_back(account, kind, from, max_bytes, deadline).await
        })
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        Box::pin(async move {
            self.servers.settle().await;
            self.inner.log.last(account, kind, deadline).await
        })
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async move {
            let removed = self.inner.log.remove_through(account, kind, through, deadline).await;
            self.servers.note_change();
            removed
        })
    }
}

impl StateStoreLayer for Settled {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner.state_store
    }

    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            self.servers.settle().await;
            let found = self.inner.state_store.get(key, deadline).await?;
            if found.is_some() {
                return Ok(found);
            }
            // Each server lets a record expire by itself, and a put is compared with what the leader has.
            self.servers.cluster.settle().await;
            self.inner.state_store.get(key, deadline).await
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        Box::pin(async move {
            let put = self.inner.state_store.put(key, value, expected, expires_in, deadline).await;
            self.servers.note_change();
            put
        })
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        Box::pin(async move {
            self.servers.cluster.settle().await;
            self.inner.state_store.list(under, after, most, deadline).await
        })
    }
}
