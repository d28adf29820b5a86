//! Reads an account's log: one decision, pages of decisions, downloads, and the verification of the chain.
//!
//! Owns what may be shown: an account's own lines that have not expired and are within its retention. Ids carry their
//! time, so one decision is found by seeking that time; there is no index of ids.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use stage0_backplane::{Cause, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, Position, ReadError, Seek};
use stage0_contract::{
    AccountId, ChainVerifier, KeyIdentity, LineHash, LineType, MarkRef, PublicKey, Report, RequestId, Window,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

mod page;
mod past;

pub(crate) use page::{Cursor, Filter, Order, with_outcome};
pub(crate) use past::{Environments, Kept, Past, PastDecision};

const CHUNK_BYTES: usize = 1 << 20;
const DOWNLOAD_CHUNK_BYTES: usize = 256 << 10;
const LOOK_UP_CHUNK_BYTES: usize = 64 << 10;
const LINES_PER_YIELD: usize = 64;
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// A checkpoint is stored this soon after it was signed, or its exporter has ended.
const MARK_APPEND_TIMEOUT: Duration = Duration::from_secs(6);
const MARK_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Usually a decision is stored within this window around the time of its id: its body may be slow to arrive.
const NEAR: SearchWindow =
    SearchWindow { before: SignedDuration::from_millis(100), after: SignedDuration::from_secs(15) };
/// Usually the clocks of gateways and of the store differ by less.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(2);
/// If the store's newest entry is further ahead of this gateway's clock, the two clocks do not agree.
const MAX_STORE_AHEAD: SignedDuration = SignedDuration::from_secs(5);
/// In case clocks differ more.
const FAR: SearchWindow =
    SearchWindow { before: SignedDuration::from_secs(120), after: SignedDuration::from_secs(120) };

/// Reads one account's log.
pub(crate) struct LogReader {
    log: Arc<dyn DecisionLog>,
    account: AccountId,
    /// Older decisions are past the account's retention and not shown.
    horizon: Timestamp,
    now: Timestamp,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct VerifyRequest {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) kept: Option<MarkRef>,
    /// The last checkpoint that the keystore signed.
    pub(crate) signed: Option<MarkRef>,
}

/// The position in the store after which a download goes on. Never disclosed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume {
    position: u64,
    lines: usize,
}

struct FoundLine {
    position: Position,
    index: usize,
    line: Vec<u8>,
}

struct SearchWindow {
    before: SignedDuration,
    after: SignedDuration,
}

enum SearchResult {
    Found(FoundLine),
    /// It reached an entry that was stored at this time, after the window.
    PastWindow(Timestamp),
    EndOfLog,
}

impl FoundLine {
    fn parse(self) -> Result<Value, ReadError> {
        serde_json::from_slice(&self.line).map_err(|error| ReadError(Cause::new(error)))
    }
}

impl SearchResult {
    fn found(self) -> Option<FoundLine> {
        if let Self::Found(found) = self { Some(found) } else { None }
    }
}

impl Resume {
    /// The entry itself is read again, as possibly only some of its lines were downloaded.
    pub(crate) fn seek(self) -> Seek {
        Seek::After(Position(self.position.saturating_sub(1)))
    }
}

impl LogReader {
    pub(crate) fn new(log: &Arc<dyn DecisionLog>, identity: &KeyIdentity) -> Self {
        Self::within(log, identity.account.clone(), identity.retention_days)
    }

    /// Reads what may be shown of an account with this retention.
    pub(crate) fn within(log: &Arc<dyn DecisionLog>, account: AccountId, retention_days: u32) -> Self {
        let now = Timestamp::now();
        let retention = SignedDuration::from_hours(24 * i64::from(retention_days));
        let horizon = now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { log: Arc::clone(log), account, horizon, now }
    }

    /// Reads all that an account's log has, whatever its retention: for what the gateway itself must know.
    pub(crate) fn of_account(log: &Arc<dyn DecisionLog>, account: AccountId) -> Self {
        Self { log: Arc::clone(log), account, horizon: Timestamp::UNIX_EPOCH, now: Timestamp::now() }
    }

    /// The decision with this id, if it is this account's and may still be shown.
    pub(crate) async fn decision(&self, id: RequestId) -> Result<Option<Value>, ReadError> {
        self.find(id).await?.map(FoundLine::parse).transpose()
    }

    /// As [`LogReader::decision`], for one that was stored between two times of this gateway's clock. If that clock
    /// went back, the store's is ahead of it, or the log has later times before earlier ones: then the end of the log
    /// is searched, too, from the time that the store's clock had.
    pub(crate) async fn decision_between(
        &self,
        id: RequestId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Option<Value>, ReadError> {
        let found = match self.search(from, to, id, LOOK_UP_CHUNK_BYTES).await? {
            SearchResult::Found(found) => Some(found),
            result => match self.newest().await?.and_then(|newest| self.search_again_from(&result, from, newest)) {
                Some(from) => self.search(from, Timestamp::MAX, id, LOOK_UP_CHUNK_BYTES).await?.found(),
                None => None,
            },
        };
        found.map(FoundLine::parse).transpose()
    }

    /// Where a second search begins if the clocks do not agree.
    fn search_again_from(&self, result: &SearchResult, from: Timestamp, newest: Timestamp) -> Option<Timestamp> {
        let ahead = newest.duration_since(self.now);
        if ahead > MAX_STORE_AHEAD {
            return Some(from.checked_add(ahead).unwrap_or(from));
        }
        matches!(result, SearchResult::PastWindow(later) if newest < *later).then_some(from)
    }

    async fn newest(&self) -> Result<Option<Timestamp>, ReadError> {
        let last = self.log.last(&self.account, EntryKind::Decisions, Instant::now() + CHUNK_TIMEOUT).await?;
        Ok(last.map(|last| last.stored_at))
    }

    /// Where a download resumes after the decision with this id, if that is one that may be shown.
    pub(crate) async fn resume_after(&self, id: RequestId) -> Result<Option<Resume>, ReadError> {
        let found = self.find(id).await?;
        Ok(found.map(|found| Resume { position: found.position.0, lines: found.index + 1 }))
    }

    async fn find(&self, id: RequestId) -> Result<Option<FoundLine>, ReadError> {
        let made = Timestamp::from_millisecond(id.unix_millis()).map_err(|error| ReadError(Cause::new(error)))?;
        for SearchWindow { before, after } in [NEAR, FAR] {
            let from = made.checked_sub(before).unwrap_or(Timestamp::UNIX_EPOCH);
            let to = made.checked_add(after).unwrap_or(Timestamp::MAX);
            if let Some(found) = self.search(from, to, id, CHUNK_BYTES).await?.found() {
                return Ok(Some(found));
            }
        }
        // If the store's clock was ahead before, it stores with later times than the ids have until it has caught up.
        match self.newest().await? {
            Some(newest) if is_long_after(newest, self.now) => {
                Ok(self.search(made, Timestamp::MAX, id, CHUNK_BYTES).await?.found())
            }
            _ => Ok(None),
        }
    }

    async fn search(
        &self,
        from: Timestamp,
        to: Timestamp,
        id: RequestId,
        chunk_bytes: usize,
    ) -> Result<SearchResult, ReadError> {
        // Most lines do not contain the id at all. A line may contain it elsewhere: as text of its request, or as the
        // decision that an event of an approval belongs to.
        let wanted = id.to_string();
        let is_it = |line: &[u8]| {
            std::str::from_utf8(line).is_ok_and(|line| line.contains(&wanted))
                && serde_json::from_slice::<IdFields<'_>>(line).is_ok_and(|fields| {
                    fields.kind == LineType::Decision.as_str()
                        && fields.request_id == id
                        && self.is_visible(fields.recorded_at, fields.expires_at)
                })
        };
        let mut seek = Seek::Time(from);
        loop {
            let chunk = self.chunk(EntryFilter::Only(EntryKind::Decisions), seek, chunk_bytes).await?;
            for entry in &chunk.entries {
                if entry.stored_at > to {
                    return Ok(SearchResult::PastWindow(entry.stored_at));
                }
                if let Some((index, line)) = entry.lines().enumerate().find(|(_, line)| is_it(line)) {
                    return Ok(SearchResult::Found(FoundLine { position: entry.position, index, line: line.to_vec() }));
                }
            }
            let Some(next) = following(&chunk) else { return Ok(SearchResult::EndOfLog) };
            seek = next;
        }
    }

    /// The next lines of every kind that may be shown, as they are in the log, and where to go on. `resume` skips the
    /// first lines of its entry.
    pub(crate) async fn read_range(
        &self,
        seek: Seek,
        resume: Option<Resume>,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<(Vec<u8>, Option<Seek>), ReadError> {
        let chunk = self.chunk(EntryFilter::All, seek, DOWNLOAD_CHUNK_BYTES).await?;
        let mut lines = Vec::new();
        for entry in &chunk.entries {
            let skip = resume.filter(|resume| resume.position == entry.position.0).map_or(0, |resume| resume.lines);
            for line in entry.lines().skip(skip) {
                // A line that cannot be parsed is damaged. It is included, so that verifying the download finds it.
                let wanted = serde_json::from_slice::<TimeFields>(line).map_or(true, |times| {
                    let inside = from.is_none_or(|from| times.recorded_at >= from)
                        && to.is_none_or(|to| times.recorded_at <= to);
                    inside && self.is_visible(times.recorded_at, times.expires_at)
                });
                if wanted {
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
            }
        }
        let past = chunk.entries.last().is_some_and(|last| to.is_some_and(|to| is_long_after(last.stored_at, to)));
        Ok((lines, following(&chunk).filter(|_| !past)))
    }

    /// Where a download or a verification from this time begins.
    pub(crate) fn start_at(&self, from: Option<Timestamp>) -> Seek {
        let from = from.unwrap_or(self.horizon).max(self.horizon);
        Seek::Time(from.checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    pub(crate) async fn verify(&self, request: VerifyRequest, keys: Vec<PublicKey>) -> Result<Report, ReadError> {
        let VerifyRequest { from, to, kept, signed } = request;
        let marks = self.marks(signed).await?;
        let window = Window { from, to, now: self.now, horizon: self.horizon, kept, signed };
        let mut verifier = ChainVerifier::new(window, keys, marks.iter().flat_map(Entry::lines)).of(&self.account);
        let mut seek = self.start_at(from);
        let mut rejected = 0;
        loop {
            let chunk = self.chunk(EntryFilter::All, seek, CHUNK_BYTES).await?;
            rejected += chunk.rejected;
            let last = chunk.entries.last();
            let past = last.is_some_and(|last| to.is_some_and(|to| is_long_after(last.stored_at, to)));
            for (index, line) in chunk.entries.iter().flat_map(Entry::lines).enumerate() {
                if index % LINES_PER_YIELD == 0 {
                    yield_now().await;
                }
                verifier.read_line(line);
            }
            match following(&chunk).filter(|_| !past) {
                Some(next) => seek = next,
                None => return Ok(Report { rejected, ..verifier.finish() }),
            }
        }
    }

    /// All checkpoints. Waits for one that the keystore signed a moment ago and that is not stored yet.
    async fn marks(&self, signed: Option<MarkRef>) -> Result<Vec<Entry>, ReadError> {
        let mut marks = Vec::<Entry>::new();
        let mut seek = Seek::Start;
        let mut searched = 0;
        let deadline = Instant::now() + MARK_APPEND_TIMEOUT;
        loop {
            let chunk = self.chunk(EntryFilter::Only(EntryKind::Mark), seek, CHUNK_BYTES).await?;
            let more = chunk.more;
            marks.extend(chunk.entries);
            seek = marks.last().map_or(Seek::Start, |last| Seek::After(last.position));
            if more {
                continue;
            }
            let is_there = signed.is_none_or(|signed| {
                marks.iter().skip(searched).flat_map(Entry::lines).any(|line| LineHash::of(line) == signed.hash)
            });
            if is_there || Instant::now() >= deadline {
                return Ok(marks);
            }
            searched = marks.len();
            sleep(MARK_POLL_INTERVAL).await;
        }
    }

    async fn chunk(&self, filter: EntryFilter, seek: Seek, bytes: usize) -> Result<Chunk, ReadError> {
        self.log.read(&self.account, filter, seek, bytes, Instant::now() + CHUNK_TIMEOUT).await
    }

    fn is_visible(&self, recorded_at: Timestamp, expires_at: i64) -> bool {
        expires_at > self.now.as_second() && recorded_at >= self.horizon
    }
}

#[derive(Deserialize)]
struct IdFields<'l> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'l, str>,
    request_id: RequestId,
    recorded_at: Timestamp,
    expires_at: i64,
}

/// The members that every line has.
#[derive(Deserialize)]
struct TimeFields {
    recorded_at: Timestamp,
    expires_at: i64,
}

fn following(chunk: &Chunk) -> Option<Seek> {
    chunk.entries.last().filter(|_| chunk.more).map(|last| Seek::After(last.position))
}

/// Whether an entry was stored so late that nothing recorded before `to` can follow it.
fn is_long_after(stored_at: Timestamp, to: Timestamp) -> bool {
    to.checked_add(FAR.after).is_ok_and(|end| stored_at > end)
}

#[cfg(test)]
mod tests;
