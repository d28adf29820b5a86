//! The part of a verified event that people see: pure.
//!
//! A receiver must accept events of newer servers, so an unknown type is shown by its name and a missing member as a
//! dash. All text is shortened and escaped here, before it reaches a terminal or the page.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{LineType, Verdict};

use crate::out::plain;

const MAX_CHARACTERS: usize = 120;
const MAX_CODES: usize = 20;
const TEST_TYPE: &str = "webhook.test";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) account: String,
    /// Its number at the endpoint; a test event has none.
    pub(super) sequence: Option<u64>,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Decision(Decision),
    /// Any other event: a word for its type, and a summary.
    Other(&'static str, String),
}

/// A decision, as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Decision {
    /// `ALLOW`, `DENY` or `DEFER`; a newer server may send another word.
    pub(super) verdict: String,
    pub(super) environment: String,
    pub(super) request_id: String,
    /// The codes of its issues, each once.
    pub(super) codes: Vec<String>,
    /// Unix seconds.
    pub(super) evaluated_at: Option<i64>,
    /// More precise than `evaluated_at`, for the delay.
    #[serde(skip)]
    pub(super) recorded_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("body is no event")]
pub(super) struct NotAnEvent;

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

impl Event {
    pub(super) fn read(body: &[u8]) -> Result<Self, NotAnEvent> {
        let Body { kind, data } = serde_json::from_slice(body).map_err(|_| NotAnEvent)?;
        let line = serde_json::from_value::<LineType>(Value::String(kind.clone())).ok();
        let content = match line {
            Some(LineType::Decision) => Content::Decision(decision(&data)),
            Some(LineType::Checkpoint) => {
                let (number, covered) = (number(&data, "number"), number(&data, "covered"));
                Content::Other("mark", format!("checkpoint {number} covers {covered} more decisions"))
            }
            Some(LineType::Deletion) => {
                let (count, before) = (number(&data, "count"), text(&data, "before"));
                Content::Other("deleted", format!("{count} decisions from before {before}"))
            }
            Some(LineType::Expiry) => {
                let (count, before) = (number(&data, "count"), text(&data, "before"));
                Content::Other("expired", format!("{count} decisions from before {before}"))
            }
            Some(LineType::WebhookDisabled) => {
                Content::Other("disabled", format!("{}: {}", text(&data, "webhook"), text(&data, "reason")))
            }
            None if kind == TEST_TYPE => Content::Other("test", text(&data, "event")),
            None => Content::Other("other", short(&kind)),
        };
        let sequence = data.get("sequence").and_then(Value::as_u64).filter(|sequence| *sequence > 0);
        Ok(Self { account: text(&data, "account"), sequence, content })
    }

    /// The line that is printed, without the time in front of it.
    pub(super) fn line(&self) -> String {
        let Self { account, sequence, content } = self;
        let sequence = sequence.map_or_else(|| "-".to_owned(), |sequence| format!("#{sequence}"));
        match content {
            Content::Decision(Decision { verdict, environment, request_id, codes, .. }) => {
                let codes = if codes.is_empty() { "-".to_owned() } else { codes.join(",") };
                format!("{verdict:<8}  {environment}  {account}  {request_id}  {sequence}  {codes}")
            }
            Content::Other(word, more) => format!("{word:<8}  {account}  {sequence}  {more}"),
        }
    }
}

fn decision(data: &Value) -> Decision {
    let issues = data.get("issues").and_then(Value::as_array).into_iter().flatten();
    let verdict = data.get("verdict").and_then(Value::as_str);
    let mut codes: Vec<String> = Vec::new();
    for code in issues.take(MAX_CODES).map(|issue| text(issue, "code")) {
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    Decision {
        verdict: verdict.and_then(Verdict::parse).map_or_else(|| text(data, "verdict"), |v| v.to_string()),
        environment: text(data, "environment"),
        request_id: text(data, "request_id"),
        codes,
        evaluated_at: data.get("evaluated_at").and_then(Value::as_i64),
        recorded_at: data.get("recorded_at").and_then(Value::as_str).and_then(|at| at.parse().ok()),
    }
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
    use serde_json::json;

    use super::*;

    fn line(body: &Value) -> String {
        Event::read(body.to_string().as_bytes()).unwrap().line()
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
        for body in [json!({"type": "decision.recorded", "data": data}), json!({"type": hostile, "data": data})] {
            let line = line(&body);
            assert!(!line.chars().any(char::is_control) && line.chars().count() < 4_000, "{line}");
        }
    }

    #[test]
    fn a_body_that_is_no_event_is_refused_and_missing_members_are_not() {
        for body in ["", "{}", "[]", "null", r#"{"type":7}"#, "{\"type\":\"x\"} x"] {
            assert_eq!(Event::read(body.as_bytes()), Err(NotAnEvent), "{body}");
        }
        assert_eq!(line(&json!({"type": "decision.recorded"})), "-         -  -  -  -  -");
    }
}
