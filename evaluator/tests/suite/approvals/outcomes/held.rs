//! Unknown is not failed: an action whose outcome is not known is not allowed again, where pack and key want that.

use super::*;

const HOLDS: &str = "\n[outcomes]\nhold_unknown = true\n";

async fn holding(evaluators: usize) -> Stage {
    with_pack(evaluators, HOLDS).await
}

async fn with_pack(evaluators: usize, more: &str) -> Stage {
    let mut stage = Stage::new(0).await;
    stage.serve(evaluators, RunConfig::default(), || pack_with(more)).await;
    stage
}

fn reporting() -> Actor {
    Actor { reports_outcomes: true, ..agent() }
}

/// A check that no rule objects to, of an action with this effect.
fn of_effect(number: u64, effect: &str) -> EvaluateRequest {
    let body = json!({"goal": GOAL, "success_criteria": ["it is done"], "side_effects": [effect], "context": {}});
    EvaluateRequest { request: CheckRequest::parse(body).unwrap(), asker: Some(reporting()), ..check(number, GOAL) }
}

fn sends(number: u64) -> EvaluateRequest {
    of_effect(number, "data_modification")
}

#[track_caller]
fn is_held(decision: &Decision, by: u64) {
    assert_eq!(decision.verdict, Verdict::Defer, "{decision:?}");
    let issue = decision.issues.iter().find(|issue| issue.code.as_str() == "OUTCOME_UNKNOWN").unwrap();
    assert_eq!(issue.details["request_id"], id(by).to_string());
    assert!(decision.defer_questions[0].contains(&format!("What came of request {}?", id(by))));
}

async fn verdict(stage: &Stage, message: &EvaluateRequest) -> Verdict {
    stage.check(message).await.decision.verdict
}

async fn tell(stage: &Stage, number: u64, status: OutcomeStatus) {
    let reported = done(stage.ask(&report(number, status)).await);
    stage.settle(&reported.unrecorded.events).await;
}

async fn release_of(stage: &Stage, number: u64) {
    let released = Some(Released { request_id: id(number), approval_id: None, grant_id: None });
    let settle = SettleEvents { account: account(), recorded: Vec::new(), released };
    assert!(matches!(stage.ask(&settle).await, ManageReply::Done(_)));
}

/// Moves the time of what the account's only open action is open for.
async fn age_open(stage: &Stage, seconds: i64) {
    let until = Instant::now() + WAIT_TIMEOUT;
    let open = stage.caller.state_store.list("outcomes.o.acc", None, 10, until).await.unwrap();
    assert_eq!(open.records.len(), 1);
    let key = format!("outcomes.o.acc.{}", open.records[0].0);
    stage
        .alter(&key, |record| {
            let time: jiff::Timestamp = record["ends_at"].as_str().unwrap().parse().unwrap();
            let earlier = time.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
            record["ends_at"] = earlier.to_string().into();
        })
        .await;
}

#[tokio::test]
async fn an_action_without_a_known_outcome_is_not_allowed_again_until_it_is_reported() {
    for (status, frees) in [
        (OutcomeStatus::Succeeded, true),
        (OutcomeStatus::Failed, true),
        (OutcomeStatus::Skipped, true),
        (OutcomeStatus::Unknown, false),
    ] {
        let stage = holding(2).await;
        let first = stage.check(&sends(1)).await;
        assert_eq!(first.decision.verdict, Verdict::Allow);
        let held = stage.check(&sends(2)).await;
        is_held(&held.decision, 1);
        assert!(held.decision.approval.is_none() && held.events.is_empty());
        assert!(held.decision.risk_score >= first.decision.risk_score);
        tell(&stage, 1, status).await;
        let next = stage.check(&sends(3)).await.decision;
        if frees {
            assert_eq!(next.verdict, Verdict::Allow, "{status:?}");
            is_held(&stage.check(&sends(4)).await.decision, 3);
        } else {
            is_held(&next, 1);
            tell(&stage, 1, OutcomeStatus::Skipped).await;
            assert_eq!(verdict(&stage, &sends(4)).await, Verdict::Allow, "it turned out");
        }
    }
}

#[tokio::test]
async fn what_may_be_repeated_is_another_action_or_was_not_asked_for_is_not_held_up() {
    let stage = holding(2).await;
    assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
    for number in [10, 11] {
        assert_eq!(verdict(&stage, &of_effect(number, "fs_read")).await, Verdict::Allow, "it has no effect");
        let silent = EvaluateRequest { asker: Some(agent()), ..sends(number + 10) };
        assert_eq!(verdict(&stage, &silent).await, Verdict::Allow, "its key does not declare that it reports");
        let anonymous = EvaluateRequest { asker: None, ..sends(number + 20) };
        assert_eq!(verdict(&stage, &anonymous).await, Verdict::Allow);
    }
    let elsewhere = with_context(sends(40), json!({"ticket": "7"}));
    assert_eq!(verdict(&stage, &elsewhere).await, Verdict::Allow, "another action");
    let other = EvaluateRequest { account: AccountId::parse("other").unwrap(), ..sends(41) };
    assert_eq!(verdict(&stage, &other).await, Verdict::Allow, "another account");
    is_held(&stage.check(&sends(42)).await.decision, 1);

    let off = with_pack(1, "\n[outcomes]\nhold_unknown = false\n").await;
    for number in [1, 2] {
        assert_eq!(verdict(&off, &sends(number)).await, Verdict::Allow, "the pack does not want it");
    }
}

#[tokio::test]
async fn of_many_checks_of_one_action_at_once_on_three_evaluators_one_is_allowed() {
    let stage = holding(3).await;
    for round in 0..5 {
        let mut asks = JoinSet::new();
        for number in 1..=32 {
            let (requests, message) = (Arc::clone(&stage.caller.requests), sends(round * 100 + number));
            asks.spawn(async move { requests.request(&message, WAIT_TIMEOUT).await.unwrap() });
        }
        let mut allowed = Vec::new();
        let replies = asks.join_all().await;
        for reply in &replies {
            let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
            if decided.decision.verdict == Verdict::Allow {
                allowed.push(());
            }
        }
        assert_eq!(allowed.len(), 1);
        let held = stage.check(&sends(round * 100 + 99)).await.decision;
        let by = detail(&held, "request_id").unwrap().as_str().unwrap().to_owned();
        let by = u64::from_str_radix(&by[by.len() - 12..], 16).unwrap();
        is_held(&held, by);
        tell(&stage, by, OutcomeStatus::Succeeded).await;
    }
}

#[tokio::test]
async fn a_repeated_check_is_the_same_check_and_any_attempt_reports_for_it() {
    for reported in [1, 2] {
        let stage = holding(2).await;
        let again = |number| EvaluateRequest { operation: Some(id(1)), ..sends(number) };
        assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
        assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow, "the same attempt, asked twice");
        assert_eq!(verdict(&stage, &again(2)).await, Verdict::Allow);
        is_held(&stage.check(&sends(3)).await.decision, 2);
        tell(&stage, reported, OutcomeStatus::Succeeded).await;
        assert_eq!(verdict(&stage, &sends(4)).await, Verdict::Allow);
    }
}

#[tokio::test]
async fn a_decision_that_was_surely_not_recorded_frees_its_action_and_that_of_another_check_does_not() {
    let stage = holding(2).await;
    assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
    is_held(&stage.check(&sends(2)).await.decision, 1);
    release_of(&stage, 2).await;
    release_of(&stage, 9).await;
    is_held(&stage.check(&sends(3)).await.decision, 1);
    release_of(&stage, 1).await;
    assert_eq!(verdict(&stage, &sends(4)).await, Verdict::Allow);
    let again = EvaluateRequest { operation: Some(id(4)), ..sends(5) };
    assert_eq!(verdict(&stage, &again).await, Verdict::Allow);
    release_of(&stage, 4).await;
    is_held(&stage.check(&sends(6)).await.decision, 5);
}

#[tokio::test]
async fn a_decision_that_is_in_no_log_is_resolved_by_a_report_without_an_event() {
    let stage = holding(1).await;
    assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
    let of = |number, status| ReportDecisionOutcome { expires_at: 0, ..report(number, status) };
    assert_eq!(stage.ask(&of(2, OutcomeStatus::Failed)).await, ManageReply::Refused(Refusal::NotFound));
    let other = AccountId::parse("other").unwrap();
    let of_other = ReportDecisionOutcome { account: other, ..of(1, OutcomeStatus::Failed) };
    assert_eq!(stage.ask(&of_other).await, ManageReply::Refused(Refusal::NotFound), "another account's");
    let unknown = done(stage.ask(&of(1, OutcomeStatus::Unknown)).await);
    assert_eq!(unknown.unrecorded.events, []);
    is_held(&stage.check(&sends(3)).await.decision, 1);
    let failed = done(stage.ask(&of(1, OutcomeStatus::Failed)).await);
    assert_eq!((failed.outcome.status, failed.unrecorded.events.len()), (OutcomeStatus::Failed, 0));
    assert_eq!(verdict(&stage, &sends(4)).await, Verdict::Allow);
    assert_eq!(done(stage.ask(&of(1, OutcomeStatus::Failed)).await).outcome, failed.outcome, "the same again");
    refused(stage.ask(&of(1, OutcomeStatus::Succeeded)).await, "already: `failed`");
    // The line was only late.
    let logged = done(stage.ask(&report(1, OutcomeStatus::Failed)).await);
    assert_eq!(kinds(&logged.unrecorded.events), [LineType::DecisionOutcome]);
}

#[tokio::test]
async fn an_action_is_held_up_for_as_long_as_its_decision_is_kept() {
    let stage = holding(1).await;
    assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
    // The retention of the asker, 90 days.
    age_open(&stage, 90 * 86_400 - 60).await;
    is_held(&stage.check(&sends(2)).await.decision, 1);
    age_open(&stage, 60).await;
    assert_eq!(verdict(&stage, &sends(3)).await, Verdict::Allow);
    is_held(&stage.check(&sends(4)).await.decision, 3);
}

#[tokio::test]
async fn a_held_up_check_does_not_advance_its_run() {
    let stage = holding(2).await;
    let of_run = |number| with_context(sends(number), json!({"run_id": "r"}));
    let mut asks = JoinSet::new();
    for number in 1..=32 {
        let (requests, message) = (Arc::clone(&stage.caller.requests), of_run(number));
        asks.spawn(async move { requests.request(&message, WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let allowed = replies.iter().filter(|reply| match reply {
        EvaluateReply::Decided(decided) => decided.decision.verdict == Verdict::Allow,
        reply => panic!("{reply:?}"),
    });
    assert_eq!(allowed.count(), 1);
    let run = ShowRun { account: account(), run_id: RunId::parse("r").unwrap() };
    assert!(matches!(stage.ask(&run).await, ManageReply::Done(view) if view.iterations == 1));
}

#[tokio::test]
async fn no_one_is_asked_to_approve_what_would_be_held_up_all_the_same() {
    let stage = holding(2).await;
    let asks = |number| EvaluateRequest { asker: Some(reporting()), ..check(number, GOAL) };
    let approval = stage.approved(&asks(1)).await;
    let used = stage.check(&asks(2)).await;
    assert_eq!(used.decision.verdict, Verdict::Allow);
    stage.settle(&used.events).await;
    let held = stage.check(&asks(3)).await;
    is_held(&held.decision, 2);
    assert!(held.decision.approval.is_none() && held.events.is_empty(), "no approval was opened");
    assert!(held.decision.issues.len() > 1, "that one is missing is said all the same");
    tell(&stage, 2, OutcomeStatus::Failed).await;
    let next = stage.check(&asks(4)).await.decision;
    assert_eq!((next.verdict, next.approval.is_some()), (Verdict::Defer, true), "the approval was used");
    assert_ne!(next.approval.unwrap().id, approval.id);
}

#[tokio::test]
async fn an_open_action_that_cannot_be_read_lets_nothing_pass() {
    let stage = holding(1).await;
    assert_eq!(verdict(&stage, &sends(1)).await, Verdict::Allow);
    let until = Instant::now() + WAIT_TIMEOUT;
    let open = stage.caller.state_store.list("outcomes.o.acc", None, 10, until).await.unwrap();
    let key = format!("outcomes.o.acc.{}", open.records[0].0);
    stage.alter(&key, |record| record["account"] = "other".into()).await;
    assert!(matches!(stage.ask(&sends(2)).await, EvaluateReply::Unable(_)));
    assert_eq!(verdict(&stage, &of_effect(3, "fs_read")).await, Verdict::Allow, "what is not awaited is decided");
}
