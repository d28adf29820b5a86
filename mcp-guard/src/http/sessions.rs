//! Sessions of the versions that have them: the server's id, bound to the client that began it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::pending::Pending;

/// The most sessions. The one that was used least recently goes first.
const MAX_SESSIONS: usize = 1_000;
/// A session that was not used for this long is forgotten.
const SESSION_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Who sends a request: the hash of its address and its `Authorization`.
pub(super) type Owner = [u8; 32];

#[derive(Default)]
pub(super) struct Sessions {
    inner: Mutex<HashMap<String, Session>>,
}

struct Session {
    owner: Owner,
    pending: Arc<Pending>,
    used: Instant,
}

impl Sessions {
    pub(super) fn begin(&self, id: &str, owner: Owner, pending: Arc<Pending>, now: Instant) {
        let mut sessions = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| now.duration_since(session.used) <= SESSION_TTL);
        if sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id.to_owned(), Session { owner, pending, used: now });
    }

    /// A session of this owner. Another owner's is as unknown as one that is not there.
    pub(super) fn find(&self, id: &str, owner: &Owner, now: Instant) -> Option<Arc<Pending>> {
        let mut sessions = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(id).filter(|session| session.owner == *owner)?;
        session.used = now;
        Some(Arc::clone(&session.pending))
    }

    pub(super) fn end(&self, id: &str) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    #[test]
    fn a_session_is_its_owners_alone() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        sessions.begin("s", [1; 32], Arc::new(Pending::new(1, Version::V2025_06_18)), now);
        assert!(sessions.find("s", &[1; 32], now).is_some());
        assert!(sessions.find("s", &[2; 32], now).is_none());
        assert!(sessions.find("t", &[1; 32], now).is_none());
        sessions.end("s");
        assert!(sessions.find("s", &[1; 32], now).is_none());
    }

    #[test]
    fn sessions_are_bounded_and_the_one_used_least_recently_goes_first() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let begin = |id: usize, at: u64| {
            let pending = Arc::new(Pending::new(1, Version::V2025_06_18));
            sessions.begin(&id.to_string(), [1; 32], pending, now + Duration::from_millis(at));
        };
        for id in 0..MAX_SESSIONS {
            begin(id, id as u64);
        }
        let later = now + Duration::from_secs(10);
        assert!(sessions.find("0", &[1; 32], later).is_some());
        begin(MAX_SESSIONS, 20_000);
        assert!(sessions.find("0", &[1; 32], later).is_some() && sessions.find("1", &[1; 32], later).is_none());
        begin(0, SESSION_TTL.as_millis() as u64 + 60_000);
        assert!(sessions.find("2", &[1; 32], later).is_none(), "too old");
    }
}
