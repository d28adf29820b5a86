//! Why an exchange with a server failed, in words that say what to do next.
//!
//! A server's error message is quoted with its request id, after control characters were escaped.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use stage0_contract::ErrorBody;

use crate::out::plain;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no server: start `stage0 dev`, or name one with --url (there is no `{0}`)")]
    NoServer(PathBuf),
    #[error("no key for `{0}`: give --key-file FILE or the variable STAGE0_API_KEY, or name another server with --url")]
    NoKey(Url),
    #[error("no key for `{0}`: give --key-file FILE, or --data-dir DIR with the keystore's `operator.key`")]
    NoOperatorKey(Url),
    #[error("the key cannot be sent: it holds characters that no key has")]
    UnusableKey,
    /// A local file cannot be used. The source never quotes its content, which may be a key.
    #[error("cannot use `{path}`")]
    File { path: PathBuf, source: Box<dyn Error + Send + Sync> },
    #[error("cannot use the CA file `{path}`")]
    Ca { path: PathBuf, source: Box<dyn Error + Send + Sync> },
    #[error("cannot reach `{url}`: {why}")]
    Unreachable { url: Url, why: String },
    #[error("`{url}` is not trusted: {why} (--ca FILE names an authority to trust)")]
    NotTrusted { url: Url, why: String },
    #[error("the answer of `{url}` broke off: {why}")]
    Broken { url: Url, why: String },
    #[error("`{url}` did not answer in time (--timeout)")]
    Timeout { url: Url },
    #[error("the server answers {status}: {message}{}", in_request(.request_id))]
    Refused {
        status: u16,
        message: String,
        request_id: Option<String>,
        fields: Vec<String>,
        retry_after: Option<Duration>,
    },
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    #[error("cannot start")]
    Runtime(#[source] io::Error),
}

fn in_request(id: &Option<String>) -> String {
    id.as_ref().map_or_else(String::new, |id| format!(" (request {id})"))
}

impl ClientError {
    pub(super) fn from_http(error: &reqwest::Error, url: &Url) -> Self {
        let url = url.clone();
        let why = innermost(error);
        match tls_fault(error) {
            Some(rustls::Error::InvalidCertificate(fault)) => Self::NotTrusted { url, why: certificate_fault(fault) },
            Some(fault) => Self::Unreachable { url, why: plain(&format!("TLS handshake failed: {fault}")) },
            None if error.is_timeout() => Self::Timeout { url },
            None if error.is_body() || error.is_decode() => Self::Broken { url, why },
            None => Self::Unreachable { url, why },
        }
    }

    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::NoServer(_)
            | Self::NoKey(_)
            | Self::NoOperatorKey(_)
            | Self::UnusableKey
            | Self::File { .. }
            | Self::Ca { .. }
            | Self::NotTrusted { .. }
            | Self::Unreadable(_)
            | Self::Runtime(_) => false,
        }
    }

    pub(crate) fn is_about(&self, field: &str) -> bool {
        matches!(self, Self::Refused { status: 422, fields, .. } if fields.iter().any(|wrong| wrong == field))
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { status: 429 | 503, retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// An error response; its message is quoted only if the body has the contract's form.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let reason = status.canonical_reason().unwrap_or("an answer that is not of the contract");
        let body = serde_json::from_slice::<ErrorBody>(body).ok();
        Self::Refused {
            status: status.as_u16(),
            message: body.as_ref().map_or_else(|| reason.to_owned(), |body| plain(&body.message)),
            request_id: body.as_ref().map(|body| plain(&body.request_id)),
            fields: body.into_iter().flat_map(|body| body.errors).map(|error| error.path).collect(),
            retry_after,
        }
    }
}

fn certificate_fault(fault: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Fault;
    match fault {
        Fault::UnknownIssuer => "its certificate is not signed by a trusted authority".to_owned(),
        Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        other => plain(&other.to_string()),
    }
}

/// Finds the TLS library's error, which an I/O error wraps without naming it as its source.
pub(crate) fn tls_fault<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = error.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref()));
        if found.is_some() {
            return found;
        }
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    plain(&innermost.to_string()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_is_shown_with_its_message_and_request_id() {
        let body = br#"{"message":"the key lacks the scope `check`","error":"scope_missing",
            "detail":{"detail":"x","request_id":"r-1"},"request_id":"r-1"}"#;
        let error = ClientError::refused(StatusCode::FORBIDDEN, &HeaderMap::new(), body);
        assert_eq!(error.to_string(), "the server answers 403: the key lacks the scope `check` (request r-1)");
    }

    #[test]
    fn an_error_page_of_another_server_is_not_quoted() {
        let error = ClientError::refused(StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<html>\x1b[2J");
        assert_eq!(error.to_string(), "the server answers 502: Bad Gateway");
    }

    #[test]
    fn retry_after_is_taken_from_429_and_503_only() {
        let seconds = |status, text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))]);
            ClientError::refused(status, &headers, b"").retry_after().map(|wait| wait.as_secs())
        };
        assert_eq!(seconds(StatusCode::TOO_MANY_REQUESTS, "7"), Some(7));
        assert_eq!(seconds(StatusCode::SERVICE_UNAVAILABLE, "1"), Some(1));
        assert_eq!(seconds(StatusCode::TOO_MANY_REQUESTS, "Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(seconds(StatusCode::FORBIDDEN, "7"), None);
        let none = ClientError::refused(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), b"");
        assert_eq!(none.retry_after(), None);
    }

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let fault = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(fault));
        assert!(matches!(tls_fault(&wrapped), Some(rustls::Error::InvalidCertificate(_))));
        assert!(tls_fault(&io::Error::other("x")).is_none());
    }
}
