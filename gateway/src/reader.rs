//! Reading the log for a caller: one decision, pages of them, whole stretches, and the proof that nothing is missing.
//!
//! Owns what may be shown: an account's own lines, not past their end nor the account's retention. Ids carry their time, so one
//! decision is found by seeking it; no index of ids exists. A page costs a bounded piece of log, and may be short for that.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use stage0_backplane::{Chunk, DecisionLog, Entry, Kind, Position, ReadError, Seek, SeekBack, Which};
use stage0_contract::{
    AccountId, IssueCode, LineHash, MarkRef, PublicKey, Report, RequestId, RunId, Verdict, Walk, Window,
    is_same_environment,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

/// One question to the log.
const PIECE: usize = 1 << 20;
/// How much log a page may cost.
const PAGE_BYTES: usize = 16 << 20;
/// How much of it a page may hold: it waits in memory for its client.
const MAX_PAGE_ITEMS_BYTES: usize = 4 << 20;
/// One question of a download: its client may be slow, and nobody else waits for it.
const DOWNLOAD_PIECE: usize = 256 << 10;
/// One question of a check, which finds what it looks for within a second of log or not at all.
const LOOK_UP_PIECE: usize = 64 << 10;
/// After so many lines other reads have their turn.
const LINES_A_TURN: usize = 64;
const PIECE_WITHIN: Duration = Duration::from_secs(5);
/// A mark is stored so soon after it was signed, or its exporter has ended.
const MARK_APPEND_TIMEOUT: Duration = Duration::from_secs(6);
const MARK_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A decision is stored this long after its id was made, at most: its body may be slow to arrive.
const NEAR: Search = Search { before: SignedDuration::from_millis(100), after: SignedDuration::from_secs(15) };
/// The clocks of gateways and of the store differ by less, for all but the search below.
const SKEW: SignedDuration = SignedDuration::from_secs(2);
/// A store whose newest entry is further ahead of this gateway's clock has another clock.
const CLOCKS_AGREE: SignedDuration = SignedDuration::from_secs(5);
/// Before every cursor that goes from old to new: older ones were two numbers, and mean nothing any more.
const CURSOR_MARK: char = 't';
/// Before one that goes from new to old.
const BACK_CURSOR_MARK: char = 'n';
/// Where clocks differ more.
const FAR: Search = Search { before: SignedDuration::from_secs(120), after: SignedDuration::from_secs(120) };

/// Whose log is read, and how much of it may be shown.
pub(crate) struct Shelf<'a> {
    pub(crate) log: &'a dyn DecisionLog,
    pub(crate) account: &'a AccountId,
    /// What was recorded before is past the account's retention.
    pub(crate) horizon: Timestamp,
    pub(crate) now: Timestamp,
}

/// What a verification is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    /// A mark that was kept outside.
    pub(crate) kept: Option<MarkRef>,
    /// The last mark that the keystore signed.
    pub(crate) signed: Option<MarkRef>,
}

/// What a list is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) environment: Option<String>,
    pub(crate) code: Option<IssueCode>,
    pub(crate) run_id: Option<String>,
}

/// Which decisions a list has first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    /// The oldest.
    #[default]
    Asc,
    /// The newest.
    Desc,
}

/// Behind which line a page begins. It is made of the account's own log alone: a place in the store's order would tell
/// how much all accounts write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// By the store's clock, when the entry was stored.
    stored_at: Timestamp,
    /// Lines of the account's entries of that moment that are through, counted in the cursor's order.
    lines: usize,
    order: Order,
}

/// Lines as they stand in the log, put together to what a JSON array holds.
#[derive(Debug, Default)]
pub(crate) struct Items {
    json: Vec<u8>,
    count: usize,
}

/// Where in the store's order a download goes on; never shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume {
    position: u64,
    /// Lines of that entry that are through.
    lines: usize,
}

/// A decision's line and its place.
struct Found {
    position: Position,
    index: usize,
    line: Vec<u8>,
}

struct Search {
    before: SignedDuration,
    after: SignedDuration,
}

/// How a search ended.
enum Searched {
    Found(Found),
    /// At what was stored at this time, past what was searched.
    Later(Timestamp),
    /// With the log.
    Ended,
}

impl Found {
    fn read(self) -> Result<Value, ReadError> {
        serde_json::from_slice(&self.line).map_err(|error| ReadError(error.to_string()))
    }
}

impl Searched {
    fn found(self) -> Option<Found> {
        match self {
            Self::Found(found) => Some(found),
            Self::Later(_) | Self::Ended => None,
        }
    }
}

/// What a filter looks at.
#[derive(Deserialize)]
struct Facts<'l> {
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
        let (order, rest) = match text.strip_prefix(CURSOR_MARK) {
            Some(rest) => (Order::Asc, rest),
            None => (Order::Desc, text.strip_prefix(BACK_CURSOR_MARK)?),
        };
        let (nanos, lines) = rest.split_once('.')?;
        let stored_at = Timestamp::from_nanosecond(nanos.parse().ok()?).ok()?;
        let cursor = Self { stored_at, lines: lines.parse().ok()?, order };
        // One text for each place.
        (cursor.to_string() == text).then_some(cursor)
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }
}

impl Order {
    /// As a query names it.
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
            Order::Asc => CURSOR_MARK,
            Order::Desc => BACK_CURSOR_MARK,
        };
        write!(f, "{mark}{}.{}", self.stored_at.as_nanosecond(), self.lines)
    }
}

impl Resume {
    /// The entry itself is read again when only some of its lines are through.
    pub(crate) fn seek(self) -> Seek {
        Seek::After(Position(self.position.saturating_sub(1)))
    }
}

impl Items {
    /// A line is a JSON object without a line feed: it needs no other form.
    fn push(&mut self, line: &[u8]) {
        if self.count > 0 {
            self.json.push(b',');
        }
        self.json.extend_from_slice(line);
        self.count += 1;
    }

    /// The page, with where the next one begins.
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
    fn takes(&self, facts: &Facts<'_>) -> bool {
        self.from.is_none_or(|from| facts.recorded_at >= from)
            && self.to.is_none_or(|to| facts.recorded_at <= to)
            && self.verdict.is_none_or(|verdict| facts.verdict == verdict)
            && self.environment.as_ref().is_none_or(|wanted| is_same_environment(wanted, &facts.environment))
            && self
                .run_id
                .as_ref()
                .is_none_or(|wanted| facts.run_id.as_deref().is_some_and(|run_id| same_run(run_id, wanted)))
            && self.code.as_ref().is_none_or(|code| facts.issues.iter().any(|issue| issue.code == *code))
    }
}

/// Where a page goes on in the log.
#[derive(Debug, Clone, Copy)]
enum Place {
    Forth(Seek),
    Back(SeekBack),
}

impl Place {
    fn behind(self, chunk: &Chunk) -> Option<Self> {
        let last = chunk.entries.last().filter(|_| chunk.more)?.position;
        Some(match self {
            Self::Forth(_) => Self::Forth(Seek::After(last)),
            Self::Back(_) => Self::Back(SeekBack::Before(last)),
        })
    }
}

/// A page in the making.
struct Page {
    order: Order,
    limit: usize,
    items: Items,
    /// Of log that was read for it.
    bytes: usize,
    /// Lines that were looked at.
    seen: usize,
    /// Where the next page begins.
    place: Option<Cursor>,
    /// The line that was read last, whatever became of it.
    passed: Cursor,
}

impl Page {
    fn new(order: Order, place: Option<Cursor>, limit: usize) -> Self {
        let passed = Cursor { stored_at: Timestamp::MIN, lines: 0, order };
        Self { order, limit, items: Items::default(), bytes: 0, seen: 0, place, passed }
    }

    fn is_full(&self) -> bool {
        self.items.count == self.limit || self.items.json.len() >= MAX_PAGE_ITEMS_BYTES
    }

    /// Takes an entry's lines that are wanted and not through yet, until the page is full.
    async fn take(&mut self, entry: &Entry, wanted: impl Fn(&Facts<'_>) -> bool) {
        if self.passed.stored_at != entry.stored_at {
            self.passed = Cursor { stored_at: entry.stored_at, lines: 0, order: self.order };
        }
        let mut lines: Vec<&[u8]> = entry.lines().collect();
        if self.order == Order::Desc {
            lines.reverse();
        }
        for line in lines {
            self.passed.lines += 1;
            self.seen += 1;
            if self.seen.is_multiple_of(LINES_A_TURN) {
                yield_now().await;
            }
            let passed = self.passed;
            if self.place.is_some_and(|place| place.stored_at == passed.stored_at && passed.lines <= place.lines) {
                continue;
            }
            self.place = Some(passed);
            let Ok(facts) = serde_json::from_slice::<Facts<'_>>(line) else { continue };
            if wanted(&facts) {
                self.items.push(line);
            }
            if self.is_full() {
                return;
            }
        }
    }
}

impl Shelf<'_> {
    /// The decision with this id, if it is this account's and may still be shown.
    pub(crate) async fn decision(&self, id: RequestId) -> Result<Option<Value>, ReadError> {
        self.find(id).await?.map(Found::read).transpose()
    }

    /// As [`Shelf::decision`], for one that was stored between two times.
    ///
    /// The times are this gateway's. Where its clock went back, the store's is ahead of it, or the log has later times
    /// before earlier ones: then the end of the log is searched from the time that the store's clock had.
    pub(crate) async fn between(
        &self,
        id: RequestId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Option<Value>, ReadError> {
        let found = match self.search(from, to, id, LOOK_UP_PIECE).await? {
            Searched::Found(found) => Some(found),
            searched => match self.newest().await?.and_then(|newest| self.search_again_from(&searched, from, newest)) {
                Some(from) => self.search(from, Timestamp::MAX, id, LOOK_UP_PIECE).await?.found(),
                None => None,
            },
        };
        found.map(Found::read).transpose()
    }

    /// From when on to search again, when the clocks do not agree.
    fn search_again_from(&self, searched: &Searched, from: Timestamp, newest: Timestamp) -> Option<Timestamp> {
        let ahead = newest.duration_since(self.now);
        if ahead > CLOCKS_AGREE {
            return Some(from.checked_add(ahead).unwrap_or(from));
        }
        matches!(searched, Searched::Later(later) if newest < *later).then_some(from)
    }

    async fn newest(&self) -> Result<Option<Timestamp>, ReadError> {
        let last = self.log.last(self.account, Kind::Decisions, Instant::now() + PIECE_WITHIN).await?;
        Ok(last.map(|last| last.stored_at))
    }

    /// Where a download goes on behind the decision with this id; none: it is not one that may be shown.
    pub(crate) async fn behind(&self, id: RequestId) -> Result<Option<Resume>, ReadError> {
        let found = self.find(id).await?;
        Ok(found.map(|found| Resume { position: found.position.0, lines: found.index + 1 }))
    }

    async fn find(&self, id: RequestId) -> Result<Option<Found>, ReadError> {
        let made = Timestamp::from_millisecond(id.unix_millis()).map_err(|error| ReadError(error.to_string()))?;
        for Search { before, after } in [NEAR, FAR] {
            let from = made.checked_sub(before).unwrap_or(Timestamp::UNIX_EPOCH);
            let to = made.checked_add(after).unwrap_or(Timestamp::MAX);
            if let Some(found) = self.search(from, to, id, PIECE).await?.found() {
                return Ok(Some(found));
            }
        }
        // A store whose clock was ahead once gives later times than ids have, until the clock has caught up.
        match self.newest().await? {
            Some(newest) if is_long_after(newest, self.now) => {
                Ok(self.search(made, Timestamp::MAX, id, PIECE).await?.found())
            }
            _ => Ok(None),
        }
    }

    async fn search(&self, from: Timestamp, to: Timestamp, id: RequestId, piece: usize) -> Result<Searched, ReadError> {
        // Most lines do not hold the id at all; one may hold it elsewhere, as text that its request sent along.
        let wanted = id.to_string();
        let is_it = |line: &[u8]| {
            contains(line, wanted.as_bytes())
                && serde_json::from_slice::<Named>(line)
                    .is_ok_and(|named| named.request_id == id && self.shows(named.recorded_at, named.expires_at))
        };
        let mut seek = Seek::Time(from);
        loop {
            let chunk = self.piece(Which::Only(Kind::Decisions), seek, piece).await?;
            for entry in &chunk.entries {
                if entry.stored_at > to {
                    return Ok(Searched::Later(entry.stored_at));
                }
                if let Some((index, line)) = entry.lines().enumerate().find(|(_, line)| is_it(line)) {
                    return Ok(Searched::Found(Found { position: entry.position, index, line: line.to_vec() }));
                }
            }
            let Some(next) = following(&chunk) else { return Ok(Searched::Ended) };
            seek = next;
        }
    }

    /// A page of decisions and where the next begins; none when there are no more now.
    pub(crate) async fn page(
        &self,
        filter: &Filter,
        order: Order,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<(Items, Option<Cursor>), ReadError> {
        // Stored a little after it was recorded, or a little before by another clock.
        let earliest = filter.from.unwrap_or(self.horizon).max(self.horizon).checked_sub(SKEW);
        let earliest = earliest.unwrap_or(Timestamp::UNIX_EPOCH);
        // Entries of a cursor's moment are read again when only some of their lines are through.
        let cursor = cursor.filter(|cursor| cursor.order == order);
        let mut place = match (order, cursor) {
            (Order::Asc, cursor) => Place::Forth(Seek::Time(cursor.map_or(earliest, |cursor| cursor.stored_at))),
            (Order::Desc, Some(cursor)) => Place::Back(SeekBack::Time(cursor.stored_at)),
            (Order::Desc, None) => Place::Back(
                filter
                    .to
                    .map_or(SeekBack::End, |to| SeekBack::Time(to.checked_add(FAR.after).unwrap_or(Timestamp::MAX))),
            ),
        };
        let mut page = Page::new(order, cursor, limit);
        loop {
            let chunk = self.piece_at(place, PIECE).await?;
            for entry in &chunk.entries {
                page.bytes += entry.lines.len();
                let is_past = match order {
                    Order::Asc => filter.to.is_some_and(|to| is_long_after(entry.stored_at, to)),
                    Order::Desc => entry.stored_at < earliest,
                };
                if is_past {
                    return Ok((page.items, None));
                }
                page.take(entry, |facts| self.shows(facts.recorded_at, facts.expires_at) && filter.takes(facts)).await;
                if page.is_full() {
                    return Ok((page.items, page.place));
                }
            }
            let Some(next) = place.behind(&chunk) else { return Ok((page.items, None)) };
            if page.bytes >= PAGE_BYTES {
                return Ok((page.items, page.place));
            }
            place = next;
        }
    }

    /// The next lines of every kind that may be shown, as they stand in the log, and where to go on. Of the entry that
    /// `behind` names, its first lines are through.
    pub(crate) async fn stretch(
        &self,
        seek: Seek,
        behind: Option<Resume>,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<(Vec<u8>, Option<Seek>), ReadError> {
        let chunk = self.piece(Which::All, seek, DOWNLOAD_PIECE).await?;
        let mut lines = Vec::new();
        for entry in &chunk.entries {
            let through = behind.filter(|behind| behind.position == entry.position.0).map_or(0, |behind| behind.lines);
            for line in entry.lines().skip(through) {
                // A line that cannot be read is damage, and leaves too: whoever verifies the download must see it.
                let wanted = serde_json::from_slice::<Times>(line).map_or(true, |times| {
                    let inside = from.is_none_or(|from| times.recorded_at >= from)
                        && to.is_none_or(|to| times.recorded_at <= to);
                    inside && self.shows(times.recorded_at, times.expires_at)
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

    /// Where a stretch begins.
    pub(crate) fn begin(&self, from: Option<Timestamp>) -> Seek {
        let from = from.unwrap_or(self.horizon).max(self.horizon);
        Seek::Time(from.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Walks the chain.
    pub(crate) async fn verify(&self, asked: Asked, keys: Vec<PublicKey>) -> Result<Report, ReadError> {
        let Asked { from, to, kept, signed } = asked;
        let marks = self.marks(signed).await?;
        let window = Window { from, to, now: self.now, horizon: self.horizon, kept, signed };
        let mut walk = Walk::new(window, keys, marks.iter().flat_map(Entry::lines)).of(self.account);
        let mut seek = self.begin(from);
        let mut rejected = 0;
        loop {
            let chunk = self.piece(Which::All, seek, PIECE).await?;
            rejected += chunk.rejected;
            let last = chunk.entries.last();
            let past = last.is_some_and(|last| to.is_some_and(|to| is_long_after(last.stored_at, to)));
            for (index, line) in chunk.entries.iter().flat_map(Entry::lines).enumerate() {
                if index % LINES_A_TURN == 0 {
                    yield_now().await;
                }
                walk.see(line);
            }
            match following(&chunk).filter(|_| !past) {
                Some(next) => seek = next,
                None => return Ok(Report { rejected, ..walk.finish() }),
            }
        }
    }

    /// All marks. What the keystore signed a moment ago may not be stored yet, and is waited for.
    async fn marks(&self, signed: Option<MarkRef>) -> Result<Vec<Entry>, ReadError> {
        let (mut marks, mut seek) = (Vec::<Entry>::new(), Seek::Start);
        let (mut read, until) = (0, Instant::now() + MARK_APPEND_TIMEOUT);
        loop {
            let chunk = self.piece(Which::Only(Kind::Mark), seek, PIECE).await?;
            let more = chunk.more;
            marks.extend(chunk.entries);
            seek = marks.last().map_or(Seek::Start, |last| Seek::After(last.position));
            if more {
                continue;
            }
            let is_there = signed.is_none_or(|signed| {
                marks.iter().skip(read).flat_map(Entry::lines).any(|line| LineHash::of(line) == signed.hash)
            });
            if is_there || Instant::now() >= until {
                return Ok(marks);
            }
            read = marks.len();
            sleep(MARK_POLL_INTERVAL).await;
        }
    }

    async fn piece_at(&self, place: Place, bytes: usize) -> Result<Chunk, ReadError> {
        let until = Instant::now() + PIECE_WITHIN;
        match place {
            Place::Forth(seek) => self.log.read(self.account, Which::Only(Kind::Decisions), seek, bytes, until).await,
            Place::Back(seek) => self.log.read_back(self.account, Kind::Decisions, seek, bytes, until).await,
        }
    }

    async fn piece(&self, which: Which, seek: Seek, bytes: usize) -> Result<Chunk, ReadError> {
        self.log.read(self.account, which, seek, bytes, Instant::now() + PIECE_WITHIN).await
    }

    fn shows(&self, recorded_at: Timestamp, expires_at: i64) -> bool {
        expires_at > self.now.as_second() && recorded_at >= self.horizon
    }
}

/// As runs themselves are told apart.
fn same_run(one: &str, other: &str) -> bool {
    let canonical = |text: &str| RunId::parse(text).map(|run| run.canonical());
    one == other || canonical(one).is_ok_and(|one| canonical(other).is_ok_and(|other| one == other))
}

/// By what a decision is found.
#[derive(Deserialize)]
struct Named {
    request_id: RequestId,
    recorded_at: Timestamp,
    expires_at: i64,
}

/// What every line has.
#[derive(Deserialize)]
struct Times {
    recorded_at: Timestamp,
    expires_at: i64,
}

fn following(chunk: &Chunk) -> Option<Seek> {
    chunk.entries.last().filter(|_| chunk.more).map(|last| Seek::After(last.position))
}

/// So late that nothing recorded by then can still follow.
fn is_long_after(stored_at: Timestamp, to: Timestamp) -> bool {
    to.checked_add(FAR.after).is_ok_and(|end| stored_at > end)
}

fn contains(line: &[u8], wanted: &[u8]) -> bool {
    match (std::str::from_utf8(line), std::str::from_utf8(wanted)) {
        (Ok(line), Ok(wanted)) => line.contains(wanted),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
