//! An answer that is too large to be held: it is handed on piece by piece, as it comes.
//!
//! INVARIANT: the end is reported only when the server has said that it is the end. A connection that breaks before is an error.

use reqwest::header::TRANSFER_ENCODING;
use reqwest::{Method, Response, Url};
use tokio::runtime::Runtime;

use super::{Client, ClientError, Query};

/// A successful answer under way.
pub(crate) struct Download {
    response: Response,
    url: Url,
}

impl Download {
    /// Asks for it; a refusal is an error, as anywhere. Nothing else runs on `runtime`: whoever takes the pieces may
    /// block.
    pub(crate) fn begin(runtime: &Runtime, client: &Client, path: &[&str], query: &Query) -> Result<Self, ClientError> {
        let url = client.target.url.clone();
        let response = runtime.block_on(async {
            let response = client.begin(Method::GET, path, &query.pairs(), None).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let answer = client.whole(response).await?;
            Err(ClientError::refused(answer.status, &answer.headers, &answer.body))
        })?;
        // Where only the end of the connection ends the answer, a cut looks like the end.
        if response.content_length().is_none() && !response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(ClientError::Unreadable("it does not say where it ends".to_owned()));
        }
        Ok(Self { response, url })
    }

    /// The next piece; none after the last.
    pub(crate) fn next(&mut self, runtime: &Runtime) -> Result<Option<impl AsRef<[u8]> + use<>>, ClientError> {
        let piece = runtime.block_on(self.response.chunk());
        piece.map_err(|error| ClientError::from_http(&error, &self.url))
    }
}
