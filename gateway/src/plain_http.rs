//! Plain HTTP on a port that speaks TLS: told so, and nothing else.
//!
//! Owns the look at a connection's first byte and the answer to a client that speaks HTTP without TLS: one 400 in the
//! shape of all errors, whatever it asks for, and the end of the connection. Nothing of its request is read as one, so
//! nothing is decided, redirected or logged of it. What it still sends is thrown away for as long as a handshake might
//! take, so that it can read the answer.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::errors::ApiError;
use crate::throttle::Counted;
use actix_web::rt::net::TcpStream;
use stage0_contract::RequestId;

/// More than the largest lawful request.
const MAX_DISCARDED_BYTES: usize = 2 << 20;
const DISCARD_BYTES: usize = 4 << 10;

/// Whether a connection that begins so is HTTP: a method is letters, TLS begins with 0x16 and older handshakes with
/// 0x80.
pub(crate) fn is_plain_http(first: u8) -> bool {
    first.is_ascii_alphabetic()
}

/// Answers, and waits for the client to read it. Ends with the connection; the caller bounds the time.
pub(crate) async fn turn_away(stream: &mut Counted<TcpStream>) -> io::Result<()> {
    let id = RequestId::new(Uuid::now_v7()).map_err(io::Error::other)?;
    tracing::debug!(request_id = %id, peer = ?stream.peer(), "plain HTTP on the TLS port refused");
    stream.established();
    stream.write_all(&ApiError::PlainHttp.raw(id)).await?;
    stream.shutdown().await?;
    let (mut left, mut unread) = (MAX_DISCARDED_BYTES, [0; DISCARD_BYTES]);
    while left > 0 {
        match stream.read(&mut unread).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_http_and_handshakes_and_proxy_headers_are_not() {
        assert!([b'G', b'P', b'H', b'D', b'O', b'T', b'C', b'g'].into_iter().all(is_plain_http));
        assert!([0x16, 0x80, b'\r', b'\n', 0, b' ', b'{', b'1', 0xff].into_iter().all(|first| !is_plain_http(first)));
    }
}
