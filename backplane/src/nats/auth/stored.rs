//! What is stored: entries of the log, signed by the role that appends them, and records of the ledger, with a MAC of
//! their owner.
//!
//! Owns what is covered, and that nothing older can be put back: a record's MAC covers the revision that the server let
//! it replace. What was stored before the switch of an upgraded deployment may be without; the time is the server's,
//! behind whatever a publisher wrote.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use async_nats::{HeaderMap, HeaderName};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use stage0_contract::{Role, owner_of_record};

use super::super::jetstream::Stored;
use super::super::log::{EXPECTED_LAST, MESSAGE_ID};
use super::envelope::{Content, Envelope, Sealed};
use super::newest::{Newest, NewestRecords};
use super::replays::MessageId;
use super::{MessageAuth, MessageKind, Rejection, new_id};

pub(in crate::nats) const LIFETIME: HeaderName = HeaderName::from_static("Nats-TTL");

/// Moves the check of the expected sequence to another subject.
const EXPECTED_LAST_OF: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");

/// Signatures that are remembered, at most twice as many: 32 bytes each, and some for their place.
const MAX_VERIFIED: usize = 16_384;

/// That this key signed these bytes so.
#[derive(PartialEq, Eq, Hash)]
struct Statement([u8; 32]);

/// Signatures that held. Deliveries read the same stretch of the log again and again, and a signature takes as long as
/// thirty hashes.
#[derive(Default)]
pub(super) struct Verified {
    newer: HashSet<Statement>,
    older: HashSet<Statement>,
}

impl Statement {
    /// All three are of a fixed length where the signature can hold.
    fn of(digest: &[u8], proof: &[u8], public: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        [public, digest, proof].into_iter().for_each(|part| context.update(part));
        let mut statement = [0; 32];
        statement.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(statement)
    }
}

impl Verified {
    fn contains(&self, statement: &Statement) -> bool {
        self.newer.contains(statement) || self.older.contains(statement)
    }

    fn insert(&mut self, statement: Statement) {
        if self.newer.len() >= MAX_VERIFIED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(statement);
    }
}

impl MessageAuth {
    fn verified(&self) -> MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs what is appended to the log; a mark also in which place.
    pub(in crate::nats) fn sign_entry(
        &self,
        subject: &str,
        id: &str,
        body: &[u8],
        headers: &mut HeaderMap,
    ) -> Option<()> {
        let ring = self.ring();
        let key = ring.active.signing()?;
        let envelope = self.envelope(ring.active.number, new_id()?);
        let expected = headers.get(EXPECTED_LAST).map(|value| value.as_str().to_owned());
        let (id, expected) = (id.as_bytes(), expected.as_deref().unwrap_or_default().as_bytes());
        let more: &[&[u8]] = if is_mark(subject) { &[id, expected] } else { &[id] };
        let content = Content { kind: MessageKind::Entry, receiver: None, subject, more, body };
        let signature = key.sign(envelope.digest(&content).as_ref());
        envelope.seal(headers, [(None, signature.as_ref())]);
        Some(())
    }

    /// The id by which the server knows a batch that is appended again: nobody else can say it first.
    pub(in crate::nats) fn message_id(&self, id: &str, body: &[u8]) -> String {
        let ring = self.ring();
        let mut context = hmac::Context::with_key(&ring.active.records);
        context.update(b"stage0 message id v1");
        context.update(&u64::try_from(id.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(id.as_bytes());
        context.update(body);
        data_encoding::BASE64URL_NOPAD.encode(context.sign().as_ref())
    }

    /// Whether an entry of the log is what the role that appends such entries put there.
    pub(in crate::nats) fn is_genuine(&self, stored: &Stored) -> bool {
        let judged = self.entry_of(stored);
        self.complain(MessageKind::Entry, &stored.subject, judged.as_ref().copied());
        judged.is_ok()
    }

    fn entry_of(&self, stored: &Stored) -> Result<bool, Rejection> {
        let Some(sealed) = self.sealed_of_store(stored)? else { return Ok(false) };
        let Envelope { sender, generation, .. } = sealed.envelope;
        let writer = if is_mark(&stored.subject) { Role::AuditExport } else { Role::Gateway };
        if sender != writer {
            return Err(Rejection::NotAllowed);
        }
        let ring = self.ring();
        let signer = ring.stored(generation, stored.at).and_then(|live| live.signer(sender));
        let signer = signer.ok_or(Rejection::UnknownKey)?;
        let id = only(stored, &MESSAGE_ID).unwrap_or_default();
        // The server took a mark only behind that one: so none can be appended again.
        let expected = if is_mark(&stored.subject) { in_place(stored).ok_or(Rejection::Forged)? } else { "" };
        let (id, expected) = (id.as_bytes(), expected.as_bytes());
        let content = Content {
            kind: MessageKind::Entry,
            receiver: None,
            subject: &stored.subject,
            more: if is_mark(&stored.subject) { &[id, expected] } else { &[id] },
            body: &stored.payload,
        };
        let proof = sealed.proof(None).ok_or(Rejection::Forged)?;
        let digest = sealed.envelope.digest(&content);
        let statement = Statement::of(digest.as_ref(), &proof, &signer.0);
        if self.verified().contains(&statement) {
            return Ok(true);
        }
        let holds = UnparsedPublicKey::new(&ED25519, &signer.0).verify(digest.as_ref(), &proof);
        holds.map_err(|_| Rejection::Forged)?;
        self.verified().insert(statement);
        Ok(true)
    }

    /// Authenticates a record of this role's own; none: it is another's.
    pub(in crate::nats) fn record(&self, key: &str, subject: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
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

    fn newest_records(&self) -> MutexGuard<'_, NewestRecords> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest record of a subject that this process saw or wrote.
    pub(in crate::nats) fn newest(&self, subject: &str) -> Option<Newest> {
        self.newest_records().get(subject)
    }

    /// Remembers a record that was believed, or put and acknowledged.
    pub(in crate::nats) fn note_newest(&self, subject: &str, headers: Option<&HeaderMap>) {
        if let Some(found) = self.what_it_is(headers) {
            self.newest_records().note(subject, found);
        }
    }

    fn what_it_is(&self, headers: Option<&HeaderMap>) -> Option<Newest> {
        let sealed = Sealed::parse(headers)?.ok()?;
        let replaced = headers?.get(EXPECTED_LAST)?.as_str().parse().ok()?;
        Some(Newest { replaced, at: sealed.envelope.at, proof: sealed.proof(Some(self.role))? })
    }

    /// Whether a record is what this role put there, and no older than what was `known` of it before it was asked for.
    /// `proven`: what is not authenticated does not do, whenever it was stored.
    pub(in crate::nats) fn judge_record(
        &self,
        key: &str,
        stored: &Stored,
        proven: bool,
        known: Option<&Newest>,
    ) -> Result<(), Rejection> {
        let judged = self.record_of(key, stored, proven || known.is_some()).and_then(|is_proven| {
            let found = self.what_it_is(stored.headers.as_ref());
            let follows = known.is_none_or(|known| found.is_some_and(|found| known.may_precede(&found)));
            if follows { Ok(is_proven) } else { Err(Rejection::Replayed) }
        });
        self.complain(MessageKind::Record, key, judged.as_ref().copied());
        judged.map(|_| self.note_newest(&stored.subject, stored.headers.as_ref()))
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
        let expected = in_place(stored).ok_or(Rejection::Forged)?;
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
}

fn is_mark(subject: &str) -> bool {
    subject.ends_with(".m")
}

/// The sequence in whose place the server took it: of its own subject, and not of another one that it names.
fn in_place(stored: &Stored) -> Option<&str> {
    let elsewhere = stored.headers.as_ref()?.get(EXPECTED_LAST_OF);
    only(stored, &EXPECTED_LAST).filter(|_| elsewhere.is_none())
}

/// The value of a header that is there once; of two, the server may have gone by the other.
fn only<'m>(stored: &'m Stored, name: &HeaderName) -> Option<&'m str> {
    let mut all = stored.headers.as_ref()?.get_all(name.clone());
    let value = all.next()?;
    all.next().is_none().then_some(value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_held_is_remembered_of_the_same_key_bytes_and_signature_alone_and_not_for_ever() {
        let mut verified = Verified::default();
        let statement = |number: u32| Statement::of(&[1; 32], &number.to_be_bytes(), &[3; 32]);
        verified.insert(statement(0));
        assert!(verified.contains(&statement(0)) && !verified.contains(&statement(1)));
        for other in [([2; 32], [3; 32]), ([1; 32], [4; 32])] {
            assert!(!verified.contains(&Statement::of(&other.0, &0_u32.to_be_bytes(), &other.1)));
        }
        for number in 1..=2 * MAX_VERIFIED as u32 {
            verified.insert(statement(number));
        }
        assert!(!verified.contains(&statement(0)) && verified.contains(&statement(2 * MAX_VERIFIED as u32)));
        assert!(verified.newer.len() <= MAX_VERIFIED && verified.older.len() <= MAX_VERIFIED);
    }
}
