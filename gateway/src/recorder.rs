//! Record, then release: no decision leaves before the log has acknowledged it, nor does a change of an approval.
//!
//! Lines that the workers queue while one append is in flight become the next batch, with those that are about to come
//! (`coming`): one fsync per account for all its queued lines. Lines that belong together ([`LineGroup`]) are in one
//! batch. They are refused if their caller's identity is stale right before the append, so that what was requested
//! before the process was suspended does not get into the log when it resumes.
//! INVARIANT: `record` returns `Ok` only for lines that an append acknowledged. When the fate of an append stays
//! unknown, its chain is never continued: the account's next line begins a new one.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use stage0_backplane::clock::Clocks;
use stage0_backplane::{AppendError, Backplane, Batch, Entry, EntryKind};
use stage0_contract::{AccountId, DecisionsRecorded, Head, LineHash, LineHeader, LineType, Link, MarkRef, WriterId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::key_cache::{KeyCache, VerifiedCaller};
use crate::metrics::{self, RecordOutcome};

mod coming;

use coming::Coming;
pub(crate) use coming::ComingLines;

/// In lines; `record` waits for a place when it is full.
const QUEUE: usize = 8_192;
/// Of one batch, which is one message per account in it.
const MAX_LINES: usize = 1_024;
const MAX_BYTES: usize = 1 << 20;
/// After a failed append: a server that restarts needs a moment.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Shorter than the log remembers the ids of batches that it has.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Chains in memory; beyond that all are forgotten, and each account begins a new one.
const MAX_CHAINS: usize = 100_000;

#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<QueuedGroup>,
    coming: Arc<Coming>,
}

/// Lines of one account that are recorded together: all of them, in this order, or none.
#[derive(Clone)]
pub(crate) struct LineGroup {
    /// Who must still be valid right before the append; none for what no caller asked for.
    pub(crate) caller: Option<VerifiedCaller>,
    pub(crate) account: AccountId,
    pub(crate) retention_days: u32,
    pub(crate) lines: Vec<NewLine>,
    /// Where a round waits for them.
    pub(crate) coming: Option<Arc<ComingLines>>,
}

#[derive(Clone)]
pub(crate) struct NewLine {
    pub(crate) kind: LineType,
    /// A JSON object, without the members that only the recorder knows.
    pub(crate) body: Bytes,
}

impl LineGroup {
    fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.body.len()).sum()
    }
}

struct QueuedGroup {
    group: LineGroup,
    deadline: Instant,
    done: oneshot::Sender<Result<(), NotRecorded>>,
}

type Cause = Arc<dyn Error + Send + Sync>;

/// The decision is not known to be recorded, so it must not be released.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotRecorded {
    /// Its deadline passed first; it may still be recorded.
    #[error("the decision was not recorded in time")]
    Late,
    #[error("the decision could not be recorded")]
    Failed(#[source] Cause),
    /// The caller's identity was confirmed too long ago. The log does not have the decision.
    #[error("it is not known any more whether the caller's key is valid")]
    CallerStale,
    #[error("it is not known whether the decision was recorded")]
    Unknown(#[source] Cause),
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the gateway is stopping")]
    Stopping,
    #[error("its line cannot be written")]
    Line(#[source] serde_json::Error),
}

/// Appends the queued lines in batches. It ends when every [`Recorder`] is dropped, or once it is stopped and the queue
/// is empty.
pub(crate) struct BatchWriter {
    queue: mpsc::Receiver<QueuedGroup>,
    backplane: Backplane,
    key_cache: Arc<KeyCache>,
    chains: HashMap<AccountId, Chain>,
    coming: Arc<Coming>,
}

pub(crate) fn recorder(backplane: Backplane, key_cache: Arc<KeyCache>) -> (Recorder, BatchWriter) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let coming = Arc::new(Coming::default());
    let recorder = Recorder { queue: sender, coming: Arc::clone(&coming) };
    (recorder, BatchWriter { queue, backplane, key_cache, chains: HashMap::new(), coming })
}

impl Recorder {
    /// Announces lines: a round waits a moment for them.
    pub(crate) fn announce(&self) -> ComingLines {
        self.coming.announce()
    }

    pub(crate) async fn record(&self, mut group: LineGroup, deadline: Instant) -> Result<(), NotRecorded> {
        let (done, outcome) = oneshot::channel();
        let coming = group.coming.take();
        let recorded = async {
            let sent = self.queue.send(QueuedGroup { group, deadline, done }).await;
            drop(coming);
            sent.map_err(|_| NotRecorded::Failed(Arc::new(Refused::Stopping)))?;
            outcome.await.unwrap_or(Err(NotRecorded::Late))
        };
        timeout_at(deadline, recorded).await.unwrap_or(Err(NotRecorded::Late))
    }
}

impl BatchWriter {
    /// Appends until `stop`, then what is still queued.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut waiting: Vec<QueuedGroup> = Vec::new();
        loop {
            if waiting.is_empty() {
                let received = stop.run_until_cancelled(self.queue.recv_many(&mut waiting, MAX_LINES)).await;
                if received.is_none() {
                    self.queue.close();
                    self.queue.recv_many(&mut waiting, MAX_LINES).await;
                }
                if waiting.is_empty() {
                    return;
                }
            }
            if waiting.len() < MAX_LINES {
                self.coming.gather(waiting.len()).await;
                self.take_queued(&mut waiting);
            }
            let rest = waiting.split_off(batch_len(&waiting));
            self.write(waiting).await;
            waiting = rest;
        }
    }

    fn take_queued(&mut self, waiting: &mut Vec<QueuedGroup>) {
        while waiting.len() < MAX_LINES
            && let Ok(queued) = self.queue.try_recv()
        {
            waiting.push(queued);
        }
    }

    async fn write(&mut self, groups: Vec<QueuedGroup>) {
        let now = Instant::now();
        // In an order, so that a gateway does the same each time that a simulation runs it.
        let mut accounts: BTreeMap<AccountId, Vec<QueuedGroup>> = BTreeMap::new();
        let mut deadline = now;
        for queued in groups {
            // Lines whose caller has given up need not be recorded.
            if queued.deadline > now && !queued.done.is_closed() {
                deadline = deadline.max(queued.deadline);
                accounts.entry(queued.group.account.clone()).or_default().push(queued);
            }
        }
        self.begin_chains(&mut accounts, deadline).await;
        // After the last wait before the append.
        accounts.values_mut().for_each(|groups| self.refuse_stale(groups));
        accounts.retain(|_, groups| !groups.is_empty());
        let recorded_at = Clocks::now().wall;
        let drafts: Vec<Draft> =
            accounts.into_iter().filter_map(|(account, groups)| self.draft(account, groups, recorded_at)).collect();
        if drafts.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcomes = self.append(&drafts, deadline).await;
        metrics::record_round(started.elapsed());
        let mut recorded = Vec::new();
        for (draft, outcome) in drafts.into_iter().zip(outcomes) {
            if outcome.is_ok() {
                recorded.push(draft.batch.account.clone());
            }
            self.complete(draft, outcome);
        }
        for accounts in recorded.chunks(DecisionsRecorded::MAX_ACCOUNTS) {
            // Exporters also poll, so a lost notice only costs a moment.
            let notice = DecisionsRecorded { accounts: accounts.to_vec() };
            if let Err(error) = self.backplane.notices.publish(&notice).await {
                tracing::debug!(error = &error as &dyn Error, "exporters were not notified");
            }
        }
    }

    /// Begins a chain behind what the log has, for each account whose chain is not in memory.
    async fn begin_chains(&mut self, accounts: &mut BTreeMap<AccountId, Vec<QueuedGroup>>, deadline: Instant) {
        if self.chains.len() > MAX_CHAINS {
            self.chains.clear();
        }
        let log = &self.backplane.log;
        let new = accounts.keys().filter(|account| !self.chains.contains_key(*account)).cloned();
        let begun = new.map(|account| async move {
            let last = tokio::try_join!(
                log.last(&account, EntryKind::Decisions, deadline),
                log.last(&account, EntryKind::Mark, deadline)
            );
            let chain = last.map(|(decisions, mark)| Chain::begin(Uuid::now_v7(), decisions.as_ref(), mark.as_ref()));
            (account, chain)
        });
        for (account, chain) in join_all(begun).await {
            match chain {
                Ok(chain) => {
                    self.chains.insert(account, chain);
                }
                Err(error) => {
                    let cause = &error as &dyn Error;
                    tracing::error!(%account, error = cause, "the end of the account's log cannot be read");
                    let groups = accounts.remove(&account).unwrap_or_default();
                    complete_all(groups, &Err(NotRecorded::Failed(Arc::new(error))));
                }
            }
        }
    }

    /// Appends every batch. While there is time and every caller's identity is fresh, failed batches are appended again
    /// under the same id, and the log stores each once. An outcome that was unknown once stays unknown until the batch
    /// is acknowledged.
    async fn append(&self, drafts: &[Draft], deadline: Instant) -> Vec<Result<(), AppendError>> {
        let deadline = deadline.min(Instant::now() + RETRY_TIMEOUT);
        let not_tried = |_| Err(AppendError::NotStored("it was not tried".into()));
        let mut outcomes: Vec<Result<(), AppendError>> = drafts.iter().map(not_tried).collect();
        loop {
            let open: Vec<(&Draft, &mut Result<(), AppendError>)> =
                drafts.iter().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_err()).collect();
            let batches = open.iter().map(|(draft, _)| draft.batch.clone()).collect();
            let appended = self.backplane.log.append(batches, deadline).await;
            for ((_, outcome), now) in open.into_iter().zip(appended) {
                *outcome = match (&*outcome, now) {
                    (Err(AppendError::Unknown(_)), Err(AppendError::NotStored(why))) => Err(AppendError::Unknown(why)),
                    (_, now) => now,
                };
            }
            // If one caller is stale, no batch is tried again.
            let are_fresh = || drafts.iter().flat_map(|draft| &draft.groups).all(|queued| self.is_fresh(queued));
            let failed = outcomes.iter().any(Result::is_err);
            // The last attempt needs time of its own: a failure that is known only after the deadline is not certain.
            if !failed || Instant::now() + 2 * RETRY_DELAY >= deadline || !are_fresh() {
                return outcomes;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    fn refuse_stale(&self, groups: &mut Vec<QueuedGroup>) {
        let (fresh, stale) = std::mem::take(groups).into_iter().partition(|queued| self.is_fresh(queued));
        *groups = fresh;
        complete_all(stale, &Err(NotRecorded::CallerStale));
    }

    fn is_fresh(&self, queued: &QueuedGroup) -> bool {
        queued.group.caller.as_ref().is_none_or(|caller| self.key_cache.is_current(caller))
    }

    fn draft(&self, account: AccountId, groups: Vec<QueuedGroup>, recorded_at: Timestamp) -> Option<Draft> {
        let chain = self.chains.get(&account)?;
        let lines = groups.iter().flat_map(|QueuedGroup { group, .. }| {
            group.lines.iter().map(|line| (line.kind, line.body.as_ref(), group.retention_days))
        });
        match chain.draft(lines, recorded_at) {
            Ok(Drafted { id, lines: linked, chain }) => {
                Some(Draft { batch: Batch { account, id, lines: linked.into() }, chain, groups })
            }
            Err(error) => {
                tracing::error!(%account, error = &error as &dyn Error, "a line cannot be written");
                complete_all(groups, &Err(NotRecorded::Failed(Arc::new(Refused::Line(error)))));
                None
            }
        }
    }

    /// Moves the account's chain on, or not, and reports the outcome to every line's caller.
    fn complete(&mut self, draft: Draft, outcome: Result<(), AppendError>) {
        let Draft { batch, chain, groups } = draft;
        let account = batch.account;
        let kinds = || groups.iter().flat_map(|queued| &queued.group.lines).map(|line| line.kind);
        let decisions = kinds().filter(|kind| *kind == LineType::Decision).count();
        let events = kinds().count() - decisions;
        let (counted, outcome) = match outcome {
            Ok(()) => {
                self.chains.insert(account, chain);
                (RecordOutcome::Recorded, Ok(()))
            }
            // As if it had never been tried: the chain stays as it was.
            Err(error @ AppendError::NotStored(_)) => {
                tracing::error!(
                    %account,
                    decisions,
                    events,
                    error = &error as &dyn Error,
                    "lines were not recorded"
                );
                (RecordOutcome::Failed, Err(NotRecorded::Failed(Arc::new(error))))
            }
            Err(error @ AppendError::Unknown(_)) => {
                tracing::error!(
                    %account,
                    decisions,
                    events,
                    error = &error as &dyn Error,
                    "lines may not have been recorded; a new chain begins"
                );
                self.chains.remove(&account);
                (RecordOutcome::Unknown, Err(NotRecorded::Unknown(Arc::new(error))))
            }
        };
        metrics::recorded(decisions, counted);
        metrics::events_recorded(events, counted);
        complete_all(groups, &outcome);
    }
}

/// One account's lines of a batch, linked, and its chain as it will be once they are stored.
struct Draft {
    batch: Batch,
    chain: Chain,
    groups: Vec<QueuedGroup>,
}

fn batch_len(groups: &[QueuedGroup]) -> usize {
    let mut bytes = 0;
    let fit = groups.iter().take_while(|queued| {
        bytes += queued.group.bytes();
        bytes <= MAX_BYTES
    });
    fit.count().max(1).min(groups.len())
}

/// A caller that has stopped waiting has been answered already.
fn complete_all(groups: Vec<QueuedGroup>, outcome: &Result<(), NotRecorded>) {
    for queued in groups {
        drop(queued.done.send(outcome.clone()));
    }
}

/// What every line has that is chained, of whatever kind: also of one that this version does not know.
#[derive(Deserialize)]
struct ChainedLine {
    chain: Link,
    recorded_at: Timestamp,
    expires_at: i64,
}

#[derive(Debug, Clone, PartialEq)]
struct Chain {
    writer: WriterId,
    /// The last stored line; none before the first.
    head: Option<Head>,
    /// The line of another writer that the first line follows.
    after: Option<Head>,
    mark: Option<MarkRef>,
}

/// Linked lines, and the chain behind them.
#[derive(Debug)]
struct Drafted {
    /// Identifies these lines and no others: a store that knows the id has exactly these bytes.
    id: String,
    lines: Vec<u8>,
    chain: Chain,
}

impl Chain {
    /// Begins the chain of a new writer, after the account's last decisions and last checkpoint.
    fn begin(writer: Uuid, decisions: Option<&Entry>, mark: Option<&Entry>) -> Self {
        let after = decisions.and_then(|entry| {
            let line = entry.lines().last()?;
            let ChainedLine { chain, recorded_at, expires_at } = serde_json::from_slice(line).ok()?;
            let (writer, sequence) = (chain.writer, chain.sequence);
            Some(Head { writer, sequence, hash: LineHash::of(line), recorded_at, expires_at })
        });
        let mark = mark.and_then(|entry| MarkRef::of(entry.lines().next()?));
        Self { writer: WriterId::new(writer), head: None, after, mark }
    }

    /// Links each body to the line before it.
    fn draft<'b>(
        &self,
        new: impl Iterator<Item = (LineType, &'b [u8], u32)>,
        recorded_at: Timestamp,
    ) -> Result<Drafted, serde_json::Error> {
        let first = self.head.map_or(1, |head| head.sequence + 1);
        let mut chain = self.clone();
        let mut lines = Vec::new();
        for (kind, body, retention_days) in new {
            let header = chain.next_header(kind, recorded_at, retention_days);
            if !lines.is_empty() {
                lines.push(b'\n');
            }
            let line_start = lines.len();
            header.write(body, &mut lines)?;
            chain.head = Some(header.head(lines.get(line_start..).unwrap_or_default()));
        }
        let content = LineHash::of(&lines).to_string();
        let id = format!("{}-{first}-{}", self.writer, content.get(..16).unwrap_or_default());
        Ok(Drafted { id, lines, chain })
    }

    fn next_header(&self, kind: LineType, recorded_at: Timestamp, retention_days: u32) -> LineHeader {
        let kept = DAY.checked_mul(i32::try_from(retention_days).unwrap_or(i32::MAX)).unwrap_or(SignedDuration::MAX);
        let expires_at = recorded_at.checked_add(kept).unwrap_or(Timestamp::MAX).as_second();
        let is_first = self.head.is_none();
        let chain = Link {
            writer: self.writer,
            sequence: self.head.map_or(1, |head| head.sequence + 1),
            previous: self.head.map(|head| head.as_previous()),
            after: self.after.filter(|_| is_first),
            mark: self.mark.filter(|_| is_first),
        };
        LineHeader { line: kind, chain, recorded_at: whole_millis(recorded_at), expires_at }
    }
}

/// Milliseconds are precise enough, and every JSON reader can represent them.
fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

#[cfg(test)]
mod simulated;

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_backplane::Position;
    use stage0_contract::{ChainVerifier, Window};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn entry(lines: &[u8]) -> Entry {
        let (position, kind) = (Position(1), EntryKind::Decisions);
        Entry { position, stored_at: at(0), kind, lines: Bytes::copy_from_slice(lines) }
    }

    fn draft(chain: &Chain, bodies: &[&str]) -> Drafted {
        chain.draft(bodies.iter().map(|body| (LineType::Decision, body.as_bytes(), 30)), at(100)).unwrap()
    }

    fn judged(lines: &[Vec<u8>]) -> bool {
        let window = Window { from: None, to: None, now: at(200), horizon: at(0), kept: None, signed: None };
        let mut verifier = ChainVerifier::new(window, Vec::new(), []);
        lines.iter().flat_map(|lines| lines.split(|b| *b == b'\n')).for_each(|line| verifier.read_line(line));
        verifier.finish().ok
    }

    #[test]
    fn lines_of_consecutive_drafts_form_one_chain() {
        let chain = Chain::begin(Uuid::from_u128(1), None, None);
        let first = draft(&chain, &["{\"a\":1}", "{\"a\":2}"]);
        let second = draft(&first.chain, &["{\"a\":3}"]);
        assert_ne!(first.id, second.id);
        assert!(judged(&[first.lines.clone(), second.lines.clone()]));
        assert!(!judged(&[second.lines]));
        let header: LineHeader = serde_json::from_slice(first.lines.split(|b| *b == b'\n').next().unwrap()).unwrap();
        assert_eq!(header.expires_at, 100 + 30 * 86_400);
    }

    #[test]
    fn a_draft_that_is_not_stored_does_not_change_the_chain() {
        let chain = Chain::begin(Uuid::from_u128(1), None, None);
        let (lost, stored) = (draft(&chain, &["{\"a\":1}"]), draft(&chain, &["{\"a\":2}"]));
        assert_ne!(lost.id, stored.id, "a store would take the one for the other");
        assert_eq!(stored.id, draft(&chain, &["{\"a\":2}"]).id);
        assert!(judged(&[stored.lines]));
    }

    #[test]
    fn a_new_writer_follows_the_previous_one_whose_lines_are_missed_if_gone() {
        let old = draft(&Chain::begin(Uuid::from_u128(1), None, None), &["{\"a\":1}", "{\"a\":2}"]);
        let next = Chain::begin(Uuid::from_u128(2), Some(&entry(&old.lines)), None);
        let new = draft(&next, &["{\"a\":3}", "{\"a\":4}"]);
        assert!(judged(&[old.lines, new.lines.clone()]));
        assert!(!judged(&[new.lines]));
    }

    #[test]
    fn a_chain_goes_on_over_lines_of_every_kind_and_begins_behind_one_that_is_not_known() {
        let lines = [(LineType::Decision, &b"{\"a\":1}"[..], 30), (LineType::ApprovalUsed, &b"{\"a\":2}"[..], 7)];
        let first = Chain::begin(Uuid::from_u128(1), None, None).draft(lines.into_iter(), at(100)).unwrap();
        let all: Vec<LineHeader> =
            first.lines.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!([all[0].line, all[1].line], [LineType::Decision, LineType::ApprovalUsed]);
        assert_eq!(
            all[1].chain.previous.unwrap().hash,
            LineHash::of(first.lines.split(|b| *b == b'\n').next().unwrap())
        );
        assert_eq!(all[1].expires_at, 100 + 7 * 86_400);
        let of_later = String::from_utf8(first.lines).unwrap().replace("approval.used", "approval.of_a_later_version");
        let next = draft(&Chain::begin(Uuid::from_u128(2), Some(&entry(of_later.as_bytes())), None), &["{\"a\":3}"]);
        assert!(judged(&[of_later.into_bytes(), next.lines.clone()]));
        assert!(!judged(&[next.lines]), "the line that is not known is missed if it is gone");
    }
}
