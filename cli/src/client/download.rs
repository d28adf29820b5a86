//! An answer that is too large to be held: it is handed on piece by piece, as it comes.
//!
//! INVARIANT: the end is reported only when the server has said that it is the end. A connection that breaks before is an error.

use reqwest::{Method, Response, Url};
use tokio::runtime::Runtime;

use super::{Client, ClientError, Query, runtime};

/// A successful answer under way. Whoever takes the pieces is free to wait for a disk: nothing else runs on this runtime.
pub(crate) struct Download {
    response: Response,
    url: Url,
    runtime: Runtime,
}

impl Download {
    /// Asks for it; a refusal is an error, as anywhere.
    pub(crate) fn begin(client: &Client, path: &[&str], query: &Query) -> Result<Self, ClientError> {
        let runtime = runtime()?;
        let response = runtime.block_on(async {
            let response = client.begin(Method::GET, path, &query.pairs(), None).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let answer = client.whole(response).await?;
            Err(ClientError::refused(answer.status, &answer.body))
        })?;
        Ok(Self { response, url: client.target.url.clone(), runtime })
    }

    /// The next piece; none after the last.
    pub(crate) fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, ClientError> {
        let piece = self.runtime.block_on(self.response.chunk());
        piece.map_err(|error| ClientError::from_http(&error, &self.url))
    }
}
