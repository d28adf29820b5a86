//! What came of allowed actions: reported once, settled, noted on the approval that was used, and read again.

mod held;

use stage0_contract::{
    EventActor, MAX_DURATION_MS, MAX_OUTCOMES_READ, OutcomeReported, OutcomesRead, ReadOutcomes, ReportDecisionOutcome,
    RunCost, RunId, SettleRun, ShowRun,
};

use super::*;

fn report(number: u64, status: OutcomeStatus) -> ReportDecisionOutcome {
    let now = jiff::Timestamp::now();
    ReportDecisionOutcome {
        account: account(),
        actor: EventActor::of(&KeyId::parse("agent").unwrap(), None),
        request_id: id(number),
        status,
        tool_call_id: None,
        duration_ms: None,
        actual_micros: None,
        may_lower: false,
        run_id: None,
        approval_id: None,
        decided_at: now,
        expires_at: now.as_second() + 86_400,
    }
}

fn done(reply: ManageReply<OutcomeReported>) -> OutcomeReported {
    match reply {
        ManageReply::Done(reported) => reported,
        reply => panic!("not reported: {reply:?}"),
    }
}

/// The statuses of these decisions, as an account reads them.
async fn read(stage: &Stage, account: &str, numbers: &[u64]) -> Vec<(RequestId, OutcomeStatus)> {
    let account = AccountId::parse(account).unwrap();
    let request_ids = numbers.iter().map(|number| id(*number)).collect();
    match stage.ask(&ReadOutcomes { account, request_ids }).await {
        ManageReply::Done(OutcomesRead { outcomes }) => {
            outcomes.into_iter().map(|outcome| (outcome.request_id, outcome.status)).collect()
        }
        reply => panic!("not read: {reply:?}"),
    }
}

fn record_of(number: u64) -> String {
    format!("outcomes.d.acc.{}", id(number))
}

/// Moves the time at which an outcome was given to a gateway back by some seconds.
async fn age(stage: &Stage, number: u64, seconds: i64) {
    stage
        .alter(&record_of(number), |record| {
            let given_at = &mut record["reported"]["given_at"];
            let time: jiff::Timestamp = given_at.as_str().unwrap().parse().unwrap();
            *given_at = time.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap().to_string().into();
        })
        .await;
}

#[tokio::test]
async fn an_outcome_is_reported_once_and_its_event_is_given_until_it_is_recorded() {
    let stage = Stage::new(2).await;
    let told = ReportDecisionOutcome {
        tool_call_id: Some("toolu_01".to_owned()),
        duration_ms: Some(MAX_DURATION_MS),
        ..report(1, OutcomeStatus::Succeeded)
    };
    let first = done(stage.ask(&told).await);
    assert_eq!(kinds(&first.unrecorded.events), [LineType::DecisionOutcome]);
    let event = &first.unrecorded.events[0];
    assert_eq!((event.request_id, event_ref(event).outcome_of), (Some(id(1)), Some(id(1))));
    let outcome = &first.outcome;
    assert_eq!((outcome.late, outcome.tool_call_id.as_deref()), (false, Some("toolu_01")));
    assert_eq!(read(&stage, "acc", &[1]).await, [(id(1), OutcomeStatus::Succeeded)], "one that waits is shown too");
    let again = done(stage.ask(&told).await);
    assert_eq!(again, first, "the same answer, and the same event while it may not be recorded");
    stage.settle(&first.unrecorded.events).await;
    let settled = done(stage.ask(&told).await);
    assert_eq!((settled.outcome, settled.unrecorded.events), (first.outcome, Vec::new()));
    for status in [OutcomeStatus::Failed, OutcomeStatus::Unknown, OutcomeStatus::Skipped] {
        refused(stage.ask(&report(1, status)).await, "another outcome was reported already: `succeeded`");
    }
    assert_eq!(read(&stage, "acc", &[1]).await, [(id(1), OutcomeStatus::Succeeded)]);
}

#[tokio::test]
async fn of_many_reports_at_once_on_three_evaluators_one_stands() {
    let stage = Stage::new(3).await;
    let mut asks = JoinSet::new();
    for number in 0..40 {
        let (requests, status) = (Arc::clone(&stage.caller.requests), OutcomeStatus::ALL[number % 4]);
        asks.spawn(async move { requests.request(&report(1, status), WAIT_TIMEOUT).await.unwrap() });
    }
    let mut events = std::collections::HashSet::new();
    for reply in asks.join_all().await {
        match reply {
            ManageReply::Done(reported) => {
                events.insert((reported.outcome.status.as_str(), reported.unrecorded.events[0].event_id));
            }
            reply => refused(reply, "another outcome was reported already"),
        }
    }
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test]
async fn an_unknown_outcome_is_replaced_by_what_it_turned_out_to_be() {
    let stage = Stage::new(2).await;
    let unknown = done(stage.ask(&report(1, OutcomeStatus::Unknown)).await);
    refused(stage.ask(&report(1, OutcomeStatus::Failed)).await, "already: `unknown`");
    stage.settle(&unknown.unrecorded.events).await;
    let failed = done(stage.ask(&report(1, OutcomeStatus::Failed)).await);
    assert_ne!(failed.unrecorded.events[0].event_id, unknown.unrecorded.events[0].event_id, "another event");
    stage.settle(&failed.unrecorded.events).await;
    refused(stage.ask(&report(1, OutcomeStatus::Unknown)).await, "already: `failed`");
    refused(stage.ask(&report(1, OutcomeStatus::Succeeded)).await, "already: `failed`");
    assert_eq!(read(&stage, "acc", &[1]).await, [(id(1), OutcomeStatus::Failed)]);
}

#[tokio::test]
async fn one_that_was_never_recorded_is_given_again_or_replaced_after_a_minute() {
    let stage = Stage::new(1).await;
    let lost = done(stage.ask(&report(1, OutcomeStatus::Succeeded)).await);
    age(&stage, 1, 55).await;
    refused(stage.ask(&report(1, OutcomeStatus::Failed)).await, "already: `succeeded`");
    age(&stage, 1, 10).await;
    let again = done(stage.ask(&report(1, OutcomeStatus::Succeeded)).await);
    assert_eq!(again.unrecorded, lost.unrecorded);
    refused(stage.ask(&report(1, OutcomeStatus::Failed)).await, "already: `succeeded`");
    age(&stage, 1, 61).await;
    let other = done(stage.ask(&report(1, OutcomeStatus::Failed)).await);
    assert_eq!((other.outcome.status, other.unrecorded.events.len()), (OutcomeStatus::Failed, 1));
}

#[tokio::test]
async fn outcomes_are_their_accounts_own_and_come_in_the_order_of_the_question() {
    let stage = Stage::new(2).await;
    for number in 1..=9 {
        done(stage.ask(&report(number, OutcomeStatus::ALL[usize::try_from(number).unwrap() % 4])).await);
    }
    let other = AccountId::parse("other").unwrap();
    done(stage.ask(&ReportDecisionOutcome { account: other, ..report(3, OutcomeStatus::Skipped) }).await);
    assert_eq!(read(&stage, "other", &[1, 2, 3, 4]).await, [(id(3), OutcomeStatus::Skipped)]);
    let asked = [9, 50, 3, 7, 1];
    let shown: Vec<_> = read(&stage, "acc", &asked).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(shown, [id(9), id(3), id(7), id(1)]);
    let ask = |count: usize| ReadOutcomes { account: account(), request_ids: vec![id(1); count] };
    assert!(
        matches!(stage.ask(&ask(MAX_OUTCOMES_READ)).await, ManageReply::Done(read) if read.outcomes.len() == 1_000)
    );
    assert!(matches!(stage.ask(&ask(MAX_OUTCOMES_READ + 1)).await, ManageReply::Refused(Refusal::Invalid(_))));
}

#[tokio::test]
async fn what_cannot_be_an_outcome_is_refused_and_its_nearest_neighbour_is_not() {
    let stage = Stage::new(1).await;
    let with = |tool_call_id: &str| ReportDecisionOutcome {
        tool_call_id: Some(tool_call_id.to_owned()),
        ..report(1, OutcomeStatus::Succeeded)
    };
    let costs = |micros| ReportDecisionOutcome { actual_micros: Some(micros), ..report(1, OutcomeStatus::Succeeded) };
    let took = |millis| ReportDecisionOutcome { duration_ms: Some(millis), ..report(1, OutcomeStatus::Succeeded) };
    for (wrong, path) in [
        (with(""), "tool_call_id"),
        (with(" "), "tool_call_id"),
        (with("a\u{7}b"), "tool_call_id"),
        (with(&"x".repeat(257)), "tool_call_id"),
        (took(MAX_DURATION_MS + 1), "duration_ms"),
        (costs(-1), "cost_usd"),
        (costs(1_000_000_000_000_001), "cost_usd"),
    ] {
        match stage.ask(&wrong).await {
            ManageReply::Refused(Refusal::Invalid(errors)) => assert_eq!(errors[0].path, path),
            reply => panic!("{reply:?}"),
        }
    }
    assert_eq!(read(&stage, "acc", &[1]).await, []);
    done(stage.ask(&with(&"x".repeat(256))).await);
    done(stage.ask(&ReportDecisionOutcome { request_id: id(2), ..costs(0) }).await);
}

#[tokio::test]
async fn a_secret_in_the_name_of_a_tool_call_is_masked_and_a_plain_name_is_not() {
    let stage = Stage::new(1).await;
    for (number, text, is_kept) in [(1, "key AKIAIOSFODNN7EXAMPLE", false), (2, "call_7f", true)] {
        let told =
            ReportDecisionOutcome { tool_call_id: Some(text.to_owned()), ..report(number, OutcomeStatus::Failed) };
        let reported = done(stage.ask(&told).await);
        let shown = reported.outcome.tool_call_id.clone().unwrap();
        assert_eq!(shown == text, is_kept, "{shown}");
        let written = serde_json::to_string(&reported).unwrap();
        assert_eq!(written.contains(text), is_kept, "{written}");
    }
}

/// An allowed check of the run `r` with an estimate of a dollar, and the report of it.
async fn costly(stage: &Stage, number: u64) -> ReportDecisionOutcome {
    let body = json!({"goal": "read the report", "success_criteria": ["x"],
        "context": {"run_id": "r", "estimated_cost_usd": 1}});
    let asked = EvaluateRequest { request: CheckRequest::parse(body).unwrap(), ..check(number, GOAL) };
    assert_eq!(stage.check(&asked).await.decision.verdict, Verdict::Allow);
    ReportDecisionOutcome { run_id: Some(RunId::parse("r").unwrap()), ..report(number, OutcomeStatus::Succeeded) }
}

async fn cost(stage: &Stage) -> RunCost {
    match stage.ask(&ShowRun { account: account(), run_id: RunId::parse("r").unwrap() }).await {
        ManageReply::Done(run) => run.cost,
        reply => panic!("no run: {reply:?}"),
    }
}

#[tokio::test]
async fn a_report_settles_its_check_under_the_rules_of_runs_or_changes_nothing() {
    let stage = Stage::new(2).await;
    let told = costly(&stage, 1).await;
    let cheap = ReportDecisionOutcome { actual_micros: Some(500_000), ..told.clone() };
    let reply = stage.ask(&cheap).await;
    assert_eq!(reply, ManageReply::Refused(Refusal::ScopeMissing(Scope::RunsManage)));
    let before = cost(&stage).await;
    assert_eq!((before.spent_usd, before.reserved_usd), (0.0, 1.0));
    assert_eq!(read(&stage, "acc", &[1]).await, [], "nothing was reported");
    let lowered = ReportDecisionOutcome { may_lower: true, ..cheap.clone() };
    let reported = done(stage.ask(&lowered).await);
    let settled = reported.settled.clone().unwrap();
    assert_eq!((settled.estimated_cost_usd, settled.actual_cost_usd), (1.0, 0.5));
    assert_eq!(reported.outcome.cost_usd, Some(0.5));
    assert_eq!(done(stage.ask(&cheap).await), reported, "the same again is fine, and lowers nothing");
    let after = cost(&stage).await;
    assert_eq!((after.spent_usd, after.reserved_usd), (0.5, 0.0), "settled once");
    let dearer = ReportDecisionOutcome { actual_micros: Some(2_000_000), ..told.clone() };
    refused(stage.ask(&dearer).await, "with another `cost_usd`");

    // What costs more than was estimated takes no further right.
    let dear = ReportDecisionOutcome { actual_micros: Some(3_000_000), ..costly(&stage, 2).await };
    assert_eq!(done(stage.ask(&dear).await).settled.unwrap().actual_cost_usd, 3.0);

    // Settled by the run's own route before: the same amount is fine, and another one is not.
    for (number, micros, is_same) in [(3, 1_500_000, true), (4, 1_600_000, false)] {
        let told = costly(&stage, number).await;
        let run_id = RunId::parse("r").unwrap();
        let settle = SettleRun {
            account: account(),
            run_id,
            request_id: id(number),
            actual_micros: 1_500_000,
            may_lower: false,
        };
        assert!(matches!(stage.ask(&settle).await, ManageReply::Done(_)));
        let reply = stage.ask(&ReportDecisionOutcome { actual_micros: Some(micros), ..told }).await;
        if is_same {
            assert!(done(reply).settled.is_some());
        } else {
            refused(reply, "was settled already, with 1.5 USD");
            assert_eq!(read(&stage, "acc", &[number]).await, []);
        }
    }
}

#[tokio::test]
async fn where_there_is_nothing_to_settle_the_outcome_is_reported_all_the_same() {
    let stage = Stage::new(1).await;
    let cheap = |told| ReportDecisionOutcome { actual_micros: Some(1), ..told };
    let without_run = done(stage.ask(&cheap(report(1, OutcomeStatus::Failed))).await);
    assert_eq!((without_run.settled, without_run.outcome.cost_usd), (None, Some(0.000_001)));
    let run_id = Some(RunId::parse("gone").unwrap());
    let of_gone = ReportDecisionOutcome { run_id, ..cheap(report(2, OutcomeStatus::Failed)) };
    assert_eq!(done(stage.ask(&of_gone).await).settled, None);
    let without_cost = costly(&stage, 3).await;
    assert_eq!(done(stage.ask(&without_cost).await).settled, None);
    assert_eq!(cost(&stage).await.reserved_usd, 1.0, "it can still be settled by the run's own route");
}

#[tokio::test]
async fn the_approval_that_was_used_has_the_outcome_too_and_another_one_has_not() {
    let stage = Stage::new(2).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let used = stage.check(&check(2, GOAL)).await;
    stage.settle(&used.events).await;
    let of =
        |number| ReportDecisionOutcome { approval_id: approval.id.clone(), ..report(number, OutcomeStatus::Failed) };
    done(stage.ask(&of(3)).await);
    assert_eq!(stage.seen(&approval).await.outcome, None, "another check does not use it");
    let reported = done(stage.ask(&of(2)).await);
    assert_eq!(kinds(&reported.unrecorded.events), [LineType::DecisionOutcome, LineType::ApprovalOutcome]);
    assert_eq!(stage.seen(&approval).await.outcome.unwrap().status, OutcomeStatus::Failed);
    assert_eq!(done(stage.ask(&of(2)).await), reported, "noted once");
    stage.settle(&reported.unrecorded.events).await;
    assert_eq!(done(stage.ask(&of(2)).await).unrecorded.events, []);
}

#[tokio::test]
async fn an_approval_with_another_outcome_keeps_it_and_the_decision_has_its_own() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    stage.check(&check(2, GOAL)).await;
    let succeeded = ApprovalChange::Report { status: OutcomeStatus::Succeeded };
    assert!(matches!(stage.change(&agent(), &approval, succeeded, "").await, ManageReply::Done(_)));
    let told = ReportDecisionOutcome { approval_id: approval.id.clone(), ..report(2, OutcomeStatus::Failed) };
    let reported = done(stage.ask(&told).await);
    assert_eq!(kinds(&reported.unrecorded.events), [LineType::DecisionOutcome]);
    assert_eq!(stage.seen(&approval).await.outcome.unwrap().status, OutcomeStatus::Succeeded);
}

#[tokio::test]
async fn a_decision_that_is_in_no_log_has_no_outcome() {
    let stage = Stage::new(1).await;
    let now = jiff::Timestamp::now();
    // The gateway's clock may be ahead of the store's.
    let ahead = now.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
    for (decided_at, expires_at) in [(now, 0), (now, now.as_second()), (ahead, ahead.as_second())] {
        let told = ReportDecisionOutcome { decided_at, expires_at, ..report(1, OutcomeStatus::Succeeded) };
        assert_eq!(stage.ask(&told).await, ManageReply::Refused(Refusal::NotFound));
    }
    assert_eq!(read(&stage, "acc", &[1]).await, []);
}

#[tokio::test]
async fn a_record_that_stands_where_it_does_not_belong_is_no_outcome() {
    let stage = Stage::new(1).await;
    done(stage.ask(&report(1, OutcomeStatus::Succeeded)).await);
    stage.alter(&record_of(1), |record| record["request_id"] = id(2).to_string().into()).await;
    assert!(matches!(stage.ask(&report(1, OutcomeStatus::Succeeded)).await, ManageReply::Failed));
    let read = ReadOutcomes { account: account(), request_ids: vec![id(1)] };
    assert!(matches!(stage.ask(&read).await, ManageReply::Failed));
}
