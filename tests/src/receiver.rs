//! A customer's webhook receiver: HTTP/1.1 on a real socket, plain or over TLS, with answers that a test chooses.
//!
//! Owns a script of answers for each path (then the answer set with `always`, then 200) and a record of all requests,
//! which tests await. Signatures are verified by the library of the Standard Webhooks project, never by ours. Its tasks
//! end when it is dropped.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::Authority;
use crate::http_request::{HttpRequest, read_request};

/// What a receiver does with a request that it has read.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers at once.
    Status(u16, Vec<(&'static str, String)>),
    /// Answers with this status, but late.
    Late(Duration, u16),
    /// Never answers and keeps the connection.
    Hang,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Status(status, Vec::new())
    }

    pub fn with(status: u16, name: &'static str, value: &str) -> Self {
        Self::Status(status, vec![(name, value.to_owned())])
    }
}

/// A request as it was received.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Delivery {
    /// None if a header is malformed.
    fn of(request: HttpRequest) -> Option<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            headers.append(name.parse::<HeaderName>().ok()?, value.parse().ok()?);
        }
        Some(Self { path: request.path, headers, body: request.body, at: Instant::now() })
    }

    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn kind(&self) -> String {
        self.event()["type"].as_str().unwrap().to_owned()
    }

    pub fn sequence(&self) -> u64 {
        self.event()["data"]["sequence"].as_u64().unwrap()
    }

    pub fn signatures(&self) -> usize {
        self.headers["webhook-signature"].to_str().unwrap().split(' ').count()
    }

    /// Whether a receiver with this secret accepts the signature.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    more: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<HashMap<String, VecDeque<Reply>>>,
    always: Mutex<HashMap<String, Reply>>,
    everywhere: Mutex<Option<Reply>>,
    seen: Mutex<Vec<Delivery>>,
    connections: AtomicUsize,
    more: watch::Sender<usize>,
}

impl Receiver {
    /// Without TLS.
    pub async fn plain() -> Self {
        Self::start(None).await
    }

    /// With a certificate for this machine.
    pub async fn tls(authority: &Authority) -> Self {
        Self::start(Some(authority.acceptor(&["localhost", "127.0.0.1"]))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared::default());
        let more = shared.more.subscribe();
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { address, scheme, shared, more, task }
    }

    pub fn url(&self, path: &str) -> String {
        self.url_of("127.0.0.1", path)
    }

    /// Its URL under another host.
    pub fn url_of(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    /// The next answers at this path.
    pub fn answer(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.shared.scripts.lock().unwrap().entry(path.to_owned()).or_default().extend(replies);
    }

    /// Every further answer at this path.
    pub fn always(&self, path: &str, reply: Reply) {
        self.shared.always.lock().unwrap().insert(path.to_owned(), reply);
    }

    /// All requests to this path so far.
    pub fn seen(&self, path: &str) -> Vec<Delivery> {
        self.shared.seen.lock().unwrap().iter().filter(|delivery| delivery.path == path).cloned().collect()
    }

    /// All requests so far that were not taken yet; from now on they are the caller's alone.
    pub fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    /// Every further answer, at whichever path, instead of what was set for a path; none: as usual.
    pub fn everywhere(&self, reply: Option<Reply>) {
        *self.shared.everywhere.lock().unwrap() = reply;
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Calls `find` with the requests to this path, again after each request, until it finds something.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        path: &str,
        within: Duration,
        mut find: impl FnMut(&[Delivery]) -> Option<T>,
    ) -> T {
        let mut more = self.more.clone();
        let looking = async {
            loop {
                more.borrow_and_update();
                if let Some(found) = find(&self.seen(path)) {
                    return found;
                }
                more.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(within, looking).await {
            Ok(found) => found,
            Err(_) => {
                let came: Vec<_> = self.seen(path).iter().map(|d| (d.id().to_owned(), d.kind())).collect();
                let last = &came[came.len().saturating_sub(20)..];
                panic!("waited {within:?} in vain for: {what}; of {} the last: {last:?}", came.len());
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.connections.fetch_add(1, Ordering::SeqCst);
        connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    match tls {
        None => shared.serve(stream).await,
        // A client that does not trust the certificate ends the handshake.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                shared.serve(stream).await;
            }
        }
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(delivery) = read_request(&mut stream).await.and_then(Delivery::of) {
            let reply = self.reply(&delivery.path);
            let count = {
                let mut seen = self.seen.lock().unwrap();
                seen.push(delivery);
                seen.len()
            };
            self.more.send_replace(count);
            let (status, headers) = match reply {
                Reply::Status(status, headers) => (status, headers),
                // A slow receiver, not a test that waits: the task ends with the receiver.
                Reply::Late(delay, status) => {
                    tokio::time::sleep(delay).await;
                    (status, Vec::new())
                }
                Reply::Hang => return std::future::pending().await,
            };
            let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: 0\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            if stream.write_all(head.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }

    fn reply(&self, path: &str) -> Reply {
        if let Some(reply) = self.everywhere.lock().unwrap().clone() {
            return reply;
        }
        let scripted = self.scripts.lock().unwrap().get_mut(path).and_then(VecDeque::pop_front);
        let always = self.always.lock().unwrap().get(path).cloned();
        scripted.or(always).unwrap_or_else(|| Reply::status(200))
    }
}
