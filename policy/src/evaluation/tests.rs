//! What happens where a compiled rule and Cedar differ, and that both are evaluated side by side.
//!
//! A rule that is compiled into its opposite stands for a defect of the compiler.

use std::path::Path;

use serde_json::json;
use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateRequest, IssueCode, RequestId, Verdict};

use super::*;
use crate::approval::Answer;
use crate::engine::Engine;
use crate::files::Files;
use crate::time_limit::TimeLimit;

/// Of the baseline; a goal that is vague satisfies it.
const RULE: &str = "value.vague_goal";

fn miscompiled() -> Arc<Pack> {
    let pack = Pack::load(&Files::embedded()).unwrap();
    Arc::new(Arc::into_inner(pack).unwrap().miscompiled(RULE))
}

fn vague() -> CheckRequest {
    CheckRequest::parse(json!({"goal": "optimise", "success_criteria": ["x"]})).unwrap()
}

fn answer(engine: &Engine) -> Answer {
    let check = EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: vague(),
        evaluated_at: 0,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    };
    engine.answer(&check, None, None, TimeLimit::NONE).unwrap()
}

#[test]
fn a_check_on_which_a_compiled_rule_and_cedar_differ_is_denied_and_cedar_decides_from_then_on() {
    let pack = miscompiled();
    let (first, other) = (Engine::new(Arc::clone(&pack)).unwrap(), Engine::new(Arc::clone(&pack)).unwrap());
    let denied = answer(&first);
    let decision = &denied.evaluation.decision;
    assert_eq!(decision.verdict, Verdict::Deny);
    let issue = &decision.issues[0];
    assert_eq!((issue.code.as_str(), issue.rule.as_str()), (IssueCode::POLICY_ERROR, RULE));
    let difference = Difference { policy_version: pack.version().clone(), rules: vec![RULE.to_owned()] };
    assert_eq!(denied.differences, [difference]);
    let right = Engine::new(Pack::embedded().unwrap()).unwrap();
    for engine in [&first, &other] {
        let answered = answer(engine);
        assert_eq!(answered.evaluation.decision.verdict, answer(&right).evaluation.decision.verdict);
        assert!(answered.differences.is_empty());
    }
}

#[test]
fn one_check_in_so_many_is_compared() {
    let pack = miscompiled();
    let facts = Engine::new(Arc::clone(&pack)).unwrap().facts(&vague(), 0).unwrap();
    let rules = Rules::new(&pack).unwrap();
    // As after the first check.
    rules.until_compared.store(COMPARISON_INTERVAL - 1, Ordering::Relaxed);
    for _ in 1..COMPARISON_INTERVAL {
        assert!(rules.evaluate_compared(&facts).1.is_none());
    }
    assert!(!pack.is_left_to_cedar());
    let (outcome, difference) = rules.evaluate_compared(&facts);
    assert_eq!(difference.unwrap().rules, [RULE]);
    assert_eq!(outcome.failed, [RULE]);
    assert!(pack.is_left_to_cedar() && rules.evaluate_compared(&facts).1.is_none());
}

#[test]
fn rules_that_agree_with_cedar_stay_compiled() {
    let pack = Pack::embedded().unwrap();
    let engine = Engine::new(Arc::clone(&pack)).unwrap();
    for _ in 0..2 * COMPARISON_INTERVAL {
        assert!(answer(&engine).differences.is_empty());
    }
    assert!(!pack.is_left_to_cedar() && pack.compiled_count() > 0);
}

#[test]
fn a_rule_that_only_cedar_knows_is_evaluated_beside_compiled_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/every-fact");
    let pack = Pack::from_dir(&folder).unwrap();
    assert!(pack.rules["own.at_night"].compiled.is_none() && pack.rules[RULE].compiled.is_some());
    // At midnight.
    let decision = answer(&Engine::new(pack).unwrap()).evaluation.decision;
    for rule in ["own.at_night", RULE] {
        assert!(decision.issues.iter().any(|issue| issue.rule == rule), "{rule}: {decision:#?}");
    }
}

#[test]
fn engines_share_rules_that_are_all_compiled_and_have_their_own_where_cedar_is_asked() {
    let pack = Pack::load(&Files::embedded()).unwrap();
    let (one, other) = (pack.rules_for_engine().unwrap(), pack.rules_for_engine().unwrap());
    assert!(Arc::ptr_eq(&one, &other));
    let weak = Arc::downgrade(&one);
    drop((one, other));
    assert!(weak.upgrade().is_none(), "the pack keeps rules that no engine has");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/every-fact");
    let pack = Pack::from_dir(&folder).unwrap();
    assert!(pack.compiled_count() < pack.rules.len());
    assert!(!Arc::ptr_eq(&pack.rules_for_engine().unwrap(), &pack.rules_for_engine().unwrap()));
}
