//! The open requests of one client, by id.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::guard::Watch;
use crate::message::Id;
use crate::version::Version;

/// Requests of a client that are open at once.
pub(crate) const MAX_OPEN: usize = 1_000;
/// Answers that a server may send once more, when a client resumes a stream.
const MAX_RECENT: usize = 64;

pub(crate) struct Pending {
    max: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    open: HashMap<Id, State>,
    recent: VecDeque<(Id, Watch)>,
    version: Version,
    is_closed: bool,
}

enum State {
    /// It is being decided.
    Deciding { is_cancelled: bool },
    /// The server has it.
    Sent(Watch),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Yes,
    SameId,
    TooMany,
}

impl Pending {
    pub(crate) fn new(max: usize, version: Version) -> Self {
        let inner = Inner { open: HashMap::new(), recent: VecDeque::new(), version, is_closed: false };
        Self { max, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn version(&self) -> Version {
        self.inner().version
    }

    pub(crate) fn speak(&self, version: Version) {
        self.inner().version = version;
    }

    pub(crate) fn begin(&self, id: &Id) -> Begun {
        let mut inner = self.inner();
        if inner.open.contains_key(id) {
            return Begun::SameId;
        }
        if inner.open.len() >= self.max {
            return Begun::TooMany;
        }
        inner.open.insert(id.clone(), State::Deciding { is_cancelled: false });
        Begun::Yes
    }

    /// The request goes to the server. `Err`: it must not, because the client does not want it any more.
    pub(crate) fn sent(&self, id: &Id, watch: Watch) -> Result<(), Watch> {
        let mut inner = self.inner();
        let is_closed = inner.is_closed;
        match inner.open.get_mut(id) {
            Some(state @ State::Deciding { is_cancelled: false }) if !is_closed => {
                *state = State::Sent(watch);
                Ok(())
            }
            _ => {
                inner.open.remove(id);
                Err(watch)
            }
        }
    }

    /// What was watched of a request that the client cancels, if the server has it.
    pub(crate) fn cancel(&self, raw_id: &str) -> Option<Watch> {
        let id = Id::parse(raw_id)?;
        match self.inner().open.get_mut(&id)? {
            State::Deciding { is_cancelled } => {
                *is_cancelled = true;
                None
            }
            // It stays open: an answer that comes all the same says what became of it.
            State::Sent(watch) => Some(watch.clone()),
        }
    }

    /// The request is answered. `None`: there is none that the server has.
    pub(crate) fn end(&self, id: &Id) -> Option<Watch> {
        let mut inner = self.inner();
        let State::Sent(watch) = inner.open.remove(id)? else { return None };
        if inner.recent.len() >= MAX_RECENT {
            inner.recent.pop_front();
        }
        let again = if let Watch::ListTools(version) = watch { Watch::ListTools(version) } else { Watch::Nothing };
        inner.recent.push_back((id.clone(), again));
        Some(watch)
    }

    /// As [`Self::end`], for an answer on a stream that may have been resumed: also one that was there before.
    pub(crate) fn end_or_repeat(&self, id: &Id) -> Option<Watch> {
        self.end(id).or_else(|| self.inner().recent.iter().find(|(own, _)| own == id).map(|(_, watch)| watch.clone()))
    }

    /// What was watched of a request that the server has; it stays open.
    pub(crate) fn sent_watch(&self, id: &Id) -> Option<Watch> {
        match self.inner().open.get(id)? {
            State::Sent(watch) => Some(watch.clone()),
            State::Deciding { .. } => None,
        }
    }

    /// From now on nothing is sent.
    pub(crate) fn close(&self) {
        self.inner().is_closed = true;
    }

    pub(crate) fn take_all(&self) -> Vec<(Id, Watch)> {
        let open = std::mem::take(&mut self.inner().open);
        let sent = |(id, state)| match state {
            State::Sent(watch) => (id, watch),
            State::Deciding { .. } => (id, Watch::Nothing),
        };
        open.into_iter().map(sent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        Pending::new(2, Version::V2025_06_18)
    }

    fn id(number: i64) -> Id {
        Id::Number(number)
    }

    #[test]
    fn an_id_is_open_once_and_free_after_its_answer() {
        let pending = pending();
        assert_eq!(pending.begin(&id(1)), Begun::Yes);
        assert_eq!(pending.begin(&id(1)), Begun::SameId);
        assert_eq!(pending.begin(&Id::Text("1".to_owned())), Begun::Yes, "a text is another id");
        assert_eq!(pending.begin(&id(2)), Begun::TooMany);
        assert!(pending.sent(&id(1), Watch::Nothing).is_ok());
        assert!(pending.end(&id(1)).is_some() && pending.end(&id(1)).is_none());
        assert_eq!(pending.begin(&id(1)), Begun::Yes);
    }

    #[test]
    fn what_was_cancelled_while_it_was_decided_is_not_sent() {
        let pending = pending();
        pending.begin(&id(1));
        assert!(pending.cancel("1").is_none());
        assert!(pending.sent(&id(1), Watch::Nothing).is_err());
        pending.begin(&id(2));
        assert!(pending.sent(&id(2), Watch::Nothing).is_ok(), "its neighbour is");
        assert!(pending.cancel("2").is_some(), "the server has it");
    }

    #[test]
    fn nothing_is_sent_after_the_end() {
        let pending = pending();
        pending.begin(&id(1));
        pending.close();
        assert!(pending.sent(&id(1), Watch::Nothing).is_err());
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_none_unless_a_stream_repeats_it() {
        let pending = pending();
        pending.begin(&id(1));
        assert!(pending.end(&id(1)).is_none(), "the server cannot answer what it has not got");
        pending.begin(&id(2));
        assert!(pending.sent(&id(2), Watch::ListTools(Version::V2025_06_18)).is_ok());
        assert!(pending.end_or_repeat(&id(2)).is_some());
        assert!(matches!(pending.end_or_repeat(&id(2)), Some(Watch::ListTools(_))), "it is filtered again");
        assert!(pending.end(&id(2)).is_none() && pending.end_or_repeat(&id(3)).is_none());
    }
}
