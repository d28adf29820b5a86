//! Reads an account's log: one decision, pages of decisions, downloads, and the verification of the chain.
//!
//! Owns what may be shown: an account's own lines that have not expired and are within its retention. Ids carry their
//! time, so one decision is found by seeking that time; there is no index of ids. A page reads a bounded part of the
//! log, and may be short for that reason.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use stage0_backplane::{Chunk, DecisionLog, Entry, EntryFilter, EntryKind, Position, ReadError, Seek, SeekBack};
use stage0_contract::{
    AccountId, ChainVerifier, IssueCode, KeyIdentity, LineHash, MarkRef, PublicKey, Report, RequestId, RunId, Verdict,
    Window, is_same_environment,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

/// One read of the log.
const CHUNK_BYTES: usize = 1 << 20;
/// How much of the log a page may read.
const MAX_PAGE_SCAN_BYTES: usize = 16 << 20;
/// The size of a page, which waits in memory for its client.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// One read of a download, whose client may be slow.
const DOWNLOAD_CHUNK_BYTES: usize = 256 << 10;
/// One read of a check's look-up, which covers seconds of log only.
const LOOK_UP_CHUNK_BYTES: usize = 64 << 10;
/// After this many lines a read yields to others.
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
/// Prefix of cursors from old to new. Cursors of early versions had none and are not accepted any more.
const ASC_CURSOR_PREFIX: char = 't';
/// Prefix of cursors from new to old.
const DESC_CURSOR_PREFIX: char = 'n';
/// The second window, in case clocks differ more.
const FAR: SearchWindow =
    SearchWindow { before: SignedDuration::from_secs(120), after: SignedDuration::from_secs(120) };

/// Reads one account's log.
pub(crate) struct LogReader<'a> {
    pub(crate) log: &'a dyn DecisionLog,
    pub(crate) account: &'a AccountId,
    /// Older decisions are past the account's retention and not shown.
    pub(crate) horizon: Timestamp,
    pub(crate) now: Timestamp,
}

/// What to verify.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct VerifyRequest {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    /// A checkpoint that the caller kept.
    pub(crate) kept: Option<MarkRef>,
    /// The last checkpoint that the keystore signed.
    pub(crate) signed: Option<MarkRef>,
}

/// Which decisions a list shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) environment: Option<String>,
    pub(crate) code: Option<IssueCode>,
    pub(crate) run_id: Option<String>,
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    /// The oldest first.
    #[default]
    Asc,
    /// The newest first.
    Desc,
}

/// After which line a page begins. It depends on the account's own log only: a position in the store would disclose how
/// much all accounts write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// When the line's entry was stored, by the store's clock.
    stored_at: Timestamp,
    /// How many lines of the account's entries of that time precede it, in the cursor's order.
    lines: usize,
    order: Order,
}

/// A page's lines as they are in the log, joined into the content of a JSON array.
#[derive(Debug, Default)]
pub(crate) struct PageItems {
    json: Vec<u8>,
    count: usize,
}

/// The position in the store after which a download goes on. Never disclosed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume {
    position: u64,
    /// How many lines of that entry were downloaded.
    lines: usize,
}

/// A decision's line and its position.
struct FoundLine {
    position: Position,
    index: usize,
    line: Vec<u8>,
}

/// A window of store time around the time of an id.
struct SearchWindow {
    before: SignedDuration,
    after: SignedDuration,
}

/// How a search ended.
enum SearchResult {
    Found(FoundLine),
    /// It reached an entry that was stored at this time, after the window.
    PastWindow(Timestamp),
    EndOfLog,
}

impl FoundLine {
    fn parse(self) -> Result<Value, ReadError> {
        serde_json::from_slice(&self.line).map_err(|error| ReadError(error.to_string()))
    }
}

impl SearchResult {
    fn found(self) -> Option<FoundLine> {
        match self {
            Self::Found(found) => Some(found),
            Self::PastWindow(_) | Self::EndOfLog => None,
        }
    }
}

/// The members that a filter reads.
#[derive(Deserialize)]
struct FilterFields<'l> {
    recorded_at: Timestamp,
    expires_at: i64,
    verdict: Verdict,
    #[serde(borrow)]
    environment: std::borrow::Cow<'l, str>,
    run_id: Option<String>,
    issues: Vec<Code>,
}

#[derive(Deserialize)]
struct Code {
    code: IssueCode,
}

impl Cursor {
    /// Reads what [`Cursor`] displays.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (order, rest) = match text.strip_prefix(ASC_CURSOR_PREFIX) {
            Some(rest) => (Order::Asc, rest),
            None => (Order::Desc, text.strip_prefix(DESC_CURSOR_PREFIX)?),
        };
        let (nanos, lines) = rest.split_once('.')?;
        let stored_at = Timestamp::from_nanosecond(nanos.parse().ok()?).ok()?;
        let cursor = Self { stored_at, lines: lines.parse().ok()?, order };
        // Every cursor has exactly one text.
        (cursor.to_string() == text).then_some(cursor)
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }
}

impl Order {
    /// Parses the query parameter.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "asc" => Some(Self::Asc),
            "desc" => Some(Self::Desc),
            _ => None,
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = match self.order {
            Order::Asc => ASC_CURSOR_PREFIX,
            Order::Desc => DESC_CURSOR_PREFIX,
        };
        write!(f, "{mark}{}.{}", self.stored_at.as_nanosecond(), self.lines)
    }
}

impl Resume {
    /// The entry itself is read again, as possibly only some of its lines were downloaded.
    pub(crate) fn seek(self) -> Seek {
        Seek::After(Position(self.position.saturating_sub(1)))
    }
}

impl PageItems {
    /// A line is a JSON object without a line feed, so it is used as it is.
    fn push(&mut self, line: &[u8]) {
        if self.count > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(line);
        self.count += 1;
    }

    /// The page as JSON, with the cursor of the next one.
    pub(crate) fn page(self, next_cursor: Option<&str>) -> Result<Vec<u8>, ReadError> {
        let next = serde_json::to_string(&next_cursor).map_err(|error| ReadError(error.to_string()))?;
        let mut page = self.json;
        page.splice(0..0, *b"{\"items\":[");
        page.extend_from_slice(b"],\"next_cursor\":");
        page.extend_from_slice(next.as_bytes());
        page.push(b'}');
        Ok(page)
    }
}

impl Filter {
    fn matches(&self, fields: &FilterFields<'_>) -> bool {
        self.from.is_none_or(|from| fields.recorded_at >= from)
            && self.to.is_none_or(|to| fields.recorded_at <= to)
            && self.verdict.is_none_or(|verdict| fields.verdict == verdict)
            && self.environment.as_ref().is_none_or(|wanted| is_same_environment(wanted, &fields.environment))
            && self
                .run_id
                .as_ref()
                .is_none_or(|wanted| fields.run_id.as_deref().is_some_and(|run_id| same_run(run_id, wanted)))
            && self.code.as_ref().is_none_or(|code| fields.issues.iter().any(|issue| issue.code == *code))
    }
}

/// Where and in which direction a page reads the log.
#[derive(Debug, Clone, Copy)]
enum PageSeek {
    Forward(Seek),
    Backward(SeekBack),
}

impl PageSeek {
    fn after(self, chunk: &Chunk) -> Option<Self> {
        let last = chunk.entries.last().filter(|_| chunk.more)?.position;
        Some(match self {
            Self::Forward(_) => Self::Forward(Seek::After(last)),
            Self::Backward(_) => Self::Backward(SeekBack::Before(last)),
        })
    }
}

/// A page while it is collected.
struct PageBuilder {
    order: Order,
    limit: usize,
    items: PageItems,
    /// Bytes of the log that were read for it.
    bytes: usize,
    /// Lines that were read.
    lines: usize,
    /// After the last line that was considered: where the next page begins.
    next: Option<Cursor>,
    /// At the last line that was read, whether it was considered or skipped.
    current: Cursor,
}

impl PageBuilder {
    fn new(order: Order, start: Option<Cursor>, limit: usize) -> Self {
        let current = Cursor { stored_at: Timestamp::MIN, lines: 0, order };
        Self { order, limit, items: PageItems::default(), bytes: 0, lines: 0, next: start, current }
    }

    fn is_full(&self) -> bool {
        self.items.count == self.limit || self.items.json.len() >= MAX_PAGE_BYTES
    }

    /// Adds an entry's lines that are wanted and after the cursor, until the page is full.
    async fn add(&mut self, entry: &Entry, wanted: impl Fn(&FilterFields<'_>) -> bool) {
        if self.current.stored_at != entry.stored_at {
            self.current = Cursor { stored_at: entry.stored_at, lines: 0, order: self.order };
        }
        let mut lines: Vec<&[u8]> = entry.lines().collect();
        if self.order == Order::Desc {
            lines.reverse();
        }
        for line in lines {
            self.current.lines += 1;
            self.lines += 1;
            if self.lines.is_multiple_of(LINES_PER_YIELD) {
                yield_now().await;
            }
            let current = self.current;
            if self.next.is_some_and(|next| next.stored_at == current.stored_at && current.lines <= next.lines) {
                continue;
            }
            self.next = Some(current);
            let Ok(fields) = serde_json::from_slice::<FilterFields<'_>>(line) else { continue };
            if wanted(&fields) {
                self.items.push(line);
            }
            if self.is_full() {
                return;
            }
        }
    }
}

impl LogReader<'_> {
    /// The decision with this id, if it is this account's and may still be shown.
    pub(crate) async fn decision(&self, id: RequestId) -> Result<Option<Value>, ReadError> {
        self.find(id).await?.map(FoundLine::parse).transpose()
    }

    /// As [`LogReader::decision`], for one that was stored between two times of this gateway's clock.
    ///
    /// If that clock went back, the store's clock is ahead of it, or the log has later times before earlier ones. Then
    /// the end of the log is searched, too, from the time that the store's clock had.
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
        let last = self.log.last(self.account, EntryKind::Decisions, Instant::now() + CHUNK_TIMEOUT).await?;
        Ok(last.map(|last| last.stored_at))
    }

    /// Where a download resumes after the decision with this id, if that is one that may be shown.
    pub(crate) async fn resume_after(&self, id: RequestId) -> Result<Option<Resume>, ReadError> {
        let found = self.find(id).await?;
        Ok(found.map(|found| Resume { position: found.position.0, lines: found.index + 1 }))
    }

    async fn find(&self, id: RequestId) -> Result<Option<FoundLine>, ReadError> {
        let made = Timestamp::from_millisecond(id.unix_millis()).map_err(|error| ReadError(error.to_string()))?;
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
        // Most lines do not contain the id at all. A line may contain it elsewhere, as text of its request.
        let wanted = id.to_string();
        let is_it = |line: &[u8]| {
            contains(line, wanted.as_bytes())
                && serde_json::from_slice::<IdFields>(line).is_ok_and(|fields| {
                    fields.request_id == id && self.is_visible(fields.recorded_at, fields.expires_at)
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

    /// A page of decisions and the cursor of the next one; no cursor if there are no more now.
    pub(crate) async fn page(
        &self,
        filter: &Filter,
        order: Order,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<(PageItems, Option<Cursor>), ReadError> {
        // An entry is stored a little after it was recorded, or a little before by another clock.
        let earliest = filter.from.unwrap_or(self.horizon).max(self.horizon).checked_sub(MAX_CLOCK_SKEW);
        let earliest = earliest.unwrap_or(Timestamp::UNIX_EPOCH);
        // Entries of the cursor's time are read again, as possibly only some of their lines were shown.
        let cursor = cursor.filter(|cursor| cursor.order == order);
        let mut seek = match (order, cursor) {
            (Order::Asc, cursor) => PageSeek::Forward(Seek::Time(cursor.map_or(earliest, |cursor| cursor.stored_at))),
            (Order::Desc, Some(cursor)) => PageSeek::Backward(SeekBack::Time(cursor.stored_at)),
            (Order::Desc, None) => PageSeek::Backward(
                filter
                    .to
                    .map_or(SeekBack::End, |to| SeekBack::Time(to.checked_add(FAR.after).unwrap_or(Timestamp::MAX))),
            ),
        };
        let mut page = PageBuilder::new(order, cursor, limit);
        loop {
            let chunk = self.page_chunk(seek, CHUNK_BYTES).await?;
            for entry in &chunk.entries {
                page.bytes += entry.lines.len();
                let is_past = match order {
                    Order::Asc => filter.to.is_some_and(|to| is_long_after(entry.stored_at, to)),
                    Order::Desc => entry.stored_at < earliest,
                };
                if is_past {
                    return Ok((page.items, None));
                }
                page.add(entry, |fields| {
                    self.is_visible(fields.recorded_at, fields.expires_at) && filter.matches(fields)
                })
                .await;
                if page.is_full() {
                    return Ok((page.items, page.next));
                }
            }
            let Some(next) = seek.after(&chunk) else { return Ok((page.items, None)) };
            if page.bytes >= MAX_PAGE_SCAN_BYTES {
                return Ok((page.items, page.next));
            }
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

    /// Verifies the chain.
    pub(crate) async fn verify(&self, request: VerifyRequest, keys: Vec<PublicKey>) -> Result<Report, ReadError> {
        let VerifyRequest { from, to, kept, signed } = request;
        let marks = self.marks(signed).await?;
        let window = Window { from, to, now: self.now, horizon: self.horizon, kept, signed };
        let mut verifier = ChainVerifier::new(window, keys, marks.iter().flat_map(Entry::lines)).of(self.account);
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

    async fn page_chunk(&self, seek: PageSeek, bytes: usize) -> Result<Chunk, ReadError> {
        let deadline = Instant::now() + CHUNK_TIMEOUT;
        match seek {
            PageSeek::Forward(seek) => {
                self.log.read(self.account, EntryFilter::Only(EntryKind::Decisions), seek, bytes, deadline).await
            }
            PageSeek::Backward(seek) => {
                self.log.read_back(self.account, EntryKind::Decisions, seek, bytes, deadline).await
            }
        }
    }

    async fn chunk(&self, filter: EntryFilter, seek: Seek, bytes: usize) -> Result<Chunk, ReadError> {
        self.log.read(self.account, filter, seek, bytes, Instant::now() + CHUNK_TIMEOUT).await
    }

    fn is_visible(&self, recorded_at: Timestamp, expires_at: i64) -> bool {
        expires_at > self.now.as_second() && recorded_at >= self.horizon
    }
}

/// Whether two texts name the same run, by the rule that runs themselves use.
fn same_run(one: &str, other: &str) -> bool {
    let canonical = |text: &str| RunId::parse(text).map(|run| run.canonical());
    one == other || canonical(one).is_ok_and(|one| canonical(other).is_ok_and(|other| one == other))
}

/// The members by which a decision is found.
#[derive(Deserialize)]
struct IdFields {
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

fn contains(line: &[u8], wanted: &[u8]) -> bool {
    match (std::str::from_utf8(line), std::str::from_utf8(wanted)) {
        (Ok(line), Ok(wanted)) => line.contains(wanted),
        _ => false,
    }
}

/// Decisions of the account that were recorded before this time are past its retention.
pub(crate) fn retention_horizon(identity: &KeyIdentity, now: Timestamp) -> Timestamp {
    let retention = SignedDuration::from_hours(24 * i64::from(identity.retention_days));
    now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
