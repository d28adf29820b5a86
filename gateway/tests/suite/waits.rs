//! Reading an approval with `wait`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use stage0_contract::{Approval, ApprovalStatus, ApprovalsChanged, ManageReply, ShowApproval};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::approvals::changed;
use crate::harness::{Stack, TENANT, key, send};

async fn pending() -> (Stack, Arc<Mutex<Approval>>, UnboundedReceiver<ShowApproval>) {
    let mut stack = Stack::with(|config| config.reads_per_second_per_account = None).await;
    let approval = Arc::new(Mutex::new(changed().approval));
    let shown = Arc::clone(&approval);
    let asked = stack.serve::<ShowApproval>(move |_| ManageReply::Done(shown.lock().unwrap().clone())).await;
    (stack, approval, asked)
}

fn notice() -> ApprovalsChanged {
    ApprovalsChanged { account: "acc".to_owned().try_into().unwrap(), ids: vec![changed().approval.id] }
}

#[tokio::test]
async fn a_wait_ends_when_the_approval_changes() {
    let (stack, approval, mut asked) = pending().await;
    let request = stack.request_as(TENANT, reqwest::Method::GET, "/v1/approvals/apr_1?wait=60s");
    let began = Instant::now();
    let waiting = tokio::spawn(send(request));
    assert_eq!(asked.recv().await.unwrap().wait, None);
    // A notice without a change ends no wait.
    stack.bus.connect().notices.publish(&notice()).await.unwrap();
    asked.recv().await.unwrap();
    approval.lock().unwrap().status = ApprovalStatus::Approved;
    stack.bus.connect().notices.publish(&notice()).await.unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("approved")));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_approval_that_is_not_pending_is_shown_at_once_and_a_pending_one_after_the_time() {
    let (stack, approval, _asked) = pending().await;
    let began = Instant::now();
    let answer = stack.get(TENANT, "/v1/approvals/apr_1?wait=1s").await;
    assert_eq!(answer.json()["status"], "pending");
    assert!(began.elapsed() >= Duration::from_secs(1));
    approval.lock().unwrap().status = ApprovalStatus::Denied;
    let began = Instant::now();
    let answer = stack.get(TENANT, "/v1/approvals/apr_1?wait=60s").await;
    assert_eq!(answer.json()["status"], "denied");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_key_may_wait_so_often_and_a_client_that_disconnects_frees_its_place() {
    let (stack, _approval, mut asked) = pending().await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let request = stack.request_as(TENANT, reqwest::Method::GET, "/v1/approvals/apr_1?wait=60s");
        waiting.push(tokio::spawn(send(request)));
        asked.recv().await.unwrap();
    }
    let refused = stack.get(TENANT, "/v1/approvals/apr_1?wait=1s").await;
    assert_eq!(refused.refusal(), (429, "rate_limited".to_owned()));
    assert_eq!((refused.header("retry-after"), &refused.json()["retry_after_seconds"]), (Some("5"), &json!(5)));
    assert_eq!(stack.get(TENANT, "/v1/approvals/apr_1").await.status, 200, "without waiting it is shown");
    waiting.pop().unwrap().abort();
    // The gateway learns of the disconnection a moment later.
    let mut answer = stack.get(TENANT, "/v1/approvals/apr_1?wait=1s").await;
    for _ in 0..1_000 {
        if answer.status == 200 {
            break;
        }
        answer = stack.get(TENANT, "/v1/approvals/apr_1?wait=1s").await;
    }
    assert_eq!(answer.status, 200);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_key_that_is_revoked_meanwhile_gets_no_answer() {
    let (stack, approval, mut asked) = pending().await;
    let request = stack.request_as(TENANT, reqwest::Method::GET, "/v1/approvals/apr_1?wait=60s");
    let waiting = tokio::spawn(send(request));
    asked.recv().await.unwrap();
    stack.services.revoke(TENANT);
    let revoked = stage0_contract::KeyChanged::One {
        account: "acc".to_owned().try_into().unwrap(),
        key_id: key(TENANT).id().clone(),
    };
    stack.bus.connect().notices.publish(&revoked).await.unwrap();
    // The two notices travel different ways: the call has had its answer taken away once it ends in a refusal.
    approval.lock().unwrap().status = ApprovalStatus::Approved;
    let mut read = stack.get(TENANT, "/usage").await;
    while read.status == 200 {
        read = stack.get(TENANT, "/usage").await;
    }
    stack.bus.connect().notices.publish(&notice()).await.unwrap();
    assert_eq!(waiting.await.unwrap().refusal(), (401, "unauthorized".to_owned()));
}
