//! How a decision looks to people: verdict, reason, issues, questions, and what it rests on.

use serde::Serialize;
use stage0_contract::Decision;

use crate::out::plain;

/// Several lines, without a line break at the end.
pub(crate) fn for_people(decision: &Decision) -> String {
    let signal = wire_word(&decision.verdict.signal());
    let mut lines = vec![format!("{} ({signal})", decision.verdict), format!("  {}", plain(&decision.reason))];
    if !decision.issues.is_empty() {
        lines.push("\nIssues".to_owned());
    }
    for issue in &decision.issues {
        let severity = wire_word(&issue.severity);
        lines.push(format!("  {severity:<8} {}: {}", issue.code, plain(&issue.message)));
        lines.push(format!("           rule {}, next: {}", plain(&issue.rule), wire_word(&issue.next_action)));
    }
    if !decision.clarifying_questions.is_empty() {
        lines.push("\nQuestions".to_owned());
        lines.extend(decision.clarifying_questions.iter().map(|question| format!("  - {}", plain(question))));
    }
    lines.push(format!("\nrisk     {} of 100", decision.risk_score));
    lines.push(format!("policy   {}", decision.policy_version));
    lines.join("\n")
}

/// The word that stands for it on the wire.
pub(crate) fn wire_word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
