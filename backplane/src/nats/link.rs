//! One live connection: its client, the requests that wait on it, and the two tasks that keep both in step.
//!
//! Events can be lost when many come at once, so the watch also polls the connection state.
//! INVARIANT: subscribers get a gap only after a round trip on the new connection. Before it the server may not know
//! their subscriptions, and a cache that was emptied too early could be filled with data that a missed notice made
//! stale.

use std::future::{Future, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::config::INBOXES;
use super::fsync_check::FsyncCheck;
use super::health::Health;
use super::jetstream::{MAX_READS, is_malformed, is_stored};
use super::requests::KeystoreKey;
use super::sealing::SealingKeys;
use super::stream_watch::StreamWatch;
use super::streams::StreamSpec;
use super::waiters::{Check, ConnState, Token, Waiters};
use super::{MessageAuth, NatsConfig};
use crate::metrics::{self, Counted};
use crate::{RequestError, ServeError, StoreClock};

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How often a waiting request checks whether the server has forbidden its subject.
const VIOLATION_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the last round trip of a closing connection, and each step of closing, may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
pub(super) struct Events {
    health: Arc<Health>,
    waiters: Arc<Waiters>,
    gaps: watch::Sender<u64>,
    changed: Arc<Notify>,
}

pub(super) struct Link {
    pub(super) client: Client,
    pub(super) prefix: String,
    pub(super) jetstream_api: String,
    pub(super) health: Arc<Health>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) fsync_check: Arc<FsyncCheck>,
    pub(super) auth: Option<Arc<MessageAuth>>,
    pub(super) store_clock: Arc<StoreClock>,
    pub(super) streams: StreamWatch,
    /// The highest sequence in the log that the server acknowledged on this connection; 0: none yet.
    pub(super) last_log_sequence: AtomicU64,
    pub(super) reads: Semaphore,
    pub(super) sealing: Arc<SealingKeys>,
    pub(super) keystore: KeystoreKey,
    /// The prefix of the inboxes that this login may receive on.
    inboxes: String,
    gaps: watch::Sender<u64>,
    pub(super) reply_inbox: ReplyInbox,
    ready_timeout: Duration,
    closing: AtomicBool,
    _open: Counted,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// This connection's reply inbox; also used for self-pings.
#[derive(Clone)]
pub(super) struct ReplyInbox {
    client: Client,
    waiters: Arc<Waiters>,
    /// What every reply subject starts with: the login's prefix, then this connection's public key.
    replies: Arc<str>,
}

pub(super) struct ReplyAddress {
    pub(super) subject: String,
    pub(super) token: Token,
}

impl Events {
    pub(super) fn callback(&self) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
        let events = self.clone();
        move |event| {
            events.handle(&event);
            ready(())
        }
    }

    fn handle(&self, event: &Event) {
        self.health.record(event);
        match event {
            Event::Connected => self.waiters.connected(),
            Event::Disconnected => self.waiters.disconnected(),
            Event::Closed => self.waiters.close(),
            Event::SlowConsumer(_) => announce_gap(&self.gaps),
            Event::LameDuckMode | Event::Draining | Event::ServerError(_) | Event::ClientError(_) => {}
        }
        self.changed.notify_one();
    }
}

impl Link {
    /// Subscribes to the reply inbox and sends a self-ping; the error is the reason why it did not come back.
    pub(super) async fn start(client: Client, config: &NatsConfig, events: Events) -> Result<Self, String> {
        let Events { health, waiters, gaps, changed } = events;
        let fsync_check = Arc::new(FsyncCheck::new(config.sync.clone())?);
        let sealing = Arc::new(SealingKeys::generate()?);
        let inboxes = format!("{INBOXES}{}", config.inbox_name());
        let replies: Arc<str> = format!("{inboxes}.{}", sealing.public().text()).into();
        let answers = client.subscribe(format!("{replies}.*")).await.map_err(|error| error.to_string())?;
        let reply_inbox = ReplyInbox { client: client.clone(), waiters: waiters.clone(), replies };
        // The event may come later than the connection.
        waiters.connected();
        let connects = connects(&client);
        let router = tokio::spawn(route_replies(answers, waiters.clone()));
        let watch =
            tokio::spawn(watch_connection(reply_inbox.clone(), gaps.clone(), changed, connects, config.ready_timeout));
        let link = Self {
            client,
            prefix: config.prefix.clone(),
            jetstream_api: config.jetstream_api.clone(),
            health,
            waiters,
            fsync_check,
            auth: config.auth.clone(),
            store_clock: Arc::clone(&config.store_clock),
            streams: StreamWatch::default(),
            last_log_sequence: AtomicU64::new(0),
            reads: Semaphore::new(MAX_READS),
            sealing,
            keystore: KeystoreKey::default(),
            inboxes,
            gaps,
            reply_inbox,
            ready_timeout: config.ready_timeout,
            closing: AtomicBool::new(false),
            _open: metrics::connection_opened(),
            _tasks: [AbortOnDropHandle::new(router), AbortOnDropHandle::new(watch)],
        };
        if let Some(role) = config.role {
            let used = StreamSpec::of_role(&config.prefix, role);
            link.streams.set_used(used.into_iter().map(|spec| spec.name).collect());
        }
        match link.round_trip().await {
            Ok(()) => Ok(link),
            Err(error) => Err(link.health.violation().unwrap_or_else(|| error.to_string())),
        }
    }

    pub(super) fn connects(&self) -> u64 {
        connects(&self.client)
    }

    pub(super) fn is_up(&self) -> bool {
        !self.closing.load(Ordering::Relaxed) && self.client.connection_state() == State::Connected
    }

    /// An inbox for many answers to one request; its name cannot be guessed.
    pub(super) fn new_stream_inbox(&self) -> Option<String> {
        Some(format!("{}.{}", self.inboxes, Token::random()?.text()))
    }

    pub(super) async fn round_trip(&self) -> Result<(), RequestError> {
        self.reply_inbox.round_trip(self.ready_timeout).await
    }

    /// Proves that a new subscription is registered and allowed.
    pub(super) async fn confirm_subscription(&self, subject: &str) -> Result<(), ServeError> {
        let refuse = |reason| ServeError { subject: subject.to_owned(), reason };
        self.round_trip().await.map_err(|error| refuse(error.to_string()))?;
        // The event is handled by another task and may come a moment later; then `ready` reports it.
        match self.health.violation() {
            Some(violation) if violation.contains(&format!("\"{subject}\"")) => Err(refuse(violation)),
            _ => Ok(()),
        }
    }

    /// Resolves once the server forbids this subject: it reports that in an event and never answers the request.
    pub(super) async fn wait_for_violation(&self, subject: &str) -> String {
        let before = self.health.violations();
        loop {
            sleep(VIOLATION_POLL_INTERVAL).await;
            if let Some(violation) = self.health.violation_of(subject, before) {
                return violation;
            }
        }
    }

    pub(super) fn gaps(&self) -> watch::Receiver<u64> {
        self.gaps.subscribe()
    }

    /// Refuses new requests, sends what is queued, closes. Every step has a timeout.
    pub(super) async fn close(&self) {
        if self.closing.swap(true, Ordering::Relaxed) {
            return;
        }
        // A flush only proves that the kernel has the bytes, and closing may discard them.
        if let Err(error) = self.reply_inbox.round_trip(CLOSE_TIMEOUT).await {
            tracing::warn!(%error, "backplane closed without knowing that all was sent");
        }
        self.waiters.close();
        match timeout(CLOSE_TIMEOUT, self.client.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "backplane was closed already"),
            Err(_) => tracing::warn!("backplane does not close in time"),
        }
    }
}

impl ReplyInbox {
    /// A reply address for a new request. None: there is no randomness.
    pub(super) fn new_address(&self) -> Option<ReplyAddress> {
        let token = Token::random()?;
        Some(ReplyAddress { subject: format!("{}.{}", self.replies, token.text()), token })
    }

    /// The caller has checked that the connection is up.
    pub(super) async fn request<F>(
        &self,
        address: ReplyAddress,
        check: Option<Check>,
        deadline: Instant,
        send: impl FnOnce(String) -> F,
    ) -> Result<Bytes, RequestError>
    where
        F: Future<Output = Result<(), async_nats::PublishError>>,
    {
        let mut waiter = self.waiters.register_as(address.token, check)?;
        let sent = send(address.subject);
        // Sending may block too: the client's queue is full while the server does not read.
        let outcome = timeout_at(deadline, async {
            sent.await.map_err(|error| match error.kind() {
                async_nats::PublishErrorKind::MaxPayloadExceeded => RequestError::TooLarge,
                _ => RequestError::Disconnected,
            })?;
            waiter.answer().await
        });
        outcome.await.unwrap_or(Err(RequestError::Timeout))
    }

    async fn round_trip(&self, within: Duration) -> Result<(), RequestError> {
        let echo = |to| self.client.publish(to, Bytes::new());
        let address = self.new_address().ok_or(RequestError::Disconnected)?;
        self.request(address, None, Instant::now() + within, echo).await.map(drop)
    }
}

async fn route_replies(mut answers: Subscriber, waiters: Arc<Waiters>) {
    while let Some(message) = answers.next().await {
        let Some(token) = message.subject.rsplit('.').next().and_then(Token::parse) else { continue };
        let malformed = is_malformed(message.headers.as_ref());
        // A publisher can give a stored message any status.
        if message.status == Some(StatusCode::NO_RESPONDERS) && !is_stored(&message) && !malformed {
            waiters.no_responders(token);
        } else if waiters.check(token).map_or(!malformed, |check| check(&message)) {
            waiters.resolve(token, Ok(message.payload));
        }
    }
    // The client is closed.
    waiters.close();
}

/// Announces a gap after each reconnect, and corrects the state where an event was lost.
async fn watch_connection(
    reply_inbox: ReplyInbox,
    gaps: watch::Sender<u64>,
    changed: Arc<Notify>,
    mut confirmed: u64,
    within: Duration,
) {
    loop {
        // The state is checked in either case.
        drop(timeout(POLL_INTERVAL, changed.notified()).await);
        let connects = connects(&reply_inbox.client);
        let up = reply_inbox.client.connection_state() == State::Connected;
        match (reply_inbox.waiters.state(), up) {
            (ConnState::Closed, _) => return,
            (ConnState::Up, false) => reply_inbox.waiters.disconnected(),
            (ConnState::Down, true) => reply_inbox.waiters.connected(),
            (ConnState::Up, true) | (ConnState::Down, false) => {}
        }
        if up && connects != confirmed && reply_inbox.round_trip(within).await.is_ok() {
            confirmed = connects;
            announce_gap(&gaps);
        }
    }
}

fn announce_gap(gaps: &watch::Sender<u64>) {
    gaps.send_modify(|count| *count += 1);
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}
