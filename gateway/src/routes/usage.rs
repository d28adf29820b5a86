//! `GET /usage`: what the key's account has used. Any living key may ask. Asking is no check, and counts
//! as a read of the account.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use tokio::time::Instant;

use super::decisions::admit;
use super::{answer, authenticate, request_id};
use crate::errors::{ApiError, Part};
use crate::state::Gate;

pub(super) async fn usage(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let told = async {
        let deadline = Instant::now() + gate.config.request_budget;
        let identity = authenticate(&gate, &request, deadline).await?;
        admit(&gate, &identity)?;
        let id = request_id(&request).ok_or(ApiError::Unavailable)?;
        let usage = gate.quotas.usage(&identity, id, gate.ledger(), deadline).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "usage cannot be read");
            ApiError::Missing(Part::Ledger)
        })?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(usage))
    };
    answer(&request, told.await)
}
