//! Which checks open an approval, and which find the one of their action or none.

use super::*;

#[tokio::test]
async fn a_check_that_needs_no_approval_or_lacks_more_opens_none() {
    let stage = Stage::new(1).await;
    let mut lacks_more = check(1, GOAL);
    lacks_more.request.constraints.push("max_cost_usd: 1".to_owned());
    lacks_more.request.context = json!({"estimated_cost_usd": 5}).as_object().cloned();
    let mut without_asker = check(2, GOAL);
    without_asker.asker = None;
    let mut unrecordable = check(3, GOAL);
    unrecordable.asker.as_mut().unwrap().can_record = false;
    let mut large = check(4, GOAL);
    large.request.context = json!({"note": "y ".repeat(80_000)}).as_object().cloned();
    for (message, why) in
        [(&lacks_more, None), (&without_asker, None), (&unrecordable, Some("update")), (&large, Some("KiB"))]
    {
        let decided = stage.check(message).await;
        assert_eq!((decided.decision.verdict, &decided.decision.approval), (Verdict::Defer, &None), "{why:?}");
        let told = detail(&decided.decision, "approval").and_then(Value::as_str);
        assert!(
            told.zip(why).is_none_or(|(told, why)| told.contains(why)) && told.is_some() == why.is_some(),
            "{told:?}"
        );
        assert!(decided.events.is_empty());
    }
    assert_eq!(stage.check(&check(5, GOAL)).await.events.len(), 1, "its neighbour opens one");
}

#[tokio::test]
async fn without_the_keystore_no_approval_is_opened_or_used_and_the_issue_says_so() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let mut other = Stage { _keystore: JoinSet::new(), ..Stage::new(0).await };
    other.serve(1, RunConfig::default(), pack).await;
    let decided = other.check(&check(2, GOAL)).await.decision;
    assert!(decided.approval.is_none());
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().contains("who may approve cannot be read"));
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved);
}

#[tokio::test]
async fn a_changed_byte_is_another_action_and_what_the_loop_counts_is_not() {
    let stage = Stage::new(1).await;
    let of = |number, context: Value| with_context(check(number, GOAL), context);
    let first = stage.open(&of(1, json!({"record_count": 5}))).await;
    let counted = json!({"record_count": 5, "retry_count": 1, "elapsed_seconds": 9, "approval_note": "x"});
    assert_eq!(stage.open(&of(2, counted)).await.id, first.id);
    for (number, context) in [(3, json!({"record_count": 6})), (4, json!({"record_count": 5, "unknown": 1}))] {
        assert_ne!(stage.open(&of(number, context)).await.id, first.id);
    }
    let mut body = of(5, json!({"record_count": 5}));
    body.request.goal.push('.');
    assert_ne!(stage.open(&body).await.action_digest, first.action_digest);
}

#[tokio::test]
async fn under_another_policy_an_approved_action_is_another_one() {
    let mut stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    stage.serving.shutdown().await;
    stage.serve(1, RunConfig::default(), || PackSet::embedded().unwrap()).await;
    let next = loop {
        // A shard of the earlier policy may still drain.
        let reply = stage.caller.requests.request(&check(2, GOAL), WAIT_TIMEOUT).await;
        let Ok(EvaluateReply::Decided(decided)) = reply else { continue };
        if decided.decision.policy_version != stage.seen(&approval).await.policy_version {
            break decided.decision;
        }
    };
    assert_eq!(next.verdict, Verdict::Defer);
    assert_ne!(next.approval.unwrap().action_digest, approval.action_digest);
    assert_eq!(stage.seen(&approval).await.status, ApprovalStatus::Approved, "it stays until its time is over");
}

#[tokio::test]
async fn checks_that_ask_for_the_same_at_once_open_one_approval() {
    let stage = Stage::new(3).await;
    let mut asks = JoinSet::new();
    for number in 0..48 {
        let requests = Arc::clone(&stage.caller.requests);
        asks.spawn(async move { requests.request(&check(number, GOAL), WAIT_TIMEOUT).await.unwrap() });
    }
    let mut ids = Vec::new();
    for reply in asks.join_all().await {
        let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
        ids.push(decided.decision.approval.unwrap_or_else(|| panic!("{:?}", decided.decision.issues)).id.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn fewer_eligible_people_than_the_quorum_are_told_at_once() {
    let stage = Stage::new(1).await;
    let enough = stage.check(&check(1, GOAL)).await.decision;
    assert_eq!((detail(&enough, "eligible"), detail(&enough, "quorum")), (Some(&json!(3)), Some(&json!(2))));
    let questions = enough.defer_questions.len();
    stage.people.lock().unwrap().members.drain(1..4);
    let short = stage.check(&check(2, "Carry out another change")).await.decision;
    assert_eq!(detail(&short, "eligible"), Some(&json!(1)));
    assert_eq!(short.defer_questions.len(), questions + 1);
    assert!(short.approval.is_some(), "it is opened all the same");
}

#[tokio::test]
async fn a_key_has_twenty_pending_and_one_that_ends_makes_room() {
    let stage = Stage::new(2).await;
    let goal = |number: usize| format!("Carry out change number {number}");
    let mut first = None;
    for number in 0..MAX_PENDING_OF_KEY {
        let opened = stage.open(&check(u64::try_from(number).unwrap(), &goal(number))).await;
        first = first.or(Some(opened));
    }
    let decided = stage.check(&check(50, &goal(50))).await.decision;
    assert_eq!((decided.verdict, &decided.approval), (Verdict::Defer, &None));
    assert!(detail(&decided, "approval").unwrap().as_str().unwrap().starts_with("20 approvals"));
    let other = EvaluateRequest { asker: Some(agent_of("other")), ..check(51, &goal(51)) };
    stage.open(&other).await;
    let cancelled = stage.change(&agent(), &first.unwrap(), ApprovalChange::Cancel {}, "not needed").await;
    assert!(matches!(cancelled, ManageReply::Done(_)));
    stage.open(&check(52, &goal(50))).await;
}

#[tokio::test]
async fn a_workload_that_opens_and_cancels_without_end_is_refused_and_another_is_not() {
    let stage = Stage::new(1).await;
    let mut number = 0;
    let opened = loop {
        number += 1;
        assert!(number < 300, "it is bounded");
        let decided = stage.check(&check(number, &format!("Carry out change number {number}"))).await.decision;
        let Some(approval) = decided.approval else {
            break detail(&decided, "approval").unwrap().as_str().unwrap().to_owned();
        };
        let cancelled = stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await;
        assert!(matches!(cancelled, ManageReply::Done(_)), "{cancelled:?}");
    };
    assert!(number > 100 && opened.contains("within the hour"), "{number} {opened}");
    stage.open(&EvaluateRequest { asker: Some(agent_of("other")), ..check(999, GOAL) }).await;
}

/// Ends the approval of a check, and leaves this many of its events unrecorded.
async fn ended_with(stage: &Stage, message: &EvaluateRequest, count: usize) -> ApprovalRef {
    let approval = stage.open(message).await;
    let cancelled = stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await;
    assert!(matches!(cancelled, ManageReply::Done(_)), "{cancelled:?}");
    stage
        .alter(&record_key(&approval), |record| {
            let events = record["outbox"]["events"].as_array_mut().unwrap();
            for number in events.len()..count {
                let mut further = events[0].clone();
                further["event"]["event_id"] = format!("0190163d-8694-739b-aea5-{number:012x}").into();
                events.push(further);
            }
        })
        .await;
    approval
}

#[tokio::test]
async fn no_approval_is_opened_while_its_action_has_too_many_unrecorded_events_and_none_is_lost() {
    let stage = Stage::new(1).await;
    let approval = ended_with(&stage, &check(1, GOAL), 101).await;
    for number in 2..4 {
        let decided = stage.check(&check(number, GOAL)).await;
        assert_eq!((decided.decision.verdict, &decided.decision.approval), (Verdict::Defer, &None));
        let told = detail(&decided.decision, "approval").unwrap().as_str().unwrap();
        assert!(told.contains("events of the last approval wait to be recorded"), "{told}");
        assert!(decided.events.is_empty());
    }
    stage.open(&check(4, "Carry out another change")).await;
    stage.age(&approval, 60).await;
    let mut recorded = Vec::new();
    loop {
        let collected = stage.collect().await;
        let of_approval = collected.iter().filter(|event| event.approval_id == approval.id);
        let ids: Vec<_> = of_approval.map(|event| event.event_id).collect();
        if ids.is_empty() {
            break;
        }
        stage.settle(&collected).await;
        recorded.extend(ids);
    }
    recorded.sort_unstable();
    recorded.dedup();
    assert_eq!(recorded.len(), 101);
    assert_ne!(stage.open(&check(5, GOAL)).await.id, approval.id, "once they are recorded");
}

#[tokio::test]
async fn an_approval_that_takes_over_as_many_events_as_it_can_is_decided_and_used_all_the_same() {
    let stage = Stage::new(1).await;
    let ended = ended_with(&stage, &check(1, GOAL), 100).await;
    let opened = stage.check(&check(2, GOAL)).await;
    assert_eq!(opened.events.len(), 101, "all of the ended one's, and its own");
    let approval = opened.decision.approval.unwrap();
    assert_ne!(approval.id, ended.id);
    for by in ["ann", "bob"] {
        let done = stage.vote(by, &approval).await;
        assert!(matches!(done, ManageReply::Done(_)), "{done:?}");
    }
    assert_eq!(stage.check(&check(3, GOAL)).await.decision.verdict, Verdict::Allow);
}
