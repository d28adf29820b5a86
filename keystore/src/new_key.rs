//! New keys, drawn and hashed before the writer hears of them.
//!
//! Owns one hash at a time, on a thread of its own: creations wait for each other, while verifications of keys have
//! their own pool and revocations cost no hash. Nothing is stored here. A creation whose turn comes too late is not
//! hashed, and its caller hears that.

use std::sync::Arc;

use stage0_contract::ApiKey;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::hash::{self, Hasher};
use crate::manage::{Undone, random};
use crate::record::KeyHash;
use crate::writer::NoAnswer;

/// A key that nobody has yet.
pub(crate) struct HashedKey {
    pub(crate) key: ApiKey,
    pub(crate) hash: KeyHash,
}

/// Hashes new keys.
pub(crate) struct NewKeys {
    hasher: Arc<Hasher>,
    running: Arc<Semaphore>,
}

impl HashedKey {
    /// Costs a hash, on this thread.
    pub(crate) fn draw(hasher: &Hasher) -> Result<Self, Undone> {
        let key = ApiKey::from_random(random()?, random()?)?;
        let hash = hasher.hash(&key, random()?)?;
        Ok(Self { key, hash })
    }
}

impl NewKeys {
    pub(crate) fn new(hasher: Arc<Hasher>) -> Self {
        Self { hasher, running: Arc::new(Semaphore::new(1)) }
    }

    /// Draws one when its turn comes. `crowded`: others wait, so that it must not take the cores from verifications.
    pub(crate) async fn draw(&self, crowded: bool, until: Instant) -> Result<HashedKey, Undone> {
        let turn = timeout_at(until, Arc::clone(&self.running).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(Undone::NoAnswer(NoAnswer::Late)) };
        let (hasher, (done, drawn)) = (Arc::clone(&self.hasher), oneshot::channel());
        let work = move || {
            // Held by the work and not by who waits for it: a cancelled question must not let one more hash run.
            let _turn = turn;
            if crowded {
                hash::give_way();
            }
            // Whoever asked may be gone.
            drop(done.send(HashedKey::draw(&hasher)));
        };
        std::thread::Builder::new().name("new-key".to_owned()).spawn(work).map_err(Undone::Thread)?;
        drawn.await.map_err(|_| Undone::NoAnswer(NoAnswer::Ended))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::tests::CHEAP;
    use std::time::Duration;

    #[tokio::test]
    async fn a_new_key_matches_its_hash_and_one_whose_turn_is_too_late_is_not_made() {
        let hasher = Arc::new(Hasher::new(CHEAP, [1; 16]).unwrap());
        let keys = NewKeys::new(Arc::clone(&hasher));
        let soon = Instant::now() + Duration::from_secs(60);
        let HashedKey { key, hash } = keys.draw(true, soon).await.ok().unwrap();
        assert_eq!(hasher.matches(&key, Some(&hash)), Ok(true));
        let turn = Arc::clone(&keys.running).acquire_owned().await.unwrap();
        assert!(matches!(keys.draw(false, Instant::now()).await, Err(Undone::NoAnswer(NoAnswer::Late))));
        drop(turn);
        assert!(keys.draw(false, soon).await.is_ok());
    }
}
