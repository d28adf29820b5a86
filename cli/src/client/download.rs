//! A response that is too large to buffer: it is read chunk by chunk.
//!
//! INVARIANT: the end is reported only if the server marked it. A connection that breaks before is an error.

use reqwest::header::TRANSFER_ENCODING;
use reqwest::{Method, Response, Url};
use tokio::runtime::Runtime;

use super::{Client, ClientError, Query};

pub(crate) struct Download {
    response: Response,
    url: Url,
}

impl Download {
    /// Nothing else may run on `runtime`, because the consumer of the chunks may block.
    pub(crate) fn begin(runtime: &Runtime, client: &Client, path: &[&str], query: &Query) -> Result<Self, ClientError> {
        let url = client.target.url.clone();
        let response = runtime.block_on(async {
            let response = client.begin(Method::GET, path, &query.pairs(), None).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let answer = client.read_whole(response).await?;
            Err(ClientError::refused(answer.status, &answer.headers, &answer.body))
        })?;
        // If only the end of the connection ended the response, a broken connection would look like the end.
        if response.content_length().is_none() && !response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(ClientError::Unreadable("it does not say where it ends".to_owned()));
        }
        Ok(Self { response, url })
    }

    pub(crate) fn next(&mut self, runtime: &Runtime) -> Result<Option<impl AsRef<[u8]> + use<>>, ClientError> {
        let chunk = runtime.block_on(self.response.chunk());
        chunk.map_err(|error| ClientError::from_http(&error, &self.url))
    }
}
