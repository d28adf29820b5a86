//! A misbehaving server: it has a dev server's certificate and answers with the bytes that a test gives.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Dev, stage0};

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Such as `GET /v1/stops HTTP/1.1`.
    pub(crate) line: String,
    /// The headers, one a line, names in lower case.
    pub(crate) headers: String,
    pub(crate) body: String,
}

/// Answers one request per connection until the test's process ends.
pub(crate) struct Impostor<'d> {
    dev: &'d Dev,
    address: SocketAddr,
}

/// The bytes of an answer, and the end of the connection after it.
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: End,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Closed by the server.
    Closed,
    /// Closed without a TLS close, as by a killed process.
    Dropped,
    /// Reset, as by a balancer or a firewall.
    Reset,
}

impl<'d> Impostor<'d> {
    /// Gives the answers in order, and the last one to all further requests.
    pub(crate) fn start(dev: &'d Dev, answers: Vec<String>) -> Self {
        let mut answers = answers.into_iter().peekable();
        let mut answer = String::new();
        Self::judging(dev, move |_| {
            if let Some(next) = answers.next() {
                answer = next;
            }
            Reply { bytes: answer.clone().into_bytes(), end: End::Closed }
        })
    }

    /// Chooses the answer by the first line of each request.
    pub(crate) fn judging(dev: &'d Dev, mut judge: impl FnMut(&str) -> Reply + Send + 'static) -> Self {
        Self::seeing(dev, move |request| judge(&request.line))
    }

    /// As [`Impostor::start`]; each request is sent to the receiver as well.
    pub(crate) fn recording(dev: &'d Dev, answers: Vec<String>) -> (Self, Receiver<Received>) {
        let (sender, receiver) = channel();
        let mut answers = answers.into_iter().peekable();
        let mut answer = String::new();
        let impostor = Self::seeing(dev, move |request| {
            // The test may have read all that it wanted.
            let _ = sender.send(request.clone());
            if let Some(next) = answers.next() {
                answer = next;
            }
            Reply { bytes: answer.clone().into_bytes(), end: End::Closed }
        });
        (impostor, receiver)
    }

    /// Chooses the answer by the whole request.
    pub(crate) fn seeing(dev: &'d Dev, mut judge: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        let config = Arc::new(config(&dev.data_dir.join("tls")));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may close the connection: the test decides whether that is right.
                let _ = serve(stream.unwrap(), Arc::clone(&config), &mut judge);
            }
        });
        Self { dev, address }
    }

    /// A client command for this server, with the dev server's key.
    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        self.client_with_timeout(arguments, "30")
    }

    /// As [`Impostor::client`], with a timeout in seconds.
    pub(crate) fn client_with_timeout(&self, arguments: &[&str], timeout: &str) -> Command {
        let mut command = stage0(arguments);
        command.arg("--url").arg(format!("https://{}", self.address));
        command.arg("--ca").arg(self.dev.data_dir.join("tls/ca.pem"));
        command.arg("--key-file").arg(self.dev.data_dir.join("api.key")).args(["--timeout", timeout]);
        command
    }
}

/// A complete answer.
pub(crate) fn answer(body: &str) -> String {
    answer_with("200 OK", body)
}

/// A refusal of the contract with this text.
pub(crate) fn refusal(status: &str, message: &str) -> String {
    let body = serde_json::json!({"message": message, "error": "conflict", "request_id": "r-1",
        "detail": {"detail": message, "request_id": "r-1"}});
    answer_with(status, &body.to_string())
}

/// A complete answer with this status.
pub(crate) fn answer_with(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A chunked answer without an end.
pub(crate) fn broken_answer(piece: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{piece}\r\n", piece.len())
}

fn config(tls: &Path) -> ServerConfig {
    let certificates = CertificateDer::pem_file_iter(tls.join("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(tls.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_no_client_auth().with_single_cert(certificates, key).unwrap()
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    judge: &mut impl FnMut(&Received) -> Reply,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let (mut request, mut line) = (String::new(), String::new());
    stream.read_line(&mut request)?;
    let mut headers = String::new();
    while stream.read_line(&mut line)? > 2 {
        headers.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    let length = headers.lines().find_map(|header| header.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    let Reply { bytes, end } = judge(&Received { line: request, headers, body });
    let stream = stream.get_mut();
    stream.write_all(&bytes)?;
    stream.flush()?;
    match end {
        End::Closed => {
            stream.conn.send_close_notify();
            stream.flush()
        }
        End::Dropped => Ok(()),
        End::Reset => Ok(rustix::net::sockopt::set_socket_linger(&stream.sock, Some(Duration::ZERO))?),
    }
}
