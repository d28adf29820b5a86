//! The answer to a client that speaks plain HTTP on the TLS port.
//!
//! Owns the check of a connection's first byte, and the answer: one 400 in the shape of all errors, whatever the
//! request is, after which the connection closes. The request is not parsed, so nothing of it is decided, redirected or
//! logged. The rest of it is discarded for at most the time of a handshake, so that the client can read the answer.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::errors::ApiError;
use crate::throttle::CountedStream;
use actix_web::rt::net::TcpStream;
use stage0_contract::RequestId;

/// More than the largest request that is allowed.
const MAX_DISCARDED_BYTES: usize = 2 << 20;
const DISCARD_BYTES: usize = 4 << 10;

/// An HTTP method consists of letters; TLS begins with 0x16, and older handshakes with 0x80.
pub(crate) fn is_plain_http(first: u8) -> bool {
    first.is_ascii_alphabetic()
}

/// Answers, and waits until the client closes the connection. The caller sets a timeout.
pub(crate) async fn refuse(stream: &mut CountedStream<TcpStream>) -> io::Result<()> {
    let id = RequestId::new(Uuid::now_v7()).map_err(io::Error::other)?;
    tracing::debug!(request_id = %id, peer = ?stream.peer(), "plain HTTP on the TLS port refused");
    stream.established();
    stream.write_all(&ApiError::PlainHttp.raw(id)).await?;
    stream.shutdown().await?;
    let mut left = MAX_DISCARDED_BYTES;
    let mut unread = [0; DISCARD_BYTES];
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
    fn only_http_methods_are_taken_for_plain_http() {
        assert!([b'G', b'P', b'H', b'D', b'O', b'T', b'C', b'g'].into_iter().all(is_plain_http));
        assert!([0x16, 0x80, b'\r', b'\n', 0, b' ', b'{', b'1', 0xff].into_iter().all(|first| !is_plain_http(first)));
    }
}
