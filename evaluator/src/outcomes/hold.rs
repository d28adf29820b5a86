//! Holds up the next check of an action whose outcome is awaited.
//!
//! Each attempt of a check leaves a record under its own id, so that a report finds the action by the id alone. That
//! record is written first: what is open can always be closed.
//! INVARIANT: an ALLOW that is awaited is answered only after the state store holds that the action is open for it.

use jiff::SignedDuration;
use stage0_backplane::Revision;
use stage0_contract::{AccountId, ActionDigest, OpenAction, RequestId};
use tokio::time::Instant;
use uuid::Uuid;

use super::open::{Claim, OpenRecord};
use super::record::StoredOutcome;
use super::{Outcomes, key_of_action};
use crate::in_flight::InFlightCheck;
use crate::records::{MIN_TTL, RecordError, later, pause, until};

impl Claim {
    fn of(check: &InFlightCheck) -> Self {
        let message = check.request();
        let request_id = message.request_id;
        Self { operation: message.operation.unwrap_or(request_id), request_id, claim: check.claim }
    }
}

impl Outcomes {
    /// The earlier check of the action whose outcome is not known; none: the action is free for this one.
    pub(crate) async fn find_open(
        &self,
        check: &InFlightCheck,
        digest: &ActionDigest,
    ) -> Result<Option<OpenAction>, RecordError> {
        let found = self.action(&check.request().account, digest, check.deadline()).await?;
        Ok(found.value.and_then(|open| open.other_than(Claim::of(check).operation, self.records.now())))
    }

    /// Opens the action for this check; the earlier check, if the action is open for one whose outcome is not known.
    pub(crate) async fn open(
        &self,
        check: &InFlightCheck,
        digest: &ActionDigest,
        retention_days: u32,
    ) -> Result<Option<OpenAction>, RecordError> {
        let (account, deadline, claim) = (&check.request().account, check.deadline(), Claim::of(check));
        while Instant::now() < deadline {
            let found = self.action(account, digest, deadline).await?;
            let now = self.records.now();
            if let Some(other) = found.value.as_ref().and_then(|open| open.other_than(claim.operation, now)) {
                return Ok(Some(other));
            }
            if !self.expect(account, claim.request_id, digest, retention_days, deadline).await? {
                // Another evaluator was faster, and the caller has reported already.
                return Ok(None);
            }
            let open = match found.value.filter(|open| !open.is_free(now)) {
                Some(mut open) => {
                    open.claim(claim);
                    open
                }
                None => {
                    let ends_at = later(now, open_for(retention_days));
                    OpenRecord::new(account.clone(), digest.clone(), claim, ends_at)
                }
            };
            if self.put_action(account, digest, &open, found.revision, deadline).await? {
                return Ok(None);
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    /// Notes that this decision's outcome is awaited; false: it is known.
    async fn expect(
        &self,
        account: &AccountId,
        request_id: RequestId,
        digest: &ActionDigest,
        retention_days: u32,
        deadline: Instant,
    ) -> Result<bool, RecordError> {
        while Instant::now() < deadline {
            let found = self.decision(account, request_id, deadline).await?;
            let ends_at = later(self.records.now(), open_for(retention_days));
            let mut stored = found.value.unwrap_or_else(|| StoredOutcome::new(account.clone(), request_id, ends_at));
            if stored.has_ended() {
                return Ok(false);
            }
            if stored.holds.contains(digest) {
                return Ok(true);
            }
            stored.holds.push(digest.clone());
            if self.put_decision(&stored, found.revision, deadline).await? {
                return Ok(true);
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    async fn put_action(
        &self,
        account: &AccountId,
        digest: &ActionDigest,
        open: &OpenRecord,
        expected: Option<Revision>,
        deadline: Instant,
    ) -> Result<bool, RecordError> {
        let now = self.records.now();
        let ttl = if open.is_free(now) { MIN_TTL } else { until(now, open.ends_at()) };
        self.records.write(&key_of_action(account, digest), open, expected, ttl, deadline).await
    }

    /// Gives back what this evaluator's attempt has opened.
    pub(crate) async fn give_back(
        &self,
        check: &InFlightCheck,
        digest: &ActionDigest,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        let Claim { request_id, claim, .. } = Claim::of(check);
        self.release(&check.request().account, digest, request_id, Some(claim), deadline).await
    }

    async fn release(
        &self,
        account: &AccountId,
        digest: &ActionDigest,
        request_id: RequestId,
        claim: Option<Uuid>,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        self.change_action(account, digest, deadline, |open| open.release(request_id, claim)).await
    }

    /// Frees what a check holds whose decision is surely not in the log.
    pub(super) async fn release_request(
        &self,
        account: &AccountId,
        request_id: RequestId,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        let Some(stored) = self.decision(account, request_id, deadline).await?.value else { return Ok(()) };
        for digest in &stored.holds {
            self.release(account, digest, request_id, None, deadline).await?;
        }
        Ok(())
    }

    /// Frees the actions that waited for this decision's outcome.
    pub(super) async fn close(&self, stored: &StoredOutcome, deadline: Instant) -> Result<(), RecordError> {
        let (account, request_id) = (&stored.account, stored.request_id);
        for digest in &stored.holds {
            self.change_action(account, digest, deadline, |open| open.close(request_id)).await?;
        }
        Ok(())
    }

    async fn change_action(
        &self,
        account: &AccountId,
        digest: &ActionDigest,
        deadline: Instant,
        change: impl Fn(&mut OpenRecord) -> bool,
    ) -> Result<(), RecordError> {
        while Instant::now() < deadline {
            let found = self.action(account, digest, deadline).await?;
            let Some(mut open) = found.value else { return Ok(()) };
            if !change(&mut open) {
                return Ok(());
            }
            if self.put_action(account, digest, &open, found.revision, deadline).await? {
                return Ok(());
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }
}

/// How long an action is held up: as long as its decision is kept, since its outcome can be reported for as long.
fn open_for(retention_days: u32) -> SignedDuration {
    SignedDuration::from_hours(i64::from(retention_days).saturating_mul(24))
}
