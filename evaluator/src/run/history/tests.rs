//! What sequences of checks leave in a run's history, and what the next check sees of it.

use serde_json::{Value, json};
use stage0_contract::Micros;
use stage0_policy::{Reported, ToolCalls};

use super::*;

const NOW: i64 = 1_773_662_400;
const RESERVED_FOR: i64 = 3_600;
const ALL: RunNeeds = RunNeeds { calls: true, allowed: true, verdicts: true, targets: true };

use Verdict::{Allow, Defer, Deny};

fn id(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn target(name: &str) -> TargetHash {
    serde_json::from_value(json!(format!("{name:0>16}"))).unwrap()
}

fn calls(known: &[(&str, i64)]) -> BTreeMap<String, i64> {
    known.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect()
}

/// What a check proposes and reports.
#[derive(Clone, Default)]
struct Ask<'a> {
    tools: &'a [&'a str],
    targets: &'a [&'a str],
    reported: &'a [(&'a str, i64)],
    estimate: i64,
    approved: bool,
    secret: bool,
}

impl Ask<'_> {
    fn facts(&self, snapshot: &RunSnapshot) -> RunFacts {
        let reported = Reported {
            iteration: 1,
            retries: 0,
            elapsed_micros: 0,
            spent_micros: 0,
            calls: ToolCalls { known: calls(self.reported), any: 0 },
            same_tool_calls: 0,
            proposed: self.tools.iter().map(|tool| (*tool != ANY_TOOL).then(|| (*tool).to_owned())).collect(),
        };
        RunFacts {
            iteration: snapshot.iteration,
            retries: 0,
            elapsed_micros: snapshot.elapsed_micros,
            cost_micros: snapshot.cost_micros + self.estimate,
            same_tool_calls: 0,
            estimated_cost: Micros::from_micros(self.estimate).ok(),
            reported: Some(reported),
            has_secrets: self.secret,
            targets: self.targets.iter().map(|name| target(name)).collect(),
            called: None,
        }
    }
}

/// A run and its clock.
struct Run {
    state: RunState,
    now: i64,
    needs: RunNeeds,
}

impl Run {
    fn asking_for(needs: RunNeeds) -> Self {
        Self { state: RunState::new(NOW), now: NOW, needs }
    }

    /// A check under its own id; returns what it saw.
    fn check(&mut self, number: u64, verdict: Verdict, ask: &Ask<'_>) -> RunHistory {
        self.repeat(number, number, verdict, ask)
    }

    fn repeat(&mut self, number: u64, operation: u64, verdict: Verdict, ask: &Ask<'_>) -> RunHistory {
        let check_ref = CheckRef { now: self.now, request_id: id(number), operation: id(operation) };
        self.state.expire(self.now, RESERVED_FOR);
        let mut snapshot = self.state.snapshot(check_ref, self.needs);
        let update = RunUpdate { verdict, approved: ask.approved, needs: self.needs, facts: ask.facts(&snapshot) };
        if self.state.is_repeat(check_ref) {
            self.state.leave_out_own(&mut snapshot, &update);
        }
        self.state.apply(check_ref, &update);
        snapshot.history
    }

    /// What a further check sees.
    fn seen(&self) -> RunHistory {
        let check_ref = CheckRef { now: self.now, request_id: id(9_999), operation: id(9_999) };
        self.state.snapshot(check_ref, self.needs).history
    }

    fn record(&self) -> Value {
        serde_json::to_value(&self.state).unwrap()
    }
}

fn counts(history: &RunHistory) -> (i64, i64, i64, Option<Verdict>) {
    (history.allowed, history.denied, history.deferred, history.last_verdict)
}

#[test]
fn verdicts_are_counted_and_the_last_one_is_kept() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask::default();
    assert_eq!(counts(&run.check(1, Allow, &ask)), (0, 0, 0, None));
    assert_eq!(counts(&run.check(2, Deny, &ask)), (1, 0, 0, Some(Allow)));
    assert_eq!(counts(&run.check(3, Defer, &ask)), (1, 1, 0, Some(Deny)));
    assert_eq!(counts(&run.check(4, Deny, &ask)), (1, 1, 1, Some(Defer)));
    assert_eq!(counts(&run.seen()), (1, 2, 1, Some(Deny)));
}

#[test]
fn a_repeat_counts_once_and_does_not_see_itself() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask::default();
    for (number, verdict) in [(1, Allow), (2, Deny), (3, Defer)] {
        run.check(number, verdict, &ask);
    }
    assert_eq!(counts(&run.repeat(3, 3, Defer, &ask)), (1, 1, 0, Some(Deny)), "lost and sent again");
    assert_eq!(counts(&run.repeat(7, 3, Defer, &ask)), (1, 1, 0, Some(Deny)), "under an idempotency key");
    assert_eq!(counts(&run.repeat(8, 2, Deny, &ask)), (1, 0, 1, Some(Defer)));
    assert_eq!(counts(&run.repeat(9, 1, Allow, &ask)), (0, 1, 1, Some(Defer)));
    assert_eq!(counts(&run.seen()), (1, 1, 1, Some(Defer)));
}

#[test]
fn a_refused_check_that_is_repeated_and_comes_to_something_else_is_counted_as_that() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask::default();
    run.check(1, Deny, &ask);
    run.check(2, Defer, &ask);
    run.repeat(3, 1, Defer, &ask);
    assert_eq!(counts(&run.seen()), (0, 0, 2, Some(Defer)));
    run.repeat(4, 2, Allow, &ask);
    assert_eq!(counts(&run.seen()), (1, 0, 1, Some(Allow)));
    // Its answer may have left: it stays allowed.
    run.repeat(5, 2, Deny, &ask);
    assert_eq!(counts(&run.seen()), (1, 0, 1, Some(Allow)));
}

#[test]
fn a_refused_check_can_be_repeated_for_as_long_as_an_idempotency_key_lives_and_few_are_kept() {
    let mut run = Run::asking_for(ALL);
    run.check(1, Deny, &Ask::default());
    run.now += REPEATABLE - 1;
    run.repeat(2, 1, Deny, &Ask::default());
    assert_eq!(run.seen().denied, 1);
    run.now += 1;
    run.repeat(3, 1, Deny, &Ask::default());
    assert_eq!(run.seen().denied, 2, "it is a new one");
    for number in 10..10 + 2 * MAX_REFUSED as u64 {
        run.check(number, Deny, &Ask::default());
    }
    assert_eq!((run.state.history.refused.len(), run.seen().denied), (MAX_REFUSED, 2 + 2 * MAX_REFUSED as i64));
}

#[test]
fn a_pack_that_asks_for_nothing_leaves_no_trace_and_a_refusal_changes_nothing() {
    let mut run = Run::asking_for(RunNeeds::default());
    let ask = Ask { tools: &["read"], targets: &["a1"], approved: true, ..Ask::default() };
    run.check(1, Allow, &ask);
    let before = run.state.clone();
    run.check(2, Deny, &ask);
    run.check(3, Defer, &ask);
    assert_eq!(run.state, before, "so a refusal is not written");
    assert!(run.record().get("history").is_none() && run.record()["allowed"][0].get("p").is_none());
    // Except for what is reported, which another pack must not take for allowed.
    run.check(4, Allow, &Ask { reported: &[("read", 3)], ..ask.clone() });
    assert_eq!(run.record()["history"], json!({"reported_calls": {"read": 2}}));
    let seen = run.seen();
    assert_eq!((seen.tools, seen.target_tools, seen.approved), (BTreeMap::new(), BTreeMap::new(), false));
    // Each thing is kept for the packs that ask for it.
    for needs in [
        RunNeeds { calls: true, ..RunNeeds::default() },
        RunNeeds { allowed: true, ..RunNeeds::default() },
        RunNeeds { targets: true, ..RunNeeds::default() },
    ] {
        let mut run = Run::asking_for(needs);
        run.check(1, Allow, &ask);
        let before = run.state.clone();
        run.check(2, Deny, &ask);
        assert_eq!(run.state, before, "only verdicts cost a write for a refusal");
        assert!(run.record().get("history").is_some());
    }
}

#[test]
fn calls_that_are_only_reported_are_no_evidence_and_still_count_for_limits() {
    let mut run = Run::asking_for(ALL);
    run.check(1, Deny, &Ask { reported: &[("read", 2)], ..Ask::default() });
    assert_eq!(run.seen().tools, calls(&[]));
    run.check(2, Allow, &Ask { tools: &["read"], reported: &[("read", 2), ("send", 1)], ..Ask::default() });
    assert_eq!(run.seen().tools, calls(&[("read", 1)]));
    // Who reports just what was allowed raises nothing.
    run.check(3, Allow, &Ask { tools: &["send"], reported: &[("read", 3)], ..Ask::default() });
    assert_eq!(run.seen().tools, calls(&[("read", 1), ("send", 1)]));
    assert_eq!((run.state.calls["read"], run.state.calls["send"]), (3, 2));
}

#[test]
fn reported_calls_that_are_not_told_apart_are_no_evidence_either() {
    let mut run = Run::asking_for(ALL);
    for number in 0..super::super::MAX_NAMES as u64 {
        run.check(number, Allow, &Ask { tools: &[&format!("tool{number}")], ..Ask::default() });
    }
    run.check(1_000, Allow, &Ask { tools: &["one_more"], reported: &[("fresh", 5)], ..Ask::default() });
    assert_eq!((run.state.any_calls, run.seen().any, run.seen().tools["one_more"]), (6, 0, 1));
    let own = Ask { tools: &["one_more"], ..Ask::default() };
    assert_eq!(run.repeat(1_001, 1_000, Allow, &own).tools["one_more"], 0, "a repeat does not see its own call");
    run.check(1_002, Allow, &Ask { tools: &[ANY_TOOL], ..Ask::default() });
    assert_eq!(run.seen().any, 1, "an ambiguous name was allowed");
}

#[test]
fn a_repeat_sees_what_others_did_since_and_not_its_own_calls_targets_cost_and_approval() {
    let mut run = Run::asking_for(ALL);
    let delete = Ask { tools: &["delete"], targets: &["a1"], estimate: 5, approved: true, ..Ask::default() };
    let read = Ask { tools: &["read"], targets: &["a1", "b2"], estimate: 2, ..Ask::default() };
    let first = run.check(1, Allow, &delete);
    assert_eq!((first.cost_micros, first.approved, first.tools.len()), (0, false, 0));
    run.check(2, Allow, &read);
    let again = run.repeat(3, 1, Allow, &delete);
    assert_eq!((again.allowed, again.cost_micros, again.approved), (1, 2, false));
    assert_eq!(again.tools, calls(&[("delete", 0), ("read", 1)]));
    assert_eq!(again.target_tools[&target("a1")], BTreeSet::from(["read".to_owned()]));
    let seen = run.seen();
    assert_eq!((seen.allowed, seen.cost_micros, seen.approved), (2, 7, true), "it counts once");
    assert_eq!(seen.tools, calls(&[("delete", 1), ("read", 1)]));
    assert_eq!(seen.target_tools[&target("a1")], BTreeSet::from(["delete".to_owned(), "read".to_owned()]));
    assert_eq!(seen.target_tools[&target("b2")], BTreeSet::from(["read".to_owned()]));
    // What another check was allowed as well stays.
    run.check(4, Allow, &delete);
    let again = run.repeat(5, 1, Allow, &delete);
    assert_eq!((again.tools["delete"], again.approved), (1, true));
    assert!(again.target_tools[&target("a1")].contains("delete"));
}

#[test]
fn a_settled_or_expired_cost_is_the_runs_and_not_the_repeats() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask { estimate: 4, ..Ask::default() };
    run.check(1, Allow, &ask);
    run.check(2, Allow, &ask);
    run.state.settle(id(1), 9, false).unwrap();
    assert_eq!((run.seen().cost_micros, run.repeat(3, 1, Allow, &ask).cost_micros), (13, 4));
    run.state.expire(NOW + 60, 60);
    assert_eq!((run.seen().cost_micros, run.repeat(4, 2, Allow, &ask).cost_micros), (13, 9));
}

#[test]
fn only_allowed_checks_prove_that_a_tool_was_used_on_a_target() {
    let mut run = Run::asking_for(ALL);
    let read = Ask { tools: &["read"], targets: &["a1"], ..Ask::default() };
    run.check(1, Deny, &read);
    run.check(2, Defer, &read);
    assert!(run.seen().target_tools.is_empty());
    run.check(3, Allow, &read);
    run.check(4, Allow, &Ask { targets: &["b2"], ..Ask::default() });
    run.check(5, Allow, &Ask { tools: &[ANY_TOOL], targets: &["c3"], ..Ask::default() });
    let seen = run.seen().target_tools;
    assert_eq!(seen[&target("a1")], BTreeSet::from(["read".to_owned()]));
    assert_eq!(seen.get(&target("b2")), None, "no tool was named");
    assert_eq!(seen[&target("c3")], BTreeSet::from([ANY_TOOL.to_owned()]), "an ambiguous name is no proof of a tool");
}

#[test]
fn of_a_request_with_a_secret_no_word_is_kept_and_its_verdict_is() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask {
        tools: &["password=hunter22"],
        targets: &["beef"],
        reported: &[("key=hunter22", 3)],
        secret: true,
        ..Ask::default()
    };
    run.check(1, Deny, &ask);
    // A pack may allow it all the same.
    run.check(2, Allow, &ask);
    let text = run.record().to_string();
    assert!(!text.contains("hunter22") && !text.contains("beef"), "{text}");
    let seen = run.seen();
    assert_eq!((seen.denied, seen.allowed, seen.any, seen.tools.len()), (1, 1, 1, 0));
    assert_eq!(run.repeat(3, 2, Allow, &ask).any, 0);
}

#[test]
fn pairs_of_targets_and_tools_are_bounded_and_the_oldest_are_forgotten_first() {
    let mut run = Run::asking_for(ALL);
    let names: Vec<String> = (0..MAX_PAIRS + 100).map(|number| format!("{number:x}")).collect();
    let read = |run: &mut Run, number: usize, name: &str| {
        run.check(number as u64, Allow, &Ask { tools: &["read"], targets: &[name], ..Ask::default() });
    };
    for (number, name) in names.iter().enumerate() {
        read(&mut run, number, name);
        // One that is used again and again is never the oldest.
        read(&mut run, 10_000 + number, "ffff");
    }
    let seen = run.seen().target_tools;
    assert_eq!(seen.len(), MAX_PAIRS);
    assert!(seen.contains_key(&target("ffff")) && seen.contains_key(&target(names.last().unwrap())));
    assert!(!seen.contains_key(&target(&names[100])) && seen.contains_key(&target(&names[101])));
    // A single request with more pairs than are kept.
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    run.check(20_000, Allow, &Ask { tools: &["a", "b", "c"], targets: &all, ..Ask::default() });
    let seen = run.seen().target_tools;
    assert_eq!(seen.values().map(BTreeSet::len).sum::<usize>(), MAX_PAIRS);
    // Long names take their room.
    let long: Vec<String> = (0..10).map(|number| format!("{number}{}", "\"".repeat(127))).collect();
    let tools: Vec<&str> = long.iter().map(String::as_str).collect();
    run.check(20_001, Allow, &Ask { tools: &tools, targets: &all, ..Ask::default() });
    let bytes: usize = run.state.history.target_tools.iter().map(|pair| written([&pair.tool])).sum();
    assert!(bytes <= MAX_PAIR_BYTES && bytes > MAX_PAIR_BYTES - 1_000, "{bytes}");
}

#[test]
fn the_record_stays_bounded_with_everything_that_rules_can_ask_for() {
    let mut run = Run::asking_for(ALL);
    let names: Vec<String> = (0..400).map(|number| format!("{}{number}", "\"".repeat(120))).collect();
    for number in 0..1_000_u64 {
        let name = &names[number as usize % names.len()];
        let target = format!("{number:x}");
        let ask = Ask {
            tools: &[name],
            targets: &[&target],
            reported: &[(name, number as i64 * 1_000_000)],
            estimate: 1,
            approved: true,
            ..Ask::default()
        };
        run.check(2 * number, Allow, &ask);
        run.check(2 * number + 1, Deny, &ask);
    }
    let bytes = serde_json::to_vec(&run.state).unwrap().len();
    assert!(bytes < 96 * 1_024, "{bytes}");
}

#[test]
fn times_are_counted_from_the_first_check_and_from_the_last_allowed_one() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask::default();
    let times = |history: &RunHistory| (history.seconds, history.seconds_since_allowed);
    assert_eq!(times(&run.check(1, Deny, &ask)), (0, None));
    run.now += 10;
    assert_eq!(times(&run.check(2, Allow, &ask)), (10, None));
    run.now += 7;
    assert_eq!(times(&run.check(3, Deny, &ask)), (17, Some(7)));
    assert_eq!(times(&run.repeat(4, 2, Allow, &ask)), (17, None), "a repeat does not see itself");
    run.check(5, Allow, &ask);
    assert_eq!(times(&run.repeat(6, 5, Allow, &ask)), (17, Some(7)), "but the one before");
    // Checks that can no longer be repeated were allowed all the same.
    run.now += 2 * RESERVED_FOR;
    assert_eq!(times(&run.check(7, Deny, &ask)), (17 + 2 * RESERVED_FOR, Some(2 * RESERVED_FOR)));
    run.check(8, Allow, &ask);
    assert_eq!(run.repeat(9, 8, Allow, &ask).seconds_since_allowed, Some(17 + 2 * RESERVED_FOR), "long ago");
    run.now -= 1_000;
    assert_eq!(times(&run.seen()), (17 + 2 * RESERVED_FOR, Some(0)), "a clock that steps back makes no time negative");
}

#[test]
fn a_run_from_before_it_was_kept_counts_on_from_what_is_known() {
    let mut run = Run::asking_for(RunNeeds::default());
    let ask = Ask { tools: &["read"], ..Ask::default() };
    (1..=3).for_each(|number| {
        run.check(number, Allow, &ask);
    });
    run.needs = ALL;
    run.now += 5;
    let seen = run.seen();
    assert_eq!((seen.allowed, seen.seconds_since_allowed, seen.tools), (3, Some(5), calls(&[("read", 3)])));
    assert_eq!(seen.unproven, calls(&[("read", 3)]), "it counts for limits, and is no evidence");
    run.check(4, Allow, &ask);
    assert_eq!((run.seen().tools, run.seen().unproven), (calls(&[("read", 4)]), calls(&[("read", 3)])));
    run.needs = RunNeeds::default();
    run.check(5, Allow, &ask);
    run.needs = ALL;
    assert_eq!(run.seen().allowed, 5, "what was begun is continued under a pack that does not ask");
    // Under such a pack too a report is kept apart.
    let mut run = Run::asking_for(RunNeeds::default());
    run.check(1, Allow, &Ask { tools: &["read"], reported: &[("submit", 2)], ..Ask::default() });
    run.needs = ALL;
    assert_eq!(run.seen().tools, calls(&[("read", 1)]), "a report counts for no rule");
    run.check(2, Allow, &ask);
    assert_eq!(run.seen().unproven, calls(&[("read", 1)]), "and the run is counted for good");
    // Much later, nothing is listed any more.
    let mut run = Run::asking_for(RunNeeds::default());
    run.check(1, Allow, &ask);
    run.needs = ALL;
    run.now += 2 * RESERVED_FOR;
    run.state.expire(run.now, RESERVED_FOR);
    assert_eq!((run.state.allowed.len(), run.seen().seconds_since_allowed), (0, Some(2 * RESERVED_FOR)));
}

#[test]
fn the_history_is_read_as_it_was_written_and_settling_leaves_it_alone() {
    let mut run = Run::asking_for(ALL);
    let ask = Ask { tools: &["read"], targets: &["a1"], estimate: 4, approved: true, ..Ask::default() };
    run.check(1, Allow, &ask);
    run.check(2, Allow, &ask);
    run.check(3, Deny, &Ask { reported: &[("send", 2)], ..Ask::default() });
    let text = serde_json::to_string(&run.state).unwrap();
    assert_eq!(serde_json::from_str::<RunState>(&text).unwrap(), run.state);
    assert_eq!(run.record()["history"]["target_tools"], json!([{"h": "00000000000000a1", "t": "read", "n": 2}]));
    let before = run.state.history.clone();
    run.state.settle(id(1), 9, false).unwrap();
    assert_eq!(run.state.history, before);
    // An evaluator of an earlier version writes the record without it.
    let mut older = run.record();
    older.as_object_mut().unwrap().remove("history");
    let older: RunState = serde_json::from_value(older).unwrap();
    assert!(older.history.is_empty() && older.iterations == 2);
    // What it may have taken from reports counts for limits, and is no evidence.
    run.state = older;
    let all = calls(&[("read", 2), ("send", 2)]);
    assert_eq!((run.seen().tools, run.seen().unproven), (all.clone(), all));
}
