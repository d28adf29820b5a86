//! Notices over NATS: plain subjects, no queue group, at most once.
//!
//! Whatever may have lost one is a gap for every listener of the connection: a reconnect, and a full queue, because the client does
//! not say whose.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Connection;
use super::link::Link;
use crate::{AskError, BoxFuture, Event, Hearing, MAX_MESSAGE_BYTES, Notices, ServeError, TellError};

/// How long handing over may take.
const TELL_WITHIN: Duration = Duration::from_secs(2);

impl Notices for Connection {
    fn tell_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), TellError>> {
        Box::pin(async move {
            if notice.len() > MAX_MESSAGE_BYTES || !self.link.is_up() {
                return Err(TellError);
            }
            let handed_over = async {
                self.link.client.publish(notice_subject(&self.link, subject), notice).await.map_err(|_| TellError)?;
                self.link.client.flush().await.map_err(|_| TellError)
            };
            timeout(TELL_WITHIN, handed_over).await.unwrap_or(Err(TellError))
        })
    }

    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
        Box::pin(async move {
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
            Ok(Box::new(Heard { notices, gaps, _link: self.link.clone() }) as Box<dyn Hearing>)
        })
    }
}

fn notice_subject(link: &Link, subject: &str) -> String {
    format!("{}.{subject}", link.prefix)
}

/// One listener's subscription.
struct Heard {
    notices: Subscriber,
    gaps: watch::Receiver<u64>,
    /// The connection lives as long as somebody listens.
    _link: Arc<Link>,
}

impl Hearing for Heard {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                Ok(()) = self.gaps.changed() => Some(Event::Gap),
                notice = self.notices.next() => notice.map(|message| Event::Heard(message.payload)),
            }
        })
    }
}
