//! Reads HTTP/1.1 requests in the receivers of tests. Included by other crates' tests too.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request as it was received.
#[derive(Debug, Clone)]
pub(crate) struct HttpRequest {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// In their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl HttpRequest {
    /// The only header with this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "there are several {name} headers");
        first
    }
}

/// None when the client has closed, or sends something other than a request with a `content-length`.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<HttpRequest> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 || read.first() == Some(&TLS_HANDSHAKE) {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(Some(0), |(_, v)| v.parse().ok())?;
    let mut body = read.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    assert_eq!(body.len(), length, "the client pipelines requests");
    Some(HttpRequest { method, path, headers, body })
}
