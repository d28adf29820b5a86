//! A hostile client: bytes over TLS, or over plain TCP, exactly as the test wants them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than any time limit of the server; reached only when one is missing.
const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

pub struct Raw {
    stream: TlsStream<TcpStream>,
}

/// Opens many connections to one gateway, each from the address that the test wants.
#[derive(Clone)]
pub struct Dialer {
    connector: TlsConnector,
    address: SocketAddr,
}

impl Dialer {
    pub fn new(address: &str, ca: &Path) -> Self {
        let config = client_config(ca, rustls::ALL_VERSIONS);
        Self { connector: TlsConnector::from(Arc::new(config)), address: address.parse().unwrap() }
    }

    /// Without TLS yet.
    pub async fn tcp(&self, from: IpAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(self.address).await
    }

    pub async fn dial(&self, from: IpAddr) -> std::io::Result<Raw> {
        let tcp = self.tcp(from).await?;
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Raw { stream: self.connector.connect(name, tcp).await? })
    }
}

fn client_config(ca: &Path, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Raw {
    pub async fn connect(address: &str, ca: &Path) -> Self {
        Self::connect_with(address, ca, rustls::ALL_VERSIONS).await.expect("a TLS handshake")
    }

    pub async fn connect_with(
        address: &str,
        ca: &Path,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> std::io::Result<Self> {
        let config = client_config(ca, versions);
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        Ok(Self { stream })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // A server that has closed already is found out when the answer is read.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// All until the server closes; fails the test if it never does.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let read = timeout(WAIT_TIMEOUT, self.stream.read_to_end(&mut all)).await;
        // A reset after the answer is a close as well.
        let _ = read.expect("the server closes the connection");
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What is there next, at most so many bytes; 0 at the end, however it comes.
    pub async fn some(&mut self, bytes: &mut [u8]) -> usize {
        timeout(WAIT_TIMEOUT, self.stream.read(bytes)).await.expect("bytes or an end in time").unwrap_or(0)
    }

    /// Until `enough` was read.
    pub async fn until(&mut self, enough: &str) -> String {
        let mut all = String::new();
        let mut chunk = [0; 4096];
        while !all.contains(enough) {
            let read = timeout(WAIT_TIMEOUT, self.stream.read(&mut chunk)).await.expect("an answer in time");
            match read {
                Ok(0) | Err(_) => break,
                Ok(count) => all.push_str(&String::from_utf8_lossy(&chunk[..count])),
            }
        }
        all
    }

    /// The server's certificate.
    pub fn certificate(&self) -> Vec<u8> {
        self.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// Plain bytes to the same port, and all that comes back.
    pub async fn plain(address: &str, bytes: &[u8]) -> Vec<u8> {
        let mut tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.write_all(bytes).await.expect("bytes are sent");
        let mut all = Vec::new();
        let _ = timeout(WAIT_TIMEOUT, tcp.read_to_end(&mut all)).await.expect("the server closes the connection");
        all
    }
}
