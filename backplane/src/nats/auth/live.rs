//! Live messages: requests, replies and notices. Each carries a MAC for each receiving role.
//!
//! The order of the checks: the sender's right to send it, then the MAC, then the time, and last whether it is a
//! replay; so only an authenticated message changes what is remembered.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use stage0_contract::{Role, event_route, request_route};

use super::super::config::OTHER_ACCOUNT;
use super::super::deadline::Timing;
use super::super::link::ReplyAddress;
use super::envelope::{Content, Envelope, Sealed};
use super::replays::{MessageId, Replay, Replays};
use super::{MessageAuth, MessageKind, Rejection, millis, now};
use crate::random;

/// A message that seems older, or further ahead, is refused: its id may no longer be remembered.
pub(super) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);
/// A request that was sent before its server started was not sent to it. Clocks differ by less than this.
const MAX_SENT_BEFORE_START: Duration = Duration::from_secs(2);

/// The reply subject as the requester sees it: between accounts the server replaces the one in the message.
pub(in crate::nats) const REPLY_TO: HeaderName = HeaderName::from_static("Stage0-Reply-To");
#[derive(Debug)]
pub(in crate::nats) struct ExpectedReply {
    peer: Role,
    subject: String,
    id: MessageId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nats) struct Requester {
    pub(super) role: Role,
    pub(super) generation: u32,
    /// The token of its reply subject.
    pub(in crate::nats) id: MessageId,
}

/// The notices that one subscription received; each subscription of a process receives all of them.
#[derive(Default)]
pub(in crate::nats) struct SeenNotices(Replays);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nats) enum NoticeCheck {
    Valid,
    /// Its time is too far off to tell whether it is a replay: a notice may have been missed.
    Stale,
    Rejected,
}

impl MessageAuth {
    /// Authenticates a request; none: this role may not send it.
    pub(in crate::nats) fn sign_request(
        &self,
        subject: &str,
        to: &str,
        inbox: &ReplyAddress,
        sent: Timing,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<ExpectedReply> {
        let known = request_route(subject).filter(|known| known.from.contains(&self.role))?;
        let ring = self.ring();
        let key = ring.active.pair(known.to)?;
        // The random token of the reply subject: a request that is sent again has the same id.
        let envelope = self.envelope(ring.active.number, inbox.token.bytes());
        let more = sent.bytes();
        let more = [inbox.subject.as_bytes(), &more];
        let content = Content { kind: MessageKind::Request, receiver: Some(known.to), subject: to, more: &more, body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(known.to), mac.as_ref())]);
        headers.insert(REPLY_TO, HeaderValue::from(inbox.subject.as_str()));
        Some(ExpectedReply { peer: known.to, subject: to.to_owned(), id: envelope.id })
    }

    /// Checks a request. `Ok(None)`: it is not authenticated, and that is still accepted.
    pub(in crate::nats) fn check_request(
        &self,
        message: &Message,
        subject: &str,
        sent: Timing,
    ) -> Result<Option<Requester>, Rejection> {
        let checked = self.verify_request(message, subject, sent);
        self.report(MessageKind::Request, subject, checked.as_ref().map(Option::is_some));
        checked
    }

    fn verify_request(&self, message: &Message, subject: &str, sent: Timing) -> Result<Option<Requester>, Rejection> {
        let Some(sealed) = self.parse_envelope(message.headers.as_ref())? else { return Ok(None) };
        let Envelope { sender, generation, id, .. } = sealed.envelope;
        let known = request_route(subject).filter(|known| known.to == self.role && known.from.contains(&sender));
        known.ok_or(Rejection::NotAllowed)?;
        let inbox = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO)).map_or("", HeaderValue::as_str);
        let more = sent.bytes();
        let more = [inbox.as_bytes(), &more];
        let content = Content { more: &more, ..self.content(MessageKind::Request, &message.subject, &message.payload) };
        self.verify_mac(&sealed, &content)?;
        let reply = message.reply.as_ref().map_or("", |reply| reply.as_str());
        if reply != inbox && !reply.starts_with(OTHER_ACCOUNT) {
            return Err(Rejection::Forged);
        }
        let (sent_at, deadline) = sent.span();
        let (skew, now) = (millis(MAX_CLOCK_SKEW), now());
        if sent_at > now.saturating_add(skew) || now > deadline.saturating_add(skew) {
            return Err(Rejection::Clock);
        }
        // Later on, a request that old is refused for its age; and the wall clock may have been set since.
        let (started, since) = self.started;
        let is_young = since.elapsed() < MAX_CLOCK_SKEW.saturating_add(Duration::from_millis(deadline - sent_at));
        if is_young && sent_at.saturating_add(millis(MAX_SENT_BEFORE_START)) < started {
            return Err(Rejection::Clock);
        }
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        match replays.record(id, deadline.saturating_add(skew), now, Instant::now()) {
            Replay::First => {}
            Replay::Again | Replay::Full => return Err(Rejection::Replayed),
        }
        drop(replays);
        self.follow_requirement(&sealed.envelope);
        Ok(Some(Requester { role: sender, generation, id }))
    }

    /// Authenticates a reply, with the keys of its request.
    pub(in crate::nats) fn reply(
        &self,
        requester: Requester,
        subject: &str,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<()> {
        let ring = self.ring();
        let key = ring.live(requester.generation)?.pair(requester.role)?;
        let envelope = self.envelope(requester.generation, requester.id);
        let content = Content { kind: MessageKind::Reply, receiver: Some(requester.role), subject, more: &[], body };
        let mac = envelope.mac(key, &content);
        envelope.seal(headers, [(Some(requester.role), mac.as_ref())]);
        self.terms.attach(headers, key, &envelope, &content);
        Some(())
    }

    /// Whether this is the reply to that request. A forged reply ends no wait.
    pub(in crate::nats) fn is_reply(&self, expected: &ExpectedReply, message: &Message) -> bool {
        let checked = self.verify_reply(expected, message);
        self.report(MessageKind::Reply, &expected.subject, checked.as_ref().copied());
        checked.is_ok()
    }

    pub(super) fn verify_reply(&self, expected: &ExpectedReply, message: &Message) -> Result<bool, Rejection> {
        let Some(sealed) = self.parse_envelope(message.headers.as_ref())? else { return Ok(false) };
        if sealed.envelope.sender != expected.peer {
            return Err(Rejection::NotAllowed);
        }
        if sealed.envelope.id != expected.id {
            return Err(Rejection::Replayed);
        }
        let content = self.content(MessageKind::Reply, &expected.subject, &message.payload);
        self.verify_mac(&sealed, &content)?;
        if expected.peer == Role::Keystore {
            let ring = self.ring();
            let key = ring.live_pair(&sealed.envelope).ok_or(Rejection::UnknownKey)?;
            self.terms.check(message.headers.as_ref(), key, &sealed.envelope, &content)?;
        }
        self.follow_requirement(&sealed.envelope);
        Ok(true)
    }

    /// Authenticates a notice for each role that receives it; none: this role may not publish it.
    pub(in crate::nats) fn notice(&self, subject: &str, to: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        let known = event_route(subject).filter(|known| known.from.contains(&self.role))?;
        let ring = self.ring();
        let envelope = self.envelope(ring.active.number, random()?);
        let mac = |receiver: Role| {
            let content = Content { kind: MessageKind::Notice, receiver: Some(receiver), subject: to, more: &[], body };
            ring.active.pair(receiver).map(|key| (Some(receiver), envelope.mac(key, &content)))
        };
        let macs = known.to.iter().map(|receiver| mac(*receiver)).collect::<Option<Vec<_>>>()?;
        envelope.seal(headers, macs.iter().map(|(receiver, mac)| (*receiver, mac.as_ref())));
        Some(())
    }

    pub(in crate::nats) fn check_notice(
        &self,
        message: &Message,
        subject: &str,
        seen: &mut SeenNotices,
    ) -> NoticeCheck {
        let checked = self.verify_notice(message, subject, seen);
        self.report(MessageKind::Notice, subject, checked.as_ref().map(Option::is_some));
        match checked {
            Ok(Some(sender)) => {
                self.note_heartbeat(subject, sender);
                NoticeCheck::Valid
            }
            Ok(None) => {
                self.log_instance_without_keys(subject, &message.payload);
                NoticeCheck::Valid
            }
            Err(Rejection::Clock) => NoticeCheck::Stale,
            Err(_) => NoticeCheck::Rejected,
        }
    }

    fn verify_notice(
        &self,
        message: &Message,
        subject: &str,
        seen: &mut SeenNotices,
    ) -> Result<Option<Role>, Rejection> {
        let Some(sealed) = self.parse_envelope(message.headers.as_ref())? else { return Ok(None) };
        let Envelope { sender, id, at, .. } = sealed.envelope;
        let known = event_route(subject).filter(|known| known.to.contains(&self.role) && known.from.contains(&sender));
        known.ok_or(Rejection::NotAllowed)?;
        let content = self.content(MessageKind::Notice, &message.subject, &message.payload);
        self.verify_mac(&sealed, &content)?;
        let (skew, now) = (millis(MAX_CLOCK_SKEW), now());
        if at.abs_diff(now) > skew {
            return Err(Rejection::Clock);
        }
        match seen.0.record(id, at.saturating_add(skew), now, Instant::now()) {
            Replay::First => {}
            Replay::Again => return Err(Rejection::Replayed),
            Replay::Full => return Err(Rejection::Clock),
        }
        self.follow_requirement(&sealed.envelope);
        Ok(Some(sender))
    }

    fn verify_mac(&self, sealed: &Sealed<'_>, content: &Content<'_>) -> Result<(), Rejection> {
        let ring = self.ring();
        let key = ring.live_pair(&sealed.envelope).ok_or(Rejection::UnknownKey)?;
        let proof = sealed.proof(content.receiver).ok_or(Rejection::Forged)?;
        let expected_mac = sealed.envelope.mac(key, content);
        verify_slices_are_equal(expected_mac.as_ref(), &proof).map_err(|_| Rejection::Forged)
    }
}
