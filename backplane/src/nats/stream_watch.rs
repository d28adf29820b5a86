//! Checks that each stream still has the settings that it must have: every few seconds, before something is stored, and
//! for readiness.
//!
//! One caller asks for all that wait, and while the last check was good no caller waits for more than one request.
//! INVARIANT: nothing is stored in a stream whose settings were wrong at the last check. A check that fails for another
//! reason, after a good one, changes nothing: the server that would store is the one that would answer.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::clock::boottime;

use super::jetstream::{JetError, info};
use super::link::Link;
use super::streams::{StreamName, StreamSpec};
use crate::{MAX_MESSAGE_BYTES, metrics};

const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Shorter after a failed check, so that an administrator who corrects the settings does not have to wait.
const UNHEALTHY_POLL_INTERVAL: Duration = Duration::from_millis(500);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// For a server that holds a copy of a stream and lags, before an operator hears of it.
const MAX_REPLICA_SILENCE_NANOS: u64 = 5_000_000_000;

/// Far more messages than a stream can ever hold.
pub(super) const MAX_SEQUENCE: u64 = 1 << 62;

#[derive(Debug, Default)]
pub(super) struct StreamWatch {
    known: Mutex<Vec<LastCheck>>,
    used: Mutex<Vec<StreamName>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct LastCheck {
    stream: StreamName,
    at: Duration,
    outcome: Result<(), JetError>,
}

impl StreamWatch {
    pub(super) fn set_used(&self, streams: Vec<StreamName>) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = streams;
    }

    pub(super) fn used(&self) -> Vec<StreamName> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn check(&self, link: &Link, stream: &StreamName, deadline: Instant) -> Result<(), JetError> {
        let was_ours = match self.known(stream) {
            Some((true, outcome)) => return outcome,
            Some((false, outcome)) => outcome.is_ok(),
            None => false,
        };
        let _turn = match self.asking.try_lock() {
            Ok(turn) => turn,
            // Another caller is asking already.
            Err(_) if was_ours => return Ok(()),
            Err(_) => self.asking.lock().await,
        };
        if let Some((true, outcome)) = self.known(stream) {
            return outcome;
        }
        let checking = async { check_known(link, stream, &info(link, stream, &Value::Null, deadline).await?) };
        match timeout(POLL_TIMEOUT, checking).await {
            Ok(outcome @ (Ok(()) | Err(JetError::WrongSettings { .. } | JetError::Wrapped(_)))) => {
                self.remember(stream, outcome.clone());
                outcome
            }
            Ok(Err(_)) | Err(_) if was_ours => {
                self.remember(stream, Ok(()));
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(JetError::DeadlinePassed),
        }
    }

    /// Remarks for an operator.
    pub(super) async fn check_now(
        &self,
        link: &Link,
        stream: &StreamName,
        deadline: Instant,
    ) -> Result<Vec<String>, JetError> {
        let found = info(link, stream, &Value::Null, deadline).await?;
        let outcome = check_known(link, stream, &found);
        self.remember(stream, outcome.clone());
        outcome?;
        let number = |pointer| found.pointer(pointer).and_then(Value::as_i64);
        let (used_bytes, max_bytes) = (number("/state/bytes").unwrap_or(0), number("/config/max_bytes").unwrap_or(-1));
        metrics::stream_size(stream.as_str(), used_bytes, max_bytes);
        let needed = i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX).min(max_bytes / 20);
        if max_bytes > 0 && max_bytes.saturating_sub(used_bytes) < needed {
            return Err(JetError::Full(stream.as_str().to_owned()));
        }
        Ok(lost_copies(stream, &found))
    }

    fn known(&self, stream: &StreamName) -> Option<(bool, Result<(), JetError>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter().find(|known| known.stream == *stream)?;
        Some((known.is_fresh(), known.outcome.clone()))
    }

    fn remember(&self, stream: &StreamName, outcome: Result<(), JetError>) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.stream != *stream);
        all.push(LastCheck { stream: stream.clone(), at: boottime(), outcome });
    }
}

impl LastCheck {
    fn is_fresh(&self) -> bool {
        let interval = if self.outcome.is_ok() { POLL_INTERVAL } else { UNHEALTHY_POLL_INTERVAL };
        boottime().saturating_sub(self.at) < interval
    }
}

fn check_known(link: &Link, stream: &StreamName, info_reply: &Value) -> Result<(), JetError> {
    StreamSpec::named(&link.prefix, stream).map_or(Ok(()), |spec| check_settings(&spec, info_reply))
}

/// The error names the first setting that differs; `nats-admin check` lists the others.
pub(super) fn check_settings(spec: &StreamSpec, info_reply: &Value) -> Result<(), JetError> {
    let config = info_reply.get("config").ok_or(JetError::Malformed)?;
    let name = || spec.name.as_str().to_owned();
    if let Some(first) = spec.differences(config).into_iter().next() {
        return Err(JetError::WrongSettings { stream: name(), setting: first.setting });
    }
    let number = |pointer| info_reply.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    if has_wrapped(number("/state/first_seq"), number("/state/last_seq")) {
        return Err(JetError::Wrapped(name()));
    }
    Ok(())
}

/// The copies of a stream that its leader has not heard of for a while. With most of them nothing is stored any more.
fn lost_copies(stream: &StreamName, info_reply: &Value) -> Vec<String> {
    let copies = info_reply.pointer("/cluster/replicas").and_then(Value::as_array).into_iter().flatten();
    let is_lost = |copy: &&Value| {
        let is = |name: &str| copy.get(name).and_then(Value::as_bool).unwrap_or(false);
        let silent_nanos = copy.get("active").and_then(Value::as_u64).unwrap_or(0);
        is("offline") || (!is("current") && silent_nanos > MAX_REPLICA_SILENCE_NANOS)
    };
    let servers = copies.filter(is_lost).filter_map(|copy| copy.get("name")?.as_str());
    servers
        .map(|server| format!("audit: the copy of `{}` on `{server}` is not kept up to date", stream.as_str()))
        .collect()
}

/// Whether a stream's sequences have overflowed. A purge up to the last possible sequence leads beyond it; from there
/// the server counts from zero again, stores and acknowledges, and finds nothing.
fn has_wrapped(first: u64, last: u64) -> bool {
    first > MAX_SEQUENCE || last > MAX_SEQUENCE || first > last.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_is_reported_once_its_server_has_been_silent_and_not_while_it_catches_up() {
        let log = StreamName::log("s0");
        assert!(lost_copies(&log, &json!({"cluster": {"leader": "n1"}})).is_empty(), "a single server");
        let copy = |name: &str, current: bool, active: u64| json!({"name": name, "current": current, "active": active});
        let second = 1_000_000_000;
        let mut gone = copy("n4", false, second);
        gone["offline"] = true.into();
        let replicas = [copy("n2", true, 9 * second), copy("n3", false, second), gone, copy("n5", false, 6 * second)];
        let remarks = lost_copies(&log, &json!({"cluster": {"leader": "n1", "replicas": replicas}}));
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].contains("`S0_LOG` on `n4`") && remarks[1].contains("`n5`"), "{remarks:?}");
    }
}
