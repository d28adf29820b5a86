//! `GET /v1/policy/vocabulary`: the words that the policy in force knows, and what its codes mean. Any living key may ask;
//! asking counts as a read of the account. An evaluator answers, since it alone knows the policy.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;
use stage0_contract::VocabularyRequest;
use tokio::time::Instant;

use super::decisions::admit;
use super::{answer, authenticate};
use crate::errors::ApiError;
use crate::state::Gate;

pub(super) async fn vocabulary(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let told = async {
        let deadline = Instant::now() + gate.config.request_budget;
        let identity = authenticate(&gate, &request, deadline).await?;
        admit(&gate, &identity)?;
        let question = VocabularyRequest { account: identity.account.clone() };
        let reply = gate.requests().ask_until(&question, deadline).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "no evaluator told the vocabulary");
            ApiError::Unavailable
        })?;
        let mut vocabulary = reply.vocabulary;
        vocabulary.insert("policy_version".to_owned(), Value::from(reply.policy_version.to_string()));
        Ok::<_, ApiError>(HttpResponse::Ok().json(vocabulary))
    };
    answer(&request, told.await)
}
