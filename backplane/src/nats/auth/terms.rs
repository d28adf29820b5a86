//! Which keystore is believed: the one of the highest term that was heard.
//!
//! Owns the header by which an answer says its term and lineage, proven with the keys of its question, and what was
//! heard so far; all connections of a process share it. An answer of an earlier term, of another keystore in the same
//! term, or without a term once one was heard, is none: its asker hears nothing. Answers of other roles have no term.

use std::sync::{Mutex, OnceLock, PoisonError};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;

use super::envelope::{Content, Envelope};
use super::verdict::Rejection;

const TERM: HeaderName = HeaderName::from_static("Stage0-Term");
const DOMAIN: &[u8] = b"term";
/// Clocks differ, and a keystore that follows within a second takes the next number.
const MAX_TERM_AHEAD_SECONDS: i64 = 86_400;
/// Of a header, whoever wrote it.
const MAX_HEADER_BYTES: usize = 256;

/// The term of a keystore, and the lineage of its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    number: u64,
    lineage: String,
}

/// The own term, and the highest that was heard.
#[derive(Default)]
pub(super) struct Terms {
    own: OnceLock<String>,
    heard: Mutex<Option<Term>>,
}

impl Terms {
    /// From now on every answer says so. A process serves in one term.
    pub(super) fn serve_in(&self, number: u64, lineage: &str) {
        let _ = self.own.set(format!("{number}.{lineage}"));
    }

    /// Says the own term, if there is one, beside an answer.
    pub(super) fn add(&self, headers: &mut HeaderMap, key: &hmac::Key, envelope: &Envelope, content: &Content<'_>) {
        if let Some(own) = self.own.get() {
            let proof = BASE64URL_NOPAD.encode(proof(key, envelope, content, own).as_ref());
            headers.insert(TERM, HeaderValue::from(format!("{own} {proof}").as_str()));
        }
    }

    /// Whether an answer, itself proven, is of the keystore that is believed.
    pub(super) fn judge(
        &self,
        headers: Option<&HeaderMap>,
        key: &hmac::Key,
        envelope: &Envelope,
        content: &Content<'_>,
    ) -> Result<(), Rejection> {
        let said = headers.and_then(|headers| headers.get(TERM)).map(HeaderValue::as_str);
        let Some(said) = said else { return self.hear(None) };
        let (said, proven) =
            (said.len() <= MAX_HEADER_BYTES).then(|| said.split_once(' ')).flatten().ok_or(Rejection::Malformed)?;
        let proven = BASE64URL_NOPAD.decode(proven.as_bytes()).map_err(|_| Rejection::Malformed)?;
        let right = proof(key, envelope, content, said);
        verify_slices_are_equal(right.as_ref(), &proven).map_err(|_| Rejection::Forged)?;
        let (number, lineage) = said.split_once('.').ok_or(Rejection::Malformed)?;
        let number = number.parse().map_err(|_| Rejection::Malformed)?;
        // Terms go by the clock in seconds. One from far ahead would outlive whoever said it.
        let latest = jiff::Timestamp::now().as_second().saturating_add(MAX_TERM_AHEAD_SECONDS);
        if number > u64::try_from(latest).unwrap_or_default() {
            return Err(Rejection::Superseded);
        }
        self.hear(Some(Term { number, lineage: lineage.to_owned() }))
    }

    fn hear(&self, said: Option<Term>) -> Result<(), Rejection> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = heard.as_ref();
        let Some(said) = said else {
            return if known.is_none() { Ok(()) } else { Err(Rejection::Superseded) };
        };
        if known == Some(&said) {
            return Ok(());
        }
        if known.is_some_and(|known| known.number >= said.number) {
            return Err(Rejection::Superseded);
        }
        tracing::info!(term = said.number, lineage = said.lineage, "keystore is believed from now on");
        *heard = Some(said);
        Ok(())
    }
}

/// Over the answer once more, with the term: no answer has another's.
fn proof(key: &hmac::Key, envelope: &Envelope, content: &Content<'_>, term: &str) -> hmac::Tag {
    let more = [DOMAIN, term.as_bytes()];
    let Content { kind, receiver, subject, body, more: _ } = *content;
    envelope.mac(key, &Content { kind, receiver, subject, more: &more, body })
}
