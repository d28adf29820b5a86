//! Delivers one endpoint's events: reads, sends, settles, keeps the cursor.
//!
//! A courier works only while it holds the endpoint's cursor in the ledger; of many workers one does, and another takes over when it
//! stops saying so. Owns the order: what was settled is stored before more than a bounded stretch is read behind it. Refuses to know
//! other endpoints: a slow receiver delays its own events and nobody else's.
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

use crate::cursor::{Cursor, Holder};
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
/// While events flow, the cursor is stored this often: what was delivered since is sent again after a crash.
const STORE_EVERY: Duration = Duration::from_millis(250);
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
    bodies: HashMap<u64, Bytes>,
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

impl Held {
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
        self.launch(held, &endpoint).await;
        let idle = held.flying.is_empty();
        if held.stored_at.elapsed() >= RENEW_AFTER
            || (held.changed && (idle || held.stored_at.elapsed() >= STORE_EVERY))
        {
            match self.store(held, true).await {
                Step::GoOn => {}
                lost => return lost,
            }
        }
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
        due.min(paced).min(store.saturating_sub(held.stored_at.elapsed())).min(LOOK_EVERY).max(Duration::from_millis(1))
    }

    /// Sends what is due, as far as concurrency and the rate limit allow.
    async fn launch(&mut self, held: &mut Held, endpoint: &Endpoint) {
        let most = if held.cursor.is_failing() { CONCURRENCY_FAILING } else { CONCURRENCY };
        let room = most.saturating_sub(held.aloft.len());
        let due_at = self.shared.clock.now();
        let due = held.cursor.due(due_at).filter(|open| !held.aloft.contains(&open.sequence));
        let due: Vec<_> = due.take(room).cloned().collect();
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
            if !held.bodies.contains_key(&open.sequence)
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
                let answer = post::post(&shared, &webhook, &open.event, Timestamp::now(), body).await;
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
        let ledger = &self.shared.backplane.ledger;
        let put = ledger.put(&key(&id), value.into(), held.revision, Some(CURSOR_LIVES), Shared::soon()).await;
        match put {
            Ok(revision) => {
                (held.revision, held.changed, held.stored_at) = (Some(revision), false, began);
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
}
