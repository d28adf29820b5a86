//! Who is at the other end of a connection that a layer-4 balancer passes on: what its PROXY header says.
//!
//! Owns whose headers are believed and how they are read: from a configured balancer every connection begins with one, from anybody
//! else none is looked for, so that what stands there fails as TLS. INVARIANT: nobody but a configured balancer names a client's
//! address, and not a byte behind the header is taken. A header that is absent, broken or late closes the connection; `header`
//! judges the bytes.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

mod header;

pub(crate) use header::Refused;

use crate::address::TrustedProxies;
use crate::metrics;
use header::{START, Start};

/// A balancer that sends no headers breaks with every connection: one warning says it all, the metric says how often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Whoever asks: what is limited.
    Client(SocketAddr),
    /// A balancer that speaks for itself, such as to see whether we live.
    Balancer(SocketAddr),
}

/// Those whose headers are believed.
pub(crate) struct Balancers {
    from: TrustedProxies,
    /// In which a header must be there.
    within: Duration,
    warned: Mutex<Option<Instant>>,
}

impl Peer {
    pub(crate) fn address(self) -> SocketAddr {
        match self {
            Self::Client(address) | Self::Balancer(address) => address,
        }
    }
}

impl Balancers {
    pub(crate) fn new(from: TrustedProxies, within: Duration) -> Self {
        Self { from, within, warned: Mutex::default() }
    }

    /// Reads the header if `peer` is a balancer. Where it names nobody, the balancer itself is who asks.
    pub(crate) async fn peer(&self, stream: &mut (impl AsyncRead + Unpin), peer: SocketAddr) -> Result<Peer, Refused> {
        if !self.from.trusts(peer.ip()) {
            return Ok(Peer::Client(peer));
        }
        let source = timeout(self.within, source(stream)).await.unwrap_or(Err(Refused::Late));
        match source {
            Ok(source) => Ok(source.map_or(Peer::Balancer(peer), Peer::Client)),
            Err(refused) => {
                metrics::proxy_header_refused(refused);
                if self.warns(Instant::now()) {
                    tracing::warn!(%peer, %refused, "connection of a balancer closed; others may follow without a warning");
                } else {
                    tracing::debug!(%peer, %refused, "connection of a balancer closed");
                }
                Err(refused)
            }
        }
    }

    fn warns(&self, now: Instant) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY);
        if due {
            *warned = Some(now);
        }
        due
    }
}

/// Takes the header off the stream. Nothing is read in advance: the next byte is the first of TLS.
async fn source(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Refused> {
    let mut start = [0; START];
    stream.read_exact(&mut start).await.map_err(|_| Refused::Truncated)?;
    let start = Start::parse(&start)?;
    let mut rest = vec![0; start.rest()];
    stream.read_exact(&mut rest).await.map_err(|_| Refused::Truncated)?;
    start.source(&rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncWriteExt, duplex};

    const WITHIN: Duration = Duration::from_secs(5);
    const FROM_TCP4: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x01\x12\x67\x01\xbb";
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

    fn balancers() -> Balancers {
        Balancers::new(TrustedProxies::parse(&["10.0.0.0/8".to_owned()]).unwrap(), WITHIN)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What becomes of `sent` from `peer`, and what is left to read then.
    async fn read(balancers: &Balancers, peer: &str, sent: &[u8]) -> (Result<Peer, Refused>, Vec<u8>) {
        let (mut client, mut server) = duplex(2_048);
        client.write_all(sent).await.unwrap();
        drop(client);
        let found = balancers.peer(&mut server, at(peer)).await;
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.unwrap();
        (found, left)
    }

    #[tokio::test]
    async fn a_balancer_names_its_client_and_the_first_byte_of_tls_is_left_alone() {
        let sent = [FROM_TCP4, b"\x16\x03\x01"].concat();
        let client = Peer::Client(at("198.51.100.7:4711"));
        assert_eq!(read(&balancers(), "10.1.2.3:9", &sent).await, (Ok(client), b"\x16\x03\x01".to_vec()));
        assert_eq!(read(&balancers(), "[::ffff:10.1.2.3]:9", &sent).await.0, Ok(client));
    }

    #[tokio::test]
    async fn a_balancer_that_names_nobody_asks_for_itself() {
        let balancer = Peer::Balancer(at("10.1.2.3:9"));
        assert_eq!(read(&balancers(), "10.1.2.3:9", LOCAL).await, (Ok(balancer), vec![]));
    }

    #[tokio::test]
    async fn from_anybody_else_not_a_byte_is_read() {
        let client = Peer::Client(at("192.0.2.1:9"));
        assert_eq!(read(&balancers(), "192.0.2.1:9", FROM_TCP4).await, (Ok(client), FROM_TCP4.to_vec()));
    }

    #[tokio::test]
    async fn a_balancer_without_a_whole_header_is_refused() {
        let hello = [0x16; 64];
        assert_eq!(read(&balancers(), "10.1.2.3:9", &hello).await.0, Err(Refused::Missing));
        let old = b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\n";
        assert_eq!(read(&balancers(), "10.1.2.3:9", old).await.0, Err(Refused::Missing));
        for length in 0..FROM_TCP4.len() {
            let cut = read(&balancers(), "10.1.2.3:9", &FROM_TCP4[..length]).await;
            assert_eq!(cut.0, Err(Refused::Truncated), "{length} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_trickles_is_late() {
        let (mut client, mut server) = duplex(64);
        let trickle = async {
            for byte in FROM_TCP4 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(&[*byte]).await.unwrap();
            }
        };
        let (balancers, started) = (balancers(), tokio::time::Instant::now());
        tokio::select! {
            found = balancers.peer(&mut server, at("10.1.2.3:9")) => assert_eq!(found, Err(Refused::Late)),
            () = trickle => panic!("the header was waited for"),
        }
        assert_eq!(started.elapsed().as_secs(), WITHIN.as_secs());
    }

    #[test]
    fn every_refusal_is_counted_and_nothing_else_is() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        with_local_recorder(&recorder, || {
            runtime.block_on(async {
                for sent in [LOCAL, FROM_TCP4, &FROM_TCP4[1..], &FROM_TCP4[1..], b""] {
                    let _ = read(&balancers(), "10.1.2.3:9", sent).await;
                }
            });
        });
        let page = recorder.handle().render();
        let counted = page.lines().filter(|line| line.starts_with("stage0_proxy_headers_refused_total{"));
        let mut counted: Vec<_> = counted.filter_map(|line| line.split_once('{')).map(|(_, rest)| rest).collect();
        counted.sort_unstable();
        assert_eq!(counted, ["reason=\"missing\"} 2", "reason=\"truncated\"} 1"]);
    }

    #[test]
    fn a_balancer_cannot_flood_the_log() {
        let (balancers, now) = (balancers(), Instant::now());
        assert!(balancers.warns(now));
        assert!(!balancers.warns(now + WARN_EVERY - Duration::from_secs(1)));
        assert!(balancers.warns(now + WARN_EVERY));
        assert!(!balancers.warns(now + WARN_EVERY));
    }
}
