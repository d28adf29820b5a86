//! Replays that were asked for, until the courier that holds the endpoint takes them.
//!
//! Any worker puts one into the ledger; it is removed once it stands in the stored cursor. A crash between the two finds it twice,
//! which the cursor notices by its id.

use serde::{Deserialize, Serialize};
use stage0_backplane::{Ledger, PutError, Record};
use stage0_contract::WebhookId;
use uuid::Uuid;

use crate::cursor::Replay;
use crate::shared::Shared;

const MOST: usize = 32;
const TRIES: usize = 5;

#[derive(Default, Serialize, Deserialize)]
struct Asked {
    replays: Vec<Replay>,
}

/// A replay was not put, or not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("too many replays wait already")]
    TooMany,
    #[error("{0}")]
    Ledger(String),
}

/// Puts one beside those that wait.
pub(crate) async fn put(ledger: &dyn Ledger, id: &WebhookId, replay: Replay) -> Result<(), ReplayError> {
    for _ in 0..TRIES {
        let found = get(ledger, id).await?;
        let mut asked = read(found.as_ref())?;
        if asked.replays.len() >= MOST {
            return Err(ReplayError::TooMany);
        }
        asked.replays.push(replay.clone());
        match write(ledger, id, &asked, found.as_ref()).await {
            Ok(()) => return Ok(()),
            Err(PutError::Conflict) => {}
            Err(error @ PutError::Failed(_)) => return Err(ReplayError::Ledger(error.to_string())),
        }
    }
    Err(ReplayError::Ledger("others were always first".to_owned()))
}

/// All that wait.
pub(crate) async fn waiting(ledger: &dyn Ledger, id: &WebhookId) -> Result<Vec<Replay>, ReplayError> {
    Ok(read(get(ledger, id).await?.as_ref())?.replays)
}

/// Removes those that stand in the cursor now; those that came meanwhile stay.
pub(crate) async fn taken(ledger: &dyn Ledger, id: &WebhookId, these: &[Uuid]) -> Result<(), ReplayError> {
    let found = get(ledger, id).await?;
    let mut asked = read(found.as_ref())?;
    asked.replays.retain(|replay| !these.contains(&replay.id));
    match write(ledger, id, &asked, found.as_ref()).await {
        // What is not removed now is found again, and known by its id.
        Ok(()) | Err(PutError::Conflict) => Ok(()),
        Err(error @ PutError::Failed(_)) => Err(ReplayError::Ledger(error.to_string())),
    }
}

async fn get(ledger: &dyn Ledger, id: &WebhookId) -> Result<Option<Record>, ReplayError> {
    ledger.get(&key(id), Shared::soon()).await.map_err(|error| ReplayError::Ledger(error.to_string()))
}

fn read(found: Option<&Record>) -> Result<Asked, ReplayError> {
    let asked = found.map(|record| serde_json::from_slice(&record.value)).transpose();
    asked.map(Option::unwrap_or_default).map_err(|error| ReplayError::Ledger(error.to_string()))
}

async fn write(ledger: &dyn Ledger, id: &WebhookId, asked: &Asked, found: Option<&Record>) -> Result<(), PutError> {
    let value = serde_json::to_vec(asked).map_err(|error| PutError::Failed(error.to_string()))?;
    let expected = found.map(|record| record.revision);
    ledger.put(&key(id), value.into(), expected, Some(Shared::REPLAY_LIVES), Shared::soon()).await.map(drop)
}

fn key(id: &WebhookId) -> String {
    format!("replay.{id}")
}
