//! What a verified body says, as far as people are shown it: pure.
//!
//! Owns the types of event that have words of their own. A receiver must live with what a newer server sends, so a type that is not
//! known is shown by its name, and a member that is missing by a dash. All text is cut and cleaned here, before anybody sees it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_contract::{LineType, Verdict};

use crate::out::plain;

const MOST_CHARACTERS: usize = 120;
const MOST_CODES: usize = 20;
const TEST: &str = "webhook.test";

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Whose.
    pub(super) account: String,
    /// Its number at the endpoint; none for what has no place in the log.
    pub(super) sequence: Option<u64>,
    /// What it tells.
    pub(super) about: About,
}

/// What it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    /// A decision.
    Decision(Decision),
    /// Anything else: one word for it, and more words.
    Other(&'static str, String),
}

/// A decision, as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Decision {
    /// `ALLOW`, `DENY` or `DEFER`, unless the sender is newer.
    pub(super) verdict: String,
    /// As it was given.
    pub(super) environment: String,
    /// Ours.
    pub(super) request_id: String,
    /// Of its issues.
    pub(super) codes: Vec<String>,
    /// When it was decided, in whole seconds.
    pub(super) evaluated_at: Option<i64>,
    /// When it was recorded, which is known more finely.
    #[serde(skip)]
    pub(super) recorded_at: Option<Timestamp>,
}

/// The body is JSON, and no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("body is no event")]
pub(super) struct NoEvent;

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

impl Event {
    /// Reads a body that was verified.
    pub(super) fn read(body: &[u8]) -> Result<Self, NoEvent> {
        let Body { kind, data } = serde_json::from_slice(body).map_err(|_| NoEvent)?;
        let line = serde_json::from_value::<LineType>(Value::String(kind.clone())).ok();
        let about = match line {
            Some(LineType::Decision) => About::Decision(decision(&data)),
            Some(LineType::Checkpoint) => {
                let (number, covered) = (number(&data, "number"), number(&data, "covered"));
                About::Other("mark", format!("checkpoint {number} covers {covered} more decisions"))
            }
            Some(LineType::Deletion) => {
                let (count, before) = (number(&data, "count"), text(&data, "before"));
                About::Other("deleted", format!("{count} decisions from before {before}"))
            }
            Some(LineType::Expiry) => {
                let (count, before) = (number(&data, "count"), text(&data, "before"));
                About::Other("expired", format!("{count} decisions from before {before}"))
            }
            Some(LineType::WebhookDisabled) => {
                About::Other("disabled", format!("{}: {}", text(&data, "webhook"), text(&data, "reason")))
            }
            None if kind == TEST => About::Other("test", text(&data, "event")),
            None => About::Other("other", short(&kind)),
        };
        let sequence = data.get("sequence").and_then(Value::as_u64).filter(|sequence| *sequence > 0);
        Ok(Self { account: text(&data, "account"), sequence, about })
    }

    /// As a line, without its time.
    pub(super) fn line(&self) -> String {
        let Self { account, sequence, about } = self;
        let sequence = sequence.map_or_else(|| "-".to_owned(), |sequence| format!("#{sequence}"));
        match about {
            About::Decision(Decision { verdict, environment, request_id, codes, .. }) => {
                let codes = if codes.is_empty() { "-".to_owned() } else { codes.join(",") };
                format!("{verdict:<8}  {environment}  {account}  {request_id}  {sequence}  {codes}")
            }
            About::Other(word, more) => format!("{word:<8}  {account}  {sequence}  {more}"),
        }
    }
}

fn decision(data: &Value) -> Decision {
    let issues = data.get("issues").and_then(Value::as_array).into_iter().flatten();
    let verdict = data.get("verdict").and_then(Value::as_str);
    // Several issues may have the same code.
    let mut codes: Vec<String> = Vec::new();
    for code in issues.take(MOST_CODES).map(|issue| text(issue, "code")) {
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

/// A text from elsewhere, on one line and not too long; a dash for none.
pub(super) fn short(text: &str) -> String {
    let mut characters = text.trim().chars();
    let kept: String = characters.by_ref().take(MOST_CHARACTERS).collect();
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
        let data = json!({"verdict": hostile, "environment": hostile, "account": hostile, "request_id": hostile, "issues": codes});
        for body in [json!({"type": "decision.recorded", "data": data}), json!({"type": hostile, "data": data})] {
            let line = line(&body);
            assert!(!line.chars().any(char::is_control) && line.chars().count() < 4_000, "{line}");
        }
    }

    #[test]
    fn what_is_no_event_is_told_from_one_that_lacks_members() {
        for body in ["", "{}", "[]", "null", r#"{"type":7}"#, "{\"type\":\"x\"} x"] {
            assert_eq!(Event::read(body.as_bytes()), Err(NoEvent), "{body}");
        }
        assert_eq!(line(&json!({"type": "decision.recorded"})), "-         -  -  -  -  -");
    }
}
