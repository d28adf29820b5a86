//! Each rule of what is tried, with its refusal and its nearest harmless neighbour.

use super::super::tests::{caller, paths};
use super::*;
use crate::store::record::policies::tests::{candidate, version};
use stage0_contract::{AccountId, CandidateCounts, PolicyVersion};
use uuid::Uuid;

fn asked(account: Option<&AccountId>) -> Asked<'_> {
    Asked { account, environment: None, is_floor: false, reason: None, diff_digest: None }
}

fn terms(percent: u8, (disagreement_percent, error_percent, min_checks): (u8, u8, u32)) -> CanaryTerms {
    CanaryTerms { percent, return_at: ReturnAt { disagreement_percent, error_percent, min_checks } }
}

fn bad(terms: CanaryTerms) -> Vec<String> {
    bad_terms(&terms).into_iter().map(|error| error.path).collect()
}

#[test]
fn a_policy_is_tried_in_one_account_which_an_operator_names() {
    let (a, b) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
    let (operator, managing) = (caller("o", &[Scope::Operator]), caller("a", &[Scope::PoliciesManage]));
    let whose = |caller, account| place(caller, &asked(account), Vec::new()).map(|place| place.owner);
    assert_eq!(paths(whose(&operator, None).map(drop)), ["account"]);
    assert_eq!(whose(&operator, Some(&b)), Ok(Some(b.clone())));
    assert_eq!(whose(&managing, None), Ok(Some(a)));
    assert_eq!(whose(&managing, Some(&b)), Err(Refusal::NotFound));
}

#[test]
fn the_floor_is_not_tried() {
    let floor = Asked { is_floor: true, ..asked(None) };
    let operator = caller("o", &[Scope::Operator]);
    assert_eq!(paths(place(&operator, &floor, Vec::new()).map(drop)), ["floor"]);
    let managing = caller("a", &[Scope::PoliciesManage]);
    assert_eq!(place(&managing, &floor, Vec::new()), Err(Refusal::ScopeMissing(Scope::Operator)));
}

#[test]
fn all_that_is_wrong_with_a_call_is_named_at_once() {
    let operator = caller("o", &[Scope::Operator]);
    let call = Asked { environment: Some(" "), reason: Some(""), ..asked(None) };
    let refused = place(&operator, &call, bad_percent("percent", 0).into_iter().collect());
    assert_eq!(paths(refused.map(drop)), ["environment", "reason", "account", "percent"]);
}

#[test]
fn a_share_is_one_to_a_hundred_percent() {
    for (percent, is_bad) in [(0, true), (1, false), (100, false), (101, true)] {
        assert_eq!(bad_percent("percent", percent).is_some(), is_bad, "{percent}");
        assert_eq!(bad(terms(percent, (2, 0, 50))), if is_bad { vec!["canary.percent"] } else { vec![] });
    }
}

#[test]
fn terms_of_a_canary_are_within_their_ranges_and_each_bad_member_is_named() {
    for good in [(0, 0, 1), (100, 100, 1_000_000)] {
        assert!(bad(terms(5, good)).is_empty(), "{good:?}");
    }
    for (return_at, member) in [
        ((101, 0, 50), "disagreement_percent"),
        ((2, 101, 50), "error_percent"),
        ((2, 0, 0), "min_checks"),
        ((2, 0, 1_000_001), "min_checks"),
    ] {
        assert_eq!(bad(terms(5, return_at)), [format!("canary.return_at.{member}")]);
    }
    assert_eq!(bad(terms(0, (255, 255, 0))).len(), 4);
}

#[test]
fn what_decides_there_already_is_not_tried() {
    let (a, b) = (version("a"), version("b"));
    for other in [vec![], vec![None], vec![Some(b.clone())], vec![Some(b), Some(a.clone())]] {
        assert_eq!(check_differs(&a, &other), Ok(()), "{other:?}");
    }
    match check_differs(&a, &[Some(a.clone()), None]) {
        Err(Refusal::Conflict(text)) => assert!(text.contains("is active there already"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn conflict<T: std::fmt::Debug>(judged: Result<T, Refusal>) -> String {
    match judged {
        Err(Refusal::Conflict(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_is_not_begun_again_at_its_place_and_on_other_terms_it_is() {
    let canary = candidate(1, "a", Some("production"), Some(ReturnAt::default()));
    let record = ActiveRecord { candidates: vec![canary.clone()], ..ActiveRecord::default() };
    let again = PolicyCandidate { id: Uuid::from_u128(2), environment: Some("prod".to_owned()), ..canary };
    assert_eq!(conflict(check_new(&record, &again)), "it is tried there already, on the same terms");
    let return_at = Some(ReturnAt { min_checks: 51, ..ReturnAt::default() });
    for other in [
        candidate(2, "a", Some("production"), None),
        PolicyCandidate { version: version("b"), ..again.clone() },
        PolicyCandidate { environment: Some("staging".to_owned()), ..again.clone() },
        PolicyCandidate { environment: None, ..again.clone() },
        PolicyCandidate { percent: 11, ..again.clone() },
        PolicyCandidate { return_at, ..again.clone() },
        // What it was compared with is active no longer, so the one that is there decides nothing.
        PolicyCandidate { against: vec![Some(version("b"))], ..again },
    ] {
        assert_eq!(check_new(&record, &other), Ok(()), "{other:?}");
    }
}

#[test]
fn a_hundred_begin_in_a_day() {
    assert_eq!(check_begun(MAX_CANDIDATES_A_DAY - 1), Ok(()));
    let text = conflict(check_begun(MAX_CANDIDATES_A_DAY));
    assert!(text.contains("within 24 hours, and 100 is the most"), "{text}");
}

#[test]
fn what_is_active_is_not_activated_again_while_another_is_tried_there() {
    let candidates = vec![candidate(1, "b", Some("production"), Some(ReturnAt::default()))];
    let mut record = ActiveRecord { candidates, ..ActiveRecord::default() };
    let at = |environment: Option<&str>, is_floor| Place {
        owner: AccountId::parse("a").ok(),
        environment: environment.map(str::to_owned),
        is_floor,
    };
    let text = |mode| {
        let b: PolicyVersion = version("b");
        format!("it is active already, and `{b}` is tried there as a {mode}: withdraw it")
    };
    assert_eq!(conflict(check_untried(&record, &at(Some("prod"), false))), text("canary"));
    for elsewhere in [None, Some("staging")] {
        assert_eq!(check_untried(&record, &at(elsewhere, false)), Ok(()), "{elsewhere:?}");
    }
    record.candidates.push(candidate(2, "b", None, None));
    assert_eq!(conflict(check_untried(&record, &at(None, false))), text("shadow"));
    assert_eq!(check_untried(&record, &at(None, true)), Ok(()), "the floor is not tried");
}

#[test]
fn one_is_tried_at_a_place_and_eight_in_an_account() {
    let mut record = ActiveRecord::default();
    for number in 0..MAX_CANDIDATES as u128 {
        begin(&mut record, candidate(number, "a", Some(&format!("e{number}")), None)).unwrap();
    }
    let full = record.clone();
    match begin(&mut record, candidate(90, "a", None, None)) {
        Err(Refusal::Conflict(text)) => assert!(text.contains("8 policies are tried"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(record, full);
    let next = candidate(91, "b", Some("e3"), Some(ReturnAt::default()));
    begin(&mut record, next.clone()).unwrap();
    assert_eq!((record.candidates.len(), record.candidate_at(Some("e3"))), (MAX_CANDIDATES, Some(&next)));
}

#[test]
fn only_what_is_tried_can_be_withdrawn() {
    let tried = candidate(1, "a", Some("production"), None);
    let record = ActiveRecord { candidates: vec![tried.clone()], ..ActiveRecord::default() };
    let at = |environment: Option<&str>| Place {
        owner: AccountId::parse("a").ok(),
        environment: environment.map(str::to_owned),
        is_floor: false,
    };
    assert_eq!(withdrawn(&record, &at(Some("prod"))), Ok(tried));
    for elsewhere in [None, Some("staging")] {
        assert!(matches!(withdrawn(&record, &at(elsewhere)), Err(Refusal::Conflict(_))), "{elsewhere:?}");
    }
}

#[test]
fn only_a_live_canary_that_differs_more_often_than_its_terms_allow_returns() {
    let at = ReturnAt { disagreement_percent: 2, error_percent: 0, min_checks: 50 };
    let (canary, shadow) = (candidate(1, "a", None, Some(at)), candidate(2, "a", Some("staging"), None));
    let record = ActiveRecord { candidates: vec![canary.clone(), shadow], ..ActiveRecord::default() };
    let call = |number, disagreements, errors, is_uncounted| {
        let counts = CandidateCounts { checks: 50, disagreements, errors, ..CandidateCounts::default() };
        let (account, candidate) = (AccountId::parse("a").unwrap(), Uuid::from_u128(number));
        returned(&record, &ReturnCanary { account, candidate, counts, is_uncounted, sequence: None, is_trial: true })
    };
    let judged = |number, disagreements, errors| call(number, disagreements, errors, false);
    assert_eq!(judged(1, 2, 0), Ok(canary.clone()));
    assert_eq!(judged(1, 0, 1), Ok(canary.clone()));
    assert!(matches!(judged(1, 1, 0), Err(Refusal::Conflict(_))), "as often as is allowed");
    assert!(matches!(judged(2, 50, 50), Err(Refusal::Conflict(_))), "a shadow");
    assert_eq!(judged(3, 50, 50), Err(Refusal::NotFound), "which has ended");
    // What a canary decides is not counted: its counts say nothing.
    assert_eq!(call(1, 0, 0, true), Ok(canary));
    assert!(matches!(call(1, 0, 0, false), Err(Refusal::Conflict(_))), "they do");
    assert!(matches!(call(2, 0, 0, true), Err(Refusal::Conflict(_))), "a shadow decides nothing");
    assert_eq!(call(3, 0, 0, true), Err(Refusal::NotFound), "which has ended");
}
