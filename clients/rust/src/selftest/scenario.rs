//! What a server can do to a client, one scenario each: data, and the answers that they need.

use std::io;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::certificates::Identity;
use super::server::{Front, Reply, Request, Server, message};
use crate::answers::allow;
use crate::judge::MAX_ANSWER_BYTES;

/// One way in which a server behaves.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For people, such as `ALLOW without request_id`.
    pub name: &'static str,
    does: Does,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    /// Status 200 and this body.
    Says(fn() -> String),
    /// An error of the contract, with `Retry-After` in seconds.
    Refuses(u16, Option<&'static str>),
    /// A complete ALLOW with another status.
    AllowsWith(u16),
    /// To a complete ALLOW on the same server.
    Redirects(u16),
    Replies(fn() -> Reply),
    /// Would allow, but no request should get there.
    AllowsBehind(Front),
}

const fn says(name: &'static str, body: fn() -> String) -> Scenario {
    Scenario { name, does: Does::Says(body) }
}

const fn refuses(name: &'static str, status: u16) -> Scenario {
    Scenario { name, does: Does::Refuses(status, None) }
}

const fn busy(name: &'static str, status: u16, seconds: &'static str) -> Scenario {
    Scenario { name, does: Does::Refuses(status, Some(seconds)) }
}

const fn redirects(name: &'static str, status: u16) -> Scenario {
    Scenario { name, does: Does::Redirects(status) }
}

const fn allows_with(name: &'static str, status: u16) -> Scenario {
    Scenario { name, does: Does::AllowsWith(status) }
}

const fn replies(name: &'static str, reply: fn() -> Reply) -> Scenario {
    Scenario { name, does: Does::Replies(reply) }
}

const fn behind(name: &'static str, front: Front) -> Scenario {
    Scenario { name, does: Does::AllowsBehind(front) }
}

impl Scenario {
    /// The one in which a client may act.
    pub const ALLOW: Self = says("a complete ALLOW", || allow().to_string());

    /// All in which it must not.
    pub const FAULTS: &[Self] = &[
        says("DENY", || decided("DENY", "NO_GO")),
        says("DEFER", || decided("DEFER", "DEFER")),
        refuses("400", 400),
        refuses("401", 401),
        refuses("402", 402),
        refuses("403", 403),
        refuses("404", 404),
        refuses("422", 422),
        refuses("429", 429),
        busy("429 for a minute", 429, "60"),
        refuses("500", 500),
        refuses("502", 502),
        refuses("503", 503),
        busy("503 for a second", 503, "1"),
        redirects("301 to an ALLOW", 301),
        redirects("302 to an ALLOW", 302),
        redirects("303 to an ALLOW", 303),
        redirects("307 to an ALLOW", 307),
        redirects("308 to an ALLOW", 308),
        allows_with("ALLOW with status 201", 201),
        allows_with("ALLOW with status 202", 202),
        allows_with("ALLOW with status 206", 206),
        allows_with("ALLOW with status 500", 500),
        says("garbage", || "\u{0}\u{1}\u{fffd}ALLOW".to_owned()),
        says("a page of HTML", || "<!doctype html><title>ALLOW</title><p>{\"verdict\": \"ALLOW\"}".to_owned()),
        says("an empty body", String::new),
        says("null", || "null".to_owned()),
        says("a list", || format!("[{}]", allow())),
        says("truncated JSON", || allow().to_string().trim_end_matches('}').to_owned()),
        says("two answers in one", || format!("{}{}", allow(), allow())),
        says("ALLOW and DENY in one", || allow().to_string().replacen('{', r#"{"verdict":"DENY","#, 1)),
        says("a verdict alone", || json!({"verdict": "ALLOW", "decision": "GO"}).to_string()),
        says("ALLOW with the signal NO_GO", || with("decision", json!("NO_GO"))),
        says("ALLOW with the signal DEFER", || with("decision", json!("DEFER"))),
        says("ALLOW without a signal", || with("decision", Value::Null)),
        says("allow in lower case", || with("verdict", json!("allow"))),
        says("GO with the verdict true", || with("verdict", json!(true))),
        says("ALLOW without request_id", || without("request_id")),
        says("ALLOW with another kind of request_id", || with("request_id", json!("1"))),
        says("ALLOW without policy_version", || without("policy_version")),
        says("ALLOW with an empty policy_version", || with("policy_version", json!(""))),
        says("ALLOW without meta", || without("meta")),
        says("ALLOW of another source", || with_meta("source", json!("mock"))),
        says("ALLOW of a test mode", || with_meta("test_mode", json!(true))),
        says("ALLOW that is not recorded", || with_meta("audit", json!("none"))),
        says("ALLOW that does not say whether it is recorded", || with_meta("audit", Value::Null)),
        replies("ALLOW in a body that breaks off", || {
            let body = allow().to_string();
            Reply::Bytes(message(200, &[], &body, body.len() + 1))
        }),
        replies("ALLOW in too large a body", || {
            Reply::answer(200, &[], &format!("{}{}", allow(), " ".repeat(MAX_ANSWER_BYTES)))
        }),
        replies("no HTTP", || Reply::Bytes(allow().to_string().into_bytes())),
        replies("closed after the request", || Reply::Close),
        replies("no answer", || Reply::Silence),
        replies("slow headers", || Reply::Drip { first: Vec::new(), slowly: allowing() }),
        replies("a slow body", || {
            let (first, slowly) = (allowing(), allow().to_string().len());
            let at = first.len().saturating_sub(slowly);
            let (head, body) = first.split_at(at);
            Reply::Drip { first: head.to_vec(), slowly: body.to_vec() }
        }),
        behind("closed before the request", Front::Close),
        behind("no TLS handshake", Front::Silence),
        behind("no TLS", Front::Plain),
        behind("a certificate of another authority", Front::Tls(Identity::OtherAuthority)),
        behind("a certificate for another name", Front::Tls(Identity::OtherName)),
        behind("a certificate that has expired", Front::Tls(Identity::Expired)),
        behind("nothing listens", Front::Nothing),
    ];

    /// A server that behaves so. It answers every path alike, so that a guard with other calls can be tried as well.
    pub async fn start(&self) -> io::Result<Server> {
        let Self { does, .. } = *self;
        let front = if let Does::AllowsBehind(front) = does { front } else { Front::Tls(Identity::Right) };
        Server::behind(front, Arc::new(move |request: &Request| does.reply(request))).await
    }
}

impl Does {
    fn reply(self, request: &Request) -> Reply {
        match self {
            Self::Says(body) => Reply::answer(200, &[], &body()),
            Self::Refuses(status, retry_after) => {
                let headers = retry_after.map(|seconds| ("retry-after", seconds));
                Reply::answer(status, headers.as_slice(), &refusal())
            }
            Self::AllowsWith(status) => Reply::answer(status, &[], &allow().to_string()),
            Self::Redirects(_) if request.line.contains(ELSEWHERE) => Reply::Bytes(allowing()),
            Self::Redirects(status) => Reply::answer(status, &[("location", ELSEWHERE)], ""),
            Self::Replies(reply) => reply(),
            Self::AllowsBehind(_) => Reply::Bytes(allowing()),
        }
    }
}

const ELSEWHERE: &str = "/elsewhere";

fn allowing() -> Vec<u8> {
    let body = allow().to_string();
    message(200, &[], &body, body.len())
}

/// The complete ALLOW with a change.
fn edited(edit: impl FnOnce(&mut Map<String, Value>)) -> String {
    let mut body = allow();
    if let Some(members) = body.as_object_mut() {
        edit(members);
    }
    body.to_string()
}

fn decided(verdict: &str, signal: &str) -> String {
    let questions = if verdict == "DEFER" { json!(["Who approves it?"]) } else { json!([]) };
    edited(|members| {
        members.insert("verdict".to_owned(), verdict.into());
        members.insert("decision".to_owned(), signal.into());
        members.insert("clarifying_questions".to_owned(), questions.clone());
        members.insert("defer_questions".to_owned(), questions);
    })
}

fn with(member: &str, value: Value) -> String {
    edited(|members| {
        members.insert(member.to_owned(), value);
    })
}

fn with_meta(member: &str, value: Value) -> String {
    edited(|members| {
        if let Some(meta) = members.get_mut("meta").and_then(Value::as_object_mut) {
            meta.insert(member.to_owned(), value);
        }
    })
}

fn without(member: &str) -> String {
    edited(|members| {
        members.remove(member);
    })
}

fn refusal() -> String {
    json!({"message": "no", "error": "unavailable", "request_id": "r-1",
        "detail": {"detail": "no", "request_id": "r-1"}})
    .to_string()
}
