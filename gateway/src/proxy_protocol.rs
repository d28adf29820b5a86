//! The client's address on a connection from a layer-4 load balancer: its PROXY header.
//!
//! Every connection from a configured balancer begins with one; other connections are not searched for it. A header
//! that is missing, malformed or late closes the connection.
//! INVARIANT: only a configured balancer can set a client's address, and no byte after the header is read.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

mod header;

pub(crate) use header::Refused;

use crate::address::TrustedProxies;
use crate::metrics;
use header::{PREFIX_BYTES, Prefix};

/// A balancer that sends no headers fails with every connection: one warning is enough, the metric counts them all.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A client, to which limits apply.
    Client(SocketAddr),
    /// A balancer that connects for itself, for example for a health check.
    Balancer(SocketAddr),
}

pub(crate) struct Balancers {
    trusted: TrustedProxies,
    header_timeout: Duration,
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
    pub(crate) fn new(trusted: TrustedProxies, header_timeout: Duration) -> Self {
        Self { trusted, header_timeout, warned: Mutex::default() }
    }

    /// Reads the header if `peer` is a balancer. A header without an address means the balancer itself.
    pub(crate) async fn peer(&self, stream: &mut (impl AsyncRead + Unpin), peer: SocketAddr) -> Result<Peer, Refused> {
        if !self.trusted.trusts(peer.ip()) {
            return Ok(Peer::Client(peer));
        }
        let source = timeout(self.header_timeout, source(stream)).await.unwrap_or(Err(Refused::Late));
        match source {
            Ok(source) => Ok(source.map_or(Peer::Balancer(peer), Peer::Client)),
            Err(refused) => {
                metrics::proxy_header_refused(refused);
                if self.should_warn(Instant::now()) {
                    tracing::warn!(
                        %peer, %refused, "connection of a balancer closed; others may follow without a warning"
                    );
                } else {
                    tracing::debug!(%peer, %refused, "connection of a balancer closed");
                }
                Err(refused)
            }
        }
    }

    fn should_warn(&self, now: Instant) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = warned.is_none_or(|last| now.saturating_duration_since(last) >= WARN_INTERVAL);
        if is_due {
            *warned = Some(now);
        }
        is_due
    }
}

/// Reads the header and not a byte more: the next byte is the first of TLS.
pub(crate) async fn source(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Refused> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await.map_err(|_| Refused::Truncated)?;
    let prefix = Prefix::parse(&prefix)?;
    let mut rest = vec![0; prefix.rest_bytes()];
    stream.read_exact(&mut rest).await.map_err(|_| Refused::Truncated)?;
    prefix.source(&rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncWriteExt, duplex};

    const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
    const FROM_TCP4: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x01\x12\x67\x01\xbb";
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

    fn balancers() -> Balancers {
        Balancers::new(TrustedProxies::parse(&["10.0.0.0/8".to_owned()]).unwrap(), HEADER_TIMEOUT)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The result for `sent` from `peer`, and the bytes that are left to read.
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
    async fn the_header_gives_the_client_and_no_byte_of_tls_is_read() {
        let sent = [FROM_TCP4, b"\x16\x03\x01"].concat();
        let client = Peer::Client(at("198.51.100.7:4711"));
        assert_eq!(read(&balancers(), "10.1.2.3:9", &sent).await, (Ok(client), b"\x16\x03\x01".to_vec()));
        assert_eq!(read(&balancers(), "[::ffff:10.1.2.3]:9", &sent).await.0, Ok(client));
    }

    #[tokio::test]
    async fn a_header_without_an_address_means_the_balancer_itself() {
        let balancer = Peer::Balancer(at("10.1.2.3:9"));
        assert_eq!(read(&balancers(), "10.1.2.3:9", LOCAL).await, (Ok(balancer), vec![]));
    }

    #[tokio::test]
    async fn no_byte_is_read_from_other_peers() {
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
    async fn a_trickling_header_times_out() {
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
            () = trickle => panic!("the header did not time out"),
        }
        assert_eq!(started.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
    }

    #[test]
    fn only_refused_headers_are_counted() {
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
        assert!(balancers.should_warn(now));
        assert!(!balancers.should_warn(now + WARN_INTERVAL - Duration::from_secs(1)));
        assert!(balancers.should_warn(now + WARN_INTERVAL));
        assert!(!balancers.should_warn(now + WARN_INTERVAL));
    }
}
