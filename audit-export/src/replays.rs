//! Requested replays in the state store, until the endpoint's delivery worker moves them into its cursor.
//!
//! A replay is removed once the stored cursor has it; after a crash in between the cursor recognises its id.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stage0_backplane::{PutError, ReadError, Record, StateStore};
use stage0_contract::WebhookId;
use uuid::Uuid;

use crate::cursor::Replay;
use crate::shared::Shared;

const MAX_REQUESTED: usize = 32;
const MAX_ATTEMPTS: usize = 5;
/// Requests that no worker takes expire: their endpoint is gone.
const REPLAY_TTL: Duration = Duration::from_secs(30 * 86_400);

#[derive(Default, Serialize, Deserialize)]
struct Requested {
    replays: Vec<Replay>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("too many replays are waiting")]
    TooMany,
    #[error("the stored replays cannot be parsed")]
    Parse(#[from] serde_json::Error),
    #[error("the stored replays cannot be read")]
    Read(#[from] ReadError),
    #[error("the replays cannot be stored")]
    Put(#[from] PutError),
}

pub(crate) async fn add(state_store: &dyn StateStore, id: &WebhookId, replay: Replay) -> Result<(), ReplayError> {
    for _ in 0..MAX_ATTEMPTS {
        let (mut requested, record) = read(state_store, id).await?;
        if requested.replays.len() >= MAX_REQUESTED {
            return Err(ReplayError::TooMany);
        }
        requested.replays.push(replay.clone());
        match write(state_store, id, &requested, record.as_ref()).await {
            Err(ReplayError::Put(PutError::Conflict)) => {}
            done => return done,
        }
    }
    Err(PutError::Conflict.into())
}

pub(crate) async fn requested(state_store: &dyn StateStore, id: &WebhookId) -> Result<Vec<Replay>, ReplayError> {
    Ok(read(state_store, id).await?.0.replays)
}

/// Removes the replays that the stored cursor has; others that were added since stay.
pub(crate) async fn remove(state_store: &dyn StateStore, id: &WebhookId, ids: &[Uuid]) -> Result<(), ReplayError> {
    let (mut requested, record) = read(state_store, id).await?;
    requested.replays.retain(|replay| !ids.contains(&replay.id));
    match write(state_store, id, &requested, record.as_ref()).await {
        // A replay that is not removed now is found again and recognised by its id.
        Err(ReplayError::Put(PutError::Conflict)) => Ok(()),
        done => done,
    }
}

async fn read(state_store: &dyn StateStore, id: &WebhookId) -> Result<(Requested, Option<Record>), ReplayError> {
    let record = state_store.get(&key(id), Shared::store_deadline()).await?;
    let requested = record.as_ref().map(|record| serde_json::from_slice(&record.value)).transpose()?;
    Ok((requested.unwrap_or_default(), record))
}

async fn write(
    state_store: &dyn StateStore,
    id: &WebhookId,
    requested: &Requested,
    expected: Option<&Record>,
) -> Result<(), ReplayError> {
    let value = serde_json::to_vec(requested)?;
    let revision = expected.map(|record| record.revision);
    state_store.put(&key(id), value.into(), revision, Some(REPLAY_TTL), Shared::store_deadline()).await?;
    Ok(())
}

fn key(id: &WebhookId) -> String {
    format!("replay.{id}")
}
