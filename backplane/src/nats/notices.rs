//! Notices over NATS: plain subjects, no queue group, at most once.
//!
//! Whatever may have lost one is a gap for every listener of the connection: a reconnect, and a full queue, because the client does
//! not say whose.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Connection;
use super::auth::{HeardBefore, NoticeStanding};
use super::link::Link;
use crate::{AskError, BoxFuture, Event, Hearing, MAX_MESSAGE_BYTES, Notices, ServeError, TellError};

/// A gap for notices whose time cannot be right comes no more often than this.
const STALE_GAP_INTERVAL: Duration = Duration::from_secs(5);

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

    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
        Box::pin(async move {
            let named = subject;
            let subject = notice_subject(&self.link, subject);
            let refuse = |reason| ServeError { subject: subject.clone(), reason };
            if !self.link.is_up() {
                return Err(refuse(AskError::Lost.to_string()));
            }
            // Before the subscription: a reconnect in between is a gap.
            let gaps = self.link.gaps();
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
                let standing =
                    self.link.auth.as_ref().map(|auth| auth.judge_notice(&notice, self.subject, &mut self.before));
                match standing {
                    None | Some(NoticeStanding::Good) => return Some(Event::Heard(notice.payload)),
                    Some(NoticeStanding::Stale) => self.owes_gap = true,
                    Some(NoticeStanding::Rejected) => {}
                }
            }
        })
    }
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
