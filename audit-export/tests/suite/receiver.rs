//! A customer's webhook receiver: HTTP/1.1 on a real socket, plain or over TLS, with every fault that a receiver may
//! have.
//!
//! Owns a script of answers (one for each request, over all connections; then 200) and a record of the requests, which
//! tests await instead of sleeping. Its tasks end when it is dropped.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;
use crate::http_request::{HttpRequest, read_request};

/// Longer than anything here takes; reached only when a test fails.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_RECORDS: usize = 10_000;

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
    /// Answers with this status, claims 10 GB and streams zeros until it is cut off; see [`Receiver::streamed`].
    Endless(u16),
    /// Closes the connection without an answer.
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

/// A request, and the number of its connection, from 0.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    request: HttpRequest,
    pub connection: usize,
}

impl Deref for Recorded {
    type Target = HttpRequest;

    fn deref(&self) -> &HttpRequest {
        &self.request
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
        let (requests_in, requests) = mpsc::channel(MAX_RECORDS);
        let (accepted_in, accepted) = mpsc::channel(MAX_RECORDS);
        let (streamed_in, streamed) = mpsc::channel(MAX_RECORDS);
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
        timeout(WAIT_TIMEOUT, self.requests.recv()).await.expect("a request in time").expect("a receiver that runs")
    }

    /// A request that it has read already, if there is one more.
    pub fn another(&mut self) -> Option<Recorded> {
        self.requests.try_recv().ok()
    }

    /// How many bytes of the next endless answer it could write before it was cut off.
    pub async fn streamed(&mut self) -> u64 {
        timeout(WAIT_TIMEOUT, self.streamed.recv()).await.expect("a cut in time").expect("a receiver that runs")
    }

    /// Asserts that there was no connection so far: the first one is made here.
    pub async fn assert_untouched(&mut self) {
        let ours = TcpStream::connect(self.address).await.unwrap();
        let first =
            timeout(WAIT_TIMEOUT, self.accepted.recv()).await.expect("our connection").expect("a receiver that runs");
        assert_eq!(first, ours.local_addr().unwrap(), "there was an earlier connection");
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
                // A client that does not trust the certificate ends the handshake.
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
        while let Some(request) = read_request(&mut stream).await {
            self.requests.try_send(Recorded { request, connection }).expect("fewer requests");
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
        // A web server's answer to a TLS client on its plain port. A client that has closed does not receive it.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    }
}

/// Without the empty line, so that headers may follow.
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
