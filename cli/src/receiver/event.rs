//! The part of a verified event that people see: pure.
//!
//! A receiver must accept events of newer servers, so an unknown type is shown by its name and a missing member as a
//! dash. All text is shortened and escaped here, before it reaches a terminal or the page.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use stage0_contract::LineType;

use crate::out::plain;

const MAX_CHARACTERS: usize = 120;
const MAX_CODES: usize = 20;
const TEST_TYPE: &str = "webhook.test";

#[derive(Debug)]
pub(super) struct Event {
    pub(super) account: String,
    /// Its number at the endpoint; a test event has none.
    pub(super) sequence: Option<u64>,
    /// What is printed, without the time in front of it.
    pub(super) line: String,
    pub(super) row: Option<Value>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

impl Event {
    pub(super) fn read(body: &[u8], now: Timestamp) -> Option<Self> {
        let Body { kind, data } = serde_json::from_slice(body).ok()?;
        let account = text(&data, "account");
        let sequence = data.get("sequence").and_then(Value::as_u64).filter(|sequence| *sequence > 0);
        let removed = || format!("{} decisions from before {}", number(&data, "count"), text(&data, "before"));
        let (word, more) = match LineType::parse(&kind) {
            Some(LineType::Decision) => return Some(Self::decision(&data, account, sequence, now)),
            Some(LineType::Checkpoint) => {
                let (number, covered) = (number(&data, "number"), number(&data, "covered"));
                ("mark", format!("checkpoint {number} covers {covered} more decisions"))
            }
            Some(LineType::Deletion) => ("deleted", removed()),
            Some(LineType::Expiry) => ("expired", removed()),
            Some(LineType::WebhookDisabled) => {
                ("disabled", format!("{}: {}", text(&data, "webhook"), text(&data, "reason")))
            }
            Some(LineType::StopStarted) => ("stop", about("started", &data, "stop_id")),
            Some(LineType::StopEnded) => ("stop", about("ended", &data, "stop_id")),
            Some(LineType::DecisionOutcome) => {
                let status = data.get("details").map_or_else(|| "-".to_owned(), |details| text(details, "status"));
                ("outcome", about(&status, &data, "request_id"))
            }
            Some(LineType::GuardSilent) => ("guard", about("silent", &data, "guard_id")),
            // Further types: `approval.requested` or `policy.activated`, for example.
            Some(_) => {
                let (word, happened) = kind.split_once('.').unwrap_or(("other", &kind));
                (word, about(happened, &data, subject(&data)))
            }
            None if kind == TEST_TYPE => ("test", text(&data, "event")),
            None => ("other", short(&kind)),
        };
        let line = format!("{word:<8}  {account}  {}  {more}", numbered(sequence));
        Some(Self { account, sequence, line, row: None })
    }

    fn decision(data: &Value, account: String, sequence: Option<u64>, now: Timestamp) -> Self {
        let [verdict, environment, request_id] = ["verdict", "environment", "request_id"].map(|name| text(data, name));
        let recorded_at = data.get("recorded_at").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
        let issues = data.get("issues").and_then(Value::as_array).into_iter().flatten();
        let mut codes: Vec<String> = Vec::new();
        for code in issues.take(MAX_CODES).map(|issue| text(issue, "code")) {
            if !codes.contains(&code) {
                codes.push(code);
            }
        }
        let listed = if codes.is_empty() { "-".to_owned() } else { codes.join(",") };
        let line = format!("{verdict:<8}  {environment}  {account}  {request_id}  {}  {listed}", numbered(sequence));
        let row = json!({
            "arrived_at": now,
            "account": account,
            "sequence": sequence,
            "delay_ms": recorded_at.map(|recorded| now.as_millisecond() - recorded.as_millisecond()),
            "verdict": verdict,
            "environment": environment,
            "request_id": request_id,
            "codes": codes,
            "evaluated_at": data.get("evaluated_at").and_then(Value::as_i64),
        });
        Self { account, sequence, line, row: Some(row) }
    }
}

/// The member that names what an event is about.
fn subject(data: &Value) -> &'static str {
    if data.get("approval_id").is_some() || data.get("grant_id").is_none() { "approval_id" } else { "grant_id" }
}

/// What happened to what, where, and who did it.
fn about(happened: &str, data: &Value, subject: &str) -> String {
    let actor = data.get("actor").unwrap_or(&Value::Null);
    let by = [text(actor, "member_id"), text(actor, "key_id")].into_iter().find(|who| who != "-");
    let by = by.map_or_else(String::new, |who| format!(" by {who}"));
    format!("{happened} {}  {}{by}", text(data, subject), text(data, "environment"))
}

pub(super) fn numbered(sequence: Option<u64>) -> String {
    sequence.map_or_else(|| "-".to_owned(), |sequence| format!("#{sequence}"))
}

fn text(data: &Value, name: &str) -> String {
    data.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), short)
}

fn number(data: &Value, name: &str) -> String {
    data.get(name).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// Escapes and shortens a text of the sender; a dash stands for an empty one.
pub(super) fn short(text: &str) -> String {
    let mut characters = text.trim().chars();
    let kept: String = characters.by_ref().take(MAX_CHARACTERS).collect();
    match (kept.is_empty(), characters.next()) {
        (true, _) => "-".to_owned(),
        (false, None) => plain(&kept),
        (false, Some(_)) => format!("{}…", plain(&kept)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(body: &Value) -> String {
        Event::read(body.to_string().as_bytes(), Timestamp::UNIX_EPOCH).unwrap().line
    }

    #[test]
    fn every_type_of_event_has_a_line() {
        let of = |kind: &str, data: Value| line(&json!({"type": kind, "data": data}));
        let decision = json!({"account": "acc_1", "verdict": "DENY", "environment": "production", "request_id": "r",
            "sequence": 41, "issues": [{"code": "A"}, {"code": "B"}, {"code": "A"}]});
        assert_eq!(of("decision.recorded", decision), "DENY      production  acc_1  r  #41  A,B");
        let mark = json!({"account": "acc_1", "number": 7, "covered": 3, "sequence": 42});
        assert_eq!(of("checkpoint.signed", mark), "mark      acc_1  #42  checkpoint 7 covers 3 more decisions");
        let deleted = json!({"account": "acc_1", "count": 5, "before": "2026-01-01T00:00:00Z", "sequence": 43});
        assert_eq!(
            of("decisions.deleted", deleted),
            "deleted   acc_1  #43  5 decisions from before 2026-01-01T00:00:00Z"
        );
        let disabled = json!({"account": "acc_1", "webhook": "w", "reason": "it is gone", "sequence": 44});
        assert_eq!(of("webhook.disabled", disabled), "disabled  acc_1  #44  w: it is gone");
        let asked = json!({"account": "acc_1", "approval_id": "apr_1", "environment": "production", "sequence": 45,
            "action_digest": "00", "request_id": "r"});
        assert_eq!(of("approval.requested", asked), "approval  acc_1  #45  requested apr_1  production");
        let approved = json!({"account": "acc_1", "approval_id": "apr_1", "environment": "production", "sequence": 46,
            "actor": {"key_id": "key_2", "member_id": "mem_2", "authenticated_by": "api_key"}});
        assert_eq!(of("approval.approved", approved), "approval  acc_1  #46  approved apr_1  production by mem_2");
        let used = json!({"account": "acc_1", "grant_id": "gra_1", "actor": {"key_id": "key_1"}, "sequence": 47});
        assert_eq!(of("approval.used", used), "approval  acc_1  #47  used gra_1  - by key_1");
        let stopped = json!({"account": "acc_1", "stop_id": "stp_1", "actor": {"key_id": "key_2"}, "sequence": 48});
        assert_eq!(of("stop.started", stopped.clone()), "stop      acc_1  #48  started stp_1  - by key_2");
        assert_eq!(of("stop.ended", stopped), "stop      acc_1  #48  ended stp_1  - by key_2");
        let test = json!({"account": "acc_1", "event": "test_1", "sequence": 0});
        assert_eq!(of("webhook.test", test), "test      acc_1  -  test_1");
        assert_eq!(of("something.new", json!(null)), "other     -  -  something.new");
    }

    #[test]
    fn hostile_text_is_cut_and_stays_on_its_line() {
        let hostile = format!("\u{1b}[2J\r\nALLOW{}", "x".repeat(5_000));
        let codes: Vec<_> = (0..5_000).map(|_| json!({"code": hostile})).collect();
        let data = json!({"verdict": hostile, "environment": hostile, "account": hostile, "request_id": hostile,
            "issues": codes});
        let about = json!({"approval_id": hostile, "environment": hostile, "account": hostile,
            "actor": {"key_id": hostile}});
        for body in [
            json!({"type": "decision.recorded", "data": data}),
            json!({"type": "approval.voted", "data": about}),
            json!({"type": hostile, "data": data}),
        ] {
            let line = line(&body);
            assert!(!line.chars().any(char::is_control) && line.chars().count() < 4_000, "{line}");
        }
    }

    #[test]
    fn a_body_that_is_no_event_is_refused_and_missing_members_are_not() {
        for body in ["", "{}", "[]", "null", r#"{"type":7}"#, "{\"type\":\"x\"} x"] {
            assert!(Event::read(body.as_bytes(), Timestamp::UNIX_EPOCH).is_none(), "{body}");
        }
        assert_eq!(line(&json!({"type": "decision.recorded"})), "-         -  -  -  -  -");
        assert_eq!(line(&json!({"type": "approval.voted"})), "approval  -  -  voted -  -");
    }
}
