//! `GET /v1/policy/vocabulary`: the words that the account's default policy knows, and what its codes mean. An
//! evaluator answers.
//! Any valid key may ask, and asking counts as a read of the account.

use std::error::Error;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;
use stage0_contract::VocabularyRequest;
use tokio::time::Instant;

use super::decisions::admit_read;
use crate::auth::authenticate_until;
use crate::errors::{ApiError, How, Part};
use crate::state::AppState;

pub(super) async fn vocabulary(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let deadline = Instant::now() + state.config.request_budget;
    let identity = authenticate_until(&state, &request, deadline).await?;
    admit_read(&state, &identity)?;
    let policy = identity.rules.policy.default.clone();
    let message = VocabularyRequest { account: identity.account.clone(), policy: policy.clone() };
    let reply = state.requests().request_until(&message, deadline).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn Error, "no evaluator sent the vocabulary");
        ApiError::Unavailable
    })?;
    if policy.is_some_and(|policy| policy != reply.policy_version) {
        // It could not be loaded, or the evaluator is of an earlier release.
        return Err(ApiError::Missing(Part::answered::<VocabularyRequest>(How::Failed)));
    }
    let mut vocabulary = reply.vocabulary;
    vocabulary.insert("policy_version".to_owned(), Value::from(reply.policy_version.to_string()));
    Ok(HttpResponse::Ok().json(vocabulary))
}
