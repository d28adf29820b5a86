//! The guard's private readers of what clients and servers send, for the fuzz targets in `fuzz/`. Not part of the API.
//!
//! Always compiled: behind a feature, a build of all packages would compile the guard again, and a build of the binary
//! alone once more.

use futures_util::FutureExt as _;
use tokio::io::BufReader;

use crate::guard::call::without_answers;
use crate::http::events::Parser;
use crate::lines::{self, Line};
use crate::message::{Message, Refusal, of_client, of_client_line, of_server};
use crate::method::{is_known_notification, of_request};

/// What the guard takes a message for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it is not passed on.
    Refused {
        /// What its sender gets.
        answer: Vec<u8>,
    },
    /// A request.
    Request {
        /// As it was spelled.
        raw_id: String,
        /// Without escapes.
        method: String,
        /// Whether the method is passed on at all.
        is_known: bool,
    },
    /// A notification.
    Notification {
        /// Without escapes.
        method: String,
        /// Whether it is passed on at all.
        is_known: bool,
    },
    /// An answer.
    Response {
        /// As the guard writes it; none where the other side could not read one.
        raw_id: Option<String>,
        /// Whether it has no result.
        is_error: bool,
    },
}

/// One event of a server's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvent {
    /// As it came.
    pub raw: Vec<u8>,
    /// The text that it carries.
    pub data: Option<Vec<u8>>,
    /// The event with other data.
    pub replaced: Vec<u8>,
}

/// A line from a client on the guard's standard input.
pub fn client_line(line: &[u8]) -> Seen {
    seen(of_client_line(line))
}

/// A client's message, the body of a request over HTTP.
pub fn client_message(body: &[u8]) -> Seen {
    seen(of_client(body))
}

/// A message from the server behind the guard.
pub fn server_message(bytes: &[u8]) -> Seen {
    seen(of_server(bytes))
}

/// A request as the server gets it without the answers to the guard's own question; none if it is no request.
pub fn without_own_state(bytes: &[u8]) -> Option<Vec<u8>> {
    match of_client(bytes) {
        Ok(Message::Request(request)) => Some(without_answers(&request)),
        _ => None,
    }
}

/// The events of a stream that arrives in these pieces; none if one is too large. Each also with `data` in its place.
pub fn events<'b>(pieces: impl IntoIterator<Item = &'b [u8]>, data: &[u8]) -> Option<Vec<StreamEvent>> {
    let mut parser = Parser::default();
    let mut found = Vec::new();
    for piece in pieces {
        for event in parser.feed(piece).ok()? {
            let replaced = event.with_data(data);
            found.push(StreamEvent { raw: event.raw, data: event.data, replaced });
        }
    }
    Some(found)
}

/// The lines of a stream that is read through a buffer of this size; none in the place of one that was too long.
pub fn lines(bytes: &[u8], buffer: usize, max: usize) -> Vec<Option<Vec<u8>>> {
    let read = async {
        let mut reader = BufReader::with_capacity(buffer, bytes);
        let mut found = Vec::new();
        loop {
            match lines::next(&mut reader, max).await {
                Ok(Line::Message(line)) => found.push(Some(line)),
                Ok(Line::TooLong) => found.push(None),
                Ok(Line::End) | Err(_) => return found,
            }
        }
    };
    // Bytes in memory are always there.
    read.now_or_never().unwrap_or_default()
}

fn seen(read: Result<Message<'_>, Refusal>) -> Seen {
    match read {
        Err(refusal) => Seen::Refused { answer: refusal.answer() },
        Ok(Message::Request(request)) => Seen::Request {
            raw_id: request.raw_id.to_owned(),
            is_known: of_request(&request.method).is_some(),
            method: request.method,
        },
        Ok(Message::Notification(method, _)) => Seen::Notification { is_known: is_known_notification(&method), method },
        Ok(Message::Response(id, response)) => {
            Seen::Response { raw_id: id.map(|id| id.to_raw()), is_error: response.result.is_none() }
        }
    }
}
