//! Approvals that are held here against every case of the baseline: what they settle, what a caller's word settles, and
//! what neither can.

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use stage0_contract::{
    AccountId, AccountRules, Actor, ApprovalMode, ApprovalSource, CallerTexts, CheckRequest, Decision, EvaluateRequest,
    Issue, NextAction, RequestId, Severity, Verdict,
};
use stage0_policy::{Answer, Engine, HeldApproval, Pack, RunSnapshot, TimeLimit};

/// A Monday at noon: the time of cases that name none.
pub(super) const NOON: i64 = 1_773_662_400;
const SPELLINGS: [&str; 5] = ["approved", "APPROVED", " Approved\u{200b}", "ａｐｐｒｏｖｅｄ", "approved\u{feff}"];

static PACK: LazyLock<Arc<Pack>> = LazyLock::new(|| Pack::embedded().unwrap());

pub(super) fn baseline() -> Engine {
    Engine::new(Arc::clone(&PACK)).unwrap()
}

pub(super) struct Case {
    pub(super) id: String,
    pub(super) body: Value,
    pub(super) at: i64,
}

/// The cases of the baseline that are decided.
pub(super) fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
    let read =
        |file: &str| -> Vec<Value> { serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap() };
    let raw = ["cases.json", "cases-2.json"].into_iter().flat_map(read);
    let cases = raw.map(|case| Case {
        id: case["id"].as_str().unwrap().to_owned(),
        body: case["request"].clone(),
        at: case["evaluated_at"].as_i64().unwrap_or(NOON),
    });
    let engine = baseline();
    let is_decided = |case: &Case| {
        CheckRequest::parse(case.body.clone()).is_ok_and(|request| engine.decide(&request, case.at).is_ok())
    };
    cases.filter(is_decided).collect()
}

/// The second key of the workload `key_1`.
#[expect(clippy::needless_pass_by_value, reason = "callers write it in place")]
pub(super) fn asker(rules: AccountRules) -> Actor {
    let asker = json!({"key_id": "key_2", "holder": {"workload": "key_1"}, "rules": rules, "can_record": true});
    serde_json::from_value(asker).unwrap()
}

pub(super) fn check(body: &Value, at: i64, rules: AccountRules) -> EvaluateRequest {
    EvaluateRequest {
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(body.clone()).unwrap(),
        evaluated_at: at,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
        asker: Some(asker(rules)),
    }
}

fn of(mode: ApprovalMode) -> AccountRules {
    AccountRules { approvals: mode, ..AccountRules::default() }
}

fn answer(engine: &Engine, body: &Value, at: i64, mode: ApprovalMode, held: Option<HeldApproval<'_>>) -> Answer {
    let check = check(body, at, of(mode));
    engine.answer(&check, Some(&RunSnapshot::default()), held, TimeLimit::NONE).unwrap()
}

fn approved(at: i64) -> Option<HeldApproval<'static>> {
    Some(HeldApproval::Approved { by: "mem_1", at })
}

fn codes(decision: &Decision) -> Vec<&str> {
    decision.issues.iter().map(|issue| issue.code.as_str()).collect()
}

fn rules(decision: &Decision) -> Vec<&str> {
    decision.issues.iter().map(|issue| issue.rule.as_str()).collect()
}

fn asks(issue: &&Issue) -> bool {
    issue.next_action == NextAction::RequestApproval && issue.severity > Severity::Low
}

/// A request whose one effect cannot be undone, with these members of `context`.
#[expect(clippy::needless_pass_by_value, reason = "callers write it in place")]
fn deploy(context: Value) -> Value {
    json!({"goal": "Deploy the payments service", "success_criteria": ["the service is healthy"],
        "constraints": ["approval_required"], "side_effects": ["deploy"], "environment": "staging",
        "context": context})
}

/// The same case with other members in `context`.
fn with_context(body: &Value, set: &[(&str, Value)], removed: &[&str]) -> Value {
    let mut body = body.clone();
    let context = body["context"].as_object_mut().unwrap();
    removed.iter().for_each(|name| drop(context.remove(*name)));
    context.extend(set.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    body
}

#[test]
fn a_held_approval_settles_every_issue_of_the_baseline_that_asks_for_one_and_no_other() {
    let engine = baseline();
    let (mut asked, mut allowed) = (0, 0);
    for mode in [ApprovalMode::Caller, ApprovalMode::Verified] {
        for Case { id, body, at } in cases() {
            let before = answer(&engine, &body, at, mode, None).evaluation.decision;
            if before.verdict != Verdict::Defer || !before.issues.iter().any(|issue| asks(&issue)) {
                continue;
            }
            asked += 1;
            let held = answer(&engine, &body, at, mode, approved(at));
            let after = &held.evaluation.decision;
            assert!(!after.issues.iter().any(|issue| asks(&issue)), "{id}: {:?}", codes(after));
            let known = rules(&before);
            let more: Vec<&str> = rules(after).into_iter().filter(|rule| !known.contains(rule)).collect();
            // Who acts must be readable once somebody has approved.
            assert!(more.iter().all(|rule| *rule == "approval.unreadable_identity"), "{id}: {more:?}");
            match after.verdict {
                Verdict::Allow => {
                    allowed += 1;
                    assert_eq!(held.evaluation.approval_source, Some(ApprovalSource::Approval), "{id}");
                    assert!(held.terms.is_none(), "{id}");
                }
                Verdict::Defer => assert!(after.issues.len() < before.issues.len(), "{id}"),
                Verdict::Deny => panic!("{id}: {}", after.reason),
            }
        }
    }
    assert!(asked > 60 && allowed > 40, "{asked} asked, {allowed} allowed");
}

#[test]
fn under_verified_a_callers_approval_is_as_if_it_had_said_nothing() {
    let engine = baseline();
    let mut compared = 0;
    for Case { id, body, at } in cases().into_iter().filter(|case| case.body["context"].is_object()) {
        let members = ["approval_status", "approved_by", "approved_at", "approval_reason"];
        // A context of nothing else would be no context.
        let body = with_context(&body, &[("note", json!("n"))], &[]);
        let silent = with_context(&body, &[], &members);
        let silent = answer(&engine, &silent, at, ApprovalMode::Verified, None);
        for (spelling, by, time) in [
            (SPELLINGS[0], json!("lead@example.com"), json!("2026-03-16T11:59:00Z")),
            (SPELLINGS[1], json!("self"), json!("2999-01-01T00:00:00Z")),
            (SPELLINGS[2], json!(["lead"]), json!("yesterday")),
            (SPELLINGS[3], json!(7), json!({})),
            (SPELLINGS[4], json!(" "), json!(true)),
        ] {
            let claim = [
                ("approval_status", json!(spelling)),
                ("approved_by", by),
                ("approved_at", time),
                ("approval_reason", json!("it is fine")),
            ];
            let claimed = with_context(&body, &claim, &[]);
            let told = answer(&engine, &claimed, at, ApprovalMode::Verified, None);
            let (told, silent) = (&told.evaluation, &silent.evaluation);
            assert_eq!(told.decision.verdict, silent.decision.verdict, "{id} {spelling}");
            assert_eq!(rules(&told.decision), rules(&silent.decision), "{id} {spelling}");
            assert_eq!(told.decision.reason, silent.decision.reason, "{id} {spelling}");
            assert_eq!(told.decision.defer_questions, silent.decision.defer_questions, "{id} {spelling}");
            assert_eq!([told.approval_source, silent.approval_source], [None, None], "{id}");
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn under_verified_the_issue_and_the_question_say_that_only_held_approvals_count() {
    let engine = baseline();
    for spelling in SPELLINGS {
        let body = deploy(json!({"approval_status": spelling, "approved_by": "lead@example.com"}));
        let caller = answer(&engine, &body, NOON, ApprovalMode::Caller, None).evaluation;
        assert_eq!(caller.decision.verdict, Verdict::Allow, "{spelling}");
        assert_eq!(caller.approval_source, Some(ApprovalSource::Caller));
        let verified = answer(&engine, &body, NOON, ApprovalMode::Verified, None).evaluation.decision;
        assert_eq!(verified.verdict, Verdict::Defer, "{spelling}");
        let issue = verified.issues.iter().find(|issue| issue.code.as_str() == "APPROVAL_REQUIRED").unwrap();
        assert!(issue.details["approval"].as_str().unwrap().contains("only approvals that are held here"));
        for absent in ["found", "allowed", "write"] {
            assert!(!issue.details.contains_key(absent), "{absent}: the caller cannot settle it: {issue:?}");
        }
        let question = &verified.defer_questions[0];
        assert!(question.contains("Who approves") && question.contains("only approvals that are held here"));
        assert!(!question.contains("It belongs in"), "{question}");
        let recorded = verified.recorded().unwrap_or(verified);
        assert!(recorded.issues.iter().any(|issue| issue.details.contains_key("approval")), "the record says so too");
    }
    // Where the caller's word counts, the issue has no such detail.
    let pending = answer(&engine, &deploy(json!({})), NOON, ApprovalMode::Caller, None).evaluation.decision;
    assert_eq!(pending.verdict, Verdict::Defer);
    let said = serde_json::to_string(&pending).unwrap();
    assert!(!said.contains("held here") && said.contains("It belongs in `context.approval_status`"), "{said}");
}

#[test]
fn under_verified_an_effect_on_customers_asks_for_an_approval_that_is_held_here() {
    let engine = baseline();
    let body = json!({"goal": "Send the notice", "success_criteria": ["sent"], "side_effects": ["customer_impact"],
        "constraints": ["approval_required"], "environment": "staging",
        "context": {"actor_role": "sre", "approval_status": "approved"}});
    assert_eq!(answer(&engine, &body, NOON, ApprovalMode::Caller, None).evaluation.decision.verdict, Verdict::Allow);
    let verified = answer(&engine, &body, NOON, ApprovalMode::Verified, None).evaluation.decision;
    let issue = verified.issues.iter().find(|issue| issue.rule == "effects.impact_without_evidence").unwrap();
    assert!(issue.details.contains_key("approval"), "{issue:?}");
    let text = serde_json::to_string(&issue.details).unwrap();
    assert!(!text.contains("context.approval_status\",\"by"), "{text}");
    let held = answer(&engine, &body, NOON, ApprovalMode::Verified, approved(NOON));
    assert_eq!(held.evaluation.decision.verdict, Verdict::Allow);
}

#[test]
fn a_callers_refusal_counts_in_both_modes_and_against_a_held_approval() {
    let engine = baseline();
    for word in ["rejected", "DENIED", "not approved", "ｒｅｊｅｃｔｅｄ"] {
        let body = deploy(json!({"approval_status": word}));
        for mode in [ApprovalMode::Caller, ApprovalMode::Verified] {
            for held in [None, approved(NOON)] {
                let decision = answer(&engine, &body, NOON, mode, held).evaluation;
                assert_eq!(decision.decision.verdict, Verdict::Deny, "{word}");
                assert!(codes(&decision.decision).contains(&"APPROVAL_STATUS_INVALID"));
                assert_eq!(decision.approval_source, None);
            }
        }
    }
}

#[test]
fn a_held_approval_takes_the_place_of_every_other_word_of_the_caller() {
    let engine = baseline();
    for context in [
        json!({}),
        json!({"approval_status": "pending"}),
        json!({"approval_status": "approved!", "approved_by": ["x"], "approved_at": "yesterday"}),
        json!({"approval_status": ["approved"]}),
        json!({"approval_status": "approved", "approved_by": "bot", "actor_id": "bot"}),
        json!({"approval_status": "approved", "approved_at": "2999-01-01T00:00:00Z"}),
    ] {
        let body = deploy(context.clone());
        for mode in [ApprovalMode::Caller, ApprovalMode::Verified] {
            let without = answer(&engine, &body, NOON, mode, None).evaluation;
            assert_eq!(without.decision.verdict, Verdict::Defer, "{context}");
            assert_eq!(without.approval_source, None, "{context}");
            let held = answer(&engine, &body, NOON, mode, approved(NOON)).evaluation;
            assert_eq!(held.decision.verdict, Verdict::Allow, "{context}: {}", held.decision.reason);
            assert_eq!(held.approval_source, Some(ApprovalSource::Approval));
            assert!(held.decision.issues.is_empty(), "{:?}", codes(&held.decision));
        }
    }
    // What else is missing stays missing.
    let mut body = deploy(json!({}));
    body["constraints"] = json!(["approval_required", "require_ticket"]);
    let held = answer(&engine, &body, NOON, ApprovalMode::Caller, approved(NOON)).evaluation.decision;
    assert_eq!((held.verdict, codes(&held)), (Verdict::Defer, vec!["TICKET_REQUIRED"]));
}

#[test]
fn the_time_of_a_held_approval_is_judged_as_the_caller_declared() {
    let engine = baseline();
    let mut body = deploy(json!({"approval_status": "approved", "approved_at": "2026-03-16T11:59:59Z"}));
    body["constraints"] = json!(["approval_required", "approval_max_age: 1h"]);
    let verdict = |mode, held| answer(&engine, &body, NOON, mode, held).evaluation.decision.verdict;
    assert_eq!(verdict(ApprovalMode::Caller, approved(NOON - 3_600)), Verdict::Allow);
    assert_eq!(verdict(ApprovalMode::Caller, approved(NOON - 3_601)), Verdict::Defer, "not the caller's time");
    assert_eq!(verdict(ApprovalMode::Verified, None), Verdict::Defer);
    assert_eq!(verdict(ApprovalMode::Verified, approved(NOON)), Verdict::Allow);
}

#[test]
fn a_denial_that_is_held_denies_every_case_whatever_the_pack_says() {
    let engine = baseline();
    let mut added = 0;
    for Case { id, body, at } in cases() {
        for mode in [ApprovalMode::Caller, ApprovalMode::Verified] {
            let denied = answer(&engine, &body, at, mode, Some(HeldApproval::Denied));
            let decision = &denied.evaluation.decision;
            assert_eq!(decision.verdict, Verdict::Deny, "{id}");
            let issues = decision.issues.iter().filter(|issue| issue.code.as_str() == "APPROVAL_STATUS_INVALID");
            let issues: Vec<&Issue> = issues.collect();
            assert_eq!(issues.len(), 1, "{id}: {issues:?}");
            assert!(!issues[0].details.contains_key("write") && !issues[0].details.contains_key("found"), "{id}");
            assert!(decision.reason.contains("APPROVAL_STATUS_INVALID: ") && decision.high_risk, "{id}");
            assert!(denied.terms.is_none() && denied.evaluation.approval_source.is_none(), "{id}");
            added += usize::from(issues[0].rule == "approval.denied");
        }
    }
    assert!(added > 0, "a case without side effects needs the issue that the pack does not have");
    let approved = deploy(json!({"approval_status": "approved"}));
    let denied = answer(&engine, &approved, NOON, ApprovalMode::Caller, Some(HeldApproval::Denied));
    assert_eq!(denied.evaluation.decision.verdict, Verdict::Deny, "the caller's word does not lift it");
}

#[test]
fn the_source_is_the_caller_only_where_the_verdict_relied_on_its_word() {
    let engine = baseline();
    let source = |body: &Value| answer(&engine, body, NOON, ApprovalMode::Caller, None).evaluation.approval_source;
    assert_eq!(source(&deploy(json!({"approval_status": "approved"}))), Some(ApprovalSource::Caller));
    for context in [
        json!({}),
        json!({"approval_status": "pending"}),
        json!({"approval_status": "approved", "approved_by": "self"}),
        json!({"approval_status": "approved", "approved_at": "tomorrow"}),
    ] {
        assert_eq!(source(&deploy(context.clone())), None, "{context}");
    }
    let mut harmless = deploy(json!({"approval_status": "approved"}));
    harmless["side_effects"] = json!([]);
    assert_eq!(source(&harmless), None, "nothing needed it");
    let mut denied = deploy(json!({"approval_status": "approved"}));
    denied["constraints"] = json!(["approval_required", "denied_tools: argo"]);
    denied["tools"] = json!(["argo"]);
    assert_eq!(source(&denied), None, "a DENY relies on nothing");
}

#[test]
fn a_check_without_an_asker_is_decided_by_the_callers_word() {
    let engine = baseline();
    let body = deploy(json!({"approval_status": "approved"}));
    let check = EvaluateRequest { asker: None, ..check(&body, NOON, AccountRules::default()) };
    let answer = engine.answer(&check, None, None, TimeLimit::NONE).unwrap();
    assert_eq!(answer.evaluation.decision.verdict, Verdict::Allow);
    assert_eq!(answer.evaluation.decision, engine.decide(&check.request, NOON).unwrap());
}

#[test]
fn without_asker_rules_or_approval_every_case_is_decided_as_ever() {
    let engine = baseline();
    for Case { id, body, at } in cases() {
        let answered = answer(&engine, &body, at, ApprovalMode::Caller, None);
        let decided = engine.decide(&CheckRequest::parse(body).unwrap(), at).unwrap();
        // A run's snapshot makes the server count, so only what it does not touch is compared.
        assert_eq!(answered.evaluation.decision.environment, decided.environment, "{id}");
        assert_eq!(answered.terms.is_some(), answered.evaluation.decision.verdict == Verdict::Defer, "{id}");
        assert!(!answered.stopped, "{id}");
    }
}

#[test]
fn a_first_edition_pack_holds_approvals_in_the_same_way() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-edition");
    let engine = Engine::new(Pack::from_dir(&folder).unwrap()).unwrap();
    let body = json!({"goal": "Deploy it", "success_criteria": ["x"], "constraints": ["approval_required"],
        "side_effects": ["deploy"], "context": {"approval_status": "Approved"}});
    let verdict = |mode, held| answer(&engine, &body, NOON, mode, held).evaluation.decision.verdict;
    assert_eq!(verdict(ApprovalMode::Caller, None), Verdict::Allow);
    assert_eq!(verdict(ApprovalMode::Verified, None), Verdict::Defer);
    assert_eq!(verdict(ApprovalMode::Verified, approved(NOON)), Verdict::Allow);
    assert_eq!(verdict(ApprovalMode::Verified, Some(HeldApproval::Denied)), Verdict::Deny);
}

#[test]
fn the_digest_of_an_action_has_the_environment_that_the_pack_resolves() {
    let engine = baseline();
    let account = AccountId::parse("acc").unwrap();
    let digest = |body: Value| engine.action_digest(&account, &CheckRequest::parse(body).unwrap());
    let base = digest(deploy(json!({"note": "x"})));
    let volatile = json!({"note": "x", "approval_status": "approved", "approved_by": "lead", "retry_count": 2});
    assert_eq!(digest(deploy(volatile)), base, "what is said of an approval is not part of the action");
    assert_ne!(digest(deploy(json!({"note": "y"}))), base);
    let mut other = deploy(json!({"note": "x"}));
    other["environment"] = json!("production");
    assert_ne!(digest(other), base);
    let beside = AccountId::parse("acc2").unwrap();
    assert_ne!(engine.action_digest(&beside, &CheckRequest::parse(deploy(json!({"note": "x"}))).unwrap()), base);
    // The resolved name is the pack's, so that a client can compute the digest: `prd` runs in `production`.
    let request = CheckRequest::parse(json!({"goal": "g", "environment": " PRD "})).unwrap();
    let expected = stage0_contract::ActionDigest::of(&request, &account, "production", engine.pack().version(), &[]);
    assert_eq!(engine.action_digest(&account, &request), expected);
}

#[test]
fn secrets_in_a_reason_are_masked() {
    let engine = baseline();
    let key = format!("{}{}", "AKIA", "IOSFODNN7EXAMPLE");
    let masked = engine.mask(&format!("approved, use {key} and password=hunter22"));
    assert!(!masked.contains(&key) && !masked.contains("hunter22") && masked.starts_with("approved, use "), "{masked}");
    let plain = "Freigegeben für Montag: CHG-1234, siehe https://example.com/t/1234";
    assert_eq!(engine.mask(plain), plain);
}
