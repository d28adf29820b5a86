//! Which keystore is trusted: the one with the highest term seen so far.
//!
//! A keystore's reply carries its term and lineage in a header, proven with the keys of its request. A reply of an
//! earlier term, of another keystore in the same term, or without a term once one was seen, is dropped.

use std::sync::{Mutex, OnceLock, PoisonError};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;

use super::envelope::{Content, Envelope};
use super::rejection::Rejection;

const TERM: HeaderName = HeaderName::from_static("Stage0-Term");
const DOMAIN: &[u8] = b"term";
/// Clocks differ, and a keystore that takes over within a second uses the next number.
const MAX_TERM_AHEAD_SECONDS: i64 = 86_400;
const MAX_HEADER_BYTES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    number: u64,
    lineage: String,
}

#[derive(Default)]
pub(super) struct Terms {
    own: OnceLock<String>,
    highest: Mutex<Option<Term>>,
}

impl Terms {
    /// Sets the term that every reply carries from now on. A process serves in one term.
    pub(super) fn set_own(&self, number: u64, lineage: &str) {
        let _ = self.own.set(format!("{number}.{lineage}"));
    }

    pub(super) fn attach(&self, headers: &mut HeaderMap, key: &hmac::Key, envelope: &Envelope, content: &Content<'_>) {
        if let Some(own) = self.own.get() {
            let proof = BASE64URL_NOPAD.encode(proof(key, envelope, content, own).as_ref());
            headers.insert(TERM, HeaderValue::from(format!("{own} {proof}").as_str()));
        }
    }

    /// Whether a reply, itself already verified, comes from the keystore that is trusted.
    pub(super) fn check(
        &self,
        headers: Option<&HeaderMap>,
        key: &hmac::Key,
        envelope: &Envelope,
        content: &Content<'_>,
    ) -> Result<(), Rejection> {
        let said = headers.and_then(|headers| headers.get(TERM)).map(HeaderValue::as_str);
        let Some(said) = said else { return self.record(None) };
        let (said, proven) =
            (said.len() <= MAX_HEADER_BYTES).then(|| said.split_once(' ')).flatten().ok_or(Rejection::Malformed)?;
        let proven = BASE64URL_NOPAD.decode(proven.as_bytes()).map_err(|_| Rejection::Malformed)?;
        let expected_mac = proof(key, envelope, content, said);
        verify_slices_are_equal(expected_mac.as_ref(), &proven).map_err(|_| Rejection::Forged)?;
        let (number, lineage) = said.split_once('.').ok_or(Rejection::Malformed)?;
        let number = number.parse().map_err(|_| Rejection::Malformed)?;
        // Terms follow the clock in seconds. A term from far in the future would outlive its keystore.
        let latest = jiff::Timestamp::now().as_second().saturating_add(MAX_TERM_AHEAD_SECONDS);
        if number > u64::try_from(latest).unwrap_or_default() {
            return Err(Rejection::Superseded);
        }
        self.record(Some(Term { number, lineage: lineage.to_owned() }))
    }

    fn record(&self, said: Option<Term>) -> Result<(), Rejection> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = highest.as_ref();
        let Some(said) = said else {
            return known.map_or(Ok(()), |_| Err(Rejection::Superseded));
        };
        if known == Some(&said) {
            return Ok(());
        }
        if known.is_some_and(|known| known.number >= said.number) {
            return Err(Rejection::Superseded);
        }
        tracing::info!(term = said.number, lineage = said.lineage, "keystore is believed from now on");
        *highest = Some(said);
        Ok(())
    }
}

/// A MAC over the reply with the term, so that no reply can carry another's.
fn proof(key: &hmac::Key, envelope: &Envelope, content: &Content<'_>, term: &str) -> hmac::Tag {
    let more = [DOMAIN, term.as_bytes()];
    envelope.mac(key, &Content { more: &more, ..*content })
}
