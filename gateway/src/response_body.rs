//! The body of an answer while it is sent: in small chunks, as fast as its client takes them.
//!
//! A client that takes less than 64 KiB in the time that
//! [`ConnectionTimeouts`](crate::idle_timeout::ConnectionTimeouts) sets is cut off. Before each chunk the caller's key
//! is confirmed, so that neither a long download nor an answer from before the process was suspended goes on for a key
//! that was revoked meanwhile.
//! INVARIANT: a request counts as in flight until the last chunk of its answer is handed on or the connection is gone;
//! the permits and bytes that the answer holds are part of its body and are released with it.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::{Bytes, Data};
use stage0_backplane::BoxFuture;
use stage0_contract::RequestId;

use crate::auth::confirm;
use crate::errors::ApiError;
use crate::idle_timeout::{MIN_PROGRESS_BYTES, RequestGuard};
use crate::in_flight::Hold;
use crate::key_cache::VerifiedCaller;
use crate::read_pool::ReadPermit;
use crate::state::AppState;

/// What the connection copies at a time; twice that fits into the buffer that a connection has anyway.
const CHUNK_BYTES: usize = 4 << 10;
const YIELD_BYTES: usize = 64 << 10;

pub(crate) struct PacedBody<B> {
    body: Pin<Box<B>>,
    /// The part of the inner body's last chunk that is not handed on yet.
    rest: Bytes,
    guard: Option<RequestGuard>,
    revocation: Option<RevocationCheck>,
    /// Bytes since the progress timer was last reset; none if it is not running.
    since_progress: Option<usize>,
    since_yield: usize,
}

impl<B: MessageBody> PacedBody<B> {
    pub(crate) fn new(body: B, guard: Option<RequestGuard>, revocation: Option<RevocationCheck>) -> Self {
        Self { body: Box::pin(body), rest: Bytes::new(), guard, revocation, since_progress: None, since_yield: 0 }
    }

    fn next_chunk(&mut self) -> Bytes {
        let chunk = self.rest.split_to(self.rest.len().min(CHUNK_BYTES));
        self.since_yield += chunk.len();
        let since = self.since_progress.map(|since| since + chunk.len());
        self.since_progress = match since {
            Some(since) if since < MIN_PROGRESS_BYTES => Some(since),
            // The server polls for a chunk once most of the previous ones is taken.
            Some(_) | None => {
                self.guard.iter().for_each(RequestGuard::start_sending);
                Some(0)
            }
        };
        chunk
    }
}

impl<B: MessageBody> MessageBody for PacedBody<B> {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if this.since_yield >= YIELD_BYTES {
            this.since_yield = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        while this.rest.is_empty() {
            match this.body.as_mut().poll_next(context) {
                Poll::Ready(Some(Ok(chunk))) => this.rest = chunk,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    this.since_progress = None;
                    this.guard.iter().for_each(RequestGuard::stop_sending);
                    return Poll::Pending;
                }
            }
        }
        if let Some(revocation) = &mut this.revocation {
            ready!(revocation.poll(context))?;
        }
        Poll::Ready(Some(Ok(this.next_chunk())))
    }
}

pub(crate) struct RevocationCheck {
    state: Data<AppState>,
    caller: VerifiedCaller,
    id: RequestId,
    confirming: Option<BoxFuture<'static, Result<VerifiedCaller, ApiError>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the caller's key is not known to be valid any more")]
struct AnswerWithheld;

impl RevocationCheck {
    pub(crate) fn new(state: Data<AppState>, caller: VerifiedCaller, id: RequestId) -> Self {
        Self { state, caller, id, confirming: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnswerWithheld>> {
        let confirming = match &mut self.confirming {
            None if self.state.key_cache.is_current(&self.caller) => return Poll::Ready(Ok(())),
            None => {
                let key_cache = Arc::clone(&self.state.key_cache);
                let requests = Arc::clone(&self.state.backplane.requests);
                let caller = self.caller.clone();
                let id = Some(self.id);
                let confirming = async move { confirm(&key_cache, &*requests, &caller, id).await };
                self.confirming.insert(Box::pin(confirming))
            }
            Some(confirming) => confirming,
        };
        let confirmed = ready!(confirming.as_mut().poll(context));
        self.confirming = None;
        match confirmed {
            Ok(caller) => {
                self.caller = caller;
                Poll::Ready(Ok(()))
            }
            Err(_) => {
                let request_id = self.id;
                tracing::warn!(%request_id, "answer is withheld: its caller's key is not known to be valid any more");
                Poll::Ready(Err(AnswerWithheld))
            }
        }
    }
}

/// An answer whose bytes count as in flight until they are taken, and that keeps its permit as long.
pub(crate) struct HeldBody {
    rest: Bytes,
    hold: Hold,
    _permit: ReadPermit,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer was not taken in time, and others needed its place")]
pub(crate) struct CutOff;

impl HeldBody {
    /// `hold` already counts the bytes.
    pub(crate) fn new(bytes: Bytes, hold: Hold, permit: ReadPermit) -> Self {
        Self { rest: bytes, hold, _permit: permit }
    }
}

impl MessageBody for HeldBody {
    type Error = CutOff;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, CutOff>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        if this.hold.is_cut() {
            return Poll::Ready(Some(Err(CutOff)));
        }
        let chunk = this.rest.split_to(this.rest.len().min(CHUNK_BYTES));
        this.hold.progressed(chunk.len(), std::time::Instant::now());
        this.hold.shrink(chunk.len());
        Poll::Ready(Some(Ok(chunk)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_cache::Verification;
    use std::future::poll_fn;
    use std::time::Duration;

    use crate::idle_timeout::{ConnectionTimeouts, TimedStream};
    use crate::in_flight::{ByteLimits, BytesInFlight};
    use crate::key_cache::{CacheLookup, KeystoreCall};
    use crate::server::tests::state;
    use stage0_backplane::Backplane;
    use stage0_contract::{
        AccountId, ApiKey, Caps, KeyIdentity, Limits as AccountLimits, Plan, RefreshKey, RefreshKeyReply, Scopes,
        VerifyKey, VerifyKeyReply,
    };

    const TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
        next_head: Duration::from_secs(80),
        unauthenticated: Duration::from_secs(80),
        linger: Duration::from_secs(4),
        progress: Duration::from_secs(30),
    };

    async fn next<B: MessageBody>(body: &mut PacedBody<B>) -> Option<Bytes> {
        poll_fn(|context| Pin::new(&mut *body).poll_next(context)).await.map(|chunk| chunk.ok().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_is_sent_in_chunks_with_its_length() {
        let whole = Bytes::from(vec![7; 5 * CHUNK_BYTES + 1]);
        let mut body = PacedBody::new(whole.clone(), None, None);
        assert_eq!(body.size(), BodySize::Sized(whole.len() as u64));
        let mut all = Vec::new();
        while let Some(chunk) = next(&mut body).await {
            assert!(chunk.len() <= CHUNK_BYTES);
            all.extend_from_slice(&chunk);
        }
        assert_eq!(all, whole);
    }

    #[tokio::test(start_paused = true)]
    async fn the_progress_timer_is_reset_for_every_64_kib() {
        let stream = TimedStream::new((), TIMEOUTS, None);
        let connection = stream.connection_state().clone();
        let pieces = MIN_PROGRESS_BYTES / CHUNK_BYTES;
        let mut body =
            PacedBody::new(Bytes::from(vec![7; 5 * MIN_PROGRESS_BYTES]), Some(connection.begin_request(0)), None);
        assert_eq!(connection.ends_in(), None);
        next(&mut body).await.unwrap();
        for _ in 0..5 {
            assert_eq!(connection.ends_in(), Some(Duration::from_secs(30)));
            tokio::time::advance(Duration::from_secs(10)).await;
            for _ in 1..pieces {
                next(&mut body).await.unwrap();
                assert_eq!(connection.ends_in(), Some(Duration::from_secs(20)), "less than 64 KiB is no progress");
            }
            if next(&mut body).await.is_none() {
                break;
            }
        }
        drop(body);
        assert_eq!(connection.ends_in(), Some(TIMEOUTS.unauthenticated));
    }

    #[tokio::test]
    async fn an_answer_whose_bytes_are_given_to_another_breaks_off() {
        let now = std::time::Instant::now();
        let bytes = BytesInFlight::new(ByteLimits { gateway: 100, account: 100, address: 100 });
        let hold = bytes.begin(None, None, now);
        hold.grow(100, now).unwrap();
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let mut body = HeldBody::new(Bytes::from(vec![7; 100]), hold, permit);
        let other = bytes.begin(None, None, now);
        other.grow(50, now).unwrap();
        let chunk = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await;
        assert!(chunk.unwrap().is_err());
    }

    fn key() -> ApiKey {
        ApiKey::from_random([1; 10], [2; 20]).unwrap()
    }

    fn identity() -> KeyIdentity {
        KeyIdentity {
            holder: None,
            key_name: None,
            groups: None,
            rules: stage0_contract::AccountRules::default(),
            key_id: key().id().clone(),
            account: AccountId::parse("a").unwrap(),
            scopes: Scopes::default(),
            plan: Plan::Free,
            expires_at: None,
            retention_days: 30,
            limits: AccountLimits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
        }
    }

    /// A worker's state, and a caller whose key the keystore has verified.
    async fn verified_caller(backplane: &Backplane) -> (Data<AppState>, VerifiedCaller) {
        let state = Data::new(state(backplane, |_| {}));
        let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
        let answered = async { asked.next().await.unwrap().answer(&VerifyKeyReply::Valid(identity())).await };
        let (deadline, key) = (tokio::time::Instant::now() + Duration::from_secs(30), key());
        let call = KeystoreCall { keystore: &*backplane.requests, deadline, request_id: None };
        let (verified, ()) =
            tokio::join!(state.key_cache.verify(&key, call, state.failed_logins.of(None, None)), answered);
        let Verification::Valid(caller) = verified.unwrap() else { panic!("the key is valid") };
        (state, caller)
    }

    #[tokio::test]
    async fn an_answer_breaks_off_when_its_callers_key_is_revoked() {
        let backplane = Backplane::embedded();
        let (state, caller) = verified_caller(&backplane).await;
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let revocation = RevocationCheck::new(state.clone(), caller, id);
        let mut body = PacedBody::new(Bytes::from(vec![7; 3 * CHUNK_BYTES]), None, Some(revocation));
        let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
        for reply in [RefreshKeyReply::Live(identity()), RefreshKeyReply::Gone] {
            // A key of the account changed.
            state.key_cache.invalidate(&identity().account);
            let lives = matches!(reply, RefreshKeyReply::Live(_));
            let answered = async { asked.next().await.unwrap().answer(&reply).await };
            let chunk = poll_fn(|context| Pin::new(&mut body).poll_next(context));
            let (chunk, ()) = tokio::join!(chunk, answered);
            assert_eq!(chunk.unwrap().is_ok(), lives);
        }
        let call = KeystoreCall {
            keystore: &*backplane.requests,
            deadline: tokio::time::Instant::now() + Duration::from_secs(30),
            request_id: None,
        };
        assert!(matches!(state.key_cache.look_up(&key(), call).await, Ok(CacheLookup::Miss)));
    }

    #[tokio::test]
    async fn an_answer_is_withheld_while_the_keystore_cannot_be_asked() {
        let backplane = Backplane::embedded();
        let (state, caller) = verified_caller(&backplane).await;
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let revocation = RevocationCheck::new(state.clone(), caller, id);
        let mut body = PacedBody::new(Bytes::from(vec![7; 3]), None, Some(revocation));
        state.key_cache.invalidate(&identity().account);
        let chunk = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await;
        assert!(chunk.unwrap().is_err());
    }
}
