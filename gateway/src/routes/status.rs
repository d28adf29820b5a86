//! `GET /v1/status`: the processes of the deployment, for its operator.

use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use stage0_contract::{Scope, Status};

use crate::auth::authenticate;
use crate::errors::ApiError;
use crate::state::AppState;

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
