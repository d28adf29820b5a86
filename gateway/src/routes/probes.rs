//! `POST /v1/probes`: which tools the policy can never allow the caller.
//!
//! Limited by the account's checks of a minute and counted in no quota, because nothing is decided: each call is
//! decided again. INVARIANT: the answer leaves after the log has its line, whatever the audit mode is.

use std::error::Error;

use actix_web::HttpResponse;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use stage0_backplane::{CLOCK_READING_TTL, ClockError};
use stage0_contract::{
    ApprovalEvent, CheckRequest, EventActor, KeyIdentity, LineType, MAX_ITEM_CHARS, MAX_ITEMS, MAX_PROBED_TOOLS,
    MayEver, PolicyVersion, Probe, ProbeFindings, ProbeReply, ProbeTools, ProbedTool, RequestId, Role, Scope, is_blank,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::fields::Fields;
use super::management::{Call, to_the_end};
use crate::auth::{authenticate_until, require_any_scope};
use crate::errors::{ApiError, Change, How, Part};
use crate::recording::record_event;
use crate::state::AppState;

/// Environment, context and constraints are read as those of a check, which needs a goal.
const GOAL: &str = "a call of one of these tools";

pub(super) async fn probe(mut call: Call) -> Result<HttpResponse, ApiError> {
    let deadline = Instant::now() + call.state.config.request_budget * 19 / 20;
    if let Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) = call.state.state_store().clock().check() {
        return Err(ApiError::Clock(error));
    }
    let identity = authenticate_until(&call.state, &call.request, deadline).await?;
    require_any_scope(&identity, &[Scope::Check])?;
    call.state.state_store().read_clock(CLOCK_READING_TTL, deadline).await.map_err(ApiError::Clock)?;
    call.state.quotas.admit(&identity, call.state.store_until(deadline)).await?;
    let receiving_since = Instant::now();
    let mut fields = call.json_fields(&identity.account).await?;
    // The budget stands still while the client sends its body.
    let deadline = deadline + receiving_since.elapsed();
    let (place, tools) = read(&mut fields);
    fields.finish()?;
    let place = place.ok_or(ApiError::Unavailable)?;
    let required = required_policy(&call.state, &identity, &place)?;
    let request_id = call.request_id()?;
    let message = message(&call.state, &identity, request_id, place, tools)?;
    let probe = to_the_end(async move {
        if !call.state.can_record() {
            return Err(ApiError::NotRecorded(Change::NotReadable));
        }
        let findings = ask(&call.state, &message, deadline).await?;
        if !is_sound(&findings, &message, required.as_ref()) {
            tracing::error!(%request_id, "an evaluator answered another question about tools, refused");
            return Err(ApiError::Missing(Part::Service(Role::Evaluator, How::Failed)));
        }
        let caller = call.verified_caller()?;
        let (account, event) = ((&identity.account, identity.retention_days), event(request_id, &identity, &findings));
        let recorded = record_event(&call.state, request_id, caller, account, event).await;
        recorded.map_err(|failed| failed.error)?;
        let ProbeFindings { policy_version, floor_version, environment, tools, recordable: _ } = findings;
        Ok(Probe { request_id, policy_version, floor_version, environment, tools })
    });
    Ok(HttpResponse::Ok().json(probe.await?))
}

/// Where the calls would be made, as a check without a tool, and the tools.
fn read(fields: &mut Fields) -> (Option<CheckRequest>, Vec<ProbedTool>) {
    let mut body = Map::from_iter([("goal".to_owned(), Value::from(GOAL))]);
    for name in ["environment", "context", "constraints"] {
        body.extend(fields.value(name).map(|value| (name.to_owned(), value)));
    }
    let place = CheckRequest::parse(body.into());
    let place = place.map_err(|rejected| fields.refuse_all(rejected.errors)).ok();
    let must = "must be an array of 1 to 200 objects with `tool` and `side_effects`";
    let array = |value: &Value| value.as_array().filter(|items| (1..=MAX_PROBED_TOOLS).contains(&items.len())).cloned();
    let items = fields.required("tools", must, array).unwrap_or_default();
    let tools =
        items.into_iter().enumerate().filter_map(|(index, item)| tool(fields, &format!("tools[{index}]"), item));
    (place, tools.collect())
}

fn tool(fields: &mut Fields, at: &str, item: Value) -> Option<ProbedTool> {
    let Value::Object(members) = item else {
        fields.refuse(at, "must be an object with `tool` and `side_effects`");
        return None;
    };
    let mut inner = Fields::of_body(members, Vec::new());
    let must = "must be a text of 1 to 1000 characters that is not blank";
    let tool = inner.required("tool", must, text);
    let effects = inner.items("side_effects", must, text).unwrap_or_default();
    if effects.len() > MAX_ITEMS {
        inner.refuse("side_effects", "must have at most 200 items");
    }
    fields.refuse_within(at, inner);
    Some(ProbedTool { tool: tool?, side_effects: effects })
}

/// A text that a list of a check may hold.
fn text(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| !is_blank(text) && text.chars().count() <= MAX_ITEM_CHARS)?;
    Some(text.to_owned())
}

/// The published version that must answer; none: the evaluator's own. As for a check that names no run.
fn required_policy(
    state: &AppState,
    identity: &KeyIdentity,
    place: &CheckRequest,
) -> Result<Option<PolicyVersion>, ApiError> {
    let rules = &identity.rules;
    if rules.needs_published()
        && let Some(instance) = state.instances.evaluator_without_policies(std::time::Instant::now())
    {
        return Err(ApiError::OldEvaluator(instance));
    }
    match rules.unclear_environment(place) {
        Some(error) => Err(ApiError::Invalid(vec![error])),
        None => Ok(rules.active_policy_of(place).cloned()),
    }
}

fn message(
    state: &AppState,
    identity: &KeyIdentity,
    request_id: RequestId,
    place: CheckRequest,
    tools: Vec<ProbedTool>,
) -> Result<ProbeTools, ApiError> {
    // Stops and published policies reach the evaluator with who asks.
    let asker = state.asker_of(identity).ok_or(ApiError::Missing(Part::Service(Role::Keystore, How::Failed)))?;
    let CheckRequest { environment, context, constraints, .. } = place;
    Ok(ProbeTools {
        request_id,
        account: identity.account.clone(),
        asker,
        evaluated_at: state.state_store().clock().now().as_second(),
        environment,
        context,
        constraints,
        tools,
    })
}

async fn ask(state: &AppState, message: &ProbeTools, deadline: Instant) -> Result<ProbeFindings, ApiError> {
    let request_id = message.request_id;
    let failed = |how| Err(ApiError::Missing(Part::Service(Role::Evaluator, how)));
    match state.requests().request_until(message, deadline).await {
        Ok(ProbeReply::Probed(findings)) => Ok(findings),
        Ok(ProbeReply::PolicyMissing { version, is_loading }) => {
            tracing::warn!(%request_id, policy_version = %version, is_loading, "evaluator does not have the policy");
            Err(ApiError::PolicyMissing { version, is_loading })
        }
        Ok(ProbeReply::Unable(reason)) => {
            tracing::error!(%request_id, reason, "evaluator could not judge the tools");
            failed(How::Failed)
        }
        Ok(ProbeReply::Busy) => {
            tracing::warn!(%request_id, "evaluator refused to judge tools: too many questions wait");
            failed(How::Busy)
        }
        Err(error) => {
            tracing::warn!(%request_id, error = &error as &dyn Error, "evaluator did not answer");
            Err(ApiError::Missing(Part::asked::<ProbeTools>(&error)))
        }
    }
}

/// Whether the answer is of these tools, by the policies that must answer.
fn is_sound(findings: &ProbeFindings, asked: &ProbeTools, required: Option<&PolicyVersion>) -> bool {
    let found = findings.tools.iter().map(|finding| &finding.tool);
    required.is_none_or(|required| *required == findings.policy_version)
        && findings.floor_version == asked.asker.rules.floor
        && found.eq(asked.tools.iter().map(|asked| &asked.tool))
}

fn event(request_id: RequestId, by: &KeyIdentity, findings: &ProbeFindings) -> ApprovalEvent {
    let never = findings.tools.iter().filter(|finding| finding.may == MayEver::Never).count();
    let details = Map::from_iter([
        ("tools".to_owned(), json!(findings.tools.len())),
        ("never".to_owned(), json!(never)),
        ("names".to_owned(), json!(findings.recordable)),
    ]);
    let member = by.holder.as_ref().and_then(|holder| holder.member.as_ref());
    ApprovalEvent {
        request_id: Some(request_id),
        policy_version: Some(findings.policy_version.clone()),
        floor_version: findings.floor_version.clone(),
        environment: Some(findings.environment.clone()).filter(|environment| !environment.is_empty()),
        actor: Some(EventActor::of(&by.key_id, member)),
        details,
        ..ApprovalEvent::new(LineType::ToolsProbed, Uuid::now_v7(), Timestamp::now())
    }
}
