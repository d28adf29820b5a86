//! Unknown is not failed: which checks are held up while an outcome is unknown, and what their decisions say then.

use serde_json::{Value, json};
use stage0_contract::{AccountRules, ActionDigest, Evaluation, OpenAction, RequestId, Severity, Verdict};
use stage0_policy::diff::PackDiff;
use stage0_policy::{Answer, Engine, RunSnapshot, TimeLimit, deciding_issue};

use super::approvals::{NOON, check};
use super::packs_extend::Packs;

const HOLDS: &str = "[outcomes]\nhold_unknown = true\n";

fn packs() -> Packs {
    let packs = Packs::new().pack("holds", "baseline@2", HOLDS, &[]).pack("plain", "baseline@2", "", &[]);
    packs.pack("heir", "holds@1", "", &[])
}

fn answer(engine: &Engine, body: &Value) -> Answer {
    let rules = AccountRules { record_facts: true, ..AccountRules::default() };
    engine.answer(&check(body, NOON, rules), Some(&RunSnapshot::default()), None, TimeLimit::NONE).unwrap()
}

fn engine(packs: &Packs, name: &str) -> Engine {
    Engine::new(packs.load(name).unwrap()).unwrap()
}

fn body(effects: &[&str]) -> Value {
    json!({"goal": "Carry out the planned change", "success_criteria": ["x"], "side_effects": effects, "context": {}})
}

fn open() -> OpenAction {
    OpenAction {
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        action_digest: ActionDigest::parse(&"a".repeat(64)).unwrap(),
    }
}

fn held_up(engine: &Engine, body: &Value) -> (Evaluation, Evaluation) {
    let before = answer(engine, body).evaluation;
    let mut after = before.clone();
    engine.pack().hold_up(&mut after, &open());
    (before, after)
}

#[test]
fn an_action_with_an_effect_may_be_held_up_where_the_pack_or_one_that_it_extends_says_so() {
    let packs = packs();
    for (pack, effects, holds) in [
        ("holds", &["data_modification"][..], true),
        ("heir", &["data_modification"], true),
        ("plain", &["data_modification"], false),
        ("holds", &["fs_read", "deploy"], true),
        ("holds", &["quux"], true),
        ("holds", &["fs_read"], false),
        ("holds", &["none"], false),
        ("holds", &[], false),
    ] {
        assert_eq!(answer(&engine(&packs, pack), &body(effects)).hold.holds(), holds, "{pack} {effects:?}");
    }
}

#[test]
fn what_one_of_two_packs_holds_up_is_held_up_by_both() {
    let packs = packs();
    let [holds, plain] = ["holds", "plain"].map(|name| engine(&packs, name));
    let both = |own: &Engine, floor: &Engine, body: &Value| answer(own, body).with_floor(answer(floor, body));
    let sends = body(&["data_modification"]);
    assert!(both(&holds, &plain, &sends).hold.holds() && both(&plain, &holds, &sends).hold.holds());
    assert!(!both(&plain, &plain, &sends).hold.holds() && !both(&holds, &holds, &body(&["fs_read"])).hold.holds());
}

#[test]
fn an_allow_that_is_held_up_is_a_defer_that_asks_for_the_outcome() {
    let packs = packs();
    let (before, after) = held_up(&engine(&packs, "holds"), &body(&["data_modification"]));
    assert_eq!((before.decision.verdict, after.decision.verdict), (Verdict::Allow, Verdict::Defer));
    let decision = &after.decision;
    let issue = deciding_issue(decision).unwrap();
    assert_eq!((issue.code.as_str(), issue.severity), ("OUTCOME_UNKNOWN", Severity::High));
    assert_eq!(json!(issue.details), json!(open()));
    assert!(decision.reason.starts_with("OUTCOME_UNKNOWN: "), "{}", decision.reason);
    let question =
        format!("What came of request {}? Report its outcome: succeeded, failed or skipped.", open().request_id);
    assert_eq!(
        (&decision.defer_questions[..], &decision.clarifying_questions[0]),
        (&[question.clone()][..], &question)
    );
    assert!(decision.decision_trace_summary.ends_with("deciding: outcome.unknown"));
    assert!(decision.risk_score >= before.decision.risk_score);
    let kept = |evaluation: &Evaluation| evaluation.recordable.as_ref().unwrap().facts.is_some();
    assert!(kept(&before) && !kept(&after), "the facts alone decide something else");
}

#[test]
fn a_defer_that_is_held_up_asks_for_the_outcome_first_and_a_deny_stays_as_it_is() {
    let packs = packs();
    let engine = engine(&packs, "holds");
    let mut deferred = body(&["deploy"]);
    deferred["constraints"] = json!(["approval_required"]);
    let (before, after) = held_up(&engine, &deferred);
    assert_eq!((before.decision.verdict, after.decision.verdict), (Verdict::Defer, Verdict::Defer));
    assert!(after.decision.defer_questions[0].contains("What came of request"));
    assert_eq!(after.decision.defer_questions[1..], before.decision.defer_questions);
    assert_eq!(after.decision.issues.len(), before.decision.issues.len() + 1);
    assert_eq!(deciding_issue(&after.decision), deciding_issue(&before.decision));
    let mut denied = deferred;
    denied["context"] = json!({"approval_status": "rejected"});
    let (before, after) = held_up(&engine, &denied);
    assert_eq!(before.decision.verdict, Verdict::Deny);
    assert_eq!(before, after);
}

#[test]
fn the_code_is_described_where_the_pack_can_give_it_and_nowhere_else() {
    let packs = packs();
    for (name, is_told) in [("holds", true), ("heir", true), ("plain", false)] {
        let pack = packs.load(name).unwrap();
        let codes = pack.reference()["codes"].as_array().unwrap();
        assert_eq!(codes.iter().any(|code| code["code"] == "OUTCOME_UNKNOWN"), is_told, "{name}");
    }
}

#[test]
fn a_pack_that_holds_less_than_the_one_that_it_extends_must_say_so() {
    let off = "[outcomes]\nhold_unknown = false\n";
    let packs = packs().pack("looser", "holds@1", off, &[]).pack("same", "holds@1", HOLDS, &[]).pack(
        "said",
        "holds@1",
        &format!("{off}\n[weakens]\nreason = \"no client reports\"\nnumbers = [\"outcomes.hold_unknown\"]\n"),
        &[],
    );
    let fault = packs.fault("looser");
    assert!(fault.contains("`outcomes.hold_unknown` holds less than in `holds@1.0.0`"), "{fault}");
    assert!(packs.load("same").is_ok() && packs.load("said").is_ok());
    for (old, new, is_looser) in [("holds", "said", true), ("plain", "holds", false), ("holds", "heir", false)] {
        let diff = PackDiff::between(&packs.load(old).unwrap(), &packs.load(new).unwrap()).unwrap();
        assert_eq!(diff.outcome.is_looser(), is_looser, "{old} {new}: {:?}", diff.values);
    }
}
