//! Members and invitations.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    AcceptInvitation, DelegateMember, InviteMember, ManageReply, Member, MemberInvited, MemberRemoved, Refusal,
    RemoveMember,
};

use crate::harness::{MANAGER, MEMBER, READER, Stack, TENANT, send};

const CODE: &str = "inv_0123456789abcdefghjkmnpqrstvwxyz";
const INVITED: &str = include_str!("../../../contract/fixtures/member_invited.json");
const ACCEPTED: &str = include_str!("../../../contract/fixtures/invitation_accepted.json");
const CHANGED: &str = include_str!("../../../contract/fixtures/member_reply_done.json");

async fn accept(stack: &Stack, code: &str) -> crate::harness::Answer {
    let request = stack.request(Method::POST, "/v1/invitations/accept").header("content-type", "application/json");
    send(request.body(json!({ "code": code }).to_string())).await
}

#[tokio::test]
async fn only_those_with_the_scope_manage_members_and_a_bad_body_names_its_fields() {
    let stack = Stack::start().await;
    for (method, path) in
        [(Method::GET, "/v1/members"), (Method::POST, "/v1/members"), (Method::PATCH, "/v1/members/mem_1")]
    {
        for number in [TENANT, READER] {
            let answer = send(stack.request_as(number, method.clone(), path)).await;
            assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path}");
        }
    }
    for (path, body, bad) in [
        ("/v1/members", json!({"groups": ["ops", 1], "scopes": ["root"]}), vec!["groups[1]", "name", "scopes[0]"]),
        ("/v1/members", json!({"name": "Ada", "valid_seconds": -1, "email": "x"}), vec!["email", "valid_seconds"]),
        ("/v1/members/mem_1/delegate", json!({"to": "mem_2"}), vec!["until"]),
        ("/v1/members/mem_1/delegate", json!({"until": "2026-12-24T08:00:00Z"}), vec!["to"]),
        ("/v1/members/mem_1/delegate", json!({"to": "a b", "until": "soon"}), vec!["to", "until"]),
    ] {
        let mut found = stack.post(MANAGER, path, &body).await.bad_fields();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, bad, "{path} {body}");
    }
    let nothing = stack.patch(MANAGER, "/v1/members/mem_1", &json!({})).await;
    assert_eq!(nothing.bad_fields(), ["name", "mail", "groups"]);
}

#[tokio::test]
async fn an_invitation_is_made_once_under_its_idempotency_key() {
    let mut stack = Stack::start().await;
    let reply = || serde_json::from_str::<ManageReply<MemberInvited>>(INVITED).unwrap();
    let mut invited = stack.serve::<InviteMember>(move |_| reply()).await;
    let body = json!({"name": "Ada", "groups": ["release-managers"]}).to_string();
    let invite = async || {
        let request = stack.request_as(MANAGER, Method::POST, "/v1/members").header("content-type", "application/json");
        send(request.header("idempotency-key", "once").body(body.clone())).await
    };
    let (first, second) = (invite().await, invite().await);
    assert_eq!((first.status.as_u16(), first.text == second.text), (201, true), "{}", first.text);
    let InviteMember { name, groups, scopes, valid_seconds, .. } = invited.recv().await.unwrap();
    assert_eq!(
        (name.as_str(), groups, scopes, valid_seconds),
        ("Ada", vec!["release-managers".to_owned()], None, 86_400)
    );
    assert!(invited.try_recv().is_err());
}

#[tokio::test]
async fn a_wrong_code_counts_like_a_failed_login_of_its_address() {
    let mut stack = Stack::with(|config| config.failed_logins_per_minute = 3).await;
    let mut asked = stack.serve::<AcceptInvitation>(|_| ManageReply::Refused(Refusal::NotFound)).await;
    assert_eq!(accept(&stack, "inv_short").await.bad_fields(), ["code"]);
    for _ in 0..3 {
        assert_eq!(accept(&stack, CODE).await.refusal(), (404, "not_found".to_owned()));
        assert!(asked.recv().await.is_some());
    }
    let refused = accept(&stack, CODE).await;
    assert_eq!(refused.refusal(), (429, "too_many_failed_logins".to_owned()));
    assert!(refused.header("retry-after").is_some() && asked.try_recv().is_err());
}

#[tokio::test]
async fn a_code_makes_a_key_without_a_key_and_without_failed_logins() {
    let mut stack = Stack::with(|config| config.failed_logins_per_minute = 1).await;
    stack.serve::<AcceptInvitation>(|_| serde_json::from_str(ACCEPTED).unwrap()).await;
    for _ in 0..3 {
        let answer = accept(&stack, CODE).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["id"]), (201, &json!("mem_1")), "{}", answer.text);
        assert!(answer.json()["key"].as_str().unwrap().starts_with("s0_"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_delegation_is_recorded_without_names() {
    let mut stack = Stack::start().await;
    let until = "2026-12-24T08:00:00Z";
    let reply = move || {
        let mut json: Value = serde_json::from_str(CHANGED).unwrap();
        json["done"]["account"] = json!("acc");
        json["done"]["delegate"] = json!({"to": "mem_2", "until": until});
        serde_json::from_value::<ManageReply<Member>>(json).unwrap()
    };
    let mut asked = stack.serve::<DelegateMember>(move |_| reply()).await;
    // A member needs no scope for itself; whether it may is judged by the keystore.
    let answer = stack.post(TENANT, "/v1/members/mem_1/delegate", &json!({"to": "mem_2", "until": until})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(asked.recv().await.unwrap().to.unwrap().as_str(), "mem_2");
    let lines = stack.lines().await;
    assert_eq!((lines.len(), &lines[0]["type"]), (1, &json!("approval.delegated")));
    assert_eq!(lines[0]["details"], json!({"member_id": "mem_1", "to": "mem_2", "until": until}));
    assert!(!lines[0].to_string().contains("Ada"));
    stack.log.fail(true);
    let answer = stack.post(TENANT, "/v1/members/mem_1/delegate", &json!({})).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.starts_with("the change holds")), (503, true), "{message}");
}

#[tokio::test]
async fn a_member_that_removes_itself_is_answered_and_its_key_ends() {
    let mut stack = Stack::start().await;
    let services = std::sync::Arc::clone(&stack.services);
    stack
        .serve::<RemoveMember>(move |_| {
            services.revoke(MEMBER);
            ManageReply::Done(MemberRemoved {})
        })
        .await;
    let answer = send(stack.request_as(MEMBER, Method::DELETE, "/v1/members/mem_1")).await;
    assert_eq!(answer.status, 204, "{}", answer.text);
    let unknown = send(stack.request_as(MANAGER, Method::DELETE, "/v1/members/a.b")).await;
    assert_eq!(unknown.refusal(), (404, "not_found".to_owned()));
}
