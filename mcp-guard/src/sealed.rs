//! The `requestState` of a call that waits for an approval: sealed, for one principal and one call, once.
//!
//! It lets nothing pass: a call that comes back is asked about again like any other. It says only that the answers
//! beside it are to this guard's own question, so that they are taken out before the server sees the call.
//! The key lives as long as the process: after a restart no state opens, and the client calls again without one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use data_encoding::BASE64URL_NOPAD;

/// Before the sealed text. A state without it is the server's own.
pub(crate) const STATE_PREFIX: &str = "stage0-guard.1.";
/// How long a state may come back.
pub(crate) const STATE_TTL: Duration = Duration::from_secs(15 * 60);
/// The most states that wait to come back. The oldest goes first.
const MAX_STATES: usize = 1_000;
const TICKET_LEN: usize = 16;

/// Why a state is refused. The public text is the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the `requestState` is not valid any more: call the tool again without it")]
pub(crate) struct StateError;

/// Seals states, and opens each once.
pub(crate) struct Sealer {
    key: RandomizedNonceKey,
    /// States that have not come back.
    waiting: Mutex<HashMap<[u8; TICKET_LEN], Instant>>,
}

impl Sealer {
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| getrandom::Error::UNSUPPORTED)?;
        Ok(Self { key, waiting: Mutex::default() })
    }

    /// A state for a call: `bound` names principal, server, tool and arguments.
    pub(crate) fn seal(&self, bound: &str, now: Instant) -> Result<String, StateError> {
        let mut ticket = [0; TICKET_LEN];
        getrandom::fill(&mut ticket).map_err(|_| StateError)?;
        let mut sealed = ticket.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(bound), &mut sealed).map_err(|_| StateError)?;
        self.remember(ticket, now);
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut sealed);
        Ok(format!("{STATE_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
    }

    /// Takes a state back, once.
    pub(crate) fn open(&self, state: &str, bound: &str, now: Instant) -> Result<(), StateError> {
        let text = state.strip_prefix(STATE_PREFIX).ok_or(StateError)?;
        let mut bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| StateError)?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN).ok_or(StateError)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StateError)?;
        let ticket = self.key.open_in_place(nonce, Aad::from(bound), sealed).map_err(|_| StateError)?;
        let ticket = <[u8; TICKET_LEN]>::try_from(&*ticket).map_err(|_| StateError)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed_at = waiting.remove(&ticket).ok_or(StateError)?;
        if now.duration_since(sealed_at) > STATE_TTL { Err(StateError) } else { Ok(()) }
    }

    fn remember(&self, ticket: [u8; TICKET_LEN], now: Instant) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_STATES {
            waiting.retain(|_, sealed_at| now.duration_since(*sealed_at) <= STATE_TTL);
        }
        if waiting.len() >= MAX_STATES
            && let Some(oldest) = waiting.iter().min_by_key(|(_, at)| **at).map(|(ticket, _)| *ticket)
        {
            waiting.remove(&oldest);
        }
        waiting.insert(ticket, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_once_for_the_same_call() {
        let (sealer, now) = (Sealer::new().unwrap(), Instant::now());
        let state = sealer.seal("key|files|write|00", now).unwrap();
        assert_eq!(sealer.open(&state, "key|files|write|00", now + STATE_TTL), Ok(()));
        assert_eq!(sealer.open(&state, "key|files|write|00", now), Err(StateError), "a second time");
    }

    #[test]
    fn a_state_of_another_principal_call_or_process_is_refused_and_stays_usable_for_its_own() {
        let (sealer, now) = (Sealer::new().unwrap(), Instant::now());
        let state = sealer.seal("a", now).unwrap();
        assert_eq!(sealer.open(&state, "b", now), Err(StateError));
        assert_eq!(Sealer::new().unwrap().open(&state, "a", now), Err(StateError));
        let mut changed = state.clone();
        changed.replace_range(20..21, if changed.as_bytes()[20] == b'A' { "B" } else { "A" });
        for bad in [changed.as_str(), "", STATE_PREFIX, "stage0-guard.1.AAAA", "other"] {
            assert_eq!(sealer.open(bad, "a", now), Err(StateError), "{bad}");
        }
        assert_eq!(sealer.open(&state, "a", now), Ok(()));
    }

    #[test]
    fn a_state_that_is_too_old_is_refused() {
        let (sealer, now) = (Sealer::new().unwrap(), Instant::now());
        let state = sealer.seal("a", now).unwrap();
        assert_eq!(sealer.open(&state, "a", now + STATE_TTL + Duration::from_secs(1)), Err(StateError));
    }

    #[test]
    fn many_states_push_out_the_oldest() {
        let (sealer, now) = (Sealer::new().unwrap(), Instant::now());
        let states: Vec<String> =
            (0..=MAX_STATES).map(|n| sealer.seal("a", now + Duration::from_millis(n as u64)).unwrap()).collect();
        let later = now + Duration::from_secs(2);
        assert_eq!(sealer.open(&states[0], "a", later), Err(StateError));
        assert_eq!(sealer.open(&states[1], "a", later), Ok(()));
    }
}
