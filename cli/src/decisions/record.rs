//! A recorded decision as text: in full, or as a row of a table.

use std::collections::BTreeSet;

use stage0_contract::{AuditMode, DecisionRecord};

use crate::decision;
use crate::out::plain;
use crate::table::{fields, optional};

pub(super) fn for_people(record: &DecisionRecord) -> String {
    let DecisionRecord { chain, recorded_at, expires_at, response, circumstances, .. } = record;
    let client_id = response.meta.client_request_id.as_ref();
    let expires = jiff::Timestamp::from_second(*expires_at).ok();
    let durations = circumstances.durations;
    let rows = fields([
        ("request", response.request_id.to_string()),
        ("client id", optional(client_id.map(|id| plain(id.as_str())).as_ref())),
        ("recorded", format!("{recorded_at}{}", audit(response.meta.audit))),
        ("expires", optional(expires.as_ref())),
        ("environment", text(&response.decided.environment)),
        ("account", circumstances.account.to_string()),
        ("key", circumstances.key_id.to_string()),
        ("run", optional(circumstances.run_id.as_deref().map(plain).as_ref())),
        ("address", optional(circumstances.client.address.as_deref().map(plain).as_ref())),
        ("agent", optional(circumstances.client.user_agent.as_deref().map(plain).as_ref())),
        (
            "took",
            format!("{:.1} ms, of which {:.1} ms for the evaluation", durations.total_ms, durations.evaluation_ms),
        ),
        ("task", plain(&response.task_hash)),
        ("chain", format!("writer {}, sequence {}", chain.writer, chain.sequence)),
    ]);
    let rows = rows.replace('\n', "\n  ");
    let input = circumstances.input.as_ref().and_then(|input| serde_json::to_string_pretty(input).ok());
    let input = input.map_or_else(String::new, |input| {
        let lines: String = input.lines().map(|line| format!("\n  {}", plain(line))).collect();
        format!("\n\nInput, secrets masked{lines}")
    });
    format!("{}\n\nRecord\n  {rows}{input}", decision::for_people(&response.decided))
}

pub(super) const HEADINGS: [&str; 7] = ["RECORDED", "VERDICT", "ENVIRONMENT", "CODES", "RUN", "KEY", "REQUEST"];

pub(super) const VERDICT: usize = 1;

/// The key is left out first, and the request never, because `show` needs it. The rest fits into 80 columns.
pub(super) const SHRINKABLE: [(usize, usize); 5] = [(5, 0), (4, 0), (3, 20), (2, 0), (3, 8)];

pub(super) fn cells(record: &DecisionRecord) -> [String; 7] {
    let mut codes: Vec<&str> = record.response.decided.issues.iter().map(|issue| issue.code.as_str()).collect();
    let mut seen = BTreeSet::new();
    codes.retain(|code| seen.insert(*code));
    let codes = codes.join(",");
    [
        record.recorded_at.to_string(),
        record.response.decided.verdict.to_string(),
        text(&record.response.decided.environment),
        text(&codes),
        text(record.circumstances.run_id.as_deref().unwrap_or_default()),
        record.circumstances.key_id.to_string(),
        record.response.request_id.to_string(),
    ]
}

fn audit(mode: AuditMode) -> &'static str {
    match mode {
        AuditMode::Required => ", before the answer left",
        AuditMode::BestEffort => ", possibly after the answer left (best effort)",
        AuditMode::None => "",
    }
}

fn text(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { plain(text) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record() -> Value {
        json!({
            "type": "decision.recorded",
            "chain": {"writer": "00000000-0000-0000-0000-000000000007", "sequence": 2, "previous": null},
            "recorded_at": "2027-01-15T08:00:01Z", "expires_at": 1_802_592_001,
            "decision": "NO_GO", "verdict": "DENY", "reason": "a\u{1b}[2J", "issues": [
                {"code": "SECRET_IN_REQUEST", "severity": "HIGH", "message": "m", "rule": "r",
                    "next_action": "fix_request", "details": {}},
                {"code": "GOAL_UNCLEAR", "severity": "LOW", "message": "m", "rule": "r",
                    "next_action": "fix_request", "details": {}}],
            "risk_score": 90, "value_risk": 0, "waste_risk": 0, "high_risk": true, "clarifying_questions": [],
            "defer_questions": [], "guardrails": [], "constraints_applied": [], "value_findings": [],
            "guardrail_checks": {}, "cost_estimate": null, "request_id": "0190163d-8694-739b-aea5-966c26f8ad91",
            "task_hash": "00", "policy_version": "baseline@1.0.0+0123", "policy_pack_version": "baseline@1.0.0+0123",
            "environment": "", "timestamp": 1, "evaluated_at": 1, "decision_trace_summary": "", "cached": false,
            "meta": {"source": "stage0", "test_mode": false, "client_request_id": "c-1", "audit": "required"},
            "account": "acc_1", "key_id": "key_1", "run_id": "run\n\u{9b}1",
            "client": {"address": "192.0.2.7", "user_agent": "agent\u{1b}]0;x"},
            "durations": {"evaluation_ms": 1.25, "total_ms": 3.5}, "input": {"goal": "g\u{9b}2J"}
        })
    }

    fn read(record: &Value) -> DecisionRecord {
        serde_json::from_value(record.clone()).unwrap()
    }

    #[test]
    fn a_record_is_shown_in_full_and_escaped() {
        let shown = for_people(&read(&record()));
        for part in [
            "DENY (NO_GO)",
            "SECRET_IN_REQUEST",
            "policy   baseline@1.0.0+0123",
            "0190163d-8694-739b-aea5-966c26f8ad91",
            "c-1",
            "2027-01-15T08:00:01Z, before the answer left",
            "2027-02-14",
            "acc_1",
            "key_1",
            "192.0.2.7",
            "3.5 ms, of which 1.2 ms",
            "writer 00000000-0000-0000-0000-000000000007, sequence 2",
            "Input, secrets masked",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert!(!shown.contains("run\n"), "line breaks are escaped");
    }

    #[test]
    fn a_row_has_no_empty_cell() {
        let mut record = record();
        assert_eq!(cells(&read(&record))[2..4], ["-", "SECRET_IN_REQUEST,GOAL_UNCLEAR"]);
        let issue = record["issues"][0].clone();
        record["issues"].as_array_mut().unwrap().push(issue);
        assert_eq!(cells(&read(&record))[3], "SECRET_IN_REQUEST,GOAL_UNCLEAR", "each code once");
        record["run_id"] = Value::Null;
        record["issues"] = json!([]);
        assert_eq!(cells(&read(&record))[2..5], ["-", "-", "-"]);
    }
}
