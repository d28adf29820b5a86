//! A server with a dev server's certificate that answers what a test says, byte by byte: what no good server does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Dev, stage0};

/// Answers one request per connection until the test's process ends.
pub(crate) struct Impostor<'d> {
    dev: &'d Dev,
    address: SocketAddr,
}

/// What is sent, and how the connection ends behind it.
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: End,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As a server ends it.
    Closed,
    /// As a process that is killed ends it: TLS has no end.
    Dropped,
    /// As a balancer or a firewall ends it.
    Reset,
}

impl<'d> Impostor<'d> {
    /// The first answer to the first request, and so on; the last one to all that follow. A connection is cut behind its answer.
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

    /// Answers by the first line of each request.
    pub(crate) fn judging(dev: &'d Dev, mut judge: impl FnMut(&str) -> Reply + Send + 'static) -> Self {
        let config = Arc::new(config(&dev.data_dir.join("tls")));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is the test's business.
                let _ = serve(stream.unwrap(), Arc::clone(&config), &mut judge);
            }
        });
        Self { dev, address }
    }

    /// A client command that asks it, with the key of the dev server.
    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        self.client_with_timeout(arguments, "30")
    }

    /// As [`Impostor::client`], with the seconds after which it gives up.
    pub(crate) fn client_with_timeout(&self, arguments: &[&str], timeout: &str) -> Command {
        let mut command = stage0(arguments);
        command.arg("--url").arg(format!("https://{}", self.address));
        command.arg("--ca").arg(self.dev.data_dir.join("tls/ca.pem"));
        command.arg("--key-file").arg(self.dev.data_dir.join("api.key")).args(["--timeout", timeout]);
        command
    }
}

/// A whole answer.
pub(crate) fn answer(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// An answer in pieces whose end never comes.
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

fn serve(stream: TcpStream, config: Arc<ServerConfig>, judge: &mut impl FnMut(&str) -> Reply) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let (mut request, mut line) = (String::new(), String::new());
    stream.read_line(&mut request)?;
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let Reply { bytes, end } = judge(&request);
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
