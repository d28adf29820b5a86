//! Why a message is not believed, and how that is told: counted each time, logged once and then seldom.
//!
//! A bystander may send as many as it likes: no more than a line in ten seconds for each kind and reason, with what
//! came meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::MessageKind;
use crate::metrics;

const TELL_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Of processes that are named.
const MAX_NAMED: usize = 256;

/// Why a message is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Rejection {
    /// It is not authenticated, and has to be.
    #[error("it is not authenticated")]
    Unauthenticated,
    /// What authenticates it cannot be read.
    #[error("what authenticates it cannot be read")]
    Malformed,
    /// Its generation of keys is not ours.
    #[error("its keys are not among those that are accepted")]
    UnknownKey,
    /// The role that it names may not say this.
    #[error("the role that it names may not say this")]
    NotAllowed,
    /// It is not what the role that it names said.
    #[error("it is not what the role that it names said")]
    Forged,
    /// It was heard before, or belongs to another question.
    #[error("it was heard before")]
    Replayed,
    /// It is too old, or too far ahead, to tell whether it was heard before.
    #[error("its time is too far from this process's clock")]
    Clock,
    /// It is of a keystore that was followed by another one.
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

/// When it was told last, and how many came since.
struct Told {
    at: Instant,
    since: u64,
}

/// What was complained about.
#[derive(Default)]
pub(super) struct Complaints {
    told: Mutex<HashMap<(MessageKind, Option<Rejection>), Told>>,
    named: Mutex<HashMap<String, Instant>>,
}

impl Complaints {
    /// It was dropped.
    pub(super) fn rejected(&self, kind: MessageKind, subject: &str, why: Rejection) {
        metrics::rejected(kind.as_str(), why.as_str());
        if let Some(since) = self.due(kind, Some(why)) {
            let kind = kind.as_str();
            tracing::error!(kind, subject, reason = why.as_str(), since, "message is not believed: {why}");
        }
    }

    /// It was believed, for now.
    pub(super) fn accepted(&self, kind: MessageKind, subject: &str) {
        metrics::unauthenticated(kind.as_str());
        // What was stored before the switch is no news.
        let live = matches!(kind, MessageKind::Question | MessageKind::Reply | MessageKind::Notice);
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

    /// A process without keys.
    pub(super) fn unable(&self, subject: &str, instance: &str) {
        let now = Instant::now();
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, at| now.saturating_duration_since(*at) < TELL_AGAIN_AFTER);
        if named.len() < MAX_NAMED && named.insert(format!("{subject} {instance}"), now).is_none() {
            tracing::warn!(
                subject,
                instance,
                "a process without message keys is there: it is refused once the others require them"
            );
        }
    }

    /// How many came since it was last told, when it is time to tell again.
    fn due(&self, kind: MessageKind, why: Option<Rejection>) -> Option<u64> {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = told.get_mut(&(kind, why)) else {
            told.insert((kind, why), Told { at: now, since: 0 });
            return Some(1);
        };
        last.since += 1;
        (now.saturating_duration_since(last.at) >= TELL_AGAIN_AFTER).then(|| {
            last.at = now;
            std::mem::take(&mut last.since)
        })
    }
}
