//! `GET /v1/status`: which processes the deployment has, for its operator.

use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use stage0_contract::{Scope, Status};

use super::{answer, authenticate};
use crate::errors::ApiError;
use crate::state::Gate;

pub(super) async fn status(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let found = async {
        let deadline = tokio::time::Instant::now() + gate.config.request_budget;
        let identity = authenticate(&gate, &request, deadline).await?;
        if !identity.scopes.contains(&Scope::Operator) {
            return Err(ApiError::ScopeMissing(Scope::Operator));
        }
        // A gateway that just started has not heard of everybody.
        tokio::time::sleep(gate.instances.complete_from().saturating_duration_since(Instant::now())).await;
        let status = Status { at: Timestamp::now(), instances: gate.instances.all(Instant::now()) };
        Ok(HttpResponse::Ok().json(status))
    };
    answer(&request, found.await)
}
