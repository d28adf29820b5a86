//! Runs without a state store: what sequences of checks do to the counts.

use serde_json::{Value, json};
use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateRequest, Verdict};

use super::*;
use stage0_policy::Engine;
use stage0_policy::Pack;
use stage0_policy::TimeLimit;

const NOW: i64 = 1_773_662_400;
const RESERVED_FOR: i64 = 3_600;

fn id(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

/// A run, its clock and its engine.
struct Play {
    engine: Engine,
    state: RunState,
    now: i64,
    next: u64,
}

/// What became of a check.
#[derive(Debug, PartialEq)]
struct Told {
    id: u64,
    verdict: Verdict,
    codes: Vec<String>,
}

impl Play {
    fn new() -> Self {
        let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
        Self { engine, state: RunState::new(NOW), now: NOW, next: 1 }
    }

    fn check(&mut self, constraints: &[&str], context: Value) -> Told {
        let id = self.next;
        self.ask(id, id, constraints, context)
    }

    fn ask(&mut self, number: u64, operation: u64, constraints: &[&str], mut context: Value) -> Told {
        self.next = self.next.max(number) + 1;
        context["run_id"] = json!("r");
        let tools = context.as_object_mut().unwrap().remove("tools").unwrap_or(json!([]));
        let body = json!({"goal": "read the report", "success_criteria": ["x"], "constraints": constraints,
            "tools": tools, "context": context});
        self.put(number, operation, body)
    }

    fn put(&mut self, number: u64, operation: u64, body: Value) -> Told {
        let check_ref = CheckRef { now: self.now, request_id: id(number), operation: id(operation) };
        let message = EvaluateRequest {
            asker: None,
            request_id: id(number),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: self.now,
            operation: (number != operation).then(|| id(operation)),
            caller: CallerTexts::default(),
            max_runs: None,
        };
        self.state.expire(self.now, RESERVED_FOR);
        let needs = self.engine.pack().run_needs();
        let snapshot = self.state.snapshot(check_ref, needs);
        let answer = self.engine.answer(&message, Some(&snapshot), None, TimeLimit::NONE).unwrap();
        let (decided, facts) = (answer.evaluation, answer.run);
        let update = RunUpdate::new(&decided, needs, facts);
        self.state.apply(check_ref, &update);
        let codes = decided.decision.issues.iter().map(|issue| issue.code.as_str().to_owned()).collect();
        Told { id: number, verdict: decided.decision.verdict, codes }
    }

    fn verdicts(&mut self, times: usize, constraints: &[&str], context: &Value) -> Vec<Verdict> {
        (0..times).map(|_| self.check(constraints, context.clone()).verdict).collect()
    }

    fn spent(&self) -> (i64, i64) {
        (self.state.spent_micros, self.state.reserved_micros())
    }
}

use Verdict::{Allow, Defer, Deny};

#[test]
fn the_last_allowed_iteration_passes_and_the_next_does_not() {
    let mut run = Play::new();
    assert_eq!(run.verdicts(5, &["max_iterations: 3"], &json!({})), [Allow, Allow, Allow, Defer, Defer]);
    let last = run.check(&["max_iterations: 3"], json!({}));
    assert_eq!(last.codes, ["LOOP_THRESHOLD_EXCEEDED"]);
    assert_eq!(run.check(&["max_iterations: 4"], json!({})).verdict, Allow, "what was not allowed did not advance it");
}

#[test]
fn a_smaller_counter_resets_nothing() {
    let mut run = Play::new();
    for _ in 0..3 {
        assert_eq!(run.check(&["max_iterations: 3"], json!({"current_iteration": 1})).verdict, Allow);
    }
    assert_eq!(run.check(&["max_iterations: 3"], json!({"current_iteration": 1})).verdict, Defer);
}

#[test]
fn a_larger_counter_counts_at_once_and_is_kept() {
    let mut run = Play::new();
    assert_eq!(run.check(&["max_iterations: 3"], json!({"current_iteration": 9})).verdict, Defer);
    assert_eq!(run.check(&["max_iterations: 3"], json!({"current_iteration": 1})).verdict, Defer, "it was reported");
    let mut run = Play::new();
    assert_eq!(run.check(&["max_iterations: 5"], json!({"current_iteration": 5})).verdict, Allow);
    assert_eq!(run.check(&["max_iterations: 5"], json!({})).verdict, Defer);
}

#[test]
fn an_honest_counter_is_no_hindrance() {
    let mut run = Play::new();
    for iteration in 1..=3 {
        let context = json!({"current_iteration": iteration});
        assert_eq!(run.check(&["max_iterations: 3"], context).verdict, Allow, "{iteration}");
    }
    assert_eq!(run.check(&["max_iterations: 3"], json!({"current_iteration": 4})).verdict, Defer);
}

#[test]
fn retries_are_what_was_reported_and_never_counted_by_us() {
    let mut run = Play::new();
    assert_eq!(run.verdicts(4, &["max_retries: 2"], &json!({})), [Allow; 4]);
    assert_eq!(run.check(&["max_retries: 2"], json!({"retry_count": 2})).verdict, Defer);
    assert_eq!(run.check(&["max_retries: 2"], json!({"retry_count": 0})).verdict, Defer);
    assert_eq!(run.state.retries, 2);
}

#[test]
fn time_runs_by_the_servers_clock_too() {
    let mut run = Play::new();
    assert_eq!(run.check(&["timeout: 60s"], json!({})).verdict, Allow);
    run.now += 60;
    assert_eq!(run.check(&["timeout: 60s"], json!({"elapsed_seconds": 1})).verdict, Allow);
    run.now += 1;
    assert_eq!(run.check(&["timeout: 60s"], json!({"elapsed_seconds": 1})).verdict, Defer);
    let mut run = Play::new();
    assert_eq!(run.check(&["timeout: 60s"], json!({"elapsed_seconds": 61})).verdict, Defer);
    assert_eq!(run.check(&["timeout: 60s"], json!({})).verdict, Defer, "it was reported");
}

#[test]
fn a_clock_that_steps_back_makes_no_time_negative() {
    let mut run = Play::new();
    run.now -= 1_000;
    assert_eq!(run.check(&["timeout: 60s"], json!({})).verdict, Allow);
    assert_eq!(run.state.elapsed_micros(run.now), 0);
}

#[test]
fn the_same_tool_is_counted_over_checks_and_over_what_is_reported() {
    let mut run = Play::new();
    let shell = json!({"current_tool": "shell"});
    assert_eq!(run.verdicts(3, &["same_tool_limit: 2"], &shell), [Allow, Allow, Defer]);
    assert_eq!(run.check(&["same_tool_limit: 2"], json!({"current_tool": "email"})).verdict, Allow);
    assert_eq!(run.check(&["same_tool_limit: 2"], json!({"tools": ["ＳＨＥＬＬ "]})).verdict, Defer);
    let mut run = Play::new();
    let reported = json!({"current_tool": "email", "recent_tools": ["shell", "shell"]});
    assert_eq!(run.check(&["same_tool_limit: 2"], reported).verdict, Allow);
    assert_eq!(run.check(&["same_tool_limit: 2"], shell.clone()).verdict, Defer, "a list that is left out");
    let mut run = Play::new();
    assert_eq!(run.verdicts(2, &["no_repeat_calls"], &shell), [Allow, Defer]);
}

#[test]
fn a_look_alike_of_a_tool_counts_for_all() {
    let mut run = Play::new();
    let disguised = json!({"current_tool": "\u{430}b"});
    assert_eq!(run.verdicts(2, &[], &disguised), [Allow, Allow]);
    assert_eq!(run.check(&["same_tool_limit: 2"], json!({"current_tool": "shell"})).verdict, Defer);
}

#[test]
fn more_tools_than_are_told_apart_count_for_all_and_memory_stays_bounded() {
    let mut run = Play::new();
    for number in 0..MAX_NAMES + 5 {
        run.check(&[], json!({"current_tool": format!("tool{number}")}));
    }
    let long = "x".repeat(900);
    run.check(&[], json!({"current_tool": long}));
    assert_eq!((run.state.calls.len(), run.state.any_calls), (MAX_NAMES, 6));
    assert_eq!((run.state.tools.len(), run.state.allowed.len()), (MAX_TOOLS, MAX_ALLOWED));
    assert!(run.state.tools.back().unwrap().starts_with("sha256:"));
    assert!(serde_json::to_vec(&run.state).unwrap().len() < 20_000);
    assert_eq!(run.check(&["same_tool_limit: 6"], json!({"current_tool": "fresh"})).verdict, Defer);
}

#[test]
fn the_record_of_a_run_is_bounded_whatever_its_tools_are_called() {
    for unit in ["a", "\"", "\\", "é", "\u{1F600}"] {
        let mut run = Play::new();
        for number in 0..10 {
            let name = |n: usize| format!("{}{n}", unit.repeat(110 / unit.len()));
            let tools: Vec<_> = (0..200).map(|n| name(number * 200 + n)).collect();
            run.check(&[], json!({"recent_tools": tools, "current_tool": name(number)}));
        }
        for number in 0..MAX_ALLOWED + 5 {
            run.check(&[], json!({"current_tool": format!("{}{number}", unit.repeat(110 / unit.len()))}));
        }
        let record = serde_json::to_vec(&run.state).unwrap().len();
        assert!(record < 64 * 1_024, "{record} bytes with names of {unit:?}");
        let untold = run.check(&["same_tool_limit: 2"], json!({"current_tool": "one that has no count of its own"}));
        assert_eq!(untold.verdict, Defer, "what is not told apart counts for all");
    }
}

#[test]
fn estimates_are_reserved_so_that_checks_cannot_overspend_together() {
    let mut run = Play::new();
    let one = json!({"estimated_cost_usd": 1});
    let verdicts = run.verdicts(50, &["max_cost_usd: 10"], &one);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Allow).count(), 10);
    assert_eq!(run.spent(), (0, 10_000_000));
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({})).verdict, Allow, "what costs nothing");
}

#[test]
fn a_settlement_replaces_the_estimate() {
    let mut run = Play::new();
    let check = run.check(&["max_cost_usd: 10"], json!({"estimated_cost_usd": 4}));
    assert_eq!(run.state.settle(id(check.id), 5_000_000, false), Ok(4_000_000));
    assert_eq!(run.spent(), (5_000_000, 0));
    assert!(matches!(run.state.settle(id(check.id), 5_000_000, true),
            Err(Refusal::Conflict(text)) if text.contains("with 5 USD")));
    assert_eq!(run.spent(), (5_000_000, 0), "twice is refused");
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({"estimated_cost_usd": 5.000001})).verdict, Defer);
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({"estimated_cost_usd": 5})).verdict, Allow);
}

#[test]
fn below_the_estimate_takes_a_right() {
    let mut run = Play::new();
    let check = run.check(&[], json!({"estimated_cost_usd": 4}));
    assert_eq!(run.state.settle(id(check.id), 3_999_999, false), Err(Refusal::ScopeMissing(Scope::RunsManage)));
    assert_eq!(run.spent(), (0, 4_000_000));
    assert_eq!(run.state.settle(id(check.id), 0, true), Ok(4_000_000));
    assert_eq!(run.spent(), (0, 0));
}

#[test]
fn what_was_not_allowed_cannot_be_settled() {
    let mut run = Play::new();
    let deferred = run.check(&["max_cost_usd: 1"], json!({"estimated_cost_usd": 2}));
    assert_eq!(deferred.verdict, Defer);
    assert_eq!(run.state.settle(id(deferred.id), 0, true), Err(Refusal::NotFound));
    assert_eq!(run.spent(), (0, 0));
}

#[test]
fn an_allowed_check_without_an_estimate_can_be_settled() {
    let mut run = Play::new();
    let check = run.check(&[], json!({}));
    assert_eq!(run.state.settle(id(check.id), 2_000_000, false), Ok(0));
    assert_eq!(run.check(&["max_cost_usd: 1"], json!({})).verdict, Defer);
}

#[test]
fn an_estimate_that_is_never_settled_counts_as_spent() {
    let mut run = Play::new();
    let check = run.check(&[], json!({"estimated_cost_usd": 4}));
    run.now += RESERVED_FOR - 1;
    run.state.expire(run.now, RESERVED_FOR);
    assert_eq!(run.spent(), (0, 4_000_000));
    run.now += 1;
    run.state.expire(run.now, RESERVED_FOR);
    assert_eq!(run.spent(), (4_000_000, 0));
    assert_eq!(run.state.settle(id(check.id), 0, true), Err(Refusal::NotFound));
    assert_eq!(run.check(&["max_cost_usd: 3"], json!({})).verdict, Defer);
}

#[test]
fn the_oldest_estimate_is_spent_when_there_are_too_many() {
    let mut run = Play::new();
    for _ in 0..=MAX_ALLOWED {
        run.check(&[], json!({"estimated_cost_usd": 1}));
    }
    assert_eq!(run.spent(), (1_000_000, i64::try_from(MAX_ALLOWED).unwrap() * 1_000_000));
}

#[test]
fn reported_cost_counts_where_it_is_more_and_what_follows_adds_to_it() {
    let mut run = Play::new();
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({"cumulative_cost_usd": 8})).verdict, Allow);
    assert_eq!(
        run.check(&["max_cost_usd: 10"], json!({"cumulative_cost_usd": 0, "estimated_cost_usd": 2})).verdict,
        Allow
    );
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({"estimated_cost_usd": 1})).verdict, Defer);
    assert_eq!(run.spent(), (8_000_000, 2_000_000));
    // A caller who counts what is reserved already says nothing new.
    assert_eq!(run.check(&["max_cost_usd: 10"], json!({"cumulative_cost_usd": 10})).verdict, Allow);
    assert_eq!(run.spent(), (8_000_000, 2_000_000));
}

#[test]
fn money_too_large_to_count_stays_the_most_there_is() {
    let mut run = Play::new();
    let most = json!({"estimated_cost_usd": 1_000_000_000});
    run.check(&[], most.clone());
    run.state.spent_micros = i64::MAX - 1;
    assert_eq!(run.state.total_micros(), i64::MAX);
    assert_eq!(run.check(&["max_cost_usd: 1000000000"], json!({})).verdict, Defer);
    run.check(&[], most);
    assert_eq!(run.state.total_micros(), i64::MAX, "it never starts again from below");
    let full = run.state.clone();
    assert!(matches!(run.state.settle(id(1), 1_000_000_000_000_000, true), Err(Refusal::Conflict(_))));
    assert_eq!(run.state, full, "what cannot be counted is not settled");
}

#[test]
fn a_run_that_began_while_the_clock_was_a_day_ahead_goes_on_from_the_time_that_it_had_run() {
    const DAY: i64 = 86_400;
    let mut state = RunState { first_seen: NOW + DAY, last_seen: NOW + DAY + 100, ..RunState::default() };
    state.expire(NOW, RESERVED_FOR);
    assert_eq!(state.elapsed_micros(NOW), 100_000_000);
    assert_eq!(state.elapsed_micros(NOW + 50), 150_000_000);
    let mut near = RunState { first_seen: NOW - 20, last_seen: NOW + 10, ..RunState::default() };
    near.expire(NOW, RESERVED_FOR);
    assert_eq!((near.first_seen, near.last_seen), (NOW - 20, NOW + 10), "time does not go back for a little");
}

#[test]
fn a_check_is_settled_for_at_most_a_billion_dollars() {
    let mut run = Play::new();
    run.check(&[], json!({"estimated_cost_usd": 1}));
    for bad in [-1, 1_000_000_000_000_001, i64::MAX] {
        let refused = run.state.settle(id(1), bad, true);
        assert!(matches!(refused, Err(Refusal::Invalid(errors)) if errors[0].path == "actual_cost_usd"), "{bad}");
    }
    assert_eq!(run.state.settle(id(1), 1_000_000_000_000_000, true), Ok(1_000_000));
}

#[test]
fn a_check_that_is_asked_again_counts_once_and_gets_its_verdict_again() {
    let mut run = Play::new();
    let limits = ["max_iterations: 2", "same_tool_limit: 2", "max_cost_usd: 2"];
    let context = || json!({"current_tool": "shell", "estimated_cost_usd": 1});
    assert_eq!(run.ask(1, 1, &limits, context()).verdict, Allow);
    assert_eq!(run.ask(2, 2, &limits, context()).verdict, Allow);
    let before = run.state.clone();
    // The last allowed one, asked again under its own name or a new one, passes again.
    assert_eq!(run.ask(2, 2, &limits, context()).verdict, Allow);
    assert_eq!(run.state, before);
    assert_eq!(run.ask(7, 1, &limits, context()).verdict, Allow);
    assert_eq!((run.state.iterations, run.state.tools.len(), run.spent()), (2, 2, (0, 2_000_000)));
    // Only the attempt that was answered last can be settled.
    assert_eq!(run.state.settle(id(1), 1_000_000, false), Err(Refusal::NotFound));
    assert_eq!(run.state.settle(id(7), 1_000_000, false), Ok(1_000_000));
    assert_eq!(run.ask(8, 8, &limits, context()).verdict, Defer);
}

#[test]
fn a_repeated_refused_check_is_decided_again() {
    let mut run = Play::new();
    assert_eq!(run.ask(1, 1, &["max_iterations: 1"], json!({})).verdict, Allow);
    assert_eq!(run.ask(2, 2, &["max_iterations: 1"], json!({})).verdict, Defer);
    assert_eq!(run.ask(3, 2, &["max_iterations: 1"], json!({})).verdict, Defer);
    assert_eq!(run.state.iterations, 1);
}

#[test]
fn a_request_with_a_secret_teaches_no_names() {
    let mut run = Play::new();
    let answered = run.check(&[], json!({"recent_tools": ["password=hunter22"], "current_iteration": 4}));
    assert_eq!(answered.verdict, Deny);
    assert!(run.state.calls.is_empty() && run.state.tools.is_empty());
    assert_eq!(run.state.reported_iteration, 4);
    assert!(!serde_json::to_string(&run.state).unwrap().contains("hunter22"));
}

#[test]
fn a_counter_that_cannot_be_read_defers_and_changes_nothing_else() {
    let mut run = Play::new();
    let answered = run.check(&["max_iterations: 3"], json!({"current_iteration": "two"}));
    assert_eq!((answered.verdict, answered.codes), (Defer, vec!["CONTEXT_REQUIRED".to_owned()]));
    assert_eq!(run.state.iterations, 0);
}

#[test]
fn a_run_id_that_is_neither_text_nor_a_whole_number_makes_its_counters_malformed() {
    let mut run = Play::new();
    for name in [json!(7.5), json!(true), json!([7]), json!({"id": 7})] {
        for (limit, verdict) in [("max_iterations: 3", Defer), ("max_cost_usd: 3", Defer), ("sandbox", Allow)] {
            let body = json!({"goal": "read the report", "success_criteria": ["x"], "constraints": [limit],
                "context": {"run_id": name}});
            assert_eq!(run.put(99, 99, body).verdict, verdict, "{name} {limit}");
        }
    }
}

#[test]
fn a_run_is_kept_from_its_last_change_and_written_only_when_it_must_be() {
    const DAY: i64 = 86_400;
    let mut run = Play::new();
    let absent = run.state.clone();
    run.check(&["max_iterations: 1"], json!({}));
    assert!(run.state.extend_expiry(&absent, NOW, DAY));
    assert_eq!(run.state.expires_at, NOW + DAY);
    let before = run.state.clone();
    run.check(&["max_iterations: 1"], json!({}));
    assert!(!run.state.extend_expiry(&before, NOW + 60, DAY), "a refusal changed nothing");
    run.now = NOW + DAY / 24 + 1;
    run.check(&["max_iterations: 1"], json!({}));
    assert!(run.state.extend_expiry(&before, run.now, DAY), "further checks extend the run");
    assert_eq!(run.state.expires_at, run.now + DAY);
}

#[test]
fn the_state_is_read_as_it_was_written_and_with_fields_left_out() {
    let mut run = Play::new();
    run.check(&[], json!({"estimated_cost_usd": 1, "current_tool": "shell"}));
    let text = serde_json::to_string(&run.state).unwrap();
    assert_eq!(serde_json::from_str::<RunState>(&text).unwrap(), run.state);
    assert_eq!(serde_json::from_str::<RunState>("{}").unwrap(), RunState::default());
    assert!(serde_json::from_str::<RunState>(r#"{"ended":true}"#).unwrap().ended);
}

#[test]
fn a_view_tells_money_in_dollars_and_what_is_open() {
    let mut run = Play::new();
    let first = run.check(&[], json!({"estimated_cost_usd": 1.5, "current_tool": "shell"}));
    run.check(&[], json!({"estimated_cost_usd": 0.25, "current_tool": "shell", "retry_count": 1}));
    run.state.settle(id(first.id), 2_000_000, false).unwrap();
    run.now += 10;
    let view = run.state.view(stage0_contract::RunId::parse("r").unwrap(), run.now, RESERVED_FOR);
    assert_eq!((view.iterations, view.retries, view.elapsed_seconds), (2, 1, 10.0));
    assert_eq!((view.cost.spent_usd, view.cost.reserved_usd, view.cost.total_usd), (2.0, 0.25, 2.25));
    assert_eq!((view.tools, view.tool_calls["shell"]), (vec!["shell".to_owned(); 2], 2));
    assert_eq!(view.reservations.len(), 1);
    assert_eq!(view.reservations[0].expires_at.as_second(), NOW + RESERVED_FOR);
}

#[test]
fn a_long_name_is_counted_like_a_short_one() {
    for length in [1, 128, 129, 900] {
        let mut run = Play::new();
        let tool = json!({"current_tool": "t".repeat(length)});
        assert_eq!(run.verdicts(3, &["same_tool_limit: 2"], &tool), [Allow, Allow, Defer], "{length}");
        let reported = json!({"current_tool": "x", "recent_tools": vec!["t".repeat(length); 2]});
        let mut run = Play::new();
        run.check(&[], reported);
        assert_eq!(run.check(&["same_tool_limit: 2"], tool).verdict, Defer, "{length}, as reported");
    }
}

#[test]
fn a_tool_that_is_listed_often_is_one_call() {
    let mut run = Play::new();
    let tools = json!({"tools": ["a", "A", "a", "b"]});
    assert_eq!(run.verdicts(3, &["same_tool_limit: 2"], &tools), [Allow, Allow, Defer]);
    assert_eq!((run.state.calls["a"], run.state.calls["b"], run.state.tools.len()), (2, 2, 4));
}

#[test]
fn a_check_can_be_asked_again_after_its_estimate_was_spent() {
    let mut run = Play::new();
    let context = || json!({"estimated_cost_usd": 1});
    assert_eq!(run.ask(1, 1, &["max_cost_usd: 1"], context()).verdict, Allow);
    run.now += 300;
    run.state.expire(run.now, 60);
    assert_eq!(run.spent(), (1_000_000, 0));
    assert_eq!(run.ask(2, 1, &["max_cost_usd: 1"], context()).verdict, Allow, "it is still the same check");
    run.state.expire(run.now, 60);
    assert_eq!((run.spent(), run.state.iterations), ((1_000_000, 0), 1), "and is spent once");
    run.now += 301;
    run.state.expire(run.now, 60);
    assert!(run.state.allowed.is_empty());
}

#[test]
fn a_gateway_whose_clock_is_behind_gains_no_time() {
    let mut run = Play::new();
    run.check(&[], json!({}));
    run.now += 90;
    run.check(&[], json!({}));
    run.now -= 60;
    assert_eq!(run.check(&["timeout: 60s"], json!({})).verdict, Defer);
}
