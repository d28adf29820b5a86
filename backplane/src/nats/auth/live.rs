//! Live messages: questions, their answers, and notices. Each carries a MAC for each role that is meant.
//!
//! Owns what a MAC covers of each kind and in which order a message is judged: who says it and to whom, then the proof,
//! then its time, and last whether it was heard before; so nothing that anybody may send moves what is remembered.
//! Whether what is not authenticated is taken is the parent's.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use stage0_contract::{Role, event, question};

use super::super::config::OTHER_ACCOUNT;
use super::super::deadline::Sent;
use super::super::link::ReplyInbox;
use super::super::waiters::Token;
use super::envelope::{Content, Envelope, Sealed};
use super::keys::Live;
use super::replays::{Hearing, MessageId, Replays};
use super::{MessageAuth, MessageKind, Rejection, millis, new_id, now};

/// How far the clocks of two processes may be apart. A message that seems older, or further ahead, is refused: its id
/// may be forgotten.
pub(super) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);
/// A question that was asked before its server started was not asked of it. The clocks of processes that serve are no
/// further apart.
const ASKED_BEFORE_START: Duration = Duration::from_secs(2);

/// Where the asker itself hears the answer: between accounts the server writes another subject into the message.
pub(in crate::nats) const REPLY_TO: HeaderName = HeaderName::from_static("Stage0-Reply-To");
/// What a genuine answer to a question is.
#[derive(Debug)]
pub(in crate::nats) struct ExpectedReply {
    peer: Role,
    subject: String,
    id: MessageId,
}

/// Who asked, authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nats) struct Asker {
    pub(super) role: Role,
    pub(super) generation: u32,
    pub(super) id: MessageId,
}

impl Asker {
    /// Whether the question's id is the token of its answer.
    pub(in crate::nats) fn is_of(self, token: Token) -> bool {
        self.id == token.bytes()
    }
}

/// The notices that one listener heard; each listener of a process hears them all.
#[derive(Default)]
pub(in crate::nats) struct HeardBefore(Replays);

/// How a notice stands when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nats) enum NoticeStanding {
    /// It may be believed.
    Good,
    /// Its time is too far away to tell whether it was heard before: something may have been missed.
    Stale,
    /// It is dropped.
    Rejected,
}

impl MessageAuth {
    /// Authenticates a question; none: this role does not ask it.
    pub(in crate::nats) fn question(
        &self,
        subject: &str,
        to: &str,
        inbox: &ReplyInbox,
        sent: Sent,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<ExpectedReply> {
        let known = question(subject).filter(|known| known.from.contains(&self.role))?;
        let ring = self.ring();
        let key = ring.active.pair(known.to)?;
        // The answer's token, which is random: whoever sends the same question once more sends the same id.
        let envelope = self.envelope(ring.active.number, inbox.token.bytes());
        let more = sent.bytes();
        let more = [inbox.subject.as_bytes(), &more];
        let content = Content { kind: MessageKind::Question, receiver: Some(known.to), subject: to, more: &more, body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(known.to), mac.as_ref())]);
        headers.insert(REPLY_TO, HeaderValue::from(inbox.subject.as_str()));
        Some(ExpectedReply { peer: known.to, subject: to.to_owned(), id: envelope.id })
    }

    /// Judges a question; none in the good case: it is not authenticated, and need not be yet.
    pub(in crate::nats) fn judge_question(
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
    pub(in crate::nats) fn reply(
        &self,
        asker: Asker,
        subject: &str,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<()> {
        let ring = self.ring();
        let key = ring.live(asker.generation)?.pair(asker.role)?;
        let envelope = self.envelope(asker.generation, asker.id);
        let content = Content { kind: MessageKind::Reply, receiver: Some(asker.role), subject, more: &[], body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(asker.role), mac.as_ref())]);
        self.terms.add(headers, key, &envelope, &content);
        Some(())
    }

    /// Whether this answers that question. A forged answer ends no wait.
    pub(in crate::nats) fn is_reply(&self, expected: &ExpectedReply, message: &Message) -> bool {
        let judged = self.reply_of(expected, message);
        self.complain(MessageKind::Reply, &expected.subject, judged.as_ref().copied());
        judged.is_ok()
    }

    pub(super) fn reply_of(&self, expected: &ExpectedReply, message: &Message) -> Result<bool, Rejection> {
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
        if expected.peer == Role::Keystore {
            let ring = self.ring();
            let live = ring.live(sealed.envelope.generation).ok_or(Rejection::UnknownKey)?;
            let key = live.pair(expected.peer).ok_or(Rejection::UnknownKey)?;
            self.terms.judge(message.headers.as_ref(), key, &sealed.envelope, &content)?;
        }
        self.see_mark(&sealed.envelope);
        Ok(true)
    }

    /// Authenticates a notice for each role that hears it; none: this role does not tell it.
    pub(in crate::nats) fn notice(&self, subject: &str, to: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
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
    pub(in crate::nats) fn judge_notice(
        &self,
        message: &Message,
        subject: &str,
        before: &mut HeardBefore,
    ) -> NoticeStanding {
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
        match before.0.hear(id, at.saturating_add(skew), now, Instant::now()) {
            Hearing::First => {}
            Hearing::Again => return Err(Rejection::Replayed),
            Hearing::NoRoom => return Err(Rejection::Clock),
        }
        self.see_mark(&sealed.envelope);
        Ok(Some(sender))
    }

    fn prove(&self, sealed: &Sealed<'_>, content: &Content<'_>) -> Result<(), Rejection> {
        let ring = self.ring();
        let live: &Live = ring.live(sealed.envelope.generation).ok_or(Rejection::UnknownKey)?;
        let key = live.pair(sealed.envelope.sender).ok_or(Rejection::UnknownKey)?;
        let proof = sealed.proof(content.receiver).ok_or(Rejection::Forged)?;
        let right = sealed.envelope.mac(key, content);
        verify_slices_are_equal(right.as_ref(), &proof).map_err(|_| Rejection::Forged)
    }

    fn first(&self, id: MessageId, until: u64, now: u64) -> Result<(), Rejection> {
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        match replays.hear(id, until, now, Instant::now()) {
            Hearing::First => Ok(()),
            Hearing::Again | Hearing::NoRoom => Err(Rejection::Replayed),
        }
    }
}
