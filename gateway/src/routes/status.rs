//! The state of this process (`/healthz`, `/readyz`), and of all processes of the deployment (`/v1/status`).

use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use stage0_contract::{Liveness, Scope, Status};

use crate::auth::authenticate;
use crate::errors::ApiError;
use crate::state::AppState;

pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(Liveness::default())
}

pub(super) async fn ready(state: Data<AppState>) -> HttpResponse {
    let own_remarks = || -> Vec<String> {
        let now = Instant::now();
        state.key_cache.remark().into_iter().chain(state.instances.remark(now)).collect()
    };
    let report = state.readiness.report(&state.backplane, state.config.audit, own_remarks).await;
    let mut response = if report.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.json(report)
}

/// For the operator.
pub(super) async fn status(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let identity = authenticate(&state, &request).await?;
    if !identity.scopes.contains(&Scope::Operator) {
        return Err(ApiError::ScopeMissing(Scope::Operator));
    }
    // A gateway that has just started has not received every process's heartbeat yet.
    tokio::time::sleep(state.instances.complete_from().saturating_duration_since(Instant::now())).await;
    let status = Status { at: Timestamp::now(), instances: state.instances.list(Instant::now()) };
    Ok(HttpResponse::Ok().json(status))
}
