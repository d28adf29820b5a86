//! What came of allowed actions: reported once for each decision, recorded by the gateway that asked, and read again.
//!
//! The rules are pure (`record`, `open`); around them are the state store and the served requests. Does no recording:
//! the reply to a report carries its event until a gateway has said that the line is in the log.
//! INVARIANT: an action whose outcome is awaited is allowed only after the state store holds that it is open for this
//! check. If that cannot be read or written, the check is not decided.

mod hold;
mod open;
mod record;
mod report;

use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use stage0_backplane::{Revision, StateStore};
use stage0_contract::{
    AccountId, ActionDigest, DecisionOutcome, FieldError, MAX_OUTCOMES_READ, ManageReply, OUTCOME_RECORDS,
    OutcomesRead, ReadOutcomes, Refusal, RequestId, SettleEvents,
};
use tokio::time::Instant;

pub(crate) use report::Reporting;

use crate::metrics;
use crate::records::{Found, RecordError, Records, pause, until};
use open::OpenRecord;
use record::StoredOutcome;

/// Outcomes that one request reads at a time.
const MAX_READS: usize = 32;

/// One shard's outcomes.
pub(crate) struct Outcomes {
    records: Records,
}

fn key_of_decision(account: &AccountId, request_id: RequestId) -> String {
    format!("{OUTCOME_RECORDS}.d.{account}.{request_id}")
}

fn key_of_action(account: &AccountId, digest: &ActionDigest) -> String {
    format!("{OUTCOME_RECORDS}.o.{account}.{}", digest.as_str())
}

/// Logs a failure.
fn failed<T>(account: &AccountId, error: &RecordError) -> ManageReply<T> {
    metrics::outcomes_failed();
    tracing::warn!(%account, error = error as &dyn std::error::Error, "outcomes failed");
    ManageReply::Failed
}

impl Outcomes {
    pub(crate) fn new(state_store: Arc<dyn StateStore>) -> Self {
        Self { records: Records { state_store } }
    }

    /// `GET /v1/decisions?outcome=…`: in the order of the ids, without those of which nothing was reported.
    pub(crate) async fn read(&self, message: &ReadOutcomes, deadline: Instant) -> ManageReply<OutcomesRead> {
        let ReadOutcomes { account, request_ids } = message;
        // The gateway keeps to this, but any process may send a request.
        if request_ids.len() > MAX_OUTCOMES_READ {
            let error = FieldError::new("request_ids", format!("must be at most {MAX_OUTCOMES_READ}"));
            return ManageReply::Refused(Refusal::Invalid(vec![error]));
        }
        let reads = request_ids.iter().map(|id| self.outcome_of(account, *id, deadline));
        let read: Result<Vec<Option<DecisionOutcome>>, _> = stream::iter(reads).buffered(MAX_READS).try_collect().await;
        match read {
            Ok(outcomes) => ManageReply::Done(OutcomesRead { outcomes: outcomes.into_iter().flatten().collect() }),
            Err(error) => failed(account, &error),
        }
    }

    async fn outcome_of(
        &self,
        account: &AccountId,
        request_id: RequestId,
        deadline: Instant,
    ) -> Result<Option<DecisionOutcome>, RecordError> {
        Ok(self.decision(account, request_id, deadline).await?.value.and_then(|stored| stored.view()))
    }

    /// What came of recording.
    pub(crate) async fn settle(&self, message: &SettleEvents, deadline: Instant) -> Result<(), ManageReply<()>> {
        let SettleEvents { account, recorded, released } = message;
        let mut outcome = Ok(());
        for event in recorded {
            let Some(request_id) = event.outcome_of else { continue };
            let confirm = |stored: &mut StoredOutcome| stored.confirm(event.event_id);
            outcome = outcome.and(self.change(account, request_id, deadline, confirm).await);
        }
        if let Some(released) = released {
            outcome = outcome.and(self.release_request(account, released.request_id, deadline).await);
        }
        outcome.map_err(|error| failed(account, &error))
    }

    /// Changes what is kept of a decision, if anything is; it is kept for as long as before.
    async fn change(
        &self,
        account: &AccountId,
        request_id: RequestId,
        deadline: Instant,
        change: impl Fn(&mut StoredOutcome) -> bool,
    ) -> Result<(), RecordError> {
        while Instant::now() < deadline {
            let found = self.decision(account, request_id, deadline).await?;
            let Some(mut stored) = found.value else { return Ok(()) };
            if !change(&mut stored) {
                return Ok(());
            }
            if self.put_decision(&stored, found.revision, deadline).await? {
                return Ok(());
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    async fn decision(
        &self,
        account: &AccountId,
        request_id: RequestId,
        deadline: Instant,
    ) -> Result<Found<StoredOutcome>, RecordError> {
        let found = self.records.read::<StoredOutcome>(&key_of_decision(account, request_id), deadline).await?;
        if found.value.as_ref().is_some_and(|stored| !stored.belongs(account, request_id)) {
            return Err(RecordError::Malformed);
        }
        Ok(found)
    }

    /// Writes what is kept of a decision; false on a conflict.
    async fn put_decision(
        &self,
        stored: &StoredOutcome,
        expected: Option<Revision>,
        deadline: Instant,
    ) -> Result<bool, RecordError> {
        let key = key_of_decision(&stored.account, stored.request_id);
        let ttl = until(self.records.now(), stored.ends_at);
        self.records.write(&key, stored, expected, ttl, deadline).await
    }

    async fn action(
        &self,
        account: &AccountId,
        digest: &ActionDigest,
        deadline: Instant,
    ) -> Result<Found<OpenRecord>, RecordError> {
        let found = self.records.read::<OpenRecord>(&key_of_action(account, digest), deadline).await?;
        if found.value.as_ref().is_some_and(|open| !open.belongs(account, digest)) {
            return Err(RecordError::Malformed);
        }
        Ok(found)
    }
}
