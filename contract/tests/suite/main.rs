//! Golden fixtures: one for each shape that crosses a process boundary, decoded, encoded again and compared.
//!
//! A fixture is what an older version wrote or reads. It is never edited once released; a new optional field gets a new
//! fixture.

mod action_digest;
mod openapi;

use std::any::type_name;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stage0_contract::*;

/// One fixture, with the type that it is decoded as.
struct Fixture {
    name: &'static str,
    again: fn(Value) -> Result<Value, serde_json::Error>,
    type_name: fn() -> &'static str,
}

fn again<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

const fn fixture<T: Serialize + DeserializeOwned>(name: &'static str) -> Fixture {
    Fixture { name, again: again::<T>, type_name: type_name::<T> }
}

const FIXTURES: &[Fixture] = &[
    fixture::<<ListAccounts as Request>::Reply>("account_page"),
    fixture::<<CreateAccount as Request>::Reply>("account_reply_busy"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_caps"),
    fixture::<<CreateAccount as Request>::Reply>("account_reply_done"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_limits"),
    fixture::<<CreateAccount as Request>::Reply>("account_reply_refused"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_retention"),
    fixture::<CheckRequest>("check_request"),
    fixture::<CheckRequest>("check_request_smallest"),
    fixture::<CheckResponse>("check_response"),
    fixture::<CheckResponse>("check_response_ignored"),
    fixture::<CheckResponse>("check_response_input_stored"),
    fixture::<CreateAccount>("create_account"),
    fixture::<CreateKey>("create_key"),
    fixture::<CreateKey>("create_key_with_proof"),
    fixture::<CreateWebhook>("create_webhook"),
    fixture::<CreateWebhook>("create_webhook_smallest"),
    fixture::<Decision>("decision"),
    fixture::<DecisionRecord>("decision_record"),
    fixture::<DecisionRecord>("decision_record_attempted"),
    fixture::<DecisionRecord>("decision_record_with_input"),
    fixture::<<DeleteDecisions as Request>::Reply>("decisions_deleted"),
    fixture::<<DeleteDecisions as Request>::Reply>("decisions_deleted_none"),
    fixture::<DecisionsRecorded>("decisions_recorded"),
    fixture::<DeleteDecisions>("delete_decisions"),
    fixture::<DeleteDecisions>("delete_decisions_permitted"),
    fixture::<DeleteWebhook>("delete_webhook"),
    fixture::<<PermitDeletion as Request>::Reply>("deletion_permitted"),
    fixture::<<ListDeliveries as Request>::Reply>("delivery_page"),
    fixture::<DisableWebhook>("disable_webhook"),
    fixture::<EnableWebhook>("enable_webhook"),
    fixture::<EndRun>("end_run"),
    fixture::<<ListEndpoints as Request>::Reply>("endpoints_page"),
    fixture::<ErrorBody>("error_body_throttled"),
    fixture::<ErrorBody>("error_body_validation"),
    fixture::<EvaluateReply>("evaluate_reply_busy"),
    fixture::<EvaluateReply>("evaluate_reply_decided"),
    fixture::<EvaluateReply>("evaluate_reply_invalid"),
    fixture::<EvaluateReply>("evaluate_reply_recordable"),
    fixture::<EvaluateReply>("evaluate_reply_recordable_attempted"),
    fixture::<EvaluateReply>("evaluate_reply_recordable_smallest"),
    fixture::<EvaluateReply>("evaluate_reply_timed_out"),
    fixture::<EvaluateReply>("evaluate_reply_too_many_runs"),
    fixture::<EvaluateReply>("evaluate_reply_policy_missing"),
    fixture::<EvaluateReply>("evaluate_reply_unable"),
    fixture::<EvaluateRequest>("evaluate_request"),
    fixture::<EvaluateRequest>("evaluate_request_again"),
    fixture::<EvaluateRequest>("evaluate_request_max_runs"),
    fixture::<EvaluateRequest>("evaluate_request_with_caller"),
    fixture::<EvaluatorStatus>("evaluator_status"),
    fixture::<EvaluatorStatusReply>("evaluator_status_reply"),
    fixture::<GetWebhook>("get_webhook"),
    fixture::<InstanceHeartbeat>("instance_seen"),
    fixture::<InstanceHeartbeat>("instance_seen_smallest"),
    fixture::<KeyChanged>("key_changed"),
    fixture::<<CreateKey as Request>::Reply>("key_created"),
    fixture::<<ListKeys as Request>::Reply>("key_page"),
    fixture::<<ListKeys as Request>::Reply>("key_page_last_used"),
    fixture::<<RotateKey as Request>::Reply>("key_rotated"),
    fixture::<KeystoreStatus>("keystore_status"),
    fixture::<KeystoreStatusReply>("keystore_status_reply"),
    fixture::<KeystoreStatusReply>("keystore_status_reply_disk_low"),
    fixture::<KeystoreStatusReply>("keystore_status_reply_sealing"),
    fixture::<LineHeader>("line_start"),
    fixture::<LineHeader>("line_start_first"),
    fixture::<ListAccounts>("list_accounts"),
    fixture::<ListDeliveries>("list_deliveries"),
    fixture::<ListEndpoints>("list_endpoints"),
    fixture::<ListEndpoints>("list_endpoints_first"),
    fixture::<ListKeys>("list_keys"),
    fixture::<ListRetentions>("list_retentions"),
    fixture::<ListRetentions>("list_retentions_first"),
    fixture::<ListRuns>("list_runs"),
    fixture::<ListRuns>("list_runs_first"),
    fixture::<ListWebhooks>("list_webhooks"),
    fixture::<Mark>("mark_checkpoint"),
    fixture::<Mark>("mark_deletion"),
    fixture::<Mark>("mark_deletion_of_nothing"),
    fixture::<Mark>("mark_expiry"),
    fixture::<<SignMark as Request>::Reply>("mark_signed"),
    fixture::<<SignMark as Request>::Reply>("mark_signed_earlier"),
    fixture::<Mark>("mark_webhook_disabled"),
    fixture::<NoteKeyUses>("note_key_uses"),
    fixture::<NoteKeyUsesReply>("note_key_uses_failed"),
    fixture::<NoteKeyUsesReply>("note_key_uses_noted"),
    fixture::<PermitDeletion>("permit_deletion"),
    fixture::<<SigningKeys as Request>::Reply>("public_keys"),
    fixture::<<SigningKeys as Request>::Reply>("public_keys_last_mark"),
    fixture::<RefreshKey>("refresh_key"),
    fixture::<RefreshKey>("refresh_key_for_request"),
    fixture::<RefreshKeyReply>("refresh_key_reply_caps"),
    fixture::<RefreshKeyReply>("refresh_key_reply_gone"),
    fixture::<RefreshKeyReply>("refresh_key_reply_limits"),
    fixture::<RefreshKeyReply>("refresh_key_reply_live"),
    fixture::<RefreshKeyReply>("refresh_key_reply_retention"),
    fixture::<<RotateKey as Request>::Reply>("refused_conflict"),
    fixture::<<CreateKey as Request>::Reply>("refused_invalid"),
    fixture::<<RevokeKey as Request>::Reply>("refused_not_found"),
    fixture::<<ShowPolicy as Request>::Reply>("refused_missing"),
    fixture::<<ReplayWebhook as Request>::Reply>("replay_started"),
    fixture::<ReplayWebhook>("replay_webhook"),
    fixture::<Report>("report_expiries"),
    fixture::<Report>("report_findings"),
    fixture::<Report>("report_good"),
    fixture::<<ListRetentions as Request>::Reply>("retentions_page"),
    fixture::<<ListRetentions as Request>::Reply>("retentions_page_clock"),
    fixture::<ReviewReply>("review_reply"),
    fixture::<ReviewRequest>("review_request"),
    fixture::<ReviewRequest>("review_request_policy"),
    fixture::<VocabularyReply>("vocabulary_reply"),
    fixture::<VocabularyRequest>("vocabulary_request"),
    fixture::<VocabularyRequest>("vocabulary_request_policy"),
    fixture::<RevokeKey>("revoke_key"),
    fixture::<<RevokeKey as Request>::Reply>("revoked"),
    fixture::<RotateKey>("rotate_key"),
    fixture::<RotateWebhookSecret>("rotate_webhook_secret"),
    fixture::<<EndRun as Request>::Reply>("run_ended"),
    fixture::<<ListRuns as Request>::Reply>("run_page"),
    fixture::<<SettleRun as Request>::Reply>("run_settled"),
    fixture::<<ShowRun as Request>::Reply>("run_view"),
    fixture::<SettleRun>("settle_run"),
    fixture::<ShowRun>("show_run"),
    fixture::<SignMark>("sign_mark"),
    fixture::<SignMark>("sign_mark_permitted"),
    fixture::<SignMark>("sign_mark_resumed"),
    fixture::<SigningKeys>("signing_keys"),
    fixture::<SigningKeys>("signing_keys_of_account"),
    fixture::<Status>("status"),
    fixture::<TestWebhook>("test_webhook"),
    fixture::<UpdateAccount>("update_account"),
    fixture::<UpdateAccount>("update_account_caps"),
    fixture::<UpdateAccount>("update_account_smallest"),
    fixture::<UpdateWebhook>("update_webhook"),
    fixture::<UpdateWebhook>("update_webhook_smallest"),
    fixture::<Usage>("usage"),
    fixture::<Usage>("usage_stored_bytes"),
    fixture::<VerifyKey>("verify_key"),
    fixture::<VerifyKey>("verify_key_for_request"),
    fixture::<VerifyKeyReply>("verify_key_reply_busy"),
    fixture::<VerifyKeyReply>("verify_key_reply_invalid"),
    fixture::<VerifyKeyReply>("verify_key_reply_valid"),
    fixture::<WebhookChanged>("webhook_changed"),
    fixture::<<CreateWebhook as Request>::Reply>("webhook_created"),
    fixture::<<DeleteWebhook as Request>::Reply>("webhook_deleted"),
    fixture::<<DisableWebhook as Request>::Reply>("webhook_disabled"),
    fixture::<<ListWebhooks as Request>::Reply>("webhook_page"),
    fixture::<<GetWebhook as Request>::Reply>("webhook_reply_done"),
    fixture::<<TestWebhook as Request>::Reply>("webhook_tested_delivered"),
    fixture::<<TestWebhook as Request>::Reply>("webhook_tested_failed"),
    fixture::<InviteMember>("invite_member"),
    fixture::<InviteMember>("invite_member_smallest"),
    fixture::<<InviteMember as Request>::Reply>("member_invited"),
    fixture::<ReinviteMember>("reinvite_member"),
    fixture::<ListMembers>("list_members"),
    fixture::<<ListMembers as Request>::Reply>("member_page"),
    fixture::<UpdateMember>("update_member"),
    fixture::<UpdateMember>("update_member_smallest"),
    fixture::<<UpdateMember as Request>::Reply>("member_reply_done"),
    fixture::<DelegateMember>("delegate_member"),
    fixture::<DelegateMember>("delegate_member_end"),
    fixture::<RemoveMember>("remove_member"),
    fixture::<<RemoveMember as Request>::Reply>("member_removed"),
    fixture::<AcceptInvitation>("accept_invitation"),
    fixture::<<AcceptInvitation as Request>::Reply>("invitation_accepted"),
    fixture::<ReadPeople>("read_people"),
    fixture::<<ReadPeople as Request>::Reply>("people"),
    fixture::<CreateStop>("create_stop"),
    fixture::<CreateStop>("create_stop_smallest"),
    fixture::<<CreateStop as Request>::Reply>("stop_reply_done"),
    fixture::<ListStops>("list_stops"),
    fixture::<<ListStops as Request>::Reply>("stop_page"),
    fixture::<ResumeStop>("resume_stop"),
    fixture::<CoveredByStop>("covered_by_stop"),
    fixture::<CoveredByStopReply>("covered_by_stop_reply"),
    fixture::<FetchAction>("fetch_action"),
    fixture::<<FetchAction as Request>::Reply>("fetched_action"),
    fixture::<ListApprovals>("list_approvals"),
    fixture::<ListApprovals>("list_approvals_smallest"),
    fixture::<<ListApprovals as Request>::Reply>("approval_page"),
    fixture::<ShowApproval>("show_approval"),
    fixture::<<ShowApproval as Request>::Reply>("approval_reply_done"),
    fixture::<<ShowApproval as Request>::Reply>("approval_reply_floor"),
    fixture::<ReadApprovalHistory>("read_approval_history"),
    fixture::<<ReadApprovalHistory as Request>::Reply>("approval_history"),
    fixture::<ChangeApproval>("change_approval_approve"),
    fixture::<ChangeApproval>("change_approval_deny"),
    fixture::<ChangeApproval>("change_approval_register"),
    fixture::<ChangeApproval>("change_approval_cancel"),
    fixture::<ChangeApproval>("change_approval_reopen"),
    fixture::<ChangeApproval>("change_approval_report"),
    fixture::<<ChangeApproval as Request>::Reply>("approval_changed"),
    fixture::<<ChangeApproval as Request>::Reply>("approval_changed_refused"),
    fixture::<SettleEvents>("settle_events"),
    fixture::<ReportDecisionOutcome>("report_decision_outcome"),
    fixture::<ReportDecisionOutcome>("report_decision_outcome_smallest"),
    fixture::<<ReportDecisionOutcome as Request>::Reply>("outcome_reported"),
    fixture::<<ReportDecisionOutcome as Request>::Reply>("outcome_reported_again"),
    fixture::<ReportedOutcome>("reported_outcome"),
    fixture::<ReadOutcomes>("read_outcomes"),
    fixture::<<ReadOutcomes as Request>::Reply>("outcomes_read"),
    fixture::<<ReadOutcomes as Request>::Reply>("outcomes_read_none"),
    fixture::<ShownDecision>("shown_decision"),
    fixture::<ReportGuard>("report_guard"),
    fixture::<ReportGuard>("report_guard_smallest"),
    fixture::<<ReportGuard as Request>::Reply>("guard_reply_done"),
    fixture::<<ListGuards as Request>::Reply>("guard_page"),
    fixture::<ListGuards>("list_guards"),
    fixture::<ListGuards>("list_guards_smallest"),
    fixture::<ForgetGuard>("forget_guard"),
    fixture::<<ForgetGuard as Request>::Reply>("guard_forgotten"),
    fixture::<CollectSilentGuards>("collect_silent_guards"),
    fixture::<CollectSilentGuards>("collect_silent_guards_first"),
    fixture::<<CollectSilentGuards as Request>::Reply>("silent_guards_collected"),
    fixture::<SettleEvents>("settle_events_others"),
    fixture::<ProbeTools>("probe_tools"),
    fixture::<ProbeTools>("probe_tools_smallest"),
    fixture::<ProbeReply>("probe_reply"),
    fixture::<ProbeReply>("probe_reply_unable"),
    fixture::<ProbeReply>("probe_reply_busy"),
    fixture::<ProbeReply>("probe_reply_missing"),
    fixture::<Probe>("probe"),
    fixture::<EvaluateRequest>("evaluate_request_reports"),
    fixture::<<SettleEvents as Request>::Reply>("events_settled"),
    fixture::<CollectEvents>("collect_events"),
    fixture::<CollectEvents>("collect_events_first"),
    fixture::<<CollectEvents as Request>::Reply>("collected_events"),
    fixture::<CreateGrant>("create_grant"),
    fixture::<<CreateGrant as Request>::Reply>("grant_changed"),
    fixture::<Grant>("grant"),
    fixture::<ListGrants>("list_grants"),
    fixture::<<ListGrants as Request>::Reply>("grants"),
    fixture::<ChangeGrant>("change_grant"),
    fixture::<ApprovalsChanged>("approvals_changed"),
    fixture::<ApprovalRecord>("approval_record"),
    fixture::<ApprovalRecord>("approval_record_floor"),
    fixture::<Decision>("decision_approval"),
    fixture::<Decision>("decision_grant"),
    fixture::<EvaluateRequest>("evaluate_request_asker"),
    fixture::<EvaluateRequest>("evaluate_request_asker_groups"),
    fixture::<EvaluateReply>("evaluate_reply_approval"),
    fixture::<RefreshKeyReply>("refresh_key_reply_rules"),
    fixture::<RefreshKeyReply>("refresh_key_reply_groups"),
    fixture::<VerifyKeyReply>("verify_key_reply_groups"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_approvals"),
    fixture::<UpdateAccount>("update_account_approvals"),
    fixture::<CreateAccount>("create_account_approvals"),
    fixture::<CreateKey>("create_key_owner"),
    fixture::<<ListKeys as Request>::Reply>("key_page_member"),
    fixture::<CreateWebhook>("create_webhook_events"),
    fixture::<InstanceHeartbeat>("instance_seen_log_edition"),
    fixture::<InstanceHeartbeat>("instance_seen_protocol"),
    fixture::<MaskText>("mask_text"),
    fixture::<MaskText>("mask_text_policies"),
    fixture::<MaskTextReply>("mask_text_reply"),
    fixture::<ValidatePolicy>("validate_policy"),
    fixture::<ValidatePolicy>("validate_policy_operator"),
    fixture::<ValidatePolicyReply>("policy_valid"),
    fixture::<ValidatePolicyReply>("policy_invalid"),
    fixture::<ValidatePolicyReply>("policy_unable"),
    fixture::<ValidatePolicyReply>("policy_busy"),
    fixture::<ComparePolicies>("compare_policies"),
    fixture::<ComparePolicies>("compare_policies_own"),
    fixture::<ComparePoliciesReply>("policies_compared"),
    fixture::<ComparePoliciesReply>("policies_unable"),
    fixture::<ComparePoliciesReply>("policies_busy"),
    fixture::<PolicyComparison>("policy_comparison"),
    fixture::<StorePolicy>("store_policy"),
    fixture::<StorePolicy>("store_policy_smallest"),
    fixture::<StorePolicy>("store_policy_trial"),
    fixture::<<StorePolicy as Request>::Reply>("policy_stored"),
    fixture::<PublishedPolicy>("published_policy"),
    fixture::<PublishPolicy>("publish_policy"),
    fixture::<ListPolicies>("list_policies"),
    fixture::<<ListPolicies as Request>::Reply>("policy_page"),
    fixture::<ShowPolicy>("show_policy"),
    fixture::<<ShowPolicy as Request>::Reply>("policy_reply_files"),
    fixture::<ShownPolicy>("shown_policy"),
    fixture::<ForgetPolicy>("forget_policy"),
    fixture::<ForgetPolicy>("forget_policy_trial"),
    fixture::<<ForgetPolicy as Request>::Reply>("policy_forgotten"),
    fixture::<<ForgetPolicy as Request>::Reply>("policy_forgotten_of_deployment"),
    fixture::<ReadActivePolicies>("read_active_policies"),
    fixture::<<ReadActivePolicies as Request>::Reply>("policies_in_force"),
    fixture::<ActivatePolicy>("activate_policy"),
    fixture::<ActivatePolicy>("activate_policy_smallest"),
    fixture::<ActivatePolicy>("activate_policy_floor"),
    fixture::<<ActivatePolicy as Request>::Reply>("activation_done"),
    fixture::<<ActivatePolicy as Request>::Reply>("activation_done_outdated"),
    fixture::<Activation>("activation"),
    fixture::<Activation>("activation_rolled_back"),
    fixture::<ActivationAnswer>("activation_unchanged"),
    fixture::<RollbackPolicy>("rollback_policy"),
    fixture::<RollbackPolicy>("rollback_policy_floor"),
    fixture::<ReadPolicyHistory>("read_policy_history"),
    fixture::<<ReadPolicyHistory as Request>::Reply>("policy_history"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_second_member"),
    fixture::<UpdateAccount>("update_account_second_member"),
    fixture::<ActivatePolicy>("activate_policy_proposes"),
    fixture::<<ActivatePolicy as Request>::Reply>("activation_done_proposed"),
    fixture::<ActivationProposed>("activation_proposed"),
    fixture::<Activation>("activation_approved"),
    fixture::<ListProposals>("list_proposals"),
    fixture::<<ListProposals as Request>::Reply>("proposal_page"),
    fixture::<ShowProposal>("show_proposal"),
    fixture::<<ShowProposal as Request>::Reply>("proposal_reply"),
    fixture::<DecideProposal>("decide_proposal"),
    fixture::<DecideProposal>("decide_proposal_smallest"),
    fixture::<<DecideProposal as Request>::Reply>("proposal_decided"),
    fixture::<<DecideProposal as Request>::Reply>("proposal_decided_denied"),
    fixture::<PolicyProposal>("proposal_denied"),
    fixture::<PolicyProposal>("proposal_cancelled"),
    fixture::<ApprovalRecord>("policy_record_proposed"),
    fixture::<ListActiveVersions>("list_active_versions"),
    fixture::<<ListActiveVersions as Request>::Reply>("active_versions"),
    fixture::<FetchPolicy>("fetch_policy"),
    fixture::<FetchPolicy>("fetch_policy_of_deployment"),
    fixture::<<FetchPolicy as Request>::Reply>("policy_fetched"),
    fixture::<PolicyChanged>("policy_changed"),
    fixture::<PolicyChanged>("policy_changed_all"),
    fixture::<InstanceHeartbeat>("instance_seen_policies"),
    fixture::<RefreshKeyReply>("refresh_key_reply_policies"),
    fixture::<Decision>("decision_floor"),
    fixture::<ApprovalRecord>("policy_record"),
    fixture::<Activation>("activation_shadow"),
    fixture::<Activation>("activation_withdrawn"),
    fixture::<Activation>("activation_returned"),
    fixture::<Activation>("activation_canary"),
    fixture::<ActivatePolicy>("activate_policy_canary"),
    fixture::<ShadowPolicy>("shadow_policy"),
    fixture::<ShadowPolicy>("shadow_policy_smallest"),
    fixture::<<ShadowPolicy as Request>::Reply>("candidate_changed"),
    fixture::<WithdrawCandidate>("withdraw_candidate"),
    fixture::<<WithdrawCandidate as Request>::Reply>("candidate_changed_outdated"),
    fixture::<ReturnCanary>("return_canary"),
    fixture::<<ReturnCanary as Request>::Reply>("candidate_changed"),
    fixture::<ListCandidates>("list_candidates"),
    fixture::<ListCandidates>("list_candidates_ended"),
    fixture::<ReadCandidates>("read_candidates"),
    fixture::<<ReadCandidates as Request>::Reply>("candidates_read"),
    fixture::<Candidates>("candidates"),
    fixture::<Candidates>("candidates_ended"),
    fixture::<ReplayDecisions>("replay_decisions"),
    fixture::<ReplayDecisions>("replay_decisions_own"),
    fixture::<ReplayDecisionsReply>("decisions_replayed"),
    fixture::<ReplayDecisionsReply>("replay_unable"),
    fixture::<ReplayDecisionsReply>("replay_busy"),
    fixture::<PolicyReplay>("policy_replay"),
    fixture::<<ReadActivePolicies as Request>::Reply>("policies_in_force_candidates"),
    fixture::<<UpdateAccount as Request>::Reply>("account_reply_facts"),
    fixture::<UpdateAccount>("update_account_facts"),
    fixture::<RefreshKeyReply>("refresh_key_reply_candidates"),
    fixture::<EvaluateReply>("evaluate_reply_facts"),
    fixture::<DecisionRecord>("decision_record_facts"),
    fixture::<<ActivatePolicy as Request>::Reply>("activation_done_facts"),
];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

#[test]
fn every_message_reads_what_was_written_and_writes_it_again() {
    for Fixture { name, again, .. } in FIXTURES {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut written = again(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        without_later_members(&mut written, &value);
        assert_eq!(written, value, "{name}");
    }
}

/// Members that every answer has and that older ones did not have: empty where an older answer is read.
const LATER: [&str; 2] = ["constraints_ignored", "approval"];

fn without_later_members(written: &mut Value, read: &Value) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            written.retain(|name, value| {
                read.contains_key(name) || !LATER.contains(&name.as_str()) || (*value != json!([]) && !value.is_null())
            });
            for (name, value) in written {
                without_later_members(value, read.get(name).unwrap_or(&Value::Null));
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (written, read) in written.iter_mut().zip(read) {
                without_later_members(written, read);
            }
        }
        _ => {}
    }
}

#[test]
fn every_fixture_is_compared() {
    let files: BTreeSet<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let listed: BTreeSet<_> = FIXTURES.iter().map(|fixture| fixture.name.to_owned()).collect();
    assert_eq!(files, listed);
}

#[test]
fn every_message_and_every_reply_has_a_fixture() {
    let have: BTreeSet<_> = FIXTURES.iter().map(|fixture| (fixture.type_name)()).collect();
    let requests = REQUESTS.iter().flat_map(|request| request.types);
    let missing: Vec<_> = requests
        .chain(EVENTS.iter().flat_map(|event| event.types))
        .map(|type_name| type_name())
        .filter(|type_name| !have.contains(type_name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_subject_is_safe() {
    for subject in REQUESTS.iter().map(|request| request.subject).chain(EVENTS.iter().map(|event| event.subject)) {
        let plain = |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(subject.split('.').all(plain), "{subject}");
    }
}

#[test]
fn an_allow_is_go_and_every_field_is_there() {
    let text = fs::read_to_string(folder().join("check_response.json")).unwrap();
    let response: CheckResponse = serde_json::from_str(&text).unwrap();
    let value = serde_json::to_value(&response).unwrap();
    let fields = [
        "decision",
        "verdict",
        "reason",
        "issues",
        "risk_score",
        "value_risk",
        "waste_risk",
        "high_risk",
        "clarifying_questions",
        "defer_questions",
        "guardrails",
        "constraints_applied",
        "constraints_ignored",
        "value_findings",
        "guardrail_checks",
        "cost_estimate",
        "request_id",
        "task_hash",
        "policy_version",
        "policy_pack_version",
        "environment",
        "timestamp",
        "evaluated_at",
        "decision_trace_summary",
        "approval",
        "cached",
        "meta",
    ];
    let found: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, fields.into_iter().collect());
    for (verdict, signal) in [(Verdict::Allow, "GO"), (Verdict::Defer, "DEFER"), (Verdict::Deny, "NO_GO")] {
        assert_eq!(serde_json::to_value(verdict.signal()).unwrap(), signal);
    }
}
