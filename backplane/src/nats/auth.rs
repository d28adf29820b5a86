//! Authentication of messages end to end: who may have said this, to whom, and was it said before.
//!
//! Owns a process's keys, the ids that it heard, and whether it still takes what is not authenticated; all connections
//! of the process share one. Live messages carry a MAC for each role that is meant, entries of the log a signature,
//! records of the ledger a MAC of the role whose they are (ADR 0009). Refuses to know what a message says. INVARIANT:
//! what fails here is counted and told, and reaches nobody; once what is not authenticated was refused, it is refused
//! for as long as the process lives.

mod envelope;
mod key_set;
mod keys;
mod memory;
mod replays;
mod rollout;
mod verdict;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use jiff::Timestamp;
use stage0_contract::{Role, event, owner_of_record, question};
use tokio::sync::watch;

pub(crate) use envelope::MessageKind;
pub use key_set::{KeySet, KeySetError, Rotation};
pub use keys::{KeysError, MessageKeys, Requirement};
pub use memory::{MemoryError, remember_requirement};
pub(super) use verdict::Rejection;

use envelope::{Content, Envelope, Sealed};
use keys::{Live, Ring};
use replays::{Hearing, MessageId, Replays};
use rollout::Rollout;
use verdict::Complaints;

use super::config::OTHER_ACCOUNT;
use super::deadline::Sent;
use super::jetstream::Stored;
use super::log::{EXPECTED_LAST, MESSAGE_ID};
use crate::metrics;

/// How far the clocks of two processes may be apart. A message that seems older, or further ahead, is refused: its id
/// may be forgotten.
pub(super) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);
/// A question that was asked before its server started was not asked of it. The clocks of processes that serve are no
/// further apart.
const ASKED_BEFORE_START: Duration = Duration::from_secs(2);

/// Where the asker itself hears the answer: between accounts the server writes another subject into the message.
const REPLY_TO: HeaderName = HeaderName::from_static("Stage0-Reply-To");
pub(super) const LIFETIME: HeaderName = HeaderName::from_static("Nats-TTL");

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
    rollout: Mutex<Rollout>,
    complaints: Complaints,
}

/// What a genuine answer to a question is.
#[derive(Debug)]
pub(super) struct ExpectedReply {
    peer: Role,
    subject: String,
    id: MessageId,
}

/// Who asked, authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    role: Role,
    generation: u32,
    id: MessageId,
}

/// The notices that one listener heard; each listener of a process hears them all.
#[derive(Default)]
pub(super) struct HeardBefore(Replays);

/// How a notice stands when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoticeStanding {
    /// It may be believed.
    Good,
    /// Its time is too far away to tell whether it was heard before: something may have been missed.
    Stale,
    /// It is dropped.
    Rejected,
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
            rollout: Mutex::default(),
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

    /// Authenticates a question; none: this role does not ask it.
    pub(super) fn question(
        &self,
        subject: &str,
        to: &str,
        inbox: &str,
        sent: Sent,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<ExpectedReply> {
        let known = question(subject).filter(|known| known.from.contains(&self.role))?;
        let ring = self.ring();
        let key = ring.active.pair(known.to)?;
        let envelope = self.envelope(ring.active.number, new_id()?);
        let more = sent.bytes();
        let more = [inbox.as_bytes(), &more];
        let content = Content { kind: MessageKind::Question, receiver: Some(known.to), subject: to, more: &more, body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(known.to), mac.as_ref())]);
        headers.insert(REPLY_TO, HeaderValue::from(inbox));
        Some(ExpectedReply { peer: known.to, subject: to.to_owned(), id: envelope.id })
    }

    /// Judges a question; none in the good case: it is not authenticated, and need not be yet.
    pub(super) fn judge_question(
        &self,
        message: &Message,
        subject: &str,
        sent: Sent,
    ) -> Result<Option<Asker>, Rejection> {
        let judged = self.question_of(message, subject, sent);
        self.complain(MessageKind::Question, subject, judged.as_ref().map(Option::is_some));
        judged
    }

    fn question_of(&self, message: &Message, subject: &str, sent: Sent) -> Result<Option<Asker>, Rejection> {
        let Some(sealed) = self.sealed(message.headers.as_ref())? else { return Ok(None) };
        let Envelope { sender, generation, id, .. } = sealed.envelope;
        let known = question(subject).filter(|known| known.to == self.role && known.from.contains(&sender));
        known.ok_or(Rejection::NotAllowed)?;
        let inbox = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO)).map_or("", HeaderValue::as_str);
        let more = sent.bytes();
        let content = Content {
            kind: MessageKind::Question,
            receiver: Some(self.role),
            subject: &message.subject,
            more: &[inbox.as_bytes(), &more],
            body: &message.payload,
        };
        self.prove(&sealed, &content)?;
        let reply = message.reply.as_ref().map_or("", |reply| reply.as_str());
        if reply != inbox && !reply.starts_with(OTHER_ACCOUNT) {
            return Err(Rejection::Forged);
        }
        let (asked_at, deadline) = sent.span();
        let (skew, now) = (millis(MAX_CLOCK_SKEW), now());
        if asked_at > now.saturating_add(skew) || now > deadline.saturating_add(skew) {
            return Err(Rejection::Clock);
        }
        // Later on, what is so old is refused for its age; and the wall's clock may have been set since.
        let (started, since) = self.started;
        let is_young = since.elapsed() < MAX_CLOCK_SKEW.saturating_add(Duration::from_millis(deadline - asked_at));
        if is_young && asked_at.saturating_add(millis(ASKED_BEFORE_START)) < started {
            return Err(Rejection::Clock);
        }
        self.first(id, deadline.saturating_add(skew), now)?;
        self.see_mark(&sealed.envelope);
        Ok(Some(Asker { role: sender, generation, id }))
    }

    /// Authenticates an answer, with the keys of its question.
    pub(super) fn reply(&self, asker: Asker, subject: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        let ring = self.ring();
        let key = ring.live(asker.generation)?.pair(asker.role)?;
        let envelope = self.envelope(asker.generation, asker.id);
        let content = Content { kind: MessageKind::Reply, receiver: Some(asker.role), subject, more: &[], body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(asker.role), mac.as_ref())]);
        Some(())
    }

    /// Whether this answers that question. A forged answer ends no wait.
    pub(super) fn is_reply(&self, expected: &ExpectedReply, message: &Message) -> bool {
        let judged = self.reply_of(expected, message);
        self.complain(MessageKind::Reply, &expected.subject, judged.as_ref().copied());
        judged.is_ok()
    }

    fn reply_of(&self, expected: &ExpectedReply, message: &Message) -> Result<bool, Rejection> {
        let Some(sealed) = self.sealed(message.headers.as_ref())? else { return Ok(false) };
        if sealed.envelope.sender != expected.peer {
            return Err(Rejection::NotAllowed);
        }
        if sealed.envelope.id != expected.id {
            return Err(Rejection::Replayed);
        }
        let content = Content {
            kind: MessageKind::Reply,
            receiver: Some(self.role),
            subject: &expected.subject,
            more: &[],
            body: &message.payload,
        };
        self.prove(&sealed, &content)?;
        self.see_mark(&sealed.envelope);
        Ok(true)
    }

    /// Authenticates a notice for each role that hears it; none: this role does not tell it.
    pub(super) fn notice(&self, subject: &str, to: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        let known = event(subject).filter(|known| known.from.contains(&self.role))?;
        let ring = self.ring();
        let envelope = self.envelope(ring.active.number, new_id()?);
        let mac = |receiver: Role| {
            let content = Content { kind: MessageKind::Notice, receiver: Some(receiver), subject: to, more: &[], body };
            ring.active.pair(receiver).map(|key| (Some(receiver), envelope.mac(key, &content)))
        };
        let macs = known.to.iter().map(|receiver| mac(*receiver)).collect::<Option<Vec<_>>>()?;
        envelope.seal(headers, macs.iter().map(|(receiver, mac)| (*receiver, mac.as_ref())));
        Some(())
    }

    /// Judges a notice.
    pub(super) fn judge_notice(&self, message: &Message, subject: &str, before: &mut HeardBefore) -> NoticeStanding {
        let judged = self.notice_of(message, subject, before);
        self.complain(MessageKind::Notice, subject, judged.as_ref().map(Option::is_some));
        match judged {
            Ok(Some(sender)) => {
                self.note_heartbeat(subject, sender);
                NoticeStanding::Good
            }
            Ok(None) => {
                self.name_who_cannot(subject, &message.payload);
                NoticeStanding::Good
            }
            Err(Rejection::Clock) => NoticeStanding::Stale,
            Err(_) => NoticeStanding::Rejected,
        }
    }

    fn notice_of(&self, message: &Message, subject: &str, before: &mut HeardBefore) -> Result<Option<Role>, Rejection> {
        let Some(sealed) = self.sealed(message.headers.as_ref())? else { return Ok(None) };
        let Envelope { sender, id, at, .. } = sealed.envelope;
        let known = event(subject).filter(|known| known.to.contains(&self.role) && known.from.contains(&sender));
        known.ok_or(Rejection::NotAllowed)?;
        let content = Content {
            kind: MessageKind::Notice,
            receiver: Some(self.role),
            subject: &message.subject,
            more: &[],
            body: &message.payload,
        };
        self.prove(&sealed, &content)?;
        let (skew, now) = (millis(MAX_CLOCK_SKEW), now());
        if at.abs_diff(now) > skew {
            return Err(Rejection::Clock);
        }
        match before.0.hear(id, at.saturating_add(skew), now) {
            Hearing::First => {}
            Hearing::Again => return Err(Rejection::Replayed),
            Hearing::NoRoom => return Err(Rejection::Clock),
        }
        self.see_mark(&sealed.envelope);
        Ok(Some(sender))
    }

    /// Signs what is appended to the log.
    pub(super) fn sign_entry(&self, subject: &str, id: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        let ring = self.ring();
        let key = ring.active.signing()?;
        let envelope = self.envelope(ring.active.number, new_id()?);
        let content = Content { kind: MessageKind::Entry, receiver: None, subject, more: &[id.as_bytes()], body };
        let signature = key.sign(envelope.digest(&content).as_ref());
        envelope.seal(headers, [(None, signature.as_ref())]);
        Some(())
    }

    /// The id by which the server knows a batch that is appended again: nobody else can say it first.
    pub(super) fn message_id(&self, id: &str, body: &[u8]) -> String {
        let ring = self.ring();
        let mut context = hmac::Context::with_key(&ring.active.records);
        context.update(b"stage0 message id v1");
        context.update(&u64::try_from(id.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(id.as_bytes());
        context.update(body);
        data_encoding::BASE64URL_NOPAD.encode(context.sign().as_ref())
    }

    /// Whether an entry of the log is what the role that appends such entries put there.
    pub(super) fn is_genuine(&self, stored: &Stored) -> bool {
        let judged = self.entry_of(stored);
        self.complain(MessageKind::Entry, &stored.subject, judged.as_ref().copied());
        judged.is_ok()
    }

    fn entry_of(&self, stored: &Stored) -> Result<bool, Rejection> {
        let Some(sealed) = self.sealed_of_store(stored)? else { return Ok(false) };
        let Envelope { sender, generation, .. } = sealed.envelope;
        let writer = if stored.subject.ends_with(".m") { Role::AuditExport } else { Role::Gateway };
        if sender != writer {
            return Err(Rejection::NotAllowed);
        }
        let ring = self.ring();
        let signer = ring.stored(generation, stored.at).and_then(|live| live.signer(sender));
        let signer = signer.ok_or(Rejection::UnknownKey)?;
        let id = only(stored, &MESSAGE_ID).unwrap_or_default();
        let content = Content {
            kind: MessageKind::Entry,
            receiver: None,
            subject: &stored.subject,
            more: &[id.as_bytes()],
            body: &stored.payload,
        };
        let proof = sealed.proof(None).ok_or(Rejection::Forged)?;
        let digest = sealed.envelope.digest(&content);
        let holds = UnparsedPublicKey::new(&ED25519, &signer.0).verify(digest.as_ref(), &proof);
        holds.map(|()| true).map_err(|_| Rejection::Forged)
    }

    /// Authenticates a record of this role's own; none: it is another's.
    pub(super) fn record(&self, key: &str, subject: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        if owner_of_record(key) != self.role {
            return None;
        }
        let ring = self.ring();
        let envelope = self.envelope(ring.active.number, MessageId::default());
        let text = |name: HeaderName| headers.get(name).map_or_else(String::new, |value| value.as_str().to_owned());
        let (expected, lifetime) = (text(EXPECTED_LAST), text(LIFETIME));
        let more = [expected.as_bytes(), lifetime.as_bytes()];
        let content = Content { kind: MessageKind::Record, receiver: Some(self.role), subject, more: &more, body };
        let mac = envelope.mac(&ring.active.records, &content);
        envelope.seal(headers, [(Some(self.role), mac.as_ref())]);
        Some(())
    }

    /// Whether a record is what this role put there. `proven`: what is not authenticated does not do, whenever it was
    /// stored.
    pub(super) fn judge_record(&self, key: &str, stored: &Stored, proven: bool) -> Result<(), Rejection> {
        let judged = self.record_of(key, stored, proven);
        self.complain(MessageKind::Record, key, judged.as_ref().copied());
        judged.map(drop)
    }

    fn record_of(&self, key: &str, stored: &Stored, proven: bool) -> Result<bool, Rejection> {
        let sealed = match self.sealed_of_store(stored)? {
            Some(sealed) => sealed,
            None if proven => return Err(Rejection::Unauthenticated),
            None => return Ok(false),
        };
        if sealed.envelope.sender != self.role || owner_of_record(key) != self.role {
            return Err(Rejection::NotAllowed);
        }
        let ring = self.ring();
        let live = ring.stored(sealed.envelope.generation, stored.at).ok_or(Rejection::UnknownKey)?;
        // The server took it only in the place of that revision: so an older one cannot be put back.
        let expected = only(stored, &EXPECTED_LAST).ok_or(Rejection::Forged)?;
        let lifetime = only(stored, &LIFETIME).unwrap_or_default();
        let content = Content {
            kind: MessageKind::Record,
            receiver: Some(self.role),
            subject: &stored.subject,
            more: &[expected.as_bytes(), lifetime.as_bytes()],
            body: &stored.payload,
        };
        let proof = sealed.proof(Some(self.role)).ok_or(Rejection::Forged)?;
        let right = sealed.envelope.mac(&live.records, &content);
        verify_slices_are_equal(right.as_ref(), &proof).map(|()| true).map_err(|_| Rejection::Forged)
    }

    fn prove(&self, sealed: &Sealed<'_>, content: &Content<'_>) -> Result<(), Rejection> {
        let ring = self.ring();
        let live: &Live = ring.live(sealed.envelope.generation).ok_or(Rejection::UnknownKey)?;
        let key = live.pair(sealed.envelope.sender).ok_or(Rejection::UnknownKey)?;
        let proof = sealed.proof(content.receiver).ok_or(Rejection::Forged)?;
        let right = sealed.envelope.mac(key, content);
        verify_slices_are_equal(right.as_ref(), &proof).map_err(|_| Rejection::Forged)
    }

    fn sealed<'m>(&self, headers: Option<&'m HeaderMap>) -> Result<Option<Sealed<'m>>, Rejection> {
        match Sealed::parse(headers) {
            None if self.is_required() => Err(Rejection::Unauthenticated),
            None => Ok(None),
            Some(Ok(sealed)) => Ok(Some(sealed)),
            Some(Err(())) => Err(Rejection::Malformed),
        }
    }

    /// As [`Self::sealed`], of what was stored: before the switch it may be without.
    fn sealed_of_store<'m>(&self, stored: &'m Stored) -> Result<Option<Sealed<'m>>, Rejection> {
        match Sealed::parse(stored.headers.as_ref()) {
            None if !self.is_required() => Ok(None),
            None if self.since.borrow().is_some_and(|since| stored.at < since) => Ok(None),
            None => Err(Rejection::Unauthenticated),
            Some(Ok(sealed)) => Ok(Some(sealed)),
            Some(Err(())) => Err(Rejection::Malformed),
        }
    }

    fn first(&self, id: MessageId, until: u64, now: u64) -> Result<(), Rejection> {
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        match replays.hear(id, until, now) {
            Hearing::First => Ok(()),
            Hearing::Again | Hearing::NoRoom => Err(Rejection::Replayed),
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

/// The value of a header that is there once; of two, the server may have gone by the other.
fn only<'m>(stored: &'m Stored, name: &HeaderName) -> Option<&'m str> {
    let mut all = stored.headers.as_ref()?.get_all(name.clone());
    let value = all.next()?;
    all.next().is_none().then_some(value.as_str())
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
