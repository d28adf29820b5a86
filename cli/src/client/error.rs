//! Why there is no usable answer, in words that say what to do next.
//!
//! Owns the texts of the client commands. What the server said is quoted with its request id, and cleaned of control characters.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use stage0_contract::ErrorBody;

use crate::out::plain;

/// An exchange that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Neither a URL nor a dev server.
    #[error("no server: start `stage0 dev`, or name one with --url (there is no `{0}`)")]
    NoServer(PathBuf),
    /// There is no key to send.
    #[error("no key for `{0}`: give --key-file FILE or the variable STAGE0_API_KEY, or name another server with --url")]
    NoKey(Url),
    /// There is no operator's key to send.
    #[error("no key for `{0}`: give --key-file FILE, or --data-dir DIR with the keystore's `operator.key`")]
    NoOperatorKey(Url),
    /// The key is no text for a header.
    #[error("the key cannot be sent: it holds characters that no key has")]
    UnusableKey,
    /// A file of ours cannot be used.
    #[error("cannot use `{path}`: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Lower case, without its content.
        why: String,
    },
    /// The CA file cannot be used.
    #[error("cannot use the CA file `{path}`: {why}")]
    Ca {
        /// Which.
        path: PathBuf,
        /// Lower case.
        why: String,
    },
    /// Nobody answers there.
    #[error("cannot reach `{url}`: {why}")]
    Unreachable {
        /// Which server.
        url: Url,
        /// The system's words.
        why: String,
    },
    /// Somebody answers, and is not trusted.
    #[error("`{url}` is not trusted: {why} (--ca FILE names an authority to trust)")]
    NotTrusted {
        /// Which server.
        url: Url,
        /// The verifier's words.
        why: String,
    },
    /// It began to answer and did not end.
    #[error("the answer of `{url}` broke off: {why}")]
    Broken {
        /// Which server.
        url: Url,
        /// Lower case.
        why: String,
    },
    /// The exchange took too long.
    #[error("`{url}` did not answer in time (--timeout)")]
    Late {
        /// Which server.
        url: Url,
    },
    /// The server refused or failed.
    #[error("the server answers {status}: {message}{}", in_request(.request_id))]
    Refused {
        /// HTTP.
        status: u16,
        /// The server's words.
        message: String,
        /// For the server's log.
        request_id: Option<String>,
        /// The paths of the fields that it finds wrong.
        fields: Vec<String>,
        /// When it wants to be asked again, if it says so.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the contract says.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// This process could not start its own machinery.
    #[error("cannot start: {0}")]
    Runtime(String),
}

fn in_request(id: &Option<String>) -> String {
    id.as_ref().map_or_else(String::new, |id| format!(" (request {id})"))
}

impl ClientError {
    /// Sorts a failure of the exchange by what its reader can do about it.
    pub(super) fn from_http(error: &reqwest::Error, url: &Url) -> Self {
        let url = url.clone();
        let why = innermost(error);
        match tls_fault(error) {
            Some(rustls::Error::InvalidCertificate(fault)) => Self::NotTrusted { url, why: distrust(fault) },
            Some(fault) => Self::Unreachable { url, why: plain(&format!("it does not speak TLS as we do: {fault}")) },
            None if error.is_timeout() => Self::Late { url },
            None if error.is_body() || error.is_decode() => Self::Broken { url, why },
            None => Self::Unreachable { url, why },
        }
    }

    /// Whether the same may succeed a little later, without anybody doing anything about it here.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Late { .. } => true,
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

    /// When the server wants to be asked again, if that is all that it says.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { status: 429 | 503, retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// An answer that is not a success: the server's words, if it is one of ours.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let status_code = status.as_u16();
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(ours) => Self::Refused {
                status: status_code,
                message: plain(&ours.message),
                request_id: Some(plain(&ours.request_id)),
                fields: ours.errors.into_iter().map(|error| error.path).collect(),
                retry_after,
            },
            Err(_) => Self::Refused {
                status: status_code,
                message: status.canonical_reason().unwrap_or("an answer that is not of the contract").to_owned(),
                request_id: None,
                fields: Vec::new(),
                retry_after,
            },
        }
    }
}

fn distrust(fault: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Fault;
    match fault {
        Fault::UnknownIssuer => "nobody whom we trust signed its certificate".to_owned(),
        Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        other => plain(&other.to_string()),
    }
}

/// The TLS library's error stands inside of an I/O error, which does not name it as its source.
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
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    plain(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_the_servers_words_and_its_request() {
        let body = br#"{"message":"the key lacks the scope `check`","error":"scope_missing","detail":{"detail":"x","request_id":"r-1"},"request_id":"r-1"}"#;
        let error = ClientError::refused(StatusCode::FORBIDDEN, &HeaderMap::new(), body);
        assert_eq!(error.to_string(), "the server answers 403: the key lacks the scope `check` (request r-1)");
    }

    #[test]
    fn an_answer_of_somebody_else_is_not_quoted() {
        let error = ClientError::refused(StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<html>\x1b[2J");
        assert_eq!(error.to_string(), "the server answers 502: Bad Gateway");
    }

    #[test]
    fn only_a_busy_server_says_when_to_ask_again() {
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
    fn a_tls_fault_is_found_inside_of_an_io_error() {
        let fault = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(fault));
        assert!(matches!(tls_fault(&wrapped), Some(rustls::Error::InvalidCertificate(_))));
        assert!(tls_fault(&io::Error::other("x")).is_none());
    }
}
