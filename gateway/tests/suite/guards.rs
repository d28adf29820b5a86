//! Guards: their reports, who sees them, and who forgets them.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    ForgetGuard, Guard, GuardForgotten, GuardState, ListGuards, ManageReply, Page, Refusal, ReportGuard,
};

use crate::harness::{MANAGER, READER, Stack, TENANT, key, send};

const GUARD: &str = include_str!("../../../contract/fixtures/guard_reply_done.json");
const PAGE: &str = include_str!("../../../contract/fixtures/guard_page.json");

fn guard() -> ManageReply<Guard> {
    serde_json::from_str(GUARD).unwrap()
}

fn smallest() -> Value {
    json!({"guard_id": "g-1", "kind": "mcp", "version": "0.1.0", "next_within_seconds": 900})
}

#[tokio::test]
async fn a_report_reaches_the_evaluator_as_its_key_sent_it() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<ReportGuard>(|_| guard()).await;
    let body = json!({
        "guard_id": "laptop-7-claude-code", "kind": "claude-code", "version": "0.1.0", "agent_version": "2.1.332",
        "host": "laptop-7", "next_within_seconds": 604_800, "asked": 12, "refused": 3, "undecided": 2,
        "ran_undecided": 1,
    });
    let answer = stack.post(TENANT, "/v1/guards", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json(), serde_json::from_str::<Value>(GUARD).unwrap()["done"]);
    let asked_for = asked.recv().await.unwrap();
    assert_eq!((asked_for.account.as_str(), &asked_for.key_id), ("acc", key(TENANT).id()));
    let mut sent = serde_json::to_value(asked_for).unwrap();
    for ours in ["account", "key_id"] {
        sent.as_object_mut().unwrap().remove(ours);
    }
    assert_eq!(sent.as_object_mut().unwrap().remove("retention_days"), Some(json!(30)));
    assert_eq!(sent, body);
    // The rest is optional.
    let mut ending = smallest();
    ending["next_within_seconds"] = json!(0);
    assert_eq!(stack.post(TENANT, "/v1/guards", &ending).await.status, 200);
    let ending = asked.recv().await.unwrap();
    assert_eq!((ending.next_within_seconds, ending.host, ending.counts), (0, None, Default::default()));
}

#[tokio::test]
async fn every_bad_member_of_a_report_is_named() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<ReportGuard>(|_| guard()).await;
    let post = async |body: Value| stack.post(TENANT, "/v1/guards", &body).await;
    let missing = post(json!({"uptime": 1})).await.bad_fields();
    assert_eq!(missing, ["guard_id", "kind", "version", "next_within_seconds", "uptime"]);
    for (member, bad) in [
        ("guard_id", json!("a b")),
        ("guard_id", json!("x".repeat(65))),
        ("kind", json!("")),
        ("version", json!("rm;")),
        ("agent_version", json!("a b")),
        ("host", json!("x".repeat(65))),
        ("next_within_seconds", json!(604_801)),
        ("next_within_seconds", json!(-1)),
        ("next_within_seconds", json!(null)),
        ("asked", json!(-1)),
        ("refused", json!(1.5)),
        ("undecided", json!("1")),
        ("ran_undecided", json!(9_007_199_254_740_992_u64)),
    ] {
        let mut body = smallest();
        body[member] = bad;
        assert_eq!(post(body.clone()).await.bad_fields(), [member], "{body}");
    }
    assert!(asked.try_recv().is_err());
    for (member, good) in [("ran_undecided", json!(9_007_199_254_740_991_u64)), ("host", json!(null))] {
        let mut body = smallest();
        body[member] = good;
        assert_eq!(post(body.clone()).await.status, 200, "{body}");
    }
}

#[tokio::test]
async fn too_many_guards_are_a_conflict_and_a_silent_evaluator_a_503() {
    let mut stack = Stack::start().await;
    assert_eq!(stack.post(TENANT, "/v1/guards", &smallest()).await.status, 503);
    let full = "the account has 10000 guards".to_owned();
    stack.serve::<ReportGuard>(move |_| ManageReply::Refused(Refusal::Conflict(full.clone()))).await;
    assert_eq!(stack.post(TENANT, "/v1/guards", &smallest()).await.refusal(), (409, "conflict".to_owned()));
}

#[tokio::test]
async fn guards_are_listed_by_state_page_by_page() {
    let mut stack = Stack::start().await;
    let mut asked =
        stack.serve::<ListGuards>(|_| serde_json::from_str::<ManageReply<Page<Guard>>>(PAGE).unwrap()).await;
    let answer = stack.get(READER, "/v1/guards?state=silent&cursor=c&limit=7").await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()),
        (200, serde_json::from_str::<Value>(PAGE).unwrap()["done"].clone())
    );
    let ListGuards { account, state, cursor, limit } = asked.recv().await.unwrap();
    assert_eq!((account.as_str(), state, cursor.as_deref(), limit), ("acc", Some(GuardState::Silent), Some("c"), 7));
    assert_eq!(stack.get(READER, "/v1/guards").await.status, 200);
    let ListGuards { state, cursor, limit, .. } = asked.recv().await.unwrap();
    assert_eq!((state, cursor, limit), (None, None, 100));
    let bad = stack.get(READER, "/v1/guards?state=lost&limit=0&of=x").await.bad_fields();
    assert_eq!(bad, ["state", "limit", "of"]);
}

#[tokio::test]
async fn a_guard_is_forgotten_by_a_key_that_manages_keys() {
    let mut stack = Stack::start().await;
    let mut asked = stack
        .serve::<ForgetGuard>(|forget| match forget.guard_id.as_str() {
            "g-1" => ManageReply::Done(GuardForgotten {}),
            _ => ManageReply::Refused(Refusal::NotFound),
        })
        .await;
    let forget =
        async |number, id: &str| send(stack.request_as(number, Method::DELETE, &format!("/v1/guards/{id}"))).await;
    let answer = forget(TENANT, "g-1").await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
    assert_eq!(asked.recv().await.unwrap().account.as_str(), "acc");
    assert_eq!(forget(TENANT, "g-2").await.refusal(), (404, "not_found".to_owned()));
    asked.recv().await.unwrap();
    assert_eq!(forget(TENANT, "g.3").await.refusal(), (404, "not_found".to_owned()));
    assert!(asked.try_recv().is_err(), "what is no id names no guard");
}

#[tokio::test]
async fn each_call_of_guards_takes_its_own_scope() {
    let mut stack = Stack::start().await;
    stack.serve::<ReportGuard>(|_| guard()).await;
    for (number, method, path, scope) in [
        (READER, Method::POST, "/v1/guards", "check"),
        (MANAGER, Method::GET, "/v1/guards", "decisions:read"),
        (READER, Method::DELETE, "/v1/guards/g-1", "keys:manage"),
    ] {
        let request = stack.request_as(number, method.clone(), path).header("content-type", "application/json");
        let answer = send(request.body(smallest().to_string())).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{method} {path}");
        assert!(answer.text.contains(&format!("`{scope}`")), "{}", answer.text);
    }
    assert_eq!(stack.post(TENANT, "/v1/guards", &smallest()).await.status, 200);
}
