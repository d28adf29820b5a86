//! `/v1/runs`: the state of a run, its end, and what its checks cost. The evaluator keeps runs.
//!
//! Only shapes and scopes are checked here. A check that its run does not know is looked up in the decision log. Each
//! call counts as a read of its account, since it costs the evaluator and the state store at least as much.

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::Path;
use serde_json::Value;
use stage0_contract::{
    EndRun, KeyIdentity, ListRuns, Page, RequestId, RunEnded, RunId, RunView, Scope, SettleRun, ShowRun, Verdict,
};
use tokio::time::Instant;

use super::decisions::{admit_read, find_decision, large_json};
use super::management::{Call, send_within};
use crate::auth::{authenticate, require_any_scope};
use crate::errors::ApiError;

pub(super) async fn show(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check, Scope::RunsManage]).await?;
    let show = ShowRun { account: identity.account.clone(), run_id: run_id(&id)? };
    let run: RunView = call.send(&show).await?;
    Ok(HttpResponse::Ok().json(run))
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check, Scope::RunsManage]).await?;
    let mut fields = call.query_fields();
    let cursor = fields.text("cursor");
    let limit = fields.page_limit();
    fields.finish()?;
    let list = ListRuns { account: identity.account.clone(), cursor, limit };
    let requests = Arc::clone(&call.state.reading.requests);
    let timeout = call.state.config.request_budget;
    // Limited like a page of decisions, until the client has taken it.
    let page = async move {
        let page: Page<RunView> = send_within(&*requests, &list, timeout).await?;
        serde_json::to_vec(&page).map_err(|_| ApiError::Unavailable)
    };
    let account = call.state.bytes.key_of(&identity.account);
    let (page, permit) = call.state.read_pool.page(account, Instant::now() + timeout, page).await?;
    large_json(&call, &identity, page?, permit)
}

pub(super) async fn end(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::RunsManage]).await?;
    let end = EndRun { account: identity.account.clone(), run_id: run_id(&id)? };
    let RunEnded {} = call.send(&end).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn settle(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check, Scope::RunsManage]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let request_id =
        fields.required("request_id", "must be the `request_id` of a check", |v| RequestId::parse(v.as_str()?).ok());
    let actual = fields.required("actual_cost_usd", "must be a number of US dollars from 0 to 1000000000", |v| {
        stage0_contract::Micros::usd(v.as_number()?).ok()
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
    match call.send(&settle).await {
        Ok(settled) => Ok(HttpResponse::Ok().json(settled)),
        Err(ApiError::NotFound) => Err(why_not_settled(&call, &identity, request_id).await?),
        Err(error) => Err(error),
    }
}

/// Why the run has nothing to settle for this check.
async fn why_not_settled(call: &Call, identity: &KeyIdentity, request_id: RequestId) -> Result<ApiError, ApiError> {
    let (decision, _permit) = find_decision(&call.state, identity, request_id).await?;
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

/// Authenticates a caller with any one of the scopes, and counts the call as a read of its account.
async fn authorize(call: &Call, scopes: &[Scope]) -> Result<Arc<KeyIdentity>, ApiError> {
    let identity = authenticate(&call.state, &call.request).await?;
    require_any_scope(&identity, scopes)?;
    admit_read(&call.state, &identity)?;
    Ok(identity)
}

/// A text that is not a run id names no run.
fn run_id(text: &str) -> Result<RunId, ApiError> {
    RunId::parse(text).map_err(|_| ApiError::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{app, tests::state};
    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, call_service, init_service};
    use stage0_backplane::Backplane;
    use stage0_contract::{
        AccountId, ApiKey, Caps, Limits, ManageReply, Plan, RefreshKey, RefreshKeyReply, Refusal, Scopes, VerifyKey,
        VerifyKeyReply,
    };
    use std::num::NonZeroU32;
    use std::time::Duration;

    const KEYS: [u8; 2] = [1, 2];

    fn key(byte: u8) -> ApiKey {
        ApiKey::from_random([byte; 10], [byte; 20]).unwrap()
    }

    /// A key and an account of its own.
    fn identity(byte: u8) -> KeyIdentity {
        KeyIdentity {
            holder: None,
            key_name: None,
            groups: None,
            rules: stage0_contract::AccountRules::default(),
            key_id: key(byte).id().clone(),
            account: AccountId::parse(&format!("acc_{byte}")).unwrap(),
            scopes: Scopes::from([
                Scope::Check,
                Scope::DecisionsRead,
                Scope::RunsManage,
                Scope::KeysManage,
                Scope::OutcomesReport,
            ]),
            plan: Plan::Free,
            expires_at: None,
            retention_days: 30,
            limits: Limits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
        }
    }

    /// The keystore, and an evaluator that knows no run.
    async fn serve(backplane: &Backplane) {
        let mut verifies = backplane.requests.serve::<VerifyKey>().await.unwrap();
        let mut refreshes = backplane.requests.serve::<RefreshKey>().await.unwrap();
        let mut shows = backplane.requests.serve::<ShowRun>().await.unwrap();
        let mut settles = backplane.requests.serve::<SettleRun>().await.unwrap();
        let mut ends = backplane.requests.serve::<EndRun>().await.unwrap();
        let mut lists = backplane.requests.serve::<ListRuns>().await.unwrap();
        let of =
            |id: &stage0_contract::KeyId| KEYS.map(identity).into_iter().find(|known| known.key_id == *id).unwrap();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(asked) = verifies.next() => {
                        let identity = of(asked.request.key.id());
                        asked.answer(&VerifyKeyReply::Valid(identity)).await;
                    }
                    Some(asked) = refreshes.next() => {
                        let identity = of(&asked.request.key_id);
                        asked.answer(&RefreshKeyReply::Live(identity)).await;
                    }
                    Some(asked) = shows.next() => asked.answer(&ManageReply::Refused(Refusal::NotFound)).await,
                    Some(asked) = settles.next() => asked.answer(&ManageReply::Refused(Refusal::NotFound)).await,
                    Some(asked) = ends.next() => asked.answer(&ManageReply::Refused(Refusal::NotFound)).await,
                    Some(asked) = lists.next() => asked.answer(&ManageReply::Refused(Refusal::NotFound)).await,
                    else => return,
                }
            }
        });
    }

    fn settling(byte: u8) -> TestRequest {
        let request_id = "0190163d-8694-739b-aea5-966c26f8ad91";
        let body = serde_json::json!({ "request_id": request_id, "actual_cost_usd": 0.5 });
        TestRequest::post().uri("/v1/runs/r/settle").insert_header(("x-api-key", key(byte).expose())).set_json(body)
    }

    #[actix_web::test]
    async fn calls_of_runs_usage_outcomes_and_guards_count_as_reads_of_their_account_alone() {
        let backplane = Backplane::embedded();
        serve(&backplane).await;
        let state = state(&backplane, |config| config.reads_per_second_per_account = NonZeroU32::new(9));
        let app = init_service(app("", Some(&state))).await;
        let over = [StatusCode::TOO_MANY_REQUESTS; 9];
        // No evaluator serves guards here, and no outcome can be recorded.
        let (missing, unserved) = (StatusCode::NOT_FOUND, StatusCode::SERVICE_UNAVAILABLE);
        let served = [missing, missing, missing, missing, StatusCode::OK];
        let other: Vec<_> = served.into_iter().chain([unserved; 4]).collect();
        for (byte, expected) in [(1, over.to_vec()), (2, other)] {
            let (run, usage) = ("/v1/runs/r", "/usage");
            let outcome = "/v1/decisions/0190163d-8694-739b-aea5-966c26f8ad91/outcome";
            let report = serde_json::json!({"guard_id": "g", "kind": "k", "version": "1", "next_within_seconds": 0});
            let calls = [
                TestRequest::get().uri(run),
                TestRequest::get().uri("/v1/runs"),
                TestRequest::delete().uri(run),
                settling(byte),
                TestRequest::get().uri(usage),
                TestRequest::post().uri(outcome).set_json(serde_json::json!({"status": "failed"})),
                TestRequest::post().uri("/v1/guards").set_json(&report),
                TestRequest::get().uri("/v1/guards"),
                TestRequest::delete().uri("/v1/guards/g"),
            ];
            for (number, (call, status)) in calls.into_iter().zip(expected).enumerate() {
                // However slow this machine is, the first account has no read left.
                while state.read_pool.admit(state.bytes.key_of(&identity(1).account)).is_ok() {}
                let call = call.insert_header(("x-api-key", key(byte).expose())).to_request();
                assert_eq!(call_service(&app, call).await.status(), status, "call {number} of {byte}");
            }
        }
    }

    #[actix_web::test]
    async fn a_check_that_a_run_does_not_know_is_looked_up_in_the_accounts_turn_among_readers() {
        let backplane = Backplane::embedded();
        serve(&backplane).await;
        let state = state(&backplane, |config| config.request_budget = Duration::from_millis(500));
        let app = init_service(app("", Some(&state))).await;
        let account = state.bytes.key_of(&identity(1).account);
        let mut untaken = Vec::new();
        for _ in 0..2 {
            untaken
                .push(state.read_pool.page(account, Instant::now() + Duration::from_secs(30), async {}).await.unwrap());
        }
        let status = async |byte| call_service(&app, settling(byte).to_request()).await.status();
        assert_eq!(status(1).await, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(status(2).await, StatusCode::NOT_FOUND, "another account has its own turns");
        untaken.clear();
        assert_eq!(status(1).await, StatusCode::NOT_FOUND);
    }
}
