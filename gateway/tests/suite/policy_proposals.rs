//! Activations that wait for a second member: what is recorded when, and what is not.

use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, ActivationDone, ComparePolicies, ComparePoliciesReply, DecideProposal, ListProposals, ManageReply,
    MaskText, MaskTextReply, Page, PolicyComparison, PolicyProposal, ProposalDecided, ProposalDecision, ProposalStatus,
    Refusal, ShowProposal, UpdateAccount,
};

use crate::harness::{MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, key, send};

const ACTIVATED: &str = include_str!("../../../contract/fixtures/activation_done.json");
const PROPOSED: &str = include_str!("../../../contract/fixtures/activation_done_proposed.json");
const DECIDED: &str = include_str!("../../../contract/fixtures/proposal_decided.json");
const DENIED: &str = include_str!("../../../contract/fixtures/proposal_decided_denied.json");
const COMPARISON: &str = include_str!("../../../contract/fixtures/policy_comparison.json");
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";
const PROPOSALS: &str = "/v1/policies/proposals";
const APPROVE: &str = "/v1/policies/proposals/prop_1/approve";
const DENY: &str = "/v1/policies/proposals/prop_1/deny";
const CANCEL: &str = "/v1/policies/proposals/prop_1/cancel";

fn done<T: serde::de::DeserializeOwned>(fixture: &str) -> T {
    match serde_json::from_str::<ManageReply<T>>(fixture).unwrap() {
        ManageReply::Done(done) => done,
        _ => panic!("the fixture has changed"),
    }
}

/// As the keystore answers a call of the suite's own account.
fn proposed(call: &ActivatePolicy, is_new: bool) -> ManageReply<ActivationDone> {
    let mut proposed: ActivationDone = done(PROPOSED);
    proposed.is_new = call.is_trial || is_new;
    let proposal = proposed.proposal.as_mut().unwrap();
    proposal.account = "acc".to_owned().try_into().unwrap();
    proposal.reason.clone_from(&call.reason);
    proposal.accepted_flips = call.accept_flips;
    ManageReply::Done(proposed)
}

fn decided(fixture: &str, status: ProposalStatus, is_new: bool) -> ManageReply<ProposalDecided> {
    let mut decided: ProposalDecided = done(fixture);
    let account: stage0_contract::AccountId = "acc".to_owned().try_into().unwrap();
    decided.activation.iter_mut().for_each(|activation| activation.account = Some(account.clone()));
    decided.proposal.account = account;
    decided.proposal.status = status;
    decided.is_new = is_new;
    if status != ProposalStatus::Approved {
        decided.activation = None;
    }
    ManageReply::Done(decided)
}

async fn start() -> Stack {
    let mut stack = Stack::start().await;
    stack.serve::<MaskText>(|mask| MaskTextReply { text: mask.text.replace("hunter2", "***") }).await;
    let comparison: PolicyComparison = serde_json::from_str(COMPARISON).unwrap();
    stack.serve::<ComparePolicies>(move |_| ComparePoliciesReply::Compared(Box::new(comparison.clone()))).await;
    stack
}

/// What accepts what the comparison says.
fn accepting() -> Value {
    let comparison: PolicyComparison = serde_json::from_str(COMPARISON).unwrap();
    json!({"accept_flips": comparison.flips, "reason": "try hunter2"})
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_activation_that_needs_a_second_member_is_judged_proposed_and_recorded_as_such() {
    let mut stack = start().await;
    let is_new = Arc::new(Mutex::new(true));
    let being_new = Arc::clone(&is_new);
    let mut calls = stack.serve::<ActivatePolicy>(move |call| proposed(call, *being_new.lock().unwrap())).await;
    let refused = stack.post(MANAGER, ACTIVATE, &json!({"reason": "nothing is accepted"})).await;
    assert_eq!(refused.refusal(), (409, "conflict".to_owned()), "the gate stands before the proposal");
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    let answer = stack.post(MANAGER, ACTIVATE, &accepting()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["proposal"]["status"]), (202, &json!("pending")));
    let trial = calls.recv().await.unwrap();
    assert!(trial.is_trial && !trial.proposes);
    let real = calls.recv().await.unwrap();
    assert!(real.proposes && !real.is_trial && real.judged.is_some());
    assert_eq!((real.reason.as_deref(), real.accept_flips.is_some()), (Some("try ***"), true));
    *is_new.lock().unwrap() = false;
    assert_eq!(stack.post(MANAGER, ACTIVATE, &accepting()).await.status, 202);
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.proposed", "policy.proposed"]);
    assert_eq!((&lines[0]["details"]["proposal_id"], &lines[0]["reason"]), (&json!("prop_1"), &json!("try ***")));
    assert_eq!((&lines[0]["details"]["again"], &lines[1]["details"]["again"]), (&Value::Null, &json!(true)));
}

#[tokio::test]
async fn a_proposal_that_cannot_be_recorded_is_a_503_and_one_that_no_process_could_read_is_not_made() {
    let mut stack = start().await;
    let mut calls = stack.serve::<ActivatePolicy>(|call| proposed(call, true)).await;
    stack.log.fail(true);
    let answer = stack.post(MANAGER, ACTIVATE, &accepting()).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("it is proposed")), (503, true), "{message}");
    assert!(calls.recv().await.unwrap().is_trial && calls.recv().await.unwrap().proposes);
    stack.log.fail(false);
    assert_eq!(stack.post(MANAGER, ACTIVATE, &accepting()).await.status, 202);

    let mut early = Stack::with(|config| config.single_process = false).await;
    let comparison: PolicyComparison = serde_json::from_str(COMPARISON).unwrap();
    early.serve::<ComparePolicies>(move |_| ComparePoliciesReply::Compared(Box::new(comparison.clone()))).await;
    let mut calls = early.serve::<ActivatePolicy>(|call| proposed(call, true)).await;
    assert_eq!(early.post(MANAGER, ACTIVATE, &accepting()).await.refusal(), (503, "unavailable".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err(), "nothing is proposed");
    let mut decisions = early.serve::<DecideProposal>(|_| decided(DENIED, ProposalStatus::Denied, true)).await;
    for (path, body) in [(DENY, json!({"reason": "no"})), (CANCEL, json!({}))] {
        assert_eq!(early.post(MANAGER, path, &body).await.refusal(), (503, "unavailable".to_owned()));
    }
    assert!(decisions.try_recv().is_err());
}

#[tokio::test]
async fn an_approval_is_tried_then_recorded_with_both_names_and_then_made() {
    let mut stack = start().await;
    let mut calls = stack.serve::<DecideProposal>(|_| decided(DECIDED, ProposalStatus::Approved, true)).await;
    stack.log.fail(true);
    let answer = stack.post(MANAGER, APPROVE, &json!({"reason": "agreed, hunter2"})).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("nothing was activated")), (503, true), "{message}");
    assert!(calls.recv().await.unwrap().is_trial);
    assert!(calls.try_recv().is_err(), "what is not recorded is not made");
    stack.log.fail(false);
    let answer = stack.post(MANAGER, APPROVE, &json!({"reason": "agreed, hunter2"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["proposal"]["id"]), (200, &json!("prop_1")), "{}", answer.text);
    let trial = calls.recv().await.unwrap();
    let made = calls.recv().await.unwrap();
    assert_eq!((trial.is_trial, made.is_trial, made.decision), (true, false, ProposalDecision::Approve));
    assert_eq!((made.id.as_str(), made.reason.as_deref()), ("prop_1", Some("agreed, ***")));
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.activated"]);
    let details = &lines[0]["details"];
    assert_eq!(details["proposed_by"], json!({"key_id": "key_2", "member_id": "mem_1"}));
    assert_eq!(details["approved_by"], json!({"key_id": "key_3", "member_id": "mem_2"}));
    assert_eq!((&details["proposal_id"], &lines[0]["actor"]["member_id"]), (&json!("prop_1"), &json!("mem_2")));
    assert_eq!(details["approval_reason"], json!("the limit is what we agreed on"), "as the keystore has it");
}

#[tokio::test]
async fn an_approval_that_was_recorded_and_is_not_made_has_a_line_that_says_so() {
    for refused in [true, false] {
        let mut stack = start().await;
        let mut calls = stack
            .serve::<DecideProposal>(move |call| match (call.is_trial, refused) {
                (true, _) => decided(DECIDED, ProposalStatus::Approved, true),
                (false, true) => ManageReply::Refused(Refusal::Conflict("it is cancelled".to_owned())),
                (false, false) => decided(DENIED, ProposalStatus::Outdated, true),
            })
            .await;
        assert_eq!(stack.post(MANAGER, APPROVE, &json!({})).await.refusal(), (409, "conflict".to_owned()));
        assert!(calls.recv().await.unwrap().is_trial && !calls.recv().await.unwrap().is_trial);
        let lines = stack.lines().await;
        assert_eq!(types(&lines)[..2], ["policy.activated", "policy.not_changed"]);
        assert_eq!(lines[1]["details"]["event_id"], lines[0]["event_id"]);
        assert_eq!(types(&lines).get(2).copied(), (!refused).then_some("policy.proposal_outdated"));
    }
}

#[tokio::test]
async fn an_approval_that_finds_another_version_in_force_is_a_409_and_recorded_as_the_end() {
    let mut stack = start().await;
    let is_new = Arc::new(Mutex::new(true));
    let being_new = Arc::clone(&is_new);
    let mut calls = stack
        .serve::<DecideProposal>(move |_| decided(DENIED, ProposalStatus::Outdated, *being_new.lock().unwrap()))
        .await;
    let answer = stack.post(MANAGER, APPROVE, &json!({})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    assert!(answer.text.contains("propose it again"), "{}", answer.text);
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    *is_new.lock().unwrap() = false;
    assert_eq!(stack.post(MANAGER, APPROVE, &json!({})).await.status, 409);
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.proposal_outdated", "policy.proposal_outdated"]);
    assert_eq!(lines[1]["details"]["again"], json!(true));
}

#[tokio::test]
async fn a_denial_and_a_cancellation_are_stored_and_then_recorded_and_a_refusal_is_not() {
    let mut stack = start().await;
    let reply = Arc::new(Mutex::new(decided(DENIED, ProposalStatus::Denied, true)));
    let replying = Arc::clone(&reply);
    let mut calls = stack.serve::<DecideProposal>(move |_| replying.lock().unwrap().clone()).await;
    assert_eq!(stack.post(MANAGER, DENY, &json!({})).await.bad_fields(), ["reason"]);
    assert!(calls.try_recv().is_err());
    let answer = stack.post(MANAGER, DENY, &json!({"reason": "hunter2 is in it"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("denied")), "{}", answer.text);
    let call = calls.recv().await.unwrap();
    assert_eq!(
        (call.decision, call.reason.as_deref(), call.is_trial),
        (ProposalDecision::Deny, Some("*** is in it"), false)
    );
    *reply.lock().unwrap() = decided(DENIED, ProposalStatus::Cancelled, true);
    assert_eq!(send(stack.request_as(MANAGER, Method::POST, CANCEL)).await.status, 200, "without a body");
    assert_eq!(calls.recv().await.unwrap().decision, ProposalDecision::Cancel);
    for refusal in [Refusal::Conflict("it was decided already: it is denied".to_owned()), Refusal::NotFound] {
        *reply.lock().unwrap() = ManageReply::Refused(refusal);
        for (path, body) in [(APPROVE, json!({})), (DENY, json!({"reason": "no"})), (CANCEL, json!({}))] {
            let status = stack.post(MANAGER, path, &body).await.status.as_u16();
            assert!(matches!(status, 404 | 409), "{path}: {status}");
        }
    }
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.proposal_denied", "policy.proposal_cancelled"]);
    assert_eq!(lines[0]["reason"], json!("partners need more"));
}

#[tokio::test]
async fn only_those_with_the_scope_see_and_decide_proposals_and_a_bad_call_names_its_fields() {
    let mut stack = start().await;
    for number in [TENANT, READER] {
        for (method, path) in [
            (Method::GET, PROPOSALS),
            (Method::GET, "/v1/policies/proposals/prop_1"),
            (Method::POST, APPROVE),
            (Method::POST, DENY),
            (Method::POST, CANCEL),
        ] {
            let answer = send(stack.request_as(number, method, path)).await;
            assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path}");
        }
    }
    let secret = format!("see {}", key(TENANT).expose());
    for path in [APPROVE, DENY, CANCEL] {
        let mut found = stack.post(MANAGER, path, &json!({"reason": secret, "until": 1})).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, ["reason", "until"], "{path}");
    }
    let answer = stack.post(MANAGER, "/v1/policies/proposals/a b/approve", &json!({})).await;
    assert_eq!(answer.refusal(), (404, "not_found".to_owned()), "no id");
    assert_eq!(
        stack.get(MANAGER, "/v1/policies/proposals?status=open&limit=many").await.bad_fields(),
        ["status", "limit"]
    );

    let page: Page<PolicyProposal> = done(include_str!("../../../contract/fixtures/proposal_page.json"));
    let mut lists = stack.serve::<ListProposals>(move |_| ManageReply::Done(page.clone())).await;
    let path = "/v1/policies/proposals?status=pending&account=acc_1&limit=2&cursor=prop_3";
    assert_eq!(stack.get(OPERATOR, path).await.json()["items"][0]["id"], json!("prop_1"));
    let list = lists.recv().await.unwrap();
    assert_eq!((list.status, list.limit, list.cursor.as_deref()), (Some(ProposalStatus::Pending), 2, Some("prop_3")));
    assert_eq!(list.account.as_ref().map(ToString::to_string).as_deref(), Some("acc_1"));
    let proposal: PolicyProposal = done(include_str!("../../../contract/fixtures/proposal_reply.json"));
    let mut shows = stack.serve::<ShowProposal>(move |_| ManageReply::Done(proposal.clone())).await;
    assert_eq!(stack.get(MEMBER, "/v1/policies/proposals/prop_1").await.json()["status"], json!("pending"));
    assert_eq!(shows.recv().await.unwrap().id.as_str(), "prop_1");
}

#[tokio::test]
async fn the_operator_sets_who_activates_and_another_word_is_refused() {
    let mut stack = start().await;
    let account = include_str!("../../../contract/fixtures/account_reply_second_member.json");
    let account: ManageReply<stage0_contract::Account> = serde_json::from_str(account).unwrap();
    let mut updates = stack.serve::<UpdateAccount>(move |_| account.clone()).await;
    let patch = async |body: Value| stack.patch(OPERATOR, "/v1/accounts/acc_1", &body).await;
    let answer = patch(json!({"policy_changes": "two"})).await;
    assert_eq!(answer.bad_fields(), ["policy_changes"]);
    let answer = patch(json!({"policy_changes": "second_member"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["policy_changes"]), (200, &json!("second_member")));
    let update = updates.recv().await.unwrap();
    assert_eq!(update.policy_changes, Some(stage0_contract::PolicyChanges::SecondMember));
    assert_eq!(patch(json!({"policy_changes": null, "four_eyes": true})).await.status, 200);
    assert_eq!(updates.recv().await.unwrap().policy_changes, None, "null changes nothing");
}

#[tokio::test]
async fn an_activation_that_needs_none_is_answered_as_ever() {
    let mut stack = start().await;
    let mut calls = stack
        .serve::<ActivatePolicy>(|_| {
            let mut activated: ActivationDone = done(ACTIVATED);
            activated.activation.account = Some("acc".to_owned().try_into().unwrap());
            ManageReply::Done(activated)
        })
        .await;
    let answer = stack.post(MANAGER, ACTIVATE, &accepting()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["sequence"]), (200, &json!(7)), "{}", answer.text);
    assert!(calls.recv().await.unwrap().is_trial && !calls.recv().await.unwrap().proposes);
    assert_eq!(types(&stack.lines().await), ["policy.activated"]);
}
