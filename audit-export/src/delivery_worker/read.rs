//! Reads events from the log into the cursor: new ones, replayed ones, and again those that are retried.
//!
//! Lines that expired or are past the account's retention are skipped.

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{Chunk, Entry, EntryFilter, Position, ReadError, Seek};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Body, DeliveryWorker, Ended, Lease};
use crate::cursor::{LogOffset, OpenEvent, Replay};
use crate::event::Event;
use crate::replays;
use crate::send::DeliveryEndpoint;
use crate::shared::Shared;

const READ_CHUNK_BYTES: usize = 512 * 1024;
/// The clocks of writers and of the store differ by at most this much.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(120);

enum Wanted {
    Skip,
    Live,
    /// It was due once before, so it does not count as behind.
    Replayed,
}

struct ReadChunk {
    chunk: Chunk,
    read_at: Instant,
    /// Lines that expire by this time are skipped.
    now: Timestamp,
}

impl DeliveryWorker {
    /// Reads one chunk, in turn from the log and from the first replay if there is one.
    pub(super) async fn read_events(&self, lease: &mut Lease, endpoint: &DeliveryEndpoint) {
        let replay = lease.cursor.replays.front().cloned().filter(|_| lease.replay_next);
        lease.replay_next = !lease.replay_next && !lease.cursor.replays.is_empty();
        let read = match &replay {
            Some(replay) => self.read_replay(lease, endpoint, replay).await,
            None => self.read_live(lease, endpoint).await,
        };
        match read {
            // A replay keeps the worker reading until its end.
            Ok(more) => {
                lease.caught_up = !more && lease.cursor.replays.is_empty();
                lease.unread_since = None;
            }
            Err(error) => {
                lease.caught_up = true;
                lease.unread_since.get_or_insert_with(Timestamp::now);
                self.log_failure("log cannot be read", &error);
            }
        }
    }

    /// Returns whether the log has more.
    async fn read_live(&self, lease: &mut Lease, endpoint: &DeliveryEndpoint) -> Result<bool, ReadError> {
        // A new endpoint starts with what is recorded from its creation on.
        let created_at = endpoint.webhook.created_at;
        let wanted = |at| if at >= created_at { Wanted::Live } else { Wanted::Skip };
        let read = self.read_chunk(endpoint, seek(lease.cursor.offset, created_at)).await?;
        let (offset, more) = lease.add_events(endpoint, &read, lease.cursor.offset, wanted);
        lease.changed |= offset != lease.cursor.offset;
        lease.cursor.offset = offset;
        Ok(more)
    }

    async fn read_replay(
        &self,
        lease: &mut Lease,
        endpoint: &DeliveryEndpoint,
        replay: &Replay,
    ) -> Result<bool, ReadError> {
        let begin = replay.from.checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH);
        let read = self.read_chunk(endpoint, seek(replay.offset, begin)).await?;
        let wanted = |at| if at >= replay.from && at < replay.to { Wanted::Replayed } else { Wanted::Skip };
        let (offset, more) = lease.add_events(endpoint, &read, replay.offset, wanted);
        let is_past = |last: &Entry| replay.to.checked_add(MAX_CLOCK_SKEW).is_ok_and(|end| last.stored_at > end);
        lease.changed = true;
        if !more || read.chunk.entries.last().is_some_and(is_past) {
            lease.cursor.replays.pop_front();
        } else if let Some(first) = lease.cursor.replays.front_mut() {
            first.offset = offset;
        }
        Ok(true)
    }

    /// Reads the bodies of the due events in the event's log entry; one that has none afterwards is gone from the log.
    /// `now` is the time at which the caller found them due: by a clock that was set back since, they would be dropped.
    pub(super) async fn read_again(
        &self,
        lease: &mut Lease,
        endpoint: &DeliveryEndpoint,
        event: &OpenEvent,
        now: Timestamp,
    ) -> Result<(), ReadError> {
        // The old body must not be sent any more.
        lease.bodies.remove(&event.sequence);
        let read_at = Instant::now();
        let position = event.at.position;
        let (log, account) = (&self.shared.backplane.log, &endpoint.webhook.account);
        let seek = Seek::After(Position(position.saturating_sub(1)));
        let chunk = log.read(account, EntryFilter::All, seek, 1, Shared::store_deadline()).await?;
        let Some(entry) = chunk.entries.first().filter(|entry| entry.position.0 == position) else {
            return Ok(());
        };
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
        Ok(())
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
        lease.caught_up = false;
        self.renew(lease).await?;
        if let Err(error) = replays::remove(state_store, &id, &ids).await {
            self.log_failure("replays cannot be removed", &error);
        }
        Ok(())
    }

    async fn read_chunk(&self, endpoint: &DeliveryEndpoint, seek: Seek) -> Result<ReadChunk, ReadError> {
        let (read_at, account) = (Instant::now(), &endpoint.webhook.account);
        let log = &self.shared.backplane.log;
        let chunk = log.read(account, EntryFilter::All, seek, READ_CHUNK_BYTES, Shared::store_deadline()).await?;
        Ok(ReadChunk { chunk, read_at, now: self.shared.clock.now() })
    }
}

impl Lease {
    /// Returns the offset to go on from, and whether there is more to read.
    fn add_events(
        &mut self,
        endpoint: &DeliveryEndpoint,
        read: &ReadChunk,
        mut offset: Option<LogOffset>,
        wanted: impl Fn(Timestamp) -> Wanted,
    ) -> (Option<LogOffset>, bool) {
        let horizon = retention_horizon(endpoint, read.now);
        for entry in &read.chunk.entries {
            let position = entry.position.0;
            let done = offset.filter(|offset| offset.position == position).map_or(0, |offset| offset.lines);
            for (index, line) in entry.lines().enumerate().skip(done) {
                if self.cursor.room() == 0 {
                    return (offset, true);
                }
                offset = Some(LogOffset { position, lines: index + 1 });
                let Some(event) = Event::of(line, read.now, horizon) else {
                    tracing::debug!(position, "line is expired or not an event, and is skipped");
                    continue;
                };
                let behind_since = match wanted(event.recorded_at) {
                    Wanted::Live => Some(event.recorded_at),
                    Wanted::Replayed => None,
                    Wanted::Skip => continue,
                };
                if event.passes(&endpoint.webhook.filters) {
                    let at = LogOffset { position, lines: index };
                    let sequence = self.cursor.add_event(event.id.clone(), at, behind_since);
                    self.bodies.insert(sequence, Body { bytes: event.body(sequence), read_at: read.read_at });
                }
            }
        }
        (offset, read.chunk.more)
    }
}

fn seek(offset: Option<LogOffset>, begin: Timestamp) -> Seek {
    match offset {
        // The entry itself is read again, as only some of its lines may have been read.
        Some(offset) => Seek::After(Position(offset.position.saturating_sub(1))),
        None => Seek::Time(begin.checked_sub(MAX_CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

fn retention_horizon(endpoint: &DeliveryEndpoint, now: Timestamp) -> Timestamp {
    let retention = SignedDuration::from_hours(24 * i64::from(endpoint.retention_days));
    now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH)
}
