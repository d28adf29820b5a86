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
            Ok(outcome @ (Ok(()) | Err(JetError::Foreign { .. }))) => {
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
    let config = said.get("config").ok_or(JetError::Unreadable)?;
    let Some(spec) = StreamSpec::named(&link.prefix, stream) else { return Ok(()) };
    foreign(&spec, config)
}

/// The first setting that differs is told; the others are `nats-admin check`'s to tell.
pub(super) fn foreign(spec: &StreamSpec, config: &Value) -> Result<(), JetError> {
    match spec.differences(config).into_iter().next() {
        Some(first) => Err(JetError::Foreign { stream: spec.name.as_str().to_owned(), setting: first.setting }),
        None => Ok(()),
    }
}
