//! The body of an answer on its way out: in small pieces, as fast as its client takes them.
//!
//! Owns the pieces and the clock while an answer leaves: whoever takes less than 64 KiB in the time that
//! [`Limits`](crate::patience::Limits) name is cut.
//! Before each piece it is looked at whether the caller's key still lives: of what a gateway had in hand when it was
//! stopped, and of a long download, nothing leaves for a key that was revoked meanwhile.
//! INVARIANT: a request counts as under way until the last piece of its answer is handed on, or the connection is gone;
//! what the answer holds (turns, bytes) is part of the body, and ends with it.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::{Bytes, Data};
use stage0_backplane::BoxFuture;
use stage0_contract::RequestId;

use crate::auth::confirmed;
use crate::errors::ApiError;
use crate::in_flight::Hold;
use crate::keyring::Believed;
use crate::patience::{Busy, PROGRESS_BYTES};
use crate::state::Gate;

/// What the connection copies at a time: with as much again it fits into the buffer that a connection has anyway.
const PIECE_BYTES: usize = 4 << 10;
/// After so many bytes other connections of the worker have their turn.
const TURN_BYTES: usize = 64 << 10;

/// A body and the request that it ends.
pub(crate) struct Sending<B> {
    body: Pin<Box<B>>,
    /// Of the last chunk, what is still to be handed on.
    rest: Bytes,
    busy: Option<Busy>,
    /// None where no key was asked for.
    release: Option<Release>,
    /// Bytes since the clock was last set; none: it is not running.
    since_progress: Option<usize>,
    since_turn: usize,
}

impl<B: MessageBody> Sending<B> {
    pub(crate) fn new(body: B, busy: Option<Busy>, release: Option<Release>) -> Self {
        Self { body: Box::pin(body), rest: Bytes::new(), busy, release, since_progress: None, since_turn: 0 }
    }

    fn piece(&mut self) -> Bytes {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        self.since_turn += piece.len();
        let since = self.since_progress.map(|since| since + piece.len());
        self.since_progress = match since {
            Some(since) if since < PROGRESS_BYTES => Some(since),
            // The server asks for a piece once most of what it had is taken.
            Some(_) | None => {
                self.busy.iter().for_each(Busy::sends);
                Some(0)
            }
        };
        piece
    }
}

impl<B: MessageBody> MessageBody for Sending<B> {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if this.since_turn >= TURN_BYTES {
            this.since_turn = 0;
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
                    this.busy.iter().for_each(Busy::works);
                    return Poll::Pending;
                }
            }
        }
        if let Some(release) = &mut this.release {
            ready!(release.poll(context))?;
        }
        Poll::Ready(Some(Ok(this.piece())))
    }
}

/// Whether an answer may still leave.
pub(crate) struct Release {
    gate: Data<Gate>,
    caller: Believed,
    id: RequestId,
    /// Under way while the keystore is asked.
    confirming: Option<BoxFuture<'static, Result<Believed, ApiError>>>,
}

/// The caller's key is gone, or nobody knows: the answer ends half way.
#[derive(Debug, thiserror::Error)]
#[error("the caller's key is not known to live any more")]
struct Withheld;

impl Release {
    pub(crate) fn new(gate: Data<Gate>, caller: Believed, id: RequestId) -> Self {
        Self { gate, caller, id, confirming: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Withheld>> {
        let confirming = match &mut self.confirming {
            None if self.gate.keyring.stands(&self.caller) => return Poll::Ready(Ok(())),
            None => {
                let (keyring, requests) = (Arc::clone(&self.gate.keyring), Arc::clone(&self.gate.backplane.requests));
                let (caller, id) = (self.caller.clone(), self.id);
                let confirm = async move { confirmed(&keyring, &*requests, &caller, Some(id)).await };
                self.confirming.insert(Box::pin(confirm))
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
                tracing::warn!(request_id = %self.id, "answer is withheld: its caller's key is not known to live any more");
                Poll::Ready(Err(Withheld))
            }
        }
    }
}

/// An answer that holds bytes of the gateway until it is taken, and whatever else `T` is.
pub(crate) struct Held<T> {
    rest: Bytes,
    hold: Hold,
    _with: T,
}

/// The answer's place was given to others.
#[derive(Debug, thiserror::Error)]
#[error("the answer was not taken in time, and others needed its place")]
pub(crate) struct CutOff;

impl<T> Held<T> {
    /// `hold` has the bytes already.
    pub(crate) fn new(bytes: Bytes, hold: Hold, with: T) -> Self {
        Self { rest: bytes, hold, _with: with }
    }
}

impl<T: Unpin> MessageBody for Held<T> {
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
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        this.hold.progressed(piece.len(), std::time::Instant::now());
        this.hold.shrink(piece.len());
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Verified;
    use std::future::poll_fn;
    use std::time::Duration;

    use crate::in_flight::{ByteLimits, BytesInFlight};
    use crate::keyring::{Asking, Known};
    use crate::patience::{Limits, Patient};
    use crate::server::tests::gate;
    use stage0_backplane::Backplane;
    use stage0_contract::{
        AccountId, ApiKey, Caps, KeyIdentity, Limits as AccountLimits, Plan, RefreshKey, RefreshKeyReply, Scopes,
        VerifyKey, VerifyKeyReply,
    };

    const LIMITS: Limits = Limits {
        next_head: Duration::from_secs(80),
        stranger: Duration::from_secs(80),
        farewell: Duration::from_secs(4),
        progress: Duration::from_secs(30),
    };

    async fn next<B: MessageBody>(body: &mut Sending<B>) -> Option<Bytes> {
        poll_fn(|context| Pin::new(&mut *body).poll_next(context)).await.map(|piece| piece.ok().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_chunk_leaves_in_pieces_and_its_length_is_told() {
        let whole = Bytes::from(vec![7; 5 * PIECE_BYTES + 1]);
        let mut body = Sending::new(whole.clone(), None, None);
        assert_eq!(body.size(), BodySize::Sized(whole.len() as u64));
        let mut all = Vec::new();
        while let Some(piece) = next(&mut body).await {
            assert!(piece.len() <= PIECE_BYTES);
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, whole);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_set_anew_for_every_64_kib_and_not_for_less() {
        let stream = Patient::new((), LIMITS, None);
        let patience = stream.patience().clone();
        let pieces = PROGRESS_BYTES / PIECE_BYTES;
        let mut body = Sending::new(Bytes::from(vec![7; 5 * PROGRESS_BYTES]), Some(patience.busy(0)), None);
        assert_eq!(patience.ends_in(), None);
        next(&mut body).await.unwrap();
        for _ in 0..5 {
            assert_eq!(patience.ends_in(), Some(Duration::from_secs(30)));
            tokio::time::advance(Duration::from_secs(10)).await;
            for _ in 1..pieces {
                next(&mut body).await.unwrap();
                assert_eq!(patience.ends_in(), Some(Duration::from_secs(20)), "less than 64 KiB is no progress");
            }
            if next(&mut body).await.is_none() {
                break;
            }
        }
        drop(body);
        assert_eq!(patience.ends_in(), Some(LIMITS.stranger));
    }

    #[tokio::test]
    async fn an_answer_that_lost_its_place_ends_and_its_bytes_are_free() {
        let now = std::time::Instant::now();
        let bytes = BytesInFlight::new(ByteLimits { gateway: 100, account: 100, address: 100 });
        let hold = bytes.begin(None, None, now);
        hold.grow(100, now).unwrap();
        let mut body = Held::new(Bytes::from(vec![7; 100]), hold, ());
        let other = bytes.begin(None, None, now);
        other.grow(50, now).unwrap();
        let piece = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await;
        assert!(piece.unwrap().is_err());
    }

    fn key() -> ApiKey {
        ApiKey::from_random([1; 10], [2; 20]).unwrap()
    }

    fn identity() -> KeyIdentity {
        KeyIdentity {
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

    /// A gate, and a caller whose key the keystore vouched for.
    async fn believed(backplane: &Backplane) -> (Data<Gate>, Believed) {
        let gate = Data::new(gate(backplane, |_| {}));
        let mut asked = backplane.requests.serve::<VerifyKey>().await.unwrap();
        let answered = async { asked.next().await.unwrap().answer(&VerifyKeyReply::Valid(identity())).await };
        let (deadline, key) = (tokio::time::Instant::now() + Duration::from_secs(30), key());
        let asking = Asking { keystore: &*backplane.requests, deadline, request_id: None };
        let (verified, ()) =
            tokio::join!(gate.keyring.verify(&key, asking, gate.failed_logins.of(None, None)), answered);
        let Verified::Yes(caller) = verified.unwrap() else { panic!("the key is valid") };
        (gate, caller)
    }

    #[tokio::test]
    async fn an_answer_goes_on_for_a_key_that_lives_and_ends_half_way_for_one_that_was_revoked() {
        let backplane = Backplane::embedded();
        let (gate, caller) = believed(&backplane).await;
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let release = Release::new(gate.clone(), caller, id);
        let mut body = Sending::new(Bytes::from(vec![7; 3 * PIECE_BYTES]), None, Some(release));
        let mut asked = backplane.requests.serve::<RefreshKey>().await.unwrap();
        for reply in [RefreshKeyReply::Live(identity()), RefreshKeyReply::Gone] {
            // A key of the account changed.
            gate.keyring.doubt(&identity().account);
            let lives = matches!(reply, RefreshKeyReply::Live(_));
            let answered = async { asked.next().await.unwrap().answer(&reply).await };
            let piece = poll_fn(|context| Pin::new(&mut body).poll_next(context));
            let (piece, ()) = tokio::join!(piece, answered);
            assert_eq!(piece.unwrap().is_ok(), lives);
        }
        let asking = Asking {
            keystore: &*backplane.requests,
            deadline: tokio::time::Instant::now() + Duration::from_secs(30),
            request_id: None,
        };
        assert!(matches!(gate.keyring.look_up(&key(), asking).await, Ok(Known::No)));
    }

    #[tokio::test]
    async fn an_answer_is_withheld_where_the_keystore_cannot_be_asked() {
        let backplane = Backplane::embedded();
        let (gate, caller) = believed(&backplane).await;
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let release = Release::new(gate.clone(), caller, id);
        let mut body = Sending::new(Bytes::from(vec![7; 3]), None, Some(release));
        gate.keyring.doubt(&identity().account);
        let piece = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await;
        assert!(piece.unwrap().is_err());
    }
}
