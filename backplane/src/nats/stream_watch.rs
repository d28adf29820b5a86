//! Is each stream still what it was at the start? Looked at again every few seconds, before something is stored and for
//! readiness.
//!
//! Owns what is known of a connection's streams. One asks for all who wait, and while a stream was ours at the last look
//! nobody waits for longer than one question.
//! INVARIANT: nothing is stored in a stream that was foreign when it was last looked at. That it cannot be looked at
//! right now, while it was ours before, changes nothing: the server that would store is the one that would answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::clock::boottime;

use super::jetstream::{JetError, info};
use super::link::Link;
use super::streams::{StreamName, StreamSpec};
use crate::MAX_MESSAGE_BYTES;

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// An administrator who sets something right should not have to wait.
const LOOK_INTERVAL_OF_TROUBLE: Duration = Duration::from_millis(500);
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Far beyond what a stream can ever hold.
pub(super) const MAX_PLACE: u64 = 1 << 62;

/// What is known of the streams.
#[derive(Debug, Default)]
pub(super) struct StreamWatch {
    known: Mutex<Vec<Known>>,
    used: Mutex<Vec<StreamName>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    stream: StreamName,
    /// By the clock that runs while the host sleeps.
    at: Duration,
    outcome: Result<(), JetError>,
}

impl StreamWatch {
    /// The streams that readiness is about.
    pub(super) fn use_these(&self, streams: Vec<StreamName>) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = streams;
    }

    pub(super) fn used(&self) -> Vec<StreamName> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether something may be stored in this stream.
    pub(super) async fn check(&self, link: &Link, stream: &StreamName, deadline: Instant) -> Result<(), JetError> {
        let was_ours = match self.known(stream) {
            Some((true, outcome)) => return outcome,
            Some((false, outcome)) => outcome.is_ok(),
            None => false,
        };
        let _turn = match self.asking.try_lock() {
            Ok(turn) => turn,
            // Somebody asks already.
            Err(_) if was_ours => return Ok(()),
            Err(_) => self.asking.lock().await,
        };
        if let Some((true, outcome)) = self.known(stream) {
            return outcome;
        }
        match timeout(LOOK_TIMEOUT, look(link, stream, deadline)).await {
            Ok(outcome @ (Ok(()) | Err(JetError::Foreign { .. } | JetError::Wrapped(_)))) => {
                self.learn(stream, outcome.clone());
                outcome
            }
            Ok(Err(_)) | Err(_) if was_ours => {
                self.learn(stream, Ok(()));
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(JetError::Overdue),
        }
    }

    /// Whether a stream is ours and has room, asked now.
    pub(super) async fn look_now(&self, link: &Link, stream: &StreamName, deadline: Instant) -> Result<(), JetError> {
        let found = info(link, stream, &Value::Null, deadline).await?;
        let outcome = judged(link, stream, &found);
        self.learn(stream, outcome.clone());
        outcome?;
        let number = |pointer| found.pointer(pointer).and_then(Value::as_i64);
        let (taken, most) = (number("/state/bytes").unwrap_or(0), number("/config/max_bytes").unwrap_or(-1));
        let needed = i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX).min(most / 20);
        if most > 0 && most.saturating_sub(taken) < needed {
            return Err(JetError::Full(stream.as_str().to_owned()));
        }
        Ok(())
    }

    /// Whether it is fresh, and what it was.
    fn known(&self, stream: &StreamName) -> Option<(bool, Result<(), JetError>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter().find(|known| known.stream == *stream)?;
        Some((known.is_fresh(), known.outcome.clone()))
    }

    fn learn(&self, stream: &StreamName, outcome: Result<(), JetError>) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.stream != *stream);
        all.push(Known { stream: stream.clone(), at: boottime(), outcome });
    }
}

impl Known {
    fn is_fresh(&self) -> bool {
        let holds = if self.outcome.is_ok() { LOOK_INTERVAL } else { LOOK_INTERVAL_OF_TROUBLE };
        boottime().saturating_sub(self.at) < holds
    }
}

async fn look(link: &Link, stream: &StreamName, deadline: Instant) -> Result<(), JetError> {
    judged(link, stream, &info(link, stream, &Value::Null, deadline).await?)
}

/// What the server said of a stream.
fn judged(link: &Link, stream: &StreamName, said: &Value) -> Result<(), JetError> {
    StreamSpec::named(&link.prefix, stream).map_or(Ok(()), |spec| ours(&spec, said))
}

/// Whether a stream is as it has to be. The first setting that differs is told; the others are `nats-admin check`'s to
/// tell.
pub(super) fn ours(spec: &StreamSpec, said: &Value) -> Result<(), JetError> {
    let config = said.get("config").ok_or(JetError::Unreadable)?;
    let name = || spec.name.as_str().to_owned();
    if let Some(first) = spec.differences(config).into_iter().next() {
        return Err(JetError::Foreign { stream: name(), setting: first.setting });
    }
    let number = |pointer| said.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    if has_wrapped(number("/state/first_seq"), number("/state/last_seq")) {
        return Err(JetError::Wrapped(name()));
    }
    Ok(())
}

/// Whether a stream's places are none: a purge up to the last place that there can be leads behind it, and from there
/// the server counts from nothing again, stores, acknowledges, and finds nothing.
fn has_wrapped(first: u64, last: u64) -> bool {
    first > MAX_PLACE || last > MAX_PLACE || first > last.saturating_add(1)
}
