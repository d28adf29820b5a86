//! Sealing: what of a question or an answer is secret is encrypted to the one process that may read it.
//!
//! HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM). Each connection draws a key pair when it is made and
//! keeps it in memory alone. Where a message is for is bound to it: its subject and the asker's reply subject, which
//! names the asker's key and this one question. Who sent it is not proven here: a MAC over the sealed bytes does that
//! (`auth`).
//! INVARIANT: a message that is not sealed never begins like one that is: JSON does not begin with a zero byte.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};

const SEALED: &[u8] = b"\0stage0 sealed v1\0";
const UNOPENED: &[u8] = b"\0stage0 unopened v1\0";
const KEY_BYTES: usize = 32;

/// Of a process, for as long as its connection lives.
pub(super) struct SealingKeys {
    public: PublicKey,
    private: HpkePrivateKey,
}

/// To whom something is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublicKey([u8; KEY_BYTES]);

/// Which of the two messages it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Question,
    Answer,
}

/// What a sealed message is bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'c> {
    pub(super) part: Part,
    /// Of the question, whole.
    pub(super) subject: &'c str,
    /// Where the asker hears the answer.
    pub(super) inbox: &'c str,
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// It was not sealed.
    Plain,
    /// It was sealed to us.
    Opened(Bytes),
    /// It was sealed to a key that is not ours, often that of the process before this one.
    ForAnother,
    /// The peer could not open what we sealed; this is its key.
    Unopened(PublicKey),
    /// It was sealed to us, or seemed so, and something about it is not as it was sealed.
    Broken,
}

impl PublicKey {
    pub(super) fn text(self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::of(&BASE64URL_NOPAD.decode(text.as_bytes()).ok()?)
    }

    /// Of the asker whose reply subject this is: `<inbox>.<key>.<token>`; none before processes had keys.
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

    pub(super) fn open(&self, context: &Context<'_>, message: &[u8]) -> Arrived {
        if let Some(key) = message.strip_prefix(UNOPENED) {
            return PublicKey::of(key).map_or(Arrived::Broken, Arrived::Unopened);
        }
        let Some(rest) = message.strip_prefix(SEALED) else { return Arrived::Plain };
        let parts =
            rest.split_at_checked(KEY_BYTES).and_then(|(to, rest)| Some((to, rest.split_at_checked(KEY_BYTES)?)));
        let Some((to, (secret, text))) = parts else { return Arrived::Broken };
        if to != self.public.0 {
            return Arrived::ForAnother;
        }
        let secret = EncapsulatedSecret(secret.to_vec());
        let opened = SUITE.open(&secret, context.part.info(), &context.bytes(), text, &self.private);
        opened.map_or(Arrived::Broken, |plain| Arrived::Opened(plain.into()))
    }

    /// The answer to one who sealed to another key.
    pub(super) fn unopened(&self) -> Bytes {
        [UNOPENED, &self.public.0].concat().into()
    }
}

impl std::fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKeys").field("public", &self.public.text()).finish_non_exhaustive()
    }
}

/// None: the key is of no use, or there is no randomness.
pub(super) fn seal(to: PublicKey, context: &Context<'_>, plain: &[u8]) -> Option<Bytes> {
    let key = HpkePublicKey(to.0.to_vec());
    let (secret, text) = SUITE.seal(context.part.info(), &context.bytes(), plain, &key).ok()?;
    Some([SEALED, &to.0, &secret.0, &text].concat().into())
}

impl Part {
    fn info(self) -> &'static [u8] {
        match self {
            Self::Question => b"stage0 sealed question v1",
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
        Context { part: Part::Question, subject: "s0.req.keys.create", inbox: "_INBOX_gateway-1.k.t" };

    #[test]
    fn what_is_sealed_is_read_by_the_process_with_the_key_and_by_no_other() {
        let (ours, others) = (SealingKeys::generate().unwrap(), SealingKeys::generate().unwrap());
        let sealed = seal(ours.public(), &QUESTION, b"secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(ours.open(&QUESTION, &sealed), Arrived::Opened(Bytes::from_static(b"secret")));
        assert_eq!(others.open(&QUESTION, &sealed), Arrived::ForAnother);
        assert_eq!(others.open(&QUESTION, &ours.unopened()), Arrived::Unopened(ours.public()));
        assert_eq!(ours.open(&QUESTION, b"{}"), Arrived::Plain);
    }

    #[test]
    fn what_was_sealed_for_another_question_or_was_altered_is_not_opened() {
        let keys = SealingKeys::generate().unwrap();
        let sealed = seal(keys.public(), &QUESTION, b"secret").unwrap();
        for other in [
            Context { part: Part::Answer, ..QUESTION },
            Context { subject: "s0.req.keys.rotate", ..QUESTION },
            Context { inbox: "_INBOX_gateway-1.k.u", ..QUESTION },
            Context { subject: "s0.req.keys.creat", inbox: "e_INBOX_gateway-1.k.t", ..QUESTION },
        ] {
            assert_eq!(keys.open(&other, &sealed), Arrived::Broken, "{other:?}");
        }
        for altered in 0..sealed.len() {
            let mut bytes = sealed.to_vec();
            bytes[altered] ^= 1;
            let opened = keys.open(&QUESTION, &bytes);
            assert!(!matches!(opened, Arrived::Opened(_) | Arrived::Unopened(_)), "{altered}: {opened:?}");
        }
        for cut in 0..sealed.len() {
            assert!(!matches!(keys.open(&QUESTION, &sealed[..cut]), Arrived::Opened(_)), "{cut}");
        }
    }

    #[test]
    fn the_key_of_an_asker_stands_in_its_reply_subject_and_an_older_one_has_none() {
        let keys = SealingKeys::generate().unwrap();
        let inbox = format!("_INBOX_gateway-1.{}.AAAAAAAAAAAAAAAAAAAAAA", keys.public().text());
        assert_eq!(PublicKey::of_inbox(&inbox), Some(keys.public()));
        for older in ["_INBOX_gateway.8pZgRrGQQPqpLYAd3LMRRK.17", "_INBOX_stranger", "", "_R_.a.b"] {
            assert_eq!(PublicKey::of_inbox(older), None, "{older}");
        }
    }
}
