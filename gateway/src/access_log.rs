//! The access log: one line and one count per answered request, with ids and numbers only, never content.

use std::collections::BTreeSet;

use actix_web::body::MessageBody;
use actix_web::dev::ServiceResponse;
use actix_web::{HttpMessage as _, HttpRequest};
use stage0_contract::{AccountId, Decision, IssueCode, KeyId, KeyIdentity, Verdict};

use crate::metrics;
use crate::middleware::RequestContext;

/// Stored in the request's extensions.
struct LogFields {
    account: AccountId,
    key_id: KeyId,
    decision: Option<(Verdict, BTreeSet<IssueCode>)>,
}

pub(crate) fn set_caller(request: &HttpRequest, identity: &KeyIdentity) {
    let (account, key_id) = (identity.account.clone(), identity.key_id.clone());
    request.extensions_mut().insert(LogFields { account, key_id, decision: None });
}

/// Notes what was decided for the caller that [`set_caller`] named.
pub(crate) fn set_decision(request: &HttpRequest, decision: &Decision) {
    if let Some(fields) = request.extensions_mut().get_mut::<LogFields>() {
        let codes = decision.issues.iter().map(|issue| issue.code.clone()).collect();
        fields.decision = Some((decision.verdict, codes));
    }
}

/// Forgets the decision: it was made, but is not released.
pub(crate) fn clear_decision(request: &HttpRequest) {
    if let Some(fields) = request.extensions_mut().get_mut::<LogFields>() {
        fields.decision = None;
    }
}

pub(crate) fn write(response: &ServiceResponse<impl MessageBody>, context: RequestContext) {
    let took = context.started.elapsed();
    let request_id = context.id;
    let status = response.status().as_u16();
    let duration_ms = took.as_secs_f64() * 1e3;
    // The route's pattern and never the path, which may hold anything.
    let route = response.request().match_pattern();
    metrics::answered(route.as_deref(), response.status(), took);
    let route = route.unwrap_or_default();
    match response.request().extensions().get::<LogFields>() {
        Some(LogFields { account, key_id, decision }) => {
            decision.iter().for_each(|(verdict, codes)| metrics::checked(*verdict, codes));
            let verdict = decision.as_ref().map(|(verdict, _)| verdict.as_str());
            tracing::info!(%request_id, %account, %key_id, verdict, status, route, duration_ms, "request answered");
        }
        None => tracing::info!(%request_id, status, route, duration_ms, "request answered"),
    }
}
