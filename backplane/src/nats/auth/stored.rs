//! Stored data: log entries, signed by the role that appends them, and state store records, with a MAC of their owner.
//!
//! Owns what is covered, and that no older version can be put back: a record's MAC covers the revision that it
//! replaced. What was stored before the switch of an upgraded deployment may be unauthenticated; the time is the
//! server's, not the publisher's.

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

pub(in crate::nats) const TTL: HeaderName = HeaderName::from_static("Nats-TTL");

/// Moves the check of the expected sequence to another subject.
const EXPECTED_LAST_OF: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");

/// Signatures that are remembered, at most twice as many: 32 bytes each plus overhead.
const MAX_VERIFIED: usize = 16_384;

/// Hash over a public key, a digest and a signature that matched.
#[derive(PartialEq, Eq, Hash)]
struct SignatureHash([u8; 32]);

/// Signatures that were verified. Deliveries read the same range of the log repeatedly, and checking a signature takes
/// as long as thirty hashes.
#[derive(Default)]
pub(super) struct VerifiedSignatures {
    newer: HashSet<SignatureHash>,
    older: HashSet<SignatureHash>,
}

impl SignatureHash {
    /// All three parts have a fixed length if the signature can be valid.
    fn of(digest: &[u8], proof: &[u8], public: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        [public, digest, proof].into_iter().for_each(|part| context.update(part));
        let mut hash = [0; 32];
        hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(hash)
    }
}

impl VerifiedSignatures {
    fn contains(&self, hash: &SignatureHash) -> bool {
        self.newer.contains(hash) || self.older.contains(hash)
    }

    fn insert(&mut self, hash: SignatureHash) {
        if self.newer.len() >= MAX_VERIFIED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(hash);
    }
}

impl MessageAuth {
    fn verified(&self) -> MutexGuard<'_, VerifiedSignatures> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs what is appended to the log; a mark's signature also covers its position.
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

    /// The id by which the server recognises a batch that is appended again; no other role can compute it.
    pub(in crate::nats) fn message_id(&self, id: &str, body: &[u8]) -> String {
        let ring = self.ring();
        let mut context = hmac::Context::with_key(&ring.active.records);
        context.update(b"stage0 message id v1");
        context.update(&u64::try_from(id.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(id.as_bytes());
        context.update(body);
        data_encoding::BASE64URL_NOPAD.encode(context.sign().as_ref())
    }

    /// Whether an entry of the log was appended by the role that appends such entries.
    pub(in crate::nats) fn is_genuine(&self, stored: &Stored) -> bool {
        let checked = self.verify_entry(stored);
        self.report(MessageKind::Entry, &stored.subject, checked.as_ref().copied());
        checked.is_ok()
    }

    fn verify_entry(&self, stored: &Stored) -> Result<bool, Rejection> {
        let Some(sealed) = self.parse_stored_envelope(stored)? else { return Ok(false) };
        let Envelope { sender, generation, .. } = sealed.envelope;
        let writer = if is_mark(&stored.subject) { Role::AuditExport } else { Role::Gateway };
        if sender != writer {
            return Err(Rejection::NotAllowed);
        }
        let ring = self.ring();
        let signer = ring.stored(generation, stored.at).and_then(|live| live.signer(sender));
        let signer = signer.ok_or(Rejection::UnknownKey)?;
        let id = single_header(stored, &MESSAGE_ID).unwrap_or_default();
        // The server accepted a mark only after that one, so it cannot be appended again.
        let expected = if is_mark(&stored.subject) { expected_sequence(stored).ok_or(Rejection::Forged)? } else { "" };
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
        let hash = SignatureHash::of(digest.as_ref(), &proof, &signer.0);
        if self.verified().contains(&hash) {
            return Ok(true);
        }
        let holds = UnparsedPublicKey::new(&ED25519, &signer.0).verify(digest.as_ref(), &proof);
        holds.map_err(|_| Rejection::Forged)?;
        self.verified().insert(hash);
        Ok(true)
    }

    /// Authenticates a record of this role; none: it belongs to another role.
    pub(in crate::nats) fn record(&self, key: &str, subject: &str, body: &[u8], headers: &mut HeaderMap) -> Option<()> {
        if owner_of_record(key) != self.role {
            return None;
        }
        let ring = self.ring();
        let envelope = self.envelope(ring.active.number, MessageId::default());
        let text = |name: HeaderName| headers.get(name).map_or_else(String::new, |value| value.as_str().to_owned());
        let (expected, ttl) = (text(EXPECTED_LAST), text(TTL));
        let more = [expected.as_bytes(), ttl.as_bytes()];
        let content = Content { kind: MessageKind::Record, receiver: Some(self.role), subject, more: &more, body };
        let mac = envelope.mac(&ring.active.records, &content);
        envelope.seal(headers, [(Some(self.role), mac.as_ref())]);
        Some(())
    }

    fn newest_records(&self) -> MutexGuard<'_, NewestRecords> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version of a record that this process read or wrote.
    pub(in crate::nats) fn newest(&self, subject: &str) -> Option<Newest> {
        self.newest_records().get(subject)
    }

    /// Remembers a version that was verified, or put and acknowledged.
    pub(in crate::nats) fn note_newest(&self, subject: &str, headers: Option<&HeaderMap>) {
        if let Some(found) = self.version_of(headers) {
            self.newest_records().note(subject, found);
        }
    }

    fn version_of(&self, headers: Option<&HeaderMap>) -> Option<Newest> {
        let sealed = Sealed::parse(headers)?.ok()?;
        let replaced = headers?.get(EXPECTED_LAST)?.as_str().parse().ok()?;
        Some(Newest { replaced, at: sealed.envelope.at, proof: sealed.proof(Some(self.role))? })
    }

    /// Whether a record was put by this role and is no older than `known`, the version known before it was read.
    /// `proven`: an unauthenticated record is refused, whenever it was stored.
    pub(in crate::nats) fn check_record(
        &self,
        key: &str,
        stored: &Stored,
        proven: bool,
        known: Option<&Newest>,
    ) -> Result<(), Rejection> {
        let checked = self.verify_record(key, stored, proven || known.is_some()).and_then(|is_proven| {
            let found = self.version_of(stored.headers.as_ref());
            let follows = known.is_none_or(|known| found.is_some_and(|found| known.may_precede(&found)));
            if follows { Ok(is_proven) } else { Err(Rejection::Replayed) }
        });
        self.report(MessageKind::Record, key, checked.as_ref().copied());
        checked.map(|_| self.note_newest(&stored.subject, stored.headers.as_ref()))
    }

    fn verify_record(&self, key: &str, stored: &Stored, proven: bool) -> Result<bool, Rejection> {
        let sealed = match self.parse_stored_envelope(stored)? {
            Some(sealed) => sealed,
            None if proven => return Err(Rejection::Unauthenticated),
            None => return Ok(false),
        };
        if sealed.envelope.sender != self.role || owner_of_record(key) != self.role {
            return Err(Rejection::NotAllowed);
        }
        let ring = self.ring();
        let live = ring.stored(sealed.envelope.generation, stored.at).ok_or(Rejection::UnknownKey)?;
        // The server accepted it only in place of that revision, so an older version cannot be put back.
        let expected = expected_sequence(stored).ok_or(Rejection::Forged)?;
        let ttl = single_header(stored, &TTL).unwrap_or_default();
        let content = Content {
            kind: MessageKind::Record,
            receiver: Some(self.role),
            subject: &stored.subject,
            more: &[expected.as_bytes(), ttl.as_bytes()],
            body: &stored.payload,
        };
        let proof = sealed.proof(Some(self.role)).ok_or(Rejection::Forged)?;
        let expected_mac = sealed.envelope.mac(&live.records, &content);
        verify_slices_are_equal(expected_mac.as_ref(), &proof).map(|()| true).map_err(|_| Rejection::Forged)
    }

    /// Like [`Self::parse_envelope`], for stored data: before the switch it may be unauthenticated.
    fn parse_stored_envelope<'m>(&self, stored: &'m Stored) -> Result<Option<Sealed<'m>>, Rejection> {
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

/// The sequence that the server checked; none if it checked that of another subject.
fn expected_sequence(stored: &Stored) -> Option<&str> {
    let elsewhere = stored.headers.as_ref()?.get(EXPECTED_LAST_OF);
    single_header(stored, &EXPECTED_LAST).filter(|_| elsewhere.is_none())
}

/// The value of a header that occurs once; of two, the server may have used the other.
fn single_header<'m>(stored: &'m Stored, name: &HeaderName) -> Option<&'m str> {
    let mut all = stored.headers.as_ref()?.get_all(name.clone());
    let value = all.next()?;
    all.next().is_none().then_some(value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verified_signature_is_remembered_for_the_same_key_and_bytes_only_and_not_for_ever() {
        let mut verified = VerifiedSignatures::default();
        let hash = |number: u32| SignatureHash::of(&[1; 32], &number.to_be_bytes(), &[3; 32]);
        verified.insert(hash(0));
        assert!(verified.contains(&hash(0)) && !verified.contains(&hash(1)));
        for other in [([2; 32], [3; 32]), ([1; 32], [4; 32])] {
            assert!(!verified.contains(&SignatureHash::of(&other.0, &0_u32.to_be_bytes(), &other.1)));
        }
        for number in 1..=2 * MAX_VERIFIED as u32 {
            verified.insert(hash(number));
        }
        assert!(!verified.contains(&hash(0)) && verified.contains(&hash(2 * MAX_VERIFIED as u32)));
        assert!(verified.newer.len() <= MAX_VERIFIED && verified.older.len() <= MAX_VERIFIED);
    }
}
