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
    pub(crate) async fn turn(&self, lines: Vec<Line>, time: Duration) -> anyhow::Result<(Vec<Line>, Vec<Duration>)> {
        let until = Instant::now() + time;
        let tasks = lines.into_iter().map(|mut line| {
            let request = Arc::clone(&self.request);
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    line.ask(&request).await?;
                    latencies.push(began.elapsed());
                }
                anyhow::Ok((line, latencies))
            })
        });
        let (mut lines, mut all) = (Vec::new(), Vec::new());
        for task in tasks.collect::<Vec<_>>() {
            let (line, latencies) = task.await??;
            lines.push(line);
            all.extend(latencies);
        }
        Ok((lines, all))
    }
}

impl Line {
    /// Anything but a 200 ends the comparison: a server that refuses is fast.
    async fn ask(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length) = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed");
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.get(..end).unwrap_or_default();
                let head = std::str::from_utf8(head)?.to_ascii_lowercase();
                if !head.starts_with("http/1.1 200") {
                    bail!("not answered: {}", head.lines().next().unwrap_or_default());
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                break (end + 4, length.context("no length")?.trim().parse::<usize>()?);
            }
        };
        while self.buffer.len() < head + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed within an answer");
            }
        }
        Ok(())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
