//! Answers of a server, for the tests and the selftest.

use serde_json::{Value, json};

/// A complete ALLOW.
pub(crate) fn allow() -> Value {
    json!({
        "decision": "GO", "verdict": "ALLOW", "reason": "nothing speaks against it", "issues": [],
        "risk_score": 5, "value_risk": 0, "waste_risk": 0, "high_risk": false, "clarifying_questions": [],
        "defer_questions": [], "guardrails": [], "constraints_applied": [], "constraints_ignored": [],
        "value_findings": [], "guardrail_checks": {}, "cost_estimate": null, "approval": null,
        "request_id": "0190163d-8694-739b-aea5-966c26f8ad91", "task_hash": "0".repeat(64),
        "policy_version": "baseline@1.0.0+0123456789ab", "policy_pack_version": "baseline@1.0.0+0123456789ab",
        "environment": "", "timestamp": 1, "evaluated_at": 1, "decision_trace_summary": "", "cached": false,
        "meta": {"source": "stage0", "test_mode": false, "client_request_id": null, "audit": "required"}
    })
}
