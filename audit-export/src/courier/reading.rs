//! From the log into the cursor: new events, replayed ones, and those that are tried again.
//!
//! Owns the seeking. What may not be shown any more is passed over. A piece of log that cannot be read is read again later.

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{Chunk, Entry, Position, ReadError, Seek, Which};
use stage0_contract::Endpoint;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Body, Courier, Held, Step};
use crate::cursor::{Open, Place, Replay};
use crate::event::Event;
use crate::replays;
use crate::shared::Shared;

/// One question to the log.
const PIECE: usize = 512 * 1024;
/// Clocks of writers and of the store differ by no more.
const SKEW: SignedDuration = SignedDuration::from_secs(120);

impl Courier {
    /// Reads one piece of the log, or of a replay.
    pub(super) async fn fill(&self, held: &mut Held, endpoint: &Endpoint) {
        let replay = held.cursor.replays.front().cloned().filter(|_| held.replay_next);
        held.replay_next = !held.replay_next && !held.cursor.replays.is_empty();
        let read = match &replay {
            Some(replay) => self.fill_replay(held, endpoint, replay).await,
            None => self.fill_live(held, endpoint).await,
        };
        match read {
            // A replay that has more keeps the courier reading.
            Ok(more) => {
                held.caught_up = !more && held.cursor.replays.is_empty();
                held.unread_since = None;
            }
            Err(error) => {
                held.caught_up = true;
                held.unread_since.get_or_insert_with(Timestamp::now);
                self.pause("log cannot be read", &error);
            }
        }
    }

    async fn fill_live(&self, held: &mut Held, endpoint: &Endpoint) -> Result<bool, ReadError> {
        // A new endpoint begins with what is recorded from its creation on.
        let read_at = Instant::now();
        let chunk = self.piece(endpoint, seek(held.cursor.place, endpoint.webhook.created_at)).await?;
        let since = |at| (at >= endpoint.webhook.created_at).then_some(Some(at));
        let piece = Piece { chunk: &chunk, read_at, now: self.shared.clock.now() };
        let (place, more) = take(held, endpoint, &piece, held.cursor.place, since);
        held.changed |= place != held.cursor.place;
        held.cursor.place = place;
        Ok(more)
    }

    async fn fill_replay(&self, held: &mut Held, endpoint: &Endpoint, replay: &Replay) -> Result<bool, ReadError> {
        let begin = replay.from.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH);
        let read_at = Instant::now();
        let chunk = self.piece(endpoint, seek(replay.place, begin)).await?;
        // It was due once before: it is not behind.
        let since = |at| (at >= replay.from && at < replay.to).then_some(None);
        let piece = Piece { chunk: &chunk, read_at, now: self.shared.clock.now() };
        let (place, more) = take(held, endpoint, &piece, replay.place, since);
        let past =
            chunk.entries.last().is_some_and(|last| replay.to.checked_add(SKEW).is_ok_and(|end| last.stored_at > end));
        held.changed = true;
        if !more || past {
            held.cursor.replays.pop_front();
        } else if let Some(first) = held.cursor.replays.front_mut() {
            first.place = place;
        }
        // The log itself has its turn next.
        Ok(true)
    }

    /// Reads the bodies of an event that is due at `now` and of the others of its entry that are; one that has none
    /// afterwards is gone. `now` is when the caller found it due: by a clock that went back since it is not, and would
    /// be dropped.
    pub(super) async fn read_again(
        &self,
        held: &mut Held,
        endpoint: &Endpoint,
        open: &Open,
        now: Timestamp,
    ) -> Result<(), ReadError> {
        // What it was before may not be sent any more.
        held.bodies.remove(&open.sequence);
        let read_at = Instant::now();
        let before = Position(open.at.position.saturating_sub(1));
        let (log, account) = (&self.shared.backplane.log, &endpoint.webhook.account);
        let chunk = log.read(account, Which::All, Seek::After(before), 1, Shared::soon()).await?;
        let Some(entry) = chunk.entries.first().filter(|entry| entry.position.0 == open.at.position) else {
            return Ok(());
        };
        let lines: Vec<_> = entry.lines().collect();
        let horizon = horizon(endpoint, now);
        let here = |other: &&Open| other.at.position == open.at.position && !held.aloft.contains(&other.sequence);
        for open in held.cursor.due(now).filter(here) {
            let event = lines.get(open.at.lines).and_then(|line| Event::of(line, now, horizon));
            // INVARIANT: another event's line is never sent under this number, whatever stands at its place by now.
            if let Some(event) = event.filter(|event| event.id == open.event) {
                let body = Body { bytes: event.body(open.sequence), read_at };
                held.bodies.insert(open.sequence, body);
            }
        }
        Ok(())
    }

    /// Takes in the replays that were asked for meanwhile: they leave the ledger only after the cursor that has them is stored.
    pub(super) async fn take_replays(&self, held: &mut Held) -> Step {
        let id = self.endpoint.borrow().webhook.id.clone();
        let ledger = &*self.shared.backplane.ledger;
        let asked = match replays::waiting(ledger, &id).await {
            Ok(asked) if asked.is_empty() => return Step::GoOn,
            Ok(asked) => asked,
            Err(error) => {
                self.pause("replays cannot be read", &error);
                return Step::GoOn;
            }
        };
        let ids: Vec<Uuid> = asked.iter().map(|replay| replay.id).collect();
        asked.into_iter().for_each(|replay| held.cursor.take_replay(replay));
        held.caught_up = false;
        let stored = self.store(held, true).await;
        if matches!(stored, Step::GoOn)
            && let Err(error) = replays::taken(ledger, &id, &ids).await
        {
            self.pause("replays cannot be removed", &error);
        }
        stored
    }

    async fn piece(&self, endpoint: &Endpoint, seek: Seek) -> Result<Chunk, ReadError> {
        self.shared.backplane.log.read(&endpoint.webhook.account, Which::All, seek, PIECE, Shared::soon()).await
    }
}

fn seek(place: Option<Place>, begin: Timestamp) -> Seek {
    match place {
        // The entry itself is read again when only some of its lines are through.
        Some(place) => Seek::After(Position(place.position.saturating_sub(1))),
        None => Seek::Time(begin.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

/// What one question to the log brought.
struct Piece<'a> {
    chunk: &'a Chunk,
    read_at: Instant,
    /// By which lines end.
    now: Timestamp,
}

/// Takes events from a piece while there is room, each with the time since when it is due, if `since` wants it at all;
/// where to go on, and whether there is more.
fn take(
    held: &mut Held,
    endpoint: &Endpoint,
    &Piece { chunk, read_at, now }: &Piece<'_>,
    mut place: Option<Place>,
    since: impl Fn(Timestamp) -> Option<Option<Timestamp>>,
) -> (Option<Place>, bool) {
    let horizon = horizon(endpoint, now);
    for entry in &chunk.entries {
        let through = place.filter(|place| place.position == entry.position.0).map_or(0, |place| place.lines);
        for (index, line) in entry.lines().enumerate().skip(through) {
            if held.cursor.room() == 0 {
                return (place, true);
            }
            let at = Place { position: entry.position.0, lines: index };
            place = Some(Place { lines: index + 1, ..at });
            let Some(event) = event(entry, line, now, horizon) else { continue };
            let wanted = since(event.recorded_at).filter(|_| event.passes(&endpoint.webhook.filters));
            if let Some(since) = wanted {
                let sequence = held.cursor.take(event.id.clone(), at, since);
                held.bodies.insert(sequence, Body { bytes: event.body(sequence), read_at });
            }
        }
    }
    (place, chunk.more)
}

fn event(entry: &Entry, line: &[u8], now: Timestamp, horizon: Timestamp) -> Option<Event> {
    let event = Event::of(line, now, horizon);
    if event.is_none() {
        tracing::debug!(position = entry.position.0, "line is past its end, or none of ours, and is passed over");
    }
    event
}

/// What was recorded before is past the account's retention.
fn horizon(endpoint: &Endpoint, now: Timestamp) -> Timestamp {
    let kept = SignedDuration::from_hours(24 * i64::from(endpoint.retention_days));
    now.checked_sub(kept).unwrap_or(Timestamp::UNIX_EPOCH)
}
