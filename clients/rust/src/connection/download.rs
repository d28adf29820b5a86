//! A response that is too large to buffer: it is read chunk by chunk.
//!
//! INVARIANT: the end is reported only if the server marked it. A connection that breaks before is an error.

use reqwest::header::TRANSFER_ENCODING;
use reqwest::{Method, Response, Url};
use tokio::runtime::Runtime;

use super::{Connection, ConnectionError, Query};

/// A response that is being read.
pub struct Download {
    response: Response,
    url: Url,
}

impl Download {
    /// Asks. Nothing else may run on `runtime`, because the consumer of the chunks may block.
    pub fn begin(
        runtime: &Runtime,
        connection: &Connection,
        path: &[&str],
        query: &Query,
    ) -> Result<Self, ConnectionError> {
        let url = connection.target.url.clone();
        let response = runtime.block_on(async {
            let request = connection.request(Method::GET, path, &query.pairs(), None)?;
            let response = connection.begin(request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let answer = connection.read_whole(response).await?;
            Err(ConnectionError::refused(answer.status, &answer.headers, &answer.body))
        })?;
        // If only the end of the connection ended the response, a broken connection would look like the end.
        if response.content_length().is_none() && !response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(ConnectionError::Unreadable("it does not say where it ends".to_owned()));
        }
        Ok(Self { response, url })
    }

    /// The next part of the body, or none after its end.
    pub fn next(&mut self, runtime: &Runtime) -> Result<Option<impl AsRef<[u8]> + use<>>, ConnectionError> {
        let chunk = runtime.block_on(self.response.chunk());
        chunk.map_err(|error| ConnectionError::from_http(&error, &self.url))
    }
}
