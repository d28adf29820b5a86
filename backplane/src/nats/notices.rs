//! Notices over NATS: plain subjects, no queue group, at most once.
//!
//! Anything that may have lost a notice is a gap for every subscriber of the connection: a reconnect, and a full queue,
//! since the client does not say whose queue. Echoes that prove liveness go to the subscription's own subject; other
//! subscribers skip them. An echo needs no authentication: only its sender knows the token before it comes back.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Subscriber};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Connection;
use super::auth::{NoticeCheck, SeenNotices};
use super::jetstream::is_malformed;
use super::link::Link;
use crate::liveness::{Echoes, Token};
use crate::{
    BoxFuture, Event, Liveness, MAX_MESSAGE_BYTES, Notices, PublishError, RawSubscription, RequestError, ServeError,
};

/// Shortest interval between gaps for notices whose time cannot be right.
const STALE_GAP_INTERVAL: Duration = Duration::from_secs(5);

/// The header with the token of an echo; its message has no body.
const ECHO: HeaderName = HeaderName::from_static("Stage0-Echo");

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

impl Notices for Connection {
    fn publish_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            if notice.len() > MAX_MESSAGE_BYTES || !self.link.is_up() {
                return Err(PublishError);
            }
            let publish = async {
                let (client, to) = (&self.link.client, notice_subject(&self.link, subject));
                match &self.link.auth {
                    None => client.publish(to, notice).await.map_err(|_| PublishError)?,
                    Some(auth) => {
                        let mut headers = HeaderMap::new();
                        auth.notice(subject, &to, &notice, &mut headers).ok_or(PublishError)?;
                        client.publish_with_headers(to, headers, notice).await.map_err(|_| PublishError)?;
                    }
                }
                client.flush().await.map_err(|_| PublishError)
            };
            timeout(PUBLISH_TIMEOUT, publish).await.unwrap_or(Err(PublishError))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move { self.link.round_trip().await.map_err(|_| PublishError) })
    }

    fn subscribe_bytes<'a>(
        &'a self,
        subject: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn RawSubscription>, ServeError>> {
        Box::pin(async move {
            let short_subject = subject;
            let subject = notice_subject(&self.link, subject);
            let refuse = |reason| ServeError { subject: subject.clone(), reason };
            if !self.link.is_up() {
                return Err(refuse(RequestError::Disconnected.to_string()));
            }
            // Taken before the subscription, so that a reconnect in between is a gap.
            let (gaps, connection) = (self.link.gaps(), self.link.connects());
            let notices = self.link.client.subscribe(subject.clone()).await;
            let notices = notices.map_err(|error| refuse(error.to_string()))?;
            self.link.confirm_subscription(&subject).await?;
            let subscription = NatsSubscription {
                subject: short_subject,
                notices,
                gaps,
                seen: SeenNotices::default(),
                last_stale: None,
                gap_due: false,
                echoes: None,
                connection,
                link: self.link.clone(),
            };
            Ok(Box::new(subscription) as Box<dyn RawSubscription>)
        })
    }
}

fn notice_subject(link: &Link, subject: &str) -> String {
    format!("{}.{subject}", link.prefix)
}

struct NatsSubscription {
    /// Without the deployment's prefix.
    subject: &'static str,
    notices: Subscriber,
    gaps: watch::Receiver<u64>,
    seen: SeenNotices,
    /// When the last gap for a stale notice was reported.
    last_stale: Option<Instant>,
    gap_due: bool,
    echoes: Option<Echoes>,
    /// The last connection of the link up to which nothing was missed, or a gap was reported.
    connection: u64,
    /// Keeps the connection open for as long as there is a subscriber.
    link: Arc<Link>,
}

impl RawSubscription for NatsSubscription {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            loop {
                let notice = tokio::select! {
                    biased;
                    Ok(()) = self.gaps.changed() => return Some(Event::Gap),
                    () = stale_gap(self.gap_due, self.last_stale) => {
                        self.gap_due = false;
                        self.last_stale = Some(Instant::now());
                        return Some(Event::Gap);
                    }
                    notice = self.notices.next() => notice?,
                };
                if let Some(token) = echo_token(&notice) {
                    if self.reconnected_before(&token) {
                        return Some(Event::Gap);
                    }
                    continue;
                }
                let checked = match &self.link.auth {
                    Some(auth) => auth.check_notice(&notice, self.subject, &mut self.seen),
                    None if is_malformed(notice.headers.as_ref()) => NoticeCheck::Rejected,
                    None => NoticeCheck::Valid,
                };
                match checked {
                    NoticeCheck::Valid => return Some(Event::Message(notice.payload)),
                    NoticeCheck::Stale => self.gap_due = true,
                    NoticeCheck::Rejected => {}
                }
            }
        })
    }

    fn prove(&mut self, liveness: Arc<Liveness>) {
        let (link, subject) = (Arc::clone(&self.link), notice_subject(&self.link, self.subject));
        let current = Arc::clone(&self.link);
        let connection = move || current.is_up().then(|| current.connects());
        let send = move |token: Token| {
            let (client, subject) = (link.client.clone(), subject.clone());
            async move {
                let mut headers = HeaderMap::new();
                headers.insert(ECHO, HeaderValue::from(BASE64URL_NOPAD.encode(&token)));
                if let Err(error) = client.publish_with_headers(subject, headers, Bytes::new()).await {
                    tracing::debug!(%error, "an echo could not be sent");
                }
            }
        };
        self.echoes = Some(Echoes::start(liveness, connection, send));
    }
}

impl NatsSubscription {
    /// Takes an echo as a proof of liveness. True if the connection was made again since the last notice: what was
    /// published in between was missed.
    fn reconnected_before(&mut self, token: &[u8]) -> bool {
        let Some(echoes) = &self.echoes else { return false };
        let Some(sent) = echoes.returned(token) else { return false };
        // Sent on one connection and received on another, it proves nothing about either.
        if sent.connection != self.link.connects() {
            return false;
        }
        if sent.connection != self.connection {
            self.connection = sent.connection;
            return true;
        }
        echoes.prove(sent);
        false
    }
}

/// None: it is a notice. A malformed token is an echo all the same, which proves nothing.
fn echo_token(message: &Message) -> Option<Vec<u8>> {
    let token = message.headers.as_ref().filter(|headers| !is_malformed(Some(headers)))?.get(ECHO)?;
    Some(BASE64URL_NOPAD.decode(token.as_str().as_bytes()).unwrap_or_default())
}

/// Rate limited, as an attacker may replay old notices again and again.
async fn stale_gap(due: bool, last: Option<Instant>) {
    if !due {
        return std::future::pending().await;
    }
    if let Some(last) = last {
        sleep((last + STALE_GAP_INTERVAL).saturating_duration_since(Instant::now())).await;
    }
}
