//! A test receiver of webhooks: plain HTTP on a free port, with the status that the test sets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver as Received, Sender, channel};
use std::time::Duration;

use serde_json::Value;

/// A received event.
pub(crate) struct Event {
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// Listens until the test's process ends.
pub(crate) struct Receiver {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    events: Received<Event>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (status, (sender, events)) = (Arc::new(AtomicU16::new(204)), channel());
        let answered = Arc::clone(&status);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, answered) = (sender.clone(), Arc::clone(&answered));
                // Senders keep their connections open, so each connection has a thread.
                std::thread::spawn(move || serve(stream.unwrap(), &answered, &sender));
            }
        });
        Self { address, status, events }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sets the status of further answers.
    pub(crate) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The next event; the timeout is longer than any machine needs.
    pub(crate) fn next(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

/// Serves until the sender closes the connection.
fn serve(stream: TcpStream, status: &AtomicU16, events: &Sender<Event>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let length =
            head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length?];
        reader.read_exact(&mut body).ok()?;
        let path = head.first()?.split(' ').nth(1)?.to_owned();
        // Recorded before the answer, so that the event is there when the sender has its answer.
        events.send(Event { path, body: serde_json::from_slice(&body).ok()? }).ok()?;
        let status = status.load(Ordering::SeqCst);
        write!(reader.get_mut(), "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}
