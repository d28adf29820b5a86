//! A TCP relay that can be paused: bytes that are sent meanwhile wait, and neither end notices.
//!
//! Stands between one process and its NATS server. Its tasks end when it is dropped.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub struct Relay {
    pub address: SocketAddr,
    held: watch::Sender<bool>,
    passing: JoinHandle<()>,
}

impl Relay {
    /// To `to`, as `127.0.0.1:4222`.
    pub async fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (held, holding) = watch::channel(false);
        let to = to.to_owned();
        let passing = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&to).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                connections.spawn(pass(from_client, to_server, holding.clone()));
                connections.spawn(pass(from_server, to_client, holding.clone()));
            }
        });
        Self { address, held, passing }
    }

    /// From now on nothing passes, in either direction.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// What waits passes, and all that comes after.
    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut holding: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if holding.wait_for(|held| !held).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    // Close the other end too.
    let _ = to.shutdown().await;
}
