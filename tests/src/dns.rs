//! A DNS server on loopback that knows a few names, denies others, and is silent about the rest.
//!
//! Owns the little of RFC 1035 that a stub resolver needs: one question, A records, and `NXDOMAIN`. It notes every
//! question, so that a test sees who was asked for and how often. Its task ends when it is dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What is answered for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It has this address.
    At(Ipv4Addr),
    /// There is no such name.
    Nowhere,
    /// Nothing at all.
    Silence,
}

pub struct Dns {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Dns {
    /// Answers what `know` says of a name in lower case, without a dot at its end.
    pub async fn start(know: impl Fn(&str) -> Known + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut question = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                let Some((name, kind, end)) = read(&question[..length]) else { continue };
                noted.lock().unwrap().push(name.clone());
                if let Some(answer) = answer(&question[..end], kind, know(&name)) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, asked, task }
    }

    /// As a setting of name servers wants it.
    pub fn setting(&self) -> String {
        self.address.to_string()
    }

    /// Every name that was asked for, once for each question.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Name, type, and where the question ends.
fn read(message: &[u8]) -> Option<(String, u16, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join("."), kind, at + 4))
}

fn answer(question: &[u8], kind: u16, known: Known) -> Option<Vec<u8>> {
    const A: u16 = 1;
    let (code, address) = match known {
        Known::Silence => return None,
        Known::Nowhere => (3, None),
        Known::At(address) => (0, (kind == A).then_some(address)),
    };
    let answers = u8::from(address.is_some());
    let mut message = question.to_vec();
    message.splice(2..12, [0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    if let Some(address) = address {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(address.octets());
    }
    Some(message)
}
