//! Delivers one endpoint's events: reads, sends, settles, keeps the cursor.
//!
//! A courier works only while it holds the endpoint's cursor in the ledger; of many workers one does, and another takes over when it
//! stops saying so. Owns the order: an event's number is stored before the event is sent. Refuses to know other endpoints: a slow
//! receiver delays its own events and nobody else's.
//! INVARIANT: only events of the stored cursor are sent, so whoever takes over knows every number that a receiver has seen.
//! INVARIANT: nothing is sent for long without the cursor: one that cannot be stored is given up before its hold ends.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{PutError, Revision};
use stage0_contract::{Endpoint, WebhookId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cursor::{Cursor, Holder, Open};
use crate::lag::{Seat, Standing};
use crate::metrics;
use crate::post;
use crate::shared::Shared;

mod landing;
mod reading;

use landing::Flight;

/// How long a hold lasts unless it is renewed; by then another worker may take over.
const HOLD: Duration = Duration::from_secs(10);
/// A hold that ends later was made by a clock that is ahead.
const MAX_HOLD_LEFT: Duration = Duration::from_secs(60);
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// Without a renewal for so long nothing more is sent: the clock of another worker may be ahead.
const TRUST_HOLD: Duration = Duration::from_secs(7);
/// Requests of one endpoint that are on their way at a time.
const CONCURRENCY: usize = 16;
/// Of one that fails: a receiver that hangs, or a name that nobody answers for, holds few of its account's places.
const CONCURRENCY_FAILING: usize = 2;
/// The cursor is stored this often when deliveries were settled: what was settled since is sent again after a crash.
const STORE_EVERY: Duration = Duration::from_millis(250);
/// Minimum between two stores that a few new numbers cause, for each 64 KiB of the cursor: a trickle of events is
/// numbered in groups. The first event after a pause is numbered at once.
const MIN_NUMBER_INTERVAL: Duration = Duration::from_millis(25);
/// So many new numbers are stored at once: a backlog never waits.
const MAX_UNSTORED_NUMBERS: u64 = 64;
/// A line that was read longer ago is read again before it is sent: it may have been deleted meanwhile.
const BODY_TTL: Duration = Duration::from_secs(1);
/// Looks for events without having been told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two tries of something of ours that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long what is on its way may take once the courier is told to stop.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
/// Of cursors, for endpoints that were removed: long after the last of their events.
const CURSOR_LIVES: Duration = Duration::from_secs(400 * 86_400);

/// One endpoint's deliverer in one worker.
pub(crate) struct Courier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) endpoint: watch::Receiver<Arc<Endpoint>>,
    /// There may be something new.
    pub(crate) wake: Arc<Notify>,
    /// A cursor that is held for longer than anybody may hold it, and since when it is seen so.
    pub(crate) overlong: Option<(Revision, Instant)>,
}

/// The cursor while it is held, and what is going on behind it.
struct Held {
    cursor: Cursor,
    revision: Option<Revision>,
    /// Bodies of what was just read, for the first attempt.
    bodies: HashMap<u64, Body>,
    /// The first number that the stored cursor has not given yet: no event of this number or a higher one is sent.
    unstored_from: u64,
    /// Size of the stored cursor.
    stored_bytes: usize,
    flying: JoinSet<Flight>,
    aloft: HashSet<u64>,
    /// Nothing more was in the log when it was looked at last.
    caught_up: bool,
    /// Whose turn it is where both the log and a replay have something.
    replay_next: bool,
    changed: bool,
    stored_at: Instant,
    looked_at: Instant,
    /// Before then the rate limit lets nothing go.
    paced_until: Instant,
    /// The rate limit holds something back that is due.
    held_back: bool,
    /// Since then the log cannot be read: what else is due is not known.
    unread_since: Option<Timestamp>,
    seat: Seat,
}

/// What is sent for an event, and when its line was read.
struct Body {
    bytes: Bytes,
    read_at: Instant,
}

impl Held {
    /// When numbers that were given are to be stored; None when all are.
    fn number_in(&self) -> Option<Duration> {
        let unstored = self.cursor.next_sequence().saturating_sub(self.unstored_from);
        (unstored > 0).then(|| number_in(unstored, self.stored_bytes, self.stored_at.elapsed()))
    }

    fn standing(&self) -> Standing {
        let known = self.cursor.standing();
        let first = |known: Option<Timestamp>| known.into_iter().chain(self.unread_since).min();
        Standing { oldest: first(known.oldest), untried: first(known.untried) }
    }
}

/// What the courier does next.
enum Step {
    GoOn,
    /// Somebody else holds the cursor now, or may.
    Lost,
    /// The endpoint gets nothing any more.
    Disabled,
}

impl Courier {
    /// Until stopped, or until the endpoint is disabled. What was begun is ended, never dropped half way: a cursor whose storing was
    /// cut off has a revision that nobody knows, and could not be given back.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut held = match self.hold().await {
                Ok(held) => held,
                Err(wait) => match stop.run_until_cancelled(tokio::time::sleep(wait)).await {
                    Some(()) => continue,
                    None => return,
                },
            };
            loop {
                if stop.is_cancelled() {
                    return self.finish(held).await;
                }
                match self.step(&mut held, &stop).await {
                    Step::GoOn => {}
                    Step::Lost => break,
                    Step::Disabled => return self.finish(held).await,
                }
            }
        }
    }

    /// Takes the cursor, or says when to ask again.
    async fn hold(&mut self) -> Result<Held, Duration> {
        let endpoint = self.endpoint.borrow().clone();
        let key = key(&endpoint.webhook.id);
        let found = self.shared.backplane.ledger.get(&key, Shared::soon()).await;
        let found = found.map_err(|error| self.pause("cursor cannot be read", &error))?;
        let (revision, mut cursor) = match found {
            None => (None, Cursor::default()),
            Some(record) => {
                let cursor = serde_json::from_slice(&record.value);
                (Some(record.revision), cursor.map_err(|error| self.pause("cursor cannot be understood", &error))?)
            }
        };
        let now = Timestamp::now();
        if let Some(holder) = cursor.holder.filter(|holder| holder.worker != self.shared.worker && holder.until > now) {
            let left = Duration::try_from(holder.until.duration_since(now)).unwrap_or(PAUSE);
            if left <= MAX_HOLD_LEFT || !self.is_given_up(revision) {
                return Err(left.min(HOLD) + PAUSE.mul_f64(random()));
            }
        }
        self.overlong = None;
        cursor.enabled_again();
        cursor.forget_pause(self.shared.clock.now());
        let now = Instant::now();
        let mut held = Held {
            cursor,
            revision,
            bodies: HashMap::new(),
            unstored_from: 0,
            stored_bytes: 0,
            flying: JoinSet::new(),
            aloft: HashSet::new(),
            caught_up: false,
            replay_next: false,
            changed: true,
            stored_at: now,
            looked_at: now.checked_sub(LOOK_EVERY).unwrap_or(now),
            paced_until: now,
            held_back: false,
            unread_since: None,
            seat: self.shared.lag.sit(),
        };
        match self.store(&mut held, true).await {
            Step::GoOn => {
                tracing::info!(webhook = %endpoint.webhook.id, account = %endpoint.webhook.account, "endpoint is served by this worker");
                Ok(held)
            }
            Step::Lost | Step::Disabled => Err(PAUSE.mul_f64(1.0 + random())),
        }
    }

    /// Whether a hold that a wrong clock made is renewed no more: its cursor did not change for as long as a hold
    /// lasts.
    fn is_given_up(&mut self, revision: Option<Revision>) -> bool {
        let Some(revision) = revision else { return true };
        match self.overlong {
            Some((seen, since)) if seen == revision => since.elapsed() >= HOLD,
            Some(_) | None => {
                self.overlong = Some((revision, Instant::now()));
                false
            }
        }
    }

    /// Reads, sends what is due, stores when it is time, then waits for the next thing to happen.
    async fn step(&mut self, held: &mut Held, stop: &CancellationToken) -> Step {
        let endpoint = self.endpoint.borrow_and_update().clone();
        if held.stored_at.elapsed() >= TRUST_HOLD {
            tracing::warn!(webhook = %endpoint.webhook.id, "cursor could not be stored; the endpoint is given up for a moment");
            return Step::Lost;
        }
        if held.looked_at.elapsed() >= LOOK_EVERY {
            (held.caught_up, held.looked_at) = (false, Instant::now());
            match self.take_replays(held).await {
                Step::GoOn => {}
                lost => return lost,
            }
        }
        if !held.caught_up && held.cursor.is_hungry() {
            self.fill(held, &endpoint).await;
        }
        let since_stored = held.stored_at.elapsed();
        if since_stored >= RENEW_AFTER
            || (held.changed && since_stored >= STORE_EVERY)
            || held.number_in() == Some(Duration::ZERO)
        {
            match self.store(held, true).await {
                Step::GoOn => {}
                lost => return lost,
            }
        }
        self.launch(held, &endpoint).await;
        let idle = held.flying.is_empty();
        if !held.caught_up && held.cursor.is_hungry() && held.aloft.len() < CONCURRENCY {
            return Step::GoOn;
        }
        held.seat.say(held.standing());
        let wait = self.wait(held);
        tokio::select! {
            Some(done) = held.flying.join_next(), if !idle => match done {
                Ok(flight) => self.land(held, &endpoint, flight).await,
                Err(error) => {
                    // Its event is still open; whoever holds the cursor next sends it again.
                    tracing::error!(webhook = %endpoint.webhook.id, %error, "attempt ended early");
                    Step::Lost
                }
            },
            () = self.wake.notified() => {
                held.caught_up = false;
                Step::GoOn
            }
            _ = self.endpoint.changed() => Step::GoOn,
            () = stop.cancelled() => Step::GoOn,
            () = tokio::time::sleep(wait) => Step::GoOn,
        }
    }

    /// Until something is due by the clock.
    fn wait(&self, held: &Held) -> Duration {
        let now = self.shared.clock.now();
        let due = held
            .cursor
            .next_due(now)
            .map_or(LOOK_EVERY, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let paced = pace(held.held_back, held.paced_until, Instant::now());
        let store = if held.changed { STORE_EVERY } else { RENEW_AFTER };
        let number = held.number_in().unwrap_or(LOOK_EVERY);
        let store = store.saturating_sub(held.stored_at.elapsed()).min(number);
        due.min(paced).min(store).min(LOOK_EVERY).max(Duration::from_millis(1))
    }

    /// Sends what is due, as far as concurrency and the rate limit allow.
    async fn launch(&mut self, held: &mut Held, endpoint: &Endpoint) {
        let most = if held.cursor.is_failing() { CONCURRENCY_FAILING } else { CONCURRENCY };
        let room = most.saturating_sub(held.aloft.len());
        let due_at = self.shared.clock.now();
        let may_go = |open: &&Open| open.sequence < held.unstored_from && !held.aloft.contains(&open.sequence);
        let due: Vec<_> = held.cursor.due(due_at).filter(may_go).take(room).cloned().collect();
        held.held_back = false;
        for open in due {
            if let Some(rate) = endpoint.webhook.rate_limit {
                let now = Instant::now();
                held.held_back = held.paced_until > now;
                if held.held_back {
                    return;
                }
                held.paced_until = now + Duration::from_secs(1) / rate.max(1);
            }
            let read_at = held.bodies.get(&open.sequence).map(|body| body.read_at);
            if read_at.is_none_or(|at| at.elapsed() >= BODY_TTL)
                && let Err(error) = self.read_again(held, endpoint, &open, due_at).await
            {
                self.pause("log cannot be read", &error);
                return;
            }
            let Some(body) = held.bodies.remove(&open.sequence) else {
                metrics::expired();
                tracing::info!(request_id = open.request_id(), webhook = %endpoint.webhook.id, event = open.event, "event is gone from the log and is not delivered");
                held.cursor.gone(open.sequence);
                held.changed = true;
                continue;
            };
            held.aloft.insert(open.sequence);
            let (shared, webhook) = (Arc::clone(&self.shared), endpoint.clone());
            held.flying.spawn(async move {
                let began = Instant::now();
                let answer = post::post(&shared, &webhook, &open.event, Timestamp::now(), body.bytes).await;
                Flight { open, at: shared.clock.now(), answer, took: began.elapsed() }
            });
        }
    }

    /// Stores the cursor; `keep` says whether this worker goes on.
    async fn store(&self, held: &mut Held, keep: bool) -> Step {
        let id = self.endpoint.borrow().webhook.id.clone();
        let began = Instant::now();
        let until = Timestamp::now().checked_add(SignedDuration::try_from(HOLD).unwrap_or_default());
        let holder = until.ok().map(|until| Holder { worker: self.shared.worker, until });
        held.cursor.holder = holder.filter(|_| keep);
        let value = match serde_json::to_vec(&held.cursor) {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(webhook = %id, %error, "cursor cannot be written");
                return Step::Lost;
            }
        };
        let (unstored_from, stored_bytes) = (held.cursor.next_sequence(), value.len());
        let ledger = &self.shared.backplane.ledger;
        let put = ledger.put(&key(&id), value.into(), held.revision, Some(CURSOR_LIVES), Shared::soon()).await;
        match put {
            Ok(revision) => {
                (held.revision, held.changed, held.stored_at) = (Some(revision), false, began);
                (held.unstored_from, held.stored_bytes) = (unstored_from, stored_bytes);
                Step::GoOn
            }
            Err(PutError::Conflict) => {
                tracing::info!(webhook = %id, "another worker took the endpoint over");
                Step::Lost
            }
            Err(error @ PutError::Failed(_)) => {
                // It may have been stored under a revision that we do not know: only a new look tells.
                tracing::warn!(webhook = %id, %error, "cursor could not be stored");
                tokio::time::sleep(PAUSE).await;
                Step::Lost
            }
        }
    }

    /// Lets what is on its way land, stores the cursor and lets go of it.
    async fn finish(mut self, mut held: Held) {
        let landed = async {
            while let Some(done) = held.flying.join_next().await {
                if let Ok(flight) = done {
                    let endpoint = self.endpoint.borrow().clone();
                    // Disabled or not, this courier ends.
                    let _ = self.land(&mut held, &endpoint, flight).await;
                }
            }
        };
        if timeout(FINISH_WITHIN, landed).await.is_err() {
            tracing::info!("attempts are given up and made again by whoever serves the endpoint next");
        }
        // A hold that is not given back ends by itself.
        if matches!(self.store(&mut held, false).await, Step::GoOn) {
            tracing::info!(webhook = %self.endpoint.borrow().webhook.id, "endpoint is free for another worker");
        }
    }

    fn pause(&self, what: &'static str, error: &(dyn std::error::Error + 'static)) -> Duration {
        tracing::warn!(webhook = %self.endpoint.borrow().webhook.id, error, "{what}");
        PAUSE.mul_f64(1.0 + random())
    }
}

/// Where an endpoint's cursor stands in the ledger.
pub(crate) fn key(id: &WebhookId) -> String {
    format!("cursor.{id}")
}

/// How long the rate limit has the courier wait: not at all once the moment has passed for what it holds back.
fn pace(held_back: bool, until: Instant, now: Instant) -> Duration {
    if held_back { until.saturating_duration_since(now) } else { LOOK_EVERY }
}

/// How long new numbers wait until they are stored: many do not, and a large cursor is stored less often for a few.
fn number_in(unstored: u64, stored_bytes: usize, since_stored: Duration) -> Duration {
    if unstored >= MAX_UNSTORED_NUMBERS {
        return Duration::ZERO;
    }
    let pieces = u32::try_from(stored_bytes >> 16).unwrap_or(u32::MAX).saturating_add(1);
    MIN_NUMBER_INTERVAL.saturating_mul(pieces).min(STORE_EVERY).saturating_sub(since_stored)
}

/// Between 0 and 1; without randomness, the middle.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}

/// A name for a worker or a replay.
pub(crate) fn new_id() -> Uuid {
    Uuid::now_v7()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen: storing the cursor took longer than the pace, and each event then waited for the next look.
    #[test]
    fn what_a_rate_limit_held_back_goes_as_soon_as_it_may() {
        let now = Instant::now();
        let later = now + Duration::from_millis(10);
        assert_eq!(pace(true, later, now), Duration::from_millis(10));
        assert_eq!(pace(true, now, later), Duration::ZERO);
        assert_eq!(pace(false, now, later), LOOK_EVERY);
    }

    #[test]
    fn many_numbers_are_stored_at_once_and_a_trickle_in_groups() {
        let ms = Duration::from_millis;
        assert_eq!(number_in(MAX_UNSTORED_NUMBERS, 1 << 20, ms(0)), ms(0), "a backlog");
        assert_eq!(number_in(1, 4_000, ms(300)), ms(0), "the first after a pause");
        assert_eq!(number_in(1, 4_000, ms(5)), ms(20));
        assert_eq!(number_in(1, 130_000, ms(5)), ms(45), "a cursor of two pieces");
        assert_eq!(number_in(MAX_UNSTORED_NUMBERS - 1, usize::MAX, ms(5)), STORE_EVERY - ms(5));
    }
}
