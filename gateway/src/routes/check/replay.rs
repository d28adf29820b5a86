//! Whether a recorded decision may be given again under its `Idempotency-Key`.
//!
//! Not once another policy version or floor would decide, a stop covers the check, its approval or wider grant does not
//! stand behind it any more, or, for a DEFER, its approval has changed its state. Then the check is decided like a
//! first one.
//! INVARIANT: what cannot be known is a 503, never the old decision. A decision without an approval, in an account
//! without stops, costs at most the one request for the policy version that it always did.

use serde_json::Value;
use stage0_backplane::RequestError;
use stage0_contract::{
    ApprovalId, ApprovalStatus, CandidateMode, CheckRequest, CoveredByStop, EvaluatorStatus, GrantId, Grants,
    KeyIdentity, ListGrants, PolicyVersion, ShowApproval, Verdict,
};
use tokio::time::Instant;

use super::{ParsedRequest, Submitted, fetch_action};
use crate::body;
use crate::errors::{ApiError, Part};
use crate::idempotency::Recorded;
use crate::routes::management::send_within;
use crate::state::AppState;

/// The request that is repeated, as far as it has been read.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) submitted: Option<&'a Submitted>,
    pub(super) parsed: Option<&'a ParsedRequest>,
}

pub(super) async fn still_holds(
    state: &AppState,
    identity: &KeyIdentity,
    recorded: &Recorded,
    request: Request<'_>,
    deadline: Instant,
) -> Result<bool, ApiError> {
    let question = Question { state, identity, deadline };
    let decided = &recorded.response.decided;
    Ok(decided.floor_version == identity.rules.floor
        && question.is_current_policy(&decided.policy_version, request).await?
        && !question.is_stopped(request).await?
        && question.is_backed(recorded).await?)
}

struct Question<'a> {
    state: &'a AppState,
    identity: &'a KeyIdentity,
    deadline: Instant,
}

impl Question<'_> {
    /// Whether the policy version that decided then would decide now.
    async fn is_current_policy(&self, decided_by: &PolicyVersion, request: Request<'_>) -> Result<bool, ApiError> {
        let rules = &self.identity.rules;
        let has_canary = rules.candidates.iter().any(|candidate| candidate.mode == CandidateMode::Canary);
        if has_canary || !rules.policy.is_empty() {
            // A body that cannot be read is refused where it is parsed.
            let Some(check) = self.read(request).await? else { return Ok(false) };
            if rules.unclear_environment(&check).is_some() {
                return Ok(false);
            }
            if let Some(active) = rules.policy_of(&check) {
                return Ok(active == decided_by);
            }
        }
        let named = match request {
            Request { parsed: Some(parsed), .. } => parsed.check.policy_pack_version.as_deref(),
            Request { submitted: Some(Submitted::Action(object)), .. } => {
                object.get("policy_pack_version").and_then(Value::as_str)
            }
            Request { .. } => None,
        };
        if let Some(named) = named.filter(|version| !version.is_empty()) {
            return Ok(named == decided_by.as_str());
        }
        let status = self.state.requests().request_until(&EvaluatorStatus {}, self.deadline).await;
        if status.map_err(|error| unknown::<EvaluatorStatus>(&error))?.active == *decided_by {
            return Ok(true);
        }
        // An approved action may name a version of its own.
        let Some(Submitted::Approved(id)) = request.submitted else { return Ok(false) };
        let action = fetch_action(self.state, self.identity, id.clone(), self.deadline).await?;
        Ok(action.policy_pack_version.as_deref() == Some(decided_by.as_str()))
    }

    /// Whether a stop of the account covers the check.
    async fn is_stopped(&self, request: Request<'_>) -> Result<bool, ApiError> {
        if self.identity.rules.stops.is_empty() {
            return Ok(false);
        }
        // A body that cannot be read is refused where it is parsed.
        let Some(request) = self.read(request).await? else { return Ok(true) };
        let (account, asker) = (self.identity.account.clone(), self.state.actor_of(self.identity));
        let question = CoveredByStop { account, request, asker };
        let reply = self.state.requests().request_until(&question, self.deadline).await;
        Ok(reply.map_err(|error| unknown::<CoveredByStop>(&error))?.is_covered)
    }

    async fn read(&self, request: Request<'_>) -> Result<Option<CheckRequest>, ApiError> {
        match request {
            Request { parsed: Some(parsed), .. } => Ok(Some(parsed.check.clone())),
            Request { submitted: Some(Submitted::Action(object)), .. } => {
                let object = Value::Object(object.clone());
                // How long it was is not known here, and it may be long.
                body::compute(usize::MAX, move || CheckRequest::parse(object).ok()).await
            }
            Request { submitted: Some(Submitted::Approved(id)), .. } => {
                fetch_action(self.state, self.identity, id.clone(), self.deadline).await.map(Some)
            }
            Request { submitted: None, parsed: None } => Ok(None),
        }
    }

    /// Whether the approval or grant that the decision names still stands behind it.
    async fn is_backed(&self, recorded: &Recorded) -> Result<bool, ApiError> {
        let Some(approval) = &recorded.response.decided.approval else { return Ok(true) };
        match (&approval.id, &approval.grant_id) {
            (Some(id), _) => self.is_approval_as_it_was(id, approval.status, recorded).await,
            (None, Some(id)) => self.is_grant_unrevoked(id).await,
            (None, None) => Ok(false),
        }
    }

    async fn is_approval_as_it_was(
        &self,
        id: &ApprovalId,
        status: ApprovalStatus,
        recorded: &Recorded,
    ) -> Result<bool, ApiError> {
        let (account, actor) = (self.identity.account.clone(), self.state.actor_of(self.identity));
        let show = ShowApproval { account, actor, id: id.clone(), wait: None };
        let approval = match send_within(self.state.requests(), &show, self.left()).await {
            Ok(approval) => approval,
            Err(ApiError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        if recorded.response.decided.verdict != Verdict::Allow {
            return Ok(approval.status == status);
        }
        // A person may have opened it again, and then another check may have used it.
        let is_used = matches!(approval.status, ApprovalStatus::Reserved | ApprovalStatus::Consumed);
        let by_this = [recorded.response.request_id, recorded.operation].map(Some).contains(&approval.used_by);
        Ok(is_used && by_this)
    }

    async fn is_grant_unrevoked(&self, id: &GrantId) -> Result<bool, ApiError> {
        let (account, actor) = (self.identity.account.clone(), self.state.actor_of(self.identity));
        let list = ListGrants { account, actor };
        let Grants { items } = send_within(self.state.requests(), &list, self.left()).await?;
        Ok(items.iter().any(|grant| grant.id == *id && grant.revoked_at.is_none()))
    }

    fn left(&self) -> std::time::Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

fn unknown<M: stage0_contract::Request>(error: &RequestError) -> ApiError {
    let cause = error as &dyn std::error::Error;
    tracing::warn!(error = cause, "whether a recorded decision still holds cannot be known");
    ApiError::Missing(Part::asked::<M>(error))
}
