//! `GET /usage`: what the key's account has used. Any valid key may ask, and asking counts as a read of the account.

use std::error::Error;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use tokio::time::Instant;

use super::decisions::admit_read;
use crate::auth::authenticate_until;
use crate::errors::{ApiError, Part};
use crate::middleware::RequestContext;
use crate::state::AppState;

pub(super) async fn usage(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let deadline = Instant::now() + state.config.request_budget;
    let identity = authenticate_until(&state, &request, deadline).await?;
    admit_read(&state, &identity)?;
    let id = RequestContext::id_of(&request).ok_or(ApiError::Unavailable)?;
    let usage = state.quotas.usage(&identity, id, state.store_until(deadline)).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn Error, "usage cannot be read");
        ApiError::Missing(Part::StateStore)
    })?;
    Ok(HttpResponse::Ok().json(usage))
}
