//! `GET /v1/policies/{version}/diff`, and how an evaluator is asked to compare two policies.

use std::error::Error;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{
    ComparePolicies, ComparePoliciesReply, PoliciesInForce, PolicyComparison, PolicyVersion, ReadActivePolicies, Scope,
    ShowPolicy,
};

use super::{MAX_ENVIRONMENT_CHARS, named, whose};
use crate::errors::{ApiError, How, Part};
use crate::routes::fields::Fields;
use crate::routes::management::Call;
use crate::state::AppState;

/// Both packs decide the cases of both. An evaluator gives up by then.
pub(super) const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

pub(in crate::routes) async fn diff(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, false)?;
    let from = fields.policy_version("from");
    let environment = fields.prose("environment", MAX_ENVIRONMENT_CHARS);
    let floor = fields.word("floor", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    refuse_two_places(&mut fields, from.is_some(), environment.is_some(), floor);
    fields.finish()?;
    let new = named(&version)?;
    // The keystore says whose policies the caller may see.
    let in_force = call.send(&ReadActivePolicies { caller: caller.clone(), account: account.clone() }).await?;
    for version in [Some(&new), from.as_ref()].into_iter().flatten() {
        let (caller, account) = (caller.clone(), account.clone());
        call.send(&ShowPolicy { caller, version: version.clone(), account, files: false }).await?;
    }
    let old = match from {
        Some(from) => Some(from),
        None => decides(&in_force, environment.as_deref(), floor)?,
    };
    let message = ComparePolicies { account: in_force.account, old, new };
    Ok(HttpResponse::Ok().json(compare(&call.state, &message, Instant::now() + COMPARE_TIMEOUT).await?))
}

fn refuse_two_places(fields: &mut Fields, from: bool, environment: bool, floor: bool) {
    let is_one = [from, environment, floor].into_iter().filter(|given| *given).count() < 2;
    if is_one {
        return;
    }
    for (name, given) in [("environment", environment), ("floor", floor)] {
        if given {
            fields.refuse(name, "must be absent beside another of `from`, `environment` and `floor`");
        }
    }
}

/// What decides at a place; none: the evaluators' own.
fn decides(
    in_force: &PoliciesInForce,
    environment: Option<&str>,
    floor: bool,
) -> Result<Option<PolicyVersion>, ApiError> {
    if floor {
        let text = "no floor is active: the first one only adds to what decides";
        return in_force.floor.clone().map(Some).ok_or_else(|| ApiError::Conflict(text.to_owned()));
    }
    Ok(in_force.effective.of(environment).cloned())
}

/// Has an evaluator compare two policies.
pub(super) async fn compare(
    state: &AppState,
    message: &ComparePolicies,
    deadline: Instant,
) -> Result<PolicyComparison, ApiError> {
    let failed = |how| ApiError::NotCompared(Part::answered::<ComparePolicies>(how));
    match state.requests().request(message, deadline.saturating_duration_since(Instant::now())).await {
        Ok(ComparePoliciesReply::Compared(comparison)) => Ok(*comparison),
        Ok(ComparePoliciesReply::Busy) => Err(failed(How::Busy)),
        Ok(ComparePoliciesReply::Unable(reason)) => {
            tracing::error!(policy_version = %message.new, reason, "policies could not be compared");
            Err(failed(How::Failed))
        }
        Err(error) => {
            tracing::error!(policy_version = %message.new, error = &error as &dyn Error, "policies were not compared");
            Err(ApiError::NotCompared(Part::asked::<ComparePolicies>(&error)))
        }
    }
}
