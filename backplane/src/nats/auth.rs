//! End-to-end authentication of messages: which role sent a message, to whom, and whether it is a replay.
//!
//! All connections of a process share one. Live messages carry a MAC for each receiving role, log entries a signature,
//! state store records a MAC of the role that owns them (ADR 0009).
//! INVARIANT: a message that fails here is counted, logged and delivered to no one. Once unauthenticated messages were
//! refused, they are refused for as long as the process lives.

mod envelope;
pub mod fuzz_support;
mod key_set;
mod keys;
mod live;
mod rejection;
mod replays;
mod requirement;
mod rollout;
mod stored;
mod terms;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use async_nats::HeaderMap;
use jiff::Timestamp;
use stage0_contract::Role;
use tokio::sync::watch;

pub(crate) use envelope::MessageKind;
pub use key_set::{KeySet, KeySetError, Rotation};
pub use keys::{KeysError, MessageKeys, Requirement};
pub(super) use live::{NoticeCheck, REPLY_TO, Requester, SeenNotices};
pub(super) use rejection::Rejection;
pub use requirement::{RequirementError, persist_requirement};
pub(super) use stored::{Newest, TTL};

use envelope::{Content, Envelope, Sealed};
use keys::KeyRing;
use rejection::RejectionLog;
use replays::{MessageId, Replays};
use rollout::Rollout;
use stored::{NewestRecords, VerifiedSignatures};
use terms::Terms;

use super::deadline::{epoch, millis};

use crate::metrics;

/// A process's keys and what it knows about messages.
pub struct MessageAuth {
    role: Role,
    ring: RwLock<Arc<KeyRing>>,
    /// Nothing in this deployment was ever stored unauthenticated.
    strict: bool,
    required: AtomicBool,
    /// Since when authentication is required, where there was a switch.
    since: watch::Sender<Option<Timestamp>>,
    /// By the wall clock and by a monotonic one.
    started: (u64, Instant),
    replays: Mutex<Replays>,
    verified: Mutex<VerifiedSignatures>,
    newest: Mutex<NewestRecords>,
    rollout: Mutex<Rollout>,
    terms: Terms,
    rejection_log: RejectionLog,
}

impl std::fmt::Debug for MessageAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (active, required) = (self.ring().active.number, self.is_required());
        let mut shown = f.debug_struct("MessageAuth");
        shown.field("role", &self.role).field("active", &active).field("required", &required).finish_non_exhaustive()
    }
}

impl MessageAuth {
    /// With a role's keys. `required`: the operator requires authentication from now on, whatever the keys say.
    pub fn new(keys: &MessageKeys, role: Role, required: bool) -> Result<Arc<Self>, KeysError> {
        let ring = key_ring(keys, role)?;
        let strict = keys.requirement() == Requirement::Always;
        let since = (required && !strict).then(Timestamp::now);
        Ok(Arc::new(Self {
            role,
            ring: RwLock::new(Arc::new(ring)),
            strict,
            required: AtomicBool::new(strict || required),
            since: watch::Sender::new(since),
            started: (now(), Instant::now()),
            replays: Mutex::default(),
            verified: Mutex::default(),
            newest: Mutex::default(),
            rollout: Mutex::default(),
            terms: Terms::default(),
            rejection_log: RejectionLog::default(),
        }))
    }

    /// Takes the keys of a later step of a rotation. After an error those that were in use stay.
    pub fn replace(&self, keys: &MessageKeys) -> Result<(), KeysError> {
        let ring = Arc::new(key_ring(keys, self.role)?);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    pub(super) fn describe(&self) {
        metrics::describe_auth();
        metrics::auth_required(self.is_required());
    }

    /// The role that these keys belong to.
    pub fn role(&self) -> Role {
        self.role
    }

    pub(super) fn serve_in_term(&self, number: u64, lineage: &str) {
        self.terms.set_own(number, lineage);
    }

    /// Whether unauthenticated messages are refused.
    pub fn is_required(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    /// Whether the keys have always required authentication; then nothing needs to be persisted.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Refuses unauthenticated messages from now on. What was stored before `since` may be unauthenticated.
    pub fn require(&self, since: Timestamp) {
        if self.strict {
            return;
        }
        self.since.send_if_modified(|known| {
            let earlier = known.is_none_or(|known| since < known);
            if earlier {
                *known = Some(since);
            }
            earlier
        });
        if !self.required.swap(true, Ordering::Relaxed) {
            metrics::auth_required(true);
            tracing::warn!(role = %self.role, %since, "messages that are not authenticated are refused from now on");
        }
    }

    /// The time of the switch, as it becomes known.
    pub fn required_since(&self) -> watch::Receiver<Option<Timestamp>> {
        self.since.subscribe()
    }

    fn parse_envelope<'m>(&self, headers: Option<&'m HeaderMap>) -> Result<Option<Sealed<'m>>, Rejection> {
        match Sealed::parse(headers)? {
            None if self.is_required() => Err(Rejection::Unauthenticated),
            sealed => Ok(sealed),
        }
    }

    /// A gateway that requires authentication marks its messages; every role that receives one follows.
    fn follow_requirement(&self, envelope: &Envelope) {
        if envelope.required && envelope.sender == Role::Gateway && !self.is_required() {
            self.require(Timestamp::now());
        }
    }

    /// What this role sends to itself, or receives.
    fn content<'m>(&self, kind: MessageKind, subject: &'m str, body: &'m [u8]) -> Content<'m> {
        Content { kind, receiver: Some(self.role), subject, more: &[], body }
    }

    fn envelope(&self, generation: u32, id: MessageId) -> Envelope {
        Envelope { sender: self.role, generation, id, at: now(), required: self.is_required() }
    }

    fn ring(&self) -> Arc<KeyRing> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_heartbeat(&self, subject: &str, sender: Role) {
        if self.role != Role::Gateway || self.is_required() || !rollout::is_heartbeat(subject) {
            return;
        }
        let mut rollout = self.rollout.lock().unwrap_or_else(PoisonError::into_inner);
        if rollout.record(sender, Instant::now()) {
            self.require(Timestamp::now());
        }
    }

    fn log_instance_without_keys(&self, subject: &str, body: &[u8]) {
        if rollout::is_heartbeat(subject)
            && let Some(instance) = rollout::instance(body)
        {
            self.rejection_log.without_keys(subject, &instance);
        }
    }

    /// Counts and logs the outcome. `checked`: whether the message was authenticated, or why it was dropped.
    fn report(&self, kind: MessageKind, subject: &str, checked: Result<bool, &Rejection>) {
        match checked {
            Ok(true) => {}
            Ok(false) => self.rejection_log.accepted(kind, subject),
            Err(rejection) => self.rejection_log.rejected(kind, subject, *rejection),
        }
    }
}

fn key_ring(keys: &MessageKeys, role: Role) -> Result<KeyRing, KeysError> {
    let found = keys.role();
    if found == role { KeyRing::new(keys) } else { Err(KeysError::Role { found, wanted: role }) }
}

fn now() -> u64 {
    epoch(SystemTime::now())
}

#[cfg(test)]
mod tests;
