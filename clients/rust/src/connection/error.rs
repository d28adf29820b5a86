//! Why an exchange with a server failed.
//!
//! A server's error message is quoted with its request id, after control characters were escaped.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use stage0_contract::{ErrorBody, FieldError};

use crate::target::TargetError;
use crate::text::plain;

/// Why there is no usable answer. No variant holds a key.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum ConnectionError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the key cannot be sent: it holds characters that no key has")]
    UnusableKey,
    #[error("cannot use the CA file `{path}`: {why}")]
    Ca { path: PathBuf, why: String },
    #[error("cannot reach `{url}`: {why}")]
    Unreachable { url: Url, why: String },
    #[error("`{url}` is not trusted: {why}")]
    NotTrusted { url: Url, why: String },
    #[error("the answer of `{url}` broke off: {why}")]
    Broken { url: Url, why: String },
    #[error("`{url}` did not answer in time")]
    Timeout { url: Url },
    /// The server answered with an error.
    #[error("the server answers {status}: {message}{}", in_request(.request_id))]
    Refused {
        status: u16,
        message: String,
        request_id: Option<String>,
        /// The members of the request that are wrong, on 422.
        fields: Vec<FieldError>,
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

impl ConnectionError {
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

    /// Whether the same exchange may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Target(_)
            | Self::UnusableKey
            | Self::Ca { .. }
            | Self::NotTrusted { .. }
            | Self::Unreadable(_)
            | Self::Runtime(_) => false,
        }
    }

    /// Whether the server refused this member of the request.
    pub fn is_about(&self, field: &str) -> bool {
        matches!(self, Self::Refused { status: 422, fields, .. } if fields.iter().any(|wrong| wrong.path == field))
    }

    /// How long the server asks to wait, on 429 and 503.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { status: 429 | 503, retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// An error response; its message is quoted only if the body has the contract's form.
    pub(crate) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let reason = status.canonical_reason().unwrap_or("an answer that is not of the contract");
        let body = serde_json::from_slice::<ErrorBody>(body).ok();
        Self::Refused {
            status: status.as_u16(),
            message: body.as_ref().map_or_else(|| reason.to_owned(), |body| plain(&body.message)),
            request_id: body.as_ref().map(|body| plain(&body.request_id)),
            fields: body.iter().flat_map(|body| &body.errors).map(plain_field).collect(),
            retry_after: retry_after(headers),
        }
    }
}

/// In whole seconds; the other form, a date, is not used by Stage0.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn plain_field(error: &FieldError) -> FieldError {
    FieldError { path: plain(&error.path), message: plain(&error.message) }
}

fn certificate_fault(fault: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Fault;
    match fault {
        // A bad signature: an authority of the same name has signed it, such as that of another `stage0 dev`.
        Fault::UnknownIssuer | Fault::BadSignature => "its certificate is not signed by a trusted authority".to_owned(),
        Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        other => plain(&other.to_string()),
    }
}

/// Finds the TLS library's error, which an I/O error wraps without naming it as its source.
pub fn tls_fault<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
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
        let error = ConnectionError::refused(StatusCode::FORBIDDEN, &HeaderMap::new(), body);
        assert_eq!(error.to_string(), "the server answers 403: the key lacks the scope `check` (request r-1)");
    }

    #[test]
    fn an_error_page_of_another_server_is_not_quoted() {
        let error = ConnectionError::refused(StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<html>\x1b[2J");
        assert_eq!(error.to_string(), "the server answers 502: Bad Gateway");
    }

    #[test]
    fn retry_after_is_taken_from_429_and_503_only() {
        let seconds = |status, text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))]);
            ConnectionError::refused(status, &headers, b"").retry_after().map(|wait| wait.as_secs())
        };
        assert_eq!(seconds(StatusCode::TOO_MANY_REQUESTS, "7"), Some(7));
        assert_eq!(seconds(StatusCode::SERVICE_UNAVAILABLE, "1"), Some(1));
        assert_eq!(seconds(StatusCode::TOO_MANY_REQUESTS, "Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(seconds(StatusCode::FORBIDDEN, "7"), None);
        let none = ConnectionError::refused(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), b"");
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
