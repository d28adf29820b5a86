//! Approvals in a decision: what a denial that is held here adds, what a caller of an account that counts only held
//! approvals reads, where an approval that counted came from, and what one that is missing needs.
//!
//! INVARIANT: an action that a person denied is denied, whether the pack has a rule for it or not.

use serde_json::{Map, Value};
use stage0_contract::{ApprovalSource, ApprovalTerms, Effect, Issue, IssueCode, NextAction, Severity, Verdict};

use super::Draft;
use super::remedy::Remedy;
use crate::approval::Terms;
use crate::facts::Facts;
use crate::pack::Pack;
use crate::rule::{Outcome, Rule};

/// `details.approval` of an issue that an approval would settle, where the caller's word is none.
const ONLY_HELD: &str = "this account counts only approvals that are held here: `context.approval_status` is none";
const ONLY_HELD_SENTENCE: &str =
    "This account counts only approvals that are held here: `context.approval_status` is none.";
/// The rule of the issue for an action that a person denied.
const DENIED: &str = "approval.denied";

/// The issue of an action that a person denied, unless a rule of the pack denies it for that already.
pub(super) fn denial(is_denied: bool, drafts: &[Draft]) -> Option<Draft> {
    let denies =
        |draft: &Draft| draft.effect == Effect::Deny && draft.issue.code.as_str() == IssueCode::APPROVAL_STATUS_INVALID;
    if !is_denied || drafts.iter().any(denies) {
        return None;
    }
    let issue = Issue {
        code: IssueCode::approval_status_invalid(),
        severity: Severity::High,
        message: "the approval of this action was denied".to_owned(),
        rule: DENIED.to_owned(),
        next_action: NextAction::Stop,
        details: Map::new(),
    };
    Some(Draft::denying(issue))
}

/// Takes out of a remedy what the caller may not settle by its own word. Returns the sentence for the rule's question
/// where an approval that is held here would settle the issue.
pub(super) fn only_held(
    facts: &Facts,
    rule: &Rule,
    remedy: &mut Remedy,
    details: &mut Map<String, Value>,
) -> Option<&'static str> {
    if !facts.approval.only_held {
        return None;
    }
    let is_asked = remedy.drop_claim() || rule.next_action == NextAction::RequestApproval;
    if !is_asked || rule.effect != Effect::Defer {
        return None;
    }
    details.insert("approval".to_owned(), ONLY_HELD.into());
    Some(ONLY_HELD_SENTENCE)
}

/// Where the approval came from that the verdict relies on. An approval by the actor, or one that is too old, counts as
/// none, and a DENY relies on none.
///
/// `settles` says whether a rule would object without the caller's claim. It is asked only where the pack's facts do
/// not say already that the action needs an approval.
pub(crate) fn source<E>(
    facts: &Facts,
    verdict: Verdict,
    settles: impl FnOnce() -> Result<bool, E>,
) -> Result<Option<ApprovalSource>, E> {
    let approval = &facts.approval;
    let Some(source) = approval.source.filter(|_| verdict != Verdict::Deny) else { return Ok(None) };
    let counts = match source {
        ApprovalSource::Caller if approval.by_actor || facts.approval_stale => false,
        ApprovalSource::Caller => approval.needed || settles()?,
        ApprovalSource::Approval | ApprovalSource::Grant => true,
    };
    Ok(Some(source).filter(|_| counts))
}

/// On DEFER: what the rules that ask for an approval demand together. Rules that ask for something else, which an
/// approval may settle all the same, demand nothing beyond the pack's defaults.
pub(crate) fn terms(pack: &Pack, outcome: &Outcome<'_>, verdict: Verdict) -> Option<ApprovalTerms> {
    let asking = || outcome.matched.iter().filter(|rule| rule.asks_for_approval());
    let deferring = outcome.matched.iter().filter(|rule| rule.effect == Effect::Defer);
    // Without the rules that ask, a pack that this one extends would demand its defaults: then they hold as well.
    let is_added_to = deferring.map(|rule| rule.level).min() < asking().map(|rule| rule.level).min();
    let defaults = is_added_to.then(Terms::default);
    let demanded = asking().map(|rule| &rule.terms).chain(&defaults);
    (verdict == Verdict::Defer).then(|| Terms::together(demanded, &pack.approvals.terms))
}
