//! A customer's webhook receiver: HTTP/1.1 on a real socket, plain or over TLS, with every fault that a receiver may have.
//!
//! Owns a script of answers (one a request, over all connections; afterwards 200) and a record of what came. Tests await that
//! record instead of sleeping. Nothing outlives a `Receiver`: its tasks end when it is dropped.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Longer than anything here takes; reached only when something is missing.
const PATIENCE: Duration = Duration::from_secs(30);
const MOST_RECORDS: usize = 10_000;
/// How a TLS connection begins.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a receiver does with a request that it has read.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Answers at once.
    Whole { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Answers 200, but late.
    Late(Duration),
    /// Never answers and keeps the connection.
    Hang,
    /// Answers 200, claims a body and never sends it.
    HangInBody,
    /// Answers so, claims 10 GB and streams zeros until it is cut off; see [`Receiver::streamed`].
    Endless(u16),
    /// Closes the connection without a word.
    Close,
    /// Sends these bytes and closes.
    Raw(&'static [u8]),
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self::Whole { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn with(self, name: &'static str, value: &str) -> Self {
        match self {
            Self::Whole { status, mut headers, body } => {
                headers.push((name, value.to_owned()));
                Self::Whole { status, headers, body }
            }
            other => panic!("{other:?} has no headers"),
        }
    }

    pub fn body(self, bytes: &[u8]) -> Self {
        match self {
            Self::Whole { status, headers, .. } => Self::Whole { status, headers, body: bytes.to_vec() },
            other => panic!("{other:?} has a body of its own"),
        }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    /// With the query.
    pub path: String,
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Of the receiver's connections, which one; from 0.
    pub connection: usize,
}

impl Recorded {
    /// The only header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} came twice");
        first
    }
}

/// An authority that no system trusts.
pub struct Authority {
    dir: tempfile::TempDir,
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, params, key }
    }

    /// Its certificate, as a PEM file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn acceptor(&self, names: &[&str]) -> TlsAcceptor {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (key, issuer) = (KeyPair::generate().unwrap(), Issuer::from_params(&self.params, &self.key));
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    scheme: &'static str,
    script: Arc<Mutex<VecDeque<Answer>>>,
    requests: mpsc::Receiver<Recorded>,
    accepted: mpsc::Receiver<SocketAddr>,
    streamed: mpsc::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Without TLS.
    pub async fn plain() -> Self {
        Self::start(None).await
    }

    /// With a certificate for these names and addresses.
    pub async fn tls(authority: &Authority, names: &[&str]) -> Self {
        Self::start(Some(authority.acceptor(names))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(VecDeque::new()));
        let (requests_in, requests) = mpsc::channel(MOST_RECORDS);
        let (accepted_in, accepted) = mpsc::channel(MOST_RECORDS);
        let (streamed_in, streamed) = mpsc::channel(MOST_RECORDS);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Shared { script: Arc::clone(&script), requests: requests_in, streamed: streamed_in };
        let task = tokio::spawn(accept(listener, tls, accepted_in, shared));
        Self { address, scheme, script, requests, accepted, streamed, task }
    }

    /// Adds to the script.
    pub fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().extend(answers);
    }

    /// Its URL by address.
    pub fn url(&self, path: &str) -> String {
        self.url_of("127.0.0.1", path)
    }

    /// Its URL under another host.
    pub fn url_of(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    /// The next request that it read.
    pub async fn next(&mut self) -> Recorded {
        timeout(PATIENCE, self.requests.recv()).await.expect("a request in time").expect("a receiver that runs")
    }

    /// A request that it has read already, if there is one more.
    pub fn another(&mut self) -> Option<Recorded> {
        self.requests.try_recv().ok()
    }

    /// How many bytes of the next endless answer it could write before it was cut off.
    pub async fn streamed(&mut self) -> u64 {
        timeout(PATIENCE, self.streamed.recv()).await.expect("a cut in time").expect("a receiver that runs")
    }

    /// Shows that nobody has connected so far: the first connection is the one that is made here.
    pub async fn assert_untouched(&mut self) {
        let ours = TcpStream::connect(self.address).await.unwrap();
        let first =
            timeout(PATIENCE, self.accepted.recv()).await.expect("our connection").expect("a receiver that runs");
        assert_eq!(first, ours.local_addr().unwrap(), "somebody connected");
        assert!(self.another().is_none());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Shared {
    script: Arc<Mutex<VecDeque<Answer>>>,
    requests: mpsc::Sender<Recorded>,
    streamed: mpsc::Sender<u64>,
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, accepted: mpsc::Sender<SocketAddr>, shared: Shared) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    for number in 0.. {
        let (stream, peer) = listener.accept().await.unwrap();
        accepted.try_send(peer).expect("fewer connections");
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            match tls {
                None => shared.serve(stream, number).await,
                // A client that does not trust us is a case of its own; its handshake just ends.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        shared.serve(stream, number).await;
                    }
                }
            }
        });
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize) {
        while let Some(request) = read_request(&mut stream, connection).await {
            self.requests.try_send(request).expect("fewer requests");
            let answer = self.script.lock().unwrap().pop_front().unwrap_or_else(|| Answer::status(200));
            match answer {
                Answer::Whole { status, headers, body } => {
                    let mut text = head(status, body.len() as u64);
                    for (name, value) in headers {
                        text.push_str(&format!("{name}: {value}\r\n"));
                    }
                    let whole = [text.as_bytes(), b"\r\n", &body].concat();
                    if stream.write_all(&whole).await.is_err() {
                        return;
                    }
                }
                // A slow receiver, not a test that waits: the task ends with the receiver.
                Answer::Late(delay) => {
                    tokio::time::sleep(delay).await;
                    let late = head(200, 0) + "\r\n";
                    if stream.write_all(late.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Answer::Hang => std::future::pending().await,
                Answer::HangInBody => {
                    let begun = head(200, 1000) + "\r\n";
                    let _ = stream.write_all(begun.as_bytes()).await;
                    std::future::pending::<()>().await;
                }
                Answer::Endless(status) => {
                    let count = stream_zeros(&mut stream, status).await;
                    self.streamed.try_send(count).expect("fewer streams");
                    return;
                }
                Answer::Close => return,
                Answer::Raw(bytes) => {
                    let _ = stream.write_all(bytes).await;
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
        // What a web server says to a TLS client on its plain port; a client that has left does not hear it.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    }
}

/// All but the empty line, so that headers may follow.
fn head(status: u16, length: u64) -> String {
    format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {length}\r\n")
}

async fn stream_zeros(stream: &mut (impl AsyncWrite + Unpin), status: u16) -> u64 {
    let begun = head(status, 10_000_000_000) + "\r\n";
    if stream.write_all(begun.as_bytes()).await.is_err() {
        return 0;
    }
    let (chunk, mut count) = ([0; 8192], 0);
    while let Ok(written @ 1..) = stream.write(&chunk).await {
        count += written as u64;
    }
    count
}

/// `None` when the client has closed, or sends what is no request with a `content-length`.
async fn read_request(stream: &mut (impl AsyncRead + Unpin), connection: usize) -> Option<Recorded> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 || read.first() == Some(&TLS_HANDSHAKE) {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(Some(0), |(_, v)| v.parse().ok())?;
    let mut body = read.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    assert_eq!(body.len(), length, "nobody pipelines");
    Some(Recorded { method, path, headers, body, connection })
}
