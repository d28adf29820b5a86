//! Authentication of messages end to end: who may have said this, to whom, and was it said before.
//!
//! Owns a process's keys, the ids that it heard, and whether it still takes what is not authenticated; all connections
//! of the process share one. Live messages carry a MAC for each role that is meant, entries of the log a signature,
//! records of the ledger a MAC of the role whose they are (ADR 0009). Refuses to know what a message says.
//! INVARIANT: what fails here is counted and told, and reaches nobody; once what is not authenticated was refused, it
//! is refused for as long as the process lives.

mod envelope;
mod key_set;
mod keys;
mod live;
mod memory;
mod newest;
mod replays;
mod rollout;
mod stored;
mod terms;
mod verdict;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use jiff::Timestamp;
use stage0_contract::Role;
use tokio::sync::watch;

pub(crate) use envelope::MessageKind;
pub use key_set::{KeySet, KeySetError, Rotation};
pub use keys::{KeysError, MessageKeys, Requirement};
pub(super) use live::{Asker, HeardBefore, NoticeStanding, REPLY_TO};
pub use memory::{MemoryError, remember_requirement};
pub(super) use newest::Newest;
pub(super) use stored::LIFETIME;
pub(super) use verdict::Rejection;

use envelope::{Envelope, Sealed};
use keys::Ring;
use newest::NewestRecords;
use replays::{MessageId, Replays};
use rollout::Rollout;
use stored::Verified;
use terms::Terms;
use verdict::Complaints;

use crate::metrics;

/// A process's keys, and what it knows of messages.
pub struct MessageAuth {
    role: Role,
    ring: RwLock<Arc<Ring>>,
    /// Nothing of this deployment was ever stored without.
    strict: bool,
    required: AtomicBool,
    /// Since when; the time of the switch where there was one.
    since: watch::Sender<Option<Timestamp>>,
    /// By the wall and by a clock that nobody sets.
    started: (u64, Instant),
    replays: Mutex<Replays>,
    verified: Mutex<Verified>,
    newest: Mutex<NewestRecords>,
    rollout: Mutex<Rollout>,
    terms: Terms,
    complaints: Complaints,
}

impl std::fmt::Debug for MessageAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (active, required) = (self.ring().active.number, self.is_required());
        let mut shown = f.debug_struct("MessageAuth");
        shown.field("role", &self.role).field("active", &active).field("required", &required).finish_non_exhaustive()
    }
}

impl MessageAuth {
    /// With a role's keys. `required`: the operator says that what is not authenticated is refused from now on,
    /// whatever the keys say.
    ///
    /// # Errors
    /// When they are another role's, or of no use.
    pub fn new(keys: &MessageKeys, role: Role, required: bool) -> Result<Arc<Self>, KeysError> {
        let ring = ring_of(keys, role)?;
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
            complaints: Complaints::default(),
        }))
    }

    /// Takes the keys of a later step of a rotation.
    ///
    /// # Errors
    /// When they are another role's, or of no use; those that were in use stay.
    pub fn replace(&self, keys: &MessageKeys) -> Result<(), KeysError> {
        let ring = Arc::new(ring_of(keys, self.role)?);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    /// Tells whoever records what is counted, and how it stands.
    pub(super) fn describe(&self) {
        metrics::describe_auth();
        metrics::auth_required(self.is_required());
    }

    /// Whose keys these are.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Answers say from now on of which keystore they are.
    pub(super) fn serve_in_term(&self, number: u64, lineage: &str) {
        self.terms.serve_in(number, lineage);
    }

    /// Whether what is not authenticated is refused.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    /// Whether it always was, by the keys: nothing needs to be remembered then.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Refuses what is not authenticated from now on, for as long as this lives. Of what is stored, what was stored
    /// before `since` may be so.
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
    #[must_use]
    pub fn required_since(&self) -> watch::Receiver<Option<Timestamp>> {
        self.since.subscribe()
    }

    fn sealed<'m>(&self, headers: Option<&'m HeaderMap>) -> Result<Option<Sealed<'m>>, Rejection> {
        match Sealed::parse(headers) {
            None if self.is_required() => Err(Rejection::Unauthenticated),
            None => Ok(None),
            Some(Ok(sealed)) => Ok(Some(sealed)),
            Some(Err(())) => Err(Rejection::Malformed),
        }
    }

    /// A gateway that refuses what is not authenticated says so, and so does everybody who hears it.
    fn see_mark(&self, envelope: &Envelope) {
        if envelope.required && envelope.sender == Role::Gateway && !self.is_required() {
            self.require(Timestamp::now());
        }
    }

    fn envelope(&self, generation: u32, id: MessageId) -> Envelope {
        Envelope { sender: self.role, generation, id, at: now(), required: self.is_required() }
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rollout(&self) -> MutexGuard<'_, Rollout> {
        self.rollout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_heartbeat(&self, subject: &str, sender: Role) {
        if self.role != Role::Gateway || self.is_required() || !rollout::is_heartbeat(subject) {
            return;
        }
        if self.rollout().heard(sender, Instant::now()) {
            self.require(Timestamp::now());
        }
    }

    /// A process that cannot authenticate is refused soon: its operator should hear of it before.
    fn name_who_cannot(&self, subject: &str, body: &[u8]) {
        if rollout::is_heartbeat(subject)
            && let Some(instance) = rollout::instance(body)
        {
            self.complaints.unable(subject, &instance);
        }
    }

    /// `judged`: whether it was authenticated, or why it is dropped.
    fn complain(&self, kind: MessageKind, subject: &str, judged: Result<bool, &Rejection>) {
        match judged {
            Ok(true) => {}
            Ok(false) => self.complaints.accepted(kind, subject),
            Err(rejection) => self.complaints.rejected(kind, subject, *rejection),
        }
    }
}

fn ring_of(keys: &MessageKeys, role: Role) -> Result<Ring, KeysError> {
    let found = keys.role();
    if found == role { Ring::new(keys) } else { Err(KeysError::Role { found, wanted: role }) }
}

fn new_id() -> Option<MessageId> {
    let mut id = MessageId::default();
    aws_lc_rs::rand::fill(&mut id).ok().map(|()| id)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
