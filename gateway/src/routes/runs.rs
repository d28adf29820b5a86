//! `/v1/runs`: what the server remembers of a run, its end, and what its checks cost. The evaluator keeps runs; here only shapes and
//! scopes are checked, and the log is asked about a check that a run knows nothing of.

use std::sync::Arc;

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;
use stage0_contract::{EndRun, KeyIdentity, RequestId, RunEnded, RunId, RunView, Scope, SettleRun, ShowRun, Verdict};
use tokio::time::Instant;

use super::decisions::shelf;
use super::fields::Fields;
use super::keys::manage;
use super::{answer, authenticate};
use crate::body;
use crate::errors::ApiError;
use crate::state::Gate;

pub(super) async fn show(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let shown = async {
        let identity = caller(&gate, &request, &[Scope::Check, Scope::RunsManage]).await?;
        let show = ShowRun { account: identity.account.clone(), run_id: run_id(&id)? };
        let run: RunView = manage(&gate, &show).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(run))
    };
    answer(&request, shown.await)
}

pub(super) async fn end(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let ended = async {
        let identity = caller(&gate, &request, &[Scope::RunsManage]).await?;
        let end = EndRun { account: identity.account.clone(), run_id: run_id(&id)? };
        let RunEnded {} = manage(&gate, &end).await?;
        Ok::<_, ApiError>(HttpResponse::NoContent().finish())
    };
    answer(&request, ended.await)
}

pub(super) async fn settle(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let settled = async {
        let identity = caller(&gate, &request, &[Scope::Check, Scope::RunsManage]).await?;
        let mut fields = Fields::of_body(body::json_object(&gate, &request, payload, &identity.account).await?.object);
        let request_id = fields
            .required("request_id", "must be the `request_id` of a check", |v| RequestId::parse(v.as_str()?).ok());
        let actual =
            fields.required("actual_cost_usd", "must be a number of US dollars, finite and not negative", |v| {
                stage0_contract::Micros::from_evidence(v.as_number()?).ok()
            });
        fields.finish()?;
        let (Some(request_id), Some(actual)) = (request_id, actual) else { return Err(ApiError::Unavailable) };
        let settle = SettleRun {
            account: identity.account.clone(),
            run_id: run_id(&id)?,
            request_id,
            actual_micros: actual.get(),
            may_lower: identity.scopes.contains(&Scope::RunsManage),
        };
        match manage(&gate, &settle).await {
            Ok(settled) => Ok(HttpResponse::Ok().json(settled)),
            Err(ApiError::NotFound) => Err(unknown(&gate, &identity, request_id).await?),
            Err(error) => Err(error),
        }
    };
    answer(&request, settled.await)
}

/// Why a run has nothing to settle for a check.
async fn unknown(gate: &Gate, identity: &KeyIdentity, request_id: RequestId) -> Result<ApiError, ApiError> {
    let decision = shelf(gate, identity).decision(request_id).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "decision could not be read");
        ApiError::Unavailable
    })?;
    Ok(match decision {
        None => ApiError::NotFound,
        Some(decision) if decision.get("verdict").and_then(Value::as_str) != Some(Verdict::Allow.as_str()) => {
            ApiError::Conflict("the check was not allowed, so there is nothing to settle".to_owned())
        }
        Some(_) => ApiError::Conflict(
            "nothing is reserved for the check in this run: it is of another run, or too long ago".to_owned(),
        ),
    })
}

/// Any one of the scopes is enough. An operator has no runs, whatever else its key was granted.
async fn caller(gate: &Gate, request: &HttpRequest, scopes: &[Scope]) -> Result<Arc<KeyIdentity>, ApiError> {
    let identity = authenticate(gate, request, Instant::now() + gate.config.request_budget).await?;
    allow_any(&identity, scopes)?;
    Ok(identity)
}

fn allow_any(identity: &KeyIdentity, scopes: &[Scope]) -> Result<(), ApiError> {
    let may = scopes.iter().any(|scope| identity.scopes.contains(scope)) && !identity.scopes.contains(&Scope::Operator);
    let lacking = scopes.first().copied().unwrap_or(Scope::RunsManage);
    if may { Ok(()) } else { Err(ApiError::ScopeMissing(lacking)) }
}

/// What cannot be a run's name names none.
fn run_id(text: &str) -> Result<RunId, ApiError> {
    RunId::parse(text).map_err(|_| ApiError::NotFound)
}
