//! `POST /v1/hooks/{agent}`: the events of coding agents' hooks, answered in their own form.
//!
//! An event that asks about a tool call becomes a check and takes the path of every check (`check.rs`); only its body
//! and its answer have another form. Other events are answered with nothing, as their agents expect. The end of a call
//! is an outcome where the hook names the decision (`Stage0-Decision`): the id of a tool call is its model's own and
//! may repeat, so it leads to no decision for certain.
//! INVARIANT: agents read bodies and not status codes, and run the tool where they cannot read one. So every answer
//! here has status 200, and each that is not to a complete ALLOW denies in the agent's own form.

use std::error::Error;
use std::sync::LazyLock;

use actix_web::body::{BoxBody, MessageBody as _};
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use serde_json::{Map, Value};
use stage0_contract::{ClientRequestId, FieldError, KeyIdentity, Operation, RequestId, is_blank, parse_strict};
use stage0_guard::{Agent, Decision, Event, Options, Table, UnknownAgent, Unreadable, ask};
use tokio::time::Instant;

use super::check::{Door, enter};
use super::fields::Fields;
use super::outcomes::report_of_hook;
use crate::body::{Body, ReceivedBody};
use crate::errors::ApiError;
use crate::state::AppState;

/// Before its agent, in the path's pattern.
const AGENT: &str = "{agent}";
/// Names the decision that allowed the call that has ended.
const DECISION: &str = "Stage0-Decision";
static TABLE: LazyLock<Option<Table>> = LazyLock::new(|| {
    let table = Table::builtin();
    table.inspect_err(|error| tracing::error!(error = error as &dyn Error, "the table of tools cannot be read")).ok()
});

/// In a request's extensions: who asks, and what.
struct Asked {
    agent: Agent,
    /// None until it could be read.
    event: Option<Event>,
    /// What could not be read of its call.
    unread: Vec<String>,
}

/// What an event asks for.
pub(super) enum HookBody {
    /// The check about a tool call.
    Call(Body),
    /// Nothing: this is its answer.
    Other(HttpResponse),
}

pub(super) async fn ask(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
    agent: Path<String>,
) -> HttpResponse {
    let Ok(agent) = agent.parse() else {
        // A misspelt address must deny, too; of these agents Claude Code alone asks over HTTP by itself.
        let why = Decision::undecided(format!("there are no hooks of this agent here: it {UnknownAgent}"));
        return written(HttpResponse::Ok().finish(), Agent::ClaudeCode, None, &why);
    };
    request.extensions_mut().insert(Asked { agent, event: None, unread: Vec::new() });
    enter(Door::Hook(agent), state, request, payload).await
}

/// Reads the event, and makes of it what is asked.
pub(super) async fn read(
    agent: Agent,
    state: &AppState,
    request: &HttpRequest,
    received: ReceivedBody,
    (identity, deadline): (&KeyIdentity, Instant),
) -> Result<HookBody, ApiError> {
    state.hook_guards.seen(state, identity, agent, request).await;
    let options = options(request)?;
    let read = move |bytes: &[u8]| event_and_check(agent, &options, bytes);
    let account = Some(&identity.account);
    let (read, bytes, permit) = received.read_by(&state.request_memory, account, deadline, read).await?;
    let Asking { event, check, unread } = read?;
    let body = match check {
        Some(object) => HookBody::Call(Body { object, bytes, permit: Some(permit) }),
        None => {
            report_end(request, agent, &event).await;
            // No decision counts for it.
            let unasked = Decision::undecided("the event does not ask");
            HookBody::Other(written(HttpResponse::Ok().finish(), agent, Some(&event), &unasked))
        }
    };
    request.extensions_mut().insert(Asked { agent, event: Some(event), unread });
    Ok(body)
}

/// What the address says of the agent.
fn options(request: &HttpRequest) -> Result<Options, ApiError> {
    let mut fields = Fields::of_query(request);
    let environment = fields.text("environment");
    if environment.as_deref().is_some_and(is_blank) {
        fields.refuse("environment", "must not be blank");
    }
    fields.finish()?;
    Ok(Options { environment, ..Options::default() })
}

/// Reports what came of a call, if the event says so and the hook names its decision. The agent waits for no answer to
/// that, so a failure is logged alone.
async fn report_end(request: &HttpRequest, agent: Agent, event: &Event) {
    let (Event::Ended(ended), Some(named)) = (event, request.headers().get(DECISION)) else { return };
    let decision = named.to_str().ok().and_then(|id| RequestId::parse(id).ok());
    let reported = match decision {
        Some(decision) => report_of_hook(request, decision, ended).await.map(|_| ()),
        None => Err(ApiError::Invalid(vec![FieldError::new(DECISION, "must be the id of a decision")])),
    };
    if let Err(error) = reported {
        tracing::info!(%agent, %error, "the outcome that a hook saw is not recorded");
    }
}

/// An event that was read.
struct Asking {
    event: Event,
    /// What it asks for, if it asks.
    check: Option<Map<String, Value>>,
    unread: Vec<String>,
}

/// The event, and the check that it asks for. What the check does not need of its arguments is dropped.
fn event_and_check(agent: Agent, options: &Options, bytes: &[u8]) -> Result<Asking, ApiError> {
    let mut event = stage0_guard::read(agent, bytes).map_err(unreadable)?;
    let Event::Call(call) = &mut event else { return Ok(Asking { event, check: None, unread: Vec::new() }) };
    let table = TABLE.as_ref().ok_or(ApiError::Unavailable)?;
    let check = ask::body(table, options, call);
    let unread = ask::unread(&check);
    let Value::Object(check) = check else { return Err(ApiError::Unavailable) };
    call.arguments = Map::new();
    Ok(Asking { event, check: Some(check), unread })
}

fn unreadable(why: Unreadable) -> ApiError {
    match why {
        Unreadable::Json(error) => ApiError::Json(error),
        Unreadable::NoObject => ApiError::NotAnObject,
        Unreadable::TooLarge => ApiError::BodyTooLarge,
        Unreadable::Empty | Unreadable::NoName(_) | Unreadable::UnknownEvent | Unreadable::Member(_) => {
            ApiError::Invalid(vec![FieldError::new("event", why.to_string())])
        }
    }
}

/// The agent's id of the tool call, for the record of a check whose caller names none of its own.
pub(super) fn call_id(request: &HttpRequest) -> Option<ClientRequestId> {
    match request.extensions().get::<Asked>() {
        Some(Asked { event: Some(Event::Call(call)), .. }) => ClientRequestId::parse(call.call_id.as_deref()?).ok(),
        Some(_) | None => None,
    }
}

/// Makes of a check's answer the answer to its event. Other events have theirs already.
pub(super) fn answered(request: &HttpRequest, response: HttpResponse) -> HttpResponse {
    let extensions = request.extensions();
    let Some(Asked { agent, event: Some(event @ Event::Call(_)), unread }) = extensions.get::<Asked>() else {
        return response;
    };
    let status = response.status().as_u16();
    let (head, body) = response.into_parts();
    let body = body.try_into_bytes().ok().and_then(|bytes| parse_strict(&bytes).ok());
    let decision =
        body.map_or_else(|| Decision::undecided("the decision cannot be read"), |body| Decision::read(status, &body));
    written(head.set_body(BoxBody::new(())), *agent, Some(event), &decision.with_unread(unread))
}

/// The public answer to an error: to a hook a denial in its agent's form, also before the request has been routed.
pub(crate) fn refusal(request: &HttpRequest, error: &ApiError, id: RequestId) -> HttpResponse {
    let refusal = error.response(id);
    let extensions = request.extensions();
    let asked = extensions.get::<Asked>();
    let Some(agent) = asked.map(|asked| asked.agent).or_else(|| agent_in_path(request)) else { return refusal };
    tracing::info!(request_id = %id, %agent, %error, "a hook is denied without a decision");
    let decision = Decision::undecided(format!("{error} [request {id}]"));
    let event = asked.and_then(|asked| asked.event.as_ref());
    written(HttpResponse::Ok().finish(), agent, event, &decision)
}

fn agent_in_path(request: &HttpRequest) -> Option<Agent> {
    if request.method() != Method::POST {
        return None;
    }
    let state = request.app_data::<Data<AppState>>()?;
    let path = request.path().strip_prefix(state.config.base_path.as_str())?.trim_end_matches('/');
    let agent = path.strip_prefix(Operation::AskAsHook.path().strip_suffix(AGENT)?)?;
    Some(agent.parse().unwrap_or(Agent::ClaudeCode))
}

/// The answer that the agent expects. `head` has its headers.
fn written(head: HttpResponse, agent: Agent, event: Option<&Event>, decision: &Decision) -> HttpResponse {
    let answer = stage0_guard::answer(agent, event, decision, &Options::default());
    let mut response = head.set_body(BoxBody::new(answer.body.to_string()));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
