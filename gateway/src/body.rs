//! Reading a request's body: its type, its size, the time it may take, and strict JSON.
//!
//! Refuses before it reads where the headers suffice. A body is held by
//! [`BytesInFlight`](crate::in_flight::BytesInFlight) while it arrives, as far as it has arrived, and by
//! [`InHand`](crate::in_hand::InHand) from then on. What is not read is thrown away by the server for a bounded moment,
//! so that the client can read its refusal.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use actix_web::web::{Bytes, BytesMut, Payload, block};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::Stream;
use serde_json::{Map, Value};
use stage0_contract::{AccountId, MAX_BODY_BYTES, parse_strict};
use tokio::time::Instant;

use crate::address::Client;
use crate::auth::confirm;
use crate::errors::ApiError;
use crate::in_flight::Hold;
use crate::in_hand::{InHand, Place};
use crate::patience::Patience;
use crate::state::Gate;

/// The first step in which a hold grows; each next one doubles it, as the buffer does.
const FIRST_STEP_BYTES: usize = 4 << 10;

/// Bytes of the largest body whose parsing and hashing are done in between: a worker serves other connections
/// meanwhile.
const MAX_INLINE_BYTES: usize = 32 << 10;

/// A JSON object, and what holds the memory that it needs.
pub(crate) struct Body {
    pub(crate) object: Map<String, Value>,
    /// Its length as it arrived.
    pub(crate) bytes: usize,
    pub(crate) place: Option<Place>,
}

/// Does work that grows with a body of so many bytes: that of a large one on a thread apart, so that the worker's other
/// connections do not wait for it. How many are under way at a time is bounded by [`InHand`].
pub(crate) async fn apart<T: Send + 'static>(
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

/// Marks a request whose body was read to its end, or that has none.
struct Read;

/// A whole body, and what holds its bytes.
pub(crate) struct Arrived {
    bytes: Bytes,
    hold: Hold,
}

impl Arrived {
    /// The JSON object, once there is room for it.
    pub(crate) async fn parse(
        self,
        in_hand: &Arc<InHand>,
        account: &AccountId,
        deadline: Instant,
    ) -> Result<Body, ApiError> {
        let Self { bytes, hold } = self;
        let place = tokio::select! {
            biased;
            // Its bytes count for nobody any more, so it must not keep them while it waits.
            over = hold.cut() => return Err(over.into()),
            place = in_hand.place(Some(account), bytes.len(), deadline) => place?,
        };
        let length = bytes.len();
        // Whoever asked may leave meanwhile: what the body holds ends with the work on it.
        let parsed = apart(length, move || {
            let parsed = parse_strict(&bytes);
            drop((bytes, hold));
            (parsed, place)
        });
        let (parsed, place) = parsed.await?;
        match parsed? {
            Value::Object(object) => Ok(Body { object, bytes: length, place: Some(place) }),
            _ => Err(ApiError::NotAnObject),
        }
    }
}

/// A JSON object of `account`, or why there is none.
pub(crate) async fn json_object(
    gate: &Gate,
    request: &HttpRequest,
    payload: Payload,
    account: &AccountId,
) -> Result<Body, ApiError> {
    let arrived = arrived(gate, request, payload, account).await?;
    arrived.parse(&gate.in_hand, account, Instant::now() + gate.config.request_budget).await
}

/// As [`json_object`], where no body at all means an empty object.
pub(crate) async fn optional_json_object(
    gate: &Gate,
    request: &HttpRequest,
    payload: Payload,
    account: &AccountId,
) -> Result<Body, ApiError> {
    if has_body(request.headers()) {
        json_object(gate, request, payload, account).await
    } else {
        Ok(Body { object: Map::new(), bytes: 0, place: None })
    }
}

/// Whether a request's body is still to come, as a whole or in part: its connection cannot be used for another.
pub(crate) fn is_unread(request: &HttpRequest) -> bool {
    has_body(request.headers()) && !request.extensions().contains::<Read>()
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    length || headers.contains_key(TRANSFER_ENCODING)
}

/// The body of a request of `account`, as soon as all of it is there.
pub(crate) async fn arrived(
    gate: &Gate,
    request: &HttpRequest,
    payload: Payload,
    account: &AccountId,
) -> Result<Arrived, ApiError> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    if !is_json(request) {
        return Err(ApiError::NotJsonType);
    }
    let address = Client::of_request(request).map(Client::net);
    let hold = gate.bytes.begin(Some(account), address, std::time::Instant::now());
    let patience = request.conn_data::<Patience>();
    let length = length.and_then(|length| usize::try_from(length).ok());
    let collecting = Collecting { hold: &hold, patience, length, body: BytesMut::new(), held: 0 };
    let collected = tokio::time::timeout(gate.config.body_timeout, collecting.collect(payload)).await;
    patience.iter().for_each(|patience| patience.body_ends());
    let bytes = collected.unwrap_or(Err(ApiError::BodyTooSlow))?;
    request.extensions_mut().insert(Read);
    // A body may be long in coming.
    confirm(gate, request).await?;
    Ok(Arrived { bytes, hold })
}

/// A body that arrives.
struct Collecting<'a> {
    hold: &'a Hold,
    patience: Option<&'a Patience>,
    /// As the client says.
    length: Option<usize>,
    body: BytesMut,
    held: usize,
}

impl Collecting<'_> {
    async fn collect(mut self, mut payload: Payload) -> Result<Bytes, ApiError> {
        loop {
            let left = self.length.map(|length| length.saturating_sub(self.body.len()));
            let chunk = tokio::select! {
                biased;
                chunk = next(&mut payload, self.patience, left) => chunk,
                over = self.hold.cut() => return Err(over.into()),
            };
            match chunk {
                Some(chunk) => self.add(&chunk.map_err(|_| ApiError::BrokenBody)?)?,
                None => return Ok(self.body.freeze()),
            }
        }
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let (now, length) = (std::time::Instant::now(), self.body.len() + chunk.len());
        if length > MAX_BODY_BYTES {
            return Err(ApiError::BodyTooLarge);
        }
        if length > self.held {
            // What the buffer takes, not what is in it.
            let wanted = length.max(self.held * 2).clamp(FIRST_STEP_BYTES, MAX_BODY_BYTES);
            self.hold.grow(wanted - self.held, now)?;
            self.held = wanted;
            self.body.reserve(wanted - self.body.len());
        }
        self.hold.progressed(chunk.len(), now);
        self.body.extend_from_slice(chunk);
        Ok(())
    }
}

/// The next piece, as it arrives; the connection is told how far its client may go on.
async fn next(
    payload: &mut Payload,
    patience: Option<&Patience>,
    left: Option<usize>,
) -> Option<Result<Bytes, PayloadError>> {
    poll_fn(|context| {
        let polled = Pin::new(&mut *payload).poll_next(context);
        match (&polled, patience) {
            (std::task::Poll::Ready(Some(Ok(chunk))), Some(patience)) => patience.took_body(chunk.len()),
            (std::task::Poll::Pending, Some(patience)) => patience.wants_body(left),
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
    use crate::in_flight::{ByteLimits, BytesInFlight, Over};
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
    fn only_json_in_utf_8_is_taken() {
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
    async fn the_work_on_a_large_body_is_done_apart_from_whoever_serves() {
        let here = std::thread::current().id();
        let thread = || std::thread::current().id();
        assert_eq!(apart(MAX_INLINE_BYTES, thread).await.unwrap(), here);
        assert_ne!(apart(MAX_INLINE_BYTES + 1, thread).await.unwrap(), here);
    }

    const KIB: usize = 1 << 10;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    /// A whole body that holds so many bytes.
    fn whole(bytes: &Arc<BytesInFlight>, name: &str, length: usize, now: std::time::Instant) -> Arrived {
        let hold = bytes.begin(Some(&account(name)), None, now);
        hold.grow(length, now).unwrap();
        Arrived { bytes: Bytes::from(format!("{{{}}}", " ".repeat(length - 2))), hold }
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_body_that_waits_ends_when_its_bytes_are_given_to_another() {
        let in_hand = InHand::new(MAX_BODY_BYTES);
        let bytes = BytesInFlight::new(ByteLimits { gateway: 100 * KIB, account: 100 * KIB, address: 100 * KIB });
        let (now, a) = (std::time::Instant::now(), account("a"));
        let deadline = Instant::now() + Duration::from_secs(2);
        let taken = in_hand.place(Some(&a), MAX_BODY_BYTES, deadline).await.unwrap();
        let waiting: Vec<_> = [60, 40].map(|kib| whole(&bytes, "a", kib * KIB, now)).into();
        let waiting =
            futures_util::future::join_all(
                waiting.into_iter().map(|arrived| {
                    let (in_hand, a) = (Arc::clone(&in_hand), a.clone());
                    async move {
                        (arrived.parse(&in_hand, &a, deadline).await.map(|body| body.object.len()), Instant::now())
                    }
                }),
            );
        let began = Instant::now();
        let others = async {
            tokio::task::yield_now().await;
            // Larger than what is left: the one that stalls with the most bytes makes room, at once.
            let newcomer = bytes.begin(Some(&account("b")), None, now);
            newcomer.grow(50 * KIB, now + Duration::from_secs(1)).unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(taken);
        };
        let (ended, ()) = tokio::join!(waiting, others);
        assert_eq!(ended.first().unwrap(), &(Err(ApiError::from(Over::Gateway)), began));
        let (neighbour, at) = ended.last().unwrap();
        assert_eq!(
            (neighbour, at.duration_since(began).as_secs()),
            (&Ok(0), 1),
            "who keeps its bytes is read in its turn"
        );
    }
}
