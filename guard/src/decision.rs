//! What came of asking, and the text that an agent reads about it.
//!
//! INVARIANT: only an answer that is a complete, consistent and recorded ALLOW becomes [`Decision::Allow`]; every other
//! answer, and none, is [`Decision::Undecided`] or a refusal.

use std::fmt::Write as _;

use serde_json::Value;

/// The longest text for an agent, in characters.
const MAX_TEXT_CHARS: usize = 2_000;
/// The longest part of it about what could not be read.
const MAX_NOTE_CHARS: usize = 700;
/// The most issues and questions that the text names.
const MAX_LINES: usize = 5;

/// What a guard does with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The tool may run.
    Allow {
        /// The decision's id: outcomes are reported under it.
        request_id: String,
    },
    /// The policy refuses it.
    Deny {
        /// The decision's id.
        request_id: String,
        /// What the agent reads.
        text: String,
    },
    /// It is not allowed yet: an answer or an approval is missing. The tool does not run.
    Defer {
        /// The decision's id.
        request_id: String,
        /// What the agent reads, with the approval's address where there is one.
        text: String,
    },
    /// No decision that counts. The tool does not run.
    Undecided {
        /// What the agent reads.
        text: String,
    },
}

impl Decision {
    /// An undecided call, and why; a lower-case clause such as `the server cannot be reached`.
    pub fn undecided(why: impl AsRef<str>) -> Self {
        let text = format!(
            "Stage0 did not decide this call, so it does not run: {}. Do not retry it in a loop and do not look for \
             a way around: tell the person.",
            why.as_ref()
        );
        Self::Undecided { text: shortened(&text, MAX_TEXT_CHARS) }
    }

    /// Reads the answer to a check: its status and its body, which was parsed strictly.
    pub fn read(status: u16, body: &Value) -> Self {
        if status != 200 {
            let code = body.get("error").and_then(Value::as_str);
            let code = code.filter(|code| code.len() < 60 && is_plain(code)).map(|code| format!(" ({code})"));
            return Self::undecided(format!("the server answered {status}{}", code.unwrap_or_default()));
        }
        match complete(body) {
            Ok((verdict, request_id)) => {
                let request_id = request_id.to_owned();
                match verdict {
                    "ALLOW" => Self::Allow { request_id },
                    "DENY" => Self::Deny { text: told("DENIED", body, &request_id), request_id },
                    _ => Self::Defer { text: told("DEFERRED", body, &request_id), request_id },
                }
            }
            Err(why) => Self::undecided(format!("the server's answer does not count: {why}")),
        }
    }

    /// The same decision; a refusal also tells the agent what the guard could not read of the call, so that it can be
    /// written plainer. `unread` is what [`ask::unread`](crate::ask::unread) gives: nothing of the call's text is in
    /// it.
    pub fn with_unread(mut self, unread: &[impl AsRef<str>]) -> Self {
        if let Self::Deny { text, request_id } | Self::Defer { text, request_id } = &mut self
            && !unread.is_empty()
        {
            let kinds = unread.iter().take(MAX_LINES).map(AsRef::as_ref).collect::<Vec<_>>().join("; ");
            let tail = format!(" [request {request_id}]");
            let note = shortened(&format!(" The guard could not read all of the call: {kinds}.{tail}"), MAX_NOTE_CHARS);
            let head = text.strip_suffix(&tail).unwrap_or(text);
            *text = shortened(head, MAX_TEXT_CHARS.saturating_sub(note.chars().count())) + &note;
        }
        self
    }

    /// Whether the tool may run.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The decision's id, if there is a decision.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Allow { request_id } | Self::Deny { request_id, .. } | Self::Defer { request_id, .. } => {
                Some(request_id)
            }
            Self::Undecided { .. } => None,
        }
    }

    /// What the agent reads; nothing for an ALLOW. Never empty otherwise.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Allow { .. } => None,
            Self::Deny { text, .. } | Self::Defer { text, .. } | Self::Undecided { text } => {
                Some(if text.trim().is_empty() { "Stage0 did not allow this call." } else { text })
            }
        }
    }
}

/// Verdict and id of a complete answer, or what is wrong with it.
fn complete(body: &Value) -> Result<(&str, &str), &'static str> {
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let verdict = text("verdict");
    match (verdict, text("decision")) {
        ("ALLOW", "GO") | ("DENY", "NO_GO") | ("DEFER", "DEFER") => {}
        _ => return Err("`verdict` and `decision` do not belong together"),
    }
    let request_id = text("request_id");
    if !is_uuid(request_id) {
        return Err("`request_id` is no UUID");
    }
    if text("policy_version").trim().is_empty() {
        return Err("`policy_version` is missing");
    }
    let meta = body.get("meta").unwrap_or(&Value::Null);
    if meta.get("source").and_then(Value::as_str) != Some("stage0") {
        return Err("`meta.source` is not `stage0`");
    }
    if meta.get("test_mode") != Some(&Value::Bool(false)) {
        return Err("`meta.test_mode` is not false");
    }
    if !matches!(meta.get("audit").and_then(Value::as_str), Some("required" | "best-effort")) {
        return Err("`meta.audit` says that it was not recorded");
    }
    Ok((verdict, request_id))
}

fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    let fits = |(at, byte): (usize, u8)| if dashes.contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' '))
}

/// The text of a refusal: the reasons, what to do, and where a person approves.
fn told(word: &str, body: &Value, request_id: &str) -> String {
    let mut text = format!("Stage0 {word} this call, so it does not run.");
    let items = |name: &str| body.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for issue in items("issues").iter().take(MAX_LINES) {
        let part = |name: &str| issue.get(name).and_then(Value::as_str).unwrap_or_default();
        let _ = write!(text, " {}: {}.", part("code"), part("message").trim_end_matches('.'));
    }
    if word == "DEFERRED" {
        for question in items("clarifying_questions").iter().take(MAX_LINES) {
            let question = question.as_str().or_else(|| question.get("question")?.as_str()).unwrap_or_default();
            let _ = write!(text, " {question}");
        }
    }
    let approval = body.get("approval").filter(|approval| approval.is_object());
    match approval {
        Some(approval) if word == "DEFERRED" => {
            let part = |name: &str| approval.get(name).and_then(Value::as_str).unwrap_or_default();
            let (url, id) = (part("url"), part("id"));
            // A path alone is no link.
            let how = if url.is_empty() || url.starts_with('/') {
                format!("`stage0 approvals approve {id}`")
            } else {
                format!("{url} or `stage0 approvals approve {id}`")
            };
            let _ = write!(
                text,
                " A person can approve it with {how} (approval {id}, {}). Then make the same call again in the same \
                 session, unchanged.",
                part("status"),
            );
        }
        _ if word == "DEFERRED" => {
            // Why there is no approval, where the server says so.
            if let Some(why) = items("issues").iter().find_map(|issue| issue.pointer("/details/approval")?.as_str()) {
                let _ = write!(text, " No approval was opened: {}.", why.trim_end_matches('.'));
            }
            text.push_str(" Ask the person, and do not look for a way around.");
        }
        _ => text.push_str(" Do not retry it, and do not look for a way around."),
    }
    let _ = write!(text, " [request {request_id}]");
    shortened(&text, MAX_TEXT_CHARS)
}

/// One line of bounded length without control characters, so that it is safe in a terminal.
fn shortened(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((at, _)) = shown.char_indices().nth(most) {
        shown.truncate(at);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";

    fn answer(verdict: &str, decision: &str) -> Value {
        json!({"verdict": verdict, "decision": decision, "request_id": ID, "policy_version": "baseline@2",
            "issues": [{"code": "APPROVAL_REQUIRED", "message": "needs an approval"}],
            "meta": {"source": "stage0", "test_mode": false, "audit": "required"}})
    }

    #[test]
    fn a_complete_allow_lets_the_tool_run() {
        assert_eq!(Decision::read(200, &answer("ALLOW", "GO")), Decision::Allow { request_id: ID.to_owned() });
        let mut loose = answer("ALLOW", "GO");
        *loose.pointer_mut("/meta/audit").unwrap() = json!("best-effort");
        assert!(Decision::read(200, &loose).is_allow());
    }

    #[test]
    fn an_allow_with_any_part_missing_or_wrong_is_undecided() {
        for (pointer, values) in [
            ("/verdict", vec![json!("allow"), json!(null), json!("DENY")]),
            ("/decision", vec![json!("NO_GO"), json!("DEFER"), json!(true)]),
            ("/request_id", vec![json!(""), json!("x"), json!(format!("{ID}0")), json!(7)]),
            ("/policy_version", vec![json!(" "), json!(null)]),
            ("/meta/source", vec![json!("other"), json!(null)]),
            ("/meta/test_mode", vec![json!(true), json!(null), json!("false")]),
            ("/meta/audit", vec![json!("none"), json!(null), json!(true)]),
            ("/meta", vec![json!(null), json!([])]),
        ] {
            for value in values {
                let mut body = answer("ALLOW", "GO");
                *body.pointer_mut(pointer).unwrap() = value.clone();
                let decision = Decision::read(200, &body);
                assert!(matches!(decision, Decision::Undecided { .. }), "{pointer} {value}: {decision:?}");
            }
        }
        for status in [201, 204, 302, 401, 500, 503] {
            assert!(!Decision::read(status, &answer("ALLOW", "GO")).is_allow(), "{status}");
        }
        assert!(!Decision::read(200, &json!([answer("ALLOW", "GO")])).is_allow());
    }

    #[test]
    fn a_refusal_says_why_and_where_a_person_approves() {
        let denied = Decision::read(200, &answer("DENY", "NO_GO"));
        assert!(denied.text().unwrap().contains("APPROVAL_REQUIRED: needs an approval."), "{denied:?}");
        let mut body = answer("DEFER", "DEFER");
        let approval = json!({"id": "apr_1", "status": "pending", "url": "https://h/v1/approvals/apr_1"});
        body.as_object_mut().unwrap().insert("approval".to_owned(), approval);
        let deferred = Decision::read(200, &body);
        let text = deferred.text().unwrap();
        assert!(text.contains("https://h/v1/approvals/apr_1") && text.contains("apr_1") && text.contains(ID), "{text}");
        assert!(!deferred.is_allow() && deferred.request_id() == Some(ID));
        *body.pointer_mut("/approval/url").unwrap() = json!("/v1/approvals/apr_1");
        let text = Decision::read(200, &body).text().unwrap().to_owned();
        assert!(text.contains("with `stage0 approvals approve apr_1`") && !text.contains("/v1/"), "{text}");
    }

    #[test]
    fn a_refusal_names_the_kinds_of_what_could_not_be_read_and_an_allow_stays_as_it_is() {
        for (verdict, decision) in [("DENY", "NO_GO"), ("DEFER", "DEFER")] {
            let plain = Decision::read(200, &answer(verdict, decision));
            assert_eq!(plain.clone().with_unread(&[] as &[&str]), plain);
            let text = plain.clone().with_unread(&["`eval`", "a command substitution"]).text().unwrap().to_owned();
            let tail =
                format!(" The guard could not read all of the call: `eval`; a command substitution. [request {ID}]");
            assert!(text.ends_with(&tail), "{text}");
            assert_eq!(text.replace(&tail, &format!(" [request {ID}]")), plain.text().unwrap());
        }
        let allowed = Decision::read(200, &answer("ALLOW", "GO"));
        assert_eq!(allowed.clone().with_unread(&["`eval`"]), allowed);
        let undecided = Decision::undecided("the server cannot be reached");
        assert_eq!(undecided.clone().with_unread(&["`eval`"]), undecided);
    }

    #[test]
    fn a_long_refusal_still_names_what_could_not_be_read_and_stays_bounded() {
        let mut body = answer("DENY", "NO_GO");
        *body.pointer_mut("/issues/0/message").unwrap() = json!("long ".repeat(1_000));
        let denied = Decision::read(200, &body).with_unread(&["`eval`"]);
        let text = denied.text().unwrap();
        assert!(text.ends_with(&format!("`eval`. [request {ID}]")), "{text}");
        assert!(text.chars().count() <= MAX_TEXT_CHARS + 1);
        let many = Decision::read(200, &body).with_unread(&["a construct of the shell that is not read"; 50]);
        assert!(many.text().unwrap().chars().count() <= MAX_TEXT_CHARS + 1);
        assert_eq!(many.text().unwrap().matches("a construct").count(), MAX_LINES);
    }

    #[test]
    fn texts_are_one_bounded_line() {
        let mut body = answer("DENY", "NO_GO");
        *body.pointer_mut("/issues/0/message").unwrap() = json!("\u{1b}[2J\n".repeat(5_000));
        let text = Decision::read(200, &body).text().unwrap().to_owned();
        assert!(text.chars().count() <= MAX_TEXT_CHARS + 1 && !text.contains(char::is_control));
    }
}
