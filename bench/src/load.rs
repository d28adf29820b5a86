//! The load: connections that send the next request as soon as the last is answered, or at a steady rate.
//!
//! A client that costs little: a request's bytes are built once, and of an answer only status and length are read. A
//! turn fails if its last answer is not the expected one: what is fast must be right.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http_message;
use crate::pace::{Pace, Schedule};
use crate::quantiles::Latencies;
use crate::request::{CheckRequest, find};

#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    tls: TlsConnector,
}

pub(crate) struct Line {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// The requests of one contestant, on all its connections.
pub(crate) struct Target {
    lines: Vec<(Line, CheckRequest)>,
    wanted: Option<&'static str>,
}

pub(crate) struct Turn {
    pub(crate) latencies: Latencies,
    /// How many answers were 503, because there was none in time.
    pub(crate) refused: u64,
    /// Until the last answer: longer than the turn if requests that were due had to wait.
    pub(crate) elapsed: Duration,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // Connections stand for clients on many hosts, which share no session tickets.
        config.resumption = Resumption::disabled();
        Ok(Self { address, tls: TlsConnector::from(Arc::new(config)) })
    }

    pub(crate) async fn open(&self, from: Option<Ipv4Addr>) -> anyhow::Result<Line> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, tcp).await?;
        Ok(Line { stream, buffer: Vec::with_capacity(16 * 1024) })
    }
}

impl Target {
    /// Connects; handshakes are not part of a turn.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        requests: Vec<CheckRequest>,
        wanted: Option<&'static str>,
    ) -> anyhow::Result<Self> {
        let mut lines = Vec::with_capacity(requests.len());
        for request in requests {
            lines.push((endpoint.open(None).await?, request));
        }
        Ok(Self { lines, wanted })
    }

    pub(crate) async fn turn(&mut self, pace: Pace, time: Duration) -> anyhow::Result<Turn> {
        let (began, wanted) = (Instant::now(), self.wanted);
        let lines = std::mem::take(&mut self.lines);
        let tasks = pace.begin(lines.len(), time).into_iter().zip(lines).map(|(schedule, (mut line, mut request))| {
            tokio::spawn(async move {
                let turn = line.turn(&mut request, wanted, &schedule).await?;
                anyhow::Ok((line, request, turn))
            })
        });
        let mut all = Turn::new()?;
        for task in tasks.collect::<Vec<_>>() {
            let (line, request, turn) = task.await??;
            self.lines.push((line, request));
            all.latencies.add(&turn.latencies)?;
            all.refused += turn.refused;
        }
        all.elapsed = began.elapsed().max(time);
        Ok(all)
    }
}

impl Turn {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { latencies: Latencies::new()?, refused: 0, elapsed: Duration::ZERO })
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

impl Line {
    async fn turn(
        &mut self,
        request: &mut CheckRequest,
        wanted: Option<&str>,
        schedule: &Schedule,
    ) -> anyhow::Result<Turn> {
        let (mut turn, mut answered, mut step) = (Turn::new()?, false, 0);
        while let Some(from) = schedule.wait_for(step).await {
            step += 1;
            let status = self.ask(request.next()).await?;
            answered = status == 200;
            match status {
                200 => turn.latencies.record(from.elapsed())?,
                503 => turn.refused += 1,
                other => bail!("not answered: {other}"),
            }
        }
        let right = !answered || wanted.is_none_or(|wanted| find(&self.buffer, wanted.as_bytes()).is_some());
        ensure!(right, "the last answer of a turn lacks `{}`", wanted.unwrap_or_default());
        Ok(turn)
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request).await?;
        // What the socket does not take at once stays in the TLS layer, and reading does not send it.
        self.stream.flush().await?;
        self.buffer.clear();
        let message = http_message::read(&mut self.stream, &mut self.buffer).await?;
        let status = message.head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)).context("no status")?;
        Ok(status.parse()?)
    }
}
