//! Asks a server over HTTPS: the side of the contract that integrators write, as a command line.
//!
//! Owns one exchange: which server, which trust, which key ([`target`]), the request, the answer, and what people are told when
//! there is none. Plain HTTP, redirects and proxies are refused: the key goes to the named server and nowhere else.

mod download;
mod error;
mod query;
mod target;

use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

pub(crate) use download::Download;
pub(crate) use error::{ClientError, tls_fault};
pub(crate) use query::Query;
pub(crate) use target::{Target, Whose, read_key};

/// No answer of the contract that is read whole comes near this: the largest is a page of decisions, 16 MiB of log and a piece.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// A server, what we trust, and our key.
pub(crate) struct Client {
    http: reqwest::Client,
    target: Target,
}

/// What came back, whole.
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body, not interpreted.
    pub(crate) body: Vec<u8>,
    headers: HeaderMap,
}

impl Client {
    /// Prepares the exchange; nothing is sent yet.
    pub(crate) fn new(target: Target, timeout: Duration) -> Result<Self, ClientError> {
        Self::build(target, |builder| builder.timeout(timeout))
    }

    /// For answers whose size nobody knows: each read has a timeout, the whole exchange has none.
    pub(crate) fn for_downloads(target: Target, read_timeout: Duration) -> Result<Self, ClientError> {
        Self::build(target, |builder| builder.connect_timeout(read_timeout).read_timeout(read_timeout))
    }

    fn build(target: Target, limit: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<Self, ClientError> {
        let builder =
            reqwest::Client::builder().https_only(true).no_proxy().redirect(reqwest::redirect::Policy::none());
        let mut builder = limit(builder);
        if let Some(ca) = &target.ca {
            builder = builder.tls_certs_only(certificates(ca)?);
        }
        let http = builder.build().map_err(|e| ClientError::from_http(&e, &target.url))?;
        Ok(Self { http, target })
    }

    /// Which server it asks.
    pub(crate) fn url(&self) -> &Url {
        &self.target.url
    }

    /// The account that is meant when none is named.
    pub(crate) fn account(&self) -> Option<&stage0_contract::AccountId> {
        self.target.account.as_ref()
    }

    /// Sends one request and reads the whole answer, whatever its status.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let response = self.begin(method, path, query, body).await?;
        self.whole(response).await
    }

    /// Sends one request and reads no more of the answer than its head.
    async fn begin(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Response, ClientError> {
        let mut key = HeaderValue::from_str(self.target.key.expose()).map_err(|_| ClientError::UnusableKey)?;
        key.set_sensitive(true);
        let url = address(&self.target.url, path, query);
        let mut request = self.http.request(method, url).header("x-api-key", key);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        request.send().await.map_err(|e| ClientError::from_http(&e, &self.target.url))
    }

    async fn whole(&self, mut response: Response) -> Result<Answer, ClientError> {
        let (status, headers, mut body) = (response.status(), response.headers().clone(), Vec::new());
        let failed = |e: reqwest::Error| ClientError::from_http(&e, &self.target.url);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(ClientError::Unreadable("it is larger than any answer of the contract".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body, headers })
    }

    /// Sends one request and reads a successful answer as `T`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let body = body.map(|value| value.to_string().into_bytes());
        let answer = self.send(method, path, query, body).await?.successful()?;
        serde_json::from_slice(&answer).map_err(|e| ClientError::Unreadable(e.to_string()))
    }
}

impl Answer {
    /// The body of a 2xx; anything else is an error with the server's own words.
    pub(crate) fn successful(self) -> Result<Vec<u8>, ClientError> {
        if self.status.is_success() {
            Ok(self.body)
        } else {
            Err(ClientError::refused(self.status, &self.headers, &self.body))
        }
    }
}

/// The base's own path stays in front; a slash at its end makes no difference.
fn address(base: &Url, path: &[&str], query: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url
}

fn certificates(ca: &Path) -> Result<Vec<Certificate>, ClientError> {
    let unusable = |why: String| ClientError::Ca { path: ca.to_owned(), why };
    let pem = std::fs::read(ca).map_err(|e| unusable(e.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(unusable("it holds no PEM certificate".to_owned())),
    }
}

/// Runs one exchange on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    runtime()?.block_on(work)
}

/// For exchanges that belong together: a connection lives no longer than the runtime that it was made on.
pub(crate) fn runtime() -> Result<Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| ClientError::Runtime(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_behind_the_base_and_cannot_leave_it() {
        for base in ["https://h:1/base", "https://h:1/base/"] {
            let url = address(&base.parse().unwrap(), &["v1", "keys", "a/b?c"], &[("account", "x&y")]);
            assert_eq!(url.as_str(), "https://h:1/base/v1/keys/a%2Fb%3Fc?account=x%26y");
        }
        assert_eq!(address(&"https://h".parse().unwrap(), &["check"], &[]).as_str(), "https://h/check");
    }
}
