//! Which answers count as decisions.
//!
//! INVARIANT: an [`Allowed`] exists only for a complete, consistent and recorded ALLOW of the contract. All else that a
//! server, a proxy or a broken connection can send is no decision.

use serde::Deserialize as _;
use stage0_contract::{AuditMode, CheckResponse, PolicyVersion, RequestId, Verdict, parse_strict};

use crate::text::plain;

/// Larger than any answer to a check.
pub(crate) const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
const OK: u16 = 200;
const SOURCE: &str = "stage0";

/// The permission to act, once, as it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Allowed(CheckResponse);

impl Allowed {
    /// Names the decision in the log.
    pub fn request_id(&self) -> RequestId {
        self.0.request_id
    }

    /// The policy that decided.
    pub fn policy_version(&self) -> &PolicyVersion {
        &self.0.decided.policy_version
    }

    /// The whole answer.
    pub fn response(&self) -> &CheckResponse {
        &self.0
    }
}

/// A decision of the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Judged {
    /// The action may run.
    Allowed(Allowed),
    /// It may not.
    Denied(CheckResponse),
    /// Something is missing.
    Deferred(CheckResponse),
}

impl Judged {
    /// The answer.
    pub fn response(&self) -> &CheckResponse {
        match self {
            Self::Allowed(Allowed(response)) | Self::Denied(response) | Self::Deferred(response) => response,
        }
    }
}

/// Why an answer is no decision. The text never quotes the answer's values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum NoDecision {
    #[error("a decision has status 200, this has {0}")]
    Status(u16),
    #[error("it is larger than any answer of the contract")]
    TooLarge,
    #[error("{0}")]
    Unreadable(String),
    #[error("`decision` and `verdict` contradict each other")]
    Contradiction,
    #[error("it does not come from Stage0")]
    OtherSource,
    #[error("it is the answer of a test mode")]
    TestMode,
    #[error("the server records nothing")]
    Unrecorded,
}

/// Reads an answer to `POST /check`. A member that occurs twice, a signal that does not match the verdict, a missing
/// id or version, a test's answer and one that is not recorded are refused, whatever the verdict is.
pub fn judge(status: u16, body: &[u8]) -> Result<Judged, NoDecision> {
    if status != OK {
        return Err(NoDecision::Status(status));
    }
    if body.len() > MAX_ANSWER_BYTES {
        return Err(NoDecision::TooLarge);
    }
    let value = parse_strict(body).map_err(|error| NoDecision::Unreadable(error.to_string()))?;
    let unreadable = |error: serde_json::Error| NoDecision::Unreadable(plain(&error.to_string()));
    let response = CheckResponse::deserialize(&value).map_err(unreadable)?;
    if response.signal != response.decided.verdict.signal() {
        return Err(NoDecision::Contradiction);
    }
    if response.meta.source != SOURCE {
        return Err(NoDecision::OtherSource);
    }
    if response.meta.test_mode {
        return Err(NoDecision::TestMode);
    }
    match response.meta.audit {
        AuditMode::Required | AuditMode::BestEffort => {}
        AuditMode::None => return Err(NoDecision::Unrecorded),
    }
    Ok(match response.decided.verdict {
        Verdict::Allow => Judged::Allowed(Allowed(response)),
        Verdict::Deny => Judged::Denied(response),
        Verdict::Defer => Judged::Deferred(response),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::answers::allow;

    fn read(body: &Value) -> Result<Judged, NoDecision> {
        judge(OK, body.to_string().as_bytes())
    }

    fn with(member: &str, value: Value) -> Value {
        let mut body = allow();
        match member.split_once('.') {
            Some((outer, inner)) => body[outer][inner] = value,
            None => body[member] = value,
        }
        body
    }

    #[test]
    fn a_complete_recorded_allow_allows() {
        let Ok(Judged::Allowed(allowed)) = read(&allow()) else { panic!("{:?}", read(&allow())) };
        assert_eq!(allowed.request_id().to_string(), "0190163d-8694-739b-aea5-966c26f8ad91");
        assert_eq!(allowed.policy_version().as_str(), "baseline@1.0.0+0123456789ab");
        let best_effort = with("meta.audit", json!("best-effort"));
        assert!(matches!(read(&best_effort), Ok(Judged::Allowed(_))));
    }

    #[test]
    fn an_allow_without_one_of_its_members_is_no_decision() {
        let members: Vec<String> = allow().as_object().unwrap().keys().cloned().collect();
        // These are absent in answers of earlier releases, and decide nothing.
        for member in
            members.iter().filter(|name| !matches!(name.as_str(), "constraints_ignored" | "approval" | "cost_estimate"))
        {
            let mut body = allow();
            body.as_object_mut().unwrap().remove(member);
            assert!(read(&body).is_err(), "without {member}");
        }
        for member in ["source", "test_mode", "audit"] {
            let mut body = allow();
            body["meta"].as_object_mut().unwrap().remove(member);
            assert!(read(&body).is_err(), "without meta.{member}");
        }
    }

    #[test]
    fn an_allow_that_is_not_quite_one_is_no_decision() {
        for (member, value) in [
            ("decision", json!("NO_GO")),
            ("decision", json!("DEFER")),
            ("decision", json!("go")),
            ("verdict", json!("allow")),
            ("verdict", json!("DENY")),
            ("verdict", json!(true)),
            ("request_id", json!("1")),
            ("request_id", Value::Null),
            ("policy_version", json!("")),
            ("meta.test_mode", json!(true)),
            ("meta.test_mode", json!("false")),
            ("meta.source", json!("stage1")),
            ("meta.audit", json!("none")),
            ("meta.audit", Value::Null),
        ] {
            assert!(read(&with(member, value.clone())).is_err(), "{member}: {value}");
        }
    }

    #[test]
    fn only_status_200_and_one_json_object_is_a_decision() {
        let text = allow().to_string();
        for status in [0, 100, 201, 202, 204, 206, 301, 400, 500] {
            assert_eq!(judge(status, text.as_bytes()), Err(NoDecision::Status(status)));
        }
        let doubled = text.replacen('{', r#"{"verdict":"DENY","#, 1);
        for broken in [
            doubled.as_str(),
            "",
            "null",
            "[]",
            "ALLOW",
            "<html>ALLOW</html>",
            &text[..text.len() - 1],
            &format!("{text}{text}"),
        ] {
            assert!(judge(OK, broken.as_bytes()).is_err(), "{broken}");
        }
        let large = format!("{text}{}", " ".repeat(MAX_ANSWER_BYTES));
        assert_eq!(judge(OK, large.as_bytes()), Err(NoDecision::TooLarge));
    }

    #[test]
    fn a_denial_and_a_deferral_are_decisions_too() {
        let mut body = with("verdict", json!("DENY"));
        body["decision"] = json!("NO_GO");
        assert!(matches!(read(&body), Ok(Judged::Denied(_))));
        (body["verdict"], body["decision"]) = (json!("DEFER"), json!("DEFER"));
        assert!(matches!(read(&body), Ok(Judged::Deferred(_))));
    }
}
