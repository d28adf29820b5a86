//! `tools/call`: everything that must hold before the server sees one.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Map, Value};
use stage0_contract::canonical_hash;

use super::{Allowed, Guard, Speaks, Step, Watch, refusal};
use crate::answer::{self, INPUT_NAME, NotRun, NotRunKind};
use crate::headers::Mirrored;
use crate::json::{Object, folded};
use crate::message::{HEADER_MISMATCH, INVALID_PARAMS, Request, Response};
use crate::outcome::Status;
use crate::sealed::STATE_PREFIX;
use crate::tools::Tool;

/// The members of `params`. One that differs from these only in upper and lower case is refused.
const MEMBERS: [&str; 6] = ["name", "arguments", "_meta", "task", "inputResponses", "requestState"];

/// A call, as far as it is asked about.
struct Call {
    name: String,
    arguments: Map<String, Value>,
    /// Hex SHA-256 of the arguments' canonical JSON.
    digest: String,
}

/// What the members for questions to people say.
enum State {
    /// There are none.
    Absent,
    /// They answer this guard's own question: they are cut out before the server sees the call.
    Ours,
    /// They answer the server's question, with the digest of what the person answered.
    Servers(Option<String>),
}

/// Why a call with a state of this guard goes no further.
enum NoState {
    /// The person did not want to open the approval.
    Declined(Box<NotRun>),
    /// It is not one that this guard gave for this call, or it came back before. With the text for the client.
    Invalid(String),
}

impl Guard {
    pub(super) async fn call<'a>(
        &self,
        request: &Request<'a>,
        bytes: &'a [u8],
        speaks: Speaks,
        headers: Option<&Mirrored>,
    ) -> Step<'a> {
        let invalid = |text: &str| Step::Answer(answer::error(Some(request.raw_id), INVALID_PARAMS, text));
        let call = match read(&request.params) {
            Ok(call) => call,
            Err(text) => return invalid(text),
        };
        let Some(tool) = self.tools().get(&call.name).cloned() else {
            return invalid("unknown tool: the server has not listed it through this guard (call `tools/list` first)");
        };
        if call.arguments.keys().any(|name| tool.is_near_argument(name)) {
            return invalid("an argument is spelled in another case than in the tool's schema");
        }
        if let Some(Err(text)) = headers
            .filter(|_| speaks.version.is_stateless())
            .map(|headers| headers.check_arguments(&tool.mirrored, &Value::Object(call.arguments.clone())))
        {
            return Step::Invalid(answer::error(Some(request.raw_id), HEADER_MISMATCH, &text));
        }
        let refuse = |not_run: &NotRun| Step::Answer(refusal(request.raw_id, speaks, not_run, tool.has_output_schema));
        if tool.is_changed && !self.is_accepted(&call.name, &tool) {
            return refuse(&self.changed_definition(&call.name));
        }
        let state = match self.state(request, &call) {
            Ok(state) => state,
            Err(NoState::Declined(not_run)) => return refuse(&not_run),
            Err(NoState::Invalid(text)) => return invalid(&text),
        };
        let answers = match &state {
            State::Servers(digest) => digest.as_deref(),
            State::Absent | State::Ours => None,
        };
        let decided = self.asker.call(&self.server, &call.name, call.arguments.clone(), answers).await;
        match decided {
            Ok(request_id) => {
                let allowed = Watch::Call(Allowed { request_id, since: Instant::now() });
                Step::Forward(without_own_state(request, bytes, &state), allowed)
            }
            Err(not_run) => match self.question(request, &call, speaks, &state, &not_run) {
                Some(answer) => Step::Answer(answer),
                None => refuse(&not_run),
            },
        }
    }

    fn is_accepted(&self, name: &str, tool: &Tool) -> bool {
        let is_accepted = self.pins.is_pinned(&self.server, name, &tool.sha256);
        if is_accepted && let Some(own) = self.tools().get_mut(name).filter(|own| own.sha256 == tool.sha256) {
            own.is_changed = false;
        }
        is_accepted
    }

    fn changed_definition(&self, name: &str) -> NotRun {
        let text = format!(
            "The definition of this tool has changed since it was first seen, so the tool did not run. A person has to \
             look at the new definition and type: stage0 guard mcp pins accept --name {} {}",
            shell_word(&self.server),
            shell_word(name)
        );
        NotRun::held_back("TOOL_DEFINITION_CHANGED", text)
    }

    /// Who answers which question.
    fn state(&self, request: &Request<'_>, call: &Call) -> Result<State, NoState> {
        let responses = request.params.get("inputResponses");
        let state = match request.params.get("requestState") {
            None if responses.is_none() => return Ok(State::Absent),
            None => None,
            Some(raw) => match serde_json::from_str::<String>(raw) {
                Ok(state) => Some(state),
                Err(_) => return Err(NoState::Invalid("`params.requestState` must be a string".to_owned())),
            },
        };
        let Some(own) = state.filter(|state| state.starts_with(STATE_PREFIX)) else {
            let digest = responses.and_then(|raw| serde_json::from_str::<Value>(raw).ok());
            let digest = digest.as_ref().and_then(Value::as_object).map(canonical_hash);
            return Ok(State::Servers(digest));
        };
        let opened = self.sealer.open(&own, &self.bound(call), Instant::now());
        opened.map_err(|error| NoState::Invalid(error.to_string()))?;
        let action = responses.and_then(|raw| Object::parse(raw).ok());
        let action = action.and_then(|all| all.object(INPUT_NAME)).and_then(|own| own.text("action"));
        match action.as_deref() {
            Some("decline" | "cancel") => {
                let text = "The person did not want to open the approval, so the tool did not run. Ask the person \
                            before you call it again."
                    .to_owned();
                Err(NoState::Declined(Box::new(NotRun::held_back("APPROVAL_NOT_OPENED", text))))
            }
            _ => Ok(State::Ours),
        }
    }

    /// A question to the person, where the client can ask one: to open the approval, and then to call again. A call
    /// that came back gets no second one: a client that does not wait would ask on and on.
    fn question(
        &self,
        request: &Request<'_>,
        call: &Call,
        speaks: Speaks,
        state: &State,
        not_run: &NotRun,
    ) -> Option<Vec<u8>> {
        // The server's own state would be lost with ours beside it.
        let is_first = matches!(state, State::Absent);
        if !self.elicits || !speaks.opens_pages || !is_first || not_run.kind != NotRunKind::Deferred {
            return None;
        }
        let url = not_run.approval.as_ref()?.url.as_deref()?;
        let sealed = self.sealer.seal(&self.bound(call), Instant::now()).ok()?;
        Some(answer::input_required(request.raw_id, not_run, url, &sealed))
    }

    /// What a state is bound to.
    fn bound(&self, call: &Call) -> String {
        let (principal, server) = (self.asker.principal(), &self.server);
        serde_json::json!([principal, server, call.name, call.digest]).to_string()
    }
}

fn read(params: &Object<'_>) -> Result<Call, &'static str> {
    let is_near = |name: &str| !MEMBERS.contains(&name) && MEMBERS.iter().any(|own| folded(own) == folded(name));
    if params.names().any(is_near) {
        return Err("a member of `params` is spelled in another case");
    }
    let name = params.text("name").ok_or("`params.name` must be a string")?;
    let raw = params.get("arguments").unwrap_or("{}");
    Object::parse(raw).map_err(|_| "`params.arguments` must be an object without two names that look the same")?;
    let Ok(Value::Object(arguments)) = serde_json::from_str(raw) else {
        return Err("`params.arguments` must be an object");
    };
    let digest = canonical_hash(&arguments);
    Ok(Call { name, arguments, digest })
}

/// The call as it came, or without what answers this guard's own question.
fn without_own_state<'a>(request: &Request<'a>, bytes: &'a [u8], state: &State) -> Cow<'a, [u8]> {
    match state {
        State::Absent | State::Servers(_) => Cow::Borrowed(bytes),
        State::Ours => Cow::Owned(without_answers(request)),
    }
}

pub(crate) fn without_answers(request: &Request<'_>) -> Vec<u8> {
    let params = request.params.clone().without(&["inputResponses", "requestState"]).to_text();
    request.envelope.clone().with("params", &params).to_text().into_bytes()
}

/// How an allowed call ended, from the server's answer to it.
pub(super) fn outcome(response: &Response<'_>) -> Status {
    let Some(result) = response.result else { return Status::Failed };
    let Ok(result) = Object::parse(result) else { return Status::Unknown };
    match result.text("resultType").as_deref() {
        // The server asks first: nothing has been done yet, and the client calls again.
        Some("input_required") => return Status::Skipped,
        Some("complete") | None => {}
        // A task, or what this version does not know: it goes on.
        Some(_) => return Status::Unknown,
    }
    if result.get("task").is_some() {
        return Status::Unknown;
    }
    match result.get("isError") {
        None | Some("false" | "null") => Status::Succeeded,
        Some("true") => Status::Failed,
        Some(_) => Status::Unknown,
    }
}

/// A word that can be typed in a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':');
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, of_server};

    fn ended(body: &str) -> Status {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,{body}}}"#);
        let Ok(Message::Response(_, response)) = of_server(text.as_bytes()) else { panic!("{text}") };
        outcome(&response)
    }

    #[test]
    fn an_outcome_is_a_success_only_where_the_result_says_nothing_else() {
        assert_eq!(ended(r#""result":{"content":[]}"#), Status::Succeeded);
        assert_eq!(ended(r#""result":{"content":[],"isError":false,"resultType":"complete"}"#), Status::Succeeded);
        assert_eq!(ended(r#""result":{"content":[],"isError":true}"#), Status::Failed);
        assert_eq!(ended(r#""error":{"code":-32602,"message":"m"}"#), Status::Failed);
        for unknown in [
            r#""result":{"isError":"yes"}"#,
            r#""result":{"isError":true,"isError":false}"#,
            r#""result":{"task":{"taskId":"t"}}"#,
            r#""result":{"resultType":"task","taskId":"t"}"#,
            r#""result":[]"#,
        ] {
            assert_eq!(ended(unknown), Status::Unknown, "{unknown}");
        }
        assert_eq!(ended(r#""result":{"resultType":"input_required","requestState":"s"}"#), Status::Skipped);
    }

    #[test]
    fn a_call_is_read_only_where_every_parser_reads_the_same() {
        let read = |text: &str| read(&Object::parse(text).unwrap()).map(|call| (call.name, call.arguments.len()));
        assert_eq!(read(r#"{"name":"a","arguments":{"x":1},"_meta":{}}"#), Ok(("a".to_owned(), 1)));
        assert_eq!(read(r#"{"name":"a"}"#), Ok(("a".to_owned(), 0)));
        for text in [
            "{}",
            r#"{"name":1}"#,
            r#"{"Name":"a"}"#,
            r#"{"name":"a","Arguments":{"x":1}}"#,
            r#"{"name":"a","argumentſ":{"x":1}}"#,
            r#"{"name":"a","arguments":[1]}"#,
            r#"{"name":"a","arguments":null}"#,
            r#"{"name":"a","arguments":{"path":"/a","PATH":"/b"}}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_command_to_type_cannot_be_made_of_a_name() {
        assert_eq!(shell_word("write_file"), "write_file");
        assert_eq!(shell_word("a; rm -rf 'x'"), r"'a; rm -rf '\''x'\'''");
    }
}
