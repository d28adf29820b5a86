//! Reads a request's body: its type, its size, the time it may take, and strict JSON.
//!
//! Refuses before reading where the headers suffice. The bytes of a body count in `in_flight` while they arrive, and in
//! `request_memory` from then on. The server discards an unread body for a limited time, so that the client can read
//! its refusal.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use actix_web::web::{Bytes, BytesMut, block};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::Stream;
use serde_json::{Map, Value};
use stage0_contract::{AccountId, MAX_BODY_BYTES, parse_strict};
use tokio::time::Instant;

use crate::address::Client;
use crate::auth::reconfirm_caller;
use crate::errors::ApiError;
use crate::idle_timeout::ConnectionState;
use crate::in_flight::Hold;
use crate::request_memory::{MemoryPermit, RequestMemory};
use crate::state::AppState;

/// The buffer doubles as the body arrives.
const INITIAL_BUFFER_BYTES: usize = 4 << 10;
/// The largest body that is parsed and hashed on the worker thread itself.
const MAX_INLINE_BYTES: usize = 32 << 10;

pub(crate) struct Body {
    pub(crate) object: Map<String, Value>,
    pub(crate) bytes: usize,
    pub(crate) permit: Option<MemoryPermit>,
}

/// Does CPU work on a body of `bytes`; for a large body on the blocking pool, so that the worker's other connections do
/// not wait. [`RequestMemory`] bounds how many run at the same time.
pub(crate) async fn compute<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= MAX_INLINE_BYTES {
        return Ok(work());
    }
    block(work).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "the work on a large body ended early");
        ApiError::Unavailable
    })
}

/// Marks, in a request's extensions, that its body was read to the end.
struct BodyRead;

pub(crate) struct ReceivedBody {
    bytes: Bytes,
    hold: Hold,
}

impl ReceivedBody {
    /// Parses the JSON object, once there is memory for its request.
    pub(crate) async fn parse(
        self,
        request_memory: &Arc<RequestMemory>,
        account: Option<&AccountId>,
        deadline: Instant,
    ) -> Result<Body, ApiError> {
        let (parsed, bytes, permit) = self.read_by(request_memory, account, deadline, parse_strict).await?;
        match parsed? {
            Value::Object(object) => Ok(Body { object, bytes, permit: Some(permit) }),
            _ => Err(ApiError::NotAnObject),
        }
    }

    /// Reads the bytes by a function, once there is memory for their request. Returns their number, too.
    pub(crate) async fn read_by<T: Send + 'static>(
        self,
        request_memory: &Arc<RequestMemory>,
        account: Option<&AccountId>,
        deadline: Instant,
        read: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<(T, usize, MemoryPermit), ApiError> {
        let Self { bytes, hold } = self;
        let permit = tokio::select! {
            biased;
            // Its bytes were given to others, so it must not keep them while it waits.
            over = hold.cut() => return Err(over.into()),
            permit = request_memory.acquire(account, bytes.len(), deadline) => permit?,
        };
        let length = bytes.len();
        // The client may disconnect meanwhile: the memory is held until the work on the body ends.
        let read = compute(length, move || {
            let read = read(&bytes);
            drop((bytes, hold));
            (read, permit)
        });
        let (read, permit) = read.await?;
        Ok((read, length, permit))
    }
}

/// Whether some of the request's body was not read: then its connection cannot be used for another request.
pub(crate) fn is_unread(request: &HttpRequest) -> bool {
    has_body(request.headers()) && !request.extensions().contains::<BodyRead>()
}

pub(crate) fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    length || headers.contains_key(TRANSFER_ENCODING)
}

/// Receives the complete body of a request of `account`; none for a call that needs no key.
pub(crate) async fn receive(
    state: &AppState,
    request: &HttpRequest,
    payload: Payload,
    account: Option<&AccountId>,
) -> Result<ReceivedBody, ApiError> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    if !is_json(request) {
        return Err(ApiError::NotJsonType);
    }
    let address = Client::of_request(request).map(Client::net);
    let hold = state.bytes.begin(account, address, std::time::Instant::now());
    let connection = request.conn_data::<ConnectionState>();
    let length = length.and_then(|length| usize::try_from(length).ok());
    let reader = BodyReader { hold: &hold, connection, length, buffer: BytesMut::new(), held: 0 };
    let read = tokio::time::timeout(state.config.body_timeout, reader.read(payload)).await;
    connection.iter().for_each(|connection| connection.body_done());
    let bytes = read.unwrap_or(Err(ApiError::BodyTooSlow))?;
    request.extensions_mut().insert(BodyRead);
    // The body may have taken long to arrive.
    reconfirm_caller(state, request).await?;
    Ok(ReceivedBody { bytes, hold })
}

struct BodyReader<'a> {
    hold: &'a Hold,
    connection: Option<&'a ConnectionState>,
    length: Option<usize>,
    buffer: BytesMut,
    held: usize,
}

impl BodyReader<'_> {
    async fn read(mut self, mut payload: Payload) -> Result<Bytes, ApiError> {
        loop {
            let left = self.length.map(|length| length.saturating_sub(self.buffer.len()));
            let chunk = tokio::select! {
                biased;
                chunk = next(&mut payload, self.connection, left) => chunk,
                over = self.hold.cut() => return Err(over.into()),
            };
            match chunk {
                Some(chunk) => self.add(&chunk.map_err(|_| ApiError::BrokenBody)?)?,
                None => return Ok(self.buffer.freeze()),
            }
        }
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let (now, length) = (std::time::Instant::now(), self.buffer.len() + chunk.len());
        if length > MAX_BODY_BYTES {
            return Err(ApiError::BodyTooLarge);
        }
        if length > self.held {
            // The buffer's capacity counts, not its content.
            let wanted = length.max(self.held * 2).clamp(INITIAL_BUFFER_BYTES, MAX_BODY_BYTES);
            self.hold.grow(wanted - self.held, now)?;
            self.held = wanted;
            self.buffer.reserve(wanted - self.buffer.len());
        }
        self.hold.progressed(chunk.len(), now);
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }
}

/// The next chunk as it arrives; tells the connection's timeouts about the progress.
async fn next(
    payload: &mut Payload,
    connection: Option<&ConnectionState>,
    left: Option<usize>,
) -> Option<Result<Bytes, PayloadError>> {
    poll_fn(|context| {
        let polled = Pin::new(&mut *payload).poll_next(context);
        match (&polled, connection) {
            (std::task::Poll::Ready(Some(Ok(chunk))), Some(connection)) => connection.consumed_body(chunk.len()),
            (std::task::Poll::Pending, Some(connection)) => connection.await_body(left),
            _ => {}
        }
        polled
    })
    .await
}

fn is_json(request: &HttpRequest) -> bool {
    let header =
        |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase());
    if header(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return false;
    }
    let Some(content_type) = header(CONTENT_TYPE) else { return false };
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts.next() == Some("application/json");
    json && parts
        .filter_map(|part| part.strip_prefix("charset="))
        .all(|charset| matches!(charset.trim_matches('"'), "utf-8" | "utf8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_flight::{ByteLimit, ByteLimits, BytesInFlight};
    use actix_web::test::TestRequest;
    use std::time::Duration;

    fn accepts(headers: &[(&'static str, &str)]) -> bool {
        let mut request = TestRequest::post();
        for header in headers {
            request = request.append_header(*header);
        }
        is_json(&request.to_http_request())
    }

    #[test]
    fn only_json_in_utf_8_is_accepted() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; profile=x",
        ] {
            assert!(accepts(&[("content-type", good)]), "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonx",
            "application/json; charset=latin-1",
            "application/x-www-form-urlencoded",
            "",
        ] {
            assert!(!accepts(&[("content-type", bad)]), "{bad}");
        }
        assert!(!accepts(&[]));
        assert!(!accepts(&[("content-type", "application/json"), ("content-encoding", "gzip")]));
    }

    #[tokio::test]
    async fn a_large_body_is_parsed_off_the_worker_thread() {
        let here = std::thread::current().id();
        let thread = || std::thread::current().id();
        assert_eq!(compute(MAX_INLINE_BYTES, thread).await.unwrap(), here);
        assert_ne!(compute(MAX_INLINE_BYTES + 1, thread).await.unwrap(), here);
    }

    const KIB: usize = 1 << 10;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    /// A complete body that holds `length` bytes.
    fn whole(bytes: &Arc<BytesInFlight>, name: &str, length: usize, now: std::time::Instant) -> ReceivedBody {
        let hold = bytes.begin(Some(&account(name)), None, now);
        hold.grow(length, now).unwrap();
        ReceivedBody { bytes: Bytes::from(format!("{{{}}}", " ".repeat(length - 2))), hold }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_waits_for_memory_is_refused_when_its_bytes_are_given_to_another() {
        let request_memory = RequestMemory::new(MAX_BODY_BYTES);
        let bytes = BytesInFlight::new(ByteLimits { gateway: 100 * KIB, account: 100 * KIB, address: 100 * KIB });
        let (now, a) = (std::time::Instant::now(), account("a"));
        let deadline = Instant::now() + Duration::from_secs(2);
        let taken = request_memory.acquire(Some(&a), MAX_BODY_BYTES, deadline).await.unwrap();
        let waiting: Vec<_> = [60, 40].map(|kib| whole(&bytes, "a", kib * KIB, now)).into();
        let waiting = futures_util::future::join_all(waiting.into_iter().map(|arrived| {
            let (request_memory, a) = (Arc::clone(&request_memory), a.clone());
            async move {
                (arrived.parse(&request_memory, Some(&a), deadline).await.map(|body| body.object.len()), Instant::now())
            }
        }));
        let began = Instant::now();
        let others = async {
            tokio::task::yield_now().await;
            // It does not fit, so the stalled body with the most bytes is evicted at once.
            let newcomer = bytes.begin(Some(&account("b")), None, now);
            newcomer.grow(50 * KIB, now + Duration::from_secs(1)).unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(taken);
        };
        let (ended, ()) = tokio::join!(waiting, others);
        assert_eq!(ended.first().unwrap(), &(Err(ApiError::from(ByteLimit::Gateway)), began));
        let (neighbour, at) = ended.last().unwrap();
        assert_eq!(
            (neighbour, at.duration_since(began).as_secs()),
            (&Ok(0), 1),
            "a body that keeps its bytes is parsed when there is memory"
        );
    }
}
