//! A decision as text: verdict, reason, issues with what to change, questions, risk and policy version.

mod details;

use serde::Serialize;
use stage0_contract::Decision;

use crate::out::plain;

pub(crate) fn for_people(decision: &Decision) -> String {
    let verdict = decision.verdict.to_string();
    let signal = wire_word(&decision.verdict.signal());
    let signal = if signal == verdict { String::new() } else { format!(" ({signal})") };
    let mut lines = vec![format!("{verdict}{signal}"), format!("  {}", plain(&decision.reason))];
    if !decision.issues.is_empty() {
        lines.push("\nIssues".to_owned());
    }
    for issue in &decision.issues {
        let severity = wire_word(&issue.severity);
        lines.push(format!("  {severity:<8} {}: {}", issue.code, plain(&issue.message)));
        lines.extend(details::lines(&issue.details).into_iter().map(|line| format!("           {line}")));
        lines.push(format!("           rule {}, next: {}", plain(&issue.rule), wire_word(&issue.next_action)));
    }
    let mut section = |heading: &str, items: &[String]| {
        if !items.is_empty() {
            lines.push(format!("\n{heading}"));
            lines.extend(items.iter().map(|item| format!("  - {}", plain(item))));
        }
    };
    section("Constraints without effect", &decision.constraints_ignored);
    section("Questions", &decision.clarifying_questions);
    lines.push(format!("\nrisk     {} of 100", decision.risk_score));
    lines.push(format!("policy   {}", decision.policy_version));
    if let Some(floor) = &decision.floor_version {
        lines.push(format!("floor    {floor}"));
    }
    lines.join("\n")
}

pub(crate) fn wire_word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
