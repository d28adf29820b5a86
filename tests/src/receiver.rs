//! A customer's webhook receiver: HTTP/1.1 on a real socket, plain or over TLS, that does with each request what a test wants.
//!
//! Owns a script of answers for each path (then what was set for good, then 200) and a record of all that came, which tests await.
//! Signatures are judged by the library of the Standard Webhooks project, never by ours. Its tasks end when it is dropped.

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::header::{HeaderMap, HeaderName};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

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

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Delivery {
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

    /// Whether a receiver that knows this secret believes it.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

/// An authority that no system trusts.
pub struct Authority {
    directory: tempfile::TempDir,
    params: CertificateParams,
    key: KeyPair,
}

impl Default for Authority {
    fn default() -> Self {
        let (directory, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, params, key }
    }
}

impl Authority {
    /// Its certificate, as a PEM file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Writes a certificate for this machine and its key, in the place of those that are there.
    pub fn issue(&self, certificate: &Path, key: &Path) {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let (new_key, issuer) = (KeyPair::generate().unwrap(), Issuer::from_params(&self.params, &self.key));
        let issued = CertificateParams::new(names).unwrap().signed_by(&new_key, &issuer).unwrap();
        for (path, text) in [(key, new_key.serialize_pem()), (certificate, issued.pem())] {
            let new = path.with_extension("new");
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            std::fs::rename(new, path).unwrap();
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let (key, issuer) = (KeyPair::generate().unwrap(), Issuer::from_params(&self.params, &self.key));
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
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
        Self::start(Some(authority.acceptor())).await
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

    /// All that came to this path so far.
    pub fn seen(&self, path: &str) -> Vec<Delivery> {
        self.shared.seen.lock().unwrap().iter().filter(|delivery| delivery.path == path).cloned().collect()
    }

    /// How often somebody connected.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Looks at what came to this path, again after each request, until it finds what it looks for.
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
        // A client that does not trust us is a case of its own; its handshake just ends.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                shared.serve(stream).await;
            }
        }
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(delivery) = read_request(&mut stream).await {
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
        let scripted = self.scripts.lock().unwrap().get_mut(path).and_then(VecDeque::pop_front);
        let always = self.always.lock().unwrap().get(path).cloned();
        scripted.or(always).unwrap_or_else(|| Reply::status(200))
    }
}

/// `None` when the client has closed, or sends what is no request with a `content-length`.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Delivery> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        headers.append(name.parse::<HeaderName>().ok()?, value.trim().parse().ok()?);
    }
    let length: usize = headers.get("content-length").map_or(Some(0), |value| value.to_str().ok()?.parse().ok())?;
    let mut body = read.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Delivery { path, headers, body, at: Instant::now() })
}
