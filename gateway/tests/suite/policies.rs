//! Policies: in which order they are validated, stored and recorded, and what an active one does to checks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, ActivationDone, ActivationKind, ComparePolicies, ComparePoliciesReply, EvaluateReply, FieldError,
    InstanceHeartbeat, ListPolicies, ManageReply, MaskText, MaskTextReply, PolicyComparison, PolicyStored,
    PolicyVersion, PublishedPolicy, Refusal, ReviewReply, ReviewRequest, RollbackPolicy, ShowPolicy, StorePolicy,
    ValidatePolicy, ValidatePolicyReply,
};

use crate::harness::{Answer, MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, key, send};

const STORED: &str = include_str!("../../../contract/fixtures/policy_stored.json");
const VALID: &str = include_str!("../../../contract/fixtures/policy_valid.json");
const INVALID: &str = include_str!("../../../contract/fixtures/policy_invalid.json");
const ACTIVATED: &str = include_str!("../../../contract/fixtures/activation_done.json");
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";

fn pack() -> Value {
    json!({"packs": [{"files": {"pack.toml": "name = \"acme\"\n"}}]})
}

/// Lets callers publish, which is asked for with a list.
async fn may_publish(stack: &mut Stack) {
    let page = include_str!("../../../contract/fixtures/policy_page.json");
    let page: ManageReply<stage0_contract::Page<PublishedPolicy>> = serde_json::from_str(page).unwrap();
    stack.serve::<ListPolicies>(move |_| page.clone()).await;
}

fn stored(is_new: bool) -> ManageReply<PolicyStored> {
    let ManageReply::Done(mut stored) = serde_json::from_str::<ManageReply<PolicyStored>>(STORED).unwrap() else {
        panic!("the fixture has changed")
    };
    stored.is_new = is_new;
    stored.policy.account = Some("acc".to_owned().try_into().unwrap());
    ManageReply::Done(stored)
}

fn activated(is_new: bool) -> ManageReply<ActivationDone> {
    let ManageReply::Done(mut done) = serde_json::from_str::<ManageReply<ActivationDone>>(ACTIVATED).unwrap() else {
        panic!("the fixture has changed")
    };
    done.is_new = is_new;
    done.activation.account = Some("acc".to_owned().try_into().unwrap());
    ManageReply::Done(done)
}

/// Nothing is looser.
fn stricter() -> ComparePoliciesReply {
    let mut comparison: PolicyComparison =
        serde_json::from_str(include_str!("../../../contract/fixtures/policy_comparison.json")).unwrap();
    comparison.flips = 0;
    ComparePoliciesReply::Compared(Box::new(comparison))
}

fn other() -> PolicyVersion {
    PolicyVersion::parse("acme@1.2.0+0123456789ab").unwrap()
}

/// The version by which the suite's evaluator decides.
fn decided_by(stack: &Stack) -> PolicyVersion {
    match &*stack.services.reply.lock().unwrap() {
        EvaluateReply::Decided(evaluation) => evaluation.decision.policy_version.clone(),
        other => panic!("{other:?}"),
    }
}

async fn check_by(stack: &Stack, wanted: &str) -> Answer {
    send(stack.check_request(&json!({"goal": "g"})).header("x-stage0-min-policy", wanted)).await
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn only_those_with_the_scope_manage_policies_and_a_bad_body_names_its_fields() {
    let stack = Stack::start().await;
    for number in [TENANT, READER] {
        for (method, path) in [
            (Method::POST, "/v1/policies"),
            (Method::GET, "/v1/policies"),
            (Method::GET, "/v1/policies/active"),
            (Method::GET, "/v1/policies/history"),
            (Method::GET, "/v1/policies/acme@1.2.0+0123456789ab"),
            (Method::DELETE, "/v1/policies/acme@1.2.0+0123456789ab"),
            (Method::POST, ACTIVATE),
            (Method::POST, "/v1/policies/rollback"),
        ] {
            let answer = send(stack.request_as(number, method, path)).await;
            assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path}");
        }
    }
    for (body, bad) in [
        (json!({}), vec!["packs"]),
        (json!({"packs": []}), vec!["packs"]),
        (json!({"packs": {}, "name": "acme", "account": "a b"}), vec!["account", "name", "packs"]),
        (json!({"packs": [{"files": {"../x": ""}}]}), vec!["packs[0].files[\"../x\"]"]),
        (json!({"packs": [{"files": {"x": "\u{1b}"}}]}), vec!["packs[0].files[\"x\"]"]),
    ] {
        let mut found = stack.post(MANAGER, "/v1/policies", &body).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, bad, "{body}");
    }
    let secret = format!("see {}", key(TENANT).expose());
    let body = json!({"reason": secret, "environment": "a\u{2066}b", "floor": "yes", "expected": "acme", "until": 1});
    for path in [ACTIVATE, "/v1/policies/rollback"] {
        let mut found = stack.post(MANAGER, path, &body).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, ["environment", "expected", "floor", "reason", "until"]);
    }
    let answer = stack.post(MANAGER, "/v1/policies/acme/activate", &json!({})).await;
    assert_eq!(answer.refusal(), (404, "not_found".to_owned()), "no version");
}

#[tokio::test]
async fn a_pack_is_validated_tried_recorded_and_stored_and_its_repetition_changes_nothing() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    may_publish(&mut stack).await;
    let is_new = Arc::new(Mutex::new(true));
    let being_new = Arc::clone(&is_new);
    let mut validated = stack.serve::<ValidatePolicy>(|_| serde_json::from_str(VALID).unwrap()).await;
    let mut storing = stack.serve::<StorePolicy>(move |_| stored(*being_new.lock().unwrap())).await;
    stack.log.fail(true);
    let answer = stack.post(MANAGER, "/v1/policies", &pack()).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("nothing was published")), (503, true), "{message}");
    assert!(storing.recv().await.unwrap().is_trial);
    assert!(storing.try_recv().is_err(), "what is not recorded is not stored");
    stack.log.fail(false);
    validated.recv().await.unwrap();
    let answer = stack.post(MANAGER, "/v1/policies", &pack()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["version"]), (201, &json!(other())), "{}", answer.text);
    let bundle = validated.recv().await.unwrap().bundle;
    assert!(storing.recv().await.unwrap().is_trial);
    let store = storing.recv().await.unwrap();
    assert_eq!((&store.bundle, &store.summary.version, store.account), (&bundle, &other(), None));
    assert!(!store.is_trial);
    *is_new.lock().unwrap() = false;
    let again = stack.post(MANAGER, "/v1/policies", &pack()).await;
    assert_eq!((again.status.as_u16(), &again.json()["version"]), (200, &json!(other())));
    assert!(storing.recv().await.unwrap().is_trial && storing.try_recv().is_err());
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.published"]);
    assert_eq!((&lines[0]["policy_version"], &lines[0]["details"]["cases"]), (&json!(other()), &json!(412)));
    assert_eq!(lines[0]["actor"]["key_id"], json!(key(MANAGER).id()));
}

#[tokio::test]
async fn a_pack_with_faults_is_a_422_with_file_line_and_rule_and_is_not_stored() {
    let mut stack = Stack::start().await;
    may_publish(&mut stack).await;
    let reply: Arc<Mutex<ValidatePolicyReply>> = Arc::new(Mutex::new(serde_json::from_str(INVALID).unwrap()));
    let replying = Arc::clone(&reply);
    stack.serve::<ValidatePolicy>(move |_| replying.lock().unwrap().clone()).await;
    let mut storing = stack.serve::<StorePolicy>(|_| stored(true)).await;
    let errors = stack.post(MANAGER, "/v1/policies", &pack()).await.field_errors();
    assert_eq!(errors[0].path, "rules.cedar:12");
    assert_eq!(errors[0].message, "`refund.limit`: unexpected token `;` (remove it)");
    for unable in [ValidatePolicyReply::Busy, ValidatePolicyReply::Unable("no thread".to_owned())] {
        *reply.lock().unwrap() = unable;
        let answer = stack.post(MANAGER, "/v1/policies", &pack()).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    }
    assert!(storing.try_recv().is_err() && stack.lines().await.is_empty());
}

#[tokio::test]
async fn an_activation_is_tried_then_recorded_then_made() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    stack.serve::<MaskText>(|mask| MaskTextReply { text: mask.text.replace("hunter2", "***") }).await;
    stack.serve::<ComparePolicies>(|_| stricter()).await;
    let mut calls = stack.serve::<ActivatePolicy>(|_| activated(true)).await;
    let body = json!({"environment": "staging", "reason": "try hunter2", "expected": other()});
    stack.log.fail(true);
    let answer = stack.post(MANAGER, ACTIVATE, &body).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("nothing was activated")), (503, true), "{message}");
    assert!(calls.recv().await.unwrap().is_trial);
    assert!(calls.try_recv().is_err(), "what is not recorded is not made");
    stack.log.fail(false);
    let answer = stack.post(MANAGER, ACTIVATE, &body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["sequence"]), (200, &json!(7)), "{}", answer.text);
    assert!(calls.recv().await.unwrap().is_trial);
    let made = calls.recv().await.unwrap();
    assert_eq!((made.is_trial, made.environment.as_deref()), (false, Some("staging")));
    assert_eq!((made.reason.as_deref(), made.expected), (Some("try ***"), Some(other())));
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.activated"]);
    assert_eq!((&lines[0]["environment"], &lines[0]["policy_version"]), (&json!("staging"), &json!(other())));
    assert_eq!(lines[0]["details"]["from"], json!("acme@1.1.0+ba9876543210"));
}

#[tokio::test]
async fn what_is_refused_or_active_already_has_no_line() {
    let mut stack = Stack::start().await;
    let reply = Arc::new(Mutex::new(ManageReply::Refused(Refusal::Conflict("`x` is not active there".to_owned()))));
    let replying = Arc::clone(&reply);
    let mut calls = stack.serve::<ActivatePolicy>(move |_| replying.lock().unwrap().clone()).await;
    assert_eq!(stack.post(MANAGER, ACTIVATE, &json!({})).await.refusal(), (409, "conflict".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    *reply.lock().unwrap() = activated(false);
    assert_eq!(stack.post(MANAGER, ACTIVATE, &json!({})).await.status, 200);
    assert!(calls.recv().await.unwrap().is_trial);
    assert!(!calls.recv().await.unwrap().is_trial, "it is announced again");
    assert!(stack.lines().await.is_empty());
}

#[tokio::test]
async fn nothing_is_activated_while_a_process_cannot_read_the_line() {
    let mut stack = Stack::with(|config| config.single_process = false).await;
    stack.serve::<ComparePolicies>(|_| stricter()).await;
    let mut calls = stack.serve::<ActivatePolicy>(|_| activated(true)).await;
    let answer = stack.post(MANAGER, ACTIVATE, &json!({})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    assert_eq!(stack.post(MANAGER, "/v1/policies", &pack()).await.refusal(), (503, "unavailable".to_owned()));
}

#[tokio::test]
async fn a_rollback_is_recorded_as_one_in_the_operators_log_where_it_is_of_every_account() {
    let mut stack = Stack::start().await;
    let rolled_back = include_str!("../../../contract/fixtures/activation_rolled_back.json");
    let done = ActivationDone {
        activation: serde_json::from_str(rolled_back).unwrap(),
        is_new: true,
        retention_days: 7,
        replaces: Vec::new(),
        is_outdated: false,
        proposal: None,
        record_facts: false,
    };
    let mut calls = stack.serve::<RollbackPolicy>(move |_| ManageReply::Done(done.clone())).await;
    let answer = stack.post(OPERATOR, "/v1/policies/rollback", &json!({"floor": true})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["kind"]), (200, &json!("rolled_back")), "{}", answer.text);
    let trial = calls.recv().await.unwrap();
    assert!(trial.is_trial && trial.floor && !calls.recv().await.unwrap().is_trial);
    assert!(stack.lines().await.is_empty(), "the tenant's log");
}

#[tokio::test]
async fn a_rollback_that_another_change_came_before_is_tried_again_and_a_line_says_so() {
    let mut stack = Stack::start().await;
    let made = AtomicUsize::new(0);
    let mut calls = stack
        .serve::<RollbackPolicy>(move |call| {
            let ManageReply::Done(mut done) = activated(true) else { panic!("the fixture has changed") };
            let made = made.fetch_add(usize::from(!call.is_trial), Ordering::SeqCst);
            // The first one is tried before another change, and made after it.
            done.activation.sequence = if call.is_trial && made == 0 { 4 } else { 5 };
            done.activation.kind = ActivationKind::RolledBack;
            done.is_outdated = call.sequence.is_some_and(|sequence| sequence != 5);
            ManageReply::Done(done)
        })
        .await;
    let answer = stack.post(MANAGER, "/v1/policies/rollback", &json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["sequence"]), (200, &json!(5)), "{}", answer.text);
    let asked: Vec<_> = std::iter::from_fn(|| calls.try_recv().ok()).map(|one| one.sequence).collect();
    assert_eq!(asked, [None, Some(4), None, Some(5)]);
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.rolled_back", "policy.not_changed", "policy.rolled_back"]);
    assert_eq!(lines[1]["details"]["event_id"], lines[0]["event_id"]);
}

#[tokio::test]
async fn a_version_is_shown_with_the_evaluators_that_have_it() {
    let mut stack = Stack::start().await;
    let shown = include_str!("../../../contract/fixtures/published_policy.json");
    let policy: PublishedPolicy = serde_json::from_str(shown).unwrap();
    let mut shows = stack.serve::<ShowPolicy>(move |_| ManageReply::Done(policy.clone())).await;
    let mut heartbeat: InstanceHeartbeat =
        serde_json::from_str(include_str!("../../../contract/fixtures/instance_seen_policies.json")).unwrap();
    let notices = stack.bus.connect().notices;
    let path = "/v1/policies/acme@1.2.0+0123456789ab?files=true";
    // Heartbeats and requests travel different ways.
    let loaded = async |stack: &Stack, heartbeat: &InstanceHeartbeat, wanted: bool| {
        for _ in 0..1_000 {
            let bytes = serde_json::to_vec(heartbeat).unwrap();
            notices.publish_bytes(InstanceHeartbeat::subject(heartbeat.role), bytes.into()).await.unwrap();
            let evaluators = stack.get(MEMBER, path).await.json()["evaluators"].clone();
            if evaluators == json!([{"instance": heartbeat.instance, "loaded": wanted}]) {
                return true;
            }
        }
        false
    };
    assert!(loaded(&stack, &heartbeat, true).await);
    assert!(shows.recv().await.unwrap().files);
    heartbeat.policies.clear();
    assert!(loaded(&stack, &heartbeat, false).await);
    let answer = stack.get(MEMBER, "/v1/policies/acme@1.2.0+0123456789ab?files=1").await;
    assert_eq!(answer.bad_fields(), ["files"]);
}

#[tokio::test]
async fn a_list_passes_its_page_on() {
    let mut stack = Stack::start().await;
    let page = include_str!("../../../contract/fixtures/policy_page.json");
    let page: ManageReply<stage0_contract::Page<PublishedPolicy>> = serde_json::from_str(page).unwrap();
    let mut lists = stack.serve::<ListPolicies>(move |_| page.clone()).await;
    let answer = stack.get(MEMBER, "/v1/policies?limit=2&cursor=acme@1.0.0%2Bx").await;
    assert_eq!(answer.json()["items"].as_array().unwrap().len(), 2);
    let list = lists.recv().await.unwrap();
    assert_eq!((list.limit, list.cursor.as_deref()), (2, Some("acme@1.0.0+x")));
}

#[tokio::test]
async fn an_answer_that_another_policy_decided_is_neither_recorded_nor_released() {
    let stack = Stack::start().await;
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(other()));
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert_eq!(stack.services.evaluations(), 1);
    assert!(stack.lines().await.is_empty());
    let asker = stack.services.evaluated.lock().unwrap().clone().unwrap().asker.unwrap();
    assert_eq!(asker.rules.policy.default, Some(other()), "the evaluator knows what it has to decide by");
}

#[tokio::test]
async fn an_answer_by_the_active_policy_is_released_and_one_without_the_floor_is_not() {
    let stack = Stack::start().await;
    let active = decided_by(&stack);
    stack.services.change(TENANT, |identity| {
        identity.rules.policy.environments.insert("production".to_owned(), active.clone());
    });
    assert_eq!(stack.check(&json!({"goal": "g", "environment": "prod"})).await.status, 200);
    stack.services.change(TENANT, |identity| identity.rules.floor = Some(other()));
    stack.publish_change().await;
    let mut answer = stack.check(&json!({"goal": "g"})).await;
    // The notice and the next check travel different ways.
    for _ in 0..1_000 {
        if answer.status != 200 {
            break;
        }
        answer = stack.check(&json!({"goal": "g"})).await;
    }
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    if let EvaluateReply::Decided(evaluation) = &mut *stack.services.reply.lock().unwrap() {
        evaluation.decision.floor_version = Some(other());
    }
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["floor_version"]), (200, &json!(other())));
    assert_eq!(stack.lines().await.last().unwrap()["floor_version"], json!(other()), "and in the record");
}

#[tokio::test]
async fn a_check_for_a_published_policy_is_not_sent_while_an_old_evaluator_lives() {
    let stack = Stack::start().await;
    let active = decided_by(&stack);
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(active));
    let old: InstanceHeartbeat = serde_json::from_value(json!({
        "role": "evaluator", "instance": "ev-old", "version": "0.1.0", "started_at": "2026-11-24T12:00:00Z",
        "state": "ready", "log_edition": 1}))
    .unwrap();
    let notices = stack.bus.connect().notices;
    let mut answer = stack.check(&json!({"goal": "g"})).await;
    for _ in 0..1_000 {
        if answer.status != 200 {
            break;
        }
        let bytes = serde_json::to_vec(&old).unwrap();
        notices.publish_bytes(InstanceHeartbeat::subject(old.role), bytes.into()).await.unwrap();
        answer = stack.check(&json!({"goal": "g"})).await;
    }
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(answer.json()["message"].as_str().unwrap().contains("`ev-old`"), "{}", answer.text);
    let before = stack.services.evaluations();
    stack.check(&json!({"goal": "g"})).await;
    assert_eq!(stack.services.evaluations(), before);
    // An account without a policy is not concerned.
    stack.services.change(OPERATOR, |identity| identity.scopes = [stage0_contract::Scope::Check].into());
    let request = stack.request_as(OPERATOR, Method::POST, "/check").header("content-type", "application/json");
    assert_eq!(send(request.body(r#"{"goal": "g"}"#)).await.status, 200);
}

#[tokio::test]
async fn a_check_that_asks_for_a_version_is_decided_by_it_or_not_at_all() {
    let stack = Stack::start().await;
    let active = decided_by(&stack);
    assert_eq!(check_by(&stack, "acme").await.bad_fields(), ["X-Stage0-Min-Policy"]);
    // Without a published policy the evaluator's own decides.
    assert_eq!(check_by(&stack, active.as_str()).await.status, 200);
    let answer = check_by(&stack, other().as_str()).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(other().as_str()) && message.contains(active.as_str()), "{message}");
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(other()));
    stack.publish_change().await;
    let mut answer = check_by(&stack, active.as_str()).await;
    for _ in 0..1_000 {
        if answer.status != 200 {
            break;
        }
        answer = check_by(&stack, active.as_str()).await;
    }
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(other().as_str()) && message.contains(active.as_str()), "{message}");
}

#[tokio::test]
async fn a_check_that_asks_for_a_version_is_answered_by_a_later_one_of_its_pack() {
    let stack = Stack::start().await;
    let active = decided_by(&stack);
    let (pack, _) = active.as_str().split_once('@').unwrap();
    for (wanted, status) in [
        (format!("{pack}@0.0.1+0123456789ab"), 200),
        (format!("{pack}@99.0.0+0123456789ab"), 503),
        ("other@0.0.1+0123456789ab".to_owned(), 503),
    ] {
        assert_eq!(check_by(&stack, &wanted).await.status, status, "{wanted}");
    }
}

#[tokio::test]
async fn a_decision_is_not_given_again_once_another_policy_or_a_floor_is_active() {
    let stack = Stack::start().await;
    let repeated = async || send(stack.check_request(&json!({"goal": "g"})).header("idempotency-key", "once")).await;
    let until = async |status: u16| {
        stack.publish_change().await;
        for _ in 0..1_000 {
            if repeated().await.status == status {
                return true;
            }
        }
        false
    };
    let active = decided_by(&stack);
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(active.clone()));
    assert_eq!(repeated().await.status, 200);
    assert_eq!(repeated().await.json()["cached"], json!(true));
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(other()));
    assert!(until(503).await, "it is decided again, by an evaluator that does not have the policy");
    stack.services.change(TENANT, |identity| identity.rules.policy.default = Some(active));
    assert!(until(200).await);
    stack.services.change(TENANT, |identity| identity.rules.floor = Some(other()));
    assert!(until(503).await);
}

#[tokio::test]
async fn a_bad_request_is_reviewed_by_the_version_that_would_decide_it() {
    let mut stack = Stack::start().await;
    let mut reviews = stack
        .serve::<ReviewRequest>(|_| ReviewReply { errors: vec![FieldError::new("constraints[0]", "must be a window")] })
        .await;
    let own = decided_by(&stack);
    stack.services.change(TENANT, |identity| {
        identity.rules.policy.default = Some(other());
        identity.rules.policy.environments.insert("production".to_owned(), own.clone());
    });
    let bad = |more: &Value| {
        let mut body = json!({"goal": "", "constraints": ["allowed_change_window: pay_hours"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, version) in [
        (json!({}), other()),
        (json!({"environment": 5}), other()),
        (json!({"environment": "staging"}), other()),
        (json!({"environment": "prod"}), own.clone()),
        (json!({"environment": " ", "context": {"environment": "prod"}}), own.clone()),
    ] {
        let refused = stack.check(&bad(&more)).await;
        assert!(refused.bad_fields().contains(&"constraints[0]".to_owned()), "{}", refused.text);
        assert_eq!(reviews.recv().await.unwrap().policy, Some(version), "{more}");
    }
    let request = stack.request_as(OPERATOR, Method::POST, "/check").header("content-type", "application/json");
    stack.services.change(OPERATOR, |identity| identity.scopes = [stage0_contract::Scope::Check].into());
    send(request.body(bad(&json!({})).to_string())).await;
    assert_eq!(reviews.recv().await.unwrap().policy, None, "the evaluators' own");
}
