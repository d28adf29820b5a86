//! The HTTPS client of the commands that talk to a server.
//!
//! Plain HTTP, redirects and proxies are refused, so that the key is sent to the named server only.

mod download;
mod error;
mod target;

use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stage0_contract::Page;
use tokio::runtime::Runtime;

use crate::out::plain;

pub(crate) use download::Download;
pub(crate) use error::{ClientError, tls_fault};
pub(crate) use target::{Credential, Target, read_key};

/// More than any response that is buffered: the largest is a page of decisions, with a little over 16 MiB of log.
const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;

pub(crate) struct Client {
    http: reqwest::Client,
    target: Target,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
    headers: HeaderMap,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) items: u32,
    pub(crate) per_page: u32,
}

impl Client {
    pub(crate) fn new(target: Target, timeout: Duration) -> Result<Self, ClientError> {
        Self::build(target, |builder| builder.timeout(timeout))
    }

    /// A client for responses of unknown size: the timeout applies to each read instead of the whole exchange.
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

    pub(crate) fn url(&self) -> &Url {
        &self.target.url
    }

    /// The account to act in when the command names none.
    pub(crate) fn account(&self) -> Option<&stage0_contract::AccountId> {
        self.target.account.as_ref()
    }

    /// Where the key was found; none: the calls are made without one.
    pub(crate) fn key_origin(&self) -> Option<&str> {
        self.target.key_origin.as_deref()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let response = self.begin(method, path, query, body).await?;
        self.read_whole(response).await
    }

    async fn begin(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Response, ClientError> {
        let url = address(&self.target.url, path, query);
        let mut request = self.http.request(method, url);
        if let Some(key) = &self.target.key {
            let mut key = HeaderValue::from_str(key.expose()).map_err(|_| ClientError::UnusableKey)?;
            key.set_sensitive(true);
            request = request.header("x-api-key", key);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        request.send().await.map_err(|e| ClientError::from_http(&e, &self.target.url))
    }

    async fn read_whole(&self, mut response: Response) -> Result<Answer, ClientError> {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        let failed = |e: reqwest::Error| ClientError::from_http(&e, &self.target.url);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(ClientError::Unreadable("it is larger than any answer of the contract".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body, headers })
    }

    pub(crate) async fn execute(&self, method: Method, path: &[&str]) -> Result<(), ClientError> {
        self.send(method, path, &[], None).await?.successful().map(|_| ())
    }

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

    /// Reads page after page: one that is short, or even empty, need not be the last.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &Query,
        limit: Option<Limit>,
    ) -> Result<Page<T>, ClientError> {
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
    pub(crate) fn successful(self) -> Result<Vec<u8>, ClientError> {
        if self.status.is_success() {
            Ok(self.body)
        } else {
            Err(ClientError::refused(self.status, &self.headers, &self.body))
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(&'static str, String)>);

impl Query {
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str())).collect()
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

fn certificates(ca: &Path) -> Result<Vec<Certificate>, ClientError> {
    let unusable = |source| ClientError::Ca { path: ca.to_owned(), source };
    let pem = std::fs::read(ca).map_err(|error| unusable(error.into()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(unusable("it holds no PEM certificate".into())),
    }
}

/// Parses what may also be printed as it came, with members that only a newer version knows.
pub(crate) fn parse<T: DeserializeOwned>(answer: &Value) -> Result<T, ClientError> {
    T::deserialize(answer).map_err(|error| ClientError::Unreadable(plain(&error.to_string())))
}

pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    runtime()?.block_on(work)
}

/// A runtime for several exchanges: a connection cannot outlive the runtime on which it was opened.
pub(crate) fn runtime() -> Result<Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ClientError::Runtime)
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
