//! `/v1/policies`: packs that an organisation publishes, and which of them decide. The keystore keeps both.
//!
//! An evaluator loads a pack and runs its cases before it is published. An activation or a rollback is tried first,
//! then recorded, then made: it may lift a protection, so it must not happen without its line. Gateways learn of it
//! with the identities of callers (`key_cache.rs`), this one before it answers.

use std::error::Error;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::Timestamp;
use serde_json::Value;
use stage0_contract::{
    ActivatePolicy, Activation, ActivationDone, ApprovalEvent, EventActor, FieldError, ForgetPolicy, InstanceState,
    KeyIdentity, LineType, ListPolicies, ManageReply, PolicyAtEvaluator, PolicyBundle, PolicyFault, PolicyFiles,
    PolicyForgotten, PolicyStored, PolicySummary, PolicyVersion, PublishedPolicy, ReadActivePolicies,
    ReadPolicyHistory, Request, Role, RollbackPolicy, Scope, ShowPolicy, ShownPolicy, StorePolicy, ValidatePolicy,
    ValidatePolicyReply,
};
use uuid::Uuid;

use super::fields::Fields;
use super::management::{Call, to_the_end};
use super::stops::{masked, refuse_secrets};
use crate::errors::{ApiError, Change, How, Part};
use crate::recording::record_event;
use crate::state::AppState;

const MAX_REASON_CHARS: usize = 500;
const MAX_ENVIRONMENT_CHARS: usize = 100;
/// An evaluator gives a pack up before.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn publish(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.json_fields(&caller.account).await?;
    let account = fields.account();
    let packs = fields.required("packs", "must be an array of objects with `files`: texts by their names", packs);
    fields.finish()?;
    let bundle = PolicyBundle { packs: packs.ok_or(ApiError::Unavailable)? };
    let errors = bundle.errors();
    if !errors.is_empty() {
        return Err(ApiError::Invalid(errors));
    }
    if !call.state.can_record() {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let (identity, verified, request_id) = (call.identity()?, call.verified_caller()?, call.request_id()?);
    let published = to_the_end(async move {
        let state = &call.state;
        let account_of = account.clone().unwrap_or_else(|| caller.account.clone());
        let summary = validate(state, ValidatePolicy { account: account_of, bundle: bundle.clone() }).await?;
        let store = StorePolicy { caller, account, summary, bundle };
        let PolicyStored { policy, is_new, retention_days } = call.send(&store).await?;
        // A repeated call has its line too: that of the first one may be missing.
        let event = published_event(&policy, is_new, &identity);
        let of = policy.account.as_ref().unwrap_or(&identity.account);
        let recorded = record_event(state, request_id, verified, (of, retention_days), event).await;
        recorded.map_err(|failed| failed.or(Change::Published))?;
        Ok(policy)
    });
    Ok(HttpResponse::Created().json(published.await?))
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListPolicies { caller, account, cursor, limit }).await?))
}

pub(super) async fn active(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ReadActivePolicies { caller, account }).await?))
}

pub(super) async fn history(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ReadPolicyHistory { caller, account, cursor, limit }).await?))
}

pub(super) async fn show(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let files = fields.word("files", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    fields.finish()?;
    let version = named(&version)?;
    let policy = call.send(&ShowPolicy { caller, version: version.clone(), account, files }).await?;
    Ok(HttpResponse::Ok().json(ShownPolicy { policy, evaluators: evaluators(&call.state, &version) }))
}

pub(super) async fn forget(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    fields.finish()?;
    let PolicyForgotten {} = call.send(&ForgetPolicy { caller, version: named(&version)?, account }).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn activate(mut call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, floor, reason, expected } = place(&mut fields);
    let diff_digest = fields.text("diff_digest");
    fields.finish()?;
    let version = named(&version)?;
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let trial = ActivatePolicy {
            caller,
            version,
            account,
            environment,
            floor,
            reason,
            expected,
            diff_digest,
            is_trial: true,
        };
        let activate = ActivatePolicy { is_trial: false, ..trial.clone() };
        change(&call, &identity, &trial, &activate).await
    });
    Ok(HttpResponse::Ok().json(done.await?))
}

pub(super) async fn roll_back(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, floor, reason, expected } = place(&mut fields);
    fields.finish()?;
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let trial = RollbackPolicy { caller, account, environment, floor, reason, expected, is_trial: true };
        let roll_back = RollbackPolicy { is_trial: false, ..trial.clone() };
        change(&call, &identity, &trial, &roll_back).await
    });
    Ok(HttpResponse::Ok().json(done.await?))
}

/// Tries a change of what is active, records it, and makes it.
async fn change<M>(call: &Call, identity: &KeyIdentity, trial: &M, real: &M) -> Result<Activation, ApiError>
where
    M: Request<Reply = ManageReply<ActivationDone>>,
{
    let state = &call.state;
    let tried = call.send(trial).await?;
    // What is active already has its line; it is announced again.
    if tried.is_new {
        if !state.can_record() {
            return Err(ApiError::NotRecorded(Change::NotReadable));
        }
        let event = ApprovalEvent { at: Timestamp::now(), ..tried.activation.event(Uuid::now_v7()) };
        let (verified, request_id) = (call.verified_caller()?, call.request_id()?);
        let account = tried.activation.account.as_ref().unwrap_or(&identity.account);
        let recorded = record_event(state, request_id, verified, (account, tried.retention_days), event).await;
        recorded.map_err(|failed| failed.or(Change::NotActivated))?;
    }
    let ActivationDone { activation, .. } = call.send(real).await?;
    // Each key is asked for again before it is used, so that it comes with what is active now.
    match &activation.account {
        Some(account) => state.key_cache.invalidate(account),
        None => state.key_cache.invalidate_all(),
    }
    Ok(activation)
}

/// What activations and rollbacks have in common.
struct Place {
    account: Option<stage0_contract::AccountId>,
    environment: Option<String>,
    floor: bool,
    reason: Option<String>,
    expected: Option<PolicyVersion>,
}

fn place(fields: &mut Fields) -> Place {
    let account = fields.account();
    let environment = fields.prose("environment", MAX_ENVIRONMENT_CHARS);
    let floor = fields.boolean("floor").unwrap_or_default();
    let reason = fields.prose("reason", MAX_REASON_CHARS);
    refuse_secrets(fields, "environment", environment.as_deref());
    refuse_secrets(fields, "reason", reason.as_deref());
    let expected = fields.policy_version("expected");
    Place { account, environment, floor, reason, expected }
}

async fn masked_reason(state: &AppState, identity: &KeyIdentity, reason: Option<String>) -> Option<String> {
    match reason {
        Some(reason) => Some(masked(state, &identity.account, reason).await),
        None => None,
    }
}

/// The version in a path. A word that is none names nothing.
fn named(version: &Path<String>) -> Result<PolicyVersion, ApiError> {
    PolicyVersion::parse(version).map_err(|_| ApiError::NotFound)
}

fn packs(value: &Value) -> Option<Vec<PolicyFiles>> {
    let pack = |pack: &Value| {
        let members = pack.as_object().filter(|members| members.len() == 1)?;
        serde_json::from_value(Value::Object(members.clone())).ok()
    };
    value.as_array()?.iter().map(pack).collect()
}

async fn validate(state: &AppState, validate: ValidatePolicy) -> Result<PolicySummary, ApiError> {
    let failed = |how| ApiError::Missing(Part::answered::<ValidatePolicy>(how));
    match state.requests().request(&validate, VALIDATE_TIMEOUT).await {
        Ok(ValidatePolicyReply::Valid(summary)) => Ok(summary),
        Ok(ValidatePolicyReply::Invalid(faults)) => {
            let is_alone = validate.bundle.packs.len() == 1;
            Err(ApiError::Invalid(faults.iter().map(|fault| field_error(fault, is_alone)).collect()))
        }
        Ok(ValidatePolicyReply::Busy) => Err(failed(How::Busy)),
        Ok(ValidatePolicyReply::Unable(reason)) => {
            tracing::error!(reason, "a policy could not be validated");
            Err(failed(How::Failed))
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn Error, "a policy was not validated");
            Err(ApiError::Missing(Part::asked::<ValidatePolicy>(&error)))
        }
    }
}

/// File and line as the path, the rule before the text.
fn field_error(fault: &PolicyFault, is_alone: bool) -> FieldError {
    let PolicyFault { pack, file, line, rule, message, help } = fault;
    let mut path = if is_alone { String::new() } else { format!("packs[{pack}]/") };
    path.push_str(file.as_deref().unwrap_or("pack.toml"));
    if let Some(line) = line {
        path.push_str(&format!(":{line}"));
    }
    let rule = rule.as_ref().map(|rule| format!("`{rule}`: ")).unwrap_or_default();
    let help = help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    FieldError::new(path, format!("{rule}{message}{help}"))
}

fn published_event(policy: &PublishedPolicy, is_new: bool, by: &KeyIdentity) -> ApprovalEvent {
    let PublishedPolicy { summary, account, bytes, .. } = policy;
    let members = [
        ("rules", Some(Value::from(summary.rules))),
        ("cases", Some(summary.cases.into())),
        ("bytes", Some((*bytes).into())),
        ("weakens", (!summary.weakens.is_empty()).then(|| summary.weakens.len().into())),
        ("of_all", account.is_none().then_some(true.into())),
        ("again", (!is_new).then_some(true.into())),
    ];
    let member = by.holder.as_ref().and_then(|holder| holder.member.as_ref());
    ApprovalEvent {
        policy_version: Some(summary.version.clone()),
        actor: Some(EventActor::of(&by.key_id, member)),
        details: members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
        ..ApprovalEvent::new(LineType::PolicyPublished, Uuid::now_v7(), Timestamp::now())
    }
}

/// Which of the evaluators that live have the version, as their last heartbeats say.
fn evaluators(state: &AppState, version: &PolicyVersion) -> Vec<PolicyAtEvaluator> {
    let lives = |state| matches!(state, InstanceState::Ready | InstanceState::NotReady);
    let all = state.instances.list(Instant::now()).into_iter().map(|status| status.seen);
    let alive = all.filter(|seen| seen.role == Role::Evaluator && lives(seen.state));
    let loaded = |seen: &stage0_contract::InstanceHeartbeat| {
        seen.policies.contains(version) || seen.policy_version.as_ref() == Some(version)
    };
    alive.map(|seen| PolicyAtEvaluator { loaded: loaded(&seen), instance: seen.instance }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fault_is_an_error_with_file_line_and_rule() {
        let fault = PolicyFault {
            pack: 1,
            file: Some("rules.cedar".to_owned()),
            line: Some(12),
            rule: Some("refund.limit".to_owned()),
            message: "is not a number".to_owned(),
            help: Some("write 500".to_owned()),
        };
        let error = field_error(&fault, true);
        assert_eq!(error, FieldError::new("rules.cedar:12", "`refund.limit`: is not a number (write 500)"));
        assert_eq!(field_error(&fault, false).path, "packs[1]/rules.cedar:12");
        let whole = PolicyFault { file: None, line: None, rule: None, help: None, ..fault };
        assert_eq!(field_error(&whole, true), FieldError::new("pack.toml", "is not a number"));
    }

    #[test]
    fn packs_are_objects_of_texts_and_nothing_else() {
        let good = json!([{"files": {"pack.toml": "x"}}, {"files": {}}]);
        assert_eq!(packs(&good).unwrap().len(), 2);
        for bad in [
            json!({}),
            json!([{}]),
            json!([{"files": {"a": 1}}]),
            json!([{"files": {"a": "x"}, "name": "b"}]),
            json!([["a"]]),
            json!([{"file": {}}]),
        ] {
            assert_eq!(packs(&bad), None, "{bad}");
        }
    }
}
