//! Approvals in the state store: their keys, and changes by compare-and-set.
//!
//! A record that does not belong where it stands is refused like one that cannot be read: nothing is decided by it.
//! INVARIANT: a change is done once its record is stored. The index follows; where it lags, maintenance mends it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage0_backplane::{
    CLOCK_READING_TTL, ClockError, ListError, PutError, ReadError, Revision, StateStore, random_fraction,
};
use stage0_contract::{APPROVAL_RECORDS, AccountId, ActionDigest, ApprovalId, ApprovalStatus};
use tokio::time::Instant;

use super::grants::StoredGrants;
use super::index::{Index, IndexEntry};
use super::record::{StoredApproval, slot_in, slot_of};
use crate::config::RunConfig;

/// The shortest delay after a conflict, and the random part of it, so that many evaluators do not collide again.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_micros(500);
const CONFLICT_RETRY_SPREAD: Duration = Duration::from_millis(2);
/// The shortest time that anything is kept.
pub(super) const MIN_TTL: Duration = Duration::from_secs(1);
/// The shortest time that a record is kept after its end: late answers and lines must find it.
const MIN_KEPT_FOR: Duration = Duration::from_secs(86_400);

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("approvals cannot be read")]
    Read(#[source] ReadError),
    #[error("approvals cannot be listed")]
    List(#[source] ListError),
    #[error("approvals cannot be written")]
    Write(#[source] PutError),
    #[error("the record of an approval is malformed, or stands where it does not belong")]
    Forged,
    #[error("approvals are changed by too many at once")]
    Contended,
    #[error("the time of approvals is not known")]
    Clock(#[source] ClockError),
}

/// A record and its state in the store.
#[derive(Debug, Clone)]
pub(super) struct Stored<T> {
    pub(super) value: Option<T>,
    pub(super) revision: Option<Revision>,
}

/// Where an approval stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: String,
    /// Whether it is the current one of its action.
    pub(super) is_current: bool,
}

pub(super) struct ApprovalStore {
    pub(super) state_store: Arc<dyn StateStore>,
    pub(super) config: RunConfig,
}

pub(super) fn account_prefix(account: &AccountId) -> String {
    format!("{APPROVAL_RECORDS}.a.{account}")
}

fn key_of_slot(account: &AccountId, slot: &str) -> String {
    format!("{APPROVAL_RECORDS}.a.{account}.{slot}")
}

fn key_of_text(account: &AccountId, id: &ApprovalId) -> String {
    format!("{APPROVAL_RECORDS}.t.{account}.{id}")
}

fn key_of_index(account: &AccountId) -> String {
    format!("{APPROVAL_RECORDS}.i.{account}")
}

fn key_of_grants(account: &AccountId) -> String {
    format!("{APPROVAL_RECORDS}.g.{account}")
}

pub(super) fn index_prefix() -> String {
    format!("{APPROVAL_RECORDS}.i")
}

impl ApprovalStore {
    pub(super) fn now(&self) -> Timestamp {
        let now = self.state_store.clock().now();
        // Milliseconds are precise enough, and every JSON reader can represent them.
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// INVARIANT: whatever is changed was read before, so its times are the store's. Until its clock has been read,
    /// `now` is this host's time, which may be weeks off.
    async fn read<T: DeserializeOwned>(&self, key: &str, deadline: Instant) -> Result<Stored<T>, StoreError> {
        // A host whose own clock differs knows the store's time all the same.
        if let Err(error @ ClockError::Unknown) = self.state_store.read_clock(CLOCK_READING_TTL, deadline).await {
            return Err(StoreError::Clock(error));
        }
        let found = self.state_store.get(key, deadline).await.map_err(StoreError::Read)?;
        let Some(record) = found else { return Ok(Stored { value: None, revision: None }) };
        let value = serde_json::from_slice(&record.value).map_err(|_| StoreError::Forged)?;
        Ok(Stored { value: Some(value), revision: Some(record.revision) })
    }

    /// Writes a record; false on a conflict.
    async fn write<T: Serialize>(
        &self,
        key: &str,
        value: &T,
        expected: Option<Revision>,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|_| StoreError::Forged)?;
        match self.state_store.put(key, Bytes::from(bytes), expected, Some(ttl.max(MIN_TTL)), deadline).await {
            Ok(_) => Ok(true),
            Err(PutError::Conflict) => Ok(false),
            Err(error @ PutError::Failed(_)) => Err(StoreError::Write(error)),
        }
    }

    /// The current approval of an action.
    pub(super) async fn current(
        &self,
        account: &AccountId,
        slot: &str,
        deadline: Instant,
    ) -> Result<Stored<StoredApproval>, StoreError> {
        let found: Stored<StoredApproval> = self.read(&key_of_slot(account, slot), deadline).await?;
        if found.value.as_ref().is_some_and(|approval| !approval.belongs(account, slot)) {
            return Err(StoreError::Forged);
        }
        Ok(found)
    }

    /// The approval with this id, and where it stands.
    pub(super) async fn find(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        deadline: Instant,
    ) -> Result<Option<(Place, StoredApproval, Revision)>, StoreError> {
        let Some(slot) = slot_in(id) else { return Ok(None) };
        for (key, is_current) in [(key_of_slot(account, slot), true), (key_of_slot(account, id.as_str()), false)] {
            let found: Stored<StoredApproval> = self.read(&key, deadline).await?;
            let (Some(approval), Some(revision)) = (found.value, found.revision) else { continue };
            if !approval.belongs(account, slot) {
                return Err(StoreError::Forged);
            }
            if approval.id == *id {
                return Ok(Some((Place { key, is_current }, approval, revision)));
            }
        }
        Ok(None)
    }

    /// How long a record is kept after its end. A denied one is kept for as long as it denies.
    fn kept_for(&self) -> Duration {
        self.config.approval_kept_for.max(self.config.denied_for).max(MIN_KEPT_FOR)
    }

    /// How long the index is kept from now on: beyond all that is due or counts for a cap.
    fn ttl_of_index(&self, index: &Index) -> Duration {
        let ends = index.entries.iter().flat_map(|entry| [entry.due_at, entry.expires_at]);
        let latest = ends.chain(index.grants_due_at).max();
        self.kept_for().saturating_add(latest.map(|at| self.until(at)).unwrap_or_default())
    }

    pub(super) fn until(&self, time: Timestamp) -> Duration {
        Duration::try_from(time.duration_since(self.now())).unwrap_or_default()
    }

    /// How long the record is kept from now on.
    fn ttl(&self, approval: &StoredApproval) -> Duration {
        let end = match approval.status {
            ApprovalStatus::Pending => approval.expires_at,
            _ => approval.usable_until.unwrap_or(approval.expires_at),
        };
        let open_for = if approval.status.is_final() { Duration::ZERO } else { self.until(end) };
        self.kept_for().saturating_add(open_for)
    }

    /// Writes the approval where it stands; false on a conflict.
    pub(super) async fn put(
        &self,
        place: &Place,
        approval: &StoredApproval,
        expected: Option<Revision>,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        self.write(&place.key, approval, expected, self.ttl(approval), deadline).await
    }

    pub(super) fn place(account: &AccountId, digest: &ActionDigest) -> Place {
        Place { key: key_of_slot(account, slot_of(digest)), is_current: true }
    }

    /// Keeps a finished approval under its own id, before another one takes its place. What an earlier try kept is
    /// overwritten, as long as the record still stands as it was read: afterwards the copy alone is changed.
    pub(super) async fn archive(
        &self,
        approval: &StoredApproval,
        read_at: &Revision,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let key = key_of_slot(&approval.account, approval.id.as_str());
        let mut expected = None;
        while Instant::now() < deadline {
            if self.write(&key, approval, expected, self.kept_for(), deadline).await? {
                return Ok(());
            }
            pause().await;
            let kept = self.state_store.get(&key, deadline).await.map_err(StoreError::Read)?;
            expected = kept.map(|record| record.revision);
            let current = self.current(&approval.account, approval.slot(), deadline).await?;
            if current.revision.as_ref() != Some(read_at) {
                return Ok(());
            }
        }
        Err(StoreError::Contended)
    }

    /// Keeps the sealed text of an approval's action for this time. Each approval has its own: what another one of the
    /// same action leaves cannot replace it.
    pub(super) async fn put_text(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        sealed: Vec<u8>,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let ttl = ttl.max(MIN_TTL);
        let (key, sealed) = (key_of_text(account, id), Bytes::from(sealed));
        while Instant::now() < deadline {
            let found = self.state_store.get(&key, deadline).await.map_err(StoreError::Read)?;
            let revision = found.map(|record| record.revision);
            match self.state_store.put(&key, sealed.clone(), revision, Some(ttl), deadline).await {
                Ok(_) => return Ok(()),
                Err(PutError::Conflict) => pause().await,
                Err(error @ PutError::Failed(_)) => return Err(StoreError::Write(error)),
            }
        }
        Err(StoreError::Contended)
    }

    pub(super) async fn text(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        deadline: Instant,
    ) -> Result<Option<Bytes>, StoreError> {
        let found = self.state_store.get(&key_of_text(account, id), deadline).await.map_err(StoreError::Read)?;
        Ok(found.map(|record| record.value))
    }

    /// Changes the account's index; returns what `change` returns.
    pub(super) async fn change_index<T>(
        &self,
        account: &AccountId,
        deadline: Instant,
        change: impl Fn(&mut Index) -> T,
    ) -> Result<T, StoreError> {
        let key = key_of_index(account);
        while Instant::now() < deadline {
            let found: Stored<Index> = self.read(&key, deadline).await?;
            let before = found.value.unwrap_or_default();
            let mut index = before.clone();
            let result = change(&mut index);
            if index == before {
                return Ok(result);
            }
            if self.write(&key, &index, found.revision, self.ttl_of_index(&index), deadline).await? {
                return Ok(result);
            }
            pause().await;
        }
        Err(StoreError::Contended)
    }

    /// Has the index say of a current approval what its record says.
    pub(super) async fn reindex(&self, approval: &StoredApproval, deadline: Instant) -> Result<(), StoreError> {
        let entry = approval.due_at().map(|due_at| IndexEntry {
            slot: approval.slot().to_owned(),
            workload: approval.asker.workload.clone(),
            is_pending: approval.status == ApprovalStatus::Pending,
            expires_at: approval.expires_at,
            due_at,
        });
        let change = |index: &mut Index| match &entry {
            Some(entry) => index.put(entry.clone()),
            None => index.remove(approval.slot()),
        };
        self.change_index(&approval.account, deadline, change).await
    }

    /// Changes the account's wider grants; a refusal changes nothing.
    pub(super) async fn change_grants<T, E>(
        &self,
        account: &AccountId,
        deadline: Instant,
        change: impl Fn(&mut StoredGrants, Timestamp) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        while Instant::now() < deadline {
            let found = self.grants(account, deadline).await?;
            let before = found.value;
            let mut grants = before.clone().unwrap_or_else(|| StoredGrants::new(account.clone()));
            let now = self.now();
            grants.pass_time(now);
            let result = match change(&mut grants, now) {
                Ok(result) => result,
                Err(refused) => return Ok(Err(refused)),
            };
            let is_same = before.as_ref() == Some(&grants) || before.is_none() && grants.grants.is_empty();
            let ttl = self.kept_for();
            if is_same || self.write(&key_of_grants(account), &grants, found.revision, ttl, deadline).await? {
                let due_at = grants.due_at();
                self.change_index(account, deadline, |index| index.grants_due_at = due_at).await?;
                return Ok(Ok(result));
            }
            pause().await;
        }
        Err(StoreError::Contended)
    }

    pub(super) async fn grants(
        &self,
        account: &AccountId,
        deadline: Instant,
    ) -> Result<Stored<StoredGrants>, StoreError> {
        let found: Stored<StoredGrants> = self.read(&key_of_grants(account), deadline).await?;
        if found.value.as_ref().is_some_and(|grants| grants.account != *account) {
            return Err(StoreError::Forged);
        }
        Ok(found)
    }
}

/// Waits for a randomised moment after a conflict.
pub(super) async fn pause() {
    let spread = CONFLICT_RETRY_SPREAD.mul_f64(random_fraction());
    tokio::time::sleep(CONFLICT_RETRY_DELAY + spread).await;
}
