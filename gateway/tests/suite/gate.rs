//! The gate before an activation: what is looser must be accepted by its number, and nothing is activated that was not
//! compared with what it takes the place of.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, ActivationDone, ActivePolicies, ComparePolicies, ComparePoliciesReply, ManageReply, MaskText,
    MaskTextReply, PoliciesInForce, PolicyComparison, PolicyVersion, PublishedPolicy, ReadActivePolicies, Refusal,
    ShowPolicy,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::harness::{Answer, MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT};

const ACTIVATED: &str = include_str!("../../../contract/fixtures/activation_done.json");
const COMPARISON: &str = include_str!("../../../contract/fixtures/policy_comparison.json");
const PUBLISHED: &str = include_str!("../../../contract/fixtures/published_policy.json");
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";
const DIFF: &str = "/v1/policies/acme@1.2.0+0123456789ab/diff";

type Replaced = Vec<Option<PolicyVersion>>;
type Compare = Box<dyn Fn(&ComparePolicies) -> ComparePoliciesReply + Send>;

fn version(number: usize) -> PolicyVersion {
    PolicyVersion::parse(&format!("acme@1.{number}.0+0123456789ab")).unwrap()
}

fn comparison() -> PolicyComparison {
    serde_json::from_str(COMPARISON).unwrap()
}

/// One with so many looser cases and nothing else.
fn with_flips(flips: u64) -> PolicyComparison {
    let mut comparison = comparison();
    let one = comparison.cases[0].clone();
    comparison.cases =
        (0..flips).map(|n| stage0_contract::ComparedCase { case: format!("c{n}"), ..one.clone() }).collect();
    (comparison.rules, comparison.words, comparison.values) = (Vec::new(), Vec::new(), Vec::new());
    (comparison.flips, comparison.looser.cases, comparison.looser.entries) = (flips, flips, 0);
    comparison
}

fn compared(comparison: &PolicyComparison) -> ComparePoliciesReply {
    ComparePoliciesReply::Compared(Box::new(comparison.clone()))
}

/// A gateway before a keystore that has these versions in force, and an evaluator that answers with these comparisons.
struct Gate {
    stack: Stack,
    calls: UnboundedReceiver<ActivatePolicy>,
    compared: UnboundedReceiver<ComparePolicies>,
    replaces: Arc<Mutex<Replaced>>,
    compare: Arc<Mutex<Compare>>,
    /// What is in force after each trial; the last one stays.
    next: Arc<Mutex<Vec<Replaced>>>,
}

impl Gate {
    async fn start(replaces: Replaced, comparison: PolicyComparison) -> Self {
        let mut stack = Stack::start().await;
        stack.serve::<MaskText>(|mask| MaskTextReply { text: mask.text.clone() }).await;
        let replaces = Arc::new(Mutex::new(replaces));
        let next = Arc::new(Mutex::new(Vec::<Replaced>::new()));
        let compare: Compare = Box::new(move |_| compared(&comparison));
        let compare = Arc::new(Mutex::new(compare));
        let (replacing, following, comparing) = (Arc::clone(&replaces), Arc::clone(&next), Arc::clone(&compare));
        let calls = stack
            .serve::<ActivatePolicy>(move |call| {
                let done = activation(call, &replacing.lock().unwrap());
                if call.is_trial && !following.lock().unwrap().is_empty() {
                    *replacing.lock().unwrap() = following.lock().unwrap().remove(0);
                }
                ManageReply::Done(done)
            })
            .await;
        let compared = stack.serve::<ComparePolicies>(move |asked| comparing.lock().unwrap()(asked)).await;
        Self { stack, calls, compared, replaces, compare, next }
    }

    async fn activate(&self, body: &Value) -> Answer {
        self.stack.post(MANAGER, ACTIVATE, body).await
    }

    /// The calls of the keystore so far: whether each was a trial.
    fn trials(&mut self) -> Vec<bool> {
        std::iter::from_fn(|| self.calls.try_recv().ok()).map(|call| call.is_trial).collect()
    }

    async fn refused(&mut self, body: &Value, says: &[&str]) {
        let answer = self.activate(body).await;
        assert_eq!(answer.refusal(), (409, "conflict".to_owned()), "{body}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        says.iter().for_each(|said| assert!(message.contains(said), "{said}: {message}"));
        assert_eq!(self.trials(), [true], "nothing is made");
        assert!(self.stack.lines().await.is_empty(), "{body}");
    }
}

/// What the keystore answers.
fn activation(call: &ActivatePolicy, replaces: &Replaced) -> ActivationDone {
    let ManageReply::Done(mut done) = serde_json::from_str::<ManageReply<ActivationDone>>(ACTIVATED).unwrap() else {
        panic!("the fixture has changed")
    };
    done.activation.account = Some("acc".to_owned().try_into().unwrap());
    done.activation.diff_digest.clone_from(&call.diff_digest);
    done.activation.accepted_flips = call.accept_flips;
    done.activation.reason.clone_from(&call.reason);
    done.replaces.clone_from(replaces);
    done.is_outdated = !call.is_trial && call.judged.as_ref() != Some(replaces);
    done
}

#[tokio::test]
async fn what_is_looser_is_activated_only_where_its_number_is_accepted_with_a_reason() {
    let mut gate = Gate::start(vec![Some(version(1))], comparison()).await;
    let named = [
        "3 of what it changes",
        "`acme@1.1.0+ba9876543210`",
        "the case `refund-600` comes from DENY to ALLOW",
        "the rule `refund.limit`",
        "the word `reindex`",
        "`accept_flips`: 3",
        DIFF,
    ];
    gate.refused(&json!({}), &named).await;
    gate.refused(&json!({"reason": "r"}), &named).await;
    gate.refused(&json!({"reason": "r", "accept_flips": 2}), &["`accept_flips` is 2", "`accept_flips`: 3"]).await;
    gate.refused(&json!({"reason": "r", "accept_flips": 4}), &["`accept_flips` is 4"]).await;
    gate.refused(&json!({"accept_flips": 0}), &["`accept_flips` is 0"]).await;
    let answer = gate.activate(&json!({"accept_flips": 3})).await;
    assert_eq!(answer.bad_fields(), ["reason"]);
    assert_eq!(gate.trials(), [] as [bool; 0]);

    let answer = gate.activate(&json!({"accept_flips": 3, "reason": "partners"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["accepted_flips"]), (200, &json!(3)), "{}", answer.text);
    let (trial, made) = (gate.calls.recv().await.unwrap(), gate.calls.recv().await.unwrap());
    assert_eq!((trial.is_trial, trial.judged, made.is_trial), (true, None, false));
    let digest = comparison().diff_digest;
    assert_eq!((made.judged, made.diff_digest.as_ref()), (Some(vec![Some(version(1))]), Some(&digest)));
    let compared = gate.compared.recv().await.unwrap();
    assert_eq!((compared.account, compared.old), ("acc".to_owned().try_into().ok(), Some(version(1))));
    let lines = gate.stack.lines().await;
    assert_eq!(lines.len(), 1, "the refused ones have none");
    let details = &lines[0]["details"];
    assert_eq!((&details["diff_digest"], &details["accepted_flips"]), (&json!(digest), &json!(3)));
}

#[tokio::test]
async fn what_is_not_looser_needs_no_acceptance_and_refuses_one() {
    let mut gate = Gate::start(vec![None], with_flips(0)).await;
    gate.refused(&json!({"accept_flips": 1, "reason": "r"}), &["nothing that it changes is looser"]).await;
    for body in [json!({}), json!({"accept_flips": 0})] {
        let answer = gate.activate(&body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["accepted_flips"]), (200, &Value::Null), "{}", answer.text);
        assert_eq!(answer.json()["diff_digest"], json!(comparison().diff_digest), "of what was compared");
        assert_eq!(gate.trials(), [true, false]);
    }
    assert_eq!(gate.compared.recv().await.unwrap().old, None, "the evaluators' own");
    let lines = gate.stack.lines().await;
    assert_eq!(lines[0]["details"].get("accepted_flips"), None, "{lines:?}");
}

#[tokio::test]
async fn only_the_difference_that_was_reviewed_is_activated() {
    let mut gate = Gate::start(vec![Some(version(1))], comparison()).await;
    let with = |digest: &str| json!({"accept_flips": 3, "reason": "r", "diff_digest": digest});
    let digest = comparison().diff_digest;
    gate.refused(&with(&"0".repeat(64)), &["`diff_digest`", &digest]).await;
    assert_eq!(gate.activate(&with(&digest)).await.status, 200);
}

#[tokio::test]
async fn without_a_comparison_nothing_is_activated() {
    let mut gate = Gate::start(vec![Some(version(1))], with_flips(0)).await;
    for reply in [ComparePoliciesReply::Busy, ComparePoliciesReply::Unable("it takes too long".to_owned())] {
        *gate.compare.lock().unwrap() = Box::new(move |_| reply.clone());
        let answer = gate.activate(&json!({})).await;
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
        let text = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(text.contains("nothing was changed") && text.contains("could not be compared"), "{text}");
        assert_eq!(gate.trials(), [true]);
    }
    assert!(gate.stack.lines().await.is_empty());
    *gate.compare.lock().unwrap() = Box::new(|_| compared(&with_flips(0)));
    assert_eq!(gate.activate(&json!({})).await.status, 200);
    // An evaluator of an earlier release serves no such request.
    let mut stack = Stack::start().await;
    let mut calls = stack.serve::<ActivatePolicy>(|call| ManageReply::Done(activation(call, &vec![None]))).await;
    let answer = stack.post(MANAGER, ACTIVATE, &json!({})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(answer.text.contains("no evaluator serves"), "{}", answer.text);
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    assert!(stack.lines().await.is_empty());
}

#[tokio::test]
async fn an_activation_that_another_one_came_before_is_judged_again() {
    let mut gate = Gate::start(vec![Some(version(1))], with_flips(0)).await;
    *gate.next.lock().unwrap() = vec![vec![Some(version(3))]];
    assert_eq!(gate.activate(&json!({})).await.status, 200);
    assert_eq!(gate.trials(), [true, false, true, false]);
    let compared: Vec<_> = std::iter::from_fn(|| gate.compared.try_recv().ok()).map(|one| one.old).collect();
    assert_eq!(compared, [Some(version(1)), Some(version(3))]);
    let lines = gate.stack.lines().await;
    let types: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["policy.activated", "policy.not_changed", "policy.activated"], "recorded before it is made");

    *gate.next.lock().unwrap() = (1..=3).map(|number| vec![Some(version(number))]).collect();
    let answer = gate.activate(&json!({})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    assert_eq!(gate.trials(), [true, false, true, false, true, false], "three times, and none was made");
}

#[tokio::test]
async fn what_became_looser_meanwhile_is_not_activated_by_an_earlier_acceptance() {
    let mut gate = Gate::start(vec![Some(version(1))], with_flips(2)).await;
    *gate.next.lock().unwrap() = vec![vec![Some(version(3))]];
    *gate.compare.lock().unwrap() =
        Box::new(|asked| compared(&with_flips(if asked.old == Some(version(1)) { 2 } else { 5 })));
    let answer = gate.activate(&json!({"accept_flips": 2, "reason": "r"})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    let text = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(text.contains("5 of what it changes") && text.contains("`c0`") && text.contains("`c2`"), "{text}");
    assert!(!text.contains("`c3`"), "three are named: {text}");
    assert_eq!(gate.trials(), [true, false, true]);
}

#[tokio::test]
async fn all_that_a_version_takes_the_place_of_counts() {
    let mut gate = Gate::start(vec![None, Some(version(1))], with_flips(2)).await;
    gate.refused(&json!({"accept_flips": 2, "reason": "r"}), &["4 of what it changes"]).await;
    let answer = gate.activate(&json!({"accept_flips": 4, "reason": "r"})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["accepted_flips"]), (200, &json!(4)), "{}", answer.text);
    let digest = answer.json()["diff_digest"].as_str().unwrap().to_owned();
    assert!(digest.len() == 64 && digest != comparison().diff_digest, "of both: {digest}");
}

#[tokio::test]
async fn the_first_floor_only_adds_and_is_compared_with_nothing() {
    let mut gate = Gate::start(Vec::new(), comparison()).await;
    gate.refused(&json!({"diff_digest": "0".repeat(64)}), &["`diff_digest`"]).await;
    let answer = gate.activate(&json!({"floor": true})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["diff_digest"]), (200, &Value::Null), "{}", answer.text);
    assert!(gate.compared.try_recv().is_err());
    *gate.replaces.lock().unwrap() = vec![Some(version(1))];
    assert_eq!(gate.activate(&json!({"floor": true})).await.refusal(), (409, "conflict".to_owned()));
}

fn in_force() -> PoliciesInForce {
    PoliciesInForce {
        candidates: Vec::new(),
        account: Some("acc".to_owned().try_into().unwrap()),
        effective: ActivePolicies {
            default: Some(version(1)),
            environments: [("production".to_owned(), version(3))].into(),
        },
        own: ActivePolicies::default(),
        deployment: ActivePolicies::default(),
        floor: None,
    }
}

#[tokio::test]
async fn a_version_is_compared_with_another_one_or_with_what_decides_at_a_place() {
    let mut stack = Stack::start().await;
    let policy: PublishedPolicy = serde_json::from_str(PUBLISHED).unwrap();
    let in_force = Arc::new(Mutex::new(in_force()));
    let reading = Arc::clone(&in_force);
    stack.serve::<ReadActivePolicies>(move |_| ManageReply::Done(reading.lock().unwrap().clone())).await;
    stack
        .serve::<ShowPolicy>(move |show| match show.version == version(9) {
            true => ManageReply::Refused(Refusal::NotFound),
            false => ManageReply::Done(policy.clone()),
        })
        .await;
    let mut asked = stack.serve::<ComparePolicies>(|_| compared(&comparison())).await;
    for (query, old) in [
        ("", Some(version(1))),
        ("?environment=prod", Some(version(3))),
        ("?environment=staging", Some(version(1))),
        ("?from=acme@1.7.0%2B0123456789ab", Some(version(7))),
    ] {
        let answer = stack.get(MANAGER, &format!("{DIFF}{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!(comparison())), "{query}");
        let compare = asked.recv().await.unwrap();
        assert_eq!((compare.old, compare.new), (old, version(2)), "{query}");
        assert_eq!(compare.account, "acc".to_owned().try_into().ok());
    }
    let answer = stack.get(MEMBER, &format!("{DIFF}?floor=true")).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()), "there is none");
    in_force.lock().unwrap().floor = Some(version(4));
    assert_eq!(stack.get(MEMBER, &format!("{DIFF}?floor=true")).await.status, 200);
    assert_eq!(asked.recv().await.unwrap().old, Some(version(4)));
    in_force.lock().unwrap().effective = ActivePolicies::default();
    assert_eq!(stack.get(MEMBER, DIFF).await.status, 200);
    assert_eq!(asked.recv().await.unwrap().old, None, "the evaluators' own");

    for missing in ["/v1/policies/acme@1.9.0+0123456789ab/diff", &format!("{DIFF}?from=acme@1.9.0%2B0123456789ab")] {
        assert_eq!(stack.get(MANAGER, missing).await.refusal(), (404, "not_found".to_owned()), "{missing}");
    }
    for (query, bad) in [
        ("?from=acme", "from"),
        ("?from=acme@1.7.0%2B0123456789ab&environment=prod", "environment"),
        ("?floor=true&environment=prod", "environment"),
        ("?floor=yes", "floor"),
        ("?to=x", "to"),
    ] {
        let found = stack.get(MANAGER, &format!("{DIFF}{query}")).await.bad_fields();
        assert!(found.contains(&bad.to_owned()), "{query}: {found:?}");
    }
    for number in [TENANT, READER] {
        assert_eq!(stack.get(number, DIFF).await.refusal(), (403, "scope_missing".to_owned()));
    }
    assert!(asked.try_recv().is_err(), "what is refused is not compared");
    assert_eq!(stack.get(OPERATOR, DIFF).await.status, 200);
}

#[tokio::test]
async fn a_comparison_that_fails_is_a_503() {
    let mut stack = Stack::start().await;
    let policy: PublishedPolicy = serde_json::from_str(PUBLISHED).unwrap();
    stack.serve::<ReadActivePolicies>(|_| ManageReply::Done(in_force())).await;
    stack.serve::<ShowPolicy>(move |_| ManageReply::Done(policy.clone())).await;
    stack.serve::<ComparePolicies>(|_| ComparePoliciesReply::Unable("no thread".to_owned())).await;
    let answer = stack.get(MANAGER, DIFF).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(answer.text.contains("could not be compared") && !answer.text.contains("no thread"), "{}", answer.text);
}
