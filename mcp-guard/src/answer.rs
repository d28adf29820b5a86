//! What the guard itself answers, in the form of the client's protocol version.
//!
//! INVARIANT: nothing here looks like success. A tool that did not run is a result with `isError: true`, a JSON-RPC
//! error, or a question to a person.

use serde_json::{Value, json};

use crate::json::quoted;
use crate::message::{NOT_ALLOWED, Refusal};
use crate::version::Version;

/// Where an answer of the guard says what was decided, beside a result's own members.
pub(crate) const META_DECISION: &str = "stage0/decision";

/// Why a call does not reach the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotRun {
    pub(crate) kind: NotRunKind,
    /// For the model: what was decided, why, and what it can do.
    pub(crate) text: String,
    /// Reason codes.
    pub(crate) reasons: Vec<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) approval: Option<Approval>,
    /// What the server says of the approval beyond that, such as why none was opened.
    pub(crate) approval_note: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRunKind {
    Denied,
    Deferred,
    Undecided,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Approval {
    pub(crate) id: String,
    /// Where it is read; `None` where the server has no public address.
    pub(crate) url: Option<String>,
}

impl NotRunKind {
    pub(crate) const fn verdict(self) -> &'static str {
        match self {
            Self::Denied => "DENY",
            Self::Deferred => "DEFER",
            Self::Undecided => "UNDECIDED",
        }
    }
}

impl NotRun {
    pub(crate) fn undecided(why: impl Into<String>) -> Self {
        let why: String = why.into();
        let text = format!("Not decided, so the tool did not run: {why}. Do not retry blindly: tell the user.");
        Self::without_decision(Vec::new(), text)
    }

    /// The guard itself holds the call back, before the server is asked.
    pub(crate) fn held_back(reason: &str, text: String) -> Self {
        Self::without_decision(vec![reason.to_owned()], text)
    }

    fn without_decision(reasons: Vec<String>, text: String) -> Self {
        Self { kind: NotRunKind::Undecided, text, reasons, request_id: None, approval: None, approval_note: None }
    }

    fn structured(&self) -> Value {
        let mut value = json!({"verdict": self.kind.verdict(), "reasons": self.reasons, "request_id": self.request_id});
        if let (Some(approval), Some(members)) = (&self.approval, value.as_object_mut()) {
            members.insert("approval_id".to_owned(), approval.id.clone().into());
        }
        if let (Some(note), Some(members)) = (&self.approval_note, value.as_object_mut()) {
            members.insert("approval_note".to_owned(), note.clone().into());
        }
        value
    }
}

/// The result of a tool that did not run.
pub(crate) fn tool_error(raw_id: &str, version: Version, not_run: &NotRun, has_output_schema: bool) -> Vec<u8> {
    let mut result = json!({"content": [{"type": "text", "text": not_run.text}], "isError": true});
    if let Some(members) = result.as_object_mut() {
        if version.is_stateless() {
            members.insert("resultType".to_owned(), "complete".into());
        }
        // A client may hold `structuredContent` against the tool's own schema.
        if version.has_structured_content() && !has_output_schema {
            members.insert("structuredContent".to_owned(), not_run.structured());
        } else {
            members.insert("_meta".to_owned(), json!({META_DECISION: not_run.structured()}));
        }
    }
    response(raw_id, "result", &result)
}

/// A call that waits until a person has opened the approval: the client asks the person and calls again.
pub(crate) fn input_required(raw_id: &str, not_run: &NotRun, url: &str, state: &str) -> Vec<u8> {
    let result = json!({
        "resultType": "input_required",
        "inputRequests": {INPUT_NAME: {
            "method": "elicitation/create",
            "params": {"mode": "url", "url": url, "message": not_run.text},
        }},
        "requestState": state,
        "_meta": {META_DECISION: not_run.structured()},
    });
    response(raw_id, "result", &result)
}

/// The name of the guard's own question in `inputRequests`.
pub(crate) const INPUT_NAME: &str = "stage0_approval";

/// Something that is no tool and was not allowed: these results have no `isError`.
pub(crate) fn not_allowed(raw_id: &str, not_run: &NotRun) -> Vec<u8> {
    let error = json!({"code": NOT_ALLOWED, "message": not_run.text, "data": not_run.structured()});
    response(raw_id, "error", &error)
}

pub(crate) fn error(raw_id: Option<&str>, code: i64, text: &str) -> Vec<u8> {
    response(raw_id.unwrap_or("null"), "error", &json!({"code": code, "message": text}))
}

pub(crate) fn unsupported_version(raw_id: &str, requested: &str) -> Vec<u8> {
    let supported: Vec<&str> = Version::ALL.into_iter().filter(|v| v.is_stateless()).map(Version::as_str).collect();
    let error = json!({
        "code": crate::message::UNSUPPORTED_VERSION,
        "message": "this guard does not speak the protocol version",
        "data": {"supported": supported, "requested": requested},
    });
    response(raw_id, "error", &error)
}

impl Refusal {
    pub(crate) fn answer(&self) -> Vec<u8> {
        error(self.raw_id.as_deref(), self.code, &self.text)
    }
}

/// The id stays as it was spelled.
fn response(raw_id: &str, member: &str, value: &Value) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{raw_id},{}:{value}}}"#, quoted(member)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deferred() -> NotRun {
        NotRun {
            kind: NotRunKind::Deferred,
            text: "An approval is missing.".to_owned(),
            reasons: vec!["APPROVAL_MISSING".to_owned()],
            request_id: Some("r1".to_owned()),
            approval: Some(Approval { id: "apr_1".to_owned(), url: None }),
            approval_note: None,
        }
    }

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn a_tool_that_did_not_run_is_an_error_in_every_version() {
        for version in Version::ALL {
            let answer = read(&tool_error("\"x\"", version, &deferred(), false));
            assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!("x"), &json!(true)), "{version:?}");
            assert_eq!(answer["result"]["content"][0]["text"], "An approval is missing.");
            assert_eq!(answer["result"].get("resultType").is_some(), version.is_stateless());
            let structured = answer["result"].get("structuredContent");
            assert_eq!(structured.is_some(), version >= Version::V2025_06_18, "{version:?}");
            let decision = structured.unwrap_or(&answer["result"]["_meta"][META_DECISION]);
            assert_eq!((&decision["verdict"], &decision["approval_id"]), (&json!("DEFER"), &json!("apr_1")));
        }
    }

    #[test]
    fn a_tool_with_an_output_schema_has_the_decision_beside_its_result() {
        let answer = read(&tool_error("1", Version::V2026_07_28, &deferred(), true));
        assert!(answer["result"].get("structuredContent").is_none());
        assert_eq!(answer["result"]["_meta"][META_DECISION]["request_id"], "r1");
    }

    #[test]
    fn a_question_to_a_person_has_the_state_and_is_no_result() {
        let answer = read(&input_required("1", &deferred(), "https://s0.example/a", "state"));
        assert_eq!(answer["result"]["resultType"], "input_required");
        assert_eq!(answer["result"]["inputRequests"][INPUT_NAME]["params"]["mode"], "url");
        assert_eq!(answer["result"]["requestState"], "state");
        assert!(answer["result"].get("content").is_none());
    }

    #[test]
    fn undecided_says_not_to_retry_blindly() {
        let not_run = NotRun::undecided("the server did not answer in time");
        assert!(not_run.text.contains("Do not retry blindly") && not_run.kind.verdict() == "UNDECIDED");
        assert_eq!(read(&not_allowed("1", &not_run))["error"]["code"], NOT_ALLOWED);
    }
}
