//! Why a message is rejected, and how that is reported: counted each time, logged the first time and then rarely.
//!
//! An outsider may send any number of messages: at most one line in ten seconds is logged for each kind and reason,
//! with the number of messages since the last one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::MessageKind;
use crate::metrics;

const REPEAT_LOG_INTERVAL: Duration = Duration::from_secs(10);
const MAX_NAMED: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("it is not authenticated")]
    Unauthenticated,
    #[error("what authenticates it cannot be read")]
    Malformed,
    #[error("its keys are not among those that are accepted")]
    UnknownKey,
    #[error("the role that it names may not say this")]
    NotAllowed,
    #[error("it is not what the role that it names said")]
    Forged,
    #[error("it was heard before")]
    Replayed,
    #[error("its time is too far from this process's clock")]
    Clock,
    #[error("it is of a keystore that another one has followed")]
    Superseded,
}

impl Rejection {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::NotAllowed => "not_allowed",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::Clock => "clock",
            Self::Superseded => "superseded",
        }
    }
}

struct LastLine {
    at: Instant,
    since: u64,
}

#[derive(Default)]
pub(super) struct RejectionLog {
    last_lines: Mutex<HashMap<(MessageKind, Option<Rejection>), LastLine>>,
    named: Mutex<HashMap<String, Instant>>,
}

impl RejectionLog {
    pub(super) fn rejected(&self, kind: MessageKind, subject: &str, why: Rejection) {
        metrics::rejected(kind.as_str(), why.as_str());
        if let Some(since) = self.due(kind, Some(why)) {
            let kind = kind.as_str();
            tracing::error!(kind, subject, reason = why.as_str(), since, "message is not believed: {why}");
        }
    }

    pub(super) fn accepted(&self, kind: MessageKind, subject: &str) {
        metrics::unauthenticated(kind.as_str());
        // For data stored before the switch that is expected.
        let live = matches!(kind, MessageKind::Request | MessageKind::Reply | MessageKind::Notice);
        if live && let Some(since) = self.due(kind, None) {
            let kind = kind.as_str();
            tracing::warn!(
                kind,
                subject,
                since,
                "message that is not authenticated is accepted: not every role has keys yet"
            );
        }
    }

    pub(super) fn without_keys(&self, subject: &str, instance: &str) {
        let now = Instant::now();
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, at| now.saturating_duration_since(*at) < REPEAT_LOG_INTERVAL);
        if named.len() < MAX_NAMED && named.insert(format!("{subject} {instance}"), now).is_none() {
            tracing::warn!(
                subject,
                instance,
                "a process without message keys is there: it is refused once the others require them"
            );
        }
    }

    /// How many messages came since the last line, if it is time for another one.
    fn due(&self, kind: MessageKind, why: Option<Rejection>) -> Option<u64> {
        let now = Instant::now();
        let mut last_lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = last_lines.get_mut(&(kind, why)) else {
            last_lines.insert((kind, why), LastLine { at: now, since: 0 });
            return Some(1);
        };
        last.since += 1;
        (now.saturating_duration_since(last.at) >= REPEAT_LOG_INTERVAL).then(|| {
            last.at = now;
            std::mem::take(&mut last.since)
        })
    }
}
