//! The gateway's private parsers, for the fuzz targets in `fuzz/`. Not part of the API.
//!
//! Always compiled: behind a feature, a build of all packages would compile the gateway again, and a build of the
//! binary alone once more.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::http::header::{FORWARDED, HeaderMap, HeaderValue, X_FORWARDED_FOR};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, ReadBuf};

use crate::address::{Client, TrustedProxies};
use crate::log_reader::Cursor;
use crate::proxy_protocol;

/// What a balancer's connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address, if there is one; or why the connection is closed.
    pub source: Result<Option<SocketAddr>, String>,
    /// How many bytes were read.
    pub read_bytes: usize,
}

/// Reads the header from bytes that arrive in these pieces.
pub fn proxy_header<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> ProxyHeader {
    // A piece without bytes would be the end.
    let left = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    let mut stream = Pieces { left, read_bytes: 0 };
    let source = match proxy_protocol::source(&mut stream).now_or_never() {
        Some(source) => source.map_err(|refused| refused.to_string()),
        None => Err("it waits for bytes that are there".to_owned()),
    };
    ProxyHeader { source, read_bytes: stream.read_bytes }
}

/// The client that a request is counted under, with these lines of `Forwarded` and of `X-Forwarded-For`.
pub fn client_address(
    peer: IpAddr,
    forwarded: &[&[u8]],
    x_forwarded_for: &[&[u8]],
    trusted: &TrustedProxies,
) -> IpAddr {
    let mut headers = HeaderMap::new();
    for (name, lines) in [(FORWARDED, forwarded), (X_FORWARDED_FOR, x_forwarded_for)] {
        // The server refuses a request with another value.
        for value in lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok()) {
            headers.append(name.clone(), value);
        }
    }
    Client::of(peer, &headers, trusted).address()
}

/// Reads a cursor of a page, and writes it again.
pub fn cursor(text: &str) -> Option<String> {
    Cursor::parse(text).map(|cursor| cursor.to_string())
}

/// Gives its pieces one by one, as a network may.
struct Pieces<'b> {
    left: VecDeque<&'b [u8]>,
    read_bytes: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.left.pop_front() {
            let (now, later) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.read_bytes += now.len();
            if !later.is_empty() {
                self.left.push_front(later);
            }
        }
        Poll::Ready(Ok(()))
    }
}
