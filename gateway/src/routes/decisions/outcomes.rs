//! What came of decisions, for those who read them. The evaluator has it; the log's records stay as they are.
//!
//! INVARIANT: a record says `"outcome": null` only where the evaluator said that nothing was reported. Where it does
//! not answer, one record is shown without the member, and a list that is filtered by it is a 503.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stage0_backplane::Requests;
use stage0_contract::{
    AccountId, DecisionOutcome, KeyIdentity, MAX_OUTCOMES_READ, OutcomesRead, ReadOutcomes, RequestId, Verdict,
};

use super::read_failed;
use crate::errors::ApiError;
use crate::log_reader::with_outcome;
use crate::routes::management::{Call, send_within};
use crate::state::AppState;

pub(super) const FILTER_MUST: &str = "must be `succeeded`, `failed`, `unknown`, `skipped`, `none` or `any`";
/// A record is shown without its outcome rather than late.
const SHOW_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the evaluator what came of an account's decisions.
pub(super) struct Outcomes {
    requests: Arc<dyn Requests>,
    account: AccountId,
    timeout: Duration,
}

impl Outcomes {
    pub(super) fn of(state: &AppState, identity: &KeyIdentity) -> Self {
        let (requests, account) = (Arc::clone(&state.reading.requests), identity.account.clone());
        Self { requests, account, timeout: state.config.request_budget }
    }

    /// The outcomes of those of which one was reported.
    pub(super) async fn read(
        &self,
        request_ids: Vec<RequestId>,
    ) -> Result<HashMap<RequestId, DecisionOutcome>, ApiError> {
        let mut known = HashMap::new();
        for request_ids in request_ids.chunks(MAX_OUTCOMES_READ) {
            let read = ReadOutcomes { account: self.account.clone(), request_ids: request_ids.to_vec() };
            let OutcomesRead { outcomes } = send_within(&*self.requests, &read, self.timeout).await?;
            known.extend(outcomes.into_iter().map(|outcome| (outcome.request_id, outcome)));
        }
        Ok(known)
    }
}

/// The record as it is shown: with its outcome, as far as that is known. Of what was not allowed nothing can come.
pub(super) async fn show(
    call: &Call,
    identity: &KeyIdentity,
    id: RequestId,
    record: &Value,
    json: Vec<u8>,
) -> Result<Vec<u8>, ApiError> {
    let is_allowed = record.get("verdict").and_then(Value::as_str) == Some(Verdict::Allow.as_str());
    let outcomes = Outcomes::of(&call.state, identity);
    let outcomes = Outcomes { timeout: outcomes.timeout.min(SHOW_TIMEOUT), ..outcomes };
    match outcomes.read(if is_allowed { vec![id] } else { Vec::new() }).await {
        Ok(known) => with_outcome(&json, known.get(&id)).map_err(|error| read_failed(&error)),
        // It was logged where it happened.
        Err(_) => Ok(json),
    }
}
