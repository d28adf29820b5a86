//! Sealing: the secret parts of a request or a reply are encrypted to the one process that may read them.
//!
//! HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM). A sealed message is bound to its subject and to the
//! reply subject of its request. The sender is not proven here: a MAC over the sealed bytes does that (`auth`).
//! INVARIANT: no unsealed message starts like a sealed one: JSON does not start with a zero byte.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};

const SEALED: &[u8] = b"\0stage0 sealed v1\0";
const UNOPENED: &[u8] = b"\0stage0 unopened v1\0";
const KEY_BYTES: usize = 32;

pub(super) struct SealingKeys {
    public: PublicKey,
    private: HpkePrivateKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublicKey([u8; KEY_BYTES]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessagePart {
    Request,
    Answer,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'c> {
    pub(super) part: MessagePart,
    pub(super) subject: &'c str,
    /// The reply subject as the requester sees it.
    pub(super) inbox: &'c str,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Plain,
    Opened(Bytes),
    /// It was sealed to another key, often that of the previous process.
    ForAnother,
    /// The peer could not open what we sealed; this is its key.
    Unopened(PublicKey),
    /// It was sealed to us, or looks like it, and was altered.
    Broken,
}

impl PublicKey {
    pub(super) fn text(self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::of(&BASE64URL_NOPAD.decode(text.as_bytes()).ok()?)
    }

    /// The key of the requester with this reply subject: `<inbox>.<key>.<token>`; none for versions without keys.
    pub(super) fn of_inbox(inbox: &str) -> Option<Self> {
        Self::parse(inbox.rsplit('.').nth(1)?)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl SealingKeys {
    pub(super) fn generate() -> Result<Self, String> {
        let (public, private) = SUITE.generate_key_pair().map_err(|error| error.to_string())?;
        let public = PublicKey::of(&public.0).ok_or("the key pair has another form")?;
        Ok(Self { public, private })
    }

    pub(super) fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn open(&self, context: &Context<'_>, message: &[u8]) -> Opening {
        if let Some(key) = message.strip_prefix(UNOPENED) {
            return PublicKey::of(key).map_or(Opening::Broken, Opening::Unopened);
        }
        let Some(rest) = message.strip_prefix(SEALED) else { return Opening::Plain };
        let parts =
            rest.split_at_checked(KEY_BYTES).and_then(|(to, rest)| Some((to, rest.split_at_checked(KEY_BYTES)?)));
        let Some((to, (secret, text))) = parts else { return Opening::Broken };
        if to != self.public.0 {
            return Opening::ForAnother;
        }
        let secret = EncapsulatedSecret(secret.to_vec());
        let opened = SUITE.open(&secret, context.part.info(), &context.bytes(), text, &self.private);
        opened.map_or(Opening::Broken, |plain| Opening::Opened(plain.into()))
    }

    pub(super) fn unopened(&self) -> Bytes {
        [UNOPENED, &self.public.0].concat().into()
    }
}

/// None: the key is invalid, or there is no randomness.
pub(super) fn seal(to: PublicKey, context: &Context<'_>, plain: &[u8]) -> Option<Bytes> {
    let key = HpkePublicKey(to.0.to_vec());
    let (secret, text) = SUITE.seal(context.part.info(), &context.bytes(), plain, &key).ok()?;
    Some([SEALED, &to.0, &secret.0, &text].concat().into())
}

impl MessagePart {
    fn info(self) -> &'static [u8] {
        match self {
            Self::Request => b"stage0 sealed question v1",
            Self::Answer => b"stage0 sealed answer v1",
        }
    }
}

impl Context<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.subject.len() + self.inbox.len() + 16);
        for part in [self.subject, self.inbox] {
            bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: Context<'_> =
        Context { part: MessagePart::Request, subject: "s0.req.keys.create", inbox: "_INBOX_gateway-1.k.t" };

    #[test]
    fn a_sealed_message_is_opened_only_with_its_key() {
        let (ours, others) = (SealingKeys::generate().unwrap(), SealingKeys::generate().unwrap());
        let sealed = seal(ours.public(), &QUESTION, b"secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(ours.open(&QUESTION, &sealed), Opening::Opened(Bytes::from_static(b"secret")));
        assert_eq!(others.open(&QUESTION, &sealed), Opening::ForAnother);
        assert_eq!(others.open(&QUESTION, &ours.unopened()), Opening::Unopened(ours.public()));
        assert_eq!(ours.open(&QUESTION, b"{}"), Opening::Plain);
    }

    #[test]
    fn a_message_sealed_for_another_request_or_altered_is_not_opened() {
        let keys = SealingKeys::generate().unwrap();
        let sealed = seal(keys.public(), &QUESTION, b"secret").unwrap();
        for other in [
            Context { part: MessagePart::Answer, ..QUESTION },
            Context { subject: "s0.req.keys.rotate", ..QUESTION },
            Context { inbox: "_INBOX_gateway-1.k.u", ..QUESTION },
            Context { subject: "s0.req.keys.creat", inbox: "e_INBOX_gateway-1.k.t", ..QUESTION },
        ] {
            assert_eq!(keys.open(&other, &sealed), Opening::Broken, "{other:?}");
        }
        for altered in 0..sealed.len() {
            let mut bytes = sealed.to_vec();
            bytes[altered] ^= 1;
            let opened = keys.open(&QUESTION, &bytes);
            assert!(!matches!(opened, Opening::Opened(_) | Opening::Unopened(_)), "{altered}: {opened:?}");
        }
        for cut in 0..sealed.len() {
            assert!(!matches!(keys.open(&QUESTION, &sealed[..cut]), Opening::Opened(_)), "{cut}");
        }
    }

    #[test]
    fn a_requesters_key_is_in_its_reply_subject_and_older_versions_have_none() {
        let keys = SealingKeys::generate().unwrap();
        let inbox = format!("_INBOX_gateway-1.{}.AAAAAAAAAAAAAAAAAAAAAA", keys.public().text());
        assert_eq!(PublicKey::of_inbox(&inbox), Some(keys.public()));
        for older in ["_INBOX_gateway.8pZgRrGQQPqpLYAd3LMRRK.17", "_INBOX_stranger", "", "_R_.a.b"] {
            assert_eq!(PublicKey::of_inbox(older), None, "{older}");
        }
    }
}
