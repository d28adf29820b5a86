//! Changes of what decides: each is tried, recorded, and then made, so that nothing is there without its line.
//!
//! What is recorded and surely not made gets a further line that says so.

use jiff::Timestamp;
use stage0_contract::{
    AccountId, Activation, ActivationDone, ApprovalEvent, CandidateChanged, KeyIdentity, ManageReply, Request,
};
use uuid::Uuid;

use crate::errors::{ApiError, Change};
use crate::recording::record_event;
use crate::routes::management::Call;
use crate::state::AppState;

/// How often a change is tried again because another one came between.
pub(super) const MAX_ATTEMPTS: usize = 3;

/// What the keystore says of a change that it tried or made.
pub(super) trait Changed {
    fn activation(&self) -> &Activation;
    fn retention_days(&self) -> u32;
    /// Another change came between, and nothing changed.
    fn is_outdated(&self) -> bool;
}

impl Changed for ActivationDone {
    fn activation(&self) -> &Activation {
        &self.activation
    }

    fn retention_days(&self) -> u32 {
        self.retention_days
    }

    fn is_outdated(&self) -> bool {
        self.is_outdated
    }
}

impl Changed for CandidateChanged {
    fn activation(&self) -> &Activation {
        &self.activation
    }

    fn retention_days(&self) -> u32 {
        self.retention_days
    }

    fn is_outdated(&self) -> bool {
        self.is_outdated
    }
}

/// Tries a change, records it, and makes it; again if another one came between. `real` says what makes it, at the
/// place among the changes that it had when it was tried.
pub(super) async fn change<M, D>(
    call: &Call,
    identity: &KeyIdentity,
    trial: &M,
    real: impl Fn(u64) -> M,
) -> Result<D, ApiError>
where
    M: Request<Reply = ManageReply<D>>,
    D: Changed,
{
    for _ in 0..MAX_ATTEMPTS {
        let tried = call.send(trial).await?;
        let recorded = record(call, identity, &tried).await?;
        let done = make(call, identity, &real(tried.activation().sequence), &tried, Some(recorded)).await?;
        if !done.is_outdated() {
            invalidate(&call.state, done.activation());
            return Ok(done);
        }
    }
    Err(changed_meanwhile())
}

pub(super) fn changed_meanwhile() -> ApiError {
    let text = "what is active there was changed meanwhile: look at what is active, and try again";
    ApiError::Conflict(text.to_owned())
}

/// Makes a change that was tried and recorded. If it surely is not made, a further line says so.
pub(super) async fn make<M, D>(
    call: &Call,
    identity: &KeyIdentity,
    real: &M,
    tried: &D,
    recorded: Option<Uuid>,
) -> Result<D, ApiError>
where
    M: Request<Reply = ManageReply<D>>,
    D: Changed,
{
    let done = call.send(real).await;
    let is_not_made = match &done {
        Ok(done) => done.is_outdated(),
        Err(error) => error.is_refusal(),
    };
    if let Some(recorded) = recorded.filter(|_| is_not_made) {
        record_not_made(call, identity, tried.activation(), tried.retention_days(), recorded).await;
    }
    done
}

/// Records that a change was not made, although the line with the id `recorded` says so.
pub(super) async fn record_not_made(
    call: &Call,
    identity: &KeyIdentity,
    activation: &Activation,
    retention_days: u32,
    recorded: Uuid,
) {
    let event = ApprovalEvent { at: Timestamp::now(), ..activation.not_made_event(Uuid::now_v7(), recorded) };
    let account = (activation.account.as_ref().unwrap_or(&identity.account), retention_days);
    if record_event_of(call, account, event, Change::NotActivated).await.is_err() {
        tracing::error!(%recorded, "a policy was recorded as changed and was not, and that is not recorded");
    }
}

/// Records a change of what decides that was tried; the id of its line.
pub(super) async fn record(call: &Call, identity: &KeyIdentity, tried: &impl Changed) -> Result<Uuid, ApiError> {
    let event_id = Uuid::now_v7();
    let activation = tried.activation();
    let event = ApprovalEvent { at: Timestamp::now(), ..activation.event(event_id) };
    let account = activation.account.as_ref().unwrap_or(&identity.account);
    record_event_of(call, (account, tried.retention_days()), event, Change::NotActivated).await?;
    Ok(event_id)
}

/// Records an event in the log of this account, whose lines are kept for so many days.
pub(super) async fn record_event_of(
    call: &Call,
    account: (&AccountId, u32),
    event: ApprovalEvent,
    change: Change,
) -> Result<(), ApiError> {
    if !call.state.can_record() {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let (verified, request_id) = (call.verified_caller()?, call.request_id()?);
    let recorded = record_event(&call.state, request_id, verified, account, event).await;
    recorded.map_err(|failed| failed.or(change))
}

/// Each key is asked for again before it is used, so that it comes with what is active now.
pub(super) fn invalidate(state: &AppState, activation: &Activation) {
    match &activation.account {
        Some(account) => state.key_cache.invalidate(account),
        None => state.key_cache.invalidate_all(),
    }
}
