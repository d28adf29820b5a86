//! What a refusal says, and which number accepts.

use stage0_contract::{NotReplayed, VerdictChange};

use super::*;

fn asked(accept_flips: Option<u64>, environment: Option<&str>) -> ActivatePolicy {
    let smallest = include_str!("../../../../../contract/fixtures/activate_policy_smallest.json");
    let smallest: ActivatePolicy = serde_json::from_str(smallest).unwrap();
    ActivatePolicy { accept_flips, environment: environment.map(str::to_owned), ..smallest }
}

fn comparison(flips: u64) -> PolicyComparison {
    let comparison = include_str!("../../../../../contract/fixtures/policy_comparison.json");
    let comparison: PolicyComparison = serde_json::from_str(comparison).unwrap();
    let mut comparison = PolicyComparison { flips, ..comparison };
    if flips == 0 {
        (comparison.cases, comparison.rules) = (Vec::new(), Vec::new());
        (comparison.words, comparison.values) = (Vec::new(), Vec::new());
    }
    comparison
}

fn replay(changes: Vec<VerdictChange>, flips: u64, gaps: Vec<NotReplayed>) -> PolicyReplay {
    let replay = include_str!("../../../../../contract/fixtures/policy_replay.json");
    let replay: PolicyReplay = serde_json::from_str(replay).unwrap();
    let lost: u64 = gaps.iter().map(|gap| gap.count).sum();
    PolicyReplay { changes, flips, not_replayed: gaps, decisions: 1_000, replayed: 1_000 - lost, ..replay }
}

fn looser() -> PolicyReplay {
    let changes = vec![
        VerdictChange { from: Verdict::Deny, to: Verdict::Allow, count: 1 },
        VerdictChange { from: Verdict::Defer, to: Verdict::Allow, count: 2 },
        VerdictChange { from: Verdict::Allow, to: Verdict::Deny, count: 5 },
    ];
    let gaps =
        vec![NotReplayed { why: ReplayGap::NotKept, count: 58 }, NotReplayed { why: ReplayGap::Member, count: 2 }];
    replay(changes, 3, gaps)
}

#[test]
fn both_numbers_add_up_and_any_other_number_is_refused() {
    let (comparisons, replay) = ([comparison(3)], looser());
    let found = Found { comparisons: &comparisons, replay: Some(&replay), may_replay: true };
    assert_eq!(found.refusal(&asked(Some(6), None)), None);
    for other in [None, Some(0), Some(3), Some(5), Some(7)] {
        let text = found.refusal(&asked(other, None)).unwrap();
        assert!(text.contains("`accept_flips`: 6"), "{other:?}: {text}");
    }
    let found = Found { replay: None, ..found };
    assert_eq!(found.refusal(&asked(Some(3), None)), None, "without a replay the policies alone count");
    assert!(found.refusal(&asked(Some(6), None)).is_some());
}

#[test]
fn a_refusal_names_both_numbers_what_was_not_replayed_and_what_to_send() {
    let (comparisons, replay) = ([comparison(3)], looser());
    let found = Found { comparisons: &comparisons, replay: Some(&replay), may_replay: true };
    let text = found.refusal(&asked(None, Some("staging"))).unwrap();
    for said in [
        "3 of what it changes in place of `acme@1.1.0+ba9876543210` may be looser",
        "and 3 of 940 refused decisions that it decides again, the newest of more",
        "1 recorded decisions come from DENY to ALLOW; 2 recorded decisions come from DEFER to ALLOW",
        "60 of 1000 recorded decisions could not be replayed (`not_kept` 58, `member` 2)",
        "/replay?environment=staging&gate=true&until=2026-03-16T12:00:00Z`",
        "`accept_flips`: 6 and `replayed_until`: `2026-03-16T12:00:00Z` with a `reason`",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("ALLOW to DENY"), "what is stricter needs no acceptance: {text}");
    let text = found.refusal(&asked(None, Some("a&b"))).unwrap();
    assert!(text.contains("/replay?gate=true&until=") && !text.contains("a&b"), "{text}");
    // An operator reads no decisions.
    let found = Found { may_replay: false, ..found };
    let text = found.refusal(&asked(None, None)).unwrap();
    assert!(!text.contains("/replay") && text.contains("`replayed_until`"), "{text}");
}

#[test]
fn recorded_decisions_alone_are_enough_to_refuse() {
    let (comparisons, replay) = ([comparison(0)], looser());
    let found = Found { comparisons: &comparisons, replay: Some(&replay), may_replay: true };
    let text = found.refusal(&asked(None, None)).unwrap();
    assert!(text.contains("0 of what it changes") && text.contains("3 of 940 refused decisions"), "{text}");
    assert_eq!(found.refusal(&asked(Some(3), None)), None);
    let none = self::replay(Vec::new(), 0, Vec::new());
    let found = Found { replay: Some(&none), ..found };
    assert_eq!(found.refusal(&asked(None, None)), None);
    let text = found.refusal(&asked(Some(3), None)).unwrap();
    assert!(text.contains("nothing that it changes is looser, and `accept_flips` is 3"), "{text}");
}
