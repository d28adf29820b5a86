//! The guard's own decisions on messages, whatever carried them: what passes, what is answered here, what is watched.
//!
//! INVARIANT: a `tools/call` leaves [`Guard::request`] as [`Step::Forward`] only after a complete ALLOW for these very
//! bytes. Everything that passes is what came in, byte for byte; only the guard's own state is cut out of a call.

pub(crate) mod call;
mod lists;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::answer::{self, NotRun};
use crate::ask::Asker;
use crate::headers::{Mirrored, meta};
use crate::message::{INVALID_PARAMS, METHOD_NOT_FOUND, Refusal, Request, Response};
use crate::method::{Method, of_request};
use crate::outcome::{Outcomes, Status};
use crate::pins::Pins;
use crate::sealed::Sealer;
use crate::tools::Tools;
use crate::version::{META_CAPABILITIES, META_VERSION, Version};

/// One guarded server.
pub struct Guard {
    /// The server's name: in what is asked, and in the file of pins.
    server: String,
    asker: Asker,
    outcomes: Outcomes,
    pins: Pins,
    tools: Mutex<Tools>,
    sealer: Sealer,
    /// The may-ever question is not asked: by choice, or because the server has none, which was logged.
    lists_unfiltered: AtomicBool,
    /// Clients that can open pages are asked to open a deferred call's approval.
    elicits: bool,
}

/// Why a guard cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum GuardError {
    #[error("the server's name must have 1 to {MAX_SERVER_CHARS} letters, digits, `-`, `.` or single `_`")]
    Name,
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// The longest name of a server.
const MAX_SERVER_CHARS: usize = 64;

/// What happens to a client's message.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// It goes to the server, and its answer is watched.
    Forward(Cow<'a, [u8]>, Watch),
    /// The guard answers, and the server never sees it.
    Answer(Vec<u8>),
    /// As [`Step::Answer`]; over HTTP with the status 400.
    Invalid(Vec<u8>),
}

/// What the guard looks for in the answer of the server.
#[derive(Debug, Clone)]
pub(crate) enum Watch {
    Nothing,
    /// The outcome of a call that was allowed.
    Call(Allowed),
    ListTools(Version),
    Initialize,
}

/// A call that was allowed and has gone to the server.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    pub(crate) request_id: String,
    pub(crate) since: Instant,
}

/// How a client speaks in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Speaks {
    pub(crate) version: Version,
    /// It can ask its user to open a page.
    pub(crate) opens_pages: bool,
}

/// What happens to the server's answer.
#[derive(Debug)]
pub(crate) enum Answered {
    /// It goes to the client as it came.
    AsItCame,
    /// This goes to the client in its place.
    Replaced(Vec<u8>),
    /// As it came; from now on the session speaks this version.
    Speaking(Version),
}

impl Guard {
    /// A guard of the server with this name.
    pub fn new(server: impl Into<String>, asker: Asker, pins: Pins) -> Result<Self, GuardError> {
        let server = server.into();
        if !is_server_name(&server) {
            return Err(GuardError::Name);
        }
        Ok(Self {
            server,
            outcomes: Outcomes::new(&asker),
            asker,
            pins,
            tools: Mutex::default(),
            sealer: Sealer::new().map_err(GuardError::Random)?,
            lists_unfiltered: AtomicBool::new(false),
            elicits: false,
        })
    }

    /// Lists pass without the may-ever question: a model sees every tool, and each call is decided all the same.
    #[must_use]
    pub fn with_whole_lists(self) -> Self {
        self.lists_unfiltered.store(true, Ordering::Relaxed);
        self
    }

    /// A client that can open pages is asked, once for each deferred call, to open the approval's address. Of use only
    /// where that address is a page for people.
    #[must_use]
    pub fn with_elicitation(self) -> Self {
        Self { elicits: true, ..self }
    }

    /// The server's name.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How the client speaks in this request, where its session speaks `session`. `Err`: the answer.
    pub(crate) fn speaks(request: &Request<'_>, session: Version) -> Result<Speaks, Vec<u8>> {
        let meta = meta(&request.params);
        let Some(named) = meta.get(META_VERSION) else {
            return Ok(Speaks { version: session, opens_pages: false });
        };
        let named: String = serde_json::from_str(named).unwrap_or_default();
        let Some(version) = Version::parse(&named).filter(|version| version.is_stateless()) else {
            return Err(answer::unsupported_version(request.raw_id, &named));
        };
        let elicitation = meta.object(META_CAPABILITIES).and_then(|own| own.object("elicitation"));
        let opens_pages = elicitation.is_some_and(|own| own.object("url").is_some());
        Ok(Speaks { version, opens_pages })
    }

    /// Decides what happens to a request. `headers`: those beside it, over HTTP.
    pub(crate) async fn request<'a>(
        &self,
        request: &Request<'a>,
        bytes: &'a [u8],
        speaks: Speaks,
        headers: Option<&Mirrored>,
    ) -> Step<'a> {
        let forward = |watch| Step::Forward(Cow::Borrowed(bytes), watch);
        match of_request(&request.method) {
            None => Step::Answer(unknown_method(request)),
            Some(Method::Pass) => forward(Watch::Nothing),
            Some(Method::Initialize) => forward(Watch::Initialize),
            Some(Method::ListTools) => forward(Watch::ListTools(speaks.version)),
            Some(Method::Read(what)) => match self.read(request, what).await {
                Ok(allowed) => forward(Watch::Call(allowed)),
                Err(answer) => Step::Answer(answer),
            },
            Some(Method::CallTool) => self.call(request, bytes, speaks, headers).await,
        }
    }

    /// A read of something of the server, other than by a tool.
    async fn read(&self, request: &Request<'_>, what: &str) -> Result<Allowed, Vec<u8>> {
        let Some(what) = request.params.text(what) else {
            let text = format!("`params.{what}` must be a string");
            return Err(answer::error(Some(request.raw_id), INVALID_PARAMS, &text));
        };
        match self.asker.read(&self.server, &request.method, &what).await {
            Ok(request_id) => Ok(Allowed { request_id, since: Instant::now() }),
            Err(not_run) => Err(answer::not_allowed(request.raw_id, &not_run)),
        }
    }

    /// Looks at the server's answer to what was watched.
    pub(crate) async fn answered(&self, watch: &Watch, response: &Response<'_>) -> Answered {
        match watch {
            Watch::Nothing => Answered::AsItCame,
            Watch::Call(allowed) => {
                self.outcomes.report(allowed, call::outcome(response));
                Answered::AsItCame
            }
            Watch::ListTools(version) => self.listed(*version, response).await,
            Watch::Initialize => speaking(response),
        }
    }

    /// An allowed call whose answer will not come, or is not known to have come.
    pub(crate) fn lost(&self, watch: &Watch) {
        self.end(watch, Status::Unknown);
    }

    /// An allowed call that the server never got.
    pub(crate) fn not_sent(&self, watch: &Watch) {
        self.end(watch, Status::Skipped);
    }

    fn end(&self, watch: &Watch, status: Status) {
        if let Watch::Call(allowed) = watch {
            self.outcomes.report(allowed, status);
        }
    }

    /// Outcomes are reported on the present runtime. Called before the first message.
    pub(crate) fn begin(&self) {
        self.outcomes.run_here();
    }

    /// Waits until the outcomes are reported, or for a short time.
    pub(crate) async fn settle(&self) {
        self.outcomes.settle().await;
    }

    fn tools(&self) -> MutexGuard<'_, Tools> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unfiltered(&self) -> bool {
        self.lists_unfiltered.load(Ordering::Relaxed)
    }
}

/// A policy reads `mcp__<server>__<tool>`: with two underscores in it, a name could be another server's tool.
fn is_server_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=MAX_SERVER_CHARS).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.contains("__")
        && !name.starts_with('_')
        && !name.ends_with('_')
}

fn unknown_method(request: &Request<'_>) -> Vec<u8> {
    let text = "this guard does not know the method, so it is not passed on";
    answer::error(Some(request.raw_id), METHOD_NOT_FOUND, text)
}

/// The version that the server chose. A client that goes on in one that the guard does not speak is stopped here.
fn speaking(response: &Response<'_>) -> Answered {
    let Some(result) = response.result else { return Answered::AsItCame };
    let named = crate::json::Object::parse(result).ok().and_then(|result| result.text("protocolVersion"));
    match named.as_deref().and_then(Version::parse) {
        Some(version) => Answered::Speaking(version),
        None => {
            let raw_id = response.envelope.get("id");
            let text = "the server chose a protocol version that this guard does not speak";
            Answered::Replaced(Refusal::new(raw_id, INVALID_PARAMS, text).answer())
        }
    }
}

/// The answer where a call is not run, in the form that the client can use.
fn refusal(raw_id: &str, speaks: Speaks, not_run: &NotRun, has_output_schema: bool) -> Vec<u8> {
    answer::tool_error(raw_id, speaks.version, not_run, has_output_schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_name_cannot_be_mistaken_for_another_servers_tool() {
        for name in ["files", "my-server", "a.b", "a_b", &"a".repeat(MAX_SERVER_CHARS)] {
            assert!(is_server_name(name), "{name}");
        }
        for name in ["", "a__b", "_a", "a_", "a b", "a/b", "ü", &"a".repeat(MAX_SERVER_CHARS + 1)] {
            assert!(!is_server_name(name), "{name}");
        }
    }
}
