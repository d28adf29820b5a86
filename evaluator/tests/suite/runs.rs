//! Runs in a state store, with several evaluators at once.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, CallerTexts, CheckRequest, Decision, EndRun, EvaluateReply, EvaluateRequest, ListRuns, ManageReply,
    Page, Refusal, RequestId, RunId, RunView, Scope, SettleRun, ShowRun, Verdict,
};
use stage0_evaluator::{EvaluatorConfig, RunConfig, build};
use stage0_policy::PackSet;
use tokio::task::JoinSet;

use super::service::connect;

pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Evaluators that serve until they are dropped.
pub(crate) struct Stage {
    bus: Bus,
    pub(crate) caller: Backplane,
    serving: JoinSet<()>,
}

impl Stage {
    async fn new(evaluators: usize, runs: RunConfig) -> Self {
        Self::with_packs(evaluators, runs, &PackSet::embedded().unwrap()).await
    }

    pub(crate) async fn with_packs(evaluators: usize, runs: RunConfig, packs: &PackSet) -> Self {
        let bus = Bus::new();
        let mut serving = JoinSet::new();
        for _ in 0..evaluators {
            let config = EvaluatorConfig { packs: packs.clone(), shards: NonZeroUsize::new(2), runs };
            let evaluator = build(config, connect(&bus)).await.unwrap();
            serving.spawn(async move {
                let _ = evaluator.run_until(std::future::pending()).await;
            });
        }
        Self { caller: bus.connect(), bus, serving }
    }

    pub(crate) async fn ask(&self, message: EvaluateRequest) -> EvaluateReply {
        self.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap()
    }

    async fn view(&self, account: &str, run: &str) -> ManageReply<RunView> {
        let show = ShowRun { account: AccountId::parse(account).unwrap(), run_id: RunId::parse(run).unwrap() };
        self.caller.requests.request(&show, WAIT_TIMEOUT).await.unwrap()
    }
}

pub(crate) fn id(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

pub(crate) fn check(number: u64, account: &str, constraints: &[&str], context: impl Into<Value>) -> EvaluateRequest {
    let context = context.into();
    let body =
        json!({"goal": "read the report", "success_criteria": ["x"], "constraints": constraints, "context": context});
    EvaluateRequest {
        asker: None,
        request_id: id(number),
        account: AccountId::parse(account).unwrap(),
        request: CheckRequest::parse(body).unwrap(),
        evaluated_at: jiff::Timestamp::now().as_second(),
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    }
}

pub(crate) fn verdict(reply: &EvaluateReply) -> Verdict {
    let EvaluateReply::Decided(decided) = reply else { panic!("not decided: {reply:?}") };
    decided.decision.verdict
}

pub(crate) async fn allowed_of(stage: &Stage, checks: Vec<EvaluateRequest>) -> usize {
    let mut asks = JoinSet::new();
    for check in checks {
        let requests = Arc::clone(&stage.caller.requests);
        asks.spawn(async move { requests.request(&check, WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    replies.iter().filter(|reply| verdict(reply) == Verdict::Allow).count()
}

#[tokio::test]
async fn of_many_at_once_on_three_evaluators_exactly_as_many_pass_as_may() {
    let stage = Stage::new(3, RunConfig::default()).await;
    let checks = (0..64).map(|n| check(n, "acc", &["max_iterations: 10"], json!({"run_id": "r"}))).collect();
    assert_eq!(allowed_of(&stage, checks).await, 10);
    let ManageReply::Done(view) = stage.view("acc", "r").await else { panic!("no run") };
    assert_eq!(view.iterations, 10);
    let costly = json!({"run_id": "m", "estimated_cost_usd": 1});
    let checks = (100..150).map(|n| check(n, "acc", &["max_cost_usd: 10"], costly.clone())).collect();
    assert_eq!(allowed_of(&stage, checks).await, 10);
}

#[tokio::test]
async fn a_question_that_arrives_twice_at_once_counts_once() {
    let stage = Stage::new(3, RunConfig::default()).await;
    let checks = (0..30).map(|_| check(1, "acc", &["max_iterations: 1"], json!({"run_id": "r"}))).collect();
    assert_eq!(allowed_of(&stage, checks).await, 30, "one check, asked for many times");
    let ManageReply::Done(view) = stage.view("acc", "r").await else { panic!("no run") };
    assert_eq!(view.iterations, 1);
    let other = stage.ask(check(2, "acc", &["max_iterations: 1"], json!({"run_id": "r"}))).await;
    assert_eq!(verdict(&other), Verdict::Defer);
}

#[tokio::test]
async fn runs_of_other_accounts_and_names_are_others() {
    let stage = Stage::new(2, RunConfig::default()).await;
    for (number, account, run) in [(1, "a", "r"), (2, "b", "r"), (3, "a", "R"), (4, "a", "r/é \u{1F600}")] {
        let reply = stage.ask(check(number, account, &["max_iterations: 1"], json!({"run_id": run}))).await;
        assert_eq!(verdict(&reply), Verdict::Allow, "{account} {run}");
        assert!(matches!(stage.view(account, run).await, ManageReply::Done(_)));
    }
    assert_eq!(stage.view("b", "R").await, ManageReply::Refused(Refusal::NotFound));
    let padded = stage.ask(check(5, "a", &["max_iterations: 1"], json!({"loop_state": {"run_id": " r "}}))).await;
    assert_eq!(verdict(&padded), Verdict::Defer, "white space makes no new run");
}

async fn list(stage: &Stage, account: &str, cursor: Option<String>, limit: u32) -> ManageReply<Page<RunView>> {
    let list = ListRuns { account: AccountId::parse(account).unwrap(), cursor, limit };
    stage.caller.requests.request(&list, WAIT_TIMEOUT).await.unwrap()
}

/// Names, over all pages of `limit`.
async fn names(stage: &Stage, account: &str, limit: u32) -> Vec<String> {
    let (mut names, mut cursor) = (Vec::new(), None);
    loop {
        let ManageReply::Done(page) = list(stage, account, cursor, limit).await else { panic!("no page") };
        assert!(page.items.len() <= usize::try_from(limit).unwrap());
        names.extend(page.items.into_iter().map(|run| String::from(run.run_id)));
        cursor = page.next_cursor;
        if cursor.is_none() {
            names.sort();
            return names;
        }
    }
}

#[tokio::test]
async fn runs_are_listed_as_they_are_shown_and_an_accounts_own_alone() {
    let stage = Stage::new(2, RunConfig::default()).await;
    assert_eq!(names(&stage, "a", 100).await, Vec::<String>::new());
    for (number, account, run) in [(1, "a", " r "), (2, "b", "r"), (3, "a", "R"), (4, "a", "r/é"), (5, "ab", "x")] {
        let cost = json!({"run_id": run, "estimated_cost_usd": 0.5});
        verdict(&stage.ask(EvaluateRequest { max_runs: Some(100), ..check(number, account, &[], cost) }).await);
    }
    for limit in [1, 2, 1_000] {
        assert_eq!(names(&stage, "a", limit).await, ["R", "r", "r/é"], "{limit}; counters are no runs");
    }
    let ManageReply::Done(page) = list(&stage, "b", None, 10).await else { panic!("no page") };
    let ManageReply::Done(shown) = stage.view("b", "r").await else { panic!("no run") };
    assert_eq!((page.items[0].cost, page.items[0].first_seen), (shown.cost, shown.first_seen));
    let end = EndRun { account: AccountId::parse("a").unwrap(), run_id: RunId::parse("R").unwrap() };
    assert!(matches!(stage.caller.requests.request(&end, WAIT_TIMEOUT).await.unwrap(), ManageReply::Done(_)));
    assert_eq!(names(&stage, "a", 1).await, ["r", "r/é"], "one that was ended is none");
    for (cursor, limit, at) in
        [(None, 0, "limit"), (None, 1_001, "limit"), (Some("../b"), 10, "cursor"), (Some("a b"), 10, "cursor")]
    {
        let refused = list(&stage, "a", cursor.map(str::to_owned), limit).await;
        let ManageReply::Refused(Refusal::Invalid(errors)) = refused else { panic!("{refused:?}") };
        assert_eq!(errors[0].path, at);
    }
}

#[tokio::test]
async fn a_name_that_came_with_a_secret_is_not_kept_until_it_comes_without_one() {
    let stage = Stage::new(1, RunConfig::default()).await;
    let secret = json!({"run_id": "r-hunter22", "password": "hunter22"});
    assert_eq!(verdict(&stage.ask(check(1, "a", &[], secret)).await), Verdict::Deny);
    assert!(matches!(stage.view("a", "r-hunter22").await, ManageReply::Done(_)), "it is counted all the same");
    assert_eq!(names(&stage, "a", 10).await, Vec::<String>::new());
    verdict(&stage.ask(check(2, "a", &[], json!({"run_id": "r-hunter22"}))).await);
    assert_eq!(names(&stage, "a", 10).await, ["r-hunter22"]);
}

#[tokio::test]
async fn a_whole_number_names_the_same_run_as_its_digits() {
    let stage = Stage::new(1, RunConfig::default()).await;
    let one = |number, context| check(number, "acc", &["max_iterations: 1"], context);
    let first = stage.ask(one(1, json!({"run_id": 11_233_637_052_i64}))).await;
    assert_eq!(verdict(&first), Verdict::Allow);
    let EvaluateReply::Decided(decided) = &first else { panic!("{first:?}") };
    assert_eq!(decided.recordable.as_ref().unwrap().run_id.as_deref(), Some("11233637052"));
    let again = stage.ask(one(2, json!({"loop_state": {"run_id": "11233637052"}}))).await;
    assert_eq!(verdict(&again), Verdict::Defer);
    assert_eq!(names(&stage, "acc", 10).await, ["11233637052"]);
    let fraction = stage.ask(one(3, json!({"run_id": 1.5}))).await;
    let decision = decision(&fraction);
    assert!(decision.issues.iter().any(|issue| issue.code.as_str() == "CONTEXT_REQUIRED"), "{decision:?}");
}

pub(crate) fn decision(reply: &EvaluateReply) -> &Decision {
    let EvaluateReply::Decided(decided) = reply else { panic!("{reply:?}") };
    &decided.decision
}

/// `details.run` of the issues of the loop family.
fn told_of_run(reply: &EvaluateReply) -> Vec<Value> {
    let of_loop = decision(reply).issues.iter().filter(|issue| issue.code.as_str() == "LOOP_THRESHOLD_EXCEEDED");
    of_loop.map(|issue| issue.details.get("run").cloned().unwrap_or(Value::Null)).collect()
}

#[tokio::test]
async fn a_defer_for_what_is_remembered_says_the_run_what_is_counted_and_how_to_end_it() {
    let stage = Stage::new(1, RunConfig::default()).await;
    let limits = ["max_iterations: 1", "same_tool_limit: 1", "max_cost_usd: 0.75", "timeout: 3600"];
    let context = json!({"run_id": "report 7/8", "current_tool": "read_file", "estimated_cost_usd": 0.5});
    assert_eq!(verdict(&stage.ask(check(1, "acc", &limits, context.clone())).await), Verdict::Allow);
    let reply = stage.ask(check(2, "acc", &limits, context.clone())).await;
    assert_eq!(verdict(&reply), Verdict::Defer);
    let log_reply = told_of_run(&reply);
    let counted: Vec<_> = log_reply.iter().map(|run| run["counted"].clone()).collect();
    assert_eq!(log_reply.len(), 3, "the time is within its limit: {log_reply:?}");
    for expected in [
        json!({"iteration": 2, "max_iterations": 1}),
        json!({"same_tool_calls": 2, "same_tool_limit": 1}),
        json!({"cost_usd": 1.0, "max_cost_usd": 0.75}),
    ] {
        assert!(counted.contains(&expected), "{expected} in {counted:?}");
    }
    for run in &log_reply {
        assert_eq!(run["run_id"], "report 7/8");
        let end = run["end"].as_str().unwrap();
        assert!(end.starts_with("DELETE /v1/runs/{run_id}") && end.contains("runs:manage"), "{end}");
    }
    let text = decision(&reply).issues.iter().map(|issue| issue.message.as_str()).collect::<String>();
    assert!(!text.contains("report") && !decision(&reply).reason.contains("report"));
    // What the request says itself would defer again in a new run: nothing to end.
    let own = json!({"run_id": "other", "current_iteration": 2});
    assert_eq!(told_of_run(&stage.ask(check(3, "acc", &limits[..1], own)).await), [Value::Null]);
    let without = json!({"current_iteration": 2});
    assert_eq!(told_of_run(&stage.ask(check(4, "acc", &limits[..1], without)).await), [Value::Null]);
    // If the request holds a secret, none of its text is stored.
    let mut secret = context;
    secret["password"] = "hunter22".into();
    let reply = stage.ask(check(5, "acc", &limits, secret)).await;
    assert!(told_of_run(&reply).iter().all(|run| run["run_id"] == "[redacted]"), "{reply:?}");
}

#[tokio::test]
async fn an_ended_run_starts_over_only_once() {
    let stage = Stage::new(2, RunConfig::default()).await;
    let end = EndRun { account: AccountId::parse("acc").unwrap(), run_id: RunId::parse("r").unwrap() };
    let ended = || stage.caller.requests.request(&end, WAIT_TIMEOUT);
    assert_eq!(ended().await.unwrap(), ManageReply::Refused(Refusal::NotFound));
    let one = |number| check(number, "acc", &["max_iterations: 1"], json!({"run_id": "r"}));
    assert_eq!(verdict(&stage.ask(one(1)).await), Verdict::Allow);
    assert_eq!(verdict(&stage.ask(one(2)).await), Verdict::Defer);
    assert!(matches!(ended().await.unwrap(), ManageReply::Done(_)));
    assert_eq!(stage.view("acc", "r").await, ManageReply::Refused(Refusal::NotFound));
    assert_eq!(ended().await.unwrap(), ManageReply::Refused(Refusal::NotFound));
    assert_eq!(verdict(&stage.ask(one(3)).await), Verdict::Allow);
    assert_eq!(verdict(&stage.ask(one(4)).await), Verdict::Defer);
}

#[tokio::test]
async fn a_settlement_is_the_runs_and_counts_once_among_many() {
    let stage = Stage::new(2, RunConfig::default()).await;
    let settle = |run: &str, number, micros, may_lower| SettleRun {
        account: AccountId::parse("acc").unwrap(),
        run_id: RunId::parse(run).unwrap(),
        request_id: id(number),
        actual_micros: micros,
        may_lower,
    };
    let ask = async |message: SettleRun| stage.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(ask(settle("r", 1, 1, true)).await, ManageReply::Refused(Refusal::NotFound));
    stage.ask(check(1, "acc", &[], json!({"run_id": "r", "estimated_cost_usd": 2}))).await;
    assert_eq!(ask(settle("r", 1, 1, false)).await, ManageReply::Refused(Refusal::ScopeMissing(Scope::RunsManage)));
    assert_eq!(ask(settle("r", 2, 1, true)).await, ManageReply::Refused(Refusal::NotFound));
    let mut asks = JoinSet::new();
    for _ in 0..20 {
        let (requests, message) = (Arc::clone(&stage.caller.requests), settle("r", 1, 3_000_000, false));
        asks.spawn(async move { requests.request(&message, WAIT_TIMEOUT).await.unwrap() });
    }
    let replies = asks.join_all().await;
    let done: Vec<_> = replies.iter().filter(|reply| matches!(reply, ManageReply::Done(_))).collect();
    let twice = replies.iter().filter(|reply| matches!(reply, ManageReply::Refused(Refusal::Conflict(_)))).count();
    assert_eq!((done.len(), twice), (1, 19));
    let ManageReply::Done(view) = stage.view("acc", "r").await else { panic!("no run") };
    assert_eq!((view.cost.spent_usd, view.cost.reserved_usd), (3.0, 0.0));
}

#[tokio::test]
async fn an_account_names_no_more_runs_a_day_than_it_may_and_ending_one_makes_room() {
    let stage = Stage::new(3, RunConfig::default()).await;
    let named = |number, account: &str, run: String| {
        let check = check(number, account, &[], json!({"run_id": run}));
        EvaluateRequest { max_runs: Some(10), ..check }
    };
    let ask_all = async |numbers: std::ops::Range<u64>| {
        let mut asks = JoinSet::new();
        for number in numbers {
            let run = number % 20;
            let (requests, check) = (Arc::clone(&stage.caller.requests), named(number, "acc", format!("r{run}")));
            asks.spawn(async move { (run, requests.request(&check, WAIT_TIMEOUT).await.unwrap()) });
        }
        let decided = asks.join_all().await.into_iter().filter(|(_, reply)| match reply {
            EvaluateReply::TooManyRuns { limit: 10 } => false,
            reply => verdict(reply) == Verdict::Allow,
        });
        decided.map(|(run, _)| run).collect::<Vec<_>>()
    };
    let mut open = ask_all(0..20).await;
    open.sort_unstable();
    assert_eq!(open.len(), 10, "on all evaluators batch_size");
    let mut again = ask_all(20..60).await;
    again.sort_unstable();
    assert!(again.chunks(2).map(|pair| pair[0]).eq(open.iter().copied()), "runs that are open stay open: {again:?}");
    let mut there = 0;
    for run in 0..20 {
        there += usize::from(matches!(stage.view("acc", &format!("r{run}")).await, ManageReply::Done(_)));
    }
    assert_eq!(there, 10, "one too many leaves nothing behind");
    let opened = open[0];
    verdict(&stage.ask(named(100, "acc", format!("r{opened}"))).await);
    verdict(&stage.ask(named(101, "other", "r".to_owned())).await);
    verdict(&stage.ask(check(102, "acc", &[], json!({}))).await);
    let refused = stage.ask(named(103, "acc", "fresh".to_owned())).await;
    assert_eq!(refused, EvaluateReply::TooManyRuns { limit: 10 });
    let end =
        EndRun { account: AccountId::parse("acc").unwrap(), run_id: RunId::parse(&format!("r{opened}")).unwrap() };
    assert!(matches!(stage.caller.requests.request(&end, WAIT_TIMEOUT).await.unwrap(), ManageReply::Done(_)));
    let slot = async {
        let mut number = 200;
        while stage.ask(named(number, "acc", "fresh".to_owned())).await == (EvaluateReply::TooManyRuns { limit: 10 }) {
            number += 1;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, slot).await.unwrap();
    assert_eq!(stage.ask(named(104, "acc", "one more".to_owned())).await, EvaluateReply::TooManyRuns { limit: 10 });
}

#[tokio::test]
async fn checks_of_a_gateway_that_knows_of_no_cap_name_any_run_and_count_for_no_cap() {
    let stage = Stage::new(1, RunConfig::default()).await;
    let named = async |number, run: &str, max_runs| {
        let check = check(number, "acc", &[], json!({"run_id": run}));
        stage.ask(EvaluateRequest { max_runs, ..check }).await
    };
    assert_eq!(verdict(&named(1, "a", None).await), Verdict::Allow);
    assert_eq!(verdict(&named(2, "b", Some(1)).await), Verdict::Allow, "the first that counts");
    assert_eq!(named(3, "c", Some(1)).await, EvaluateReply::TooManyRuns { limit: 1 });
    assert_eq!(verdict(&named(4, "c", None).await), Verdict::Allow);
    // Checks of one run are decided together.
    let caps = (10..40).map(|number| (number, (number % 2 == 1).then_some(1)));
    let replies = join_all(caps.map(async |(number, cap)| (cap, named(number, "d", cap).await))).await;
    for (cap, reply) in replies {
        assert!(cap.is_some() || verdict(&reply) == Verdict::Allow, "{reply:?}");
    }
}

#[tokio::test]
async fn a_run_is_forgotten_when_its_time_is_over() {
    let config = RunConfig { kept_for: Duration::from_secs(1), ..RunConfig::default() };
    let stage = Stage::new(1, config).await;
    stage.ask(check(1, "acc", &["max_iterations: 1"], json!({"run_id": "r"}))).await;
    assert!(matches!(stage.view("acc", "r").await, ManageReply::Done(_)));
    let over = async { while stage.view("acc", "r").await != ManageReply::Refused(Refusal::NotFound) {} };
    tokio::time::timeout(WAIT_TIMEOUT, over).await.unwrap();
}

#[tokio::test]
async fn without_a_ledger_a_check_with_a_run_is_not_decided_and_others_are() {
    let stage = Stage::new(1, RunConfig::default()).await;
    let key = "runs.acc.454349e422f05297191ead13e21d3db520e5abef";
    // A malformed record is not taken for a new run.
    let until = tokio::time::Instant::now() + WAIT_TIMEOUT;
    stage.bus.connect().state_store.put(key, "no state".into(), None, None, until).await.unwrap();
    let reply = stage.ask(check(1, "acc", &[], json!({"run_id": "r"}))).await;
    assert!(matches!(reply, EvaluateReply::Unable(_)), "{reply:?}");
    assert_eq!(stage.view("acc", "r").await, ManageReply::Failed);
    assert_eq!(verdict(&stage.ask(check(2, "acc", &[], json!({"run_id": "other"}))).await), Verdict::Allow);
    assert_eq!(verdict(&stage.ask(check(3, "acc", &[], json!({}))).await), Verdict::Allow);
    assert!(!stage.serving.is_empty());
}
