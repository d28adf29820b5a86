//! Stored data: log entries, signed by the role that appends them, and state store records, with a MAC of their owner.
//!
//! No older version can be put back: a record's MAC covers the revision that it replaced. What was stored before the
//! switch of an upgraded deployment may be unauthenticated; the time is the server's, not the publisher's.

use std::collections::{HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};

use async_nats::{HeaderMap, HeaderName};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use stage0_contract::{Role, owner_of_record};

use super::super::jetstream::Stored;
use super::super::log::{EXPECTED_LAST, MESSAGE_ID};
use super::envelope::{Content, Envelope, Sealed};
use super::replays::MessageId;
use super::{MessageAuth, MessageKind, Rejection};
use crate::random;

pub(in crate::nats) const TTL: HeaderName = HeaderName::from_static("Nats-TTL");

const EXPECTED_LAST_OF: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");

/// Signatures that are remembered, at most twice as many: 32 bytes each plus overhead.
const MAX_VERIFIED: usize = 16_384;

/// Records in each of two halves; the older half is dropped when the newer one is full.
const MAX_NEWEST: usize = 50_000;

/// Hash over a public key, a digest and a signature that matched.
#[derive(PartialEq, Eq, Hash)]
struct SignatureHash([u8; 32]);

/// Deliveries read the same range of the log repeatedly, and checking a signature takes as long as thirty hashes.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nats) struct Newest {
    /// The revision that it replaced; 0: there was none.
    replaced: u64,
    /// Milliseconds since the epoch by its writer's clock.
    at: u64,
    proof: Vec<u8>,
}

/// The newest record of each subject that this process read or wrote, so that an older one is refused. Compared by what
/// a record's MAC covers and not by the sequence in the answer, which an impostor of the server could choose.
#[derive(Default)]
pub(super) struct NewestRecords {
    newer: HashMap<String, Newest>,
    older: HashMap<String, Newest>,
}

impl Newest {
    /// Whether the other is the same version, a later one, or the first of a record that was created again.
    fn may_precede(&self, other: &Self) -> bool {
        let same = other.proof == self.proof;
        same || other.replaced > self.replaced || (other.replaced == 0 && other.at > self.at)
    }
}

impl NewestRecords {
    fn get(&self, subject: &str) -> Option<Newest> {
        self.newer.get(subject).or_else(|| self.older.get(subject)).cloned()
    }

    fn note(&mut self, subject: &str, found: Newest) {
        if self.get(subject).is_some_and(|known| !known.may_precede(&found)) {
            return;
        }
        if self.newer.len() >= MAX_NEWEST {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(subject.to_owned(), found);
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
        let key = ring.active.signing.as_deref()?;
        let envelope = self.envelope(ring.active.number, random()?);
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
        let signer = ring.stored(generation, stored.at).and_then(|live| live.signers.get(&sender));
        let signer = signer.ok_or(Rejection::UnknownKey)?;
        let mut more = vec![single_header(stored, &MESSAGE_ID).unwrap_or_default().as_bytes()];
        if is_mark(&stored.subject) {
            // The server accepted a mark only after that one, so it cannot be appended again.
            more.push(expected_sequence(stored).ok_or(Rejection::Forged)?.as_bytes());
        }
        let content = Content {
            receiver: None,
            more: &more,
            ..self.content(MessageKind::Entry, &stored.subject, &stored.payload)
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
        let content = Content { more: &more, ..self.content(MessageKind::Record, subject, body) };
        let mac = envelope.mac(&ring.active.records, &content);
        envelope.seal(headers, [(Some(self.role), mac.as_ref())]);
        Some(())
    }

    fn newest_records(&self) -> MutexGuard<'_, NewestRecords> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        let sealed = Sealed::parse(headers).ok()??;
        let replaced = headers?.get(EXPECTED_LAST)?.as_str().parse().ok()?;
        Some(Newest { replaced, at: sealed.envelope.at, proof: sealed.proof(Some(self.role))? })
    }

    /// Whether a record says of itself that it is older than `known`.
    pub(in crate::nats) fn is_older(&self, stored: &Stored, known: &Newest) -> bool {
        self.version_of(stored.headers.as_ref()).is_some_and(|found| !known.may_precede(&found))
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
        let more = [expected.as_bytes(), ttl.as_bytes()];
        let content = Content { more: &more, ..self.content(MessageKind::Record, &stored.subject, &stored.payload) };
        let proof = sealed.proof(Some(self.role)).ok_or(Rejection::Forged)?;
        let expected_mac = sealed.envelope.mac(&live.records, &content);
        verify_slices_are_equal(expected_mac.as_ref(), &proof).map(|()| true).map_err(|_| Rejection::Forged)
    }

    /// Like [`Self::parse_envelope`], for stored data: before the switch it may be unauthenticated.
    fn parse_stored_envelope<'m>(&self, stored: &'m Stored) -> Result<Option<Sealed<'m>>, Rejection> {
        let is_older = || self.since.borrow().is_some_and(|since| stored.at < since);
        match Sealed::parse(stored.headers.as_ref())? {
            None if self.is_required() && !is_older() => Err(Rejection::Unauthenticated),
            sealed => Ok(sealed),
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

    fn record(replaced: u64, at: u64) -> Newest {
        Newest { replaced, at, proof: format!("{replaced} {at}").into_bytes() }
    }

    #[test]
    fn a_later_record_version_follows_and_an_older_one_does_not_unless_it_was_created_again() {
        let known = record(5, 100);
        for (other, follows) in
            [(record(5, 100), true), (record(6, 99), true), (record(0, 101), true), (record(5, 101), false)]
        {
            assert_eq!(known.may_precede(&other), follows, "{other:?}");
        }
        assert!(!known.may_precede(&record(4, 200)) && !known.may_precede(&record(0, 90)));
    }

    #[test]
    fn the_newest_record_versions_are_kept_and_the_longest_unused_forgotten() {
        let mut all = NewestRecords::default();
        all.note("a", record(5, 100));
        all.note("a", record(4, 100));
        assert_eq!(all.get("a"), Some(record(5, 100)));
        for number in 0..2 * MAX_NEWEST {
            all.note(&number.to_string(), record(1, 1));
        }
        assert!(all.get("a").is_none() && all.newer.len() <= MAX_NEWEST && all.older.len() <= MAX_NEWEST);
    }
}
