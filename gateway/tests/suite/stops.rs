//! Stops: in which order they are stored and recorded, who resumes them, and what they do to a check in flight.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    Account, CreateStop, ListAccounts, ListStops, ManageReply, MaskText, MaskTextReply, Page, Refusal, ResumeStop,
    Scope, Stop,
};

use crate::harness::{MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, key, send};

pub(crate) fn stop(scope: &str, value: Option<&str>) -> Stop {
    let json = json!({
        "id": "stop_1", "account": "acc", "scope": scope, "value": value, "reason": "incident 12",
        "created_at": "2026-03-16T12:00:00Z", "until": null, "key_id": key(MEMBER).id(), "member_id": null});
    serde_json::from_value(json).unwrap()
}

/// As the evaluator masks: `hunter2` is the secret that its policy knows.
fn mask(message: &MaskText) -> MaskTextReply {
    MaskTextReply { text: message.text.replace("hunter2", "***") }
}

fn page(items: Vec<Stop>) -> ManageReply<Page<Stop>> {
    ManageReply::Done(Page { items, next_cursor: None })
}

#[tokio::test]
async fn only_those_with_the_scope_stop_and_a_bad_body_names_its_fields() {
    let stack = Stack::start().await;
    for number in [TENANT, READER] {
        let answer = send(stack.request_as(number, Method::POST, "/v1/stops").body("not JSON")).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()));
        let answer = stack.post(number, "/v1/stops/stop_1/resume", &json!({"reason": "fixed"})).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()));
    }
    let secret = format!("see {}", key(TENANT).expose());
    for (body, bad) in [
        (json!({}), vec!["reason", "scope"]),
        (json!({"scope": "world", "reason": ""}), vec!["reason", "scope"]),
        (json!({"scope": "account", "reason": secret}), vec!["reason"]),
        (json!({"scope": "tool", "value": secret, "reason": "x"}), vec!["value"]),
        (
            json!({"scope": "account", "reason": "a\u{2066}b", "until": "soon", "who": 1}),
            vec!["reason", "until", "who"],
        ),
    ] {
        let mut found = stack.post(MANAGER, "/v1/stops", &body).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, bad, "{body}");
    }
    let answer = stack.post(MEMBER, "/v1/stops/stop_1/resume", &json!({})).await;
    assert_eq!(answer.bad_fields(), ["reason"]);
}

#[tokio::test]
async fn a_stop_is_recorded_and_every_key_is_asked_for_again_before_it_is_used() {
    let mut stack = Stack::start().await;
    let services = Arc::clone(&stack.services);
    stack.serve::<MaskText>(mask).await;
    let mut created = stack
        .serve::<CreateStop>(move |_| {
            services.change(TENANT, |identity| identity.rules.stops = vec![stop("account", None)]);
            services.change(MANAGER, |identity| identity.rules.stops = vec![stop("account", None)]);
            ManageReply::Done(stop("account", None))
        })
        .await;
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200);
    let body = json!({"scope": "account", "reason": "incident 12, hunter2"});
    let answer = stack.post(MANAGER, "/v1/stops", &body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["id"]), (201, &json!("stop_1")), "{}", answer.text);
    assert_eq!(created.recv().await.unwrap().reason, "incident 12, ***");
    stack.check(&json!({"goal": "g"})).await;
    let asker = stack.services.evaluated.lock().unwrap().clone().unwrap().asker.unwrap();
    assert_eq!(asker.rules.stops.len(), 1, "the next check is judged with the stop");
    let lines = stack.lines().await;
    assert_eq!((lines.len(), &lines[1]["type"]), (3, &json!("stop.started")));
    assert_eq!((&lines[1]["stop_id"], &lines[1]["reason"]), (&json!("stop_1"), &json!("incident 12")));
    assert_eq!(lines[1]["actor"]["key_id"], json!(key(MANAGER).id()));
    assert_eq!(lines[1]["details"]["scope"], "account");
    // A caller whose checks are stopped may see why.
    let listed = stack.get(TENANT, "/v1/stops").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stop_holds_also_while_it_cannot_be_recorded_and_the_answer_says_so() {
    for readable in [true, false] {
        let mut stack = Stack::with(|config| {
            config.request_budget = Duration::from_millis(500);
            config.single_process = readable;
        })
        .await;
        let mut created = stack.serve::<CreateStop>(|_| ManageReply::Done(stop("account", None))).await;
        stack.log.fail(readable);
        let answer = stack.post(MANAGER, "/v1/stops", &json!({"scope": "account", "reason": "incident 12"})).await;
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert_eq!((answer.status.as_u16(), message.starts_with("the stop holds")), (503, true), "{message}");
        assert!(created.recv().await.is_some());
    }
}

#[tokio::test]
async fn a_resume_is_recorded_first_and_only_a_person_or_the_operator_makes_it() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    stack.serve::<ListStops>(|_| page(vec![stop("account", None)])).await;
    stack.serve::<MaskText>(mask).await;
    let mut resumed = stack.serve::<ResumeStop>(|_| ManageReply::Done(stop("account", None))).await;
    let (path, body) = ("/v1/stops/stop_1/resume", json!({"reason": "fixed"}));
    let workload = stack.post(MANAGER, path, &body).await;
    assert_eq!(workload.refusal(), (409, "conflict".to_owned()));
    stack.log.fail(true);
    let answer = stack.post(MEMBER, path, &body).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("still holds")), (503, true), "{message}");
    assert!(resumed.try_recv().is_err(), "what is not recorded is not resumed");
    stack.log.fail(false);
    let answer = stack.post(MEMBER, path, &body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["id"]), (200, &json!("stop_1")), "{}", answer.text);
    assert_eq!(resumed.recv().await.unwrap().reason, "fixed");
    let lines = stack.lines().await;
    assert_eq!((lines.len(), &lines[0]["type"], &lines[0]["reason"]), (1, &json!("stop.ended"), &json!("fixed")));
    assert_eq!(lines[0]["actor"]["member_id"], "mem_1");
}

#[tokio::test]
async fn a_stop_that_does_not_hold_any_more_is_resumed_without_a_line_and_a_foreign_one_is_a_404() {
    let mut stack = Stack::start().await;
    stack.serve::<ListStops>(|_| page(Vec::new())).await;
    let known = Arc::new(Mutex::new(true));
    let knowing = Arc::clone(&known);
    stack
        .serve::<ResumeStop>(move |_| match *knowing.lock().unwrap() {
            true => ManageReply::Done(stop("account", None)),
            false => ManageReply::Refused(Refusal::NotFound),
        })
        .await;
    let body = json!({"reason": "fixed"});
    assert_eq!(stack.post(MEMBER, "/v1/stops/stop_1/resume", &body).await.status, 200);
    *known.lock().unwrap() = false;
    for id in ["stop_2", "a.b"] {
        let answer = stack.post(MEMBER, &format!("/v1/stops/{id}/resume"), &body).await;
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
    }
    assert!(stack.lines().await.is_empty());
}

#[tokio::test]
async fn an_operator_resumes_a_stop_of_any_account_and_its_line_is_in_that_accounts_log() {
    let mut stack = Stack::start().await;
    let account: Account = serde_json::from_value(json!({
        "id": "acc", "name": "a", "plan": "free", "created_at": "2026-03-16T12:00:00Z", "retention_days": 7}))
    .unwrap();
    stack
        .serve::<ListAccounts>(move |_| ManageReply::Done(Page { items: vec![account.clone()], next_cursor: None }))
        .await;
    stack
        .serve::<ListStops>(|list| match &list.account {
            Some(_) => page(vec![stop("account", None)]),
            None => page(Vec::new()),
        })
        .await;
    let mut resumed = stack.serve::<ResumeStop>(|_| ManageReply::Done(stop("account", None))).await;
    let answer = stack.post(OPERATOR, "/v1/stops/stop_1/resume", &json!({"reason": "fixed"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(resumed.recv().await.unwrap().caller.scopes.contains(&Scope::Operator));
    let lines = stack.lines().await;
    let days = |line: &Value| {
        let recorded: jiff::Timestamp = line["recorded_at"].as_str().unwrap().parse().unwrap();
        (line["expires_at"].as_i64().unwrap() - recorded.as_second()) / 86_400
    };
    assert_eq!((lines.len(), days(&lines[0])), (1, 7));
}

#[tokio::test]
async fn a_stop_without_an_evaluator_holds_and_its_reason_is_left_out() {
    let mut stack = Stack::start().await;
    let mut created = stack.serve::<CreateStop>(|_| ManageReply::Done(stop("account", None))).await;
    let body = json!({"scope": "account", "reason": "incident 12, hunter2"});
    stack.post(MANAGER, "/v1/stops", &body).await;
    assert_eq!(created.recv().await.unwrap().reason, "(left out: it could not be searched for secrets)");
}
