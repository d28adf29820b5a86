//! The operator's floor: no pack that is evaluated beside it can be milder.

use serde_json::{Value, json};
use stage0_contract::{AccountRules, ApprovalSource, Decision, Verdict};
use stage0_policy::{Answer, Engine, HeldApproval, RunSnapshot, TimeLimit};

use super::approvals::{NOON, baseline, cases, check};
use super::packs_extend::{Packs, with_rule};

fn answer(engine: &Engine, body: &Value, held: Option<HeldApproval<'_>>) -> Answer {
    let snapshot = RunSnapshot::default();
    engine.answer(&check(body, NOON, AccountRules::default()), Some(&snapshot), held, TimeLimit::NONE).unwrap()
}

fn both(own: &Engine, floor: &Engine, body: &Value) -> Answer {
    answer(own, body, None).with_floor(answer(floor, body, None))
}

fn engine(packs: &Packs, name: &str) -> Engine {
    Engine::new(packs.load(name).unwrap()).unwrap()
}

/// Defers a payment above 500.
fn strict() -> Packs {
    Packs::new().pack("strict", "baseline@2", "", &with_rule())
}

fn payment(amount: i64) -> Value {
    json!({"goal": "Pay the invoice of May", "success_criteria": ["x"], "context": {"amount": amount}})
}

#[test]
fn what_the_floor_defers_no_other_pack_allows() {
    let packs = strict();
    let (own, floor) = (baseline(), engine(&packs, "strict"));
    let Answer { evaluation, terms, .. } = both(&own, &floor, &payment(501));
    let decision = evaluation.decision;
    assert_eq!((decision.verdict, &decision.policy_version), (Verdict::Defer, own.pack().version()));
    assert_eq!(decision.floor_version.as_ref(), Some(floor.pack().version()));
    let issue = decision.issues.iter().find(|issue| issue.code.as_str() == "LARGE_AMOUNT").unwrap();
    assert_eq!(issue.details["policy"], floor.pack().version().as_str());
    assert!(decision.reason.contains("LARGE_AMOUNT"), "{}", decision.reason);
    assert!(decision.defer_questions[0].starts_with("Who approves the amount?"), "{:?}", decision.defer_questions);
    assert!(terms.is_some() && decision.decision_trace_summary.contains("; floor: "));
    let mild = both(&own, &floor, &payment(500)).evaluation.decision;
    assert_eq!((mild.verdict, mild.floor_version.as_ref()), (Verdict::Allow, Some(floor.pack().version())));
}

#[test]
fn what_the_own_pack_defers_stays_deferred_above_a_milder_floor() {
    let packs = strict();
    let decision = both(&engine(&packs, "strict"), &baseline(), &payment(501)).evaluation.decision;
    assert_eq!(decision.verdict, Verdict::Defer);
    assert!(decision.issues.iter().all(|issue| !issue.details.contains_key("policy")), "{:#?}", decision.issues);
}

#[test]
fn a_pack_above_itself_decides_each_case_as_it_does_alone() {
    let (own, floor) = (baseline(), baseline());
    for case in cases() {
        let request = check(&case.body, case.at, AccountRules::default());
        let alone = || own.answer(&request, None, None, TimeLimit::NONE).unwrap();
        let beside = alone().with_floor(floor.answer(&request, None, None, TimeLimit::NONE).unwrap());
        let alone = alone();
        let trace = beside.evaluation.decision.decision_trace_summary.clone();
        let expected = Decision {
            floor_version: Some(own.pack().version().clone()),
            decision_trace_summary: trace,
            ..alone.evaluation.decision
        };
        assert_eq!(beside.evaluation.decision, expected, "{}", case.id);
        assert_eq!(beside.evaluation.recordable, alone.evaluation.recordable, "{}", case.id);
        assert_eq!((beside.terms, beside.evaluation.approval_source), (alone.terms, alone.evaluation.approval_source));
    }
}

#[test]
fn no_case_is_milder_with_a_floor_than_by_either_pack() {
    let milder =
        "[weakens]\nreason = \"we ask elsewhere\"\nwithout = [\"approval.communication\", \"approval.high_effect\"]\n";
    let packs = Packs::new().pack("milder", "baseline@2", milder, &[]);
    let (own, floor) = (engine(&packs, "milder"), baseline());
    let mut stricter = 0;
    for case in cases() {
        let request = check(&case.body, case.at, AccountRules::default());
        let ask = |engine: &Engine| engine.answer(&request, None, None, TimeLimit::NONE).unwrap();
        let [by_own, by_floor] = [&own, &floor].map(|engine| ask(engine).evaluation.decision.verdict);
        let decision = ask(&own).with_floor(ask(&floor)).evaluation.decision;
        assert_eq!(decision.verdict, by_own.max(by_floor), "{}", case.id);
        assert_eq!(decision.defer_questions.is_empty(), decision.verdict != Verdict::Defer, "{}", case.id);
        let is_grave = |severity| severity >= stage0_contract::Severity::High;
        assert!(decision.verdict != Verdict::Allow || !decision.issues.iter().any(|issue| is_grave(issue.severity)));
        stricter += usize::from(by_floor > by_own);
    }
    assert!(stricter > 0, "a rule that is left out must show");
}

#[test]
fn an_approval_settles_what_both_packs_ask_and_no_more() {
    let packs = strict();
    let (own, floor) = (baseline(), engine(&packs, "strict"));
    let held = Some(HeldApproval::Approved { by: "Ada", at: NOON });
    let body = payment(501);
    let together = answer(&own, &body, held).with_floor(answer(&floor, &body, held));
    let expected = answer(&floor, &body, held).evaluation.decision.verdict;
    assert_eq!(together.evaluation.decision.verdict, expected);
    let denied = Some(HeldApproval::Denied);
    let together = answer(&own, &body, denied).with_floor(answer(&floor, &body, denied));
    assert_eq!((together.evaluation.decision.verdict, together.terms), (Verdict::Deny, None));
}

#[test]
fn no_text_is_shown_or_recorded_in_which_only_the_floor_finds_a_secret() {
    let forms = "[[forms]]\nkind = \"acmekey\"\npatterns = ['acmekey_[0-9a-z]{20,}']\n";
    let cases = r#"[{"id": "key", "expect": ["DENY"], "codes": ["SECRET_IN_REQUEST"],
        "request": {"goal": "Use acmekey_0123456789abcdefghijklm for it"}}]"#;
    let packs = Packs::new().pack("house", "baseline@2", "", &[("secrets.toml", forms), ("cases.json", cases)]);
    let (own, floor) = (baseline(), engine(&packs, "house"));
    let secret = "acmekey_0123456789abcdefghij";
    let body = json!({"goal": format!("Read the report of {secret}"), "success_criteria": ["x"],
        "constraints": [format!("note {secret}")], "tools": [format!("read_{secret}")], "environment": "staging",
        "debug_store_input": true});
    let shown = |answer: &Answer| serde_json::to_string(&answer.evaluation).unwrap();
    assert!(shown(&answer(&own, &body, None)).contains(secret), "the own pack knows no such form");
    let together = both(&own, &floor, &body);
    assert!(!shown(&together).contains(secret), "{}", shown(&together));
    assert!(together.run.has_secrets);
    // The harmless neighbour is recorded as it is.
    let harmless = json!({"goal": "Read the report of house 12", "success_criteria": ["x"], "debug_store_input": true});
    assert!(shown(&both(&own, &floor, &harmless)).contains("house 12"));
}

/// Defers a payment above 500 that is not approved.
fn approvable() -> [(&'static str, String); 4] {
    with_rule()
        .try_into()
        .map(|files: [(&'static str, &'static str); 4]| {
            files.map(|(name, text)| {
                let rule = "context.custom.amount > 500 && context.approval_status != \"approved\"";
                (name, text.replace("context.custom.amount > 500", rule))
            })
        })
        .unwrap()
}

#[test]
fn an_allow_that_rests_on_the_callers_word_says_so_by_whichever_pack_asks_for_it() {
    let files = approvable();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let packs = Packs::new().pack("strict", "baseline@2", "", &files);
    let (own, floor) = (baseline(), engine(&packs, "strict"));
    let mut approved = payment(501);
    approved["context"]["approval_status"] = "approved".into();
    let source = |answer: Answer| (answer.evaluation.decision.verdict, answer.evaluation.approval_source);
    let rests = (Verdict::Allow, Some(ApprovalSource::Caller));
    assert_eq!(source(both(&own, &floor, &approved)), rests, "the floor asks");
    assert_eq!(source(both(&floor, &own, &approved)), rests, "the account's own pack asks");
    assert_eq!(source(answer(&floor, &approved, None)), rests, "and without a floor");
    assert_eq!(source(answer(&own, &approved, None)), (Verdict::Allow, None), "no rule asks");
    // Below the limit the word changes nothing, and without it nothing is allowed above.
    approved["context"]["amount"] = 500.into();
    assert_eq!(source(both(&own, &floor, &approved)), (Verdict::Allow, None));
    assert_eq!(source(both(&own, &floor, &payment(501))), (Verdict::Defer, None));
}

#[test]
fn an_issue_of_the_floor_is_shown_where_a_rule_of_the_same_name_says_something_else() {
    let other = with_rule().into_iter().map(|(name, text)| (name, text.replace("the amount is large", "ask finance")));
    let other: Vec<(&str, String)> = other.collect();
    let other: Vec<(&str, &str)> = other.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let packs = strict().pack("other", "baseline@2", "", &other);
    let (own, floor) = (engine(&packs, "strict"), engine(&packs, "other"));
    let messages = |own: &Engine, floor: &Engine| -> Vec<String> {
        let issues = both(own, floor, &payment(501)).evaluation.decision.issues;
        issues.into_iter().filter(|issue| issue.code.as_str() == "LARGE_AMOUNT").map(|issue| issue.message).collect()
    };
    assert_eq!(messages(&own, &own), ["the amount is large"]);
    let mut both = messages(&own, &floor);
    both.sort_unstable();
    assert_eq!(both, ["ask finance", "the amount is large"]);
}
