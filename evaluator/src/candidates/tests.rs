//! The bounds of the queue, what two judgements come to, and what is handed on of a check.

use std::sync::Arc;

use serde_json::json;
use stage0_contract::{
    AccountId, CallerTexts, CandidateCounts, CandidateMode, CheckRequest, Decision, EvaluateReply, EvaluateRequest,
    Evaluation, IssueCode, KeyId, PolicyCandidate, PolicyVersion, RequestId, Verdict,
};
use stage0_policy::{Engine, Pack, RunNeeds, RunSnapshot};

use super::outcome::{Judgement, compared};
use super::queue::{MAX_BYTES, MAX_BYTES_OF_ACCOUNT, MAX_WAITING, MAX_WAITING_OF_ACCOUNT};
use super::*;
use crate::engines::MAX_ORDINARY_BYTES;
use crate::fair_queue::Queued;
use crate::metrics::Comparison;
use crate::published::Chosen;

const ID: Uuid = Uuid::from_u128(7);

fn message(account: &str, rules: &serde_json::Value) -> Arc<EvaluateRequest> {
    let asker = json!({"key_id": "key_2", "holder": {"workload": "key_1"}, "rules": rules});
    Arc::new(EvaluateRequest {
        asker: Some(serde_json::from_value(asker).unwrap()),
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse(account).unwrap(),
        request: CheckRequest::parse(json!({"goal": "read the report"})).unwrap(),
        evaluated_at: 1_773_662_400,
        operation: None,
        caller: CallerTexts::default(),
        max_runs: None,
    })
}

fn judgement(verdict: Verdict, rule: &str, has_failed: bool) -> Judgement {
    let gravest = (verdict != Verdict::Allow).then(|| (IssueCode::policy_error(), rule.to_owned()));
    Judgement { verdict, gravest, failed: has_failed.then(|| rule.to_owned()), is_refusal: false }
}

fn job(account: &str, bytes: usize) -> Job {
    Job {
        message: message(account, &json!({})),
        bytes,
        candidate: ID,
        mode: CandidateMode::Shadow,
        other: None,
        floor: None,
        run: None,
        held: None,
        answered: judgement(Verdict::Allow, "", false),
    }
}

fn decision() -> Decision {
    let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
    engine.decide(&CheckRequest::parse(json!({"goal": "deploy", "side_effects": ["deploy"]})).unwrap(), 0).unwrap()
}

fn decided(decision: Decision) -> EvaluateReply {
    let events = Vec::new();
    EvaluateReply::Decided(Box::new(Evaluation { decision, recordable: None, approval_source: None, events }))
}

/// What was found in a process in which nothing judges.
fn counted(candidates: &Candidates) -> CandidateCounts {
    let taken = candidates.pending().take();
    taken.first().map(|(_, sent)| sent.findings.counts).unwrap_or_default()
}

#[test]
fn the_queue_is_bounded_in_all_and_for_each_account_by_number_and_by_bytes() {
    let mut queue = Queue::new();
    for _ in 0..MAX_WAITING_OF_ACCOUNT {
        assert!(queue.push(job("busy", 1)).is_ok());
    }
    assert!(queue.push(job("busy", 1)).is_err());
    assert!(queue.push(job("quiet", 1)).is_ok(), "another account has room");
    assert_eq!(queue.pop().unwrap().account().as_str(), "busy");
    assert_eq!(queue.pop().unwrap().account().as_str(), "quiet", "in turns");
    assert!(queue.push(job("busy", 1)).is_ok(), "what was taken out makes room");
    assert!(queue.push(job("large", MAX_BYTES_OF_ACCOUNT)).is_ok());
    assert!(queue.push(job("large", 1)).is_err());

    let mut queue = Queue::new();
    let push = |queue: &mut Queue, number: usize| queue.push(job(&format!("a{}", number % 7), 1));
    assert!((0..MAX_WAITING).all(|number| push(&mut queue, number).is_ok()));
    assert!(push(&mut queue, 0).is_err());
    while queue.pop().is_some() {}
    assert!(queue.is_empty() && push(&mut queue, 0).is_ok());

    let mut queue = Queue::new();
    for number in 0..MAX_BYTES / MAX_BYTES_OF_ACCOUNT {
        assert!(queue.push(job(&format!("a{number}"), MAX_BYTES_OF_ACCOUNT)).is_ok());
    }
    assert!(queue.push(job("b", 1)).is_err());
}

#[test]
fn a_check_without_room_is_counted_as_not_judged() {
    let candidates = Candidates::new();
    for _ in 0..MAX_WAITING_OF_ACCOUNT + 3 {
        candidates.submit(job("acc", 1));
    }
    assert_eq!(counted(&candidates), CandidateCounts { not_judged: 3, ..CandidateCounts::default() });
}

#[test]
fn a_shadow_is_what_the_answer_is_compared_with_and_a_canary_is_what_answered() {
    use Verdict::{Allow, Defer, Deny};
    let message = message("acc", &json!({}));
    let compare = |mode, answered: Judgement, other: Judgement| compared(&message, mode, answered, other);
    let [deny, allow] = [judgement(Deny, "active.rule", false), judgement(Allow, "", false)];
    let (judged, found) = compare(CandidateMode::Shadow, deny.clone(), allow.clone());
    assert_eq!((judged, found.counts.looser, found.counts.disagreements), (Comparison::Differs, 1, 1));
    let flip = &found.disagreements[0];
    assert_eq!((flip.from, flip.to, flip.rule.as_str(), flip.agent.as_ref()), (Deny, Allow, "active.rule", None));
    let (_, found) = compare(CandidateMode::Canary, deny.clone(), allow);
    assert_eq!((found.disagreements[0].from, found.disagreements[0].to), (Allow, Deny));
    assert_eq!(found.counts.looser, 0);

    let failed = judgement(Deny, "its.rule", true);
    let (judged, found) = compare(CandidateMode::Shadow, deny.clone(), failed.clone());
    assert_eq!((judged, found.counts.errors, found.counts.disagreements), (Comparison::Error, 1, 0));
    let row = &found.disagreements[0];
    assert_eq!((row.from, row.to, row.rule.as_str()), (Deny, Deny, "its.rule"), "which rule failed is listed");
    let (judged, found) = compare(CandidateMode::Canary, deny.clone(), failed.clone());
    assert_eq!((judged, found.counts.errors), (Comparison::Same, 0), "a rule of the active policy failed");
    // The stricter of both is why.
    let (_, found) = compare(CandidateMode::Shadow, judgement(Defer, "active.rule", false), failed);
    assert_eq!(found.disagreements[0].rule, "its.rule");
    let (judged, found) = compare(CandidateMode::Shadow, deny.clone(), deny);
    assert_eq!((judged, found.disagreements.len(), found.counts.checks), (Comparison::Same, 0, 1));
}

#[test]
fn the_gravest_issue_that_decides_is_named_and_a_failed_rule_of_the_floor_is_no_error() {
    let mut decision = decision();
    assert_ne!(decision.verdict, Verdict::Allow);
    let (code, rule) = Judgement::of(&decision).gravest.unwrap();
    assert!(decision.reason.starts_with(&format!("{code}: ")), "{rule}");
    // An issue that only advises may be graver.
    let mut advice = decision.issues[0].clone();
    (advice.code, advice.rule) = (IssueCode::parse("ADVICE").unwrap(), "only.advice".to_owned());
    decision.issues.insert(0, advice);
    assert_eq!(Judgement::of(&decision).gravest.unwrap(), (code, rule));

    assert_eq!(Judgement::of(&decision).failed, None);
    let floor = PolicyVersion::parse("floor@1.0.0+000000000000").unwrap();
    decision.floor_version = Some(floor.clone());
    decision.issues[0].code = IssueCode::policy_error();
    assert!(Judgement::of(&decision).failed.is_some());
    decision.issues[0].details.insert("policy".to_owned(), floor.as_str().into());
    assert_eq!(Judgement::of(&decision).failed, None);
    decision.verdict = Verdict::Allow;
    assert_eq!(Judgement::of(&decision).gravest, None);
}

#[test]
fn a_check_is_handed_on_once_and_only_if_rules_decided_it_for_the_first_time() {
    let rules = |percent: u8| {
        let candidate = PolicyCandidate {
            id: ID,
            mode: CandidateMode::Shadow,
            version: PolicyVersion::parse("ours@1.0.0+000000000000").unwrap(),
            environment: None,
            percent,
            return_at: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            key_id: KeyId::parse("key_9").unwrap(),
            against: Vec::new(),
        };
        json!({"candidates": [candidate]})
    };
    let message_with = |percent| message("acc", &rules(percent));
    let candidates = Candidates::new();
    assert!(candidates.watch(&message("acc", &json!({}))).is_none());
    let message = message_with(100);
    let (reply, seen) =
        (decided(decision()), || RunSeen { snapshot: RunSnapshot::default(), counted: RunNeeds::default() });
    let answer = |note: &dyn Fn(&Watched), bytes: usize, reply: &EvaluateReply| {
        let watched = candidates.watch(&message).unwrap();
        note(&watched);
        watched.answered(Arc::clone(&message), bytes, Chosen::default(), reply);
        let queued = candidates.pop().is_some();
        (queued, counted(&candidates).not_judged)
    };
    let (decided_by_rules, twice) = (
        |watched: &Watched| watched.note_decided(None),
        |watched: &Watched| {
            watched.note_run(Some(seen()));
            watched.note_decided(None);
            watched.note_run(Some(seen()));
            watched.note_decided(None);
        },
    );
    assert_eq!(answer(&|_| {}, 1, &reply), (false, 0), "a stop decides without rules");
    assert_eq!(answer(&decided_by_rules, 1, &EvaluateReply::TimedOut), (false, 0));
    assert_eq!(answer(&decided_by_rules, 1, &reply), (true, 0));
    assert_eq!(answer(&twice, 1, &reply), (true, 0), "attempts that conflict");
    let again = |watched: &Watched| {
        watched.note_run(None);
        watched.note_decided(None);
    };
    assert_eq!(answer(&again, 1, &reply), (false, 0), "a repeat of an allowed check");
    let refused = EvaluateReply::Unable("no engine".to_owned());
    assert_eq!(answer(&|_| {}, 1, &refused), (false, 0), "a shadow's check that is not decided");
    assert_eq!(answer(&decided_by_rules, MAX_ORDINARY_BYTES, &reply), (true, 0));
    assert_eq!(answer(&decided_by_rules, MAX_ORDINARY_BYTES + 1, &reply), (false, 1), "a large check");
}

#[test]
fn a_run_suffices_where_what_a_policy_asks_of_it_was_counted() {
    let counted = |counted| RunSeen { snapshot: RunSnapshot::default(), counted };
    let nothing = RunNeeds::default();
    for needs in [
        RunNeeds { allowed: true, ..nothing },
        RunNeeds { verdicts: true, ..nothing },
        RunNeeds { targets: true, ..nothing },
    ] {
        assert!(!counted(nothing).suffices(needs), "{needs:?}");
        assert!(counted(needs).suffices(needs) && counted(RunSeen::ALL).suffices(needs), "{needs:?}");
    }
    assert!(counted(nothing).suffices(nothing));
    assert!(counted(nothing).suffices(RunNeeds { calls: true, ..nothing }), "calls are known of every run");
}

#[test]
fn what_a_canary_fails_or_refuses_is_counted_although_the_other_policy_does_not_judge() {
    use super::outcome::not_judged;
    let failed = judgement(Verdict::Deny, "its.rule", true);
    let errors = |mode, answered: Option<&Judgement>| not_judged(mode, answered).counts.errors;
    assert_eq!(errors(CandidateMode::Canary, Some(&failed)), 1);
    assert_eq!(errors(CandidateMode::Shadow, Some(&failed)), 0, "a rule of the active policy failed");
    assert_eq!(errors(CandidateMode::Canary, Some(&judgement(Verdict::Deny, "its.rule", false))), 0);
    assert_eq!(errors(CandidateMode::Canary, Some(&Judgement::refused())), 0, "the active policy refuses it too");
    let message = message("acc", &json!({}));
    let allow = judgement(Verdict::Allow, "", false);
    let (judged, found) = compared(&message, CandidateMode::Canary, Judgement::refused(), allow);
    assert_eq!((judged, found.counts.errors, found.counts.disagreements), (Comparison::Error, 1, 1));
    assert_eq!(found.disagreements[0].rule, "policy.refused");
}
