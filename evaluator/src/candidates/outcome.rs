//! What two judgements of one check come to. Pure.

use stage0_contract::{
    CandidateCounts, CandidateFindings, CandidateMode, Decision, Disagreement, EvaluateRequest, Issue, IssueCode,
    Verdict, is_looser,
};

use crate::metrics::Comparison;

/// What is kept of a decision to compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    /// Code and rule of the gravest issue that decides; none on ALLOW.
    pub(super) gravest: Option<(IssueCode, String)>,
    /// The rule of the account's own policy that failed.
    pub(super) failed: Option<String>,
    /// It came to no verdict: the request, or the policy itself, was refused.
    pub(super) is_refusal: bool,
}

impl Judgement {
    pub(super) fn of(decision: &Decision) -> Self {
        let gravest = gravest(decision).map(|issue| (issue.code.clone(), issue.rule.clone()));
        let is_failed =
            |issue: &&Issue| issue.code.as_str() == IssueCode::POLICY_ERROR && !is_of_floor(issue, decision);
        let failed = decision.issues.iter().find(is_failed).map(|issue| issue.rule.clone());
        Self { verdict: decision.verdict, gravest, failed, is_refusal: false }
    }

    /// Of a canary that does not decide what it takes: as if a rule had failed.
    pub(super) fn refused() -> Self {
        let failed = REFUSED.to_owned();
        let gravest = Some((IssueCode::policy_error(), failed.clone()));
        Self { verdict: Verdict::Deny, gravest, failed: Some(failed), is_refusal: true }
    }
}

/// In place of a rule.
const REFUSED: &str = "policy.refused";

/// The issue that the reason names first: issues and reasons have the same order, and a reason names what decides.
fn gravest(decision: &Decision) -> Option<&Issue> {
    if decision.verdict == Verdict::Allow {
        return None;
    }
    let is_first = |issue: &&Issue| decision.reason.starts_with(&format!("{}: {}", issue.code, issue.message));
    decision.issues.iter().find(is_first).or_else(|| decision.issues.first())
}

/// A decision marks the issues that only the operator's floor raises with its version.
fn is_of_floor(issue: &Issue, decision: &Decision) -> bool {
    let marked = issue.details.get("policy").and_then(|policy| policy.as_str());
    marked.is_some() && marked == decision.floor_version.as_ref().map(|version| version.as_str())
}

/// What is found of a candidate by one check that both judged. `other` is the judgement that was not answered.
pub(super) fn compared(
    message: &EvaluateRequest,
    mode: CandidateMode,
    answered: Judgement,
    other: Judgement,
) -> (Comparison, CandidateFindings) {
    let (active, candidate) = match mode {
        CandidateMode::Shadow => (answered, other),
        CandidateMode::Canary => (other, answered),
    };
    let (from, to) = (active.verdict, candidate.verdict);
    let counts = CandidateCounts {
        checks: 1,
        disagreements: u64::from(from != to),
        looser: u64::from(is_looser(Some(from), Some(to))),
        errors: u64::from(candidate.failed.is_some()),
        not_judged: 0,
    };
    let comparison = match (candidate.failed.is_some(), from == to) {
        (true, _) => Comparison::Error,
        (false, true) => Comparison::Same,
        (false, false) => Comparison::Differs,
    };
    let failed = candidate.failed.clone().map(|rule| (IssueCode::policy_error(), rule));
    let has_failed = failed.is_some();
    let stricter = if to > from { candidate } else { active };
    let (code, rule) = failed.or(stricter.gravest).unwrap_or_else(|| (IssueCode::policy_error(), String::new()));
    // What the operator or the account named the key: no word of the request.
    let agent = message.asker.as_ref().and_then(|asker| asker.key_name.clone()).filter(|name| !name.is_empty());
    let disagreement = (from != to || has_failed).then_some(Disagreement {
        from,
        to,
        code,
        rule,
        agent,
        count: 1,
        request_id: message.request_id,
        last_at: message.evaluated_at,
    });
    (comparison, CandidateFindings { counts, disagreements: disagreement.into_iter().collect(), left_out: 0 })
}

/// What is found by a check that only the policy judged which decided it. A failed rule of a canary is known all the
/// same.
pub(super) fn not_judged(mode: CandidateMode, answered: Option<&Judgement>) -> CandidateFindings {
    let has_failed = answered.is_some_and(|judgement| judgement.failed.is_some() && !judgement.is_refusal);
    let errors = u64::from(mode == CandidateMode::Canary && has_failed);
    let counts = CandidateCounts { not_judged: 1, errors, ..CandidateCounts::default() };
    CandidateFindings { counts, ..CandidateFindings::default() }
}
