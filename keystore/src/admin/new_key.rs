//! New keys, drawn and hashed before the writer sees them.
//!
//! One key is hashed at a time, on a thread of its own: no verification or revocation waits for a creation.

use std::sync::Arc;

use stage0_contract::ApiKey;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::admin::ManageError;
use crate::admin::writer::WriterError;
use crate::hash::{self, Hasher};
use crate::sources::random;
use crate::store::record::KeyHash;

pub(crate) struct HashedKey {
    pub(crate) key: ApiKey,
    pub(crate) hash: KeyHash,
}

pub(crate) struct NewKeys {
    hasher: Arc<Hasher>,
    running: Arc<Semaphore>,
}

impl HashedKey {
    pub(crate) fn draw(hasher: &Hasher) -> Result<Self, ManageError> {
        let key = ApiKey::from_random(random()?, random()?)?;
        let hash = hasher.hash(&key, random()?)?;
        Ok(Self { key, hash })
    }
}

impl NewKeys {
    pub(crate) fn new(hasher: Arc<Hasher>) -> Self {
        Self { hasher, running: Arc::new(Semaphore::new(1)) }
    }

    /// A hash runs at a lower priority while others wait (`crowded`), so that verifications keep the cores.
    pub(crate) async fn draw(&self, crowded: bool, deadline: Instant) -> Result<HashedKey, ManageError> {
        let turn = timeout_at(deadline, Arc::clone(&self.running).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(ManageError::Writer(WriterError::Timeout)) };
        let (hasher, (done, drawn)) = (Arc::clone(&self.hasher), oneshot::channel());
        let work = move || {
            // Held by the thread and not by the waiting task: cancelling a request must not let another hash start.
            let _turn = turn;
            if crowded {
                hash::lower_priority();
            }
            // The caller may have given up.
            drop(done.send(HashedKey::draw(&hasher)));
        };
        std::thread::Builder::new().name("new-key".to_owned()).spawn(work).map_err(ManageError::Thread)?;
        drawn.await.map_err(|_| ManageError::Writer(WriterError::Ended))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::tests::CHEAP;
    use std::time::Duration;

    #[tokio::test]
    async fn a_new_key_matches_its_hash_and_is_not_drawn_after_its_deadline() {
        let hasher = Arc::new(Hasher::new(CHEAP, [1; 16]).unwrap());
        let keys = NewKeys::new(Arc::clone(&hasher));
        let soon = Instant::now() + Duration::from_secs(60);
        let HashedKey { key, hash } = keys.draw(true, soon).await.ok().unwrap();
        assert_eq!(hasher.matches(&key, Some(&hash)), Ok(true));
        let turn = Arc::clone(&keys.running).acquire_owned().await.unwrap();
        assert!(matches!(keys.draw(false, Instant::now()).await, Err(ManageError::Writer(WriterError::Timeout))));
        drop(turn);
        assert!(keys.draw(false, soon).await.is_ok());
    }
}
