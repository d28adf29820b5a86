//! The authentication header as it arrives, for the fuzz target in `fuzz/`. Not part of the API.
//!
//! Always compiled: behind a feature, a build of all packages would compile the backplane again, and a build of the
//! binary alone once more.

use async_nats::{HeaderMap, HeaderValue};
use stage0_contract::Role;

use super::envelope::{AUTH, Envelope, Sealed};

/// What a header says of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    envelope: Envelope,
    proofs: Vec<(Option<Role>, Vec<u8>)>,
}

impl Header {
    /// Reads the header's value; none for one that is refused.
    pub fn parse(text: &str) -> Option<Self> {
        let mut headers = HeaderMap::new();
        // No line end reaches a value: it ends the line in which the header stands.
        headers.insert(AUTH, text.parse::<HeaderValue>().ok()?);
        let sealed = Sealed::parse(Some(&headers)).ok()??;
        let receivers = Role::ALL.into_iter().map(Some).chain([None]);
        let proofs = receivers.filter_map(|receiver| Some((receiver, sealed.proof(receiver)?))).collect();
        Some(Self { envelope: sealed.envelope, proofs })
    }

    /// How many receivers find a proof in it.
    pub fn proofs(&self) -> usize {
        self.proofs.len()
    }

    /// The value as this version writes it.
    pub fn to_text(&self) -> String {
        let mut headers = HeaderMap::new();
        let proofs = self.proofs.iter().map(|(receiver, proof)| (*receiver, proof.as_slice()));
        self.envelope.seal(&mut headers, proofs);
        headers.get(AUTH).map(|value| value.as_str().to_owned()).unwrap_or_default()
    }
}
