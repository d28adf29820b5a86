//! The words of approvals, the defaults of an account's rules, and what deferring rules demand together.

use serde_json::json;

use super::*;

#[test]
fn every_word_of_an_approval_is_read_as_it_is_written() {
    for status in ApprovalStatus::ALL {
        assert_eq!(ApprovalStatus::parse(status.as_str()), Some(status));
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    for mode in [ApprovalMode::Caller, ApprovalMode::Verified] {
        assert_eq!(ApprovalMode::parse(mode.as_str()), Some(mode));
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
    }
    for bad in ["", "Pending", "approved ", "used"] {
        assert_eq!(ApprovalStatus::parse(bad), None, "{bad}");
    }
    for bad in ["", "Caller", "on", "verified "] {
        assert_eq!(ApprovalMode::parse(bad), None, "{bad}");
    }
}

#[test]
fn an_approval_has_ended_unless_it_waits_or_can_or_may_have_been_used() {
    let open = ApprovalStatus::ALL.into_iter().filter(|status| !status.is_final());
    assert_eq!(open.collect::<Vec<_>>(), [ApprovalStatus::Pending, ApprovalStatus::Approved, ApprovalStatus::Reserved]);
}

/// Accounts that exist keep the public contract: the caller's word counts, and four eyes are needed.
#[test]
fn an_account_without_rules_believes_its_callers_and_needs_four_eyes() {
    let rules: AccountRules = serde_json::from_value(json!({})).unwrap();
    assert_eq!(rules, AccountRules::default());
    assert!(rules.is_default() && rules.four_eyes && rules.approvals == ApprovalMode::Caller);
    assert_eq!(serde_json::to_value(&rules).unwrap(), json!({}));
    let strict: AccountRules = serde_json::from_value(json!({"approvals": "verified", "four_eyes": false})).unwrap();
    assert!(!strict.is_default());
    assert_eq!(serde_json::to_value(&strict).unwrap(), json!({"approvals": "verified", "four_eyes": false}));
}

#[test]
fn terms_name_the_largest_quorum_and_every_group_once() {
    let requirement = |groups: &[&str], quorum| Requirement {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        quorum,
        escalation: None,
    };
    let mut terms = ApprovalTerms {
        requirements: vec![requirement(&["b", "a"], 1), requirement(&["b", "c"], 3), requirement(&[], 2)],
        within_seconds: 60,
        valid_seconds: 60,
        reason_required: false,
        escalation: None,
    };
    assert_eq!((terms.quorum(), terms.groups()), (3, ["a", "b", "c"].map(str::to_owned).to_vec()));
    terms.requirements.clear();
    assert_eq!((terms.quorum(), terms.groups()), (1, Vec::new()));
}

#[test]
fn an_action_digest_is_64_hexadecimal_digits_in_lower_case() {
    let text = "0123456789abcdef".repeat(4);
    assert_eq!(ActionDigest::parse(&text).unwrap().as_str(), text);
    for bad in
        ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &text.replace('0', "g"), &text.replace('0', " ")]
    {
        assert!(ActionDigest::parse(bad).is_err(), "{bad}");
        assert!(serde_json::from_value::<ActionDigest>(json!(bad)).is_err(), "{bad}");
    }
}

#[test]
fn a_line_about_an_approval_is_read_back_from_the_event_that_was_written() {
    let text = include_str!("../../fixtures/approval_record.json");
    let record: ApprovalRecord = serde_json::from_str(text).unwrap();
    let line = crate::ChainedLine::read(text.as_bytes()).unwrap();
    assert_eq!((line.line, &line.chain), (Some(record.event.kind), &record.chain));
    assert!(!record.event.kind.is_mark());
    let event: ApprovalEvent = serde_json::from_str(text).unwrap();
    assert_eq!(event, record.event);
}
