//! Policies of every account: an operator says so, and another key cannot.

use reqwest::Method;
use serde_json::json;
use stage0_contract::{ActivationDone, ForgetPolicy, ManageReply, PolicyForgotten, RollbackPolicy};

use crate::harness::{MANAGER, OPERATOR, Stack, send};

const ROLLBACK: &str = "/v1/policies/rollback";
const VERSION: &str = "/v1/policies/acme@1.2.0+0123456789ab";

fn rolled_back() -> ManageReply<ActivationDone> {
    serde_json::from_str(include_str!("../../../contract/fixtures/activation_done.json")).unwrap()
}

#[tokio::test]
async fn an_operators_change_names_an_account_or_says_all_of_them() {
    let mut stack = Stack::start().await;
    let mut calls = stack.serve::<RollbackPolicy>(|_| rolled_back()).await;
    for (body, path) in [
        (json!({}), "account"),
        (json!({"all_accounts": false}), "account"),
        (json!({"account": "acc", "all_accounts": true}), "all_accounts"),
        (json!({"all_accounts": "true"}), "all_accounts"),
    ] {
        let answer = stack.post(OPERATOR, ROLLBACK, &body).await;
        assert_eq!((answer.status.as_u16(), answer.bad_fields()[0].as_str()), (422, path), "{body}");
    }
    assert!(calls.try_recv().is_err(), "nothing is asked of the keystore");
    for (body, account) in [(json!({"account": "acc"}), Some("acc")), (json!({"all_accounts": true}), None)] {
        assert_eq!(stack.post(OPERATOR, ROLLBACK, &body).await.status.as_u16(), 200, "{body}");
        let asked = calls.recv().await.unwrap();
        assert_eq!(asked.account.as_ref().map(|account| account.as_str()), account);
        calls.recv().await.unwrap();
    }
    assert_eq!(stack.post(OPERATOR, ROLLBACK, &json!({"floor": true})).await.status.as_u16(), 200, "it is of all");
}

#[tokio::test]
async fn a_key_of_an_account_cannot_say_all_accounts() {
    let mut stack = Stack::start().await;
    let mut calls = stack.serve::<RollbackPolicy>(|_| rolled_back()).await;
    let answer = stack.post(MANAGER, ROLLBACK, &json!({"all_accounts": true})).await;
    assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()));
    assert!(calls.try_recv().is_err());
    assert_eq!(stack.post(MANAGER, ROLLBACK, &json!({"all_accounts": false})).await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_version_of_every_account_is_deleted_only_where_the_operator_says_so() {
    let mut stack = Stack::start().await;
    let forgotten = || ManageReply::Done(PolicyForgotten { account: None, retention_days: 7 });
    let mut calls = stack.serve::<ForgetPolicy>(move |_| forgotten()).await;
    let refused = send(stack.request_as(OPERATOR, Method::DELETE, VERSION)).await;
    assert_eq!(refused.bad_fields(), ["account"]);
    assert!(calls.try_recv().is_err());
    let path = format!("{VERSION}?all_accounts=true");
    let deleted = send(stack.request_as(OPERATOR, Method::DELETE, &path)).await;
    assert_eq!(deleted.status.as_u16(), 204, "{}", deleted.text);
    assert!(calls.recv().await.unwrap().account.is_none());
    let refused = send(stack.request_as(MANAGER, Method::DELETE, &path)).await;
    assert_eq!(refused.refusal(), (403, "scope_missing".to_owned()));
}
