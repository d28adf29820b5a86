//! The server behind the guard, over HTTP: the same endpoint for every message, and only the headers of the protocol.

use std::path::PathBuf;
use std::time::Duration;

use actix_web::http::header::HeaderMap as ClientHeaders;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Method, Response};
use url::Url;

use super::HttpError;
use super::origin::is_loopback;
use crate::headers::{METHOD, NAME, PARAM_PREFIX, PROTOCOL_VERSION};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The session of the versions that have one.
pub(super) const SESSION_ID: &str = "mcp-session-id";
/// Where a stream is resumed, in the versions that can.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

pub(super) struct Upstream {
    http: reqwest::Client,
    url: Url,
}

impl Upstream {
    pub(super) fn new(url: Url, ca: Option<PathBuf>) -> Result<Self, HttpError> {
        let is_plain = url.scheme() == "http" && url.host().is_some_and(|host| is_loopback(&host));
        if !(url.scheme() == "https" && url.host().is_some() || is_plain) {
            return Err(HttpError::Upstream(url));
        }
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(path) = ca {
            let unusable = |source| HttpError::Ca { path: path.clone(), source };
            let pem = std::fs::read(&path).map_err(|error| unusable(error.into()))?;
            let found = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.into()))?;
            builder = builder.tls_certs_only(found);
        }
        let http = builder.build().map_err(HttpError::Client)?;
        Ok(Self { http, url })
    }

    /// The path at which the guard answers: the server's own.
    pub(super) fn path(&self) -> &str {
        self.url.path()
    }

    pub(super) async fn send(
        &self,
        method: Method,
        headers: &ClientHeaders,
        is_stateless: bool,
        body: Option<Vec<u8>>,
    ) -> Result<Response, String> {
        let mut request = self.http.request(method, self.url.clone()).headers(passed_on(headers, is_stateless));
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await.map_err(|error| plain(&error))?;
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Err("the server's answer is compressed".to_owned());
        }
        Ok(response)
    }
}

/// What a client's request says to the server: the protocol's headers, and no cookie, origin or address.
fn passed_on(headers: &ClientHeaders, is_stateless: bool) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        let is_passed = [ACCEPT.as_str(), AUTHORIZATION.as_str(), METHOD, NAME, PROTOCOL_VERSION].contains(&name)
            || name.starts_with(PARAM_PREFIX)
            || TRACE.contains(&name)
            || (!is_stateless && [SESSION_ID, LAST_EVENT_ID].contains(&name));
        if is_passed
            && let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        {
            passed.append(name, value);
        }
    }
    passed
}

/// Why the server cannot be reached, without its URL: that may hold a secret.
fn plain(error: &reqwest::Error) -> String {
    let why = match error {
        error if error.is_connect() => "it cannot be reached",
        error if error.is_timeout() => "it did not answer in time",
        _ => "the connection broke off",
    };
    why.to_owned()
}
