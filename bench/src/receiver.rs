//! A receiver of webhooks: a plain HTTP server on loopback that counts, and sees how long ago each event was recorded.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::http_message;
use crate::quantiles::Latencies;
use crate::request::find;

/// An event's body begins with its type and its time.
const TIMESTAMP: &[u8] = b"\"timestamp\":\"";
const SEARCHED_BYTES: usize = 200;

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    count: Arc<AtomicU64>,
    /// From when an event was recorded until it arrived; the clock is the same.
    lags: Arc<Mutex<Latencies>>,
}

impl Receiver {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let receiver = Self {
            address: listener.local_addr()?,
            count: Arc::default(),
            lags: Arc::new(Mutex::new(Latencies::new()?)),
        };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                // A sender that disconnects ends only its own connection.
                tokio::spawn(async move { serving.serve(stream).await });
            }
        });
        Ok(receiver)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The lags since the last call.
    pub(crate) fn take_lags(&self) -> anyhow::Result<Latencies> {
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::replace(&mut *lags, Latencies::new()?))
    }

    async fn serve(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            let message = http_message::read(&mut stream, &mut buffer).await?;
            let body = buffer.get(message.head.len()..message.length).unwrap_or_default();
            if let Some(lag) = recorded_at(body).map(|at| Timestamp::now().duration_since(at)) {
                let lag = Duration::try_from(lag).unwrap_or_default();
                self.lags.lock().unwrap_or_else(PoisonError::into_inner).record(lag)?;
            }
            buffer.drain(..message.length);
            self.count.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
        }
    }
}

/// None for a body that is no event's, such as those of the bare loop.
fn recorded_at(body: &[u8]) -> Option<Timestamp> {
    let start = body.get(..SEARCHED_BYTES.min(body.len()))?;
    let time = start.get(find(start, TIMESTAMP)? + TIMESTAMP.len()..)?;
    let time = time.split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(time).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_when_it_was_recorded_and_another_body_does_not() {
        let event = br#"{"type":"decision.recorded","timestamp":"2026-01-02T00:00:01.25Z","data":{}}"#;
        assert_eq!(recorded_at(event), Some("2026-01-02T00:00:01.25Z".parse().unwrap()));
        assert_eq!(recorded_at(&[b'x'; 1_900]), None);
        assert_eq!(recorded_at(br#"{"timestamp":"soon"}"#), None);
    }
}
