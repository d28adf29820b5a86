//! Calls about approvals: who may make them, what their bodies must be, and that changes are recorded.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    Approval, ApprovalChange, ApprovalChanged, ApprovalEvent, ApprovalHistory, ChangeApproval, EventRef, EventsSettled,
    ListApprovals, ManageReply, Page, ReadApprovalHistory, Refusal, SettleEvents, ShowApproval,
};
use stage0_gateway::PublicUrl;

use crate::failing_log::Appends;
use crate::harness::{MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, key, member, send};

const CHANGED: &str = include_str!("../../../contract/fixtures/approval_changed.json");
const HISTORY: &str = include_str!("../../../contract/fixtures/approval_history.json");
pub(crate) const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

pub(crate) fn changed() -> ApprovalChanged {
    let ManageReply::Done(changed) = serde_json::from_str(CHANGED).unwrap() else { panic!("the fixture has changed") };
    changed
}

pub(crate) fn event(kind: &str, event_id: u32) -> ApprovalEvent {
    let json = json!({
        "type": kind,
        "event_id": format!("0190163d-8694-7000-8000-{event_id:012x}"),
        "at": "2026-03-16T12:05:00Z",
        "approval_id": "apr_1",
        "action_digest": DIGEST,
    });
    serde_json::from_value(json).unwrap()
}

pub(crate) fn reference(event: &ApprovalEvent) -> EventRef {
    EventRef::of(event)
}

#[tokio::test]
async fn approvals_are_read_and_decided_by_those_with_the_scope_and_never_by_an_operator() {
    let stack = Stack::start().await;
    let forbidden = (403, "scope_missing".to_owned());
    for path in ["/v1/approvals", "/v1/approvals/apr_1", "/v1/approvals/apr_1/history", "/v1/grants"] {
        for number in [OPERATOR, MANAGER] {
            assert_eq!(stack.get(number, path).await.refusal(), forbidden, "{path}");
        }
        assert_eq!(send(stack.request(Method::GET, path)).await.status, 401);
    }
    for call in ["approve", "deny", "register", "cancel", "reopen", "outcome"] {
        let path = format!("/v1/approvals/apr_1/{call}");
        for number in [OPERATOR, MANAGER, READER] {
            let answer = send(stack.request_as(number, Method::POST, &path).body("not JSON")).await;
            assert_eq!(answer.refusal(), forbidden, "{call} by {number}");
        }
    }
    for (number, call) in
        [(TENANT, "approve"), (TENANT, "deny"), (TENANT, "reopen"), (MEMBER, "register"), (MEMBER, "outcome")]
    {
        let answer = stack.post(number, &format!("/v1/approvals/apr_1/{call}"), &json!({})).await;
        assert_eq!(answer.refusal(), forbidden, "{call} by {number}");
    }
}

#[tokio::test]
async fn a_refusal_names_every_bad_field_of_a_call_about_approvals() {
    let stack = Stack::start().await;
    let register = |services: &crate::harness::Services| {
        services.change(MEMBER, |identity| {
            identity.scopes.insert(stage0_contract::Scope::ApprovalsGrant);
        });
    };
    register(&stack.services);
    for (number, call, body, bad) in [
        (MEMBER, "approve", json!({}), vec!["action_digest"]),
        (
            MEMBER,
            "approve",
            json!({"action_digest": DIGEST.to_uppercase(), "reason": 1}),
            vec!["action_digest", "reason"],
        ),
        (MEMBER, "approve", json!({"action_digest": DIGEST, "digest": 1}), vec!["digest"]),
        (MEMBER, "deny", json!({"action_digest": DIGEST}), vec!["reason"]),
        (MEMBER, "deny", json!({"action_digest": DIGEST, "reason": "x".repeat(1_001)}), vec!["reason"]),
        (MEMBER, "deny", json!({"action_digest": DIGEST, "reason": "a\u{202e}b"}), vec!["reason"]),
        (MEMBER, "register", json!({"action_digest": DIGEST}), vec!["approved_by", "evidence"]),
        (
            MEMBER,
            "register",
            json!({"action_digest": DIGEST, "approved_by": ["Ada", " "], "evidence": "CHG-12"}),
            vec!["approved_by"],
        ),
        (MEMBER, "reopen", json!({}), vec!["reason"]),
        (TENANT, "cancel", json!({"why": "x"}), vec!["why"]),
        (TENANT, "outcome", json!({"status": "done"}), vec!["status"]),
    ] {
        let answer = stack.post(number, &format!("/v1/approvals/apr_1/{call}"), &body).await;
        assert_eq!(answer.bad_fields(), bad, "{call} {body}");
    }
    for (query, bad) in [
        ("?status=done", "status"),
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("/apr_1?wait=61s", "wait"),
        ("/apr_1?wait=30", "wait"),
        ("/apr_1/history?cursor=x", "cursor"),
    ] {
        assert_eq!(stack.get(TENANT, &format!("/v1/approvals{query}")).await.bad_fields(), [bad], "{query}");
    }
}

#[tokio::test]
async fn an_approval_is_listed_and_shown_under_the_public_address() {
    let public = PublicUrl::parse("https://stage0.example.com/api").unwrap();
    let mut stack = Stack::with(|config| config.public_url = Some(public)).await;
    let approval = changed().approval;
    let page = Page { items: vec![approval.clone()], next_cursor: None };
    let mut listed = stack.serve::<ListApprovals>(move |_| ManageReply::Done(page.clone())).await;
    stack.serve::<ShowApproval>(move |_| ManageReply::Done(approval.clone())).await;
    stack
        .serve::<ReadApprovalHistory>(|_| serde_json::from_str::<ManageReply<ApprovalHistory>>(HISTORY).unwrap())
        .await;
    let url = "https://stage0.example.com/api/v1/approvals/apr_1";
    let list = stack.get(READER, "/v1/approvals?status=pending&group=ops&limit=7").await.json();
    assert_eq!(list["items"][0]["url"], url);
    let asked = listed.recv().await.unwrap();
    assert_eq!((asked.limit, asked.group.as_deref(), asked.account.as_str()), (7, Some("ops"), "acc"));
    assert_eq!(asked.actor.key_id, *key(READER).id());
    stack.get(READER, "/v1/approvals").await;
    assert_eq!(listed.recv().await.unwrap().limit, 50);
    assert_eq!(stack.get(TENANT, "/v1/approvals/apr_1").await.json()["url"], url);
    let history = stack.get(TENANT, "/v1/approvals/apr_1/history").await;
    assert!(!history.json()["items"].as_array().unwrap().is_empty(), "{history:?}");
}

#[tokio::test]
async fn what_is_no_id_or_not_the_callers_is_a_404_and_what_the_state_forbids_a_409() {
    let mut stack = Stack::start().await;
    stack.serve::<ShowApproval>(|_| ManageReply::Refused(Refusal::NotFound)).await;
    stack.serve::<ChangeApproval>(|_| ManageReply::Refused(Refusal::Conflict("it is over".to_owned()))).await;
    for id in ["apr_foreign", "a.b"] {
        assert_eq!(stack.get(TENANT, &format!("/v1/approvals/{id}")).await.refusal(), (404, "not_found".to_owned()));
    }
    let body = json!({"action_digest": DIGEST, "reason": "no"});
    let answer = stack.post(MEMBER, "/v1/approvals/apr_1/deny", &body).await;
    assert_eq!((answer.refusal(), &answer.json()["message"]), ((409, "conflict".to_owned()), &json!("it is over")));
    assert_eq!(stack.post(MEMBER, "/v1/approvals/a.b/deny", &body).await.refusal().0, 404);
    assert!(stack.lines().await.is_empty(), "what was not done is not recorded");
}

#[tokio::test]
async fn a_vote_is_in_the_log_before_its_answer_and_its_event_is_settled() {
    let mut stack = Stack::start().await;
    let voted = event("approval.voted", 7);
    let mut reply = changed();
    reply.unrecorded.events = vec![voted.clone()];
    let mut asked = stack.serve::<ChangeApproval>(move |_| ManageReply::Done(reply.clone())).await;
    let mut settled = stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    let body = json!({"action_digest": DIGEST, "reason": "checked the plan"});
    let answer = stack.post(MEMBER, "/v1/approvals/apr_1/approve", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["id"], "apr_1");

    let ChangeApproval { account, actor, id, change, reason } = asked.recv().await.unwrap();
    assert_eq!((account.as_str(), id.as_str(), reason.as_str()), ("acc", "apr_1", "checked the plan"));
    assert!(matches!(change, ApprovalChange::Approve { action_digest } if action_digest.as_str() == DIGEST));
    assert_eq!((actor.holder.member, actor.can_record), (Some(member()), true));
    let lines = stack.lines().await;
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!((&line["type"], &line["account"]), (&json!("approval.voted"), &json!("acc")));
    assert_eq!((&line["event_id"], &line["chain"]["sequence"]), (&json!(voted.event_id), &json!(1)));
    let SettleEvents { account, recorded, released } = settled.recv().await.unwrap();
    assert_eq!((account.as_str(), recorded, released), ("acc", vec![reference(&voted)], None));
    let decisions = stack.get(TENANT, "/v1/decisions").await.json();
    assert_eq!(decisions["items"], json!([]), "a list of decisions has nothing else");
}

#[tokio::test]
async fn each_call_reaches_the_evaluator_as_its_change() {
    let mut stack = Stack::start().await;
    stack.services.change(MEMBER, |identity| {
        identity.scopes.insert(stage0_contract::Scope::ApprovalsGrant);
    });
    let reply = ApprovalChanged { unrecorded: Default::default(), ..changed() };
    let mut asked = stack.serve::<ChangeApproval>(move |_| ManageReply::Done(reply.clone())).await;
    let external = json!({"action_digest": DIGEST, "approved_by": ["Ada"], "evidence": "CHG-12"});
    for (number, call, body, wire) in [
        (MEMBER, "deny", json!({"action_digest": DIGEST, "reason": "no"}), json!({"deny": {"action_digest": DIGEST}})),
        (
            MEMBER,
            "register",
            external,
            json!({"register": {"action_digest": DIGEST, "external": {"approved_by": ["Ada"], "evidence": "CHG-12"}}}),
        ),
        (TENANT, "cancel", json!({}), json!({"cancel": {}})),
        (MEMBER, "reopen", json!({"reason": "nothing ran"}), json!({"reopen": {}})),
        (TENANT, "outcome", json!({"status": "succeeded"}), json!({"report": {"status": "succeeded"}})),
    ] {
        let answer = stack.post(number, &format!("/v1/approvals/apr_1/{call}"), &body).await;
        assert_eq!(answer.status, 200, "{call}: {}", answer.text);
        assert_eq!(serde_json::to_value(asked.recv().await.unwrap().change).unwrap(), wire, "{call}");
    }
    // A workload need not say why it takes something back.
    let bare = send(stack.request_as(TENANT, Method::POST, "/v1/approvals/apr_1/cancel")).await;
    assert_eq!(bare.status, 200, "{}", bare.text);
}

#[tokio::test]
async fn a_vote_that_is_not_known_to_be_recorded_does_not_count_yet_and_is_not_settled() {
    for appends in [Appends::Failed, Appends::Lost, Appends::Unacknowledged] {
        let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
        let mut reply = changed();
        reply.unrecorded.events = vec![event("approval.voted", 7)];
        stack.serve::<ChangeApproval>(move |_| ManageReply::Done(reply.clone())).await;
        let mut settled = stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
        stack.log.set(appends);
        let body = json!({"action_digest": DIGEST});
        let answer = stack.post(MEMBER, "/v1/approvals/apr_1/approve", &body).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{appends:?}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("does not count until it is"), "{appends:?}: {message}");
        stack.log.set(Appends::Acknowledged);
        assert_eq!(stack.post(MEMBER, "/v1/approvals/apr_1/approve", &body).await.status, 200, "{appends:?}");
        assert_eq!(settled.recv().await.unwrap().recorded.len(), 1);
        assert!(settled.try_recv().is_err(), "{appends:?}: the first attempt settled nothing");
    }
}

#[tokio::test]
async fn nothing_is_changed_while_a_process_may_not_be_able_to_read_its_line() {
    let mut stack = Stack::with(|config| config.single_process = false).await;
    let mut asked = stack.serve::<ChangeApproval>(|_| ManageReply::Failed).await;
    let approve = json!({"action_digest": DIGEST});
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let grant = json!({"key_id": key(TENANT).id(), "tool": "psql", "until": until, "reason": "migration"});
    for (path, body) in [
        ("/v1/approvals/apr_1/approve", approve),
        ("/v1/grants", grant),
        ("/v1/grants/grt_1/revoke", json!({"reason": "done"})),
        ("/v1/members/mem_1/delegate", json!({})),
        ("/v1/stops/stop_1/resume", json!({"reason": "fixed"})),
    ] {
        let answer = stack.post(MEMBER, path, &body).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        if path.starts_with("/v1/stops") {
            // Which stop it is must be known first.
            assert_eq!(answer.status, 503, "{}", answer.text);
            continue;
        }
        assert_eq!((answer.status.as_u16(), message.contains("nothing was changed")), (503, true), "{path}: {message}");
    }
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn an_answer_that_carries_no_event_writes_no_line() {
    let mut stack = Stack::start().await;
    let reply = ApprovalChanged { unrecorded: Default::default(), ..changed() };
    stack.serve::<ChangeApproval>(move |_| ManageReply::Done(reply.clone())).await;
    stack.log.fail(true);
    let answer = stack.post(MEMBER, "/v1/approvals/apr_1/approve", &json!({"action_digest": DIGEST})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let approval: Approval = serde_json::from_value(answer.json()).unwrap();
    assert_eq!(approval.url, "/v1/approvals/apr_1");
    assert_eq!(stack.lines().await, Vec::<Value>::new());
}
