//! Members of bodies that came with approvals: what each may be, who may send it, and what reaches the keystore.
//!
//! The keystore of this suite judges nothing, so what is refused here is refused by the gateway alone, unless a test
//! says what the keystore answers. The keystore's own rules have their tests there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    Account, ApprovalMode, CreateWebhook, FieldError, GetWebhook, ManageReply, Refusal, Scope, UpdateAccount,
    UpdateWebhook, Webhook, WebhookCreated,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::harness::{Answer, MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, send};

const ACCOUNT: &str = include_str!("../../../contract/fixtures/account_reply_approvals.json");
const WEBHOOK: &str = include_str!("../../../contract/fixtures/webhook_reply_done.json");
const WEBHOOK_CREATED: &str = include_str!("../../../contract/fixtures/webhook_created.json");
const ENDPOINT: &str = "/v1/webhooks/wh_1";

/// Checks that exactly these members were refused, each with a text that says this.
#[track_caller]
fn refuses(answer: &Answer, bad: &[&str], says: &str) {
    let errors = answer.field_errors();
    let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, bad, "{}", answer.text);
    assert!(errors.iter().all(|error| error.message.contains(says)), "`{says}` in {}", answer.text);
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

/// A body that is no JSON, so that a refusal shows that it was not read.
async fn unread(stack: &Stack, number: u8, method: Method, path: &str) -> Answer {
    let request = stack.request_as(number, method, path).header("content-type", "application/json");
    send(request.body("not JSON")).await
}

#[tokio::test]
async fn an_owner_that_cannot_be_a_members_id_is_refused_before_a_key_is_made() {
    let stack = Stack::start().await;
    let body = json!({"name": "agent", "scopes": ["check"]});
    let long = "m".repeat(65);
    for bad in [json!(7), json!(true), json!([]), json!(["mem_1"]), json!({"id": "mem_1"}), json!(""), json!("a b")] {
        let answer = stack.post(TENANT, "/v1/keys", &with(body.clone(), "owner", bad)).await;
        refuses(&answer, &["owner"], "must be a member's id");
    }
    for bad in ["mem.1", "mem_1\n", "*", "mém", &long] {
        let answer = stack.post(TENANT, "/v1/keys", &with(body.clone(), "owner", json!(bad))).await;
        refuses(&answer, &["owner"], "must be a member's id");
        assert!(!answer.text.contains("mém") && !answer.text.contains(&long), "a refusal quotes no request");
    }
    let beside = with(with(body.clone(), "owner", json!("mem_1")), "owners", json!(["mem_1"]));
    refuses(&stack.post(TENANT, "/v1/keys", &beside).await, &["owners"], "is not known to this call");
    let both = with(with(body, "owner", json!(1)), "member", json!("mem_1"));
    assert_eq!(stack.post(TENANT, "/v1/keys", &both).await.bad_fields(), ["owner", "member"]);
    for number in [READER, MEMBER, MANAGER] {
        let answer = unread(&stack, number, Method::POST, "/v1/keys").await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "by {number}");
        assert!(answer.text.contains("keys:manage"), "{}", answer.text);
    }
    assert_eq!(stack.services.creations.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_key_is_made_for_the_owner_that_is_named_and_for_none_where_none_is() {
    let stack = Stack::start().await;
    let longest = "m".repeat(64);
    for (owner, asked) in [
        (Some(json!("mem_1")), Some("mem_1")),
        (Some(json!(longest)), Some(longest.as_str())),
        (Some(Value::Null), None),
        (None, None),
    ] {
        let mut body = json!({"name": "agent", "scopes": ["check"]});
        if let Some(owner) = owner {
            body["owner"] = owner;
        }
        let answer = stack.post(TENANT, "/v1/keys", &body).await;
        assert_eq!(answer.status, 201, "{body}: {}", answer.text);
        let created = stack.services.created.lock().unwrap().take().unwrap();
        assert_eq!(created.owner.as_ref().map(stage0_contract::MemberId::as_str), asked, "{body}");
    }
}

async fn updating(stack: &mut Stack) -> UnboundedReceiver<UpdateAccount> {
    stack.serve::<UpdateAccount>(|_| serde_json::from_str::<ManageReply<Account>>(ACCOUNT).unwrap()).await
}

#[tokio::test]
async fn rules_about_approvals_that_cannot_be_read_change_no_account() {
    let mut stack = Stack::start().await;
    let mut updated = updating(&mut stack).await;
    let path = "/v1/accounts/acc_1";
    for bad in
        [json!(7), json!(false), json!(["verified"]), json!(""), json!("both"), json!("Verified"), json!("caller ")]
    {
        let answer = stack.patch(OPERATOR, path, &json!({ "approvals": bad })).await;
        refuses(&answer, &["approvals"], "must be `caller` or `verified`");
        let answer = stack.post(OPERATOR, "/v1/accounts", &json!({"name": "n", "approvals": bad})).await;
        refuses(&answer, &["approvals"], "must be `caller` or `verified`");
    }
    for bad in [json!("false"), json!("off"), json!(0), json!([]), json!({})] {
        let answer = stack.patch(OPERATOR, path, &json!({ "four_eyes": bad })).await;
        refuses(&answer, &["four_eyes"], "must be `true` or `false`");
    }
    let beside = json!({"approvals": "verified", "four_eye": true});
    refuses(&stack.patch(OPERATOR, path, &beside).await, &["four_eye"], "is not known to this call");
    let both = json!({"approvals": "both", "four_eyes": "yes"});
    assert_eq!(stack.patch(OPERATOR, path, &both).await.bad_fields(), ["approvals", "four_eyes"]);
    let nothing = stack.patch(OPERATOR, path, &json!({})).await.bad_fields();
    assert!(["approvals", "four_eyes"].iter().all(|name| nothing.contains(&(*name).to_owned())), "{nothing:?}");
    for number in [TENANT, READER, MEMBER, MANAGER] {
        let answer = unread(&stack, number, Method::PATCH, path).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "by {number}");
    }
    assert!(updated.try_recv().is_err());
}

#[tokio::test]
async fn each_rule_about_approvals_is_changed_alone() {
    let mut stack = Stack::start().await;
    let mut updated = updating(&mut stack).await;
    for (body, approvals, four_eyes) in [
        (json!({"approvals": "verified"}), Some(ApprovalMode::Verified), None),
        (json!({"approvals": "caller", "four_eyes": null}), Some(ApprovalMode::Caller), None),
        (json!({"four_eyes": false}), None, Some(false)),
        (json!({"approvals": null, "four_eyes": true}), None, Some(true)),
    ] {
        let answer = stack.patch(OPERATOR, "/v1/accounts/acc_1", &body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        let update = updated.recv().await.unwrap();
        assert_eq!((update.account.as_str(), update.approvals, update.four_eyes), ("acc_1", approvals, four_eyes));
        assert_eq!((update.plan, update.require_run_id, update.retention_days), (None, None, None), "{body}");
    }
}

#[tokio::test]
async fn the_next_check_after_the_answer_is_judged_by_the_accounts_new_rules() {
    let mut stack = Stack::start().await;
    let services = Arc::clone(&stack.services);
    stack
        .serve::<UpdateAccount>(move |_| {
            services.change(TENANT, |identity| identity.rules.approvals = ApprovalMode::Verified);
            let mut reply: Value = serde_json::from_str(ACCOUNT).unwrap();
            reply["done"]["id"] = json!("acc");
            serde_json::from_value(reply).unwrap()
        })
        .await;
    let judged_by = async || {
        assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200);
        stack.services.evaluated.lock().unwrap().clone().unwrap().asker.unwrap().rules.approvals
    };
    assert_eq!(judged_by().await, ApprovalMode::Caller);
    let answer = stack.patch(OPERATOR, "/v1/accounts/acc", &json!({"approvals": "verified"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(judged_by().await, ApprovalMode::Verified);
}

/// The stored endpoint, with a filter of each kind.
fn webhook() -> Webhook {
    let mut reply: Value = serde_json::from_str(WEBHOOK).unwrap();
    reply["done"]["events"] = json!(["approval.*"]);
    serde_json::from_value(reply["done"].take()).unwrap()
}

/// A keystore that shows the endpoint to callers with the scope, and changes it without another look at the caller.
async fn changing(stack: &mut Stack) -> UnboundedReceiver<UpdateWebhook> {
    stack
        .serve::<GetWebhook>(|get| match get.caller.scopes.contains(&Scope::WebhooksManage) {
            true => ManageReply::Done(webhook()),
            false => ManageReply::Refused(Refusal::ScopeMissing(Scope::WebhooksManage)),
        })
        .await;
    stack.serve::<UpdateWebhook>(|_| ManageReply::Done(webhook())).await
}

async fn creating(stack: &mut Stack) -> UnboundedReceiver<CreateWebhook> {
    stack
        .serve::<CreateWebhook>(|create| match create.filters.events.as_ref().map_or(1, Vec::len) {
            1..=100 => serde_json::from_str::<ManageReply<WebhookCreated>>(WEBHOOK_CREATED).unwrap(),
            _ => {
                let error = FieldError::new("events", "must have 1 to 100 items");
                ManageReply::Refused(Refusal::Invalid(vec![error]))
            }
        })
        .await
}

#[tokio::test]
async fn a_filter_of_events_names_each_item_that_no_event_has() {
    let mut stack = Stack::start().await;
    let (mut created, mut updated) = (creating(&mut stack).await, changing(&mut stack).await);
    let url = json!({"url": "https://hooks.example.com/in"});
    for (events, bad, says) in [
        (json!("approval.*"), vec!["events"], "must be an array"),
        (json!(7), vec!["events"], "must be an array"),
        (json!({"approval": true}), vec!["events"], "must be an array"),
        (json!([null]), vec!["events[0]"], "such as `approval.requested`"),
        (json!([["approval.*"]]), vec!["events[0]"], "such as `approval.requested`"),
        (json!(["", "approval.requested"]), vec!["events[0]"], "such as `approval.requested`"),
        (json!(["stop.*", "Approval.*", "stop.started "]), vec!["events[1]", "events[2]"], "such as `approval.*`"),
        (json!(["decisions.expired", "approval.used"]), vec!["events[0]"], "such as `approval.*`"),
    ] {
        let answer = stack.post(TENANT, "/v1/webhooks", &with(url.clone(), "events", events.clone())).await;
        refuses(&answer, &bad, says);
        refuses(&stack.patch(TENANT, ENDPOINT, &json!({ "events": events })).await, &bad, says);
    }
    for body in [json!({"events": ["stop.*"], "event": "stop.*"}), json!({"events": null, "event": null})] {
        refuses(&stack.patch(TENANT, ENDPOINT, &body).await, &["event"], "is not known to this call");
        let body = with(body, "url", url["url"].clone());
        refuses(&stack.post(TENANT, "/v1/webhooks", &body).await, &["event"], "is not known to this call");
    }
    // However many are wrong, the answer stays small, and says how many it leaves out.
    let answer = stack.patch(TENANT, ENDPOINT, &json!({"events": vec!["x"; 5_000]})).await;
    assert_eq!(answer.bad_fields().len(), 200);
    assert!(answer.json()["message"].as_str().unwrap().contains("4800"), "{}", answer.json()["message"]);
    assert!(created.try_recv().is_err() && updated.try_recv().is_err());
}

#[tokio::test]
async fn an_empty_or_too_long_filter_of_events_is_no_absent_one_and_the_keystores_refusal_is_the_answer() {
    let mut stack = Stack::start().await;
    let mut created = creating(&mut stack).await;
    for count in [0, 101, 1, 100] {
        let events = vec!["approval.used"; count];
        let body = json!({"url": "https://hooks.example.com/in", "events": events});
        let answer = stack.post(TENANT, "/v1/webhooks", &body).await;
        if (1..=100).contains(&count) {
            assert_eq!(answer.status, 201, "{count}: {}", answer.text);
        } else {
            refuses(&answer, &["events"], "must have 1 to 100 items");
        }
        let asked = created.recv().await.unwrap().filters;
        assert_eq!(asked.events.map(|events| events.len()), Some(count));
    }
    for body in [json!({"events": null}), json!({})] {
        let answer = stack.post(TENANT, "/v1/webhooks", &with(body, "url", json!("https://h.example/"))).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        assert_eq!(created.recv().await.unwrap().filters.events, None);
    }
}

#[tokio::test]
async fn a_filter_of_events_is_changed_and_removed_without_the_other_filters() {
    let mut stack = Stack::start().await;
    let mut updated = changing(&mut stack).await;
    let kept = webhook().filters;
    assert!(kept.verdicts.is_some() && kept.environments.is_some() && kept.events.is_some());
    let of = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    for (body, events) in [
        (json!({"events": ["stop.*", "decision.recorded"]}), of(&["stop.*", "decision.recorded"])),
        (json!({"events": []}), of(&[])),
        (json!({"events": null}), None),
        (json!({"verdicts": kept.verdicts}), kept.events.clone()),
    ] {
        let answer = stack.patch(TENANT, ENDPOINT, &body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        let filters = updated.recv().await.unwrap().filters.unwrap();
        assert_eq!((filters.verdicts, filters.environments), (kept.verdicts.clone(), kept.environments.clone()));
        assert_eq!(filters.events, events, "{body}");
    }
    stack.patch(TENANT, ENDPOINT, &json!({"description": "pager"})).await;
    assert_eq!(updated.recv().await.unwrap().filters, None, "what is not named stays as it is stored");
}

#[tokio::test]
async fn a_caller_without_the_right_sets_no_filter_and_its_body_is_not_read() {
    let mut stack = Stack::start().await;
    let (mut created, mut updated) = (creating(&mut stack).await, changing(&mut stack).await);
    for number in [READER, MEMBER, MANAGER] {
        for (method, path) in [(Method::POST, "/v1/webhooks"), (Method::PATCH, ENDPOINT)] {
            let answer = unread(&stack, number, method, path).await;
            assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path} by {number}");
            assert!(answer.text.contains("webhooks:manage"), "{}", answer.text);
        }
    }
    assert!(created.try_recv().is_err() && updated.try_recv().is_err());
}
