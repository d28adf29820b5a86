//! `/v1/policies`: packs that an organisation publishes, and which of them decide. The keystore keeps both.
//!
//! An evaluator loads a pack and runs its cases before it is published. Each change is tried first, then recorded, then
//! made (`recorded.rs`); what changes nothing has no line. In between an activation is compared with what it takes the
//! place of (`gate.rs`). Gateways learn of it with the identities of callers (`key_cache.rs`), this one before it
//! answers.

use std::error::Error;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::Timestamp;
use serde_json::Value;
use stage0_contract::{
    AccountId, ActivatePolicy, ActivationProposed, ApprovalEvent, Caller, EventActor, FieldError, ForgetPolicy,
    InstanceState, KeyIdentity, LineType, ListPolicies, PolicyAtEvaluator, PolicyBundle, PolicyFault, PolicyFiles,
    PolicyForgotten, PolicyStored, PolicySummary, PolicyVersion, PublishedPolicy, ReadActivePolicies,
    ReadPolicyHistory, Role, RollbackPolicy, Scope, ShowPolicy, ShownPolicy, StorePolicy, ValidatePolicy,
    ValidatePolicyReply,
};
use uuid::Uuid;

use super::fields::Fields;
use super::management::{Call, to_the_end};
use super::stops::{masked, refuse_secrets};
use crate::errors::{ApiError, Change, How, Part};
use crate::state::AppState;

mod candidates;
mod diff;
mod gate;
pub(super) mod proposals;
mod recorded;
mod replay;

pub(super) use candidates::{candidates, shadow, withdraw};
pub(super) use diff::diff;
use recorded::{change, record_event_of};
pub(super) use replay::replay;

const MAX_REASON_CHARS: usize = 500;
const MAX_ENVIRONMENT_CHARS: usize = 100;
/// An evaluator gives a pack up before.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn publish(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.json_fields(&caller.account).await?;
    let account = whose_change(&mut fields, &caller, false)?;
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
    let identity = call.identity()?;
    let published = to_the_end(async move {
        let state = &call.state;
        let by_operator = caller.scopes.contains(&Scope::Operator);
        let account_of = account.clone().unwrap_or_else(|| caller.account.clone());
        // Whether the caller may publish there, before an evaluator works for it.
        call.send(&ListPolicies { caller: caller.clone(), account: account.clone(), cursor: None, limit: 1 }).await?;
        let summary =
            validate(state, ValidatePolicy { account: account_of, by_operator, bundle: bundle.clone() }).await?;
        let trial = StorePolicy { caller, account, summary, bundle, is_trial: true };
        let tried = call.send(&trial).await?;
        // What is published already has its line.
        if !tried.is_new {
            return Ok(tried);
        }
        let event = published_event(&tried.policy, &identity);
        let of = tried.policy.account.as_ref().unwrap_or(&identity.account);
        record_event_of(&call, (of, tried.retention_days), event, Change::NotPublished).await?;
        call.send(&StorePolicy { is_trial: false, ..trial }).await
    });
    let PolicyStored { policy, is_new, .. } = published.await?;
    Ok(if is_new { HttpResponse::Created() } else { HttpResponse::Ok() }.json(policy))
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, false)?;
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListPolicies { caller, account, cursor, limit }).await?))
}

pub(super) async fn active(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, false)?;
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ReadActivePolicies { caller, account }).await?))
}

pub(super) async fn history(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, false)?;
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ReadPolicyHistory { caller, account, cursor, limit }).await?))
}

pub(super) async fn show(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, false)?;
    let files = fields.word("files", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    fields.finish()?;
    let version = named(&version)?;
    let policy = call.send(&ShowPolicy { caller, version: version.clone(), account, files }).await?;
    Ok(HttpResponse::Ok().json(ShownPolicy { policy, evaluators: evaluators(&call.state, &version) }))
}

pub(super) async fn forget(call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = whose(&mut fields, &caller, true)?;
    fields.finish()?;
    let version = named(&version)?;
    let identity = call.identity()?;
    let forgotten = to_the_end(async move {
        let trial = ForgetPolicy { caller, version, account, is_trial: true };
        let PolicyForgotten { account, retention_days } = call.send(&trial).await?;
        let of_all = account.is_none().then_some(true.into());
        let event = event_of(LineType::PolicyDeleted, &trial.version, &identity, [("of_all", of_all)]);
        let of = account.as_ref().unwrap_or(&identity.account);
        record_event_of(&call, (of, retention_days), event, Change::NotDeleted).await?;
        call.send(&ForgetPolicy { is_trial: false, ..trial }).await
    });
    forgotten.await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn activate(mut call: Call, version: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, floor, reason, expected } = place(&mut fields, &caller)?;
    let diff_digest = fields.text("diff_digest");
    let accept_flips = fields.large_number("accept_flips");
    let replayed_until = candidates::replayed_until(&mut fields, Timestamp::now());
    let canary = candidates::canary(&mut fields, &caller, floor, account.as_ref());
    if reason.is_none() && accept_flips.is_some_and(|flips| flips > 0) {
        fields.refuse("reason", "is required with `accept_flips`");
    }
    fields.finish()?;
    let version = named(&version)?;
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let asked = ActivatePolicy {
            caller,
            version,
            account,
            environment,
            floor,
            reason,
            expected,
            diff_digest,
            accept_flips,
            replayed_until,
            canary,
            replayed: None,
            judged: None,
            sequence: None,
            proposes: false,
            is_trial: true,
        };
        gate::activate(&call, &identity, asked).await
    });
    Ok(match done.await? {
        gate::Made::Activated(activation) => HttpResponse::Ok().json(activation),
        gate::Made::Proposed(proposal) => HttpResponse::Accepted().json(ActivationProposed { proposal }),
    })
}

pub(super) async fn roll_back(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let Place { account, environment, floor, reason, expected } = place(&mut fields, &caller)?;
    fields.finish()?;
    let identity = call.identity()?;
    let done = to_the_end(async move {
        let reason = masked_reason(&call.state, &identity, reason).await;
        let asked =
            RollbackPolicy { caller, account, environment, floor, reason, expected, sequence: None, is_trial: true };
        let real = |sequence| RollbackPolicy { is_trial: false, sequence: Some(sequence), ..asked.clone() };
        change(&call, &identity, &asked, real).await
    });
    Ok(HttpResponse::Ok().json(done.await?.activation))
}

/// What activations and rollbacks have in common.
struct Place {
    account: Option<AccountId>,
    environment: Option<String>,
    floor: bool,
    reason: Option<String>,
    expected: Option<PolicyVersion>,
}

fn place(fields: &mut Fields, caller: &Caller) -> Result<Place, ApiError> {
    let floor = fields.boolean("floor").unwrap_or_default();
    let account = whose_change(fields, caller, floor)?;
    let environment = fields.prose("environment", MAX_ENVIRONMENT_CHARS);
    let reason = fields.prose("reason", MAX_REASON_CHARS);
    refuse_secrets(fields, "environment", environment.as_deref());
    refuse_secrets(fields, "reason", reason.as_deref());
    let expected = fields.policy_version("expected");
    Ok(Place { account, environment, floor, reason, expected })
}

/// Whose policies a body changes. The floor is of every account.
fn whose_change(fields: &mut Fields, caller: &Caller, is_floor: bool) -> Result<Option<AccountId>, ApiError> {
    let all = fields.boolean("all_accounts").unwrap_or_default();
    whose_of(fields, caller, all, !is_floor)
}

/// Whose policies a query is about; with `is_change`, an operator says so.
pub(super) fn whose(fields: &mut Fields, caller: &Caller, is_change: bool) -> Result<Option<AccountId>, ApiError> {
    let all = fields.word("all_accounts", "must be `true` or `false`", |text| text.parse().ok()).unwrap_or_default();
    whose_of(fields, caller, all, is_change)
}

/// The account that is named; none: the caller's own, or an operator's every account, which a change must say: a
/// forgotten `account` would change all of them.
fn whose_of(
    fields: &mut Fields,
    caller: &Caller,
    all: bool,
    must_be_said: bool,
) -> Result<Option<AccountId>, ApiError> {
    let is_operator = caller.scopes.contains(&Scope::Operator);
    if all && !is_operator {
        return Err(ApiError::ScopeMissing(Scope::Operator));
    }
    let is_named = fields.has("account");
    let account = fields.account();
    if all && is_named {
        fields.refuse("all_accounts", "must be absent beside `account`");
    } else if is_operator && must_be_said && !all && !is_named {
        fields.refuse("account", "must be named with an operator's key, or `all_accounts` be true");
    }
    Ok(account)
}

async fn masked_reason(state: &AppState, identity: &KeyIdentity, reason: Option<String>) -> Option<String> {
    match reason {
        Some(reason) => Some(masked(state, identity, reason).await),
        None => None,
    }
}

/// The version in a path.
fn named(version: &Path<String>) -> Result<PolicyVersion, ApiError> {
    PolicyVersion::parse(version).map_err(|_| {
        ApiError::NoSuch("the path names no version of a policy: write `<pack>@<number>+<digest>`".to_owned())
    })
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

fn published_event(policy: &PublishedPolicy, by: &KeyIdentity) -> ApprovalEvent {
    let PublishedPolicy { summary, account, bytes, .. } = policy;
    let members = [
        ("rules", Some(Value::from(summary.rules))),
        ("cases", Some(summary.cases.into())),
        ("bytes", Some((*bytes).into())),
        ("weakens", (!summary.weakens.is_empty()).then(|| summary.weakens.len().into())),
        ("of_all", account.is_none().then_some(true.into())),
    ];
    event_of(LineType::PolicyPublished, &summary.version, by, members)
}

/// What the holder of a key did to a version.
fn event_of<const N: usize>(
    kind: LineType,
    version: &PolicyVersion,
    by: &KeyIdentity,
    members: [(&str, Option<Value>); N],
) -> ApprovalEvent {
    let member = by.holder.as_ref().and_then(|holder| holder.member.as_ref());
    ApprovalEvent {
        policy_version: Some(version.clone()),
        actor: Some(EventActor::of(&by.key_id, member)),
        details: members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
        ..ApprovalEvent::new(kind, Uuid::now_v7(), Timestamp::now())
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
