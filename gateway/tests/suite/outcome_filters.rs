//! What came of decisions, for those who read them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage0_contract::{
    DecisionOutcome, EventsSettled, ManageReply, OutcomeStatus, OutcomesRead, ReadOutcomes, SettleEvents,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::harness::{Answer, Stack, TENANT};
use crate::outcomes::{allow, reported};

type Reported = Arc<Mutex<BTreeMap<String, OutcomeStatus>>>;

/// A stack whose evaluator knows these outcomes.
async fn start() -> (Stack, Reported, UnboundedReceiver<ReadOutcomes>) {
    let mut stack = Stack::start().await;
    stack.serve::<SettleEvents>(|_| ManageReply::Done(EventsSettled {})).await;
    let known = Reported::default();
    let knowing = Arc::clone(&known);
    let asked = stack
        .serve::<ReadOutcomes>(move |read| {
            let known = knowing.lock().unwrap();
            let outcome = |id| {
                let status = *known.get(&format!("{id}"))?;
                Some(DecisionOutcome { request_id: id, status, ..reported().outcome })
            };
            let outcomes = read.request_ids.iter().copied().filter_map(outcome).collect();
            ManageReply::Done(OutcomesRead { outcomes })
        })
        .await;
    (stack, known, asked)
}

async fn checked(stack: &Stack) -> String {
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["request_id"].as_str().unwrap().to_owned()
}

async fn list(stack: &Stack, query: &str) -> Answer {
    stack.get(TENANT, &format!("/v1/decisions?{query}")).await
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["request_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_record_is_shown_with_its_outcome_behind_its_own_bytes() {
    let (stack, known, mut asked) = start().await;
    allow(&stack, None);
    let id = checked(&stack).await;
    let path = format!("/v1/decisions/{id}");
    let none = stack.get(TENANT, &path).await;
    let record = none.text.strip_suffix(r#","outcome":null}"#).unwrap().to_owned();
    assert_eq!(asked.recv().await.unwrap().request_ids.len(), 1);
    known.lock().unwrap().insert(id, OutcomeStatus::Unknown);
    let shown = stack.get(TENANT, &path).await;
    let outcome = shown.text.strip_prefix(&record).unwrap();
    assert!(outcome.starts_with(r#","outcome":{"request_id":""#), "{outcome}");
    assert_eq!((&shown.json()["outcome"]["status"], &shown.json()["verdict"]), (&json!("unknown"), &json!("ALLOW")));
    assert!(!stack.lines().await[0].as_object().unwrap().contains_key("outcome"), "the log has no such member");
}

#[tokio::test]
async fn what_was_not_allowed_has_no_outcome_without_asking() {
    let (stack, known, mut asked) = start().await;
    let id = checked(&stack).await;
    known.lock().unwrap().insert(id.clone(), OutcomeStatus::Succeeded);
    let shown = stack.get(TENANT, &format!("/v1/decisions/{id}")).await;
    assert!(shown.text.ends_with(r#","outcome":null}"#), "{}", shown.text);
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn no_outcome_is_claimed_where_it_cannot_be_looked_up() {
    let stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    allow(&stack, None);
    let id = checked(&stack).await;
    let shown = stack.get(TENANT, &format!("/v1/decisions/{id}")).await;
    assert_eq!((shown.status.as_u16(), &shown.json()["request_id"]), (200, &json!(id)));
    assert!(!shown.json().as_object().unwrap().contains_key("outcome"), "{}", shown.text);
    for filter in ["any", "none", "failed"] {
        let filtered = list(&stack, &format!("outcome={filter}")).await;
        assert_eq!(filtered.refusal(), (503, "unavailable".to_owned()), "{filter}");
    }
    let unfiltered = list(&stack, "").await.json();
    assert_eq!(ids(&unfiltered), [&id], "a list that needs none is not held up");
}

#[tokio::test]
async fn decisions_are_filtered_by_what_came_of_them() {
    let (stack, known, mut asked) = start().await;
    let deferred = checked(&stack).await;
    allow(&stack, None);
    let mut allowed = Vec::new();
    for _ in 0..5 {
        allowed.push(checked(&stack).await);
    }
    for (id, status) in allowed.iter().zip(OutcomeStatus::ALL) {
        known.lock().unwrap().insert(id.clone(), status);
    }
    for (filter, expected) in [
        ("succeeded", vec![&allowed[0]]),
        ("failed", vec![&allowed[1]]),
        ("unknown", vec![&allowed[2]]),
        ("skipped", vec![&allowed[3]]),
        ("none", vec![&allowed[4]]),
        ("none&verdict=DEFER", vec![]),
        ("any&verdict=DEFER", vec![&deferred]),
        ("any", [&deferred].into_iter().chain(&allowed).collect()),
        ("any&order=desc", allowed.iter().rev().chain([&deferred]).collect()),
    ] {
        let page = list(&stack, &format!("outcome={filter}")).await.json();
        assert_eq!(ids(&page), expected, "{filter}");
        assert_eq!(page["next_cursor"], Value::Null, "{filter}");
        let statuses: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| &item["outcome"]).collect();
        assert!(statuses.iter().all(|outcome| outcome.is_null() || outcome["status"].is_string()), "{filter}");
    }
    while let Ok(read) = asked.try_recv() {
        assert!(read.request_ids.iter().all(|id| allowed.contains(&id.to_string())), "only of allowed ones");
    }
    let plain = list(&stack, "").await.json();
    assert!(plain["items"].as_array().unwrap().iter().all(|item| item.get("outcome").is_none()));
    assert!(asked.try_recv().is_err(), "a list without the filter looks nothing up");
    for bad in ["Failed", "late", ""] {
        assert_eq!(list(&stack, &format!("outcome={bad}")).await.bad_fields(), ["outcome"], "{bad}");
    }
}

#[tokio::test]
async fn a_filtered_list_goes_on_behind_the_last_decision_that_it_showed() {
    let (stack, known, mut asked) = start().await;
    allow(&stack, None);
    let mut failed = Vec::new();
    for number in 0..9 {
        let id = checked(&stack).await;
        if number % 2 == 0 {
            known.lock().unwrap().insert(id.clone(), OutcomeStatus::Failed);
            failed.push(id);
        }
    }
    for order in ["asc", "desc"] {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = list(&stack, &format!("outcome=failed&limit=2&order={order}{cursor}")).await.json();
            assert!(ids(&page).len() <= 2);
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            pages += 1;
            assert_eq!(std::iter::from_fn(|| asked.try_recv().ok()).count(), usize::from(!ids(&page).is_empty()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        if order == "desc" {
            seen.reverse();
        }
        assert_eq!((seen, pages), (failed.clone(), 3), "{order}");
    }
}
