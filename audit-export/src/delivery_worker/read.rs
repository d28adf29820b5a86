//! Reads events from the log into the cursor: new ones, replayed ones, and again those that are retried.
//!
//! The log is read in the background, while events of the stored cursor are sent. What one read brings is taken into
//! the cursor as it has room. Lines that expired or are past the account's retention are skipped.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{EntryFilter, Position, ReadError, Seek};
use tokio::time::Instant;
use uuid::Uuid;

use super::lease::MIN_NUMBERING_INTERVAL;
use super::{BODY_TTL, Body, DeliveryWorker, Ended, Lease};
use crate::cursor::{LogOffset, OpenEvent};
use crate::event::Event;
use crate::reads::{LogRead, ReadChunk, ReadEntry};
use crate::replays;
use crate::send::DeliveryEndpoint;
use crate::shared::Shared;

/// New lines are read in groups: their numbers are not stored more often either.
const NEWS_INTERVAL: Duration = MIN_NUMBERING_INTERVAL;
/// The clocks of writers and of the store differ by at most this much.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(120);

/// A replica of the log that is behind for longer is taken for one that will never have what is missing.
const MAX_REPLICA_LAG: Duration = Duration::from_secs(60);

/// What reading a line again has shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// It was read, or it is gone.
    Known,
    /// The replica that answered may lag.
    NotYet,
}

enum Wanted {
    Skip,
    Live,
    /// It was due once before, so it does not count as behind.
    Replayed,
}

/// How far the log is read ahead of the cursor. Nothing of it is stored: the next lease holder reads it again.
#[derive(Default)]
pub(super) struct Reading {
    running: Option<OwnRead>,
    /// Read, and not taken to the end.
    ahead: Option<Ahead>,
    /// The offset behind the last line of an entry, if that is known: the entry is not read again.
    entry_end: Option<LogOffset>,
    /// When the last read began; none if it found more than it could hold, or nothing was read yet.
    paced_from: Option<Instant>,
    pub(super) caught_up: bool,
    /// When it was last heard that something may have been recorded.
    news_at: Option<Instant>,
    /// Reads alternate between the log and a replay.
    replay_next: bool,
    /// The log cannot be read since this time, so older events may exist that are not in the cursor.
    pub(super) unread_since: Option<Timestamp>,
}

struct OwnRead {
    read: LogRead,
    /// None: it goes on where the log was read to.
    replay: Option<Uuid>,
}

struct Ahead {
    own: OwnRead,
    chunk: Arc<ReadChunk>,
}

impl Reading {
    pub(super) fn note_news(&mut self) {
        (self.caught_up, self.news_at) = (false, Some(Instant::now()));
    }

    /// What was read so long ago that it is read again does not stay in memory.
    pub(super) fn drop_stale(&mut self) {
        self.ahead.take_if(|ahead| ahead.is_stale());
    }

    /// How long the next read waits; none while one runs.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let passed = self.paced_from.map_or(NEWS_INTERVAL, |from| from.elapsed());
        self.running.is_none().then(|| NEWS_INTERVAL.saturating_sub(passed))
    }

    /// The outcome of the read that runs; pending while none does.
    pub(super) async fn outcome(&self) -> Result<Arc<ReadChunk>, ReadError> {
        match &self.running {
            Some(own) => own.read.outcome().await,
            None => pending().await,
        }
    }

    fn seek(&self, offset: Option<LogOffset>, begin: Timestamp) -> Seek {
        match offset {
            Some(offset) if self.entry_end == Some(offset) => Seek::After(Position(offset.position)),
            // The entry itself is read again, as only some of its lines may have been read.
            Some(offset) => Seek::After(Position(offset.position.saturating_sub(1))),
            None => Seek::Time(begin.checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH)),
        }
    }
}

impl Ahead {
    /// Its lines may have been deleted since.
    fn is_stale(&self) -> bool {
        self.own.read.began.elapsed() >= BODY_TTL
    }
}

impl DeliveryWorker {
    /// Takes into the cursor what was read, and begins the next read where there is room for more.
    pub(super) fn read_events(&self, lease: &mut Lease, endpoint: &DeliveryEndpoint) {
        while lease.wants_to_read() {
            match lease.reading.ahead.take().filter(|ahead| !ahead.is_stale()) {
                Some(ahead) => lease.take_events(endpoint, ahead, self.shared.clock.now()),
                None if lease.reading.due_in() == Some(Duration::ZERO) => self.begin_read(lease, endpoint),
                None => return,
            }
        }
    }

    /// Reads one chunk, in turn from the log and from the first replay if there is one.
    fn begin_read(&self, lease: &mut Lease, endpoint: &DeliveryEndpoint) {
        let replay = lease.cursor.replays.front().filter(|_| lease.reading.replay_next);
        let (offset, begin) = match replay {
            Some(replay) => (replay.offset, replay.from.checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH)),
            // A new endpoint starts with what is recorded from its creation on.
            None => (lease.cursor.offset, endpoint.webhook.created_at),
        };
        let (replay, seek) = (replay.map(|replay| replay.id), lease.reading.seek(offset, begin));
        let read = self.shared.reads.read(&self.shared.backplane.log, &endpoint.webhook.account, seek);
        lease.reading.replay_next = !lease.reading.replay_next && !lease.cursor.replays.is_empty();
        lease.reading.paced_from = Some(read.began);
        lease.reading.running = Some(OwnRead { read, replay });
    }

    pub(super) fn finish_read(&self, lease: &mut Lease, outcome: Result<Arc<ReadChunk>, ReadError>) {
        let own = lease.reading.running.take();
        match outcome {
            Ok(chunk) => {
                lease.reading.ahead = own.map(|own| Ahead { own, chunk });
                lease.reading.unread_since = None;
            }
            Err(error) => {
                lease.reading.caught_up = true;
                lease.reading.unread_since.get_or_insert_with(|| self.shared.clock.clocks().wall);
                self.log_failure("log cannot be read", &error);
            }
        }
    }

    /// Reads the bodies of the due events in the event's log entry; one that has none afterwards is gone from the log,
    /// unless the log may have it on another replica.
    /// `now` is the time at which the caller found them due: by a clock that was set back since, they would be dropped.
    pub(super) async fn read_again(
        &self,
        lease: &mut Lease,
        endpoint: &DeliveryEndpoint,
        event: &OpenEvent,
        now: Timestamp,
    ) -> Result<Line, ReadError> {
        // The old body must not be sent any more.
        lease.bodies.remove(&event.sequence);
        let read_at = Instant::now();
        let position = event.at.position;
        let (log, account) = (&self.shared.backplane.log, &endpoint.webhook.account);
        let seek = Seek::After(Position(position.saturating_sub(1)));
        let chunk = log.read(account, EntryFilter::All, seek, 1, Shared::store_deadline()).await?;
        let Some(entry) = chunk.entries.first() else {
            // Nothing newer either: the entry may only not be there yet. What is gone has a mark after it.
            let since = *lease.behind_since.get_or_insert(read_at);
            return Ok(if since.elapsed() < MAX_REPLICA_LAG { Line::NotYet } else { Line::Known });
        };
        lease.behind_since = None;
        if entry.position.0 != position {
            return Ok(Line::Known);
        }
        let lines: Vec<_> = entry.lines().collect();
        let horizon = retention_horizon(endpoint, now);
        let in_entry = |other: &&OpenEvent| other.at.position == position && !lease.in_flight.contains(&other.sequence);
        for open in lease.cursor.due(now).filter(in_entry) {
            let event = lines.get(open.at.lines).and_then(|line| Event::of(line, now, horizon));
            // INVARIANT: another event's line is never sent under this number, whatever is at its offset by now.
            if let Some(event) = event.filter(|event| event.id == open.event) {
                let body = Body { bytes: event.body(open.sequence), read_at };
                lease.bodies.insert(open.sequence, body);
            }
        }
        Ok(Line::Known)
    }

    /// Moves requested replays into the cursor. They are removed from the state store only after the cursor is stored.
    pub(super) async fn import_replays(&self, lease: &mut Lease) -> Result<(), Ended> {
        let id = self.endpoint.borrow().webhook.id.clone();
        let state_store = &*self.shared.backplane.state_store;
        let requested = match replays::requested(state_store, &id).await {
            Ok(requested) if requested.is_empty() => return Ok(()),
            Ok(requested) => requested,
            Err(error) => {
                self.log_failure("replays cannot be read", &error);
                return Ok(());
            }
        };
        let ids: Vec<Uuid> = requested.iter().map(|replay| replay.id).collect();
        requested.into_iter().for_each(|replay| lease.cursor.add_replay(replay));
        lease.reading.note_news();
        self.renew(lease).await?;
        if let Err(error) = replays::remove(state_store, &id, &ids).await {
            self.log_failure("replays cannot be removed", &error);
        }
        Ok(())
    }
}

impl Lease {
    /// Takes events into the cursor while there is room, and keeps the rest.
    fn take_events(&mut self, endpoint: &DeliveryEndpoint, ahead: Ahead, now: Timestamp) {
        let Ahead { own, chunk } = &ahead;
        let is_all_taken = match own.replay {
            None => {
                let created_at = endpoint.webhook.created_at;
                // Whichever is later: a gateway whose clock was set back says that what it records now is old.
                let wanted = |at: Timestamp, stored_at: Timestamp| {
                    if at.max(stored_at) >= created_at { Wanted::Live } else { Wanted::Skip }
                };
                let (offset, is_all_taken) = self.add_events(endpoint, &ahead, self.cursor.offset, now, wanted);
                self.changed |= offset != self.cursor.offset;
                self.cursor.offset = offset;
                is_all_taken
            }
            Some(id) => {
                let Some(replay) = self.cursor.replays.front().filter(|replay| replay.id == id).cloned() else {
                    return;
                };
                let wanted = |at, _| if at >= replay.from && at < replay.to { Wanted::Replayed } else { Wanted::Skip };
                let (offset, is_all_taken) = self.add_events(endpoint, &ahead, replay.offset, now, wanted);
                self.changed = true;
                let is_past =
                    |last: &ReadEntry| replay.to.checked_add(MAX_CLOCK_SKEW).is_ok_and(|end| last.stored_at > end);
                if is_all_taken && (!chunk.more || chunk.entries.last().is_some_and(is_past)) {
                    self.cursor.replays.pop_front();
                } else if let Some(first) = self.cursor.replays.front_mut() {
                    first.offset = offset;
                }
                is_all_taken
            }
        };
        if !is_all_taken {
            self.reading.ahead = Some(ahead);
            return;
        }
        if let Some(last) = chunk.entries.last() {
            self.reading.entry_end = Some(LogOffset { position: last.position, lines: last.lines.len() });
        }
        // A replay keeps the worker reading until its end.
        let is_at_end = own.replay.is_none() && !chunk.more && self.cursor.replays.is_empty();
        self.reading.caught_up = is_at_end && self.reading.news_at.is_none_or(|at| at < own.read.began);
        if !is_at_end {
            self.reading.paced_from = None;
        }
    }

    /// Returns the offset to go on from, and whether the chunk is all taken.
    fn add_events(
        &mut self,
        endpoint: &DeliveryEndpoint,
        ahead: &Ahead,
        mut offset: Option<LogOffset>,
        now: Timestamp,
        wanted: impl Fn(Timestamp, Timestamp) -> Wanted,
    ) -> (Option<LogOffset>, bool) {
        let (horizon, mut room) = (retention_horizon(endpoint, now), self.cursor.room());
        let first = offset.map_or(0, |offset| offset.position);
        for entry in ahead.chunk.entries.iter().skip_while(|entry| entry.position < first) {
            let position = entry.position;
            let done = offset.filter(|offset| offset.position == position).map_or(0, |offset| offset.lines);
            for (index, event) in entry.lines.iter().enumerate().skip(done) {
                if room == 0 {
                    return (offset, false);
                }
                offset = Some(LogOffset { position, lines: index + 1 });
                let Some(event) = event.as_ref().filter(|event| event.is_kept(now, horizon)) else {
                    tracing::debug!(position, "line is expired or not an event, and is skipped");
                    continue;
                };
                let behind_since = match wanted(event.recorded_at, entry.stored_at) {
                    Wanted::Live => Some(event.recorded_at),
                    Wanted::Replayed => None,
                    Wanted::Skip => continue,
                };
                if event.passes(&endpoint.webhook.filters) {
                    let at = LogOffset { position, lines: index };
                    let sequence = self.cursor.add_event(event.id.clone(), at, behind_since);
                    self.bodies.insert(sequence, Body { bytes: event.body(sequence), read_at: ahead.own.read.began });
                    room -= 1;
                }
            }
        }
        (offset, true)
    }
}

fn retention_horizon(endpoint: &DeliveryEndpoint, now: Timestamp) -> Timestamp {
    let retention = SignedDuration::from_hours(24 * i64::from(endpoint.retention_days));
    now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH)
}
