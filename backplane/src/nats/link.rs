//! One live connection: its client, who waits on it, and the two tasks that keep both in step.
//!
//! Owns the reply subscription (one for all answers) and the reaction to events. Events can be lost when many come at once, so
//! the watch also looks at the connection itself, twice a second.
//! INVARIANT: listeners hear of a gap only after a round trip on the new connection: until then the server may not know their
//! subscriptions, and a cache that was emptied earlier could fill with what a notice, missed since, made wrong.

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
use super::health::Health;
use super::jetstream::{MAX_READS, is_malformed, is_stored};
use super::requests::KeystoreKey;
use super::sealing::SealingKeys;
use super::stream_watch::StreamWatch;
use super::streams::StreamSpec;
use super::sync::SyncWatch;
use super::waiters::{Check, Door, Token, Waiters};
use super::{MessageAuth, NatsConfig};
use crate::metrics::{self, Kept};
use crate::{AskError, ServeError, StoreClock};

/// How often the connection is looked at when no event says anything.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often one who waits for an answer looks whether there can be none.
const LOOK_FOR_VIOLATION_EVERY: Duration = Duration::from_millis(50);

/// How long the last round trip of a closing connection, and each step of closing, may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// What the event callback shares with the rest.
#[derive(Clone, Default)]
pub(super) struct Events {
    health: Arc<Health>,
    waiters: Arc<Waiters>,
    gaps: watch::Sender<u64>,
    changed: Arc<Notify>,
}

/// One live connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) prefix: String,
    pub(super) jetstream_api: String,
    pub(super) health: Arc<Health>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) sync: Arc<SyncWatch>,
    pub(super) auth: Option<Arc<MessageAuth>>,
    pub(super) store_clock: Arc<StoreClock>,
    /// Whether the streams are ours.
    pub(super) streams: StreamWatch,
    /// The highest place in the log that the server acknowledged on this connection; 0: none yet.
    pub(super) last_place: AtomicU64,
    /// Turns of those who read many messages.
    pub(super) reads: Semaphore,
    /// Of this connection alone.
    pub(super) sealing: Arc<SealingKeys>,
    /// The keystore's, once it was asked for.
    pub(super) keystore: KeystoreKey,
    /// What this login may hear.
    inboxes: String,
    gaps: watch::Sender<u64>,
    oneself: Oneself,
    ready_within: Duration,
    closing: AtomicBool,
    _counted: Kept,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Where this connection's answers arrive; also the way to send a message to oneself.
#[derive(Clone)]
struct Oneself {
    client: Client,
    waiters: Arc<Waiters>,
    /// Begins every reply subject: the login's own, then this connection's public key.
    replies: Arc<str>,
}

/// Where one answer is heard.
pub(super) struct ReplyInbox {
    pub(super) subject: String,
    pub(super) token: Token,
}

impl Events {
    pub(super) fn callback(&self) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
        let events = self.clone();
        move |event| {
            events.react(&event);
            ready(())
        }
    }

    fn react(&self, event: &Event) {
        self.health.record(event);
        match event {
            Event::Connected => self.waiters.open(),
            Event::Disconnected => self.waiters.lose_all(),
            Event::Closed => self.waiters.lock(),
            Event::SlowConsumer(_) => announce_gap(&self.gaps),
            Event::LameDuckMode | Event::Draining | Event::ServerError(_) | Event::ClientError(_) => {}
        }
        self.changed.notify_one();
    }
}

impl Link {
    /// Subscribes for answers and sends one message to itself; the reason when it does not come back.
    pub(super) async fn start(client: Client, config: &NatsConfig, events: Events) -> Result<Self, String> {
        let Events { health, waiters, gaps, changed } = events;
        let sync = Arc::new(SyncWatch::new(config.sync.clone())?);
        let sealing = Arc::new(SealingKeys::generate()?);
        let inboxes = format!("{INBOXES}{}", config.inbox_name());
        let replies: Arc<str> = format!("{inboxes}.{}", sealing.public().text()).into();
        let answers = client.subscribe(format!("{replies}.*")).await.map_err(|error| error.to_string())?;
        let oneself = Oneself { client: client.clone(), waiters: waiters.clone(), replies };
        // The event may come later than the connection.
        waiters.open();
        let connects = connects(&client);
        let router = tokio::spawn(route(answers, waiters.clone()));
        let watch = tokio::spawn(keep_watch(oneself.clone(), gaps.clone(), changed, connects, config.ready_within));
        let link = Self {
            client,
            prefix: config.prefix.clone(),
            jetstream_api: config.jetstream_api.clone(),
            health,
            waiters,
            sync,
            auth: config.auth.clone(),
            store_clock: Arc::clone(&config.store_clock),
            streams: StreamWatch::default(),
            last_place: AtomicU64::new(0),
            reads: Semaphore::new(MAX_READS),
            sealing,
            keystore: KeystoreKey::default(),
            inboxes,
            gaps,
            oneself,
            ready_within: config.ready_within,
            closing: AtomicBool::new(false),
            _counted: metrics::kept(),
            _tasks: [AbortOnDropHandle::new(router), AbortOnDropHandle::new(watch)],
        };
        if let Some(role) = config.role {
            let used = StreamSpec::of_role(&config.prefix, role);
            link.streams.use_these(used.into_iter().map(|spec| spec.name).collect());
        }
        match link.round_trip().await {
            Ok(()) => Ok(link),
            Err(error) => Err(link.health.violation().unwrap_or_else(|| error.to_string())),
        }
    }

    /// How often the connection was made so far.
    pub(super) fn connects(&self) -> u64 {
        connects(&self.client)
    }

    pub(super) fn is_up(&self) -> bool {
        !self.closing.load(Ordering::Relaxed) && self.client.connection_state() == State::Connected
    }

    /// One question and its answer; the caller has checked that it is worth asking.
    pub(super) async fn exchange<F>(
        &self,
        deadline: Instant,
        send: impl FnOnce(String) -> F + Send,
    ) -> Result<Bytes, AskError>
    where
        F: Future<Output = Result<(), async_nats::PublishError>> + Send,
    {
        let inbox = self.reply_inbox().ok_or(AskError::Lost)?;
        self.oneself.exchange(inbox, None, deadline, send).await
    }

    /// Where the answer to a new question arrives. None: there is no randomness.
    pub(super) fn reply_inbox(&self) -> Option<ReplyInbox> {
        self.oneself.inbox()
    }

    /// For many answers to one question; nobody guesses it.
    pub(super) fn inbox_of_many(&self) -> Option<String> {
        Some(format!("{}.{}", self.inboxes, Token::random()?.text()))
    }

    /// As [`Self::exchange`] in that place, for an answer that passes the check.
    pub(super) async fn exchange_for<F>(
        &self,
        inbox: ReplyInbox,
        check: Option<Check>,
        deadline: Instant,
        send: impl FnOnce(String) -> F + Send,
    ) -> Result<Bytes, AskError>
    where
        F: Future<Output = Result<(), async_nats::PublishError>> + Send,
    {
        self.oneself.exchange(inbox, check, deadline, send).await
    }

    /// Proves that what was sent before has reached the server, and that messages come back.
    pub(super) async fn round_trip(&self) -> Result<(), AskError> {
        self.oneself.round_trip(self.ready_within).await
    }

    /// Proves that a subscription, just made, is registered and allowed.
    pub(super) async fn confirm(&self, subject: &str) -> Result<(), ServeError> {
        let refuse = |reason| ServeError { subject: subject.to_owned(), reason };
        self.round_trip().await.map_err(|error| refuse(error.to_string()))?;
        // The event has its own task and may come a moment later; `ready` reports it then.
        match self.health.violation() {
            Some(violation) if violation.contains(&format!("\"{subject}\"")) => Err(refuse(violation)),
            _ => Ok(()),
        }
    }

    /// Waits until the server forbids this subject, if it does: it says so beside the messages, and never answers.
    pub(super) async fn forbidden(&self, subject: &str) -> String {
        let before = self.health.violations();
        loop {
            sleep(LOOK_FOR_VIOLATION_EVERY).await;
            if let Some(violation) = self.health.violation_of(subject, before) {
                return violation;
            }
        }
    }

    pub(super) fn gaps(&self) -> watch::Receiver<u64> {
        self.gaps.subscribe()
    }

    /// Refuses new questions, sends what is queued, ends. Everything here is bounded in time.
    pub(super) async fn close(&self) {
        if self.closing.swap(true, Ordering::Relaxed) {
            return;
        }
        // A flush would only prove that the kernel has the bytes; closing then may throw them away.
        if let Err(error) = self.oneself.round_trip(CLOSE_WITHIN).await {
            tracing::warn!(%error, "backplane closed without knowing that all was sent");
        }
        self.waiters.lock();
        match timeout(CLOSE_WITHIN, self.client.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "backplane was closed already"),
            Err(_) => tracing::warn!("backplane does not close in time"),
        }
    }
}

impl Oneself {
    fn inbox(&self) -> Option<ReplyInbox> {
        let token = Token::random()?;
        Some(ReplyInbox { subject: format!("{}.{}", self.replies, token.text()), token })
    }

    async fn exchange<F>(
        &self,
        inbox: ReplyInbox,
        check: Option<Check>,
        deadline: Instant,
        send: impl FnOnce(String) -> F,
    ) -> Result<Bytes, AskError>
    where
        F: Future<Output = Result<(), async_nats::PublishError>>,
    {
        let mut waiter = self.waiters.enter_for(inbox.token, check)?;
        let sent = send(inbox.subject);
        // Sending may block too: the client's queue is full while the server does not read.
        let outcome = timeout_at(deadline, async {
            sent.await.map_err(|error| match error.kind() {
                async_nats::PublishErrorKind::MaxPayloadExceeded => AskError::TooLarge,
                _ => AskError::Lost,
            })?;
            waiter.answer().await
        });
        outcome.await.unwrap_or(Err(AskError::Late))
    }

    async fn round_trip(&self, within: Duration) -> Result<(), AskError> {
        let echo = |to| self.client.publish(to, Bytes::new());
        let inbox = self.inbox().ok_or(AskError::Lost)?;
        self.exchange(inbox, None, Instant::now() + within, echo).await.map(drop)
    }
}

/// Hands each answer to the one who waits for it.
async fn route(mut answers: Subscriber, waiters: Arc<Waiters>) {
    while let Some(message) = answers.next().await {
        let Some(token) = message.subject.rsplit('.').next().and_then(Token::parse) else { continue };
        let malformed = is_malformed(message.headers.as_ref());
        // What is stored may have any status that its publisher liked.
        if message.status == Some(StatusCode::NO_RESPONDERS) && !is_stored(&message) && !malformed {
            waiters.absent(token);
        } else if waiters.check(token).map_or(!malformed, |check| check(&message)) {
            waiters.resolve(token, Ok(message.payload));
        }
    }
    // The client is closed.
    waiters.lock();
}

/// Tells listeners of a gap after each reconnect, and notices what events failed to say.
async fn keep_watch(
    oneself: Oneself,
    gaps: watch::Sender<u64>,
    changed: Arc<Notify>,
    mut confirmed: u64,
    within: Duration,
) {
    loop {
        // Either way it is time to look.
        drop(timeout(LOOK_EVERY, changed.notified()).await);
        let connects = connects(&oneself.client);
        let up = oneself.client.connection_state() == State::Connected;
        match (oneself.waiters.door(), up) {
            (Door::Locked, _) => return,
            (Door::Open, false) => oneself.waiters.lose_all(),
            (Door::Shut, true) => oneself.waiters.open(),
            (Door::Open, true) | (Door::Shut, false) => {}
        }
        if up && connects != confirmed && oneself.round_trip(within).await.is_ok() {
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
