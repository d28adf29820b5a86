//! The route table: which handler serves which operation.
//!
//! Paths, methods and `Allow` lists come from the contract's table of operations; [`route`] maps each operation to its
//! handler, so an operation without one does not compile. One submodule per resource. `management` is what the control
//! API shares; `fields` decodes its bodies and queries.

use std::sync::Arc;

use actix_web::{HttpResponse, Resource, Route, guard, web};
use stage0_contract::{Method, Operation};

use crate::errors::ApiError;
use crate::state::AppState;

mod accounts;
mod approvals;
mod asset;
mod check;
mod decisions;
mod docs;
mod fields;
mod grants;
mod guards;
pub(crate) mod hooks;
mod keys;
mod management;
mod members;
mod openapi;
mod outcomes;
mod policies;
mod policy;
mod probes;
mod runs;
mod status;
mod stops;
mod usage;
mod webhooks;

pub(crate) fn configure(config: &mut web::ServiceConfig, base_path: &str, state: Option<web::Data<AppState>>) {
    let mut paths: Vec<&str> = Operation::ALL.iter().map(|operation| operation.path()).collect();
    paths.dedup();
    let scope = paths.into_iter().fold(web::scope(base_path), |scope, path| scope.service(resource(path)));
    if let Some(state) = state {
        config.app_data(state);
    }
    config.service(scope).default_service(web::to(not_found));
}

/// The operations of one path; other methods are refused with a list of those that there are.
fn resource(path: &'static str) -> Resource {
    let operations = || Operation::ALL.iter().copied().filter(move |operation| operation.path() == path);
    let allowed: Arc<str> = allowed_methods(operations()).into();
    let refuse = move || {
        let error = ApiError::MethodNotAllowed(Arc::clone(&allowed));
        async move { Err::<HttpResponse, _>(error) }
    };
    operations().map(route).fold(web::resource(path), Resource::route).default_service(web::to(refuse))
}

/// For `Allow`, in alphabetical order.
fn allowed_methods(operations: impl Iterator<Item = Operation>) -> String {
    let mut methods: Vec<&str> = operations.map(|operation| operation.method().as_str()).collect();
    if methods.contains(&Method::Get.as_str()) {
        methods.push("HEAD");
    }
    methods.sort_unstable();
    methods.join(", ")
}

fn route(operation: Operation) -> Route {
    let route = match operation.method() {
        Method::Delete => web::delete(),
        Method::Get => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
        Method::Patch => web::patch(),
        Method::Post => web::post(),
    };
    match operation {
        Operation::Check => route.to(check::check),
        Operation::GetUsage => route.to(usage::usage),
        Operation::GetVocabulary => route.to(policy::vocabulary),
        Operation::ListAccounts => route.to(accounts::list),
        Operation::CreateAccount => route.to(accounts::create),
        Operation::UpdateAccount => route.to(accounts::update),
        Operation::ListKeys => route.to(keys::list),
        Operation::CreateKey => route.to(keys::create),
        Operation::RevokeKey => route.to(keys::revoke),
        Operation::RotateKey => route.to(keys::rotate),
        Operation::DeleteDecisions => route.to(decisions::delete),
        Operation::ListDecisions => route.to(decisions::list),
        Operation::ExportDecisions => route.to(decisions::export),
        Operation::VerifyDecisions => route.to(decisions::verify),
        Operation::GetDecision => route.to(decisions::get),
        Operation::ListRuns => route.to(runs::list),
        Operation::EndRun => route.to(runs::end),
        Operation::GetRun => route.to(runs::show),
        Operation::SettleRun => route.to(runs::settle),
        Operation::Status => route.to(status::status),
        Operation::ListSigningKeys => route.to(decisions::signing_keys),
        Operation::ListWebhooks => route.to(webhooks::list),
        Operation::CreateWebhook => route.to(webhooks::create),
        Operation::DeleteWebhook => route.to(webhooks::delete),
        Operation::GetWebhook => route.to(webhooks::get),
        Operation::UpdateWebhook => route.to(webhooks::update),
        Operation::RotateWebhookSecret => route.to(webhooks::rotate),
        Operation::EnableWebhook => route.to(webhooks::enable),
        Operation::TestWebhook => route.to(webhooks::test),
        Operation::ReplayWebhook => route.to(webhooks::replay),
        Operation::ListDeliveries => route.to(webhooks::deliveries),
        Operation::InviteMember => route.to(members::invite),
        Operation::ListMembers => route.to(members::list),
        Operation::UpdateMember => route.to(members::update),
        Operation::RemoveMember => route.to(members::remove),
        Operation::ReinviteMember => route.to(members::reinvite),
        Operation::DelegateMember => route.to(members::delegate),
        Operation::AcceptInvitation => route.to(members::accept),
        Operation::ListApprovals => route.to(approvals::list),
        Operation::ShowApproval => route.to(approvals::show),
        Operation::ReadApprovalHistory => route.to(approvals::history),
        Operation::ApproveAction => route.to(approvals::approve),
        Operation::DenyAction => route.to(approvals::deny),
        Operation::RegisterApproval => route.to(approvals::register),
        Operation::CancelApproval => route.to(approvals::cancel),
        Operation::ReopenApproval => route.to(approvals::reopen),
        Operation::ReportOutcome => route.to(approvals::outcome),
        Operation::ReportDecisionOutcome => route.to(outcomes::report),
        Operation::ProbeTools => route.to(probes::probe),
        Operation::AskAsHook => route.to(hooks::ask),
        Operation::ReportGuard => route.to(guards::report),
        Operation::ListGuards => route.to(guards::list),
        Operation::ForgetGuard => route.to(guards::forget),
        Operation::CreateGrant => route.to(grants::create),
        Operation::ListGrants => route.to(grants::list),
        Operation::ApproveGrant => route.to(grants::approve),
        Operation::RevokeGrant => route.to(grants::revoke),
        Operation::CreateStop => route.to(stops::create),
        Operation::ListStops => route.to(stops::list),
        Operation::ResumeStop => route.to(stops::resume),
        Operation::PublishPolicy => route.to(policies::publish),
        Operation::ListPolicies => route.to(policies::list),
        Operation::ReadActivePolicies => route.to(policies::active),
        Operation::ReadPolicyHistory => route.to(policies::history),
        Operation::RollbackPolicy => route.to(policies::roll_back),
        Operation::ListProposals => route.to(policies::proposals::list),
        Operation::ShowProposal => route.to(policies::proposals::show),
        Operation::ApproveProposal => route.to(policies::proposals::approve),
        Operation::DenyProposal => route.to(policies::proposals::deny),
        Operation::CancelProposal => route.to(policies::proposals::cancel),
        Operation::ShowPolicy => route.to(policies::show),
        Operation::ForgetPolicy => route.to(policies::forget),
        Operation::ActivatePolicy => route.to(policies::activate),
        Operation::DiffPolicies => route.to(policies::diff),
        Operation::ListCandidates => route.to(policies::candidates),
        Operation::ShadowPolicy => route.to(policies::shadow),
        Operation::WithdrawCandidate => route.to(policies::withdraw),
        Operation::ReplayPolicy => route.to(policies::replay),
        Operation::Alive => route.to(status::alive),
        Operation::Ready => route.to(status::ready),
        Operation::Openapi => route.to(openapi::document),
        Operation::Docs | Operation::DocsPage => route.to(docs::page),
        Operation::DocsBelow => route.to(docs::one_level_up),
    }
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NotFound)
}

/// Health probes, which no rate limit refuses.
pub(crate) fn is_probe(path: &str) -> bool {
    Operation::ALL.iter().any(|operation| operation.is_probe() && operation.path() == path)
}
