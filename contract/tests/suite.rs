//! Golden fixtures: one for each shape that crosses a process boundary, decoded, encoded again and compared.
//!
//! A fixture is what an older version wrote or reads. It is never edited once released; a new optional field gets a new fixture.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stage0_contract::*;

type Again = fn(Value) -> Result<Value, serde_json::Error>;

fn again<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

const FIXTURES: &[(&str, Again)] = &[
    ("account_page", again::<<ListAccounts as Request>::Reply>),
    ("account_reply_busy", again::<<CreateAccount as Request>::Reply>),
    ("account_reply_caps", again::<<UpdateAccount as Request>::Reply>),
    ("account_reply_done", again::<<CreateAccount as Request>::Reply>),
    ("account_reply_limits", again::<<UpdateAccount as Request>::Reply>),
    ("account_reply_refused", again::<<CreateAccount as Request>::Reply>),
    ("account_reply_retention", again::<<UpdateAccount as Request>::Reply>),
    ("check_request", again::<CheckRequest>),
    ("check_request_smallest", again::<CheckRequest>),
    ("check_response", again::<CheckResponse>),
    ("check_response_ignored", again::<CheckResponse>),
    ("check_response_input_stored", again::<CheckResponse>),
    ("create_account", again::<CreateAccount>),
    ("create_key", again::<CreateKey>),
    ("create_key_with_proof", again::<CreateKey>),
    ("create_webhook", again::<CreateWebhook>),
    ("create_webhook_smallest", again::<CreateWebhook>),
    ("decision", again::<Decision>),
    ("decision_record", again::<DecisionRecord>),
    ("decision_record_attempted", again::<DecisionRecord>),
    ("decision_record_with_input", again::<DecisionRecord>),
    ("decisions_deleted", again::<<DeleteDecisions as Request>::Reply>),
    ("decisions_deleted_none", again::<<DeleteDecisions as Request>::Reply>),
    ("decisions_recorded", again::<DecisionsRecorded>),
    ("delete_decisions", again::<DeleteDecisions>),
    ("delete_decisions_permitted", again::<DeleteDecisions>),
    ("delete_webhook", again::<DeleteWebhook>),
    ("deletion_permitted", again::<<PermitDeletion as Request>::Reply>),
    ("delivery_page", again::<<ListDeliveries as Request>::Reply>),
    ("disable_webhook", again::<DisableWebhook>),
    ("enable_webhook", again::<EnableWebhook>),
    ("end_run", again::<EndRun>),
    ("endpoints_page", again::<<ListEndpoints as Request>::Reply>),
    ("error_body_throttled", again::<ErrorBody>),
    ("error_body_validation", again::<ErrorBody>),
    ("evaluate_reply_busy", again::<EvaluateReply>),
    ("evaluate_reply_decided", again::<EvaluateReply>),
    ("evaluate_reply_invalid", again::<EvaluateReply>),
    ("evaluate_reply_recordable", again::<EvaluateReply>),
    ("evaluate_reply_recordable_attempted", again::<EvaluateReply>),
    ("evaluate_reply_recordable_smallest", again::<EvaluateReply>),
    ("evaluate_reply_timed_out", again::<EvaluateReply>),
    ("evaluate_reply_too_many_runs", again::<EvaluateReply>),
    ("evaluate_reply_unable", again::<EvaluateReply>),
    ("evaluate_request", again::<EvaluateRequest>),
    ("evaluate_request_again", again::<EvaluateRequest>),
    ("evaluate_request_max_runs", again::<EvaluateRequest>),
    ("evaluate_request_with_caller", again::<EvaluateRequest>),
    ("evaluator_status", again::<EvaluatorStatus>),
    ("evaluator_status_reply", again::<EvaluatorStatusReply>),
    ("get_webhook", again::<GetWebhook>),
    ("instance_seen", again::<InstanceSeen>),
    ("instance_seen_smallest", again::<InstanceSeen>),
    ("key_changed", again::<KeyChanged>),
    ("key_created", again::<<CreateKey as Request>::Reply>),
    ("key_page", again::<<ListKeys as Request>::Reply>),
    ("key_page_last_used", again::<<ListKeys as Request>::Reply>),
    ("key_rotated", again::<<RotateKey as Request>::Reply>),
    ("keystore_status", again::<KeystoreStatus>),
    ("keystore_status_reply", again::<KeystoreStatusReply>),
    ("keystore_status_reply_disk_low", again::<KeystoreStatusReply>),
    ("keystore_status_reply_sealing", again::<KeystoreStatusReply>),
    ("line_start", again::<LineStart>),
    ("line_start_first", again::<LineStart>),
    ("list_accounts", again::<ListAccounts>),
    ("list_deliveries", again::<ListDeliveries>),
    ("list_endpoints", again::<ListEndpoints>),
    ("list_endpoints_first", again::<ListEndpoints>),
    ("list_keys", again::<ListKeys>),
    ("list_retentions", again::<ListRetentions>),
    ("list_retentions_first", again::<ListRetentions>),
    ("list_runs", again::<ListRuns>),
    ("list_runs_first", again::<ListRuns>),
    ("list_webhooks", again::<ListWebhooks>),
    ("mark_checkpoint", again::<Mark>),
    ("mark_deletion", again::<Mark>),
    ("mark_deletion_of_nothing", again::<Mark>),
    ("mark_expiry", again::<Mark>),
    ("mark_signed", again::<<SignMark as Request>::Reply>),
    ("mark_signed_earlier", again::<<SignMark as Request>::Reply>),
    ("mark_webhook_disabled", again::<Mark>),
    ("note_key_uses", again::<NoteKeyUses>),
    ("note_key_uses_failed", again::<NoteKeyUsesReply>),
    ("note_key_uses_noted", again::<NoteKeyUsesReply>),
    ("permit_deletion", again::<PermitDeletion>),
    ("public_keys", again::<<SigningKeys as Request>::Reply>),
    ("public_keys_last_mark", again::<<SigningKeys as Request>::Reply>),
    ("refresh_key", again::<RefreshKey>),
    ("refresh_key_for_request", again::<RefreshKey>),
    ("refresh_key_reply_caps", again::<RefreshKeyReply>),
    ("refresh_key_reply_gone", again::<RefreshKeyReply>),
    ("refresh_key_reply_limits", again::<RefreshKeyReply>),
    ("refresh_key_reply_live", again::<RefreshKeyReply>),
    ("refresh_key_reply_retention", again::<RefreshKeyReply>),
    ("refused_conflict", again::<<RotateKey as Request>::Reply>),
    ("refused_invalid", again::<<CreateKey as Request>::Reply>),
    ("refused_not_found", again::<<RevokeKey as Request>::Reply>),
    ("replay_started", again::<<ReplayWebhook as Request>::Reply>),
    ("replay_webhook", again::<ReplayWebhook>),
    ("report_expiries", again::<Report>),
    ("report_findings", again::<Report>),
    ("report_good", again::<Report>),
    ("retentions_page", again::<<ListRetentions as Request>::Reply>),
    ("retentions_page_clock", again::<<ListRetentions as Request>::Reply>),
    ("review_reply", again::<ReviewReply>),
    ("review_request", again::<ReviewRequest>),
    ("vocabulary_reply", again::<VocabularyReply>),
    ("vocabulary_request", again::<VocabularyRequest>),
    ("revoke_key", again::<RevokeKey>),
    ("revoked", again::<<RevokeKey as Request>::Reply>),
    ("rotate_key", again::<RotateKey>),
    ("rotate_webhook_secret", again::<RotateWebhookSecret>),
    ("run_ended", again::<<EndRun as Request>::Reply>),
    ("run_page", again::<<ListRuns as Request>::Reply>),
    ("run_settled", again::<<SettleRun as Request>::Reply>),
    ("run_view", again::<<ShowRun as Request>::Reply>),
    ("settle_run", again::<SettleRun>),
    ("show_run", again::<ShowRun>),
    ("sign_mark", again::<SignMark>),
    ("sign_mark_permitted", again::<SignMark>),
    ("sign_mark_resumed", again::<SignMark>),
    ("signing_keys", again::<SigningKeys>),
    ("signing_keys_of_account", again::<SigningKeys>),
    ("status", again::<Status>),
    ("test_webhook", again::<TestWebhook>),
    ("update_account", again::<UpdateAccount>),
    ("update_account_caps", again::<UpdateAccount>),
    ("update_account_smallest", again::<UpdateAccount>),
    ("update_webhook", again::<UpdateWebhook>),
    ("update_webhook_smallest", again::<UpdateWebhook>),
    ("usage", again::<Usage>),
    ("usage_stored_bytes", again::<Usage>),
    ("verify_key", again::<VerifyKey>),
    ("verify_key_for_request", again::<VerifyKey>),
    ("verify_key_reply_busy", again::<VerifyKeyReply>),
    ("verify_key_reply_invalid", again::<VerifyKeyReply>),
    ("verify_key_reply_valid", again::<VerifyKeyReply>),
    ("webhook_changed", again::<WebhookChanged>),
    ("webhook_created", again::<<CreateWebhook as Request>::Reply>),
    ("webhook_deleted", again::<<DeleteWebhook as Request>::Reply>),
    ("webhook_disabled", again::<<DisableWebhook as Request>::Reply>),
    ("webhook_page", again::<<ListWebhooks as Request>::Reply>),
    ("webhook_reply_done", again::<<GetWebhook as Request>::Reply>),
    ("webhook_tested_delivered", again::<<TestWebhook as Request>::Reply>),
    ("webhook_tested_failed", again::<<TestWebhook as Request>::Reply>),
];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

#[test]
fn every_message_reads_what_was_written_and_writes_it_again() {
    for (name, again) in FIXTURES {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut written = again(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        without_later_members(&mut written, &value);
        assert_eq!(written, value, "{name}");
    }
}

/// Members that every answer has and that older ones did not have: empty where an older answer is read.
const LATER: [&str; 1] = ["constraints_ignored"];

fn without_later_members(written: &mut Value, read: &Value) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            written.retain(|name, value| {
                read.contains_key(name) || !LATER.contains(&name.as_str()) || *value != json!([])
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
    let listed: BTreeSet<_> = FIXTURES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, listed);
}

#[test]
fn every_subject_is_its_own_and_safe() {
    let subjects = [
        EvaluateRequest::SUBJECT,
        ReviewRequest::SUBJECT,
        VocabularyRequest::SUBJECT,
        EvaluatorStatus::SUBJECT,
        VerifyKey::SUBJECT,
        RefreshKey::SUBJECT,
        NoteKeyUses::SUBJECT,
        KeystoreStatus::SUBJECT,
        CreateAccount::SUBJECT,
        ListAccounts::SUBJECT,
        CreateKey::SUBJECT,
        ListKeys::SUBJECT,
        RotateKey::SUBJECT,
        RevokeKey::SUBJECT,
        KeyChanged::SUBJECT,
        CreateWebhook::SUBJECT,
        ListWebhooks::SUBJECT,
        GetWebhook::SUBJECT,
        UpdateWebhook::SUBJECT,
        EnableWebhook::SUBJECT,
        RotateWebhookSecret::SUBJECT,
        DeleteWebhook::SUBJECT,
        DisableWebhook::SUBJECT,
        ListEndpoints::SUBJECT,
        SignMark::SUBJECT,
        SigningKeys::SUBJECT,
        UpdateAccount::SUBJECT,
        ShowRun::SUBJECT,
        ListRuns::SUBJECT,
        EndRun::SUBJECT,
        SettleRun::SUBJECT,
        ListRetentions::SUBJECT,
        WebhookChanged::SUBJECT,
        DecisionsRecorded::SUBJECT,
        TestWebhook::SUBJECT,
        ReplayWebhook::SUBJECT,
        ListDeliveries::SUBJECT,
        DeleteDecisions::SUBJECT,
        PermitDeletion::SUBJECT,
    ];
    assert_eq!(subjects.iter().collect::<BTreeSet<_>>().len(), subjects.len());
    for subject in subjects {
        let plain = |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_lowercase());
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
        "cached",
        "meta",
    ];
    let found: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, fields.into_iter().collect());
    for (verdict, signal) in [(Verdict::Allow, "GO"), (Verdict::Defer, "DEFER"), (Verdict::Deny, "NO_GO")] {
        assert_eq!(serde_json::to_value(verdict.signal()).unwrap(), signal);
    }
}
