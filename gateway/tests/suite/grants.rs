//! Wider grants.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_contract::{ChangeGrant, CreateGrant, GrantChanged, ManageReply};

use crate::approvals::event;
use crate::harness::{MEMBER, OPERATOR, Stack, TENANT, key};

const CHANGED: &str = include_str!("../../../contract/fixtures/grant_changed.json");

fn changed() -> ManageReply<GrantChanged> {
    let mut reply = serde_json::from_str(CHANGED).unwrap();
    if let ManageReply::Done(GrantChanged { unrecorded, .. }) = &mut reply {
        unrecorded.events = vec![event("approval.granted", 3)];
    }
    reply
}

fn in_minutes(minutes: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_mins(minutes)
}

#[tokio::test]
async fn a_grant_is_for_a_workload_of_the_account_whose_holder_the_keystore_names() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<CreateGrant>(|_| changed()).await;
    let body =
        |key_id: Value| json!({"key_id": key_id, "tool": "psql", "until": in_minutes(60), "reason": "migration"});
    for foreign in [json!(key(OPERATOR).id()), json!("unknown")] {
        let answer = stack.post(MEMBER, "/v1/grants", &body(foreign)).await;
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
    }
    let answer = stack.post(MEMBER, "/v1/grants", &body(json!(key(TENANT).id()))).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["id"]), (201, &json!("grt_1")), "{}", answer.text);
    let CreateGrant { holder, actor, .. } = asked.recv().await.unwrap();
    assert_eq!((holder.unwrap().workload, actor.key_id), (key(TENANT).id().clone(), key(MEMBER).id().clone()));
    assert!(asked.try_recv().is_err());
    let lines = stack.lines().await;
    assert_eq!((lines.len(), &lines[0]["type"]), (1, &json!("approval.granted")));
}

#[tokio::test]
async fn a_grant_is_narrow_short_and_has_a_reason() {
    let stack = Stack::start().await;
    let whole = json!({"key_id": key(TENANT).id(), "run_id": "r", "until": in_minutes(60), "reason": "migration"});
    let with = |name: &str, value: Value| {
        let mut body = whole.clone();
        body[name] = value;
        body
    };
    for (body, bad) in [
        (with("run_id", Value::Null), vec![]),
        (with("until", json!(in_minutes(9 * 60))), vec!["until"]),
        (with("until", json!(in_minutes(-1))), vec!["until"]),
        (with("until", Value::Null), vec!["until"]),
        (with("reason", json!(" ")), vec!["reason"]),
        (with("effects", json!([])), vec!["effects"]),
        (with("effects", json!([""])), vec!["effects"]),
        (with("key_id", json!("a b")), vec!["key_id"]),
        (with("holder", json!({"workload": "k"})), vec!["holder"]),
    ] {
        let answer = stack.post(MEMBER, "/v1/grants", &body).await;
        if bad.is_empty() {
            // Null is absent.
            assert_eq!(answer.bad_fields(), ["run_id", "tool", "effects"], "{body}");
        } else {
            assert_eq!(answer.bad_fields(), bad, "{body}");
        }
    }
    let answer = stack.post(TENANT, "/v1/grants", &whole).await;
    assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()));
}

#[tokio::test]
async fn a_grant_is_approved_and_revoked_with_a_reason() {
    let mut stack = Stack::start().await;
    let mut asked = stack.serve::<ChangeGrant>(|_| changed()).await;
    for call in ["approve", "revoke"] {
        let path = format!("/v1/grants/grt_1/{call}");
        assert_eq!(stack.post(MEMBER, &path, &json!({})).await.bad_fields(), ["reason"]);
        let answer = stack.post(MEMBER, &path, &json!({"reason": "done"})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(serde_json::to_value(asked.recv().await.unwrap().change).unwrap(), call);
    }
    let answer = stack.post(MEMBER, "/v1/grants/a.b/revoke", &json!({"reason": "done"})).await;
    assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
}
