//! The load: so many connections, each with one request in flight, for so long.
//!
//! A client that costs little: the request's bytes are made once, of an answer only status and length are read.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What one contestant is asked.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    tls: TlsConnector,
    request: Arc<[u8]>,
}

/// What one turn came to.
#[derive(Default)]
pub(crate) struct Turn {
    /// Of every answer.
    pub(crate) latencies: Vec<Duration>,
    /// How often there was none in time: 503.
    pub(crate) refused: u64,
}

/// One connection that stands.
pub(crate) struct Line {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Target {
    pub(crate) fn new(
        address: SocketAddr,
        ca: &Path,
        key: Option<&str>,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { address, tls: TlsConnector::from(Arc::new(config)), request: request.into_bytes().into() })
    }

    /// Connections for one contestant; handshakes are not part of any turn.
    pub(crate) async fn connect(&self, count: usize) -> anyhow::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for _ in 0..count {
            let tcp = TcpStream::connect(self.address).await?;
            tcp.set_nodelay(true)?;
            let stream = self.tls.connect(ServerName::try_from("localhost")?, tcp).await?;
            lines.push(Line { stream, buffer: Vec::with_capacity(16 * 1024) });
        }
        Ok(lines)
    }

    /// One turn: every line asks until the time is over; all latencies.
    pub(crate) async fn turn(&self, lines: Vec<Line>, time: Duration) -> anyhow::Result<(Vec<Line>, Turn)> {
        let until = Instant::now() + time;
        let tasks = lines.into_iter().map(|mut line| {
            let request = Arc::clone(&self.request);
            tokio::spawn(async move {
                let mut turn = Turn::default();
                while Instant::now() < until {
                    let began = Instant::now();
                    if line.ask(&request).await? { turn.latencies.push(began.elapsed()) } else { turn.refused += 1 }
                }
                anyhow::Ok((line, turn))
            })
        });
        let (mut lines, mut all) = (Vec::new(), Turn::default());
        for task in tasks.collect::<Vec<_>>() {
            let (line, turn) = task.await??;
            lines.push(line);
            all.latencies.extend(turn.latencies);
            all.refused += turn.refused;
        }
        Ok((lines, all))
    }
}

impl Line {
    /// Whether it was answered; a 503 is none, and counted apart. Anything else ends the comparison.
    async fn ask(&mut self, request: &[u8]) -> anyhow::Result<bool> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length, answered) = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed");
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.get(..end).unwrap_or_default();
                let head = std::str::from_utf8(head)?.to_ascii_lowercase();
                let answered = head.starts_with("http/1.1 200");
                if !answered && !head.starts_with("http/1.1 503") {
                    bail!("not answered: {}", head.lines().next().unwrap_or_default());
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                break (end + 4, length.context("no length")?.trim().parse::<usize>()?, answered);
            }
        };
        while self.buffer.len() < head + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed within an answer");
            }
        }
        Ok(answered)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
