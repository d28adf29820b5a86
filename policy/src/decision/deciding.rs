//! Which issue of a decision decides.

use stage0_contract::{Decision, Issue, Verdict};

/// The gravest issue that decides; none for an ALLOW. Of two packs with the same verdict it is one of the account's own
/// pack, otherwise one of the stricter pack.
pub fn deciding_issue(decision: &Decision) -> Option<&Issue> {
    if decision.verdict == Verdict::Allow {
        return None;
    }
    let named = || {
        let lists = decision.decision_trace_summary.split("deciding: ").skip(1);
        lists.filter_map(|list| list.split(';').next()).flat_map(|list| list.split(", "))
    };
    let leads = |issue: &&Issue| {
        let rest = decision.reason.strip_prefix(issue.code.as_str()).and_then(|rest| rest.strip_prefix(": "));
        rest.is_some_and(|rest| rest.starts_with(&issue.message)) && named().any(|rule| rule == issue.rule)
    };
    decision.issues.iter().find(leads).or_else(|| decision.issues.first())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decision(verdict: &str, reason: &str, trace: &str, issues: &[(&str, &str, &str)]) -> Decision {
        let issue = |(code, rule, message): &(&str, &str, &str)| -> Value {
            json!({"code": code, "severity": "HIGH", "message": message, "rule": rule, "next_action": "stop",
                "details": {}})
        };
        let issues: Vec<Value> = issues.iter().map(issue).collect();
        serde_json::from_value(json!({"verdict": verdict, "reason": reason, "issues": issues, "risk_score": 0,
            "value_risk": 0, "waste_risk": 0, "high_risk": false, "clarifying_questions": [], "defer_questions": [],
            "guardrails": [], "constraints_applied": [], "value_findings": [], "guardrail_checks": {},
            "cost_estimate": null, "policy_version": "p@1.0.0+0123456789ab", "environment": "",
            "decision_trace_summary": trace}))
        .unwrap()
    }

    #[test]
    fn an_issue_that_only_advises_decides_nothing_however_grave_it_is() {
        let issues = [("A", "x.advice", "look"), ("A", "x.other", "ask"), ("A", "x.ask", "ask"), ("B", "x.more", "m")];
        let rule = |decision: &Decision| deciding_issue(decision).map(|issue| issue.rule.clone());
        let trace = "9 rules evaluated, 4 matched, 0 failed; deciding: x.ask, x.more";
        let alone = decision("DEFER", "A: ask; B: m", trace, &issues);
        assert_eq!(rule(&alone).as_deref(), Some("x.ask"));
        let own = "9 rules evaluated, 1 matched, 0 failed; deciding: none";
        let beside = decision("DEFER", "A: ask; B: m", &format!("{own}; floor: {trace}"), &issues);
        assert_eq!(rule(&beside).as_deref(), Some("x.ask"));
        assert_eq!(rule(&decision("ALLOW", "no rule of the policy objects", own, &issues)), None);
        assert_eq!(rule(&decision("DENY", "", own, &[])), None);
    }
}
