//! HTTPS to one server: the layer below the [`Client`](crate::Client), for calls that it has no method for.
//!
//! Plain HTTP, redirects and proxies are refused, so that the key is sent to the named server only. The certificate is
//! always verified. A response is bounded; one that breaks off is an error.

mod download;
mod error;
mod query;

use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stage0_contract::{AccountId, Page};
use tokio::runtime::Runtime;

use crate::target::Target;

pub use download::Download;
pub use error::{ConnectionError, tls_fault};
pub use query::{Limit, Query};

/// More than any response that is buffered: the largest is a page of decisions, with a little over 16 MiB of log.
const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;

/// A pool of connections to one server, with the key that goes with each request.
pub struct Connection {
    http: reqwest::Client,
    target: Target,
}

/// A response with any status.
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Vec<u8>,
    pub(crate) headers: HeaderMap,
}

impl Connection {
    /// Each exchange, from connecting to the last byte, takes at most `timeout`.
    pub fn new(target: Target, timeout: Duration) -> Result<Self, ConnectionError> {
        Self::build(target, |builder| builder.timeout(timeout))
    }

    /// For responses of unknown size: the timeout applies to each read instead of the whole exchange.
    pub fn for_downloads(target: Target, read_timeout: Duration) -> Result<Self, ConnectionError> {
        Self::build(target, |builder| builder.connect_timeout(read_timeout).read_timeout(read_timeout))
    }

    pub(crate) fn build(
        target: Target,
        limit: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, ConnectionError> {
        let builder =
            reqwest::Client::builder().https_only(true).no_proxy().redirect(reqwest::redirect::Policy::none());
        let mut builder = limit(builder);
        if let Some(ca) = &target.ca {
            builder = builder.tls_certs_only(certificates(ca)?);
        }
        let http = builder.build().map_err(|e| ConnectionError::from_http(&e, &target.url))?;
        Ok(Self { http, target })
    }

    /// The server.
    pub fn url(&self) -> &Url {
        &self.target.url
    }

    /// The account to act in when the caller names none: that of a dev server whose keys are used.
    pub fn account(&self) -> Option<&AccountId> {
        self.target.account.as_ref()
    }

    /// Where the key was found; none: the calls are made without one.
    pub fn key_origin(&self) -> Option<&str> {
        self.target.key_origin.as_deref()
    }

    /// Sends a request to the path below the server's URL and reads the whole response, whatever its status.
    pub async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ConnectionError> {
        let response = self.begin(self.request(method, path, query, body)?).await?;
        self.read_whole(response).await
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<RequestBuilder, ConnectionError> {
        let mut request = self.http.request(method, address(&self.target.url, path, query));
        if let Some(key) = &self.target.key {
            let mut key = HeaderValue::from_str(key.expose()).map_err(|_| ConnectionError::UnusableKey)?;
            key.set_sensitive(true);
            request = request.header("x-api-key", key);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        Ok(request)
    }

    pub(crate) async fn begin(&self, request: RequestBuilder) -> Result<Response, ConnectionError> {
        request.send().await.map_err(|e| ConnectionError::from_http(&e, &self.target.url))
    }

    async fn read_whole(&self, response: Response) -> Result<Answer, ConnectionError> {
        self.read_bounded(response, MAX_RESPONSE_BYTES).await
    }

    pub(crate) async fn read_bounded(&self, mut response: Response, max: usize) -> Result<Answer, ConnectionError> {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        let failed = |e: reqwest::Error| ConnectionError::from_http(&e, &self.target.url);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > max {
                return Err(ConnectionError::Unreadable("it is larger than any answer of the contract".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body, headers })
    }

    /// A call whose answer has no content.
    pub async fn execute(&self, method: Method, path: &[&str]) -> Result<(), ConnectionError> {
        self.send(method, path, &[], None).await?.successful().map(|_| ())
    }

    /// A call with a JSON answer.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<T, ConnectionError> {
        let body = body.map(|value| value.to_string().into_bytes());
        let answer = self.send(method, path, query, body).await?.successful()?;
        serde_json::from_slice(&answer).map_err(|e| ConnectionError::Unreadable(e.to_string()))
    }

    /// Reads page after page: one that is short, or even empty, need not be the last.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
        limit: Option<Limit>,
    ) -> Result<Page<T>, ConnectionError> {
        let mut items = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let missing = limit.map(|limit| limit.items.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX)));
            let size = limit.zip(missing).map(|(limit, missing)| missing.min(limit.per_page));
            let query = query.clone().with("limit", size).with("cursor", cursor.as_ref());
            let page: Page<T> = self.call(Method::GET, path, &query.pairs(), None).await?;
            let count = u32::try_from(page.items.len()).unwrap_or(u32::MAX);
            items.extend(page.items);
            let is_enough = missing.is_some_and(|missing| count >= missing);
            // A server that repeats its cursor would keep this loop running for ever.
            if is_enough || page.next_cursor.is_none() || page.next_cursor == cursor {
                return Ok(Page { items, next_cursor: page.next_cursor });
            }
            cursor = page.next_cursor;
        }
    }
}

impl Answer {
    /// How long the server asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        error::retry_after(&self.headers)
    }

    /// The body of a response with a status of success; else the error that it is.
    pub fn successful(self) -> Result<Vec<u8>, ConnectionError> {
        if self.status.is_success() {
            Ok(self.body)
        } else {
            Err(ConnectionError::refused(self.status, &self.headers, &self.body))
        }
    }
}

/// Appends to the base's path, with or without a slash at its end.
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

fn certificates(ca: &Path) -> Result<Vec<Certificate>, ConnectionError> {
    let unusable = |why| ConnectionError::Ca { path: ca.to_owned(), why };
    let pem = std::fs::read(ca).map_err(|error| unusable(error.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(unusable("it holds no PEM certificate".to_owned())),
    }
}

/// Waits for an exchange, for programs that are not async. It does not wait for what an exchange that was given up has
/// left behind, such as a name that is still being looked up.
pub fn block_on<T>(work: impl Future<Output = Result<T, ConnectionError>>) -> Result<T, ConnectionError> {
    let runtime = runtime()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// A runtime for several exchanges: a connection cannot outlive the runtime on which it was opened.
pub fn runtime() -> Result<Runtime, ConnectionError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ConnectionError::Runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_appended_to_the_base_and_cannot_leave_it() {
        for base in ["https://h:1/base", "https://h:1/base/"] {
            let url = address(&base.parse().unwrap(), &["v1", "keys", "a/b?c"], &[("account", "x&y")]);
            assert_eq!(url.as_str(), "https://h:1/base/v1/keys/a%2Fb%3Fc?account=x%26y");
        }
        assert_eq!(address(&"https://h".parse().unwrap(), &["check"], &[]).as_str(), "https://h/check");
    }
}
