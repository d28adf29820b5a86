//! JSON-RPC messages of both sides: the envelope is read strictly, what is inside stays raw.
//!
//! A client's message is refused where two parsers could read it differently, because the server behind the guard has
//! another parser. A server's message is read as far as the guard needs it; what is inside concerns only the client.

use stage0_contract::{JsonError, parse_strict};

use crate::json::{Object, ObjectError, quoted};

/// The largest message from a client, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1_000_000;
/// The largest message from a server, in bytes.
pub const MAX_RESULT_BYTES: usize = 8 * 1024 * 1024;

/// Parse error of JSON-RPC.
pub(crate) const PARSE_ERROR: i64 = -32_700;
/// Invalid request of JSON-RPC.
pub(crate) const INVALID_REQUEST: i64 = -32_600;
/// Method not found, of JSON-RPC.
pub(crate) const METHOD_NOT_FOUND: i64 = -32_601;
/// Invalid parameters of JSON-RPC: also an unknown tool.
pub(crate) const INVALID_PARAMS: i64 = -32_602;
/// Not decided, or not allowed, where there is no result that could say so.
pub(crate) const NOT_ALLOWED: i64 = -32_001;
/// Headers that differ from the body, since 2026-07-28.
pub(crate) const HEADER_MISMATCH: i64 = -32_020;
/// A protocol version that is not spoken, since 2026-07-28.
pub(crate) const UNSUPPORTED_VERSION: i64 = -32_022;

const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

/// A request's id. Two spellings of the same one are the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    pub(crate) fn parse(raw: &str) -> Option<Self> {
        match serde_json::from_str(raw).ok()? {
            serde_json::Value::Number(number) => number.as_i64().map(Self::Number),
            serde_json::Value::String(text) => Some(Self::Text(text)),
            _ => None,
        }
    }

    pub(crate) fn to_raw(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => quoted(text),
        }
    }
}

/// A message, as what it is.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    Request(Request<'a>),
    /// By method.
    Notification(String, Object<'a>),
    /// An answer, by id. `None`: the other side could not read an id.
    Response(Option<Id>, Response<'a>),
}

#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) id: Id,
    /// As it was spelled.
    pub(crate) raw_id: &'a str,
    pub(crate) method: String,
    pub(crate) params: Object<'a>,
    pub(crate) envelope: Object<'a>,
}

#[derive(Debug)]
pub(crate) struct Response<'a> {
    /// `None`: it is an error.
    pub(crate) result: Option<&'a str>,
    pub(crate) envelope: Object<'a>,
}

/// Why a message is not passed on. The texts are public; none quotes a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The id to answer, if one could be read.
    pub(crate) raw_id: Option<String>,
    pub(crate) code: i64,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(raw_id: Option<&str>, code: i64, text: impl Into<String>) -> Self {
        Self { raw_id: raw_id.map(str::to_owned), code, text: text.into() }
    }
}

/// A message from a client.
pub(crate) fn of_client(bytes: &[u8]) -> Result<Message<'_>, Refusal> {
    if bytes.len() > MAX_REQUEST_BYTES {
        let text = format!("the message is larger than {MAX_REQUEST_BYTES} bytes");
        return Err(Refusal::new(None, INVALID_REQUEST, text));
    }
    let text = opening(bytes)?;
    parse_strict(bytes).map_err(|error| strict(&error))?;
    envelope(text)
}

/// A message from a client whose messages are lines. Some readers end a line at a carriage return as well, which is
/// white space to JSON: a message with one within it could be several to the server behind the guard.
pub(crate) fn of_client_line(line: &[u8]) -> Result<Message<'_>, Refusal> {
    let message = of_client(line)?;
    if line.trim_ascii().contains(&b'\r') {
        let raw_id = if let Message::Request(request) = &message { Some(request.raw_id) } else { None };
        return Err(Refusal::new(raw_id, INVALID_REQUEST, "the message has a carriage return within it"));
    }
    Ok(message)
}

/// A message from a server.
pub(crate) fn of_server(bytes: &[u8]) -> Result<Message<'_>, Refusal> {
    if bytes.len() > MAX_RESULT_BYTES {
        let text = format!("the message is larger than {MAX_RESULT_BYTES} bytes");
        return Err(Refusal::new(None, INVALID_REQUEST, text));
    }
    envelope(opening(bytes)?)
}

/// One object: no batch, no byte order mark.
fn opening(bytes: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refusal::new(None, PARSE_ERROR, "the message is not UTF-8"))?;
    match text.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first() {
        Some(b'{') => Ok(text),
        Some(b'[') => Err(Refusal::new(None, INVALID_REQUEST, "batches are not taken: send each message by itself")),
        Some(_) | None => Err(Refusal::new(None, PARSE_ERROR, "the message is not a JSON object")),
    }
}

fn strict(error: &JsonError) -> Refusal {
    let code = match error {
        JsonError::NotUtf8 | JsonError::Syntax { .. } => PARSE_ERROR,
        _ => INVALID_REQUEST,
    };
    Refusal::new(None, code, error.to_string().replacen("the body", "the message", 1))
}

fn envelope(text: &str) -> Result<Message<'_>, Refusal> {
    let envelope = Object::parse(text).map_err(|error| unreadable(None, "the message", error))?;
    let raw_id = envelope.get("id");
    let refuse = |text: &str| Refusal::new(raw_id.filter(|raw| Id::parse(raw).is_some()), INVALID_REQUEST, text);
    if let Some(unknown) = envelope.names().find(|name| !ENVELOPE.contains(name)) {
        let near = ENVELOPE.iter().any(|known| known.eq_ignore_ascii_case(unknown));
        return Err(refuse(if near {
            "a member of the message is spelled in another case"
        } else {
            "the message has a member that JSON-RPC does not know"
        }));
    }
    if envelope.text("jsonrpc").as_deref() != Some("2.0") {
        return Err(refuse("`jsonrpc` must be \"2.0\""));
    }
    let method = match envelope.get("method") {
        None => None,
        Some(_) => Some(envelope.text("method").ok_or_else(|| refuse("`method` must be a string"))?),
    };
    let (result, error) = (envelope.get("result"), envelope.get("error"));
    match (method, raw_id) {
        (Some(_), _) if result.is_some() || error.is_some() => Err(refuse("a message is a request or an answer")),
        (Some(method), None) => Ok(Message::Notification(method, params(&envelope, None)?)),
        (Some(method), Some(raw_id)) => {
            let id = Id::parse(raw_id).ok_or_else(|| refuse("`id` must be a string or a whole number"))?;
            let params = params(&envelope, Some(raw_id))?;
            Ok(Message::Request(Request { id, raw_id, method, params, envelope }))
        }
        (None, _) if result.is_some() == error.is_some() || envelope.get("params").is_some() => {
            Err(refuse("a message has a `method`, or a `result`, or an `error`"))
        }
        (None, None) => Err(refuse("an answer has an `id`")),
        (None, Some(raw_id)) => {
            let id = Id::parse(raw_id);
            if id.is_none() && (raw_id != "null" || result.is_some()) {
                return Err(refuse("`id` must be a string or a whole number"));
            }
            Ok(Message::Response(id, Response { result, envelope }))
        }
    }
}

fn params<'a>(envelope: &Object<'a>, raw_id: Option<&str>) -> Result<Object<'a>, Refusal> {
    let Some(params) = envelope.get("params") else { return Ok(Object::default()) };
    Object::parse(params).map_err(|error| unreadable(raw_id, "`params`", error))
}

fn unreadable(raw_id: Option<&str>, what: &str, error: ObjectError) -> Refusal {
    let code = if error == ObjectError::NotAnObject && raw_id.is_some() { INVALID_PARAMS } else { INVALID_REQUEST };
    Refusal::new(raw_id, code, format!("{what} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Refusal {
        match of_client(text.as_bytes()) {
            Err(refusal) => refusal,
            Ok(message) => panic!("{text}: {message:?}"),
        }
    }

    #[test]
    fn a_request_is_read_and_stays_raw_inside() {
        let text = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a","arguments":{"n":1.50}}}"#;
        let Ok(Message::Request(request)) = of_client(text.as_bytes()) else { panic!("it is a request") };
        assert_eq!((request.id, request.raw_id, request.method.as_str()), (Id::Number(7), "7", "tools/call"));
        assert_eq!(request.params.get("arguments"), Some(r#"{"n":1.50}"#));
    }

    #[test]
    fn a_batch_is_refused_and_one_message_of_it_is_not() {
        let one = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        assert!(of_client(one.as_bytes()).is_ok());
        let refusal = refused(&format!(" [{one}]"));
        assert_eq!((refusal.code, refusal.raw_id), (INVALID_REQUEST, None));
        assert!(of_server(format!("[{one}]").as_bytes()).is_err());
    }

    #[test]
    fn what_two_parsers_read_differently_is_refused() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"Method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"p":1,"p":2}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","other":1}"#,
            "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}",
            r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
            r#"{"id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":["ping"]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"{"jsonrpc":"2.0","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"} {}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"n":123456789012345678901234567890}}"#,
        ] {
            refused(text);
        }
    }

    #[test]
    fn a_message_over_the_bound_is_refused_and_one_at_it_is_not() {
        let of = |length: usize| {
            let frame = r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":""}}"#;
            frame.replace("\"\"", &format!("\"{}\"", "a".repeat(length - frame.len())))
        };
        assert!(of_client(of(MAX_REQUEST_BYTES).as_bytes()).is_ok());
        assert_eq!(refused(&of(MAX_REQUEST_BYTES + 1)).code, INVALID_REQUEST);
        assert!(of_server(of(MAX_REQUEST_BYTES + 1).as_bytes()).is_ok(), "results may be larger");
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        let bytes = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"a\":\"\xff\"}}";
        assert_eq!(of_client(bytes).unwrap_err().code, PARSE_ERROR);
    }

    #[test]
    fn answers_and_notifications_are_told_apart() {
        let text = r#"{"jsonrpc":"2.0","id":"a\u0062","result":{}}"#;
        let Ok(Message::Response(id, response)) = of_client(text.as_bytes()) else { panic!("an answer") };
        assert_eq!((id, response.result), (Some(Id::Text("ab".to_owned())), Some("{}")));
        let text = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert!(matches!(of_client(text.as_bytes()), Ok(Message::Notification(method, _)) if method.ends_with("ized")));
        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#;
        assert!(matches!(of_server(text.as_bytes()), Ok(Message::Response(None, _))));
    }

    #[test]
    fn a_line_that_could_be_several_messages_to_another_reader_is_refused() {
        let call = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"write_file"}}"#;
        for (id, method) in [(None, "notifications/progress"), (Some("1"), "ping")] {
            let id_member = id.map_or_else(String::new, |id| format!(r#""id":{id},"#));
            let outer = format!(r#"{{"jsonrpc":"2.0",{id_member}"method":"{method}","params":{{"x":CALL}}}}"#);
            let hidden = outer.replace("CALL", &format!("\r{call}\r"));
            assert!(of_client(hidden.as_bytes()).is_ok(), "it is lawful JSON: {hidden:?}");
            let refusal = of_client_line(hidden.as_bytes()).unwrap_err();
            assert_eq!((refusal.code, refusal.raw_id.as_deref()), (INVALID_REQUEST, id));
        }
        assert!(of_client_line(format!("{call}\r").as_bytes()).is_ok(), "at its end it hides nothing");
        assert!(of_client_line(call.replace("write", "\\r").as_bytes()).is_ok(), "an escaped one is text");
    }

    #[test]
    fn a_refusal_names_the_id_so_that_the_client_can_stop_waiting() {
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":9,"method":"ping","x":1}"#).raw_id.as_deref(), Some("9"));
    }
}
