//! An HTTPS server whose answers are bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certificates::{Identity, make};

const CA_FILE: &str = "ca.pem";
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Far longer than any client waits.
const SILENCE: Duration = Duration::from_secs(600);
const DRIP_INTERVAL: Duration = Duration::from_millis(50);

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Request {
    /// Such as `POST /check HTTP/1.1`.
    pub line: String,
    /// One a line, in lower case.
    pub headers: String,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }
}

/// What is sent back, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// These bytes; then the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes, one by one, slowly.
    Drip {
        /// At once.
        first: Vec<u8>,
        /// Then these.
        slowly: Vec<u8>,
    },
    /// The connection is closed without an answer.
    Close,
    /// Nothing, and the connection stays open.
    Silence,
}

impl Reply {
    /// A complete HTTP answer.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        Self::Bytes(message(status, headers, body, body.len()))
    }
}

/// A complete HTTP answer that names another length than it has.
pub(super) fn message(status: u16, headers: &[(&str, &str)], body: &str, length: usize) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} -\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

/// What happens to a connection before there is a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    Tls(Identity),
    /// The TLS handshake never begins.
    Silence,
    /// The connection is closed at once.
    Close,
    /// HTTP without TLS.
    Plain,
    /// Nothing listens.
    Nothing,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on a port of its own, until it is dropped.
pub struct Server {
    url: Url,
    dir: TempDir,
    task: Option<JoinHandle<()>>,
}

impl Server {
    /// A server with a certificate that its client trusts.
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> io::Result<Self> {
        Self::behind(Front::Tls(Identity::Right), Arc::new(handler)).await
    }

    pub(super) async fn behind(front: Front, handler: Arc<Handler>) -> io::Result<Self> {
        let identity = if let Front::Tls(identity) = front { identity } else { Identity::Right };
        let (config, authority) = make(identity)?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join(CA_FILE), authority)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("https://{}", listener.local_addr()?).parse().map_err(io::Error::other)?;
        let task = (front != Front::Nothing).then(|| tokio::spawn(serve(listener, front, config, handler)));
        Ok(Self { url, dir, task })
    }

    /// Its address.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// PEM file with the authority that a client is to trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join(CA_FILE)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, front: Front, config: Arc<ServerConfig>, handler: Arc<Handler>) {
    let acceptor = TlsAcceptor::from(config);
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
        // A client may break off whenever it likes.
        tokio::spawn(async move {
            let _ = converse(stream, front, acceptor, &*handler).await;
        });
    }
}

async fn converse(stream: TcpStream, front: Front, acceptor: TlsAcceptor, handler: &Handler) -> io::Result<()> {
    match front {
        Front::Tls(_) => answer(acceptor.accept(stream).await?, handler).await,
        Front::Plain => answer(stream, handler).await,
        Front::Silence => {
            tokio::time::sleep(SILENCE).await;
            Ok(())
        }
        Front::Close | Front::Nothing => Ok(()),
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, handler: &Handler) -> io::Result<()> {
    let request = read(&mut stream).await?;
    match handler(&request) {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
        Reply::Drip { first, slowly } => {
            stream.write_all(&first).await?;
            for byte in slowly {
                stream.flush().await?;
                tokio::time::sleep(DRIP_INTERVAL).await;
                stream.write_all(&[byte]).await?;
            }
        }
        Reply::Close => return Ok(()),
        Reply::Silence => tokio::time::sleep(SILENCE).await,
    }
    stream.shutdown().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            break at;
        }
        more(stream, &mut bytes).await?;
    };
    let text = String::from_utf8_lossy(bytes.get(..head).unwrap_or_default()).into_owned();
    let (line, headers) = text.split_once("\r\n").unwrap_or((&text, ""));
    let mut request =
        Request { line: line.to_owned(), headers: headers.to_ascii_lowercase().replace('\r', ""), body: Vec::new() };
    let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < head + END.len() + length {
        more(stream, &mut bytes).await?;
    }
    request.body = bytes.split_off(head + END.len());
    Ok(request)
}

async fn more(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() > MAX_REQUEST_BYTES || stream.read_buf(bytes).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
