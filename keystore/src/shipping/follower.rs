//! A keystore that stands by follows the shipped journal in memory, and has what was acknowledged when its turn comes.
//!
//! Nothing is written to its directory before that. INVARIANT: what [`Follower::journal`] returns was opened with the
//! key, is whole, and has the digest that the head says at the number that the head says.

use std::convert::Infallible;
use std::sync::Arc;

use stage0_backplane::StateStore;
use tokio::time::{Duration, Instant, sleep};

use super::{CopyId, Shipped, read_part};
use crate::config::KeystoreConfig;
use crate::errors::chain;
use crate::head::{self, Head};
use crate::health::Health;
use crate::metrics;
use crate::records::{MAX_REPLICA_LAG, RETRY_DELAY};
use crate::seal::{self, JournalSealer};
use crate::store::journal::{self, End, Replay};

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A journal that was taken over, and what it says.
#[derive(Debug)]
pub(crate) struct ShippedJournal {
    pub(crate) bytes: Vec<u8>,
    pub(crate) replay: Replay,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("the last keystore did not ship its journal: it is of an earlier version, or could not")]
    NotShipped,
    #[error("the shipped journal ends at change {shipped}, and the state store knows of {known}")]
    Behind { shipped: u64, known: u64 },
    #[error("`secrets.key` is missing here: copy that of the keystore that serves, with which the journal is sealed")]
    NoKey,
    #[error("the key of the shipped journal cannot be used: {0}")]
    Key(String),
    #[error("part {0} of the shipped journal is missing, or the `secrets.key` here is not that of the last keystore")]
    Part(u32),
    #[error("the shipped journal is shorter than the state store says")]
    Short,
    #[error("the shipped journal is not what the state store says of it")]
    Different,
    #[error("the state store does not answer: {0}")]
    Read(String),
}

pub(crate) struct Follower {
    state_store: Arc<dyn StateStore>,
    config: KeystoreConfig,
    sealer: Option<JournalSealer>,
    copy: Option<CopyId>,
    parts: Vec<Vec<u8>>,
    /// What was followed last, so that it is not read again while nothing changes.
    followed: Option<Shipped>,
}

impl Follower {
    pub(crate) fn new(state_store: Arc<dyn StateStore>, config: KeystoreConfig) -> Self {
        Self { state_store, config, sealer: None, copy: None, parts: Vec::new(), followed: None }
    }

    /// Follows until it is dropped. What goes wrong is reported and tried again.
    pub(crate) async fn run(&mut self, health: &Health) -> Infallible {
        loop {
            match head::read(&self.state_store).await {
                Ok(Some((head, _))) if self.has_followed(&head) => {}
                Ok(Some((head, _))) => {
                    let followed = self.follow(&head).await;
                    let shipped = head.journal.filter(|_| followed.is_ok()).map_or(0, |shipped| shipped.sequence);
                    let behind = head.position.sequence.saturating_sub(shipped);
                    metrics::behind(behind);
                    health.set_following(Some(match followed {
                        Ok(()) if behind == 0 => "has followed every change".to_owned(),
                        Ok(()) => {
                            format!("is {behind} changes behind, as the keystore that serves could not ship them")
                        }
                        Err(error) => format!("cannot follow: {error}"),
                    }));
                }
                // The lease reports both.
                Ok(None) | Err(_) => {
                    self.followed = None;
                    health.set_following(None);
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn has_followed(&self, head: &Head) -> bool {
        let is_whole = |shipped: &Shipped| shipped.sequence == head.position.sequence;
        head.journal == self.followed && self.followed.as_ref().is_some_and(is_whole)
    }

    /// Reads the parts that are new since the last time, and the last one, which may have grown.
    pub(crate) async fn follow(&mut self, head: &Head) -> Result<(), FollowError> {
        let shipped = head.journal.ok_or(FollowError::NotShipped)?;
        if self.sealer.is_none() {
            // The file may have been put there meanwhile.
            let config = self.config.clone();
            let read = tokio::task::spawn_blocking(move || seal::present_sealer(&config)).await;
            let read = read.map_err(|error| FollowError::Key(error.to_string()))?;
            let found = read.map_err(|error| FollowError::Key(chain(&error)))?.ok_or(FollowError::NoKey)?;
            self.sealer = Some(found.journal_sealer().map_err(|error| FollowError::Key(error.to_string()))?);
        }
        let sealer = self.sealer.as_ref().ok_or(FollowError::NoKey)?;
        if self.copy != Some(shipped.copy) {
            self.parts.clear();
            self.copy = Some(shipped.copy);
        }
        self.followed = None;
        self.parts.truncate((shipped.parts as usize).min(self.parts.len().saturating_sub(1)));
        while let Some(part) = u32::try_from(self.parts.len()).ok().filter(|part| *part < shipped.parts) {
            let found = read_part(&self.state_store, sealer, (shipped.copy, shipped.half, part)).await;
            let (content, _) = found.map_err(FollowError::Read)?.ok_or(FollowError::Part(part))?;
            self.parts.push(content);
        }
        if (self.parts.iter().map(Vec::len).sum::<usize>() as u64) < shipped.bytes {
            // A replica that lags had an older version of a part, and this process does not know of which.
            self.parts.clear();
            return Err(FollowError::Short);
        }
        self.followed = Some(shipped);
        Ok(())
    }

    /// The whole journal, once no other keystore writes any more. Tried again for as long as a replica may lag.
    pub(crate) async fn journal(&mut self, head: &Head) -> Result<ShippedJournal, FollowError> {
        let since = Instant::now();
        loop {
            let error = match self.follow(head).await {
                Ok(()) => break,
                Err(error @ (FollowError::NotShipped | FollowError::NoKey | FollowError::Key(_))) => return Err(error),
                Err(error) => error,
            };
            if since.elapsed() >= MAX_REPLICA_LAG {
                return Err(error);
            }
            sleep(RETRY_DELAY).await;
        }
        let shipped = head.journal.ok_or(FollowError::NotShipped)?;
        let mut bytes = std::mem::take(&mut self.parts).concat();
        self.copy = None;
        let whole = tokio::task::spawn_blocking(move || match proven(&bytes, &shipped) {
            Some(replay) => Some(ShippedJournal { bytes, replay }),
            // What the last part holds beyond the head.
            None => {
                bytes.truncate(usize::try_from(shipped.bytes).unwrap_or(usize::MAX));
                proven(&bytes, &shipped).map(|replay| ShippedJournal { bytes, replay })
            }
        });
        let whole = whole.await.map_err(|error| FollowError::Read(error.to_string()))?;
        let journal = whole.ok_or(FollowError::Different)?;
        let ends = journal.replay.snapshot.as_ref().map_or(0, |snapshot| snapshot.position.sequence);
        if ends < head.position.sequence {
            return Err(FollowError::Behind { shipped: ends, known: head.position.sequence });
        }
        Ok(journal)
    }
}

fn proven(bytes: &[u8], shipped: &Shipped) -> Option<Replay> {
    let replay = journal::replay(bytes);
    let at = replay.trail.iter().rev().find(|(sequence, _)| *sequence == shipped.sequence);
    let same = at.is_some_and(|(_, digest)| *digest == shipped.digest);
    (replay.end == End::Whole && replay.snapshot.is_some() && same).then_some(replay)
}
