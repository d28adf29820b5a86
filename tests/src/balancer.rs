//! A layer-4 balancer: passes bytes on, each connection behind the same PROXY header, from an address of its own.
//!
//! Owns the header's bytes, written here by hand so that the gateway's reader is not judged by its own kind. Its tasks
//! end when it is dropped.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

pub struct Balancer {
    /// Where its clients connect.
    pub url: String,
    passing: JoinHandle<()>,
}

impl Balancer {
    /// From `from`, a loopback address, to the gateway at `to`.
    pub async fn start(from: &str, to: &str, header: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (from, to) = (from.to_owned(), to.to_owned());
        let passing = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let (from, to, header) = (from.clone(), to.clone(), header.clone());
                connections.spawn(async move {
                    let mut server = connect_from(&from, &to).await;
                    // A gateway that has closed already is found out by the client.
                    let _ = server.write_all(&header).await;
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, passing }
    }

    /// The header of a connection of `client`; a field that says nothing stands behind the addresses.
    pub fn header_of(client: &str) -> Vec<u8> {
        let (family, source, other) = match client.parse().unwrap() {
            IpAddr::V4(client) => (0x11, client.octets().to_vec(), vec![10; 4]),
            IpAddr::V6(client) => (0x21, client.octets().to_vec(), vec![10; 16]),
        };
        let rest = [source, other, vec![0x12, 0x67, 0x01, 0xbb], vec![0x04, 0, 2, 0, 0]].concat();
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x21, family], &length, &rest].concat()
    }

    /// The header of a connection that the balancer makes for itself.
    pub fn local_header() -> Vec<u8> {
        [SIGNATURE, &[0x20, 0x00, 0, 0]].concat()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

async fn connect_from(from: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse::<Ipv4Addr>().unwrap().into(), 0)).unwrap();
    socket.connect(to.parse().unwrap()).await.unwrap()
}
