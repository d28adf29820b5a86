//! What goes to the server and comes back: whole answers, and streams event by event.

use std::sync::Arc;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use futures_util::stream;
use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response};
use tokio::sync::mpsc;

use super::State;
use super::events::{Event, Parser};
use super::message::{json, one};
use super::sessions::Owner;
use super::upstream::{LAST_EVENT_ID, SESSION_ID};
use crate::answer;
use crate::guard::Answered;
use crate::message::{Id, MAX_RESULT_BYTES, Message, of_server};
use crate::pending::{MAX_OPEN, Pending};
use crate::version::Version;

/// The server behind the guard failed.
const UPSTREAM_FAILED: i64 = -32_000;
/// Events that wait for a slow client.
const QUEUE: usize = 16;
const EVENT_STREAM: &str = "text/event-stream";

/// A request that the server gets.
pub(super) struct Passing {
    pub(super) state: Data<State>,
    pub(super) pending: Arc<Pending>,
    pub(super) id: Id,
    pub(super) owner: Owner,
    pub(super) version: Version,
}

/// If it is dropped with a request that was not answered, the outcome of that is not known.
struct Unanswered {
    passing: Passing,
    is_answered: bool,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let passing = &self.passing;
        // Where a stream can be resumed, the answer may come on another one.
        let watch = if passing.version.is_stateless() {
            passing.pending.end(&passing.id)
        } else {
            passing.pending.sent_watch(&passing.id)
        };
        if let Some(watch) = watch {
            passing.state.guard.lost(&watch);
        }
    }
}

impl Passing {
    pub(super) async fn send(self, http: &HttpRequest, body: Vec<u8>) -> HttpResponse {
        let is_stateless = self.version.is_stateless();
        let mut unanswered = Unanswered { passing: self, is_answered: false };
        let upstream = &unanswered.passing.state.upstream;
        let response = match upstream.send(Method::POST, http.headers(), is_stateless, Some(body)).await {
            Ok(response) => response,
            Err(why) => return unanswered.failed(&why),
        };
        if is_event_stream(response.headers()) && response.status().is_success() {
            return unanswered.streamed(response);
        }
        let (status, headers) = (status(&response), response.headers().clone());
        let Some(bytes) = whole(response).await else {
            return unanswered.failed("its answer is too large or broke off");
        };
        let answered = unanswered.passing.look(&bytes, Some(&headers)).await;
        unanswered.is_answered = matches!(answered, Looked::Answer(_));
        match answered {
            Looked::Answer(replaced) => respond(status, &headers).body(replaced.unwrap_or(bytes)),
            // An error of HTTP alone, such as 401: the server did not take the request.
            Looked::Other if !status.is_success() => {
                unanswered.is_answered = true;
                unanswered.passing.refused(status);
                respond(status, &headers).body(bytes)
            }
            Looked::Other => unanswered.failed("its answer is not one to this request"),
        }
    }

    /// Takes the answer to this request out of what the server sent.
    async fn look(&self, bytes: &[u8], headers: Option<&HeaderMap>) -> Looked {
        let Ok(Message::Response(Some(id), response)) = of_server(bytes) else { return Looked::Other };
        if id != self.id {
            return Looked::Other;
        }
        let Some(watch) = self.pending.end(&id) else { return Looked::Other };
        match self.state.guard.answered(&watch, &response).await {
            Answered::AsItCame => Looked::Answer(None),
            Answered::Replaced(replaced) => Looked::Answer(Some(replaced)),
            Answered::Speaking(version) => {
                self.begin_session(version, headers);
                Looked::Answer(None)
            }
        }
    }

    fn begin_session(&self, version: Version, headers: Option<&HeaderMap>) {
        self.pending.speak(version);
        if let Some(id) = headers.and_then(|headers| headers.get(SESSION_ID)).and_then(|id| id.to_str().ok()) {
            let pending = Arc::new(Pending::new(MAX_OPEN, version));
            self.state.sessions.begin(id, self.owner, pending, Instant::now());
        }
    }

    fn refused(&self, status: StatusCode) {
        let Some(watch) = self.pending.end(&self.id) else { return };
        if status.is_server_error() { self.state.guard.lost(&watch) } else { self.state.guard.not_sent(&watch) }
    }
}

enum Looked {
    /// The answer, and what goes to the client in its place.
    Answer(Option<Vec<u8>>),
    Other,
}

impl Unanswered {
    fn failed(&self, why: &str) -> HttpResponse {
        tracing::warn!(server = self.passing.state.guard.server(), "the server behind the guard failed: {why}");
        let text = format!("the server behind the guard failed: {why}");
        json(StatusCode::BAD_GATEWAY, answer::error(Some(&self.passing.id.to_raw()), UPSTREAM_FAILED, &text))
    }

    fn streamed(mut self, response: Response) -> HttpResponse {
        let headers = response.headers().clone();
        let status = status(&response);
        relay(status, &headers.clone(), move |sender| async move {
            let mut response = response;
            let mut parser = Parser::default();
            while let Ok(Some(chunk)) = response.chunk().await {
                let Ok(events) = parser.feed(&chunk) else { return };
                for event in events {
                    let passed = match self.passing.event(&event, &headers, &mut self.is_answered).await {
                        Some(passed) => passed,
                        None => continue,
                    };
                    if sender.send(Bytes::from(passed)).await.is_err() {
                        return;
                    }
                }
            }
        })
    }
}

impl Passing {
    /// What the client gets of an event.
    async fn event(&self, event: &Event, headers: &HeaderMap, is_answered: &mut bool) -> Option<Vec<u8>> {
        match event.data.as_deref().map(of_server) {
            None => Some(event.raw.clone()),
            Some(Ok(Message::Request(_) | Message::Notification(..) | Message::Response(None, _))) => {
                Some(event.raw.clone())
            }
            Some(Ok(Message::Response(Some(id), _))) if id == self.id => {
                match self.look(event.data.as_deref().unwrap_or_default(), Some(headers)).await {
                    Looked::Answer(replaced) => {
                        *is_answered = true;
                        Some(replaced.map_or_else(|| event.raw.clone(), |data| event.with_data(&data)))
                    }
                    Looked::Other => None,
                }
            }
            Some(Ok(Message::Response(Some(_), _))) => self.state.dropped("an answer that was not asked for"),
            Some(Err(_)) if event.data.as_deref().is_none_or(<[u8]>::is_empty) => Some(event.raw.clone()),
            Some(Err(_)) => self.state.dropped("an event that cannot be read"),
        }
    }
}

impl State {
    fn dropped(&self, what: &str) -> Option<Vec<u8>> {
        tracing::warn!(server = self.guard.server(), "the server sent {what}: it is dropped");
        None
    }

    /// What the client gets of an event on a stream of its session.
    async fn session_event(&self, pending: &Pending, event: &Event) -> Option<Vec<u8>> {
        let data = event.data.as_deref().unwrap_or_default();
        if data.is_empty() {
            return Some(event.raw.clone());
        }
        match of_server(data) {
            Ok(Message::Request(_) | Message::Notification(..) | Message::Response(None, _)) => Some(event.raw.clone()),
            Ok(Message::Response(Some(id), response)) => {
                let Some(watch) = pending.end_or_repeat(&id) else {
                    return self.dropped("an answer that was not asked for");
                };
                match self.guard.answered(&watch, &response).await {
                    Answered::Replaced(replaced) => Some(event.with_data(&replaced)),
                    Answered::AsItCame | Answered::Speaking(_) => Some(event.raw.clone()),
                }
            }
            Err(_) => self.dropped("an event that cannot be read"),
        }
    }
}

/// A message to which the server gives no answer.
pub(super) async fn plain(state: &State, http: &HttpRequest, version: Version, body: Vec<u8>) -> HttpResponse {
    match state.upstream.send(Method::POST, http.headers(), version.is_stateless(), Some(body)).await {
        Err(why) => bad_gateway(state, &why),
        Ok(response) => {
            let (status, headers) = (status(&response), response.headers().clone());
            match whole(response).await {
                // A body beside 202 is no answer that anyone waits for.
                Some(_) if status.is_success() => HttpResponse::build(status).finish(),
                Some(bytes) => respond(status, &headers).body(bytes),
                None => bad_gateway(state, "its answer is too large or broke off"),
            }
        }
    }
}

/// A session's own stream: messages of the server, and answers that a client missed.
pub(super) async fn stream(state: &Data<State>, http: &HttpRequest, pending: Arc<Pending>) -> HttpResponse {
    let response = match state.upstream.send(Method::GET, http.headers(), false, None).await {
        Ok(response) => response,
        Err(why) => return bad_gateway(state, &why),
    };
    let (status, headers) = (status(&response), response.headers().clone());
    if !status.is_success() || !is_event_stream(&headers) {
        return match whole(response).await {
            Some(bytes) if !status.is_success() => respond(status, &headers).body(bytes),
            _ => bad_gateway(state, "it does not stream"),
        };
    }
    if one(http, LAST_EVENT_ID).ok().flatten().is_some() {
        tracing::debug!(server = state.guard.server(), "a stream is resumed");
    }
    let state = state.clone();
    relay(status, &headers, move |sender| async move {
        let mut response = response;
        let mut parser = Parser::default();
        while let Ok(Some(chunk)) = response.chunk().await {
            let Ok(events) = parser.feed(&chunk) else { return };
            for event in events {
                let Some(passed) = state.session_event(&pending, &event).await else { continue };
                if sender.send(Bytes::from(passed)).await.is_err() {
                    return;
                }
            }
        }
    })
}

pub(super) async fn end_session(state: &State, http: &HttpRequest) -> HttpResponse {
    match state.upstream.send(Method::DELETE, http.headers(), false, None).await {
        Err(why) => bad_gateway(state, &why),
        Ok(response) => {
            let (status, headers) = (status(&response), response.headers().clone());
            if status.is_success()
                && let Ok(Some(id)) = one(http, SESSION_ID)
            {
                state.sessions.end(&id);
            }
            respond(status, &headers).body(whole(response).await.unwrap_or_default())
        }
    }
}

/// Sends a stream to the client while `work` fills it. Its end ends the work at the next event, or at the latest when
/// the server's stream ends.
fn relay<W, F>(status: StatusCode, headers: &HeaderMap, work: W) -> HttpResponse
where
    W: FnOnce(mpsc::Sender<Bytes>) -> F,
    F: Future<Output = ()> + 'static,
{
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let gone = sender.clone();
    let work = work(sender);
    actix_web::rt::spawn(async move {
        tokio::select! {
            () = work => {}
            // The client is gone: what the server still does for it is not waited for.
            () = gone.closed() => {}
        }
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok::<_, actix_web::Error>(bytes), receiver))
    });
    respond(status, headers).insert_header(("x-accel-buffering", "no")).streaming(events)
}

fn bad_gateway(state: &State, why: &str) -> HttpResponse {
    tracing::warn!(server = state.guard.server(), "the server behind the guard failed: {why}");
    let text = format!("the server behind the guard failed: {why}");
    json(StatusCode::BAD_GATEWAY, answer::error(None, UPSTREAM_FAILED, &text))
}

fn status(response: &Response) -> StatusCode {
    StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY)
}

/// A response with those headers of the server that the protocol knows.
fn respond(status: StatusCode, headers: &HeaderMap) -> HttpResponseBuilder {
    // A redirect would lead the client around the guard.
    let status = if status.is_redirection() { StatusCode::BAD_GATEWAY } else { status };
    let mut response = HttpResponse::build(status);
    let passed =
        [CONTENT_TYPE.as_str(), CACHE_CONTROL.as_str(), WWW_AUTHENTICATE.as_str(), RETRY_AFTER.as_str(), SESSION_ID];
    for name in passed {
        for value in headers.get_all(name) {
            response.append_header((name, value.as_bytes()));
        }
    }
    response
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(EVENT_STREAM))
}

/// `None`: it is too large, or broke off.
async fn whole(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > MAX_RESULT_BYTES {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}
