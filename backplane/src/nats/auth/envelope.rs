//! The header that authenticates a message, and the bytes that its MAC or signature covers.
//!
//! The header is `v1 <sender> <generation> <id> <milliseconds> <mark> <proofs>`: the id in base64url, the mark `r`
//! where the sender refuses unauthenticated messages, otherwise `-`. A proof is `<receiver>:<MAC>`, one for each
//! receiving role, or `-:<signature>`, which every role can check.
//! INVARIANT: every covered part is preceded by its length, and all of them by a word for the kind, so that no two
//! messages and no two kinds have the same bytes.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use aws_lc_rs::{digest, hmac};
use data_encoding::BASE64URL_NOPAD;
use stage0_contract::Role;

use super::super::jetstream::is_malformed;
use super::rejection::Rejection;
use super::replays::MessageId;

pub(super) const AUTH: HeaderName = HeaderName::from_static("Stage0-Auth");
const VERSION: &str = "v1";
const NO_ROLE: &str = "-";
const MAX_HEADER_BYTES: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MessageKind {
    Request,
    Reply,
    Notice,
    Entry,
    Record,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) sender: Role,
    pub(super) generation: u32,
    pub(super) id: MessageId,
    /// When it was sent, in milliseconds since the epoch by the sender's clock.
    pub(super) at: u64,
    /// The sender refuses unauthenticated messages, and every receiver should.
    pub(super) required: bool,
}

pub(super) struct Sealed<'m> {
    pub(super) envelope: Envelope,
    proofs: &'m str,
}

pub(super) struct Content<'m> {
    pub(super) kind: MessageKind,
    /// The receiving role; none: every role that reads it.
    pub(super) receiver: Option<Role>,
    pub(super) subject: &'m str,
    pub(super) more: &'m [&'m [u8]],
    pub(super) body: &'m [u8],
}

impl MessageKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Request => "question",
            Self::Reply => "reply",
            Self::Notice => "notice",
            Self::Entry => "entry",
            Self::Record => "record",
        }
    }

    fn domain(self) -> &'static [u8] {
        match self {
            Self::Request => b"stage0 question v1",
            Self::Reply => b"stage0 reply v1",
            Self::Notice => b"stage0 notice v1",
            Self::Entry => b"stage0 entry v1",
            Self::Record => b"stage0 record v1",
        }
    }
}

impl Envelope {
    pub(super) fn seal<'p>(&self, headers: &mut HeaderMap, proofs: impl IntoIterator<Item = (Option<Role>, &'p [u8])>) {
        let mut text = format!(
            "{VERSION} {} {} {} {} {} ",
            self.sender,
            self.generation,
            BASE64URL_NOPAD.encode(&self.id),
            self.at,
            if self.required { "r" } else { NO_ROLE }
        );
        for (index, (receiver, proof)) in proofs.into_iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(receiver.map_or(NO_ROLE, Role::as_str));
            text.push(':');
            BASE64URL_NOPAD.encode_append(proof, &mut text);
        }
        headers.insert(AUTH, HeaderValue::from(text.as_str()));
    }

    fn each_part<'m>(&'m self, content: &Content<'m>, mut add: impl FnMut(&[u8])) {
        let mut part = |bytes: &[u8]| {
            add(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            add(bytes);
        };
        part(content.kind.domain());
        part(self.sender.as_str().as_bytes());
        part(content.receiver.map_or(NO_ROLE, Role::as_str).as_bytes());
        part(&self.generation.to_be_bytes());
        part(&self.id);
        part(&self.at.to_be_bytes());
        part(&[u8::from(self.required)]);
        part(content.subject.as_bytes());
        content.more.iter().for_each(|more| part(more));
        part(content.body);
    }

    pub(super) fn mac(&self, key: &hmac::Key, content: &Content<'_>) -> hmac::Tag {
        let mut context = hmac::Context::with_key(key);
        self.each_part(content, |bytes| context.update(bytes));
        context.sign()
    }

    /// The digest that a signature covers: a body may be megabytes, and a signature reads its input twice.
    pub(super) fn digest(&self, content: &Content<'_>) -> digest::Digest {
        let mut context = digest::Context::new(&digest::SHA256);
        self.each_part(content, |bytes| context.update(bytes));
        context.finish()
    }
}

impl<'m> Sealed<'m> {
    /// None: there is no such header.
    pub(super) fn parse(headers: Option<&'m HeaderMap>) -> Result<Option<Self>, Rejection> {
        // The header, or another one that matters, may be in a line that cannot be parsed.
        if is_malformed(headers) {
            return Err(Rejection::Malformed);
        }
        let mut all = headers.into_iter().flat_map(|headers| headers.get_all(AUTH));
        let Some(text) = all.next().map(HeaderValue::as_str) else { return Ok(None) };
        // With two headers, two readers could trust different ones.
        if all.next().is_some() || text.len() > MAX_HEADER_BYTES {
            return Err(Rejection::Malformed);
        }
        Self::read(text).map(Some).ok_or(Rejection::Malformed)
    }

    fn read(text: &'m str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (version, role) = (parts.next()?, parts.next()?);
        let sender = Role::ALL.into_iter().find(|known| known.as_str() == role)?;
        let generation = parts.next()?.parse().ok()?;
        let id = BASE64URL_NOPAD.decode(parts.next()?.as_bytes()).ok()?.as_slice().try_into().ok()?;
        let at = parts.next()?.parse().ok()?;
        let required = match parts.next()? {
            "r" => true,
            NO_ROLE => false,
            _ => return None,
        };
        let proofs = parts.next()?;
        let envelope = Envelope { sender, generation, id, at, required };
        (version == VERSION && parts.next().is_none()).then_some(Self { envelope, proofs })
    }

    pub(super) fn proof(&self, receiver: Option<Role>) -> Option<Vec<u8>> {
        let wanted = receiver.map_or(NO_ROLE, Role::as_str);
        let proofs = self.proofs.split(',').filter_map(|proof| proof.split_once(':'));
        let (_, proof) = proofs.into_iter().find(|(name, _)| *name == wanted)?;
        BASE64URL_NOPAD.decode(proof.as_bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope { sender: Role::Gateway, generation: 7, id: [9; 16], at: 1_700_000_000_000, required: true }
    }

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[1; 32])
    }

    const CONTENT: Content<'static> = Content {
        kind: MessageKind::Request,
        receiver: Some(Role::Keystore),
        subject: "s0.req.keys.verify",
        more: &[b"inbox", b"deadline"],
        body: b"{}",
    };

    #[test]
    fn the_bytes_that_a_mac_covers_do_not_change() {
        let mac = envelope().mac(&key(), &CONTENT);
        let known = "57a4a330d0859a9e618700e1ec32ace504eb5d6b4a82736707095ab227efc933";
        assert_eq!(data_encoding::HEXLOWER.encode(mac.as_ref()), known);
    }

    #[test]
    fn the_mac_covers_every_part_of_a_message() {
        let right = envelope().mac(&key(), &CONTENT);
        let others = [
            Envelope { sender: Role::Evaluator, ..envelope() },
            Envelope { generation: 8, ..envelope() },
            Envelope { id: [8; 16], ..envelope() },
            Envelope { at: 1, ..envelope() },
            Envelope { required: false, ..envelope() },
        ];
        for other in others {
            assert_ne!(other.mac(&key(), &CONTENT).as_ref(), right.as_ref(), "{other:?}");
        }
        let contents = [
            Content { kind: MessageKind::Reply, ..CONTENT },
            Content { receiver: Some(Role::Evaluator), ..CONTENT },
            Content { receiver: None, ..CONTENT },
            Content { subject: "s0.req.keys.refresh", ..CONTENT },
            Content { more: &[b"inboxd", b"eadline"], ..CONTENT },
            Content { more: &[b"inbox"], ..CONTENT },
            Content { body: b"[]", ..CONTENT },
        ];
        for (index, content) in contents.iter().enumerate() {
            assert_ne!(envelope().mac(&key(), content).as_ref(), right.as_ref(), "{index}");
            assert_ne!(envelope().digest(content).as_ref(), envelope().digest(&CONTENT).as_ref(), "{index}");
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_each_role_finds_its_own_proof() {
        let mut headers = HeaderMap::new();
        envelope().seal(&mut headers, [(Some(Role::Gateway), &b"one"[..]), (Some(Role::AuditExport), b"two")]);
        let sealed = Sealed::parse(Some(&headers)).ok().flatten().unwrap();
        assert_eq!(sealed.envelope, envelope());
        assert_eq!(sealed.proof(Some(Role::AuditExport)).as_deref(), Some(&b"two"[..]));
        assert_eq!((sealed.proof(Some(Role::Keystore)), sealed.proof(None)), (None, None));
        for headers in [None, Some(&HeaderMap::new())] {
            assert!(Sealed::parse(headers).is_ok_and(|sealed| sealed.is_none()));
        }
    }

    #[test]
    fn a_malformed_authentication_header_is_refused() {
        let good = "v1 gateway 1 CQkJCQkJCQkJCQkJCQkJCQ 5 - keystore:AAAA";
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTH, HeaderValue::from(text));
            Sealed::parse(Some(&headers)).is_ok()
        };
        assert!(read(good));
        for bad in [
            "",
            "v2 gateway 1 CQkJCQkJCQkJCQkJCQkJCQ 5 - keystore:AAAA",
            "v1 nobody 1 CQkJCQkJCQkJCQkJCQkJCQ 5 - keystore:AAAA",
            "v1 gateway x CQkJCQkJCQkJCQkJCQkJCQ 5 - keystore:AAAA",
            "v1 gateway 1 CQkJ 5 - keystore:AAAA",
            "v1 gateway 1 CQkJCQkJCQkJCQkJCQkJCQ -5 - keystore:AAAA",
            "v1 gateway 1 CQkJCQkJCQkJCQkJCQkJCQ 5 x keystore:AAAA",
            "v1 gateway 1 CQkJCQkJCQkJCQkJCQkJCQ 5 -",
            &format!("{good} more"),
            &format!("{good}{}", "A".repeat(MAX_HEADER_BYTES)),
        ] {
            assert!(!read(bad), "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(AUTH, HeaderValue::from(good));
        twice.append(AUTH, HeaderValue::from(good));
        assert!(Sealed::parse(Some(&twice)).is_err());
    }
}
