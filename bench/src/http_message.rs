//! Reads an HTTP/1.1 message, a request or an answer, whose head says how long its body is.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::request::find;

pub(crate) struct Message {
    /// In lower case.
    pub(crate) head: String,
    /// Of head and body.
    pub(crate) length: usize,
}

/// Reads a whole message to the end of the buffer, which may hold its beginning.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> anyhow::Result<Message> {
    let end = loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection was closed");
        }
    };
    let head = std::str::from_utf8(buffer.get(..end).unwrap_or_default())?.to_ascii_lowercase();
    let body = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let length = end + 4 + body.trim().parse::<usize>()?;
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection was closed within a message");
        }
    }
    Ok(Message { head, length })
}
