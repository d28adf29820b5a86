//! Notices over NATS: plain subjects, no queue group, at most once.
//!
//! Whatever may have lost one is a gap for every listener of the connection: a reconnect, and a full queue, because the client does
//! not say whose. A listener that proves itself sends echoes to its own subject, on its own connection; those of others
//! are passed over. An echo says nothing and is believed by nobody else, so it needs no authentication: what counts is
//! that the token comes back, and only whoever sent it can know it before.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Subscriber};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Connection;
use super::auth::{HeardBefore, NoticeStanding};
use super::jetstream::is_malformed;
use super::link::Link;
use crate::liveness::{Echoes, Token};
use crate::{AskError, BoxFuture, Event, Hearing, Liveness, MAX_MESSAGE_BYTES, Notices, ServeError, TellError};

/// A gap for notices whose time cannot be right comes no more often than this.
const STALE_GAP_INTERVAL: Duration = Duration::from_secs(5);

/// The token of an echo; its message has no body.
const ECHO: HeaderName = HeaderName::from_static("Stage0-Echo");

/// How long handing over may take.
const TELL_WITHIN: Duration = Duration::from_secs(2);

impl Notices for Connection {
    fn tell_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), TellError>> {
        Box::pin(async move {
            if notice.len() > MAX_MESSAGE_BYTES || !self.link.is_up() {
                return Err(TellError);
            }
            let handed_over = async {
                let (client, to) = (&self.link.client, notice_subject(&self.link, subject));
                match &self.link.auth {
                    None => client.publish(to, notice).await.map_err(|_| TellError)?,
                    Some(auth) => {
                        let mut headers = HeaderMap::new();
                        auth.notice(subject, &to, &notice, &mut headers).ok_or(TellError)?;
                        client.publish_with_headers(to, headers, notice).await.map_err(|_| TellError)?;
                    }
                }
                client.flush().await.map_err(|_| TellError)
            };
            timeout(TELL_WITHIN, handed_over).await.unwrap_or(Err(TellError))
        })
    }

    fn settle(&self) -> BoxFuture<'_, Result<(), TellError>> {
        Box::pin(async move { self.link.round_trip().await.map_err(|_| TellError) })
    }

    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
        Box::pin(async move {
            let named = subject;
            let subject = notice_subject(&self.link, subject);
            let refuse = |reason| ServeError { subject: subject.clone(), reason };
            if !self.link.is_up() {
                return Err(refuse(AskError::Lost.to_string()));
            }
            // Before the subscription: a reconnect in between is a gap.
            let (gaps, connection) = (self.link.gaps(), self.link.connects());
            let notices =
                self.link.client.subscribe(subject.clone()).await.map_err(|error| refuse(error.to_string()))?;
            self.link.confirm(&subject).await?;
            let link = self.link.clone();
            let heard = Heard {
                subject: named,
                notices,
                gaps,
                before: HeardBefore::default(),
                last_stale: None,
                owes_gap: false,
                echoes: None,
                connection,
                link,
            };
            Ok(Box::new(heard) as Box<dyn Hearing>)
        })
    }
}

fn notice_subject(link: &Link, subject: &str) -> String {
    format!("{}.{subject}", link.prefix)
}

/// One listener's subscription.
struct Heard {
    /// Without the deployment's prefix.
    subject: &'static str,
    notices: Subscriber,
    gaps: watch::Receiver<u64>,
    before: HeardBefore,
    /// When one was heard whose time cannot be right.
    last_stale: Option<Instant>,
    owes_gap: bool,
    /// While it proves itself.
    echoes: Option<Echoes>,
    /// The last of the link's connections before which nothing was missed, or a gap was told.
    connection: u64,
    /// The connection lives as long as somebody listens.
    link: Arc<Link>,
}

impl Hearing for Heard {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            loop {
                let notice = tokio::select! {
                    biased;
                    Ok(()) = self.gaps.changed() => return Some(Event::Gap),
                    () = stale_gap(self.owes_gap, self.last_stale) => {
                        self.owes_gap = false;
                        self.last_stale = Some(Instant::now());
                        return Some(Event::Gap);
                    }
                    notice = self.notices.next() => notice?,
                };
                if let Some(token) = token_of(&notice) {
                    if self.is_gap_before(&token) {
                        return Some(Event::Gap);
                    }
                    continue;
                }
                let standing = match &self.link.auth {
                    Some(auth) => auth.judge_notice(&notice, self.subject, &mut self.before),
                    None if is_malformed(notice.headers.as_ref()) => NoticeStanding::Rejected,
                    None => NoticeStanding::Good,
                };
                match standing {
                    NoticeStanding::Good => return Some(Event::Heard(notice.payload)),
                    NoticeStanding::Stale => self.owes_gap = true,
                    NoticeStanding::Rejected => {}
                }
            }
        })
    }

    fn prove(&mut self, liveness: Arc<Liveness>) {
        let (link, subject) = (Arc::clone(&self.link), notice_subject(&self.link, self.subject));
        let of = Arc::clone(&self.link);
        let connection = move || of.is_up().then(|| of.connects());
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

impl Heard {
    /// Takes an echo as the proof that it is. True when the connection was made again since something was last heard:
    /// what was told in between was missed. The server knows the subscription by then, as the echo came through it.
    fn is_gap_before(&mut self, token: &[u8]) -> bool {
        let Some((echoes, sent)) = self.echoes.as_ref().and_then(|echoes| Some((echoes, echoes.returned(token)?)))
        else {
            return false;
        };
        // Sent on one connection and heard on another, it proves neither.
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

/// None: it is a notice. What is no token of ours is an echo all the same, and says nothing.
fn token_of(message: &Message) -> Option<Vec<u8>> {
    let token = message.headers.as_ref().filter(|headers| !is_malformed(Some(headers)))?.get(ECHO)?;
    Some(BASE64URL_NOPAD.decode(token.as_str().as_bytes()).unwrap_or_default())
}

/// Resolves when a gap is owed for notices whose time cannot be right, and the last such gap was a while ago: somebody
/// may have kept old ones to send them again and again.
async fn stale_gap(owed: bool, last: Option<Instant>) {
    if !owed {
        return std::future::pending().await;
    }
    if let Some(last) = last {
        sleep((last + STALE_GAP_INTERVAL).saturating_duration_since(Instant::now())).await;
    }
}
