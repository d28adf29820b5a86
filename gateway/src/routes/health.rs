//! `/healthz`: this process runs. `/readyz`: it can decide and record now.

use actix_web::HttpResponse;
use actix_web::web::Data;
use stage0_contract::Liveness;

use crate::state::AppState;

pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(Liveness::default())
}

pub(super) async fn ready(state: Data<AppState>) -> HttpResponse {
    let report = state.readiness.report(&state.backplane, state.config.audit, || state.key_cache.remark()).await;
    let mut response = if report.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.json(report)
}
