//! Pages of decisions. A page reads a bounded part of the log, and may be short for that reason.

use std::collections::HashMap;
use std::ops::Range;

use jiff::Timestamp;
use serde::Deserialize;
use stage0_backplane::{Cause, Chunk, Entry, EntryFilter, EntryKind, ReadError, Seek, SeekBack};
use stage0_contract::{
    DecisionOutcome, IssueCode, LineType, OutcomeFilter, RequestId, RunId, Verdict, is_same_environment,
};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::{CHUNK_BYTES, CHUNK_TIMEOUT, FAR, LINES_PER_YIELD, LogReader, MAX_CLOCK_SKEW, is_long_after};

const MAX_PAGE_SCAN_BYTES: usize = 16 << 20;
/// A page waits in memory for its client.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Cursors of early versions had no prefix and are not accepted any more.
const ASC_CURSOR_PREFIX: char = 't';
const DESC_CURSOR_PREFIX: char = 'n';

#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) environment: Option<String>,
    pub(crate) code: Option<IssueCode>,
    pub(crate) run_id: Option<String>,
    /// Of decisions whose outcomes are not known yet only those that can be shown ([`PageItems::with_outcomes`]).
    pub(crate) outcome: Option<OutcomeFilter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    #[default]
    Asc,
    Desc,
}

/// After which line a page begins. It depends on the account's own log only: a position in the store would disclose how
/// much all accounts write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(super) stored_at: Timestamp,
    /// How many lines of the account's entries of that time precede it, in the cursor's order.
    pub(super) lines: usize,
    pub(crate) order: Order,
}

/// A page's lines as they are in the log, joined into the content of a JSON array.
#[derive(Debug, Default)]
pub(crate) struct PageItems {
    pub(super) json: Vec<u8>,
    items: Vec<PageItem>,
}

/// One decision of a page.
#[derive(Debug)]
struct PageItem {
    /// Where its line is.
    line: Range<usize>,
    request_id: Option<RequestId>,
    is_allowed: bool,
    /// Where a page begins that follows it.
    next: Cursor,
}

#[derive(Deserialize)]
struct FilterFields<'l> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'l, str>,
    #[serde(borrow)]
    request_id: std::borrow::Cow<'l, str>,
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
}

impl Order {
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

impl LogReader {
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
            let chunk = match seek {
                PageSeek::Forward(seek) => {
                    self.chunk(EntryFilter::Only(EntryKind::Decisions), seek, CHUNK_BYTES).await?
                }
                PageSeek::Backward(seek) => {
                    let deadline = Instant::now() + CHUNK_TIMEOUT;
                    self.log.read_back(&self.account, EntryKind::Decisions, seek, CHUNK_BYTES, deadline).await?
                }
            };
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
}

impl PageItems {
    /// A line is a JSON object without a line feed, so it is used as it is.
    fn push(&mut self, line: &[u8], item: &PageItem) {
        if !self.items.is_empty() {
            self.json.push(b',');
        }
        let start = self.json.len();
        self.json.extend_from_slice(line);
        self.items.push(PageItem { line: start..self.json.len(), ..*item });
    }

    /// The decisions that can have an outcome.
    pub(crate) fn allowed(&self) -> Vec<RequestId> {
        self.items.iter().filter(|item| item.is_allowed).filter_map(|item| item.request_id).collect()
    }

    /// The first decisions, at most `limit`, that the filter shows, each with its outcome as its last member. Returns
    /// where the next page begins, if this one ends before its last decision.
    pub(crate) fn with_outcomes(
        &self,
        filter: OutcomeFilter,
        outcomes: &HashMap<RequestId, DecisionOutcome>,
        limit: usize,
    ) -> Result<(Self, Option<Cursor>), ReadError> {
        let mut shown = Self::default();
        for item in &self.items {
            let outcome = item.request_id.and_then(|id| outcomes.get(&id)).filter(|_| item.is_allowed);
            if !filter.shows(item.is_allowed, outcome.map(|outcome| outcome.status)) {
                continue;
            }
            let line = with_outcome(self.json.get(item.line.clone()).unwrap_or_default(), outcome);
            shown.push(&line.map_err(|error| ReadError(Cause::new(error)))?, item);
            if shown.items.len() == limit {
                return Ok((shown, Some(item.next)));
            }
        }
        Ok((shown, None))
    }

    /// The page as JSON, with the cursor of the next one.
    pub(crate) fn page(self, next_cursor: Option<&str>) -> Result<Vec<u8>, ReadError> {
        let next = serde_json::to_string(&next_cursor).map_err(|error| ReadError(Cause::new(error)))?;
        let mut page = self.json;
        page.splice(0..0, *b"{\"items\":[");
        page.extend_from_slice(b"],\"next_cursor\":");
        page.extend_from_slice(next.as_bytes());
        page.push(b'}');
        Ok(page)
    }
}

/// A record with what came of its action as its last member; null: nothing was reported.
pub(crate) fn with_outcome(line: &[u8], outcome: Option<&DecisionOutcome>) -> serde_json::Result<Vec<u8>> {
    let mut shown = line.strip_suffix(b"}").unwrap_or(line).to_vec();
    shown.extend_from_slice(b",\"outcome\":");
    serde_json::to_writer(&mut shown, &outcome)?;
    shown.push(b'}');
    Ok(shown)
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
            && (fields.verdict == Verdict::Allow || self.outcome.is_none_or(|outcome| outcome == OutcomeFilter::Any))
    }
}

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

struct PageBuilder {
    order: Order,
    limit: usize,
    items: PageItems,
    /// Bytes of the log that were read for it.
    bytes: usize,
    lines: usize,
    /// Where the next page begins: after the last line that was considered.
    next: Option<Cursor>,
    /// At the last line that was read, also if it was skipped.
    current: Cursor,
}

impl PageBuilder {
    fn new(order: Order, start: Option<Cursor>, limit: usize) -> Self {
        let current = Cursor { stored_at: Timestamp::MIN, lines: 0, order };
        Self { order, limit, items: PageItems::default(), bytes: 0, lines: 0, next: start, current }
    }

    fn is_full(&self) -> bool {
        self.items.items.len() == self.limit || self.items.json.len() >= MAX_PAGE_BYTES
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
            if fields.kind == LineType::Decision.as_str() && wanted(&fields) {
                let is_allowed = fields.verdict == Verdict::Allow;
                let item = PageItem {
                    line: 0..0,
                    request_id: RequestId::parse(&fields.request_id).ok(),
                    is_allowed,
                    next: current,
                };
                self.items.push(line, &item);
            }
            if self.is_full() {
                return;
            }
        }
    }
}

/// Whether two texts name the same run, by the rule that runs themselves use.
fn same_run(one: &str, other: &str) -> bool {
    let canonical = |text: &str| RunId::parse(text).map(|run| run.canonical()).ok();
    one == other || canonical(one).is_some_and(|one| canonical(other) == Some(one))
}
